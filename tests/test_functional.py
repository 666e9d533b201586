"""The equations against hand-computed numbers, under vmap and compile, and the properties that tie them together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import batch, make
from torchrl_ddpg import SoftUpdate
from torchrl_ddpg import functional as F  # noqa: N812

settings.register_profile("same every time", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("same every time")


def column(*values):
    return torch.tensor(values).unsqueeze(-1)


def test_discount_by_hand():
    terminated = torch.tensor([[False], [True], [False]])
    torch.testing.assert_close(F.discount(0.5, terminated), column(0.5, 0.0, 0.5))
    steps = torch.tensor([[1], [2], [3]])
    torch.testing.assert_close(F.discount(0.5, terminated, steps), column(0.5, 0.0, 0.125))


def test_td_target_by_hand():
    target = F.td_target(column(1.0, -2.0), column(0.9, 0.0), column(10.0, 10.0))
    torch.testing.assert_close(target, column(10.0, -2.0))


@pytest.mark.parametrize(
    ("lmbda", "expected"),
    # gamma 0.5; the trajectory ends by truncation after the second of four steps, the fourth step terminates
    [(0.0, [6.0, 12.0, 18.0, 4.0]), (1.0, [7.0, 12.0, 5.0, 4.0]), (0.5, [6.5, 12.0, 11.5, 4.0])],
)
def test_td_lambda_target_by_hand(lmbda, expected):
    reward, value = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0, 99.0]])
    done = torch.tensor([[False, True, False, True]])
    discount = torch.tensor([[0.5, 0.5, 0.5, 0.0]])
    target = F.td_lambda_target(reward, discount, value, done, lmbda, time_dim=1)
    torch.testing.assert_close(target, torch.tensor([expected]))


def test_td_error_is_signed_and_detached():
    prediction = torch.tensor([1.0, 5.0], requires_grad=True)
    error = F.td_error(prediction, torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(error, torch.tensor([2.0, -2.0]))
    assert not error.requires_grad


@pytest.mark.parametrize(("name", "expected"), [("l2", [9.0, 0.25]), ("l1", [3.0, 0.5]), ("smooth_l1", [2.5, 0.125])])
def test_value_loss_by_hand(name, expected):
    prediction = torch.tensor([1.0, 2.0], requires_grad=True)
    target = torch.tensor([4.0, 2.5], requires_grad=True)
    loss = F.value_loss(prediction, target, name)
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


@pytest.mark.parametrize(
    ("reduction", "weight", "mask", "expected"),
    [
        ("mean", None, None, 2.0),
        ("sum", None, None, 6.0),
        ("none", None, None, [1.0, 2.0, 3.0]),
        ("mean", [0.0, 0.5, 1.0], None, 4.0 / 3),
        ("sum", [0.0, 0.5, 1.0], None, 4.0),
        ("mean", None, [True, False, True], 2.0),
        ("mean", [1.0, 9.0, 0.5], [True, False, True], 1.25),
        ("none", [1.0, 9.0, 0.5], [True, False, True], [1.0, 0.0, 1.5]),
        ("mean", None, [False, False, False], 0.0),
    ],
)
def test_reduce_by_hand(reduction, weight, mask, expected):
    options = {"weight": weight, "mask": mask}
    options = {name: torch.tensor(value) for name, value in options.items() if value is not None}
    loss = F.reduce(torch.tensor([1.0, 2.0, 3.0]), reduction, **options)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_mean_and_max_by_hand():
    values = torch.tensor([1.0, 7.0, 4.0])
    assert F.mean_and_max("q", values) == {"q": 4.0, "q_max": 7.0}
    assert F.mean_and_max("q", values, torch.tensor([True, False, True])) == {"q": 2.5, "q_max": 4.0}
    assert all(value.isnan() for value in F.mean_and_max("q", values, torch.zeros(3, dtype=torch.bool)).values())
    assert all(value.isnan() for value in F.mean_and_max("q", values[:0]).values())


def test_polyak_update_by_hand():
    target, source = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0], requires_grad=True)
    F.polyak_update_([target], [source], 0.25)
    torch.testing.assert_close(target, torch.tensor([1.25, 2.5]))
    assert not target.requires_grad


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: F.td_target(torch.ones(2), torch.ones(2), torch.ones(2, 1)), r"reward \[2\].*next_value \[2, 1\]"),
        (lambda: F.discount(0.9, torch.zeros(2, 1), torch.ones(2)), r"terminated \[2, 1\], steps \[2\]"),
        (lambda: F.td_error(torch.ones(2), torch.ones(1)), r"prediction \[2\], target \[1\]"),
        (lambda: F.value_loss(torch.ones(2), torch.ones(2), "l3"), "'l3'; accepted: l1, l2, smooth_l1"),
        (lambda: F.value_loss(torch.ones(2), torch.ones(3)), r"prediction \[2\], target \[3\]"),
        (lambda: F.reduce(torch.ones(2), "avg"), "'avg'; accepted: none, mean, sum"),
        (lambda: F.reduce(torch.ones(2), weight=torch.ones(2, 1)), r"loss \[2\], weight \[2, 1\]"),
        (lambda: F.polyak_update_([], [], 0.0), r"tau is 0.0; accepted: a number in \(0, 1\]"),
    ],
)
def test_misuse_is_worded(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_vmap_and_compile():
    reward, next_value = torch.randn(4, 5, 1), torch.randn(4, 5, 1)
    terminated = torch.rand(4, 5, 1) < 0.5

    def loss(reward, terminated, next_value):
        target = F.td_target(reward, F.discount(0.9, terminated), next_value)
        return F.reduce(F.value_loss(next_value, target, "smooth_l1"), "sum")

    whole = loss(reward, terminated, next_value)
    torch.testing.assert_close(torch.vmap(loss)(reward, terminated, next_value).sum(), whole)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(reward, terminated, next_value), whole)


# ---- properties: this reduces to that

numbers = st.floats(-100, 100, width=32)
rates = st.floats(0, 1, width=32)
vectors = st.lists(numbers, min_size=1, max_size=8).map(torch.tensor)


@given(vectors, numbers)
def test_tau_of_one_is_a_copy(source, value):
    target = torch.full_like(source, value)
    F.polyak_update_([target], [source], 1.0)
    torch.testing.assert_close(target, source, rtol=0, atol=0)


@given(vectors, numbers, st.floats(2**-10, 1, width=32))
def test_targets_stay_between_the_ends(source, value, tau):
    target = torch.full_like(source, value)
    low, high = torch.minimum(target, source), torch.maximum(target, source)
    F.polyak_update_([target], [source], tau)
    slack = 1e-5 * (1 + high.abs().max())
    assert (target >= low - slack).all()
    assert (target <= high + slack).all()


@given(vectors, numbers, rates)
def test_terminated_means_that_the_target_is_the_reward(reward, next_value, gamma):
    terminated = torch.ones(len(reward), dtype=torch.bool)
    target = F.td_target(reward, F.discount(gamma, terminated), torch.full_like(reward, next_value))
    torch.testing.assert_close(target, reward, rtol=0, atol=0)


@given(vectors, numbers)
def test_gamma_of_zero_means_that_the_target_is_the_reward(reward, next_value):
    going_on = torch.zeros(len(reward), dtype=torch.bool)
    target = F.td_target(reward, F.discount(0.0, going_on), torch.full_like(reward, next_value))
    torch.testing.assert_close(target, reward, rtol=0, atol=0)


@given(st.integers(0, 10_000), rates)
def test_one_step_of_n_is_td0(seed, gamma):
    terminated = torch.rand(6, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    one = torch.ones(6, 1, dtype=torch.int64)
    torch.testing.assert_close(F.discount(gamma, terminated, one), F.discount(gamma, terminated))


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_permuting_the_batch_permutes_the_losses(seed):
    loss = make(reduction="none")
    data = batch(12, seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    for term in (loss.loss_value, loss.loss_actor):
        torch.testing.assert_close(term(data[order])[0], term(data)[0][order])


@given(st.integers(0, 10_000), st.floats(0, 1, width=16))
@settings(max_examples=10)
def test_td_lambda_at_zero_and_one_is_td0_and_td1(seed, gamma):
    loss = make()
    data = batch(3, 7, seed=seed, terminated=0.2, truncated=0.2)

    def target(name, **options):
        return loss.make_value_estimator(name, gamma=gamma, **options).compute_target(data)

    torch.testing.assert_close(target("td_lambda", lmbda=0.0), target("td0"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target("td_lambda", lmbda=1.0), target("td1"), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_td1_is_the_discounted_sum_up_to_the_end(seed):
    gamma = 0.9
    loss = make().make_value_estimator("td1", gamma=gamma)
    data = batch(1, 6, seed=seed, terminated=0.0, truncated=0.0)
    data["next", "done"][0, -1] = data["next", "terminated"][0, -1] = True
    reward = data["next", "reward"].flatten()
    expected = sum(gamma**k * reward[k] for k in range(6))
    torch.testing.assert_close(loss.compute_target(data)[0, 0, 0], expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000), st.floats(2**-6, 1, width=16))
@settings(max_examples=10)
def test_soft_update_is_polyak_over_every_parameter(seed, tau):
    loss = make(seed=seed, updater=False)
    targets, sources = loss.target_pairs("parameters")
    expected = [(1 - tau) * target + tau * source.detach() for target, source in zip(targets, sources, strict=True)]
    updater = SoftUpdate(loss, tau=tau)
    updater.step()
    torch.testing.assert_close(targets, expected)

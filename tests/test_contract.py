"""What holds for every loss of the library, by one parametrisation."""

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from helpers import LOSSES, batch, gradients
from torchrl_ddpg import SoftUpdate

pytestmark = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())


def total(outputs):
    """The sum of the losses."""
    return sum(value.sum() for key, value in outputs.items() if key.startswith("loss_"))


def losses_of(case, loss, data):
    outputs = loss(data.clone())
    return [outputs["loss_actor"], outputs[case.critic_loss_key]]


def parameters(loss, name):
    return list(getattr(loss, f"{name}_params").parameters())


def test_each_term_trains_its_own_network_alone(case):
    loss = case.make()
    data = batch(8)
    actor_params, critic_params = parameters(loss, "actor_network"), parameters(loss, case.critic_name)
    for term, mine, other in (("loss_actor", actor_params, critic_params), ("loss_value", critic_params, actor_params)):
        value, _ = getattr(loss, term)(data)
        assert all(g is not None and g.abs().sum() > 0 for g in gradients(value, mine))
        assert all(g is None for g in gradients(value, other))
    assert all(p.requires_grad for p in loss.parameters())


def test_targets_carry_no_gradient_and_no_optimizer_sees_them(case):
    loss = case.make()
    targets = loss.target_pairs("parameters")[0]
    assert targets
    before = [target.clone() for target in targets]
    seen = {id(parameter) for parameter in loss.parameters()}
    assert not any(target.requires_grad or id(target) in seen for target in targets)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        total(loss(batch(8))).backward()
        optimizer.step()
    torch.testing.assert_close(targets, before, rtol=0, atol=0)
    assert all(target.grad is None for target in targets)


def test_only_losses_carry_gradient_and_metrics_are_scalars(case):
    loss = case.make()
    outputs = loss(batch(8))
    assert list(outputs.keys()) == list(loss.out_keys)
    for key, value in outputs.items():
        assert value.requires_grad == key.startswith("loss_"), key
        assert value.shape == (), key


@pytest.mark.parametrize("shape", [(1,), (8,), (2, 5), (2, 3, 4), ()], ids=str)
def test_batch_dimensions(case, shape):
    data = batch(*shape)
    flat = data.reshape(-1)
    loss = case.make()
    values, flat_values = losses_of(case, loss, data), losses_of(case, loss, flat)
    torch.testing.assert_close(values, flat_values)
    loss.reduction = "none"
    assert [value.shape for value in losses_of(case, loss, data)] == [torch.Size(shape)] * 2


def test_a_batch_of_none_moves_nothing(case):
    loss = case.make()
    outputs = loss(batch(0))
    assert outputs["loss_actor"] == outputs[case.critic_loss_key] == 0
    total(outputs).backward()
    assert all(p.grad is None or not p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("nested", [False, True])
def test_keys_renamed_and_nested(case, nested):
    def name(key):
        return ("agent", "deep", key) if nested else f"my_{key}"

    names = {key: name(key) for key in ("observation", "action", "reward", "done", "terminated")}
    plain = case.make()
    renamed = case.make(
        networks_kwargs={"observation": names["observation"], "action": names["action"], "value": name("q")}
    )
    renamed.set_keys(state_action_value=name("q"), priority=name("priority"), priority_weight=name("weight"))
    renamed.set_keys(**{key: names[key] for key in ("reward", "done", "terminated")})
    data, renamed_data = batch(8), batch(8, keys=names)
    data["priority_weight"] = torch.rand(8)
    renamed_data[name("weight")] = data["priority_weight"]
    torch.testing.assert_close(losses_of(case, renamed, renamed_data), losses_of(case, plain, data))
    renamed(renamed_data)
    plain(data)
    torch.testing.assert_close(renamed_data[name("priority")], data["td_error"])


def test_in_keys_are_sorted_sufficient_and_all_needed(case):
    loss = case.make()
    assert loss.in_keys == sorted(loss.in_keys, key=str)
    data = batch(8)
    data["extra"] = torch.ones(8)
    torch.testing.assert_close(losses_of(case, loss, data.select(*loss.in_keys)), losses_of(case, loss, data))
    loss(data.exclude(("next", "done")))  # TD(0) does not read it
    for key in set(loss.in_keys) - {("next", "done")}:
        with pytest.raises(KeyError, match=str(key[-1] if isinstance(key, tuple) else key)):
            loss(data.select(*(k for k in loss.in_keys if k != key)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(case, dtype):
    loss = case.make().to(dtype)
    data = batch(8, dtype=torch.float64)
    values = losses_of(case, loss, data.apply(lambda x: x.to(dtype) if x.is_floating_point() else x))
    assert all(value.dtype is dtype for value in values)
    reference = losses_of(case, case.make().to(torch.float64), data)
    torch.testing.assert_close([value.double() for value in values], reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["td0", "td1", "td_lambda"])
def test_targets_are_float32_under_bf16_autocast(case, estimator):
    if estimator not in case.estimators:
        with pytest.raises(ValueError, match="accepted"):
            case.make().make_value_estimator(estimator)
        return
    loss = case.make().make_value_estimator(estimator, gamma=0.99)
    data = batch(4, 50, terminated=0.0, truncated=0.0)
    data["next", "reward"] = 8 + data["next", "reward"]
    exact = loss.compute_target(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = loss.compute_target(data)
        outputs = loss(data)
    assert target.dtype is torch.float32
    assert (target - exact).abs().mean() < 0.02
    total(outputs).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_bf16_networks_have_float32_losses(case):
    loss = case.make().to(torch.bfloat16)
    data = batch(8)
    data = data.apply(lambda x: x.to(torch.bfloat16) if x.is_floating_point() else x)
    outputs = loss(data)
    assert outputs[case.critic_loss_key].dtype is torch.float32
    total(outputs).backward()


def test_state_dict_is_the_same_before_and_after_a_forward(case):
    loss = case.make()
    before = loss.state_dict()
    loss(batch(8))
    after = loss.state_dict()
    assert list(before) == list(after)
    other = case.make(seed=5).make_value_estimator(gamma=0.5)
    other.load_state_dict(after)
    assert float(other.value_estimator.gamma) == 0.5
    loss.make_value_estimator(gamma=0.5)
    torch.testing.assert_close(losses_of(case, other, batch(8)), losses_of(case, loss, batch(8)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_is_equal_and_independent(case, copied):
    loss = case.make()
    loss(batch(8))
    other = copied(loss)
    data = batch(8)
    expected = losses_of(case, loss, data)
    torch.testing.assert_close(losses_of(case, other, data), expected)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    total(other(batch(8))).backward()
    optimizer.step()
    torch.testing.assert_close(losses_of(case, loss, data), expected)
    assert not torch.equal(losses_of(case, other, data)[1], expected[1])


def test_a_copy_with_its_optimizer_trains_the_copy(case):
    loss = case.make()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    other, other_optimizer = copy.deepcopy((loss, optimizer))
    before = losses_of(case, other, batch(8))
    total(other(batch(8))).backward()
    other_optimizer.step()
    assert not torch.equal(losses_of(case, other, batch(8))[1], before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_equals_cpu(case):
    loss = case.make()
    expected = losses_of(case, loss, batch(8))
    loss.to("cuda")
    values = losses_of(case, loss, batch(8).to("cuda"))
    torch.testing.assert_close([value.cpu() for value in values], expected, rtol=1e-4, atol=1e-5)


def test_dtype_move_keeps_parameters_of_optimizers(case):
    loss = case.make()
    ids = [id(p) for p in loss.parameters()]
    loss.to(torch.float64)
    assert [id(p) for p in loss.parameters()] == ids
    assert {p.dtype for p in loss.actor_network.parameters()} == {torch.float64}
    loss(batch(8, dtype=torch.float64))


def test_locked_and_annotated_inputs(case):
    loss = case.make()
    expected = losses_of(case, loss, batch(8))
    data = batch(8)
    data["td_error"] = torch.ones(8, 3, dtype=torch.float64)
    data.lock_()
    outputs = loss(data)
    torch.testing.assert_close([outputs["loss_actor"], outputs[case.critic_loss_key]], expected)
    assert data.is_locked
    assert data["td_error"].shape == (8,)


def test_inputs_are_not_changed_but_for_the_priority(case):
    loss = case.make().make_value_estimator("td0", gamma=0.9)
    data = batch(8)
    before = data.clone()
    loss(data)
    data.pop("td_error")
    assert set(data.keys(True, True)) == set(before.keys(True, True))
    assert (data == before).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "none"}, {"separate_losses": True, "encoder": "shared"}, {"estimator": "td_lambda"}],
    ids=str,
)
def test_compiled_equals_eager(case, options):
    torch._dynamo.reset()
    options = dict(options)
    networks_kwargs = {"encoder": options.pop("encoder", None)}
    estimator = options.pop("estimator", "td0")
    if estimator not in case.estimators:
        pytest.skip("this loss has no such estimator")
    loss = case.make(networks_kwargs=networks_kwargs, **options).make_value_estimator(estimator)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    data, compiled_data = batch(2, 4), batch(2, 4)
    outputs, compiled_outputs = loss(data), compiled(compiled_data)
    for key, value in outputs.items():
        torch.testing.assert_close(compiled_outputs[key], value)
    torch.testing.assert_close(compiled_data["td_error"], data["td_error"])
    for key in ("loss_actor", case.critic_loss_key):
        pairs = zip(
            gradients(compiled_outputs[key].sum(), loss.parameters()),
            gradients(outputs[key].sum(), loss.parameters()),
            strict=True,
        )
        for mine, reference in pairs:
            assert (mine is None or not mine.any()) == (reference is None or not reference.any())
            if mine is not None and reference is not None:
                torch.testing.assert_close(mine, reference)


def test_every_call_runs_in_deterministic_mode(case):
    seen = []

    class Probe(nn.Module):
        def forward(self, observation):
            from torchrl.envs.utils import exploration_type
            from torchrl.modules import recurrent_mode

            seen.append((exploration_type(), recurrent_mode()))
            return observation

    from torchrl.envs.utils import ExplorationType, set_exploration_type

    loss = case.make(networks_kwargs={"encoder": Probe(), "encoder_width": 3})
    for call in (loss, loss.loss_value, loss.loss_actor, loss.compute_target):
        seen.clear()
        with set_exploration_type(ExplorationType.RANDOM):
            call(batch(8))
        assert set(seen) == {(ExplorationType.DETERMINISTIC, True)}


def test_terms_alone_equal_terms_together(case):
    loss = case.make()
    together = losses_of(case, loss, batch(8))
    data = batch(8)
    alone = [loss.loss_actor(data)[0], loss.loss_value(data)[0]]
    torch.testing.assert_close(alone, together)
    assert data["td_error"].shape == (8,)


def test_the_actor_term_reads_its_inputs_alone(case):
    loss = case.make()
    expected, _ = loss.loss_actor(batch(8))
    value, _ = loss.loss_actor(batch(8).exclude("next"))
    torch.testing.assert_close(value, expected)


def test_select_out_keys(case):
    loss = case.make()
    loss.select_out_keys(case.critic_loss_key)
    assert list(loss(batch(8)).keys()) == [case.critic_loss_key]
    loss.reset_out_keys()
    assert len(list(loss(batch(8)).keys())) > 1
    with pytest.raises(ValueError, match="accepted"):
        loss.select_out_keys("loss_critic")


def test_both_terms_tell_how_many_actions_lie_at_a_bound_where_bounds_are_known(case):
    loss = case.make(bounds=(-1.0, 1.0))
    leaves = [*loss.actor_network_params.parameters(), *loss.target_actor_network_params.values(True, True)]
    for leaf in {leaf.data_ptr(): leaf for leaf in leaves}.values():
        leaf.data.mul_(10.0)
    data = batch(8)
    with torch.no_grad():
        now = loss.actor_network(data.clone())["action"].abs() >= 0.99
        with loss.target_actor_network_params.to_module(loss.actor_network):
            later = loss.actor_network(data["next"].clone())["action"].abs() >= 0.99
    assert 0 < now.float().mean() < 1
    assert 0 < later.float().mean() < 1

    def reported():
        terms = loss.loss_actor(data)[1]["actor_saturation"], loss.loss_value(data)[1]["target_saturation"]
        assert not any(value.requires_grad for value in terms)
        return terms

    torch.testing.assert_close(reported(), (now.float().mean(), later.float().mean()))
    names = ("actor_saturation", "target_saturation")
    assert not set(names) & set(loss(data).keys())  # out_keys are TorchRL's
    outputs = loss.select_out_keys(*names)(data)
    torch.testing.assert_close(tuple(outputs[name] for name in names), reported())
    data["collector", "mask"] = torch.arange(8).unsqueeze(-1) < 5
    torch.testing.assert_close(reported(), (now[:5].float().mean(), later[:5].float().mean()))
    data["next", "observation"][0] = float("nan")  # past the end of an episode
    data["next", "terminated"][0] = True
    later[0] = False
    torch.testing.assert_close(reported()[1], later[:5].float().mean())


def test_actions_at_a_bound_are_not_told_where_there_is_none_or_that_is_switched_off(case):
    loss, silent = case.make(), case.make(bounds=(-1.0, 1.0))
    silent.reports_saturation = False
    for one in (loss, silent) if loss.min_action is None else (silent,):
        metrics = {**one.loss_actor(batch(8))[1], **one.loss_value(batch(8))[1]}
        assert not any("saturation" in name for name in metrics)


def test_keyword_call_gives_the_outputs_in_order(case):
    loss = case.make()
    data = batch(8).select(*loss.in_keys)
    expected = loss(data.clone())
    entries = {"_".join((key,) if isinstance(key, str) else key): value for key, value in data.items(True, True)}
    torch.testing.assert_close(loss(**entries), tuple(expected[key] for key in loss.out_keys))


def test_training_reaches_a_known_value(case):
    loss = case.make(updater=False).make_value_estimator("td0", gamma=0.5)
    updater = SoftUpdate(loss, tau=0.05)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    data = batch(64, terminated=0.0)
    data["next", "reward"] = torch.ones(64, 1)
    for _ in range(600):
        optimizer.zero_grad()
        outputs = loss(data)
        total(outputs).backward()
        optimizer.step()
        updater.step()
    assert outputs["pred_value"].item() == pytest.approx(2.0, abs=0.1)


def test_get_stateful_net_and_back(case):
    loss = case.make()
    expected = losses_of(case, loss, batch(8))
    for name in ("actor_network", case.critic_name):
        net = loss.get_stateful_net(name)
        assert isinstance(net, nn.Module)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1
        loss.from_stateful_net(name, net)
    changed = losses_of(case, loss, batch(8))
    assert all(not torch.equal(a, b) for a, b in zip(expected, changed, strict=True))


def test_reset_parameters_recursive_draws_anew_and_targets_follow(case):
    loss = case.make()
    before = [p.clone() for p in loss.parameters()]
    loss.reset_parameters_recursive()
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))
    targets, sources = loss.target_pairs("parameters")
    torch.testing.assert_close(targets, [source.detach() for source in sources])
    total(loss(batch(8))).backward()


def test_a_lazily_stacked_batch_works(case):
    loss = case.make()
    data = batch(8)
    stacked = TensorDict.lazy_stack(list(data.unbind(0)))
    torch.testing.assert_close(losses_of(case, loss, stacked), losses_of(case, loss, data))

"""TD3, TD3+BC and D4PG: equal to TorchRL where TorchRL is right, to plain PyTorch, to numbers by hand."""

import copy

import pytest
import torch
import torchrl.objectives
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Composite
from torchrl.modules import ValueOperator

from helpers import ACTION, LOSSES, OBSERVATION, Critic, batch, gradients, make, networks, train_with_delay
from torchrl_ddpg import D4PGLoss, SoftUpdate, TD3BCLoss, TD3Loss
from torchrl_ddpg import functional as F  # noqa: N812

LOW, HIGH = -1.0, 1.0
PAIRS = {
    "td3": (TD3Loss, torchrl.objectives.TD3Loss),
    "td3_bc": (TD3BCLoss, torchrl.objectives.TD3BCLoss),
}


def pair(name, reduction="mean", estimator="td0", **hyperparams):
    """Our loss and TorchRL's with the same parameters in both critics and targets."""
    ours_class, theirs_class = PAIRS[name]
    actor, critic = networks()
    ours = ours_class(actor, critic, bounds=(LOW, HIGH), reduction=reduction)
    theirs = theirs_class(*networks(), bounds=(LOW, HIGH), reduction=reduction)
    for loss in (ours, theirs):
        torchrl.objectives.SoftUpdate(loss, tau=0.5)  # or a missing one is warned about
    checkpoint = theirs.state_dict()
    for key, value in checkpoint.items():
        if key.startswith("target_"):
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    theirs.load_state_dict(checkpoint)
    ours.load_state_dict(checkpoint)
    for loss in (ours, theirs):
        value_type = {"td0": "TD0", "td1": "TD1", "td_lambda": "TDLambda"}[estimator]
        loss.make_value_estimator(getattr(torchrl.objectives.ValueEstimators, value_type), **hyperparams)
    return ours, theirs


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("reduction", "estimator", "shape"),
    [("mean", "td0", (8,)), ("sum", "td0", (8,)), ("none", "td_lambda", (2, 4)), ("mean", "td1", (2, 4))],
)
def test_equal_to_torchrl_with_the_same_noise(name, reduction, estimator, shape):
    ours, theirs = pair(name, reduction, estimator, gamma=0.9)
    data = batch(*shape)
    outputs = []
    for loss in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(loss(data.clone()))
    mine, other = outputs
    torch.testing.assert_close(mine["loss_qvalue"], other["loss_qvalue"])
    if name == "td3" or reduction != "none":  # TorchRL's imitation term is never per sample
        torch.testing.assert_close(mine["loss_actor"].mean(), other["loss_actor"].mean())
    torch.testing.assert_close(mine["target_value"], other["target_value"].mean())
    torch.testing.assert_close(mine["pred_value"], other["pred_value"].mean())
    torch.testing.assert_close(
        mine["next_state_value"], (other["next_state_value"] * ~data["next", "terminated"].squeeze(-1)).mean()
    )
    theirs_critic = gradients(other["loss_qvalue"].sum(), theirs.qvalue_network_params.parameters())
    ours_critic = gradients(mine["loss_qvalue"].sum(), ours.qvalue_network_params.parameters())
    torch.testing.assert_close([g.sum() for g in ours_critic], [g[i].sum() for i in range(2) for g in theirs_critic])
    if name == "td3" or reduction == "mean":
        torch.testing.assert_close(
            gradients(mine["loss_actor"].sum(), ours.actor_network_params.parameters()),
            gradients(other["loss_actor"].sum(), theirs.actor_network_params.parameters()),
        )


def test_td3_bc_is_per_sample_without_reduction():
    loss = make(TD3BCLoss, reduction="none")
    data = batch(8)
    value, metrics = loss.loss_actor(data)
    action = loss.actor_network(data.clone())["action"]
    data_at = data.clone().set("action", action)
    q = loss.qvalue_network(data_at)["state_action_value"].squeeze(-1)
    lmbda = 2.5 / q.abs().mean()
    torch.testing.assert_close(metrics["lmbd"], lmbda.detach())
    torch.testing.assert_close(value, (action - data["action"]).square().mean(-1) - lmbda.detach() * q)


GAMMA, TAU, STEPS = 0.96875, 0.05, 50


@pytest.mark.parametrize("bc", [False, True], ids=["td3", "td3_bc"])
def test_fifty_updates_end_with_the_oracles_parameters(bc):
    def plain():
        torch.manual_seed(0)
        actor = nn.Sequential(nn.Linear(OBSERVATION, 16), nn.Tanh(), nn.Linear(16, ACTION), nn.Tanh()).double()
        return actor, [Critic().double(), Critic().double()]

    def data():
        for step in range(STEPS):
            yield step, batch(16, seed=step, dtype=torch.float64)

    actor, critics = plain()
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam([p for q in critics for p in q.parameters()], lr=1e-2)
    for step, td in data():
        torch.manual_seed(step)
        s, a, r, s2 = td["observation"], td["action"], td["next", "reward"], td["next", "observation"]
        with torch.no_grad():
            a2 = target_actor(s2)
            a2 = (a2 + (0.2 * torch.randn_like(a2)).clamp(-0.5, 0.5)).clamp(LOW, HIGH)
            q2 = torch.min(*(q(s2, a2) for q in target_critics))
            y = r + GAMMA * (1 - td["next", "terminated"].double()) * q2
        critic_optimizer.zero_grad()
        sum(((q(s, a) - y) ** 2).mean() for q in critics).backward()
        critic_optimizer.step()
        if step % 2:
            q = critics[0](s, actor(s))
            loss = -q.mean() if not bc else -2.5 * q.mean() / q.abs().mean().detach() + ((actor(s) - a) ** 2).mean()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
            with torch.no_grad():
                for online, target in zip([actor, *critics], [target_actor, *target_critics], strict=True):
                    for p, t in zip(online.parameters(), target.parameters(), strict=True):
                        t.copy_(TAU * p + (1 - TAU) * t)
    expected = [p.data for net in (actor, *critics, target_actor, *target_critics) for p in net.parameters()]

    actor, critics = plain()
    wrapped = TensorDictModule(actor, in_keys=["observation"], out_keys=["action"])
    critics = [ValueOperator(q, in_keys=["observation", "action"]) for q in critics]
    loss = (TD3BCLoss if bc else TD3Loss)(wrapped, critics, bounds=(LOW, HIGH), loss_function="l2")
    loss.make_value_estimator("td0", gamma=GAMMA)
    train_with_delay(loss, data(), tau=TAU)
    ours = [*actor.parameters(), *(p for q in critics for p in q.parameters()), *loss.target_pairs("parameters")[0]]
    torch.testing.assert_close([p.data for p in ours], expected, rtol=1e-9, atol=1e-11)


def test_the_first_critic_keeps_its_parameters_and_trains():
    actor, critic = networks()
    before = [p.clone() for p in critic.parameters()]
    loss = TD3Loss(actor, critic, bounds=(LOW, HIGH))
    torch.testing.assert_close([p.data for p in critic.parameters()], before)
    first, second = (dict(loss.qvalue_network_params.named_parameters())[f"{i}.module.net.0.weight"] for i in (0, 1))
    assert first is critic.module.net[0].weight
    assert not torch.equal(first, second)
    bound = first.shape[1] ** -0.5  # nn.Linear's own initialisation, not a uniform over the first one's range
    assert second.abs().max() <= bound
    SoftUpdate(loss, tau=0.1)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(batch(8))["loss_qvalue"].backward()
    optimizer.step()
    assert not torch.equal(critic.module.net[0].weight, before[0])


def test_a_list_of_critics_keeps_every_initialisation():
    actor, _ = networks()
    critics = [networks(seed=seed)[1] for seed in (1, 2, 3)]
    loss = TD3Loss(actor, critics, bounds=(LOW, HIGH), num_qvalue_nets=3)
    assert {id(p) for p in loss.qvalue_network_params.parameters()} == {id(p) for q in critics for p in q.parameters()}


def test_the_actor_term_runs_the_first_critic_alone():
    counts = {"first": 0, "second": 0}
    actor, first = networks(seed=0)
    second = networks(seed=1)[1]
    for name, critic in (("first", first), ("second", second)):
        critic.module.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    loss = TD3Loss(actor, [first, second], bounds=(LOW, HIGH))
    SoftUpdate(loss, tau=0.1)
    loss.loss_actor(batch(8))
    assert counts == {"first": 1, "second": 0}


def test_smoothing_noise_is_scaled_by_half_the_range_per_dimension():
    action = torch.zeros(10_000, 2)
    noise = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-1.0, -20.0]), torch.tensor([1.0, 20.0])
    smoothed = F.smooth_target_action(action, noise, low, high)
    torch.testing.assert_close(smoothed[:, 1], 20 * (noise[:, 1] * 0.2).clamp(-0.5, 0.5))
    assert smoothed[:, 0].abs().max() == 0.5
    assert smoothed[:, 1].abs().max() == 10.0


def test_value_loss_alone_writes_the_priority():
    for loss_class in (TD3Loss, TD3BCLoss):
        data = batch(8)
        make(loss_class).value_loss(data)
        assert data["td_error"].shape == (8,)
        assert (data["td_error"] > 0).all()


def test_td3_priority_is_the_largest_error():
    loss = make(TD3Loss, reduction="none", loss_function="l1")
    data = batch(8)
    loss.loss_value(data)
    target = loss.compute_target(data)
    values = [q(data.clone())["state_action_value"] for q in loss.get_stateful_net("qvalue_network")]
    expected = torch.stack([(target - value).abs() for value in values]).amax(0).squeeze(-1)
    torch.testing.assert_close(data["td_error"], expected.detach())


def test_a_composite_spec_of_several_environments():
    spec = Composite(action=Bounded(-2 * torch.ones(4, ACTION), 2 * torch.ones(4, ACTION)), shape=(4,))
    loss = TD3Loss(*networks(), action_spec=spec)
    torch.testing.assert_close(loss.max_action, torch.full((ACTION,), 2.0))


SUPPORT = torch.tensor([-1.0, 0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("atoms", "mass", "expected"),
    [
        ([-1.0, 0.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25], [0.0, 0.75, 0.25, 0.0]),
        ([-0.5, 0.5, 1.5, 2.5], [0.2, 0.2, 0.2, 0.4], [0.1, 0.2, 0.2, 0.5]),
        ([-9.0, 9.0, 0.0, 1.0], [0.3, 0.4, 0.1, 0.2], [0.3, 0.1, 0.2, 0.4]),
    ],
)
def test_projection_by_hand(atoms, mass, expected):
    projected = F.categorical_projection(torch.tensor([atoms]), torch.tensor([mass]), SUPPORT)
    torch.testing.assert_close(projected, torch.tensor([expected]))


def test_projection_keeps_mass_and_mean():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.rand(50, 21, generator=generator) * 3 - 1
    mass = torch.rand(50, 21, generator=generator).softmax(-1)
    projected = F.categorical_projection(atoms, mass, torch.linspace(-1, 2, 11))
    torch.testing.assert_close(projected.sum(-1), torch.ones(50))
    expected = (atoms * mass).sum(-1, keepdim=True)
    torch.testing.assert_close(F.expected_value(projected, torch.linspace(-1, 2, 11)), expected, rtol=1e-4, atol=1e-4)


def test_categorical_loss_and_lower_mean_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = F.categorical_td_loss(logits, torch.tensor([[0.0, 0.5, 0.5, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor([4.0]).log())
    both = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [1.0, 0, 0, 0]], [[0.0, 1.0, 0.0, 0.0], [0, 0, 1.0, 0]]])
    torch.testing.assert_close(F.lower_mean_distribution(both, SUPPORT), torch.stack([both[1, 0], both[0, 1]]))


def test_d4pg_recovers_the_return_distribution_of_a_two_state_chain():
    # State 0 goes to state 1 with reward 0; state 1 ends with reward 0 or 2, half of the time each.
    # With gamma 0.5 the return of state 0 is 0 or 1, half of the time each.
    observation = torch.eye(2).repeat_interleave(2, 0)
    data = batch(4)
    data["observation"] = torch.cat([observation, torch.zeros(4, 1)], -1)
    data["next", "observation"] = torch.tensor([[0.0, 1.0, 0.0]]).expand(4, 3).clone()
    data["action"] = torch.zeros(4, ACTION)
    data["next", "reward"] = torch.tensor([[0.0], [0.0], [0.0], [2.0]])
    data["next", "terminated"] = data["next", "done"] = torch.tensor([[False], [False], [True], [True]])
    torch.manual_seed(0)
    actor = TensorDictModule(nn.Linear(3, ACTION), in_keys=["observation"], out_keys=["action"])
    nn.init.zeros_(actor.module.weight)
    nn.init.zeros_(actor.module.bias)
    critic = ValueOperator(Critic(outputs=5), in_keys=["observation", "action"])
    loss = D4PGLoss(actor, critic, v_min=0.0, v_max=2.0, num_atoms=5).make_value_estimator("td0", gamma=0.5)
    updater = SoftUpdate(loss, tau=0.1)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        loss.loss_value(data)[0].backward()
        optimizer.step()
        updater.step()
    probabilities = critic(data.clone())["state_action_value"].softmax(-1)
    torch.testing.assert_close(probabilities[2], torch.tensor([0.5, 0, 0, 0, 0.5]), atol=0.03, rtol=0)
    torch.testing.assert_close(probabilities[0], torch.tensor([0.5, 0, 0.5, 0, 0]), atol=0.03, rtol=0)


def test_d4pg_counts_the_mass_outside_the_support():
    inside, outside = make(D4PGLoss), make(D4PGLoss)
    data = batch(8)
    assert inside(data)["target_outside_support"] < 0.2
    data["next", "reward"] += 1000.0
    torch.testing.assert_close(outside(data)["target_outside_support"], torch.tensor(1.0))


def test_d4pg_target_is_the_moved_distribution():
    loss = make(D4PGLoss).make_value_estimator("td0", gamma=0.0)
    data = batch(8)
    data["next", "reward"] = torch.full((8, 1), 3.0)
    target = loss.compute_target(data)
    assert target.shape == (8, 21)
    torch.testing.assert_close(target[:, 13], torch.ones(8))  # the atom of 3 in -10 ... 10
    torch.testing.assert_close(loss(data)["target_value"], torch.tensor(3.0))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: D4PGLoss(*networks(outputs=5), v_min=1.0, v_max=1.0, num_atoms=5), "v_min is 1.0, v_max is 1.0"),
        (lambda: D4PGLoss(*networks(outputs=5), v_min=-1, v_max=float("inf")), "v_max is inf; accepted: a finite"),
        (lambda: D4PGLoss(*networks(), v_min=-1, v_max=1, num_atoms=1), "num_atoms is 1; accepted: an integer of at"),
        (lambda: make(D4PGLoss).make_value_estimator("td_lambda"), "'td_lambda'; accepted: 'td0'"),
        (lambda: TD3Loss(*networks()), "neither action_spec nor bounds is given"),
        (lambda: TD3Loss(*networks(), bounds=(-1, 1), action_spec=Bounded(-1, 1, (2,))), "both given"),
        (lambda: TD3Loss(networks()[0], [networks()[1]], bounds=(-1, 1)), "a list of 1, num_qvalue_nets is 2"),
        (lambda: TD3Loss(*networks(), bounds=(-1, 1), num_qvalue_nets=0), "num_qvalue_nets is 0; accepted: an int"),
        (lambda: TD3Loss(*networks(), bounds=(-1, 1), policy_noise=-1), "policy_noise is -1; accepted: a number of"),
        (lambda: TD3BCLoss(*networks(), bounds=(-1, 1), alpha=0), "alpha is 0; accepted: a number above 0"),
        (lambda: make(TD3Loss, priority_key="p"), r"set_keys\(priority='p'\)"),
    ],
)
def test_misuse_is_worded(build, match):
    with pytest.raises((TypeError, ValueError), match=match):
        build()


def test_a_critic_with_other_atoms_is_worded():
    loss = D4PGLoss(*networks(outputs=7), v_min=-1.0, v_max=1.0, num_atoms=5)
    SoftUpdate(loss, tau=0.1)
    with pytest.raises(ValueError, match=r"state_action_value.*\[8, 7\].*num_atoms=5"):
        loss(batch(8))


def test_critics_that_cannot_be_told_apart_are_refused():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(OBSERVATION + ACTION, 1))

        def forward(self, observation, action):
            return torch.cat([observation, action], -1) @ self.weight

    critic = ValueOperator(Plain(), in_keys=["observation", "action"])
    with pytest.raises(ValueError, match=r"TD3Loss: .*reset_parameters.*a list of 2 critics"):
        TD3Loss(networks()[0], critic, bounds=(-1, 1))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_dimension_of_one_agent_stays(name, reduction):
    case = LOSSES[name]
    loss = case.make(reduction=reduction)
    one = batch(4).apply(lambda entry: entry.unsqueeze(1))
    outputs = loss(one)
    shape = (4, 1) if reduction == "none" else ()
    assert outputs["loss_actor"].shape == outputs[case.critic_loss_key].shape == shape
    assert one["td_error"].shape == (4, 1)

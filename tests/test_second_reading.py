"""What a second hostile reading found to be wrong in silence, or in another library's words."""

import warnings

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import MLP, MultiAgentMLP, ValueOperator
from torchrl.objectives.value import TD0Estimator

from helpers import ACTION, OBSERVATION, batch, make, networks, step_of
from torchrl_ddpg import (
    BatchError,
    D4PGLoss,
    DDPGLoss,
    FastTD3Loss,
    ReBRACLoss,
    TD3BCLoss,
    TD3Loss,
    functional,
    with_next_actions,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*No target network updater")


# What a recording follows, restores and saves.


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = 1.0

    def forward(self, reward):
        return reward * self.by


class ScaledRewardLoss(DDPGLoss):
    bonus = 0.0

    def __init__(self, *networks, **options):
        super().__init__(*networks, **options)
        self.scale = Scale()

    def critic_target(self, next_value, transition, batch):
        reward = self.scale(transition.reward) + self.bonus
        return super().critic_target(next_value, transition._replace(reward=reward), batch)


class ScaledRewardEstimator(TD0Estimator):
    def __init__(self, **options):
        super().__init__(**options)
        self.scale = Scale()

    def value_estimate(self, tensordict, next_value=None, **_):
        return self.scale(tensordict["next", "reward"]) + self.gamma * next_value


def of_the_loss(monkeypatch):
    loss = make(ScaledRewardLoss, updater=False)
    return loss, lambda: setattr(loss.scale, "by", 100.0)


def of_its_class(monkeypatch):
    return make(ScaledRewardLoss, updater=False), lambda: monkeypatch.setattr(ScaledRewardLoss, "bonus", 100.0)


def of_the_estimator(monkeypatch):
    loss = make(updater=False).make_value_estimator(ScaledRewardEstimator, gamma=0.9)
    return loss, lambda: setattr(loss.value_estimator.scale, "by", 100.0)


@pytest.mark.parametrize("made", [of_the_loss, of_its_class, of_the_estimator])
def test_a_recording_follows_settings_of_modules_that_are_no_networks(made, monkeypatch):
    targets = []
    for options in ({}, {"record_operators": True}):
        with monkeypatch.context() as context:
            loss, change = made(context)
            step = step_of(loss, **options)
            for number in range(8):
                if number == 6:
                    change()
                metrics = step(batch(8, seed=number))
        targets.append(metrics["target_value"].item())
    assert abs(targets[0]) > 5
    assert targets[1] == pytest.approx(targets[0], rel=1e-5)


class CentredRewardEstimator(TD0Estimator):
    """Takes a running mean off the rewards; ``rate`` is small, so that outputs alone do not show a wrong count."""

    rate = 1e-5

    def __init__(self, value_network=None, **options):
        super().__init__(value_network=value_network, **options)
        self.register_buffer("mean", torch.zeros(()))
        self.counts = {"batches": torch.zeros(())}

    def value_estimate(self, tensordict, next_value=None, **_):
        reward = tensordict["next", "reward"]
        self.counts["batches"].add_(1)
        self.mean.lerp_(reward.mean(), self.rate)
        return reward - self.mean + self.gamma * next_value


def test_comparing_a_recording_leaves_the_state_of_an_estimator_as_it_was():
    loss = make(updater=False).make_value_estimator(CentredRewardEstimator, gamma=0.9)
    step = step_of(loss, record_operators=True)
    for number in range(10):
        step(batch(8, seed=number))
    assert loss.value_estimator.counts["batches"].item() == 10


def test_the_state_of_an_own_estimator_is_saved_and_gamma_is_not():
    steps = [
        step_of(make(updater=False).make_value_estimator(CentredRewardEstimator, gamma=gamma)) for gamma in (0.9, 0.8)
    ]
    steps[0].loss.value_estimator.rate = 0.1
    for number in range(20):
        steps[0](batch(8, seed=number))
    state = steps[0].state_dict()
    assert [key for key in state["loss"] if key.startswith("_value_estimator")] == ["_value_estimator.mean"]
    steps[1].load_state_dict(state)
    means = [step.loss.value_estimator.mean.item() for step in steps]
    assert means[0] == means[1] != 0
    assert [round(step.loss.value_estimator.gamma.item(), 3) for step in steps] == [0.9, 0.8]
    parent = nn.ModuleDict({"loss": steps[0].loss})
    assert "loss._value_estimator.mean" in parent.state_dict()
    parent.load_state_dict(parent.state_dict())
    del state["loss"]["_value_estimator.mean"]
    with pytest.raises(RuntimeError, match=r"Missing key.*_value_estimator\.mean"):
        steps[1].load_state_dict(state)


class TabledLoss(DDPGLoss):
    """Holds a tensor that cannot be written to."""

    def __init__(self, *networks, **options):
        super().__init__(*networks, **options)
        self.table = torch.tensor([0.5]).expand(8, 1)

    def actor_sample_losses(self, value, action, batch):
        return -value * self.table, {}


class CountingActor(nn.Module):
    made, calls = 0, 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.net = nn.Linear(OBSERVATION, ACTION)

    def forward(self, observation):
        type(self).calls += 1
        return self.net(observation)


def test_tensors_that_cannot_be_written_and_counts_on_classes_of_networks_stop_no_recording():
    actor = TensorDictModule(CountingActor(), in_keys=["observation"], out_keys=["action"])
    step = step_of(TabledLoss(actor, networks()[1]), record_operators=True)
    for number in range(20):
        step(batch(8, seed=number))
        CountingActor()
    assert CountingActor.calls <= 3 * 2  # three times each, in the target and in the actor's term


@pytest.mark.parametrize("share", [True, False])
def test_networks_of_several_agents_are_replayed(share, monkeypatch):
    agents, results, forward, calls = 3, [], MultiAgentMLP.forward, []
    monkeypatch.setattr(MultiAgentMLP, "forward", lambda *args: calls.append(1) or forward(*args))
    for options in ({}, {"record_operators": True}):
        torch.manual_seed(0)
        net = MultiAgentMLP(OBSERVATION, ACTION, n_agents=agents, centralized=False, share_params=share, num_cells=[8])
        actor = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        step = step_of(DDPGLoss(actor, networks()[1]), **options)
        for number in range(12):
            td = batch(5, agents, seed=number)
            td.batch_size = [5]
            metrics = step(td)
        results.append((metrics["loss_value"].item(), len(calls)))
        calls.clear()
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert results[1][1] <= 3 * 2 < results[0][1]


# Shapes.


class FlatPredictionLoss(DDPGLoss):
    def critic_sample_losses(self, prediction, target):
        return (prediction.squeeze(-1) - target).square()


class TrustedLoss(DDPGLoss):
    extra_keys = ("trust",)

    def actor_sample_losses(self, value, action, batch):
        return -value * batch.get("trust"), {}


@pytest.mark.parametrize("loss_class", [FlatPredictionLoss, TrustedLoss])
def test_losses_of_a_step_are_per_sample(loss_class):
    td = batch(8).set("trust", torch.ones(8))
    step = "critic_sample_losses" if loss_class is FlatPredictionLoss else "actor_sample_losses"
    with pytest.raises(
        BatchError, match=rf"{loss_class.__name__}: {step} gives .*\[8, 8\]; accepted: \[8\] or \[8, 1\]"
    ):
        make(loss_class)(td)
    make(TrustedLoss)(td.set("trust", torch.ones(8, 1)))


class FlatCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBSERVATION + ACTION, 1)

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1)).squeeze(-1)


@pytest.mark.parametrize("loss_class", [DDPGLoss, TD3Loss])
def test_values_and_rewards_without_a_last_dimension(loss_class):
    td, flat = batch(8), batch(8)
    for key in ("reward", "done", "terminated"):
        flat["next", key] = flat["next", key].squeeze(-1)
    options = {} if loss_class is DDPGLoss else {"bounds": (-1.0, 1.0), "policy_noise": 0.0, "num_qvalue_nets": 1}
    torch.manual_seed(0)
    critic = TensorDictModule(FlatCritic(), in_keys=["observation", "action"], out_keys=["state_action_value"])
    column = ValueOperator(critic.module.net, in_keys=["both"], out_keys=["state_action_value"])
    join = TensorDictModule(lambda *both: torch.cat(both, -1), in_keys=["observation", "action"], out_keys=["both"])
    losses = loss_class(networks()[0], critic, **options)(flat)
    expected = loss_class(networks()[0], TensorDictSequential(join, column), **options)(td)
    for key in ("loss_actor", loss_class.critic_loss_key):
        torch.testing.assert_close(losses[key], expected[key])


class SummedAgentsLoss(DDPGLoss):
    def critic_sample_losses(self, prediction, target):
        return (prediction - target).square().sum((-2, -1))


def test_losses_of_a_step_may_be_one_for_each_sample_of_several_agents():
    td = batch(5, 3)
    td.batch_size = [5]
    summed, mean = (make(loss_class)(td)["loss_value"] for loss_class in (SummedAgentsLoss, DDPGLoss))
    torch.testing.assert_close(summed, 3 * mean)


class Joint(nn.Module):
    """One value for all agents."""

    def __init__(self, agents):
        super().__init__()
        self.net = MLP(agents * (OBSERVATION + ACTION), 1, num_cells=[8])

    def forward(self, observation, action):
        return self.net(torch.cat([observation, action], -1).flatten(-2))


@pytest.mark.parametrize("size", [5, 3])
def test_td3_bc_counts_all_actions_of_agents_that_share_a_value(size):
    torch.manual_seed(0)
    agents, td = 3, batch(size)
    actor = TensorDictModule(nn.Linear(OBSERVATION, ACTION), in_keys=["observation"], out_keys=["action"])
    critics = [ValueOperator(Joint(agents), in_keys=["observation", "action"]) for _ in range(2)]
    observation, action = torch.randn(size, agents, OBSERVATION), torch.rand(size, agents, ACTION)
    td["observation"], td["action"], td["next", "observation"] = observation, action, observation
    loss = TD3BCLoss(actor, critics, bounds=(-1.0, 1.0), alpha=2.0, reduction="none")
    given = loss(td)["loss_actor"]
    mine = actor.module(observation)
    value = critics[0].module(observation, mine).squeeze(-1)
    expected = (mine - action).square().mean((-1, -2)) - 2.0 / value.abs().mean() * value
    torch.testing.assert_close(given, expected)
    with pytest.raises(ValueError, match=r"value \[3\], imitation \[4\]"):
        functional.behaviour_cloning_loss(torch.ones(3), torch.ones(4, 2), torch.ones(4, 2), alpha=1.0)


class TwoActions(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBSERVATION, 4)

    def forward(self, observation):
        return self.net(observation).split(2, -1)


def test_bounds_are_for_one_action():
    keys = [("cat", "action"), ("dog", "action")]
    actor = TensorDictModule(TwoActions(), in_keys=["observation"], out_keys=keys)
    critic = ValueOperator(Spy(7), in_keys=["observation", *keys], out_keys=["state_action_value"])
    with pytest.raises(ValueError, match=r"several actions, \('cat', 'action'\), \('dog', 'action'\)"):
        DDPGLoss(actor, critic, bounds=(-1.0, 1.0))
    td = batch(8)
    td["cat", "action"], td["dog", "action"] = td["action"], td["action"]
    assert DDPGLoss(actor, critic)(td)["loss_actor"].isfinite()


# Precision.


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(OBSERVATION, ACTION)
        nn.init.zeros_(self.net.weight)
        nn.init.constant_(self.net.bias, 0.6)

    def forward(self, observation):
        return self.net(observation)


class Spy(nn.Module):
    def __init__(self, width=OBSERVATION + ACTION, outputs=1):
        super().__init__()
        self.net = nn.Linear(width, outputs)

    def forward(self, observation, *actions):
        Spy.seen = actions[0].detach()
        return self.net(torch.cat([observation, *actions], -1))


def test_under_autocast_noise_smaller_than_a_step_of_bfloat16_is_kept():
    actor = TensorDictModule(Constant(), in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Spy(outputs=11), in_keys=["observation", "action"])
    loss = FastTD3Loss(actor, critic, v_min=-5.0, v_max=5.0, num_atoms=11, bounds=(-1.0, 1.0), policy_noise=0.001)
    with torch.autocast("cpu", torch.bfloat16):
        loss.compute_target(batch(2048))
    assert Spy.seen.float().std().item() == pytest.approx(0.001, rel=0.1)


def test_networks_of_bfloat16_stay_so_under_autocast():
    actor, critic = (network.to(torch.bfloat16) for network in networks())
    critic = ValueOperator(nn.Bilinear(OBSERVATION, ACTION, 1, dtype=torch.bfloat16), in_keys=["observation", "action"])
    td = batch(8).apply(lambda value: value.bfloat16() if value.is_floating_point() else value)
    with torch.autocast("cpu", torch.bfloat16):
        assert TD3Loss(actor, critic, bounds=(-1.0, 1.0))(td)["loss_qvalue"].isfinite()


@pytest.mark.parametrize("loss_class", [TD3BCLoss, ReBRACLoss])
def test_under_autocast_the_distance_to_the_data_is_not_rounded(loss_class):
    weights = {"alpha_actor": 1.0, "alpha_critic": 0.0} if loss_class is ReBRACLoss else {}
    actor = TensorDictModule(Constant(), in_keys=["observation"], out_keys=["action"])
    loss = loss_class(actor, networks()[1], bounds=(-1.0, 1.0), **weights)
    td = batch(16)
    with torch.autocast("cpu", torch.bfloat16):
        written = actor.module(td["observation"]).float()
        td["action"] = written + 1e-3
        distance = loss(td)["bc_loss"].item()
    assert distance == pytest.approx(1e-6 * (ACTION if loss_class is ReBRACLoss else 1), rel=1e-2)


# Masks by agents.


def test_nan_of_a_masked_agent_reaches_no_gradient():
    agents = 3
    actor, critic = networks()
    td = batch(5, agents)
    td.batch_size = [5]
    valid = torch.ones(5, agents, 1, dtype=torch.bool)
    valid[0, 1] = False
    td["shifted_valid"] = valid
    loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0), policy_noise=0.0)
    expected = loss(td.clone())
    td["observation"][0, 1], td["next", "reward"][0, 1] = float("nan"), float("nan")
    losses = loss(td)
    for key in ("loss_actor", "loss_qvalue"):
        torch.testing.assert_close(losses[key], expected[key])
        losses[key].backward()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_a_mask_of_samples_and_one_of_agents_count_together():
    td = batch(5, 3)
    td.batch_size = [5]
    loss, both = make(), torch.ones(5, 3, 1, dtype=torch.bool)
    both[0], both[1, 2] = False, False
    td["shifted_valid"] = both
    expected = loss(td.clone())["loss_value"]
    agents = both.clone()
    agents[0] = True
    td["shifted_valid"], td["collector", "mask"] = agents, torch.arange(5) > 0
    torch.testing.assert_close(loss(td)["loss_value"], expected)


# Data, copies of a critic, hidden ways to a layer.


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_shuffled_data_is_refused_whatever_its_type(dtype):
    count, end = 20, torch.zeros(20, 1, dtype=torch.bool)
    states = torch.randint(0, 255, (count + 1, 5)).to(dtype)
    later = {"observation": states[1:], "done": end, "terminated": end}
    data = TensorDict({"observation": states[:-1], "action": torch.rand(count, 1), "next": later}, [count])
    assert len(with_next_actions(data)) == count - 1
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="in time order, so call it before the data is shuffled"):
        with_next_actions(data[torch.randperm(count)])


def test_discrete_states_without_a_dimension_are_in_order_or_refused():
    count, end = 20, torch.zeros(20, 1, dtype=torch.bool)
    state = torch.arange(count + 1)
    later = {"state": state[1:], "done": end, "terminated": end}
    data = TensorDict({"state": state[:-1], "action": torch.rand(count, 1), "next": later}, [count])
    assert len(with_next_actions(data)) == count - 1
    with pytest.raises(ValueError, match="in time order"):
        with_next_actions(data[torch.arange(count - 1, -1, -1)])


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OBSERVATION + ACTION, 8))

    def forward(self, observation, action):
        return torch.cat([observation, action], -1) @ self.weight


class WithFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.out = Features(), nn.Linear(8, 1)

    def forward(self, observation, action):
        return self.out(self.features(observation, action))


def test_copies_of_a_critic_that_start_equal_are_told():
    actor, plain = networks()
    critic = ValueOperator(WithFeatures(), in_keys=["observation", "action"])
    with pytest.warns(UserWarning, match="all 2 critics start with the same module.features.weight"):
        TD3Loss(actor, critic, bounds=(-1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TD3Loss(actor, plain, bounds=(-1.0, 1.0))
        critic.module.features.weight.requires_grad_(False)  # features that are meant to be the same
        TD3Loss(actor, critic, bounds=(-1.0, 1.0))


class ByDefault(nn.Module):
    """Reaches its layer by the default of an argument."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(OBSERVATION + ACTION, 1)
        self.call = lambda inputs, layer=self.layer: layer(inputs)

    def forward(self, observation, action):
        return self.call(torch.cat([observation, action], -1))


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class BySlot(ByDefault):
    """Reaches its layer by an object with slots."""

    def __init__(self):
        super().__init__()
        self.call = Slotted(self.layer)

    def forward(self, observation, action):
        return self.call.layer(torch.cat([observation, action], -1))


@pytest.mark.parametrize("hidden", [ByDefault, BySlot])
def test_the_actors_loss_alone_leaves_a_critic_with_hidden_ways_in_peace(hidden):
    critic = ValueOperator(hidden(), in_keys=["observation", "action"])
    DDPGLoss(networks()[0], critic).loss_actor(batch(8))[0].backward()
    assert all(parameter.grad is None for parameter in critic.parameters())


# Entries that are optional or undeclared.


class WithContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = nn.Linear(OBSERVATION, ACTION), nn.BatchNorm1d(OBSERVATION)

    def forward(self, observation, context=None):
        observation = self.norm(observation)
        return self.net(observation if context is None else observation + context)


class NeedsContext(WithContext):
    def forward(self, observation, context):
        return super().forward(observation, context)


def test_a_network_does_without_an_entry_that_defaults_to_none_and_says_so():
    actor = TensorDictModule(WithContext(), in_keys=["observation", "context"], out_keys=["action"]).eval()
    loss, td = DDPGLoss(actor, networks()[1]), batch(8)
    value = loss.value_network.module(td["observation"], actor.module(td["observation"]))
    with pytest.warns(UserWarning, match="no entry 'context', so WithContext gets None"):
        torch.testing.assert_close(loss(td)["loss_actor"], -value.mean())
    td["context"], td["next", "context"] = torch.ones(8, OBSERVATION), torch.ones(8, OBSERVATION)
    value = loss.value_network.module(td["observation"], actor.module(td["observation"], td["context"]))
    torch.testing.assert_close(loss(td)["loss_actor"], -value.mean())


@pytest.mark.filterwarnings('ignore:key "_" is for ignoring output')
def test_an_input_named_underscore_is_none():
    actor = TensorDictModule(WithContext(), in_keys=["observation", "_"], out_keys=["action"])
    assert DDPGLoss(actor, networks()[1])(batch(8))["loss_actor"].isfinite()


def test_a_network_that_needs_an_entry_is_not_run_without_it():
    actor = TensorDictModule(NeedsContext(), in_keys=["observation", "context"], out_keys=["action"])
    with pytest.raises(BatchError, match="no entry 'context'"):
        DDPGLoss(actor, networks()[1]).loss_actor(batch(8))
    assert actor.module.norm.num_batches_tracked == 0


class UndeclaredLoss(DDPGLoss):
    def critic_target(self, next_value, transition, batch):
        target, metrics = super().critic_target(next_value, transition, batch)
        return target + batch.get("bonus"), metrics


def test_a_step_may_read_an_entry_that_it_has_not_declared():
    loss, td = make(UndeclaredLoss), batch(8).set("bonus", torch.full((8, 1), 2.0))
    torch.testing.assert_close(loss.compute_target(td), make().compute_target(td) + 2.0)
    with pytest.raises(BatchError, match="the batch has no entry 'bonus'"):
        loss(batch(8))


class ReturnsTensorDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(OBSERVATION), 0
        self.net = nn.Linear(OBSERVATION, ACTION)

    def forward(self, observation):
        self.calls += 1
        return TensorDict({"action": self.net(self.norm(observation))}, observation.shape[:1])


def test_a_network_that_returns_a_tensordict_runs_once_a_pass():
    actor = TensorDictModule(ReturnsTensorDict(), in_keys=["observation"], out_keys=["action"])
    loss = DDPGLoss(actor, networks()[1])
    loss(batch(8))
    assert actor.module.calls == 2  # online and target


# The update.


class Closing(torch.optim.SGD):
    def step(self, closure):
        closure()


def test_an_optimizer_that_needs_a_closure_is_refused_at_construction():
    loss = make(updater=False)
    actor, critic = loss.actor_network_params.parameters(), loss.value_network_params.parameters()
    step = step_of(loss)
    for options in ({"actor_optimizer": Closing(actor, 1e-3)}, {"critic_optimizer": Closing(critic, 1e-3)}):
        given = {"actor_optimizer": step.actor_optimizer, "critic_optimizer": step.critic_optimizer, **options}
        with pytest.raises(ValueError, match=f"{next(iter(options))} is Closing, which needs a closure"):
            type(step)(loss, target_updater=step.target_updater, **given)


@pytest.mark.parametrize(
    "options", [{}, {"record_operators": True}, {"compile": True}], ids=["eager", "recorded", "compiled"]
)
def test_a_refused_batch_is_no_step_of_the_delay(options, monkeypatch):
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_function(function, backend="eager"))
    step, seen = step_of(make(TD3Loss, updater=False), policy_delay=2, **options), []
    for number in range(6):
        td = batch(8, seed=number)
        if number == 2:
            td["next", "reward"][:] = float("nan")
            with pytest.raises(BatchError, match="not finite"):
                step(td)
        else:
            seen.append("loss_actor" in step(td))
    assert seen == [False, True, False, True, False]


def test_d4pg_predictions_of_many_atoms_have_one_loss_each():
    assert make(D4PGLoss, reduction="none")(batch(8))["loss_value"].shape == (8,)

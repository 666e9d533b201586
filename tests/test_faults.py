"""What a hostile reading found to be wrong, silently or in a foreign error's words; each on public names."""

import copy
import dataclasses
import functools
import gc
import threading
import types
import warnings

import numpy as np
import pytest
import torch
from own_losses import RandomEnsembleLoss
from tensordict import NonTensorData, TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchrl.data import Bounded, Composite
from torchrl.modules import MultiAgentMLP, ValueOperator
from torchrl.objectives.value import TD0Estimator

from helpers import ACTION, LOSSES, OBSERVATION, Critic, batch, gradients, make, networks, step_of
from torchrl_ddpg import BatchError, D4PGLoss, DDPGLoss, DeterministicPolicyLoss, SoftUpdate, TD3Loss, UpdateStep

pytestmark = pytest.mark.filterwarnings("ignore:.*No target network updater", "ignore:.*chains the steps")
WAYS = {"eager": {}, "compiled": {"compile": True}, "recorded": {"record_operators": True}}


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    """torch.compile with a backend that traces and does not generate code."""
    torch._dynamo.reset()
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_function(function, backend="eager"))


# 1: overridden public methods count in every call path.


def overriding(base, name, seen):
    def method(self, tensordict):
        seen.append(name)
        loss, metrics = getattr(super(cls, self), name)(tensordict)
        return loss * 3, metrics

    cls = type("Own", (base,), {name: method})
    return cls


METHODS = [(DDPGLoss, "loss_actor"), (DDPGLoss, "loss_value")]
METHODS += [(TD3Loss, name) for name in ("loss_actor", "loss_value", "actor_loss", "value_loss", "qvalue_loss")]


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize(("base", "name"), METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_1_an_overridden_term_is_the_one_that_runs(base, name, way):
    seen, results = [], []
    for cls in (base, overriding(base, name, seen)):
        loss = make(cls, updater=False, **({"bounds": (-1, 1), "policy_noise": 0.0} if base is TD3Loss else {}))
        key = "loss_actor" if "actor" in name else cls.critic_loss_key
        if way is None:
            results.append([loss(batch(8))[key]])
        else:
            torch.manual_seed(0)
            step = step_of(loss, **WAYS[way])
            results.append([step(batch(8, seed=0))[key]])
            for _ in range(4):
                step(batch(8, seed=0))
    torch.testing.assert_close(results[1][0], 3 * results[0][0])
    assert seen


def test_1_a_term_that_is_set_on_the_instance_counts():
    loss = make()
    expected = loss(batch(8))["loss_actor"]
    own = loss.loss_actor
    loss.loss_actor = lambda td: (own(td)[0] * 2, {})
    torch.testing.assert_close(loss(batch(8))["loss_actor"], 2 * expected)


# 2: targets follow the settings of the network.


class Scaled(nn.Module):
    """An actor with settings of every kind."""

    shift = 0.0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Dropout(0.0), nn.Linear(8, ACTION))
        self.scale, self.mean = 1.0, torch.zeros(OBSERVATION)
        self.register_buffer("late", None)
        self.options = types.SimpleNamespace(gain=1.0)
        self.listed, self.named = [1.0], {"gain": 1.0}
        self.config, self.slotted = Config(), Slotted()
        self.partial = functools.partial(scale, by={"gain": 1.0})

    def forward(self, observation):
        observation = observation - self.mean - self.shift - (0.0 if self.late is None else self.late)
        gain = self.options.gain * self.listed[0] * self.named["gain"] * self.config.gain
        return self.partial(self.layers(observation) * self.scale * gain * self.slotted.gain).tanh()


@dataclasses.dataclass
class Config:
    gain: float = 1.0


@dataclasses.dataclass(slots=True)
class Slotted:
    gain: float = 1.0


def scale(value, by):
    return value * by["gain"]


CHANGES = {
    "number": lambda net: setattr(net, "scale", 0.1),
    "plain tensor": lambda net: setattr(net, "mean", torch.ones(OBSERVATION)),
    "dropout": lambda net: setattr(net.layers[1], "p", 1.0),
    "hook": lambda net: net.register_forward_hook(lambda module, inputs, output: output * 0.5),
    "buffer set later": lambda net: setattr(net, "late", torch.ones(OBSERVATION)),
    "layer appended": lambda net: net.layers.append(nn.Tanh()),
    "class attribute shadowed": lambda net: setattr(net, "shift", 2.0),
    "object": lambda net: setattr(net.options, "gain", 0.3),
    "list": lambda net: net.listed.__setitem__(0, 0.3),
    "dict": lambda net: net.named.__setitem__("gain", 0.3),
    "dataclass with slots": lambda net: setattr(net.slotted, "gain", 0.3),
    "partial": lambda net: net.partial.keywords["by"].__setitem__("gain", 0.3),
    "dataclass": lambda net: setattr(net.config, "gain", 0.3),
}


def scaled():
    torch.manual_seed(0)
    actor = TensorDictModule(Scaled(), in_keys=["observation"], out_keys=["action"])
    return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))


@pytest.mark.parametrize("change", CHANGES)
def test_2_targets_follow_settings(change):
    loss, data = scaled(), batch(8, terminated=0.0)
    before = loss.compute_target(data)
    CHANGES[change](loss.actor_network.module)
    inputs = loss.actor_network(TensorDict({"observation": data["next", "observation"]}, [8]))
    expected = data["next", "reward"] + 0.99 * loss.value_network(inputs)["state_action_value"]
    torch.testing.assert_close(loss.compute_target(data), expected.detach())
    assert not torch.equal(loss.compute_target(data), before)


# 4 and the hazards: a recording follows them too, or refuses.


@pytest.mark.parametrize("change", CHANGES)
def test_4_recordings_follow_settings(change):
    steps = [step_of(scaled(), **WAYS[way]) for way in ("recorded", "eager")]
    for round_ in range(2):
        for seed in range(5):
            results = []
            for step in steps:
                torch.manual_seed(seed)
                results.append(step(batch(8, seed=seed)))
            torch.testing.assert_close(*results)
        if not round_:
            for step in steps:
                CHANGES[change](step.loss.actor_network.module)
    torch.testing.assert_close(*(step.loss.state_dict() for step in steps))


class Reads(nn.Module):
    """Decides in Python, by values that the first batches do not have."""

    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.Linear(OBSERVATION, ACTION), way

    def forward(self, observation):
        largest = observation.detach().abs().max()
        value = {
            "tolist": lambda: largest.tolist(),
            "numpy": lambda: largest.numpy(),
            "asarray": lambda: np.asarray(largest),
            "item": lambda: largest.item(),
            "float": lambda: float(largest),
        }[self.way]()
        return self.layer(observation) * (0.0 if value > 100 else 1.0)


@pytest.mark.parametrize("way", ["tolist", "numpy", "asarray", "item", "float"])
def test_5_python_that_takes_values_is_refused_when_it_is_recorded(way):
    torch.manual_seed(0)
    actor = TensorDictModule(Reads(way), in_keys=["observation"], out_keys=["action"])
    step = step_of(DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"])), record_operators=True)
    step(batch(8))
    with pytest.raises(RuntimeError, match=r"cannot record loss_value, .*takes values out of a tensor"):
        step(batch(8, seed=1))


class RunningMean(nn.Module):
    """Assigns its running mean anew in forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.mean = nn.Linear(OBSERVATION, ACTION), torch.zeros(OBSERVATION)

    def forward(self, observation):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * observation.detach().mean(0)
        return self.layer(observation - self.mean).tanh()


@pytest.mark.filterwarnings("ignore:.*at every call")
def test_5_a_running_mean_that_is_assigned_anew_is_not_frozen():
    steps = []
    for way in ("recorded", "eager"):
        torch.manual_seed(0)
        actor = TensorDictModule(RunningMean(), in_keys=["observation"], out_keys=["action"])
        steps.append(step_of(DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"])), **WAYS[way]))
    for seed in range(8):
        torch.testing.assert_close(*(step(batch(8, seed=seed)) for step in steps))
    torch.testing.assert_close(*(step.loss.actor_network.module.mean for step in steps))
    assert steps[0].loss.actor_network.module.mean.any()


def test_5_a_recording_that_nobody_can_see_go_stale_is_compared_now_and_then(monkeypatch):
    gain = torch.ones(())

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(OBSERVATION, ACTION)

        def forward(self, observation):
            return self.layer(observation) * gain

    monkeypatch.setattr("torchrl_ddpg.update.operator_graph.COMPARE_EVERY", 10)
    torch.manual_seed(0)
    actor = TensorDictModule(Hidden(), in_keys=["observation"], out_keys=["action"])
    step = step_of(DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"])), record_operators=True)
    for _ in range(5):
        step(batch(8))
    gain = torch.full((), 0.5)
    with pytest.raises(RuntimeError, match="replaying its operators gives a different result"):  # noqa: PT012
        for _ in range(12):
            step(batch(8))


# 3: a recording has the whole batch, and what a term writes is written.


class Bonus(TD0Estimator):
    """Reads an entry that the loss does not name."""

    def value_estimate(self, tensordict, next_value=None, **_):
        return tensordict["next", "reward"] + tensordict["bonus"] + self.gamma * next_value


class Notes(DDPGLoss):
    """Writes an entry of its own."""

    def loss_value(self, tensordict):
        loss, metrics = super().loss_value(tensordict)
        tensordict["doubled"] = tensordict["bonus"] * 2
        return loss, metrics


@pytest.mark.parametrize("way", WAYS)
def test_3_entries_that_the_loss_does_not_name_are_there(way):
    results = []
    for each in (way, "eager"):
        torch.manual_seed(0)
        step = step_of(Notes(*networks()).make_value_estimator(Bonus, gamma=0.9), **WAYS[each])
        for seed in range(5):
            data = batch(8, seed=seed)
            data["bonus"] = torch.full((8, 1), float(seed))
            metrics = step(data)
            torch.testing.assert_close(data["doubled"], data["bonus"] * 2)
        results.append(metrics)
    torch.testing.assert_close(*results)


# 6: strings.


class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(OBSERVATION, ACTION)

    def forward(self, observation, task):
        assert isinstance(task, str)
        return self.layer(observation) * (1.0 if task == "left" else -1.0)


@pytest.mark.parametrize("way", ["eager", "recorded"])
def test_6_a_string_is_a_string(way):
    torch.manual_seed(0)
    actor = TensorDictModule(Task(), in_keys=["observation", "task"], out_keys=["action"])
    step = step_of(DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"])), **WAYS[way])
    for seed in range(6):
        for task, sign in (("left", 1.0), ("right", -1.0)):
            data = batch(8, seed=seed)
            data["task"] = NonTensorData(task, batch_size=[8])
            action = sign * actor.module.layer(data["observation"])
            value = step.loss.value_network.module(data["observation"], action).mean()
            torch.testing.assert_close(step.loss.loss_actor(data)[0], -value)
            assert step(data)


# 7: agents with ranges of their own.


def test_7_each_agent_has_its_own_range():
    actor = TensorDictModule(nn.Linear(OBSERVATION, ACTION), [("agents", "observation")], [("agents", "action")])
    keys = [("agents", "observation"), ("agents", "action")]
    critic = ValueOperator(Critic(), in_keys=keys, out_keys=["state_action_value"])
    with torch.no_grad():
        actor.module.bias += 50
    high = torch.tensor([[1.0, 1.0], [5.0, 7.0]]).expand(4, 2, ACTION)
    inner = Composite({"action": Bounded(-high, high, shape=(4, 2, ACTION))}, shape=(4, 2))
    loss = DDPGLoss(actor, critic, action_spec=Composite({"agents": inner}, shape=(4,)))
    keys = {"reward": ("agents", "reward"), "done": ("agents", "done"), "terminated": ("agents", "terminated")}
    loss.set_keys(**keys)
    seen = []
    loss.value_network.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].detach()))
    data = batch(8, 2, keys={key: ("agents", key) for key in ("observation", "action", "reward", "done", "terminated")})
    data.batch_size = [8]
    loss.compute_target(data)
    torch.testing.assert_close(seen[0], high[0].expand(8, 2, ACTION))


# 8, 9, 19: nothing is switched.


def test_8_no_layer_is_switched_while_a_term_runs():
    loss = make()
    data, switched = batch(8), []
    original = nn.Module.requires_grad_
    loss.value_network.module.register_forward_pre_hook(
        lambda *_: switched.extend(p for p in loss.parameters() if not p.requires_grad)
    )
    loss(data)
    assert not switched
    assert nn.Module.requires_grad_ is original


class Interrupted(nn.Module):
    """A network of one agent or several that is interrupted in its forward when it is told to."""

    def __init__(self, outputs, width, agents=False):
        super().__init__()
        options = {"n_agents": 2, "centralized": False, "share_params": False, "num_cells": [8]}
        self.net = MultiAgentMLP(width, outputs, **options) if agents else nn.Linear(width, outputs)
        self.error = None

    def forward(self, *inputs):
        value = self.net(torch.cat(inputs, -1))
        if self.error is not None:
            raise self.error
        return value


def interrupted(agents=False, twin=True):
    torch.manual_seed(0)
    actor, critic = Interrupted(ACTION, OBSERVATION, agents), Interrupted(1, OBSERVATION + ACTION, agents)
    if not twin:
        actor.layers, critic.layers = [actor.net], [critic.net]  # which leads back to the module
    critic = ValueOperator(critic, in_keys=["observation", "action"])
    loss = DDPGLoss(TensorDictModule(actor, in_keys=["observation"], out_keys=["action"]), critic)
    for target in loss.target_pairs("parameters")[0]:
        target.data += 0.1
    data = batch(8, 2) if agents else batch(8)
    data.batch_size = data["next"].batch_size = [8]
    return loss, data


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("network", ["actor_network", "value_network"])
@pytest.mark.parametrize("agents", [False, True], ids=["one agent", "two agents"])
@pytest.mark.parametrize("twin", [True, False], ids=["twin", "no twin"])
def test_8_an_interrupted_term_leaves_every_network_as_it_was(twin, agents, network, error):
    loss, data = interrupted(agents, twin)
    assert bool(loss._nets[network].why_no_twin) is not twin
    expected, before = loss(data.clone()), dict(loss.named_parameters())
    own = [list(getattr(loss, name).parameters()) for name in ("actor_network", "value_network")]
    module = getattr(loss, network).module
    for term in (loss.loss_actor, loss.loss_value, loss.compute_target):
        module.error = error()
        with pytest.raises((BatchError, KeyboardInterrupt)):
            term(data.clone())
        module.error = None
        assert all(parameter.requires_grad for parameter in loss.parameters())
        for name, parameters in zip(("actor_network", "value_network"), own, strict=True):
            now = list(getattr(loss, name).parameters())
            assert len(now) == len(parameters)
            assert all(p is q for p, q in zip(now, parameters, strict=True))
        assert all(parameter is before[name] for name, parameter in loss.named_parameters())
        torch.testing.assert_close(loss(data.clone()), expected)


class Checkpointed(nn.Module):
    def __init__(self, width, outputs, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(width, 8), nn.Linear(8, outputs), reentrant

    def forward(self, *inputs):
        hidden = torch.cat(inputs, -1)
        hidden = hidden if hidden.requires_grad else hidden.requires_grad_()
        return self.last(checkpoint(lambda x: self.first(x).tanh(), hidden, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_9_checkpointed_networks_train_and_leak_nothing(reentrant):
    torch.manual_seed(0)
    actor = TensorDictModule(Checkpointed(OBSERVATION, ACTION, reentrant), ["observation"], ["action"])
    critic = ValueOperator(Checkpointed(OBSERVATION + ACTION, 1, reentrant), in_keys=["observation", "action"])
    loss = DDPGLoss(actor, critic)
    loss.loss_actor(batch(8))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in actor.parameters())
    assert all(p.grad is None for p in critic.parameters())
    loss.loss_value(batch(8))[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())


def test_9_a_recorded_checkpointed_network_trains():
    steps = []
    for way in ("recorded", "eager"):
        torch.manual_seed(0)
        actor = TensorDictModule(Checkpointed(OBSERVATION, ACTION, False), ["observation"], ["action"])
        critic = ValueOperator(Checkpointed(OBSERVATION + ACTION, 1, False), in_keys=["observation", "action"])
        steps.append(step_of(DDPGLoss(actor, critic), **WAYS[way]))
    for seed in range(6):
        for step in steps:
            step(batch(8, seed=seed))
    torch.testing.assert_close(*(list(step.loss.parameters()) for step in steps))


def test_19_threads_do_not_meet():
    loss, wrong = make(), []
    expected = [g.clone() for g in gradients(loss.loss_value(batch(8))[0], loss.value_network.parameters())]

    def act():
        for _ in range(100):
            loss.loss_actor(batch(8))

    others = [threading.Thread(target=act) for _ in range(2)]
    for other in others:
        other.start()
    while any(other.is_alive() for other in others):
        found = gradients(loss.loss_value(batch(8))[0], loss.value_network.parameters())
        wrong += [g is None or not torch.allclose(g, e) for g, e in zip(found, expected, strict=True)]
    assert wrong
    assert not any(wrong)


# 10: a shared encoder with separate_losses.


def test_10_a_shared_encoder_is_saved_as_it_is():
    loss = make(separate_losses=True, networks_kwargs={"encoder": "shared"})
    encoder = loss.actor_network.module[0]
    nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in encoder.parameters())), encoder.parameters())
    saved, expected = copy.deepcopy(loss.state_dict()), encoder.weight.detach().clone()
    other = make(separate_losses=True, networks_kwargs={"encoder": "shared"}, seed=5)
    other.load_state_dict(saved)
    torch.testing.assert_close(other.actor_network.module[0].weight.detach(), expected)


def test_10_resetting_leaves_targets_equal_to_their_networks():
    loss = make(separate_losses=True, networks_kwargs={"encoder": "shared"})
    loss.reset_parameters_recursive()
    torch.testing.assert_close(
        loss.target_actor_network_params["module", "0", "weight"], loss.actor_network.module[0].weight.detach()
    )


# 11: D4PG's support.


@pytest.mark.parametrize("move", [torch.bfloat16, torch.float64, "half and back"])
def test_11_the_support_keeps_its_digits(move):
    loss = make(D4PGLoss, v_min=-1.0, v_max=0.7, num_atoms=21)
    if move == "half and back":
        loss.half().float()
    else:
        loss.to(move)
    exact = torch.linspace(-1.0, 0.7, 21, dtype=torch.float64)
    torch.testing.assert_close(loss.support.double(), exact, rtol=0, atol=1e-12)


def test_11_nothing_is_outside_the_support_in_float64():
    loss = make(D4PGLoss, v_min=-1.0, v_max=0.7, num_atoms=21).to(torch.float64).make_value_estimator(gamma=1.0)
    data = batch(8, dtype=torch.float64, terminated=0.0)
    data["next", "reward"] = torch.zeros(8, 1, dtype=torch.float64)
    assert loss(data)["target_outside_support"] == 0


# 12: keyword calls with entries of one dimension.


@pytest.mark.parametrize("estimator", ["td0", "td_lambda"])
def test_12_keyword_calls_with_one_dimensional_entries(estimator):
    actor = TensorDictModule(nn.Linear(1, 1), in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Critic(width=2), in_keys=["observation", "action"])
    loss = DDPGLoss(actor, critic, reduction="none").make_value_estimator(estimator).select_out_keys("loss_value")
    data = batch(3, 5).apply(lambda x: x[..., :1])
    entries = {
        "_".join((key,) if isinstance(key, str) else key): value
        for key, value in data.select(*loss.in_keys).items(True, True)
    }
    torch.testing.assert_close(loss(**entries), loss(data.clone())["loss_value"])


# 13: garbage in masked samples.


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("garbage", [float("nan"), 3e38])
def test_13_masked_garbage_does_not_reach_gradients(case, garbage):
    loss, found = case.make(), []
    for value in (0.0, garbage):
        data = batch(8)
        data["steps_to_next_obs"] = torch.ones(8, 1)
        data["collector", "mask"] = torch.arange(8).unsqueeze(-1) < 6
        for key in ("observation", "action", "steps_to_next_obs", ("next", "observation"), ("next", "reward")):
            data[key][6:] = value
        outputs = loss(data)
        total = outputs["loss_actor"] + outputs[case.critic_loss_key]
        found.append([outputs, gradients(total, loss.parameters())])
    torch.testing.assert_close(*found)


# 14: critics of one list may read different entries.


def test_14_every_critic_gets_what_it_reads():
    actor, first = networks()
    second = networks(goal="goal")[1]
    loss = TD3Loss(actor, [first, second], bounds=(-1, 1), policy_noise=0.0)
    data = batch(8, terminated=1.0)
    data["goal"] = torch.randn(8, 2)
    values = [critic(data.clone())["state_action_value"] for critic in (first, second)]
    expected = sum(nn.functional.smooth_l1_loss(value, data["next", "reward"]) for value in values)
    torch.testing.assert_close(loss(data)["loss_qvalue"], expected)
    assert "goal" in loss.in_keys


# 15: the gamma of the batch.


def test_15_every_batch_says_its_gamma_and_padding_does_not():
    loss = make().make_value_estimator(gamma=0.9)
    data = batch(8)
    data["steps_to_next_obs"] = torch.full((8, 1), 2)
    data["gamma"] = torch.full((8, 1), 0.81)
    loss(data)
    data["gamma"] = torch.full((8, 1), 0.25)
    with pytest.raises(BatchError, match=r"0\.5 a step, the value estimator uses 0\.9"):
        loss(data)
    data["gamma"] = torch.where(torch.arange(8).unsqueeze(-1) < 6, 0.81, 0.0)
    data["collector", "mask"] = torch.arange(8).unsqueeze(-1) < 6
    loss(data)
    del data["collector"]
    data["steps_to_next_obs"].fill_(1)  # nothing was discounted
    loss(data)


# 16: errors in this library's words, or none.


def test_16_nested_observations_with_td_lambda():
    class Parts(nn.Module):
        def __init__(self, outputs, width=OBSERVATION):
            super().__init__()
            self.layer = nn.Linear(width, outputs)

        def forward(self, observation, *action):
            return self.layer(torch.cat([observation["x"], *action], -1))

    actor = TensorDictModule(Parts(ACTION), in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(Parts(1, OBSERVATION + ACTION), in_keys=["observation", "action"])
    data = batch(2, 5)
    for root in (data, data["next"]):
        root["observation"] = TensorDict({"x": root["observation"]}, [2, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = DDPGLoss(actor, critic)
        SoftUpdate(loss, tau=0.1)
        loss.make_value_estimator("td_lambda")(data)


@pytest.mark.parametrize("way", WAYS)
def test_16_a_frozen_actor_is_left_alone(way):
    loss = make(updater=False)
    step = step_of(loss, **WAYS[way])
    loss.actor_network.requires_grad_(False)
    before = copy.deepcopy(loss.state_dict())
    for _ in range(4):
        assert step(batch(8))["loss_actor"].isfinite()
    after = loss.state_dict()
    for key in before:
        if not key.startswith("target"):
            assert torch.equal(before[key], after[key]) == key.startswith("actor")


def test_16_vmap_over_the_loss():
    loss = make()
    stacked = torch.stack([batch(8, seed=seed) for seed in range(3)])
    values = torch.vmap(lambda td: loss.loss_actor(td)[0])(stacked)
    expected = [loss.loss_actor(batch(8, seed=seed))[0] for seed in range(3)]
    torch.testing.assert_close(values, torch.stack(expected))


def test_16_tau_may_be_a_tensor():
    loss = make(updater=False)
    SoftUpdate(loss, tau=torch.tensor([0.1])).step()


def test_16_refusals_in_words():
    loss = make(updater=False)
    actor, critic = (loss.get_stateful_net(name, copy=False) for name in ("actor_network", "value_network"))
    lbfgs, sgd = torch.optim.LBFGS(actor.parameters()), torch.optim.SGD(critic.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="UpdateStep: actor_optimizer is LBFGS, which needs a closure"):
        UpdateStep(loss, actor_optimizer=lbfgs, critic_optimizer=sgd, target_updater=SoftUpdate(loss, tau=0.1))
    with pytest.raises(ValueError, match="TD3Loss: the action has no finite range"):
        TD3Loss(*networks(), bounds=(-float("inf"), float("inf")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = TensorDictModule(torch.jit.script(nn.Linear(3, 2)), ["observation"], ["action"])
    with pytest.raises(TypeError, match="DDPGLoss: actor_network holds a TorchScript module"):
        DDPGLoss(scripted, networks()[1])


def test_16_agents_may_share_steps_without_a_last_dimension():
    actor, critic = networks()
    loss, found = DDPGLoss(actor, critic), []
    for form in ((8,), (8, 1)):
        data = batch(8, 2)
        data.batch_size = [8]
        data["steps_to_next_obs"] = torch.full(form, 3)
        found.append(loss(data)["loss_value"])
    torch.testing.assert_close(*found)


# 17: critics that share a trunk, one module under two names.


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(OBSERVATION, OBSERVATION)
        self.second, self.last = self.first, nn.Linear(OBSERVATION, ACTION)

    def forward(self, observation):
        return self.last(self.second(self.first(observation).tanh())).tanh()


def test_17_one_module_under_two_names_and_a_shared_trunk():
    def build():
        torch.manual_seed(0)
        trunk = nn.Linear(OBSERVATION, 4)
        critics = [ValueOperator(Critic(4 + ACTION, trunk), in_keys=["observation", "action"]) for _ in range(2)]
        actor = TensorDictModule(TwoNames(), in_keys=["observation"], out_keys=["action"])
        return TD3Loss(actor, critics, bounds=(-1, 1), policy_noise=0.0)

    steps = [step_of(build(), **WAYS[way]) for way in ("recorded", "eager")]
    for seed in range(6):
        torch.testing.assert_close(*(step(batch(8, seed=seed)) for step in steps))
    calls = []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    steps[0](batch(8))
    hook.remove()
    assert not calls  # it was a replay
    targets, sources = steps[0].loss.target_pairs("parameters")
    assert len(targets) == len({id(target) for target in targets}) == len({id(source) for source in sources}) == 14


# 18: recordings leave nothing behind.


def test_18_recordings_are_forgotten():
    import linecache

    step = step_of(make(updater=False), record_operators=True)
    gc.collect()
    before = len(linecache.cache)
    for size in range(2, 6):
        for _ in range(3):
            step(batch(size))
    assert len(linecache.cache) == before


# Networks that reach their layers past the names of their submodules.


class Bypasses(nn.Module):
    """Reaches its layers by a list, a closure or a bound method."""

    def __init__(self, way, width, outputs):
        super().__init__()
        self.first, self.last = nn.Linear(width, 8), nn.Linear(8, outputs)
        self.norm = nn.BatchNorm1d(8, affine=False)
        if way == "list":
            self.steps = [self.first, self.norm, self.last]
        elif way == "closure":
            self.steps = [lambda x: self.last(self.norm(self.first(x)))]
        else:
            self.steps = [self.first.forward, self.norm.forward, self.last.forward]

    def forward(self, *inputs):
        value = torch.cat(inputs, -1)
        for step in self.steps:
            value = step(value)
        return value


@pytest.mark.parametrize("way", ["list", "closure", "bound method"])
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_that_bypass_the_names_of_their_layers(way, frozen):
    torch.manual_seed(0)
    actor = TensorDictModule(Bypasses(way, OBSERVATION, ACTION), ["observation"], ["action"])
    critic = ValueOperator(Bypasses(way, OBSERVATION + ACTION, 1), in_keys=["observation", "action"])
    critic.module.first.requires_grad_(not frozen)
    loss, data = DDPGLoss(actor, critic), batch(8, terminated=0.0)
    loss.loss_actor(data)[0].backward()  # the first call
    assert all(p.grad is None for p in critic.parameters())
    before = loss.compute_target(data)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 1
    torch.testing.assert_close(loss.compute_target(data), before)
    counts = [net.module.norm.num_batches_tracked for net in (actor, critic)]
    assert [int(count) for count in counts] == [1, 1]  # the targets have statistics of their own


def test_a_network_that_looks_its_layers_up_by_identity():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(OBSERVATION, ACTION)
            vars(self)["gains"] = {id(self.layer): 0.5}

        def forward(self, observation):
            return self.layer(observation) * self.gains[id(self.layer)]

    actor, data = TensorDictModule(Looks(), in_keys=["observation"], out_keys=["action"]), batch(8, terminated=0.0)
    loss = DDPGLoss(actor, networks()[1])
    for _ in range(2):
        inputs = actor(TensorDict({"observation": data["next", "observation"]}, [8]))
        expected = data["next", "reward"] + 0.99 * loss.value_network(inputs)["state_action_value"]
        torch.testing.assert_close(loss.compute_target(data), expected.detach())


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_layers_with_weight_norm(recurrent):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.utils.parametrizations.weight_norm(recurrent(1, ACTION, batch_first=True), "weight_hh_l0")

        def forward(self, observation):
            return self.rnn(observation.unsqueeze(-1))[0][..., -1, :]

    torch.manual_seed(0)
    loss = DDPGLoss(TensorDictModule(Reads(), ["observation"], ["action"]), networks()[1])
    losses = loss(batch(8))
    (losses["loss_actor"] + losses["loss_value"]).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_weights_of_masked_samples_do_not_reach_gradients():
    loss, found = make(), []
    for value in (1.0, float("nan"), float("inf")):
        data = batch(8)
        data["collector", "mask"] = torch.arange(8) < 6
        data["priority_weight"] = torch.where(torch.arange(8) < 6, 0.5, value)
        found.append(gradients(loss.loss_value(data)[0], loss.value_network.parameters()))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.parametrize("when", ["before", "later"])
def test_hooks_on_parameters_are_not_recorded(when):
    step = step_of(make(updater=False), record_operators=True)
    parameter = next(step.loss.value_network.parameters())
    if when == "before":
        parameter.register_hook(lambda gradient: gradient * 2)
    else:
        for seed in range(4):
            step(batch(8, seed=seed))
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(RuntimeError, match="a parameter has a hook"):  # noqa: PT012
        for seed in range(4):
            step(batch(8, seed=seed))


def test_an_entry_replaced_inside_a_nested_one_is_read_anew():
    class Own(DDPGLoss):
        def loss_value(self, tensordict):
            tensordict["nested", "observation"] = tensordict["nested", "observation"] * 2
            return super().loss_value(tensordict)

    names = {"observation": ("nested", "observation")}
    found = []
    for cls in (Own, DDPGLoss):
        actor, critic = networks(observation=("nested", "observation"))
        data = batch(8, keys=names)
        if cls is DDPGLoss:
            data["nested", "observation"] *= 2
        found.append(cls(actor, critic)(data))
    torch.testing.assert_close(*found)


# The public base class.


def test_a_subclass_that_forgets_what_it_must_say_is_told():
    class Nameless(DeterministicPolicyLoss):
        all_out_keys = ("loss_actor", "loss_value")

    class Losses(DDPGLoss):
        all_out_keys = ("loss_value",)

    class Output(DDPGLoss):
        all_out_keys = ("loss_actor", "loss_value", "entropy")

    class Late(DDPGLoss):
        all_out_keys = ("loss_actor", "loss_value", "entropy")

        def actor_sample_losses(self, value, action, batch):
            return -value, {"entrpy": value.detach()}

    for cls, words in (
        (Nameless, "Nameless: critic_name is '' and critic_loss_key ''; accepted"),
        (Losses, "Losses: all_out_keys is .* accepted: ('loss_actor', 'loss_value')"),
        (Output, "Output: all_out_keys holds 'entropy', which no step gives"),
    ):
        with pytest.raises(TypeError, match=words.replace("(", r"\(").replace(")", r"\)")):
            cls(*networks())
    with pytest.raises(KeyError, match="Late: the output 'entropy' is one of out_keys, and no step gives it"):
        Late(*networks())(batch(8))


def test_overriding_targets_keeps_what_is_shared():
    class Own(DDPGLoss):
        def critic_target(self, next_value, transition, batch):
            assert next_value.isfinite().all()
            return transition.reward + 0.9 * next_value + batch.get(("next", "observation")).sum(-1, keepdim=True), {}

    loss, data = Own(*networks()), batch(8)
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = float("nan")
    data["collector", "mask"] = torch.arange(8) < 6
    data["next", "reward"][6:] = float("nan")
    losses = loss(data)
    (losses["loss_actor"] + losses["loss_value"]).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert data["td_error"].shape == (8,)


@pytest.mark.parametrize("estimator", ["td0", "td1"])
def test_a_target_ends_where_its_override_says_so(estimator):
    class Bonus(DDPGLoss):
        def critic_target(self, next_value, transition, batch):
            return super().critic_target(next_value + 5.0, transition, batch)

    class Truncated(DDPGLoss):
        def critic_target(self, next_value, transition, batch):
            return super().critic_target(next_value, transition._replace(terminated=transition.done), batch)

    ended = batch(1, 4, terminated=1.0)
    loss = Bonus(*networks()).make_value_estimator(estimator)
    torch.testing.assert_close(loss.compute_target(ended), ended["next", "reward"])
    ended["next", "terminated"] = torch.zeros_like(ended["next", "terminated"])
    loss = Truncated(*networks()).make_value_estimator(estimator)
    torch.testing.assert_close(loss.compute_target(ended), ended["next", "reward"])


def test_the_random_subset_is_drawn_anew():
    loss = make(RandomEnsembleLoss, num_qvalue_nets=5, subset=2)
    targets = torch.stack([loss.compute_target(batch(8, terminated=0.0)) for _ in range(10)])
    assert (targets.std(0) > 0).all()


# 20: GradScaler.


def test_20_an_optimizers_grad_scale_counts():
    loss = make(updater=False)
    actor, critic = (loss.get_stateful_net(name, copy=False) for name in ("actor_network", "value_network"))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2, fused=True, eps=1.0) for net in (actor, critic)]
    names = ("actor_optimizer", "critic_optimizer")
    step = UpdateStep(loss, target_updater=SoftUpdate(loss, tau=0.1), **dict(zip(names, optimizers, strict=True)))
    step(batch(8))
    other = copy.deepcopy(step)
    for optimizer in optimizers:
        optimizer.grad_scale, optimizer.found_inf = torch.full((), 1e6), torch.zeros(())
    before = [p.clone() for p in critic.parameters()]
    step(batch(8))
    other(batch(8))
    small = sum((p - q).abs().sum() for p, q in zip(critic.parameters(), before, strict=True))
    usual = sum((p - q).abs().sum() for p, q in zip(other.loss.value_network.parameters(), before, strict=True))
    assert small < usual * 0.95

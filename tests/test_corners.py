"""Corners of the losses: networks, buffers, masks and copies of unusual kinds."""

import copy
import warnings

import pytest
import torch
import torchrl.objectives
from tensordict import TensorDict, lazy_stack
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MultiAgentMLP, ValueOperator
from torchrl.objectives.value import GAE, TD0Estimator, TDLambdaEstimator

from helpers import ACTION, OBSERVATION, batch, make, networks
from torchrl_ddpg import BatchError, DDPGLoss, HardUpdate, SoftUpdate

pytestmark = pytest.mark.filterwarnings("ignore:.*No target network updater")


def test_metrics_leave_masked_samples_out():
    loss, data = make(), batch(8)
    masked = data.clone()
    masked["collector", "mask"] = torch.arange(8) < 5
    expected, outputs = loss(data[:5]), loss(masked)
    for key in ("pred_value", "pred_value_max", "target_value", "target_value_max"):
        torch.testing.assert_close(outputs[key], expected[key])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_in_the_frozen_pass_leaves_the_critic_trainable(error):
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(OBSERVATION + ACTION, 1)

        def forward(self, observation, action):
            if action.requires_grad:
                raise error
            return self.net(torch.cat([observation, action], -1))

    critic = TensorDictModule(Interrupted(), in_keys=["observation", "action"], out_keys=["state_action_value"])
    loss = DDPGLoss(networks()[0], critic)
    with pytest.raises((error, BatchError)):
        loss(batch(8))
    assert all(p.requires_grad for p in critic.parameters())


def test_loaded_targets_are_kept_even_if_they_equal_the_initial_ones():
    loss = DDPGLoss(*networks())
    checkpoint = {key: value.clone() for key, value in loss.state_dict().items()}
    for key, value in checkpoint.items():
        if not key.startswith("target_"):
            value += 1
    loss.load_state_dict(checkpoint)
    SoftUpdate(loss, tau=0.1)
    targets = {key: value for key, value in loss.state_dict().items() if key.startswith("target_")}
    torch.testing.assert_close(targets, {key: checkpoint[key] for key in targets})


def test_unordered_batches_of_other_shapes_are_not_warned_about_again():
    loss = make().make_value_estimator("td_lambda")
    with pytest.warns(UserWarning, match="chains the steps"):
        loss(batch(4, 4, in_order=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(batch(5, 4, in_order=False))


@pytest.mark.filterwarnings("ignore:.*chains the steps")
@pytest.mark.parametrize("value_type", ["td1", "td_lambda"])
def test_a_masked_next_value_of_nan_does_not_reach_targets(value_type):
    class Infinite(nn.Module):  # finite inputs, infinite value: only the value can be hidden
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(OBSERVATION + ACTION, 1)

        def forward(self, observation, action):
            value = self.net(torch.cat([observation, action], -1))
            return torch.where(observation[..., :1] > 1e6, float("inf"), value)

    critic = TensorDictModule(Infinite(), in_keys=["observation", "action"], out_keys=["state_action_value"])
    loss = DDPGLoss(networks()[0], critic).make_value_estimator(value_type)
    data = batch(2, 5)
    data["next", "done"][:, 2] = True
    data["collector", "mask"] = torch.ones(2, 5, dtype=torch.bool)
    data["collector", "mask"][:, 3:] = False
    data["next", "observation"][:, 3:] = 1e7
    assert loss.loss_value(data)[0].isfinite()


@pytest.mark.parametrize("how", ["soft", "hard", "init_"])
def test_every_updater_copies_buffers(how):
    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))
    loss = DDPGLoss(*networks(encoder=encoder))
    updater = HardUpdate(loss, value_network_update_interval=1) if how == "hard" else SoftUpdate(loss, tau=0.5)
    with torch.no_grad():
        encoder[1].running_mean.add_(3.0)
    updater.init_() if how == "init_" else updater.step()
    targets, sources = loss.target_pairs("buffers")
    assert targets
    torch.testing.assert_close(targets, sources)


def test_is_init_of_the_next_state_is_honoured():
    seen = []

    class Probe(nn.Module):
        def forward(self, observation, is_init):
            seen.append(is_init)
            return observation[..., :ACTION]

    actor = TensorDictModule(Probe(), in_keys=["observation", "is_init"], out_keys=["action"])
    actor.module.weight = nn.Parameter(torch.zeros(1))
    loss = DDPGLoss(actor, networks()[1])
    data = batch(2, 3)
    data["is_init"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    data["next", "is_init"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    data["is_init"][0, 0] = data["next", "is_init"][1, 1] = True
    loss.compute_target(data)
    torch.testing.assert_close(seen[0], data["is_init"] | data["next", "is_init"])


def test_everything_that_comes_out_is_float32_under_autocast():
    loss, data = make(), batch(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = loss(data)
    assert {value.dtype for value in outputs.values()} == {data["td_error"].dtype} == {torch.float32}


def test_a_users_estimator_runs_outside_autocast():
    class Own(TD0Estimator):
        def value_estimate(self, tensordict, target_params=None, next_value=None, **kwargs):
            return tensordict["next", "reward"] @ torch.ones(1, 1) * 1.0

    loss = make().make_value_estimator(Own, gamma=0.9)
    data = batch(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = loss.compute_target(data)
    torch.testing.assert_close(target, data["next", "reward"], rtol=0, atol=0)


@pytest.mark.parametrize("first", ["keys", "estimator"])
def test_the_estimator_has_the_losss_keys(first):
    loss = make()
    steps = [lambda: loss.set_keys(reward="r", state_action_value="q"), lambda: loss.make_value_estimator("td0")]
    for step in steps if first == "keys" else steps[::-1]:
        step()
    assert (loss.value_estimator.tensor_keys.reward, loss.value_estimator.tensor_keys.value) == ("r", "q")


def test_weights_are_ignored_when_asked():
    data = batch(8)
    expected = make().loss_value(data.clone())[0]
    data["priority_weight"] = torch.rand(8)
    torch.testing.assert_close(make(use_prioritized_weights=False).loss_value(data)[0], expected)


def test_a_gamma_under_next_that_differs_raises():
    data = batch(8)
    data["next", "gamma"], data["next", "steps_to_next_obs"] = torch.full((8, 1), 0.25), torch.full((8, 1), 2)
    with pytest.raises(BatchError, match=r"0\.5 .*0\.99"):
        make()(data)


@pytest.mark.parametrize("sign", [1, -1])
def test_target_actions_are_clamped_on_both_sides(sign):
    actor, critic = networks()
    actor.module[1] = nn.Identity()
    with torch.no_grad():
        actor.module[0][-1].bias += 50 * sign
    loss = DDPGLoss(actor, critic, bounds=(-1.0, 1.0))
    data = batch(8, terminated=0.0)
    inputs = data["next"].clone().set("action", torch.full((8, ACTION), float(sign)))
    expected = data["next", "reward"] + 0.99 * critic(inputs)["state_action_value"].detach()
    torch.testing.assert_close(loss.compute_target(data), expected)


@pytest.mark.filterwarnings("default")
def test_reading_the_parameters_does_not_warn():
    loss = DDPGLoss(*networks())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loss.target_actor_network_params is not None
        assert loss.target_value_network_params is not None


@pytest.mark.parametrize("options", [{}, {"delay_actor": False, "delay_value": False}], ids=str)
def test_targets_are_made_without_a_graph(options):
    loss, seen = make(**options), []
    loss.value_network.module.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    loss.compute_target(batch(8))
    assert seen == [False]


def test_a_mask_of_agents_keeps_a_sample_of_which_any_agent_counts():
    actor = TensorDictModule(nn.Linear(OBSERVATION, ACTION), in_keys=["observation"], out_keys=["action"])
    critic = networks()[1]
    loss = DDPGLoss(actor, critic)
    data = batch(6, 2, terminated=0.0, truncated=0.0)
    data.batch_size = [6]
    expected = loss(data.clone())["loss_value"]
    data["next", "observation"][0, 0] = float("nan")
    data["collector", "mask"] = torch.ones(6, 2, 1, dtype=torch.bool)
    data["collector", "mask"][0, 1] = False  # the other agent of sample 0 counts, and its input is NaN
    with pytest.raises(BatchError, match="not finite"):
        loss(data)
    assert expected.isfinite()


@pytest.mark.parametrize("how", ["name", "argument"])
def test_the_time_dimension_may_come_first(how):
    data = batch(4, 6)
    arguments = {} if how == "name" else {"time_dim": 0}
    expected = make().make_value_estimator("td_lambda", gamma=0.9).compute_target(data)
    turned = data.transpose(0, 1).contiguous()
    if how == "name":
        turned.names = ["time", None]
    loss = make().make_value_estimator(TDLambdaEstimator, gamma=0.9, lmbda=0.95, value_network=None, **arguments)
    torch.testing.assert_close(loss.compute_target(turned).transpose(0, 1), expected)


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
@pytest.mark.parametrize("where", ["module", "sequence"])
def test_hooks_of_tensordict_modules_run(kind, where):
    from tensordict.nn import TensorDictSequential

    actor, critic = networks()
    actor, calls = TensorDictSequential(actor) if where == "sequence" else actor, []
    loss = DDPGLoss(actor, critic)
    getattr(actor, f"register_{kind}_hook")(lambda *args: calls.append(len(args)))
    loss.loss_actor(batch(8))
    assert len(calls) == 1


@pytest.mark.parametrize("form", ["dict in_keys", "method", "method_kwargs"])
def test_every_form_of_tensordict_module_runs_as_itself(form):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(OBSERVATION, ACTION)

        def forward(self, source=None, *, observation=None, scale=1.0):
            return self.net(source) * scale if observation is None else self.net(observation) * scale + 2

        def other(self, observation, scale=1.0):
            return self.net(observation) * scale + 1

    options = {
        "dict in_keys": {"in_keys": {"observation": "observation"}, "out_to_in_map": True},
        "method": {"in_keys": ["observation"], "method": "other"},
        "method_kwargs": {"in_keys": ["observation"], "method": "other", "method_kwargs": {"scale": 3.0}},
    }[form]
    results = []
    for library in (DDPGLoss, torchrl.objectives.DDPGLoss):
        torch.manual_seed(0)
        actor = TensorDictModule(Two(), out_keys=["action"], **options)
        results.append(library(actor, networks()[1], delay_actor=True).loss_actor(batch(8))[0])
    torch.testing.assert_close(*results)


def test_two_automatic_masks_are_combined():
    data = batch(8)
    data["collector", "mask"], data["shifted_valid"] = torch.arange(8) < 6, torch.arange(8) > 1
    loss = make()
    torch.testing.assert_close(loss(data)["loss_value"], loss(batch(8)[2:6])["loss_value"])


def test_nan_weights_of_masked_samples_are_selected_away():
    data = batch(8)
    data["priority_weight"] = torch.ones(8)
    data["priority_weight"][0] = float("nan")
    data["collector", "mask"] = torch.arange(8) > 0
    assert make()(data)["loss_value"].isfinite()


def test_reset_of_parameters_is_kept_by_copies():
    loss = make()
    loss.reset_parameters_recursive()
    copied = copy.deepcopy(loss)
    targets, sources = copied.target_pairs("parameters")
    torch.testing.assert_close(targets, [source.detach() for source in sources])


def test_targets_of_networks_that_are_called_through_vmap_move():
    torch.manual_seed(0)
    options = {"n_agents": 2, "centralized": False, "share_params": False, "num_cells": [8]}
    actor = TensorDictModule(MultiAgentMLP(OBSERVATION, ACTION, **options), ["observation"], ["action"])

    class Q(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MultiAgentMLP(OBSERVATION + ACTION, 1, **options)

        def forward(self, observation, action):
            return self.net(torch.cat([observation, action], -1))

    critic = TensorDictModule(Q(), ["observation", "action"], ["state_action_value"])
    data = batch(8, 2, terminated=0.0)
    data.batch_size = [8]
    data["next"].batch_size = [8]
    loss, theirs = (cls(actor, critic, delay_actor=True) for cls in (DDPGLoss, torchrl.objectives.DDPGLoss))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(loss.loss_value(data.clone())[0], theirs.loss_value(data.clone())[0])
    before = loss.compute_target(data)
    for target in loss.target_pairs("parameters")[0]:
        target.data += 0.1
    assert not torch.allclose(loss.compute_target(data), before)


def test_bounds_clamp_the_action_and_not_what_else_the_actor_writes():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(OBSERVATION, 4)

        def forward(self, observation):
            hidden = self.net(observation) * 100
            return hidden, hidden[..., :ACTION]

    class Q(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4 + ACTION, 1)

        def forward(self, hidden, action):
            seen.append((hidden.abs().max().item(), action.abs().max().item()))
            return self.net(torch.cat([hidden, action], -1))

    seen = []
    actor = TensorDictModule(TwoHeads(), ["observation"], ["hidden", "action"])
    critic = TensorDictModule(Q(), ["hidden", "action"], ["state_action_value"])
    DDPGLoss(actor, critic, bounds=(-1.0, 1.0)).compute_target(batch(8))
    hidden, action = seen[0]
    assert hidden > 1
    assert action == 1


def test_a_subclass_of_tensordictmodule_writes_in_its_own_way():
    class Clamped(TensorDictModule):
        def _write_to_tensordict(self, tensordict, tensors, *args, **kwargs):
            tensors = tuple(tensor.clamp(-0.05, 0.05) for tensor in tensors)
            return super()._write_to_tensordict(tensordict, tensors, *args, **kwargs)

    actor, critic = networks()
    clamped = Clamped(actor.module, ["observation"], ["action"])
    ours, theirs = DDPGLoss(clamped, critic), torchrl.objectives.DDPGLoss(clamped, critic)
    torch.testing.assert_close(ours.loss_actor(batch(8))[0], theirs.loss_actor(batch(8))[0])


@pytest.mark.parametrize("estimator", ["td1", "td_lambda"])
def test_returns_do_not_reach_into_padding(estimator):
    loss = make().make_value_estimator(estimator, on_unordered="raise")
    data = batch(2, 8, terminated=0.0, truncated=0.0)
    expected = loss.compute_target(data[:, :5])
    data["collector", "mask"] = torch.arange(8).expand(2, 8).unsqueeze(-1) < 5
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key][:, 5:] = data[key][:, 4:5]
    torch.testing.assert_close(loss.compute_target(data)[:, :5], expected)


def test_shared_batch_statistics_are_saved_after_a_move():
    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))
    loss = DDPGLoss(*networks(encoder=encoder))
    loss.to(torch.float64)
    loss(batch(8, dtype=torch.float64))
    statistics = loss.actor_network.module[0][1]
    for name in ("actor_network_params.module.0.1", "value_network_params.module.encoder.1"):
        torch.testing.assert_close(loss.state_dict()[f"{name}.running_mean"], statistics.running_mean)


def test_buffers_that_a_module_assigns_anew_are_saved_and_loaded():
    class Normaliser(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(OBSERVATION))

        def forward(self, observation):
            self.mean = self.mean + 1
            return observation - self.mean

    normaliser = Normaliser()
    loss = DDPGLoss(*networks(encoder=normaliser, encoder_width=OBSERVATION))
    loss(batch(8))
    saved = {key: value.clone() for key, value in loss.state_dict().items()}
    assert (saved["actor_network_params.module.0.mean"] > 0).all()
    loss(batch(8))
    loss.load_state_dict(saved)
    torch.testing.assert_close(normaliser.mean, saved["actor_network_params.module.0.mean"])


def test_a_replaced_submodule_is_worded():
    loss = make()
    loss.actor_network.module[0] = nn.Linear(OBSERVATION, ACTION)
    with pytest.raises(RuntimeError, match=r"DDPGLoss: .*actor_network was replaced after the loss was built"):
        loss(batch(8))


@pytest.mark.parametrize("key", ["observation", ("next", "observation")], ids=str)
def test_a_refused_batch_leaves_batch_statistics_alone(key):
    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))
    loss = DDPGLoss(*networks(encoder=encoder))
    data = batch(8, terminated=0.0)
    data[key][3] = float("nan")
    for call in (loss, loss.loss_value):
        with pytest.raises(BatchError, match="observation"):
            call(data)
    assert all(leaf.isfinite().all() for leaf in [*loss.state_dict().values(), *encoder.buffers()])


class LateStatistics(nn.Module):
    """Batch statistics that begin when they are told to, and leave their versions as they were."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(OBSERVATION))
        self.register_buffer("variance", torch.ones(OBSERVATION))
        self.on = False

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.variance, training=self.on)


@pytest.mark.parametrize("key", ["observation", ("next", "observation")], ids=str)
def test_statistics_that_begin_later_are_left_alone_too(key):
    encoder = LateStatistics()
    loss = DDPGLoss(*networks(encoder=encoder, encoder_width=OBSERVATION))
    bad = batch(8, terminated=0.0)
    bad[key][3] = float("inf")
    for on in (False, True):
        encoder.on = on
        loss(batch(8))
        with pytest.raises(BatchError, match="observation"):
            loss(bad)
    assert encoder.mean.isfinite().all()
    assert encoder.variance.isfinite().all()


def test_numbers_whose_sum_overflows_are_finite():
    encoder = nn.BatchNorm1d(OBSERVATION, dtype=torch.float64)
    loss = DDPGLoss(*networks(encoder=encoder, encoder_width=OBSERVATION)).double()
    data = batch(8, dtype=torch.float64)
    data["observation"] = torch.full_like(data["observation"], 1e308)
    data["observation"][0] = 0
    with pytest.raises(BatchError, match="loss_value is not finite although every entry of the batch is"):
        loss(data)


@pytest.mark.parametrize("how", ["none", "deleted"])
def test_a_buffer_may_be_switched_off(how):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x):
            scale = getattr(self, "scale", None)
            return x if scale is None else scale * x

    encoder = Scaled()
    loss = DDPGLoss(*networks(encoder=encoder, encoder_width=OBSERVATION))
    if how == "none":
        encoder.scale = None
    else:
        del encoder.scale
    assert loss(batch(8))["loss_value"].isfinite()


def test_ragged_parts_of_an_observation():
    class Summed(nn.Module):
        def __init__(self, action):
            super().__init__()
            self.layer = nn.Linear(1 + action, 1 if action else ACTION)

        def forward(self, observation, *action):
            sums = torch.stack([part["a"].sum(-1) for part in observation.unbind(0)])
            return self.layer(torch.cat([sums, *action], -1))

    actor = TensorDictModule(Summed(0), in_keys=["observation"], out_keys=["action"])
    loss = DDPGLoss(actor, ValueOperator(Summed(ACTION), in_keys=["observation", "action"]))
    data = batch(4)
    for key in ("observation", ("next", "observation")):
        parts = [TensorDict({"a": torch.randn(1, 1 + index % 2)}, []) for index in range(4)]
        data[key] = lazy_stack(parts)
    assert loss(data)["loss_value"].isfinite()


def test_a_target_that_is_set_is_the_one_that_runs():
    loss = make()
    before = loss.compute_target(batch(8))
    loss.target_value_network_params["module", "net", "2", "bias"] = nn.Buffer(torch.full((1,), 5.0))
    assert not torch.allclose(loss.compute_target(batch(8)), before)


def test_targets_that_changed_places_have_moved():
    loss = DDPGLoss(*networks())
    target = loss.target_pairs("parameters")[0][0]
    target.data.copy_(target.data.flip(0))
    assert not loss.targets_are_initial()


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3)], ids=str)
def test_empty_batches_of_every_estimator(shape):
    for estimator in ("td0", "td1", "td_lambda"):
        assert make().make_value_estimator(estimator)(batch(*shape))["loss_value"] == 0


def test_an_estimator_that_cannot_work_is_worded():
    loss = make().make_value_estimator(GAE, gamma=0.9, lmbda=0.9)
    with pytest.raises(BatchError, match=r"DDPGLoss: GAE raised .* in value_estimate"):
        loss(batch(2, 4))

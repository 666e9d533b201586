"""What goes silently wrong in TorchRL's DDPG family, and does not here.

Each test runs against both libraries. Against TorchRL it must fail (a strict xfail), so a test that the old behaviour
would pass is itself reported as a failure, as is a trap that a new TorchRL release has closed.
"""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
import torchrl.objectives
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import LSTMModule, ValueOperator
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

import torchrl_ddpg
from helpers import ACTION, OBSERVATION, batch, gradients, networks

NAMES = ("DDPGLoss", "TD3Loss", "TD3BCLoss", "SoftUpdate", "HardUpdate")
OURS = SimpleNamespace(name="ours", **{name: getattr(torchrl_ddpg, name) for name in NAMES})
THEIRS = SimpleNamespace(name="torchrl", **{name: getattr(torchrl.objectives, name) for name in NAMES})
both = pytest.mark.parametrize(
    "lib",
    [OURS, pytest.param(THEIRS, marks=pytest.mark.xfail(strict=True, reason="the trap"))],
    ids=lambda lib: lib.name,
)
pytestmark = pytest.mark.filterwarnings("ignore:No target network updater", "ignore:.*No target network updater")


def losses(lib, *nets, **options):
    return lib.DDPGLoss(*(nets or networks()), **{"delay_actor": True, **options})


@both
def test_summing_all_outputs_trains_on_the_losses_alone(lib):
    loss = losses(lib)
    outputs = loss(batch(8))
    expected = gradients(outputs["loss_actor"] + outputs["loss_value"], loss.parameters())
    actual = gradients(sum(value.sum() for value in loss(batch(8)).values()), loss.parameters())
    torch.testing.assert_close(actual, expected)


@both
def test_q_converges_to_one_whichever_way_outputs_are_summed(lib):
    loss = losses(lib)
    updater = lib.SoftUpdate(loss, tau=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    data = batch(32, terminated=1.0)
    data["next", "reward"] = torch.ones(32, 1)
    for _ in range(400):
        optimizer.zero_grad()
        loss(data).sum(reduce=True).backward()
        optimizer.step()
        updater.step()
    loss.value_network(data)
    assert data["state_action_value"].mean().item() == pytest.approx(1.0, abs=1e-3)


@both
def test_networks_are_whole_after_an_exception(lib):
    actor, critic = networks()
    loss = losses(lib, actor, critic)
    mine = [*actor.parameters(), *critic.parameters()]
    for key in (("next", "reward"), ("next", "observation"), "action", "observation"):
        with pytest.raises(Exception):  # noqa: B017, PT011
            loss(batch(8).exclude(key))
        assert [id(p) for p in [*actor.parameters(), *critic.parameters()]] == [id(p) for p in mine]
    critic(actor(batch(8)))


@both
def test_keyboard_interrupt_comes_through(lib):
    class Interrupted(nn.Module):
        def forward(self, observation):
            raise KeyboardInterrupt

    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), Interrupted())
    loss = losses(lib, *networks(encoder=encoder))
    for call in (loss, loss.loss_value, loss.loss_actor):
        with pytest.raises(KeyboardInterrupt):
            call(batch(8))


@both
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_flags_are_flags(lib, dtype):
    loss = losses(lib)
    expected = loss.loss_value(batch(8))[0]
    data = batch(8)
    for key in ("done", "terminated"):
        data["next", key] = data["next", key].to(dtype)
    torch.testing.assert_close(loss.loss_value(data)[0], expected)


@both
def test_building_an_updater_keeps_loaded_targets(lib):
    trained = losses(lib)
    for buffer in trained.buffers():
        buffer.data += 1
    checkpoint = {key: value.clone() for key, value in trained.state_dict().items()}
    loss = losses(lib, *networks(seed=3))
    loss.load_state_dict(checkpoint)
    lib.SoftUpdate(loss, tau=0.1)
    targets = {key: value for key, value in loss.state_dict().items() if key.startswith("target_")}
    assert targets
    torch.testing.assert_close(targets, {key: checkpoint[key] for key in targets})


@both
def test_building_an_updater_keeps_moved_targets(lib):
    loss = losses(lib)
    for buffer in loss.buffers():
        buffer.data += 1
    before = [buffer.clone() for buffer in loss.buffers()]
    lib.HardUpdate(loss, value_network_update_interval=3)
    torch.testing.assert_close(list(loss.buffers()), before)


def test_an_updater_copies_into_initial_targets_and_when_asked():
    actor, critic = networks()
    loss = losses(OURS, actor, critic)
    actor.load_state_dict({key: value + 1 for key, value in actor.state_dict().items()})
    updater = OURS.SoftUpdate(loss, tau=0.1)
    targets, sources = loss.target_pairs("parameters")
    torch.testing.assert_close(targets, [source.detach() for source in sources])
    targets[0].data += 5
    updater.init_()
    torch.testing.assert_close(targets, [source.detach() for source in sources])


@both
def test_loading_keeps_the_configured_gamma(lib):
    loss, other = losses(lib), losses(lib)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    other.make_value_estimator(ValueEstimators.TD0, gamma=0.5)
    other.load_state_dict(loss.state_dict())
    assert float(other.value_estimator.gamma) == 0.5


@both
def test_state_dict_does_not_depend_on_a_forward(lib):
    loss = losses(lib)
    before = list(loss.state_dict())
    loss(batch(8))
    assert list(loss.state_dict()) == before


@both
@pytest.mark.parametrize("value_type", [ValueEstimators.TD1, ValueEstimators.TDLambda])
@pytest.mark.parametrize("shape", [(16,), (4, 4)])
def test_chaining_unrelated_transitions_is_warned_about_once(lib, value_type, shape):
    loss = losses(lib)
    loss.make_value_estimator(value_type, gamma=0.9)
    with pytest.warns(UserWarning, match=r"chains the steps of a trajectory.*'observation'"):
        loss(batch(*shape, in_order=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(batch(*shape, in_order=False, seed=1))


def test_chaining_unrelated_transitions_can_be_an_error():
    loss = losses(OURS).make_value_estimator("td_lambda", on_unordered="raise")
    loss(batch(4, 4))
    for _ in range(2):
        with pytest.raises(torchrl_ddpg.BatchError, match="chains the steps"):
            loss(batch(4, 4, in_order=False))


def test_trajectories_in_time_order_are_not_warned_about():
    for value_type in ("td1", "td_lambda"):
        loss = losses(OURS).make_value_estimator(value_type)
        loss(batch(4, 6))
        flat = batch(1, 24).reshape(-1)
        flat["next", "done"][-1] = True
        loss(flat)


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("value_type", [ValueEstimators.TD0, ValueEstimators.TDLambda])
def test_what_lies_past_a_terminal_state_is_selected_away(lib, value, value_type):
    loss = losses(lib)
    loss.make_value_estimator(value_type, gamma=0.9)
    data = batch(4, 6, terminated=0.5)
    expected = loss(data)
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = value
    outputs = loss(data)
    torch.testing.assert_close(outputs["loss_value"], expected["loss_value"])
    (outputs["loss_value"] + outputs["loss_actor"]).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_nan_past_a_terminal_state_does_not_reach_batch_statistics():
    loss = losses(OURS, *networks(encoder=nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))))
    data = batch(16, terminated=0.5)
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = float("nan")
    assert loss(data)["loss_value"].isfinite()
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


def test_nan_in_masked_samples_does_not_reach_gradients():
    data = batch(4, 5)
    data["collector", "mask"] = torch.ones(4, 5, 1, dtype=torch.bool)
    data["collector", "mask"][:, 3:] = False
    for value_type in ("td0", "td_lambda"):
        loss = losses(OURS).make_value_estimator(value_type)
        data["next", "done"][:, 2] = True
        for key in ("observation", ("next", "observation"), ("next", "reward"), "action"):
            data[key][:, 3:] = float("nan")
        outputs = loss(data)
        (outputs["loss_value"] + outputs["loss_actor"]).backward()
        assert all(p.grad.isfinite().all() for p in loss.parameters())


@both
@pytest.mark.parametrize("how", ["data", "vector_to_parameters"])
def test_the_actor_term_sees_the_live_critic(lib, how):
    loss, fresh = losses(lib), losses(lib)
    loss(batch(8))
    for module in (loss.value_network, fresh.value_network):
        parameters = (
            list(module.parameters()) if module is fresh.value_network else list(loss.value_network_params.parameters())
        )
        if how == "data":
            for parameter in parameters:
                parameter.data = parameter.data + 0.5
        else:
            vector = nn.utils.parameters_to_vector(parameters) + 0.5
            nn.utils.vector_to_parameters(vector.detach(), parameters)
    torch.testing.assert_close(loss.loss_actor(batch(8))[0], fresh.loss_actor(batch(8))[0])


@both
def test_targets_of_batch_statistics_follow(lib):
    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))
    loss = losses(lib, *networks(encoder=encoder))
    updater = lib.SoftUpdate(loss, tau=0.5)
    with torch.no_grad():
        encoder[1].running_mean.add_(3.0)
    updater.step()
    mean = dict(loss.named_buffers())["target_actor_network_params.module.0.1.running_mean"]
    torch.testing.assert_close(mean, torch.full((4,), 3.0))


@both
def test_targets_of_parameters_that_were_frozen_at_construction_follow(lib):
    actor, critic = networks()
    for parameter in actor.parameters():
        parameter.requires_grad_(False)
    loss = losses(lib, actor, critic)
    updater = lib.SoftUpdate(loss, tau=1.0) if lib is OURS else lib.SoftUpdate(loss, eps=0.0)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.requires_grad_(True)
            parameter += 1
    updater.step()
    target = dict(loss.named_buffers())["target_actor_network_params.module.0.0.weight"]
    torch.testing.assert_close(target, actor.module[0][0].weight.detach())


def recurrent_networks():
    torch.manual_seed(0)
    lstm = LSTMModule(input_size=OBSERVATION, hidden_size=4, in_key="observation", out_key="embedding")
    head = TensorDictModule(nn.Linear(4, ACTION), in_keys=["embedding"], out_keys=["action"])
    return TensorDictSequential(lstm, head), networks()[1]


@both
def test_a_recurrent_actor_does_not_leak_one_episode_into_the_next_ones_targets(lib):
    loss = losses(lib, *recurrent_networks())
    data = batch(1, 6, terminated=0.0, truncated=0.0)
    data["next", "done"][0, 2] = data["next", "terminated"][0, 2] = True
    data["is_init"] = torch.zeros(1, 6, 1, dtype=torch.bool)
    data["is_init"][0, [0, 3]] = True
    data["next", "is_init"] = torch.zeros(1, 6, 1, dtype=torch.bool)
    for root in (data, data["next"]):
        for name in ("recurrent_state_h", "recurrent_state_c"):
            root[name] = torch.zeros(1, 6, 1, 4)

    def second_episode(first_observation):
        changed = data.clone()
        changed["observation"][:, :3] = changed["next", "observation"][:, :3] = first_observation
        changed["action"][:, :3] = 0.0
        loss.reduction = "none"
        return loss(changed)["loss_value"][:, 3:]

    torch.testing.assert_close(second_episode(0.0), second_episode(5.0))


@both
def test_a_term_called_alone_runs_in_deterministic_mode(lib):
    seen = []

    class Probe(nn.Module):
        def forward(self, observation):
            seen.append(exploration_type())
            return observation

    loss = losses(lib, *networks(encoder=Probe(), encoder_width=OBSERVATION))
    with set_exploration_type(ExplorationType.RANDOM):
        loss.loss_actor(batch(8))
        loss.loss_value(batch(8))
    assert set(seen) == {ExplorationType.DETERMINISTIC}


@both
@pytest.mark.parametrize("interval", [1, 2, 5])
def test_hard_update_copies_every_interval_calls(lib, interval):
    loss = losses(lib)
    updater = lib.HardUpdate(loss, value_network_update_interval=interval)
    copied = []
    for _ in range(3 * interval):
        for parameter in loss.parameters():
            parameter.data += 1
        updater.step()
        source = next(loss.actor_network.parameters())
        target = dict(loss.named_buffers())["target_actor_network_params.module.0.0.weight"]
        copied.append(torch.equal(source.data, target))
    assert copied == ([False] * (interval - 1) + [True]) * 3


@both
@pytest.mark.parametrize("interval", [0, -1, 1.5, True, "3"])
def test_hard_update_refuses_what_is_no_positive_integer(lib, interval):
    with pytest.raises((TypeError, ValueError), match="value_network_update_interval"):
        lib.HardUpdate(losses(lib), value_network_update_interval=interval)


@both
def test_a_copied_updater_moves_the_copied_loss(lib):
    loss = losses(lib)
    updater = lib.SoftUpdate(loss, tau=0.5)
    other, other_updater = copy.deepcopy((loss, updater))
    before = {key: value.clone() for key, value in loss.named_buffers()}
    for parameter in other.parameters():
        parameter.data += 1
    other_updater.step()
    torch.testing.assert_close(dict(loss.named_buffers()), before)
    for key, value in other.named_buffers():
        if key.startswith("target_"):
            torch.testing.assert_close(value, before[key] + 0.5)


@both
def test_td_lambda_under_bf16_autocast_is_float32(lib):
    loss = losses(lib)
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=1.0)
    data = batch(2, 200, terminated=0.0, truncated=0.0)
    data["next", "reward"] = torch.full((2, 200, 1), 8.0)
    exact = loss.loss_value(data)[1]["target_value"].max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = loss.loss_value(data)[1]["target_value"].max()
    assert abs(target - exact) < 0.05


@both
def test_the_critic_may_read_what_only_the_root_holds(lib):
    loss = losses(lib, *networks(goal="goal"))
    data = batch(8)
    data["goal"] = torch.randn(8, 2)
    target = loss(data)["target_value"].mean()
    data["next", "goal"] = data["goal"]
    torch.testing.assert_close(loss(data)["target_value"].mean(), target)
    data["next", "goal"] = data["goal"] + 1
    assert not torch.isclose(loss(data)["target_value"].mean(), target)


@both
def test_selected_out_keys_can_be_computed(lib):
    loss = losses(lib)
    loss.select_out_keys("loss_actor", "loss_value")
    assert set(loss(batch(8)).keys()) == {"loss_actor", "loss_value"}


@both
@pytest.mark.parametrize("name", ["reward", "done", "terminated", "state_action_value"])
def test_a_wrong_key_name_is_worded(lib, name):
    loss = losses(lib)
    loss.set_keys(**{name: f"{name}x"})
    with pytest.raises((KeyError, ValueError), match=rf"DDPGLoss: .*{name}x"):
        loss(batch(8))


def test_a_missing_entry_names_the_close_ones():
    data = batch(8)
    data["next", "rewards"] = data["next"].pop("reward")
    message = r"DDPGLoss: .*\('next', 'reward'\).*set_keys\(reward='reward'\).*Close names.*\('next', 'rewards'\)"
    with pytest.raises(torchrl_ddpg.MissingKeyError, match=message):
        losses(OURS)(data)


@both
def test_a_reward_of_another_shape_is_worded_with_both_names(lib):
    data = batch(8)
    data["next", "reward"] = data["next", "reward"].squeeze(-1)
    with pytest.raises(ValueError, match=r"reward.*\[8\]"):
        losses(lib)(data)


@both
def test_the_value_estimator_may_be_made_before_keys_are_set(lib):
    loss = lib.DDPGLoss(*networks(value="q"))
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    loss.set_keys(state_action_value="q", reward="r")
    loss(batch(8, keys={"reward": "r"}))


@both
def test_make_value_estimator_returns_the_loss(lib):
    loss = losses(lib)
    assert loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9) is loss


@both
@pytest.mark.parametrize("kind", ["class", "instance"])
def test_a_users_estimator_gets_the_keys(lib, kind):
    class Doubled(TD0Estimator):
        def value_estimate(self, tensordict, target_params=None, next_value=None, **kwargs):
            return 2 * tensordict.get(("next", self.tensor_keys.reward))

    loss = losses(lib)
    loss.set_keys(reward="r")
    made = Doubled if kind == "class" else Doubled(gamma=0.9, value_network=None)
    loss.make_value_estimator(made, **({"gamma": 0.9, "value_network": None} if kind == "class" else {}))
    data = batch(8, keys={"reward": "r"})
    target = loss.loss_value(data)[1]["target_value"]
    torch.testing.assert_close(target.mean(), 2 * data["next", "r"].mean())


@both
def test_a_batch_of_the_in_keys_alone_is_enough(lib):
    loss = losses(lib)
    data = batch(8)
    torch.testing.assert_close(loss(data.select(*loss.in_keys))["loss_value"], loss(data)["loss_value"])


@both
def test_priority_is_the_absolute_error(lib):
    loss = losses(lib, loss_function="l1", reduction="none")
    data = batch(8)
    value, _ = loss.loss_value(data)
    torch.testing.assert_close(data["td_error"], value.detach())


def test_priority_can_be_the_squared_error():
    data = batch(8)
    value, _ = losses(OURS, priority="squared", reduction="none").loss_value(data)
    torch.testing.assert_close(data["td_error"], value.detach())


@both
def test_weights_of_a_tenth_move_a_tenth_as_far(lib):
    loss = losses(lib)
    expected = loss.loss_value(batch(8))[0]
    data = batch(8)
    data["priority_weight"] = torch.full((8,), 0.1)
    torch.testing.assert_close(loss.loss_value(data)[0], 0.1 * expected)


@both
def test_weights_of_zero_are_no_nan(lib):
    data = batch(8)
    data["priority_weight"] = torch.zeros(8)
    assert losses(lib).loss_value(data)[0] == 0


@both
def test_weights_do_not_weigh_the_actor(lib):
    loss = losses(lib)
    expected = loss.loss_actor(batch(8))[0]
    data = batch(8)
    data["priority_weight"] = torch.arange(8.0)
    torch.testing.assert_close(loss.loss_actor(data)[0], expected)


@both
@pytest.mark.parametrize("form", ["nested", "column"])
def test_weights_may_be_nested_or_a_column(lib, form):
    loss = losses(lib, reduction="sum")
    data = batch(8)
    data["priority_weight"] = torch.rand(8)
    expected = loss.loss_value(data)[0]
    weight = data.pop("priority_weight")
    if form == "nested":
        loss.set_keys(priority_weight=("info", "weight"))
        data["info", "weight"] = weight
    else:
        data["priority_weight"] = weight.unsqueeze(-1)
    torch.testing.assert_close(loss.loss_value(data)[0], expected)


def test_the_actor_is_weighed_when_asked():
    data = batch(8)
    data["priority_weight"] = torch.full((8,), 0.5)
    expected = losses(OURS).loss_actor(data)[0]
    torch.testing.assert_close(losses(OURS, weigh_actor=True).loss_actor(data)[0], 0.5 * expected)


@both
@pytest.mark.parametrize("with_steps", [False, True])
def test_agents_share_done_and_steps(lib, with_steps):
    torch.manual_seed(0)
    actor = TensorDictModule(nn.Linear(OBSERVATION, ACTION), in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(
        TensorDictModule(
            lambda o, a: o.sum(-1, keepdim=True) + a.sum(-1, keepdim=True),
            in_keys=["observation", "action"],
            out_keys=["state_action_value"],
        ).module,
        in_keys=["observation", "action"],
    )
    critic.scale = nn.Parameter(torch.ones(()))
    loss = losses(lib, actor, critic)
    data = TensorDict(
        {
            "observation": torch.randn(8, 2, OBSERVATION),
            "action": torch.randn(8, 2, ACTION),
            "next": {
                "observation": torch.randn(8, 2, OBSERVATION),
                "reward": torch.randn(8, 2, 1),
                "done": torch.zeros(8, 1, dtype=torch.bool),
                "terminated": torch.rand(8, 1) < 0.5,
            },
        },
        [8],
    )
    expanded = data.clone()
    for key in ("done", "terminated"):
        expanded["next", key] = data["next", key].unsqueeze(-1).expand(8, 2, 1)
    if with_steps:
        data["steps_to_next_obs"] = torch.randint(1, 4, (8, 1))
        expanded["steps_to_next_obs"] = data["steps_to_next_obs"].unsqueeze(-1).expand(8, 2, 1)
    torch.testing.assert_close(loss.loss_value(data)[1]["target_value"], loss.loss_value(expanded)[1]["target_value"])


@both
def test_steps_of_an_n_step_reward_are_read_under_next_too(lib):
    loss = losses(lib)
    data = batch(8)
    data["steps_to_next_obs"] = torch.randint(1, 4, (8, 1))
    expected = loss.loss_value(data)[0]
    data["next", "steps_to_next_obs"] = data.pop("steps_to_next_obs")
    torch.testing.assert_close(loss.loss_value(data)[0], expected)


@both
def test_the_key_of_the_steps_can_be_set(lib):
    loss = losses(lib)
    data = batch(8)
    data["steps_to_next_obs"] = torch.randint(1, 4, (8, 1))
    expected = loss.loss_value(data)[0]
    loss.set_keys(steps_to_next_obs="n")
    data["n"] = data.pop("steps_to_next_obs")
    torch.testing.assert_close(loss.loss_value(data)[0], expected)


@both
def test_a_buffers_gamma_that_differs_raises(lib):
    loss = losses(lib)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=0.99)
    data = batch(8)
    data["steps_to_next_obs"] = torch.full((8, 1), 3)
    data["gamma"] = torch.full((8,), 0.99**3)
    loss(data)
    data["gamma"] = torch.full((8, 1), 0.9**3)
    with pytest.raises(ValueError, match=r"0\.9 .*0\.99"):
        loss(data)


@both
@pytest.mark.parametrize("given", ["spec", "bounds"])
def test_the_target_action_stays_in_its_range(lib, given):
    actor, critic = networks()
    actor.module[1] = nn.Identity()
    with torch.no_grad():
        actor.module[0][-1].bias += 50
    low, high = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
    options = {"action_spec": Bounded(low, high, (ACTION,))} if given == "spec" else {"bounds": (low, high)}
    loss = losses(lib, actor, critic, **options)
    data = batch(8)
    clamped = batch(8)
    clamped["action"] = high.expand(8, ACTION)
    critic(clamped.set("observation", clamped["next", "observation"]))
    goes_on = ~data["next", "terminated"]
    expected = data["next", "reward"] + 0.99 * goes_on * clamped["state_action_value"].detach()
    torch.testing.assert_close(loss.compute_target(data), expected)


@both
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "avg"},
        {"loss_function": "huber"},
        {"use_prioritized_weights": "yes"},
        {"separate_losses": "no"},
        {"delay_value": 1},
    ],
    ids=str,
)
def test_a_wrong_option_is_found_at_construction(lib, options):
    (name, value) = next(iter(options.items()))
    with pytest.raises((TypeError, ValueError), match=rf"{value!r}; accepted"):
        losses(lib, **options)
    assert name


@both
@pytest.mark.parametrize(
    "hyperparams", [{"gamma": 99}, {"gamma": -0.1}, {"gamma": "0.9"}, {"gamma": float("nan")}], ids=str
)
def test_a_wrong_gamma_is_found_at_once(lib, hyperparams):
    with pytest.raises((TypeError, ValueError), match=r"gamma is .*accepted: a number in \[0, 1\]"):
        losses(lib).make_value_estimator(ValueEstimators.TD0, **hyperparams)


@both
@pytest.mark.parametrize("tau", [-0.1, 0, 1.5, "0.1", float("nan")])
def test_a_wrong_tau_is_worded(lib, tau):
    with pytest.raises((TypeError, ValueError), match=r"tau is .*accepted: a number in \(0, 1\]"):
        lib.SoftUpdate(losses(lib), tau=tau)


@both
@pytest.mark.parametrize("previous", ["shape", "dtype"])
def test_an_input_that_is_locked_and_holds_another_td_error_works(lib, previous):
    data = batch(8)
    data["td_error"] = torch.zeros(8, 3) if previous == "shape" else torch.zeros(8, dtype=torch.int64)
    data.lock_()
    losses(lib).loss_value(data)
    assert data["td_error"].shape == (8,)
    assert data["td_error"].dtype is torch.float32


@both
def test_lazy_networks_are_asked_for_data(lib):
    actor = TensorDictModule(nn.LazyLinear(ACTION), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(ValueError, match=r"actor_network has lazy layers.*[Rr]un it once"):
        losses(lib, actor, networks()[1])


@pytest.mark.filterwarnings("default")
@both
def test_a_missing_updater_is_warned_about_once(lib):
    loss = losses(lib)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(batch(8))
        loss(batch(8))
        loss.loss_value(batch(8))
    assert len([w for w in caught if "updater" in str(w.message)]) == 1


@pytest.mark.filterwarnings("default")
@both
def test_a_second_updater_is_warned_about(lib):
    loss = losses(lib)
    lib.SoftUpdate(loss, tau=0.1)
    with pytest.warns(UserWarning, match="already has a target updater"):
        lib.SoftUpdate(loss, tau=0.1)


@both
def test_eval_reaches_the_networks(lib):
    actor, critic = networks()
    loss = losses(lib, actor, critic)
    loss.eval()
    assert not any(module.training for net in (actor, critic) for module in net.modules())
    loss.train()
    assert all(module.training for net in (actor, critic) for module in net.modules())


def test_targets_run_in_the_mode_of_the_networks():
    loss = losses(OURS, *networks(encoder=nn.Sequential(nn.Linear(OBSERVATION, 4), nn.Dropout(0.5))))
    loss.eval()
    torch.testing.assert_close(loss.compute_target(batch(8)), loss.compute_target(batch(8)))
    loss.train()
    assert not torch.equal(loss.compute_target(batch(8)), loss.compute_target(batch(8)))


@both
def test_each_target_network_has_its_own_copy_of_a_shared_encoder(lib):
    loss = losses(lib, *networks(encoder="shared"))
    data = batch(8, terminated=0.0)
    before = loss.loss_value(data)[1]["target_value"].mean()
    targets = dict(loss.named_buffers())
    changed = []
    for name in ("actor_network_params.module.0.weight", "value_network_params.module.encoder.weight"):
        encoder = targets[f"target_{name}"]
        encoder.data += 1
        changed.append(not torch.isclose(loss.loss_value(data)[1]["target_value"].mean(), before))
        encoder.data -= 1
    assert changed == [True, True]


@both
@pytest.mark.parametrize("name", ["TD3Loss", "TD3BCLoss"])
def test_the_critic_that_is_passed_in_keeps_its_weights_and_trains(lib, name):
    actor, critic = networks()
    before = [p.clone() for p in critic.parameters()]
    loss = getattr(lib, name)(actor, critic, bounds=(-1.0, 1.0))
    torch.testing.assert_close(
        [
            p[0] if p.shape != b.shape else p
            for p, b in zip(list(loss.qvalue_network_params.parameters())[: len(before)], before, strict=True)
        ],
        before,
    )
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(batch(8))["loss_qvalue"].backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(critic.parameters(), before, strict=True))


@both
def test_the_critics_term_alone_writes_the_priority(lib):
    loss = lib.TD3Loss(*networks(), bounds=(-1.0, 1.0))
    data = batch(8)
    loss.value_loss(data)
    assert data["td_error"].shape == (8,)


@both
def test_smoothing_noise_scales_with_the_actions_range(lib):
    class FirstAction(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def reset_parameters(self):
            nn.init.constant_(self.scale, 1.0 + 1e-3)

        def forward(self, observation, action):
            return self.scale * action[..., :1]

    actor = TensorDictModule(nn.Linear(OBSERVATION, ACTION), in_keys=["observation"], out_keys=["action"])
    for parameter in actor.parameters():
        nn.init.zeros_(parameter)
    critic = ValueOperator(FirstAction(), in_keys=["observation", "action"])
    loss = lib.TD3Loss(actor, critic, bounds=(-10.0, 10.0), loss_function="l2")
    data = batch(2000, terminated=0.0)
    data["action"] = torch.zeros(2000, ACTION)
    data["next", "reward"] = torch.zeros(2000, 1)
    spread = (loss(data)["loss_qvalue"] / 2).sqrt() / 0.99
    assert 1.5 < spread < 2.5  # 0.2 of half the range of 20


@both
def test_the_imitation_term_is_per_sample_without_reduction(lib):
    loss = lib.TD3BCLoss(*networks(), bounds=(-1.0, 1.0), reduction="none")
    data = batch(8)
    first = loss(data.clone())["loss_actor"]
    changed = data.clone()
    changed["action"][7] += 1
    torch.testing.assert_close(loss(changed)["loss_actor"][:7], first[:7])


def test_hooks_on_a_wrapper_are_run():
    actor, critic = networks()
    sequence = TensorDictSequential(actor)
    calls = []
    sequence.register_forward_pre_hook(lambda *_: calls.append("sequence"))
    critic.register_forward_hook(lambda *_: calls.append("critic"))
    losses(OURS, sequence, critic).loss_actor(batch(8))
    assert calls == ["sequence", "critic"]


def test_warnings_point_at_the_users_line():
    loss = losses(OURS).make_value_estimator("td_lambda")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss(batch(4, 4, in_order=False))
        loss.loss_value(batch(4, 4))
        OURS.SoftUpdate(loss, tau=0.1)
        OURS.SoftUpdate(loss, eps=0.1)
    assert len(caught) == 4
    assert {warning.filename for warning in caught} == {__file__}


def test_a_new_estimator_checks_the_order_anew():
    loss = losses(OURS).make_value_estimator("td_lambda")
    with pytest.warns(UserWarning, match="chains the steps"):
        loss(batch(4, 4, in_order=False))
    loss.make_value_estimator("td_lambda", on_unordered="raise")
    with pytest.raises(torchrl_ddpg.BatchError, match="chains the steps"):
        loss(batch(4, 4, in_order=False))

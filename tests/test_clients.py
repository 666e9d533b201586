"""What code that uses TorchRL's losses expects of a drop-in: its trainers, and the ways in which people use a loss."""

import warnings

import pytest
import torch
import torchrl.objectives
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer
from torchrl.envs import CatTensors, Compose, PendulumEnv, RewardSum, StepCounter, TransformedEnv, UnsqueezeTransform
from torchrl.modules import MLP, MultiAgentMLP, TanhModule, ValueOperator
from torchrl.record.loggers import CSVLogger
from torchrl.trainers.algorithms import DDPGTrainer, TD3Trainer

import torchrl_ddpg
from helpers import LOSSES, OBSERVATION, batch, make, networks
from torchrl_ddpg import DDPGLoss, TD3BCLoss, TD3Loss

pytestmark = pytest.mark.filterwarnings("ignore")  # TorchRL's trainers and losses warn about themselves


def pendulum():
    parts = ["th", "thdot"]
    unsqueeze = UnsqueezeTransform(dim=-1, in_keys=parts, in_keys_inv=parts)
    returns = RewardSum(in_keys=["reward"], out_keys=["reward_sum"])
    transforms = Compose(unsqueeze, CatTensors(parts, "observation", del_keys=False), StepCounter(50), returns)
    return TransformedEnv(PendulumEnv(), transforms)


@pytest.mark.parametrize("logging", [False, True], ids=["silent", "logging"])
@pytest.mark.parametrize("prioritized", [False, True], ids=["uniform", "prioritised"])
@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_trainers_of_torchrl_train(name, prioritized, logging, tmp_path):
    if prioritized:
        pytest.importorskip("torchrl._torchrl")
    torch.manual_seed(0)
    env = pendulum()
    net = TensorDictModule(MLP(2, 1, num_cells=[16]), in_keys=["observation"], out_keys=["param"])
    actor = TensorDictSequential(
        net, TanhModule(in_keys=["param"], out_keys=["action"], spec=env.action_spec_unbatched)
    )
    critic = ValueOperator(MLP(3, 1, num_cells=[16]), in_keys=["observation", "action"])
    storage, options = LazyTensorStorage(500), {"alpha": 0.7, "beta": 0.5} if prioritized else {}
    buffer = TensorDictPrioritizedReplayBuffer if prioritized else TensorDictReplayBuffer
    if name == "ddpg":
        loss, trainer = DDPGLoss(actor, critic), DDPGTrainer
        optimizers = {"optimizer": torch.optim.Adam(loss.parameters(), lr=1e-3)}
    else:
        loss, trainer = TD3Loss(actor, critic, action_spec=env.action_spec_unbatched), TD3Trainer
        params = {"actor": loss.actor_network_params, "critic": loss.qvalue_network_params}
        optimizers = {
            f"optimizer_{key}": torch.optim.Adam(value.parameters(), lr=1e-3) for key, value in params.items()
        }
        from torchrl.trainers.algorithms.td3 import TD3OptimizationStepper

        optimizers = {"optimization_stepper": TD3OptimizationStepper(**optimizers)}
    before = [p.clone() for p in loss.parameters()]
    trainer(
        collector=Collector(env, actor, frames_per_batch=50, total_frames=200),
        total_frames=200,
        frame_skip=1,
        optim_steps_per_batch=4,
        loss_module=loss,
        replay_buffer=buffer(storage=storage, batch_size=32, priority_key="td_error", **options),
        target_net_updater=torchrl.objectives.SoftUpdate(loss, tau=0.05),
        logger=CSVLogger("run", log_dir=str(tmp_path)) if logging else None,
        enable_logging=logging,
        log_interval=50,
        progress_bar=False,
        **optimizers,
    ).train()
    assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(loss.parameters(), before, strict=True))
    if logging:
        assert list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("name", ["TD3Loss", "TD3BCLoss"])
def test_metadata_of_the_critics_term_has_each_critics_error(name):
    loss = make(getattr(torchrl_ddpg, name))
    data = batch(8)
    td_error = loss.value_loss(data)[1]["td_error"]
    assert td_error.shape == (2, 8)
    torch.testing.assert_close(td_error.max(0)[0], data["td_error"])
    assert "td_error" not in loss(batch(8)).keys()  # noqa: SIM118


@pytest.mark.parametrize("name", ["DDPGLoss", "TD3Loss", "TD3BCLoss"])
def test_checkpoints_go_both_ways(name):
    options = {} if name == "DDPGLoss" else {"bounds": (-1.0, 1.0)}
    critic_name = "value_network" if name == "DDPGLoss" else "qvalue_network"

    def losses(library, seed):
        return getattr(library, name)(*networks(seed), delay_actor=True, **options)

    ours, theirs = losses(torchrl_ddpg, 0), losses(torchrl.objectives, 5)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(dict(theirs.state_dict()), dict(ours.state_dict()))
    other = losses(torchrl_ddpg, 7)
    other.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(other.state_dict(), ours.state_dict())
    assert dict(ours.state_dict())[f"{critic_name}_params.module.net.0.weight"].ndim == 2 + (name != "DDPGLoss")


class Recurrent(TensorDictModuleBase):
    """Starts from zeros if it gets no hidden state, as TorchRL's GRUModule and BenchMARL's do."""

    in_keys, out_keys = ("observation", "hidden"), ("action", ("next", "hidden"))

    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.GRUCell(OBSERVATION, 4), nn.Linear(4, 2)

    def forward(self, tensordict):
        hidden = tensordict.get("hidden", None)
        hidden = self.cell(tensordict["observation"], hidden)
        return tensordict.update({"action": self.last(hidden).tanh(), "next": {"hidden": hidden}})


def test_an_input_that_a_network_can_do_without_may_be_absent():
    loss = DDPGLoss(Recurrent(), networks()[1])
    without = loss(batch(8))
    data = batch(8)
    data["hidden"] = data["next", "hidden"] = torch.zeros(8, 4)
    torch.testing.assert_close(without, loss(data))


@pytest.mark.parametrize("share_params", [False, True])
@pytest.mark.parametrize("centralized", [False, True])
def test_networks_of_several_agents(share_params, centralized):
    def build(library):
        torch.manual_seed(0)
        options = {"n_agents": 2, "share_params": share_params, "num_cells": [8]}
        actor = TensorDictModule(MultiAgentMLP(3, 2, centralized=False, **options), ["observation"], ["action"])
        both = TensorDictModule(lambda o, a: torch.cat([o, a], -1), ["observation", "action"], ["both"])
        q = TensorDictModule(MultiAgentMLP(5, 1, centralized=centralized, **options), ["both"], ["state_action_value"])
        return library.DDPGLoss(actor, TensorDictSequential(both, q), delay_actor=True)

    data = batch(8, 2)
    data.batch_size = data["next"].batch_size = [8]
    found = []
    for library in (torchrl_ddpg, torchrl.objectives):
        loss = build(library)
        updater = library.SoftUpdate(loss, tau=0.1)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        for _ in range(3):
            losses = loss(data.clone())
            (losses["loss_actor"] + losses["loss_value"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            updater.step()
        found.append([losses["loss_actor"], losses["loss_value"]])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
def test_parameters_that_are_assigned_take_effect(case):
    loss, other = case.make(), case.make(seed=5)
    for name in ("actor_network", case.critic_name):
        for prefix in ("", "target_"):
            setattr(loss, f"{prefix}{name}_params", getattr(other, f"{prefix}{name}_params"))
    torch.testing.assert_close(loss(batch(8)), other(batch(8)))
    with pytest.raises(RuntimeError, match="actor_network_params was set to something else"):  # noqa: PT012
        loss.actor_network_params = getattr(other, f"{case.critic_name}_params")
        loss(batch(8))


def test_parameters_swapped_for_the_length_of_a_call():
    loss, other = make(), make(seed=5)
    expected, own = other(batch(8)), loss(batch(8))
    with TensorDict.from_module(other).to_module(loss):
        torch.testing.assert_close(loss(batch(8)), expected)
    torch.testing.assert_close(loss(batch(8)), own)


def test_vmap_over_parameters_in_the_actor_leaves_the_loss_alone():
    loss = make()
    expected = loss(batch(8))
    stacked = torch.stack([loss.actor_network_params.data, loss.actor_network_params.data])

    def act(params, td):
        with params.to_module(loss.actor_network):
            return loss.actor_network(td)["action"]

    assert torch.vmap(act, (0, None))(stacked, batch(8).select("observation")).shape == (2, 8, 2)
    torch.testing.assert_close(loss(batch(8)), expected)


def test_the_estimator_works_by_itself():
    loss = make(delay_actor=False, delay_value=False)
    data = batch(8)
    torch.testing.assert_close(loss.value_estimator.value_estimate(data.clone()).detach(), loss.compute_target(data))
    assert "value_target" in loss.value_estimator(data.clone()).keys()  # noqa: SIM118


def test_out_keys_may_be_declared_as_torchrl_s_losses_do():
    class Own(DDPGLoss):
        out_keys = ["loss_actor", "loss_value", "mine"]  # noqa: RUF012

        def loss_value(self, tensordict):
            loss, metrics = super().loss_value(tensordict)
            return loss, {**metrics, "mine": torch.ones(())}

    assert list(make(Own)(batch(8)).keys()) == ["loss_actor", "loss_value", "mine"]


@pytest.mark.parametrize("value", ["error", "same", "different"])
def test_vmap_randomness_can_be_set(value):
    loss = make(TD3Loss)
    loss.set_vmap_randomness(value)
    assert loss.vmap_randomness == value
    loss(batch(8))


def test_exceptions_and_warnings_are_torchrl_s_by_type_and_words():
    loss = make(updater=False)
    with pytest.raises(NotImplementedError):
        loss.make_value_estimator(torchrl.objectives.ValueEstimators.GAE)
    with pytest.warns(UserWarning, match="No target network updater has been associated with this loss module"):
        loss(batch(8))
    for bounds in ({}, {"bounds": (-1, 1), "action_spec": torchrl.data.Bounded(-1, 1, (2,))}):
        with pytest.raises(ValueError, match="but not both"):
            TD3BCLoss(*networks(), **bounds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(TD3Loss).set_keys(action="anything")

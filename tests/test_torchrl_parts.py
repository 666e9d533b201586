"""TorchRL's own updaters, buffers, collectors and trainers work with our loss; our loss says what is missing."""

import warnings

import pytest
import torch
import torchrl
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SliceSampler, TensorDictPrioritizedReplayBuffer
from torchrl.envs import MultiStepTransform
from torchrl.envs.custom import PendulumEnv
from torchrl.envs.transforms import Compose, InitTracker, StepCounter, TransformedEnv
from torchrl.modules import MLP, AdditiveGaussianModule, TanhModule, ValueOperator

from helpers import batch, make
from torchrl_ddpg import DDPGLoss, SoftUpdate

OBSERVATIONS = ["th", "thdot"]


def pendulum():
    """TorchRL's own pendulum and networks for it; the observation is two scalars."""
    env = TransformedEnv(PendulumEnv(seed=0), Compose(StepCounter(20), InitTracker()))
    spec = env.action_spec_unbatched
    torch.manual_seed(0)

    class Body(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = MLP(width, 1, num_cells=[16])

        def forward(self, *inputs):
            return self.net(torch.cat([x.reshape(*inputs[0].shape, -1) for x in inputs], -1))

    actor = TensorDictSequential(
        TensorDictModule(Body(2), in_keys=OBSERVATIONS, out_keys=["action"]),
        TanhModule(in_keys=["action"], spec=spec),
    )
    critic = ValueOperator(Body(3), in_keys=[*OBSERVATIONS, "action"])
    return env, actor, critic


def test_torchrls_soft_update_moves_our_targets():
    loss = DDPGLoss(*_nets())
    updater = torchrl.objectives.SoftUpdate(loss, tau=0.25)
    targets, sources = loss.target_pairs("parameters")
    for source in sources:
        source.data += 1
    before = [target.clone() for target in targets]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(batch(8))
        updater.step()
    torch.testing.assert_close(targets, [target + 0.25 for target in before])


def _nets():
    loss = make()
    return loss.actor_network, loss.value_network


def test_collector_buffer_and_loss_train_together():
    env, actor, critic = pendulum()
    loss = DDPGLoss(actor, critic, action_spec=env.action_spec_unbatched)
    updater = SoftUpdate(loss, tau=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    exploring = TensorDictSequential(actor, AdditiveGaussianModule(spec=env.action_spec_unbatched))
    collector = Collector(env, exploring, frames_per_batch=50, total_frames=200)
    buffer = ReplayBuffer(storage=LazyTensorStorage(200), batch_size=16)
    before = [p.clone() for p in loss.parameters()]
    for data in collector:
        buffer.extend(data.reshape(-1))
        for _ in range(2):
            optimizer.zero_grad()
            outputs = loss(buffer.sample())
            (outputs["loss_actor"] + outputs["loss_value"]).backward()
            optimizer.step()
            updater.step()
        collector.update_policy_weights_()
    collector.shutdown()
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def _prioritised(storage, **kwargs):
    try:
        return TensorDictPrioritizedReplayBuffer(alpha=0.7, beta=0.5, storage=storage, **kwargs)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"TorchRL's C++ extension does not fit this torch: {error}")


def test_prioritised_replay_gets_our_priorities_and_weighs_our_loss():
    loss = make()
    buffer = _prioritised(LazyTensorStorage(64), batch_size=64)
    data = batch(64)
    data["next", "reward"][3] = 1000.0
    buffer.extend(data)
    for _ in range(10):
        sample = buffer.sample()
        assert "priority_weight" in sample
        loss(sample)
        assert sample["td_error"].shape == (64,)
        buffer.update_tensordict_priority(sample)
    drawn = sum(int((buffer.sample()["next", "reward"] == 1000.0).sum()) for _ in range(30))
    assert drawn > 30 * 5


def test_slices_and_td_lambda():
    env, actor, critic = pendulum()
    loss = DDPGLoss(actor, critic).make_value_estimator("td_lambda", on_unordered="raise")
    SoftUpdate(loss, tau=0.01)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(200), sampler=SliceSampler(slice_len=5, end_key=("next", "done")), batch_size=20
    )
    buffer.extend(env.rollout(100, actor, break_when_any_done=False))
    sample = buffer.sample().reshape(4, 5)
    loss(sample)["loss_value"].backward()


def test_n_step_transform_and_its_gamma():
    env, actor, critic = pendulum()
    loss = DDPGLoss(actor, critic).make_value_estimator("td0", gamma=0.9)
    SoftUpdate(loss, tau=0.01)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(200), batch_size=16, transform=MultiStepTransform(n_steps=3, gamma=0.9)
    )
    for _ in range(4):
        buffer.extend(env.rollout(25, actor, break_when_any_done=False))
    sample = buffer.sample()
    assert sample["steps_to_next_obs"].max() == 3
    loss(sample)["loss_value"].backward()
    loss.make_value_estimator("td0", gamma=0.99)
    with pytest.raises(ValueError, match=r"0\.9 .*0\.99"):
        loss(sample)


@pytest.mark.filterwarnings("ignore:DDPGTrainer is an experimental", "ignore:.*hook stage will be replaced")
def test_torchrls_ddpg_trainer_trains_our_loss():
    trainers = pytest.importorskip("torchrl.trainers.algorithms")
    env, actor, critic = pendulum()
    loss = DDPGLoss(actor, critic, action_spec=env.action_spec_unbatched)
    updater = SoftUpdate(loss, tau=0.01)
    before = [p.clone() for p in loss.parameters()]
    trainer = trainers.DDPGTrainer(
        collector=Collector(env, actor, frames_per_batch=50, total_frames=200),
        total_frames=200,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        replay_buffer=ReplayBuffer(storage=LazyTensorStorage(200), batch_size=16),
        target_net_updater=updater,
        save_trainer_file=None,
        progress_bar=False,
        enable_logging=False,
    )
    trainer.train()
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))

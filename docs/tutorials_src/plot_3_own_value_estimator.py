r"""
Write your own value estimator
==============================

The critic learns by regression on a *target*. How the target is made from rewards and from the
value of the next state is decided by the *value estimator*. The library has three:
TD(0), TD(1) and TD(:math:`\lambda`), chosen with ``loss.make_value_estimator("td0")`` and so on. If
you need another rule, you write a class; the loss does the rest: it runs the target networks,
removes what lies past the end of an episode, and hands you the value of the next state.

This page writes two estimators, checks them against a calculation by hand, and trains with one.
:doc:`plot_1_ddpg` introduces TorchRL and the words used here.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    GymEnv,
    InitTracker,
    RandomCropTensorDict,
    RewardScaling,
    RewardSum,
    TransformedEnv,
)
from torchrl.modules import MLP, AdditiveGaussianModule, TanhModule, ValueOperator
from torchrl.objectives.value import TD0Estimator, ValueEstimatorBase

from torchrl_ddpg import DDPGLoss, SoftUpdate, UpdateStep

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# Start from an estimator that exists
# -----------------------------------
#
# Suppose you know that no return can be above 0, as on the pendulum, where no reward is positive. A
# critic that predicts more is certainly wrong, and TD(0) would copy that error into the targets of
# the states before it. So we clamp the targets. The rule is TD(0) with one more line, and so is the
# class:


class BoundedTD0(TD0Estimator):
    """TD(0), with targets clamped to a highest value."""

    def __init__(self, *, highest, **options):
        super().__init__(**options)
        self.highest = highest

    def value_estimate(self, tensordict, next_value=None, **options):
        """The target, ``[*B, 1]``."""
        return (
            super()
            .value_estimate(tensordict, next_value=next_value, **options)
            .clamp(max=self.highest)
        )


# %%
# Pass the class to the loss, with its own options. The networks here are untrained; they only have
# to give some value.

actor = TensorDictModule(MLP(3, 1, num_cells=[32]), in_keys=["observation"], out_keys=["action"])
critic = ValueOperator(MLP(4, 1, num_cells=[32]), in_keys=["observation", "action"])
loss = DDPGLoss(actor, critic)
updater = SoftUpdate(loss, tau=0.005)
loss.make_value_estimator(BoundedTD0, gamma=0.9, highest=0.0)


def make_batch(rows=2, steps=5):
    """Pieces of trajectories ``[rows, steps]``; the first one ends after its second step."""
    observation = torch.randn(rows, steps + 1, 3)
    terminated = torch.zeros(rows, steps, 1, dtype=torch.bool)
    terminated[0, 1] = True
    after = {"observation": observation[:, 1:], "reward": torch.randn(rows, steps, 1)}
    data = {
        "observation": observation[:, :-1],
        "action": torch.randn(rows, steps, 1),
        "next": {**after, "done": terminated, "terminated": terminated},
    }
    return TensorDict(data, batch_size=[rows, steps])


batch = make_batch()
targets = loss.compute_target(batch)
print(targets.squeeze(-1))
assert targets.max() <= 0

# %%
# ``compute_target`` is what the critic's loss uses. No target is above 0.

# %%
# One from scratch
# ----------------
#
# The second estimator sums the rewards of up to :math:`n` steps before it asks the critic:
#
# .. math::
#
#    y_t = \sum_{k=0}^{m-1} \gamma^k r_{t+k}
#        + \gamma^m (1 - d_{t+m-1})\, Q'(s_{t+m}, \mu'(s_{t+m})),
#
# where :math:`m` is :math:`n`, or less if the trajectory ends earlier or the row does. A class from
# scratch is a ``ValueEstimatorBase`` with one method that matters, ``value_estimate(tensordict,
# next_value)``. What you get:
#
# - ``tensordict``: a copy of the batch, ``[*B, T]``. Reward and flags lie under ``"next"``; the
#   reward is float32, the flags are bool, and what is masked is 0.
# - ``next_value``: the value of each step's next state under the target networks, in the shape of
#   the reward, 0 where the episode terminated.
# - ``self.tensor_keys``: the names of the entries, as set by ``loss.set_keys``. Use these, and your
#   estimator works with renamed entries too.
#
# You return the targets in the shape of the reward. The loss needs nothing else; ``forward``, which
# TorchRL's own losses use to write advantages, only has to exist.
#
# The code starts from the one-step targets. Each round makes every target one step longer, unless
# the trajectory ends there.


class NStepEstimator(ValueEstimatorBase):
    """Targets of up to n steps within a row ``[*B, T]``, time last."""

    def __init__(self, *, gamma=0.99, n=3, device=None):
        super().__init__(value_network=None, device=device)
        self.register_buffer("gamma", torch.tensor(gamma, device=device))
        self.n = n

    def forward(self, tensordict, **options):
        """Not used by this library's losses."""
        raise NotImplementedError

    def value_estimate(self, tensordict, next_value=None, **options):
        """The target, ``[*B, T, 1]``."""
        reward = tensordict["next", self.tensor_keys.reward]
        done = tensordict["next", self.tensor_keys.done]
        one_step = target = reward + self.gamma * next_value
        for _ in range(self.n - 1):
            longer = reward[..., :-1, :] + self.gamma * target[..., 1:, :]
            longer = torch.where(done[..., :-1, :], one_step[..., :-1, :], longer)
            target = torch.cat([longer, one_step[..., -1:, :]], dim=-2)
        return target


# %%
# (``next_value`` is already 0 where the episode terminated, so the flag ``terminated`` is not
# needed. Where a time limit cut the trajectory, ``done`` is set and the value still counts: the
# ``torch.where`` takes the one-step target there.)
#
# Check it before you train with it. With ``n=1`` it must be TD(0):

loss.make_value_estimator("td0", gamma=0.9)
expected = loss.compute_target(batch)
loss.make_value_estimator(NStepEstimator, gamma=0.9, n=1)
torch.testing.assert_close(loss.compute_target(batch), expected)

# %%
# With ``n`` as long as the row it must be TD(1):

loss.make_value_estimator("td1", gamma=0.9)
expected = loss.compute_target(batch)
loss.make_value_estimator(NStepEstimator, gamma=0.9, n=5)
torch.testing.assert_close(loss.compute_target(batch), expected)

# %%
# And in between, for one target, by hand:

loss.make_value_estimator(NStepEstimator, gamma=0.9, n=2)
with torch.no_grad():
    following = batch[1]["next"].select("observation")
    value = critic(actor(following))["state_action_value"]  # the targets still equal the networks
reward = batch[1]["next", "reward"]
torch.testing.assert_close(
    loss.compute_target(batch)[1, 0], reward[0] + 0.9 * reward[1] + 0.81 * value[1]
)
print("all three agree")

# %%
# An estimator that reads along time makes sense only if the rows *are* in time order. The loss
# checks that for you: it warns once if the next observation at step t is not the observation at
# step t + 1, and with ``on_unordered="raise"`` it raises.

loss.make_value_estimator(NStepEstimator, gamma=0.9, n=2, on_unordered="raise")
try:
    loss.compute_target(batch[:, torch.tensor([3, 0, 4, 1, 2])])
except ValueError as error:
    print(error)

# %%
# Train with it
# -------------
#
# To compare, we train twice on the pendulum, from the same seed: with one step and with three. With
# longer targets a reward reaches earlier states in fewer updates, so the returns should rise sooner.


def train(n, frames=4_000):
    """Returns of the training episodes, and the frames at their ends."""
    torch.manual_seed(0)
    env = TransformedEnv(
        GymEnv("Pendulum-v1"), Compose(RewardSum(), RewardScaling(0.0, 0.1), InitTracker())
    )
    env.set_seed(0)
    spec, hidden = env.action_spec, {"num_cells": [64, 64], "activation_class": torch.nn.ReLU}
    actor = TensorDictSequential(
        TensorDictModule(MLP(3, 1, **hidden), in_keys=["observation"], out_keys=["param"]),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=spec),
    )
    critic = ValueOperator(MLP(4, 1, **hidden), in_keys=["observation", "action"])
    loss = DDPGLoss(actor, critic, action_spec=spec)
    loss.make_value_estimator(NStepEstimator, gamma=0.98, n=n)
    update = UpdateStep(
        loss,
        actor_optimizer=torch.optim.Adam(actor.parameters(), lr=1e-3),
        critic_optimizer=torch.optim.Adam(critic.parameters(), lr=1e-3),
        target_updater=SoftUpdate(loss, tau=0.005),
        record_operators=True,
    )
    noise = AdditiveGaussianModule(spec, sigma_init=0.6, sigma_end=0.3, annealing_num_steps=frames)
    policy = TensorDictSequential(actor, noise)
    collector = Collector(
        env,
        policy,
        frames_per_batch=50,
        total_frames=frames,
        init_random_frames=500,
        trust_policy=True,
    )
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(frames // 50), transform=RandomCropTensorDict(4), batch_size=32
    )
    ends = []
    for count, data in enumerate(collector, start=1):
        buffer.extend(data.unsqueeze(0))  # one item: 50 steps in a row
        noise.step(data.numel())
        ends += [
            (count * 50, value)
            for value in data["next", "episode_reward"][data["next", "done"]].tolist()
        ]
        for _ in range(data.numel() if count > 10 else 0):
            update(buffer.sample())
    collector.shutdown()
    return ends


results = {n: train(n) for n in (1, 3)}

# %%

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for n, ends in results.items():
    axes.plot(*zip(*ends, strict=True), "o-", label=f"n = {n}")
axes.set(xlabel="frames", ylabel="return of a training episode")
axes.legend()
plt.show()

# %%
# One seed each shows that it works, not which is better; that takes many seeds. This page is not
# built if the policy did not learn.

last = sum(value for _, value in results[3][-5:]) / 5
assert last > -600, f"training failed: {last}"
print(f"n = 3, mean return of the last five episodes, with noise: {last:.0f}")

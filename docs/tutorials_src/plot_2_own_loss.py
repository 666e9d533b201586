r"""
Write your own loss
===================

Most papers on deterministic policies change one or two lines of DDPG's equations and need
everything else as it was: target networks, masks, importance weights, priorities, metrics, checks.
A subclass of :class:`~torchrl_ddpg.DeterministicPolicyLoss` follows this: you override the steps
that the paper changes, and inherit the rest.

This page writes four losses: plain DDPG (three lines), one that changes the actor's term, one that
changes the critic's, and one with many critics. Then it trains one of them. If you have not met
TorchRL yet, read :doc:`plot_1_ddpg` first.
"""

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.nn.functional import smooth_l1_loss
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    ExplorationType,
    GymEnv,
    InitTracker,
    RewardScaling,
    RewardSum,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules import MLP, AdditiveGaussianModule, TanhModule, ValueOperator
from torchrl.objectives import ValueEstimators

from torchrl_ddpg import DDPGLoss, DeterministicPolicyLoss, SoftUpdate, UpdateStep, functional

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# The flow of one batch
# ---------------------
#
# Names in capitals are the steps that you can override.
#
# .. code-block:: text
#
#    target:         target actor -> BOUND_TARGET_ACTION -> target critics
#                    -> NEXT_STATE_VALUE -> CRITIC_TARGET
#    critic's loss:  critics -> CRITIC_SAMPLE_LOSSES(prediction, target) -> weights, mask, mean
#    actor's loss:   actor -> critics -> ACTOR_VALUE -> ACTOR_SAMPLE_LOSSES -> mask, mean
#
# Each step takes and returns plain tensors. For a batch of size ``*B``, an action is ``[*B, A]`` and
# what a critic writes is ``[*B, K]``, with ``K`` 1 for a value. By default the target action is
# clamped to its range, the first critic counts, the value estimator makes the target,
# ``loss_function`` compares, and the actor's loss is ``-value``. :doc:`/own_loss` has the table of
# all steps.

# %%
# The smallest loss
# -----------------
#
# A subclass says what its critic and its outputs are called. With nothing overridden, it is DDPG.


class PlainLoss(DeterministicPolicyLoss):
    """DDPG, since nothing is overridden."""

    critic_name = "value_network"
    critic_loss_key = "loss_value"
    all_out_keys = ("loss_actor", "loss_value", "pred_value", "target_value")


# %%
# To try it, we need networks and a batch.

actor = TensorDictModule(MLP(3, 2, num_cells=[32]), in_keys=["observation"], out_keys=["action"])


def make_critic(outputs=1):
    """A critic that reads observation and action."""
    return ValueOperator(MLP(5, outputs, num_cells=[32]), in_keys=["observation", "action"])


flag = torch.zeros(8, 1, dtype=torch.bool)
following = {
    "observation": torch.randn(8, 3),
    "reward": torch.ones(8, 1),
    "done": flag,
    "terminated": flag,
}
batch = TensorDict(
    {"observation": torch.randn(8, 3), "action": torch.rand(8, 2), "next": following},
    batch_size=[8],
)

critic = make_critic()
plain, ddpg = PlainLoss(actor, critic), DDPGLoss(actor, critic)
for loss in (plain, ddpg):
    SoftUpdate(loss, tau=0.005)
print(plain(batch)["loss_value"].item(), ddpg(batch)["loss_value"].item())

# %%
# Change the actor's term
# -----------------------
#
# Actors like to run into the ends of the action's range, where ``tanh`` has no gradient left. A
# small penalty for large actions keeps them away: :math:`L_\mu = \frac1N\sum\left[-Q(s, \mu(s)) +
# c\,\overline{\mu(s)^2}\right]`. That is one step, ``actor_sample_losses``.
#
# A step may report metrics: a value per sample, which is averaged, or a scalar. Their names must be
# in ``all_out_keys``.


class SmallActionLoss(PlainLoss):
    """DDPG with a penalty for large actions."""

    all_out_keys = (*PlainLoss.all_out_keys, "action_penalty")

    def __init__(self, actor_network, value_network, *, weight=0.1, **options):
        super().__init__(actor_network, value_network, **options)
        self.weight = weight

    def actor_sample_losses(self, value, action, batch):
        """The negative value, and the penalty for the action."""
        penalty = self.weight * action.square().mean(-1, keepdim=True)
        return penalty - value, {"action_penalty": penalty}


loss = SmallActionLoss(actor, critic, weight=0.01)
SoftUpdate(loss, tau=0.005)
print({key: round(value.item(), 3) for key, value in loss(batch).items()})

# %%
# Change the critic: quantiles
# ----------------------------
#
# A critic can predict the distribution of the return instead of its mean. Quantile regression
# (`Dabney et al. 2018 <https://arxiv.org/abs/1710.10044>`_) lets it write :math:`N` numbers, the
# quantiles at :math:`\tau_i = (i + \frac12)/N`. Every predicted quantile :math:`\theta_i` is
# compared with every quantile of the target :math:`y_j`; an error above counts with weight
# :math:`\tau_i`, one below with :math:`1 - \tau_i`:
#
# .. math::
#
#    \sum_i \frac1N \sum_j \bigl|\tau_i - \mathbb{1}[y_j < \theta_i]\bigr|\; \ell(y_j - \theta_i)
#
# with Huber's loss for :math:`\ell`. Three steps change: the target, the comparison, and what value
# a vector of quantiles stands for. The value estimators work on one value per state, so this loss
# makes its target itself, and declares that it supports TD(0) only.


class QuantileLoss(DeterministicPolicyLoss):
    """A critic that writes quantiles of the return, ``[*B, N]``, trained by quantile regression.

    References:
        Dabney et al. 2018, arXiv:1710.10044, eq. 9 and 10.
    """

    critic_name = "value_network"
    critic_loss_key = "loss_value"
    all_out_keys = ("loss_actor", "loss_value", "pred_value", "target_value")
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)

    def critic_target(self, next_value, transition, batch):
        """Each of the next state's quantiles, discounted and shifted by the reward."""
        discount = functional.discount(
            self.value_estimator.gamma, transition.terminated, transition.steps
        )
        return transition.reward + discount * next_value, {}

    def critic_sample_losses(self, prediction, target):
        """Every predicted quantile against every quantile of the target."""
        count = prediction.shape[-1]
        levels = (torch.arange(count, device=prediction.device) + 0.5) / count
        prediction, target = torch.broadcast_tensors(prediction.unsqueeze(-1), target.unsqueeze(-2))
        weight = (levels.unsqueeze(-1) - (target < prediction).float()).abs()
        return (weight * smooth_l1_loss(prediction, target, reduction="none")).mean(-1).sum(-1)

    def expected_value(self, values):
        """The mean of the quantiles."""
        return values.mean(-1, keepdim=True)

    expected_target = expected_value


loss = QuantileLoss(actor, make_critic(outputs=25))
SoftUpdate(loss, tau=0.005)
print({key: round(value.item(), 3) for key, value in loss(batch).items()})

# %%
# Many critics
# ------------
#
# With ``num_critics`` the base class makes several critics out of one. This loss (the idea of `Chen
# et al. 2021 <https://arxiv.org/abs/2101.05982>`_, here with a deterministic actor) takes for the
# target the lowest value of a random few, and lets the actor raise the mean of all.
# ``actor_critics`` says which critics the actor's term runs.


class RandomEnsembleLoss(DeterministicPolicyLoss):
    """Many critics: the target takes the lowest of a random few, the actor raises the mean of all.

    References:
        Chen et al. 2021, arXiv:2101.05982, algorithm 1, with a deterministic actor.
    """

    critic_name = "qvalue_network"
    critic_loss_key = "loss_qvalue"
    all_out_keys = ("loss_actor", "loss_qvalue", "pred_value", "target_value")

    def __init__(self, actor_network, qvalue_network, *, num_qvalue_nets=5, subset=2, **options):
        super().__init__(
            actor_network,
            qvalue_network,
            num_critics=("num_qvalue_nets", num_qvalue_nets),
            **options,
        )
        self.subset, self.actor_critics = subset, range(num_qvalue_nets)

    def next_state_value(self, values, action, batch):
        """The lowest value of a random subset of the critics."""
        chosen = torch.randperm(len(values), device=values[0].device)[: self.subset]
        return torch.stack(values)[chosen].amin(0)

    def actor_value(self, values):
        """The mean over all critics."""
        return torch.stack(values).mean(0)


loss = RandomEnsembleLoss(actor, make_critic(), num_qvalue_nets=10)
SoftUpdate(loss, tau=0.005)
print({key: round(value.item(), 3) for key, value in loss(batch).items()})

# %%
# What you get without writing it
# -------------------------------
#
# - Samples that are masked, or lie past the end of an episode, are ignored, even where they are NaN.
# - Importance weights, ``reduction``, and the priority for prioritised replay. The priority is the
#   difference of ``expected_target`` and ``expected_value``.
# - Checks of the batch, and messages that name your class.
# - Each term gives a gradient to one network only.
# - ``UpdateStep`` with ``compile=True``, ``record_operators=True`` and ``cuda_graph=True``.
#
# A step that needs an entry the networks do not read names it in ``extra_keys`` and gets it with
# ``batch.get(key)``. :class:`~torchrl_ddpg.TD3BCLoss` does so with the action that was taken. The
# public methods of the loss (``loss_actor``, ``loss_value``) can be overridden too; they take a
# TensorDict and give ``(loss, metrics)``.
#
# Mistakes in the class itself are reported when it is built:


class Forgetful(PlainLoss):
    """Declares a metric that no step reports."""

    all_out_keys = (*PlainLoss.all_out_keys, "entropy")


try:
    Forgetful(actor, critic)
except TypeError as error:
    print(error)

# %%
# Train it
# --------
#
# The loop is the same for every loss. We take the quantile critic, on the pendulum from
# :doc:`plot_1_ddpg`.


def make_env(seed):
    """A pendulum with scaled rewards."""
    env = TransformedEnv(
        GymEnv("Pendulum-v1"), Compose(RewardSum(), RewardScaling(0.0, 0.1), InitTracker())
    )
    env.set_seed(seed)
    return env


env, eval_env = make_env(0), make_env(1)
spec, hidden = env.action_spec, {"num_cells": [64, 64], "activation_class": torch.nn.ReLU}
actor = TensorDictSequential(
    TensorDictModule(MLP(3, 1, **hidden), in_keys=["observation"], out_keys=["param"]),
    TanhModule(in_keys=["param"], out_keys=["action"], spec=spec),
)
critic = ValueOperator(MLP(4, 25, **hidden), in_keys=["observation", "action"])
loss = QuantileLoss(actor, critic, action_spec=spec).make_value_estimator("td0", gamma=0.98)
update = UpdateStep(
    loss,
    actor_optimizer=torch.optim.Adam(actor.parameters(), lr=1e-3),
    critic_optimizer=torch.optim.Adam(critic.parameters(), lr=1e-3),
    target_updater=SoftUpdate(loss, tau=0.01),
    record_operators=True,
)
noise = AdditiveGaussianModule(spec, sigma_init=0.6, sigma_end=0.2, annealing_num_steps=6_000)
collector = Collector(
    env,
    TensorDictSequential(actor, noise),
    frames_per_batch=100,
    total_frames=6_000,
    init_random_frames=1_000,
    trust_policy=True,
)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(6_000), batch_size=128)
returns = []
for data in collector:
    buffer.extend(data.reshape(-1))
    noise.step(data.numel())
    returns += data["next", "episode_reward"][data["next", "done"]].tolist()
    for _ in range(data.numel() if len(buffer) >= 1_000 else 0):
        metrics = update(buffer.sample())
collector.shutdown()
print(
    "returns of the first and the last episodes:",
    [round(value) for value in returns[:3] + returns[-3:]],
)

# %%
# The quantiles that the critic predicts along one episode, and the return that followed. The band
# is the spread of returns that the critic expects, widest on the swing up, where small differences
# decide. Quantiles do not prevent overestimation: a prediction above 0 is certainly too high, since
# no reward is positive.

with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
    run = critic(eval_env.rollout(max_steps=200, policy=actor))
quantiles = run["state_action_value"][:120].sort(-1).values.numpy()
followed, value = [], torch.zeros(())
for reward in run["next", "reward"].squeeze(-1).flip(0):
    value = reward + 0.98 * value
    followed.append(value.item())

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.fill_between(
    range(120), quantiles[:, 2], quantiles[:, -3], alpha=0.3, label="10 % to 90 % quantile"
)
axes.plot(quantiles[:, 12], label="median")
axes.plot(followed[::-1][:120], label="what followed")
axes.set(xlabel="step of the episode", ylabel="discounted return (scaled reward)")
axes.legend()
plt.show()

# %%
# This page is not built if the policy did not learn.

last = sum(returns[-5:]) / 5
assert last > -500, f"training failed: {last}"
print(f"mean return of the last five episodes, with noise: {last:.0f}")

# %%
# The classes of this page pass the tests of this library's own losses: alone, compiled, recorded,
# with masks, with weights and with invalid batches.

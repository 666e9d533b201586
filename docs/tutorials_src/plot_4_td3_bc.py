r"""
TD3+BC from data
================

Sometimes there is data and no environment to try things in: logs of a machine, or of another
controller. Learning a policy from such data alone is called *offline* reinforcement learning.

DDPG fails at it, for this reason. The actor looks for the action to which the critic gives the highest
value. Where the data has no example of an action, nothing corrects the critic, so sooner or later it
overestimates one. The actor chooses it, and no new experience corrects them.
TD3+BC (`Fujimoto & Gu 2021 <https://arxiv.org/abs/2106.06860>`_) adds one term to the actor's loss,
behaviour cloning: stay near the action that was taken.

.. math::

   L_\mu = \frac1N\sum\left[\overline{(\mu(s) - a)^2} - \lambda\, Q_1(s, \mu(s))\right], \qquad
   \lambda = \frac{\alpha}{\frac1N\sum |Q_1(s, \mu(s))|}

:math:`\lambda` divides the scale of the values out, so that one :math:`\alpha`, 2.5 in the paper,
does for most tasks. The critics are those of TD3: two of them, the lower value counts, and the
target action gets a little noise.

On this page a clumsy controller swings up the pendulum. We record it, throw the environment away,
and learn a policy that does better. :doc:`plot_1_ddpg` introduces TorchRL and the words used here.
"""

import gymnasium
import matplotlib.pyplot as plt
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, GymWrapper, RewardScaling, RewardSum, TransformedEnv
from torchrl.modules import MLP, TanhModule, ValueOperator

from torchrl_ddpg import SoftUpdate, TD3BCLoss, UpdateStep

torch.manual_seed(0)
torch.set_num_threads(1)

# %%
# The data
# --------
#
# The controller pushes in the direction of the movement until the pole has the energy to reach the
# top, and holds it there. At half of the steps its torque is replaced by a random
# one. That makes it clumsy, and makes the data useful: different actions in similar states are what
# the critic learns from.
#
# Ten pendulums step together here, as Gymnasium's vector environment, so that TorchRL's own time is
# spent once for all.

pendulums = gymnasium.make_vec(
    "Pendulum-v1",
    10,
    "sync",
    vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED},
)
env = TransformedEnv(GymWrapper(pendulums), Compose(RewardSum(), RewardScaling(loc=0.0, scale=0.1)))
env.set_seed(0)


def controller(observation):
    """Torque ``[*B, 1]`` for an observation ``[*B, 3]`` (cosine, sine, angular speed)."""
    cosine, sine, speed = observation.split(1, dim=-1)
    energy = speed.square() / 6 + 5 * (cosine - 1)  # 0 when the pole stands
    swing = 2 * torch.sign(speed) * (energy < 0).float()
    hold = -10 * sine - 2 * speed
    return torch.where(cosine > 0.9, hold, swing)


def clumsy(observation):
    """The controller's torque, or a random one."""
    torque = controller(observation).clamp(-2.0, 2.0)
    return torch.where(torch.rand_like(torque) < 0.5, 4 * torch.rand_like(torque) - 2, torque)


behaviour = TensorDictModule(clumsy, in_keys=["observation"], out_keys=["action"])
episodes = torch.cat([env.rollout(200, behaviour) for _ in range(5)])
recorded_return = episodes["next", "episode_reward"][:, -1].mean().item()
print(f"{len(episodes)} episodes, mean return {recorded_return:.0f}")

# %%
# As in the paper, every entry of the observation is brought to mean 0 and deviation 1, by the
# statistics *of the data*. Here that is the first layer of the actor and the critic, so that nobody
# can forget it when the policy is used.

data = episodes.select("observation", "action", "next").reshape(-1)
mean, deviation = data["observation"].mean(0), data["observation"].std(0)


class Normalise(torch.nn.Module):
    """Observations, and what comes with them, with mean 0 and deviation 1 on the data."""

    def forward(self, observation, *others):
        """The inputs side by side, ``[*B, F]``."""
        return torch.cat([(observation - mean) / deviation, *others], dim=-1)


buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(data)), batch_size=128)
buffer.extend(data)
print(len(buffer), "transitions")

# %%
# Networks and loss
# -----------------
#
# One critic is enough to write down; ``TD3BCLoss`` makes the second from it, with fresh weights.
# Its noise on target actions is in units of half the action's range, so it needs the range:
# ``action_spec``, or ``bounds=(low, high)``.
#
# How large should :math:`\alpha` be? The paper's 2.5 is for actions in [-1, 1]. The torque here is
# in [-2, 2], so squared distances are four times as large. And :math:`\lambda` divides by the
# *size* of the values, which here is a cost that all actions share; the difference between two
# actions is small against it. We take 40.

spec, hidden = env.action_spec_unbatched, {"num_cells": [64, 64], "activation_class": torch.nn.ReLU}


def make_update(alpha):
    """An actor, and an update that trains it with this weight of the value."""
    torch.manual_seed(1)
    actor = TensorDictSequential(
        TensorDictModule(
            torch.nn.Sequential(Normalise(), MLP(3, 1, **hidden)), ["observation"], ["param"]
        ),
        TanhModule(in_keys=["param"], out_keys=["action"], spec=spec),
    )
    critic_net = TensorDictSequential(
        TensorDictModule(Normalise(), ["observation", "action"], ["inputs"]),
        ValueOperator(MLP(4, 1, **hidden), in_keys=["inputs"], out_keys=["state_action_value"]),
    )
    loss = TD3BCLoss(actor, critic_net, alpha=alpha, action_spec=spec).make_value_estimator(
        "td0", gamma=0.98
    )
    update = UpdateStep(
        loss,
        actor_optimizer=torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3),
        critic_optimizer=torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=1e-3),
        target_updater=SoftUpdate(loss, tau=0.01),
        policy_delay=2,  # the actor and the targets move at every second update, as in TD3
        record_operators=True,
    )
    return actor, update


# %%
# The parameters come from the loss (``loss.qvalue_network_params``), not from ``critic_net``: that
# has the first critic's only.
#
# Training
# --------
#
# No collector, no exploration: the loop draws batches. The evaluation uses the environment, only to
# draw the curve; training never sees it.


def evaluate(actor):
    """Mean return of ten whole episodes."""
    with torch.no_grad():
        return env.rollout(200, actor)["next", "episode_reward"][:, -1].mean().item()


def train(alpha, updates=4_000):
    """Returns along the way, for this weight of the value."""
    actor, update = make_update(alpha)
    curve = []
    for step in range(1, updates + 1):
        metrics = update(buffer.sample())
        if step % 1_000 == 0:
            curve.append((step, evaluate(actor)))
            imitation = metrics["bc_loss"].item()
            print(
                f"alpha {alpha}, {step} updates: return {curve[-1][1]:.0f}, "
                f"distance to the data {imitation:.2f}"
            )
    return curve


curves = {alpha: train(alpha) for alpha in (0.1, 40.0)}

# %%
# With ``alpha=0.1`` the value hardly counts: that is nearly behaviour cloning alone. It learns the
# mean of what was recorded, and the mean of a push and a random torque is a weaker push: it does
# worse than the data. With 40 the policy stays near the data and picks the better of the actions in
# it.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for alpha, curve in curves.items():
    axes.plot(*zip(*curve, strict=True), "o-", label=f"alpha = {alpha}")
axes.axhline(recorded_return, ls="--", color="gray", label="the data")
axes.set(xlabel="updates", ylabel="return of an episode")
axes.legend()
plt.show()

# %%
# This page is not built if the policy is no better than the data.

learned_return = sum(value for _, value in curves[40.0][-2:]) / 2
assert learned_return > recorded_return, (
    f"{learned_return} after training, {recorded_return} recorded"
)
print(f"return: {recorded_return:.0f} recorded, {learned_return:.0f} learned")

# %%
# With data of your own
# ---------------------
#
# Any TensorDict of transitions will do. It needs ``"observation"`` and ``"action"``, and under
# ``"next"`` the ``"observation"``, the ``"reward"`` ``[N, 1]`` and the two flags ``"done"`` and
# ``"terminated"`` ``[N, 1]``. Be careful with the flags: a log that was cut off is ``done`` and not
# ``terminated``, and if all flags are lost, the policy learns from wrong values at the ends.
#
# How do you see, without an environment, that training goes wrong? ``pred_value`` far above any
# return in the data means that the critic overestimates actions: lower ``alpha``. ``bc_loss`` near 0
# and no improvement means that the policy only copies: raise it.

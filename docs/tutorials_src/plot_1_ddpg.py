r"""
DDPG end to end
===============

This page is for you if you know PyTorch and have never used TorchRL or reinforcement learning. It
trains a network to control a pendulum with deep deterministic policy gradient (DDPG), and explains
what each part of the program is for. The environment, the collector and the buffer come from
TorchRL, the loss and the update from this package, ``torchrl_ddpg``. Everything runs on one CPU core;
the training takes about a minute. These words come up all the time:

- An **environment** is the simulated world. It is in a **state**, of which it shows an
  **observation**, a vector of numbers. It takes an **action**, another vector, and answers with a
  **reward**, a number that says how good the step was, and the next observation.
- One such step is a **frame**, and what was recorded of it a **transition**. Steps in a row are a
  **trajectory**. An **episode** is a trajectory from a start of the environment to its end.
- A **policy** chooses the action from the observation. It is good if the **return**, the sum of the
  rewards, is high.

DDPG (`Lillicrap et al. 2016 <https://arxiv.org/abs/1509.02971>`_) learns two networks:

- the **critic** :math:`Q(s, a)` predicts the *value* of an action: the sum of all rewards from now
  on, if the policy chooses all later actions, where the reward :math:`k` steps ahead is multiplied
  by :math:`\gamma^k`. With :math:`\gamma < 1` the sum is finite and the near future counts more;
- the **actor** :math:`\mu(s)` is the policy. It has no randomness, hence "deterministic".

We write :math:`s` for what the networks see, the observation.

The critic is trained by regression on a target :math:`y` that is made from one transition: from
state :math:`s` the action :math:`a` gave the reward :math:`r` and led to :math:`s'`.

.. math::

   y = r + \gamma\,(1 - d)\, Q'(s', \mu'(s')), \qquad
   L_Q = \frac{1}{N} \sum \bigl(Q(s, a) - y\bigr)^2, \qquad
   L_\mu = -\frac{1}{N} \sum Q(s, \mu(s)).

The sum from :math:`s` on is the first reward plus :math:`\gamma` times the sum from :math:`s'` on. The
critic's own prediction stands for the second part, so one transition is enough. Here :math:`N` is the
size of the minibatch, :math:`d` is 1 if the episode ended in :math:`s'`, and :math:`Q'` and
:math:`\mu'` are slowly moving copies of the two networks, the *target networks*. The actor is trained
to choose actions to which the critic gives a higher value. We come back to every symbol in code below.
"""

import copy
import tempfile
import time

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    ExplorationType,
    GymEnv,
    InitTracker,
    ObservationNorm,
    ParallelEnv,
    RandomCropTensorDict,
    RewardScaling,
    RewardSum,
    SerialEnv,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules import MLP, AdditiveGaussianModule, TanhModule, ValueOperator

from torchrl_ddpg import BatchError, DDPGLoss, SoftUpdate, UpdateStep

torch.manual_seed(0)
torch.set_num_threads(1)  # small networks run faster on one core

# %%
# TensorDict in one minute
# ------------------------
#
# TorchRL passes all data around in a ``TensorDict``: a dictionary of tensors that share their
# leading dimensions, the *batch size*. You index it like a tensor, and entries may be nested.

data = TensorDict(
    {
        "observation": torch.randn(5, 3),
        "next": {"observation": torch.randn(5, 3), "reward": torch.ones(5, 1)},
    },
    batch_size=[5],
)
print(data[:2]["next", "reward"].shape)

# %%
# The convention that everything below relies on: what is known *before* the action lies at the root
# (``"observation"``, ``"action"``), what the action led to lies under ``"next"`` (``("next",
# "observation")``, ``("next", "reward")``). So each of the five rows above is one
# complete transition.

# %%
# The environment
# ---------------
#
# ``Pendulum-v1`` is a pole on a motor that is too weak to lift it at once: it must swing to and fro
# first. The observation is the cosine and sine of the angle and the angular speed, the action is
# the torque in [-2, 2]. The reward is at most 0 and highest when the pole stands still upright. A
# *spec* describes what an entry may hold: its shape, its dtype and its range.


def make_base_env():
    """Gymnasium's pendulum, with TorchRL's interface."""
    return GymEnv("Pendulum-v1")


base_env = make_base_env()
base_env.set_seed(0)
spec = base_env.action_spec
print(spec.shape, "from", spec.space.low.item(), "to", spec.space.high.item())

# %%
# ``rollout`` runs the environment, here with random actions, and gives the whole episode as one
# TensorDict with time as its batch dimension.

episode = base_env.rollout(max_steps=1000)
print(episode)

# %%
# It has 200 steps although we allowed 1000: this environment stops after 200 steps. There are three
# flags for an end, and the difference between them matters to every value that is learned:
#
# - ``terminated``: the episode really ended, so no future reward follows. This is :math:`d` in the
#   equation.
# - ``truncated``: the episode was cut off, here by a time limit. The pole would have gone on
#   swinging, so the value of the last state still counts.
# - ``done``: either of the two. The next row belongs to another episode.

print({flag: bool(episode["next", flag][-1]) for flag in ("done", "terminated", "truncated")})

# %%
# Transforms and normalisation
# ----------------------------
#
# A *transform* changes what goes into or comes out of an environment. We need four:
#
# - ``RewardSum`` adds up the rewards of the running episode in ``"episode_reward"``. We use it only
#   to report returns. It comes first, so that it adds rewards that are not scaled yet.
# - ``RewardScaling`` multiplies the reward by 0.1. Rewards here go down to -16, and with the
#   :math:`\gamma = 0.99` used below about 100 of them count, so values can fall below -1,000, and a
#   network whose output starts near 0 would need long to get there. Scaling all rewards does not
#   change which policy is the best.
# - ``ObservationNorm`` brings every entry of the observation to mean 0 and standard deviation 1.
#   The angular speed goes up to 8 while cosine and sine stay within 1. Without normalisation the
#   first layer would mostly see the speed.
# - ``InitTracker`` marks the first step of each episode in ``"is_init"``. TorchRL's noise modules (see
#   "Exploration" below) ask for it: noise that is correlated in time starts anew there.
#
# Mean and deviation are measured once, on random actions, and then fixed. Every environment, also
# the one for the evaluation, must use the *same* numbers; otherwise the policy would see other
# observations than it was trained on. By default a rollout stops at the end of the first episode;
# with ``break_when_any_done=False`` the environment is reset and the rollout goes on.

random_steps = base_env.rollout(max_steps=2000, break_when_any_done=False)["observation"]
mean, deviation = random_steps.mean(0), random_steps.std(0)
print("mean", mean, "deviation", deviation)


def transformed(env):
    """The environment, or a batch of them, with the transforms behind it."""
    # standard_normal=True gives (x - mean) / deviation; the default is deviation * x + mean.
    normalise = ObservationNorm(mean, deviation, in_keys=["observation"], standard_normal=True)
    return TransformedEnv(
        env, Compose(RewardSum(), RewardScaling(loc=0.0, scale=0.1), normalise, InitTracker())
    )


# %%
# Do not normalise rewards by statistics that change during the training: the units of the values,
# which the critic has to learn, would change with them.

# %%
# Parallel environments
# ---------------------
#
# Several environments can step together, as one environment with a batch dimension. ``ParallelEnv``
# gives each a process of its own; ``SerialEnv`` steps them one after the other in this process.
# Both take a function that makes one environment, and the transforms run once, on the batch. Which
# is faster depends on how long a step takes, so measure:


def frames_per_second(env, steps=100):
    """Speed with random actions."""
    env.rollout(5)  # the first steps are slower
    begin = time.perf_counter()
    env.rollout(steps, break_when_any_done=False)
    return env.batch_size.numel() * steps / (time.perf_counter() - begin)


count = 2
serial_env = transformed(SerialEnv(count, make_base_env))
parallel_env = transformed(ParallelEnv(count, make_base_env, mp_start_method="fork"))
print(f"SerialEnv:   {frames_per_second(serial_env):.0f} frames/s")
print(f"ParallelEnv: {frames_per_second(parallel_env):.0f} frames/s")
parallel_env.close()
torch.set_num_threads(1)  # closing a ParallelEnv changes PyTorch's number of threads

# %%
# A pendulum is computed in microseconds, so here handing tensors to another process costs more than
# the step itself, unless many cores are free. For simulators that take milliseconds (MuJoCo with
# frame skip, rendered images), ``ParallelEnv`` wins. Nothing else in the program changes, so we go
# on with the serial one. (``"fork"`` lets this page run as a notebook on Linux. In a program of
# your own leave it out and put the code under ``if __name__ == "__main__":``.)

env = serial_env
env.set_seed(0)
eval_env = transformed(make_base_env())
eval_env.set_seed(1)

# %%
# Networks and lazy layers
# ------------------------
#
# A ``TensorDictModule`` wraps an ordinary ``nn.Module`` and says which entries it reads and which
# it writes. ``MLP`` is such an ordinary module: linear layers, ``num_cells`` the widths of the
# hidden ones.
#
# The **actor** reads the observation and writes the action. Its last step, ``TanhModule``, squashes
# the output into the range of the action spec, so that the policy cannot ask for a torque that the
# motor does not have. ``action_spec_unbatched`` is the spec of a single environment.
#
# The **critic** reads observation and action and writes ``"state_action_value"``. ``ValueOperator``
# is a ``TensorDictModule`` with that name as its default, and ``MLP`` concatenates its inputs.

action_spec = eval_env.action_spec_unbatched
hidden = {"num_cells": [64, 64], "activation_class": torch.nn.ReLU}
actor = TensorDictSequential(
    TensorDictModule(MLP(out_features=1, **hidden), in_keys=["observation"], out_keys=["param"]),
    TanhModule(in_keys=["param"], out_keys=["action"], spec=action_spec),
)
critic = ValueOperator(MLP(out_features=1, **hidden), in_keys=["observation", "action"])

# %%
# We did not say how wide the inputs are. Such layers are *lazy*: they get their weights when they
# see data for the first time. Run both networks once *before* you build the loss. It copies them to
# make the targets, and weights that do not exist cannot be copied. (If you forget, the loss says
# so.)

with torch.no_grad():
    print(critic(actor(eval_env.reset())))

# %%
# Exploration
# -----------
#
# A deterministic policy always does the same in the same state, so it would never learn what other
# actions are worth. While we collect data, noise is added to its action. The paper uses noise that
# is correlated in time (``OrnsteinUhlenbeckProcessModule``); later work found plain Gaussian noise
# to be as good. Its deviation shrinks from 0.8 to 0.2, in units of the torque, over the training.
# The module clamps the noisy action to the spec. The policy that collects data is the actor with
# the noise behind it.

total_frames, random_frames = 10_000, 1_000
noise = AdditiveGaussianModule(
    action_spec, sigma_init=0.8, sigma_end=0.2, annealing_num_steps=total_frames
)
policy = TensorDictSequential(actor, noise)

# %%
# The noise acts only in ``ExplorationType.RANDOM``, TorchRL's default and what the collector uses.
# In ``ExplorationType.DETERMINISTIC`` it is passed over. Below, ``evaluate`` runs the bare actor, so the
# setting changes nothing; with it you may pass ``policy`` as well.
# The returns that we print are plain sums of rewards in the environment's units, which is what
# people report; the critic predicts discounted sums of scaled rewards.


def evaluate(episodes=5):
    """Mean return of whole episodes without noise, in the environment's own units."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        runs = [eval_env.rollout(max_steps=200, policy=actor) for _ in range(episodes)]
    return sum(run["next", "episode_reward"][-1].item() for run in runs) / episodes


untrained_return = evaluate()
print(f"return before training: {untrained_return:.0f}")

# %%
# Collector
# ---------
#
# The collector runs the policy in the environments and hands over batches of steps. It resets
# environments that are done, and takes random actions for the first 1,000 frames, so that the first
# data is spread out.
#
# ``frames_per_batch`` counts the steps of all environments: 100 frames from two environments are
# two trajectories of 50 steps. The result has batch size ``[2, 50]``, environments first and time
# last.

frames_per_batch = 100
collector = Collector(
    env,
    policy,
    frames_per_batch=frames_per_batch,
    total_frames=total_frames,
    init_random_frames=random_frames,
)

# %%
# Trajectories in the replay buffer
# ---------------------------------
#
# DDPG is *off-policy*: it may learn from old data, so we keep everything in a replay buffer and
# draw minibatches at random. Most DDPG programs store single transitions. We store trajectories:
# each item of the buffer is the 50 steps in a row that one environment added to a batch. Keeping the
# order lets us sum the rewards of several steps (see "Value estimators" below). An item may contain
# the end of one episode and the start of the next; no sum goes beyond ``done``. To store single
# steps instead, extend the buffer with ``data.reshape(-1)``, leave the crop out, make the storage
# ``total_frames`` and the minibatch 125 long, and use the value estimator ``"td0"``.
#
# ``LazyMemmapStorage`` keeps the data in memory-mapped files, so a buffer may be larger than the
# memory of the machine. A minibatch is a *crop* of 5 steps from each of 25 items. We draw crops and
# not whole items because neighbouring steps resemble each other: the same 125 steps teach more if
# they come from 25 places.

steps, crop = frames_per_batch // count, 5  # steps in a row of one environment in a batch: 50
folder = tempfile.TemporaryDirectory()
buffer = TensorDictReplayBuffer(
    storage=LazyMemmapStorage(total_frames // steps, scratch_dir=folder.name),
    transform=RandomCropTensorDict(crop),
    batch_size=25,
)

# %%
# The loss reads the observation, the action, and under ``"next"`` the observation, the reward and
# two flags. Nothing else needs to be stored. To have something to look at, we fill the buffer with
# one batch now: its shape ``[2, 50]`` becomes two items. ``sample`` draws with replacement, so it can
# draw 25 crops of them.

needed = [
    "observation",
    "action",
    *(("next", key) for key in ("observation", "reward", "done", "terminated")),
]
collected = iter(collector)
buffer.extend(next(collected).select(*needed))
batch = buffer.sample()
print("shape of a minibatch:", batch.batch_size, "| reward:", batch["next", "reward"].shape)

# %%
# The loss, term by term
# ----------------------
#
# Now the equations from the top in plain PyTorch. First the targets: copies of both networks.

target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
gamma = 0.99

# %%
# **The target** :math:`y`. Its value is computed by the copies, not by the networks in training. If
# the critic were compared with its own latest output, every change of its weights would change the
# target too, and training often diverges. No gradient flows: the target is treated as data.

with torch.no_grad():
    following = batch["next"].select("observation")
    next_value = target_critic(target_actor(following))["state_action_value"]
    goes_on = (~batch["next", "terminated"]).float()
    target = batch["next", "reward"] + gamma * goes_on * next_value

# %%
# **The critic's loss**: the squared difference to the target, at the action that *was taken*, noise
# included. Reward and next state depend on that action alone, and the next action in the target is
# chosen by :math:`\mu'`, not by whoever collected. That is why old data from any policy will do.

prediction = critic(batch.select("observation", "action"))["state_action_value"]
value_loss = (prediction - target).square().mean()

# %%
# **The actor's loss**: the negative value of the action that the actor *would take now*. The
# gradient runs through the critic into the action and from there into the actor.

actor_loss = -critic(actor(batch.select("observation")))["state_action_value"].mean()

# %%
# Those are the two terms. :class:`~torchrl_ddpg.DDPGLoss` computes the same, as we can check.
# ``"td0"`` is the name of the target above, and ``SoftUpdate`` will move the target networks; both
# are explained below.

loss = DDPGLoss(actor, critic, action_spec=action_spec)
loss.make_value_estimator("td0", gamma=gamma)
updater = SoftUpdate(loss, tau=0.005)
losses = loss(batch)
torch.testing.assert_close(losses["loss_value"], value_loss)
torch.testing.assert_close(losses["loss_actor"], actor_loss)
print({key: round(value.item(), 3) for key, value in losses.items()})

# %%
# So why a class? Because of what the lines above leave to you. Calling ``backward()`` on our
# ``actor_loss``, for example, also leaves gradients on the critic, and a critic trained on them
# would learn to give every action of the actor a high value. The class keeps them apart: each loss
# gives a gradient to its own network alone.

losses["loss_actor"].backward()
print("gradient on the actor: ", all(p.grad is not None for p in actor.parameters()))
print("gradient on the critic:", any(p.grad is not None for p in critic.parameters()))
loss.zero_grad()

# %%
# It also keeps the target networks, clamps target actions to the range, keeps what lies past the end
# of an episode out of the targets before it, writes what
# :doc:`prioritised replay </howto/prioritised_replay>` needs, and
# tells you what is wrong with a batch:

try:
    loss(batch.exclude(("next", "terminated")))
except BatchError as error:
    print(error)

# %%
# Value estimators
# ----------------
#
# The target above looks one step ahead; this is called TD(0), for temporal difference. Early in
# training :math:`Q'` knows nothing, and a reward reaches the values of earlier states only one step
# at a time. With a trajectory we can sum the true rewards of several steps before we ask the critic.
# TD(1) sums to the end of the crop, or of the episode, and asks the critic only there.
# TD(:math:`\lambda`) is a mean over all lengths, in which each further step counts :math:`\lambda` times
# as much; :math:`\lambda = 0` is TD(0), :math:`\lambda = 1` is TD(1).
#
# These are the three kinds of targets for one crop. At its last step only one reward is left, so
# there they agree.

for name, options in (("td0", {}), ("td_lambda", {"lmbda": 0.9}), ("td1", {})):
    loss.make_value_estimator(name, gamma=gamma, **options)
    print(f"{name:10}", loss.compute_target(batch)[0].squeeze(-1))

# %%
# The disadvantage: the summed rewards were earned by the old, noisy policy that collected them, while
# the equation asks for the current one. With short crops that error is small. We take
# TD(:math:`\lambda`) with 0.9. It needs the time order that we kept; on shuffled transitions use
# ``"td0"``.

loss.make_value_estimator("td_lambda", gamma=gamma, lmbda=0.9)

# %%
# Target updates
# --------------
#
# After each step the targets move towards the networks in training by a small share :math:`\tau`:
# :math:`\theta' \leftarrow \tau\theta + (1 - \tau)\theta'`. That is what ``SoftUpdate(loss,
# tau=0.005)`` above does at each call of its ``step()``. With 0.005 the targets are about 200 updates
# behind. With larger values the targets follow sooner, and training is less stable.
#
# One update, then, is: step the critic, step the actor against the new critic, move the targets.
# Written out:
#
# .. code-block:: python
#
#    critic_loss, _ = loss.loss_value(batch)
#    critic_loss.backward()
#    critic_optimizer.step()
#    critic_optimizer.zero_grad()
#    actor_loss, _ = loss.loss_actor(batch)
#    actor_loss.backward()
#    actor_optimizer.step()
#    actor_optimizer.zero_grad()
#    updater.step()
#
# :class:`~torchrl_ddpg.UpdateStep` is these lines in one call. On a CPU, ``record_operators=True``
# records the operators of an update once for each shape of batch and replays them, which is faster and
# gives the same numbers. The Python of the networks runs only while recording, so leave it out where
# a network branches on values.

update = UpdateStep(
    loss,
    actor_optimizer=torch.optim.Adam(actor.parameters(), lr=1e-3),
    critic_optimizer=torch.optim.Adam(critic.parameters(), lr=1e-3),
    target_updater=updater,
    record_operators=True,
)

# %%
# The loop
# --------
#
# Collect, store, update once per collected frame (the usual number: more learns faster per frame, but
# less steadily), evaluate now and then. While actions are random,
# nothing is trained. ``data.numel()`` is the number of frames in a batch. ``noise.step`` shrinks the
# noise. ``update`` returns the two losses and metrics, among them ``"pred_value"``, the mean of
# :math:`Q(s, a)`. The collector runs our actor itself, so it always has the newest weights. A
# collector in another process has a copy of the policy; there, call
# ``collector.update_policy_weights_()`` after the updates.

frames = frames_per_batch  # one batch is in the buffer already
training, evaluations, values = [], [(0, untrained_return)], []
begin = time.perf_counter()
for data in collected:
    buffer.extend(data.select(*needed))
    frames += data.numel()
    noise.step(data.numel())
    after = data["next"]
    training += [(frames, value) for value in after["episode_reward"][after["done"]].tolist()]
    if frames <= random_frames:
        continue
    for _ in range(data.numel()):
        metrics = update(buffer.sample())
    values.append((frames, metrics["pred_value"].item()))
    if frames % 1_000 == 0:
        evaluations.append((frames, evaluate()))
        print(
            f"{frames} frames: return {evaluations[-1][1]:.0f}, "
            f"loss of the critic {metrics['loss_value']:.3f}"
        )
collector.shutdown()
print(f"training took {time.perf_counter() - begin:.0f} s")

# %%
# Evaluation
# ----------
#
# The returns during the training, with noise while collecting and without it in the evaluations; and
# what the critic predicted.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(*zip(*training, strict=True), ".", label="while collecting, with noise")
left.plot(*zip(*evaluations, strict=True), "o-", label="evaluation, 5 episodes")
left.axhline(untrained_return, ls="--", color="gray", label="before training")
left.set(xlabel="frames", ylabel="return of an episode")
left.legend()
right.plot(*zip(*values, strict=True))
right.set(xlabel="frames", ylabel="mean predicted value (scaled reward)")
plt.show()

# %%
# A rising return alone does not show that the critic is right. We can ask it: along one episode,
# compare what it predicted with the discounted sum of the rewards that really followed. The last
# steps are left out, since the time limit cuts off what would have followed.

with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
    run = critic(eval_env.rollout(max_steps=200, policy=actor))
returns, following = [], torch.zeros(())
for reward in run["next", "reward"].squeeze(-1).flip(0):
    following = reward + gamma * following
    returns.append(following)
returns = torch.stack(returns).flip(0)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(run["state_action_value"].squeeze(-1)[:120].numpy(), label="predicted by the critic")
axes.plot(returns[:120].numpy(), label="what followed")
axes.set(xlabel="step of the episode", ylabel="discounted return (scaled reward)")
axes.legend()
plt.show()

# %%
# The two should have the same shape. The critic is best where the policy spends most of its time,
# with the pole upright, and less exact on the swing up, which it sees less often. (A prediction
# above 0 is surely wrong: no reward here is positive.) A gap that *grows* during training would be
# a reason to worry.

# %%
# And the policy itself, for every angle (0 is upright) and speed. The observation must be
# normalised as in training.

angle, speed = torch.meshgrid(
    torch.linspace(-3.14, 3.14, 101), torch.linspace(-8, 8, 101), indexing="xy"
)
observation = (torch.stack([angle.cos(), angle.sin(), speed], -1) - mean) / deviation
with torch.no_grad():
    torque = actor(TensorDict({"observation": observation}, batch_size=[101, 101]))[
        "action"
    ].squeeze(-1)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
image = axes.pcolormesh(
    angle.numpy(), speed.numpy(), torque.numpy(), cmap="coolwarm", shading="nearest"
)
axes.set(xlabel="angle", ylabel="angular speed")
figure.colorbar(image, label="torque")
plt.show()

# %%
# The return of the last two evaluations. This page is not built if they are bad.

final_return = sum(value for _, value in evaluations[-2:]) / 2
assert final_return > -400, f"training failed: {final_return}"
print(f"return: {untrained_return:.0f} before training, {final_return:.0f} at the end")
folder.cleanup()

# %%
# Above -200 means that the pole is swung up and then held upright in every episode.
#
# What to change for your own environment
# ---------------------------------------
#
# - ``make_base_env``: the environment. ``GymEnv`` takes the name of any environment that is registered
#   with Gymnasium, and ``torchrl.envs.GymWrapper`` an object of your own. Its actions must be vectors
#   of real numbers with a lowest and a highest value. Check that it sets ``terminated`` at a real end
#   and ``truncated`` at a time limit.
# - ``RewardScaling``: a factor that makes the returns, discounted and scaled, about 1 to 100.
# - The networks: ``out_features`` of the actor is the number of entries of an action. Larger tasks
#   use layers of 256 units. If the observation is not one vector called ``"observation"``, change
#   ``in_keys``, ``ObservationNorm`` and ``needed``.
# - The noise: ``sigma_init`` and ``sigma_end`` are in units of the action. From 0.4 to 0.1 of half
#   its range is what we used here.
# - The lengths: ``max_steps`` in ``evaluate``, and ``total_frames``: a hundred thousand to a million
#   for a walking robot, with ``random_frames`` a tenth or less of it.
# - ``gamma``: about ``1 - 1 / n`` if an action matters for the next ``n`` steps.
# - Where an entry of the observation may stand still: ``deviation.clamp_min(1e-3)``.
# - The batch: ``frames_per_batch`` must divide the 1,000 frames between evaluations. Leave ``tau``, the
#   learning rates, the crop and the minibatch as they are at first.
# - What belongs to the pendulum alone: the printed range of the action, the 200 and 120 steps of the
#   comparison with the critic, the plot of the torque, and the check of ``final_return``.
#
# Where to go from here
# ---------------------
#
# - Change one word: ``TD3Loss`` in place of ``DDPGLoss`` trains two critics and takes the lower
#   value, which counters the overestimation of DDPG (give ``UpdateStep`` a ``policy_delay=2``).
# - :doc:`plot_2_own_loss` changes the equations, :doc:`plot_3_own_value_estimator` the targets, and
#   :doc:`plot_4_td3_bc` learns from recorded data alone.
# - The how-to pages have what a real run needs: :doc:`prioritised replay
#   </howto/prioritised_replay>`, :doc:`checkpoints </howto/checkpoint>`, :doc:`a GPU </howto/gpu>`,
#   and what to do :doc:`when it does not learn </howto/debugging>`.
# - ``examples/train_ddpg.py`` in the repository is this program with flags for all of it.

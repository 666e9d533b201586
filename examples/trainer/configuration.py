"""Every setting of the trainer, the numbers that it accepts, and the presets. Nothing here imports PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

RENDERING = "to render without a screen: MUJOCO_GL=egl, and Debian's libegl1, libopengl0 and libgl1-mesa-dri"


@dataclass(frozen=True)
class Range:
    """The numbers that a setting accepts, from ``low`` to ``high``; ``above`` leaves ``low`` itself out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def accepts(self, number: float) -> bool:
        """Whether it is one of them; NaN and infinity never are."""
        return math.isfinite(number) and self.low <= number <= self.high and not (self.above and number == self.low)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "a finite number"
        words = f"{'above' if self.above else 'at least'} {self.low:,.0f}"
        return words if self.high == math.inf else f"{words} and at most {self.high:,.0f}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
PositiveOrZero = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Finite = Annotated[float, Range()]


@dataclass
class EnvConfig:
    """The environment and its transforms."""

    backend: Literal["gymnasium", "dm-control", "torchrl"] = "gymnasium"  # Library that the environment comes from.
    name: str = ""  # By default HalfCheetah-v5, cheetah-run or PendulumEnv; one's own: module:Id-v0 or module:Class.
    frame_skip: Count = 1  # Frames (simulator steps) that an action lasts.
    from_pixels: bool = False  # Show the networks the last three images, 84 x 84 and grey, instead of the state.
    max_steps: CountOrZero = 1000  # Actions after which an episode is truncated; 0 = the environment's own limit.
    count: Count = 4  # Environments that step together.
    parallel: bool = False  # Give each of them its own process.
    reward_scale: Positive = 1.0  # Factor on the rewards in training.
    normalise: bool = True  # Bring observations to mean 0 and deviation 1, as measured under random actions.
    random_steps: CountOrZero = 5_000  # Random actions for that and for the random policy's return; whole episodes.


@dataclass
class NoiseConfig:
    """Exploration noise, in units of half the range of each action."""

    kind: Literal["ou", "gaussian", "none"] = "ou"  # Ornstein-Uhlenbeck (correlated in time), or Gaussian, or none.
    sigma: PositiveOrZero = 0.2  # Standard deviation of what each step adds.
    end: Share = 0.1  # Share of the noise that is left in the end.
    anneal_frames: Count = 1_000_000  # Frames until then.


@dataclass
class ReplayConfig:
    """What a minibatch is, and how much is kept."""

    frames: Annotated[int, Range(1, 10**9)] = 1_000_000  # Frames that fit in.
    batch: Count = 50  # Crops in a minibatch.
    crop: Count = 2  # Steps in a crop of a trajectory, at most steps-per-batch; 1 = single transitions.
    sampler: Literal["uniform", "prioritised"] = "uniform"  # Sample evenly, or by TD error.
    alpha: PositiveOrZero = 0.7  # Power of the TD error in prioritised sampling.
    beta: Share = 0.5  # How far the weights correct its bias.
    prefetch: CountOrZero = 0  # Draws that threads make ahead; 0 keeps a seed's run repeatable.


@dataclass
class EvalConfig:
    """Deterministic episodes that measure the policy; they begin from the same seeds every time."""

    interval: CountOrZero = 4_000  # Frames between evaluations; 0 = never.
    episodes: Count = 3  # Episodes whose returns are averaged.


@dataclass
class CheckpointConfig:
    """What a run is resumed from."""

    interval: CountOrZero = 10_000  # Frames between checkpoints; 0 = at the end alone.


@dataclass
class Config:
    """Train DDPG or a descendant. Presets: tutorial (the default), mujoco, pendulum. A frame is a simulator step."""

    env: EnvConfig = field(default_factory=EnvConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    loss: Literal["ddpg", "td3", "d4pg", "fast-td3", "td3-bc", "rebrac"] = "ddpg"  # Paper; the last two: offline-data.
    policy_delay: CountOrZero = 0  # Critic updates per update of actor and targets; 0 = the paper's (TD3: 2, else 1).
    v_min: Finite = 0.0  # d4pg, fast-td3: lowest discounted return in scaled rewards: reward / (1 - gamma).
    v_max: Finite = 0.0  # d4pg, fast-td3: highest; right if target_outside_support in metrics.csv stays near 0.
    num_atoms: Annotated[int, Range(2)] = 51  # Returns between the two to which the critic gives probabilities.
    alpha: PositiveOrZero = 2.5  # td3-bc: weight of the value against imitation.
    alpha_actor: PositiveOrZero = 0.1  # rebrac: weight of the actor's penalty, in units of half the action's range.
    alpha_critic: PositiveOrZero = 0.01  # rebrac: weight of the critics' penalty.
    offline_data: str = ""  # td3-bc, rebrac: the folder of an earlier run, or a Minari dataset on this machine.
    total_frames: Count = 40_000  # Frames to train for, rounded up to whole batches.
    init_random_frames: CountOrZero = 5_000  # Frames of random actions before learning begins; whole batches.
    collector: Literal["sync", "async", "ray"] = "sync"  # Collect between updates, or at the same time, or with Ray.
    workers: Annotated[Count, tyro.conf.arg(name="collector.workers")] = 1  # async, ray: processes that collect.
    timeout: Annotated[Count, tyro.conf.arg(name="collector.timeout")] = 600  # Seconds to wait for a batch at most.
    steps_per_batch: Count = 50  # Actions of each environment in a collected batch.
    updates_per_batch: CountOrZero = 200  # Updates after each batch.
    estimator: Literal["td0", "td1", "td_lambda"] = "td_lambda"  # Value estimator of the critic's targets.
    gamma: Share = 0.99  # Discount of an action.
    lmbda: Share = 0.5  # Weight of longer returns in td_lambda.
    n_steps: Count = 1  # Rewards summed before bootstrapping; more than one goes with td0.
    tau: Annotated[float, Range(0, 1, above=True)] = 0.005  # Weight of the online networks in a soft target update.
    hard_interval: CountOrZero = 0  # Updates between two hard copies to the targets; 0 = soft updates.
    actor_lr: Positive = 1e-3  # Learning rate of the actor.
    critic_lr: Positive = 1e-3  # Learning rate of the critic.
    critic_weight_decay: PositiveOrZero = 0.0  # Weight decay of the critic.
    max_grad_norm: PositiveOrZero = 10.0  # Gradient norm above which a network's gradient is clipped; 0 = never.
    update: Literal["eager", "record", "compile", "cuda-graph"] = "record"  # How the update runs: docs/speed.md.
    networks: str = ""  # module:function of your own, called with (cfg, env); returns actor and critic.
    hidden: tuple[Count, ...] = (400, 300)  # Widths of the hidden layers.
    action_layer: Literal[0, 1] | None = None  # Hidden layers before the critic sees the action; default: the paper's.
    layer_norm: bool = False  # Layer normalisation in the critic, as ReBRAC's paper has it.
    activation: Literal["ELU", "ReLU", "SiLU", "Tanh"] = "ReLU"  # Activation.
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0  # The same seed gives the same run (on a CPU, sync, no prefetch).
    threads: Annotated[int, Range(1, 1024)] = 1  # PyTorch's threads in the main process.
    device: Literal["auto", "cpu", "cuda"] = "auto"  # Where the networks live.
    output_dir: Path | None = None  # Folder of the results; default: outputs/ENV-LOSS-SEED. An earlier run's go.
    resume: Path | None = None  # Folder of an interrupted run to go on with.
    logger: Literal["none", "tensorboard", "wandb", "mlflow", "csv"] = "none"  # TorchRL's logger, beside metrics.csv.


PRESETS = {
    # The parts of TorchRL's tutorial on DDPG, with numbers that learn in a few minutes.
    "tutorial": Config(),
    # As in TD3's paper, Fujimoto et al. 2018: networks, learning rates, minibatches, noise, random actions at first.
    "mujoco": Config(
        env=EnvConfig(max_steps=0, normalise=False),
        noise=NoiseConfig("gaussian", sigma=0.1, end=1.0),
        replay=ReplayConfig(batch=100, crop=1),
        eval=EvalConfig(interval=5_000, episodes=5),
        checkpoint=CheckpointConfig(interval=50_000),
        total_frames=1_000_000,
        init_random_frames=10_000,
        steps_per_batch=1,
        updates_per_batch=4,
        estimator="td0",
        max_grad_norm=0.0,
        action_layer=0,
        threads=2,
    ),
    # Pendulum-v1 in a few minutes.
    "pendulum": Config(
        env=EnvConfig(name="Pendulum-v1", max_steps=0, count=1, reward_scale=0.1),
        noise=NoiseConfig("gaussian", sigma=0.1, end=1.0),
        replay=ReplayConfig(batch=128, crop=1),
        eval=EvalConfig(interval=600, episodes=5),
        checkpoint=CheckpointConfig(interval=4_000),
        total_frames=12_000,
        init_random_frames=1_000,
        updates_per_batch=50,
        estimator="td0",
        hidden=(256, 256),
        v_min=-163.0,  # the lowest reward, -16.3, scaled, for ever
    ),
}

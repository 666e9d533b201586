"""Train DDPG (Lillicrap et al. 2016, algorithm 1) or a descendant: ``python train_ddpg.py [PRESET] [--flags]``."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds, ends without a traceback
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

import command_line
import offline
import pipeline
import replay_buffer
from learners import make_learner


@dataclass
class EnvConfig:
    """The environment and its transforms."""

    backend: Literal["gymnasium", "dm-control", "torchrl"] = "gymnasium"  # Library that the environment comes from.
    name: str = ""  # By default HalfCheetah-v5, cheetah-run or PendulumEnv; for torchrl also module:Class.
    frame_skip: int = 2  # Frames (simulator steps) that an action lasts.
    from_pixels: bool = False  # Show the networks the last three images instead of the state.
    max_steps: int = 500  # Actions after which an episode is truncated; 0 = the environment's own limit.
    count: int = 4  # Environments that step together.
    parallel: bool = True  # Give each of them its own process.
    reward_scale: float = 1.0  # Factor on the rewards in training. Tutorial: 5, return -26 [547].
    normalise: bool = True  # Bring observations to mean 0 and deviation 1, as measured under random actions.
    random_steps: int = 5_000  # Random actions for that and for the random policy's return; whole episodes.


@dataclass
class NoiseConfig:
    """Exploration noise, in units of the action."""

    kind: Literal["ou", "gaussian", "none"] = "ou"  # Ornstein-Uhlenbeck (correlated in time), or Gaussian, or none.
    sigma: float = 0.2  # Deviation of what each step adds.
    dt: float = 1.0  # Time an Ornstein-Uhlenbeck process advances a step. Tutorial: 0.01, return 483 [547].
    end: float = 0.1  # Share of the noise that is left in the end.
    anneal_frames: int = 1_000_000  # Frames until then.


@dataclass
class ReplayConfig:
    """What is stored, and what a minibatch is."""

    unit: Literal["trajectory", "transition"] = "trajectory"  # Store stretches of trajectories, or single steps.
    frames: int = 1_000_000  # Frames that fit in.
    batch: int = 64  # Crops or single steps in a minibatch. Tutorial: 32.
    crop: int = 2  # Steps in a crop of a stretch, at most steps-per-batch. Tutorial: 25, return 319 [547].
    sampler: Literal["uniform", "prioritised"] = "uniform"  # Sample evenly, or by TD error.
    alpha: float = 0.7  # Power of the TD error in prioritised sampling.
    beta: float = 0.5  # How far the weights correct its bias.
    prefetch: int = 0  # Draws that threads make ahead. Tutorial: 3; 0 keeps a seed's run repeatable.


@dataclass
class EvalConfig:
    """Deterministic episodes that measure the policy."""

    interval: int = 16_000  # Frames between evaluations; 0 = never.
    episodes: int = 3  # Episodes whose returns are averaged.


@dataclass
class Config:
    """Train DDPG or a descendant. Presets: tutorial (the default), mujoco, pendulum. A frame is a simulator step."""

    env: EnvConfig = field(default_factory=EnvConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    loss: Literal["ddpg", "td3", "td3-bc", "d4pg"] = "ddpg"  # Paper to follow; td3-bc learns from offline-data alone.
    policy_delay: int = 0  # Updates of the critic to one of actor and targets; 0 = the paper's (TD3: 2, else 1).
    v_min: float = 0.0  # d4pg: lowest discounted return in scaled rewards, such as lowest reward / (1 - gamma).
    v_max: float = 0.0  # d4pg: highest; right if target_outside_support in metrics.csv stays near 0.
    num_atoms: int = 51  # d4pg: returns between the two to which the critic gives probabilities.
    offline_data: str = ""  # td3-bc: the replay folder of a run with save-replay, or a Minari dataset on this machine.
    save_replay: bool = False  # Write the replay buffer to OUTPUT-DIR/replay in the end, for td3-bc.
    total_frames: int = 64_000  # Frames to train for, rounded up to whole batches.
    init_random_frames: int = 5_000  # Frames of random actions before learning begins; whole batches.
    collector: Literal["sync", "async", "ray"] = "sync"  # Collect between updates, or meanwhile, or with Ray.
    steps_per_batch: int = 200  # Actions of each environment in a collected batch.
    updates_per_batch: int = 400  # Updates after each batch. Tutorial: 64, return -172 [547].
    estimator: Literal["td0", "td1", "td_lambda"] = "td_lambda"  # Value estimator of the critic's targets.
    gamma: float = 0.99  # Discount of an action.
    lmbda: float = 0.5  # Weight of longer returns in td_lambda. Tutorial: 0.9, return 377 [547].
    n_steps: int = 1  # Rewards summed before bootstrapping; more than one goes with td0.
    target_update: Literal["soft", "hard"] = "soft"  # Move the targets a little at each update, or copy now and then.
    tau: float = 0.005  # Weight of the online networks in a soft update. Tutorial: 0.001, return 461 [547].
    hard_interval: int = 1_000  # Updates between two hard copies.
    actor_lr: float = 1e-4  # Learning rate of the actor.
    critic_lr: float = 1e-3  # Learning rate of the critic.
    critic_weight_decay: float = 0.0  # Weight decay of the critic. Tutorial: 1e-2, return 420 [547].
    max_grad_norm: float = 10.0  # Gradient norm above which a network's gradient is clipped; 0 = never.
    compile: bool = False  # Compile the update with torch.compile.
    record_operators: bool = False  # On a CPU, record the update's operators: the same numbers, sooner.
    cuda_graph: bool = False  # Replay the update as one CUDA graph; needs --device cuda.
    hidden: tuple[int, ...] = (256, 256)  # Widths of the hidden layers. Tutorial: 400, 300.
    action_layer: Literal[0, 1] = 1  # Hidden layers before the critic sees the action; 0 for td3 and td3-bc.
    activation: Literal["ELU", "ReLU", "SiLU", "Tanh"] = "ReLU"  # Activation. Tutorial: ELU, 35 times ReLU's time.
    seed: int = 0  # The same seed gives the same run (on a CPU, sync, without prefetch).
    threads: int = 1  # PyTorch's threads in the main process.
    device: Literal["auto", "cpu", "cuda"] = "auto"  # Where the networks live.
    output_dir: Path = Path("outputs")  # Folder for the results; an earlier run's are replaced.
    tensorboard: bool = False  # Log to TensorBoard too.


PRESETS = {
    "tutorial": Config(),  # beside fields: return with the tutorial's number [ours], mean of three seeds, 24,000 frames
    # What published results use: Fujimoto et al. 2018, CleanRL, Tianshou.
    "mujoco": Config(
        env=EnvConfig(frame_skip=1, max_steps=0, count=4, parallel=False, normalise=False),
        noise=NoiseConfig("gaussian", sigma=0.1, end=1.0),
        replay=ReplayConfig("transition", batch=256),
        eval=EvalConfig(interval=10_000),
        total_frames=1_000_000,
        init_random_frames=25_000,
        collector="async",
        steps_per_batch=25,
        updates_per_batch=100,
        estimator="td0",
        actor_lr=3e-4,
        critic_lr=3e-4,
        max_grad_norm=0.0,
        record_operators=True,
        action_layer=0,
        threads=2,
    ),
    "pendulum": Config(
        env=EnvConfig(name="Pendulum-v1", frame_skip=1, max_steps=0, count=1, parallel=False, reward_scale=0.1),
        noise=NoiseConfig("gaussian", sigma=0.2, end=1.0),
        replay=ReplayConfig("transition", batch=128),
        eval=EvalConfig(interval=2_000, episodes=10),
        total_frames=12_000,
        init_random_frames=1_000,
        steps_per_batch=50,
        updates_per_batch=50,
        estimator="td0",
        actor_lr=1e-3,
        v_min=-163.0,  # the lowest reward, -16.3, scaled, for ever
    ),
}


def train(cfg: Config) -> bool:
    """Run algorithm 1 for `total_frames` frames or until Ctrl-C, and save what was learned; True after Ctrl-C."""
    if cfg.loss == "td3-bc":
        return offline.train(cfg)
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads)
    random_return, stats = pipeline.measure_random_policy(cfg)
    eval_env = pipeline.make_env(cfg.env, stats, training=False, seed=cfg.seed + 2)
    # Initialise critic Q and actor mu, their targets Q' and mu', the noise N and the replay buffer R.
    actor, critic = pipeline.make_networks(cfg, eval_env)
    policy, noise = pipeline.make_exploration(cfg, actor, eval_env.action_spec_unbatched)
    update = make_learner(cfg, actor, critic, eval_env.action_spec_unbatched)
    replay = replay_buffer.make_replay(cfg)
    with (
        pipeline.Recorder(cfg, actor, eval_env, stats, random_return) as recorder,
        pipeline.collecting(cfg, stats, policy) as (collector, stop),
        offline.saving_replay(cfg, replay, stats),
    ):
        for batch in collector:
            # Act with mu(s) + N for a while; store actions, rewards and next states in R.
            replay.extend(replay_buffer.prepare(cfg, batch))
            recorder.collected(batch)
            count = cfg.updates_per_batch if recorder.frames >= cfg.init_random_frames else 0
            # Sample a minibatch from R.
            for sample in replay_buffer.minibatches(cfg, replay, count):
                if stop.is_set():
                    return True
                pipeline.share_threads(cfg, collector)
                # Descend (y - Q(s, a))^2 with y = r + gamma Q'(s', mu'(s')), then ascend Q(s, mu(s)),
                # then move Q' and mu' towards Q and mu.
                recorder.note(**update(sample))
                replay.update_tensordict_priority(sample)
                recorder.updates += 1
            collector.update_policy_weights_()
            recorder.sent = recorder.updates
            noise.step(batch.numel())
            recorder.finish_batch()
            if stop.is_set():
                return True
    return False


if __name__ == "__main__":
    sys.exit(command_line.main(PRESETS, train))

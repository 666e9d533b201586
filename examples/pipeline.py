"""What ``train_ddpg.py`` is made of: environments, networks, replay, collector, records."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import random
import signal
import sys
import threading
from functools import partial
from importlib import import_module

import torch
import tqdm
import yaml
from matplotlib.figure import Figure
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl import collectors, data, envs, modules
from torchrl.weight_update import SharedMemWeightSyncScheme

END_KEYS = ("done", "terminated", "truncated")


class RepeatAction(envs.FrameSkipTransform):
    """Repeat an action and sum its rewards; TorchRL's own transform repeats a stateless environment's state too."""

    def _step(self, tensordict, next_tensordict):
        reward = next_tensordict["reward"]
        for _ in range(self.frame_skip - 1):
            if next_tensordict["done"].any():
                break
            state = next_tensordict.exclude("reward", *END_KEYS)
            next_tensordict = self.parent._step(tensordict.copy().update(state))
            reward = reward + next_tensordict["reward"]
        return next_tensordict.set("reward", reward)


def quieten_mujoco() -> None:
    """Keep MuJoCo's notes on old model files off the terminal, in a worker process where there is one."""
    with contextlib.suppress(ImportError, AttributeError):
        warn = import_module("mujoco").set_mju_user_warning
        warn(lambda text: None if "deprecated" in text else print(text, file=sys.stderr))


def make_vector_env(cfg):
    """Gymnasium's environments as one; TorchRL's Python for a step, most of its time, then runs once for all."""
    quieten_mujoco()
    gymnasium = import_module("gymnasium")
    options = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # resets are the collector's
    return envs.GymWrapper(gymnasium.make_vec(cfg.name, cfg.count, "sync", vector_kwargs=options))


def make_base_env(cfg):
    """One environment without transforms."""
    quieten_mujoco()
    options = {"from_pixels": True, "pixels_only": True} if cfg.from_pixels else {}
    if cfg.backend == "gymnasium":
        return envs.GymEnv(cfg.name, frame_skip=cfg.frame_skip, **options)
    if cfg.backend == "dm-control":
        return envs.DMControlEnv(*cfg.name.split("-", 1), frame_skip=cfg.frame_skip, **options)
    module, _, name = cfg.name.rpartition(":")
    env = getattr(import_module(module or "torchrl.envs"), name)()
    return env if cfg.frame_skip == 1 else envs.TransformedEnv(env, RepeatAction(cfg.frame_skip))


def make_env(cfg, stats=None, training: bool = True, seed: int = 0):
    """The environments to train with as one batch, or one to evaluate with; transformed and seeded."""
    make = partial(make_base_env, cfg)
    if not training:
        env = make()
    elif cfg.backend == "gymnasium" and cfg.count > cfg.frame_skip == 1 and not (cfg.parallel or cfg.from_pixels):
        env = make_vector_env(cfg)
        seed = random.Random(seed).randrange(2**31 - cfg.count)  # the i-th gets seed + i, which next run's would share
    else:
        env = (envs.ParallelEnv if cfg.parallel else envs.SerialEnv)(cfg.count, envs.EnvCreator(make), device="cpu")
    # Returns are summed before the scaling, so they stay in the environment's own reward units.
    steps = [envs.RewardSum(), envs.RewardScaling(0.0, cfg.reward_scale)]
    if cfg.from_pixels:
        steps += [envs.ToTensorImage(), envs.CatFrames(3, -3, ["pixels"], ["observation_vector"])]
    else:
        leaves = {key: spec for key, spec in env.observation_spec.items() if not isinstance(spec, data.Composite)}
        scalars = [key for key, spec in leaves.items() if len(spec.shape) == len(env.batch_size)]
        steps.append(envs.UnsqueezeTransform(-1, in_keys=scalars, out_keys=[f"{key}_vector" for key in scalars]))
        keys = [f"{key}_vector" if key in scalars else key for key in leaves if leaves[key].dtype.is_floating_point]
        steps.append(envs.CatTensors(keys, "observation_vector", del_keys=False))
    if stats:
        steps.append(envs.ObservationNorm(*stats, in_keys=["observation_vector"], standard_normal=True))
    steps += [envs.DoubleToFloat(), envs.StepCounter(cfg.max_steps or None), envs.InitTracker()]
    env = envs.TransformedEnv(env, envs.Compose(*steps), auto_unwrap=False)
    env.set_seed(seed)
    return env


@torch.no_grad()
def run_episodes(env, actor=None, episodes: int = 1, min_steps: int = 0):
    """Mean return of whole episodes, deterministic with the actor or random without, and the episodes."""
    runs, away = [], actor is not None and next(actor.parameters()).device.type != "cpu"
    env = env.to("cpu") if away else env  # left to itself, it does not say where its tensors are
    with envs.set_exploration_type(envs.ExplorationType.DETERMINISTIC):
        while len(runs) < episodes or sum(map(len, runs)) < min_steps:
            runs.append(env.rollout(10_000_000, actor, auto_cast_to_device=away))
    return sum(run["next", "episode_reward"][-1].item() for run in runs) / len(runs), runs


def measure_random_policy(cfg):
    """Return of random actions, and mean and deviation of the observations they meet (None unless normalised)."""
    env = make_env(cfg.env, training=False, seed=cfg.seed + 1)
    value, runs = run_episodes(env, min_steps=cfg.env.random_steps)
    env.close()
    if not cfg.env.normalise or cfg.env.from_pixels:
        return value, None
    return value, statistics(torch.cat([run["observation_vector"] for run in runs]))


def statistics(observations):
    """Mean and deviation of each entry of the observations."""
    return observations.mean(0), observations.std(0).clamp_min(1e-2)  # an entry may stand still


class Squash(torch.nn.Module):
    """Tanh onto the action's range: what ``TanhDelta`` gives, without making a distribution at each call."""

    def __init__(self, low, high):
        super().__init__()
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, param):
        """The action, of the shape of ``param``."""
        return torch.addcmul(self.middle, self.half_range, param.tanh())


def make_networks(cfg, env):
    """Actor and critic as the loss's paper has them, whose lazy layers have seen one step."""
    spec, key, size = env.action_spec_unbatched, "observation_vector", env.action_spec.shape[-1]
    common = {"activation_class": getattr(torch.nn, cfg.activation), "depth": None}
    outputs = {"out_features": cfg.num_atoms if cfg.loss == "d4pg" else 1}
    if cfg.env.from_pixels:
        net, out_keys = modules.DdpgCnnActor(size), ["param", "hidden"]
        value = modules.DdpgCnnQNet(mlp_net_kwargs=outputs)
    else:
        net, out_keys = modules.DdpgMlpActor(size, common | {"num_cells": list(cfg.hidden)}), ["param"]
        if cfg.action_layer == 0 or cfg.loss in ("td3", "td3-bc"):  # where TD3's critics see it
            value = modules.MLP(num_cells=list(cfg.hidden), **common, **outputs)
        else:
            first = common | {"depth": 0, "out_features": cfg.hidden[0]}
            value = modules.DdpgMlpQNet(first, common | outputs | {"num_cells": list(cfg.hidden[1:])})
    low, high = spec.space.low, spec.space.high
    onto_range = torch.nn.Tanh() if (low == -1).all() and (high == 1).all() else Squash(low, high)
    squash = TensorDictModule(onto_range, ["param"], ["action"])
    actor = TensorDictSequential(TensorDictModule(net, [key], out_keys), squash)
    critic = TensorDictModule(value, [key, "action"], ["state_action_value"])
    critic(actor(env.fake_tensordict()))
    return actor.to(cfg.device), critic.to(cfg.device)


def make_exploration(cfg, actor, spec):
    """The actor with noise behind it, and the noise, whose ``step`` anneals it."""
    noise, steps = cfg.noise, math.ceil(cfg.noise.anneal_frames / cfg.env.frame_skip)
    if noise.kind == "ou":
        options = {"sigma": noise.sigma, "dt": noise.dt, "device": cfg.device}
        module = modules.OrnsteinUhlenbeckProcessModule(spec, 1.0, noise.end, steps, **options)
    else:
        sigma = noise.sigma if noise.kind == "gaussian" else 0.0
        module = modules.AdditiveGaussianModule(spec, sigma, sigma * noise.end, steps, device=cfg.device)
    return TensorDictSequential(actor, module), module


@contextlib.contextmanager
def collecting(cfg, stats, policy):
    """The collector, and an event that Ctrl-C sets; worker processes start with Ctrl-C blocked and never see it."""
    make, threads, stop = partial(make_env, cfg.env, stats, seed=cfg.seed + 3), cfg.threads, threading.Event()
    size = cfg.steps_per_batch * cfg.env.count
    total, random = (
        math.ceil(frames / cfg.env.frame_skip / size) * size for frames in (cfg.total_frames, cfg.init_random_frames)
    )
    schemes = {}
    options = {"frames_per_batch": size, "total_frames": total, "init_random_frames": random}
    if cfg.device != "cpu":
        act_on = "cpu" if cfg.collector == "async" else cfg.device  # two processes would take turns on a GPU
        options |= {"policy_device": act_on, "env_device": "cpu", "storing_device": "cpu"}
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if cfg.collector == "sync":
        collector = collectors.Collector(make(), policy, trust_policy=True, **options)
    elif cfg.collector == "async":
        schemes = {"policy": SharedMemWeightSyncScheme()}
        collector = collectors.MultiAsyncCollector([make], policy, weight_sync_schemes=schemes, **options)
    else:
        collector = import_module("torchrl.collectors.distributed").RayCollector([make], policy, **options)
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(threads)  # ParallelEnv has taken its workers' share away
    try:
        yield collector, stop
    finally:
        collector.shutdown()
        for scheme in schemes.values():  # left to __del__, it starts a thread while Python ends, and waits for ever
            scheme.shutdown()


def share_threads(cfg, collector) -> None:
    """Leave a core to the collector's process until the next batch lies in its queue, then take it back."""
    if cfg.collector == "async" and cfg.threads > 1 and cfg.device == "cpu":  # torch.compile compiles anew for it
        torch.set_num_threads(cfg.threads - collector.queue_out.empty())


class Recorder(contextlib.AbstractContextManager):
    """Progress bar and output folder: config.yaml, metrics.csv, learning_curve.png, policy.pt, TensorBoard's files."""

    losses = ("loss_value", "loss_actor", "target_value", "grad_norm_critic", "grad_norm_actor")
    shown = ("reward", "train_return", "eval_return", *losses)
    columns = ("frames", *shown, "pred_value", "target_outside_support", "staleness", "updates", "seconds")

    def __init__(self, cfg, actor, eval_env, stats, random_return: float):
        self.cfg, self.actor, self.eval_env, self.stats, self.random_return = cfg, actor, eval_env, stats, random_return
        self.frames, self.updates, self.rows, self.noted = 0, 0, [{"frames": 0}], {}
        self.sent, self.acting = 0, 0  # updates that the policy's weights had seen: the last ones sent, the ones in use
        plain = dataclasses.asdict(cfg) | {"output_dir": str(cfg.output_dir), "hidden": list(cfg.hidden)}
        (cfg.output_dir / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        self.file = (cfg.output_dir / "metrics.csv").open("w", newline="")
        self.csv = csv.DictWriter(self.file, self.columns)
        self.csv.writeheader()
        self.bar = tqdm.tqdm(total=cfg.total_frames, unit="frame", dynamic_ncols=True)
        folder = cfg.output_dir / "tensorboard"
        self.board = import_module("torch.utils.tensorboard").SummaryWriter(folder) if cfg.tensorboard else None

    def note(self, **values) -> None:
        """Keep values, whose means make the next row; TD3 calls the critics' loss `loss_qvalue`."""
        for key, value in values.items():
            key = "loss_value" if key == "loss_qvalue" else key
            if key in self.columns:
                self.noted.setdefault(key, []).append(value.mean() if value.ndim else value)

    def advance(self, frames: int) -> None:
        """Count frames."""
        self.frames += frames
        self.bar.update(frames)

    def collected(self, batch) -> None:
        """Count a batch; note its rewards and the returns of the episodes that ended in it."""
        after = batch["next"]
        self.advance(batch.numel() * self.cfg.env.frame_skip)
        self.note(reward=after["reward"] / self.cfg.env.reward_scale)
        # Beside learning, the next batch begins with what was sent before this one came; in turn, after it.
        acted_with, self.acting = self.sent if self.cfg.collector == "sync" else self.acting, self.sent
        self.note(staleness=torch.tensor(self.updates - acted_with))
        if after["done"].any():
            self.note(train_return=after["episode_reward"][after["done"]])

    def finish_batch(self) -> None:
        """Evaluate when it is time, and write a row then and after every 1,000 frames or quarter of a short run."""
        every, last, row = self.cfg.eval.interval, self.rows[-1]["frames"], {"frames": self.frames}
        end = self.frames >= self.cfg.total_frames
        if every and (end or self.frames // every > last // every):
            row["eval_return"], _ = run_episodes(self.eval_env, self.actor, self.cfg.eval.episodes)
        elif not end and self.frames - last < min(1_000, self.cfg.total_frames / 4):
            return
        row |= {key: torch.stack(values).float().mean().item() for key, values in self.noted.items()}
        row |= {"updates": self.updates, "seconds": round(self.bar.format_dict["elapsed"], 1)}
        self.noted = {}
        self.rows.append(row)
        self.csv.writerow(row)
        self.file.flush()
        self.bar.set_postfix({key: f"{row[key]:.3g}" for key in self.shown if key in row}, refresh=False)
        for key in row if self.board else ():
            self.board.add_scalar(key, row[key], self.frames)

    def __exit__(self, *_) -> None:
        self.bar.close()
        self.file.close()
        self.eval_env.close()
        actor = {key: value.cpu() for key, value in self.actor.state_dict().items()}
        torch.save({"actor": actor, "stats": self.stats}, self.cfg.output_dir / "policy.pt")
        last = [f"{row['eval_return']:.0f}" for row in self.rows if "eval_return" in row] or ["not measured"]
        print(f"return of an episode: {self.random_return:.0f} with random actions, {last[-1]} with the trained policy")
        print(f"saved in {self.cfg.output_dir} after {self.frames} frames")
        self.plot()

    def plot(self) -> None:
        """Draw the returns of training and evaluation episodes over the frames."""
        env, figure = self.cfg.env, Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
        axes = figure.subplots()
        for key, style, label in (
            ("train_return", "C0.", "training, with noise"),
            ("eval_return", "C1o-", "deterministic"),
        ):
            points = [(row["frames"], row[key]) for row in self.rows if key in row]
            axes.plot([x for x, _ in points], [y for _, y in points], style, label=label)
        axes.axhline(self.random_return, color="grey", ls="--", label="random policy")
        axes.set(xlabel="frames (simulator steps)", ylabel="return of an episode (environment's reward units)")
        axes.set_title(f"{self.cfg.loss.upper()} on {env.name}, frame skip {env.frame_skip}, seed {self.cfg.seed}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()
        figure.savefig(self.cfg.output_dir / "learning_curve.png")

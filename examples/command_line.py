"""The command line of ``train_ddpg.py``: presets, and checks that refuse what cannot work before any work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import math
import signal
import sys
import warnings
from importlib import import_module

import torch
import tyro
from torchrl import data, envs, logger

from pipeline import make_env

DEFAULT_NAMES = {"gymnasium": "HalfCheetah-v5", "dm-control": "cheetah-run", "torchrl": "PendulumEnv"}
COUNTS = """total_frames steps_per_batch updates_per_batch n_steps hard_interval hidden threads frame_skip count
anneal_frames frames batch crop episodes num_atoms"""
SIGNED = "v_min v_max"
POSITIVE = "actor_lr critic_lr tau dt reward_scale"
FRACTIONS = "gamma lmbda tau end beta"
NO_SUPPORT = "--loss d4pg needs --v-min below --v-max: the range of discounted returns, in scaled rewards."
NO_REPLAY = "--save-replay goes with --loss ddpg, td3 or d4pg, --n-steps 1 and without --env.from-pixels."


class UserError(Exception):
    """A mistake on the command line, told in one sentence."""


@contextlib.contextmanager
def refusing(what: str, hint: str):
    """Turn whatever goes wrong inside into one sentence."""
    try:
        yield
    except Exception as error:
        raise error if isinstance(error, UserError) else UserError(f"{what}: {error} ({hint}).") from error


def check_numbers(cfg, flag: str = "--") -> None:
    """Refuse numbers out of range."""
    for name, value in vars(cfg).items():
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{flag}{name}.")
        for number in value if isinstance(value, tuple) else [value] if isinstance(value, int | float) else ():
            low, high = int(name in COUNTS.split()), 1 if name in FRACTIONS.split() else math.inf
            positive, signed = name in POSITIVE.split(), name in SIGNED.split()
            if not (low <= number <= high or signed) or not math.isfinite(number) or (positive and number == 0):
                accepted = f"{'above' if positive else 'at least'} {low}" + " and at most 1" * (high == 1)
                accepted = "a finite number" if signed else accepted
                raise UserError(f"{flag}{name.replace('_', '-')} {number} is out of range; accepted: {accepted}.")


def check_env(cfg) -> None:
    """Refuse an environment that is unknown, cannot be built, or whose actions are not continuous and bounded."""
    if cfg.backend == "gymnasium":
        names = sorted(import_module("gymnasium").registry)
    elif cfg.backend == "dm-control":
        names = ["-".join(task) for task in import_module("dm_control.suite").ALL_TASKS]
    else:
        names = [name for name in dir(envs) if "envs.custom" in getattr(getattr(envs, name), "__module__", "")]
    if cfg.name not in names and ":" not in cfg.name:
        close = difflib.get_close_matches(cfg.name, names, 5, 0.4) or names[:5]
        raise UserError(f"--env.name {cfg.name} is unknown to {cfg.backend}; names like it: {', '.join(close)}.")
    spec = make_env(cfg, training=False).action_spec_unbatched
    if not isinstance(spec, data.Bounded) or not spec.dtype.is_floating_point or spec.space.high.isinf().any():
        raise UserError(f"--env.name {cfg.name} has no continuous, bounded actions; DDPG needs them.")


def check_loss(cfg) -> None:
    """Refuse what the loss cannot learn with."""
    d4pg, bc = cfg.loss == "d4pg", cfg.loss == "td3-bc"
    td0, single, states = cfg.estimator == "td0", cfg.n_steps == 1, not cfg.env.from_pixels
    transitions = td0 and single and cfg.replay.unit == "transition"
    from_data = "OUTPUT/replay of a run with --save-replay, or the id of a Minari dataset on this machine"
    for right, sentence in (
        (td0 or not d4pg, "--loss d4pg goes with --estimator td0 alone."),
        (cfg.v_min < cfg.v_max or not d4pg, NO_SUPPORT),
        (cfg.num_atoms > 1, "--num-atoms 1 is out of range; accepted: at least 2."),
        (cfg.offline_data or not bc, f"--loss td3-bc needs --offline-data: {from_data}."),
        (bc or not cfg.offline_data, "--offline-data goes with --loss td3-bc alone."),
        (transitions or not bc, "--loss td3-bc needs --estimator td0 --replay.unit transition --n-steps 1."),
        (states or not bc, "--env.from-pixels does not go with --loss td3-bc."),
        ((single and states and not bc) or not cfg.save_replay, NO_REPLAY),
    ):
        if not right:
            raise UserError(sentence)


def check(cfg) -> None:
    """Refuse what cannot work before any work starts, and fill in what was left open."""
    check_numbers(cfg)
    check_loss(cfg)
    cuda, env, td0 = torch.cuda.is_available(), cfg.env, cfg.estimator == "td0"
    env.name = env.name or DEFAULT_NAMES[env.backend]
    early = cfg.init_random_frames <= cfg.total_frames or cfg.loss == "td3-bc"
    ray = importlib.util.find_spec("ray")
    for right, sentence in (
        (cuda or cfg.device != "cuda", "--device cuda: PyTorch finds no CUDA device; accepted here: auto, cpu."),
        (cuda or not cfg.cuda_graph, "--cuda-graph records on a CUDA device and PyTorch finds none; leave it out."),
        (cfg.device != "cpu" or not cfg.cuda_graph, "--cuda-graph goes with --device cuda or auto, not cpu."),
        (early, "--init-random-frames is above --total-frames; accepted: at most it."),
        (td0 or cfg.replay.unit != "transition", "--replay.unit transition goes with --estimator td0 alone."),
        (td0 or cfg.n_steps == 1, "--n-steps above 1 goes with --estimator td0 alone."),
        (cfg.hidden, "--hidden is empty; accepted: one width or more."),
        (env.max_steps or env.backend != "torchrl", "--env.max-steps 0: TorchRL's environments never end."),
        (ray or cfg.collector != "ray", "--collector ray needs Ray: pip install ray."),
    ):
        if not right:
            raise UserError(sentence)
    with refusing(f"--output-dir {cfg.output_dir}", "accepted: a folder that can be written"):
        cfg.output_dir.mkdir(parents=True, exist_ok=True)
        (cfg.output_dir / "config.yaml").touch()
    if cfg.replay.sampler == "prioritised":
        with refusing("--replay.sampler prioritised", "TorchRL's C++ extension fits torch 2.15; without it: uniform"):
            data.PrioritizedSampler(2, 0.7, 0.5)
    with refusing(f"--env.name {env.name}", "for what it may need: pip install 'torchrl-ddpg[examples]' 'mujoco<4'"):
        check_env(env)
    cfg.device = ("cuda" if cuda else "cpu") if cfg.device == "auto" else cfg.device
    steps = min(cfg.steps_per_batch, math.ceil(cfg.total_frames / (cfg.env.frame_skip * cfg.env.count)))
    cfg.updates_per_batch = math.ceil(cfg.updates_per_batch * steps / cfg.steps_per_batch)
    cfg.steps_per_batch = steps


def main(presets: dict, train) -> int:
    """Read the command line, check it and train; the exit status is 2 after a mistake and 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", module="glfw")  # dm_control tries it even where there is no screen
    words = sys.argv[1:]
    preset = words.pop(0) if words and not words[0].startswith("-") else "tutorial"
    try:
        if preset not in presets:
            raise UserError(f"{preset} is not a preset; accepted: {', '.join(presets)}.")
        cfg = tyro.cli(type(presets[preset]), default=presets[preset], args=words, prog=f"train_ddpg.py {preset}")
        check(cfg)
        return 130 if train(cfg) else 0
    except UserError as error:
        print(f"train_ddpg.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130

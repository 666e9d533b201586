"""Checks of this machine and of the environment, before any work starts."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import shutil
import tempfile
from importlib import import_module

import torch
from torchrl import data, envs

from trainer import environments
from trainer.configuration import RENDERING, Config
from trainer.errors import UserError, refusing


def check_machine(cfg: Config) -> None:
    """Refuse what this machine lacks; ``--device auto`` becomes cpu or cuda."""
    cuda = torch.cuda.is_available()
    packages = {"ray": "ray", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
    for setting in (cfg.collector, cfg.logger):
        if setting in packages and importlib.util.find_spec(packages[setting]) is None:
            name = "--collector" if setting == "ray" else "--logger"
            raise UserError(f"{name} {setting} needs a package: pip install {packages[setting]}.")
    if not cuda and cfg.device == "cuda":
        raise UserError("--device cuda: PyTorch finds no CUDA device; accepted here: auto, cpu.")
    if not cuda and cfg.update == "cuda-graph":
        raise UserError("--update cuda-graph records on a CUDA device and PyTorch finds none; leave it out.")
    cfg.device = ("cuda" if cuda else "cpu") if cfg.device == "auto" else cfg.device
    if cfg.replay.sampler == "prioritised":
        with refusing(
            "--replay.sampler prioritised", "TorchRL's C++ extension fits torch 2.14, 2.15; without it: uniform"
        ):
            data.PrioritizedSampler(2, 0.7, 0.5)


def check_env(cfg: Config) -> None:
    """Refuse an environment that is unknown or cannot be built, and actions and observations that cannot be used."""
    env = cfg.env
    if env.backend == "gymnasium":
        names = sorted(import_module("gymnasium").registry)
    elif env.backend == "dm-control":
        names = ["-".join(task) for task in import_module("dm_control.suite").ALL_TASKS]
    else:
        names = [name for name in dir(envs) if "envs.custom" in getattr(getattr(envs, name), "__module__", "")]
    if env.name not in names and ":" not in env.name:
        close = difflib.get_close_matches(env.name, names, 5, 0.4) or names[:5]
        raise UserError(f"--env.name {env.name} is unknown to {env.backend}; names like it: {', '.join(close)}.")
    one = environments.make_one(env)
    one = envs.TransformedEnv(one, envs.Compose(*environments.to_observation_vector(one)), auto_unwrap=False)
    action, seen = one.action_spec_unbatched, one.observation_spec["observation_vector"]
    what = f"--env.name {env.name} has"
    if not isinstance(action, data.Bounded) or not action.dtype.is_floating_point:
        raise UserError(f"{what} no continuous, bounded actions; DDPG needs them.")
    if action.space.high.isinf().any() or action.space.low.isinf().any():
        raise UserError(f"{what} actions without a bound; DDPG needs one on either side of each of them.")
    if len(action.shape) != 1:
        raise UserError(f"{what} actions of shape {tuple(action.shape)}; the networks here make vectors: flatten them.")
    if seen.dtype.is_floating_point and seen.shape[-1] > 10_000:
        raise UserError(f"{what} {seen.shape[-1]:,} numbers in an observation; at most 10,000 are taken as a vector.")
    one.rand_step(one.reset())
    check_memory(cfg, seen, action)
    one.close()


def check_memory(cfg: Config, seen, action) -> None:
    """Refuse a replay buffer that fits neither into memory nor, for images, onto the disk."""
    bytes_each = 2 * seen.shape.numel() * seen.dtype.itemsize + action.shape.numel() * 4 + 7
    needed = bytes_each * math.ceil(min(cfg.replay.frames, cfg.total_frames) / cfg.env.frame_skip)
    if seen.dtype.is_floating_point:
        free, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of memory are there"
    else:
        free, where = shutil.disk_usage(tempfile.gettempdir()).free, f"are free in {tempfile.gettempdir()}"
    if needed > free:
        sentence = f"the replay buffer would take {needed / 1e9:,.1f} GB and {free / 1e9:,.1f} GB {where}"
        raise UserError(f"--replay.frames {cfg.replay.frames:,}: {sentence}.")


def check(cfg: Config) -> None:
    """Refuse what cannot work before any work starts, and make the output folder."""
    check_machine(cfg)
    try:
        with refusing(f"--env.name {cfg.env.name}"):
            check_env(cfg)
    except UserError as error:
        raise UserError(f"{error}{hint(cfg, error.__cause__)}") from error
    if cfg.networks:
        with refusing(f"--networks {cfg.networks}", "accepted: module:function, looked for in this folder too"):
            environments.look_up(cfg.networks)
    size = cfg.env.frame_skip * cfg.env.count
    steps = min(cfg.steps_per_batch, max(cfg.replay.crop, math.ceil(cfg.total_frames / size)))
    if not cfg.resume:
        cfg.updates_per_batch = math.ceil(cfg.updates_per_batch * steps / cfg.steps_per_batch)
        cfg.steps_per_batch = steps
    with refusing(f"--output-dir {cfg.output_dir}", "accepted: a folder that can be written"):
        cfg.output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.output_dir):
            pass


def hint(cfg: Config, cause) -> str:
    """What may help against an error from outside; nothing where that is not known."""
    lacking = isinstance(cause, ImportError) or type(cause).__name__ == "DependencyNotInstalled"
    if lacking or (cfg.env.backend == "dm-control" and isinstance(cause, AttributeError)):
        return " It may need: pip install 'torchrl-ddpg[examples]' 'mujoco<4'."
    if cause is not None and cfg.env.from_pixels and not os.environ.get("MUJOCO_GL"):
        return f" {RENDERING[0].upper()}{RENDERING[1:]}."
    return ""

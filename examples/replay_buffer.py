"""The replay buffer of ``train_ddpg.py``: what is stored of a collected batch, and minibatches of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torchrl import data, envs

from pipeline import END_KEYS


def make_replay(cfg, size: int = 0):
    """Stretches of trajectories, sampled as random crops, or single transitions; pixels in memory-mapped files."""
    replay, options = cfg.replay, {"prefetch": cfg.replay.prefetch or None, "priority_key": "td_error"}
    storage = data.LazyMemmapStorage if cfg.env.from_pixels else data.LazyTensorStorage
    size = size or math.ceil(min(replay.frames, cfg.total_frames) / cfg.env.frame_skip)
    if replay.unit == "trajectory":
        size = math.ceil(size / cfg.steps_per_batch)
        if replay.crop < cfg.steps_per_batch:
            options["transform"] = envs.RandomCropTensorDict(replay.crop)
    if replay.sampler == "prioritised":
        np.random.seed(cfg.seed)  # where this sampler draws from
        options["sampler"] = data.PrioritizedSampler(size, replay.alpha, replay.beta)
    return data.TensorDictReplayBuffer(storage=storage(size), batch_size=replay.batch * draws(cfg), **options)


def draws(cfg) -> int:
    """Minibatches that one draw gives; a draw of ten takes about twice the time of a draw of one."""
    return 1 if cfg.replay.sampler == "prioritised" or cfg.env.from_pixels else 10


def minibatches(cfg, replay, count: int):
    """Minibatches on the device, several a draw; a prioritised draw is one, since every update moves priorities."""
    for left in range(count, 0, -draws(cfg)):
        yield from replay.sample().to(cfg.device).split(cfg.replay.batch)[:left]


def prepare(cfg, batch):
    """What is stored of a collected batch: its n-step returns if asked for, and only what trains."""
    if cfg.n_steps > 1:
        ends = batch["next"].select(*END_KEYS)
        batch = data.MultiStep(cfg.gamma, cfg.n_steps)(batch)
        # MultiStep moves the next observation n steps on, but leaves the end flags behind.
        batch["next"].update(ends.gather(1, torch.arange(batch.shape[1]) + batch["steps_to_next_obs"] - 1))
    after = [("next", key) for key in ("observation_vector", "reward", *END_KEYS)]
    batch = batch.select("observation_vector", "action", "steps_to_next_obs", *after, strict=False)
    return batch if cfg.replay.unit == "trajectory" else batch.reshape(-1)

"""Environments of three libraries, without the transforms: one, or several that step together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from functools import partial
from importlib import import_module

import torch
from torchrl import data, envs

from trainer.errors import UserError, refusing

END_KEYS = ("done", "terminated", "truncated")
IMAGE = 84  # pixels a side
EPISODE_LIMIT = 100_000  # actions after which an episode counts as endless


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


class SmallGreyImage(envs.ObservationTransform):
    """Images ``[..., H, W, 3]`` of uint8 as ``[..., 1, 84, 84]`` of uint8, weighed as the eye does (ITU-R BT.601)."""

    def _apply_transform(self, image):
        grey = image.float() @ torch.tensor([0.299, 0.587, 0.114], device=image.device)
        grey = grey.unflatten(0, (1, 1, -1)) if grey.ndim == 2 else grey.flatten(0, -3).unsqueeze(1)
        small = torch.nn.functional.interpolate(grey, (IMAGE, IMAGE), mode="area").round().to(torch.uint8)
        return small.reshape(*image.shape[:-3], 1, IMAGE, IMAGE)

    def _reset(self, tensordict, tensordict_reset):
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec):
        """The spec with the small image beside the large one."""
        for key, small in zip(self.in_keys, self.out_keys, strict=True):
            shape = (*observation_spec[key].shape[:-3], 1, IMAGE, IMAGE)
            observation_spec[small] = data.UnboundedDiscrete(shape, dtype=torch.uint8)
        return observation_spec


def quieten_mujoco() -> None:
    """Keep MuJoCo's notes on old model files off the terminal, in a worker process where there is one."""
    with contextlib.suppress(ImportError, AttributeError):
        warn = import_module("mujoco").set_mju_user_warning
        warn(lambda text: None if "deprecated" in text else print(text, file=sys.stderr))


def end_with_the_parent() -> None:
    """In a worker process, end when the process that started it has gone, even if that was killed."""
    if multiprocessing.parent_process() is None or any(thread.name == "parent" for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def is_image(space) -> bool:
    """Whether a Gymnasium space holds images."""
    return len(space.shape or ()) == 3 and str(space.dtype) == "uint8" and space.shape[-1] == 3


def gymnasium_options(cfg, render: bool) -> dict:
    """What ``gymnasium.make`` is told: whether to render, and how large where the networks see the images."""
    if not cfg.from_pixels:
        return {"render_mode": "rgb_array"} if render else {}
    module, _, name = cfg.name.rpartition(":")
    if module:
        import_module(module)  # which registers it
    entry = str(import_module("gymnasium").spec(name).entry_point)
    size = {"width": IMAGE, "height": IMAGE} if entry.startswith("gymnasium.envs.mujoco") else {}
    return {"render_mode": "rgb_array", **size}


def flatten(env):
    """One vector of whatever the environment observes (dictionaries, tuples, integers, matrices), but for images."""
    space = env.observation_space
    vector = len(space.shape or ()) == 1 and type(space).__name__ == "Box"
    return env if vector or is_image(space) else import_module("gymnasium").wrappers.FlattenObservation(env)


def make_one(cfg, render: bool = False):
    """One environment, which :func:`image` can take images of if ``render`` is True."""
    quieten_mujoco()
    end_with_the_parent()
    pixels = {"from_pixels": True, "pixels_only": True} if cfg.from_pixels else {}
    if cfg.backend == "gymnasium":
        env = import_module("gymnasium").make(cfg.name, **gymnasium_options(cfg, render))
        # Not GymEnv, which hands `frameskip` to the environment and repeats nothing where that is ignored.
        return envs.GymWrapper(env if cfg.from_pixels else flatten(env), frame_skip=cfg.frame_skip, **pixels)
    if cfg.backend == "dm-control":
        size = {"render_kwargs": {"height": IMAGE, "width": IMAGE}} if cfg.from_pixels else {}
        return envs.DMControlEnv(*cfg.name.split("-", 1), frame_skip=cfg.frame_skip, **pixels, **size)
    env = look_up(cfg.name)()
    return env if cfg.frame_skip == 1 else envs.TransformedEnv(env, RepeatAction(cfg.frame_skip))


def make_several(cfg):
    """``cfg.count`` environments as one: Gymnasium's own vector where that fits, processes, or one after the other."""
    if cfg.backend == "gymnasium" and cfg.count > 1 and cfg.frame_skip == 1 and not (cfg.parallel or cfg.from_pixels):
        quieten_mujoco()
        end_with_the_parent()
        gymnasium = import_module("gymnasium")  # TorchRL's Python for a step, most of its time, then runs once for all
        options = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # resets are the collector's
        return envs.GymWrapper(
            gymnasium.make_vec(cfg.name, cfg.count, "sync", vector_kwargs=options, wrappers=[flatten])
        )
    kind = envs.ParallelEnv if cfg.parallel else envs.SerialEnv
    return kind(cfg.count, envs.EnvCreator(partial(make_one, cfg)), device="cpu")


def to_observation_vector(env) -> list[envs.Transform]:
    """Transforms that make ``observation_vector`` of all that is observed: one vector, or the last three images."""
    steps, vectors = [], []
    for key, spec in env.observation_spec.items(include_nested=True, leaves_only=True):
        if key[0] == "params":  # constants of TorchRL's own environments, such as gravity
            continue
        dims = len(spec.shape) - len(env.batch_size)
        if dims == 3 and spec.dtype == torch.uint8:
            return [SmallGreyImage([key], ["image"]), envs.CatFrames(3, -3, ["image"], ["observation_vector"])]
        vector = f"{key if isinstance(key, str) else '_'.join(key)}_vector"
        if not spec.dtype.is_floating_point:
            steps.append(envs.DTypeCastTransform(spec.dtype, torch.float32, in_keys=[key], out_keys=[vector]))
            key = vector
        if dims == 0:
            steps.append(envs.UnsqueezeTransform(-1, in_keys=[key], out_keys=[vector]))
            key = vector
        elif dims > 1:
            steps.append(envs.FlattenObservation(-dims, -1, in_keys=[key], out_keys=[vector]))
            key = vector
        vectors.append(key)
    return [*steps, envs.DoubleToFloat(), envs.CatTensors(vectors, "observation_vector", del_keys=False)]


def image(env):
    """What one of :func:`make_one`'s environments looks like, ``[H, W, 3]`` of uint8."""
    if isinstance(env, envs.DMControlEnv):
        return env.physics.render(240, 320, camera_id=0)
    if not hasattr(env, "render"):
        raise UserError("this environment draws no images")
    return env.render()


def generators(env) -> list:
    """The random generators of the environments that live in this process: PyTorch's or NumPy's."""
    env = env.base_env if isinstance(env, envs.TransformedEnv) else env
    if isinstance(env, envs.SerialEnv):
        return [generator for one in env._envs for generator in generators(one)]
    if isinstance(env, envs.GymWrapper):
        inside = getattr(env._env, "envs", [env._env])
        return [one.unwrapped.np_random for one in inside]
    return [env.rng] if isinstance(getattr(env, "rng", None), torch.Generator) else []


@torch.no_grad()
def episode(env, actor=None, stop=None):
    """One episode, of the actor's actions or of random ones; None if the event ``stop`` ended it."""

    def look(*_) -> None:
        if stop is not None and stop.is_set():
            raise InterruptedError

    away = actor is not None and next(actor.parameters()).device.type != "cpu"
    env = env.to("cpu") if away else env  # left to itself, it does not say where its tensors are
    try:
        run = env.rollout(EPISODE_LIMIT, actor, callback=look, auto_cast_to_device=away)
    except InterruptedError:
        return None
    if not run["next", "done"][-1].any():
        raise UserError(f"an episode goes on after {EPISODE_LIMIT:,} actions; give --env.max-steps.")
    return run


def act_randomly(env, steps: int):
    """Mean return of whole episodes of random actions, and the observations that they meet, unless they are images."""
    returns, seen, done = [], [], 0
    while not returns or done < steps:
        with refusing("acting randomly failed"):
            run = episode(env)
        done += len(run)
        returns.append(run["next", "episode_reward"][-1].item())
        observed = run["observation_vector"]
        seen.append(observed if observed.is_floating_point() else observed[:1])  # nobody reads images
    return sum(returns) / len(returns), torch.cat(seen)


def statistics(observations):
    """Mean and deviation of each entry of the observations."""
    return observations.mean(0), observations.std(0).clamp_min(1e-2)  # an entry may stand still


def look_up(name: str):
    """What ``module:name`` names, in TorchRL's environments or in a module of the user's."""
    module, _, attribute = name.rpartition(":")
    return getattr(import_module(module or "torchrl.envs"), attribute)

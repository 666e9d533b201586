"""Environments and networks as users have them, registered with Gymnasium when this module is imported."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from tensordict.nn import TensorDictModule
from torch import nn

FLOATS, BYTES = functools.partial(Box, 0.5, 1.0), functools.partial(Box, 1, 255, dtype=np.uint8)
SPACES = {
    "bytes": BYTES((5,)),
    "integer": Discrete(4),
    "nested": Dict({"a": Dict({"b": FLOATS((2,))}), "c": Discrete(3)}),
    "mixed-floats": Dict({"a": FLOATS((2,), dtype=np.float32), "b": FLOATS((2,), dtype=np.float64)}),
    "tuple": Tuple((FLOATS((2,)), FLOATS((3,)))),
    "matrix": FLOATS((2, 3)),
    "dictionary": Dict({"achieved": FLOATS((2,)), "desired": FLOATS((3,))}),
    "large": Dict({"image": BYTES((100, 100, 3)), "speed": FLOATS((0,))}),
}


class Samples(gymnasium.Env):
    """Observes random points of a space, and gives a reward of 1 for 10 steps."""

    def __init__(self, space, action_space=None, last=10, trouble=None, **options) -> None:
        self.observation_space, self.action_space = space, action_space or Box(-1.0, 1.0, (2,))
        self.last, self.trouble, self.steps = last, trouble, 0

    def seen(self):
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.seen(), {}

    def step(self, action):
        self.steps += 1
        seen = self.seen() if self.trouble is None else self.trouble(self)
        return seen, 1.0, False, self.steps >= self.last, {}


class Images(Samples):
    """Paints the number of its step as a grey."""

    def seen(self):
        return np.full((96, 120, 3), 10 * self.steps, dtype=np.uint8)


class Repeats(Samples):
    """Knows no `frameskip`."""

    def __init__(self) -> None:
        super().__init__(FLOATS((3,)))


class Troubled(Samples):
    """Works for 150 steps in all, then does something else."""

    total = 0

    def step(self, action):
        self.total += 1
        return super().step(action)


def switched_off(env):
    raise RuntimeError("the motor is off")


def after_a_while(trouble):
    return lambda env: trouble(env) if env.total > 150 else env.seen()


def not_a_number(env):
    return np.full((3,), np.nan, dtype=np.float32)


def register(name, make, *args, **options):
    if f"{name}-v0" not in gymnasium.registry:  # collecting tests imports this twice
        gymnasium.register(f"{name}-v0", entry_point=functools.partial(make, *args, **options))


for name, space in SPACES.items():
    register(name, Samples, space)
register("image", Images, Box(0, 255, (96, 120, 3), np.uint8))
register("repeats", Repeats)
register("swallows", Samples, FLOATS((3,)))
register("endless", Samples, FLOATS((3,)), last=10**9)
register("matrix-action", Samples, FLOATS((3,)), Box(-1.0, 1.0, (2, 2)))
register("no-bound", Samples, FLOATS((3,)), Box(np.float32([-1, -np.inf]), np.float32([1, 1])))
register("raises", Samples, FLOATS((3,)), trouble=switched_off)
register("raises-later", Troubled, FLOATS((3,)), trouble=after_a_while(switched_off))
register("nan-later", Troubled, FLOATS((3,)), trouble=after_a_while(not_a_number))


class Actor(nn.Module):
    """A user's own actor."""

    def __init__(self, observations, actions) -> None:
        super().__init__()
        self.own_layer = nn.Linear(observations, actions)

    def forward(self, seen):
        return 2 * self.own_layer(seen).tanh()


class Critic(nn.Module):
    """A user's own critic."""

    def __init__(self, inputs) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, seen, action):
        return self.layers(torch.cat([seen, action], -1))


def make_networks(cfg, env):
    observations, actions = env.observation_spec["observation_vector"].shape[-1], env.action_spec.shape[-1]
    actor = TensorDictModule(Actor(observations, actions), ["observation_vector"], ["action"])
    critic = TensorDictModule(Critic(observations + actions), ["observation_vector", "action"], ["state_action_value"])
    return actor, critic

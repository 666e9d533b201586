"""Parts of networks, and networks of the user's own making."""

from __future__ import annotations

import torch
from torch import nn

from trainer.environments import look_up
from trainer.errors import refusing


class Squash(nn.Module):
    """Tanh, scaled onto the action's range; what TorchRL's ``TanhDelta`` gives, without a distribution at each call."""

    def __init__(self, low, high) -> None:
        super().__init__()
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, param):
        """The action, of the shape of ``param``."""
        return torch.addcmul(self.middle, self.half_range, param.tanh())


class FromImages(nn.Module):
    """Turns images of uint8 into numbers between 0 and 1 for a network."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images, *others):
        """What the network gives."""
        return self.network(images.float() / 255, *others)


def own_networks(cfg, env):
    """Actor and critic of the user's own making."""
    with refusing(f"--networks {cfg.networks}", "a function of (cfg, env) that returns actor and critic"):
        actor, critic = look_up(cfg.networks)(cfg, env)
        critic(actor(env.fake_tensordict())).select("action", "state_action_value")  # raises if one is missing
        return actor.to(cfg.device), critic.to(cfg.device)

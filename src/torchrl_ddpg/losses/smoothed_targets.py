"""What TD3, its descendants and FastTD3 share: target actions with clipped noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_ddpg import checks, functional
from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class SmoothedTargetsLoss(DeterministicPolicyLoss):
    """Target actions with clipped noise, in units of half the action's range; not a loss by itself."""

    def __init__(self, *networks: Any, policy_noise: float, noise_clip: float, **options: Any) -> None:
        if options.get("action_spec") is None and options.get("bounds") is None:
            raise ValueError("neither action_spec nor bounds is given; accepted: one of them, but not both.")
        super().__init__(*networks, **options)
        if not bool((self.max_action - self.min_action).isfinite().all()):
            raise ValueError("the action has no finite range, which the smoothing noise is scaled by; give bounds.")
        self.policy_noise = checks.finite("policy_noise", policy_noise, at_least=0)
        self.noise_clip = checks.finite("noise_clip", noise_clip, at_least=0)

    def bound_target_action(self, action: Tensor) -> Tensor:
        """The smoothed target action, within its range."""
        written, action = action.dtype, action.to(torch.promote_types(action.dtype, torch.float32))
        low, high = self.min_action.to(action.dtype), self.max_action.to(action.dtype)
        scale = {"policy_noise": self.policy_noise, "noise_clip": self.noise_clip}
        smoothed = functional.smooth_target_action(action, torch.randn_like(action), low, high, **scale)
        if written == action.dtype:
            return smoothed
        # bfloat16 has steps as large as the noise; under autocast the critic takes what is finer.
        own = next(self.actor_network_params.parameters()).dtype
        fine = own == action.dtype and torch.is_autocast_enabled(action.device.type)
        return smoothed if fine else smoothed.to(written)

"""What TD3 and TD3+BC share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_ddpg import checks, functional
from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class ClippedDoubleQLoss(DeterministicPolicyLoss):
    """An ensemble of critics, its minimum, and smoothed target actions; not a loss by itself."""

    @dataclass
    class _AcceptedKeys(DeterministicPolicyLoss._AcceptedKeys):
        """The entries of a batch that ``set_keys`` can rename; the action's is the one that the actor writes."""

        action: NestedKey = "action"

    default_keys = _AcceptedKeys
    critic_name = "qvalue_network"
    critic_loss_key = "loss_qvalue"

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        num_qvalue_nets: int,
        policy_noise: float,
        noise_clip: float,
        delay_actor: bool,
        delay_qvalue: bool,
        gamma: None,
        priority_key: None,
        deactivate_vmap: bool,
        **options: Any,
    ) -> None:
        owner = type(self).__name__
        checks.no_gamma(owner, gamma)
        checks.no_priority_key(owner, priority_key)
        checks.one_of_bounds(owner, options["action_spec"], options["bounds"])
        super().__init__(
            actor_network,
            qvalue_network,
            delayed={"actor_network": delay_actor, "qvalue_network": delay_qvalue},
            num_critics=("num_qvalue_nets", num_qvalue_nets),
            **options,
        )
        self.delay_actor, self.delay_qvalue, self.num_qvalue_nets = delay_actor, delay_qvalue, num_qvalue_nets
        self.policy_noise = checks.finite(owner, "policy_noise", policy_noise, at_least=0)
        self.noise_clip = checks.finite(owner, "noise_clip", noise_clip, at_least=0)
        self.deactivate_vmap = checks.boolean(owner, "deactivate_vmap", deactivate_vmap)

    def _bounded(self, action: Tensor) -> Tensor:
        checks.bounds_fit(self._owner, self.action_keys[0], action, self.min_action, self.max_action)
        noise = torch.randn_like(action)
        scale = {"policy_noise": self.policy_noise, "noise_clip": self.noise_clip}
        return functional.smooth_target_action(action, noise, self.min_action, self.max_action, **scale)

    def _combined(self, values: Tensor) -> Tensor:
        return functional.clipped_double_q(values)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """TorchRL's name of :meth:`loss_actor`."""
        return self.loss_actor(tensordict)

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """TorchRL's name of :meth:`loss_value`, in TD3."""
        return self.loss_value(tensordict)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """TorchRL's name of :meth:`loss_value`, in TD3+BC."""
        return self.loss_value(tensordict)

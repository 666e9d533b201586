"""What TD3 and its descendants share: an ensemble of critics and its minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.losses.smoothed_targets import SmoothedTargetsLoss


class ClippedDoubleQLoss(SmoothedTargetsLoss):
    """An ensemble of critics, its minimum, and smoothed target actions; not a loss by itself."""

    @dataclass
    class _AcceptedKeys(SmoothedTargetsLoss._AcceptedKeys):
        """The entries of a batch that ``set_keys`` can rename.

        ``action`` is accepted as in TorchRL and without effect: the networks say which entry the action is.
        """

        action: NestedKey = "action"

    default_keys = _AcceptedKeys
    critic_name = "qvalue_network"
    critic_loss_key = "loss_qvalue"
    critic_method = "qvalue_loss"
    actor_method = "actor_loss"

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        action_spec: TensorSpec | None = None,
        bounds: Sequence[float | Tensor] | None = None,
        num_qvalue_nets: int = 2,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        gamma: None = None,
        priority_key: None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        priority: str = "absolute",
        weigh_actor: bool = False,
    ) -> None:
        if priority_key is not None:
            raise TypeError(f"the priority's name is set with loss.set_keys(priority={priority_key!r}).")
        super().__init__(
            actor_network,
            qvalue_network,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            num_critics=("num_qvalue_nets", num_qvalue_nets),
            loss_function=loss_function,
            delay_actor=delay_actor,
            delay_critic=delay_qvalue,
            gamma=gamma,
            separate_losses=separate_losses,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            priority=priority,
            weigh_actor=weigh_actor,
            action_spec=action_spec,
            bounds=bounds,
        )
        self.deactivate_vmap = checks.boolean("deactivate_vmap", deactivate_vmap)

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The lowest of the critics' values."""
        return functional.clipped_double_q(torch.stack(values))

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """TorchRL's name of :meth:`loss_actor`."""
        return self.loss_actor(tensordict)

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """TorchRL's name of :meth:`loss_value`, in TD3."""
        return self.loss_value(tensordict)

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Any]]:
        """TorchRL's name of :meth:`loss_value`, in TD3+BC."""
        return self.value_loss(tensordict)

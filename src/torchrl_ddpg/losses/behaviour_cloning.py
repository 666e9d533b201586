"""What TD3+BC and ReBRAC share: the distance to the actions of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey
from torch import Tensor

from torchrl_ddpg import checks
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.losses.clipped_double_q import ClippedDoubleQLoss


class BehaviourCloningLoss(ClippedDoubleQLoss):
    """Losses that compare actions with those of the data; not a loss by itself."""

    all_out_keys = (
        "loss_actor",
        "loss_qvalue",
        "bc_loss",
        "lmbd",
        "pred_value",
        "state_action_value_actor",
        "next_state_value",
        "target_value",
    )

    def __init__(self, *networks: Any, imitation_units: str, **options: Any) -> None:
        super().__init__(*networks, **options)
        self.imitation_units = checks.choice("imitation_units", imitation_units, ("action", "half_range"))
        if imitation_units == "half_range" and not bool((self.max_action > self.min_action).all()):
            raise ValueError(
                "the action's range is 0 in a dimension, which cannot be a unit; accepted: imitation_units='action'."
            )

    @property
    def extra_keys(self) -> Sequence[NestedKey]:  # type: ignore[override]
        """The action of the data."""
        return self.action_keys[:1]

    def comparable(self, action: Tensor, key: NestedKey, role: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """An action of the networks and one of the data, ``[*B, A]`` each, in ``imitation_units``.

        Args:
            action: the networks' action.
            key: the data's entry.
            role: what the entry is, for the error that says it is missing.
            batch: where the entry is.
        """
        batch.require(key, role)
        taken = checks.number(key, batch.get(key))
        if taken.shape != action.shape:
            raise BatchError(
                f"{key!r} has shape {list(taken.shape)} in the batch, the actor writes {list(action.shape)}; "
                f"accepted: one shape."
            )
        action, taken = action.to(self._dtype), taken.to(self._dtype)
        if self.imitation_units == "action":
            return action, taken
        unit = ((self.max_action - self.min_action) / 2).to(action.dtype)
        return action / unit, taken / unit

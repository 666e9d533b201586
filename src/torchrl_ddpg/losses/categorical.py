"""What D4PG and FastTD3 share: critics that write a categorical distribution of the return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import ValueEstimators

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch, Transition
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class CategoricalLoss(DeterministicPolicyLoss):
    """Critics that write logits over equally spaced returns, ``[*B, num_atoms]``; not a loss by itself."""

    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)
    critic_name = "value_network"
    critic_loss_key = "loss_value"
    all_out_keys = (
        "loss_actor",
        "loss_value",
        "pred_value",
        "target_value",
        "pred_value_max",
        "target_value_max",
        "target_outside_support",
    )

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        v_min: float,
        v_max: float,
        num_atoms: int = 51,
        num_value_nets: int = 1,
        delay_value: bool = True,
        **options: Any,
    ) -> None:
        checks.finite("v_min", v_min)
        checks.finite("v_max", v_max)
        if v_min >= v_max:
            raise ValueError(f"v_min is {v_min!r}, v_max is {v_max!r}; accepted: v_min below v_max.")
        checks.positive_int("num_atoms", num_atoms, at_least=2)
        if "loss_function" in options:
            raise TypeError("loss_function is given; a categorical critic has one loss, the cross entropy.")
        count = ("num_value_nets", num_value_nets)
        super().__init__(actor_network, value_network, num_critics=count, delay_critic=delay_value, **options)
        self.v_min, self.v_max, self.num_atoms = v_min, v_max, num_atoms
        self._register_constant("support", torch.linspace(v_min, v_max, num_atoms, dtype=torch.float64))

    @property
    def _atoms(self) -> Tensor:
        return self.support.to(self._dtype)

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The probabilities of the distribution with the lowest mean."""
        return functional.lower_mean_distribution(self._probabilities(values), self._atoms)

    def _probabilities(self, values: list[Tensor]) -> Tensor:
        """The critics' distributions, ``[N, *B, num_atoms]``."""
        if values[0].shape[-1] != self.num_atoms:
            raise BatchError(
                f"the critic's {self.tensor_keys.state_action_value!r} has shape {list(values[0].shape)}; accepted: "
                f"logits [*B, num_atoms], with num_atoms={self.num_atoms}."
            )
        return torch.stack(values).softmax(-1)

    def critic_target(
        self, next_value: Tensor, transition: Transition, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The target distribution, moved and projected onto the atoms."""
        reward, _, terminated, steps = transition
        if reward.shape[-1] != 1:
            self._check_value(self.expected_target(next_value), reward)
        # Where the episode has ended all atoms fall on the reward.
        probabilities = next_value.masked_fill(terminated, 1 / self.num_atoms)
        discount = functional.discount(self.value_estimator.gamma, terminated, steps).to(self._dtype)
        atoms = reward + discount * self._atoms
        outside = ((atoms < self._atoms[0]) | (atoms > self._atoms[-1])) * probabilities
        target = functional.categorical_projection(atoms, probabilities, self._atoms)
        return target, {"target_outside_support": outside.sum(-1, keepdim=True)}

    def critic_sample_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropies of the predicted distribution to the target."""
        return functional.categorical_td_loss(prediction, target)

    def expected_value(self, values: Tensor) -> Tensor:
        """The mean of the distribution whose logits the critic writes."""
        return functional.expected_value(values.softmax(-1), self._atoms)

    def expected_target(self, target: Tensor) -> Tensor:
        """The mean of the target distribution."""
        return functional.expected_value(target, self._atoms)

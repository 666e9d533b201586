"""ReBRAC: TD3+BC with a penalty for the actor and one for the critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch, under_next
from torchrl_ddpg.losses.behaviour_cloning import BehaviourCloningLoss


class ReBRACLoss(BehaviourCloningLoss):
    r"""ReBRAC, offline: :math:`y = r + \gamma^n (1 - d) [\min_k Q'_k(s', \tilde a) - \beta_2 |\tilde a - a'|^2]`.

    The critics learn from :math:`y`, in which the smoothed target action :math:`\tilde a` pays for its distance to
    :math:`a'`, the action that the data takes in the next state. The actor's loss is
    :math:`L_\mu = \frac1N \sum \left[\beta_1 |\mu(s) - a|^2 - \min_k Q_k(s, \mu(s)) / \overline{|\min_k Q_k|}\right]`,
    where the scale carries no gradient. Both distances are squared and summed over the dimensions of the action.

    The batch needs :math:`a'` as ``("next", "action")``, or under the name of ``set_keys(next_action=...)``.
    :func:`with_next_actions` adds it to a dataset in time order.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        qvalue_network: a TensorDict module that reads the action and writes ``"state_action_value"``, ``[*B, 1]``, or
            a list of ``num_qvalue_nets`` of them. A single one keeps its parameters and is the first critic; the
            others are copies that its layers' own ``reset_parameters`` initialise anew. All are trained.
        alpha_actor: :math:`\beta_1`, at least 0. The paper tunes it for each dataset, from 0.001 to 0.1.
        alpha_critic: :math:`\beta_2`, at least 0. The paper tunes it for each dataset, from 0 to 0.5.
        imitation_units: units of both distances: ``"half_range"`` of the action (default), in which actions lie
            between -1 and 1, as in the paper, or ``"action"`` for the environment's own.
        loss_function: ``"l2"`` (default), the paper's, ``"l1"`` or ``"smooth_l1"``.
        **options: all those of :class:`TD3Loss`, with the same defaults, such as ``action_spec`` or ``bounds``.

    Raises:
        TypeError: if a network is not a TensorDict module, or an option has the wrong type.
        ValueError: if an option is unknown or out of range, a network is lazy, the list of critics has another length
            than ``num_qvalue_nets``, or not exactly one of ``action_spec`` and ``bounds`` is given.

    References:
        Tarasov et al. 2023, arXiv:2305.09836, section 3.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import ReBRACLoss
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 1, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = ReBRACLoss(actor, critic, bounds=(-1.0, 1.0), alpha_actor=0.1, alpha_critic=0.01)
        >>> ("next", "action") in loss.in_keys
        True
    """

    @dataclass
    class _AcceptedKeys(BehaviourCloningLoss._AcceptedKeys):
        """The entries of a batch that ``set_keys`` can rename; by default the actor's action under ``"next"``."""

        next_action: NestedKey | None = None

    default_keys = _AcceptedKeys

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        alpha_actor: float,
        alpha_critic: float,
        imitation_units: str = "half_range",
        loss_function: str = "l2",
        **options: Any,
    ) -> None:
        options |= {"imitation_units": imitation_units, "loss_function": loss_function}
        super().__init__(actor_network, qvalue_network, **options)
        self.alpha_actor = checks.finite("alpha_actor", alpha_actor, at_least=0)
        self.alpha_critic = checks.finite("alpha_critic", alpha_critic, at_least=0)
        self.actor_critics = range(self.num_critics)

    @property
    def next_action_key(self) -> NestedKey:
        """The entry of the action that the data takes in the next state."""
        return self.tensor_keys.next_action or under_next(self.action_keys[0])

    @property
    def extra_keys(self) -> Sequence[NestedKey]:  # type: ignore[override]
        """The data's action and its next action."""
        return (self.action_keys[0], self.next_action_key)

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The lowest of the critics' values, less the penalty for the target action."""
        value = super().next_state_value(values, action, batch)
        role = "the data's action in the next state, which torchrl_ddpg.with_next_actions(transitions) adds"
        pair = self.comparable(action, self.next_action_key, role, batch)
        return value - self.alpha_critic * functional.action_distance(*pair, value)

    def actor_value(self, values: list[Tensor]) -> Tensor:
        """The lowest of the critics' values."""
        return functional.clipped_double_q(torch.stack(values))

    def actor_sample_losses(self, value: Tensor, action: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty for the actor's action, less its value, scaled."""
        pair = self.comparable(action, self.action_keys[0], "the data's action", batch)
        distance = functional.action_distance(*pair, value)
        lmbda = functional.value_weight(value, batch.mask_like(value))
        return self.alpha_actor * distance - lmbda * value, {"bc_loss": distance, "lmbd": lmbda}

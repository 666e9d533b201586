"""TD3 with behaviour cloning, for offline data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.losses.behaviour_cloning import BehaviourCloningLoss


class TD3BCLoss(BehaviourCloningLoss):
    r"""TD3+BC, offline: :math:`L_\mu = \frac1N \sum \left[\overline{(\mu(s) - a)^2} - \lambda Q_1(s, \mu(s))\right]`.

    :math:`\lambda = \alpha / \overline{|Q_1|}`, over the samples that count and without gradient, makes the weight of
    the value independent of its scale. The critics' loss and the smoothed target actions are TD3's. Under
    ``reduction="none"`` the actor's loss is per sample, the imitation term too.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        qvalue_network: a TensorDict module that reads the action and writes ``"state_action_value"``, ``[*B, 1]``, or
            a list of ``num_qvalue_nets`` of them. A single one keeps its parameters and is the first critic; the
            others are copies that its layers' own ``reset_parameters`` initialise anew. All are trained.
        alpha: :math:`\alpha`, weight of the value against the imitation, above 0 (2.5).
        imitation_units: units of the distance between actions: ``"action"`` (default), the environment's, as in
            TorchRL, or ``"half_range"`` of the action, in which actions lie between -1 and 1, as in the paper.
        **options: all those of :class:`TD3Loss`, with the same defaults, such as ``action_spec`` or ``bounds``.

    Raises:
        TypeError: if a network is not a TensorDict module, or an option has the wrong type.
        ValueError: if an option is unknown or out of range, a network is lazy, the list of critics has another length
            than ``num_qvalue_nets``, or not exactly one of ``action_spec`` and ``bounds`` is given.

    References:
        Fujimoto & Gu 2021, arXiv:2106.06860, eq. 3 to 5.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import TD3BCLoss
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 1, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = TD3BCLoss(actor, critic, bounds=(-1.0, 1.0)).make_value_estimator("td0", gamma=0.98)
        >>> loss.out_keys[:4]
        ['loss_actor', 'loss_qvalue', 'bc_loss', 'lmbd']
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        alpha: float = 2.5,
        imitation_units: str = "action",
        **options: Any,
    ) -> None:
        super().__init__(actor_network, qvalue_network, imitation_units=imitation_units, **options)
        self.alpha = checks.finite("alpha", alpha, above=0)

    def actor_sample_losses(self, value: Tensor, action: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The value of the actor's action, scaled, against its distance to the batch's."""
        pair = self.comparable(action, self.action_keys[0], "the action to imitate", batch)
        value = batch.samples(value)
        loss, imitation, lmbda = functional.behaviour_cloning_loss(value, *pair, self.alpha, batch.mask_like(value))
        return loss, {"bc_loss": imitation, "lmbd": lmbda}

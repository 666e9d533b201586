"""TD3 with behaviour cloning, for offline data."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec

from torchrl_ddpg import checks, functional
from torchrl_ddpg.losses.batch import Batch
from torchrl_ddpg.losses.clipped_double_q import ClippedDoubleQLoss


class TD3BCLoss(ClippedDoubleQLoss):
    r"""TD3+BC, offline: :math:`L_\mu = \frac1N \sum \left[\overline{(\mu(s) - a)^2} - \lambda Q_1(s, \mu(s))\right]`.

    :math:`\lambda = \alpha / \overline{|Q_1|}`, over the samples that count and without gradient, makes the weight of
    the value independent of its scale. The critics' loss and the smoothed target actions are TD3's. Under
    ``reduction="none"`` the actor's loss is per sample, the imitation term too.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        qvalue_network: a TensorDict module that reads the action and writes ``"state_action_value"``, ``[*B, 1]``, or
            a list of ``num_qvalue_nets`` of them. A single one keeps its parameters and is the first critic; the
            others are copies that its layers' own ``reset_parameters`` initialise anew. All are trained.
        action_spec: the action's bounded spec, or the environment's composite one.
        bounds: ``(low, high)`` in place of ``action_spec``: numbers or tensors that broadcast to the action.
        num_qvalue_nets: number of critics (2).
        policy_noise: standard deviation of the smoothing noise, in units of half the action's range (0.2).
        noise_clip: its largest magnitude, in the same units (0.5).
        alpha: :math:`\alpha`, weight of the value against the imitation, above 0 (2.5).
        loss_function: :math:`\ell`: ``"smooth_l1"`` (TorchRL's default), ``"l2"`` (the paper's) or ``"l1"``.
        delay_actor: whether the target actor is a slowly moving copy (default True).
        delay_qvalue: whether the target critics are slowly moving copies (default True).
        gamma: not accepted here; see ``make_value_estimator``.
        priority_key: not accepted here; see ``set_keys``.
        separate_losses: if True, layers that actor and critics share are trained by the actor's loss alone.
        reduction: ``"mean"`` (default), ``"sum"``, or ``"none"`` for per-sample losses ``[*B]``.
        deactivate_vmap: accepted as TorchRL does, without effect: the critics are run one after the other.
        use_prioritized_weights: whether ``priority_weight`` weighs the critics' loss: ``"auto"``, True or False.
        priority: what is written for prioritised replay, ``"absolute"`` (:math:`\max_i |\delta_i|`) or ``"squared"``.
        weigh_actor: whether the weights weigh the actor's loss too (default False).

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
        alpha: float = 2.5,
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
        super().__init__(
            actor_network,
            qvalue_network,
            action_spec=action_spec,
            bounds=bounds,
            num_qvalue_nets=num_qvalue_nets,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            loss_function=loss_function,
            delay_actor=delay_actor,
            delay_qvalue=delay_qvalue,
            gamma=gamma,
            priority_key=priority_key,
            separate_losses=separate_losses,
            reduction=reduction,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
            priority=priority,
            weigh_actor=weigh_actor,
        )
        self.alpha = checks.finite(self._owner, "alpha", alpha, above=0)

    def _actor_loss(self, value: Tensor, action: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        taken = batch.current(self.action_keys[:1])[self.action_keys[0]]
        depth, value = value.ndim, batch.samples(value)
        checks.same_action(self._owner, self.action_keys[0], taken, action)
        mask = batch.mask_like(value)
        loss, imitation, lmbda = functional.behaviour_cloning_loss(
            value, action, taken.to(action.dtype), self.alpha, mask
        )
        loss = loss if loss.ndim == depth else loss.unsqueeze(-1)
        return loss, {"bc_loss": functional.reduce(imitation.detach(), mask=mask), "lmbd": lmbda}

    @property
    def _actor_keys(self) -> list[NestedKey]:
        return [*self._observed_keys, self.action_keys[0]]

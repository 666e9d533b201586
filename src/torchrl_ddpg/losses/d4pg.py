"""Distributed distributional deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.objectives import ValueEstimators

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch, Transition
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class D4PGLoss(DeterministicPolicyLoss):
    r"""D4PG: :math:`L_Z = -\frac1N \sum w \sum_i m_i \log p_i(s, a)` and :math:`L_\mu = -\frac1N \sum E[Z(s, \mu(s))]`.

    The critic gives logits over ``num_atoms`` equally spaced returns :math:`z_i` from ``v_min`` to ``v_max``. Its
    target
    :math:`m = \Phi\left(r + \gamma^n (1 - d) z, p'(s', \mu'(s'))\right)` is the target critic's distribution, moved and
    projected back onto the atoms. Mass that the projection pushes to the ends is reported as
    ``target_outside_support``: if it is not close to 0, ``v_min`` or ``v_max`` is wrong.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        value_network: a TensorDict module that reads the action and writes ``"state_action_value"``: logits
            ``[*B, num_atoms]``; or a list of ``num_value_nets`` of them.
        v_min: the lowest return, in the batch's reward units, discounted.
        v_max: the highest return, above ``v_min``.
        num_atoms: number of atoms, at least 2 (51).
        num_value_nets: number of critics (1). With more, the target is sample by sample the distribution with the
            lowest mean, and the actor's term runs the first critic.
        delay_actor: whether the target actor is a slowly moving copy (default True).
        delay_value: whether the target critics are slowly moving copies (default True).
        gamma: not accepted here; see ``make_value_estimator``, which takes TD(0) alone; for n-step returns put
            TorchRL's ``MultiStepTransform`` into the replay buffer.
        separate_losses: if True, layers that actor and critic share are trained by the actor's loss alone.
        reduction: ``"mean"`` (default), ``"sum"``, or ``"none"`` for per-sample losses ``[*B]``.
        use_prioritized_weights: whether ``priority_weight`` weighs the critic's loss: ``"auto"``, True or False.
        action_spec: the action's bounded spec, or the environment's composite one; target actions are clamped to it.
        bounds: ``(low, high)`` in place of ``action_spec``.
        priority: ``"absolute"`` (difference of the means of target and prediction, default) or ``"squared"``.
        weigh_actor: whether the weights weigh the actor's loss too (default False).

    Raises:
        TypeError: if a network is not a TensorDict module, or an option has the wrong type.
        ValueError: if an option is unknown or out of range, ``v_min`` is not below ``v_max``, or a network is lazy.

    References:
        Barth-Maron et al. 2018, arXiv:1804.08617, algorithm 1; Bellemare et al. 2017, arXiv:1707.06887, for the
        projection; Seo et al. 2025, arXiv:2505.22642, for the choice among critics.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import D4PGLoss
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 51, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = D4PGLoss(actor, critic, v_min=-10.0, v_max=10.0).make_value_estimator("td0", gamma=0.98)
        >>> loss.support.shape
        torch.Size([51])
    """

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
        delay_actor: bool = True,
        delay_value: bool = True,
        gamma: None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        action_spec: TensorSpec | None = None,
        bounds: Sequence[float | Tensor] | None = None,
        priority: str = "absolute",
        weigh_actor: bool = False,
    ) -> None:
        checks.finite("v_min", v_min)
        checks.finite("v_max", v_max)
        if v_min >= v_max:
            raise ValueError(f"v_min is {v_min!r}, v_max is {v_max!r}; accepted: v_min below v_max.")
        checks.positive_int("num_atoms", num_atoms, at_least=2)
        super().__init__(
            actor_network,
            value_network,
            num_critics=("num_value_nets", num_value_nets),
            delay_actor=delay_actor,
            delay_critic=delay_value,
            gamma=gamma,
            separate_losses=separate_losses,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            priority=priority,
            weigh_actor=weigh_actor,
            action_spec=action_spec,
            bounds=bounds,
        )
        self.v_min, self.v_max, self.num_atoms = v_min, v_max, num_atoms
        self._register_constant("support", torch.linspace(v_min, v_max, num_atoms, dtype=torch.float64))

    @property
    def _atoms(self) -> Tensor:
        return self.support.to(self._dtype)

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The probabilities of the distribution with the lowest mean."""
        if values[0].shape[-1] != self.num_atoms:
            raise BatchError(
                f"the critic's {self.tensor_keys.state_action_value!r} has shape {list(values[0].shape)}; accepted: "
                f"logits [*B, num_atoms], with num_atoms={self.num_atoms}."
            )
        return functional.lower_mean_distribution(torch.stack(values).softmax(-1), self._atoms)

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

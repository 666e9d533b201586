"""Distributed distributional deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.objectives import ValueEstimators

from torchrl_ddpg import checks, functional
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.losses.batch import Batch


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
        owner = type(self).__name__
        checks.no_gamma(owner, gamma)
        checks.support(owner, v_min, v_max, num_atoms)
        super().__init__(
            actor_network,
            value_network,
            delayed={"actor_network": delay_actor, "value_network": delay_value},
            separate_losses=separate_losses,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            priority=priority,
            weigh_actor=weigh_actor,
            action_spec=action_spec,
            bounds=bounds,
            num_critics=("num_value_nets", num_value_nets),
        )
        self.delay_actor, self.delay_value, self.num_value_nets = delay_actor, delay_value, num_value_nets
        self.v_min, self.v_max, self.num_atoms = v_min, v_max, num_atoms
        self._register_constant("support", torch.linspace(v_min, v_max, num_atoms))

    def _combined(self, values: Tensor) -> Tensor:
        if values.shape[-1] != self.num_atoms:
            raise checks.not_atoms(self._owner, self.tensor_keys.state_action_value, values[0], self.num_atoms)
        return functional.lower_mean_distribution(values.softmax(-1), self._atoms)

    @property
    def _atoms(self) -> Tensor:
        return self.support.to(self._dtype)

    def _targets(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reward, _, terminated, steps = batch.transition(self._dtype)
        probabilities = self._next_value(batch, terminated)
        if probabilities.shape[:-1] != reward.shape[:-1] or reward.shape[-1] != 1:
            self._like_reward(self._expected_target(probabilities), reward)
        # Where the episode has ended all atoms fall on the reward; what the network said there may be NaN.
        probabilities = probabilities.masked_fill(terminated, 1 / self.num_atoms)
        discount = functional.discount(self.value_estimator.gamma, terminated, steps).to(self._dtype)
        atoms = reward + discount * self._atoms
        target = functional.categorical_projection(atoms, probabilities, self._atoms)
        outside = ((atoms < self.v_min) | (atoms > self.v_max)) * probabilities
        return target.detach(), self._report("target_outside_support", batch, outside.sum(-1, keepdim=True))

    def _compare(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        error = functional.td_error(self._expected(prediction.detach()), self._expected_target(target))
        return functional.categorical_td_loss(prediction, target).unsqueeze(-1), error

    def _expected(self, values: Tensor) -> Tensor:
        return functional.expected_value(values.softmax(-1), self._atoms)

    def _expected_target(self, target: Tensor) -> Tensor:
        return functional.expected_value(target, self._atoms)

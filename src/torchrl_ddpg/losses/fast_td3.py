"""FastTD3: TD3 with categorical critics, for many environments and large batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_ddpg import checks
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.losses.categorical import CategoricalLoss
from torchrl_ddpg.losses.smoothed_targets import SmoothedTargetsLoss


class FastTD3Loss(SmoothedTargetsLoss, CategoricalLoss):
    r"""FastTD3: D4PG's cross entropy with TD3's two critics and smoothed target actions.

    :math:`L_Z = -\frac1N \sum w \sum_k \sum_i m_i \log p_{k,i}(s, a)`, where both critics learn from one target
    :math:`m = \Phi\left(r + \gamma^n (1 - d) z, p'(s', \tilde a)\right)`, and
    :math:`L_\mu = -\frac1N \sum \min_k E[Z_k(s, \mu(s))]`. Sample by sample :math:`p'` is the distribution of the
    target critic with the lower mean. With ``combine_critics="average"`` it is the mixture of the target critics'
    distributions, and the actor ascends the average of the expected values.

    The target action comes from the online actor, as in the authors' program, unless ``delay_actor=True``. Mass that
    the projection pushes to the ends of the support is reported as ``target_outside_support``.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        value_network: a TensorDict module that reads the action and writes ``"state_action_value"``: logits
            ``[*B, num_atoms]``; or a list of ``num_value_nets`` of them. A single one is the first critic; the others
            are copies that its layers' own ``reset_parameters`` initialise anew. It may read entries that the actor
            does not, such as the simulator's state.
        v_min: the lowest return, in the batch's reward units, discounted.
        v_max: the highest return, above ``v_min``.
        action_spec: the action's bounded spec, or the environment's composite one.
        bounds: ``(low, high)`` in place of ``action_spec``; exactly one of the two is given.
        num_atoms: number of atoms, at least 2 (101).
        num_value_nets: number of critics (2).
        combine_critics: ``"minimum"`` (default) or ``"average"``, in the target and in the actor's loss.
        policy_noise: standard deviation of the noise on target actions, in units of half the range (0.001).
        noise_clip: largest such noise, in the same units (0.5).
        delay_actor: whether the target actor is a slowly moving copy (default False).
        **options: further options of :class:`D4PGLoss`, with the same defaults, such as ``priority``.

    Raises:
        TypeError: if a network is not a TensorDict module, or an option has the wrong type.
        ValueError: if an option is unknown or out of range, ``v_min`` is not below ``v_max``, a network is lazy, or not
            exactly one of ``action_spec`` and ``bounds`` is given.

    References:
        Seo et al. 2025, arXiv:2505.22642, section 2.2.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import FastTD3Loss
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 101, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = FastTD3Loss(actor, critic, v_min=-10.0, v_max=10.0, bounds=(-1.0, 1.0))
        >>> loss.num_critics, loss.out_keys[-1]
        (2, 'target_outside_support')
    """

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        num_atoms: int = 101,
        num_value_nets: int = 2,
        combine_critics: str = "minimum",
        policy_noise: float = 0.001,
        noise_clip: float = 0.5,
        delay_actor: bool = False,
        **options: Any,
    ) -> None:
        smoothing = {"policy_noise": policy_noise, "noise_clip": noise_clip}
        options |= {"num_atoms": num_atoms, "num_value_nets": num_value_nets, "delay_actor": delay_actor}
        super().__init__(actor_network, value_network, **smoothing, **options)
        self.combine_critics = checks.choice("combine_critics", combine_critics, ("minimum", "average"))
        self.actor_critics = range(self.num_critics)

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The probabilities of the distribution with the lowest mean, or of the mixture of all."""
        if self.combine_critics == "minimum":
            return super().next_state_value(values, action, batch)
        return self._probabilities(values).mean(0)

    def actor_value(self, values: list[Tensor]) -> Tensor:
        """The lowest of the critics' expected values, or their average."""
        expected = torch.stack([self.expected_value(value) for value in values])
        return expected.amin(0) if self.combine_critics == "minimum" else expected.mean(0)

"""Distributed distributional deep deterministic policy gradient."""

from __future__ import annotations

from torchrl_ddpg.losses.categorical import CategoricalLoss


class D4PGLoss(CategoricalLoss):
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

"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

from torchrl_ddpg.losses.clipped_double_q import ClippedDoubleQLoss


class TD3Loss(ClippedDoubleQLoss):
    r"""TD3: :math:`L_Q = \frac1N \sum w \sum_i \ell(Q_i(s, a), y)` and :math:`L_\mu = -\frac1N \sum Q_1(s, \mu(s))`.

    The target :math:`y = r + \gamma^n (1 - d) \min_i Q'_i(s', \tilde a)` is taken at the smoothed target action
    :math:`\tilde a`, whose noise is scaled by half the action's range. The actor's term runs the first critic alone.
    The delay of the policy is a matter of the training loop: step the actor every second time.

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
        Fujimoto et al. 2018, arXiv:1802.09477, algorithm 1.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import TD3Loss
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 1, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0)).make_value_estimator("td0", gamma=0.98)
        >>> loss.out_keys
        ['loss_actor', 'loss_qvalue', 'pred_value',
         'state_action_value_actor', 'next_state_value', 'target_value']
    """

    all_out_keys = (
        "loss_actor",
        "loss_qvalue",
        "pred_value",
        "state_action_value_actor",
        "next_state_value",
        "target_value",
    )

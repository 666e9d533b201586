"""Deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.modules import ActorCriticWrapper

from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class DDPGLoss(DeterministicPolicyLoss):
    r"""DDPG: :math:`L_Q = \frac1N \sum w\, \ell(Q(s, a), y)` and :math:`L_\mu = -\frac1N \sum Q(s, \mu(s))`.

    The target :math:`y = r + \gamma^n (1 - d)\, Q'(s', \mu'(s'))` comes from target networks that a ``SoftUpdate`` or
    ``HardUpdate`` moves. Gradient of :math:`L_Q` reaches the critic alone, of :math:`L_\mu` the actor alone. It is
    a drop-in replacement for ``torchrl.objectives.DDPGLoss``; the documentation lists the differences.

    Args:
        actor_network: a TensorDict module that writes the action; initialised (lazy layers have seen data).
        value_network: a TensorDict module that reads the action and writes ``"state_action_value"``, ``[*B, 1]``.
        loss_function: :math:`\ell`: ``"l2"`` (the paper's, default), ``"l1"`` or ``"smooth_l1"``.
        delay_actor: whether the target actor is a slowly moving copy, as in the paper (default True).
        delay_value: whether the target critic is a slowly moving copy (default True).
        separate_losses: if True, layers that actor and critic share are trained by the actor's loss alone
            (default False: by both).
        reduction: ``"mean"`` (default), ``"sum"``, or ``"none"`` for per-sample losses ``[*B]``.
        use_prioritized_weights: whether ``priority_weight``, ``[*B]`` or ``[*B, 1]``, weighs the critic's loss:
            ``"auto"`` (if the batch has it, default), True (it must) or False.
        action_spec: the action's bounded spec, or the environment's composite one; target actions are clamped to it.
        bounds: ``(low, high)`` in place of ``action_spec``: numbers or tensors that broadcast to the action.
        priority: what is written for prioritised replay, ``"absolute"`` (:math:`|\delta|`, default) or ``"squared"``.
        weigh_actor: whether the weights weigh the actor's loss too (default False).
        gamma: not accepted here; see ``make_value_estimator``.

    Raises:
        TypeError: if a network is not a TensorDict module, or an option has the wrong type.
        ValueError: if an option is unknown, a network is lazy, or the critic does not read the actor's action.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1; Silver et al. 2014 for the gradient; Schaul et al. 2016,
        arXiv:1511.05952, for weights and priority.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import DDPGLoss, SoftUpdate
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 1, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = DDPGLoss(actor, critic, bounds=(-1.0, 1.0)).make_value_estimator("td0", gamma=0.98)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> flag = torch.zeros(4, 1, dtype=torch.bool)
        >>> later = {"observation": torch.randn(4, 3), "reward": torch.ones(4, 1), "done": flag, "terminated": flag}
        >>> batch = TensorDict({"observation": torch.randn(4, 3), "action": torch.zeros(4, 2), "next": later}, [4])
        >>> losses = loss(batch)
        >>> (losses["loss_actor"] + losses["loss_value"]).backward()
        >>> updater.step()
        >>> sorted(losses.keys())
        ['loss_actor', 'loss_value', 'pred_value', 'pred_value_max', 'target_value', 'target_value_max']

        Without TensorDict, entries are keyword arguments and the outputs a tuple in the order of ``out_keys``:

        >>> _ = loss.select_out_keys("loss_actor", "loss_value")
        >>> loss_actor, loss_value = loss(
        ...     observation=torch.randn(3), action=torch.zeros(2), next_observation=torch.randn(3),
        ...     next_reward=torch.ones(1), next_done=torch.tensor([False]), next_terminated=torch.tensor([False]),
        ... )
    """

    critic_name = "value_network"
    critic_loss_key = "loss_value"
    all_out_keys = (
        "loss_actor",
        "loss_value",
        "pred_value",
        "target_value",
        "pred_value_max",
        "target_value_max",
    )

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase,
        *,
        loss_function: str = "l2",
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
        super().__init__(
            actor_network,
            value_network,
            loss_function=loss_function,
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

    @property
    def actor_critic(self) -> ActorCriticWrapper:
        """Actor and critic in one module, as TorchRL's loss has it."""
        return ActorCriticWrapper(self.actor_network, self.value_network)

    def _value_network(self) -> ActorCriticWrapper:
        return self.actor_critic

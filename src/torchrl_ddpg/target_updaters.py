"""How target networks follow the online ones."""

from __future__ import annotations

from torchrl.objectives import TargetNetUpdater

from torchrl_ddpg import checks, functional
from torchrl_ddpg.losses.base import DeterministicPolicyLoss


class _Updater(TargetNetUpdater):
    """What both updaters share; the targets are found in the loss at each step, so a copy moves the copy's."""

    @checks.names_errors
    def __init__(self, loss_module: DeterministicPolicyLoss) -> None:
        owner = type(self).__name__
        if not isinstance(loss_module, DeterministicPolicyLoss):
            raise TypeError(
                f"the loss is of type {type(loss_module).__name__}; accepted: a loss of torchrl_ddpg. For "
                f"TorchRL's own losses use torchrl.objectives.{owner}."
            )
        if not loss_module.target_pairs("parameters")[0]:
            raise ValueError(
                f"the {type(loss_module).__name__} has no target networks to move; build it with "
                f"delay_actor=True or delay_value=True, or use no updater."
            )
        if loss_module.has_updater:
            checks.warn(
                f"{owner}: the {type(loss_module).__name__} already has a target updater; with two, its targets move "
                f"twice an update. Call step() of one of them only."
            )
        super().__init__(loss_module)

    def init_(self) -> None:
        """Copy the online networks into the targets; the constructor's own call spares those loaded or moved."""
        if self.__dict__.get("initialized") or self.loss_module.targets_are_initial():
            for kind in ("parameters", "buffers"):
                functional.copy_(*self.loss_module.target_pairs(kind))
        self.initialized = True


class SoftUpdate(_Updater):
    r"""Targets follow slowly: :math:`\theta' \leftarrow \tau \theta + (1 - \tau) \theta'`; buffers are copied.

    Building it copies the online networks into targets that nothing has loaded or moved yet, and leaves all others
    alone; ``init_()`` copies in any case.

    Args:
        loss_module: the loss whose targets move.
        tau: weight of the online parameters, in (0, 1].
        eps: ``1 - tau``, in [0, 1); give one of the two.

    Raises:
        TypeError: if the loss is not one of this library, or neither or both of tau and eps are given.
        ValueError: if tau or eps is out of range, or the loss has no target networks.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1, last step.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl_ddpg import DDPGLoss, SoftUpdate
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["action"])
        >>> _ = torch.nn.init.zeros_(actor.module.bias)
        >>> critic = ValueOperator(torch.nn.Bilinear(3, 2, 1), in_keys=["observation", "action"])
        >>> loss = DDPGLoss(actor, critic)
        >>> updater = SoftUpdate(loss, tau=0.25)
        >>> _ = torch.nn.init.constant_(actor.module.bias, 4.0)
        >>> updater.step()  # after each optimizer step
        >>> loss.target_actor_network_params["module", "bias"].tolist()
        [1.0, 1.0]
    """

    @checks.names_errors
    def __init__(
        self, loss_module: DeterministicPolicyLoss, *, eps: float | None = None, tau: float | None = None
    ) -> None:
        if (eps is None) == (tau is None):
            given = "neither tau nor eps is" if eps is None else "tau and eps are both"
            raise TypeError(f"{given} given; accepted: one of them, such as tau=0.005.")
        if eps is not None:
            checks.unit_interval("eps", eps)
            if eps == 1:
                raise ValueError(f"eps is {eps!r}, so targets never move; accepted: a number in [0, 1).")
            if eps < 0.5:
                checks.warn(
                    f"SoftUpdate: eps is {eps!r}, which moves the targets by {1 - eps:g} of the way at each step; "
                    f"tau={eps!r} moves them slowly."
                )
        else:
            checks.unit_interval("tau", tau, open_left=True)
        self.tau = float(tau if eps is None else 1 - eps)  # type: ignore[arg-type]
        super().__init__(loss_module)

    @property
    def eps(self) -> float:
        """``1 - tau``."""
        return 1 - self.tau

    def step(self) -> None:
        """Move every target parameter by ``tau`` of the way; copy every buffer."""
        targets, sources = self.loss_module.target_pairs("parameters")
        functional.polyak_update_(targets, sources, self.tau)
        buffers, sources = self.loss_module.target_pairs("buffers")
        if buffers:
            functional.copy_(buffers, sources)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(tau={self.tau})"


class HardUpdate(_Updater):
    """Targets are copied from the online networks at every ``value_network_update_interval``-th call of ``step()``.

    Building it leaves targets alone that were loaded or have moved, as :class:`SoftUpdate` does.

    Args:
        loss_module: the loss whose targets move.
        value_network_update_interval: number of calls of ``step()`` from one copy to the next, at least 1 (1000).

    Raises:
        TypeError: if the loss is not one of this library, or the interval not an integer.
        ValueError: if the interval is less than 1, or the loss has no target networks.

    References:
        Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl_ddpg import DDPGLoss, HardUpdate
        >>> actor = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["action"])
        >>> _ = torch.nn.init.zeros_(actor.module.bias)
        >>> critic = ValueOperator(torch.nn.Bilinear(3, 2, 1), in_keys=["observation", "action"])
        >>> loss = DDPGLoss(actor, critic)
        >>> updater = HardUpdate(loss, value_network_update_interval=2)
        >>> _ = torch.nn.init.constant_(actor.module.bias, 4.0)
        >>> for _ in range(2):  # after each optimizer step
        ...     updater.step()
        ...     loss.target_actor_network_params["module", "bias"].tolist()
        [0.0, 0.0]
        [4.0, 4.0]
    """

    @checks.names_errors
    def __init__(self, loss_module: DeterministicPolicyLoss, *, value_network_update_interval: int = 1000) -> None:
        self.value_network_update_interval = checks.positive_int(
            "value_network_update_interval", value_network_update_interval
        )
        self.counter = 0
        super().__init__(loss_module)

    def step(self) -> None:
        """Count, and copy when the interval is full."""
        self.counter += 1
        if self.counter >= self.value_network_update_interval:
            self.counter = 0
            for kind in ("parameters", "buffers"):
                functional.copy_(*self.loss_module.target_pairs(kind))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(value_network_update_interval={self.value_network_update_interval})"

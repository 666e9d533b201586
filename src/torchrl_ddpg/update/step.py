"""One optimisation step of algorithm 1: critic, actor on its delay, target networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import Optimizer
from torchrl.objectives import TargetNetUpdater

from torchrl_ddpg import checks
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.entries import write
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.target_updaters import SoftUpdate
from torchrl_ddpg.update import optimizer_step
from torchrl_ddpg.update.cuda_graph import RecordedStep
from torchrl_ddpg.update.operator_graph import RecordedTerms

Outputs = tuple[Tensor, dict[str, Tensor]]


class UpdateStep:
    """Step the critic, then the actor against the new critic, then the targets.

    Args:
        loss: a loss of this library.
        actor_optimizer: steps the actor's parameters.
        critic_optimizer: steps the critic's parameters.
        target_updater: moves the targets; built for ``loss``.
        policy_delay: number of critic steps to one step of actor and targets, at least 1 (DDPG and D4PG: 1, TD3: 2).
            What is skipped is not computed.
        max_grad_norm: norm above which the gradient of a network is scaled down to it, above 0; None for never.
        compile: whether both terms are compiled with ``torch.compile``, with its guards, for each form of batch. It
            stops after ``torch._dynamo.config.recompile_limit`` forms.
        record_operators: on the CPU, whether the operators of both terms and of their gradients are recorded once for
            each form of batch, then called without autograd and the modules' Python: the same numbers, sooner.
            Settings, hooks, tensors and modes of the loss, its networks and its estimator are followed. A network whose
            Python control flow depends on values raises when it is recorded; whatever else a recording cannot see is
            compared with the terms themselves at the third batch and at every 1,000th from then on. NaN is refused
            before it reaches a parameter, but after running statistics have seen it.
        cuda_graph: whether the whole step is recorded as a CUDA graph, one for each form of batch (the 64 used last
            are kept), and replayed without waiting for the device. The optimizers are made capturable, and Adam's
            learning rates tensors. A graph does not see later changes of ``tau``, ``max_grad_norm`` or an optimizer's
            state, other than by ``load_state_dict``, and does not run hooks. Results of the loss that still hold their
            autograd graph must be gone before it is recorded.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, the updater moves another loss, an optimizer does not hold its
            network's parameters or needs a closure, or ``record_operators`` is asked for off the CPU or together with
            another, or ``cuda_graph`` off a CUDA device or with an optimizer that cannot be recorded.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1; Fujimoto et al. 2018, arXiv:1802.09477, for the delay.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.modules import MLP, ValueOperator
        >>> from torchrl_ddpg import SoftUpdate, TD3Loss, UpdateStep
        >>> actor = TensorDictModule(MLP(3, 2, num_cells=[8]), in_keys=["observation"], out_keys=["action"])
        >>> critic = ValueOperator(MLP(5, 1, num_cells=[8]), in_keys=["observation", "action"])
        >>> loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0))
        >>> update = UpdateStep(
        ...     loss,
        ...     actor_optimizer=torch.optim.Adam(loss.actor_network_params.parameters(), lr=3e-4),
        ...     critic_optimizer=torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=3e-4),
        ...     target_updater=SoftUpdate(loss, tau=0.005),
        ...     policy_delay=2,
        ... )
        >>> flag = torch.zeros(4, 1, dtype=torch.bool)
        >>> later = {"observation": torch.randn(4, 3), "reward": torch.ones(4, 1), "done": flag, "terminated": flag}
        >>> batch = TensorDict({"observation": torch.randn(4, 3), "action": torch.zeros(4, 2), "next": later}, [4])
        >>> "loss_actor" in update(batch), "loss_actor" in update(batch)
        (False, True)
    """

    @checks.names_errors
    def __init__(
        self,
        loss: DeterministicPolicyLoss,
        *,
        actor_optimizer: Optimizer,
        critic_optimizer: Optimizer,
        target_updater: TargetNetUpdater,
        policy_delay: int = 1,
        max_grad_norm: float | None = None,
        compile: bool = False,
        record_operators: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        checks.instance("loss", loss, DeterministicPolicyLoss)
        checks.instance("target_updater", target_updater, TargetNetUpdater)
        if target_updater.loss_module is not loss:
            raise ValueError("target_updater moves another loss; accepted: an updater built for this one.")
        self.loss, self.target_updater = loss, target_updater
        self.actor_optimizer, self.critic_optimizer = actor_optimizer, critic_optimizer
        self.policy_delay = checks.positive_int("policy_delay", policy_delay)
        self.max_grad_norm = max_grad_norm
        if max_grad_norm is not None:
            checks.finite("max_grad_norm", max_grad_norm, above=0)
        self.count = 0
        self._check_optimizers()
        self.compile = checks.boolean("compile", compile)
        self.record_operators = checks.boolean("record_operators", record_operators)
        self.cuda_graph = checks.boolean("cuda_graph", cuda_graph)
        device = next(loss.parameters()).device
        if record_operators and (compile or cuda_graph or device.type != "cpu"):
            raise ValueError(
                f"record_operators=True goes without compile and cuda_graph, on the CPU; the loss is on {device}. On a "
                f"GPU use cuda_graph=True."
            )
        self._build()

    def _build(self) -> None:
        """What cannot be copied or pickled: compiled functions and recordings."""
        self._compiled: dict[str, Callable[[TensorDictBase], Outputs]] = {}
        optimizers = {"actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer}
        self._recorded = RecordedTerms(self.loss, optimizers.values()) if self.record_operators else None
        self._step = RecordedStep(self._update, self.loss, optimizers) if self.cuda_graph else self._update

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_compiled", "_recorded", "_step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._build()

    def _check_optimizers(self) -> None:
        names = {"actor_optimizer": "actor_network", "critic_optimizer": self.loss.critic_name}
        for role, name in names.items():
            optimizer = getattr(self, role)
            checks.instance(role, optimizer, Optimizer)
            closure = inspect.signature(optimizer.step).parameters.get("closure")
            if closure is not None and closure.default is closure.empty:
                raise ValueError(
                    f"{role} is {type(optimizer).__name__}, which needs a closure; accepted: an optimizer that steps "
                    f"without one."
                )
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            wanted = [id(p) for p in getattr(self.loss, f"{name}_params").parameters() if p.requires_grad]
            if wanted and not held.intersection(wanted):
                raise ValueError(
                    f"{role} holds no parameter of {name}; accepted: one built from loss.{name}_params.parameters()."
                )

    @checks.names_errors
    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Do one step.

        Args:
            batch: transitions ``[*B]`` with the loss's ``in_keys``; the priority is written into it.

        Returns:
            The losses and scalar metrics that were computed, and the gradient norms if they are clipped, as detached
            tensors on the networks' device. Without the actor's on the steps that its delay leaves out. A network
            that is wholly frozen is not stepped.

        Raises:
            ValueError: if the loss's ``reduction`` is ``"none"``, or the batch cannot be used.
            RuntimeError: if gradients are switched off, or ``record_operators=True`` cannot record the loss's terms.
        """
        if self.loss.reduction == "none":
            raise ValueError("the loss's reduction is 'none'; accepted: 'mean' or 'sum'.")
        if not torch.is_grad_enabled():
            raise RuntimeError("gradients are switched off (torch.no_grad), so nothing can be trained.")
        with self.loss.reading_once(batch) as read:
            with_actor = (self.count + 1) % self.policy_delay == 0
            metrics = self._step(batch, read, with_actor)
        self.count += 1  # not before: where a batch is refused, the actor's turn stays its turn
        if with_actor and not self._moves_targets:
            self.target_updater.step()
        return metrics

    @property
    def _moves_targets(self) -> bool:
        """Whether the targets move as part of the step; updaters that count move after it."""
        return type(self.target_updater) is SoftUpdate

    def _update(self, batch: TensorDictBase, read: Batch, with_actor: bool) -> dict[str, Tensor]:
        loss = self.loss
        if self._recorded is not None:
            self._recorded.recordings.refresh()
        metrics = self._descend(loss.critic_method, loss.critic_loss_key, self.critic_optimizer, "critic", batch, read)
        if with_actor:
            metrics |= self._descend(loss.actor_method, "loss_actor", self.actor_optimizer, "actor", batch, read)
            if self._moves_targets:
                self.target_updater.step()
        return metrics

    def _descend(
        self, method: str, key: str, optimizer: Optimizer, network: str, batch: TensorDictBase, read: Batch
    ) -> dict[str, Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        if self._recorded is not None:
            loss, metrics = self._recorded(method, key, batch, read)
        else:
            term = self._compiled_term(method) if self.compile else getattr(self.loss, method)
            loss, metrics = term(batch)
            if self.compile:  # compiled it does not look
                self.loss.check_loss(key, loss, read)
            if loss.requires_grad:
                loss.backward()
        metrics = {key: loss, **{name: value for name, value in metrics.items() if value.ndim == 0}}
        if self.max_grad_norm is not None:
            metrics[f"grad_norm_{network}"] = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer_step.step(optimizer)
        return {name: value.detach() if value.requires_grad else value for name, value in metrics.items()}

    def _compiled_term(self, method: str) -> Callable[[TensorDictBase], Outputs]:
        """A term as a compiled function of a batch; what the term writes, such as the priority, is written into it."""
        if method not in self._compiled:  # not before: it imports what takes seconds

            def term(batch: TensorDictBase) -> Outputs:
                return getattr(self.loss, method)(batch)

            term.__code__ = term.__code__.replace()  # what is compiled is kept, and counted, by code object
            self._compiled[method] = torch.compile(term)

        def of_batch(batch: TensorDictBase) -> Outputs:
            copied = batch.copy()  # one that is locked, or part of another, would be compiled anew
            outputs = self._compiled[method](copied)
            entries = copied.items(True, True)
            write(batch, {key: value for key, value in entries if value is not batch.get(key, None)})
            return outputs

        return of_batch

    def state_dict(self) -> dict[str, Any]:
        """All that a later run needs to go on: the loss with its targets, both optimizers, the updater, the count."""
        return {
            "loss": self.loss.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "target_updater": self.target_updater.state_dict(),
            "count": self.count,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.loss.load_state_dict(state_dict["loss"])
        for name in ("actor_optimizer", "critic_optimizer"):
            optimizer: Optimizer = getattr(self, name)
            before = [(group.get("capturable"), isinstance(group["lr"], Tensor)) for group in optimizer.param_groups]
            optimizer.load_state_dict(state_dict[name])
            for group, (capturable, is_tensor) in zip(optimizer.param_groups, before, strict=True):
                if not self.cuda_graph and capturable is not None:  # a recorded run's checkpoint may go on elsewhere
                    group["capturable"] = capturable
                    group["lr"] = group["lr"] if is_tensor else float(group["lr"])
        self.target_updater.load_state_dict(state_dict["target_updater"])
        self.count = state_dict["count"]

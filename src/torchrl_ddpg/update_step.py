"""One optimisation step of algorithm 1: critic, actor on its delay, target networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.optim import Optimizer
from torchrl.objectives import TargetNetUpdater

from torchrl_ddpg import checks, optimizer_step
from torchrl_ddpg.cuda_graph import RecordedStep
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.losses.batch import Batch
from torchrl_ddpg.operator_graph import RecordedTerms, Term
from torchrl_ddpg.target_updaters import SoftUpdate

# Where PyTorch's own kernels, called without autograd and modules, are faster than those that torch.compile makes.
_RECORDED_ON = "cpu"


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
        compile: whether both terms and their gradients are compiled once for each kind of batch. On the CPU PyTorch's
            operators are recorded, then called without autograd and the modules' Python: the same numbers, sooner. A
            network that does in Python what depends on values is refused at the third batch, which is run both ways.
            Settings of loss and modules are followed where they are numbers, words or tensors; what else Python does,
            in hooks for instance, is left out. NaN is refused before it reaches a parameter, but after running
            statistics have seen it. Elsewhere ``torch.compile`` does it; it stops after
            ``torch._dynamo.config.recompile_limit`` kinds of batch.
        cuda_graph: whether the whole step is recorded as a CUDA graph, one for each shape of the batch (the 64 used
            last are kept), and replayed without waiting for the device. The optimizers are made capturable, and Adam's
            learning rates tensors. A graph does not see later changes of ``tau``, ``max_grad_norm`` or an optimizer's
            state, other than by ``load_state_dict``, and does not run hooks. Results of the loss that still hold their
            autograd graph must be gone before it is recorded.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, the updater moves another loss, an optimizer does not hold its
            network's parameters, or ``cuda_graph`` is asked for off a CUDA device or with an optimizer that cannot be
            recorded.

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
        cuda_graph: bool = False,
    ) -> None:
        owner = type(self).__name__
        checks.instance(owner, "loss", loss, DeterministicPolicyLoss)
        checks.instance(owner, "target_updater", target_updater, TargetNetUpdater)
        if target_updater.loss_module is not loss:
            raise ValueError(f"{owner}: target_updater moves another loss; accepted: an updater built for this one.")
        self.loss, self.target_updater = loss, target_updater
        self.actor_optimizer, self.critic_optimizer = actor_optimizer, critic_optimizer
        self.policy_delay = checks.positive_int(owner, "policy_delay", policy_delay)
        self.max_grad_norm = max_grad_norm
        if max_grad_norm is not None:
            checks.finite(owner, "max_grad_norm", max_grad_norm, above=0)
        self.count = 0
        self._check_optimizers(owner)
        self.compile = checks.boolean(owner, "compile", compile)
        self.cuda_graph = checks.boolean(owner, "cuda_graph", cuda_graph)
        self._build()

    def _build(self) -> None:
        """What cannot be copied or pickled: compiled functions and recordings."""
        owner, loss = type(self).__name__, self.loss
        self._names = {"loss_value": loss.critic_loss_key, "loss_actor": "loss_actor"}
        self._compiled: dict[str, Term] = {}
        optimizers = {"actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer}
        self._recorded = RecordedTerms(owner, loss, self._call, optimizers.values())
        self._step = RecordedStep(owner, self._update, loss, optimizers) if self.cuda_graph else self._update

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_compiled", "_recorded", "_step")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._build()

    def _call(self, term: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A term of the loss; one that a user has overridden gets the TensorDict that it knows."""
        own = getattr(type(self.loss), term) is getattr(DeterministicPolicyLoss, term) and term not in vars(self.loss)
        return getattr(self.loss, term)(batch if own else batch.source)

    def _check_optimizers(self, owner: str) -> None:
        names = {"actor_optimizer": "actor_network", "critic_optimizer": self.loss.critic_name}
        for role, name in names.items():
            optimizer = getattr(self, role)
            checks.instance(owner, role, optimizer, Optimizer)
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            wanted = [id(p) for p in getattr(self.loss, f"{name}_params").parameters() if p.requires_grad]
            if wanted and not held.intersection(wanted):
                raise ValueError(
                    f"{owner}: {role} holds no parameter of {name}; accepted: one built from "
                    f"loss.{name}_params.parameters()."
                )

    def __call__(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Do one step.

        Args:
            batch: transitions ``[*B]`` with the loss's ``in_keys``; the priority is written into it.

        Returns:
            The losses and metrics that were computed, and the gradient norms if they are clipped: detached tensors on
            the networks' device. Without the actor's on the steps that its delay leaves out.

        Raises:
            ValueError: if the loss's ``reduction`` is ``"none"``, or the batch cannot be used.
            RuntimeError: if ``compile=True`` cannot record the loss's terms, because a network does in Python what
                depends on values.
        """
        if self.loss.reduction == "none":
            raise ValueError(f"{type(self).__name__}: the loss's reduction is 'none'; accepted: 'mean' or 'sum'.")
        read = self.loss.read(batch)
        self.count += 1
        with_actor = self.count % self.policy_delay == 0
        metrics = self._step(read, with_actor)
        if with_actor and not self._moves_targets:
            self.target_updater.step()
        return metrics

    @property
    def _moves_targets(self) -> bool:
        """Whether the targets move as part of the step; updaters that count move after it."""
        return type(self.target_updater) is SoftUpdate

    def _update(self, batch: Batch, with_actor: bool) -> dict[str, Tensor]:
        if self.compile:
            self._recorded.recordings.refresh()
        metrics = self._descend("loss_value", self.critic_optimizer, "grad_norm_critic", batch)
        if with_actor:
            metrics |= self._descend("loss_actor", self.actor_optimizer, "grad_norm_actor", batch)
            if self._moves_targets:
                self.target_updater.step()
        return metrics

    def _descend(self, term: str, optimizer: Optimizer, norm: str, batch: Batch) -> dict[str, Tensor]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        loss, metrics = self._differentiate(term, batch, parameters[0].device.type)
        metrics = {self._names[term]: loss, **metrics}
        if self.max_grad_norm is not None:
            metrics[norm] = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer_step.step(optimizer)
        return metrics

    def _differentiate(self, term: str, batch: Batch, device: str) -> tuple[Tensor, dict[str, Tensor]]:
        """A term, detached, and its metrics; its gradients are added to the parameters'."""
        if self.compile and device == _RECORDED_ON:
            return self._recorded(term, batch)
        if self.compile and term not in self._compiled:  # not before: it imports what takes seconds
            self._compiled[term] = self._compile(term)
        loss, metrics = self._compiled[term](batch) if self.compile else self._call(term, batch)
        loss.backward()
        return loss.detach(), metrics

    def _compile(self, term: str) -> Term:
        """A term as a compiled function of a batch's tensors; the batch gets its priority."""

        def of_tensors(batch: TensorDict) -> tuple[tuple[Tensor, dict[str, Tensor]], Tensor | None]:
            outputs = self._call(term, self.loss.batch(batch))
            return outputs, batch.get(self.loss.tensor_keys.priority, None)

        of_tensors.__code__ = of_tensors.__code__.replace()  # what is compiled is kept, and counted, by code object
        compiled = torch.compile(of_tensors)

        def of_batch(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            outputs, priority = compiled(batch.over(batch.tensors()))
            if priority is not None:
                batch.write_priority(priority)
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

"""The public base class of the losses: the two terms, what losses share in them, and the steps that one overrides."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.envs.utils import exploration_type, set_exploration_type
from torchrl.modules import recurrent_mode, set_recurrent_mode

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch, Transition
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.entries import under_next
from torchrl_ddpg.losses import bounds as action_bounds
from torchrl_ddpg.losses.calls import AbsentError, Entries
from torchrl_ddpg.losses.configuration import ConfigurableLoss
from torchrl_ddpg.losses.networks import Use

Report = dict[str, Tensor]
_SHARED_METRICS = ("pred_value", "target_value", "next_state_value", "state_action_value_actor")


class Term(NamedTuple):
    """What a term makes: the reduced loss, metrics without gradient, and for the critic's the priority, ``[*B]``."""

    loss: Tensor
    metrics: dict[str, Tensor]
    priority: Tensor | None = None


def _column(step: str, losses: Tensor, value: Tensor, batch: Batch) -> Tensor:
    """The losses of a step, one for each value or each sample, with a last dimension of one as values have it."""
    shape = losses.shape
    if shape == value.shape:
        return losses
    values = value.shape[:-1]
    if shape in (values, batch.shape):
        return losses.unsqueeze(-1)
    if shape in ((*values, 1), (*batch.shape, 1)):
        return losses
    raise BatchError(
        f"{step} gives losses of shape {list(shape)}; accepted: {list(values)} or {[*values, 1]}. [B] and [B, 1] "
        f"together give [B, B]."
    )


def _public(method: Callable) -> Callable:
    """Run a public method with deterministic actions and recurrent networks over whole sequences; name its errors."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if exploration_type() is self.deterministic_sampling_mode and recurrent_mode():
                return method(self, *args, **kwargs)
            with set_exploration_type(self.deterministic_sampling_mode), set_recurrent_mode(True):
                return method(self, *args, **kwargs)
        except Exception as error:
            checks.name_error(type(self).__name__, error)
            raise

    return call


class DeterministicPolicyLoss(ConfigurableLoss):
    """The base class of losses for an actor with deterministic actions and its critics; not a loss by itself.

    A subclass sets ``critic_name``, ``critic_loss_key`` and ``all_out_keys``, and overrides the steps that its paper
    changes: :meth:`bound_target_action`, :meth:`next_state_value`, :meth:`critic_target`,
    :meth:`critic_sample_losses`, :meth:`expected_value`, :meth:`expected_target`, :meth:`actor_value` and
    :meth:`actor_sample_losses`, and with ``actor_critics`` and ``extra_keys`` which critics the actor's term runs and
    what else a step reads. Masks, NaN past the end of an episode, importance weights, the priority, the reduction and
    the metrics are taken care of, whatever is overridden.

    Args:
        actor_network: a TensorDict module that writes the action.
        critic_network: a TensorDict module that reads the action and writes ``"state_action_value"``, ``[*B, K]``, or
            with ``num_critics`` a list of them.
        delay_actor: whether the target actor is a slowly moving copy.
        delay_critic: whether the target critics are slowly moving copies.
        loss_function: ``"l2"``, ``"l1"`` or ``"smooth_l1"``, for the default of :meth:`critic_sample_losses`.
        num_critics: the name of the option that says how many critics there are, and its value; None for one critic.
        gamma: not accepted here; see :meth:`make_value_estimator`.
        separate_losses: if True, layers that actor and critics share are trained by the actor's loss alone.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for per-sample losses ``[*B]``.
        use_prioritized_weights: whether ``priority_weight`` weighs the critic's loss: ``"auto"``, True or False.
        priority: what is written for prioritised replay, ``"absolute"`` TD error or ``"squared"``.
        weigh_actor: whether the weights weigh the actor's loss too.
        action_spec: the action's bounded spec, or the environment's composite one.
        bounds: ``(low, high)`` in place of ``action_spec``: numbers or tensors that broadcast to the action.

    Raises:
        TypeError: if a subclass does not say what it must, a network is not a TensorDict module, or an option has the
            wrong type.
        ValueError: if an option is unknown, a network is lazy, or the critic does not read the actor's action.
    """

    critic_name: ClassVar[str] = ""
    critic_loss_key: ClassVar[str] = ""
    # The public methods that every call of the loss goes through; where TorchRL has another name, that one.
    critic_method: ClassVar[str] = "loss_value"
    actor_method: ClassVar[str] = "loss_actor"
    further_out_keys = ("actor_saturation", "target_saturation")
    reports_saturation: bool = True
    """Whether the terms give these two metrics, where bounds are known; False saves eight small operations."""
    actor_critics: Sequence[int] = (0,)
    """Which of several critics the actor's term runs, by their positions."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("out_keys")
        if isinstance(own, (list, tuple)):  # as TorchRL's losses declare them
            cls.all_out_keys = tuple(own)
            del cls.out_keys

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        delay_actor: bool = True,
        delay_critic: bool = True,
        loss_function: str = "l2",
        num_critics: tuple[str, int] | None = None,
        gamma: None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
        priority: str = "absolute",
        weigh_actor: bool = False,
        action_spec: TensorSpec | None = None,
        bounds: Sequence[float | Tensor] | None = None,
    ) -> None:
        if gamma is not None:
            raise TypeError(f"gamma is set with loss.make_value_estimator(gamma={gamma!r}), not in the constructor.")
        self._check_class()
        super().__init__(
            actor_network,
            critic_network,
            delay_actor=delay_actor,
            delay_critic=delay_critic,
            separate_losses=separate_losses,
            num_critics=num_critics,
        )
        self.loss_function = checks.choice("loss_function", loss_function, functional.LOSS_FUNCTIONS)
        self.reduction = checks.choice("reduction", reduction or "mean", functional.REDUCTIONS)
        self.use_prioritized_weights = checks.choice(
            "use_prioritized_weights", use_prioritized_weights, ("auto", True, False)
        )
        self.priority = checks.choice("priority", priority, ("absolute", "squared"))
        self.weigh_actor = checks.boolean("weigh_actor", weigh_actor)
        low, high = action_bounds.read(self.action_keys[0], action_spec, bounds)
        actions = [key for key in self.action_keys if key == "action" or key[-1] == "action"]
        if low is not None and len(actions) > 1:
            raise ValueError(
                f"actor_network writes several actions, {', '.join(map(repr, actions))}, and the bounds are for one; "
                f"accepted: one entry with all of them, or a loss for each."
            )
        self._register_constant("min_action", low)
        self._register_constant("max_action", high)
        middle, distance = action_bounds.saturation(self._buffers["min_action"], self._buffers["max_action"])
        self.register_buffer("_middle_action", middle, persistent=False)  # configuration, as the bounds are
        self.register_buffer("_saturated_distance", distance, persistent=False)
        self.make_value_estimator()

    @classmethod
    def _check_class(cls) -> None:
        name, losses = cls.critic_name, ("loss_actor", cls.critic_loss_key)
        if not name.endswith("_network") or not cls.critic_loss_key.startswith("loss_"):
            raise TypeError(
                f"critic_name is {name!r} and critic_loss_key {cls.critic_loss_key!r}; accepted: what the class calls "
                f"its critic and the critic's loss, such as 'value_network' and 'loss_value'."
            )
        if not set(losses) <= set(cls.all_out_keys):
            raise TypeError(f"all_out_keys is {cls.all_out_keys!r}; accepted: {losses}, and the metrics that follow.")
        shared = {*losses, *_SHARED_METRICS, *(f"{metric}_max" for metric in _SHARED_METRICS)}
        unknown = [key for key in cls.all_out_keys if key not in shared]
        base = DeterministicPolicyLoss
        givers = (
            "critic_target",
            "actor_sample_losses",
            "loss_value",
            "loss_actor",
            cls.critic_method,
            cls.actor_method,
        )
        if unknown and all(getattr(cls, step) is getattr(base, step, None) for step in givers):
            raise TypeError(
                f"all_out_keys holds {', '.join(map(repr, unknown))}, which no step gives; accepted: metrics that "
                f"critic_target or actor_sample_losses reports, and {', '.join(sorted(shared))}."
            )

    # The calls.

    @checks.names_errors
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Both losses and the metrics; writes the priority into the batch.

        Args:
            *args: the batch, a TensorDict of transitions ``[*B]`` with the entries ``in_keys``.
            **kwargs: or the entries by name, joined with an underscore, as in ``next_reward=...``.

        Returns:
            A TensorDict without batch dimensions that holds ``out_keys``, the losses (scalars with gradient, or
            ``[*B]`` under ``reduction="none"``) and the metrics (scalars without). If the entries came by name, a
            tuple in the order of ``out_keys``.

        Raises:
            BatchError: if an entry is missing or has a shape, dtype or device that cannot be used, or holds NaN.
        """
        if "tensordict" in kwargs:
            args = (kwargs.pop("tensordict"), *args)
        if len(args) == 1 and not kwargs and not isinstance(args[0], Tensor):
            return self._forward(args[0])
        if kwargs:
            accepted = ["_".join(key if isinstance(key, tuple) else (key,)) for key in self.call_keys]
            unknown = [name for name in kwargs if name not in accepted]
            if unknown:
                raise TypeError(f"no entry is called {', '.join(unknown)}; accepted: {', '.join(accepted)}.")
        return self._dispatched(*args, **kwargs)

    @dispatch(source="call_keys")
    def _dispatched(self, tensordict: TensorDictBase) -> TensorDict:
        reward = tensordict.get(under_next(self.tensor_keys.reward), None)
        if reward is not None and tensordict.ndim and tensordict.ndim == reward.ndim:
            tensordict.batch_size = tensordict.batch_size[:-1]  # the last dimension of a reward is no batch dimension
        return self._forward(tensordict)

    def _forward(self, tensordict: TensorDictBase) -> TensorDict:
        once = contextlib.nullcontext() if torch.compiler.is_compiling() else self.reading_once(tensordict)
        with once:
            loss_value, metrics = getattr(self, self.critic_method)(tensordict)
            loss_actor, actor_metrics = getattr(self, self.actor_method)(tensordict)
        outputs = {"loss_actor": loss_actor, self.critic_loss_key: loss_value, **metrics, **actor_metrics}
        try:
            chosen = {key: outputs[key] for key in self.out_keys}
        except KeyError as error:
            raise KeyError(f"the output {error.args[0]!r} is one of out_keys, and no step gives it.") from None
        return TensorDict(chosen, batch_size=[])

    @_public
    def loss_value(self, tensordict: TensorDictBase) -> tuple[Tensor, Report]:
        """The critic's loss and metrics; writes the priority into the batch. Gradient reaches the critic alone.

        Args:
            tensordict: transitions ``[*B]`` with the entries ``in_keys``.

        Returns:
            The loss, scalar or under ``reduction="none"`` ``[*B]``, and the metrics, scalars without gradient; beside
            them ``"td_error"`` as it is used for the priority, ``[*B]``, or ``[N, *B]`` of several critics.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        batch = self.read(tensordict)
        term = self.critic_term(batch)
        if term.priority is not None:
            batch.write_priority(term.priority)
        return term.loss, term.metrics

    @_public
    def loss_actor(self, tensordict: TensorDictBase) -> tuple[Tensor, Report]:
        """The actor's loss and metrics, in shapes as from :meth:`loss_value`. Gradient reaches the actor alone.

        Only what the networks observe, and ``extra_keys``, is read.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        term = self.actor_term(self._read(tensordict))
        return term.loss, term.metrics

    @_public
    def compute_target(self, tensordict: TensorDictBase) -> Tensor:
        """The critic's targets, in the shape of the reward, float32 or wider, without gradient.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        return self._target(self.read(tensordict))[0]

    # Steps that a loss overrides.

    def bound_target_action(self, action: Tensor) -> Tensor:
        """The target actor's action within its range, ``[*B, A]``; without a range as it is."""
        low, high = self._buffers["min_action"], self._buffers["max_action"]
        if low is None or high is None:
            return action
        return torch.clamp(action, low.to(action.dtype), high.to(action.dtype))

    def next_state_value(self, values: list[Tensor], action: Tensor, batch: Batch) -> Tensor:
        """The value of the next state, of what the target critics say.

        Args:
            values: ``[*B, K]`` of each target critic, float32 or wider, reward units.
            action: the bounded target action, ``[*B, A]``.
            batch: what else to read, with ``batch.get``.

        Returns:
            ``[*B, K]``; by default the first critic's. Beyond a terminal state and where a sample is masked anything.
        """
        return values[0]

    def critic_target(self, next_value: Tensor, transition: Transition, batch: Batch) -> tuple[Tensor, Report]:
        """The critic's target, by default with the value estimator of the loss.

        Args:
            next_value: from :meth:`next_state_value`, ``[*B, K]``, 0 where terminated or masked.
            transition: reward, flags and steps, ``[*B, 1]`` each.
            batch: what else to read.

        Returns:
            The target, and metrics, which are per-sample values ``[*B]`` or ``[*B, 1]`` that are averaged, or scalars.
        """
        self._check_value(next_value, transition.reward)
        return self._estimator.targets(batch, transition, next_value), {}

    def critic_sample_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Per-sample losses ``[*B]`` or ``[*B, 1]`` of one critic, by default by ``loss_function``.

        Args:
            prediction: what the critic writes, ``[*B, K]``, with gradient.
            target: from :meth:`critic_target`.
        """
        self._check_value(prediction, target)
        return functional.value_loss(prediction, target, self.loss_function)

    def expected_value(self, values: Tensor) -> Tensor:
        """The value ``[*B, 1]`` that a critic's output ``[*B, K]`` stands for, by default itself."""
        return values

    def expected_target(self, target: Tensor) -> Tensor:
        """The value ``[*B, 1]`` that a target stands for, by default itself."""
        return target

    def actor_value(self, values: list[Tensor]) -> Tensor:
        """The value ``[*B, 1]`` that the actor ascends, of what the critics ``actor_critics`` say of its action."""
        return self.expected_value(values[0])

    def actor_sample_losses(self, value: Tensor, action: Tensor, batch: Batch) -> tuple[Tensor, Report]:
        """Per-sample losses of the actor, by default ``-value``, and metrics as in :meth:`critic_target`.

        Args:
            value: from :meth:`actor_value`, ``[*B, 1]``, with gradient.
            action: the actor's, ``[*B, A]``, with gradient.
            batch: what else to read, with ``batch.get``.
        """
        return -value, {}

    # What the terms share.

    def critic_term(self, batch: Batch) -> Term:
        """The critic's loss, metrics and priority."""
        target, metrics = self._target(batch)
        inputs = batch.current(self.critic_in_keys)
        self._check_finite(batch, inputs)
        predictions = self._values("online", inputs, batch, range(self.num_critics))
        losses = [
            _column("critic_sample_losses", self.critic_sample_losses(value, target), value, batch)
            for value in predictions
        ]
        values = [self.expected_value(prediction.detach()) for prediction in predictions]
        expected, several = self.expected_target(target), len(values) > 1
        stacked = torch.stack(values) if several else values[0]
        error = expected - stacked if several else functional.td_error(stacked, expected)
        if several and error.shape != stacked.shape:
            raise BatchError(
                f"expected_target gives {list(expected.shape)} and expected_value {list(values[0].shape)}; accepted: "
                f"one shape, [*B, 1]."
            )
        error = batch.samples(error.abs() if self.priority == "absolute" else error.square(), several=several)
        loss = self._reduce(self.critic_loss_key, functools.reduce(operator.add, losses), batch, weigh=True)
        predicted = self._report("pred_value", batch, stacked.mean(0) if several else stacked)
        metrics = {"td_error": error, **predicted, **metrics}
        metrics |= self._report("target_value", batch, expected)
        return Term(loss, metrics, error.amax(0) if several else error)

    def actor_term(self, batch: Batch) -> Term:
        """The actor's loss and metrics."""
        inputs = batch.current(self.observed_keys)
        self._check_finite(batch, inputs)
        entries = self._run("actor_network", "online", inputs, batch)[0]
        action = entries[self.action_keys[0]]
        value = self.actor_value(self._values("frozen", entries, batch, self.actor_critics))
        loss, metrics = self.actor_sample_losses(value, action, batch)
        loss = _column("actor_sample_losses", loss, value, batch)
        metrics = self._reported(batch, metrics) | self._report("state_action_value_actor", batch, value.detach())
        metrics |= self._saturation("actor_saturation", action, batch)
        return Term(self._reduce("loss_actor", loss, batch, weigh=self.weigh_actor), metrics)

    def _target(self, batch: Batch) -> tuple[Tensor, Report]:
        transition = batch.transition(needs_done=self._estimator.chains_steps)
        next_value, saturation = self._next_value(batch, transition.terminated)
        if next_value.shape[:-1] != transition.reward.shape[:-1]:
            self._check_value(next_value, transition.reward)
        # Selected, not multiplied: what lies past a terminal state may be NaN.
        next_value = batch.hide(next_value.masked_fill(transition.terminated, 0.0))
        target, metrics = self.critic_target(next_value, transition, batch)
        metrics = self._reported(batch, metrics) | self._report("next_state_value", batch, next_value) | saturation
        return batch.hide(target.detach().to(self._dtype)), metrics

    def _next_value(self, batch: Batch, terminated: Tensor) -> tuple[Tensor, Report]:
        """What the target networks say of the next state, in the critic's last dimension."""
        goes_on = None
        if self._keeps_statistics:  # what lies past a terminal state must not reach them
            depth = len(batch.shape)
            goes_on = ~(terminated.flatten(depth).all(-1) if terminated.ndim > depth else terminated)
        entries = batch.following(self.actor_in_keys, self.observed_keys, goes_on)
        self._check_finite(batch, entries)
        entries = self._run("actor_network", "target", entries, batch)[0]
        action = entries[self.action_keys[0]]
        self._check_bounds(action)
        saturation = self._saturation("target_saturation", action, batch)
        action = entries[self.action_keys[0]] = self.bound_target_action(action)
        values = self._values("target", entries, batch, range(self.num_critics))
        return self.next_state_value(values, action, batch), saturation

    def _saturation(self, name: str, action: Tensor, batch: Batch) -> Report:
        """The share of what an actor writes that lies at or beyond a bound, where bounds are known; NaN does not."""
        middle, distance = self._buffers["_middle_action"], self._buffers["_saturated_distance"]
        if middle is None or not self.reports_saturation:
            return {}
        at_bound = action.detach().sub(middle).abs_().ge_(distance)  # floats: a mean of bools takes four times as long
        if batch.mask is None:
            return {name: at_bound.mean(dtype=self._dtype)}
        depth = len(batch.shape)
        share = at_bound.flatten(depth) if at_bound.ndim > depth else at_bound.unsqueeze(-1)
        return {name: functional.mean_and_max(name, share.mean(-1, dtype=self._dtype), batch.counts)[name]}

    def _run(self, name: str, use: Use, entries: Entries, batch: Batch, parts: Sequence[int] = (0,)) -> list[Entries]:
        net = self._nets[name]
        if torch.compiler.is_compiling():
            return net.run(use, entries, batch.shape, parts)
        try:
            return net.run(use, entries, batch.shape, parts)
        except (Warning, torch.OutOfMemoryError, BatchError):
            raise
        except Exception as error:
            later = use == "target"
            role = "an input of the target networks" if later else "an input of the networks"
            reads = dict.fromkeys(key for part in parts for key in net.parts[part].in_keys if key != "_")
            absent = [error.args[0]] if isinstance(error, AbsentError) else [k for k in reads if k not in entries]
            named = (lambda key: key) if not later or name != "actor_network" else under_next
            if absent and isinstance(error, (AbsentError, KeyError)):
                key = under_next(absent[0]) if later else absent[0]
                raise batch.missing(key, role) from error
            described = ", ".join(f"{named(key)!r} {checks.describe(entries.get(key))}" for key in reads)
            parameter = next(net.module.parameters(), None)
            raise BatchError(
                f"{name} cannot run on this batch. It reads: {described}. Its first parameter: "
                f"{checks.describe(parameter)}. Check the entries' shapes, dtypes and devices. The network raised "
                f"{type(error).__name__}."
            ) from error

    def _values(self, use: Use, entries: Entries, batch: Batch, critics: Sequence[int]) -> list[Tensor]:
        """What critics write, ``[*B, K]`` each, float32 or wider."""
        key = self.tensor_keys.state_action_value
        values = []
        for written, critic in zip(self._run(self.critic_name, use, entries, batch, critics), critics, strict=True):
            value = written.get(key)
            if value is None:
                names = list(self._nets[self.critic_name].parts[critic].out_keys)
                raise BatchError(
                    f"{self.critic_name} writes {names}, not {key!r}; rename the value with "
                    f"loss.set_keys(state_action_value=...)."
                )
            values.append(value if value.dtype == self._dtype else value.to(self._dtype))
        return values

    def _report(self, name: str, batch: Batch, values: Tensor) -> Report:
        """The mean, and the maximum, over the samples that count, if the loss has such outputs."""
        wanted = self.all_out_keys
        if name not in wanted and f"{name}_max" not in wanted:
            return {}
        values = values if batch.mask is None else batch.samples(values)
        metrics = functional.mean_and_max(name, values, batch.mask_like(values))
        return {key: value for key, value in metrics.items() if key in wanted}

    def _reported(self, batch: Batch, metrics: Report) -> Report:
        """What a step reports: per-sample values averaged, scalars as they are, all detached."""
        reported: Report = {}
        for name, value in metrics.items():
            reported |= self._report(name, batch, value.detach()) if value.ndim else {name: value.detach()}
        return reported

    def _reduce(self, term: str, loss: Tensor, batch: Batch, *, weigh: bool) -> Tensor:
        mask, weight, weighs = None, None, weigh and batch.has_weight(self.use_prioritized_weights)
        if weighs or batch.mask is not None or self.reduction == "none":  # else a view that backward passes through
            loss = batch.samples(loss)
            mask, weight = batch.mask_like(loss), batch.weight_like(loss) if weighs else None
        if weight is not None and mask is not None:
            weight = torch.where(mask, weight, 0.0)
        loss = functional.reduce(loss, self.reduction, weight=weight, mask=mask)
        self.check_loss(term, loss, batch)
        return loss

    @checks.names_errors
    def check_loss(self, term: str, loss: Tensor, batch: Batch) -> None:
        """Raise a ``BatchError`` if a term is NaN or infinite. On a GPU this is skipped: it would synchronise."""
        if checks.readable(loss) and not checks.all_finite(loss):
            raise batch.not_finite(term)

    def _check_finite(self, batch: Batch, inputs: Entries) -> None:
        """Refuse NaN before a network with running statistics has seen it; others tell from the loss."""
        if not self._keeps_statistics:
            return
        for value in inputs.values():
            floats = isinstance(value, Tensor) and value.is_floating_point()
            if floats and checks.readable(value) and not checks.all_finite(value):
                raise batch.not_finite("what the networks read")

    def _check_value(self, value: Tensor, reward: Tensor) -> None:
        if value.shape != reward.shape:
            key, reward_key = self.tensor_keys.state_action_value, under_next(self.tensor_keys.reward)
            raise checks.unequal_shapes("the value", key, value, reward_key, reward)

    def _check_bounds(self, action: Tensor) -> None:
        for bound in (self._buffers["min_action"], self._buffers["max_action"]):
            if bound is None or not bound.ndim:
                continue
            sizes = zip(bound.shape[::-1], action.shape[::-1], strict=False)
            if bound.ndim > action.ndim or any(size not in (1, wanted) for size, wanted in sizes):
                raise BatchError(
                    f"the bounds have shape {list(bound.shape)}, the actor writes {self.action_keys[0]!r} "
                    f"{list(action.shape)}; accepted: one number, or one for each dimension of the action."
                )

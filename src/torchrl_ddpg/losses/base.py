"""What every loss shares: the way from a batch to targets, the two terms, reduction and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.data import TensorSpec

from torchrl_ddpg import checks, functional, value_estimators
from torchrl_ddpg.losses import bounds as action_bounds
from torchrl_ddpg.losses.batch import Batch, hide, under_next
from torchrl_ddpg.losses.calls import Entries, in_loss_modes
from torchrl_ddpg.losses.configuration import ConfigurableLoss


class DeterministicPolicyLoss(ConfigurableLoss):
    """What the losses of this library share; not a loss by itself.

    A leaf names its critic and its outputs, and says how target actions are bounded and critics combined.
    """

    critic_loss_key: ClassVar[str]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        delayed: Mapping[str, bool],
        separate_losses: bool,
        reduction: str | None,
        use_prioritized_weights: str | bool,
        priority: str,
        weigh_actor: bool,
        action_spec: TensorSpec | None,
        bounds: Sequence[float | Tensor] | None,
        loss_function: str | None = None,
        num_critics: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(
            actor_network, critic_network, delayed=delayed, separate_losses=separate_losses, num_critics=num_critics
        )
        owner = self._owner
        if loss_function is not None:
            self.loss_function = checks.choice(owner, "loss_function", loss_function, functional.LOSS_FUNCTIONS)
        self.reduction = checks.choice(owner, "reduction", reduction or "mean", functional.REDUCTIONS)
        self.use_prioritized_weights = checks.choice(
            owner, "use_prioritized_weights", use_prioritized_weights, ("auto", True, False)
        )
        self.priority = checks.choice(owner, "priority", priority, ("absolute", "squared"))
        self.weigh_actor = checks.boolean(owner, "weigh_actor", weigh_actor)
        low, high = action_bounds.read(owner, self.action_keys[0], action_spec, bounds)
        self._register_constant("min_action", low)
        self._register_constant("max_action", high)
        self._warned_updater = False
        self.make_value_estimator()

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
        if args and not isinstance(args[0], Tensor):
            checks.is_tensordict(self._owner, args[0])
            if len(args) == 1 and not kwargs:
                return self._forward(args[0])
        if kwargs:
            checks.entry_names(self._owner, kwargs, self.call_keys)
        return self._dispatched(*args, **kwargs)

    @dispatch(source="call_keys")
    def _dispatched(self, tensordict: TensorDictBase) -> TensorDict:
        return self._forward(tensordict)

    def _forward(self, tensordict: TensorDictBase) -> TensorDict:
        batch = self.read(tensordict)
        loss_value, metrics = self._critic_term(batch)
        loss_actor, actor_metrics = self._actor_term(batch)
        outputs = {"loss_actor": loss_actor, self.critic_loss_key: loss_value, **metrics, **actor_metrics}
        return TensorDict({key: outputs[key] for key in self.out_keys}, batch_size=[])

    @in_loss_modes
    def loss_value(self, tensordict: TensorDictBase | Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and metrics; writes the priority into the batch. Gradient reaches the critic alone.

        Args:
            tensordict: transitions ``[*B]`` with the entries ``in_keys``.

        Returns:
            The loss, scalar or under ``reduction="none"`` ``[*B]``, and the metrics, scalars without gradient.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        return self._critic_term(self.read(tensordict))

    @in_loss_modes
    def loss_actor(self, tensordict: TensorDictBase | Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss and metrics, in shapes as from :meth:`loss_value`. Gradient reaches the actor alone.

        Only what the networks observe is read.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        return self._actor_term(self._read(tensordict, self._actor_fetched_keys))

    @in_loss_modes
    def compute_target(self, tensordict: TensorDictBase) -> Tensor:
        """The critic's targets, in the shape of the reward, float32 or wider, without gradient.

        Raises:
            BatchError: as in :meth:`forward`.
        """
        return self._targets(self.read(tensordict))[0]

    def read(self, tensordict: TensorDictBase | Batch) -> Batch:
        """Fetch and check a batch once, for both :meth:`loss_value` and :meth:`loss_actor`."""
        return self._read(tensordict, self._fetched_keys)

    def _read(self, tensordict: TensorDictBase | Batch, names: Iterable[NestedKey]) -> Batch:
        if isinstance(tensordict, Batch):
            return tensordict
        checks.is_tensordict(self._owner, tensordict)
        batch = self.batch(tensordict, names)
        if torch.compiler.is_compiling():
            return batch
        if not self._warned_updater and not self.has_updater:
            self._warned_updater = True
            checks.warn(checks.no_updater(self._owner))
        self._check_live()
        signature = batch.signature()
        fresh = signature not in self._seen
        if fresh:
            batch.check_inputs(self._observed_keys, self._default_device)
        if names is self._fetched_keys and (fresh or self._on_unordered == "raise"):
            self._check_contents(batch)
        if len(self._seen) > 100:  # batches of ever new shapes must not pile up
            self._seen.clear()
        self._seen.add(signature)
        return batch

    def _run(self, name: str, use: str, entries: Entries, shape: torch.Size) -> Entries:
        call = getattr(self._nets[name], use)
        if torch.compiler.is_compiling():
            return call(entries, shape)
        try:
            return call(entries, shape)
        except (Warning, torch.OutOfMemoryError, checks.BatchError):
            raise
        except Exception as error:
            named = under_next if use == "without_grad" else (lambda key: key)
            module = self.__dict__[name]
            reads = {named(key): entries.get(key) for key in module.in_keys}
            parameter = next(module.parameters(), None)
            raise checks.network_failed(self._owner, name, reads, parameter, error) from error

    def _value(self, use: str, entries: Entries, shape: torch.Size) -> Tensor:
        key = self.tensor_keys.state_action_value
        value = self._run(self.critic_name, use, entries, shape).get(key)
        if value is None:
            written = self.__dict__[self.critic_name].out_keys
            raise checks.no_value(self._owner, self.critic_name, key, written)
        return value if value.dtype == self._dtype else value.to(self._dtype)

    def _bounded(self, action: Tensor) -> Tensor:
        """The target actor's action within its range; a leaf may smooth it first."""
        low, high = self._buffers["min_action"], self._buffers["max_action"]
        if low is None or high is None:
            return action
        checks.bounds_fit(self._owner, self.action_keys[0], action, low, high)
        return torch.clamp(action, low, high)

    def _combined(self, values: Tensor) -> Tensor:
        """What the target critics say of the next state, as one value; a leaf with several chooses among them."""
        return values

    def _next_value(self, batch: Batch, terminated: Tensor) -> Tensor:
        """What the target networks say of the next state, in the critic's last dimension."""
        goes_on = None
        if self._keeps_statistics:  # what lies past a terminal state must not reach them
            depth = len(batch.shape)
            goes_on = ~(terminated.flatten(depth).all(-1) if terminated.ndim > depth else terminated)
        entries = batch.following(self.actor_in_keys, self._observed_keys, goes_on)
        self._check_finite(entries)
        entries = self._run("actor_network", "without_grad", entries, batch.shape)
        entries[self.action_keys[0]] = self._bounded(entries[self.action_keys[0]])
        return self._combined(self._value("without_grad", entries, batch.shape))

    def _targets(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Targets and what there is to report of them."""
        transition = batch.transition(self._dtype)
        next_value = self._next_value(batch, transition.terminated)
        self._like_reward(next_value, transition.reward)
        transition = transition._replace(done=self._ends(batch, transition.done))
        # Selected, not multiplied: what lies past a terminal state may be NaN.
        next_value = hide(next_value.masked_fill(transition.terminated, 0.0), batch.counts)
        target = value_estimators.targets(
            self._owner, self._value_estimator, batch.source, next_value=next_value, **transition._asdict()
        )
        return target, self._report("next_state_value", batch, next_value)

    def _report(self, name: str, batch: Batch, values: Tensor) -> dict[str, Tensor]:
        """The mean, and the maximum, over the samples that count, if the loss has such outputs."""
        if name not in self.all_out_keys:
            return {}
        values = values if batch.mask is None else batch.samples(values)
        metrics = functional.mean_and_max(name, values, batch.mask_like(values))
        return {key: value for key, value in metrics.items() if key in self.all_out_keys}

    def _compare(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per-sample loss and signed error of one critic, ``[*B, 1]`` or ``[*B]`` each."""
        self._like_reward(prediction, target)
        return functional.value_loss(prediction, target, self.loss_function), functional.td_error(prediction, target)

    def _expected(self, values: Tensor) -> Tensor:
        """The value that a critic's last dimension stands for, ``[*B, 1]``."""
        return values

    def _critic_term(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        target, metrics = self._targets(batch)
        inputs = batch.current(self.__dict__[self.critic_name].in_keys)
        self._check_finite(inputs)
        values = self._value("online", inputs, batch.shape)
        predictions = values.unbind(0) if self._has_ensemble else (values,)
        losses, errors = zip(*(self._compare(prediction, target, batch) for prediction in predictions), strict=True)
        loss, error = losses[0], errors[0].abs()
        for more_loss, more_error in zip(losses[1:], errors[1:], strict=True):
            loss, error = loss + more_loss, torch.maximum(error, more_error.abs())
        loss = self._reduce_term(self.critic_loss_key, loss, batch, weigh=True)
        batch.write_priority(batch.samples(error if self.priority == "absolute" else error.square()))
        value = self._expected(values.detach())
        return loss, {
            **self._report("pred_value", batch, value.mean(0) if self._has_ensemble else value),
            **self._report("target_value", batch, self._expected_target(target)),
            **metrics,
        }

    def _expected_target(self, target: Tensor) -> Tensor:
        """The value that a target stands for, ``[*B, 1]``."""
        return target

    def _actor_loss(self, value: Tensor, action: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-sample loss of the actor, ``[*B, 1]`` or ``[*B]``, from the critic's value of its action."""
        return -value, {}

    def _actor_term(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = batch.current(self._observed_keys)
        self._check_finite(inputs)
        entries = self._run("actor_network", "online", inputs, batch.shape)
        action = entries[self.action_keys[0]]
        value = self._expected(self._value("frozen", entries, batch.shape))
        loss, metrics = self._actor_loss(value, action, batch)
        metrics |= self._report("state_action_value_actor", batch, value.detach())
        return self._reduce_term("loss_actor", loss, batch, weigh=self.weigh_actor), metrics

    def _check_finite(self, inputs: Entries) -> None:
        """Refuse NaN before a network with running statistics has seen it; others tell from the loss."""
        if not self._keeps_statistics:
            return
        for value in inputs.values():
            floats = isinstance(value, Tensor) and value.is_floating_point()
            if floats and checks.readable(value) and not checks.all_finite(value):
                raise checks.not_finite(self._owner, "what the networks read", inputs)

    def _like_reward(self, value: Tensor, reward: Tensor) -> None:
        if value.shape != reward.shape:
            key, reward_key = self.tensor_keys.state_action_value, under_next(self.tensor_keys.reward)
            raise checks.unequal_shapes(self._owner, "the value", key, value, reward_key, reward)

    def _reduce_term(self, term: str, loss: Tensor, batch: Batch, *, weigh: bool) -> Tensor:
        mask, weight, weighs = None, None, weigh and batch.has_weight(self.use_prioritized_weights)
        if weighs or batch.mask is not None or self.reduction == "none":  # else a view that backward passes through
            loss = batch.samples(loss)
            mask, weight = batch.mask_like(loss), batch.weight_like(loss) if weighs else None
        loss = functional.reduce(loss, self.reduction, weight=weight, mask=mask)
        checks.finite_loss(self._owner, term, loss, batch.values)
        return loss

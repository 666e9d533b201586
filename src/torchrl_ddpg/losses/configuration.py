"""The part of a loss that its user configures: the entries' names, the outputs, the value estimator.

And what the estimator that was chosen asks of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_ddpg import checks, value_estimators
from torchrl_ddpg.losses.batch import Batch, under_next
from torchrl_ddpg.losses.parameters import NetworkOwner

Self = TypeVar("Self", bound="ConfigurableLoss")


class ConfigurableLoss(NetworkOwner):
    """A loss whose keys, outputs and value estimator can be chosen, in any order."""

    @dataclass
    class _AcceptedKeys:
        """The entries of a batch that ``set_keys`` can rename."""

        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"

    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = tuple(value_estimators.ESTIMATORS)
    all_out_keys: ClassVar[tuple[str, ...]]
    use_prioritized_weights: str | bool
    _selected_out_keys: tuple[str, ...] | None = None
    _on_unordered = "warn"
    _warned_unordered = False

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Rename entries of the batch; None restores the default.

        Raises:
            ValueError: if the loss has no such key.
            TypeError: if a name is not a string or a tuple of strings.
        """
        accepted = [field.name for field in fields(self._AcceptedKeys)]
        for name, value in kwargs.items():
            checks.choice(self._owner, "a name given to set_keys", name, accepted)
            value = getattr(self.default_keys(), name) if value is None else value
            value = checks.nested_key(self._owner, f"set_keys({name}=...)", value)
            if name == "action":  # TorchRL has this key; here the networks say which entry the action is
                checks.choice(self._owner, "set_keys(action=...)", value, self.action_keys)
            setattr(self.tensor_keys, name, value)
        self._wire()

    def _wire(self) -> None:
        self._seen.clear()
        keys, critic = self.tensor_keys, self.__dict__[self.critic_name]
        flags = [under_next(key) for key in (keys.reward, keys.done, keys.terminated)]
        later = [under_next(key) for key in self._observed_keys]
        needed = {*self._observed_keys, *critic.in_keys, *later, *flags}
        if self.use_prioritized_weights is True:
            needed.add(keys.priority_weight)
        self.in_keys = sorted(needed, key=str)
        optional = [keys.priority_weight, keys.steps_to_next_obs, "gamma"]
        self.call_keys = self.in_keys + [key for key in optional if key not in needed]
        self._fetched_keys = (*self.call_keys, under_next(keys.steps_to_next_obs), ("next", "gamma"))
        self._actor_fetched_keys = (*self._actor_keys, keys.priority_weight)
        if self._value_estimator is not None:
            names = {field.name: getattr(keys, field.name) for field in fields(keys)}
            value_estimators.set_keys(self._value_estimator, value=keys.state_action_value, **names)

    def batch(self, source: TensorDictBase, names: Iterable[NestedKey] | None = None) -> Batch:
        """What the terms read of a batch, or only ``names`` of it, without the checks that :meth:`read` makes."""
        names = self._fetched_keys if names is None else names
        return Batch(self._owner, source, self.tensor_keys, names, self.loss_mask_key)

    @property
    def _actor_keys(self) -> list[NestedKey]:
        """What the actor's term reads."""
        return self._observed_keys

    @property
    def out_keys(self) -> list[str]:
        """Names of the outputs, losses (with gradient) and metrics (without)."""
        return list(self._selected_out_keys or self.all_out_keys)

    @property
    def out_keys_source(self) -> list[str]:
        """Names of all outputs, selected or not."""
        return list(self.all_out_keys)

    def select_out_keys(self: Self, *out_keys: str) -> Self:
        """Keep only these outputs, in this order; ``reset_out_keys()`` brings all back.

        Raises:
            ValueError: if one of them is not an output of the loss.
        """
        for key in out_keys:
            checks.choice(self._owner, "an output key", key, self.all_out_keys)
        self._selected_out_keys = tuple(out_keys)
        return self

    def reset_out_keys(self: Self) -> Self:
        """Bring back every output."""
        self._selected_out_keys = None
        return self

    def make_value_estimator(
        self: Self, value_type: Any = None, *, on_unordered: str = "warn", **hyperparams: Any
    ) -> Self:
        """Choose how targets are made; before or after ``set_keys``.

        Args:
            value_type: ``"td0"`` (the default), ``"td1"``, ``"td_lambda"``, the members of ``ValueEstimators`` of
                those names, or a ``ValueEstimatorBase`` subclass or instance. It gets the loss's keys.
            on_unordered: what TD(1) and TD(lambda) do about a batch that does not hold trajectories in time order:
                ``"warn"`` once, or ``"raise"``.
            **hyperparams: ``gamma`` in [0, 1] (0.99), ``lmbda`` in [0, 1] (0.95), and what else its class accepts.

        Returns:
            The loss.

        Raises:
            ValueError: if the estimator is unknown, or gamma or lmbda out of range.
            TypeError: if the estimator does not accept one of ``hyperparams``.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        self._on_unordered = checks.choice(self._owner, "on_unordered", on_unordered, ("warn", "raise"))
        supported = self.SUPPORTED_VALUE_ESTIMATORS
        estimator = value_estimators.make(self._owner, value_type, self._default_device, hyperparams, supported)
        self.__dict__["_value_estimator"] = estimator  # not a submodule: gamma is no part of the state_dict
        self.value_type = value_estimators.kind(estimator)
        self._warned_unordered = False
        self._wire()
        return self

    def held(self) -> list[Any]:
        """What a recording of a term holds and Python can change."""
        estimator = self._value_estimator
        chosen = [*vars(self.tensor_keys).values(), *vars(estimator).values(), *estimator._buffers.values()]
        return [*super().held(), *chosen, self.loss_mask_key]

    @property
    def value_estimator(self) -> ValueEstimatorBase:
        """What turns reward and next value into targets; TD(0) with gamma 0.99 unless chosen."""
        return self._value_estimator

    @value_estimator.setter
    def value_estimator(self, estimator: ValueEstimatorBase) -> None:
        self.make_value_estimator(estimator)

    def _check_contents(self, batch: Batch) -> None:
        """Raise if the batch was made with another gamma; warn or raise if steps that are chained are out of order."""
        estimator, gamma = self.value_estimator, batch.gamma()
        if gamma is not None:
            steps_key = self.tensor_keys.steps_to_next_obs
            value_estimators.check_gamma(self._owner, estimator, gamma, steps_key, batch.steps())
        if not value_estimators.chains_steps(estimator) or self._warned_unordered:
            return
        done = batch.values.get(under_next(self.tensor_keys.done))
        done = done if done is None else self._ends(batch, done != 0)
        for key in self._observed_keys:
            if done is not None and not value_estimators.in_time_order(estimator, batch.source, key, done):
                self._warned_unordered = self._on_unordered == "warn"
                value_estimators.unordered(self._owner, estimator, key, error=self._on_unordered == "raise")
                return

    def _ends(self, batch: Batch, done: Tensor) -> Tensor:
        """Ends of what returns are chained over; TD(0) chains nothing."""
        if batch.counts is None or not batch.shape or not value_estimators.chains_steps(self._value_estimator):
            return done
        return batch.ends(done, value_estimators.time_dimension(self._value_estimator, batch.source))

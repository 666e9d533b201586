"""What a user configures of a loss, in any order, and how a loss reads a batch: entries, outputs, value estimator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor
from torchrl.envs.utils import set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_ddpg import checks
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.entries import under_next
from torchrl_ddpg.losses.module import NetworkOwner
from torchrl_ddpg.value_estimators import ESTIMATORS, Estimator

Self = TypeVar("Self", bound="ConfigurableLoss")


class ConfigurableLoss(NetworkOwner):
    """A loss whose entries' names, outputs and value estimator can be chosen, and which reads a batch by them."""

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
    SUPPORTED_VALUE_ESTIMATORS = tuple(ESTIMATORS)
    all_out_keys: ClassVar[tuple[str, ...]] = ()
    further_out_keys: ClassVar[tuple[str, ...]] = ()
    """Metrics that the terms give and ``select_out_keys`` accepts, and that are no outputs otherwise."""
    extra_keys: Sequence[NestedKey] = ()
    """Entries that a step reads with ``batch.get``, beside those that the networks read."""
    use_prioritized_weights: str | bool = "auto"
    _selected_out_keys: tuple[str, ...] | None = None

    def __init__(self, *networks: Any, **options: Any) -> None:
        self.__dict__["_reading"] = [None]  # the batch that the terms share while one call of the loss lasts
        super().__init__(*networks, **options)
        self._warned_updater = False

    @checks.names_errors
    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Rename entries of the batch; None restores the default.

        Raises:
            ValueError: if the loss has no such key.
            TypeError: if a name is not a string or a tuple of strings.
        """
        accepted = [field.name for field in fields(self._AcceptedKeys)]
        for name, value in kwargs.items():
            checks.choice("a name given to set_keys", name, accepted)
            default = getattr(self.default_keys(), name)
            value = default if value is None else checks.nested_key(f"set_keys({name}=...)", value)
            setattr(self.tensor_keys, name, value)
        self._wire()

    def _wire(self) -> None:
        keys = self.tensor_keys
        flags = [under_next(key) for key in (keys.reward, keys.done, keys.terminated)]
        later = [under_next(key) for key in self.observed_keys]
        needed = {*self.observed_keys, *self.critic_in_keys, *later, *flags, *self.extra_keys}
        if self.use_prioritized_weights is True:
            needed.add(keys.priority_weight)
        self.in_keys = sorted(needed, key=str)
        optional = [keys.priority_weight, keys.steps_to_next_obs, "gamma"]
        self.call_keys = self.in_keys + [key for key in optional if key not in needed]
        self._fetched_keys = (*self.call_keys, under_next(keys.steps_to_next_obs), ("next", "gamma"))
        self._estimator.set_keys(keys)

    @property
    def out_keys(self) -> list[str]:
        """Names of the outputs, losses (with gradient) and metrics (without)."""
        return list(self._selected_out_keys or self.all_out_keys)

    @property
    def out_keys_source(self) -> list[str]:
        """Names of all outputs, selected or not."""
        return list(self.all_out_keys)

    @checks.names_errors
    def select_out_keys(self: Self, *out_keys: str) -> Self:
        """Keep only these outputs, in this order; ``reset_out_keys()`` brings all back.

        Beside those of ``out_keys_source`` there are ``"actor_saturation"`` and ``"target_saturation"``, where the loss
        knows the action's bounds: the share of what actor and target actor write that lies within 1 % of half the range
        of a bound, or beyond.

        Raises:
            ValueError: if one of them is not an output of the loss.
        """
        for key in out_keys:
            checks.choice("an output key", key, (*self.all_out_keys, *self.further_out_keys))
        self._selected_out_keys = tuple(out_keys)
        return self

    def reset_out_keys(self: Self) -> Self:
        """Bring back every output."""
        self._selected_out_keys = None
        return self

    @checks.names_errors
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
            ValueError: if the estimator is unknown (also a ``NotImplementedError``), or gamma or lmbda out of range.
            TypeError: if the estimator does not accept one of ``hyperparams``.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        supported, network, device = self.SUPPORTED_VALUE_ESTIMATORS, self._value_network(), self._default_device
        self._estimator = Estimator(value_type, supported, network, device, on_unordered, hyperparams)
        self.__dict__["_value_estimator"] = self._estimator.module  # not a submodule: gamma is no part of state_dict
        self.value_type = self._estimator.value_type
        self._wire()
        return self

    def _value_network(self) -> Any:
        """What a built-in estimator calls for the next value if the user calls the estimator by itself."""
        return None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in ``nn.Module``; of a user's own value estimator its tensors too, but for gamma and lambda."""
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        own = self._estimator.state().items()
        state.update({f"{prefix}_value_estimator.{name}": value for name, value in own})
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        start = f"{prefix}_value_estimator."
        found = {key.removeprefix(start): state_dict.pop(key) for key in list(state_dict) if key.startswith(start)}
        kept = self._estimator.state()  # not gamma and lambda, which TorchRL saves and which are configuration here
        self.value_estimator.load_state_dict({key: found[key] for key in found if key in kept}, strict=False)
        missing: list[str] = args[2]
        missing += [start + key for key in kept if key not in found]
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def value_estimator(self) -> ValueEstimatorBase:
        """What turns reward and next value into targets; TD(0) with gamma 0.99 unless chosen."""
        return self._value_estimator

    @value_estimator.setter
    def value_estimator(self, estimator: ValueEstimatorBase) -> None:
        self.make_value_estimator(estimator)

    @contextlib.contextmanager
    def reading_once(self, tensordict: TensorDictBase) -> Iterator[Batch]:
        """While it lasts both terms share what was read and checked of this batch, as long as it stays the same."""
        batch = self.read(tensordict)
        try:
            self._reading[0] = batch
            with set_exploration_type(self.deterministic_sampling_mode), set_recurrent_mode(True):
                yield batch
        finally:
            self._reading[0] = None

    @checks.names_errors
    def read(self, tensordict: TensorDictBase) -> Batch:
        """Fetch what the terms read of a batch, and check it.

        Raises:
            BatchError: if it cannot be used.
        """
        batch = self._read(tensordict)
        if not torch.compiler.is_compiling() and batch is not self._reading[0]:
            self._estimator.check_gamma(batch)
            self._estimator.check_order(type(self).__name__, batch, self.observed_keys)
        return batch

    def _read(self, tensordict: TensorDictBase) -> Batch:
        shared = self._reading[0]
        if shared is not None and shared.source is tensordict and shared.is_current():
            return shared
        if not is_tensor_collection(tensordict):
            raise TypeError(
                f"the batch is of type {type(tensordict).__name__}; accepted: a TensorDict, or the entries as keyword "
                f"arguments, such as loss(observation=..., action=..., next_reward=...)."
            )
        batch = Batch(tensordict, self.tensor_keys, self._fetched_keys, self.loss_mask_key, self._dtype)
        if torch.compiler.is_compiling():
            return batch
        if not self._warned_updater and not self.has_updater:
            self._warned_updater = True
            checks.warn(
                f"{type(self).__name__}: No target network updater has been associated with this loss module, so its "
                f"targets stay as they are. Build one, SoftUpdate(loss, tau=0.005), and call its step() after each "
                f"update, or move them yourself."
            )
        self._check_live()
        self._check_inputs(batch)
        return batch

    def _check_inputs(self, batch: Batch) -> None:
        """Raise unless entries lie on the networks' device and look like their counterparts in the next state."""
        device = self._on_device[0].device if len(self._on_device) == 1 else None
        for name, value in batch.values.items() if device is not None else ():
            if isinstance(value, Tensor) and value.device != device:
                raise BatchError(
                    f"{name!r} is on {value.device}, the networks are on {device}; move the batch with "
                    f"batch.to({str(device)!r}), or the loss with loss.to({str(value.device)!r})."
                )
        for key in self.observed_keys:
            value, later = batch.values.get(key), batch.values.get(under_next(key))
            if value is None or later is None:
                continue
            forms = [(getattr(x, "shape", None), getattr(x, "dtype", type(x))) for x in (value, later)]
            if forms[0] != forms[1]:
                raise BatchError(
                    f"an entry and its next must have one shape and dtype: {key!r} {checks.describe(value)} and "
                    f"{under_next(key)!r} {checks.describe(later)}."
                )

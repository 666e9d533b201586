"""How the critic's targets are made: TD(0), TD(1), TD(lambda) or the user's own, and what each asks of a batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.utils import default_value_kwargs
from torchrl.objectives.value import TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

from torchrl_ddpg import checks, functional
from torchrl_ddpg.batch import Batch, Transition
from torchrl_ddpg.checks import BatchError
from torchrl_ddpg.entries import under_next

ESTIMATORS: dict[ValueEstimators, type[ValueEstimatorBase]] = {
    ValueEstimators.TD0: TD0Estimator,
    ValueEstimators.TD1: TD1Estimator,
    ValueEstimators.TDLambda: TDLambdaEstimator,
}
NAMES = {ValueEstimators.TD0: "td0", ValueEstimators.TD1: "td1", ValueEstimators.TDLambda: "td_lambda"}


def _resolve(value_type: Any, supported: Sequence[ValueEstimators]) -> Any:
    """The enum member that a name such as ``"td0"``, ``"TD(1)"`` or ``"td_lambda"`` stands for, or the user's own."""
    own = isinstance(value_type, ValueEstimatorBase) or (
        isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase)
    )
    takes_own, given = len(supported) == len(ESTIMATORS), value_type
    if own and takes_own:
        return value_type
    if isinstance(value_type, str):
        plain = "".join(letter for letter in value_type.lower() if letter.isalnum())
        value_type = next((member for member in ESTIMATORS if member.name.lower() == plain), value_type)
    if own or value_type not in supported:
        names = ", ".join(repr(NAMES[member]) for member in supported)
        members = ", ".join(member.name for member in supported)
        more = ", or a ValueEstimatorBase class or instance" if takes_own else ""
        raise checks.UnsupportedEstimatorError(
            f"the value estimator is {given!r}; accepted: {names} (or {members} of "
            f"torchrl.objectives.ValueEstimators){more}."
        )
    return value_type


def _make(value_type: Any, device: torch.device | None, hyperparams: dict) -> ValueEstimatorBase:
    if isinstance(value_type, ValueEstimatorBase):
        if hyperparams:
            raise TypeError(
                f"{', '.join(hyperparams)} came with an estimator instance, which has its own; accepted: "
                f"the instance alone, or its class with hyperparameters."
            )
        return value_type
    if isinstance(value_type, type):
        cls, defaults = value_type, {"value_network": None}
    else:
        cls, defaults = ESTIMATORS[value_type], {**default_value_kwargs(value_type), "value_network": None}
    for name in ("gamma", "lmbda"):
        if name in hyperparams:
            checks.unit_interval(name, hyperparams[name])
    accepted = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [name for name in hyperparams if name not in accepted and not takes_all]
    if unknown:
        options = ("gamma", "lmbda", "average_rewards", "differentiable", "time_dim", "device")
        known = [name for name in accepted if name in options or cls not in ESTIMATORS.values()]
        raise TypeError(f"{cls.__name__} does not accept {', '.join(unknown)}; accepted: {', '.join(known)}.")
    arguments = {"device": device, **defaults, **hyperparams}
    return cls(**{name: value for name, value in arguments.items() if name in accepted or takes_all})


class Estimator:
    """TorchRL's estimator of a loss, which gives gamma and lambda, and the targets computed with them.

    Args:
        value_type: an enum member, a name, a ``ValueEstimatorBase`` subclass or an instance.
        supported: the built-in estimators that the loss can use; a loss that can use all takes the user's own too.
        value_network: what a built-in one calls if it is called by itself, or None. The loss does not need it: it
            hands over the value of the next state.
        device: where gamma and lambda live.
        on_unordered: what to do about a batch that does not hold trajectories in time order, ``"warn"`` or ``"raise"``.
        hyperparams: ``gamma``, ``lmbda`` (both in [0, 1]) and what else the estimator's class accepts.

    Raises:
        UnsupportedEstimatorError: if the estimator is unknown.
        ValueError: if gamma or lmbda is out of range.
        TypeError: if the estimator's class does not accept one of ``hyperparams``, or an instance comes with any.
    """

    def __init__(
        self,
        value_type: Any,
        supported: Sequence[ValueEstimators],
        value_network: Any,
        device: torch.device | None,
        on_unordered: str,
        hyperparams: dict[str, Any],
    ) -> None:
        self.on_unordered = checks.choice("on_unordered", on_unordered, ("warn", "raise"))
        self.module = _make(_resolve(value_type, supported), device, hyperparams)
        self._value_network = value_network
        self.chains_steps = not isinstance(self.module, TD0Estimator)  # reads a time dimension
        self._warned, self._looked_at = False, set[Any]()

    @property
    def value_type(self) -> ValueEstimators | type[ValueEstimatorBase]:
        """The enum member of a built-in estimator, or the class of a user's own."""
        members = {cls: member for member, cls in ESTIMATORS.items()}
        return members.get(type(self.module), type(self.module))

    def state(self) -> dict[str, Tensor]:
        """What a user's own estimator keeps, such as running statistics, but for gamma and lambda."""
        state = {} if type(self.module) in ESTIMATORS.values() else self.module.state_dict()
        return {name: value for name, value in state.items() if name not in ("gamma", "lmbda")}

    def set_keys(self, tensor_keys: Any) -> None:
        """Hand the loss's keys to the estimator: those that it knows, and the value's unless it has a network."""
        self._looked_at.clear()
        built_in = type(self.module) in ESTIMATORS.values()
        if built_in:
            self.module.value_network = None  # which may write the value under another name
        names = {field.name: getattr(tensor_keys, field.name) for field in fields(tensor_keys)}
        names["value"] = tensor_keys.state_action_value
        known = {field.name for field in fields(self.module.tensor_keys)}
        if self.module.value_network is not None:
            known.discard("value")
        self.module.set_keys(**{name: key for name, key in names.items() if name in known})
        if built_in:
            vars(self.module)["value_network"] = self._value_network  # not a submodule: the loss owns its parameters

    def targets(self, batch: Batch, transition: Transition, next_value: Tensor) -> Tensor:
        """Targets of the critic, in the shape of the reward, without gradient.

        Args:
            batch: what else a user's own estimator may read; it is not changed.
            transition: reward, flags and steps.
            next_value: value of the next state, 0 where terminated, in the shape of the reward.

        Raises:
            BatchError: if the batch has no time dimension, or a user's own estimator raises.
        """
        reward, done, terminated, steps = transition
        estimator, source = self.module, batch.source
        if type(estimator) in ESTIMATORS.values() and not estimator.average_rewards:
            discount = functional.discount(estimator.gamma, terminated, steps).to(reward.dtype)
            if not self.chains_steps or not source.ndim:
                return functional.td_target(reward, discount, next_value)
            time = self._time_dimension(source)
            if not 0 <= time < source.ndim:
                raise BatchError(
                    f"{type(estimator).__name__} takes dimension {time} for the time; the batch has {source.ndim}, "
                    f"counted from 0."
                )
            done, lmbda = batch.ends(done, time), getattr(estimator, "lmbda", 1.0)
            return functional.td_lambda_target(reward, discount, next_value, done, lmbda, time)
        keys, entries = estimator.tensor_keys, source.copy()
        if self.chains_steps and source.ndim:
            done = batch.ends(done, self._time_dimension(source))
        for key, value in ((keys.reward, reward), (keys.done, done), (keys.terminated, terminated)):
            entries.set(("next", key), value)
        if steps is not None:
            entries.set(keys.steps_to_next_obs, steps)
        try:
            with torch.no_grad(), torch.autocast(reward.device.type, enabled=False):
                return estimator.value_estimate(entries, next_value=next_value).detach()
        except (Warning, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise BatchError(
                f"{type(estimator).__name__} raised {type(error).__name__} in value_estimate(batch, next_value=...). "
                f"It must give targets from the reward and the next value alone; it gets no value network, and this "
                f"loss no advantage."
            ) from error

    def check_gamma(self, batch: Batch) -> None:
        """Raise if the replay buffer summed n-step rewards with another gamma than the estimator's.

        The batch's ``gamma`` entry is gamma^n, ``[*B]`` or ``[*B, 1]``. Where n is 1 nothing was discounted. On a GPU
        this is skipped: it would force a synchronisation.

        Raises:
            BatchError: if they differ by more than float32 rounding, and 1 % of 1 - gamma.
        """
        entry, gamma = batch.gamma(), getattr(self.module, "gamma", None)
        if entry is None or gamma is None:
            return
        steps = batch.steps()
        if steps is None or steps.numel() != entry.numel() or not entry.numel():
            return
        if not (checks.readable(entry) and checks.readable(steps)):
            return
        n = steps.reshape(entry.shape).double()
        per_step = entry.double() ** (1.0 / n)
        differs = (n > 1) & ((per_step - float(gamma)).abs() > 1e-6 + 1e-2 * (1 - float(gamma)))
        if batch.counts is not None:
            differs = differs & batch.counts.reshape(*batch.shape, *(1,) * (entry.ndim - len(batch.shape)))
        if differs.any():
            raise BatchError(
                f"the batch's 'gamma' and {batch.keys.steps_to_next_obs!r} say gamma {per_step[differs][0].item():.6g} "
                f"a step, the value estimator uses {float(gamma):.6g}; give both one: "
                f"loss.make_value_estimator(gamma=...)."
            )

    def check_order(self, owner: str, batch: Batch, observed: Iterable[NestedKey]) -> None:
        """Warn once, or raise, if steps would be chained that do not follow each other.

        To warn, only the first batch of each form is looked at.

        Raises:
            BatchError: if so, and ``on_unordered="raise"``.
        """
        done = batch.values.get(under_next(batch.keys.done))
        if not self.chains_steps or self._warned or done is None:
            return
        if self.on_unordered == "warn":
            if batch.form() in self._looked_at:
                return
            if len(self._looked_at) > 100:  # batches of ever new shapes must not pile up
                self._looked_at.clear()
            self._looked_at.add(batch.form())
        done, time = done != 0, self._time_dimension(batch.source)
        if 0 <= time < batch.source.ndim:
            done = batch.ends(done, time)
        for key in observed:
            if self._in_time_order(batch.values.get(key), batch.values.get(under_next(key)), done, batch.source, time):
                continue
            message = (
                f"{type(self.module).__name__} chains the steps of a trajectory, but in this batch "
                f"{under_next(key)!r} at step t is not {key!r} at step t + 1: its rewards would be summed over "
                f"unrelated transitions. Sample slices of trajectories (SliceSampler, [B, T]), or use "
                f"make_value_estimator('td0')."
            )
            if self.on_unordered == "raise":
                raise BatchError(message)
            self._warned = True
            checks.warn(f"{owner}: {message}")
            return

    def _time_dimension(self, batch: TensorDictBase) -> int:
        """The estimator's time dimension if it has one, else the one named "time", else the batch's last."""
        time = getattr(self.module, "time_dim", None)
        if time is None:
            names = batch.names or []
            time = names.index("time") if "time" in names else -1
        return time + batch.ndim if time < 0 else time

    def _in_time_order(self, now: Any, later: Any, done: Tensor, batch: TensorDictBase, time: int) -> bool:
        """Whether next observation t is observation t + 1 wherever step t does not end a trajectory."""
        if isinstance(now, TensorDictBase) and isinstance(later, TensorDictBase):
            pairs = ((now.get(key), later.get(key, None)) for key in now.keys(True, True))
            return all(self._in_time_order(first, second, done, batch, time) for first, second in pairs)
        if not isinstance(now, Tensor) or not isinstance(later, Tensor):
            return True
        if not 0 <= time < batch.ndim or now.shape[time] < 2:
            return True
        length, lead = now.shape[time] - 1, batch.ndim
        now, later, done = now.narrow(time, 1, length), later.narrow(time, 0, length), done.narrow(time, 0, length)
        same = torch.isclose(now, later, rtol=1e-4, atol=1e-5, equal_nan=now.is_floating_point())
        same, ended = (x.reshape(*x.shape[:lead], math.prod(x.shape[lead:])).all(-1) for x in (same, done != 0))
        return bool((same | ended).all())

"""The value-estimator factory: TD(0), TD(1), TD(lambda) or the user's own, and the targets they give."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.utils import default_value_kwargs
from torchrl.objectives.value import TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

from torchrl_ddpg import checks, functional

ESTIMATORS: dict[ValueEstimators, type[ValueEstimatorBase]] = {
    ValueEstimators.TD0: TD0Estimator,
    ValueEstimators.TD1: TD1Estimator,
    ValueEstimators.TDLambda: TDLambdaEstimator,
}


NAMES = {ValueEstimators.TD0: "td0", ValueEstimators.TD1: "td1", ValueEstimators.TDLambda: "td_lambda"}


def resolve(owner: str, value_type: Any, supported: Sequence[ValueEstimators]) -> Any:
    """The enum member that a name such as ``"td0"``, ``"TD(1)"`` or ``"td_lambda"`` stands for, or the user's own.

    Raises:
        ValueError: if the loss does not support it.
    """
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
        raise ValueError(
            f"{owner}: the value estimator is {given!r}; accepted: {names} (or {members} of "
            f"torchrl.objectives.ValueEstimators){more}."
        )
    return value_type


def make(
    owner: str,
    value_type: Any,
    device: torch.device | None,
    hyperparams: dict[str, Any],
    supported: Sequence[ValueEstimators],
) -> ValueEstimatorBase:
    """Build the estimator. It needs no value network: the loss hands it the value of the next state.

    Args:
        owner: the loss's name, for messages.
        value_type: an enum member, a name, a ``ValueEstimatorBase`` subclass or an instance.
        device: where gamma and lambda live.
        hyperparams: ``gamma``, ``lmbda`` (both in [0, 1]) and what else the estimator's class accepts.
        supported: the built-in estimators that the loss can use; a loss that can use all takes the user's own too.

    Raises:
        ValueError: if gamma or lmbda is out of range, or the estimator is unknown.
        TypeError: if the estimator's class does not accept one of ``hyperparams``, or an instance comes with any.
    """
    value_type = resolve(owner, value_type, supported)
    if isinstance(value_type, ValueEstimatorBase):
        if hyperparams:
            raise TypeError(
                f"{owner}: {', '.join(hyperparams)} came with an estimator instance, which has its own; accepted: "
                f"the instance alone, or its class with hyperparameters."
            )
        return value_type
    if isinstance(value_type, type):
        cls, defaults = value_type, {"value_network": None}
    else:
        cls, defaults = ESTIMATORS[value_type], {**default_value_kwargs(value_type), "value_network": None}
    for name in ("gamma", "lmbda"):
        if name in hyperparams:
            checks.unit_interval(owner, name, hyperparams[name])
    accepted = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [name for name in hyperparams if name not in accepted and not takes_all]
    if unknown:
        options = ("gamma", "lmbda", "average_rewards", "differentiable", "time_dim", "device")
        known = [name for name in accepted if name in options or cls not in ESTIMATORS.values()]
        raise TypeError(f"{owner}: {cls.__name__} does not accept {', '.join(unknown)}; accepted: {', '.join(known)}.")
    arguments = {"device": device, **defaults, **hyperparams}
    return cls(**{name: value for name, value in arguments.items() if name in accepted or takes_all})


def kind(estimator: ValueEstimatorBase) -> ValueEstimators | type[ValueEstimatorBase]:
    """The enum member of a built-in estimator, or the class of a user's own."""
    members = {cls: member for member, cls in ESTIMATORS.items()}
    return members.get(type(estimator), type(estimator))


def set_keys(estimator: ValueEstimatorBase, **names: NestedKey) -> None:
    """Hand a loss's keys to an estimator: those that it knows, and the value only if the loss gives it."""
    known = {field.name for field in fields(estimator.tensor_keys)}
    if estimator.value_network is not None:
        known.discard("value")
    estimator.set_keys(**{name: key for name, key in names.items() if name in known})


def chains_steps(estimator: ValueEstimatorBase) -> bool:
    """Whether the estimator reads a time dimension, as all but TD(0) do."""
    return not isinstance(estimator, TD0Estimator)


def targets(
    owner: str,
    estimator: ValueEstimatorBase,
    batch: TensorDictBase,
    *,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    next_value: Tensor,
    steps: Tensor | None,
) -> Tensor:
    """Targets of the critic, detached.

    Args:
        owner: the loss's name, for messages.
        estimator: what turns the entries below into targets.
        batch: what else a user's own estimator may read; it is not changed.
        reward: ``[*B, 1]``, float32 or wider.
        done: end of a trajectory, shape of ``reward``, bool.
        terminated: no bootstrap, shape of ``reward``, bool.
        next_value: value of the next state, 0 where terminated, shape of ``reward``.
        steps: n of an n-step reward, shape of ``reward``, or None.

    Returns:
        Shape of ``reward``, without gradient.
    """
    if type(estimator) in ESTIMATORS.values() and not estimator.average_rewards:
        discount = functional.discount(estimator.gamma, terminated, steps).to(reward.dtype)
        if not chains_steps(estimator) or not batch.ndim:
            return functional.td_target(reward, discount, next_value)
        lmbda, time = getattr(estimator, "lmbda", 1.0), time_dimension(estimator, batch)
        if not 0 <= time < batch.ndim:
            raise checks.no_time_dimension(owner, type(estimator).__name__, time, batch.ndim)
        return functional.td_lambda_target(reward, discount, next_value, done, lmbda, time)
    keys = estimator.tensor_keys
    entries = batch.copy()
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
        raise checks.estimator_failed(owner, type(estimator).__name__, error) from error


def check_gamma(
    owner: str, estimator: ValueEstimatorBase, entry: Tensor, steps_key: NestedKey, steps: Tensor | None
) -> None:
    """Raise if the replay buffer summed n-step rewards with another gamma than the estimator's.

    Args:
        owner: the loss's name, for the message.
        estimator: the estimator; one without ``gamma`` is not checked.
        entry: the batch's ``gamma`` entry, gamma^n, ``[*B]`` or ``[*B, 1]``.
        steps_key: the name of n, for the message.
        steps: n, as many elements as ``entry``, or None for 1.

    Raises:
        BatchError: if they differ by more than rounding.
    """
    gamma = getattr(estimator, "gamma", None)
    if gamma is None or not entry.numel():
        return
    n = torch.ones_like(entry) if steps is None or steps.numel() != entry.numel() else steps.reshape(entry.shape)
    per_step = entry.double() ** (1.0 / n.double())
    tolerance = 1e-6 + 1e-2 * (1 - float(gamma))  # of float32, and of what is left of 1
    if (per_step - float(gamma)).abs().max() > tolerance:
        raise checks.BatchError(
            f"{owner}: the batch's 'gamma' and {steps_key!r} say gamma {per_step.reshape(-1)[0].item():.6g} a step, "
            f"the value estimator uses {float(gamma):.6g}; give both one: loss.make_value_estimator(gamma=...)."
        )


def time_dimension(estimator: ValueEstimatorBase, batch: TensorDictBase) -> int:
    """The estimator's time dimension if it has one, else the one named "time", else the batch's last."""
    time = getattr(estimator, "time_dim", None)
    if time is None:
        names = batch.names or []
        time = names.index("time") if "time" in names else -1
    return time + batch.ndim if time < 0 else time


def in_time_order(estimator: ValueEstimatorBase, batch: TensorDictBase, key: NestedKey, done: Tensor) -> bool:
    """Whether next observation t is observation t + 1 wherever step t does not end a trajectory.

    Args:
        estimator: may say which dimension is time.
        batch: ``[*B, T]``.
        key: the observation, ``[*B, T, *F]``.
        done: end of a trajectory, ``[*B, T, 1]``, bool.
    """
    now, later = batch.get(key, None), batch.get(("next", *((key,) if isinstance(key, str) else key)), None)
    time = time_dimension(estimator, batch)
    if now is None or later is None or not 0 <= time < batch.ndim or now.shape[time] < 2:
        return True
    length = now.shape[time] - 1
    now, later, done = (
        now.narrow(time, 1, length),
        later.narrow(time, 0, length),
        done.narrow(time, 0, length),
    )
    same = torch.isclose(now, later, rtol=1e-4, atol=1e-5, equal_nan=now.is_floating_point())
    lead = batch.ndim
    same, ended = (x.reshape(*x.shape[:lead], math.prod(x.shape[lead:])).all(-1) for x in (same, done != 0))
    return bool((same | ended).all())


def unordered(owner: str, estimator: ValueEstimatorBase, key: Any, *, error: bool) -> None:
    """Warn, or raise, that the batch does not hold trajectories in time order."""
    message = (
        f"{owner}: {type(estimator).__name__} chains the steps of a trajectory, but in this batch {('next', key)!r} at "
        f"step t is not {key!r} at step t + 1: its rewards would be summed over unrelated transitions. Sample slices "
        f"of trajectories (SliceSampler, [B, T]), or use make_value_estimator('td0')."
    )
    if error:
        raise checks.BatchError(message)
    checks.warn(message)

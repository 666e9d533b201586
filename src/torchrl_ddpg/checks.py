"""Checks that several modules share, with their messages, and the name of the class that is put before a message."""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from tensordict import NestedKey, unravel_key
from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Any])


class BatchError(ValueError):
    """A batch that a loss cannot use: the message names the loss, the entry and what is accepted."""


class MissingKeyError(BatchError, KeyError):
    """An entry that a loss reads is not in the batch; also a ``KeyError``, as TorchRL raises."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedEstimatorError(ValueError, NotImplementedError):
    """A value estimator that a loss cannot use; also a ``NotImplementedError``, as TorchRL raises."""


def _is_ours(error: Exception) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return module.partition(".")[0] == __package__


def name_error(owner: str, error: Exception) -> None:
    """Put ``owner`` before the message, once, if this library raised the error."""
    if _is_ours(error) and error.args and not hasattr(error, "_named"):
        error.args = (f"{owner}: {error.args[0]}", *error.args[1:])
        error._named = True  # type: ignore[attr-defined]


def names_errors(method: Method) -> Method:
    """Decorate a public method so that its errors begin with the name of the object's class."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            name_error(type(self).__name__, error)
            raise

    return call  # type: ignore[return-value]


def describe(value: Any) -> str:
    """Shape, dtype and device of an entry in a few characters, such as ``[256, 17] float32 cpu``."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} {value.device}"


def choice(name: str, value: Any, accepted: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``accepted``, or raise a ``ValueError`` that lists them."""
    accepted = list(accepted)
    if not any(value is option or (type(value) is type(option) and value == option) for option in accepted):
        raise ValueError(f"{name} is {value!r}; accepted: {', '.join(map(repr, accepted))}.")
    return value


def boolean(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool, or raise a ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; accepted: True or False.")
    return value


def unit_interval(name: str, value: Any, *, open_left: bool = False) -> Any:
    """Return ``value`` if it is a number (or a one-element tensor) in [0, 1], or in (0, 1] if ``open_left``."""
    interval = "(0, 1]" if open_left else "[0, 1]"
    is_scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or is_scalar):
        raise TypeError(f"{name} is {value!r}; accepted: a number in {interval}.")
    if not (value > 0.0 if open_left else value >= 0.0) or not value <= 1.0:
        raise ValueError(f"{name} is {value!r}; accepted: a number in {interval}.")
    return value


def positive_int(name: str, value: Any, at_least: int = 1) -> int:
    """Return ``value`` if it is an integer of at least 1, or another number, or raise."""
    message = f"{name} is {value!r}; accepted: an integer of at least {at_least}."
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if value < at_least:
        raise ValueError(message)
    return int(value)


def finite(name: str, value: Any, *, at_least: float | None = None, above: float | None = None) -> Any:
    """Return ``value`` if it is a finite number, no less than ``at_least`` and greater than ``above``, or raise."""
    limit = "a finite number" if at_least is None else f"a number of at least {at_least:g}"
    limit = limit if above is None else f"a number above {above:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; accepted: {limit}.")
    too_low = (at_least is not None and value < at_least) or (above is not None and value <= above)
    if not math.isfinite(value) or too_low:
        raise ValueError(f"{name} is {value!r}; accepted: {limit}.")
    return value


def instance(name: str, value: Any, cls: type) -> None:
    """Raise a ``TypeError`` unless ``value`` is an instance of ``cls``."""
    if not isinstance(value, cls):
        raise TypeError(f"{name} is of type {type(value).__name__}; accepted: an instance of {cls.__name__}.")


def nested_key(name: str, value: Any) -> NestedKey:
    """Return ``value`` unravelled if it is a TensorDict key, or raise a ``TypeError``."""
    try:
        if value:
            return unravel_key(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name} is {value!r}; accepted: an entry's name, a string or a tuple of strings.")


def number(key: NestedKey, value: Any) -> Tensor:
    """Return an entry of real numbers, or raise."""
    if not isinstance(value, Tensor) or value.is_complex():
        raise BatchError(f"{key!r} is {describe(value)}; accepted: a tensor of real numbers.")
    return value


def flag(key: NestedKey, value: Any) -> Tensor:
    """Return a done-like entry as bool; integers are cast, floating point is refused."""
    if isinstance(value, Tensor) and value.dtype is torch.bool:
        return value
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        raise BatchError(
            f"{key!r} is {describe(value)}; accepted: a tensor of bool, or of integers 0 and 1. Cast: x != 0."
        )
    return value != 0


def like_reward(key: NestedKey, value: Tensor, reward_key: NestedKey, reward: Tensor) -> Tensor:
    """Broadcast an entry that agents share, ``[*B, 1]``, over the agents of a reward ``[*B, n_agents, 1]``."""
    if value.shape == reward.shape:
        return value
    lead = value.shape[:-1]
    if value.ndim < reward.ndim and value.shape[-1:] == (1,) and reward.shape[: len(lead)] == lead:
        return value.reshape(*lead, *(1,) * (reward.ndim - len(lead))).expand(reward.shape)
    raise unequal_shapes("the entry", key, value, reward_key, reward)


def per_sample(key: NestedKey, value: Tensor, loss: Tensor) -> Tensor:
    """Align a mask or weight, ``[*B]`` or ``[*B, 1]``, with per-sample losses ``[*B]`` or ``[*B, n_agents]``."""
    shape = value.shape
    while value.ndim > loss.ndim and value.shape[-1] == 1:
        value = value.squeeze(-1)
    if value.shape != loss.shape and value.ndim == loss.ndim and value.shape[-1:] == (1,):
        value = value.squeeze(-1)
    if value.shape != loss.shape[: value.ndim]:
        raise BatchError(
            f"{key!r} has shape {list(shape)}; accepted: {list(loss.shape)} or "
            f"{[*loss.shape, 1]}, or without the dimension of the agents."
        )
    return value.reshape(*value.shape, *(1,) * (loss.ndim - value.ndim)).expand(loss.shape)


def unequal_shapes(what: str, key: NestedKey, value: Tensor, reward_key: NestedKey, reward: Tensor) -> BatchError:
    """The error for a value or flag that does not have the reward's shape."""
    return BatchError(
        f"{what} {key!r} has shape {list(value.shape)}, the reward {reward_key!r} {list(reward.shape)}; "
        f"accepted: one shape, [*B, 1]. Only flags that agents share are broadcast."
    )


_thread = threading.local()


@contextlib.contextmanager
def contents_unread() -> Iterator[None]:
    """While this thread records operators no check may decide by a value: a replay would not decide again."""
    _thread.unread = True
    try:
        yield
    finally:
        _thread.unread = False


def readable(value: Tensor) -> bool:
    """Whether a check may look at the values: on a device it would wait, and a compiled step would break off."""
    if torch.compiler.is_compiling() or not value.is_cpu:
        return False
    # Inside torch.vmap a tensor has no values to look at; no public function says whether it is there.
    return not getattr(_thread, "unread", False) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite: a finite sum tells, for less than asking each. It waits for a device."""
    total = value.sum() if value.ndim else value
    return math.isfinite(total.item()) or bool(value.isfinite().all())


def warn(message: str) -> None:
    """Warn at the line of the user's code that led here, past this library and those that it stands on."""
    ours = (__package__, "torchrl", "tensordict", "torch", "contextlib")
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category=UserWarning, stacklevel=level)

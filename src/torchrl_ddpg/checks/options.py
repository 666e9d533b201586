"""The words about what a loss or an updater is built from: options, ranges, networks."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from tensordict import NestedKey, unravel_key
from torch import Tensor, nn


def choice(owner: str, name: str, value: Any, accepted: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``accepted``, or raise a ``ValueError`` that lists them."""
    accepted = list(accepted)
    if not any(value is option or (type(value) is type(option) and value == option) for option in accepted):
        raise ValueError(f"{owner}: {name} is {value!r}; accepted: {', '.join(map(repr, accepted))}.")
    return value


def boolean(owner: str, name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool, or raise a ``TypeError``."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} is {value!r}; accepted: True or False.")
    return value


def unit_interval(owner: str, name: str, value: Any, *, open_left: bool = False) -> Any:
    """Return ``value`` if it is a number (or a one-element tensor) in [0, 1], or in (0, 1] if ``open_left``."""
    interval = "(0, 1]" if open_left else "[0, 1]"
    is_scalar = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or is_scalar):
        raise TypeError(f"{owner}: {name} is {value!r}; accepted: a number in {interval}.")
    if not (value > 0.0 if open_left else value >= 0.0) or not value <= 1.0:
        raise ValueError(f"{owner}: {name} is {value!r}; accepted: a number in {interval}.")
    return value


def positive_int(owner: str, name: str, value: Any) -> int:
    """Return ``value`` if it is an integer of at least 1, or raise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{owner}: {name} is {value!r}; accepted: an integer of at least 1.")
    if value < 1:
        raise ValueError(f"{owner}: {name} is {value!r}; accepted: an integer of at least 1.")
    return int(value)


def finite(owner: str, name: str, value: Any, *, at_least: float | None = None, above: float | None = None) -> Any:
    """Return ``value`` if it is a finite number, no less than ``at_least`` and greater than ``above``, or raise."""
    limit = "a finite number" if at_least is None else f"a number of at least {at_least:g}"
    limit = limit if above is None else f"a number above {above:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} is {value!r}; accepted: {limit}.")
    too_low = (at_least is not None and value < at_least) or (above is not None and value <= above)
    if not math.isfinite(value) or too_low:
        raise ValueError(f"{owner}: {name} is {value!r}; accepted: {limit}.")
    return value


def nested_key(owner: str, name: str, value: Any) -> NestedKey:
    """Return ``value`` unravelled if it is a TensorDict key, or raise a ``TypeError``."""
    try:
        if value:
            return unravel_key(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{owner}: {name} is {value!r}; accepted: an entry's name, a string or a tuple of strings.")


def network(owner: str, name: str, module: Any) -> nn.Module:
    """Return ``module`` if it is an initialised TensorDict module, or raise."""
    if not isinstance(module, nn.Module) or not hasattr(module, "in_keys") or not hasattr(module, "out_keys"):
        raise TypeError(
            f"{owner}: {name} is of type {type(module).__name__}; accepted: a TensorDictModule, which has in_keys "
            f"and out_keys. Wrap it: TensorDictModule(module, in_keys=[...], out_keys=[...])."
        )
    if any(nn.parameter.is_lazy(p) for p in [*module.parameters(), *module.buffers()]):
        raise ValueError(
            f"{owner}: {name} has lazy layers that have not seen data yet, so its target network cannot be made. "
            f"Run it once on a batch before building the loss: {name}(batch)."
        )
    if next(module.parameters(), None) is None:
        raise ValueError(f"{owner}: {name} has no parameters; accepted: a network that can be trained.")
    return module


def no_gamma(owner: str, gamma: Any) -> None:
    """Raise a ``TypeError`` if gamma came to the constructor, where older TorchRL releases took it."""
    if gamma is not None:
        raise TypeError(
            f"{owner}: gamma is set with loss.make_value_estimator(gamma={gamma!r}), not in the constructor."
        )


def no_priority_key(owner: str, priority_key: Any) -> None:
    """Raise a ``TypeError`` if the priority's name came to the constructor, where older TorchRL releases took it."""
    if priority_key is not None:
        raise TypeError(f"{owner}: the priority's name is set with loss.set_keys(priority={priority_key!r}).")


def one_of_bounds(owner: str, action_spec: Any, bounds: Any) -> None:
    """Raise unless the action's range is given once."""
    if action_spec is None and bounds is None:
        raise ValueError(f"{owner}: neither action_spec nor bounds is given; accepted: one of them.")


def support(owner: str, v_min: Any, v_max: Any, num_atoms: Any) -> None:
    """Raise unless two finite returns in order and at least two atoms make a support."""
    finite(owner, "v_min", v_min)
    finite(owner, "v_max", v_max)
    if v_min >= v_max:
        raise ValueError(f"{owner}: v_min is {v_min!r}, v_max is {v_max!r}; accepted: v_min below v_max.")
    if positive_int(owner, "num_atoms", num_atoms) < 2:
        raise ValueError(f"{owner}: num_atoms is {num_atoms!r}; accepted: an integer of at least 2.")


def equal_critics(owner: str, count: int) -> ValueError:
    """Word the error for an ensemble whose copies cannot be told apart."""
    return ValueError(
        f"{owner}: no layer of the critic draws new parameters in reset_parameters, so {count} copies would be equal; "
        f"accepted: a list of {count} critics, each with its own initialisation."
    )


def no_updater(owner: str) -> str:
    """Word the warning for a loss whose targets nobody moves."""
    return (
        f"{owner}: no target updater has been built for this loss, so its targets stay as they are. "
        f"Build one, SoftUpdate(loss, tau=0.005), and call its step() after each update, or move them yourself."
    )


def replaced_parameter(owner: str, name: str, parameter: str) -> RuntimeError:
    """Word the error for a network whose parameter is another object than the loss trains."""
    return RuntimeError(
        f"{owner}: the parameter {parameter!r} of {name} was replaced after the loss was built; the loss and its "
        f"optimizer hold the old one. Load values in place (load_state_dict, copy_), or build a new loss."
    )


def instance(owner: str, name: str, value: Any, cls: type) -> None:
    """Raise a ``TypeError`` unless ``value`` is an instance of ``cls``."""
    if not isinstance(value, cls):
        raise TypeError(f"{owner}: {name} is of type {type(value).__name__}; accepted: an instance of {cls.__name__}.")


def warn(message: str) -> None:
    """Warn at the line of the user's code that led here, past this library and those that it stands on."""
    ours = ("torchrl_ddpg", "torchrl", "tensordict", "torch", "contextlib")
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category=UserWarning, stacklevel=level)

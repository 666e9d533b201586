"""The words: what is said about keys, shapes, dtypes, devices and ranges, and when."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection, unravel_key
from torch import Tensor, nn


class BatchError(ValueError):
    """A batch that a loss cannot use: the message names the loss, the entry and what is accepted."""


class MissingKeyError(BatchError, KeyError):
    """An entry that a loss reads is not in the batch; also a ``KeyError``, as TorchRL raises."""

    def __str__(self) -> str:
        return str(self.args[0])


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
    return module


def describe(tensor: Any) -> str:
    """Shape, dtype and device of an entry in a few characters, such as ``[256, 17] float32 cpu``."""
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} {tensor.device}"


def is_tensordict(owner: str, batch: Any) -> None:
    """Raise a ``TypeError`` unless ``batch`` is a TensorDict (or a tensorclass)."""
    if not is_tensor_collection(batch):
        raise TypeError(
            f"{owner}: the batch is of type {type(batch).__name__}; accepted: a TensorDict, or the entries as keyword "
            f"arguments, such as loss(observation=..., action=..., next_reward=...)."
        )


def missing_key(owner: str, batch: TensorDictBase, key: NestedKey, role: str) -> MissingKeyError:
    """Word the error for an entry that is not in the batch, with the close names that are."""
    present = [k if isinstance(k, tuple) else (k,) for k in batch.keys(True, True)]
    wanted = key if isinstance(key, tuple) else (key,)
    spelled = {".".join(k): unravel_key(k) for k in present}
    close = [spelled[name] for name in difflib.get_close_matches(".".join(wanted), spelled, n=3, cutoff=0.6)]
    close += [unravel_key(k) for k in present if k[-1] == wanted[-1] and unravel_key(k) not in close]
    hint = (
        f"Close names in the batch: {', '.join(map(repr, close))}."
        if close
        else f"The batch has: {spelled_out(batch)}."
    )
    return MissingKeyError(f"{owner}: the batch has no entry {key!r}, {role}. {hint}")


def spelled_out(batch: TensorDictBase) -> str:
    """The names of a batch's entries, sorted, as one string."""
    return ", ".join(sorted(map(repr, batch.keys(True, True)))) or "no entry"


def look_alike(owner: str, key: NestedKey, value: Any, next_key: NestedKey, later: Any) -> None:
    """Raise unless an entry and its counterpart in the next state have one shape and one dtype."""
    first, second = ((getattr(x, "shape", None), getattr(x, "dtype", type(x))) for x in (value, later))
    if first != second:
        raise BatchError(
            f"{owner}: an entry and its next must have one shape and dtype: {key!r} {describe(value)} and "
            f"{next_key!r} {describe(later)}."
        )


def wrong_device(owner: str, key: NestedKey, device: torch.device, networks: torch.device) -> BatchError:
    """Word the error for an entry that is not where the networks are."""
    return BatchError(
        f"{owner}: {key!r} is on {device}, the networks are on {networks}; move the batch with "
        f"batch.to({str(networks)!r}), or the loss with loss.to({str(device)!r})."
    )


def locked_within(owner: str, key: NestedKey) -> BatchError:
    """Word the error for a batch that cannot be unlocked alone."""
    return BatchError(
        f"{owner}: the batch is part of a larger locked TensorDict, so the priority {key!r} cannot be written. "
        f"Pass batch.copy(), or unlock the whole."
    )


def unequal_shapes(
    owner: str, what: str, key: NestedKey, value: Tensor, reward_key: NestedKey, reward: Tensor
) -> BatchError:
    """Word the error for a value or flag that does not have the reward's shape."""
    return BatchError(
        f"{owner}: {what} {key!r} has shape {list(value.shape)}, the reward {reward_key!r} {list(reward.shape)}; "
        f"accepted: one shape, [*B, 1]. Nothing is broadcast in silence, but flags that agents share."
    )


def flag(owner: str, key: NestedKey, value: Any) -> Tensor:
    """Return a done-like entry as bool; integers are cast, floating point is refused."""
    if isinstance(value, Tensor) and value.dtype is torch.bool:
        return value
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        raise BatchError(
            f"{owner}: {key!r} is {describe(value)}; accepted: a tensor of bool, or of integers 0 and 1. Cast: x != 0."
        )
    return value != 0


def number(owner: str, key: NestedKey, value: Any) -> Tensor:
    """Return an entry of real numbers, or raise."""
    if not isinstance(value, Tensor) or value.is_complex():
        raise BatchError(f"{owner}: {key!r} is {describe(value)}; accepted: a tensor of real numbers.")
    return value


def like_reward(owner: str, key: NestedKey, value: Tensor, reward_key: NestedKey, reward: Tensor) -> Tensor:
    """Broadcast an entry that agents share, ``[*B, 1]``, over the agents of a reward ``[*B, n_agents, 1]``."""
    if value.shape == reward.shape:
        return value
    lead = value.shape[:-1]
    if value.ndim < reward.ndim and value.shape[-1:] == (1,) and reward.shape[: len(lead)] == lead:
        return value.reshape(*lead, *(1,) * (reward.ndim - len(lead))).expand(reward.shape)
    raise unequal_shapes(owner, "the entry", key, value, reward_key, reward)


def per_sample(owner: str, key: NestedKey, value: Tensor, loss: Tensor) -> Tensor:
    """Align a mask or weight, ``[*B]`` or ``[*B, 1]``, with per-sample losses ``[*B]`` or ``[*B, n_agents]``."""
    shape = value.shape
    while value.ndim > loss.ndim and value.shape[-1] == 1:
        value = value.squeeze(-1)
    if value.shape != loss.shape and value.ndim == loss.ndim and value.shape[-1:] == (1,):
        value = value.squeeze(-1)
    if value.shape != loss.shape[: value.ndim]:
        raise BatchError(
            f"{owner}: {key!r} has shape {list(shape)}; accepted for losses of shape {list(loss.shape)}: "
            f"that shape, with a trailing 1 or without its last dimensions."
        )
    return value.reshape(*value.shape, *(1,) * (loss.ndim - value.ndim)).expand(loss.shape)


def network_failed(owner: str, name: str, reads: Mapping[NestedKey, Any], parameter: Any) -> BatchError:
    """Word the error for a network that raised on its entries of the batch."""
    entries = ", ".join(f"{key!r} {describe(value)}" for key, value in reads.items())
    return BatchError(
        f"{owner}: {name} cannot run on this batch. It reads: {entries}. Its first parameter: {describe(parameter)}. "
        f"Check the entries' shapes, dtypes and devices; what the network itself raised stands above."
    )


def not_finite(owner: str, term: str, entries: Mapping[NestedKey, Any]) -> BatchError:
    """Word the error for a loss that is NaN or infinite: the entries to blame, or the networks."""
    blamed = []
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            blamed.append(f"{key!r} ({int((~value.isfinite()).sum())} of {value.numel()} values)")
    if blamed:
        return BatchError(f"{owner}: {term} is not finite, because the batch holds NaN or inf in {', '.join(blamed)}.")
    return BatchError(
        f"{owner}: {term} is not finite although every entry of the batch is: the networks' parameters have diverged "
        f"or overflow. Lower the learning rate, scale the rewards, or clip the gradients."
    )


def no_value(owner: str, name: str, key: NestedKey, written: Iterable[NestedKey]) -> BatchError:
    """Word the error for a critic that does not write the value under the loss's key."""
    return BatchError(
        f"{owner}: {name} writes {list(written)}, not {key!r}; rename the value with "
        f"loss.set_keys(state_action_value=...)."
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


def no_gamma(owner: str, gamma: Any) -> None:
    """Raise a ``TypeError`` if gamma came to the constructor, where older TorchRL releases took it."""
    if gamma is not None:
        raise TypeError(
            f"{owner}: gamma is set with loss.make_value_estimator(gamma={gamma!r}), not in the constructor."
        )


def equal_critics(owner: str, count: int) -> ValueError:
    """Word the error for an ensemble whose copies cannot be told apart."""
    return ValueError(
        f"{owner}: the critic has no layer with a reset_parameters method, so its {count} copies would all be equal; "
        f"accepted: a list of {count} critics, each with its own initialisation."
    )


def one_of_bounds(owner: str, action_spec: Any, bounds: Any) -> None:
    """Raise unless the action's range is given once."""
    if action_spec is None and bounds is None:
        raise ValueError(f"{owner}: neither action_spec nor bounds is given; accepted: one of them.")


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


def no_priority_key(owner: str, priority_key: Any) -> None:
    """Raise a ``TypeError`` if the priority's name came to the constructor, where older TorchRL releases took it."""
    if priority_key is not None:
        raise TypeError(f"{owner}: the priority's name is set with loss.set_keys(priority={priority_key!r}).")


def same_action(owner: str, key: NestedKey, taken: Tensor, action: Tensor) -> None:
    """Raise unless the batch's action has the shape of the actor's."""
    if taken.shape != action.shape:
        raise BatchError(
            f"{owner}: {key!r} has shape {list(taken.shape)} in the batch, the actor writes {list(action.shape)}; "
            f"accepted: one shape."
        )


def support(owner: str, v_min: Any, v_max: Any, num_atoms: Any) -> None:
    """Raise unless two finite returns in order and at least two atoms make a support."""
    finite(owner, "v_min", v_min)
    finite(owner, "v_max", v_max)
    if v_min >= v_max:
        raise ValueError(f"{owner}: v_min is {v_min!r}, v_max is {v_max!r}; accepted: v_min below v_max.")
    if positive_int(owner, "num_atoms", num_atoms) < 2:
        raise ValueError(f"{owner}: num_atoms is {num_atoms!r}; accepted: an integer of at least 2.")


def not_atoms(owner: str, key: NestedKey, logits: Tensor, num_atoms: int, reward: Tensor) -> BatchError:
    """Word the error for a critic whose logits do not fit the atoms or the reward."""
    return BatchError(
        f"{owner}: the critic's {key!r} has shape {list(logits.shape)}, the reward {list(reward.shape)}; accepted: "
        f"logits [*B, num_atoms] with num_atoms={num_atoms}, and a reward [*B, 1]."
    )

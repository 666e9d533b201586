"""The words about a batch: its keys, shapes, dtypes, devices and values."""

from __future__ import annotations

import contextlib
import difflib
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection, unravel_key
from torch import Tensor


class BatchError(ValueError):
    """A batch that a loss cannot use: the message names the loss, the entry and what is accepted."""


class MissingKeyError(BatchError, KeyError):
    """An entry that a loss reads is not in the batch; also a ``KeyError``, as TorchRL raises."""

    def __str__(self) -> str:
        return str(self.args[0])


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
    near = difflib.get_close_matches(wanted[-1], {k[-1] for k in present}, n=3, cutoff=0.6)
    close = [unravel_key(k) for name in near for k in sorted(present, key=str) if k[-1] == name]
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
        f"accepted: one shape, [*B, 1]. Only flags that agents share are broadcast."
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
            f"{owner}: {key!r} has shape {list(shape)}; accepted: {list(loss.shape)} or "
            f"{[*loss.shape, 1]}, or without the dimension of the agents."
        )
    return value.reshape(*value.shape, *(1,) * (loss.ndim - value.ndim)).expand(loss.shape)


def network_failed(
    owner: str, name: str, reads: Mapping[NestedKey, Any], parameter: Any, error: Exception
) -> BatchError:
    """Word the error for a network that raised on its entries of the batch."""
    entries = ", ".join(f"{key!r} {describe(value)}" for key, value in reads.items())
    return BatchError(
        f"{owner}: {name} cannot run on this batch. It reads: {entries}. Its first parameter: {describe(parameter)}. "
        f"Check the entries' shapes, dtypes and devices. The network raised {type(error).__name__}."
    )


_here = threading.local()


@contextlib.contextmanager
def contents_unread() -> Iterator[None]:
    """While this thread records operators no check may decide by a value: a replay would not decide again."""
    _here.unread = True
    try:
        yield
    finally:
        _here.unread = False


def readable(value: Tensor) -> bool:
    """Whether a check may look at the values: on a device it would wait, and a compiled step would break off."""
    if torch.compiler.is_compiling() or not value.is_cpu:
        return False
    return not getattr(_here, "unread", False)


def all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite: a finite sum tells, for less than asking each. It waits for a device."""
    total = value.sum() if value.ndim else value
    return math.isfinite(total.item()) or bool(value.isfinite().all())


def finite_loss(owner: str, term: str, loss: Tensor, entries: Mapping[NestedKey, Any]) -> None:
    """Raise if a term holds NaN or inf, if it is readable."""
    if readable(loss) and not all_finite(loss):
        raise not_finite(owner, term, entries)


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


def same_action(owner: str, key: NestedKey, taken: Tensor, action: Tensor) -> None:
    """Raise unless the batch's action has the shape of the actor's."""
    if taken.shape != action.shape:
        raise BatchError(
            f"{owner}: {key!r} has shape {list(taken.shape)} in the batch, the actor writes {list(action.shape)}; "
            f"accepted: one shape."
        )


def not_atoms(owner: str, key: NestedKey, logits: Tensor, num_atoms: int) -> BatchError:
    """Word the error for a critic whose logits are not as many as there are atoms."""
    return BatchError(
        f"{owner}: the critic's {key!r} has shape {list(logits.shape)}; accepted: logits [*B, num_atoms], with "
        f"num_atoms={num_atoms}."
    )


def entry_names(owner: str, given: Iterable[str], keys: Iterable[NestedKey]) -> None:
    """Raise a ``TypeError`` unless every keyword argument is an entry's name, joined with underscores."""
    accepted = ["_".join(key if isinstance(key, tuple) else (key,)) for key in keys]
    unknown = [name for name in given if name not in accepted]
    if unknown:
        raise TypeError(f"{owner}: no entry is called {', '.join(unknown)}; accepted: {', '.join(accepted)}.")


def bounds_fit(owner: str, key: NestedKey, action: Tensor, low: Tensor, high: Tensor) -> None:
    """Raise unless the bounds broadcast to the actor's action."""
    for bound in (low, high):
        if bound.ndim and (bound.ndim > action.ndim or bound.shape[-1] not in (1, action.shape[-1])):
            raise BatchError(
                f"{owner}: the bounds have shape {list(bound.shape)}, the actor writes {key!r} {list(action.shape)}; "
                f"accepted: one number, or one for each dimension of the action."
            )


def estimator_failed(owner: str, name: str, error: Exception) -> BatchError:
    """Word the error for a user's estimator that raised."""
    return BatchError(
        f"{owner}: {name} raised {type(error).__name__} in value_estimate(batch, next_value=...). It must give targets "
        f"from the reward and the next value alone; it gets no value network, and this loss no advantage."
    )


def no_time_dimension(owner: str, name: str, time: int, ndim: int) -> BatchError:
    """Word the error for an estimator whose time dimension the batch does not have."""
    return BatchError(f"{owner}: {name} takes dimension {time} for the time; the batch has {ndim}, counted from 0.")


def no_field(owner: str, key: NestedKey) -> BatchError:
    """Word the error for a tensorclass that cannot take the priority."""
    return BatchError(f"{owner}: the batch has no field {key!r} for the priority; add it, or pass a TensorDict.")

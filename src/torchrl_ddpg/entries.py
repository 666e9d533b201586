"""The entries of a TensorDict: their names in the next state, looked up, described, and written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tensordict import LazyStackedTensorDict, NestedKey, TensorDict, TensorDictBase, is_non_tensor, unravel_key
from torch import Tensor

from torchrl_ddpg.checks import BatchError


def under_next(key: NestedKey) -> NestedKey:
    """The entry's name in the next state."""
    return ("next", key) if isinstance(key, str) else unravel_key(("next", key))


def fetch(source: TensorDictBase, names: Iterable[NestedKey]) -> dict[NestedKey, Any]:
    """Entries by name, None where there is none; of a plain TensorDict without a look-up's cost for each."""
    if type(source) is not TensorDict or torch.compiler.is_compiling():
        return {name: source.get(name, None) for name in names}
    roots = dict(source.items())
    later = roots.get("next")
    nexts = dict(later.items()) if isinstance(later, TensorDict) and type(later) is TensorDict else None
    values = {}
    for name in names:
        if isinstance(name, str):
            value = roots.get(name)
        elif nexts is not None and len(name) == 2 and name[0] == "next":
            value = nexts.get(name[1])
        else:
            value = source.get(name, None) if name[0] in roots else None
        if value is not None and not isinstance(value, Tensor) and is_non_tensor(value):
            value = source[name]  # a string, say, as a network that reads it expects it
        values[name] = value
    return values


def signature(value: Any) -> Any:
    """Shape, strides, dtype and device of an entry; of a nested TensorDict, of all its entries."""
    if isinstance(value, Tensor):
        return value.shape, value.stride() if value.layout is torch.strided else None, value.dtype, value.device
    if isinstance(value, LazyStackedTensorDict):  # its parts may differ in shape
        return tuple(map(signature, value.tensordicts))
    if isinstance(value, TensorDictBase):
        parts = [
            (key, part.shape, part.stride(), part.dtype, part.device)
            if type(part) is Tensor and part.layout is torch.strided
            else (key, signature(part))
            for key, part in value.items()
        ]
        return (value.batch_size, *value.names, *parts)
    return type(value), repr(value)


def contents(part: TensorDictBase) -> Iterable[Any]:
    """The values of a TensorDict; of a lazy stack, which makes them anew at each look, its parts."""
    lazy = type(part) is not TensorDict and isinstance(part, LazyStackedTensorDict)  # the first is quicker
    return part.tensordicts if lazy else part.values()


def write(batch: TensorDictBase, entries: dict[NestedKey, Tensor]) -> None:
    """Write entries, such as the priority, into the user's batch, locked or not, over whatever they held."""
    if batch.is_locked:
        try:
            batch.unlock_()
        except RuntimeError as error:
            raise BatchError(
                f"the batch is part of a larger locked TensorDict, so the priority "
                f"{', '.join(map(repr, entries))} cannot be written. Pass batch.copy(), or unlock the whole."
            ) from error
        try:
            write(batch, entries)
        finally:
            batch.lock_()
        return
    for key, value in entries.items():
        try:
            batch.set(key, value)
        except AttributeError as error:
            raise BatchError(
                f"the batch has no field {key!r} for the priority; add it, or pass a TensorDict."
            ) from error

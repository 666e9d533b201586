"""What recordings of an update share: one for each kind of batch, dropped when what they hold has changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor

Tensors = dict[NestedKey, Tensor]
Recording = TypeVar("Recording")

# Kinds of batch whose recordings are kept; each holds memory of its own, and batches may come in ever new lengths.
MAX_RECORDINGS = 64


class Recordings(Generic[Recording]):
    """Recordings by kind of batch; the one used last is the last one to go.

    Args:
        held: what the recordings hold and Python can change: addresses, ids, options.
        renew: called before anything is recorded anew because of a change.
    """

    def __init__(self, held: Callable[[], list[Any]], renew: Callable[[], None] = lambda: None) -> None:
        self.held, self.renew = held, renew
        self.kept: dict[Hashable, Recording] = {}
        self.recorded = held()

    def of(self, kind: Hashable, make: Callable[[], Recording]) -> Recording:
        """The recording of this kind of batch, made by ``make`` if there is none that still holds."""
        held = self.held()
        if held != self.recorded:
            self.renew()
            self.kept, self.recorded = {}, self.held()
        recording = self.kept[kind] = self.kept.pop(kind, None) or make()
        while len(self.kept) > MAX_RECORDINGS:
            self.kept.pop(next(iter(self.kept)))
        return recording


def leaves(entries: Mapping[NestedKey, Tensor | TensorDictBase]) -> Tensors:
    """The entries; those of a nested TensorDict one by one."""
    found = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    for key, value in entries.items():
        if isinstance(value, TensorDictBase):
            found |= {unravel_key((key, inner)): leaf for inner, leaf in value.items(True, True)}
    return found

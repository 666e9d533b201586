"""What recordings of an update share: one for each kind of batch, dropped when what they hold has changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor

from torchrl_ddpg.losses.networks import PLAIN

Tensors = dict[NestedKey, Tensor]
Recording = TypeVar("Recording")

# Kinds of batch whose recordings are kept; each holds memory of its own, and batches may come in ever new lengths.
MAX_RECORDINGS = 64


class Recordings(Generic[Recording]):
    """Recordings by kind of batch; the one used last is the last one to go.

    Args:
        held: what the recordings hold and Python can change: objects, addresses, options.
        renew: called before anything is recorded anew because of a change.
    """

    def __init__(self, held: Callable[[], list[Any]], renew: Callable[[], None] = lambda: None) -> None:
        self.held, self.renew = held, renew
        self.kept: dict[Hashable, Recording] = {}
        self.recorded = held()

    def refresh(self) -> None:
        """Drop all recordings if they hold what has changed."""
        if not _all_same(self.held(), self.recorded):
            self.renew()
            self.kept, self.recorded = {}, self.held()

    def of(self, kind: Hashable, make: Callable[[], Recording]) -> Recording:
        """The recording of this kind of batch, made by ``make`` if there is none."""
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


def _all_same(values: Sequence[Any], others: Sequence[Any]) -> bool:
    if len(values) != len(others):
        return False
    return all(map(operator.is_, values, others)) or all(map(_same, values, others))  # the first takes no time


def _same(value: Any, other: Any) -> bool:
    """Whether two things that were held are the same object, or equal numbers or words."""
    if value is other:
        return True
    if isinstance(value, tuple) and isinstance(other, tuple):
        return _all_same(value, other)
    return type(value) is type(other) and isinstance(value, PLAIN) and value == other

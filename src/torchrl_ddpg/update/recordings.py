"""What recordings of an update share: the form of a batch, a recording for each, and what Python changes."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Hashable, Iterable
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn

from torchrl_ddpg import checks
from torchrl_ddpg.entries import fetch
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.losses.twins import slots

Recording = TypeVar("Recording")

# Forms of batch whose recordings are kept; each holds memory of its own, and batches may come in ever new lengths.
MAX_RECORDINGS = 64
# What a module's or a loss's settings are made of: a rate of dropout, a mode, the name of a distance.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Classes that nobody changes while training.
_LIBRARIES = ("torch", "tensordict", "torchrl", "builtins", "abc", "typing", __package__.partition(".")[0])
# Two at least, so that a getter gives a tuple; the objects behind the others stay.
_LEFT_OUT = _OF_EVERY_MODULE - {"training", "_parameters"}
_SLOTS = ("_buffers", "_backward_hooks", "_backward_pre_hooks")
_SLOTS_OF_NETWORKS = ("_parameters", "_modules", "_forward_hooks", "_forward_pre_hooks")
_HOW_TRAINED = operator.attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")
# What a loss notes for itself.
_NOTES = {"_reading", "_nets", "_on_device", "_warned_updater", "_targets_loaded", "_initial_targets", "_estimator"}
_NOTES |= {"_constants"}
# Calls in a row that find a change, until it is said.
_TOO_OFTEN = 10
# Objects in a setting that are looked into; what lies beyond is followed by identity alone.
_MAX_OBJECTS = 500


class Form:
    """A batch without its tensors: all its entries, the shapes of nested TensorDicts and what is no tensor."""

    def __init__(self, batch: TensorDictBase) -> None:
        names = batch.names if any(batch.names) else None
        plain = batch if isinstance(batch, TensorDict) else TensorDict({}, batch_size=batch.batch_size, names=names)
        self.keys: list[NestedKey] = [key for key, value in batch.items(True, True) if isinstance(value, Tensor)]
        self._empty = plain.exclude(*self.keys).unlock_()

    def values(self, batch: TensorDictBase) -> list[Tensor]:
        """The tensors of a batch of this form."""
        return list(fetch(batch, self.keys).values())

    def filled(self, values: Iterable[Tensor]) -> TensorDict:
        """A batch of this form with these tensors."""
        batch = self._empty.copy()
        for key, value in zip(self.keys, values, strict=True):
            batch.set(key, value)
        return batch

    def written(self, batch: TensorDictBase, values: Iterable[Tensor]) -> dict[NestedKey, Tensor]:
        """What was written into a filled batch since."""
        given = dict(zip(self.keys, values, strict=True))
        return {
            key: value
            for key, value in batch.items(True, True)
            if isinstance(value, Tensor) and value is not given.get(key)
        }


class _Same:
    """Equal to nothing but itself; keeps the object, so that no other can take its address."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _frozen(value: Any, seen: dict[int, Any]) -> Any:
    """What a setting holds, to be compared later: numbers and words by value, lists and objects part by part."""
    if isinstance(value, _PLAIN):
        return value
    if id(value) in seen or len(seen) > _MAX_OBJECTS:
        return _Same(value)
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes()) if value.size <= _MAX_OBJECTS else _Same(value)
    if isinstance(value, TensorDictBase):
        return [(key, _Same(leaf)) for key, leaf in value.items(True, True)]
    parts: Iterable[Any]
    if isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        parts = value
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
    elif isinstance(value, dict):
        parts = chain(value.keys(), value.values())
    else:
        foreign = type(value).__module__.partition(".")[0] in ("torch", "tensordict", "torchrl", "builtins")
        in_slots = [] if foreign else slots(value)
        if foreign or isinstance(value, (Tensor, nn.Module, type)) or not (hasattr(value, "__dict__") or in_slots):
            return _Same(value)
        parts = [*getattr(value, "__dict__", {}).values(), *in_slots]
    seen[id(value)] = value
    return [type(value), *(_frozen(part, seen) for part in parts)]


def _is_flat(value: Any) -> bool:
    """Whether comparing a list or dict with a copy compares all that it holds."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else [value]
    return all(isinstance(part, _PLAIN) or (isinstance(part, tuple) and _is_flat(part)) for part in parts)


def _same(value: Any, other: Any) -> bool:
    return value is other or (type(value) is type(other) and isinstance(value, _PLAIN) and value == other)


class Watch:
    """Tells whether Python has changed what recordings hold.

    Followed are, on the loss, its value estimator and every module of these and of its networks: attributes that are
    set, replaced or removed, parameters, buffers and targets that are other tensors than before, what is trained,
    hooks, what lies in lists, dicts and objects that are attributes, and numbers and words on a user's own class of
    loss or estimator. What is done to a tensor in place is seen by a replay itself.

    Args:
        loss: the loss.
        more: what else the recordings hold.
    """

    def __init__(self, loss: DeterministicPolicyLoss, more: Callable[[], list[Any]]) -> None:
        self.loss, self.more = loss, more
        self.look()

    def look(self) -> None:
        """Take what there is now for unchanged."""
        loss, estimator = self.loss, self.loss.value_estimator
        networks = [loss.get_stateful_net(name, copy=False) for name in ("actor_network", loss.critic_name)]
        modules = dict.fromkeys(part for network in networks for part in network.modules())
        targets = [f"target_{name}_params" for name in ("actor_network", loss.critic_name)]
        params = {*targets, "actor_network_params", f"{loss.critic_name}_params"}
        own = [child for name, child in loss.named_children() if name not in params]
        others = dict.fromkeys(part for root in (*own, estimator) for part in root.modules() if part not in modules)
        # TensorDict notes its last operation on parameters of several agents; the loss follows what they hold.
        self._parts = [part for part in (*modules, *others) if not isinstance(part, TensorDictParams)]
        # Submodules, parameters and forward hooks of the networks are the loss's to follow: it makes them anew.
        dictionaries = [getattr(part, slot) for part in self._parts for slot in _SLOTS]
        dictionaries += [getattr(part, slot) for part in others for slot in _SLOTS_OF_NETWORKS]
        dictionaries += [loss._buffers, *(loss._modules[name]._buffers for name in targets if name in loss._modules)]
        classes = dict.fromkeys((*type(loss).__mro__, *type(estimator).__mro__))
        self._classes = [vars(cls) for cls in classes if cls.__module__.partition(".")[0] not in _LIBRARIES]
        self._filled, self._empty = [own for own in dictionaries if own], [own for own in dictionaries if not own]
        self._owned = [vars(part) for part in (*self._parts, loss.tensor_keys)]
        self._settings_of = [
            functools.partial(operator.itemgetter(*(name for name in own if name not in _LEFT_OUT)), own)
            for own in self._owned
        ]
        self._count, self._parameters = sum(map(len, self._owned)), list(loss.parameters())
        self._values = self._now()
        settings = self._mutable()
        flat = [value for value in settings if _is_flat(value)]
        self._flat = [(value, copy.copy(value)) for value in flat]
        self._settings = [(value, self._freeze(value)) for value in settings if not _is_flat(value)]

    def _now(self) -> list[Any]:
        return [
            *chain.from_iterable(map(dict.values, self._filled)),
            *chain.from_iterable([settings() for settings in self._settings_of]),
            *vars(self.loss).values(),
            *[value for own in self._classes for value in own.values() if isinstance(value, _PLAIN)],
            *chain.from_iterable(map(_HOW_TRAINED, self._parameters)),
            *self.more(),
        ]

    def _mutable(self) -> list[Any]:
        """Attributes whose contents may change while they stay the same objects."""
        owned: list[tuple[Any, Any]] = [(vars(part), _OF_EVERY_MODULE) for part in self._parts]
        owned += [(own, ("__dict__",)) for own in self._classes]
        owned += [(vars(self.loss), _OF_EVERY_MODULE | _NOTES | {"_owned", "_tensor_keys", "_value_estimator"})]
        values = [value for own, leave in owned for name, value in own.items() if name not in leave]
        return [value for value in values if not isinstance(self._freeze(value), (_Same, *_PLAIN))]

    @staticmethod
    def _freeze(value: Any) -> Any:
        return _frozen(value, {})

    def has_changed(self) -> bool:
        """Whether anything is another than at the last look."""
        if sum(map(len, self._owned)) != self._count or any(self._empty):
            return True
        try:
            now, then = self._now(), self._values
        except KeyError:  # one was removed and another added
            return True
        if len(now) != len(then):
            return True
        if not all(map(operator.is_, now, then)):  # the first question takes no time
            if not all(map(_same, now, then)):
                return True
            self._values = now
        if any(value != copied for value, copied in self._flat):
            return True
        return any(self._freeze(value) != frozen for value, frozen in self._settings)


class Recordings(Generic[Recording]):
    """Recordings by form of batch, the least recently used dropped first, and all when what they hold has changed.

    Args:
        watch: tells of changes.
        renew: called before anything is recorded anew because of a change.
    """

    def __init__(self, watch: Watch, renew: Callable[[], None] = lambda: None) -> None:
        self.watch, self.renew = watch, renew
        self.kept: dict[Hashable, Recording] = {}
        self.in_a_row = 0

    def refresh(self) -> None:
        """Drop all recordings if they hold what has changed; warn if that is so at every call."""
        changed = self.watch.has_changed()
        self.in_a_row = self.in_a_row + 1 if changed else 0
        if self.in_a_row == _TOO_OFTEN:
            checks.warn(
                "UpdateStep: something that the recordings hold changes at every call (a setting, a count or a tensor "
                "that a module assigns), so that nothing is replayed. Change it in place, or leave the recording out."
            )
        if changed:
            self.renew()
            self.kept = {}
            self.watch.look()

    def of(self, kind: Hashable, make: Callable[[], Recording]) -> Recording:
        """The recording of this form of batch, made by ``make`` if there is none."""
        recording = self.kept[kind] = self.kept.pop(kind, None) or make()
        while len(self.kept) > MAX_RECORDINGS:
            self.kept.pop(next(iter(self.kept)))
        return recording

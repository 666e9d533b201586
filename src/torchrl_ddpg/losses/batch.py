"""A sampled batch as the terms read it: every entry fetched once, checked, cast and masked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tensordict import LazyStackedTensorDict, NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.objectives.common import AUTO_LOSS_MASK_KEYS

from torchrl_ddpg import checks


class Transition(NamedTuple):
    """What the critic's term reads beside the networks' inputs, each in the shape of the reward."""

    reward: Tensor
    done: Tensor
    terminated: Tensor
    steps: Tensor | None


def under_next(key: NestedKey) -> NestedKey:
    """The entry's name in the next state."""
    return unravel_key(("next", key))


def hide(value: Any, counts: Tensor | None) -> Any:
    """Replace NaN and inf by 0 where nothing counts: ``0 * nan`` would reach the gradients of what does.

    Args:
        value: ``[*B, *F]``; what is not floating point comes back as it is.
        counts: True where a sample counts, ``[*B]``, or None for everywhere.
    """
    if counts is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if checks.readable(value) and checks.all_finite(value):
        return value
    counts = counts.reshape(*counts.shape, *(1,) * (value.ndim - counts.ndim))
    return torch.where(counts | value.isfinite(), value, 0.0)


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
        values[name] = value if value is None or isinstance(value, Tensor) else source.get(name)
    return values


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride() if value.layout is torch.strided else None, value.dtype, value.device
    if isinstance(value, LazyStackedTensorDict):  # its parts may differ in shape
        return tuple(_signature(part) for part in value.tensordicts)
    if isinstance(value, TensorDictBase):
        return value.batch_size, tuple((key, _signature(part)) for key, part in value.items())
    return type(value)


class Batch:
    """One batch on its way through a loss.

    Args:
        owner: the loss's name, for messages.
        source: the TensorDict that the user passed.
        keys: the loss's ``tensor_keys``.
        names: the entries to fetch; those that are not there are None.
        mask_key: the loss's ``loss_mask_key``.
    """

    __slots__ = ("_kind", "keys", "mask", "mask_keys", "owner", "shape", "source", "values")

    def __init__(
        self, owner: str, source: TensorDictBase, keys: Any, names: Iterable[NestedKey], mask_key: NestedKey | None
    ) -> None:
        self.owner, self.source, self.keys, self.shape = owner, source, keys, source.batch_size
        self.mask_keys: tuple[NestedKey, ...] = (
            () if mask_key is None else AUTO_LOSS_MASK_KEYS if mask_key == "auto" else (mask_key,)
        )
        self.values = fetch(source, (*names, *self.mask_keys))
        self._kind: tuple | None = None
        self.mask = self._read_mask(required=mask_key != "auto")

    def tensors(self) -> dict[NestedKey, Tensor]:
        """The entries that there are."""
        return {key: value for key, value in self.values.items() if isinstance(value, (Tensor, TensorDictBase))}

    def over(self, tensors: dict[NestedKey, Tensor]) -> TensorDict:
        """A TensorDict like this batch's with other tensors in it."""
        names = self.source.names
        return TensorDict(dict(tensors), batch_size=self.shape, names=names if any(names) else None)

    def without_tensors(self) -> TensorDict:
        """A TensorDict like this batch's without a tensor in it."""
        nested = {key: value for key, value in self.values.items() if isinstance(value, TensorDictBase)}
        return self.over({key: value.empty(recurse=True) for key, value in nested.items()})

    def require(self, key: NestedKey, role: str) -> Any:
        """The entry, or an error that names it, its role and the close names there are."""
        value = self.values.get(key)
        if value is None:
            raise checks.missing_key(self.owner, self.source, key, role)
        return value

    def _read_mask(self, *, required: bool) -> Tensor | None:
        mask = None
        for key in self.mask_keys:
            value = self.require(key, "the mask of loss_mask_key") if required else self.values[key]
            if value is None:
                continue
            value = checks.flag(self.owner, key, value)
            if value.ndim <= len(self.shape) + 1:
                value = checks.per_sample(self.owner, key, value, value.new_empty(self.shape))
            mask = value if mask is None else mask & value
        return mask

    @property
    def counts(self) -> Tensor | None:
        """True for each sample of which anything counts, ``[*B]``; None for everything."""
        depth = len(self.shape)
        return self.mask if self.mask is None or self.mask.ndim == depth else self.mask.flatten(depth).any(-1)

    def ends(self, done: Tensor, time: int) -> Tensor:
        """Done, or followed along ``time`` by a step that is masked (padding), which no return may be chained to."""
        if self.counts is None:
            return done
        counts = self.counts.reshape(*self.shape, *(1,) * (done.ndim - len(self.shape)))
        last = torch.ones_like(counts.narrow(time, 0, min(1, counts.shape[time])))
        return done | ~torch.cat([counts.narrow(time, 1, max(0, counts.shape[time] - 1)), last], time)

    def mask_like(self, loss: Tensor) -> Tensor | None:
        """The mask in the shape of per-sample losses."""
        return None if self.mask is None else checks.per_sample(self.owner, self.mask_keys[0], self.mask, loss)

    def samples(self, value: Tensor) -> Tensor:
        """Values ``[*B, 1]`` as per-sample values ``[*B]``; agents stay."""
        return value.squeeze(-1) if value.ndim > len(self.shape) else value

    def signature(self) -> tuple:
        """What checks and recordings depend on: shapes, strides, dtypes, devices, names of dimensions."""
        if self._kind is None:
            self._kind = (self.shape, tuple(self.source.names), *map(_signature, self.values.values()))
        return self._kind

    def steps(self) -> Tensor | None:
        """The number of steps to the next observation, from the root or from the next state."""
        key = self.keys.steps_to_next_obs
        steps = self.values.get(key)
        steps = self.values.get(under_next(key)) if steps is None else steps
        return None if steps is None else checks.number(self.owner, key, steps)

    def gamma(self) -> Tensor | None:
        """What the buffer says it discounted by up to the next observation."""
        gamma = self.values.get("gamma")
        gamma = self.values.get(("next", "gamma")) if gamma is None else gamma
        return None if gamma is None else checks.number(self.owner, "gamma", gamma)

    def _flag(self, name: str, reward_key: NestedKey, reward: Tensor) -> Tensor:
        key = under_next(getattr(self.keys, name))
        value = self.require(key, f"the flag of set_keys({name}={getattr(self.keys, name)!r})")
        return checks.like_reward(self.owner, key, checks.flag(self.owner, key, value), reward_key, reward)

    def transition(self, dtype: torch.dtype) -> Transition:
        """Reward in ``dtype``, flags as bool, all broadcast over the agents of the reward."""
        reward_key = under_next(self.keys.reward)
        reward = self.require(reward_key, f"the reward of set_keys(reward={self.keys.reward!r})")
        reward = checks.number(self.owner, reward_key, reward)
        done, terminated = (self._flag(name, reward_key, reward) for name in ("done", "terminated"))
        steps = self.steps()
        if steps is not None:
            steps = steps.unsqueeze(-1) if steps.shape == reward.shape[:-1] else steps
            steps = checks.like_reward(self.owner, self.keys.steps_to_next_obs, steps, reward_key, reward)
        return Transition(hide(reward.to(dtype), self.counts), done, terminated, steps)

    def has_weight(self, use: str | bool) -> bool:
        """Whether importance weights weigh the loss, by the loss's ``use_prioritized_weights``."""
        if use is True:
            self.require(self.keys.priority_weight, "the weight that use_prioritized_weights=True asks for")
        return use is not False and self.values.get(self.keys.priority_weight) is not None

    def weight_like(self, loss: Tensor) -> Tensor:
        """The importance weights in the shape and dtype of per-sample losses."""
        key = self.keys.priority_weight
        weight = checks.number(self.owner, key, self.values[key])
        return checks.per_sample(self.owner, key, weight.to(loss.dtype), loss)

    def current(self, keys: Iterable[NestedKey]) -> dict[NestedKey, Any]:
        """The networks' entries of the current state, detached."""
        counts, entries = self.counts, {}
        for key in keys:
            value = self.require(key, "an input of the networks")
            entries[key] = hide(value.detach(), counts)
        return entries

    def following(
        self, observed: Iterable[NestedKey], keys: Iterable[NestedKey], goes_on: Tensor | None
    ) -> dict[NestedKey, Any]:
        """The networks' entries of the next state.

        An entry that only the root holds is constant over the step and taken from there, but not the only observation
        of the actor. A recurrent network's ``is_init`` also counts where the current step starts an episode, since
        the next states of two episodes are as unrelated as the current ones.

        Args:
            observed: what the actor reads.
            keys: what actor and critic read, but for what the actor writes.
            goes_on: True where the next state must be finite, ``[*B]``, or None for wherever a sample counts.
        """
        counts = self.counts
        if goes_on is not None:
            counts = goes_on if counts is None else counts & goes_on
        entries = {}
        for key in keys:
            value, root = self.values.get(under_next(key)), self.values.get(key)
            if key == "is_init" or key[-1] == "is_init":
                value = root if value is None else value if root is None else value | root
            elif value is None and (key not in observed or self._has_next(observed)):
                value = root
            if value is None:
                raise checks.missing_key(self.owner, self.source, under_next(key), "an input of the target networks")
            entries[key] = hide(value, counts)
        return entries

    def _has_next(self, keys: Iterable[NestedKey]) -> bool:
        return any(self.values.get(under_next(key)) is not None for key in keys)

    def check_inputs(self, keys: Iterable[NestedKey], device: torch.device | None) -> None:
        """Raise unless entries lie on the networks' device and look like their counterparts in the next state."""
        for name, value in self.values.items():
            if isinstance(value, Tensor) and device is not None and value.device != device:
                raise checks.wrong_device(self.owner, name, value.device, device)
        for key in keys:
            value, later = self.values.get(key), self.values.get(under_next(key))
            if value is not None and later is not None:
                checks.look_alike(self.owner, key, value, under_next(key), later)

    def write_priority(self, priority: Tensor) -> None:
        """Write the priority into the user's batch, locked or not, over whatever the entry held."""
        key, source = self.keys.priority, self.source
        if not source.is_locked:
            try:
                source.set(key, priority)
            except AttributeError as error:
                raise checks.no_field(self.owner, key) from error
            return
        try:
            source.unlock_()
        except RuntimeError as error:
            raise checks.locked_within(self.owner, key) from error
        try:
            source.set(key, priority)
        finally:
            source.lock_()

"""A sampled batch as the terms of a loss read it: every entry fetched once, checked, cast and masked."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.objectives.common import AUTO_LOSS_MASK_KEYS

from torchrl_ddpg import checks
from torchrl_ddpg.checks import BatchError, MissingKeyError
from torchrl_ddpg.entries import contents, fetch, signature, under_next, write


class Transition(NamedTuple):
    """What the critic's target is made of beside the next value, each in the shape of the reward, ``[*B, 1]``.

    ``reward`` is float32 or wider and 0 where nothing counts; ``done`` and ``terminated`` are bool; ``steps`` is the
    number of steps to the next observation, or None for one.
    """

    reward: Tensor
    done: Tensor
    terminated: Tensor
    steps: Tensor | None


class Batch:
    """One batch on its way through a loss: what a step of a loss reads of it.

    Args:
        source: the TensorDict that the user passed, ``[*B]``.
        keys: the loss's ``tensor_keys``.
        names: the entries to fetch; those that are not there are None.
        mask_key: the loss's ``loss_mask_key``.
        dtype: of rewards, targets and losses.
    """

    def __init__(
        self,
        source: TensorDictBase,
        keys: Any,
        names: Iterable[NestedKey],
        mask_key: NestedKey | None,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.keys, self.shape, self.dtype = source, keys, source.batch_size, dtype
        self._form: tuple | None = None
        self._parts = [source]  # and the TensorDicts that it holds
        for part in self._parts:
            others = [value for value in contents(part) if not isinstance(value, Tensor)]  # asked first: it is quick
            self._parts += [value for value in others if isinstance(value, TensorDictBase)]
        self._held = self._holds()
        self.mask_keys: tuple[NestedKey, ...] = (
            () if mask_key is None else AUTO_LOSS_MASK_KEYS if mask_key == "auto" else (mask_key,)
        )
        self.values = fetch(source, (*names, *self.mask_keys))
        self.mask = self._read_mask(required=mask_key != "auto")
        depth = len(self.shape)
        # True for each sample of which anything counts, [*B]; None for everything.
        self.counts = self.mask if self.mask is None or self.mask.ndim == depth else self.mask.flatten(depth).any(-1)
        # The same by agents, [*B, n_agents], if the mask tells them apart.
        self._agents = None if self.mask is None or self.mask.ndim == depth else self.mask.flatten(-2)

    def write_priority(self, priority: Tensor) -> None:
        """Write the priority into the user's batch, which still is what was read."""
        write(self.source, {self.keys.priority: priority})
        self._held = self._holds()

    def form(self) -> tuple:
        """What recordings depend on: shapes, strides, dtypes and devices of all entries, and names of dimensions."""
        if self._form is None:
            self._form = signature(self.source)
        return self._form

    def missing(self, key: NestedKey, role: str) -> MissingKeyError:
        """The error for an entry that is not in the batch, with the close names that are."""
        present = [k if isinstance(k, tuple) else (k,) for k in self.source.keys(True, True)]
        wanted = key if isinstance(key, tuple) else (key,)
        near = difflib.get_close_matches(wanted[-1], {k[-1] for k in present}, n=3, cutoff=0.6)
        close = [unravel_key(k) for name in near for k in sorted(present, key=str) if k[-1] == name]
        every = ", ".join(sorted(repr(unravel_key(k)) for k in present)) or "no entry"
        hint = f"Close names in the batch: {', '.join(map(repr, close))}." if close else f"The batch has: {every}."
        return MissingKeyError(f"the batch has no entry {key!r}, {role}. {hint}")

    def require(self, key: NestedKey, role: str) -> Any:
        """The entry as it is, or an error that names it, its role and the close names there are."""
        value = self.values.get(key)
        if value is None:
            raise self.missing(key, role)
        return value

    def get(self, key: NestedKey) -> Any:
        """An entry, detached, and 0 in samples that are masked.

        Of the next state, NaN and inf past the end of an episode are 0 too.

        Args:
            key: its name; ``("next", name)`` for the next state's.

        Returns:
            ``[*B, *F]``, without gradient.

        Raises:
            MissingKeyError: if the batch does not have it.
        """
        if key not in self.values:  # one that the loss has not declared
            self.values |= fetch(self.source, (key,))
        value = self.require(key, "an entry that the loss reads")
        value = value.detach() if hasattr(value, "detach") else value  # a string, say
        ended = self.values.get(under_next(self.keys.terminated)) if key[0] == "next" else None
        depth = len(self.shape)
        if ended is None or ended.ndim < depth:
            return self._hide(value)
        ended = ended != 0
        return self._hide(value, ~(ended.flatten(depth).all(-1) if ended.ndim > depth else ended))

    def _read_mask(self, *, required: bool) -> Tensor | None:
        mask = None
        for key in self.mask_keys:
            value = self.require(key, "the mask of loss_mask_key") if required else self.values[key]
            if value is None:
                continue
            value = checks.flag(key, value)
            if value.ndim <= len(self.shape) + 1:
                value = checks.per_sample(key, value, value.new_empty(self.shape))
            if mask is not None:  # one of samples counts for all of their agents
                deep = max(mask.ndim, value.ndim)
                mask, value = (one.reshape(*one.shape, *(1,) * (deep - one.ndim)) for one in (mask, value))
            mask = value if mask is None else mask & value
        return mask

    def _hide(self, value: Any, counts: Tensor | None = None) -> Any:
        """Replace by 0 what is masked: ``0 * nan`` would reach the gradients of what counts.

        ``counts``, ``[*B]``, is False where besides NaN and inf are replaced.
        """
        if (self.counts is None and counts is None) or not isinstance(value, (Tensor, TensorDictBase)):
            return value
        if isinstance(value, TensorDictBase):
            return value.apply(lambda leaf: self._hide(leaf, counts))
        # By agents NaN alone is hidden: a first dimension of features could be as long as theirs.
        for keep, finite in ((self.counts, False), (counts, True), (self._agents, True)):
            if keep is None or (finite and not value.is_floating_point()):
                continue
            if keep is self._agents and (value.ndim <= keep.ndim or value.shape[: keep.ndim] != keep.shape):
                continue
            if finite and checks.readable(value) and checks.all_finite(value):
                continue
            keep = keep.reshape(*keep.shape, *(1,) * (value.ndim - keep.ndim))
            value = torch.where(keep | value.isfinite() if finite else keep, value, torch.zeros_like(value))
        return value

    def hide(self, value: Tensor) -> Tensor:
        """The value, ``[*B, *F]``, with 0 in samples that are masked."""
        return self._hide(value)

    def ends(self, done: Tensor, time: int) -> Tensor:
        """Done, or followed along ``time`` by a step that is masked (padding), which no return may be chained to."""
        if self.counts is None or not self.shape:
            return done
        counts = self.counts.reshape(*self.shape, *(1,) * (done.ndim - len(self.shape)))
        last = torch.ones_like(counts.narrow(time, 0, min(1, counts.shape[time])))
        return done | ~torch.cat([counts.narrow(time, 1, max(0, counts.shape[time] - 1)), last], time)

    def mask_like(self, loss: Tensor) -> Tensor | None:
        """The mask in the shape of per-sample losses, or None if everything counts."""
        return None if self.mask is None else checks.per_sample(self.mask_keys[0], self.mask, loss)

    def samples(self, value: Tensor, *, several: bool = False) -> Tensor:
        """Values ``[*B, 1]`` as per-sample values ``[*B]``; agents stay; with ``several``, ``[N, *B, 1]``."""
        return value.squeeze(-1) if value.ndim > len(self.shape) + several else value

    def is_current(self) -> bool:
        """Whether the user's TensorDict still holds what was read of it."""
        now, then = self._holds(), self._held
        return len(now) == len(then) and all(map(operator.is_, now, then))

    def _holds(self) -> list[Any]:
        """The batch size and the entries of the TensorDict and of those that it held when it was read."""
        held: list[Any] = [self.source.batch_size]
        for part in self._parts:
            held += contents(part)
        return held

    def steps(self) -> Tensor | None:
        """The number of steps to the next observation, from the root or from the next state; 1 where masked."""
        key = self.keys.steps_to_next_obs
        steps = self.values.get(key)
        steps = self.values.get(under_next(key)) if steps is None else steps
        if steps is None:
            return None
        steps = checks.number(key, steps)
        steps = steps.unsqueeze(-1) if steps.shape == self.shape else steps
        if self.counts is None:
            return steps
        counts = self.counts.reshape(*self.shape, *(1,) * (steps.ndim - len(self.shape)))
        return torch.where(counts, steps, torch.ones_like(steps))

    def gamma(self) -> Tensor | None:
        """What the buffer says it discounted by up to the next observation."""
        gamma = self.values.get("gamma")
        gamma = self.values.get(("next", "gamma")) if gamma is None else gamma
        return None if gamma is None else checks.number("gamma", gamma)

    def _flag(self, name: str, reward_key: NestedKey, reward: Tensor) -> Tensor:
        key = under_next(getattr(self.keys, name))
        value = self.require(key, f"the flag of set_keys({name}={getattr(self.keys, name)!r})")
        return checks.like_reward(key, checks.flag(key, value), reward_key, reward)

    def transition(self, *, needs_done: bool) -> Transition:
        """Reward, flags and steps, all broadcast over the agents of the reward.

        Args:
            needs_done: whether the ends of trajectories are read; otherwise ``done`` may be absent, unless the user
                has renamed it.
        """
        reward_key = under_next(self.keys.reward)
        reward = self.require(reward_key, f"the reward of set_keys(reward={self.keys.reward!r})")
        reward = checks.number(reward_key, reward)
        has_done = (
            needs_done
            or self.keys.done != type(self.keys)().done
            or self.values.get(under_next(self.keys.done)) is not None
        )
        done = self._flag("done", reward_key, reward) if has_done else None
        terminated = self._flag("terminated", reward_key, reward)
        steps = self.steps()
        if steps is not None:
            steps = checks.like_reward(self.keys.steps_to_next_obs, steps, reward_key, reward)
        reward = self._hide(reward.to(self.dtype))
        return Transition(reward, terminated if done is None else done, terminated, steps)

    def has_weight(self, use: str | bool) -> bool:
        """Whether importance weights weigh the loss, by the loss's ``use_prioritized_weights``."""
        if use is True:
            self.require(self.keys.priority_weight, "the weight that use_prioritized_weights=True asks for")
        return use is not False and self.values.get(self.keys.priority_weight) is not None

    def weight_like(self, loss: Tensor) -> Tensor:
        """The importance weights in the shape and dtype of per-sample losses."""
        key = self.keys.priority_weight
        weight = checks.number(key, self.values[key])
        return checks.per_sample(key, weight.to(loss.dtype), loss)

    def current(self, keys: Iterable[NestedKey]) -> dict[NestedKey, Any]:
        """The networks' entries of the current state, detached; what the batch lacks is left out."""
        entries = {key: self.values.get(key) for key in keys}
        return {
            key: self._hide(value.detach() if hasattr(value, "detach") else value)
            for key, value in entries.items()
            if value is not None
        }

    def following(
        self, observed: Iterable[NestedKey], keys: Iterable[NestedKey], goes_on: Tensor | None
    ) -> dict[NestedKey, Any]:
        """The networks' entries of the next state; what the batch lacks is left out.

        An entry that only the root holds is constant over the step and taken from there, unless it is the only
        observation of the actor. A recurrent network's ``is_init`` also counts where the current step starts an
        episode, since the next states of two episodes are as unrelated as the current ones.

        Args:
            observed: what the actor reads.
            keys: what actor and critic read, but for what the actor writes.
            goes_on: False where NaN in the next state must not reach the networks, ``[*B]``, or None.
        """
        observed, entries = list(observed), {}
        has_next = any(self.values.get(under_next(key)) is not None for key in observed)
        for key in keys:
            value, root = self.values.get(under_next(key)), self.values.get(key)
            if key == "is_init" or key[-1] == "is_init":
                value = root if value is None else value if root is None else value | root
            elif value is None and (key not in observed or has_next):
                value = root
            if value is not None:
                entries[key] = self._hide(value.detach() if hasattr(value, "detach") else value, goes_on)
        return entries

    def not_finite(self, what: str) -> BatchError:
        """The error for a loss or input that is NaN or infinite: the entries to blame, or the networks."""
        blamed = []
        for key, value in self.values.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                blamed.append(f"{key!r} ({int((~value.isfinite()).sum())} of {value.numel()} values)")
        if blamed:
            return BatchError(f"{what} is not finite, because the batch holds NaN or inf in {', '.join(blamed)}.")
        return BatchError(
            f"{what} is not finite although every entry of the batch is: the networks' parameters have diverged "
            f"or overflow. Lower the learning rate, scale the rewards, or clip the gradients."
        )

"""From a sampled batch to what the terms need: checked entries, masks, the next state's inputs, the priority."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
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


def entry(owner: str, batch: TensorDictBase, key: NestedKey, reader: str) -> Tensor:
    """The entry, or an error that names it, who reads it, and the close names there are."""
    value = batch.get(key, None)
    if value is None:
        raise checks.missing_key(owner, batch, key, reader)
    return value


def find_steps(owner: str, batch: TensorDictBase, keys: Any) -> Tensor | None:
    """The number of steps to the next observation, from the root or from the next state."""
    key = keys.steps_to_next_obs
    steps = batch.get(key, None)
    steps = batch.get(under_next(key), None) if steps is None else steps
    return None if steps is None else checks.number(owner, key, steps)


def mask_keys(mask_key: NestedKey | None) -> tuple[NestedKey, ...]:
    """The masks that a loss looks for: TorchRL's own for ``"auto"``."""
    return () if mask_key is None else AUTO_LOSS_MASK_KEYS if mask_key == "auto" else (mask_key,)


def read_transition(owner: str, batch: TensorDictBase, keys: Any, dtype: torch.dtype) -> Transition:
    """Reward in ``dtype``, flags as bool, all broadcast over the agents of the reward."""
    reward_key = under_next(keys.reward)
    reward = checks.number(
        owner, reward_key, entry(owner, batch, reward_key, f"the reward of set_keys(reward={keys.reward!r})")
    )
    flags = {}
    for name in ("done", "terminated"):
        key = under_next(getattr(keys, name))
        value = entry(owner, batch, key, f"the flag of set_keys({name}={getattr(keys, name)!r})")
        value = checks.flag(owner, key, value)
        flags[name] = checks.like_reward(owner, key, value, reward_key, reward)
    steps = find_steps(owner, batch, keys)
    if steps is not None:
        if steps.shape == reward.shape[:-1]:
            steps = steps.unsqueeze(-1)
        steps = checks.like_reward(owner, keys.steps_to_next_obs, steps, reward_key, reward)
    return Transition(reward.to(dtype), **flags, steps=steps)


def read_mask(owner: str, batch: TensorDictBase, mask_key: NestedKey | None) -> Tensor | None:
    """True where a sample counts, ``[*B]`` or ``[*B, 1]``; None if nothing is masked."""
    mask = None
    for key in mask_keys(mask_key):
        value = batch.get(key, None)
        if value is None and mask_key != "auto":
            raise checks.missing_key(owner, batch, key, "the mask of loss_mask_key")
        if value is not None:
            value = checks.flag(owner, key, value)
            value = (
                checks.per_sample(owner, key, value, value.new_empty(batch.shape))
                if value.ndim <= batch.ndim + 1
                else value
            )
            mask = value if mask is None else mask & value
    return mask


def hide(value: Any, counts: Tensor | None) -> Any:
    """Replace NaN and inf by 0 where nothing counts: ``0 * nan`` would reach the gradients of what does.

    Args:
        value: ``[*B, *F]``; what is not floating point comes back as it is.
        counts: True where a sample counts, ``[*B]``, or None for everywhere.
    """
    if counts is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    counts = counts.reshape(*counts.shape, *(1,) * (value.ndim - counts.ndim))
    return torch.where(counts | value.isfinite(), value, 0.0)


def rows(mask: Tensor | None, batch: TensorDictBase) -> Tensor | None:
    """A mask with agents, ``[*B, n_agents, 1]``, as one for whole samples, ``[*B]``: any agent counts."""
    return mask if mask is None or mask.ndim == batch.ndim else mask.flatten(batch.ndim).any(-1)


def samples(value: Tensor, batch: TensorDictBase) -> Tensor:
    """Values ``[*B, 1]`` as per-sample values ``[*B]``; agents stay."""
    return value.squeeze(-1) if value.ndim > batch.ndim else value


def current_inputs(owner: str, batch: TensorDictBase, keys: Iterable[NestedKey], counts: Tensor | None) -> TensorDict:
    """The networks' entries of the current state, detached, in a TensorDict of their own."""
    inputs = {key: hide(entry(owner, batch, key, "an input of the networks").detach(), counts) for key in keys}
    return TensorDict(inputs, batch_size=batch.batch_size)


def next_inputs(
    owner: str,
    batch: TensorDictBase,
    observed: Collection[NestedKey],
    keys: Iterable[NestedKey],
    counts: Tensor | None,
) -> TensorDict:
    """The networks' entries of the next state.

    An entry that only the root holds is constant over the step and taken from there, but not the only observation of
    the actor. A recurrent network's ``is_init`` also counts where the current step starts an episode, since the next
    states of two episodes are as unrelated as the current ones.

    Args:
        owner: the loss's name, for messages.
        batch: the batch.
        observed: what the actor reads.
        keys: what actor and critic read, but for what the actor writes.
        counts: True where the next state is used, ``[*B]``, or None for everywhere.
    """
    inputs = {}
    for key in keys:
        value, root = batch.get(under_next(key), None), batch.get(key, None)
        if key == "is_init" or key[-1] == "is_init":
            value = root if value is None else value if root is None else value | root
        elif value is None and (key not in observed or any(under_next(k) in batch.keys(True) for k in observed)):
            value = root
        if value is None:
            raise checks.missing_key(owner, batch, under_next(key), "an input of the target networks")
        inputs[key] = hide(value, counts)
    return TensorDict(inputs, batch_size=batch.batch_size)


def write_priority(owner: str, batch: TensorDictBase, key: NestedKey, priority: Tensor) -> None:
    """Write the priority into the batch, locked or not, over whatever the entry held."""
    if not batch.is_locked:
        batch.set(key, priority)
        return
    try:
        batch.unlock_()
    except RuntimeError as error:
        raise checks.BatchError(
            f"{owner}: the batch is part of a larger locked TensorDict, so the priority {key!r} cannot be written. "
            f"Pass batch.copy(), or unlock the whole."
        ) from error
    try:
        batch.set(key, priority)
    finally:
        batch.lock_()


def check_device(owner: str, batch: TensorDictBase, keys: Iterable[NestedKey], device: torch.device | None) -> None:
    """Raise unless every entry that there is lies on the networks' device."""
    for key in keys:
        value = batch.get(key, None)
        if isinstance(value, Tensor) and device is not None and value.device != device:
            raise checks.BatchError(
                f"{owner}: {key!r} is on {value.device}, the networks are on {device}; move the batch with "
                f"batch.to({str(device)!r}), or the loss with loss.to({str(value.device)!r})."
            )


def check_inputs(owner: str, batch: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Raise unless each entry that the networks read has the shape and dtype of its counterpart in the next state."""
    for key in keys:
        value, later = batch.get(key, None), batch.get(under_next(key), None)
        if value is None or later is None:
            continue
        if checks.shape_and_dtype(value) != checks.shape_and_dtype(later):
            raise checks.BatchError(
                f"{owner}: an entry and its next must have one shape and dtype: {key!r} {checks.describe(value)} and "
                f"{under_next(key)!r} {checks.describe(later)}."
            )

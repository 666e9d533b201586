"""How a TensorDict module is run on the entries of a batch."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import Actor, SafeModule, SafeSequential, ValueOperator

from torchrl_ddpg import checks
from torchrl_ddpg.losses.twins import own_class

Entries = dict[NestedKey, Any]

# A subclass may write in another way, so the classes themselves and no others.
_PLAIN = (TensorDictModule, SafeModule, Actor, ValueOperator)
_PLAIN_SEQUENCES = (TensorDictSequential, SafeSequential)


class AbsentError(Exception):
    """A network reads an entry that it was not given; ``args[0]`` is its key."""


def _has_hooks(module: nn.Module) -> bool:
    # torch.nn has no public question for hooks.
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling ``module.module`` on the entries does all that calling the TensorDictModule does."""
    return (
        own_class(module) in _PLAIN
        and module.method is None
        and not module.method_kwargs
        and not module._kwargs  # in_keys given as a dict; no public name says so
        and not _has_hooks(module)
    )


def _is_plain_sequence(module: nn.Module) -> bool:
    """Whether running the parts one after the other does all that calling the TensorDictSequential does."""
    return own_class(module) in _PLAIN_SEQUENCES and not module.partial_tolerant and not _has_hooks(module)


def _run_without_some(module: TensorDictModule, entries: Entries) -> Any:
    """What the wrapped module gives with None for what is absent, where its arguments default to None."""
    absent = {index: key for index, key in enumerate(module.in_keys) if key not in entries and key != "_"}
    called = module.module.forward if isinstance(module.module, nn.Module) else module.module
    accepted = list(inspect.signature(called).parameters.values()) if absent else []
    for index, key in absent.items():
        if module.strict or index >= len(accepted) or accepted[index].default is not None:
            raise AbsentError(key)
    if absent:
        checks.warn(
            f"the batch has no entry {', '.join(map(repr, absent.values()))}, so {type(module.module).__name__} gets "
            f"None for it. If that is meant, leave it out of in_keys."
        )
    return module.module(*(entries.get(key) for key in module.in_keys))


def run(module: TensorDictModuleBase, entries: Entries, shape: torch.Size) -> Entries:
    """Run a TensorDict module on a dict of entries and add what it writes.

    The wrapped module of a plain ``TensorDictModule`` is called directly, which saves the TensorDict around it: more
    than half of the time of a small network. All else gets a TensorDict.

    Args:
        module: the module.
        entries: what it reads, by key; extended in place.
        shape: the batch size, ``[*B]``.

    Raises:
        AbsentError: if an entry that a plain module reads is absent, and it cannot do with None.
    """
    if not torch.compiler.is_compiling():
        if _is_plain_sequence(module):
            parts = module.module
            for part in parts.values() if isinstance(parts, nn.ModuleDict) else parts:
                run(part, entries, shape)
            return entries
        if _is_plain(module):
            try:
                arguments = [entries[key] for key in module.in_keys]
            except KeyError:
                written = _run_without_some(module, entries)
            else:
                written = module.module(*arguments)
            names = module.out_keys_source
            written = (written,) if isinstance(written, Tensor) else written
            if isinstance(written, tuple) and len(written) == len(names):
                entries.update(zip(names, written, strict=True))
                return entries
            if isinstance(written, TensorDictBase):
                whole = all(key in written for key in names)
                written = {key: written.get(key) for key in names} if whole else {names[0]: written}
            if isinstance(written, dict):  # not run again: batch statistics and random numbers would move twice
                entries.update({key: written.get(key) for key in names})
                return entries
    output = module(TensorDict(entries, batch_size=shape))
    entries.update({key: output.get(key, None) for key in module.out_keys})
    return entries


def run_with(module: TensorDictModuleBase, leaves: dict[str, Tensor], entries: Entries, shape: torch.Size) -> Entries:
    """Run a module as :func:`run` does while ``leaves``, by their dotted names, stand in for its own."""
    output = torch.func.functional_call(module, leaves, (TensorDict(entries, batch_size=shape),), tie_weights=False)
    return {**entries, **{key: output.get(key, None) for key in module.out_keys}}

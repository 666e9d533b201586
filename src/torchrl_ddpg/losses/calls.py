"""How a TensorDict module is run on the entries of a batch, and in which modes a loss is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.envs.utils import set_exploration_type
from torchrl.modules import Actor, SafeModule, SafeSequential, ValueOperator, set_recurrent_mode

Entries = dict[NestedKey, Any]

# A subclass may write in another way, so the classes themselves and no others.
_PLAIN = (TensorDictModule, SafeModule, Actor, ValueOperator)
_PLAIN_SEQUENCES = (TensorDictSequential, SafeSequential)


def in_loss_modes(method: Callable) -> Callable:
    """Run a public method with deterministic actions and recurrent networks over whole sequences."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with set_exploration_type(self.deterministic_sampling_mode), set_recurrent_mode(True):
            return method(self, *args, **kwargs)

    return call


def _is_plain(module: nn.Module) -> bool:
    """Whether calling ``module.module`` on the entries does all that calling the TensorDictModule does."""
    return (
        type(module) in _PLAIN
        and module.method is None
        and not module.method_kwargs
        and not module._kwargs  # in_keys given as a dict; no public name says so
        and not _has_hooks(module)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_plain_sequence(module: nn.Module) -> bool:
    """Whether running the parts one after the other does all that calling the TensorDictSequential does."""
    return type(module) in _PLAIN_SEQUENCES and not module.partial_tolerant and not _has_hooks(module)


def run(module: TensorDictModuleBase, entries: Entries, shape: torch.Size) -> Entries:
    """Run a TensorDict module on a dict of entries and add what it writes.

    The wrapped module of a plain ``TensorDictModule`` is called directly, which saves the TensorDict around it: more
    than half of the time of a small network. All else gets a TensorDict.

    Args:
        module: the module.
        entries: what it reads, by key; extended in place.
        shape: the batch size, ``[*B]``.
    """
    if not torch.compiler.is_compiling():
        if _is_plain_sequence(module):
            parts = module.module
            for part in parts.values() if isinstance(parts, nn.ModuleDict) else parts:
                run(part, entries, shape)
            return entries
        if _is_plain(module):
            written = module.module(*[entries.get(key) for key in module.in_keys])
            written = (written,) if isinstance(written, Tensor) else written
            if isinstance(written, tuple) and len(written) == len(module.out_keys_source):
                entries.update(zip(module.out_keys_source, written, strict=True))
                return entries
            if isinstance(written, dict):  # not run again: batch statistics and random numbers would move twice
                entries.update({key: written.get(key) for key in module.out_keys_source})
                return entries
    output = module(TensorDict(entries, batch_size=shape))
    entries.update({key: output.get(key, None) for key in module.out_keys})
    return entries


def run_detached(
    module: TensorDictModuleBase, parameters: Iterable[nn.Parameter], entries: Entries, shape: torch.Size
) -> Entries:
    """Run a module as :func:`run` does, without gradient to ``parameters``."""
    if torch.compiler.is_compiling():  # requires_grad_ cannot be traced; detached stand-ins cost nothing there
        held = {id(parameter) for parameter in parameters}
        detached = {name: p.detach() for name, p in module.named_parameters() if id(p) in held}
        output = torch.func.functional_call(module, detached, (TensorDict(entries, batch_size=shape),))
        return {**entries, **{key: output.get(key, None) for key in module.out_keys}}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        return run(module, entries, shape)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

"""A network's parameters and buffers as TorchRL presents them, and their targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictParams
from torch import Tensor, nn


def named_leaves(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its dotted name, shared ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def live_params(module: nn.Module, held_out: Iterable[nn.Parameter] = ()) -> TensorDictParams:
    """The module's parameters and buffers as TorchRL presents them; those in ``held_out`` come once and detached."""
    params = TensorDict.from_module(module, as_module=True)
    held: dict[int, Tensor | None] = {id(parameter): parameter.data for parameter in held_out}
    for key, value in list(params.items(True, True)):
        if value.is_meta:  # nothing that could be trained
            params.set(key, value.data)
        elif id(value) in held:
            shown = held[id(value)]
            held[id(value)] = None  # further critics share it
            params.del_(key) if shown is None else params.set(key, shown)
    return params


def target_params(params: TensorDictParams, values: TensorDictParams | None = None) -> TensorDictParams:
    """Buffers, so that nothing can be trained, that start as copies of ``params`` or take their ``values``.

    What ``params`` holds under several names is one target.
    """
    made: dict[int, Tensor] = {}

    def target(leaf: Tensor, value: Tensor | None = None) -> Tensor:
        value = nn.Buffer(leaf.data.clone()) if value is None else value
        return made.setdefault(id(leaf), value)

    others = () if values is None else (values,)
    return TensorDictParams(params.apply(target, *others, filter_empty=False), no_convert=True)


def named(params: TensorDictParams) -> dict[str, Tensor]:
    """The leaves by their dotted names."""
    return {key if isinstance(key, str) else ".".join(key): leaf for key, leaf in params.items(True, True)}


def nested(params: Any) -> Iterator[Any]:
    """A TensorDict and those that it holds."""
    yield params
    for value in params.values():
        if isinstance(value, TensorDict):
            yield from nested(value)


def fingerprint(tensor: Tensor) -> float:
    """A number that changes when the values change or change places."""
    if tensor.is_meta:  # a shape that a network keeps, without values
        return 0.0
    flat = tensor.detach().cpu().double().nan_to_num().flatten()
    return float(flat @ torch.linspace(1, 2, len(flat), dtype=torch.float64))

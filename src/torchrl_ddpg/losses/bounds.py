"""The range of the action, from a spec or a pair of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec


def read(
    key: NestedKey, action_spec: TensorSpec | None, bounds: Sequence[float | Tensor] | None
) -> tuple[Tensor | None, Tensor | None]:
    """Lowest and highest action.

    Args:
        key: the action's entry, looked up in a composite spec.
        action_spec: a ``Bounded`` spec of one action ``[*A]`` or of a batch of them, or a ``Composite`` with it.
        bounds: ``(low, high)``, numbers or tensors that broadcast to the action.

    Returns:
        Two float tensors, or two None if neither is given.

    Raises:
        ValueError: if both are given, the spec has no bounds, or a low exceeds its high.
        TypeError: if ``bounds`` is not a pair.
    """
    if action_spec is None and bounds is None:
        return None, None
    if action_spec is not None and bounds is not None:
        raise ValueError("action_spec and bounds are both given; accepted: one of them, but not both.")
    if action_spec is not None:
        low, high = _from_spec(key, action_spec)
    else:
        try:
            low, high = (torch.as_tensor(bound, dtype=torch.get_default_dtype()) for bound in bounds or ())
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"bounds is {bounds!r}; accepted: a pair (low, high) of numbers or tensors.") from error
    if not bool((low <= high).all()):
        raise ValueError(f"the lowest action {low.tolist()} exceeds the highest {high.tolist()} somewhere.")
    return _unbatched(low, high)


SATURATED = 0.99  # of half the range from its middle; there tanh passes 2 % of its steepest gradient on


def saturation(low: Tensor | None, high: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The middle of the range, and the distance from it at which an action counts as saturated.

    tanh comes near to a bound and hardly ever reaches it.
    """
    return (None, None) if low is None or high is None else ((low + high) / 2, SATURATED * (high - low) / 2)


def _unbatched(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of one action, with a dimension for agents whose ranges differ; environments have the same ranges."""
    low, high = torch.broadcast_tensors(low, high)
    for dim in reversed(range(low.ndim - 1)):
        if all(bool((bound == bound.narrow(dim, 0, 1)).all()) for bound in (low, high)):
            low, high = low.select(dim, 0), high.select(dim, 0)
    return low.clone(), high.clone()


def _from_spec(key: NestedKey, spec: TensorSpec) -> tuple[Tensor, Tensor]:
    if isinstance(spec, Composite):
        if key not in spec.keys(True, True):
            names = ", ".join(map(repr, spec.keys(True, True)))
            raise ValueError(f"action_spec has no entry {key!r}, the action; it has: {names}.")
        spec = spec[key]
    if not isinstance(spec, Bounded):
        raise ValueError(f"action_spec is of type {type(spec).__name__}; accepted: a Bounded spec, or bounds=.")
    return spec.space.low.detach(), spec.space.high.detach()

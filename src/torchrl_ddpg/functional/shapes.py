"""Nothing is broadcast in silence."""

from __future__ import annotations

from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` that gives every name and shape unless all shapes are equal."""
    first = next(iter(tensors.values())).shape
    for tensor in tensors.values():
        if tensor.shape != first:
            listed = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise ValueError(f"expected equal shapes, nothing is broadcast: {listed}.")

"""Nothing is broadcast in silence."""

from __future__ import annotations

from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` that gives every name and shape unless all shapes are equal."""
    shapes = [tensor.shape for tensor in tensors.values()]
    if any(shape != shapes[0] for shape in shapes[1:]):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in zip(tensors, shapes, strict=True))
        raise ValueError(f"expected equal shapes, nothing is broadcast: {listed}.")

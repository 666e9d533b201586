"""How targets follow their sources."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def polyak_update_(targets: Sequence[Tensor], sources: Sequence[Tensor], tau: float) -> None:
    r"""Move targets towards their sources, in place: :math:`\theta' \leftarrow \tau \theta + (1 - \tau) \theta'`.

    Args:
        targets: the target parameters :math:`\theta'`, changed in place.
        sources: the online parameters :math:`\theta`, shapes as in ``targets``.
        tau: weight of the online parameters, in (0, 1]; 1 copies.

    Raises:
        ValueError: if ``tau`` is not in (0, 1], or there are not as many targets as sources.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, algorithm 1, last step; Polyak & Juditsky 1992.

    Examples:
        >>> target = torch.zeros(1)
        >>> polyak_update_([target], [torch.ones(1)], tau=0.25)
        >>> target.item()
        0.25
    """
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau is {tau!r}; accepted: a number in (0, 1].")
    if len(targets) != len(sources):
        raise ValueError(f"there are {len(targets)} targets and {len(sources)} sources; accepted: as many.")
    if targets:
        torch._foreach_lerp_(list(targets), list(sources), tau)


@torch.no_grad()
def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy sources into targets, in place.

    Args:
        targets: tensors of any dtype, changed in place.
        sources: what is copied, of any dtype, shapes as in ``targets``.

    Raises:
        ValueError: if there are not as many targets as sources.
    """
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)

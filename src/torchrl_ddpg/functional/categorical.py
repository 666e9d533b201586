"""Distributions over a fixed set of returns."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_ddpg.functional.shapes import same_shape


def categorical_projection(target_support: Tensor, probabilities: Tensor, support: Tensor) -> Tensor:
    r"""Projection :math:`\Phi` of a distribution onto a fixed support; each atom's mass goes to its two neighbours.

    :math:`(\Phi m)_i = \sum_j \left[1 - \frac{|\mathrm{clip}(z'_j) - z_i|}{\Delta z}\right]_0^1 p_j`; mass beyond
    either end goes to that end.

    Args:
        target_support: atoms :math:`z'_j = r + \gamma^n (1 - d) z_j`, ``[*B, K]``, reward units.
        probabilities: their mass :math:`p_j`, ``[*B, K]``, sums to 1.
        support: atoms :math:`z_i`, ``[M]``, equally spaced and increasing, reward units.

    Returns:
        ``[*B, M]``, sums to 1.

    Raises:
        ValueError: if ``target_support`` and ``probabilities`` differ in shape.

    References:
        Bellemare et al. 2017, arXiv:1707.06887, eq. 7.

    Examples:
        >>> categorical_projection(torch.tensor([[0.25]]), torch.tensor([[1.0]]), torch.tensor([0.0, 1.0])).tolist()
        [[0.75, 0.25]]
    """
    same_shape(target_support=target_support, probabilities=probabilities)
    spacing = (support[-1] - support[0]) / (len(support) - 1)
    finite = target_support - target_support  # 0, or NaN for an infinite return, which clipping would hide
    clipped = (target_support.clamp(support[0], support[-1]) + finite).unsqueeze(-2)
    nearness = (1 - (clipped - support.unsqueeze(-1)).abs() / spacing).clamp(0, 1)
    return (nearness * probabilities.unsqueeze(-2)).sum(-1)


def categorical_td_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Cross entropy :math:`-\sum_i m_i \log p_i` between the projected target and the predicted distribution.

    Args:
        logits: the critic's, ``[*B, M]``, without unit; gradient flows to them.
        target: :math:`m`, ``[*B, M]``, sums to 1; no gradient flows to it.

    Returns:
        ``[*B]``, in nats.

    Raises:
        ValueError: if the shapes differ.

    References:
        Bellemare et al. 2017, arXiv:1707.06887, algorithm 1, last line.

    Examples:
        >>> categorical_td_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()
        0.6931471824645996
    """
    same_shape(logits=logits, target=target)
    return -(target.detach() * logits.log_softmax(-1)).sum(-1)


def expected_value(probabilities: Tensor, support: Tensor) -> Tensor:
    r"""Mean :math:`\sum_i p_i z_i` of a categorical distribution.

    Args:
        probabilities: ``[*B, M]``, sums to 1.
        support: :math:`z`, ``[M]``, reward units.

    Returns:
        ``[*B, 1]``, reward units.

    Examples:
        >>> expected_value(torch.tensor([[0.5, 0.5]]), torch.tensor([0.0, 3.0])).tolist()
        [[1.5]]
    """
    return (probabilities * support).sum(-1, keepdim=True)


def lower_mean_distribution(probabilities: Tensor, support: Tensor) -> Tensor:
    r"""Of several critics' distributions, sample by sample the one with the lowest mean.

    Args:
        probabilities: ``[N, *B, M]``, each sums to 1.
        support: :math:`z`, ``[M]``, reward units.

    Returns:
        ``[*B, M]``.

    References:
        Seo et al. 2025 (FastTD3), arXiv:2505.22642; Fujimoto et al. 2018 for the minimum.

    Examples:
        >>> lower_mean_distribution(torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]), torch.tensor([0.0, 1.0])).tolist()
        [[1.0, 0.0]]
    """
    lowest = expected_value(probabilities, support).argmin(0, keepdim=True)
    return torch.take_along_dim(probabilities, lowest, 0).squeeze(0)

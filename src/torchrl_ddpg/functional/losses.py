"""Losses of critic and actor, their reduction, and their metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_ddpg.functional.shapes import same_shape

LOSS_FUNCTIONS = {
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
}
"""The distances that ``loss_function`` names, as PyTorch's functions of prediction and target."""
REDUCTIONS = ("none", "mean", "sum")
"""What ``reduction`` accepts: losses per sample, their mean, their sum."""


def value_loss(prediction: Tensor, target: Tensor, loss_function: str = "l2") -> Tensor:
    r"""Distance between :math:`Q(s, a)` and its target, element by element.

    Args:
        prediction: :math:`Q(s, a)`, ``[*B]``, reward units; gradient flows to it.
        target: :math:`y`, ``[*B]``, reward units; no gradient flows to it.
        loss_function: ``"l2"`` (the paper's), ``"l1"`` or ``"smooth_l1"``.

    Returns:
        ``[*B]``, not reduced, in reward units or for ``"l2"`` their squares.

    Raises:
        ValueError: if the shapes differ or the loss function is unknown.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, eq. 4.

    Examples:
        >>> value_loss(torch.tensor([1.0]), torch.tensor([3.0])).item()
        4.0
    """
    if loss_function not in LOSS_FUNCTIONS:
        raise ValueError(f"loss_function is {loss_function!r}; accepted: {', '.join(LOSS_FUNCTIONS)}.")
    same_shape(prediction=prediction, target=target)
    return LOSS_FUNCTIONS[loss_function](prediction, target.detach(), reduction="none")


def behaviour_cloning_loss(
    value: Tensor, action: Tensor, batch_action: Tensor, alpha: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The actor's loss :math:`\overline{(\mu(s) - a)^2} - \lambda Q(s, \mu(s))`.

    :math:`\lambda = \alpha / \overline{|Q|}` makes the weight of the value independent of its scale.

    Args:
        value: :math:`Q(s, \mu(s))`, ``[*B]``, reward units.
        action: :math:`\mu(s)`, ``[*B, A]``, in the action's units; of agents that share a value ``[*B, n_agents, A]``.
        batch_action: the action that was taken, shape of ``action``, in the action's units.
        alpha: weight of the value against the imitation, positive.
        mask: True where a sample counts, ``[*B]``, bool.

    Returns:
        The per-sample loss ``[*B]``, the per-sample imitation loss ``[*B]``, and :math:`\lambda`, a scalar without
        gradient.

    Raises:
        ValueError: if the actions differ in shape, or there are not as many of them as values.

    References:
        Fujimoto & Gu 2021, arXiv:2106.06860, eq. 3 to 5.

    Examples:
        >>> loss, _, lmbda = behaviour_cloning_loss(torch.tensor([4.0]), torch.ones(1, 2), torch.zeros(1, 2), alpha=2.0)
        >>> loss.item(), lmbda.item()
        (-1.0, 0.5)
    """
    same_shape(action=action, batch_action=batch_action)
    squares = (action - batch_action).square()
    imitation = squares.flatten(min(value.ndim, squares.ndim - 1)).mean(-1)
    same_shape(value=value, imitation=imitation)
    lmbda = alpha * value_weight(value, mask)
    return imitation - lmbda * value, imitation, lmbda


def value_weight(value: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The weight :math:`1 / \overline{|Q|}` that makes a loss independent of the scale of the value.

    Args:
        value: :math:`Q(s, \mu(s))`, ``[*B]``, reward units.
        mask: True where a sample counts, ``[*B]``, bool.

    Returns:
        A scalar without gradient.

    References:
        Fujimoto & Gu 2021, arXiv:2106.06860, eq. 5.

    Examples:
        >>> value_weight(torch.tensor([-1.0, 3.0])).item()
        0.5
    """
    return 1 / reduce(value.detach().abs(), mask=mask).clamp_min(1e-8)


def action_distance(action: Tensor, batch_action: Tensor, value: Tensor) -> Tensor:
    r"""The squared distance :math:`|a - \hat a|^2` of two actions, summed over their dimensions.

    Args:
        action: ``[*B, A]``, in the units that the distance is meant in.
        batch_action: the action that was taken, ``[*B, A]``, in the same units.
        value: what the distance is compared with, in reward units, ``[*B, 1]``: of agents that share one value, actions
            ``[*B, n_agents, A]`` are one action.

    Returns:
        Shape of ``value``.

    Raises:
        ValueError: if the actions differ in shape.

    References:
        Tarasov et al. 2023, arXiv:2305.09836, section 3.

    Examples:
        >>> action_distance(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 1)).tolist()
        [[2.0]]
    """
    same_shape(action=action, batch_action=batch_action)
    return (action - batch_action).square().flatten(value.ndim - 1).sum(-1, keepdim=True)


def reduce(
    loss: Tensor, reduction: str = "mean", *, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    r"""Reduce per-sample losses: :math:`\frac{1}{N} \sum_i w_i \ell_i` over the N samples that the mask keeps.

    The mean is over samples, not over the sum of the weights, so a batch whose weights are all 0.1 moves the
    critic a tenth as far. What is masked is selected away, so a NaN there does not spread.

    Args:
        loss: per-sample losses, ``[*B]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the shape is kept, masked samples are 0).
        weight: importance weights, ``[*B]``.
        mask: True where a sample counts, ``[*B]``, bool.

    Returns:
        A scalar, or ``[*B]`` for ``"none"``. The mean of no samples is 0, without gradient to anything.

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.

    References:
        Schaul et al. 2016, arXiv:1511.05952, section 3.4.

    Examples:
        >>> reduce(torch.tensor([1.0, 3.0]), weight=torch.tensor([0.5, 0.5])).item()
        1.0
        >>> reduce(torch.tensor([1.0, float("nan")]), mask=torch.tensor([True, False])).item()
        1.0
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; accepted: {', '.join(REDUCTIONS)}.")
    if weight is not None:
        same_shape(loss=loss, weight=weight)
        loss = loss * weight
    if mask is not None:
        same_shape(loss=loss, mask=mask)
        loss = torch.where(mask, loss, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if mask is not None:
        return loss.sum() / mask.sum().clamp_min(1)
    return loss.mean() if loss.numel() else loss.sum()


def mean_and_max(name: str, values: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Two metrics of per-sample values, detached scalars on the values' device.

    Args:
        name: the first metric's name; the second is ``name + "_max"``.
        values: ``[*B]``, in any unit, which the metrics keep.
        mask: True where a sample counts, ``[*B]``, bool.

    Returns:
        The mean and the maximum over the samples that count, scalars without gradient; NaN if there are none.

    Raises:
        ValueError: if ``values`` and ``mask`` differ in shape.

    Examples:
        >>> mean_and_max("q", torch.tensor([1.0, 3.0]))
        {'q': tensor(2.), 'q_max': tensor(3.)}
    """
    values = values.detach()
    if mask is None:
        mean = values.mean()
        return {name: mean, f"{name}_max": values.max() if values.numel() else mean}
    same_shape(values=values, mask=mask)
    mean = torch.where(mask, values, 0.0).sum() / mask.sum()
    largest = torch.where(mask, values, -torch.inf).max() if values.numel() else mean
    return {name: mean, f"{name}_max": torch.where(mean.isnan(), mean, largest)}

"""The equations: tensors in, tensors out, nothing but torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOSS_FUNCTIONS = {"l1": nn.functional.l1_loss, "l2": nn.functional.mse_loss, "smooth_l1": nn.functional.smooth_l1_loss}
REDUCTIONS = ("none", "mean", "sum")


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ValueError(f"expected equal shapes, nothing is broadcast: {listed}.")


def discount(gamma: float | Tensor, terminated: Tensor, steps: Tensor | None = None) -> Tensor:
    r"""Discount :math:`\gamma^n (1 - d)` of the value of the next state.

    Args:
        gamma: the discount rate, a scalar in [0, 1].
        terminated: whether the next state ends the episode, ``[*B, 1]``, bool.
        steps: number :math:`n` of steps up to the next state, ``[*B, 1]``; 1 everywhere by default.

    Returns:
        ``[*B, 1]``, in [0, 1].

    Raises:
        ValueError: if ``steps`` and ``terminated`` differ in shape.

    References:
        Sutton & Barto 2018, sections 3.4 and 7.1.

    Examples:
        >>> discount(0.9, torch.tensor([[False], [True]])).tolist()
        [[0.8999999761581421], [0.0]]
    """
    if steps is None:
        return torch.logical_not(terminated) * gamma
    _same_shape(terminated=terminated, steps=steps)
    return torch.logical_not(terminated) * gamma**steps


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    r"""Bootstrapped target :math:`y = r + \gamma^n (1 - d)\, Q'(s', \mu'(s'))`, detached.

    Args:
        reward: (n-step) reward, ``[*B, 1]``, in the environment's reward units.
        discount: :math:`\gamma^n (1 - d)`, ``[*B, 1]``, in [0, 1].
        next_value: value of the next state under the target networks, ``[*B, 1]``, reward units.

    Returns:
        ``[*B, 1]``, reward units, without gradient.

    Raises:
        ValueError: if the shapes differ; nothing is broadcast in silence.

    References:
        Lillicrap et al. 2016, arXiv:1509.02971, eq. 5.

    Examples:
        >>> td_target(torch.ones(2, 1), torch.tensor([[0.5], [0.0]]), torch.full((2, 1), 4.0)).tolist()
        [[3.0], [1.0]]
    """
    _same_shape(reward=reward, discount=discount, next_value=next_value)
    return torch.addcmul(reward, discount, next_value).detach()


def td_lambda_target(
    reward: Tensor, discount: Tensor, next_value: Tensor, done: Tensor, lmbda: float | Tensor, time_dim: int
) -> Tensor:
    r"""TD(:math:`\lambda`) target, detached.

    :math:`G_t = r_t + \gamma^n (1 - d_t) \left[(1 - \lambda) Q'_{t+1} + \lambda G_{t+1}\right]`, where
    :math:`Q'_{t+1}` stands for :math:`G_{t+1}` at the last step and wherever a trajectory ends.

    Args:
        reward: ``[*B, T, 1]``, in the environment's reward units.
        discount: :math:`\gamma^n (1 - d)`, shape of ``reward``, in [0, 1].
        next_value: value of the next state under the target networks, shape of ``reward``, reward units.
        done: end of a trajectory, shape of ``reward``, bool.
        lmbda: :math:`\lambda` in [0, 1]; 0 is TD(0), 1 is TD(1), the discounted sum of rewards up to the end.
        time_dim: the position of T.

    Returns:
        Shape of ``reward``, reward units, without gradient.

    Raises:
        ValueError: if the shapes differ; nothing is broadcast in silence.

    References:
        Sutton 1988; Sutton & Barto 2018, section 12.1, as a recursion over the steps of a batch.

    Examples:
        >>> r, v = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[10.0], [20.0]]])
        >>> half, going_on = torch.full_like(r, 0.5), torch.zeros_like(r, dtype=torch.bool)
        >>> td_lambda_target(r, half, v, going_on, lmbda=1.0, time_dim=1).tolist()
        [[[7.0], [12.0]]]
    """
    _same_shape(reward=reward, discount=discount, next_value=next_value, done=done)
    chained = discount * torch.logical_not(done) * lmbda
    bootstrapped = reward + (discount - chained) * next_value
    target = next_value.select(time_dim, -1)  # beyond the last step there is only its value
    targets = []
    for now, weight in zip(bootstrapped.unbind(time_dim)[::-1], chained.unbind(time_dim)[::-1], strict=True):
        target = torch.addcmul(now, weight, target)
        targets.append(target)
    return torch.stack(targets[::-1], time_dim).detach()


def td_error(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Signed temporal-difference error :math:`\delta = y - Q(s, a)`, detached.

    Args:
        prediction: :math:`Q(s, a)`, ``[*B]``, reward units.
        target: :math:`y`, ``[*B]``, reward units.

    Returns:
        ``[*B]``, reward units, without gradient.

    Raises:
        ValueError: if the shapes differ.

    References:
        Schaul et al. 2016, arXiv:1511.05952, algorithm 1, line 11.

    Examples:
        >>> td_error(torch.tensor([1.0]), torch.tensor([3.0])).item()
        2.0
    """
    _same_shape(prediction=prediction, target=target)
    return target.detach() - prediction.detach()


def value_loss(prediction: Tensor, target: Tensor, loss_function: str = "l2") -> Tensor:
    r"""Distance between :math:`Q(s, a)` and its target, element by element.

    Args:
        prediction: :math:`Q(s, a)`, ``[*B]``; gradient flows to it.
        target: :math:`y`, ``[*B]``; no gradient flows to it.
        loss_function: ``"l2"`` (the paper's), ``"l1"`` or ``"smooth_l1"``.

    Returns:
        ``[*B]``, not reduced.

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
    _same_shape(prediction=prediction, target=target)
    return LOSS_FUNCTIONS[loss_function](prediction, target.detach(), reduction="none")


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
        _same_shape(loss=loss, weight=weight)
        loss = loss * weight
    if mask is not None:
        _same_shape(loss=loss, mask=mask)
        loss = torch.where(mask, loss, 0.0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if mask is not None:
        return loss.sum() / mask.sum().clamp_min(1)
    return loss.mean() if loss.numel() else loss.sum()


@torch.no_grad()
def mean_and_max(name: str, values: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Two metrics of per-sample values, detached scalars on the values' device.

    Args:
        name: the first metric's name; the second is ``name + "_max"``.
        values: ``[*B]``.
        mask: True where a sample counts, ``[*B]``, bool.

    Returns:
        The mean and the maximum over the samples that count; NaN if there are none.

    Examples:
        >>> mean_and_max("q", torch.tensor([1.0, 3.0]))
        {'q': tensor(2.), 'q_max': tensor(3.)}
    """
    if mask is not None:
        _same_shape(values=values, mask=mask)
        total = torch.where(mask, values, 0.0).sum() / mask.sum()
        values = torch.where(mask, values, -torch.inf)
    else:
        total = values.mean()
    largest = values.max() if values.numel() else total
    return {name: total, f"{name}_max": torch.where(total.isnan(), total, largest)}


@torch.no_grad()
def polyak_update_(targets: Sequence[Tensor], sources: Sequence[Tensor], tau: float) -> None:
    r"""Move targets towards their sources, in place: :math:`\theta' \leftarrow \tau \theta + (1 - \tau) \theta'`.

    Args:
        targets: the target parameters :math:`\theta'`, changed in place.
        sources: the online parameters :math:`\theta`, shapes as in ``targets``.
        tau: weight of the online parameters, in (0, 1]; 1 copies.

    Raises:
        ValueError: if ``tau`` is not in (0, 1].

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
    if targets:
        torch._foreach_lerp_(list(targets), list(sources), tau)


@torch.no_grad()
def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy sources into targets, in place.

    Args:
        targets: tensors of any dtype, changed in place.
        sources: shapes as in ``targets``.
    """
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)

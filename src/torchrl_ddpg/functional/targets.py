"""Targets of the critic: discounts, bootstrapped returns, target actions, errors."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_ddpg.functional.shapes import same_shape


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
    if steps is not None:
        same_shape(terminated=terminated, steps=steps)
        gamma = gamma**steps
    return torch.where(terminated, 0.0, gamma)


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
    same_shape(reward=reward, discount=discount, next_value=next_value)
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
        lmbda: :math:`\lambda`, a scalar in [0, 1]; 0 is TD(0), 1 is TD(1), the discounted sum of rewards up to the end.
        time_dim: the position of T, an integer in [0, ndim).

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
    same_shape(reward=reward, discount=discount, next_value=next_value, done=done)
    if not reward.shape[time_dim]:
        return reward.detach()
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
    same_shape(prediction=prediction, target=target)
    return target.detach() - prediction.detach()


def clipped_double_q(next_values: Tensor) -> Tensor:
    r"""Clipped double-Q value :math:`\min_i Q'_i(s', a')`.

    Args:
        next_values: values of the next state under each target critic, ``[N, *B, 1]``, reward units.

    Returns:
        ``[*B, 1]``, reward units.

    References:
        Fujimoto et al. 2018, arXiv:1802.09477, eq. 10.

    Examples:
        >>> clipped_double_q(torch.tensor([[[1.0], [5.0]], [[2.0], [3.0]]])).tolist()
        [[1.0], [3.0]]
    """
    return next_values.amin(0)


def smooth_target_action(
    action: Tensor, noise: Tensor, low: Tensor, high: Tensor, *, policy_noise: float = 0.2, noise_clip: float = 0.5
) -> Tensor:
    r"""Smoothed target action :math:`\mathrm{clip}(\mu'(s') + h\,\mathrm{clip}(\sigma \epsilon, -c, c), l, u)`.

    :math:`h = (u - l) / 2` is half the action's range, so that the noise means the same whatever the range is.

    Args:
        action: :math:`\mu'(s')`, ``[*B, A]``, in the action's units.
        noise: :math:`\epsilon \sim N(0, 1)`, ``[*B, A]``.
        low: lowest action, broadcasts to ``[*B, A]``, in the action's units.
        high: highest action, broadcasts to ``[*B, A]``, in the action's units.
        policy_noise: :math:`\sigma`, standard deviation in units of half the range.
        noise_clip: :math:`c`, largest noise in units of half the range.

    Returns:
        ``[*B, A]``, within the bounds.

    Raises:
        ValueError: if ``action`` and ``noise`` differ in shape.

    References:
        Fujimoto et al. 2018, arXiv:1802.09477, eq. 14 and 15, for a range of -1 to 1.

    Examples:
        >>> smooth_target_action(torch.zeros(3), torch.tensor([1.0, 9.0, -9.0]), torch.tensor(-2.0), torch.tensor(2.0))
        tensor([ 0.4000,  1.0000, -1.0000])
    """
    same_shape(action=action, noise=noise)
    noise = (noise * policy_noise).clamp(-noise_clip, noise_clip)
    return torch.clamp(action + noise * ((high - low) / 2), low, high)

"""What data that was collected before needs for an offline loss."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_ddpg import checks
from torchrl_ddpg.batch import under_next
from torchrl_ddpg.checks import MissingKeyError


def with_next_actions(
    transitions: TensorDictBase,
    *,
    action: NestedKey = "action",
    done: NestedKey = "done",
    terminated: NestedKey = "terminated",
) -> TensorDictBase:
    r"""Add to every step of a dataset the action :math:`a'` that follows it, as :class:`ReBRACLoss` needs it.

    Where an episode has terminated, no action follows and none counts: it is 0. The last step of a trajectory that was
    cut off, by a time limit or by the end of the data, has a next state and no next action: it is left out.

    Args:
        transitions: ``[N]``, in time order, one trajectory after the other, not shuffled.
        action: the action's entry; the new one is the same under ``"next"``.
        done: the flag that under ``"next"`` is True at the last step of each trajectory.
        terminated: the flag that under ``"next"`` is True where the episode really ended.

    Returns:
        ``[M]`` with ``("next", action)``, M at most N; the transitions themselves are not changed.

    Raises:
        MissingKeyError: if one of the three entries is missing.
        ValueError: if there is more than one batch dimension, or the steps are not in time order.

    References:
        Tarasov et al. 2023, arXiv:2305.09836, section 3, for the use of next actions.

    Examples:
        >>> from tensordict import TensorDict
        >>> ends, flag = torch.tensor([[False], [False], [True]]), torch.zeros(3, 1, dtype=torch.bool)
        >>> data = TensorDict({"action": torch.tensor([[1.0], [2.0], [3.0]])}, [3])
        >>> data["next"] = TensorDict({"done": ends, "terminated": flag}, [3])
        >>> with_next_actions(data)["next", "action"].tolist()
        [[2.0], [3.0]]
    """
    try:
        if transitions.ndim != 1:
            raise ValueError(
                f"the transitions have the batch size {list(transitions.batch_size)}; accepted: [N], one trajectory "
                f"after the other. For rows [B, T] in time order: torch.cat([with_next_actions(row) for row in rows])."
            )
        taken, last, ended = (_entry(transitions, key) for key in (action, under_next(done), under_next(terminated)))
        last, ended = (flag.reshape(len(flag), -1).all(-1) for flag in (last, ended))
        last = last | (torch.arange(len(last), device=last.device) == len(last) - 1)
        _check_order(transitions, last, action)
    except Exception as error:
        checks.name_error("with_next_actions", error)
        raise
    following = taken.roll(-1, 0)
    following = torch.where(last.reshape(-1, *(1,) * (taken.ndim - 1)), torch.zeros_like(following), following)
    return transitions.copy().set(under_next(action), following)[~last | ended]


def _entry(transitions: TensorDictBase, key: NestedKey) -> Tensor:
    value = transitions.get(key, None)
    if value is None:
        raise MissingKeyError(f"the transitions have no entry {key!r}; name it with an argument of this function.")
    return value


def _check_order(transitions: TensorDictBase, last: Tensor, action: NestedKey) -> None:
    """Raise if at most of the steps the next state is not the state of the step after it."""
    goes_on = ~last[:-1]
    for key, value in transitions.items(True, True):
        later = transitions.get(under_next(key), None)
        is_state = isinstance(value, Tensor) and isinstance(later, Tensor) and value.dtype is not torch.bool
        if key == action or not is_state or not bool(goes_on.any()):
            continue
        agrees = torch.isclose(later[:-1], value[1:].to(later.dtype)).reshape(len(goes_on), -1).all(-1)[goes_on]
        if agrees.float().mean() < 0.5:
            raise ValueError(
                f"{under_next(key)!r} is not {key!r} of the step after it at {int((~agrees).sum())} of {len(agrees)} "
                f"steps; accepted: steps in time order, so call it before the data is shuffled."
            )

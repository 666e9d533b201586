"""An optimizer's step without the frame that ``torch.optim`` builds around the kernel of a fused Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim import optimizer as torch_optimizer

_STATE = ("exp_avg", "exp_avg_sq", "step")
_ONE = torch.ones((), device="cpu")


def step(optimizer: Optimizer) -> None:
    """Step the optimizer.

    On the CPU, grouping by device, profiler ranges and hooks that nobody set cost a fused Adam three times its kernel:
    an eighth of the update of a small network. The kernel is called directly where it does all that ``step()`` does.
    """
    if type(optimizer) is not Adam or torch.compiler.is_compiling() or not _step_is_its_own(optimizer):
        optimizer.step()
        return
    lists = [tensors for group in optimizer.param_groups if (tensors := _kernel_lists(group, optimizer.state))]
    if len(lists) < len(optimizer.param_groups):
        optimizer.step()
        return
    with torch.no_grad():
        for group, (parameters, gradients, averages, squares, steps) in zip(optimizer.param_groups, lists, strict=True):
            torch._foreach_add_(steps, [_ONE] * len(steps))  # a number would be made a tensor for each of them
            torch._fused_adam_(
                parameters,
                gradients,
                averages,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=group["maximize"],
            )


def _step_is_its_own(optimizer: Optimizer) -> bool:
    """Whether nobody hooks into ``step()`` or, as schedulers do, has put another in its place."""
    return not (
        "step" in vars(optimizer)
        or hasattr(optimizer, "grad_scale")  # a GradScaler's
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def _kernel_lists(group: dict[str, Any], state: dict[Tensor, dict[str, Tensor]]) -> list[list[Tensor]] | None:
    """Parameters, gradients, both averages and step counts; None if the kernel alone would not do for the group."""
    parameters = group["params"]
    if not group["fused"] or group["amsgrad"] or group["decoupled_weight_decay"] or not parameters:
        return None
    if any(isinstance(scalar, Tensor) for scalar in (group["lr"], *group["betas"])):
        return None
    dtype, gradients, states = parameters[0].dtype, [], []
    for parameter in parameters:
        gradient, kept = parameter.grad, state.get(parameter)
        # The first step, which makes the state, is not for the kernel.
        if not kept or gradient is None or gradient.is_sparse or parameter.dtype != dtype or not parameter.is_cpu:
            return None
        gradients.append(gradient)
        states.append(kept)
    return [parameters, gradients, *([kept[name] for kept in states] for name in _STATE)]

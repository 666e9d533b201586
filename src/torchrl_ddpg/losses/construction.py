"""What the construction of a loss asks of its class and its networks, and how one critic becomes several."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.objectives import LossModule

from torchrl_ddpg import checks


def checked(name: str, module: Any) -> nn.Module:
    """Return ``module`` if it is an initialised TensorDict module, or raise."""
    if not isinstance(module, nn.Module) or not hasattr(module, "in_keys") or not hasattr(module, "out_keys"):
        raise TypeError(
            f"{name} is of type {type(module).__name__}; accepted: a TensorDictModule, which has in_keys "
            f"and out_keys. Wrap it: TensorDictModule(module, in_keys=[...], out_keys=[...])."
        )
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise TypeError(
            f"{name} holds a TorchScript module, whose parameters cannot be exchanged for the targets; accepted: the "
            f"Python module that it was made from, with UpdateStep(compile=True) for speed."
        )
    if any(nn.parameter.is_lazy(p) for p in [*module.parameters(), *module.buffers()]):
        raise ValueError(
            f"{name} has lazy layers that have not seen data yet, so its target network cannot be made. "
            f"Run it once on a batch before building the loss: {name}(batch)."
        )
    if next(module.parameters(), None) is None:
        raise ValueError(f"{name} has no parameters; accepted: a network that can be trained.")
    return module


class LossClass(type(LossModule)):  # type: ignore[misc]
    """Errors of construction begin with the name of the class that the user called.

    And TorchRL's metaclass wraps ``forward`` once more at every level of inheritance, and each method whose name ends
    in "loss", to enter the modes of a loss, which the terms here enter by themselves.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> None:
        super().__init__(name, bases, attributes)
        ours = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        for method in [key for key in vars(cls) if key == "forward" or key.endswith("loss")]:
            if method not in attributes:
                delattr(cls, method)
            elif ours:
                setattr(cls, method, attributes[method])

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's, which ``help`` and editors show; without it they show that of ``__call__`` below."""
        signature = inspect.signature(cls.__init__, eval_str=True)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build the loss."""
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            checks.name_error(cls.__name__, error)
            raise


def all_critics(
    name: str,
    critic: TensorDictModuleBase | Sequence[TensorDictModuleBase],
    num_critics: tuple[str, int] | None,
    actor: nn.Module,
) -> nn.Module:
    """The critic, or with ``num_critics``, an option's name and value, an ``nn.ModuleList`` of that many.

    Raises:
        TypeError: if one is not a TensorDict module.
        ValueError: if a list has another length, or a single critic cannot be initialised anew.
    """
    if num_critics is None:
        return checked(name, critic)
    option, count = num_critics
    if not isinstance(critic, (list, tuple, nn.ModuleList)):
        return _ensemble(name, checked(name, critic), count, actor.parameters())
    if len(critic) != count:
        raise ValueError(f"{name} is a list of {len(critic)}, {option} is {count}; accepted: the same number.")
    return nn.ModuleList([checked(f"{name}[{index}]", one) for index, one in enumerate(critic)])


def _ensemble(name: str, critic: TensorDictModuleBase, count: int, kept: Iterable[nn.Parameter]) -> nn.ModuleList:
    """The critic itself and copies of it that their layers' own ``reset_parameters`` initialise anew.

    Args:
        name: what the loss calls it, for a warning.
        critic: the first critic, which keeps its parameters.
        count: how many critics in all.
        kept: parameters that the critic shares with the actor; the copies share them too.

    Raises:
        ValueError: if a copy has a layer that cannot be initialised anew, so that it would equal the first.
    """
    critics = [critic]
    shared = {id(parameter): parameter for parameter in kept}
    before = {key: parameter.detach().clone() for key, parameter in shared.items()}
    for _ in range(count - 1):
        other = copy.deepcopy(critic, dict(shared))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensordict's, that nothing was reset: the error below says it better
            other.reset_parameters_recursive()
        for key, parameter in shared.items():
            parameter.data.copy_(before[key])
        own = [(p, q) for p, q in zip(critic.parameters(), other.parameters(), strict=True) if p is not q]
        if own and all(torch.equal(p, q) for p, q in own):
            raise ValueError(
                f"no layer of the critic draws new parameters in reset_parameters, so {count} copies would be equal; "
                f"accepted: a list of {count} critics, each with its own initialisation."
            )
        equal = _still_equal(critic, other)
        if equal and len(critics) == 1:
            checks.warn(
                f"{name}: all {count} critics start with the same {', '.join(equal)}: they are made of one, and not "
                f"all of its layers have a reset_parameters. Pass a list of {count} critics, or give those layers one."
            )
        critics.append(other)
    return nn.ModuleList(critics)


def _still_equal(critic: nn.Module, other: nn.Module) -> list[str]:
    """The names of parameters that a copy of a critic has not drawn anew; frozen ones and constants do not count."""
    pairs = [(name, p, q) for (name, p), q in zip(critic.named_parameters(), other.parameters(), strict=True)]
    trained = [(name, p) for name, p, q in pairs if p is not q and p.requires_grad and torch.equal(p, q)]
    return [name for name, p in trained if p.numel() and bool((p != p.flatten()[0]).any())]

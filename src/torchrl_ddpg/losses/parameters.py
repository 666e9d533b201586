"""The part of a loss that owns networks: live and target parameters through moves, copies, loads and resets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_ddpg import checks
from torchrl_ddpg.losses.networks import (
    Ensemble,
    Network,
    convert,
    ensemble,
    live_params,
    named_leaves,
    target_params,
)


def _fingerprint(tensor: Tensor) -> float:
    """A number that changes when the values change or change places."""
    if tensor.is_meta:
        return math.nan
    flat = tensor.detach().cpu().double().nan_to_num().flatten()
    return float(flat @ torch.linspace(1, 2, len(flat), dtype=torch.float64))


class NetworkOwner(LossModule):
    """A ``LossModule`` with an actor and a critic, whose modules are never without their parameters."""

    critic_name: ClassVar[str]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        delayed: Mapping[str, bool],
        separate_losses: bool,
        num_critics: tuple[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._forward_pre_hooks.clear()  # LossModule's own warns about missing updaters at every forward
        owner = self._owner
        self.separate_losses = checks.boolean(owner, "separate_losses", separate_losses)
        self.__dict__["actor_network"] = checks.network(owner, "actor_network", actor_network)
        critics = self._critics(critic_network, num_critics)
        self.__dict__[self.critic_name] = critics[0] if isinstance(critics, nn.ModuleList) else critics
        self.__dict__["_owned"] = {"actor_network": actor_network, self.critic_name: critics}
        self._targets_loaded = False
        self._constants: dict[str, Tensor] = {}
        self._check_networks()
        for name, delay in delayed.items():
            params = live_params(self._owned[name], self._held_out(name))
            setattr(self, f"{name}_params", params)
            if checks.boolean(owner, f"delay_{name.removesuffix('_network')}", delay):
                setattr(self, f"target_{name}_params", target_params(params))
            self._has_update_associated[name] = not delay
        self._build_networks()
        self._initial_targets = self._target_sums()

    def _critics(
        self,
        critic_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        num_critics: tuple[str, int] | None,
    ) -> nn.Module:
        if num_critics is None:
            return checks.network(self._owner, self.critic_name, critic_network)
        option, count = num_critics
        checks.positive_int(self._owner, option, count)
        if not isinstance(critic_network, (list, tuple, nn.ModuleList)):
            critic = checks.network(self._owner, self.critic_name, critic_network)
            return ensemble(self._owner, critic, count, self.actor_network.parameters())
        if len(critic_network) != count:
            raise ValueError(
                f"{self._owner}: {self.critic_name} is a list of {len(critic_network)}, {option} is {count}; "
                f"accepted: the same number."
            )
        for index, critic in enumerate(critic_network):
            checks.network(self._owner, f"{self.critic_name}[{index}]", critic)
        return nn.ModuleList(critic_network)

    def _register_constant(self, name: str, value: Tensor | None) -> None:
        """A buffer that is configuration: beside the networks, not saved, whole after a stay on the meta device."""
        if value is not None:
            self._constants[name] = value
            value = value.to(device=self._default_device)
        self.register_buffer(name, value, persistent=False)

    @property
    def _owner(self) -> str:
        return type(self).__name__

    def _check_networks(self) -> None:
        actor, critic = self.actor_network, self.__dict__[self.critic_name]
        self.action_keys = [key for key in critic.in_keys if key in actor.out_keys]
        named = [key for key in self.action_keys if key == "action" or key[-1] == "action"]
        if len(named) == 1:  # an actor may hand the critic more than its action, such as an embedding
            self.action_keys = named + [key for key in self.action_keys if key != named[0]]
        if not self.action_keys:
            raise ValueError(
                f"{self._owner}: {self.critic_name} reads {critic.in_keys} and actor_network writes {actor.out_keys}; "
                f"accepted: a critic that reads the actor's action."
            )
        self.actor_in_keys = list(actor.in_keys)
        known = {*actor.in_keys, *actor.out_keys}
        self.value_exclusive_keys = [key for key in critic.in_keys if key not in known]
        self._observed_keys = [key for key in (*actor.in_keys, *self.value_exclusive_keys) if key != "_"]

    @property
    def has_updater(self) -> bool:
        """Whether an updater has been built for the target networks, if there are any."""
        return all(self._has_update_associated.values())

    def _held_out(self, name: str) -> list[nn.Parameter]:
        shared = self.separate_losses and name == self.critic_name
        return list(self.actor_network.parameters()) if shared else []

    def _build_networks(self) -> None:
        self.__dict__["_nets"] = {
            name: (Ensemble if isinstance(module, nn.ModuleList) else Network)(
                module,
                self._modules[f"{name}_params"],
                self._modules.get(f"target_{name}_params"),
                self._held_out(name),
            )
            for name, module in self._owned.items()
        }
        self._has_ensemble = isinstance(self._nets[self.critic_name], Ensemble)
        parameter = next(self.__dict__[self.critic_name].parameters(), torch.empty(0))
        # Running statistics: what one sample holds reaches the others, and stays.
        self._keeps_statistics = any(
            buffer.is_floating_point() for net in self._nets.values() for buffer in net.module.buffers()
        )
        self._dtype = torch.promote_types(parameter.dtype, torch.float32)
        self._seen: set[Any] = set()

    def _check_live(self) -> None:
        if any(net.targets_were_set() for net in self._nets.values()):
            self._build_networks()
        for name, net in self._nets.items():
            parameter = net.replaced()
            if parameter is not None:
                raise checks.replaced_parameter(self._owner, name, parameter)

    def held(self) -> list[Any]:
        """What a recording of a term holds and Python can change: the networks, options, constants."""
        own = list(self._parameters.values())
        trained = [None if parameter is None else parameter.requires_grad for parameter in own]
        held = [*vars(self).values(), *self._buffers.values(), *own, *trained]
        for net in self._nets.values():
            held += net.held()
        return held

    def state(self) -> list[Tensor]:
        """Tensors that a term may change in place, such as running statistics."""
        return [*self.buffers(), *(tensor for net in self._nets.values() for tensor in net.unregistered())]

    def __getattr__(self, item: str) -> Any:
        # LossModule's own warns about missing updaters at every access.
        modules = self.__dict__.get("_modules", {})
        return modules[item] if item in modules else super().__getattr__(item)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_nets", "_seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, module in self._owned.items():
            setattr(self, f"{name}_params", live_params(module, self._held_out(name)))
        self._build_networks()

    def _apply(self, fn: Callable, recurse: bool = True) -> NetworkOwner:
        untouched = self.targets_are_initial()
        parameter = next(self.parameters(), torch.empty(0))
        if fn(parameter.data).is_meta != parameter.is_meta:
            self._cross_meta(fn)
        else:
            super()._apply(fn)
            self._build_networks()
        for name, module in self._owned.items():  # buffers that networks share were moved once for each of them
            setattr(self, f"{name}_params", live_params(module, self._held_out(name)))
        self._build_networks()
        device = self._default_device
        if self._value_estimator is not None and device is not None and device.type != "meta":
            self._value_estimator.to(device=device)
        if untouched:
            self._initial_targets = self._target_sums()
        return self

    def _cross_meta(self, fn: Callable) -> None:
        for name, module in self._owned.items():
            module._apply(fn)
            targets = self._modules.get(f"target_{name}_params")
            if targets is not None:
                setattr(self, f"target_{name}_params", convert(targets, fn))
        parameter = next(self.actor_network.parameters())
        for name, value in self._constants.items():  # their values would be lost on the way
            setattr(self, name, value.to(parameter.device, self._buffers[name].dtype))

    def train(self, mode: bool = True) -> NetworkOwner:
        """Set training mode on the loss and on the user's networks; targets follow at the next call."""
        super().train(mode)
        for net in self._nets.values():
            net.module.train(mode)
        return self

    def reset_parameters_recursive(self) -> None:
        """Draw new parameters with each layer's own ``reset_parameters``; targets become copies of them."""
        for net in self._nets.values():
            net.reset()

    def get_stateful_net(self, network_name: str, copy: bool | None = None) -> nn.Module:
        """A network with the loss's live parameters in it; several critics come as an ``nn.ModuleList``.

        Args:
            network_name: ``"actor_network"`` or the critic's name.
            copy: whether the module is a copy (default) or the user's own; the parameters are the live ones in both.

        Raises:
            ValueError: if the loss has no such network.
        """
        checks.choice(self._owner, "network_name", network_name, self._owned)
        module = self._owned[network_name]
        if copy is False:
            return module
        return deepcopy(module, {id(leaf): leaf for _, leaf in named_leaves(module)})

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in ``nn.Module``, with buffers as the networks hold them now."""
        for net in self._nets.values():
            net.save_buffers()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for net in self._nets.values():
            net.save_buffers()
        for key in list(state_dict):
            name = key.removeprefix(prefix)
            # TorchRL saves gamma and bounds, which are configuration here, and stacks the parameters of its critics.
            if name.startswith("_value_estimator.") or name in ("min_action", "max_action"):
                del state_dict[key]
                continue
            self._targets_loaded |= name.startswith("target_")
            network, _, leaf = name.partition(".")
            stacked = network.removeprefix("target_") == f"{self.critic_name}_params" and not leaf[:1].isdigit()
            if stacked and isinstance(self._owned[self.critic_name], nn.ModuleList):
                for index, value in enumerate(state_dict.pop(key).unbind(0)):
                    state_dict[f"{prefix}{network}.{index}.{leaf}"] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _target_sums(self) -> list[float]:
        targets = [t for net in self._nets.values() for kind in ("parameters", "buffers") for t in net.pairs(kind)[0]]
        return [_fingerprint(target) for target in targets]

    def targets_are_initial(self) -> bool:
        """Whether the targets are as the constructor made them: neither loaded nor moved since."""
        return not self._targets_loaded and self._initial_targets == self._target_sums()

    def target_pairs(self, kind: str) -> tuple[list[Tensor], list[Tensor]]:
        """Target tensors and the live tensors that they follow.

        Args:
            kind: ``"parameters"`` or ``"buffers"``.

        Returns:
            Two lists of one length; empty where no network is delayed.
        """
        (targets, sources), (more_targets, more_sources) = (net.pairs(kind) for net in self._nets.values())
        return targets + more_targets, sources + more_sources

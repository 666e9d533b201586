"""TorchRL's ``LossModule`` contract: live and target parameters through moves, copies, loads and resets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_ddpg import checks
from torchrl_ddpg.losses.construction import LossClass, all_critics, checked
from torchrl_ddpg.losses.networks import Network
from torchrl_ddpg.losses.parameters import fingerprint, live_params, named_leaves, target_params


class NetworkOwner(LossModule, metaclass=LossClass):
    """A ``LossModule`` with an actor and critics, whose modules are never without their parameters."""

    critic_name: ClassVar[str]

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        delay_actor: bool,
        delay_critic: bool,
        separate_losses: bool,
        num_critics: tuple[str, int] | None,
    ) -> None:
        super().__init__()
        self._forward_pre_hooks.clear()  # LossModule's own warns about missing updaters at every forward
        self.separate_losses = checks.boolean("separate_losses", separate_losses)
        self.__dict__["actor_network"] = checked("actor_network", actor_network)
        if num_critics is not None:
            setattr(self, num_critics[0], checks.positive_int(*num_critics))
        critics = all_critics(self.critic_name, critic_network, num_critics, self.actor_network)
        self.__dict__[self.critic_name] = critics[0] if isinstance(critics, nn.ModuleList) else critics
        self.__dict__["_owned"] = {"actor_network": actor_network, self.critic_name: critics}
        self._targets_loaded = False
        self._constants: dict[str, Tensor] = {}
        self._read_keys(list(critics) if isinstance(critics, nn.ModuleList) else [critics])
        delays = {"actor": delay_actor, self.critic_name.removesuffix("_network"): delay_critic}
        for short, delay in delays.items():
            name = f"{short}_network"
            params = live_params(self._owned[name], self._held_out(name))
            setattr(self, f"{name}_params", params)
            if checks.boolean(f"delay_{short}", delay):
                setattr(self, f"target_{name}_params", target_params(params))
            setattr(self, f"delay_{short}", delay)
            self._has_update_associated[name] = not delay
        self._build_networks()
        self._initial_targets = self._target_sums()

    def _read_keys(self, critics: list[TensorDictModuleBase]) -> None:
        """What the networks read: the actor's observation, the action, and what the critics observe besides."""
        actor, critic = self.actor_network, critics[0]
        self.critic_in_keys: list[NestedKey] = list(dict.fromkeys(key for one in critics for key in one.in_keys))
        self.action_keys = [key for key in self.critic_in_keys if key in actor.out_keys]
        named = [key for key in self.action_keys if key == "action" or key[-1] == "action"]
        if len(named) == 1:  # an actor may hand the critic more than its action, such as an embedding
            self.action_keys = named + [key for key in self.action_keys if key != named[0]]
        if not self.action_keys:
            raise ValueError(
                f"{self.critic_name} reads {critic.in_keys} and actor_network writes {actor.out_keys}; "
                f"accepted: a critic that reads the actor's action."
            )
        self.actor_in_keys: list[NestedKey] = list(actor.in_keys)
        known = {*actor.in_keys, *actor.out_keys}
        self.value_exclusive_keys = [key for key in self.critic_in_keys if key not in known]
        self.observed_keys = [key for key in (*actor.in_keys, *self.value_exclusive_keys) if key != "_"]

    def _register_constant(self, name: str, value: Tensor | None) -> None:
        """A buffer that is configuration: beside the networks, in a dtype of its own, saved and not loaded."""
        if value is not None:
            self._constants[name] = value
            value = value.to(device=self._default_device)
        self.register_buffer(name, value)

    @property
    def has_updater(self) -> bool:
        """Whether an updater has been built for the target networks, if there are any."""
        return all(self._has_update_associated.values())

    @property
    def num_critics(self) -> int:
        """How many critics there are."""
        return len(self._nets[self.critic_name].parts)

    def _held_out(self, name: str) -> list[nn.Parameter]:
        shared = self.separate_losses and name == self.critic_name
        return list(self.actor_network.parameters()) if shared else []

    def _build_networks(self) -> None:
        found = self.__dict__.get("_nets", {})
        self.__dict__["_nets"] = {
            name: Network(
                name,
                module,
                self._modules[f"{name}_params"],
                self._modules.get(f"target_{name}_params"),
                self._held_out(name),
                found[name].why_no_twin if name in found else "",
            )
            for name, module in self._owned.items()
        }
        parameter = next(self.__dict__[self.critic_name].parameters())
        # Running statistics: what one sample holds reaches the others, and stays.
        self._keeps_statistics = any(
            buffer.is_floating_point() for net in self._nets.values() for buffer in net.module.buffers()
        )
        self._dtype = torch.promote_types(parameter.dtype, torch.float32)
        self.__dict__["_on_device"] = list({leaf.device: leaf for leaf in self.parameters()}.values())  # one for each

    def _check_live(self) -> None:
        """Take over a network that has changed; refuse one whose parameters the loss does not know."""
        changed = False
        for name, net in self._nets.items():
            given = self._modules[f"{name}_params"]
            if given is not net.params or net.has_changed():
                net.settle(given)
                if given is net.params:
                    self._check_known(net)
                    if net.has_new_names():
                        setattr(self, f"{name}_params", live_params(net.module, self._held_out(name)))
                changed = True
            changed |= self._modules.get(f"target_{name}_params") is not net.targets
        if changed:
            self._build_networks()

    def _check_known(self, net: Network) -> None:
        named = {name: leaf for name, leaf in net.module.named_parameters() if not leaf.is_meta}
        known = net.known | {id(leaf): name for name, leaf in net.params.items(True, True)}
        unknown = next((name for name, parameter in named.items() if id(parameter) not in known), None)
        if unknown is None:
            return
        present = set(map(id, named.values()))
        gone = next((name for parameter, name in net.known.items() if parameter not in present), None)
        what = (
            f"the parameter {gone!r} of {net.name} was replaced" if gone else f"{net.name} got a parameter {unknown!r}"
        )
        raise RuntimeError(
            f"{what} after the loss was built; the loss and its optimizer hold "
            f"{'the old one' if gone else 'none like it'}. Load values in place (load_state_dict, copy_), or build a "
            f"new loss."
        )

    def state(self) -> list[Tensor]:
        """Tensors that a term may change in place, such as running statistics, but for what is trained."""
        roots = (self, self._value_estimator, *(net.module for net in self._nets.values()))
        parts = dict.fromkeys(part for root in roots for part in root.modules())
        pending: list[Any] = [[*part.buffers(recurse=False), *vars(part).values()] for part in parts]
        found: dict[int, Any] = {}
        while pending:
            value = pending.pop()
            if id(value) in found or isinstance(value, nn.Parameter):
                continue
            found[id(value)] = value
            pending += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return [value for value in found.values() if isinstance(value, Tensor) and not value.is_meta]

    def __getattr__(self, item: str) -> Any:
        # LossModule's own warns about missing updaters at every access.
        modules = self.__dict__.get("_modules", {})
        return modules[item] if item in modules else super().__getattr__(item)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_nets", "_on_device")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, module in self._owned.items():
            setattr(self, f"{name}_params", live_params(module, self._held_out(name)))
        self._build_networks()

    def _apply(self, fn: Callable, recurse: bool = True) -> NetworkOwner:
        untouched = self.targets_are_initial()
        super()._apply(fn)
        self._build_networks()
        for name, module in self._owned.items():  # buffers that networks share were moved once for each of them
            params = live_params(module, self._held_out(name))
            setattr(self, f"{name}_params", params)
            if self._has_target(name):  # and so were targets of what has several names
                setattr(self, f"target_{name}_params", target_params(params, self._modules[f"target_{name}_params"]))
        self._build_networks()
        for name, value in self._constants.items():
            setattr(self, name, value.to(device=self._default_device))
        if self._value_estimator is not None and self._default_device is not None:
            for key, value in self._value_estimator._buffers.items():  # not its networks, which are the loss's
                if isinstance(value, Tensor):
                    setattr(self._value_estimator, key, value.to(device=self._default_device))
        if untouched:
            self._initial_targets = self._target_sums()
        return self

    def _has_target(self, name: str) -> bool:
        return f"target_{name}_params" in self._modules

    def train(self, mode: bool = True) -> NetworkOwner:
        """Set training mode on the loss and on the user's networks; targets are in the mode of their network."""
        super().train(mode)
        for net in self._nets.values():
            net.module.train(mode)
        return self

    def reset_parameters_recursive(self) -> None:
        """Draw new parameters with each layer's own ``reset_parameters``; targets become copies of them."""
        for net in self._nets.values():
            for part in net.parts:
                part.reset_parameters_recursive()
        for net in self._nets.values():  # not before: networks may share layers
            net.sync()

    def get_stateful_net(self, network_name: str, copy: bool | None = None) -> nn.Module:
        """A network with the loss's live parameters in it; several critics come as an ``nn.ModuleList``.

        Args:
            network_name: ``"actor_network"`` or the critic's name.
            copy: whether the module is a copy (default) or the user's own; the parameters are the live ones in both.

        Raises:
            ValueError: if the loss has no such network.
        """
        checks.choice("network_name", network_name, self._owned)
        module = self._owned[network_name]
        if copy is False:
            return module
        return deepcopy(module, {id(leaf): leaf for _, leaf in named_leaves(module)})

    def _make_vmap(self) -> None:
        """TorchRL calls this when ``set_vmap_randomness`` is used; critics run one after the other here."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in ``nn.Module``, with buffers as the networks hold them now.

        Critics that are alike are stacked along a first dimension, as TorchRL has them, so that its losses can load it.
        """
        for net in self._nets.values():
            net.save_buffers()
        state = super().state_dict(*args, **kwargs)
        prefix, count = kwargs.get("prefix", ""), self.num_critics
        for network in (f"{prefix}{self.critic_name}_params.", f"{prefix}target_{self.critic_name}_params."):
            leaves = [key.removeprefix(f"{network}0.") for key in state if key.startswith(f"{network}0.")]
            for leaf in leaves if self._alike(state, network, leaves) else ():
                critics = [state.pop(f"{network}{index}.{leaf}", None) for index in range(count)]
                # What critics share with the actor and do not train is held once.
                state[network + leaf] = torch.stack([critics[0] if value is None else value for value in critics])
        return state

    def _alike(self, state: dict[str, Any], network: str, leaves: list[str]) -> bool:
        """Whether there are several critics with parameters of the same names and shapes."""
        others = [key for key in state if key.startswith(network) and not key.startswith(f"{network}0.")]
        firsts = [f"{network}0.{key.removeprefix(network).partition('.')[2]}" for key in others]
        several = isinstance(self._owned[self.critic_name], nn.ModuleList) and bool(leaves)
        return several and all(
            f in state and state[f].shape == state[k].shape for f, k in zip(firsts, others, strict=True)
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for net in self._nets.values():
            net.save_buffers()
        for key in list(state_dict):
            name = key.removeprefix(prefix)
            # TorchRL saves bounds, which are configuration here, and stacks the parameters of its critics.
            self._targets_loaded |= name.startswith("target_")
            network, _, leaf = name.partition(".")
            stacked = network.removeprefix("target_") == f"{self.critic_name}_params" and not leaf[:1].isdigit()
            if stacked and isinstance(self._owned[self.critic_name], nn.ModuleList):
                for index, value in enumerate(state_dict.pop(key).unbind(0)):
                    if f"{index}.{leaf}" in self._modules[network]._parameters | self._modules[network]._buffers:
                        state_dict[f"{prefix}{network}.{index}.{leaf}"] = value
        for name in self._constants:
            state_dict[prefix + name] = self._buffers[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _target_sums(self) -> list[float]:
        targets = [t for net in self._nets.values() for kind in ("parameters", "buffers") for t in net.pairs(kind)[0]]
        return [fingerprint(target) for target in targets]

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

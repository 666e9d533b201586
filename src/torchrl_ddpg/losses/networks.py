"""One network of a loss: the user's module with its live parameters, and the private copy that holds the targets."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_ddpg import checks
from torchrl_ddpg.losses.calls import Entries, run, run_detached

# What a module's or a loss's settings are made of: a rate of dropout, a mode, the name of a distance.
PLAIN = (bool, int, float, str, type(None))


def named_leaves(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer with its dotted name, shared ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def live_params(module: nn.Module, held_out: Iterable[nn.Parameter] = ()) -> TensorDictParams:
    """The module's parameters and buffers as TorchRL presents them; those in ``held_out`` come detached."""
    params = TensorDict.from_module(module, as_module=True)
    held = {id(parameter) for parameter in held_out}
    for key, value in list(params.items(True, True)):
        if id(value) in held:
            params.set(key, value.data)
    return params


def target_params(params: TensorDictParams) -> TensorDictParams:
    """A copy of ``params`` that holds buffers alone: nothing in it can be trained."""
    copies = params.apply(lambda leaf: nn.Buffer(leaf.data.clone()), filter_empty=False)
    return TensorDictParams(copies, no_convert=True)


def _kept(module: nn.Module) -> Iterator[Tensor]:
    """Tensors with a graph that a module keeps as attributes (activations, a pruned weight); deepcopy refuses them."""
    for part in module.modules():
        for value in vars(part).values():
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    yield tensor


class Network:
    """A network in its three uses: online, frozen (no gradient to its parameters) and target (no gradient at all).

    Online and frozen passes run the user's own module, so they see its parameters whatever was done to them since:
    an optimizer step, ``load_state_dict``, ``p.data = ...``. The target pass runs a private copy of the module whose
    parameters *are* the target tensors, so nothing is swapped in or out and no exception can leave a network without
    its parameters.
    """

    def __init__(
        self,
        module: TensorDictModuleBase,
        params: TensorDictParams,
        targets: TensorDictParams | None,
        held_out: Iterable[nn.Parameter] = (),
    ) -> None:
        self.module = module
        held = {id(parameter) for parameter in held_out}
        registered = dict(named_leaves(params))
        self._slots: list[tuple[dict, str, dict, str]] = []
        self._held_out: list[nn.Parameter] = []
        self._buffer_slots: list[tuple[dict, str, Tensor]] = []
        self._parts = list(module.modules())
        values = [vars(part) for part in self._parts]
        self._attributes = [(own, name) for own in values for name in own if isinstance(own[name], PLAIN)]  # modes too
        self._children = [(part._modules, name, child) for part in self._parts for name, child in part._modules.items()]
        for name, leaf in named_leaves(module):
            owner, _, attribute = name.rpartition(".")
            owner_module = module.get_submodule(owner)
            if not isinstance(leaf, nn.Parameter):
                owner_module._buffers[attribute] = registered[name]
                self._buffer_slots.append((owner_module._buffers, attribute, registered[name]))
            elif id(leaf) in held:
                self._held_out.append(leaf)
            else:
                self._slots.append((owner_module._parameters, attribute, params._parameters, name))
        self._make_target(targets)

    def _make_target(self, targets: TensorDictParams | None) -> None:
        self.target, self._modes = self.module, []
        self._parameter_pairs: list[tuple[dict, str, Tensor]] = []
        self._buffer_pairs: list[tuple[dict, str, Tensor]] = []
        self._target_slots: list[tuple[dict, str, dict, str]] = []
        if targets is None:
            return
        target_of = dict(targets.named_buffers())
        leaves = dict(named_leaves(self.module))
        # deepcopy takes from its memo what is already copied: the target tensors stand in for the parameters.
        kept = {id(value): value.detach() for value in _kept(self.module)}
        self.target = copy.deepcopy(self.module, {**kept, **{id(leaf): target_of[n] for n, leaf in leaves.items()}})
        self._modes = list(zip(self._parts, self.target.modules(), strict=True))
        for name, leaf in leaves.items():
            owner, _, attribute = name.rpartition(".")
            source, copied = self.module.get_submodule(owner), self.target.get_submodule(owner)
            is_parameter = isinstance(leaf, nn.Parameter)
            slot, pairs = ("_parameters", self._parameter_pairs) if is_parameter else ("_buffers", self._buffer_pairs)
            getattr(copied, slot)[attribute] = target_of[name]  # parameters that share a leaf keep a target each
            if getattr(copied, slot).get(attribute) is target_of[name]:
                self._target_slots.append((getattr(copied, slot), attribute, targets._buffers, name))
            pairs.append((getattr(source, slot), attribute, target_of[name]))
        if any(isinstance(part, TensorDictParams) for part in self.target.modules()):
            targets.to_module(self.target)  # parameters inside a TensorDictParams, as vmap'd networks have them

    def replaced(self) -> str | None:
        """The name of a parameter or submodule that the module no longer shares with the loss, or None."""
        for owner, attribute, registry, name in self._slots:
            if owner.get(attribute) is not registry.get(name):
                return name
        for children, name, child in self._children:
            if children.get(name) is not child:
                return name
        return None

    def held(self) -> list[Any]:
        """What a recording holds of the network and Python can change without being told."""
        held: list[Any] = [owner[name] for owner, name, _ in self._buffer_slots]
        held += [owner[name].requires_grad for owner, name, _, _ in self._slots]
        return held + [values.get(name) for values, name in self._attributes]

    def unregistered(self) -> list[Tensor]:
        """Tensors that modules, the target's too, keep as plain attributes."""
        parts = {*self._parts, *self.target.modules()}
        return [value for part in parts for value in vars(part).values() if isinstance(value, Tensor)]

    def targets_were_set(self) -> bool:
        """Whether an entry of the target parameters was replaced by another tensor."""
        return any(owner[name] is not registry.get(key) for owner, name, registry, key in self._target_slots)

    def save_buffers(self) -> None:
        """Bring buffers that the module has assigned anew back into the tensors that the loss saves and loads."""
        for owner, name, registered in self._buffer_slots:
            if owner[name] is not registered and owner[name].shape == registered.shape:
                registered.data.copy_(owner[name])
                owner[name] = registered

    def online(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run the module with gradient to its parameters, but for those that only the actor's loss trains."""
        return run_detached(self.module, self._held_out, entries, shape)

    def frozen(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run the module with gradient to its inputs and none to its parameters."""
        return run_detached(self.module, self._live(), entries, shape)

    def without_grad(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run the target network, in the module's train or eval mode, without gradient."""
        self._follow_modes()
        with torch.no_grad():
            return run(self.target, entries, shape)

    def _live(self) -> list[nn.Parameter]:
        return [owner[name] for owner, name, _, _ in self._slots] + self._held_out

    def _follow_modes(self) -> None:
        for source, copied in self._modes:
            if copied.training is not source.training:
                copied.training = source.training

    def pairs(self, kind: str) -> tuple[list[Tensor], list[Tensor]]:
        """Targets and their live sources, of ``kind`` ``"parameters"`` or ``"buffers"``; empty without delay."""
        slots = self._parameter_pairs if kind == "parameters" else self._buffer_pairs
        return [target for _, _, target in slots], [owner[attribute] for owner, attribute, _ in slots]

    def reset(self) -> None:
        """Draw new parameters with each layer's own ``reset_parameters``; a target becomes a copy of them."""
        self.module.reset_parameters_recursive()
        self.sync()

    def sync(self) -> None:
        """Copy the module's parameters and buffers into the target."""
        for kind in ("parameters", "buffers"):
            for target, source in zip(*self.pairs(kind), strict=True):
                target.data.copy_(source.data)


class Ensemble(Network):
    """Several critics: what they write is stacked along a first dimension; frozen, only the first one runs."""

    def online(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run every critic, each on entries of its own."""
        return self._stacked(run_detached(critic, self._held_out, dict(entries), shape) for critic in self.module)

    def frozen(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run the first critic with gradient to its inputs and none to its parameters."""
        return run_detached(self.module[0], self._live(), entries, shape)

    def without_grad(self, entries: Entries, shape: torch.Size) -> Entries:
        """Run every target critic without gradient."""
        self._follow_modes()
        with torch.no_grad():
            return self._stacked(run(critic, dict(entries), shape) for critic in self.target)

    def _stacked(self, outputs: Iterable[Entries]) -> Entries:
        outputs = list(outputs)
        written = {key: [output[key] for output in outputs] for key in self.module[0].out_keys}
        return {key: torch.stack(values) for key, values in written.items() if isinstance(values[0], Tensor)}

    def reset(self) -> None:
        """Draw new parameters for every critic; targets become copies of them."""
        for critic in self.module:
            critic.reset_parameters_recursive()
        self.sync()


def ensemble(owner: str, critic: TensorDictModuleBase, count: int, kept: Iterable[nn.Parameter]) -> nn.ModuleList:
    """The critic itself and copies of it that their layers' own ``reset_parameters`` initialise anew.

    Args:
        owner: the loss's name, for messages.
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
            raise checks.equal_critics(owner, count)
        critics.append(other)
    return nn.ModuleList(critics)


def convert(params: TensorDictParams, fn: Callable[[Tensor], Tensor]) -> TensorDictParams:
    """``params`` with ``fn`` applied to every leaf, where a leaf cannot be changed in place (to and from meta)."""

    def moved(leaf: Tensor) -> Tensor:
        value = fn(leaf.data)
        if isinstance(leaf, nn.Parameter):
            return nn.Parameter(value, requires_grad=leaf.requires_grad)
        return nn.Buffer(value)

    return TensorDictParams(params.apply(moved, filter_empty=False, device=None), no_convert=True)

"""One network of a loss in its three uses: online, frozen (no gradient to its parameters) and target."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from tensordict import TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_ddpg.losses.calls import Entries, run, run_with
from torchrl_ddpg.losses.parameters import named, named_leaves, nested
from torchrl_ddpg.losses.twins import Body, Place, TwinError, places

_VALUES: Any = dict.values
_END = object()  # equal to nothing else, so that lists of unequal length differ
Use = Literal["online", "frozen", "target"]


class Network:
    """One network, or several critics, as the loss runs it.

    An online pass runs the user's own module. A frozen or target pass runs a twin of it, whose parameters are detached
    views of the live ones, or the targets. Nothing is copied or switched, so nothing goes stale, whatever is set on the
    module later, and no exception, interrupt or other thread can find a module without its parameters.

    Args:
        name: what the loss calls it.
        module: the user's module, or an ``nn.ModuleList`` of critics.
        params: its live parameters and buffers, as the loss presents them.
        targets: the targets, or None where they are the live ones.
        held_out: parameters that the online pass does not train.
        why_no_twin: what was found out about the module before.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        params: TensorDictParams,
        targets: TensorDictParams | None,
        held_out: Iterable[nn.Parameter] = (),
        why_no_twin: str = "",
    ) -> None:
        self.name, self.module, self.params, self.targets = name, module, params, targets
        self.parts: Sequence[TensorDictModuleBase] = list(module) if isinstance(module, nn.ModuleList) else [module]
        self._held = {id(parameter) for parameter in held_out}
        self._target_leaves = {} if targets is None else named(targets)
        registered = dict(named_leaves(params))
        self._parameters: list[tuple[str, Place]] = []
        self._buffers: list[tuple[str, Place, Tensor]] = []
        for leaf_name, place, leaf in places(module):
            if isinstance(leaf, nn.Parameter):
                self._parameters.append((leaf_name, place))
            else:
                getattr(place[0], place[1])[place[2]] = registered[leaf_name]
                self._buffers.append((leaf_name, place, registered[leaf_name]))
        self.known = {id(parameter): leaf_name for leaf_name, parameter in module.named_parameters()}
        parts = list(module.modules())
        slots = ("_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks")
        owned: list[dict[str, Any]] = [getattr(part, slot) for part in parts for slot in slots]
        # TensorDict's own attributes: parameters swapped in through the loss show nowhere else.
        self._holders_of_leaves = [params] if targets is None else [params, targets]
        inner = [holder._param_td for holder in self._holders_of_leaves]
        owned += [part._tensordict for one in inner for part in nested(one)]
        self._registered = named(params)
        # Empty modules, which networks of several agents fill at each call, hold other objects after it.
        owned = [own for own in owned if not any(getattr(value, "is_meta", False) for value in own.values())]
        self._filled, self._empty = [own for own in owned if own], [own for own in owned if not own]
        self._structure_then = list(self._structure())
        self._pairs = {kind: self._find_pairs(kind) for kind in ("parameters", "buffers")}
        self._holders: dict[str, list[tuple[dict[str, Any], str, tuple[str, ...]]]] = {}
        self._roots: dict[str, list[Any]] = {}
        self._renewals: dict[str, list[tuple[dict[str, Any], dict[str, Any], str]]] = {}
        self._holds_params = any(isinstance(part, TensorDictParams) for part in module.modules())
        self.why_no_twin = why_no_twin
        try:
            self._build_bodies()
        except TwinError as error:
            self.why_no_twin = str(error)

    def _build_bodies(self) -> None:
        uses: list[Use] = ["frozen"]
        uses += ["target"] if self.targets is not None else []
        uses += ["online"] if self._held else []
        for use in uses:
            body = Body(self.module)
            root, self._holders[use] = body.root, body.holders
            self._roots[use] = list(root) if isinstance(self.module, nn.ModuleList) else [root]
            self._renewals[use] = []
            for name, place in self._parameters:
                module, _, own_name = place
                home: dict[str, Any] = body.home(place)
                source = module._parameters
                if use == "target":
                    home[own_name] = self._target_leaves[self._shown(name, source[own_name])]
                elif use == "frozen" or id(source[own_name]) in self._held:
                    self._renewals[use].append((home, source, own_name))
                else:
                    home[own_name] = source[own_name]
            for name, place, _ in self._buffers if use == "target" else ():
                body.home(place)[place[2]] = self._target_leaves[name]

    def _shown(self, name: str, parameter: Any) -> str:
        """The name of a parameter's target: what critics share with the actor may have one for all of them."""
        return name if name in self._target_leaves else self.known[id(parameter)]

    def _structure(self) -> Iterable[Any]:
        inner = [holder._param_td for holder in self._holders_of_leaves]
        return chain(inner, chain.from_iterable(map(_VALUES, self._filled)), (_END,))

    def has_changed(self) -> bool:
        """Whether a submodule or a parameter was added, removed or replaced since the network was taken over."""
        return any(self._empty) or not all(map(operator.is_, self._structure(), self._structure_then))

    def run(self, use: Use, entries: Entries, shape: torch.Size, parts: Iterable[int] = (0,)) -> list[Entries]:
        """Run the network.

        Args:
            use: ``"online"`` with gradient to its parameters, but for those held out; ``"frozen"`` with gradient to
                its inputs alone; ``"target"`` without gradient, with the target parameters.
            entries: what it reads, by key.
            shape: the batch size, ``[*B]``.
            parts: which of several critics.

        Returns:
            For each of them its entries, read and written.
        """
        if use == "online" and not self._held:
            return [run(self.parts[part], dict(entries), shape) for part in parts]
        if torch.compiler.is_compiling() or self.why_no_twin:
            return self._swapped(use, entries, shape, parts)
        at = "frozen" if use == "target" and self.targets is None else use
        for own, source, name in self._renewals[at]:
            own[name] = source[name].detach()
        for own, name, path in self._holders[at]:
            own[name] = self._held_params(at, path)
        try:
            outputs = [run(self._roots[at][part], dict(entries), shape) for part in parts]
        except Exception:  # such as a network that looks its layers up by identity
            outputs = self._swapped(use, entries, shape, parts)
            self.why_no_twin = "its forward raises where the module's does not"
            return outputs
        if use == "target" and self._leads_back(outputs):
            self.why_no_twin = "its forward reaches live parameters in another way than by the names of its submodules"
            return self._swapped(use, entries, shape, parts)
        return outputs

    def _held_params(self, use: Use, path: tuple[str, ...]) -> Any:
        """What a use puts in the place of a ``TensorDictParams``."""
        if use == "target":
            return self.targets.get(path)  # type: ignore[union-attr]
        params: Any = self.module.get_submodule(".".join(path))
        every = use == "frozen"
        return params.apply(lambda leaf: leaf.detach() if every or id(leaf) in self._held else leaf)

    def _leads_back(self, outputs: list[Entries]) -> bool:
        """Whether a target pass has met a live parameter: in a list of submodules, say, that the module keeps."""
        for output in outputs:
            for key, value in output.items():
                if isinstance(value, Tensor) and value.requires_grad:
                    if self._reaches_live(value):
                        return True
                    output[key] = value.detach()
        return False

    def _reaches_live(self, value: Tensor) -> bool:
        nodes, seen = [value.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is not None and node not in seen:
                seen.add(node)
                if id(getattr(node, "variable", None)) in self.known:
                    return True
                nodes += [following for following, _ in node.next_functions]
        return False

    def _swapped(self, use: Use, entries: Entries, shape: torch.Size, parts: Iterable[int]) -> list[Entries]:
        if self._holds_params:  # which TensorDict alone can exchange
            params = self.targets if use == "target" and self.targets is not None else self.params
            params = params if use == "online" else params.detach()
            of = [params.get(str(part)) if isinstance(self.module, nn.ModuleList) else params for part in parts]
            outputs = []
            for part, values in zip(parts, of, strict=True):
                own = values.to_module(self.parts[part])
                try:
                    outputs.append(run(self.parts[part], dict(entries), shape))
                finally:  # a with statement would leave the values in the module after an exception
                    own.to_module(self.parts[part])
            return outputs
        with torch.set_grad_enabled(torch.is_grad_enabled() and use != "target"):
            return [run_with(self.parts[part], self._leaves(use, part), entries, shape) for part in parts]

    def _leaves(self, use: Use, part: int) -> dict[str, Tensor]:
        """The leaves that a use puts in the place of a critic's own, by the names that they have in it."""
        prefix = f"{part}." if isinstance(self.module, nn.ModuleList) else ""
        leaves: dict[str, Tensor] = {}
        if use == "target" and self.targets is not None:
            buffers = self._target_leaves
            for name, (module, _, own_name) in self._parameters:
                leaves[name] = buffers[self._shown(name, module._parameters[own_name])]
            leaves |= {name: buffers[name] for name, *_ in self._buffers}
        else:
            for name, (module, _, own_name) in self._parameters:
                parameter: Any = module._parameters[own_name]
                if use != "online" or id(parameter) in self._held:
                    leaves[name] = parameter.detach()
        return {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}

    def has_new_names(self) -> bool:
        """Whether the module holds a parameter or buffer under a name that the loss does not present."""
        return any(name not in self._registered for name, *_ in places(self.module) if not self._held)

    def settle(self, params: TensorDictParams) -> None:
        """Let the module hold what ``params`` holds, where one of the two has changed.

        Parameters that were put into the loss go into the module. Where the module holds another object for the same
        memory, as ``torch.vmap`` leaves behind, it gets its own back.

        Raises:
            RuntimeError: if ``params`` does not hold parameters with the names and shapes of the module's own.
        """
        theirs = named(params)
        given = params is not self.params or any(theirs.get(name) is not own for name, own in self._registered.items())
        if given and not self._fits(theirs):
            raise RuntimeError(
                f"{self.name}_params was set to something else than parameters with the names and shapes of the "
                f"network's own; load values in place: loss.{self.name}_params.data.update_(values)."
            )
        for name, (module, slot, own_name) in (*self._parameters, *((name, place) for name, place, _ in self._buffers)):
            leaf, own = theirs.get(name), getattr(module, slot).get(own_name)
            if leaf is None or own is None or isinstance(leaf, nn.Parameter) != isinstance(own, nn.Parameter):
                continue
            if given or (own.data_ptr() == leaf.data_ptr() and own.shape == leaf.shape):
                getattr(module, slot)[own_name] = leaf

    def _fits(self, theirs: dict[str, Tensor]) -> bool:
        return theirs.keys() == self._registered.keys() and all(
            theirs[name].shape == leaf.shape
            and isinstance(theirs[name], nn.Parameter) == isinstance(leaf, nn.Parameter)
            for name, leaf in self._registered.items()
        )

    def save_buffers(self) -> None:
        """Bring what lies elsewhere by now back into the tensors that the loss saves and loads.

        That is, buffers that the module has assigned anew, and parameters held out whose storage has moved.
        """
        for _, (module, slot, name), registered in self._buffers:
            value = getattr(module, slot)[name]
            if value is not None and value is not registered and value.shape == registered.shape:
                registered.data.copy_(value)
                getattr(module, slot)[name] = registered
        for name, (module, slot, own_name) in self._parameters:
            parameter, shown = getattr(module, slot)[own_name], self.params._buffers.get(name)
            if id(parameter) in self._held and shown is not None and shown.data_ptr() != parameter.data_ptr():
                shown.data = parameter.data

    def pairs(self, kind: str) -> tuple[list[Tensor], list[Tensor]]:
        """Targets and their live sources, of ``kind`` ``"parameters"`` or ``"buffers"``; empty without delay."""
        places = self._pairs[kind]
        if kind == "buffers":  # which may have been switched off since
            places = [p for p in places if p[0][p[1]] is not None and p[2][p[3]] is not None]
        return [targets[name] for targets, name, _, _ in places], [own[name] for _, _, own, name in places]

    def _find_pairs(self, kind: str) -> list[tuple[dict[str, Any], str, dict[str, Any], str]]:
        """Where a target and its source lie, each target once."""
        if self.targets is None:
            return []
        registry, found = self._target_leaves, {}
        named = self.module.named_parameters if kind == "parameters" else self.module.named_buffers
        for name, _ in named(remove_duplicate=False):
            path, _, own_name = name.rpartition(".")
            part: Any = self.module
            while path and not isinstance(part, TensorDictParams):
                first, _, path = path.partition(".")
                part = part._modules[first]
            own_name = f"{path}.{own_name}" if path else own_name
            if name in registry:
                found[id(registry[name])] = (registry, name, getattr(part, f"_{kind}"), own_name)
        return list(found.values())

    def sync(self) -> None:
        """Copy the module's parameters and buffers into the target."""
        for kind in ("parameters", "buffers"):
            for target, source in zip(*self.pairs(kind), strict=True):
                target.data.copy_(source.data)

"""A second body for a module: parameters and buffers of its own, and everything else read through to the module."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from tensordict import TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

# Where a leaf lies in a tree of modules: the module, "_parameters" or "_buffers", and its name there.
Place = tuple[nn.Module, str, str]


class _Twin:
    """Stands before a module's own class. The instance shares the module's ``__dict__`` and adds three slots.

    So settings, hooks, the training mode and whatever else Python keeps on the module are the module's at every access,
    to read and to write. ``torch.nn`` finds parameters, buffers and children by these three names, and nothing public
    exchanges them for the length of a call without touching the module.
    """

    __slots__ = ("_buffers", "_modules", "_of", "_parameters")

    # What module.compile() has made calls the module itself.
    _compiled_call_impl = property(lambda self: None)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """What a module makes of its own class, such as a slice of a Sequential, is no twin."""
        return cls.twin_of(*args, **kwargs)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name in self._parameters:
            return self._parameters[name]
        if name in self._modules:
            return self._modules[name]
        buffers = self.__dict__["_buffers"]
        if name in buffers:  # one that the module has switched off, or made later, is not the twin's either
            return None if buffers[name] is None else self._buffers.get(name, buffers[name])
        wrapped = self._modules.get("module")
        if wrapped is not None and not name.startswith("_") and isinstance(self, TensorDictModuleBase):
            try:
                return getattr(wrapped, name)
            except AttributeError:
                pass
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        value = value._of if isinstance(value, _Twin) else value
        buffer = self._buffers.get(name)
        if buffer is not None and isinstance(value, Tensor) and value.shape == buffer.shape:
            buffer.data.copy_(value)
        else:
            setattr(self._of, name, value)


class _RecurrentTwin(_Twin):
    """``nn.LSTM`` and its like keep their parameters a second time, in a list."""

    __slots__ = ()
    _flat_weights = property(lambda self: [getattr(self, name) for name in self._flat_weights_names])

    def _update_flat_weights(self) -> None:
        """The list above is always made anew."""


class TwinError(TypeError):
    """A module that cannot have a twin: its class or an attribute of it would lead back to the module."""


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_MAX_OBJECTS = 1000  # that are looked into, for each module
_classes: dict[type, type] = {}
_own_classes: dict[type, type] = {}


def _twin_class(cls: type[nn.Module]) -> type:
    if cls not in _classes:
        mixin = _RecurrentTwin if issubclass(cls, nn.RNNBase) else _Twin
        try:
            metaclass: Any = type(cls)
            made = metaclass(
                cls.__name__, (mixin, cls), {"__slots__": (), "__module__": cls.__module__, "twin_of": cls}
            )
        except Exception as error:  # whatever a class does when it is inherited
            raise TwinError(f"a class like {cls.__name__} cannot be made: {error}") from error
        if cls.__module__.partition(".")[0] not in ("torch", "tensordict", "torchrl"):
            return made  # not kept: it would keep a user's class alive
        _classes[cls], _own_classes[made] = made, cls
    return _classes[cls]


def own_class(module: nn.Module) -> type:
    """A module's class; of the twin of a module of PyTorch, TensorDict or TorchRL, the class of that module."""
    return _own_classes.get(type(module), type(module))


def places(module: nn.Module) -> Iterator[tuple[str, Place, Tensor]]:
    """Every parameter and buffer of a tree, once for each place where it lies, with one of its dotted names.

    Those inside a ``TensorDictParams`` are not among them, and no shapes without values.
    """
    for path, part in module.named_modules():
        if isinstance(part, TensorDictParams) or _is_empty(part):
            continue
        for slot in ("_parameters", "_buffers"):
            for name, leaf in getattr(part, slot).items():
                if leaf is not None:
                    yield f"{path}.{name}" if path else name, (part, slot, name), leaf


def _is_empty(module: nn.Module) -> bool:
    """Whether it is a mould without values of its own, which a network of several agents fills at each call."""
    own = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    leaves = [*module.parameters(), *module.buffers(), *own]
    return bool(leaves) and all(leaf.is_meta for leaf in leaves)


def _leads_back(module: nn.Module, own: set[int]) -> bool:
    """Whether an attribute, hook or closure of a module reaches modules or parameters past their names.

    Such as a list of layers that the module keeps, a bound method, or a hook that closes over the module.
    """
    hooks = [hook for slot in ("_forward_hooks", "_forward_pre_hooks") for hook in vars(module)[slot].values()]
    values = [value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE and name != "_flat_weights"]
    pending, seen = [*values, *hooks, type(module).forward], set[int]()
    while pending and len(seen) < _MAX_OBJECTS:
        value = pending.pop()
        if id(value) in own:
            return True
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), type, Tensor, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        elif isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, types.FunctionType):
            pending += [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
            pending += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        elif not type(value).__module__.startswith(("torch", "tensordict")):
            pending += [*getattr(value, "__dict__", {}).values(), *slots(value)]
    return False


def slots(value: Any) -> list[Any]:
    """What an object holds in ``__slots__``, by the names under which Python keeps them."""
    found = []
    for cls in type(value).__mro__:
        names = vars(cls).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            found += [getattr(value, name)] if hasattr(value, name) else []
    return found


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


class Body:
    """A twin of a whole tree of modules.

    Args:
        module: the tree's root.

    Attributes:
        root: the root's twin.
        holders: parameters inside a ``TensorDictParams``, as networks of several agents have them: the dictionary and
            the name by which a twin finds them, and the path of the ``TensorDictParams`` in the tree.

    Raises:
        TwinError: if one of its modules cannot have a twin.
    """

    def __init__(self, module: nn.Module) -> None:
        self._twins: dict[int, Any] = {}
        self.holders: list[tuple[dict[str, Any], str, tuple[str, ...]]] = []
        own = {id(one) for one in (*module.modules(), *module.parameters(), *module.buffers())}
        for part in module.modules():
            if _leads_back(part, own):
                raise TwinError(f"an attribute or hook of a {type(part).__name__} leads back to its modules")
        self.root = self._twin(module, ())

    def _twin(self, module: nn.Module, path: tuple[str, ...]) -> Any:
        if id(module) in self._twins:
            return self._twins[id(module)]
        if "forward" in vars(module):
            raise TwinError(f"the forward of a {type(module).__name__} is its instance's own")
        cls = _twin_class(type(module))
        twin: Any = object.__new__(cls)
        self._twins[id(module)] = twin
        object.__setattr__(twin, "__dict__", vars(module))
        for slot, value in (("_parameters", {}), ("_buffers", {}), ("_modules", {}), ("_of", module)):
            getattr(_Twin, slot).__set__(twin, value)
        for name, child in module._modules.items():
            if isinstance(child, TensorDictParams):
                self.holders.append((twin._modules, name, (*path, name)))
            elif child is not None and _is_empty(child):
                twin._modules[name] = child
            else:
                twin._modules[name] = None if child is None else self._twin(child, (*path, name))
        return twin

    def home(self, place: Place) -> dict[str, Tensor]:
        """The twin's own dictionary for a place in the module's tree."""
        module, slot, _ = place
        return getattr(self._twins[id(module)], slot)

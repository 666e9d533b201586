"""A graph of operators made short: without what autograd alone needed, and called with as little Python as can be."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_ALIASES = (aten.alias.default, aten.detach.default)
_TRANSPOSED = aten.t.default
_PRODUCTS = (aten.mm.default, aten.addmm.default)


def _lstm_layer(*args: Any) -> tuple[Tensor, ...]:
    """An LSTM of oneDNN, which keeps what its gradient needs only where gradients are asked for."""
    with torch.enable_grad():
        return aten.mkldnn_rnn_layer.default(*(arg.detach() if isinstance(arg, Tensor) else arg for arg in args))


_BINDINGS = {
    aten.mkldnn_rnn_layer.default: _lstm_layer,
    # What is called most, without the look-up among overloads: a microsecond each.
    aten.abs.default: torch.abs,
    aten.abs_.default: torch.abs_,
    aten.add.Tensor: torch.add,
    aten.addcmul.default: torch.addcmul,
    aten.addmm.default: torch.addmm,
    aten.amax.default: torch.amax,
    aten.amin.default: torch.amin,
    aten.cat.default: torch.cat,
    aten.clamp.Tensor: torch.clamp,
    aten.clamp.default: torch.clamp,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.expand.default: Tensor.expand,
    aten.ge_.Tensor: Tensor.ge_,
    aten.logical_not.default: torch.logical_not,
    aten.masked_fill.Scalar: torch.masked_fill,
    aten.max.default: torch.max,
    aten.mean.default: torch.mean,
    aten.mean.dim: torch.mean,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.relu.default: torch.relu,
    aten.squeeze.dim: torch.squeeze,
    aten.stack.default: torch.stack,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.tanh.default: torch.tanh,
    aten.view.default: Tensor.view,
}


def as_calls(module: fx.GraphModule, count: int) -> Callable[[Sequence[Tensor]], list[Any]]:
    """What ``make_fx`` has recorded, simplified, as a function of the inputs.

    Args:
        module: the recording; parameters and buffers are its attributes.
        count: how many inputs there are.
    """
    _forget_source(module)
    _simplify(module.graph)
    held = _lift(module)
    used = _leave_out_unused(module.graph, count)
    module.recompile()
    _forget_source(module)
    forward = module.forward
    return lambda inputs: forward(*[inputs[index] for index in used], *held)


def _forget_source(module: fx.GraphModule) -> None:
    """Let go of the generated source, which torch.fx keeps for tracebacks as long as the process lives."""
    name = type(module).forward.__code__.co_filename
    fx.graph_module._loader.eval_cache.pop(name, None)  # no public name
    linecache.cache.pop(name, None)


def _simplify(graph: fx.Graph) -> None:
    """Leave out what autograd alone needed, and write where a product lies that nobody else reads."""
    for node in graph.nodes:
        if node.target in _ALIASES:
            source = node.args[0]  # which may itself be given, but not twice, and no input
            others = [user for user in source.users if user.op == "output" or user.target in _ALIASES]
            free = source.op == "call_function" and others == [node]
            node.replace_all_uses_with(source, lambda user, free=free: free or user.op != "output")
        elif node.target is _TRANSPOSED and node.args[0].target is _TRANSPOSED:
            node.replace_all_uses_with(node.args[0].args[0])
    for node in reversed(graph.nodes):
        if not node.users and node.target in (*_ALIASES, _TRANSPOSED):
            graph.erase_node(node)
    for node in graph.nodes:
        product = node.args[0] if node.args else None
        in_place = isinstance(product, fx.Node) and product.target in _PRODUCTS and len(product.users) == 1
        if in_place and node.target is aten.relu.default:
            node.target = torch.relu_
        elif in_place and node.target is aten.threshold_backward.default:
            node.target, node.kwargs = aten.threshold_backward.grad_input, {"grad_input": product}
    for node in graph.nodes:
        node.target = _BINDINGS.get(node.target, node.target)


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Make arguments of the parameters and buffers that the graph looks up as attributes, and give them."""
    *_, last = module.graph.find_nodes(op="placeholder")
    arguments: dict[str, fx.Node] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in arguments:
            with module.graph.inserting_after(last):
                last = arguments[node.target] = module.graph.placeholder(node.target)
        node.replace_all_uses_with(arguments[node.target])
        module.graph.erase_node(node)
    return [getattr(module, name) for name in arguments]


def _leave_out_unused(graph: fx.Graph, count: int) -> list[int]:
    """Erase what the function did not read of its inputs, and give the positions of what it did."""
    nodes = graph.find_nodes(op="placeholder")[:count]
    used = [index for index, node in enumerate(nodes) if node.users]
    for node in nodes:
        if not node.users:
            graph.erase_node(node)
    return used

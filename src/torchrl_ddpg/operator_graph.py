"""A term with its gradients as the operators that make it up, called without autograd and without Python's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer

from torchrl_ddpg import checks
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.losses.batch import Batch
from torchrl_ddpg.recordings import Recordings, leaves

Outputs = list[Any]  # tensors, and None where there is none
Term = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]

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
    aten.addmm.default: torch.addmm,
    aten.cat.default: torch.cat,
    aten.mean.default: torch.mean,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.relu.default: torch.relu,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.tanh.default: torch.tanh,
}


class NotRecordableError(Exception):
    """What a function does is not in its operators alone."""


class OperatorGraph:
    """A function of tensors: called as it is, then recorded, then held against its recording, then replayed.

    The first call lets the function say in words what is wrong with a batch, and spares a kind of batch that comes
    once. The second notes the operators, those of its gradients among them. The third runs both, so that what Python
    does with values is found out. Parameters and buffers are read where they lie: a replay sees changes made in place.

    Args:
        function: what to record.
        state: gives the tensors that it may change in place.
    """

    def __init__(self, function: Callable[[Sequence[Tensor]], Outputs], state: Callable[[], Sequence[Tensor]]) -> None:
        self.function, self.state = function, state
        self.called, self.verified = False, False
        self.refused = ""  # why
        self.operators: Any = None  # a function of the inputs, once recorded

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        """Call the function, or its operators.

        Raises:
            NotRecordableError: if the operators alone do not do what the function does.
        """
        if self.refused:
            raise NotRecordableError(self.refused)
        # Autocast keeps casts of parameters between calls, and without gradients the function says so.
        if not self.called or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            outputs = self.function(inputs)
            self.called = True
            return outputs
        if self.operators is None:
            return self._record(inputs)
        if not self.verified:
            self._verify(inputs)
        return self._replay(inputs)

    def _refuse(self, reason: str | Exception) -> NoReturn:
        self.refused = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        raise NotRecordableError(self.refused) from (reason if isinstance(reason, Exception) else None)

    def _record(self, inputs: Sequence[Tensor]) -> Outputs:
        outputs: Outputs = []

        def of_values(*values: Tensor) -> Outputs:
            outputs[:] = self.function(values)
            return outputs

        try:
            with checks.contents_unread():  # inputs are told apart by identity, and two entries may be one tensor
                module = make_fx(of_values)(*(value.detach() for value in inputs))
        except Exception as error:
            self.function(inputs)  # raises if it is the batch that is wrong
            self._refuse(error)
        _simplify(module.graph)
        held = _lift(module)
        module.recompile()
        forward = module.forward
        self.operators = lambda *inputs: forward(*inputs, *held)
        return outputs

    def _replay(self, inputs: Sequence[Tensor]) -> Outputs:
        try:
            with torch.no_grad():
                return self.operators(*inputs)
        except Exception as error:  # such as a number of samples that depends on their values
            self.function(inputs)
            self._refuse(error)

    def _verify(self, inputs: Sequence[Tensor]) -> None:
        """Run both on these inputs, and leave the state and the random numbers as they were."""
        state, numbers = self.state(), torch.get_rng_state()
        before, runs = [tensor.clone() for tensor in state], []
        for run in (self.function, self._replay):
            runs.append(run(inputs))
            torch.set_rng_state(numbers)
            for tensor, value in zip(state, before, strict=True):
                tensor.data.copy_(value)
        if not all(map(_agree, *runs)):
            self._refuse("a replay gives other numbers")
        self.verified = True


def _agree(value: Any, other: Any) -> bool:
    """Whether two outputs are equal, but for what the order of a sum may change."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return bool(value is other or value == other)
    if value.layout is not torch.strided:
        return _agree(value.to_dense(), other.to_dense())
    if value.shape != other.shape or not value.is_floating_point():
        return torch.equal(value, other)
    size = value.abs().nan_to_num(0.0, 0.0).max() if value.numel() else 0.0
    return torch.allclose(value, other, rtol=0.0, atol=1e-4 * float(size) + 1e-8, equal_nan=True)


def _simplify(graph: fx.Graph) -> None:
    """Leave out what autograd alone needed, and write where a product lies that nobody else reads."""
    for node in graph.nodes:
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0], lambda user: user.op != "output")
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


class _Recording:
    """One term on one kind of batch, with the gradients of all that is trained.

    Args:
        loss: the loss.
        term: gives the term and its metrics.
        batch: a batch of that kind.
        parameters: what is trained.
    """

    def __init__(
        self, loss: DeterministicPolicyLoss, term: Term, batch: Batch, parameters: Iterable[nn.Parameter]
    ) -> None:
        self.loss, self.term, self.like = loss, term, batch.without_tensors()
        self.keys = list(leaves(batch.tensors()))
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.metrics: list[str] = []
        self.graph = OperatorGraph(self._function, loss.state)

    def _function(self, values: Sequence[Tensor]) -> Outputs:
        entries = dict(zip(self.keys, values, strict=True))
        batch = self.loss.batch(self.like.copy().update(entries))
        loss, metrics = self.term(batch)
        gradients = torch.autograd.grad(loss, self.trained, allow_unused=True)
        self.metrics = list(metrics)
        outputs = [loss.detach(), batch.source.get(self.loss.tensor_keys.priority, None), *metrics.values()]
        return outputs + _apart(gradients, self.trained, (*values, *outputs))


def _apart(gradients: Sequence[Any], parameters: Sequence[Tensor], others: Sequence[Any]) -> Outputs:
    """Gradients that are laid out like their parameters and share memory with nothing, as autograd leaves them."""
    seen = {value.untyped_storage().data_ptr() for value in (*parameters, *others) if isinstance(value, Tensor)}
    apart: Outputs = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None and gradient.layout is torch.strided:
            address = gradient.untyped_storage().data_ptr()
            if address in seen or gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            seen.add(address)
        apart.append(gradient)
    return apart


class RecordedTerms:
    """The terms of a loss, whose gradients are added to the parameters' own; each recorded for each kind of batch.

    Args:
        owner: who asks, for messages.
        loss: the loss.
        call: gives a term, by its method's name, and its metrics of a batch.
        optimizers: what trains the loss's parameters, and perhaps others.
    """

    def __init__(
        self,
        owner: str,
        loss: DeterministicPolicyLoss,
        call: Callable[[str, Batch], tuple[Tensor, dict[str, Tensor]]],
        optimizers: Iterable[Optimizer],
    ) -> None:
        self.owner, self.loss, self.call, self.optimizers = owner, loss, call, tuple(optimizers)
        self.recordings: Recordings[_Recording] = Recordings(self._held)

    def __call__(self, term: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A term, detached, and its metrics; writes the priority.

        Raises:
            RuntimeError: if the term cannot be recorded.
        """
        recording = self.recordings.of((term, batch.signature()), lambda: self._recording(term, batch))
        try:
            loss, priority, *rest = recording.graph(list(leaves(batch.tensors()).values()))
        except NotRecordableError as error:
            raise RuntimeError(
                f"{self.owner}: compile=True cannot record {term}, because its operators alone do not give what "
                f"it gives ({str(error).splitlines()[0]}): mostly a network does in Python what depends on values "
                f"(if, .item(), .numpy()). Leave compile out, or let it do so with tensors, as torch.where does."
            ) from error
        name = self.loss.critic_loss_key if term == "loss_value" else term
        checks.finite_loss(type(self.loss).__name__, name, loss, batch.values)
        count = len(recording.metrics)
        for parameter, gradient in zip(recording.trained, rest[count:], strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if priority is not None:
            batch.write_priority(priority)
        return loss, dict(zip(recording.metrics, rest[:count], strict=True))

    def _recording(self, term: str, batch: Batch) -> _Recording:
        parameters = dict.fromkeys([*self.loss.parameters(), *self._optimized()])
        return _Recording(self.loss, partial(self.call, term), batch, parameters)

    def _optimized(self) -> list[nn.Parameter]:
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def _held(self) -> list[Any]:
        return [*self.loss.held(), *self._optimized()]

"""A term with its gradients as the operators that make it up, called without autograd and without Python's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torchrl_ddpg import checks
from torchrl_ddpg.batch import Batch
from torchrl_ddpg.entries import write
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.update.graph_passes import as_calls
from torchrl_ddpg.update.recordings import Form, Recordings, Watch

Outputs = list[Any]  # tensors, and None where there is none

# Replays between two comparisons with the function itself: for what nobody can see, such as a file that it reads.
COMPARE_EVERY = 1000

# How Python gets at values, which then are no tensors any more.
_READS = [Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__, Tensor.__float__]
_READS += [Tensor.__index__, Tensor.__complex__, Tensor.__dlpack__]


class NotRecordableError(Exception):
    """What a function does is not in its operators alone."""


class _ReadsNoValues(TorchFunctionMode):
    """Refuses what takes a value out of a tensor: a replay would go on with the value of the first batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            raise NotRecordableError(f"{func.__name__}() takes values out of a tensor")
        return func(*args, **(kwargs or {}))


class OperatorGraph:
    """A function of tensors: called as it is, then recorded, then compared with its recording, then replayed.

    The first call lets the function say what is wrong with a batch, and a form of batch seen only once is not recorded.
    The second notes the operators, those of its gradients among them. The third runs both, and so does every
    ``COMPARE_EVERY``-th from then on, so that what Python does with values is found out. Parameters and buffers are
    read where they lie: a replay sees changes made in place.

    Args:
        function: what to record.
        state: gives the tensors that it may change in place.
    """

    def __init__(self, function: Callable[[Sequence[Tensor]], Outputs], state: Callable[[], Sequence[Tensor]]) -> None:
        self.function, self.state = function, state
        self.called, self.replays = False, 0
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
        if self.replays % COMPARE_EVERY == 0:
            self._compare(inputs)
        self.replays += 1
        return self._replay(inputs)

    def _refuse(self, reason: str | Exception) -> NoReturn:
        cause: BaseException | None = reason if isinstance(reason, Exception) else None
        while cause is not None and not isinstance(cause, NotRecordableError):
            cause = cause.__cause__
        if isinstance(reason, Exception):
            reason = str(cause) if cause is not None else f"{type(reason).__name__}: {reason}"
        self.refused = reason
        raise NotRecordableError(self.refused)

    def _record(self, inputs: Sequence[Tensor]) -> Outputs:
        outputs: Outputs = []

        def of_values(*values: Tensor) -> Outputs:
            with _ReadsNoValues():
                outputs[:] = self.function(values)
            return outputs

        try:
            with checks.contents_unread():  # inputs are told apart by identity, and two entries may be one tensor
                module = make_fx(of_values)(*(value.detach() for value in inputs))
        except Exception as error:
            self.function(inputs)  # raises if it is the batch that is wrong
            self._refuse(error)
        self.operators = as_calls(module, len(inputs))
        return outputs

    def _replay(self, inputs: Sequence[Tensor]) -> Outputs:
        try:
            with torch.no_grad():
                return self.operators(inputs)
        except Exception as error:  # such as a number of samples that depends on their values
            self.function(inputs)
            self._refuse(error)

    def _compare(self, inputs: Sequence[Tensor]) -> None:
        """Run both on these inputs, and leave the state and the random numbers as they were."""
        state, numbers = self.state(), torch.get_rng_state()
        before, runs = [tensor.clone() for tensor in state], []
        for run in (self.function, self._replay):
            runs.append([*run(inputs), *(tensor.clone() for tensor in state)])
            torch.set_rng_state(numbers)
            for tensor, value in zip(state, before, strict=True):
                if not torch.equal(tensor, value):  # some cannot be written to
                    tensor.data.copy_(value)
        if not all(map(_agree, *runs)):
            self._refuse("replaying its operators gives a different result")


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


class _Recording:
    """One term on one form of batch, with the gradients of all that is trained.

    Args:
        loss: the loss.
        method: the public method that gives the term.
        batch: a batch of that form.
        parameters: what is trained.
    """

    def __init__(
        self, loss: DeterministicPolicyLoss, method: str, batch: TensorDictBase, parameters: Iterable[nn.Parameter]
    ) -> None:
        self.loss, self.method, self.form = loss, method, Form(batch)
        self.trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.metrics: list[str] = []
        self.written: list[NestedKey] = []
        self.graph = OperatorGraph(self._function, loss.state)

    def _function(self, values: Sequence[Tensor]) -> Outputs:
        if any(parameter._backward_hooks or parameter._post_accumulate_grad_hooks for parameter in self.trained):
            raise NotRecordableError("a parameter has a hook, which a replay would not run")
        batch = self.form.filled(values)
        loss, metrics = getattr(self.loss, self.method)(batch)
        gradients: Sequence[Any] = ()
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, self.trained, allow_unused=True)
        metrics = {name: value.detach() for name, value in metrics.items() if value.ndim == 0}
        written = self.form.written(batch, values)
        self.metrics, self.written = list(metrics), list(written)
        outputs = [loss.detach(), *metrics.values(), *written.values()]
        return outputs + _apart(gradients, self.trained[: len(gradients)], (*values, *outputs))


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
    """The terms of a loss, whose gradients are added to the parameters' own; each recorded for each form of batch.

    Args:
        loss: the loss.
        optimizers: what trains the loss's parameters, and perhaps others.
    """

    def __init__(self, loss: DeterministicPolicyLoss, optimizers: Iterable[Optimizer]) -> None:
        self.loss, self.optimizers = loss, tuple(optimizers)
        self.recordings: Recordings[_Recording] = Recordings(Watch(loss, self._optimized))

    def __call__(self, method: str, key: str, batch: TensorDictBase, read: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A term, detached, and its metrics; writes what the term writes into the batch.

        Args:
            method: the loss's method.
            key: the name of its loss among the outputs.
            batch: the user's.
            read: what the loss has read of it.

        Raises:
            RuntimeError: if the term cannot be recorded.
        """
        recording = self.recordings.of((method, read.form()), lambda: self._recording(method, batch))
        try:
            loss, *rest = recording.graph(recording.form.values(batch))
        except NotRecordableError as error:
            raise RuntimeError(
                f"record_operators=True cannot record {key}, because its operators alone do not give what it gives "
                f"({str(error).splitlines()[0]}): mostly the Python of a network depends on values (if, .item(), "
                f".numpy()). Leave record_operators out, or let the network use tensors, as torch.where does."
            ) from error
        self.loss.check_loss(key, loss, read)
        count, written = len(recording.metrics), len(recording.metrics) + len(recording.written)
        for parameter, gradient in zip(recording.trained, rest[written:], strict=False):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        write(batch, dict(zip(recording.written, rest[count:written], strict=True)))
        return loss, dict(zip(recording.metrics, rest[:count], strict=True))

    def _recording(self, method: str, batch: TensorDictBase) -> _Recording:
        parameters = dict.fromkeys([*self.loss.parameters(), *self._optimized()])
        return _Recording(self.loss, method, batch, parameters)

    def _optimized(self) -> list[nn.Parameter]:
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

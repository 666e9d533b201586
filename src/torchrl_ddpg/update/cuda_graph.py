"""A step as a CUDA graph: the launches of its kernels recorded once and replayed together."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from torchrl_ddpg.batch import Batch
from torchrl_ddpg.entries import write
from torchrl_ddpg.losses.base import DeterministicPolicyLoss
from torchrl_ddpg.update.recordings import Form, Recordings, Watch

Tensors = dict[Any, Tensor]

# Calls before a recording: lazy initialisation, compilation and the optimizers' state must not become part of it.
WARM_UP = 3
_DEVICE_TYPE = "cuda"
# A rate as a tensor can be scheduled without recording anew; others read it on the host, which a recording cannot.
_TAKES_A_TENSOR = (Adam, AdamW, NAdam, RAdam, Adamax)


class CudaGraph:
    """A function of tensors that changes its state in place; recorded after ``WARM_UP`` calls, then replayed.

    A call copies the inputs to where the kernels read them; a replay never waits for the device. What a call gives are
    copies.

    Args:
        function: takes and gives a dict of detached tensors on the current CUDA device.
        stream: where it is warmed up and recorded, of that device.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], stream: torch.cuda.Stream) -> None:
        self.function, self.stream, self.calls = function, stream, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Tensors = {}
        self.names: list[Any] = []

    def __call__(self, inputs: Tensors) -> Tensors:
        """Call the function, or replay what it does."""
        self.calls += 1
        if self.calls == 1:
            self.inputs = {key: value.detach().clone() for key, value in inputs.items()}
        else:
            with torch.no_grad():
                torch._foreach_copy_(list(self.inputs.values()), [inputs[key] for key in self.inputs])
        if self.calls <= WARM_UP:  # on the tensors that the graph will read: other strides would be compiled anew
            return {key: value.clone() for key, value in self._call_aside().items()}
        if self.graph is None:
            self.graph = self._record()
        self.graph.replay()
        scalars = dict(zip(self.names, self.scalars.clone().unbind(), strict=True))
        return {**scalars, **{key: value.clone() for key, value in self.others.items()}}

    def _call_aside(self) -> Tensors:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.function(self.inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # no other graph may end during a recording
        # Nothing runs before the replay; other threads, such as a replay buffer's, may go on meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            outputs = self.function(self.inputs)
            self.names = [key for key, value in outputs.items() if value.ndim == 0]
            self.scalars = torch.stack([outputs[key] for key in self.names])  # one copy for all of them
        self.others = {key: value for key, value in outputs.items() if value.ndim}
        return graph


class RecordedStep:
    """An update as CUDA graphs: one for each form of batch, with the actor's part and without.

    Args:
        update: the eager step, of a batch, what the loss has read of it, and whether the actor takes part.
        loss: the loss that it descends.
        optimizers: the actor's and the critic's, by their arguments' names; they are made capturable.

    Raises:
        ValueError: if the loss is not on a CUDA device, or an optimizer cannot be recorded.
    """

    def __init__(
        self,
        update: Callable[[TensorDictBase, Batch, bool], dict[str, Tensor]],
        loss: DeterministicPolicyLoss,
        optimizers: Mapping[str, Optimizer],
    ) -> None:
        device = next(loss.parameters()).device
        if device.type != _DEVICE_TYPE:
            raise ValueError(
                f"cuda_graph=True records on a CUDA device and the loss is on {device}; move the loss before "
                f"the optimizers are built, or leave cuda_graph out."
            )
        self.update, self.loss, self.optimizers = update, loss, optimizers
        self._prepare()
        self.graphs: Recordings[CudaGraph] = Recordings(Watch(loss, self._held), self._prepare)

    def __call__(self, batch: TensorDictBase, read: Batch, with_actor: bool) -> dict[str, Tensor]:
        """Do one step."""
        self.graphs.refresh()
        graph = self.graphs.of((read.form(), with_actor), lambda: self._graph(batch, read, with_actor))
        form = Form(batch)
        with torch.cuda.device_of(next(self.loss.parameters())):  # whose current stream waits
            outputs = graph(dict(zip(form.keys, form.values(batch), strict=True)))
        write(batch, {key[1]: outputs.pop(key) for key in list(outputs) if isinstance(key, tuple)})
        return outputs

    def _graph(self, batch: TensorDictBase, read: Batch, with_actor: bool) -> CudaGraph:
        form = Form(batch)

        def step(tensors: Tensors) -> Tensors:
            copied = form.filled(tensors.values())
            metrics = self.update(copied, read, with_actor)
            written = form.written(copied, tensors.values())
            return {**metrics, **{("written", key): value for key, value in written.items()}}

        return CudaGraph(step, self.stream)

    def _prepare(self) -> None:
        self.stream = torch.cuda.Stream(next(self.loss.parameters()).device)
        for role, optimizer in self.optimizers.items():
            make_capturable(role, optimizer)

    def _held(self) -> list[Any]:
        """What the graphs hold beside the loss: addresses and the optimizers' numbers."""
        held: list[Any] = []
        held += [tensor.data_ptr() for tensors in self.loss.target_pairs("parameters") for tensor in tensors]
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                held += [parameter.data_ptr() for parameter in group["params"]]
                held += [value for key, value in group.items() if key != "params"]  # a loaded group's rate is another
        return held


def make_capturable(role: str, optimizer: Optimizer) -> None:
    """Let a graph hold the optimizer's step: counts become tensors beside the parameters, and so do Adam's rates.

    Raises:
        ValueError: if the optimizer decides on the host.
    """
    for group in optimizer.param_groups:
        if "capturable" not in group and type(optimizer) is not SGD:
            raise ValueError(
                f"cuda_graph=True cannot record {role}, a {type(optimizer).__name__}, which decides on the "
                f"host; accepted: an optimizer that takes capturable=True, such as torch.optim.Adam, or SGD."
            )
        if "capturable" in group:
            group["capturable"] = True
            # A copied optimizer would warn, while it is warmed up, that nothing is recorded.
            optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            state |= {
                key: value.to(parameter.device, torch.float32)
                for key, value in state.items()
                if isinstance(value, Tensor) and value.ndim == 0
            }
        if isinstance(optimizer, _TAKES_A_TENSOR) and group["params"]:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)

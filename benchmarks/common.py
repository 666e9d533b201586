"""What the benchmarks share: networks and a batch of HalfCheetah's sizes, interleaved timing, tables."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

OBSERVATION, ACTION = 17, 6
# The trainer's flags for 100 frames at a time, from four environments; its preset `mujoco` collects four at a time.
BATCHED = ["--steps-per-batch", "25", "--updates-per-batch", "100"]
# Its flags for the hyperparameters of later programs; the preset has those of TD3's paper.
LATER = ["--hidden", "256", "256", "--replay.batch", "256", "--actor-lr", "3e-4", "--critic-lr", "3e-4"]


class Critic(nn.Module):
    """Q(s, a) of two hidden layers, which sees the action from the first on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION + ACTION, width, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Value, ``[*B, 1]``."""
        return self.net(torch.cat([observation, action], -1))


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU."""
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    return nn.Sequential(*layers)


def networks(width: int, device: str = "cpu", critics: int = 1) -> tuple[nn.Module, list[nn.Module]]:
    """An actor and its critics, the same for every contestant."""
    torch.manual_seed(0)
    actor = nn.Sequential(mlp(OBSERVATION, width, ACTION), nn.Tanh())
    return actor.to(device), [Critic(width).to(device) for _ in range(critics)]


def tensordict_networks(width: int, device: str = "cpu", critics: int = 1) -> tuple:
    """The same, as TensorDict modules."""
    actor, heads = networks(width, device, critics)
    wrapped = [ValueOperator(critic, in_keys=["observation", "action"]) for critic in heads]
    return TensorDictModule(actor, in_keys=["observation"], out_keys=["action"]), wrapped


def batch(size: int, device: str = "cpu") -> TensorDict:
    """Random transitions."""
    flag = torch.zeros(size, 1, dtype=torch.bool)
    later = {"observation": torch.randn(size, OBSERVATION), "reward": torch.randn(size, 1)}
    root = {"observation": torch.randn(size, OBSERVATION), "action": torch.rand(size, ACTION) * 2 - 1}
    return TensorDict({**root, "next": {**later, "done": flag, "terminated": flag.clone()}}, [size]).to(device)


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int, calls: int = 3) -> dict[str, float]:
    """Median milliseconds a call, each contestant in turn in every round, so that noise falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        for _ in range(10):
            contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                contestant()
            synchronize()
            times[name].append((time.perf_counter() - began) / calls * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def print_table(header: list[str], rows: list[list[object]]) -> None:
    """A table in Markdown."""
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    print(flush=True)


def print_machine(*packages: str) -> None:
    """Hardware, date and versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = f"{len(names)} cores of {names[0].partition(': ')[2]}" if names else processor
    if torch.cuda.is_available():
        processor += f", {torch.cuda.get_device_name()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrl", "tensordict", *packages))
    print(f"{processor}; {datetime.date.today()}; Python {platform.python_version()}, {versions}\n", flush=True)

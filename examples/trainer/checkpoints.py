"""Checkpoints of a whole run, so that one that was interrupted goes on as if it had not been."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint, CheckpointRotation, GlobalRNGState, StateDictCheckpointAdapter
from torchrl.data import LazyMemmapStorage

from trainer.errors import UserError, refusing


class DiskStorage(LazyMemmapStorage):
    """A replay buffer's memory-mapped files in a temporary folder that goes when it goes.

    Left to itself, TorchRL fills /dev/shm, which is memory, and takes over SIGINT and SIGTERM.
    """

    def __init__(self, size: int) -> None:
        folder = tempfile.mkdtemp(prefix="replay-")
        super().__init__(size, scratch_dir=folder)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)


class ReplayContent:
    """What a replay buffer holds, its sampler's priorities and where it writes next, as files.

    ``torch.save`` raises when a disk is full, where memory-mapped files end the process without a word, and it writes
    what is filled, not what is reserved.
    """

    def __init__(self, replay) -> None:
        self.replay = replay

    def dump(self, path: Path) -> None:
        """Write it into a folder."""
        stored = self.replay.storage[: len(self.replay)].flatten_keys(" ").clone()
        content = {"capacity": self.replay.storage.max_size, "batch_size": list(stored.batch_size)}
        torch.save(content | {"items": stored.to_dict()}, path / "content.pt")
        self.replay.sampler.dumps(path / "sampler")
        self.replay.writer.dumps(path / "writer")

    def load(self, path: Path) -> None:
        """Fill the buffer with it; a buffer of another size takes the items, oldest first."""
        capacity, items = read_items(path)
        writer, same = self.replay.writer, capacity == self.replay.storage.max_size
        writer.loads(path / "writer")
        if not same and len(items) == capacity:  # the next to be overwritten is the oldest
            items = items[torch.arange(capacity).roll(-writer.state_dict()["_cursor"])]
        self.replay.empty()
        self.replay.extend(items)
        if same:
            writer.loads(path / "writer")
            self.replay.sampler.loads(path / "sampler")


def read_items(path: Path) -> tuple[int, TensorDict]:
    """How many items fitted into a replay buffer that was written to a folder, and those that it held."""
    content = torch.load(path / "content.pt", weights_only=True)
    return content["capacity"], TensorDict(content["items"], content["batch_size"]).unflatten_keys(" ")


class Checkpoints:
    """The latest checkpoint of a run and the best one, each written beside the old one and put into place at once.

    Args:
        folder: the run's output folder.
        records: the run's :class:`~trainer.records.Records`, which are needed before the rest is built.
    """

    def __init__(self, folder: Path, records) -> None:
        self.folder, self.records, self.replay, self.saved = folder, records, None, None
        self.rotation = CheckpointRotation(folder / "checkpoints", keep_last=1, keep_best=("eval_return", "max"))
        self.checkpoint = Checkpoint()
        self._register("records", records)

    def _register(self, name: str, part) -> None:
        self.checkpoint.register(name, part, adapter=StateDictCheckpointAdapter("torch"))

    def register(self, replay, **parts) -> None:
        """Take in the replay buffer, and everything else with a ``state_dict``, by name."""
        self.replay = replay
        for name, part in parts.items():
            self._register(name, part)
        self._register("random_numbers", GlobalRNGState())

    def save(self) -> None:
        """Write a checkpoint, unless nothing has happened since the last one or there is no room for it."""
        records = self.records
        if self.saved == (records.frames, records.updates):
            return
        needed = len(self.replay) * self.replay.storage[:1].bytes() if len(self.replay) else 0
        free = shutil.disk_usage(self.folder).free
        if needed + 2**24 > free:
            raise UserError(
                f"no room for a checkpoint in {self.folder}: it takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB "
                f"are free. Earlier checkpoints are as they were; make room and go on with --resume {self.folder}."
            )
        if len(self.replay) and "replay" not in self.checkpoint:
            self.checkpoint.register("replay", ReplayContent(self.replay))
        latest = -1e30 if records.latest is None else records.latest  # never evaluated
        with refusing(f"no checkpoint could be written into {self.folder}", "the earlier ones are as they were"):
            self.rotation.save(self.checkpoint, step=records.frames, metadata={"eval_return": latest})
        self.saved = (records.frames, records.updates)

    def load(self, *names: str) -> None:
        """Go on from the latest checkpoint; random numbers come last, when nothing draws any more."""
        latest = self.rotation.latest()
        if latest is None:
            raise UserError(f"--resume {self.folder}: no checkpoint is there; accepted: a run's output folder.")
        for part in latest.parent.glob(".*.stage-*"):  # what a killed run had begun to write
            shutil.rmtree(part, ignore_errors=True)
        saved = set(names) or set(Checkpoint.manifest(latest)["components"]) - {"records"}
        if "replay" in saved:
            self.checkpoint.register("replay", ReplayContent(self.replay))
        with refusing(f"--resume {self.folder}"):
            for selected in (saved - {"random_numbers"}, saved & {"random_numbers"}):
                self.checkpoint.load(latest, components=selected)


def read_transitions(folder: Path) -> TensorDict:
    """The transitions that a run has kept in its latest checkpoint."""
    latest = CheckpointRotation(folder / "checkpoints", keep_last=1).latest()
    record = latest and Checkpoint.manifest(latest)["components"].get("replay")
    if not record:
        raise ValueError("it holds no checkpoint with a replay buffer")
    return read_items(latest / record["path"])[1]

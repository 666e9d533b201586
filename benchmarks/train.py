"""Frames per second of whole training runs, one update per frame, beside SB3's: ``python benchmarks/train.py``.

The contestants run a few seconds each in turn, all others stopped, so that a machine whose speed changes with its
neighbours is the same machine for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import BATCHED, LATER, print_machine, print_table, synchronize
from update import hand_written

TRAINER = Path(__file__).parent.parent / "examples" / "train_ddpg.py"
ENVIRONMENT = "HalfCheetah-v5"
FOREVER = 10_000_000


def run_sb3(loss: str, random_frames: int, device: str) -> None:
    """Train SB3 with the hyperparameters of the trainer and its own default of threads, and print its frames."""
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3 import build

    class Progress(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % 10 == 0:
                print(f"{self.num_timesteps}/{FOREVER}", end="\r", file=sys.stderr, flush=True)
            return True

    build(loss, ENVIRONMENT, random_frames, device=device).learn(FOREVER, callback=Progress())


def run_updates(device: str) -> None:
    """The hand-written update of ``update.py`` over and over, one for a frame that is never collected."""
    step = hand_written(256, 256, device, 1)
    for count in range(1, FOREVER):
        step()
        if count % 10 == 0:
            synchronize()
            print(f"{count}/{FOREVER}", end="\r", file=sys.stderr, flush=True)


class Contestant:
    """A training run in processes of its own, which stand still except in its turns; it says its frames as n/total."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
        self.rates: list[float] = []

    def frames(self) -> int:
        """Frames so far."""
        if self.process.poll() is not None:
            sys.exit(f"a contestant ended:\n{self.log.read_text()}")
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 1000))  # cheap: the contestant is running beside this
            counts = re.findall(rf"(\d+)/{FOREVER}", log.read().decode(errors="replace"))
        return int(counts[-1]) if counts else 0

    def signal(self, number: int) -> None:
        """To the run and all its workers."""
        os.killpg(self.process.pid, number)

    def warm_up(self, frames: int) -> None:
        """Run until the clock may start."""
        while self.frames() < frames:
            time.sleep(0.1)
        self.signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Run for a while, to the end of a batch, and note the frames a second."""
        first, began = self.frames(), time.perf_counter()
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        at_least = self.frames()
        while (last := self.frames()) == at_least:
            time.sleep(0.01)
        self.signal(signal.SIGSTOP)
        self.rates.append((last - first) / (time.perf_counter() - began))

    def end(self) -> None:
        """Ctrl-C, and after half a minute the end."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.signal(signal.SIGKILL)  # also workers that outlived it
        self.process.wait()


def commands(loss: str, random_frames: int, device: str) -> dict[str, list[str]]:
    """The contestants' command lines; the trainer's evaluation is left out."""
    options = {"--env.name": ENVIRONMENT, "--device": device, "--total-frames": FOREVER, "--eval.interval": 0}
    options |= {"--init-random-frames": random_frames, "--env.random-steps": 1000, "--loss": loss.removesuffix("-256")}
    trainer = [sys.executable, str(TRAINER), "mujoco", *(str(word) for pair in options.items() for word in pair)]
    trainer += LATER + BATCHED if loss.endswith("-256") else []
    this = [sys.executable, str(Path(__file__).resolve()), "--device", device, "--loss", loss]
    ways = {
        "SB3": [*this, "--sb3", "--warm-up", str(2 * random_frames)],
        "this trainer, collecting synchronously": [*trainer, "--collector", "sync"],
        "this trainer, collecting asynchronously": [*trainer, *BATCHED, "--collector", "async"],
    }
    if loss == "ddpg-256":
        ways["hand-written updates, nothing collected"] = [*this, "--updates"]
    if device == "cuda":
        ways["synchronously, compile, cuda_graph"] = [*trainer, "--update", "cuda-graph", "--collector", "sync"]
        ways["asynchronously, compile, cuda_graph"] = [*trainer, "--update", "cuda-graph", "--collector", "async"]
    return ways


def compare(loss: str, device: str, rounds: int, seconds: float, warm_up: int) -> None:
    """Let every contestant run in its turns, and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`, which ends the contestants
    print_machine("gymnasium", "mujoco", "stable-baselines3")
    contestants: dict[str, Contestant] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, (name, command) in enumerate(commands(loss, warm_up // 2, device).items()):
                place = Path(folder) / str(number)
                place.mkdir()
                contestants[name] = Contestant(command, place)
                contestants[name].warm_up(warm_up)
            for _ in range(rounds):
                for contestant in contestants.values():
                    contestant.turn(seconds)
        finally:
            for contestant in contestants.values():
                contestant.end()
    base = contestants["SB3"].rates
    rows = []
    for name, contestant in contestants.items():
        quartiles = statistics.quantiles(contestant.rates, n=4) if rounds > 1 else contestant.rates * 3
        ratio = statistics.median(rate / other for rate, other in zip(contestant.rates, base, strict=True))
        rows.append([name, quartiles[1], f"{quartiles[0]:.0f} to {quartiles[2]:.0f}", ratio])
    sizes = "two layers of 256, batch 256" if loss.endswith("-256") else "layers of 400 and 300, batch 100"
    print(f"{loss.upper()} on {ENVIRONMENT}, {sizes}, one update per frame, {device}:\n")
    print_table(["", "frames/s, median", "middle half of the turns", "of SB3's, median of rounds"], rows)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--loss", choices=["ddpg", "ddpg-256", "td3", "td3-256"], default="ddpg")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--warm-up", type=int, default=2000, help="frames before the first turn, half of them random")
    parser.add_argument("--sb3", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--updates", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sb3:
        run_sb3(args.loss, args.warm_up // 2, args.device)
    elif args.updates:
        run_updates(args.device)
    else:
        compare(args.loss, args.device, args.rounds, args.seconds, args.warm_up)


if __name__ == "__main__":
    main()

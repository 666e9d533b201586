"""Frames a second of whole training runs, one update a frame, beside SB3's DDPG: ``python benchmarks/train.py``."""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import print_machine, print_table

TRAINER = Path(__file__).parent.parent / "examples" / "train_ddpg.py"
ENVIRONMENT = "HalfCheetah-v5"


def run_sb3(frames: int, random_frames: int, first: int, device: str) -> None:
    """Train SB3's DDPG at the sizes of the preset ``mujoco`` and print the frames a second from ``first`` on."""
    import numpy as np
    from stable_baselines3 import DDPG
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise

    class Clock(BaseCallback):
        began = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps == first:
                self.began = time.perf_counter()
            return True

    options = {"learning_rate": 3e-4, "batch_size": 256, "tau": 0.005, "train_freq": 1, "gradient_steps": 1}
    noise, networks = NormalActionNoise(np.zeros(6), 0.1 * np.ones(6)), {"net_arch": [256, 256]}
    model = DDPG(
        "MlpPolicy",
        ENVIRONMENT,
        learning_starts=random_frames,
        action_noise=noise,
        policy_kwargs=networks,
        device=device,
        **options,
    )
    clock = Clock()
    model.learn(frames, callback=clock)
    print((frames - first) / (time.perf_counter() - clock.began))


def rate_of_sb3(*args: int | str) -> float:
    """SB3 in a process of its own, with its own default of threads."""
    command = [sys.executable, __file__, "--sb3", *map(str, args)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def rate_of_trainer(frames: int, random_frames: int, first: int, device: str, *flags: str) -> float:
    """``train_ddpg.py mujoco`` with its evaluation left out, timed by its own metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = {"--total-frames": frames, "--init-random-frames": random_frames, "--eval.interval": 0}
        numbers |= {"--env.random-steps": 1000, "--output-dir": folder, "--device": device, "--env.name": ENVIRONMENT}
        words = [str(word) for pair in numbers.items() for word in pair]
        subprocess.run([sys.executable, TRAINER, "mujoco", *words, *flags], check=True, capture_output=True)
        with (Path(folder) / "metrics.csv").open() as file:
            rows = [(int(row["frames"]), float(row["seconds"])) for row in csv.DictReader(file)]
    (frame, second), (last_frame, last_second) = next(row for row in rows if row[0] >= first), rows[-1]
    return (last_frame - frame) / (last_second - second)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", type=int, default=4000, help="frames of each run; 1000, or a quarter, are random")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contestant, in turn")
    parser.add_argument("--sb3", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sb3:
        run_sb3(*map(int, args.sb3[:3]), args.sb3[3])
        return
    print_machine("gymnasium", "mujoco", "stable-baselines3")
    random_frames = min(1000, args.frames // 4)
    setting = (args.frames, random_frames, 2 * random_frames, args.device)
    ways = {
        "SB3": lambda: rate_of_sb3(*setting),
        "this trainer, collecting in turn": lambda: rate_of_trainer(*setting, "--collector", "sync"),
        "this trainer, collecting beside learning": lambda: rate_of_trainer(*setting),
    }
    if args.device == "cuda":
        ways["the same, compile, cuda_graph"] = lambda: rate_of_trainer(*setting, "--compile", "--cuda-graph")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            rates[name].append(way())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    rows = [
        [name, value, min(rates[name]), max(rates[name]), value / medians["SB3"]] for name, value in medians.items()
    ]
    print(f"DDPG on {ENVIRONMENT}, two layers of 256, batch 256, one update a frame, {args.device}:\n")
    print_table(["", "frames/s, median", "lowest", "highest", "of SB3's"], rows)


if __name__ == "__main__":
    main()

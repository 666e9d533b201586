"""Returns over frames, ours and SB3's: ``python benchmarks/returns.py --runs td3:HalfCheetah-v5:0``.

A run is named LOSS:ENVIRONMENT:SEED, with ``sb3-`` before the loss for Stable-Baselines3. Runs have the hyperparameters
of TD3's paper; with ``-batched`` after the loss they collect 100 frames at a time, and with ``-256`` they have those of
later programs besides. ``tutorial`` is the trainer's default preset. Interrupted runs go on where their last checkpoint
is. ``--report`` draws the curves and prints the table of what ``docs/results`` holds.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from common import BATCHED, LATER, print_table

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
COLUMNS = (
    "contestant",
    "loss",
    "environment",
    "seed",
    "frames",
    "eval_return",
    "seconds",
    "versions",
    "hardware",
    "command",
)
# Ten seeds of TD3's authors (learning_curves of sfujim/TD3, HalfCheetah-v1): lowest, median and highest return.
PUBLISHED = {
    30_000: (1604, 1903, 2514),
    50_000: (1578, 3432, 4586),
    100_000: (4542, 5683, 6355),
    200_000: (5785, 6812, 7807),
    300_000: (6196, 7657, 9049),
}
# Losses with a chart of their own, by the ends of their names, and what its title adds.
GROUPS = {"tutorial": ", train_ddpg.py without arguments", "256": ", hyperparameters of later programs"}


def settings(loss: str, environment: str) -> list[str]:
    """The trainer's flags for a loss on an environment."""
    if loss == "tutorial":  # the command without an argument
        return ["--env.name", environment]
    plain = loss.removesuffix("-256").removesuffix("-batched")
    words = ["--loss", plain, "--env.name", environment, "--eval.episodes", "10", "--threads", "1"]
    if environment == "Pendulum-v1":
        return ["pendulum", *words, "--eval.interval", "1000"]
    words = ["mujoco", *words]
    if environment == "InvertedPendulum-v5":  # a reward of 1 for ever, discounted
        return [*words, "--init-random-frames", "1000", "--eval.interval", "1000", "--v-max", "100"]
    words += BATCHED if plain != loss else []
    return [*words, *(LATER if loss.endswith("-256") else []), "--checkpoint.interval", "25000"]


def command(name: str, frames: int, folder: Path) -> list[str]:
    """What trains one run; the trainer goes on where a checkpoint is."""
    loss, environment, seed = name.split(":")
    if loss.startswith("sb3-"):
        words = ["--loss", loss.removeprefix("sb3-"), "--env", environment, "--seed", seed, "--frames", str(frames)]
        return [sys.executable, str(HERE / "sb3.py"), *words, "--output-dir", str(folder)]
    script = str(HERE.parent / "examples" / "train_ddpg.py")
    if (folder / "checkpoints").exists():
        return [sys.executable, script, "--resume", str(folder), "--total-frames", str(frames)]
    words = [*settings(loss, environment), "--seed", seed, "--total-frames", str(frames)]
    return [sys.executable, script, *words, "--output-dir", str(folder)]


def run(name: str, frames: int, work: Path) -> None:
    """Train one run, unless it is complete, and write its rows."""
    folder = work / name.replace(":", "-")
    words, file = command(name, frames, folder), RESULTS / f"{name.replace(':', '-')}.csv"
    if file.exists() and max(int(row["frames"]) for row in csv.DictReader(file.open())) >= frames:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        subprocess.run(words, stdout=log, stderr=log, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    write(name, folder, file, " ".join(["python", *(Path(word).name if "/" in word else word for word in words[1:])]))


def write(name: str, folder: Path, file: Path, words: str) -> None:
    """Copy the evaluations of a run's ``metrics.csv``, with what they were made with."""
    loss, environment, seed = name.split(":")
    packages = ("torch", "torchrl", "gymnasium", "mujoco", "stable-baselines3")
    about = {
        "contestant": "SB3" if loss.startswith("sb3-") else "torchrl-ddpg",
        "loss": loss.removeprefix("sb3-"),
        "environment": environment,
        "seed": seed,
        "versions": " ".join(f"{package} {version(package)}" for package in packages),
        "hardware": f"{platform.machine()}, one thread, {datetime.date.today()}",
        "command": words,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open() as source, file.open("w", newline="") as target:
        rows = csv.DictWriter(target, COLUMNS)
        rows.writeheader()
        for row in csv.DictReader(source):
            if row["eval_return"]:
                rows.writerow({**about, **{key: row[key] for key in ("frames", "eval_return", "seconds")}})


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the seeds, along the first axis (Agarwal et al. 2021), whatever their number."""
    ordered, count = np.sort(values, axis=0), len(values)
    inside = np.clip(
        np.minimum(np.arange(1, count + 1), 0.75 * count) - np.maximum(np.arange(count), 0.25 * count), 0, 1
    )
    return np.tensordot(inside, ordered, 1) / inside.sum()


def interval(values: np.ndarray, draws: int = 2_000) -> tuple[float, float]:
    """95 % bootstrap interval of the interquartile mean over seeds."""
    generator = np.random.default_rng(0)
    found = [interquartile_mean(generator.choice(values, len(values))) for _ in range(draws)]
    return tuple(np.quantile(found, (0.025, 0.975)))


def read() -> dict[tuple, dict[int, dict[int, float]]]:
    """Returns by contestant, loss and environment, then by seed, then by frames."""
    found: dict = {}
    for file in sorted(RESULTS.glob("*.csv")):
        for row in csv.DictReader(file.open()):
            seeds = found.setdefault((row["contestant"], row["loss"], row["environment"]), {})
            seeds.setdefault(int(row["seed"]), {})[int(row["frames"])] = float(row["eval_return"])
    return found


def report() -> None:
    """Print returns at some frames, and draw every seed with the interquartile mean over them."""
    found, rows = read(), []
    for (contestant, loss, environment), seeds in found.items():
        last = min(max(seed) for seed in seeds.values())  # of all seeds
        for frames in sorted({*PUBLISHED, last}):
            values = {seed: of[frames] for seed, of in sorted(seeds.items()) if frames in of}
            if not values:
                continue
            numbers = np.array(list(values.values()))
            low, high = interval(numbers)
            shown = [
                f"{interquartile_mean(numbers):.0f}",
                f"{low:.0f} to {high:.0f}" if len(values) > 2 else "",
                f"{np.median(numbers):.0f}",
                ", ".join(f"{seed}: {value:.0f}" for seed, value in values.items()),
            ]
            band = PUBLISHED.get(frames) if environment == "HalfCheetah-v5" and loss.startswith("td3") else None
            authors = "{1} [{0}, {2}]".format(*band) if band else ""
            rows.append([environment, loss, contestant, frames, *shown, authors])
    print_table(
        ["environment", "loss", "", "frames", "interquartile mean", "95 %", "median", "seed: return", "TD3's authors"],
        rows,
    )
    charts: dict[tuple[str, str], dict] = {}
    for (contestant, loss, environment), seeds in found.items():
        group = next((group for group in GROUPS if loss.endswith(group)), "")
        loss = "ddpg" if group == "tutorial" else loss.removesuffix(f"-{group}")
        loss = loss.upper().replace("-BATCHED", ", batched")
        charts.setdefault((environment, group), {})[f"{contestant}, {loss}"] = seeds
    for (environment, group), lines in charts.items():
        draw(environment, group, lines)


def draw(environment: str, group: str, found: dict) -> None:
    """One plot for an environment and one of ``GROUPS``, in a grey that reads on white and black pages.

    A thick line is the interquartile mean of all seeds, and goes on dashed where at least three of them do.
    """
    greys = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    plt.rcParams |= {**dict.fromkeys(greys, "#808080"), "svg.hashsalt": "returns", "legend.framealpha": 0.0}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    if environment == "HalfCheetah-v5" and group != "tutorial":
        low, _, high = zip(*PUBLISHED.values(), strict=True)
        axes.fill_between(list(PUBLISHED), low, high, color="grey", alpha=0.2, label="TD3's authors, ten seeds")
    for number, (name, seeds) in enumerate(found.items()):
        values: dict[int, list[float]] = {}  # of the seeds that were run so far
        for seed in seeds.values():
            axes.plot(*zip(*sorted(seed.items()), strict=True), color=f"C{number}", lw=0.6, alpha=0.6)
            for at, value in seed.items():
                values.setdefault(at, []).append(value)
        every = sorted(at for at in values if len(values[at]) == len(seeds))
        some = [at for at in sorted(values) if at >= every[-1] and len(values[at]) >= 3]
        for frames, style, label in ((every, "-", f"{name}, seeds: {len(seeds)}"), (some, "--", None)):
            middle = [interquartile_mean(np.array(values[at])) for at in frames]
            axes.plot(frames, middle, style, color=f"C{number}", lw=2, label=label)
    axes.set(xlabel="frames", ylabel="return of deterministic episodes", title=environment + GROUPS.get(group, ""))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, max(at for seeds in found.values() for seed in seeds.values() for at in seed))
    axes.legend()
    name = "-".join(filter(None, (environment, group)))
    figure.savefig(RESULTS / f"{name}.svg", transparent=True, metadata={"Date": None})


def main() -> None:
    """Train what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", default=[], help="LOSS:ENVIRONMENT:SEED, with sb3- before the loss for SB3"
    )
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="runs at once")
    parser.add_argument("--work", type=Path, default=Path("outputs/returns"), help="folder of the runs themselves")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda name: run(name, args.frames, args.work), args.runs))
    if args.report:
        report()


if __name__ == "__main__":
    main()

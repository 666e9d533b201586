"""An update against batch, width and critics; collection against environments: ``python benchmarks/scaling.py``."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torchrl import collectors, logger

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import pipeline
import train_ddpg
from common import interleaved, print_machine, print_table
from update import hand_written, update_step

# Kind of batched environment, environments in it, processes of their own that hold such a batch.
WAYS = (("serial", 1, 0), ("serial", 4, 0), ("parallel", 2, 0), ("serial", 1, 1), ("serial", 4, 1), ("serial", 4, 2))
BATCHES, WIDTHS, CRITICS = (16, 64, 256, 1024), (32, 128, 256, 512), (1, 2, 4)


def show_updates(device: str, rounds: int) -> None:
    """How the time of an eager update grows with each of its sizes, the others at 256, 256 and 1 critic."""
    settings = [("batch", size, (256, size, device, 1)) for size in BATCHES]
    settings += [("width", width, (width, 256, device, 1)) for width in WIDTHS]
    settings += [("critics", count, (256, 256, device, count)) for count in CRITICS]
    rows = []
    for name, value, setting in settings:
        times = interleaved({"hand": hand_written(*setting), "ours": update_step(*setting)}, rounds)
        rows.append([name, value, times["ours"], times["ours"] / times["hand"]])
    print(f"UpdateStep on {device}; DDPG with one critic, TD3 without delay with more:\n")
    print_table(["", "size", "ms an update", "of hand-written"], rows)


def frames_per_second(collector, frames: int) -> float:
    """Rate of a collector once it has started."""
    batches = iter(collector)
    next(batches)
    began, seen = time.perf_counter(), 0
    while seen < frames:
        seen += next(batches).numel()
    rate = seen / (time.perf_counter() - began)
    collector.shutdown()
    return rate


def show_collection(frames: int) -> None:
    """Frames a second of TorchRL's collectors with the preset's policy, without learning."""
    rows = []
    for kind, count, workers in (
        ("serial", 1, 0),
        ("serial", 4, 0),
        ("parallel", 2, 0),
        ("serial", 1, 1),
        ("serial", 4, 1),
    ):
        cfg = train_ddpg.PRESETS["mujoco"]
        cfg.env.name, cfg.device, cfg.env.count, cfg.env.parallel = "HalfCheetah-v5", "cpu", count, kind == "parallel"
        env = pipeline.make_env(cfg.env, training=False)
        policy, _ = pipeline.make_exploration(cfg, pipeline.make_networks(cfg, env)[0], env.action_spec_unbatched)
        make = partial(pipeline.make_env, cfg.env)
        options = {"frames_per_batch": 200, "total_frames": -1}
        if workers:
            collector = collectors.MultiAsyncCollector([make] * workers, policy, **options)
        else:
            collector = collectors.Collector(make(), policy, trust_policy=True, **options)
        rows.append([f"{count}, {kind}", workers or "none", frames_per_second(collector, frames)])
    print("Collection of HalfCheetah-v5 alone, batches of 200 frames:\n")
    print_table(["environments", "processes of their own", "frames/s"], rows)


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=50, help="rounds of three updates of each size")
    parser.add_argument("--frames", type=int, default=4000, help="frames to collect in each way")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logger.setLevel("ERROR")
    torch.set_num_threads(1)
    print_machine("gymnasium", "mujoco")
    show_updates(args.device, args.rounds)
    show_collection(args.frames)


if __name__ == "__main__":
    main()

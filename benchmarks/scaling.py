"""An update against batch, width and critics; collection against environments: ``python benchmarks/scaling.py``."""

from __future__ import annotations

import argparse
import copy
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torchrl import logger

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import train_ddpg
from common import interleaved, print_machine, print_table
from trainer.collectors import Collecting
from trainer.configuration import PRESETS
from update import hand_written, update_step

# Whether each environment has a process, how many step together, where the collector runs.
WAYS = ((False, 1, "sync"), (False, 4, "sync"), (False, 10, "sync"), (True, 2, "sync"), (True, 4, "sync"))
WAYS += ((False, 1, "async"), (False, 4, "async"), (False, 10, "async"))
BATCHES, WIDTHS, CRITICS = (16, 64, 256, 1024), (32, 128, 256, 512), (1, 2, 4)


def show_updates(device: str, rounds: int) -> None:
    """How the time of an update grows with each of its sizes, the others at 256, 256 and 1 critic."""
    settings = [("batch", size, (256, size, device, 1)) for size in BATCHES]
    settings += [("width", width, (width, 256, device, 1)) for width in WIDTHS]
    settings += [("critics", count, (256, 256, device, count)) for count in CRITICS]
    rows = []
    for name, value, setting in settings:
        ways = {"hand": hand_written(*setting), "eager": update_step(*setting)}
        hand, *ours = interleaved({**ways, "record": update_step(*setting, record_operators=True)}, rounds).values()
        rows.append([name, value, *ours, *(time / hand for time in ours)])
    print(f"UpdateStep on {device}; DDPG with one critic, TD3 without delay with more:\n")
    print_table(["", "size", "eager, ms", "recorded, ms", "eager of hand-written", "recorded of hand-written"], rows)


def show_collection(frames: int) -> None:
    """Frames a second of TorchRL's collectors with the preset's policy, without learning."""
    rows = []
    for parallel, count, collector_kind in WAYS:
        cfg = copy.deepcopy(PRESETS["mujoco"])
        cfg.env.name, cfg.device, cfg.env.count, cfg.env.parallel = "HalfCheetah-v5", "cpu", count, parallel
        cfg.collector, cfg.total_frames, cfg.init_random_frames = collector_kind, 2 * frames, 0
        cfg.steps_per_batch = 100 // count
        env = train_ddpg.make_env(cfg.env, several=False)
        policy, _ = train_ddpg.make_exploration(cfg, train_ddpg.make_networks(cfg, env)[0], env.action_spec_unbatched)
        with Collecting(cfg, partial(train_ddpg.make_env, cfg.env), policy, threading.Event()) as collected:
            batches = iter(collected)
            next(batches)
            began, seen = time.perf_counter(), 0
            while seen < frames:
                seen += next(batches).numel()
            rate = seen / (time.perf_counter() - began)
        kind = "a process each" if parallel else "one process"
        rows.append([f"{count}, {kind}", "its own" if collector_kind == "async" else "the learner's", rate])
    print("Collection of HalfCheetah-v5 alone, 100 frames a batch:\n")
    print_table(["environments", "collector's process", "frames/s"], rows)


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

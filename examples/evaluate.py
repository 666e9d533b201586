"""Evaluate what ``train_ddpg.py`` has learned: ``python evaluate.py FOLDER [--episodes N] [--video FILE]``."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

import torch
from torchrl import envs

import train_ddpg
from trainer import command_line, environments
from trainer.configuration import RENDERING
from trainer.errors import UserError, refusing
from trainer.policies import DeployedPolicy


def load(folder: Path, last: bool = False):
    """Configuration, actor and statistics of a run; the best policy where one was evaluated."""
    cfg = command_line.read_config(folder, "")
    cfg.device = "cpu"
    names = ["policy.pt"] if last else ["best_policy.pt", "policy.pt"]
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise UserError(f"{folder} holds no policy yet; it is written with the first evaluation or checkpoint.")
    saved = torch.load(found[0], weights_only=True)
    with refusing(f"--env.name {cfg.env.name}", RENDERING if cfg.env.from_pixels else ""):
        env = train_ddpg.make_env(cfg.env, saved["statistics"], several=False)
    actor, _ = train_ddpg.make_networks(cfg, env)
    actor.load_state_dict(saved["actor"])
    return cfg, env, actor, saved["statistics"]


def record(path: Path, cfg, actor, statistics, seed: int) -> None:
    """Write a deterministic episode as a video."""
    import imageio.v3

    with refusing(f"--video {path}", RENDERING):
        base = environments.make_one(cfg.env, render=True)
        env = train_ddpg.transform(base, cfg.env, statistics, seed)
        frames = [environments.image(base)]
        with envs.set_exploration_type(envs.ExplorationType.DETERMINISTIC):
            env.rollout(environments.EPISODE_LIMIT, actor, callback=lambda *_: frames.append(environments.image(base)))
        imageio.v3.imwrite(path, frames, **({"duration": 33, "loop": 0} if path.suffix == ".gif" else {"fps": 30}))


def main(words: list[str] | None = None) -> int:
    """Evaluate, and write what was asked for; the exit status is 2 after a mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a run")
    parser.add_argument("--episodes", type=int, default=10, help="deterministic episodes (default: 10)")
    parser.add_argument("--seed", type=int, default=1_000, help="seed of the first episode's first state")
    parser.add_argument("--last", action="store_true", help="the last policy instead of the best")
    parser.add_argument("--video", type=Path, help="write the first episode here: .gif, or .mp4 with imageio-ffmpeg")
    parser.add_argument("--onnx", type=Path, help="write the policy as an ONNX file; needs onnx and onnxscript")
    args = parser.parse_args(words)
    sys.path.insert(1, os.getcwd())  # where the user's own environments and networks are looked for
    try:
        cfg, env, actor, statistics = load(args.folder, args.last)
        cfg.eval.episodes, cfg.seed = args.episodes, args.seed - 2
        result = train_ddpg.evaluate(cfg, env, actor, stop=threading.Event())
        print(f"return of {args.episodes} episodes: {result['eval_return']:.1f} ± {result['eval_std']:.1f}")
        print(f"length: {result['eval_length']:.0f} frames; actions at a bound: {result['saturated_actions']:.1%}")
        if args.video:
            record(args.video, cfg, actor, statistics, args.seed)
        if args.onnx:
            with refusing(f"--onnx {args.onnx}", "pip install onnx onnxscript"):
                example = torch.stack([env.observation_spec["observation_vector"].zero()] * 2)
                policy, batch = DeployedPolicy(actor, statistics).eval(), {"observation": {0: "batch"}}
                torch.onnx.export(policy, (example,), args.onnx, dynamo=True, dynamic_shapes=batch)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Stable-Baselines3, a contestant of ``returns.py`` and ``train.py``, with the same hyperparameters as the trainer."""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.noise import NormalActionNoise


def returns_of(model, name: str, episodes: int) -> list[float]:
    """Returns of deterministic episodes, which begin from the same seeds at every evaluation."""
    env, found = gymnasium.make(name), []
    for seed in range(episodes):
        observation, _ = env.reset(seed=1_000 + seed)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    env.close()
    return found


def build(loss: str, name: str, random_frames: int, seed: int | None = None, device: str = "cpu") -> TD3:
    """SB3's DDPG or TD3 as the preset `mujoco` has it; ``-256`` after the loss has layers of 256, as later programs."""
    later = loss.endswith("-256")
    env = gymnasium.make(name)
    actions = env.action_space.shape[0]
    return {"ddpg": DDPG, "td3": TD3}[loss.removesuffix("-256")](
        "MlpPolicy",
        env,
        learning_rate=3e-4 if later else 1e-3,
        buffer_size=1_000_000,
        learning_starts=random_frames,
        batch_size=256 if later else 100,
        tau=0.005,
        gamma=0.99,
        train_freq=1,
        gradient_steps=1,
        action_noise=NormalActionNoise(np.zeros(actions), np.full(actions, 0.1)),
        policy_kwargs={"net_arch": [256, 256] if later else [400, 300]},
        seed=seed,
        device=device,
    )


def main() -> None:
    """Train, evaluate every so many frames, and write ``metrics.csv`` with the trainer's names of columns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", choices=["ddpg", "ddpg-256", "td3", "td3-256"], default="td3")
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--random-frames", type=int, default=10_000)
    parser.add_argument("--interval", type=int, default=5_000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = build(args.loss, args.env, args.random_frames, args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with (args.output_dir / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["frames", "eval_return", "eval_std", "seconds"])
        spent = 0.0
        for frames in range(args.interval, args.frames + 1, args.interval):
            began = time.perf_counter()
            model.learn(args.interval, reset_num_timesteps=False)
            spent += time.perf_counter() - began
            found = returns_of(model, args.env, args.episodes)
            rows.writerow([frames, np.mean(found), np.std(found), round(spent, 1)])
            file.flush()


if __name__ == "__main__":
    main()

"""Learning curves of the algorithms on Pendulum-v1: every seed, and the median.

``python docs/snippets/learning_curves.py`` trains (half an hour on one core) and writes
learning_curves.csv beside this file; ``--draw`` draws the figures again from that file.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import gymnasium
import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, TanhModule, ValueOperator

from torchrl_ddpg import D4PGLoss, DDPGLoss, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep

TABLE = Path(__file__).with_suffix(".csv")
FIGURES = Path(__file__).parents[1] / "_static" / "curves"
TITLES = {"ddpg": "DDPG", "td3": "TD3", "d4pg": "D4PG", "td3_bc": "TD3+BC"}
SEEDS, STEPS, WARM_UP, SCALE = 5, 10_000, 1_000, 0.1
SPEC = Bounded(-2.0, 2.0, (1,))


def make_update(name: str) -> UpdateStep:
    """Two layers of 64 units, Adam with 1e-3, tau 0.005; all else is the loss's default."""
    sizes = {"num_cells": [64, 64], "activation_class": nn.ReLU}
    network = TensorDictModule(MLP(3, 1, **sizes), in_keys=["observation"], out_keys=["action"])
    actor = TensorDictSequential(network, TanhModule(in_keys=["action"], spec=SPEC))
    critic = ValueOperator(
        MLP(4, 51 if name == "d4pg" else 1, **sizes), in_keys=["observation", "action"]
    )
    losses = {"ddpg": DDPGLoss, "td3": TD3Loss, "td3_bc": TD3BCLoss, "d4pg": D4PGLoss}
    options = {"v_min": -163.0, "v_max": 0.0} if name == "d4pg" else {}
    loss = losses[name](actor, critic, action_spec=SPEC, **options)
    return UpdateStep(
        loss,
        actor_optimizer=torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3),
        critic_optimizer=torch.optim.Adam(
            getattr(loss, f"{loss.critic_name}_params").parameters(), lr=1e-3
        ),
        target_updater=SoftUpdate(loss, tau=0.005),
        policy_delay=2 if name.startswith("td3") else 1,
        record_operators=True,
    )


@torch.no_grad()
def act(update: UpdateStep, observation: torch.Tensor) -> torch.Tensor:
    """The actor's deterministic actions."""
    return update.loss.actor_network(
        TensorDict({"observation": observation}, observation.shape[:-1])
    )["action"]


def evaluate(update: UpdateStep) -> float:
    """Mean return of 20 deterministic episodes, with the same starts at every evaluation."""
    envs = gymnasium.make_vec("Pendulum-v1", num_envs=20, vectorization_mode="sync")
    observation, total = envs.reset(seed=10_000)[0], 0.0
    for _ in range(200):
        observation, reward, *_ = envs.step(act(update, torch.as_tensor(observation)).numpy())
        total += reward.mean()
    return float(total)


def train(
    name: str, seed: int, data: TensorDict | None = None
) -> tuple[list[tuple[int, float]], TensorDict]:
    """One update for each step of the environment, or without an environment from ``data`` alone."""
    torch.manual_seed(seed)
    update, curve = make_update(name), []
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(STEPS), batch_size=128)
    if data is not None:
        replay.extend(data)
    env = gymnasium.make("Pendulum-v1")
    observation = torch.as_tensor(env.reset(seed=seed)[0])
    for step in range(STEPS + 1):
        if step % 1_000 == 0:
            curve.append((step, evaluate(update)))
        if data is None:
            explore = (
                torch.rand(1) * 4 - 2
                if step < WARM_UP
                else act(update, observation) + 0.2 * torch.randn(1)
            )
            action = explore.clamp(-2, 2)
            following, reward, terminated, truncated, _ = env.step(action.numpy())
            flags = {
                "done": torch.tensor([terminated or truncated]),
                "terminated": torch.tensor([terminated]),
            }
            later = {
                "observation": torch.as_tensor(following),
                "reward": torch.tensor([SCALE * reward]).float(),
                **flags,
            }
            replay.add(
                TensorDict({"observation": observation, "action": action, "next": later}, [])
            )
            observation = torch.as_tensor(env.reset()[0] if truncated else following)
        if data is not None or step >= WARM_UP:
            update(replay.sample())
    return curve, replay[:]


def measure() -> None:
    """Train everything and write the table."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("algorithm", "seed", "step", "return"))
        for seed in range(SEEDS):
            for name in ("ddpg", "d4pg", "td3"):
                curve, data = train(name, seed)
                writer.writerows((name, seed, step, f"{value:.1f}") for step, value in curve)
                file.flush()
            curve, _ = train("td3_bc", seed, data)  # from what TD3 with the same seed collected
            writer.writerows(("td3_bc", seed, step, f"{value:.1f}") for step, value in curve)
            file.flush()


def draw() -> None:
    """One figure for each algorithm, in a grey that reads on white and on black."""
    curves: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(TABLE.open()):
        curves[row["algorithm"]][int(row["seed"])].append((int(row["step"]), float(row["return"])))
    FIGURES.mkdir(parents=True, exist_ok=True)
    grey = "#808080"
    plt.rcParams |= {
        "svg.hashsalt": "curves",
        "text.color": grey,
        "axes.edgecolor": grey,
        "axes.labelcolor": grey,
    }
    plt.rcParams |= {"xtick.color": grey, "ytick.color": grey, "font.size": 11}
    for name, seeds in curves.items():
        figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
        for curve in seeds.values():
            axes.plot(*zip(*curve, strict=True), color="#5b9bd5", alpha=0.45, linewidth=1)
        steps = [step for step, _ in next(iter(seeds.values()))]
        middle = [median(value for _, value in at) for at in zip(*seeds.values(), strict=True)]
        axes.plot(
            steps, middle, color="#2f7fd1", linewidth=2.5, label=f"median of {len(seeds)} seeds"
        )
        axes.set(
            xlabel="updates" if name == "td3_bc" else "steps of the environment",
            ylabel="return",
            title=TITLES[name],
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(FIGURES / f"{name}.svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
        last = sorted(round(curve[-1][1]) for curve in seeds.values())
        print(f"{name}: median {middle[-1]:.0f} after {steps[-1]}, all {last}")


if __name__ == "__main__":
    if "--draw" not in sys.argv:
        torch.set_num_threads(1)
        measure()
    draw()

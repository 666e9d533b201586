"""FastTD3's recipe on Pendulum-v1: many environments, large batches, a privileged critic."""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    Compose,
    GymEnv,
    RenameTransform,
    SerialEnv,
    Transform,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.envs.utils import ExplorationType
from torchrl.modules import MLP, ValueOperator

from torchrl_ddpg import FastTD3Loss, SoftUpdate, TD3Loss, UpdateStep

OBSERVATION, ACTION, LOW, HIGH = 3, 1, -2.0, 2.0


class SensorNoise(Transform):
    """The actor sees the state with a little noise; the critic reads the state itself."""

    def _apply_transform(self, observation):
        return observation + 0.01 * torch.randn_like(observation)

    def _reset(self, _, reset):
        return self._call(reset)


def make_env(count: int, seed: int):
    """``count`` copies that step as one. Each is reset when its own episode has ended."""
    env = SerialEnv(
        count, lambda: GymEnv("Pendulum-v1")
    )  # on a GPU: a simulator that is a batch by itself
    copy = RenameTransform(["observation"], ["state"], create_copy=True)
    env = TransformedEnv(
        env, Compose(copy, SensorNoise(in_keys=["observation"], out_keys=["observation"]))
    )
    env.set_seed(seed)
    return env


def make_networks(outputs: int, width: int = 128):
    """An actor that reads the sensor, a critic that reads the simulator's state."""

    class Bounded(nn.Module):
        def forward(self, x):
            return (HIGH - LOW) / 2 * x.tanh() + (HIGH + LOW) / 2

    body = nn.Sequential(MLP(OBSERVATION, ACTION, num_cells=[width, width]), Bounded())
    actor = TensorDictModule(body, in_keys=["observation"], out_keys=["action"])
    critic = MLP(OBSERVATION + ACTION, outputs, num_cells=[width, width], activation_class=nn.ReLU)
    return actor, ValueOperator(critic, in_keys=["state", "action"])


def make_update(name: str, actor, make_critic, **options) -> UpdateStep:
    """The loss by its name, and one optimisation step of it."""
    if name == "fast_td3":
        support = {"v_min": -1600.0, "v_max": 0.0, "num_atoms": 101}
        loss = FastTD3Loss(actor, make_critic(101), bounds=(LOW, HIGH), **support)
    else:
        loss = TD3Loss(actor, make_critic(1), bounds=(LOW, HIGH), loss_function="l2")
    loss.make_value_estimator("td0", gamma=0.99)
    critics = getattr(loss, f"{loss.critic_name}_params")
    return UpdateStep(
        loss,
        actor_optimizer=torch.optim.AdamW(
            loss.actor_network_params.parameters(), lr=1e-3, weight_decay=0.0
        ),
        critic_optimizer=torch.optim.AdamW(critics.parameters(), lr=1e-3, weight_decay=0.0),
        target_updater=SoftUpdate(loss, tau=0.01),
        policy_delay=2,
        **options,
    )


@torch.no_grad()
def evaluate(actor, episodes: int, seed: int) -> float:
    """Mean return of whole episodes without exploration."""
    env = make_env(episodes, seed)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(200, actor, break_when_any_done=False)
    env.close()
    return rollout["next", "reward"].sum(1).mean().item()


# loop
def train(args: argparse.Namespace) -> tuple[float, float]:
    """Train, and return the mean return before and after."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    env = make_env(args.envs, args.seed)
    actor, _ = make_networks(1)
    update = make_update(
        args.loss, actor, lambda outputs: make_networks(outputs)[1], record_operators=True
    )
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(args.frames), batch_size=args.batch_size
    )
    before = evaluate(actor, args.episodes, args.seed + 1)
    step = env.reset()
    scales = torch.rand(args.envs, 1)
    for frames in range(0, args.frames, args.envs):
        # Each environment explores with noise of its own strength, drawn anew with every episode.
        with torch.no_grad():
            action = actor(step)["action"]
        step["action"] = (action + scales * torch.randn_like(action)).clamp(LOW, HIGH)
        # transition["next"] holds the last state of an episode, `step` the first of the next one.
        transition, step = env.step_and_maybe_reset(step)
        scales = torch.where(transition["next", "done"], torch.rand(args.envs, 1), scales)
        # At the time limit ("truncated") "terminated" is False: the target bootstraps from it.
        replay.extend(transition.reshape(-1))
        if frames >= args.random_frames:
            for _ in range(args.updates):
                update(replay.sample())
    env.close()
    return before, evaluate(actor, args.episodes, args.seed + 1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", choices=["fast_td3", "td3"], default="fast_td3")
    for name, value in {
        "seed": 0,
        "frames": 20_000,
        "envs": 16,
        "batch-size": 256,
        "updates": 16,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"random-frames": 1000, "episodes": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    before, after = train(parse())
    print(f"mean return before {before:.0f}, after {after:.0f}")

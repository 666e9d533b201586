"""ReBRAC on data of a noisy controller of Pendulum-v1: from episodes to next actions to a policy."""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import GymEnv, SerialEnv
from torchrl.modules import MLP, ValueOperator
from vector_environments import ACTION, HIGH, LOW, OBSERVATION, make_networks

from torchrl_ddpg import ReBRACLoss, SoftUpdate, UpdateStep, with_next_actions


def controller(state):
    """Pump energy into the pendulum, and hold it where it is nearly upright; with noise."""
    cos, sin, velocity = state.unbind(-1)
    energy = velocity.square() / 2 + 15 * (cos - 1)
    swing = torch.where(energy < 0, HIGH, LOW) * velocity.sign()
    action = torch.where(cos > 0.9, -15 * sin - 3 * velocity, swing) + 0.5 * torch.randn_like(cos)
    return action.clamp(LOW, HIGH).unsqueeze(-1)


@torch.no_grad()
def run_episodes(policy, count: int, seed: int):
    """Whole episodes, ``[count, 200]`` transitions."""
    env = SerialEnv(count, lambda: GymEnv("Pendulum-v1"))
    env.set_seed(seed)
    rollout = env.rollout(200, policy, break_when_any_done=False)
    env.close()
    return rollout


def mean_return(rollout) -> float:
    """Of its episodes."""
    return rollout["next", "reward"].sum(1).mean().item()


# loader
def load(episodes):
    """A dataset for ReBRAC: one trajectory after the other, each with its next actions."""
    return with_next_actions(episodes.reshape(-1))  # "done" marks each episode's last step


# training
def train(args: argparse.Namespace) -> tuple[float, float]:
    """Train from data alone; return the mean return of the data and of the policy."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    behaviour = TensorDictModule(controller, in_keys=["observation"], out_keys=["action"])
    episodes = run_episodes(behaviour, args.data_episodes, args.seed)
    data = load(episodes)
    actor, _ = make_networks(1)
    layers = {"num_cells": [128, 128], "activation_class": nn.ReLU, "norm_class": nn.LayerNorm}
    critic = MLP(OBSERVATION + ACTION, 1, norm_kwargs=[{"normalized_shape": 128}] * 2, **layers)
    critic = ValueOperator(critic, in_keys=["observation", "action"])
    loss = ReBRACLoss(
        actor,
        critic,
        bounds=(LOW, HIGH),
        alpha_actor=args.alpha_actor,
        alpha_critic=args.alpha_critic,
    ).make_value_estimator("td0", gamma=0.99)
    update = UpdateStep(
        loss,
        actor_optimizer=torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-3),
        critic_optimizer=torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=1e-3),
        target_updater=SoftUpdate(loss, tau=0.01),
        policy_delay=2,
        record_operators=True,
    )
    for _ in range(args.updates):
        update(data[torch.randint(len(data), (256,))])
    return mean_return(episodes), mean_return(run_episodes(actor, args.episodes, args.seed + 1))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"seed": 0, "updates": 5000, "data-episodes": 50, "episodes": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"alpha-actor": 1.0, "alpha-critic": 1.0}.items():
        parser.add_argument(f"--{name}", type=float, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    of_data, of_policy = train(parse())
    print(f"mean return of the data {of_data:.0f}, of the policy {of_policy:.0f}")

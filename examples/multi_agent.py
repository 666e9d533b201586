"""Several agents learn to reach their goals without bumping into each other: VMAS's task "navigation".

``--loss ddpg`` is IDDPG, and with ``--centralised`` MADDPG; ``--loss td3`` is ITD3, and with ``--centralised`` MATD3.
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import StepCounter, TransformedEnv, VmasEnv
from torchrl.modules import MultiAgentMLP

from torchrl_ddpg import D4PGLoss, DDPGLoss, FastTD3Loss, SoftUpdate, TD3Loss, UpdateStep

OBSERVATION, ACTION, REWARD = ("agents", "observation"), ("agents", "action"), ("agents", "reward")
VALUE = ("agents", "state_action_value")
LOSSES = {"ddpg": DDPGLoss, "td3": TD3Loss, "d4pg": D4PGLoss, "fast_td3": FastTD3Loss}
SUPPORT = {"v_min": -5.0, "v_max": 10.0, "num_atoms": 51}  # discounted returns of this task, for a categorical critic


def make_env(count: int, args: argparse.Namespace, seed: int):
    """``count`` worlds that step as one. StepCounter sets the time limit: VMAS's own counts as a terminal state."""
    world = VmasEnv("navigation", num_envs=count, continuous_actions=True, n_agents=args.agents, seed=seed)
    return TransformedEnv(world, StepCounter(max_steps=args.steps))


def make_networks(env, args: argparse.Namespace):
    """Actors see their own observation; a critic sees its agent's, or with ``--centralised`` everybody's."""
    sees, acts = env.observation_spec[OBSERVATION].shape[-1], env.full_action_spec[ACTION].shape[-1]
    options = {"n_agents": args.agents, "share_params": args.share_parameters, "depth": 2, "num_cells": args.width}
    actors = MultiAgentMLP(sees, acts, centralized=False, activation_class=nn.ReLU, **options)
    outputs = SUPPORT["num_atoms"] if args.loss in ("d4pg", "fast_td3") else 1
    critics = MultiAgentMLP(sees + acts, outputs, centralized=args.centralised, activation_class=nn.ReLU, **options)
    actor = TensorDictModule(nn.Sequential(actors, nn.Tanh()), in_keys=[OBSERVATION], out_keys=[ACTION])
    return actor, TensorDictModule(critics, in_keys=[OBSERVATION, ACTION], out_keys=[VALUE])


def make_update(env, actor, critic, args: argparse.Namespace) -> UpdateStep:
    """One loss for all agents: rewards, values and priorities have a dimension for them; flags they share."""
    support = SUPPORT if args.loss in ("d4pg", "fast_td3") else {}
    loss = LOSSES[args.loss](actor, critic, bounds=(-1.0, 1.0), **support)
    loss.set_keys(reward=REWARD, state_action_value=VALUE)  # "done" and "terminated" are the world's
    loss.make_value_estimator("td0", gamma=0.95)
    return UpdateStep(
        loss,
        actor_optimizer=torch.optim.Adam(loss.actor_network_params.parameters(), lr=5e-4),
        critic_optimizer=torch.optim.Adam(getattr(loss, f"{loss.critic_name}_params").parameters(), lr=1e-3),
        target_updater=SoftUpdate(loss, tau=0.01),
        policy_delay=2 if args.loss in ("td3", "fast_td3") else 1,
    )


@torch.no_grad()
def evaluate(actor, args: argparse.Namespace) -> float:
    """Return of an episode without exploration, mean over agents and worlds that training never sees."""
    rollout = make_env(100, args, seed=args.seed + 1000).rollout(args.steps, actor, break_when_any_done=False)
    return rollout["next", "agents", "reward"].sum(1).mean().item()


def train(args: argparse.Namespace) -> tuple[float, float]:
    """Train, and return the mean return before and after."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    env = make_env(args.worlds, args, args.seed)
    actor, critic = make_networks(env, args)
    update = make_update(env, actor, critic, args)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(args.frames), batch_size=args.batch_size)
    before = evaluate(actor, args)
    step = env.reset()
    for frames in range(0, args.frames, args.worlds):
        # Every agent acts on what it sees, with noise.
        with torch.no_grad():
            actions = actor(step)[ACTION]
        step[ACTION] = (actions + 0.2 * torch.randn_like(actions)).clamp(-1, 1)
        # One step of all worlds. `step` goes on from here; where an episode has ended, from the next one's start.
        transition, step = env.step_and_maybe_reset(step)
        replay.extend(transition.exclude(("agents", "info"), ("next", "agents", "info")))
        # Critics, actors and targets of all agents in one update.
        if frames >= args.batch_size:
            update(replay.sample())
    return before, evaluate(actor, args)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", choices=list(LOSSES), default="td3")
    parser.add_argument("--centralised", action="store_true", help="critics see the observations and actions of all")
    parser.add_argument("--share-parameters", action="store_true", help="one actor and one critic for all agents")
    sizes = {"seed": 0, "frames": 64_000, "agents": 3, "worlds": 32, "steps": 100, "batch-size": 256, "width": 64}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    before, after = train(parse())
    print(f"mean return before {before:.2f}, after {after:.2f}")

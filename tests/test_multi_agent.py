"""Several agents in one loss: centralised and decentralised critics, shared and separate parameters, every loss."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import VmasEnv
from torchrl.modules import MultiAgentMLP

from helpers import ACTION, DEFAULTS, OBSERVATION, batch
from torchrl_ddpg import D4PGLoss, DDPGLoss, FastTD3Loss, ReBRACLoss, SoftUpdate, TD3BCLoss, TD3Loss

EVERY = (DDPGLoss, TD3Loss, TD3BCLoss, D4PGLoss, FastTD3Loss, ReBRACLoss)
AGENTS = 3
every_loss = pytest.mark.parametrize("loss_class", EVERY)
every_kind = pytest.mark.parametrize(
    ("centralised", "share"), [(c, s) for c in (False, True) for s in (False, True)], ids=str
)


@functools.cache
def example():
    path = Path(__file__).parents[1] / "examples" / "multi_agent.py"
    spec = importlib.util.spec_from_file_location("multi_agent", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agents_loss(loss_class, centralised, share, **options):
    torch.manual_seed(0)
    kwargs = DEFAULTS.get(loss_class, {}) | options
    shape = {"n_agents": AGENTS, "share_params": share, "num_cells": [8]}
    actors = MultiAgentMLP(OBSERVATION, ACTION, centralized=False, **shape)
    outputs = kwargs.get("num_atoms", 1)
    critics = MultiAgentMLP(OBSERVATION + ACTION, outputs, centralized=centralised, **shape)
    keys = {name: ("agents", name) for name in ("observation", "action", "state_action_value")}
    actor = TensorDictModule(nn.Sequential(actors, nn.Tanh()), [keys["observation"]], [keys["action"]])
    critic = TensorDictModule(critics, [keys["observation"], keys["action"]], [keys["state_action_value"]])
    loss = loss_class(actor, critic, **kwargs)
    loss.set_keys(reward=("agents", "reward"), state_action_value=keys["state_action_value"])
    SoftUpdate(loss, tau=0.5)
    return loss


def agents_batch(size=4):
    """Every agent has an observation, an action and a reward of its own; the flags are the world's."""
    flat = batch(size, AGENTS)
    world = batch(size)
    data = world.select(("next", "done"), ("next", "terminated"))
    data["agents"] = flat.select("observation", "action")
    data["next", "agents"] = flat["next"].select("observation", "action", "reward")
    return data


@every_loss
@every_kind
def test_each_agent_has_a_loss_of_its_own_and_a_priority(loss_class, centralised, share):
    data = agents_batch()
    loss = agents_loss(loss_class, centralised, share, reduction="none")
    outputs = loss(data)
    assert outputs["loss_actor"].shape == outputs[loss.critic_loss_key].shape == data["td_error"].shape == (4, AGENTS)
    total = outputs["loss_actor"].sum() + outputs[loss.critic_loss_key].sum()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in loss.parameters())


@every_loss
@every_kind
def test_a_critic_sees_other_agents_where_it_is_centralised_alone(loss_class, centralised, share):
    loss = agents_loss(loss_class, centralised, share, reduction="none")
    data, other = agents_batch(), agents_batch()
    other["agents", "observation"][:, 2] += 1.0
    (before, _), (after, _) = loss.loss_value(data), loss.loss_value(other)
    assert torch.equal(before[:, 0], after[:, 0]) != centralised
    assert not torch.equal(before[:, 2], after[:, 2])


@every_loss
def test_a_reward_is_its_own_agents(loss_class):
    loss = agents_loss(loss_class, centralised=True, share=False)
    data, other = agents_batch(), agents_batch()
    other["next", "agents", "reward"][:, 1] += 1.0
    change = loss.compute_target(other) - loss.compute_target(data)
    assert change[:, 1].any()
    assert not change[:, [0, 2]].any()


@every_loss
def test_agents_learn_a_return_each(loss_class):
    loss = agents_loss(loss_class, centralised=False, share=False).make_value_estimator("td0", gamma=0.0)
    data = agents_batch(64)
    data["next", "agents", "reward"] = torch.tensor([-1.0, 0.0, 2.0]).expand(64, AGENTS).unsqueeze(-1).clone()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss.loss_value(data)[0].backward()
        optimizer.step()
    critics = loss.get_stateful_net(loss.critic_name)
    first = critics[0] if isinstance(critics, nn.ModuleList) else critics
    value = loss.expected_value(first(data.clone())["agents", "state_action_value"]).mean((0, 2))
    torch.testing.assert_close(value.detach(), torch.tensor([-1.0, 0.0, 2.0]), atol=0.15, rtol=0)


@pytest.mark.parametrize("name", ["ddpg", "td3", "d4pg", "fast_td3"])
@pytest.mark.parametrize(
    "flags", [[], ["--centralised"], ["--share-parameters"], ["--centralised", "--share-parameters"]]
)
def test_the_example_runs(name, flags):
    pytest.importorskip("vmas")
    sizes = {"frames": 64, "worlds": 8, "steps": 4, "batch-size": 16, "width": 8, "agents": 2}
    sizes = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    before, after = example().train(example().parse(["--loss", name, *flags, *sizes]))
    assert before == before != after == after


def test_the_time_limit_of_the_example_is_no_terminal_state():
    pytest.importorskip("vmas")
    args = example().parse(["--steps", "3", "--agents", "2"])
    last = example().make_env(2, args, seed=0).rollout(3)["next"][:, -1]
    assert last["truncated"].all()
    assert last["done"].all()
    assert not last["terminated"].any()
    own = VmasEnv("navigation", num_envs=2, n_agents=2, max_steps=3, seed=0).rollout(3)["next"][:, -1]
    assert own["terminated"].all()  # what would bootstrap wrongly

"""FastTD3 against plain PyTorch, D4PG and TD3's smoothing; its recipe for many environments."""

import copy

import pytest
import torch
import vector_environments
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import ACTION, OBSERVATION, Critic, batch, gradients, make, networks, train_with_delay
from torchrl_ddpg import D4PGLoss, FastTD3Loss, TD3Loss

GAMMA, TAU, STEPS, ATOMS, LOW, HIGH = 0.96875, 0.05, 50, 11, -5.0, 5.0


def plain_networks():
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(OBSERVATION, 16), nn.Tanh(), nn.Linear(16, ACTION), nn.Tanh()).double()
    return actor, [Critic(outputs=ATOMS).double() for _ in range(2)]


def project(atoms, probabilities, support):
    """Each moved atom's mass goes to the atoms left and right of it, one after the other."""
    projected = torch.zeros_like(probabilities)
    width = (support[-1] - support[0]) / (ATOMS - 1)
    for row in range(len(atoms)):
        for atom, mass in zip(atoms[row], probabilities[row], strict=True):
            place = ((atom.clamp(support[0], support[-1]) - support[0]) / width).item()
            left = min(int(place), ATOMS - 2)
            projected[row, left] += mass * (left + 1 - place)
            projected[row, left + 1] += mass * (place - left)
    return projected


def oracle(combine):
    actor, critics = plain_networks()
    target_critics = copy.deepcopy(critics)
    support = torch.linspace(LOW, HIGH, ATOMS, dtype=torch.float64)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam([p for q in critics for p in q.parameters()], lr=1e-2)
    for step in range(STEPS):
        td = batch(16, seed=step, dtype=torch.float64)
        torch.manual_seed(step)
        s, a, r, s2 = td["observation"], td["action"], td["next", "reward"], td["next", "observation"]
        with torch.no_grad():
            a2 = actor(s2)
            a2 = (a2 + (0.2 * torch.randn_like(a2)).clamp(-0.5, 0.5)).clamp(-1, 1)
            first, second = (q(s2, a2).softmax(-1) for q in target_critics)
            if combine == "average":
                chosen = (first + second) / 2
            else:
                lower = (first * support).sum(-1) <= (second * support).sum(-1)
                chosen = torch.where(lower[:, None], first, second)
            target = project(r + GAMMA * (1 - td["next", "terminated"].double()) * support, chosen, support)
        critic_optimizer.zero_grad()
        sum(-(target * q(s, a).log_softmax(-1)).sum(-1).mean() for q in critics).backward()
        critic_optimizer.step()
        if step % 2:
            first, second = ((q(s, actor(s)).softmax(-1) * support).sum(-1) for q in critics)
            value = (first + second) / 2 if combine == "average" else torch.minimum(first, second)
            actor_optimizer.zero_grad()
            (-value.mean()).backward()
            actor_optimizer.step()
            with torch.no_grad():
                for online, slow in zip(critics, target_critics, strict=True):
                    for p, t in zip(online.parameters(), slow.parameters(), strict=True):
                        t.copy_(TAU * p + (1 - TAU) * t)
    return [p.data for net in (actor, *critics, *target_critics) for p in net.parameters()]


@pytest.mark.parametrize("combine", ["minimum", "average"])
def test_fifty_updates_end_with_the_oracles_parameters(combine):
    actor, critics = plain_networks()
    wrapped = TensorDictModule(actor, in_keys=["observation"], out_keys=["action"])
    values = [ValueOperator(q, in_keys=["observation", "action"]) for q in critics]
    options = {"v_min": LOW, "v_max": HIGH, "num_atoms": ATOMS, "bounds": (-1.0, 1.0), "policy_noise": 0.2}
    loss = FastTD3Loss(wrapped, values, combine_critics=combine, **options).make_value_estimator("td0", gamma=GAMMA)
    train_with_delay(loss, ((step, batch(16, seed=step, dtype=torch.float64)) for step in range(STEPS)), tau=TAU)
    ours = [*actor.parameters(), *(p for q in critics for p in q.parameters()), *loss.target_pairs("parameters")[0]]
    torch.testing.assert_close([p.data for p in ours], oracle(combine), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("combine", ["minimum", "average"])
def test_with_one_critic_and_no_noise_it_is_d4pg(combine):
    fast = make(FastTD3Loss, num_value_nets=1, delay_actor=True, combine_critics=combine)
    d4pg = make(D4PGLoss, num_value_nets=1, bounds=(-1.0, 1.0))
    data = batch(8)
    mine, theirs = fast(data.clone()), d4pg(data.clone())
    torch.testing.assert_close(mine.to_dict(), theirs.to_dict())
    for key in ("loss_actor", "loss_value"):
        torch.testing.assert_close(
            [g for g in gradients(mine[key], fast.parameters()) if g is not None],
            [g for g in gradients(theirs[key], d4pg.parameters()) if g is not None],
        )


def test_target_actions_are_td3s():
    td3 = TD3Loss(*networks(), bounds=(-2.0, 3.0), policy_noise=0.3, noise_clip=0.4)
    fast = make(FastTD3Loss, bounds=(-2.0, 3.0), policy_noise=0.3, noise_clip=0.4)
    action = 3 * torch.randn(100, ACTION)
    torch.manual_seed(1)
    smoothed = fast.bound_target_action(action)
    torch.manual_seed(1)
    torch.testing.assert_close(smoothed, td3.bound_target_action(action))
    assert (smoothed - action.clamp(-2.0, 3.0)).abs().max() > 0.1


def test_the_average_target_has_the_average_of_the_critics_expected_values():
    one, other = torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[9.0, 0.0, 0.0]])
    loss = make(FastTD3Loss, num_atoms=3, combine_critics="average")
    mixed = loss.next_state_value([one, other], None, None)
    means = [loss.expected_value(value) for value in (one, other)]
    torch.testing.assert_close(loss.expected_target(mixed), (means[0] + means[1]) / 2)
    torch.testing.assert_close(loss.actor_value([one, other]), (means[0] + means[1]) / 2)
    loss.combine_critics = "minimum"
    torch.testing.assert_close(loss.actor_value([one, other]), torch.minimum(*means))


def test_the_target_action_is_the_online_actors_unless_it_is_delayed():
    loss = make(FastTD3Loss)
    assert not loss.delay_actor
    before = loss.compute_target(batch(8))
    for parameter in loss.actor_network.parameters():
        parameter.data.add_(1.0)
    assert not torch.equal(loss.compute_target(batch(8)), before)


def test_the_recipe_runs_and_keeps_the_last_state_of_an_episode():
    arguments = vector_environments.parse(
        ["--frames", "64", "--envs", "4", "--random-frames", "32", "--batch-size", "32", "--episodes", "2"]
    )
    arguments.updates = 1
    for name in ("fast_td3", "td3"):
        arguments.loss = name
        assert all(result < 0 for result in vector_environments.train(arguments))
    env = vector_environments.make_env(2, seed=0)
    step = env.reset()
    for _ in range(200):
        transition, step = env.step_and_maybe_reset(step.set("action", torch.zeros(2, 1)))
    assert transition["next", "truncated"].all()
    assert not transition["next", "terminated"].any()
    assert not torch.isclose(transition["next", "state"], step["state"]).all(-1).any()
    env.close()


def test_a_critic_may_see_more_than_the_actor():
    actor, critic = vector_environments.make_networks(101)
    loss = FastTD3Loss(actor, critic, v_min=-1.0, v_max=1.0, bounds=(-2.0, 2.0))
    assert {"state", "observation", ("next", "state"), ("next", "observation")} <= set(loss.in_keys)

"""ReBRAC against plain PyTorch and TD3+BC, the units of imitation, and the next actions of a dataset."""

import copy

import offline_rebrac
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import ACTION, OBSERVATION, Critic, batch, gradients, make, train_with_delay
from torchrl_ddpg import BatchError, ReBRACLoss, TD3BCLoss, with_next_actions

GAMMA, TAU, STEPS, LOW, HIGH = 0.96875, 0.05, 50, -2.0, 2.0


def plain_networks():
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(OBSERVATION, 16), nn.Tanh(), nn.Linear(16, ACTION), nn.Tanh()).double()
    return actor, [Critic().double(), Critic().double()]


def test_fifty_updates_end_with_the_oracles_parameters():
    actor, critics = plain_networks()
    target_actor, target_critics = copy.deepcopy(actor), copy.deepcopy(critics)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam([p for q in critics for p in q.parameters()], lr=1e-2)
    half = (HIGH - LOW) / 2
    for step in range(STEPS):
        td = batch(16, seed=step, dtype=torch.float64)
        torch.manual_seed(step)
        s, a, r, s2 = td["observation"], td["action"], td["next", "reward"], td["next", "observation"]
        with torch.no_grad():
            a2 = target_actor(s2)
            a2 = (a2 + half * (0.2 * torch.randn_like(a2)).clamp(-0.5, 0.5)).clamp(LOW, HIGH)
            penalty = ((a2 / half - td["next", "action"] / half) ** 2).sum(-1, keepdim=True)
            q2 = torch.min(*(q(s2, a2) for q in target_critics)) - 0.3 * penalty
            y = r + GAMMA * (1 - td["next", "terminated"].double()) * q2
        critic_optimizer.zero_grad()
        sum(((q(s, a) - y) ** 2).mean() for q in critics).backward()
        critic_optimizer.step()
        if step % 2:
            mu = actor(s)
            q = torch.min(*(q(s, mu) for q in critics))
            penalty = (((mu - a) / half) ** 2).sum(-1)
            actor_optimizer.zero_grad()
            (0.7 * penalty.mean() - q.mean() / q.abs().mean().detach()).backward()
            actor_optimizer.step()
            with torch.no_grad():
                for online, target in zip([actor, *critics], [target_actor, *target_critics], strict=True):
                    for p, t in zip(online.parameters(), target.parameters(), strict=True):
                        t.copy_(TAU * p + (1 - TAU) * t)
    expected = [p.data for net in (actor, *critics, target_actor, *target_critics) for p in net.parameters()]

    actor, critics = plain_networks()
    wrapped = TensorDictModule(actor, in_keys=["observation"], out_keys=["action"])
    critics = [ValueOperator(q, in_keys=["observation", "action"]) for q in critics]
    loss = ReBRACLoss(wrapped, critics, bounds=(LOW, HIGH), alpha_actor=0.7, alpha_critic=0.3)
    loss.make_value_estimator("td0", gamma=GAMMA)
    train_with_delay(loss, ((step, batch(16, seed=step, dtype=torch.float64)) for step in range(STEPS)), tau=TAU)
    ours = [*actor.parameters(), *(p for q in critics for p in q.parameters()), *loss.target_pairs("parameters")[0]]
    torch.testing.assert_close([p.data for p in ours], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("units", ["action", "half_range"])
@pytest.mark.parametrize("critics", [1, 2])
def test_without_the_critics_penalty_it_is_td3_bc(units, critics):
    # TD3+BC weighs the value by alpha and averages over the action's dimensions, ReBRAC weighs the sum over them.
    options = {"num_qvalue_nets": critics, "loss_function": "l2", "bounds": (-1.5, 3.0), "imitation_units": units}
    bc = make(TD3BCLoss, alpha=2.5, **options)
    rebrac = make(ReBRACLoss, alpha_actor=1 / (2.5 * ACTION), alpha_critic=0.0, **options)
    rebrac.actor_critics = (0,)  # TD3+BC's actor ascends the first critic
    data = batch(8)
    mine, theirs = rebrac(data.clone()), bc(data.clone())
    for key in set(mine.keys()) - {"loss_actor", "bc_loss", "lmbd"}:
        torch.testing.assert_close(mine[key], theirs[key])
    torch.testing.assert_close(2.5 * mine["loss_actor"], theirs["loss_actor"])
    torch.testing.assert_close(mine["bc_loss"], ACTION * theirs["bc_loss"])
    torch.testing.assert_close(2.5 * mine["lmbd"], theirs["lmbd"])
    torch.testing.assert_close(
        [2.5 * g for g in gradients(mine["loss_actor"], rebrac.actor_network_params.parameters())],
        list(gradients(theirs["loss_actor"], bc.actor_network_params.parameters())),
    )


@pytest.mark.parametrize("loss_class", [TD3BCLoss, ReBRACLoss])
def test_half_the_range_is_the_unit_of_each_dimension(loss_class):
    bounds = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 20.0]))
    action, data = torch.tensor([[0.5, 7.0]]), batch(1).set("action", torch.tensor([[0.0, 2.0]]))
    values = {}
    for units in ("action", "half_range"):
        loss = make(loss_class, bounds=bounds, imitation_units=units)
        values[units] = loss.actor_sample_losses(torch.ones(1, 1), action, loss.read(data))[1]["bc_loss"]
    mean = 1 if loss_class is ReBRACLoss else 1 / ACTION
    torch.testing.assert_close(values["action"].flatten(), torch.tensor([mean * (0.25 + 25.0)]))
    torch.testing.assert_close(values["half_range"].flatten(), torch.tensor([mean * (0.25 + 0.25)]))
    assert make(TD3BCLoss).imitation_units == "action"
    assert make(ReBRACLoss).imitation_units == "half_range"


def test_the_penalty_ends_where_the_episode_does_and_nowhere_else():
    loss = make(ReBRACLoss, alpha_critic=1.0).make_value_estimator("td0", gamma=0.5)
    data = batch(8, terminated=0.5)
    ended = data["next", "terminated"].squeeze(-1)
    far = data.clone()
    far["next", "action"] = far["next", "action"] + 1
    near, away = loss.compute_target(data), loss.compute_target(far)
    assert (away < near).squeeze(-1)[~ended].any()
    torch.testing.assert_close(near[ended], data["next", "reward"][ended])
    far["next", "action"][ended] = float("nan")
    torch.testing.assert_close(loss.compute_target(far), away)
    far["next", "action"][~ended] = float("nan")
    with pytest.raises(BatchError, match=r"NaN or inf in \('next', 'action'\)"):
        loss(far)


def test_the_next_action_may_have_another_name():
    loss, renamed = make(ReBRACLoss), make(ReBRACLoss)
    renamed.set_keys(next_action=("behaviour", "following"))
    assert ("behaviour", "following") in renamed.in_keys
    assert ("next", "action") not in renamed.in_keys
    data = batch(8)
    other = data.exclude(("next", "action")).set(("behaviour", "following"), data["next", "action"])
    torch.testing.assert_close(renamed(other).to_dict(), loss(data).to_dict())
    renamed.set_keys(next_action=None)
    torch.testing.assert_close(renamed(data).to_dict(), loss(data).to_dict())


def test_agents_with_one_value_pay_for_all_their_actions():
    loss = make(ReBRACLoss, alpha_critic=1.0, imitation_units="action")
    action, following = torch.zeros(4, 3, ACTION), torch.ones(4, 3, ACTION)
    data = batch(4)
    data["next", "action"] = following
    read = loss.read(data)
    own = loss.next_state_value([torch.zeros(4, 3, 1)] * 2, action, read)
    shared = loss.next_state_value([torch.zeros(4, 1)] * 2, action, read)
    torch.testing.assert_close(own, torch.full((4, 3, 1), -2.0))
    torch.testing.assert_close(shared, torch.full((4, 1), -6.0))


def dataset():
    """Three episodes: one that terminates, one that is cut off, and one that the data does not end."""
    action = torch.arange(1.0, 9.0).unsqueeze(-1)
    terminated = torch.zeros(8, 1, dtype=torch.bool)
    done = terminated.clone()
    terminated[2] = done[2] = done[5] = True
    observation = torch.arange(8.0).unsqueeze(-1)
    later = observation + 1
    later[[2, 5]] = -1.0
    after = {"observation": later, "reward": torch.ones(8, 1), "done": done, "terminated": terminated}
    return TensorDict({"observation": observation, "action": action, "next": after}, [8])


def test_next_actions_of_a_dataset():
    data = dataset()
    made = with_next_actions(data)
    assert made["action"].flatten().tolist() == [1, 2, 3, 4, 5, 7]
    assert made["next", "action"].flatten().tolist() == [2, 3, 0, 5, 6, 8]
    assert made["next", "terminated"].flatten().tolist() == [False, False, True, False, False, False]
    assert ("next", "action") not in data.keys(True)
    nested = data.rename_key_("action", ("agents", "action"))
    assert with_next_actions(nested, action=("agents", "action"))["next", "agents", "action"].shape == (6, 1)
    one = with_next_actions(data[2:3], action=("agents", "action"))
    assert one["next", "agents", "action"].tolist() == [[0.0]]


def test_shuffled_data_is_refused():
    data = dataset()
    with pytest.raises(
        ValueError, match=r"with_next_actions: \('next', 'observation'\) is not 'observation'.*shuffled"
    ):
        with_next_actions(data[torch.tensor([3, 0, 6, 4, 1, 7, 5, 2])])


def test_a_dataset_trains_the_loss():
    data = TensorDict.cat([with_next_actions(row) for row in batch(4, 20).unbind(0)])
    loss = make(ReBRACLoss)
    assert loss(data[torch.randperm(len(data))]).isfinite().all()
    assert len(data) < 80


def test_the_recipe_runs():
    sizes = {"updates": 4, "data-episodes": 2, "episodes": 2}
    words = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    of_data, of_policy = offline_rebrac.train(offline_rebrac.parse(words))
    assert of_policy < 0
    assert -600 < of_data < 0
    episodes = offline_rebrac.run_episodes(None, 2, seed=0)
    assert offline_rebrac.load(episodes).batch_size == (2 * 199,)

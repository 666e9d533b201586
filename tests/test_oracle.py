"""Algorithm 1 of Lillicrap et al. 2016 in plain PyTorch, without TensorDict, ends with the same parameters as ours."""

import copy

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import ACTION, OBSERVATION, Critic, batch
from torchrl_ddpg import DDPGLoss, HardUpdate, SoftUpdate

GAMMA, TAU, STEPS, INTERVAL = 0.96875, 0.05, 50, 7  # gamma is exact in float32, as estimators keep it


def plain_networks():
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(OBSERVATION, 16), nn.Tanh(), nn.Linear(16, ACTION), nn.Tanh())
    return actor.double(), Critic().double()


def transitions():
    """The batches as plain tensors."""
    for step in range(STEPS):
        data = batch(16, seed=step, dtype=torch.float64)
        yield (
            data,
            (
                data["observation"],
                data["action"],
                data["next", "reward"],
                data["next", "observation"],
                data["next", "terminated"].double(),
            ),
        )


def oracle(hard):
    actor, critic = plain_networks()
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for step, (_, (s, a, r, s_next, terminal)) in enumerate(transitions(), start=1):
        with torch.no_grad():
            y = r + GAMMA * (1 - terminal) * target_critic(s_next, target_actor(s_next))
        critic_loss = ((critic(s, a) - y) ** 2).mean()
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        actor_loss = -critic(s, actor(s)).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()
        with torch.no_grad():
            for online, target in ((actor, target_actor), (critic, target_critic)):
                for p, q in zip(online.parameters(), target.parameters(), strict=True):
                    if not hard:
                        q.copy_(TAU * p + (1 - TAU) * q)
                    elif step % INTERVAL == 0:
                        q.copy_(p)
    return [p for net in (actor, critic, target_actor, target_critic) for p in net.parameters()]


def ours(hard):
    plain_actor, plain_critic = plain_networks()
    actor = TensorDictModule(plain_actor, in_keys=["observation"], out_keys=["action"])
    critic = ValueOperator(plain_critic, in_keys=["observation", "action"])
    loss = DDPGLoss(actor, critic).make_value_estimator("td0", gamma=GAMMA)
    updater = HardUpdate(loss, value_network_update_interval=INTERVAL) if hard else SoftUpdate(loss, tau=TAU)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for data, _ in transitions():
        for term, optimizer in ((loss.loss_value, critic_optimizer), (loss.loss_actor, actor_optimizer)):
            optimizer.zero_grad()
            term(data)[0].backward()
            optimizer.step()
        updater.step()
    targets = loss.target_pairs("parameters")[0]
    return [*actor.parameters(), *critic.parameters(), *targets]


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_fifty_updates_end_with_the_oracles_parameters(hard):
    torch.testing.assert_close([p.data for p in ours(hard)], [p.data for p in oracle(hard)], rtol=1e-9, atol=1e-11)

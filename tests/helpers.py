"""Small networks and batches that the tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from own_losses import QuantileLoss, RandomEnsembleLoss
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP, ValueOperator

from torchrl_ddpg import D4PGLoss, DDPGLoss, FastTD3Loss, ReBRACLoss, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep
from torchrl_ddpg.batch import under_next

OBSERVATION, ACTION = 3, 2


class Critic(nn.Module):
    """Q(observation, action, *others)."""

    def __init__(self, width=OBSERVATION + ACTION, encoder=None, outputs=1):
        super().__init__()
        self.encoder = encoder or nn.Identity()
        self.net = MLP(width, outputs, num_cells=[16], activation_class=nn.Tanh)

    def forward(self, observation, action, *others):
        return self.net(torch.cat([self.encoder(observation), action, *others], -1))


def networks(
    seed=0,
    *,
    observation="observation",
    action="action",
    value="state_action_value",
    encoder=None,
    encoder_width=4,
    goal=None,
    outputs=1,
    device="cpu",
):
    """An actor and a critic; with ``encoder`` they share it, with ``goal`` the critic reads that entry too."""
    torch.manual_seed(seed)
    width = OBSERVATION if encoder is None else encoder_width
    encoder = nn.Linear(OBSERVATION, encoder_width) if encoder == "shared" else encoder
    body = nn.Sequential(MLP(width, ACTION, num_cells=[16], activation_class=nn.Tanh), nn.Tanh())
    actor = TensorDictModule(
        nn.Sequential(encoder, body) if encoder is not None else body, in_keys=[observation], out_keys=[action]
    )
    in_keys = [observation, action] + ([goal] if goal else [])
    critic = Critic(width + ACTION + (2 if goal else 0), encoder, outputs)
    return actor.to(device), ValueOperator(critic, in_keys=in_keys, out_keys=[value]).to(device)


def batch(*shape, seed=0, terminated=0.2, truncated=0.1, dtype=torch.float32, in_order=True, keys=None):
    """Random transitions; with ``in_order`` and a time dimension, trajectories in time order."""
    generator = torch.Generator().manual_seed(seed)
    name = {key: key for key in ("observation", "action", "reward", "done", "terminated")} | (keys or {})

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    def flag(probability):
        return torch.rand(*shape, 1, generator=generator) < probability

    observation, later = normal(*shape, OBSERVATION), normal(*shape, OBSERVATION)
    ended = flag(terminated)
    done = ended | flag(truncated)
    if len(shape) > 1 and in_order:
        later[..., :-1, :] = torch.where(done[..., :-1, :], later[..., :-1, :], observation[..., 1:, :])
    td = TensorDict({}, batch_size=shape)
    td[name["observation"]], td[name["action"]] = observation, normal(*shape, ACTION).tanh()
    for key, value in (("observation", later), ("reward", normal(*shape, 1)), ("done", done), ("terminated", ended)):
        td[under_next(name[key])] = value
    following = normal(*shape, ACTION).tanh()
    if len(shape) > 1 and in_order:
        following[..., :-1, :] = torch.where(done[..., :-1, :], following[..., :-1, :], td[name["action"]][..., 1:, :])
    td[under_next(name["action"])] = following
    return td


def make(loss_class=DDPGLoss, seed=0, updater=True, networks_kwargs=None, **kwargs):
    """A loss that has an updater, so that it does not warn, and whose targets differ from its networks."""
    if loss_class in DEFAULTS:
        kwargs = {**DEFAULTS[loss_class], **kwargs}
    outputs = kwargs.get("num_atoms", 5 if loss_class is QuantileLoss else 1)
    loss = loss_class(*networks(seed, outputs=outputs, **(networks_kwargs or {})), **kwargs)
    if updater and not loss.has_updater:
        SoftUpdate(loss, tau=0.5)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in loss.named_buffers():
        if name.startswith("target_") and buffer.is_floating_point():
            noise = torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
            buffer.data.add_(0.1 * noise.to(buffer.device))
    return loss


def step_of(loss, **options):
    """An UpdateStep with plain optimizers."""
    nets = [loss.get_stateful_net(name, copy=False) for name in ("actor_network", loss.critic_name)]
    actor, critic = (torch.optim.SGD(net.parameters(), lr=1e-2) for net in nets)
    updater = SoftUpdate(loss, tau=0.1)
    return UpdateStep(loss, actor_optimizer=actor, critic_optimizer=critic, target_updater=updater, **options)


def gradients(loss_value, parameters):
    """Gradients, None where there is none."""
    return torch.autograd.grad(loss_value, list(parameters), allow_unused=True, retain_graph=True)


@dataclass(frozen=True)
class Case:
    """What the contract suite needs to know of a loss."""

    make: Callable
    critic_name: str
    critic_loss_key: str
    estimators: tuple[str, ...] = ("td0", "td1", "td_lambda")


# Without noise, so that the same batch gives the same numbers.
DEFAULTS = {
    TD3Loss: {"bounds": (-1.0, 1.0), "policy_noise": 0.0},
    TD3BCLoss: {"bounds": (-1.0, 1.0), "policy_noise": 0.0},
    D4PGLoss: {"v_min": -10.0, "v_max": 10.0, "num_atoms": 21},
    FastTD3Loss: {"v_min": -10.0, "v_max": 10.0, "num_atoms": 21, "bounds": (-1.0, 1.0), "policy_noise": 0.0},
    ReBRACLoss: {"bounds": (-1.0, 1.0), "policy_noise": 0.0, "alpha_actor": 0.1, "alpha_critic": 0.01},
    RandomEnsembleLoss: {"num_qvalue_nets": 3, "subset": 3},
}

LOSSES = {
    "ddpg": Case(make, "value_network", "loss_value"),
    "td3": Case(partial(make, TD3Loss), "qvalue_network", "loss_qvalue"),
    "td3_bc": Case(partial(make, TD3BCLoss), "qvalue_network", "loss_qvalue"),
    "d4pg": Case(partial(make, D4PGLoss), "value_network", "loss_value", ("td0",)),
    "d4pg twin": Case(partial(make, D4PGLoss, num_value_nets=2), "value_network", "loss_value", ("td0",)),
    "fast_td3": Case(partial(make, FastTD3Loss), "value_network", "loss_value", ("td0",)),
    "fast_td3 average": Case(
        partial(make, FastTD3Loss, combine_critics="average"), "value_network", "loss_value", ("td0",)
    ),
    "rebrac": Case(partial(make, ReBRACLoss), "qvalue_network", "loss_qvalue"),
    "own: quantiles": Case(partial(make, QuantileLoss), "value_network", "loss_value", ("td0",)),
    "own: random ensemble": Case(partial(make, RandomEnsembleLoss), "qvalue_network", "loss_qvalue"),
}


def train_with_delay(loss, batches, tau):
    """Adam's steps at 1e-2 by hand: the critics at every (step, batch), actor and targets at every second."""
    updater = SoftUpdate(loss, tau=tau)
    critics = getattr(loss, f"{loss.critic_name}_params").parameters()
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.parameters(), lr=1e-2)
    critic_optimizer = torch.optim.Adam(critics, lr=1e-2)
    for step, td in batches:
        torch.manual_seed(step)
        critic_optimizer.zero_grad()
        loss.loss_value(td)[0].backward()
        critic_optimizer.step()
        if step % 2:
            actor_optimizer.zero_grad()
            loss.loss_actor(td)[0].backward()
            actor_optimizer.step()
            updater.step()

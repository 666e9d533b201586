"""Each function shows one difference from TorchRL's losses and prints both results.

Run all of them with ``python docs/snippets/differences.py``, or some of them by name.
"""

import copy
import sys
import textwrap
import warnings

import torch
import torchrl.objectives
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import (
    MLP,
    GRUModule,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
    set_recurrent_mode,
)
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

import torchrl_ddpg

SIDES = {"TorchRL": torchrl.objectives, "here": torchrl_ddpg}


def make_networks(critic_in_keys=("observation", "action"), critic_width=5):
    """Return an actor and a critic, the same ones at every call."""
    torch.manual_seed(0)
    actor = TensorDictModule(
        MLP(3, 2, num_cells=[16]), in_keys=["observation"], out_keys=["action"]
    )
    return actor, ValueOperator(MLP(critic_width, 1, num_cells=[16]), in_keys=list(critic_in_keys))


def make_batch(*shape, terminated=False):
    """Return random transitions with reward 1, the same ones at every call."""
    torch.manual_seed(0)
    later = {"observation": torch.randn(*shape, 3), "reward": torch.ones(*shape, 1)}
    later |= {key: torch.full((*shape, 1), terminated) for key in ("done", "terminated")}
    root = {"observation": torch.randn(*shape, 3), "action": torch.randn(*shape, 2).tanh()}
    return TensorDict({**root, "next": later}, batch_size=shape)


def make_loss(library, networks=None, **options):
    """Build the library's DDPGLoss, both targets delayed."""
    return library.DDPGLoss(*(networks or make_networks()), **{"delay_actor": True, **options})


def compute_targets(loss, batch):
    """Return the targets, one a sample, as TorchRL's loss or ours gives them."""
    if hasattr(loss, "compute_target"):
        return loss.compute_target(batch.clone()).squeeze(-1)
    return loss(batch.clone())["target_value"]


def value_loss(loss, batch):
    """Return the critic's loss as a rounded number."""
    return round(loss(batch.copy())["loss_value"].item(), 3)


def first_target(loss):
    """Return the first number of the target critic."""
    return (
        next(t for name, t in loss.named_buffers() if name.startswith("target_value"))
        .flatten()[0]
        .item()
    )


def outcome(call, *args, **kwargs):
    """Return what the call returns, or its exception as one line."""
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        return textwrap.shorten(f"{type(error).__name__}: {error}", 320, placeholder=" ...")


def show(side, text):
    """Print a result behind the name of the library."""
    print(
        textwrap.fill(
            f"{side + ':':9}{text}", 100, subsequent_indent=" " * 9, break_long_words=False
        )
    )


def torchrl_defaults():
    """The settings that give TorchRL's results."""
    for side, library in SIDES.items():
        batch = make_batch(8)
        batch["priority_weight"] = torch.rand(8)
        options = {}
        if side == "here":
            options = {"delay_actor": False, "priority": "squared", "weigh_actor": True}
            batch["priority_weight"] /= batch["priority_weight"].mean()
        out = library.DDPGLoss(*make_networks(), **options)(batch)
        values = {name: f"{out[name]:.4f}" for name in ("loss_value", "loss_actor")}
        show(side, f"{values}, mean priority {batch['td_error'].mean():.4f}")


def metrics_that_train():
    """All transitions are terminal with reward 1, so Q should become 1; every output is summed."""
    batch = make_batch(16, terminated=True)
    for side, library in SIDES.items():
        loss = make_loss(library)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(500):
            optimizer.zero_grad()
            loss(batch).sum(reduce=True).backward()
            optimizer.step()
        show(side, f"Q = {loss(batch)['pred_value'].mean():.2f}")


def networks_after_an_exception():
    """A batch lacks an entry and the caller catches the exception; are the networks still whole?"""
    for side, library in SIDES.items():
        actor, critic = make_networks()
        loss = make_loss(library, (actor, critic))
        outcome(loss, make_batch(8).exclude(("next", "observation")))
        show(
            side,
            f"parameters left: actor {len([*actor.parameters()])}, critic {len([*critic.parameters()])}",
        )


class InterruptedCritic(nn.Module):
    """A critic during whose target pass the user presses Ctrl-C."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, observation, action):
        """Run, but not with target parameters."""
        if not self.layer.weight.requires_grad:
            raise KeyboardInterrupt
        return self.layer(torch.cat([observation, action], -1))


def keyboard_interrupt():
    """Ctrl-C arrives while the target networks run."""
    for side, library in SIDES.items():
        critic = ValueOperator(InterruptedCritic(), in_keys=["observation", "action"])
        show(side, outcome(make_loss(library, (make_networks()[0], critic)), make_batch(8)))


def integer_flags():
    """Terminated transitions with reward 1, flags stored as uint8; the target is the reward."""
    batch = make_batch(8, terminated=True)
    for key in ("done", "terminated"):
        batch["next", key] = batch["next", key].to(torch.uint8)
    for side, library in SIDES.items():
        show(side, f"target {compute_targets(make_loss(library), batch).mean():.2f}")


def loaded_targets():
    """A checkpoint whose targets are 7 is loaded, then the updater is built."""
    for side, library in SIDES.items():
        loss = make_loss(library)
        checkpoint = {
            key: torch.full_like(value, 7.0)
            for key, value in loss.state_dict().items()
            if "target" in key
        }
        loss.load_state_dict(checkpoint, strict=False)
        library.SoftUpdate(loss, tau=0.005)
        show(side, f"target after SoftUpdate(loss): {first_target(loss):.2f}")


def keys_of_state_dict():
    """A checkpoint is made after a forward with gamma 0.99 and loaded into a loss with gamma 0.9."""
    for side, library in SIDES.items():
        old, new = make_loss(library), make_loss(library)
        before = set(old.state_dict())
        old(make_batch(8))
        show(side, f"keys that forward added: {sorted(set(old.state_dict()) - before)}")
        new.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
        new.load_state_dict(old.state_dict())
        show(side, f"gamma after loading: {float(new.value_estimator.gamma):.2f}")


def returns_over_unrelated_steps():
    """TD(lambda) is given a flat batch of shuffled transitions, each with reward 1."""
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=0.9)
        library.SoftUpdate(loss, tau=0.005)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            target = compute_targets(loss, make_batch(64)).mean()
        show(
            side,
            f"mean target {target:.1f}; warnings: {[str(warning.message) for warning in caught]}",
        )
    strict = make_loss(torchrl_ddpg).make_value_estimator("td_lambda", on_unordered="raise")
    show("here", f'with on_unordered="raise": {outcome(strict, make_batch(64))}')


def nan_past_the_end():
    """The observation after a terminal step is NaN, as some simulators leave it."""
    batch = make_batch(8, terminated=True)
    batch["next", "observation"].fill_(float("nan"))
    for side, library in SIDES.items():
        show(side, f"loss_value {outcome(value_loss, make_loss(library), batch)}")


def parameters_set_by_hand():
    """After a first call the critic's parameters are all set to 0, by two of PyTorch's ways."""
    batch = make_batch(8)
    for side, library in SIDES.items():
        for way in ("vector_to_parameters", "p.data = ..."):
            networks = make_networks()
            loss = make_loss(library, networks)
            loss.loss_actor(batch)
            parameters = list(networks[1].parameters())
            if way == "vector_to_parameters":
                nn.utils.vector_to_parameters(
                    torch.zeros(sum(p.numel() for p in parameters)), parameters
                )
            else:
                for parameter in parameters:
                    parameter.data = torch.zeros_like(parameter)
            show(
                side,
                f"{way}: the actor's loss under a critic that is 0 everywhere: "
                f"{loss.loss_actor(batch)[0]:.3f}",
            )


def batch_norm_statistics():
    """The running mean of the actor's BatchNorm becomes 5; SoftUpdate with tau = 1 should copy it."""
    for side, library in SIDES.items():
        net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
        actor = TensorDictModule(net, in_keys=["observation"], out_keys=["action"])
        loss = make_loss(library, (actor, make_networks()[1]))
        updater = library.SoftUpdate(loss, tau=1.0)
        loss.actor_network_params["module", "0", "running_mean"].fill_(5.0)
        updater.step()
        mean = loss.target_actor_network_params["module", "0", "running_mean"]
        show(side, f"running mean of the target {mean[0]:.1f}")


def unfrozen_parameters():
    """The critic is frozen while loss and updater are built, and trained to 5 later; tau = 1."""
    for side, library in SIDES.items():
        actor, critic = make_networks()
        critic.requires_grad_(False)
        loss = make_loss(library, (actor, critic))
        updater = library.SoftUpdate(loss, tau=1.0)
        loss.value_network_params.requires_grad_(True)
        loss.value_network_params.data.apply_(lambda parameter: parameter.fill_(5.0))
        updater.step()
        show(side, f"target {first_target(loss):.1f}")


def recurrent_actor():
    """One row holds two episodes. Do the second one's targets depend on the first one?"""
    torch.manual_seed(0)
    gru = GRUModule(
        input_size=3,
        hidden_size=8,
        in_keys=["observation", "h", "is_init"],
        out_keys=["x", ("next", "h")],
    )
    actor = TensorDictSequential(
        gru, TensorDictModule(nn.Linear(8, 2), in_keys=["x"], out_keys=["action"])
    )
    batch = make_batch(1, 6)
    batch["is_init"] = torch.tensor([True, False, False, True, False, False]).reshape(1, 6, 1)
    batch["next", "is_init"] = torch.zeros(1, 6, 1, dtype=torch.bool)
    batch["next", "done"][:, 2] = True
    batch["h"] = batch["next", "h"] = torch.zeros(1, 6, 1, 8)
    changed = batch.clone()
    changed["next", "observation"][:, :3] += 1.0
    for side, library in SIDES.items():
        loss = make_loss(library, (actor, make_networks()[1]))
        with set_recurrent_mode(True):
            difference = compute_targets(loss, changed) - compute_targets(loss, batch)
        show(side, f"largest change: {difference[0, 3:].abs().max():.4f}")


def terms_called_alone():
    """loss_actor is called twice on one batch, by itself, where actions are explored at random."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(-1, (2, 2)))
    split = TensorDictModule(lambda x: (x[..., 0], x[..., 1].exp()), ["x"], ["loc", "scale"])
    networks = TensorDictSequential(TensorDictModule(body, ["observation"], ["x"]), split)
    actor = ProbabilisticActor(networks, ["loc", "scale"], distribution_class=TanhNormal)
    batch = make_batch(8)
    for side, library in SIDES.items():
        loss = make_loss(library, (actor, make_networks()[1]))
        with set_exploration_type(ExplorationType.RANDOM):
            first, second = (loss.loss_actor(batch)[0].item() for _ in range(2))
        show(side, f"{first:.3f}, then {second:.3f}")


def hard_update_interval():
    """At which of eight calls does an interval of 2 copy? Which intervals are accepted?"""
    for side, library in SIDES.items():
        networks = make_networks()
        loss = make_loss(library, networks)
        updater = library.HardUpdate(loss, value_network_update_interval=2)
        copied = []
        for call in range(1, 9):
            nn.init.constant_(next(networks[1].parameters()), call)
            updater.step()
            copied += [call] if first_target(loss) == call else []
        show(side, f"copied at calls {copied}")
        for interval in (0, -1, 1.5):
            refused = outcome(
                library.HardUpdate, make_loss(library), value_network_update_interval=interval
            )
            show(
                side, f"interval {interval}: {refused if isinstance(refused, str) else 'accepted'}"
            )


def copied_updater():
    """Loss and updater are copied; the copied networks become 5; the copied updater steps."""
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss, updater = copy.deepcopy((loss, library.SoftUpdate(loss, tau=1.0)))
        for parameter in loss.parameters():
            nn.init.constant_(parameter, 5.0)
        updater.step()
        show(side, f"the copy's target {first_target(loss):.1f}")


def autocast_targets():
    """TD(lambda) returns of up to about 500 under bf16 autocast, against the same in float32."""
    batch = make_batch(2, 100)
    batch["next", "reward"] = 8.0 + torch.randn(2, 100, 1)
    batch["next", "observation"][:, :-1] = batch["observation"][:, 1:]
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.make_value_estimator(ValueEstimators.TDLambda, gamma=0.99, lmbda=1.0)
        exact = compute_targets(loss, batch)
        with torch.autocast("cpu", torch.bfloat16):
            targets = compute_targets(loss, batch)
        show(side, f"{targets.dtype}, off by {(targets.float() - exact).abs().max():.2f}")


def ends_of_lambda():
    """TD(lambda) at the ends of its ranges: lambda = 0 is TD(0), gamma = 0 leaves the reward."""
    batch = make_batch(2, 5)
    batch["next", "observation"][:, :-1] = batch["observation"][:, 1:]
    for side, library in SIDES.items():
        for gamma, lmbda in ((0.99, 0.0), (0.0, 0.9)):
            loss = make_loss(library)
            loss.make_value_estimator(ValueEstimators.TDLambda, gamma=gamma, lmbda=lmbda)
            show(
                side,
                f"gamma {gamma}, lambda {lmbda}: loss_value {outcome(value_loss, loss, batch)}",
            )


def goal_for_the_critic():
    """The critic reads a goal, which is constant over a step, so only the root holds it."""
    batch = make_batch(8)
    batch["goal"] = torch.randn(8, 4)
    for side, library in SIDES.items():
        loss = make_loss(library, make_networks(("observation", "action", "goal"), critic_width=9))
        show(side, f"loss_value {outcome(value_loss, loss, batch)}")


def selected_outputs():
    """Two outputs are selected, then the loss is called with a TensorDict."""
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.select_out_keys("loss_actor", "loss_value")
        result = outcome(loss, make_batch(8))
        show(side, result if isinstance(result, str) else sorted(result.keys()))


def misnamed_entries():
    """Terminal steps with reward 1, so the target is 1; one entry has another name."""
    for side, library in SIDES.items():
        for key, misnamed in (("reward", "rewards"), ("terminated", "is_terminal")):
            batch = make_batch(8, terminated=True)
            batch["next", "done"].fill_(False)
            batch.rename_key_(("next", key), ("next", misnamed))
            target = outcome(compute_targets, make_loss(library), batch)
            show(
                side,
                f"no {key!r}: {target if isinstance(target, str) else f'target {target.mean():.2f}'}",
            )


def reward_without_last_dimension():
    """Rewards and flags are [B], values [B, 1]."""
    batch = make_batch(8)
    for key in ("reward", "done", "terminated"):
        batch["next", key] = batch["next", key].squeeze(-1)
    for side, library in SIDES.items():
        show(side, outcome(make_loss(library), batch))


def estimator_and_keys():
    """What make_value_estimator returns; does a class get keys that were set before?"""
    batch = make_batch(8)
    batch.rename_key_(("next", "reward"), ("next", "r"))
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.set_keys(reward="r")
        show(
            side, f"an enum returns {type(loss.make_value_estimator(ValueEstimators.TD0)).__name__}"
        )
        loss.make_value_estimator(TD0Estimator, gamma=0.99, value_network=loss.actor_critic)
        show(side, f"a class: loss_value {outcome(value_loss, loss, batch)}")


def select_the_in_keys():
    """The batch is reduced to what the loss says that it reads."""
    for side, library in SIDES.items():
        loss, batch = make_loss(library), make_batch(8)
        selected = outcome(batch.select, *loss.in_keys)
        show(
            side,
            selected if isinstance(selected, str) else f"loss_value {value_loss(loss, selected)}",
        )


def priorities():
    """What is written for prioritised replay."""
    for side, library in SIDES.items():
        loss, batch = make_loss(library, reduction="none"), make_batch(8)
        error = loss(batch)["loss_value"].sqrt()
        show(
            side,
            f"mean |td_error| {error.mean():.3f}, mean priority {batch['td_error'].mean():.3f}",
        )


def importance_weights():
    """Weights of 0.1, of 0, of shape [B, 1], under a nested key, and demanded but absent."""
    for side, library in SIDES.items():
        loss, batch = make_loss(library), make_batch(8)
        plain = loss(batch)
        for weight in (0.1, 0.0):
            out = loss(batch.clone().set("priority_weight", torch.full((8,), weight)))
            ratios = [
                f"{name} x {out[name] / plain[name]:.2f}" for name in ("loss_value", "loss_actor")
            ]
            show(side, f"all {weight}: {', '.join(ratios)}")
        column = batch.clone().set("priority_weight", torch.full((8, 1), 0.1))
        show(side, f"[B, 1]: loss_value {outcome(value_loss, loss, column)}")
        loss.set_keys(priority_weight=("replay", "weight"))
        nested = batch.clone().set(("replay", "weight"), torch.full((8,), 0.1))
        show(side, f"nested: loss_value {outcome(value_loss, loss, nested)}")
        demanding = make_loss(library, use_prioritized_weights=True)
        show(side, f"absent: loss_value {outcome(value_loss, demanding, make_batch(8))}")


def done_shared_by_agents():
    """Three agents have a reward each, [B, 3, 1], and share done and terminated, [B, 1]."""
    batch = make_batch(8)
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        batch[key] = batch[key].unsqueeze(1).repeat(1, 3, 1)
    for side, library in SIDES.items():
        show(side, f"loss_value {outcome(value_loss, make_loss(library), batch)}")


def steps_under_next():
    """Rewards over three steps, gamma 0.5; the number of steps stands in the root, or under "next"."""
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.make_value_estimator(ValueEstimators.TD0, gamma=0.5)
        for place in ("steps_to_next_obs", ("next", "steps_to_next_obs")):
            batch = make_batch(8).set(place, torch.full((8, 1), 3))
            show(side, f"{place}: mean target {compute_targets(loss, batch).mean():.4f}")


def two_gammas():
    """The replay buffer summed three rewards with gamma 0.99; the loss has 0.9."""
    batch = make_batch(8)
    batch["gamma"], batch["steps_to_next_obs"] = torch.full((8, 1), 0.99**3), torch.full((8, 1), 3)
    for side, library in SIDES.items():
        loss = make_loss(library)
        loss.make_value_estimator(ValueEstimators.TD0, gamma=0.9)
        show(side, f"loss_value {outcome(value_loss, loss, batch)}")


class LoudActor(nn.Module):
    """Actions of about 10, whatever the observation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.bias, 10.0)

    def forward(self, observation):
        """Run the layer."""
        return self.layer(observation)


def target_action_in_range():
    """The target actor says about 10, the action's range ends at 1."""
    spec = Bounded(-1.0, 1.0, shape=(2,))
    for side, library in SIDES.items():
        actor = TensorDictModule(LoudActor(), in_keys=["observation"], out_keys=["action"])
        seen = []
        critic = make_networks()[1]
        critic.module.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[1].max().item())
        )
        options = {"action_spec": spec} if side == "here" else {}
        make_loss(library, (actor, critic), **options).loss_value(make_batch(8))
        show(side, f"largest action that the critic is asked about: {max(seen):.1f}")


def options_out_of_range():
    """Options that cannot be meant: are they refused where they are given?"""
    for side, library in SIDES.items():
        for option in ({"reduction": "avg"}, {"loss_function": "huber"}):
            refused = outcome(make_loss, library, **option)
            show(side, f"{option}: {refused if isinstance(refused, str) else 'accepted'}")
        loss = make_loss(library)
        refused = outcome(loss.make_value_estimator, ValueEstimators.TD0, gamma=99)
        show(side, f"gamma=99: {refused or 'accepted'}")
        refused = outcome(library.SoftUpdate, loss, tau=0.0)
        show(side, f"tau=0: {refused if isinstance(refused, str) else 'accepted'}")


def locked_batches():
    """A locked batch; a batch that holds "td_error" in another shape."""
    for side, library in SIDES.items():
        locked, stale = make_batch(8).lock_(), make_batch(8).set("td_error", torch.zeros(8, 1))
        for name, batch in (("locked", locked), ("td_error [B, 1]", stale)):
            result = outcome(make_loss(library), batch)
            show(side, f"{name}: {result if isinstance(result, str) else 'works'}")


def lazy_networks():
    """The critic has a lazy layer that has not seen data."""
    for side, library in SIDES.items():
        critic = ValueOperator(
            MLP(out_features=1, num_cells=[16]), in_keys=["observation", "action"]
        )
        loss = outcome(make_loss, library, (make_networks()[0], critic))
        if not isinstance(loss, str):
            show(side, "the loss is built")
            loss = outcome(loss, make_batch(8))
        show(side, loss)


def updater_warnings():
    """One call without an updater, then two updaters on one loss."""
    for side, library in SIDES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = make_loss(library)
            loss(make_batch(8))
            without = len(caught)
            library.SoftUpdate(loss, tau=0.005)
            library.SoftUpdate(loss, tau=0.005)
        show(side, f"warnings without an updater: {without}; with two: {len(caught) - without}")


def evaluation_mode():
    """The critic has dropout; loss.eval() is called."""
    for side, library in SIDES.items():
        critic = ValueOperator(
            MLP(5, 1, num_cells=[16], dropout=0.5), in_keys=["observation", "action"]
        )
        make_loss(library, (make_networks()[0], critic)).eval()
        show(side, f"dropout is {'on' if critic.training else 'off'}")


def make_td3_loss(library, critic, limit=1.0):
    """Build the library's TD3Loss with two critics and actions from -limit to limit."""
    return library.TD3Loss(make_networks()[0], critic, bounds=(-limit, limit), num_qvalue_nets=2)


def first_critic():
    """TD3Loss makes two critics of one, and a step of plain gradient descent is taken."""
    batch = make_batch(8)
    for side, library in SIDES.items():
        critic = make_networks()[1]
        loss = make_td3_loss(library, critic)
        before = critic(batch.clone())["state_action_value"]
        loss(batch)["loss_qvalue"].backward()
        torch.optim.SGD(loss.parameters(), lr=0.1).step()
        change = (critic(batch.clone())["state_action_value"] - before).abs().mean()
        show(side, f"the values of the critic that was given change by {change:.3f}")


def priority_of_the_critic_term():
    """The critic's term of TD3Loss is called by itself; does the batch get its priorities?"""
    for side, library in SIDES.items():
        batch = make_batch(8)
        make_td3_loss(library, make_networks()[1]).value_loss(batch)
        show(side, f"priorities in the batch: {batch.get('td_error', None) is not None}")


class ActionSize(nn.Module):
    """A critic whose value is the size of the action."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, observation, action):
        """Mean size of the action's components."""
        return self.scale * action.abs().mean(-1, keepdim=True)


def smoothing_noise():
    """The actor says 0, so that the target action is the smoothing noise; two ranges of the action."""
    for side, library in SIDES.items():
        for limit in (1.0, 10.0):
            critics = [
                ValueOperator(ActionSize(), in_keys=["observation", "action"]) for _ in range(2)
            ]
            loss = make_td3_loss(library, critics, limit)
            for name, tensor in (*loss.named_parameters(), *loss.named_buffers()):
                if "actor_network" in name:
                    tensor.data.zero_()
            noise = loss(make_batch(1000))["next_state_value"].mean()
            show(
                side,
                f"actions from {-limit:.0f} to {limit:.0f}: mean size of the noise {noise:.2f}",
            )


def shared_encoder():
    """The networks share an encoder, only the critic is delayed; the live encoder moves by 1."""
    for side, library in SIDES.items():
        torch.manual_seed(0)
        encoder = TensorDictModule(nn.Linear(3, 3), in_keys=["observation"], out_keys=["hidden"])
        head = TensorDictModule(nn.Linear(3, 2), in_keys=["hidden"], out_keys=["action"])
        critic = ValueOperator(MLP(5, 1, num_cells=[16]), in_keys=["hidden", "action"])
        networks = TensorDictSequential(encoder, head), TensorDictSequential(encoder, critic)
        loss = make_loss(library, networks, delay_actor=False)
        before = copy.deepcopy(networks[1])
        with torch.no_grad():
            encoder.module.bias += 1.0
            later = make_batch(8)["next"].select("observation")
            action = networks[0](later.copy())["action"]
            right = 1.0 + 0.99 * before(later.set("action", action))["state_action_value"].squeeze(
                -1
            )
        show(
            side, f"targets off by {(compute_targets(loss, make_batch(8)) - right).abs().max():.4f}"
        )


def main(names):
    """Run the functions of these names, or all of them."""
    warnings.simplefilter("ignore")
    helpers = {
        make_networks,
        make_batch,
        make_loss,
        make_td3_loss,
        compute_targets,
        value_loss,
        first_target,
    }
    helpers |= {outcome, show, main}
    for name, function in list(globals().items()):
        if (
            type(function) is type(main)
            and function not in helpers
            and (not names or name in names)
        ):
            print(f"# {name}")
            function()
    print("# end")


if __name__ == "__main__":
    main(sys.argv[1:])

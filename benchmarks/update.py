"""One whole update, both terms, both optimizers, all targets: ``python benchmarks/update.py``."""

from __future__ import annotations

import argparse
import copy
import itertools
import time
import warnings
from collections.abc import Callable

import torch
import torchrl.objectives
from torch.nn import functional
from torch.optim import Adam
from torch.profiler import ProfilerActivity, profile

import torchrl_ddpg
from common import ACTION, OBSERVATION, batch, interleaved, networks, print_machine, print_table, tensordict_networks
from torchrl_ddpg.update import optimizer_step

GAMMA, TAU, RATE = 0.99, 0.005, 3e-4
SIZES = ((256, 256), (32, 16))  # width, batch
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def adam(parameters, fused: bool = True) -> Adam:
    """The optimizer of every contestant."""
    return Adam(list(parameters), lr=RATE, fused=fused)


def entries(size: int, device: str) -> list[torch.Tensor]:
    """Observation, action, reward, next observation, continuation."""
    data = batch(size, device)
    goes_on = 1 - data["next", "terminated"].float()
    return [data["observation"], data["action"], data["next", "reward"], data["next", "observation"], goes_on]


def hand_written(
    width: int, size: int, device: str, critics: int, step: Callable[[Adam], object] = lambda adam: adam.step()
) -> Callable[[], None]:
    """No TensorDict, fused Adam, one kernel call for all targets, the actor's term through detached critic weights.

    ``step`` steps an optimizer.
    """
    actor, heads = networks(width, device, critics)
    target_actor, target_heads, frozen = copy.deepcopy(actor), copy.deepcopy(heads), copy.deepcopy(heads[0])
    for live, still in zip(heads[0].modules(), frozen.modules(), strict=True):
        for name, parameter in live._parameters.items():
            still._parameters[name] = parameter.detach()
    modules, target_modules = (actor, *heads), (target_actor, *target_heads)
    sources = [parameter.detach() for module in modules for parameter in module.parameters()]
    targets = [parameter.detach() for module in target_modules for parameter in module.parameters()]
    actor_adam, critic_adam = adam(actor.parameters()), adam(p for head in heads for p in head.parameters())
    observation, action, reward, later, goes_on = entries(size, device)

    def update() -> None:
        with torch.no_grad():
            next_action = target_actor(later)
            if critics > 1:
                noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
                next_action = (next_action + noise).clamp(-1, 1)
            next_value = target_heads[0](later, next_action)
            for head in target_heads[1:]:
                next_value = torch.minimum(next_value, head(later, next_action))
            target = reward + GAMMA * goes_on * next_value
        loss = functional.mse_loss(heads[0](observation, action), target)
        for head in heads[1:]:
            loss = loss + functional.mse_loss(head(observation, action), target)
        critic_adam.zero_grad()
        loss.backward()
        step(critic_adam)
        loss = -frozen(observation, actor(observation)).mean()
        actor_adam.zero_grad()
        loss.backward()
        step(actor_adam)
        torch._foreach_lerp_(targets, sources, TAU)

    return update


def cleanrl_way(width: int, size: int, device: str, critics: int) -> Callable[[], None]:
    """PyTorch's default Adam, gradients that nobody uses, a Python loop over the targets."""
    actor, heads = networks(width, device)
    critic = heads[0]
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_adam, critic_adam = (torch.optim.Adam(list(m.parameters()), lr=RATE) for m in (actor, critic))
    observation, action, reward, later, goes_on = entries(size, device)

    def update() -> None:
        with torch.no_grad():
            target = reward.flatten() + goes_on.flatten() * GAMMA * target_critic(later, target_actor(later)).view(-1)
        loss = functional.mse_loss(critic(observation, action).view(-1), target)
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()
        loss = -critic(observation, actor(observation)).mean()
        actor_adam.zero_grad()
        loss.backward()
        actor_adam.step()
        for live, target_module in ((actor, target_actor), (critic, target_critic)):
            for source, moved in zip(live.parameters(), target_module.parameters(), strict=True):
                moved.data.copy_(TAU * source.data + (1 - TAU) * moved.data)

    return update


def in_a_loop(library, width: int, size: int, device: str, critics: int) -> Callable[[], None]:
    """The loss and the SoftUpdate of TorchRL, or of this library, in the loop of TorchRL's examples."""
    actor, wrapped = tensordict_networks(width, device, critics)
    if critics > 1:
        spec = torchrl.data.Bounded(-1, 1, (6,), device=device)
        loss = library.TD3Loss(actor, wrapped, action_spec=spec, loss_function="l2")
        name = "loss_qvalue"
    else:
        loss, name = library.DDPGLoss(actor, wrapped[0], delay_actor=True), "loss_value"
    loss.make_value_estimator(torchrl.objectives.ValueEstimators.TD0, gamma=GAMMA)
    targets = library.SoftUpdate(loss, tau=TAU)
    parameters = loss.qvalue_network_params if critics > 1 else loss.value_network_params
    actor_adam, critic_adam = adam(loss.actor_network_params.parameters()), adam(parameters.parameters())
    data = batch(size, device)

    def update() -> None:
        losses = loss(data)
        (losses["loss_actor"] + losses[name]).backward()
        actor_adam.step()
        critic_adam.step()
        actor_adam.zero_grad()
        critic_adam.zero_grad()
        targets.step()

    return update


def update_step(width: int, size: int, device: str, critics: int, **options: bool) -> Callable[[], object]:
    """This library's whole update."""
    actor, wrapped = tensordict_networks(width, device, critics)
    if critics > 1:
        kept = {"bounds": (-1.0, 1.0), "loss_function": "l2", "num_qvalue_nets": critics}
        loss = torchrl_ddpg.TD3Loss(actor, wrapped, **kept).to(device)
    else:
        loss = torchrl_ddpg.DDPGLoss(actor, wrapped[0])
    loss.make_value_estimator("td0", gamma=GAMMA)
    update = torchrl_ddpg.UpdateStep(
        loss,
        actor_optimizer=adam(actor.parameters()),
        critic_optimizer=adam(p for critic in wrapped for p in critic.parameters()),
        target_updater=torchrl_ddpg.SoftUpdate(loss, tau=TAU),
        **options,
    )
    data = batch(size, device)
    return lambda: update(data)


def matrix_products(width: int, size: int) -> Callable[[], None]:
    """The floor: every product that a DDPG update needs, forward and backward, into memory that is there."""
    actor = list(itertools.pairwise((OBSERVATION, width, width, ACTION)))
    critic = list(itertools.pairwise((OBSERVATION + ACTION, width, width, 1)))
    forward = [(size, n, m) for n, m in (actor + critic) * 2 + critic]
    weights = [(n, size, m) for n, m in actor + critic]
    inputs = [(size, m, n) for n, m in actor[1:] + critic[1:] + critic]
    products = [(torch.empty(n, m), torch.randn(n, k), torch.randn(k, m)) for n, k, m in forward + weights + inputs]

    def update() -> None:
        for out, left, right in products:
            torch.mm(left, right, out=out)

    return update


def contestants(width: int, size: int, device: str, critics: int) -> dict[str, Callable]:
    """Every way to make the same update."""
    setting = (width, size, device, critics)
    found = {"hand-written": hand_written(*setting)}
    if device == "cpu":
        found["hand-written, Adam's kernel alone"] = hand_written(*setting, step=optimizer_step.step)
    if critics == 1:
        found["CleanRL's way"] = cleanrl_way(*setting)
        if device == "cpu":  # on a GPU their launches would be measured
            found["matrix products alone"] = matrix_products(width, size)
    found["TorchRL, loss in a loop"] = in_a_loop(torchrl.objectives, *setting)
    found["this library, loss in a loop"] = in_a_loop(torchrl_ddpg, *setting)
    found["this library, UpdateStep"] = update_step(*setting)
    if device == "cpu":
        found["UpdateStep, record_operators"] = update_step(*setting, record_operators=True)
    else:
        found["UpdateStep, compile"] = update_step(*setting, compile=True)
        found["UpdateStep, cuda_graph"] = update_step(*setting, cuda_graph=True)
        found["UpdateStep, compile, cuda_graph"] = update_step(*setting, compile=True, cuda_graph=True)
    return found


def compare(device: str, rounds: int) -> None:
    """A table for each size and number of critics."""
    for critics, name in ((1, "DDPG"), (2, "TD3, twin critics, no delay")):
        for width, size in SIZES:
            times = interleaved(contestants(width, size, device, critics), rounds)
            hand, rival = times["hand-written"], times["TorchRL, loss in a loop"]
            print(f"{name}, two layers of {width}, batch {size}, {device}:\n")
            rows = [[way, value, value / hand, rival / value] for way, value in times.items()]
            print_table(["", "ms per update", "of hand-written", "times as fast as TorchRL"], rows)


def show_profile(updates: int) -> None:
    """Where an UpdateStep, eager and recorded, spends its time, to the floor of its matrix products alone."""
    for (width, size), recorded in itertools.product(SIZES, (False, True)):
        update = update_step(width, size, "cpu", 1, record_operators=recorded)
        interleaved({"update": update}, 5)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            began = time.perf_counter()
            for _ in range(updates):
                update()
            wall = (time.perf_counter() - began) / updates * 1e3
        own = {event.key: event.self_cpu_time_total / updates / 1e3 for event in profiled.key_averages()}
        products = sum(own.pop(key, 0.0) for key in MATRIX_PRODUCTS)
        rest = sorted(((value, f"`{key}`") for key, value in own.items()), reverse=True)
        operators = [(products, "matrix products"), *rest[:9], (sum(value for value, _ in rest[9:]), "other operators")]
        operators.append((wall - sum(value for value, _ in operators), "Python between them"))
        way = "record_operators" if recorded else "eager"
        print(f"DDPG UpdateStep, {way}, two layers of {width}, batch {size}, under the profiler:\n")
        print_table(["", "ms per update", "share"], [[name, value, value / wall] for value, name in operators])


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=150, help="rounds of three updates of each contestant")
    parser.add_argument("--profile", action="store_true", help="profile the step on the CPU, in place of comparing")
    args = parser.parse_args()
    if args.profile and args.device != "cpu":
        parser.error("--profile measures the CPU; leave --device out")
    warnings.simplefilter("ignore")  # TorchRL's about itself
    torch.set_num_threads(1)
    print_machine()
    if args.profile:
        show_profile(args.rounds)
    else:
        compare(args.device, args.rounds)


if __name__ == "__main__":
    main()

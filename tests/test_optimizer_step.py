"""The direct call of the fused kernel does what ``Optimizer.step`` does, or leaves it to it."""

import copy

import pytest
import torch
from torch import nn

from torchrl_ddpg.update import optimizer_step


def twins(**options):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    second = copy.deepcopy(first)
    options = {"lr": 1e-2, "fused": True} | options
    return [(net, torch.optim.Adam(net.parameters(), **options)) for net in (first, second)]


def gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def counted(monkeypatch):
    calls = []
    kernel = torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs))
    return calls


def same(pair):
    (first, _), (second, _) = pair
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_equals_the_optimizers_own_step(options, monkeypatch):
    pair = twins(**options)
    for seed in range(10):
        for (net, optimizer), take in zip(pair, (optimizer_step.step, torch.optim.Adam.step), strict=True):
            gradients(net, seed)
            optimizer.param_groups[0]["lr"] = 1e-2 / (seed + 1)
            if seed == 5:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            take(optimizer)
        assert same(pair)
    calls = counted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", None)  # not called any more
        optimizer_step.step(pair[0][1])
    assert calls
    assert not same(pair)
    assert {float(state["step"]) for state in pair[0][1].state.values()} == {11.0}


def no_gradient(net, optimizer):
    net[0].weight.grad = None


def hooked(net, optimizer):
    optimizer.register_step_post_hook(lambda *_: setattr(optimizer, "seen", True))


def scheduled(net, optimizer):
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize("change", [no_gradient, hooked, scheduled])
def test_leaves_to_the_optimizer_what_the_kernel_would_not_do(change, monkeypatch):
    pair = twins()
    for seed in range(3):
        for (net, optimizer), take in zip(pair, (optimizer_step.step, lambda o: o.step()), strict=True):
            gradients(net, seed)
            change(net, optimizer)
            take(optimizer)
    assert same(pair)
    assert change is not hooked or pair[0][1].seen
    assert change is not scheduled or pair[0][1]._opt_called


@pytest.mark.parametrize("options", [{"fused": False}, {"amsgrad": True}, {"lr": torch.tensor(1e-2)}])
def test_other_adams_step_by_themselves(options):
    pair = twins(**options)
    for seed in range(5):
        for (net, optimizer), take in zip(pair, (optimizer_step.step, torch.optim.Adam.step), strict=True):
            gradients(net, seed)
            take(optimizer)
    assert same(pair)


def test_any_optimizer():
    pair = twins()
    for net, _ in pair:
        gradients(net, 0)
    optimizer_step.step(torch.optim.SGD(pair[0][0].parameters(), lr=0.1))
    assert not same(pair)

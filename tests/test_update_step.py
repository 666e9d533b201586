"""UpdateStep: the order and the delay of algorithm 1, clipping, state, what it refuses."""

import copy

import pytest
import torch

from helpers import LOSSES, batch, make, networks
from torchrl_ddpg import DDPGLoss, SoftUpdate, UpdateStep


def build(case, seed=0, optimizer=torch.optim.Adam, **options):
    loss = case.make(seed=seed, updater=False)
    return UpdateStep(
        loss,
        actor_optimizer=optimizer(loss.actor_network_params.parameters(), lr=1e-2),
        critic_optimizer=optimizer(getattr(loss, f"{case.critic_name}_params").parameters(), lr=1e-2),
        target_updater=SoftUpdate(loss, tau=0.1),
        **options,
    )


def snapshot(loss):
    return [leaf.detach().clone() for leaf in [*loss.parameters(), *loss.target_pairs("parameters")[0]]]


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("delay", [1, 2, 3])
def test_equals_the_steps_written_out(case, delay):
    update, other = build(case, policy_delay=delay), build(case)
    for step in range(1, 7):
        metrics = update(batch(8, seed=step))
        data = batch(8, seed=step)
        other.critic_optimizer.zero_grad()
        other.loss.loss_value(data)[0].backward()
        other.critic_optimizer.step()
        if step % delay == 0:
            other.actor_optimizer.zero_grad()
            other.loss.loss_actor(data)[0].backward()
            other.actor_optimizer.step()
            other.target_updater.step()
        assert ("loss_actor" in metrics) == (step % delay == 0)
        assert not any(value.requires_grad for value in metrics.values())
    torch.testing.assert_close(snapshot(update.loss), snapshot(other.loss))


def test_what_is_delayed_is_not_computed():
    update = build(LOSSES["td3"], policy_delay=2)
    calls = []
    hook = lambda _, __, action: calls.append(1) if action.requires_grad else None  # noqa: E731, else a target
    update.loss.actor_network.module.register_forward_hook(hook)
    update(batch(8))
    assert not calls
    update(batch(8))
    assert len(calls) == 1


def test_gradients_are_clipped_and_their_norm_reported():
    update = build(LOSSES["ddpg"], optimizer=torch.optim.SGD, max_grad_norm=1e-3)
    before = [p.clone() for p in update.loss.value_network.parameters()]
    metrics = update(batch(8))
    assert metrics["grad_norm_critic"] > 1e-3
    change = torch.cat([(a - b).flatten() for a, b in zip(before, update.loss.value_network.parameters(), strict=True)])
    torch.testing.assert_close(change.norm(), torch.tensor(1e-2 * 1e-3), rtol=1e-3, atol=0)


def test_going_on_from_a_state_is_the_same_run():
    case = LOSSES["td3"]
    update = build(case, policy_delay=2)
    for step in range(3):
        update(batch(8, seed=step))
    state = copy.deepcopy(update.state_dict())
    other = build(case, seed=9, policy_delay=2)
    other.load_state_dict(state)
    for step in range(3, 7):
        update(batch(8, seed=step))
        other(batch(8, seed=step))
    torch.testing.assert_close(snapshot(update.loss), snapshot(other.loss))


def test_the_priority_is_written():
    data = batch(8)
    build(LOSSES["ddpg"])(data)
    assert data["td_error"].shape == (8,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"policy_delay": 0}, "policy_delay is 0; accepted: an integer of at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0; accepted: a number above 0"),
        ({"loss": torch.nn.Linear(1, 1)}, "loss is of type Linear; accepted: an instance of DeterministicPolicyLoss"),
        ({"target_updater": None}, "target_updater is of type NoneType; accepted: an instance of TargetNetUpdater"),
        ({"target_updater": "other"}, "target_updater moves another loss"),
        ({"actor_optimizer": "critic's"}, "actor_optimizer holds no parameter of actor_network"),
        ({"critic_optimizer": 3}, "critic_optimizer is of type int; accepted: an instance of Optimizer"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_misuse_is_worded(change, match):
    loss = DDPGLoss(*networks())
    critic_optimizer = torch.optim.SGD(loss.value_network.parameters(), lr=0.1)
    options = {
        "loss": loss,
        "actor_optimizer": torch.optim.SGD(loss.actor_network.parameters(), lr=0.1),
        "critic_optimizer": critic_optimizer,
        "target_updater": SoftUpdate(loss, tau=0.1),
        **change,
    }
    if options["target_updater"] == "other":
        options["target_updater"] = SoftUpdate(make(updater=False), tau=0.1)
    if options["actor_optimizer"] == "critic's":
        options["actor_optimizer"] = critic_optimizer
    with pytest.raises((TypeError, ValueError), match=f"UpdateStep: {match}"):
        UpdateStep(options.pop("loss"), **options)


def test_per_sample_losses_are_refused():
    update = build(LOSSES["ddpg"])
    update.loss.reduction = "none"
    with pytest.raises(ValueError, match="reduction is 'none'; accepted: 'mean' or 'sum'"):
        update(batch(8))

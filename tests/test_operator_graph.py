"""What compile=True records on the CPU: operators that give what the term gives, whatever happens to it in between."""

import copy

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import ACTION, OBSERVATION, Critic, batch, make, networks
from torchrl_ddpg import DDPGLoss, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep, operator_graph


def updates(build, optimizer=torch.optim.Adam, delay=1, **options):
    """The recorded step and the eager one, alike."""
    made = []
    for compiled in (True, False):
        loss = build()
        actor, critic = (loss._owned[name].parameters() for name in ("actor_network", loss.critic_name))
        optimizers = {"actor_optimizer": optimizer(actor, lr=1e-2), "critic_optimizer": optimizer(critic, lr=1e-2)}
        updater = SoftUpdate(loss, tau=0.1)
        made.append(
            UpdateStep(loss, **optimizers, target_updater=updater, policy_delay=delay, compile=compiled, **options)
        )
    return made


def assert_go_on_alike(recorded, eager, first=0, count=6):
    """Metrics, priorities, gradients, parameters, targets and running statistics, batch after batch."""
    for seed in range(first, first + count):
        results = []
        for update in (recorded, eager):
            torch.manual_seed(seed)
            data = batch(8, seed=seed)
            metrics = update(data)
            gradients = [parameter.grad for parameter in update.loss.parameters()]
            results.append((metrics, data["td_error"], gradients, update.loss.state_dict(), torch.rand(1)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def replayed(update):
    """Whether both terms have come as far as to be replayed."""
    kept = [list(term.recordings.kept.values()) for term in update._recorded.values()]
    return all(found and all(recording.graph.verified for recording in found) for found in kept)


def test_noise_is_drawn_anew_and_as_often():
    recorded, eager = updates(lambda: make(TD3Loss, updater=False, policy_noise=0.2))
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)
    data = batch(8)
    values = [float(recorded.loss.loss_value(data)[0].detach()) for _ in range(2)]
    assert values[0] != values[1]


class Statistics(nn.Module):
    """A critic that keeps running statistics and drops units."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(OBSERVATION + ACTION, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1)
        )

    def forward(self, observation, action):
        return self.layers(torch.cat([observation, action], -1))


def with_statistics():
    actor, _ = networks()
    torch.manual_seed(1)
    return DDPGLoss(actor, ValueOperator(Statistics(), in_keys=["observation", "action"]))


def test_running_statistics_move_once_an_update():
    recorded, eager = updates(with_statistics)
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)
    steps = [buffer for name, buffer in recorded.loss.named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(step) for step in steps] == [12, 12]  # for the critic's term and the actor's; the target's is a copy


def test_train_and_eval_mode_are_followed():
    recorded, eager = updates(with_statistics)
    assert_go_on_alike(recorded, eager)
    for mode in (False, True):
        for update in (recorded, eager):
            update.loss.train(mode)
        assert_go_on_alike(recorded, eager, first=10)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss: setattr(loss, "loss_function", "l1"),
        lambda loss: setattr(loss, "reduction", "sum"),
        lambda loss: setattr(loss, "alpha", 0.5),
        lambda loss: setattr(loss, "priority", "squared"),
        lambda loss: setattr(loss, "policy_noise", 0.0),
        lambda loss: loss.make_value_estimator("td0", gamma=0.5),
        lambda loss: loss.value_estimator.gamma.fill_(0.5),
        lambda loss: setattr(loss, "max_action", torch.tensor(0.3)),
        lambda loss: loss.set_keys(priority="td_error", reward="reward"),
        lambda loss: next(loss.actor_network.parameters()).requires_grad_(False),
        lambda loss: [p.data.mul_(2) for p in loss.parameters()],
        lambda loss: [setattr(p, "data", p.data * 2) for p in loss.parameters()],
        lambda loss: [b.data.mul_(2) for b in loss.target_actor_network_params.buffers()],
        lambda loss: loss.load_state_dict(make(TD3BCLoss, seed=7).state_dict()),
        lambda loss: loss.reset_parameters_recursive() if torch.manual_seed(3) else None,
        lambda loss: loss.to(torch.float64) and loss.to(torch.float32),
    ],
)
def test_what_changes_is_seen(change):
    recorded, eager = updates(lambda: make(TD3BCLoss, updater=False, policy_noise=0.2))
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)
    for update in (recorded, eager):
        change(update.loss)
    assert_go_on_alike(recorded, eager, first=10)
    assert replayed(recorded)


def test_a_loaded_checkpoint_goes_on():
    recorded, eager = updates(lambda: make(TD3Loss, updater=False), delay=2)
    assert_go_on_alike(recorded, eager)
    state = copy.deepcopy(eager.state_dict())
    assert_go_on_alike(recorded, eager, first=10)
    for update in (recorded, eager):
        update.load_state_dict(copy.deepcopy(state))
    assert_go_on_alike(recorded, eager, first=20)


@pytest.mark.parametrize("separate", [False, True])
def test_shared_layers(separate):
    """Also a gradient that reaches what the optimizer of its term does not hold."""

    def build():
        return make(updater=False, networks_kwargs={"encoder": "shared"}, separate_losses=separate)

    assert_go_on_alike(*updates(build))
    assert_go_on_alike(*updates(build, max_grad_norm=0.1))


class Offset(nn.Module):
    """Two parameters whose gradients are one and the same tensor, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = (nn.Parameter(torch.zeros(1)) for _ in range(3))

    def forward(self, value):
        return value + (self.first + self.second)


def test_gradients_share_no_memory():
    def build():
        actor, _ = networks()
        torch.manual_seed(1)
        critic = nn.Sequential(nn.Bilinear(OBSERVATION, ACTION, 4), nn.ReLU(), nn.Linear(4, 1), Offset())

        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = critic

            def forward(self, observation, action):
                return self.layers[1:](self.layers[0](observation, action))

        return DDPGLoss(actor, ValueOperator(Both(), in_keys=["observation", "action"]))

    recorded, eager = updates(build, max_grad_norm=1e-3)
    assert_go_on_alike(recorded, eager)
    offset = recorded.loss.value_network.module.layers[-1]
    assert offset.unused.grad is None
    assert offset.first.grad.data_ptr() != offset.second.grad.data_ptr()


class Reads(nn.Module):
    """An actor that does with Python what depends on values."""

    def __init__(self, way):
        super().__init__()
        self.layer, self.way, self.calls = nn.Linear(OBSERVATION, ACTION), way, 0

    def forward(self, observation):
        action, mean = self.layer(observation).tanh(), observation.detach().mean()
        self.calls += 1
        if self.way == "if":
            return action if mean > 0 else -action
        if self.way == "item":
            return action * mean.item()
        if self.way == "list":
            return action * mean.tolist()
        if self.way == "numpy":
            return action * float(mean.numpy(force=True))
        if self.way == "count":
            return action / self.calls
        chosen = action[observation[:, 0] > 0]
        return action - chosen.mean(0)


@pytest.mark.parametrize("way", ["if", "item", "list", "numpy", "count", "mask"])
def test_what_cannot_be_recorded_is_refused(way):
    def build():
        torch.manual_seed(0)
        actor = TensorDictModule(Reads(way), in_keys=["observation"], out_keys=["action"])
        return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))

    recorded, _ = updates(build)
    recorded(batch(8, seed=0))
    words = "UpdateStep: compile=True cannot record loss_.*, because a network does in Python .* Leave compile out"
    with pytest.raises(RuntimeError, match=words):  # noqa: PT012
        for seed in (1, 2, 3, 4, 5):
            recorded(batch(8, seed=seed))
    with pytest.raises(RuntimeError, match=words):
        recorded(batch(8, seed=1))


def test_a_batch_that_comes_once_is_not_recorded(monkeypatch):
    monkeypatch.setattr(operator_graph, "make_fx", lambda function: pytest.fail("recorded"))
    recorded, _ = updates(lambda: make(updater=False))
    for size in (4, 5, 6):
        recorded(batch(size))


def test_a_replay_calls_no_module():
    calls = []
    recorded, _ = updates(lambda: make(updater=False))
    recorded.loss.actor_network.module.register_forward_hook(lambda *_: calls.append(1))
    for seed in range(3):
        recorded(batch(8, seed=seed))
    assert calls
    calls.clear()
    recorded(batch(8, seed=3))
    assert not calls


def test_under_autocast():
    recorded, eager = updates(lambda: make(updater=False))
    for dtype in (None, torch.bfloat16, None):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            for seed in range(5):
                losses = [float(update(batch(8, seed=seed))["loss_value"]) for update in (recorded, eager)]
                assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_first_refusals_are_the_loss_s_own():
    recorded, eager = updates(lambda: make(updater=False))
    words = []
    for update in (recorded, eager):
        data = batch(8)
        data["observation"] = torch.zeros(8, OBSERVATION + 1)
        with pytest.raises(ValueError, match="DDPGLoss: ") as error:
            update(data)
        words.append(str(error.value))
    assert words[0] == words[1]

"""What record_operators=True records: operators that give what the term gives, whatever happens to it in between."""

import copy
import threading
import weakref

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import ACTION, OBSERVATION, Critic, batch, make, networks
from torchrl_ddpg import DDPGLoss, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep, checks
from torchrl_ddpg.update import operator_graph


def updates(build, optimizer=torch.optim.Adam, delay=1, **options):
    """The recorded step and the eager one, alike."""
    made = []
    for compiled in (True, False):
        loss = build()
        actor, critic = (
            loss.get_stateful_net(name, copy=False).parameters() for name in ("actor_network", loss.critic_name)
        )
        optimizers = {"actor_optimizer": optimizer(actor, lr=1e-2), "critic_optimizer": optimizer(critic, lr=1e-2)}
        updater = SoftUpdate(loss, tau=0.1)
        made.append(
            UpdateStep(
                loss, **optimizers, target_updater=updater, policy_delay=delay, record_operators=compiled, **options
            )
        )
    return made


MODULE_CALLS = weakref.WeakKeyDictionary()


def counted(update, data):
    """A step, during which the calls of modules are counted."""
    calls = []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        return update(data)
    finally:
        hook.remove()
        MODULE_CALLS[update] = len(calls)


def assert_go_on_alike(recorded, eager, first=0, count=6):
    """Metrics, priorities, gradients, parameters, targets and running statistics, batch after batch."""
    for seed in range(first, first + count):
        results = []
        for update in (recorded, eager):
            torch.manual_seed(seed)
            data = batch(8, seed=seed)
            metrics = counted(update, data)
            gradients = [parameter.grad for parameter in update.loss.parameters()]
            results.append((metrics, data["td_error"], gradients, update.loss.state_dict(), torch.rand(1)))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def replayed(update):
    """Whether the last step called no module, so that both terms were replayed."""
    return MODULE_CALLS[update] == 0


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


class Recurrent(nn.Module):
    """An encoder that reads an observation's numbers one after the other."""

    def __init__(self, layer, **options):
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer(1, 4, batch_first=True, **options)

    def forward(self, observation):
        return self.layer(observation.unsqueeze(-1))[0][..., -1, :4]


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "dropout": 0.5}, {"bidirectional": True}])
def test_recurrent_layers(layer, options):
    recorded, eager = updates(lambda: DDPGLoss(*networks(encoder=Recurrent(layer, **options))))
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)


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
        lambda loss: loss.set_keys(terminated="done"),
        lambda loss: setattr(loss.tensor_keys, "terminated", "done"),
        lambda loss: setattr(loss.value_estimator, "gamma", torch.tensor(0.2)),
        lambda loss: setattr(loss.value_estimator, "average_rewards", True),
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
    """An actor that does with Python what depends on values, or on what else Python knows."""

    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.Linear(OBSERVATION, ACTION), way
        self.calls, self.rate, self.past, self.average = 0, 1.0, [], torch.ones(ACTION)

    def forward(self, observation):
        action, mean = self.layer(observation).tanh(), observation.detach().mean()
        if self.way == "if":
            return action if mean > 0 else -action
        if self.way == "item":
            return action * mean.item()
        if self.way == "list":
            return action * mean.tolist()
        if self.way == "hardly":
            return action * (1 + 0.01 * mean.tolist())
        if self.way == "numpy":
            return action * float(mean.numpy(force=True))
        if self.way == "mask":
            return action - action[observation[:, 0] > 0].mean(0)
        if self.way == "hidden count":
            self.past.append(1)
            return action / len(self.past)
        if self.way == "count":
            self.calls += 1
            return action / self.calls
        if self.way == "average":
            self.average.mul_(0.9).add_(0.1 * action.detach().mean(0))
            return action * self.average
        return action * self.rate


def reading(way):
    torch.manual_seed(0)
    actor = TensorDictModule(Reads(way), in_keys=["observation"], out_keys=["action"])
    return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))


@pytest.mark.parametrize("way", ["if", "item", "list", "hardly", "numpy", "mask"])
def test_what_cannot_be_recorded_is_refused(way):
    recorded, _ = updates(lambda: reading(way))
    recorded(batch(8, seed=0))
    words = (
        r"UpdateStep: record_operators=True cannot record loss_.*\(.+\): mostly the Python of a network .* Leave rec"
    )
    with pytest.raises(RuntimeError, match=words):  # noqa: PT012
        for seed in (1, 2, 3, 4, 5):
            recorded(batch(8, seed=seed))
    with pytest.raises(RuntimeError, match=words):
        recorded(batch(8, seed=1))


@pytest.mark.filterwarnings("ignore:UpdateStep.* at every call")
@pytest.mark.parametrize("way", ["count", "hidden count", "average", "rate"])
def test_what_modules_keep_is_followed(way):
    recorded, eager = updates(lambda: reading(way))
    assert_go_on_alike(recorded, eager)
    for update in (recorded, eager):
        update.loss.actor_network.module.rate = 0.2
    assert_go_on_alike(recorded, eager, first=10)
    averages = [update.loss.actor_network.module.average for update in (recorded, eager)]
    torch.testing.assert_close(*averages)


def test_a_rate_of_dropout_is_followed():
    recorded, eager = updates(with_statistics)
    assert_go_on_alike(recorded, eager)
    for update in (recorded, eager):
        update.loss.value_network.module.layers[1].momentum = 0.9
        update.loss.value_network.module.layers[3].p = 0.8
    assert_go_on_alike(recorded, eager, first=10)


class Residual(nn.Module):
    """Reads a product before and after its activation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(OBSERVATION, 8), nn.Linear(8, ACTION)

    def forward(self, observation):
        hidden = self.first(observation)
        return self.last(hidden.relu() + hidden)


def test_a_product_that_is_read_twice():
    def build():
        torch.manual_seed(0)
        actor = TensorDictModule(Residual(), in_keys=["observation"], out_keys=["action"])
        return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))

    recorded, eager = updates(build)
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)


def alike(build, batches, **options):
    """Both updates on the same batches, made anew for each."""
    recorded, eager = updates(build, **options)
    for make_batch in batches:
        results = []
        for update in (recorded, eager):
            data = make_batch()
            metrics = counted(update, data)
            results.append((metrics, data["td_error"], list(update.loss.parameters())))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    return recorded


def trajectories():
    return make(updater=False).make_value_estimator("td_lambda", lmbda=0.9)


@pytest.mark.filterwarnings("ignore:.*chains the steps")
def test_entries_that_are_one_tensor_and_later_are_not():
    def one(seed, shared):
        data = batch(4, 6, seed=seed, truncated=0.3)
        if shared:
            data["next", "done"] = data["next", "terminated"]
        return data

    pattern = (True, True, True, False, False, True, False)
    recorded = alike(trajectories, [lambda s=s, p=p: one(s, p) for s, p in enumerate(pattern)])
    assert replayed(recorded)


@pytest.mark.filterwarnings("ignore:.*chains the steps")
def test_names_of_dimensions_make_a_kind():
    def named(seed, *names):
        data = batch(5, 5, seed=seed)
        data.names = names
        return data

    orders = [("batch", "time")] * 4 + [("time", "batch")] * 4
    alike(trajectories, [lambda s=s, o=o: named(s, *o) for s, o in enumerate(orders)])


def test_strides_make_a_kind():
    def strided(seed, transposed):
        data = batch(5, 4, seed=seed, in_order=False)
        if transposed:
            return data.transpose(0, 1)
        return data.transpose(0, 1).contiguous()

    alike(lambda: make(updater=False), [lambda s=s: strided(s, s > 3) for s in range(8)])


def test_an_empty_batch_and_one_of_a_single_sample():
    alike(lambda: make(updater=False), [lambda s=s: batch(1, seed=s) for s in range(4)])
    recorded, _ = updates(lambda: make(updater=False))
    for _ in range(4):
        assert recorded(batch(0))["loss_value"] == 0


def test_a_bad_batch_is_named_and_the_next_is_taken():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Embedding(4, 3), nn.Linear(3, ACTION)

        def forward(self, observation):
            return self.layer(self.table(observation[:, 0].long().clamp_min(0)))

    def build():
        torch.manual_seed(0)
        actor = TensorDictModule(Looks(), in_keys=["observation"], out_keys=["action"])
        return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))

    recorded, eager = updates(build)
    for seed in range(6):
        for update in (recorded, eager):
            bad = batch(8, seed=seed)
            bad["observation"][2] = 9
            if seed:  # not as the first of its kind
                with pytest.raises(ValueError, match="DDPGLoss: actor_network cannot run on this batch"):
                    update.loss.loss_actor(bad)
                with pytest.raises(ValueError, match=r"_network cannot run on this batch|not finite|out of range"):
                    update(bad)
        assert_go_on_alike(recorded, eager, first=seed, count=1)
    assert replayed(recorded)


def test_without_gradients_as_eagerly():
    recorded, eager = updates(lambda: make(updater=False))
    for seed in range(5):
        for update in (recorded, eager):
            with torch.no_grad(), pytest.raises(RuntimeError, match="UpdateStep: gradients are switched off"):
                update(batch(8))
        assert_go_on_alike(recorded, eager, first=seed, count=1)


def test_parameters_outside_the_loss_and_outside_the_optimizers():
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.hidden = nn.Linear(2, ACTION), [nn.Linear(OBSERVATION, 2)]

        def forward(self, observation):
            return self.layer(self.hidden[0](observation)).tanh()

    def build():
        torch.manual_seed(0)
        actor = TensorDictModule(Hides(), in_keys=["observation"], out_keys=["action"])
        return DDPGLoss(actor, ValueOperator(Critic(), in_keys=["observation", "action"]))

    pair = updates(build, torch.optim.SGD)
    weights = [update.loss.actor_network.module.hidden[0].weight for update in pair]
    before = weights[0].detach().clone()
    for update, weight in zip(pair, weights, strict=True):
        update.actor_optimizer.add_param_group({"params": [weight]})
    assert_go_on_alike(*pair)
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], before)


def test_gradients_add_up_where_no_optimizer_clears_them():
    pair = updates(lambda: make(updater=False, networks_kwargs={"encoder": "shared"}))
    for update in pair:
        shared = {id(p) for p in update.loss.actor_network.module[0].parameters()}
        for optimizer in (update.actor_optimizer, update.critic_optimizer):
            group = optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if id(p) not in shared]
    assert_go_on_alike(*pair)


def test_checks_of_other_threads_go_on_while_one_records():
    with checks.contents_unread():
        found = []
        thread = threading.Thread(target=lambda: found.append(checks.readable(torch.zeros(1))))
        thread.start()
        thread.join()
        assert (found, checks.readable(torch.zeros(1))) == ([True], False)
    assert checks.readable(torch.zeros(1))


def test_options_of_a_subclass_are_followed():
    class Margin(DDPGLoss):
        def __init__(self, *networks, margin=0.1):
            super().__init__(*networks)
            self._margin, self.scale = margin, nn.Parameter(torch.ones(()))

        def _actor_loss(self, value, action, batch):
            loss, metrics = super()._actor_loss(value, action, batch)
            return loss * self.scale + self._margin * action.square().sum(-1, keepdim=True), {**metrics, "kind": 1.0}

    recorded, eager = updates(lambda: Margin(*networks()))
    assert_go_on_alike(recorded, eager)
    assert replayed(recorded)
    for change in (
        lambda loss: setattr(loss, "_margin", 5.0),
        lambda loss: setattr(loss, "scale", nn.Parameter(torch.full((), 2.0))),
        lambda loss: loss.scale.requires_grad_(False),
    ):
        for update in (recorded, eager):
            change(update.loss)
        assert_go_on_alike(recorded, eager, first=10)
        assert replayed(recorded)


def test_an_error_without_words_is_named(monkeypatch):
    def fail(function):
        raise NotImplementedError

    monkeypatch.setattr(operator_graph, "make_fx", fail)
    recorded, _ = updates(lambda: make(updater=False))
    recorded(batch(8))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"cannot record loss_value, .* \(NotImplementedError: \)"):
            recorded(batch(8))


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

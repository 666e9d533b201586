"""UpdateStep compiled, or as a CUDA graph, is the eager UpdateStep; off CUDA a stand-in plays the graph's part."""

import contextlib
import copy
import dataclasses
import functools
import pickle
import shutil
import types

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import ValueOperator

from helpers import DEFAULTS, LOSSES, batch, make, networks
from torchrl_ddpg import BatchError, DDPGLoss, HardUpdate, SoftUpdate, TD3Loss, UpdateStep
from torchrl_ddpg.update import cuda_graph, recordings

OPTIONS = {
    "eager": {},
    "recorded": {"record_operators": True},
    "compiled": {"compile": True},
    "cuda_graph": {"cuda_graph": True},
}
CASES = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def forget_compiled():
    """Each test's step is compiled anew: PyTorch stops compiling a function that it has compiled too often."""
    torch._dynamo.reset()


def build(case, device="cpu", hard=False, delay=2, reduction="mean", **options):
    loss = case.make(seed=0, updater=False, reduction=reduction).to(device)
    eps = 1e-3 if device == "cuda" else 1e-8  # another order of summation must not make whole steps of what is near 0
    adam = functools.partial(torch.optim.Adam, lr=1e-3, eps=eps, fused=True)
    updater = HardUpdate(loss, value_network_update_interval=3) if hard else SoftUpdate(loss, tau=0.1)
    return UpdateStep(
        loss,
        actor_optimizer=adam(loss.actor_network.parameters()),
        critic_optimizer=adam(loss.get_stateful_net(case.critic_name, copy=False).parameters()),
        target_updater=updater,
        policy_delay=delay,
        max_grad_norm=1.0,
        **options,
    )


def assert_same_run(update, other, steps, device="cpu", sizes=(8,), **tolerance):
    for step in range(steps):
        data = batch(sizes[step % len(sizes)], seed=step).to(device)
        data["priority_weight"] = torch.full((len(data),), 0.5, device=device)
        more = data.clone()
        metrics, other_metrics = update(data), other(more)
        assert list(metrics) == list(other_metrics)
        torch.testing.assert_close(dict(metrics), dict(other_metrics), **tolerance)
        torch.testing.assert_close(data["td_error"], more["td_error"], **tolerance)
        assert not any(value.requires_grad for value in metrics.values())
    targets, sources = zip(update.loss.target_pairs("parameters"), other.loss.target_pairs("parameters"), strict=True)
    torch.testing.assert_close(*targets, **tolerance)
    torch.testing.assert_close(*sources, **tolerance)


@pytest.fixture
def compiler(monkeypatch):
    """The backend that torch.compile gets is the caller's."""

    def use(**options):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, **options))

    return use


@CASES
@pytest.mark.parametrize("delay", [1, 2])
def test_recorded_operators_equal_eager(case, delay):
    update, eager = build(case, delay=delay, record_operators=True), build(case, delay=delay)
    torch.manual_seed(0)
    assert_same_run(update, eager, 200, sizes=(8, 8, 6), rtol=1e-4, atol=1e-5)
    calls = []
    hook = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    for size in (8, 6, 8, 6):
        update(batch(size).set("priority_weight", torch.ones(size)))
    hook.remove()
    assert not calls


@CASES
def test_compiled_equals_eager(case, compiler):
    compiler(backend="aot_eager")
    assert_same_run(build(case, compile=True), build(case), 200, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("case", [LOSSES["ddpg"]], ids=["ddpg"])
def test_compiled_by_the_default_backend_equals_eager(case, compiler):
    compiler()
    assert_same_run(build(case, compile=True), build(case), 200, rtol=1e-3, atol=1e-5)


@CASES
def test_compiled_without_a_break_in_the_graph(case, compiler):
    compiler(backend="eager", fullgraph=True)
    update = build(case, compile=True, delay=1)
    for size in (8, 6, 4):  # from the second on, for batches of any size
        assert update(batch(size))


def test_instances_do_not_use_up_each_other_s_compilations(compiler, monkeypatch):
    compiler(backend="eager")
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        assert build(LOSSES["ddpg"], compile=True, delay=1)(batch(8))


@CASES
def test_recorded_operators_refuse_nan_and_leave_the_networks_alone(case):
    compiled, eager = build(case, record_operators=True, delay=1), build(case, delay=1)
    for good_ones in range(5):
        words = []
        for update in (compiled, eager):
            if good_ones:
                update(batch(8, seed=good_ones))
            before = copy.deepcopy(update.loss.state_dict())
            data = batch(8)
            data["next", "reward"][2] = float("nan")
            with pytest.raises(BatchError, match="not finite") as error:
                update(data)
            words.append(str(error.value))
            torch.testing.assert_close(update.loss.state_dict(), before)
            assert "td_error" not in data
        assert words[0] == words[1]


@pytest.mark.parametrize("way", ["recorded", "compiled"])
def test_trajectories(way, compiler):
    if way == "compiled":
        compiler(backend="aot_eager")
    updates = build(LOSSES["ddpg"], **OPTIONS[way]), build(LOSSES["ddpg"])
    for update in updates:
        update.loss.make_value_estimator("td_lambda", lmbda=0.5)
        for seed in range(5):
            data = batch(3, 5, seed=seed)
            data.names = ["batch", "time"]
            update(data)
    torch.testing.assert_close(*(update.loss.target_pairs("parameters") for update in updates))


class Aside:
    """Stands in for a CUDA stream."""

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def recorded(monkeypatch):
    """Updates whose graphs are stand-ins: recording leaves no trace in the state, a replay runs the function again."""
    updates, calls, graphs = [], [], []

    class Graph:
        def __init__(self):
            self.of, self.replays = calls[-1], 0
            graphs.append(self)

        def replay(self):
            self.replays += 1
            outputs = self.of.function(self.of.inputs)
            self.of.scalars.copy_(torch.stack([outputs[name] for name in self.of.names]))
            for name, value in self.of.others.items():
                value.copy_(outputs[name])

    @contextlib.contextmanager
    def record(graph, stream, capture_error_mode):
        tensors = [tensor for update in updates for tensor in state(update)]
        before = [tensor.detach().clone() for tensor in tensors]
        yield
        for tensor, value in zip(tensors, before, strict=True):
            tensor.data.copy_(value)

    call = cuda_graph.CudaGraph.__call__
    monkeypatch.setattr(cuda_graph.CudaGraph, "__call__", lambda self, inputs: calls.append(self) or call(self, inputs))
    monkeypatch.setattr(cuda_graph, "_DEVICE_TYPE", "cpu")
    stand_ins = {"CUDAGraph": Graph, "graph": record, "Stream": Aside, "current_stream": Aside}
    for name, value in {**stand_ins, "stream": lambda _: contextlib.nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def make(*args, **options):
        updates.append(build(*args, cuda_graph=True, **options))
        return updates[-1], graphs

    make.updates = updates
    return make


def state(update):
    optimizers = (update.actor_optimizer, update.critic_optimizer)
    kept = [value for optimizer in optimizers for entry in optimizer.state.values() for value in entry.values()]
    return [*update.loss.parameters(), *update.loss.buffers(), *kept]


@CASES
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_recorded_equals_eager(case, hard, recorded):
    update, graphs = recorded(case, hard=hard)
    assert_same_run(update, build(case, hard=hard), 40, rtol=1e-4, atol=1e-6)
    assert [graph.replays for graph in graphs] == [17, 17]  # with the actor's part and without, warmed up by three


TERMS = [("ddpg", DDPGLoss, "loss_value"), ("ddpg", DDPGLoss, "loss_actor")]
TERMS += [("td3", TD3Loss, f"{name}_loss") for name in ("actor", "value", "qvalue")]


@pytest.mark.parametrize(("case", "base", "name"), TERMS)
def test_an_overridden_term_is_what_a_graph_records(case, base, name, recorded):
    calls = []

    def term(self, tensordict):
        calls.append(name)
        loss, metrics = getattr(super(Own, self), name)(tensordict)
        return loss * 3, metrics

    Own = type("Own", (base,), {name: term})
    own = dataclasses.replace(LOSSES[case], make=functools.partial(make, Own, **DEFAULTS.get(base, {})))
    update, graphs = recorded(own, delay=1)
    key = "loss_actor" if "actor" in name else own.critic_loss_key
    expected = 3 * build(LOSSES[case], delay=1)(batch(8))[key]
    torch.testing.assert_close(copy.deepcopy(update)(batch(8))[key], expected)
    calls.clear()
    assert_same_run(update, build(own, delay=1), 6, rtol=1e-4, atol=1e-6)
    assert [graph.replays for graph in graphs] == [3]
    assert len(calls) == 6 + 3 + 1 + 3  # eagerly; warming up, recording, and what the stand-in does at a replay


def test_a_graph_for_each_kind_of_batch(recorded):
    update, graphs = recorded(LOSSES["td3"], delay=1)
    assert_same_run(update, build(LOSSES["td3"], delay=1), 20, sizes=(8, 4), rtol=1e-4, atol=1e-6)
    assert [graph.replays for graph in graphs] == [7, 7]


def test_recordings_of_ever_new_shapes_do_not_pile_up(recorded, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_RECORDINGS", 3)
    update, graphs = recorded(LOSSES["ddpg"], delay=1)
    assert_same_run(update, build(LOSSES["ddpg"], delay=1), 15, sizes=(2, 3, 4, 5, 6), rtol=1e-4, atol=1e-6)
    assert graphs == []  # each form was dropped before it came a fourth time
    for size in (8, 2, 8, 3, 8, 4, 8, 5, 8, 6):
        update(batch(size))
    assert [graph.replays for graph in graphs] == [2]  # what comes often is kept


class Parts(nn.Module):
    """Reads an observation that is a TensorDict."""

    def __init__(self, outputs, action=0):
        super().__init__()
        self.layer = nn.Linear(5 + action, outputs)

    def forward(self, observation, *action):
        return self.layer(torch.cat([observation["a"], observation["b", "c"], *action], -1)).tanh()


@pytest.mark.parametrize("way", ["cuda_graph", "recorded", "compiled"])
def test_an_observation_of_several_parts(way, recorded, compiler):
    if way == "compiled":
        compiler(backend="eager")

    def observation(size, seed):
        torch.manual_seed(seed)
        return TensorDict({"a": torch.randn(size, 3), "b": {"c": torch.randn(size, 2)}}, [size])

    def make(**options):
        torch.manual_seed(0)
        actor = TensorDictModule(Parts(2), in_keys=["observation"], out_keys=["action"])
        loss = DDPGLoss(actor, ValueOperator(Parts(1, action=2), in_keys=["observation", "action"]))
        optimizers = [torch.optim.Adam(net.parameters(), fused=True) for net in (actor, loss.value_network)]
        names, updater = ("actor_optimizer", "critic_optimizer"), SoftUpdate(loss, tau=0.1)
        return UpdateStep(loss, target_updater=updater, **dict(zip(names, optimizers, strict=True)), **options)

    update, other = make(**OPTIONS[way]), make()
    recorded.updates.append(update)
    for seed in range(12):
        size = (4, 6)[seed % 2]
        data = batch(size, seed=seed)
        data["observation"], data["next", "observation"] = observation(size, seed), observation(size, seed + 100)
        assert update(data)["loss_value"] == pytest.approx(other(data.clone())["loss_value"].item(), rel=1e-4)
    torch.testing.assert_close(*(one.loss.target_pairs("parameters") for one in (update, other)))


def test_what_changes_is_recorded_anew(recorded):
    update, graphs = recorded(LOSSES["ddpg"], delay=1)
    other = build(LOSSES["ddpg"], delay=1)

    def go_on():
        assert_same_run(update, other, 6, rtol=1e-4, atol=1e-6)

    go_on()
    for one in (update, other):
        one.critic_optimizer.param_groups[0]["lr"] = 0.1
    go_on()
    for one in (update, other):
        one.load_state_dict(copy.deepcopy(one.state_dict()))
    go_on()
    for one in (update, other):
        for parameter in one.loss.actor_network.parameters():
            parameter.data = parameter.data.clone()
    go_on()
    for one in (update, other):
        one.loss.loss_function = "l1"
    go_on()
    assert [graph.replays for graph in graphs] == [3, 3, 3, 3, 3]


def test_a_scheduler_reaches_what_is_recorded(recorded):
    update, graphs = recorded(LOSSES["ddpg"], delay=1)
    other = build(LOSSES["ddpg"], delay=1)
    schedulers = [torch.optim.lr_scheduler.StepLR(one.critic_optimizer, 1, 0.5) for one in (update, other)]
    for _ in range(10):
        assert_same_run(update, other, 1, rtol=1e-4, atol=1e-6)
        for scheduler in schedulers:
            scheduler.step()
    assert [graph.replays for graph in graphs] == [7]


def test_the_loss_s_device_is_the_current_one(recorded, monkeypatch):
    update, seen, current = recorded(LOSSES["ddpg"])[0], [], torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: seen.append(tensor) or current(tensor))
    update(batch(8))
    assert seen[0] is next(update.loss.parameters())


@pytest.mark.usefixtures("recorded")
def test_what_warms_up_reads_what_the_graph_reads():
    seen = []

    def total(inputs):
        seen.append(inputs["x"])
        return {"sum": inputs["x"].sum(), "x": inputs["x"]}

    graph = cuda_graph.CudaGraph(total, torch.cuda.Stream())
    results = [graph({"x": torch.full((8, 7), float(call))[:, 2:5]}) for call in range(6)]  # strides that no copy has
    assert [float(result["sum"]) for result in results] == [24.0 * call for call in range(6)]
    assert [float(result["x"][0, 0]) for result in results] == list(range(6))
    assert {(values.data_ptr(), values.stride()) for values in seen} == {(seen[0].data_ptr(), (3, 1))}


def test_metrics_stay_as_they_were(recorded):
    update, _ = recorded(LOSSES["ddpg"], delay=1)
    kept = [update(batch(8, seed=seed)) for seed in range(8)]
    values = [float(metrics["loss_value"]) for metrics in kept]
    other = build(LOSSES["ddpg"], delay=1)
    assert values == pytest.approx([float(other(batch(8, seed=seed))["loss_value"]) for seed in range(8)], rel=1e-4)


@pytest.mark.parametrize("way", ["eager", "recorded", "compiled"])
def test_a_copy_goes_on_by_itself(way, compiler):
    if way == "compiled":
        compiler(backend="eager")
    update, other = build(LOSSES["td3"], **OPTIONS[way]), build(LOSSES["td3"])
    for seed in range(3):
        update(batch(8, seed=seed))
        other(batch(8, seed=seed))
    for copied in (copy.deepcopy(update), pickle.loads(pickle.dumps(update))):
        assert_same_run(copied, copy.deepcopy(other), 4, rtol=1e-4, atol=1e-6)
    assert_same_run(update, other, 4, rtol=1e-4, atol=1e-6)


def test_a_copy_is_warmed_up_without_a_warning(recorded, monkeypatch):
    copied = copy.deepcopy(recorded(LOSSES["ddpg"])[0])
    stream = types.SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *_: stream)
    assert copied(batch(8))


@pytest.mark.parametrize("way", ["cuda_graph", "recorded", "compiled"])
def test_a_renamed_priority_is_written(way, recorded, compiler):
    if way == "compiled":
        compiler(backend="eager")
    for update in (recorded(LOSSES["ddpg"])[0] if way == "cuda_graph" else build(LOSSES["ddpg"], **OPTIONS[way]),):
        for name in ("first", "second"):
            update.loss.set_keys(priority=name)
            for seed in range(6):
                data = batch(8, seed=seed)
                update(data)
                assert name in data


def test_an_overridden_term_gets_the_tensordict():
    class Regularised(DDPGLoss):
        def loss_actor(self, tensordict):
            loss, metrics = super().loss_actor(tensordict)
            return loss + 0.0 * tensordict["observation"].mean(), {**metrics, "seen": tensordict["reward_"].sum()}

    loss = Regularised(*networks())
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (loss.actor_network, loss.value_network)]
    updater = SoftUpdate(loss, tau=0.1)
    update = UpdateStep(loss, actor_optimizer=optimizers[0], critic_optimizer=optimizers[1], target_updater=updater)
    assert update(batch(8).set("reward_", torch.ones(8)))["seen"] == 8


def test_a_recorded_runs_checkpoint_goes_on_eagerly(recorded):
    update, _ = recorded(LOSSES["ddpg"])
    for seed in range(6):
        update(batch(8, seed=seed))
    other = build(LOSSES["ddpg"])
    for name in ("actor_optimizer", "critic_optimizer"):
        getattr(other, name).param_groups[0]["fused"] = False
        update_group = getattr(update, name).param_groups[0]
        assert update_group["capturable"]
    state = copy.deepcopy(update.state_dict())
    for name in ("actor_optimizer", "critic_optimizer"):
        state[name]["param_groups"][0]["fused"] = False
    other.load_state_dict(state)
    assert not other.actor_optimizer.param_groups[0]["capturable"]
    assert isinstance(other.actor_optimizer.param_groups[0]["lr"], float)
    other(batch(8))


def test_rates_stay_numbers_where_the_host_reads_them():
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    for kind, is_tensor in ((torch.optim.Adam, True), (torch.optim.SGD, False), (torch.optim.RMSprop, False)):
        optimizer = kind(parameters, lr=0.1)
        cuda_graph.make_capturable("actor_optimizer", optimizer)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == is_tensor
        assert optimizer.param_groups[0].get("capturable", True)


def test_refused_in_words():
    with pytest.raises(ValueError, match="cuda_graph=True records on a CUDA device and the loss is on cpu; move"):
        build(LOSSES["ddpg"], cuda_graph=True)
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    refused = "cannot record critic_optimizer, a LBFGS, .*accepted: .*capturable=True, such as torch.optim.Adam, or SGD"
    with pytest.raises(ValueError, match=refused):
        cuda_graph.make_capturable("critic_optimizer", torch.optim.LBFGS(parameters))
    cuda_graph.make_capturable("critic_optimizer", torch.optim.SGD(parameters, lr=0.1))


@NEEDS_CUDA
@CASES
@pytest.mark.parametrize("options", [{"compile": True}, {"cuda_graph": True}, {"compile": True, "cuda_graph": True}])
def test_on_cuda_all_agree(case, options):
    update, other = build(case, "cuda", **options), build(case, "cuda")
    assert_same_run(update, other, 200, "cuda", rtol=1e-3, atol=1e-4)


@NEEDS_CUDA
def test_a_replay_on_cuda_does_not_wait_for_it():
    update = build(LOSSES["ddpg"], "cuda", delay=1, cuda_graph=True)
    batches = [batch(8, seed=seed).to("cuda") for seed in range(8)]
    for data in batches[:6]:
        update(data)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for data in batches[6:]:
            update(data)
    finally:
        torch.cuda.set_sync_debug_mode("default")

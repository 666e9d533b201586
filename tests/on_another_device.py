"""Losses, updates and the trainer on a GPU, or where there is none on a stand-in: run by test_another_device.py.

A process of its own, because PyTorch cannot forget a device.
"""

import contextlib
import functools
import math
import subprocess
import tempfile
import threading
import types
from pathlib import Path

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch.utils.cpp_extension import include_paths, library_paths
from torchrl.data import Bounded
from torchrl.modules import MLP, ValueOperator

import test_examples
from helpers import DEFAULTS, LOSSES, batch
from torchrl_ddpg import D4PGLoss, DDPGLoss, HardUpdate, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep
from torchrl_ddpg.update import cuda_graph


def stand_in():
    """Build another_device.cpp and make PyTorch know it; "npu" is a name that TorchRL's collectors know too."""
    places = [f"-isystem{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    source = Path(__file__).with_name("another_device.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "another_device.so"
        command = ["g++", "-shared", "-fPIC", "-std=c++20", source, "-o", library, *places, "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend("npu")
    answers = {"is_available": True, "current_device": 0, "device_count": 1, "is_initialized": True}
    answers |= {"_is_in_bad_fork": False, "manual_seed_all": None, "synchronize": None, "get_amp_supported_dtype": []}
    functions = {name: lambda *_, answer=answer: answer for name, answer in answers.items()}
    torch._register_device_module("npu", types.SimpleNamespace(**functions))
    torch.utils.generate_methods_for_privateuse1_backend()
    return "npu"


DEVICE = "cuda" if torch.cuda.is_available() else stand_in()
# Without a large eps, Adam makes whole steps of gradients that differ in rounding alone.
OPTIMIZERS = {
    "fused Adam": functools.partial(torch.optim.Adam, lr=1e-2, eps=1e-3, fused=True),
    "foreach Adam": functools.partial(torch.optim.Adam, lr=1e-2, eps=1e-3, foreach=True),
    "AdamW": functools.partial(torch.optim.AdamW, lr=1e-2, eps=1e-3, amsgrad=True),
    "NAdam": functools.partial(torch.optim.NAdam, lr=1e-2, eps=1e-3),
    "RAdam": functools.partial(torch.optim.RAdam, lr=1e-2, eps=1e-3, betas=(0.9, 0.99)),
    "Adamax": functools.partial(torch.optim.Adamax, lr=1e-2, eps=1e-3),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=1e-3, eps=1e-3, momentum=0.5),
    "SGD": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
}
CASES = pytest.mark.parametrize(
    ("name", "estimator"), [(name, kind) for name in LOSSES for kind in LOSSES[name].estimators]
)


@contextlib.contextmanager
def waiting_for_nothing():
    """Fail if the host reads from the device or writes to it."""
    if DEVICE == "cuda":
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        before = torch.ops.another_device.waits()
        yield
        assert torch.ops.another_device.waits() == before


def build(case, device, estimator, optimizer, hard=False, **options):
    loss = case.make(updater=False, networks_kwargs={"device": device}).make_value_estimator(estimator)
    return UpdateStep(
        loss,
        actor_optimizer=optimizer(loss.actor_network.parameters()),
        critic_optimizer=optimizer(loss.get_stateful_net(case.critic_name, copy=False).parameters()),
        target_updater=HardUpdate(loss, value_network_update_interval=3) if hard else SoftUpdate(loss, tau=0.1),
        policy_delay=2,
        max_grad_norm=1.0,
        **options,
    )


def test_the_device_refuses_what_lies_elsewhere():
    there = torch.ones(2, device=DEVICE)
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(2)
    with waiting_for_nothing():
        there = there + 1
    with pytest.raises((AssertionError, RuntimeError)), waiting_for_nothing():
        there.tolist()
    assert there.tolist() == [2, 2]


def assert_as_on_the_cpu(name, estimator, optimizer, **options):
    """Six updates; none waits but the first of each kind, which is looked at and makes the optimizer's state."""
    case, hard = LOSSES[name], name == "d4pg"
    update = build(case, DEVICE, estimator, OPTIMIZERS[optimizer], hard, **options)
    other = build(case, "cpu", estimator, OPTIMIZERS[optimizer], hard)
    for seed in range(6):
        data = batch(4, 5, seed=seed)
        data["priority_weight"] = torch.full((4, 5), 0.5)
        there = data.to(DEVICE)
        with waiting_for_nothing() if seed > 1 else contextlib.nullcontext():
            metrics = update(there)
        metrics = {key: value.cpu() for key, value in metrics.items()}
        torch.testing.assert_close(metrics, dict(other(data)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(there["td_error"].cpu(), data["td_error"], rtol=1e-4, atol=1e-5)
    parameters = ([leaf.cpu() for leaf in one.loss.target_pairs("parameters")[0]] for one in (update, other))
    torch.testing.assert_close(*parameters, rtol=1e-4, atol=1e-5)
    update.load_state_dict(update.state_dict())


@CASES
@pytest.mark.parametrize("optimizer", ["fused Adam", "foreach Adam"])
def test_updates_are_those_of_the_cpu_and_wait_for_nothing(name, estimator, optimizer):
    assert_as_on_the_cpu(name, estimator, optimizer)


@pytest.fixture
def recordable(monkeypatch):
    """Updates with cuda_graph=True, all but the graph: what it would record is called."""
    monkeypatch.setattr(cuda_graph, "_DEVICE_TYPE", DEVICE)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(cuda_graph.CudaGraph, "__call__", lambda graph, inputs: graph.function(inputs))


@CASES
@pytest.mark.usefixtures("recordable")
def test_what_a_graph_records_waits_for_nothing(name, estimator):
    assert_as_on_the_cpu(name, estimator, "fused Adam", cuda_graph=True)


@pytest.mark.usefixtures("recordable")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_recordable_optimizers_wait_for_nothing(optimizer):
    assert_as_on_the_cpu("ddpg", "td0", optimizer, cuda_graph=True)


@pytest.mark.parametrize("loss_class", [DDPGLoss, TD3Loss, TD3BCLoss, D4PGLoss])
def test_what_is_given_on_the_cpu_follows_the_networks(loss_class):
    outputs = DEFAULTS.get(loss_class, {}).get("num_atoms", 1)
    actor = TensorDictModule(MLP(3, 2, num_cells=[8], device=DEVICE), ["observation"], ["action"])
    critic = ValueOperator(MLP(5, outputs, num_cells=[8], device=DEVICE), ["observation", "action"])
    options = {key: value for key, value in DEFAULTS.get(loss_class, {}).items() if key != "bounds"}
    loss = loss_class(actor, critic, action_spec=Bounded(-torch.ones(2), torch.ones(2)), **options)
    SoftUpdate(loss, tau=0.1)
    loss.make_value_estimator("td0", gamma=0.9)
    assert {leaf.device.type for leaf in loss.buffers()} == {DEVICE}
    assert {value.device.type for value in loss(batch(8).to(DEVICE)).values()} == {DEVICE}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words",
    [
        "",
        "mujoco --env.name Pendulum-v1 --collector sync",
        "mujoco --env.name Pendulum-v1 --collector async",
        "--loss td3 --noise.kind gaussian --n-steps 3 --estimator td0 --replay.crop 1 --replay.prefetch 2",
        "--loss d4pg --estimator td0 --v-min -100 --hard-interval 3 --env.backend torchrl",
    ],
)
def test_the_trainer_runs(monkeypatch, tmp_path, words):
    def train(cfg, stop):
        cfg.device = DEVICE
        return test_examples.train_ddpg.train(cfg, stop)

    preset = [word for word in words.split()[:1] if not word.startswith("--")]
    flags = [*preset, *test_examples.SMALL, *words.split()[len(preset) :], "--output-dir", tmp_path]
    assert test_examples.run(*flags, train=train) == 0
    assert len(test_examples.evaluations(tmp_path)) == 2
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)["actor"]
    assert {value.device.type for value in saved.values()} == {"cpu"}


@pytest.mark.filterwarnings("ignore")
def test_the_collectors_process_acts_with_the_weights_sent_last():
    trainer, settings = test_examples.train_ddpg, test_examples.configuration
    env = settings.EnvConfig(name="Pendulum-v1", frame_skip=1, count=2, parallel=False, normalise=False)
    sizes = {"total_frames": 120, "init_random_frames": 0, "steps_per_batch": 10, "hidden": (8,)}
    cfg = settings.Config(env=env, noise=settings.NoiseConfig("none"), collector="async", device=DEVICE, **sizes)
    base = trainer.make_env(env, several=False)
    actor, _ = trainer.make_networks(cfg, base)
    policy, _ = trainer.make_exploration(cfg, actor, base.action_spec_unbatched)
    actions, make = [], functools.partial(trainer.make_env, env)
    with test_examples.collectors.Collecting(cfg, make, policy, threading.Event()) as batches:
        for count, collected in enumerate(batches, 1):
            actions.append(float(collected["action"][0, -1]))
            with torch.no_grad():
                for parameter in actor.parameters():
                    parameter.zero_()
                parameter.fill_(0.1 * count)  # the last layer's bias
            batches.send_weights()
    base.close()
    for count, action in list(enumerate(actions))[2:]:  # a batch may have begun with the weights before those
        assert action in [pytest.approx(2 * math.tanh(0.1 * sent), rel=1e-4) for sent in (count - 1, count)]

"""The example trainer: command line, losses, offline data, output folder, repeatability, Ctrl-C."""

from __future__ import annotations

import csv
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from tensordict import TensorDict
from torchrl.data import Bounded, PrioritizedSampler
from torchrl.data.replay_buffers import RandomSampler
from torchrl.envs import GymWrapper, PendulumEnv
from torchrl.modules import TanhDelta

from torchrl_ddpg import D4PGLoss, DDPGLoss, HardUpdate, TD3BCLoss, TD3Loss

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
pipeline = pytest.importorskip("pipeline", exc_type=ImportError)
command_line = pytest.importorskip("command_line", exc_type=ImportError)
learners = pytest.importorskip("learners", exc_type=ImportError)
offline = pytest.importorskip("offline", exc_type=ImportError)
replay_buffer = pytest.importorskip("replay_buffer", exc_type=ImportError)
train_ddpg = pytest.importorskip("train_ddpg", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:glfw")


def sums_segments():
    """Whether TorchRL's C++ extension, built for one version of torch, loads with this one."""
    try:
        return bool(PrioritizedSampler(2, 0.7, 0.5))
    except Exception:
        return False


NEEDS_EXTENSION = pytest.mark.skipif(not sums_segments(), reason="TorchRL's C++ extension does not fit this torch")
HEADER = (
    "frames,reward,train_return,eval_return,loss_value,loss_actor,target_value,grad_norm_critic,grad_norm_actor,"
    "pred_value,target_outside_support,staleness,updates,seconds"
)
SMALL = shlex.split(
    "--env.no-parallel --env.count 2 --env.max-steps 20 --env.random-steps 40 --total-frames 400 "
    "--init-random-frames 100 --steps-per-batch 25 --updates-per-batch 3 --replay.batch 8 --eval.interval 200 "
    "--hidden 16 16 --device cpu"
)

OFFLINE = [*SMALL, *shlex.split("--loss td3-bc --estimator td0 --replay.unit transition --env.name Pendulum-v1")]


class OnesEnv(PendulumEnv):
    """A pendulum whose every simulator step is worth 1."""

    @classmethod
    def _step(cls, tensordict):
        result = super()._step(tensordict)
        return result.set("reward", torch.ones_like(result["reward"]))


def run(monkeypatch, *words, train=train_ddpg.train):
    monkeypatch.setattr(sys, "argv", ["train_ddpg.py", *map(str, words)])
    previous, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    try:
        return command_line.main(train_ddpg.PRESETS, train)
    finally:
        signal.signal(signal.SIGINT, previous)
        torch.set_num_threads(threads)


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def evaluations(folder):
    return [float(row["eval_return"]) for row in rows(folder) if row["eval_return"]]


def group_ends(group, seconds):
    """Whether no process of the group is left, given a moment for Python's resource tracker."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def no_training(cfg):
    raise AssertionError("training began")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("tutrial", "tutrial is not a preset; accepted: tutorial, mujoco, pendulum."),
        ("--total-frames -5", "--total-frames -5 is out of range; accepted: at least 1."),
        ("--replay.batch 0", "--replay.batch 0 is out of range; accepted: at least 1."),
        ("--eval.interval -1", "--eval.interval -1 is out of range; accepted: at least 0."),
        ("--hidden 64 0", "--hidden 0 is out of range; accepted: at least 1."),
        ("--tau 2", "--tau 2.0 is out of range; accepted: above 0 and at most 1."),
        ("--actor-lr 0", "--actor-lr 0.0 is out of range; accepted: above 0."),
        ("--gamma nan", "--gamma nan is out of range; accepted: at least 0 and at most 1."),
        ("--critic-lr inf", "--critic-lr inf is out of range; accepted: above 0."),
        ("--init-random-frames 999999", "--init-random-frames is above --total-frames; accepted: at most it."),
        ("--replay.unit transition", "--replay.unit transition goes with --estimator td0 alone."),
        ("--n-steps 3", "--n-steps above 1 goes with --estimator td0 alone."),
        ("--policy-delay -1", "--policy-delay -1 is out of range; accepted: at least 0."),
        ("--num-atoms 1", "--num-atoms 1 is out of range; accepted: at least 2."),
        ("--v-min nan", "--v-min nan is out of range; accepted: a finite number."),
        ("--v-max inf", "--v-max inf is out of range; accepted: a finite number."),
        ("--loss d4pg --v-max 1", "--loss d4pg goes with --estimator td0 alone."),
        ("mujoco --loss d4pg", "--loss d4pg needs --v-min below --v-max: the range of discounted returns, in scaled"),
        ("pendulum --loss td3-bc", "--loss td3-bc needs --offline-data: OUTPUT/replay of a run with --save-replay, or"),
        ("--loss td3 --offline-data x", "--offline-data goes with --loss td3-bc alone."),
        ("--loss td3-bc --offline-data x", "td3-bc needs --estimator td0 --replay.unit transition --n-steps 1."),
        ("pendulum --loss td3-bc --offline-data x --n-steps 2", "--replay.unit transition --n-steps 1."),
        ("pendulum --loss td3-bc --offline-data x --env.from-pixels", "pixels does not go with --loss td3-bc."),
        ("pendulum --loss td3-bc --offline-data x --save-replay", "--save-replay goes with --loss ddpg, td3 or d4pg,"),
        ("pendulum --save-replay --n-steps 2", "d4pg, --n-steps 1 and without --env.from-pixels."),
        ("pendulum --save-replay --env.from-pixels", "d4pg, --n-steps 1 and without --env.from-pixels."),
        ("--env.backend torchrl --env.max-steps 0", "--env.max-steps 0: TorchRL's environments never end."),
        ("--env.name CartPole-v1", "--env.name CartPole-v1 has no continuous, bounded actions; DDPG needs them."),
        ("--env.name HalfChetah-v5", "--env.name HalfChetah-v5 is unknown to gymnasium; names like it: HalfCheetah-v5"),
        (
            "--env.backend dm-control --env.name cheetah-rum",
            "--env.name cheetah-rum is unknown to dm-control; names like it: cheetah-run",
        ),
        ("--env.backend torchrl --env.name Pendulum", "unknown to torchrl; names like it: PendulumEnv"),
    ],
)
def test_mistake_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, words, sentence):
    status = run(monkeypatch, *words.split(), "--output-dir", tmp_path, train=no_training)
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("words", ["--total-frames 1.5", "--no-such-flag 1", "--env.backend atari", "--device tpu"])
def test_mistyped_flag_ends_with_status_2(monkeypatch, capsys, words):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *words.split(), train=no_training)
    assert end.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


def test_a_cuda_graph_is_refused_without_cuda(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, "--cuda-graph", "--output-dir", tmp_path, train=no_training) == 2
    assert "--cuda-graph records on a CUDA device and PyTorch finds none; leave it out." in capsys.readouterr().err


def test_absent_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, "--device", "cuda", train=no_training) == 2
    assert "--device cuda: PyTorch finds no CUDA device; accepted here: auto, cpu." in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is there")
def test_absent_ray_is_refused(monkeypatch, capsys):
    assert run(monkeypatch, "--collector", "ray", train=no_training) == 2
    assert "--collector ray needs Ray: pip install ray." in capsys.readouterr().err


def test_unwritable_folder_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run(monkeypatch, "--output-dir", tmp_path / "file" / "x", train=no_training) == 2
    assert "(accepted: a folder that can be written)." in capsys.readouterr().err


def test_absent_extension_is_told_in_words(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise TypeError("'NoneType' object is not callable")

    monkeypatch.setattr(command_line.data, "PrioritizedSampler", fail)
    words = ["--replay.sampler", "prioritised", "--output-dir", tmp_path]
    assert run(monkeypatch, *words, train=no_training) == 2
    assert "(TorchRL's C++ extension fits torch 2.15; without it: uniform)." in capsys.readouterr().err


def test_unfit_mujoco_is_told_in_words(monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

    monkeypatch.setattr(pipeline.envs, "DMControlEnv", fail)
    assert run(monkeypatch, "--env.backend", "dm-control", "--output-dir", tmp_path, train=no_training) == 2
    assert "pip install 'torchrl-ddpg[examples]' 'mujoco<4'" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["gymnasium", "dm-control", "torchrl"])
def test_run_writes_its_folder(monkeypatch, tmp_path, backend):
    assert run(monkeypatch, "--env.backend", backend, *SMALL, "--output-dir", tmp_path) == 0
    assert (tmp_path / "metrics.csv").read_text().splitlines().count(HEADER) == 1
    assert int(rows(tmp_path)[-1]["frames"]) == 400
    assert float(rows(tmp_path)[-1]["loss_value"]) >= 0
    assert len(evaluations(tmp_path)) == 2
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["env"]["name"], config["total_frames"]) == (command_line.DEFAULT_NAMES[backend], 400)
    assert "actor" in torch.load(tmp_path / "policy.pt", weights_only=True)
    assert (tmp_path / "learning_curve.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    "words",
    [
        "--estimator td1 --target-update hard --hard-interval 2 --noise.kind none --replay.prefetch 2",
        "--loss td3 --estimator td0 --replay.unit transition --n-steps 3 --policy-delay 3",
        "--loss d4pg --estimator td0 --v-min -100 --num-atoms 11 --target-update hard",
        *(
            pytest.param(f"--replay.sampler prioritised {words}", marks=NEEDS_EXTENSION)
            for words in (
                "--estimator td0 --replay.unit transition --n-steps 3 --noise.kind gaussian",
                "--env.no-normalise --activation ELU --replay.crop 10 --tensorboard",
                "--loss td3",
                "--loss d4pg --estimator td0 --v-min -100 --n-steps 3 --replay.unit transition",
            )
        ),
    ],
)
def test_every_part_runs(monkeypatch, tmp_path, words):
    assert run(monkeypatch, "--env.backend", "torchrl", *SMALL, *words.split(), "--output-dir", tmp_path) == 0
    assert float(rows(tmp_path)[-1]["loss_value"]) >= 0
    assert float(rows(tmp_path)[-1]["loss_actor"])
    assert (rows(tmp_path)[-1]["target_outside_support"] != "") == ("d4pg" in words)


def test_returns_are_in_the_environments_units(monkeypatch, tmp_path):
    words = ["--env.backend", "torchrl", "--env.name", f"{__name__.rpartition('.')[2]}:OnesEnv", *SMALL]
    assert run(monkeypatch, *words, "--env.reward-scale", "5", "--output-dir", tmp_path) == 0
    frames = 20 * 2  # an episode's actions, each of two frames
    assert evaluations(tmp_path) == [frames, frames]
    assert {float(row["train_return"]) for row in rows(tmp_path) if row["train_return"]} == {frames}
    assert {float(row["reward"]) for row in rows(tmp_path)} == {2.0}


def test_no_evaluation_with_interval_zero(monkeypatch, tmp_path):
    words = ["--env.backend", "torchrl", *SMALL, "--eval.interval", "0", "--output-dir", tmp_path]
    assert run(monkeypatch, *words) == 0
    assert evaluations(tmp_path) == []


def test_same_seed_same_run(monkeypatch, tmp_path):
    def curve(seed, folder):
        assert run(monkeypatch, *SMALL, "--seed", seed, "--output-dir", tmp_path / folder) == 0
        return [{**row, "seconds": ""} for row in rows(tmp_path / folder)]

    first = curve(3, "a")
    assert curve(3, "b") == first
    assert curve(4, "c") != first


def test_time_limit_truncates_and_does_not_terminate():
    cfg = train_ddpg.EnvConfig(name="Pendulum-v1", count=2, parallel=False, max_steps=7)
    after = pipeline.make_env(cfg).rollout(7)["next"]
    assert after["truncated"][:, -1].all()
    assert after["done"][:, -1].all()
    assert not after["terminated"].any()


def test_environments_that_step_as_one_keep_their_own_episodes():
    cfg = train_ddpg.EnvConfig(name="Hopper-v5", count=3, parallel=False, frame_skip=1, max_steps=30, normalise=False)
    env = pipeline.make_env(cfg, seed=1)
    assert isinstance(env.base_env, GymWrapper)
    run = env.rollout(120, break_when_any_done=False)
    ends, after = run["next", "done"].squeeze(-1), run["next"]
    assert ends.sum(1).unique().numel() > 1  # they ended at different times
    goes_on = (run["observation_vector"][:, 1:] == after["observation_vector"][:, :-1]).all(-1)
    assert torch.equal(goes_on, ~ends[:, :-1])
    assert torch.equal(run["is_init"].squeeze(-1)[:, 1:], ends[:, :-1])
    assert torch.equal(after["done"], after["terminated"] | after["truncated"])
    assert torch.equal(after["truncated"], after["step_count"] == 30)
    total = torch.zeros(3)
    for step in run.unbind(1):
        total = total + step["next", "reward"].squeeze(-1)
        torch.testing.assert_close(step["next", "episode_reward"].squeeze(-1), total)
        total = total.where(~step["next", "done"].squeeze(-1), 0.0)
    torch.testing.assert_close(
        pipeline.make_env(cfg, seed=1).reset()["observation_vector"], run[:, 0]["observation_vector"]
    )
    starts = torch.cat([run[:, 0]["observation_vector"], pipeline.make_env(cfg, seed=2).reset()["observation_vector"]])
    assert len(starts.unique(dim=0)) == 6


def test_repeated_action_moves_a_stateless_environment_twice():
    cfg = train_ddpg.EnvConfig(backend="torchrl", name="PendulumEnv", frame_skip=2, max_steps=5)
    env, one = pipeline.make_env(cfg, training=False), PendulumEnv()
    step = env.rollout(1)[0]
    state = step.select("th", "thdot", "params", "action")
    middle = one.step(state.clone())["next"]
    last = one.step(state.clone().update(middle.select("th", "thdot")))["next"]
    torch.testing.assert_close(step["next", "th"], last["th"])
    torch.testing.assert_close(step["next", "reward"], middle["reward"] + last["reward"])


def test_n_step_returns_carry_the_end_flags_of_their_last_step():
    cfg = train_ddpg.Config(n_steps=2, gamma=0.5, estimator="td0")
    ends = torch.tensor([False, False, True, False]).view(1, 4, 1)
    after = {"observation_vector": torch.arange(1.0, 5.0).view(1, 4, 1), "reward": torch.ones(1, 4, 1)}
    after |= {"done": ends, "terminated": ends, "truncated": torch.zeros_like(ends)}
    root = {"observation_vector": torch.arange(4.0).view(1, 4, 1), "action": torch.zeros(1, 4, 1), "next": after}
    batch = replay_buffer.prepare(cfg, TensorDict(root, [1, 4]))
    assert batch["next", "terminated"].flatten().tolist() == [False, True, True, False]
    assert batch["next", "observation_vector"].flatten().tolist() == [2, 3, 3, 4]
    assert batch["next", "reward"].flatten().tolist() == [1.5, 1.5, 1, 1]
    assert batch["steps_to_next_obs"].flatten().tolist() == [2, 2, 1, 1]


class PixelEnv:
    """What the networks ask of an environment: its actions, and a step of three stacked images."""

    action_spec = action_spec_unbatched = Bounded(-2.0, 2.0, (1,))

    @staticmethod
    def fake_tensordict():
        return TensorDict({"observation_vector": torch.zeros(9, 64, 64)}, [])


def built(loss, env=None, **options):
    """The critic and the update that settings give."""
    options |= {"estimator": "td0", "v_min": -10.0, "num_atoms": 7, "hidden": (16, 8), "device": "cpu"}
    cfg = train_ddpg.Config(loss=loss, **options)
    cfg.env.from_pixels = env is not None
    env = env or pipeline.make_env(train_ddpg.EnvConfig(backend="torchrl", name="PendulumEnv"), training=False)
    actor, critic = pipeline.make_networks(cfg, env)
    return critic, learners.make_learner(cfg, actor, critic, env.action_spec_unbatched)


@pytest.mark.parametrize(
    ("loss", "kind", "delay", "critics", "first", "outputs"),
    [
        ("ddpg", DDPGLoss, 1, 1, 2, 1),
        ("td3", TD3Loss, 2, 2, 3, 1),
        ("td3-bc", TD3BCLoss, 2, 2, 3, 1),
        ("d4pg", D4PGLoss, 1, 1, 2, 7),
    ],
)
def test_networks_and_delay_follow_the_loss(loss, kind, delay, critics, first, outputs):
    critic, update = built(loss)
    sizes = [tuple(weight.shape) for weight in critic.parameters() if weight.ndim == 2]
    assert (sizes[0], sizes[-1]) == ((16, first), (outputs, 8))
    assert type(update.loss) is kind
    assert update.policy_delay == delay
    held = [len(group["params"]) for group in update.critic_optimizer.param_groups]
    assert held == [critics * len(list(critic.parameters()))]
    _, update = built(loss, policy_delay=3, target_update="hard")
    assert (update.policy_delay, type(update.target_updater)) == (3, HardUpdate)


@pytest.mark.parametrize("loss", ["ddpg", "td3", "d4pg"])
def test_every_loss_that_collects_learns_from_pixels(loss):
    _, update = built(loss, PixelEnv)
    flag, seen = torch.zeros(2, 1, dtype=torch.bool), torch.rand(2, 9, 64, 64)
    after = {"observation_vector": seen, "reward": torch.ones(2, 1), "done": flag, "terminated": flag}
    batch = TensorDict({"observation_vector": seen, "action": torch.zeros(2, 1), "next": after}, [2])
    assert all(value.isfinite().all() for _ in range(2) for value in update(batch).values())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 2.0), (-0.4, 0.4)])
def test_actions_are_squashed_as_torchrl_does(low, high):
    param, low, high = torch.randn(5, 2), torch.full((2,), low), torch.full((2,), high)
    action = pipeline.Squash(low, high)(param)
    torch.testing.assert_close(action, TanhDelta(param, low=low, high=high).mode)
    torch.testing.assert_close(pipeline.Squash(low, high + 1)(1e3 * param.abs()), (high + 1).expand(5, 2))


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("count", [0, 1, 10, 13])
def test_as_many_minibatches_as_asked_for(monkeypatch, sampler, count):
    cfg = train_ddpg.Config(device="cpu", replay=train_ddpg.ReplayConfig("transition", batch=4, sampler=sampler))
    monkeypatch.setattr(replay_buffer.data, "PrioritizedSampler", lambda *_: RandomSampler())
    replay = replay_buffer.make_replay(cfg, 50)
    replay.extend(TensorDict({"observation_vector": torch.arange(50.0)}, [50]))
    drawn, sample = [], replay.sample
    monkeypatch.setattr(replay, "sample", lambda: drawn.append(1) or sample())
    assert [len(batch) for batch in replay_buffer.minibatches(cfg, replay, count)] == [4] * count
    assert len(drawn) == (count if sampler == "prioritised" else -(-count // 10))


@NEEDS_EXTENSION
def test_prioritised_minibatches_follow_the_seed():
    def draw(seed):
        replay_config = train_ddpg.ReplayConfig("transition", batch=8, sampler="prioritised")
        cfg = train_ddpg.Config(device="cpu", replay=replay_config, seed=seed)
        replay = replay_buffer.make_replay(cfg, 50)
        replay.extend(TensorDict({"observation_vector": torch.arange(50.0)}, [50]))
        return replay.sample()["observation_vector"].tolist()

    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize(("collector", "staleness"), [("sync", {0.0}), ("async", {0.0, 50.0})])
def test_every_frame_brings_its_update_and_staleness_is_told(monkeypatch, tmp_path, collector, staleness):
    words = [
        "mujoco",
        "--env.name",
        "Pendulum-v1",
        "--env.count",
        2,
        "--steps-per-batch",
        25,
        "--updates-per-batch",
        50,
    ]
    words += ["--total-frames", 400, "--init-random-frames", 100, "--env.random-steps", 40, "--hidden", 8, 8]
    words += ["--eval.interval", 0, "--replay.batch", 8, "--collector", collector, "--output-dir", tmp_path]
    assert run(monkeypatch, *words) == 0
    table = rows(tmp_path)
    assert [int(row["updates"]) for row in table] == [int(row["frames"]) - 50 for row in table]
    assert [int(row["frames"]) for row in table] == [100, 200, 300, 400]
    assert {float(row["staleness"]) for row in table[-2:]} == {max(staleness)}
    assert float(table[0]["staleness"]) == 0.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_core_is_left_to_the_collector_while_it_collects(device):
    cfg = train_ddpg.Config(collector="async", threads=2, device=device)
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for empty, threads in ((True, 1 if device == "cpu" else 2), (False, 2)):
            queue = types.SimpleNamespace(empty=lambda empty=empty: empty)
            pipeline.share_threads(cfg, types.SimpleNamespace(queue_out=queue))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(previous)


@pytest.fixture
def minari(monkeypatch, tmp_path):
    """Minari with `two/ends-v0`, a truncated and a terminated episode of 5 steps, and `dict/seen-v0`."""
    minari = pytest.importorskip("minari")
    buffers = pytest.importorskip("minari.data_collector.episode_buffer")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    random, last = np.random.default_rng(0), np.arange(5) == 4
    box = gymnasium.spaces.Box(-9.0, 9.0, (3,))
    options = {"action_space": gymnasium.spaces.Box(-2.0, 2.0, (1,)), "algorithm_name": "random", "description": "x"}
    options |= {"author": "x", "author_email": "x", "code_permalink": "x"}
    options |= {"env": "Pendulum-v1", "eval_env": "Pendulum-v1"}
    episodes, named = [], []
    for number in range(2):
        seen, actions = random.normal(size=(6, 3)).astype("float32"), random.uniform(size=(5, 1)).astype("float32")
        rest = {"actions": actions, "rewards": list(random.normal(size=5)), "infos": {}}
        rest |= {"truncations": list(last & (number == 0)), "terminations": list(last & (number == 1))}
        episodes.append(buffers.EpisodeBuffer(id=number, observations=seen, **rest))
        named.append(buffers.EpisodeBuffer(id=number, observations={"x": seen}, **rest))
    minari.create_dataset_from_buffers("two/ends-v0", episodes, observation_space=box, **options)
    spaces = gymnasium.spaces.Dict({"x": box})
    minari.create_dataset_from_buffers("dict/seen-v0", named, observation_space=spaces, **options)
    return minari


def offline_config(data, **env):
    options = {"backend": "gymnasium", "name": "Pendulum-v1", "max_steps": 20, "frame_skip": 1} | env
    return train_ddpg.Config(loss="td3-bc", offline_data=str(data), env=train_ddpg.EnvConfig(**options))


def test_minari_episodes_become_transitions_within_episodes(minari):
    found = offline.load(offline_config("two/ends-v0"))
    after = found["next"]
    assert found.shape == (10,)
    follows = (found["observation_vector"][1:] == after["observation_vector"][:-1]).all(-1).tolist()
    assert follows == [True] * 4 + [False] + [True] * 4
    ends = {key: after[key].flatten().nonzero().flatten().tolist() for key in pipeline.END_KEYS}
    assert ends == {"done": [4, 9], "terminated": [9], "truncated": [4]}
    first = minari.load_dataset("two/ends-v0")[0]
    np.testing.assert_allclose(after["reward"][:5, 0], first.rewards, rtol=1e-6)
    np.testing.assert_array_equal(found["action"][:5], first.actions)


def test_td3_bc_learns_from_minari_with_its_statistics(monkeypatch, tmp_path, minari):
    words = ["--offline-data", "two/ends-v0", "--output-dir", tmp_path / "out"]
    assert run(monkeypatch, *OFFLINE, *words) == 0
    assert [(row["frames"], row["updates"]) for row in rows(tmp_path / "out")] == [
        ("100", "3"),
        ("200", "6"),
        ("300", "9"),
        ("400", "12"),
    ]
    assert len(evaluations(tmp_path / "out")) == 2
    seen = offline.load(offline_config("two/ends-v0"))["observation_vector"]
    mean, deviation = torch.load(tmp_path / "out" / "policy.pt", weights_only=True)["stats"]
    torch.testing.assert_close(mean, seen.mean(0))
    torch.testing.assert_close(deviation, seen.std(0))


@pytest.mark.parametrize("unit", ["trajectory", "transition"])
def test_td3_bc_learns_from_a_replay_folder_in_the_environments_units(monkeypatch, tmp_path, unit):
    scaled = ["--env.name", "Pendulum-v1", "--estimator", "td0", "--replay.unit", unit, "--env.reward-scale", "0.01"]
    for frames in ("600", "400"):  # the second replaces the first
        words = ["--save-replay", "--total-frames", frames, "--output-dir", tmp_path / "first"]
        assert run(monkeypatch, *SMALL, *scaled, *words) == 0
    found = offline.load(offline_config(tmp_path / "first" / "replay"))
    assert found.shape == (200,)
    assert set(found.keys()) == {"observation_vector", "action", "next"}
    for part in (found, found["next"]):
        cosine, sine, speed = part["observation_vector"].unbind(-1)
        torch.testing.assert_close(cosine**2 + sine**2, torch.ones(200))
        assert speed.abs().max() > 1.5
    assert found["next", "reward"].mean() < -1
    words = ["--offline-data", tmp_path / "first" / "replay", "--output-dir", tmp_path / "second"]
    assert run(monkeypatch, *OFFLINE, *words) == 0
    assert rows(tmp_path / "second")[-1]["updates"] == "12"


def test_ctrl_c_saves_what_was_learned_from_data(monkeypatch, tmp_path, minari):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Recorder, "advance", interrupt)
    assert run(monkeypatch, *OFFLINE, "--offline-data", "two/ends-v0", "--output-dir", tmp_path / "out") == 130
    assert "actor" in torch.load(tmp_path / "out" / "policy.pt", weights_only=True)


def test_offline_rewards_are_scaled_and_observations_normalised(monkeypatch, minari):
    stored = []
    monkeypatch.setattr(pipeline, "Recorder", lambda *_: pytest.fail("stop"))
    make = replay_buffer.make_replay

    def watched(cfg, size):
        replay = make(cfg, size)
        assert replay.storage.max_size == 10  # all the data, however short the training
        monkeypatch.setattr(replay, "extend", stored.append)
        return replay

    monkeypatch.setattr(replay_buffer, "make_replay", watched)
    cfg = offline_config("two/ends-v0", reward_scale=0.5, random_steps=20)
    cfg.estimator, cfg.device, cfg.replay.unit, cfg.total_frames = "td0", "cpu", "transition", 4
    with pytest.raises(pytest.fail.Exception, match="stop"):
        offline.train(cfg)
    raw = offline.load(cfg)
    torch.testing.assert_close(stored[0]["next", "reward"], raw["next", "reward"] * 0.5)
    seen = stored[0]["observation_vector"]
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(3))


@pytest.mark.parametrize(
    ("data", "words", "sentence"),
    [
        ("no/such-v0", "", "is no folder and no Minari dataset on this machine; those are: dict/seen-v0, two/ends-v0."),
        (".", "", "it is no replay folder (accepted: OUTPUT/replay of a run with --save-replay, or the id of"),
        ("dict/seen-v0", "", "its observations or actions are a dict or a tuple of arrays, not one array"),
        (
            "two/ends-v0",
            "--env.name MountainCarContinuous-v0",
            "has observations of shape (3,); (2,) is that of --env.name MountainCarContinuous-v0: name the environment",
        ),
    ],
)
def test_unfit_data_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, minari, data, words, sentence):
    status = run(monkeypatch, *OFFLINE, "--offline-data", data, *words.split(), "--output-dir", tmp_path / "out")
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_actions_of_another_shape_are_refused(monkeypatch, minari):
    episode = offline.to_transitions(minari.load_dataset("two/ends-v0")[0])
    episode["action"] = torch.zeros(5)
    monkeypatch.setattr(offline, "read_minari", lambda _: episode)
    with pytest.raises(command_line.UserError, match=r"has actions of shape \(\); \(1,\) is that of"):
        offline.load(offline_config("two/ends-v0"))


def test_absent_minari_is_refused(monkeypatch):
    monkeypatch.setattr(offline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(command_line.UserError, match=r"pip install 'minari\[hdf5\]'\.$"):
        offline.load(offline_config("two/ends-v0"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("workers", ["--env.no-parallel", pytest.param("--env.parallel", marks=pytest.mark.slow)])
def test_ctrl_c_saves_and_ends_everything(tmp_path, workers):
    words = [*SMALL, workers, "--total-frames", "1000000", "--eval.interval", "0", "--output-dir", str(tmp_path)]
    command = [sys.executable, str(EXAMPLES / "train_ddpg.py"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        metrics, deadline = tmp_path / "metrics.csv", time.monotonic() + 200
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the trainer and to its workers
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "actor" in torch.load(tmp_path / "policy.pt", weights_only=True)
    assert (tmp_path / "learning_curve.png").exists()
    assert group_ends(process.pid, seconds=10)


@pytest.mark.slow
def test_pendulum_preset_learns(monkeypatch, tmp_path):
    assert run(monkeypatch, "pendulum", "--output-dir", tmp_path) == 0
    assert evaluations(tmp_path)[-1] > -300  # random actions get about -1,200; docs/results.md has the measured figures

"""The example trainer: command line, losses, offline data, output folder, repeatability, Ctrl-C."""

from __future__ import annotations

import csv
import importlib.util
import os
import shlex
import signal
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
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, PrioritizedSampler
from torchrl.data.replay_buffers import RandomSampler
from torchrl.envs import ExplorationType, GymWrapper, PendulumEnv, set_exploration_type
from torchrl.modules import TanhDelta

from torchrl_ddpg import D4PGLoss, DDPGLoss, FastTD3Loss, HardUpdate, ReBRACLoss, TD3BCLoss, TD3Loss

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
train_ddpg = pytest.importorskip("train_ddpg", exc_type=ImportError)

from trainer import collectors, command_line, configuration, environments, offline_data, records  # noqa: E402
from trainer.errors import UserError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:glfw")


def sums_segments():
    """Whether TorchRL's C++ extension, built for one version of torch, loads with this one."""
    try:
        return bool(PrioritizedSampler(2, 0.7, 0.5))
    except Exception:
        return False


NEEDS_EXTENSION = pytest.mark.skipif(not sums_segments(), reason="TorchRL's C++ extension does not fit this torch")
SMALL = shlex.split(
    "--env.no-parallel --env.count 2 --env.max-steps 20 --env.random-steps 40 --total-frames 400 "
    "--init-random-frames 100 --steps-per-batch 25 --updates-per-batch 3 --replay.batch 8 --eval.interval 200 "
    "--hidden 16 16 --device cpu"
)

SKIP = ["--env.frame-skip", "2"]
OFFLINE = [*SMALL, *SKIP, *shlex.split("--loss td3-bc --estimator td0 --replay.crop 1 --env.name Pendulum-v1")]


class OnesEnv(PendulumEnv):
    """A pendulum whose every simulator step is worth 1."""

    @classmethod
    def _step(cls, tensordict):
        result = super()._step(tensordict)
        return result.set("reward", torch.ones_like(result["reward"]))


def run(*words, train=train_ddpg.train):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    threads = torch.get_num_threads()
    try:
        return command_line.run(train, command_line.parse([str(word) for word in words]))
    except SystemExit as end:
        return end.code
    finally:
        torch.set_num_threads(threads)
        assert before == {number: signal.getsignal(number) for number in before}


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def evaluations(folder):
    """Returns of the evaluations after that of the untrained policy."""
    return [float(row["eval_return"]) for row in rows(folder)[1:] if row["eval_return"]]


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


def no_training(cfg, stop):
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
        ("--replay.crop 1", "--replay.crop 1 goes with --estimator td0 alone."),
        ("--replay.crop 500", "--replay.crop is above --steps-per-batch; accepted: at most it."),
        ("--loss td3 --action-layer 1", "--loss td3 goes with --action-layer 0 alone."),
        ("--seed 99999999999999999999", "is out of range; accepted: at least 0 and at most 2,147,483,647."),
        ("--threads 100000", "--threads 100000 is out of range; accepted: at least 1 and at most 1,024."),
        ("--replay.frames 100000000000", "is out of range; accepted: at least 1 and at most 1,000,000,000."),
        (
            "--replay.frames 900000000 --total-frames 900000000",
            "--replay.frames 900,000,000: the replay buffer would take",
        ),
        ("--collector.workers 2", "--collector.workers goes with --collector async or ray."),
        ("--networks no_such_module:make", "--networks no_such_module:make: No module named"),
        ("--resume no-such-folder", "--resume no-such-folder: [Errno 2] No such file or directory"),
        ("pendulum --resume no-such-folder", "--resume takes its settings from no-such-folder; leave pendulum out."),
        ("--env.name trainer_environments:matrix-action-v0", "actions of shape (2, 2); the networks here make vectors"),
        ("--env.name trainer_environments:no-bound-v0", "actions without a bound; DDPG needs one on either side"),
        ("--env.name trainer_environments:large-v0", "has 30,000 numbers in an observation; at most 10,000 are taken"),
        ("--env.name trainer_environments:raises-v0", "raises-v0: the motor is off."),
        ("--n-steps 3", "--n-steps above 1 goes with --estimator td0 alone."),
        ("--policy-delay -1", "--policy-delay -1 is out of range; accepted: at least 0."),
        ("--num-atoms 1", "--num-atoms 1 is out of range; accepted: at least 2."),
        ("--v-min nan", "--v-min nan is out of range; accepted: a finite number."),
        ("--v-max inf", "--v-max inf is out of range; accepted: a finite number."),
        ("--loss d4pg --v-max 1", "--loss d4pg goes with --estimator td0 alone."),
        ("mujoco --loss d4pg", "--loss d4pg needs --v-min below --v-max: the range of discounted returns, in scaled"),
        ("pendulum --loss td3-bc", "--loss td3-bc needs --offline-data: the folder of an earlier run, or the id of a"),
        ("--loss td3 --offline-data x", "--offline-data goes with --loss td3-bc or rebrac."),
        ("--loss td3-bc --offline-data x", "td3-bc needs --estimator td0 --replay.crop 1 --n-steps 1."),
        ("pendulum --loss td3-bc --offline-data x --n-steps 2", "--replay.crop 1 --n-steps 1."),
        ("pendulum --loss td3-bc --offline-data x --env.from-pixels", "pixels does not go with --loss td3-bc."),
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
    status = run(*words.split(), "--output-dir", tmp_path / "out", train=no_training)
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["--total-frames 1.5", "--no-such-flag 1", "--env.backend atari", "--device tpu"])
def test_mistyped_flag_ends_with_status_2(monkeypatch, capsys, words):
    assert run(*words.split(), train=no_training) == 2
    assert words.split()[0] in capsys.readouterr().err


def test_an_empty_folder_is_refused(capsys):
    with pytest.raises(SystemExit):
        command_line.parse(["--output-dir", ""])
    assert '--output-dir "" says nothing; leave it out, or give it a value.' in capsys.readouterr().err


def test_an_unknown_renderer_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "foo")
    assert run(train=no_training) == 2
    assert capsys.readouterr().err == "train_ddpg.py: MUJOCO_GL=foo is no renderer; accepted: egl, glfw, osmesa.\n"


def test_a_cuda_graph_is_refused_without_cuda(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--update", "cuda-graph", "--output-dir", tmp_path, train=no_training) == 2
    assert (
        "--update cuda-graph records on a CUDA device and PyTorch finds none; leave it out." in capsys.readouterr().err
    )


def test_absent_device_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--device", "cuda", train=no_training) == 2
    assert "--device cuda: PyTorch finds no CUDA device; accepted here: auto, cpu." in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is there")
def test_absent_ray_is_refused(monkeypatch, capsys):
    assert run("--collector", "ray", train=no_training) == 2
    assert "--collector ray needs a package: pip install ray." in capsys.readouterr().err


def test_unwritable_folder_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run("--output-dir", tmp_path / "file" / "x", train=no_training) == 2
    assert "(accepted: a folder that can be written)." in capsys.readouterr().err


def test_absent_extension_is_told_in_words(monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise TypeError("'NoneType' object is not callable")

    monkeypatch.setattr(train_ddpg.data, "PrioritizedSampler", fail)
    words = ["--replay.sampler", "prioritised", "--output-dir", tmp_path]
    assert run(*words, train=no_training) == 2
    assert "(TorchRL's C++ extension fits torch 2.14, 2.15; without it: uniform)." in capsys.readouterr().err


def test_unfit_mujoco_is_told_in_words(monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

    monkeypatch.setattr(environments.envs, "DMControlEnv", fail)
    assert run("--env.backend", "dm-control", "--output-dir", tmp_path, train=no_training) == 2
    assert "pip install 'torchrl-ddpg[examples]' 'mujoco<4'" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["gymnasium", "dm-control", "torchrl"])
def test_run_writes_its_folder(monkeypatch, tmp_path, backend):
    assert run("--env.backend", backend, *SMALL, "--output-dir", tmp_path) == 0
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(records.COLUMNS)
    assert int(rows(tmp_path)[-1]["frames"]) == 400
    assert float(rows(tmp_path)[-1]["loss_value"]) >= 0
    assert len(evaluations(tmp_path)) == 2
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["env"]["name"], config["total_frames"]) == (command_line.NAMES[backend], 400)
    assert "actor" in torch.load(tmp_path / "policy.pt", weights_only=True)
    assert (tmp_path / "learning_curve.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    "words",
    [
        "--estimator td1 --hard-interval 2 --noise.kind none --replay.prefetch 2",
        "--loss td3 --estimator td0 --replay.crop 1 --n-steps 3 --policy-delay 3 --update record",
        "--loss d4pg --estimator td0 --v-min -100 --num-atoms 11 --hard-interval 3",
        *(
            pytest.param(f"--replay.sampler prioritised {words}", marks=NEEDS_EXTENSION)
            for words in (
                "--estimator td0 --replay.crop 1 --n-steps 3 --noise.kind gaussian",
                "--env.no-normalise --activation ELU --replay.crop 10 --logger tensorboard",
                "--loss td3",
                "--loss d4pg --estimator td0 --v-min -100 --n-steps 3 --replay.crop 1",
            )
        ),
    ],
)
def test_every_part_runs(monkeypatch, tmp_path, words):
    assert run("--env.backend", "torchrl", *SMALL, *words.split(), "--output-dir", tmp_path) == 0
    assert float(rows(tmp_path)[-1]["loss_value"]) >= 0
    assert float(rows(tmp_path)[-1]["loss_actor"])
    assert (rows(tmp_path)[-1]["target_outside_support"] != "") == ("d4pg" in words)


def test_returns_are_in_the_environments_units(monkeypatch, tmp_path):
    words = ["--env.backend", "torchrl", "--env.name", f"{__name__.rpartition('.')[2]}:OnesEnv", *SMALL, *SKIP]
    assert run(*words, "--env.reward-scale", "5", "--output-dir", tmp_path) == 0
    frames = 20 * 2  # an episode's actions, each of two frames
    assert evaluations(tmp_path) == [frames, frames]
    assert {float(row["train_return"]) for row in rows(tmp_path) if row["train_return"]} == {frames}
    assert {float(row["reward"]) for row in rows(tmp_path)[1:]} == {2.0}


def test_no_evaluation_with_interval_zero(monkeypatch, tmp_path):
    words = ["--env.backend", "torchrl", *SMALL, "--eval.interval", "0", "--output-dir", tmp_path]
    assert run(*words) == 0
    assert evaluations(tmp_path) == []


def test_same_seed_same_run(tmp_path):
    def curve(seed, folder):
        assert run(*SMALL, "--seed", seed, "--output-dir", tmp_path / folder) == 0
        return [{key: row[key] for key in row if "second" not in key} for row in rows(tmp_path / folder)]

    first = curve(3, "a")
    assert curve(3, "b") == first
    assert curve(4, "c") != first


def test_time_limit_truncates_and_does_not_terminate():
    cfg = configuration.EnvConfig(name="Pendulum-v1", count=2, parallel=False, max_steps=7)
    after = train_ddpg.make_env(cfg).rollout(7)["next"]
    assert after["truncated"][:, -1].all()
    assert after["done"][:, -1].all()
    assert not after["terminated"].any()


def test_environments_that_step_as_one_keep_their_own_episodes():
    cfg = configuration.EnvConfig(
        name="Hopper-v5", count=3, parallel=False, frame_skip=1, max_steps=30, normalise=False
    )
    env = train_ddpg.make_env(cfg, seed=1)
    assert isinstance(env.base_env, GymWrapper)
    torch.manual_seed(0)
    run = env.rollout(120, break_when_any_done=False)
    ends, after = run["next", "done"].squeeze(-1), run["next"]
    assert len(ends.unique(dim=0)) == 3  # they ended at different times
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
        train_ddpg.make_env(cfg, seed=1).reset()["observation_vector"], run[:, 0]["observation_vector"]
    )
    starts = torch.cat(
        [run[:, 0]["observation_vector"], train_ddpg.make_env(cfg, seed=2).reset()["observation_vector"]]
    )
    assert len(starts.unique(dim=0)) == 6


def test_repeated_action_moves_a_stateless_environment_twice():
    cfg = configuration.EnvConfig(backend="torchrl", name="PendulumEnv", frame_skip=2, max_steps=5)
    env, one = train_ddpg.make_env(cfg, several=False), PendulumEnv()
    step = env.rollout(1)[0]
    state = step.select("th", "thdot", "params", "action")
    middle = one.step(state.clone())["next"]
    last = one.step(state.clone().update(middle.select("th", "thdot")))["next"]
    torch.testing.assert_close(step["next", "th"], last["th"])
    torch.testing.assert_close(step["next", "reward"], middle["reward"] + last["reward"])


def test_n_step_returns_carry_the_end_flags_of_their_last_step():
    cfg = configuration.Config(n_steps=2, gamma=0.5, estimator="td0")
    ends = torch.tensor([False, False, True, False]).view(1, 4, 1)
    after = {"observation_vector": torch.arange(1.0, 5.0).view(1, 4, 1), "reward": torch.ones(1, 4, 1)}
    after |= {"done": ends, "terminated": ends, "truncated": torch.zeros_like(ends)}
    root = {"observation_vector": torch.arange(4.0).view(1, 4, 1), "action": torch.zeros(1, 4, 1), "next": after}
    batch = train_ddpg.to_store(cfg, TensorDict(root, [1, 4]))
    assert batch["next", "terminated"].flatten().tolist() == [False, True, True, False]
    assert batch["next", "observation_vector"].flatten().tolist() == [2, 3, 3, 4]
    assert batch["next", "reward"].flatten().tolist() == [1.5, 1.5, 1, 1]
    assert batch["steps_to_next_obs"].flatten().tolist() == [2, 2, 1, 1]


def built(loss, env="PendulumEnv", **options):
    """The environment, the critic and the update that settings give."""
    options |= {"estimator": "td0", "v_min": -10.0, "num_atoms": 7, "hidden": (16, 8), "device": "cpu"}
    cfg = configuration.Config(loss=loss, **options)
    cfg.env.backend, cfg.env.name = ("torchrl", env) if env == "PendulumEnv" else ("gymnasium", env)
    env = train_ddpg.make_env(cfg.env, several=False)
    actor, critic = train_ddpg.make_networks(cfg, env)
    return env, critic, train_ddpg.make_update(cfg, train_ddpg.make_loss(cfg, actor, critic, env.action_spec_unbatched))


@pytest.mark.parametrize(
    ("loss", "kind", "delay", "critics", "first", "outputs"),
    [
        ("ddpg", DDPGLoss, 1, 1, 2, 1),
        ("td3", TD3Loss, 2, 2, 3, 1),
        ("td3-bc", TD3BCLoss, 2, 2, 3, 1),
        ("d4pg", D4PGLoss, 1, 1, 2, 7),
        ("fast-td3", FastTD3Loss, 2, 2, 3, 7),
        ("rebrac", ReBRACLoss, 2, 2, 3, 1),
    ],
)
def test_networks_and_delay_follow_the_loss(loss, kind, delay, critics, first, outputs):
    _, critic, update = built(loss)
    sizes = [tuple(weight.shape) for weight in critic.parameters() if weight.ndim == 2]
    assert (sizes[0], sizes[-1]) == ((16, first), (outputs, 8))
    assert type(update.loss) is kind
    assert update.policy_delay == delay
    held = [len(group["params"]) for group in update.critic_optimizer.param_groups]
    assert held == [critics * len(list(critic.parameters()))]
    _, _, update = built(loss, policy_delay=3, hard_interval=5)
    assert (update.policy_delay, type(update.target_updater)) == (3, HardUpdate)


@pytest.mark.parametrize("loss", ["ddpg", "td3", "d4pg", "fast-td3"])
def test_every_loss_that_collects_learns_from_pixels(loss):
    env, _, update = built(loss, "trainer_environments:image-v0")
    batch = env.rollout(2)
    assert (batch["observation_vector"].shape, batch["observation_vector"].dtype) == ((2, 3, 84, 84), torch.uint8)
    assert all(value.isfinite().all() for _ in range(2) for value in update(batch).values())


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 2.0), (-0.4, 0.4)])
def test_actions_are_squashed_as_torchrl_does(low, high):
    torch.manual_seed(0)  # no number so near 0 that a thousand times it is not at the bound
    param, low, high = torch.randn(5, 2), torch.full((2,), low), torch.full((2,), high)
    action = train_ddpg.Squash(low, high)(param)
    torch.testing.assert_close(action, TanhDelta(param, low=low, high=high).mode)
    torch.testing.assert_close(train_ddpg.Squash(low, high + 1)(1e3 * param.abs()), (high + 1).expand(5, 2))


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("count", [0, 1, 10, 13])
def test_as_many_minibatches_as_asked_for(monkeypatch, sampler, count):
    cfg = configuration.Config(device="cpu", replay=configuration.ReplayConfig(crop=1, batch=4, sampler=sampler))
    monkeypatch.setattr(train_ddpg.data, "PrioritizedSampler", lambda *_: RandomSampler())
    replay = train_ddpg.make_replay(cfg, False, 50)
    replay.extend(TensorDict({"observation_vector": torch.arange(50.0)}, [50]))
    drawn, sample = [], replay.sample
    monkeypatch.setattr(replay, "sample", lambda: drawn.append(1) or sample())
    assert [len(batch) for batch in train_ddpg.minibatches(cfg, replay, count)] == [4] * count
    assert len(drawn) == (count if sampler == "prioritised" else -(-count // 10))


@NEEDS_EXTENSION
def test_prioritised_minibatches_follow_the_seed():
    def draw(seed):
        replay_config = configuration.ReplayConfig(crop=1, batch=8, sampler="prioritised")
        cfg = configuration.Config(device="cpu", replay=replay_config, seed=seed)
        replay = train_ddpg.make_replay(cfg, False, 50)
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
    assert run(*words) == 0
    table = rows(tmp_path)
    assert [int(row["updates"]) for row in table] == [int(row["frames"]) - 50 for row in table]
    assert [int(row["frames"]) for row in table] == [100, 200, 300, 400]
    assert {float(row["staleness"]) for row in table[-2:]} == {max(staleness)}
    assert float(table[0]["staleness"]) == 0.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_core_is_left_to_the_collector_while_it_collects(device):
    collecting = object.__new__(collectors.Collecting)
    collecting.cfg = configuration.Config(collector="async", threads=2, device=device)
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for empty, threads in ((True, 1 if device == "cpu" else 2), (False, 2)):
            queue = types.SimpleNamespace(empty=lambda empty=empty: empty)
            collecting.collector = types.SimpleNamespace(queue_out=queue)
            collecting.share_threads()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(previous)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("name", "size"),
    [("bytes", 5), ("integer", 4), ("nested", 5), ("mixed-floats", 4), ("tuple", 5), ("matrix", 6), ("dictionary", 5)],
)
def test_all_that_is_observed_becomes_one_vector(name, size, count):
    cfg = configuration.EnvConfig(
        name=f"trainer_environments:{name}-v0", count=count, parallel=False, frame_skip=1, normalise=False
    )
    run = train_ddpg.make_env(cfg, several=count > 1).rollout(3, break_when_any_done=False)
    assert run["observation_vector"].shape[-1] == size
    assert run["observation_vector"].dtype == torch.float32
    assert run["observation_vector"].abs().sum(-1).all()


def test_images_of_any_size_become_three_small_grey_ones():
    cfg = configuration.EnvConfig(name="trainer_environments:image-v0", frame_skip=1)
    env = train_ddpg.make_env(cfg, several=False)
    run = env.rollout(4)
    seen = run["observation_vector"]
    assert (seen.shape[1:], seen.dtype) == ((3, 84, 84), torch.uint8)
    # the environment paints its step's number as a grey of 10 times it, over images of 96 x 120
    assert [image.unique().tolist() for image in seen[3]] == [[10], [20], [30]]
    assert [image.unique().tolist() for image in seen[0]] == [[0], [0], [0]]


@pytest.mark.parametrize("name", ["repeats-v0", "swallows-v0"])
def test_an_action_is_repeated_whatever_the_environment_makes_of_frameskip(name):
    cfg = configuration.EnvConfig(name=f"trainer_environments:{name}", frame_skip=3)
    run = train_ddpg.make_env(cfg, several=False).rollout(3)
    assert run["next", "reward"].flatten().tolist() == [3.0] * 3


@pytest.mark.parametrize("kind", ["ou", "gaussian"])
def test_noise_is_in_units_of_half_the_range(kind):
    half_range = torch.tensor([0.01, 5.0])
    cfg = configuration.Config(noise=configuration.NoiseConfig(kind, sigma=0.1, end=1.0), device="cpu")
    actor = TensorDictModule(lambda seen: torch.zeros(len(seen), 2), ["seen"], ["action"])
    policy, _ = train_ddpg.make_exploration(cfg, actor, Bounded(-half_range, half_range))
    start = {"seen": torch.zeros(20_000, 1), "is_init": torch.ones(20_000, 1, dtype=torch.bool)}
    with set_exploration_type(ExplorationType.RANDOM):
        action = policy(TensorDict(start, [20_000]))["action"]
    torch.testing.assert_close(action.std(0) / half_range, torch.tensor([0.1, 0.1]), rtol=0.05, atol=0)


def test_an_environment_that_never_ends_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(environments, "EPISODE_LIMIT", 50)
    words = ["--env.name", "trainer_environments:endless-v0", "--env.max-steps", 0, "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 1
    assert "an episode goes on after 50 actions; give --env.max-steps." in capsys.readouterr().err


def test_own_networks_are_trained(monkeypatch, tmp_path):
    words = ["--env.name", "Pendulum-v1", "--networks", "trainer_environments:make_networks", "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 0
    names = torch.load(tmp_path / "policy.pt", weights_only=True)["actor"]
    assert any("own_layer" in name for name in names)


@pytest.mark.parametrize("loss", ["ddpg", "td3", "d4pg", "fast-td3", "td3-bc", "rebrac"])
def test_critic_is_held_against_the_returns_that_followed(loss):
    _, _, update = built(loss)
    cfg = configuration.Config(gamma=0.5, device="cpu")
    rewards = torch.tensor([1.0, 1.0, 1.0]).unsqueeze(-1)
    run = TensorDict({"observation_vector": torch.zeros(3, 2), "action": torch.zeros(3, 1)}, [3])
    flags = {key: torch.tensor([[False], [False], [True]]) for key in ("done", "terminated")}
    run["next"] = {"observation_vector": torch.zeros(3, 2), "reward": rewards, **flags}
    known = run.clone().set(("next", "action"), torch.zeros(3, 1)).unsqueeze(0)
    value = update.loss.loss_value(known)[1]["pred_value"].mean().item()
    assert train_ddpg.overestimation(cfg, update.loss, run) == pytest.approx([value - (1.75 + 1.5 + 1.0) / 3], abs=1e-6)
    run["next", "terminated"] = torch.zeros(3, 1, dtype=torch.bool)  # cut off: too short to know what would follow
    assert train_ddpg.overestimation(cfg, update.loss, run) == []


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
    return configuration.Config(loss="td3-bc", offline_data=str(data), env=configuration.EnvConfig(**options))


def test_minari_episodes_become_transitions_within_episodes(minari):
    found = offline_data.load(offline_config("two/ends-v0"), train_ddpg.make_env)
    after = found["next"]
    assert found.shape == (10,)
    follows = (found["observation_vector"][1:] == after["observation_vector"][:-1]).all(-1).tolist()
    assert follows == [True] * 4 + [False] + [True] * 4
    ends = {key: after[key].flatten().nonzero().flatten().tolist() for key in environments.END_KEYS}
    assert ends == {"done": [4, 9], "terminated": [9], "truncated": [4]}
    first = minari.load_dataset("two/ends-v0")[0]
    np.testing.assert_allclose(after["reward"][:5, 0], first.rewards, rtol=1e-6)
    np.testing.assert_array_equal(found["action"][:5], first.actions)


def test_td3_bc_learns_from_minari_with_its_statistics(monkeypatch, tmp_path, minari):
    words = ["--offline-data", "two/ends-v0", "--output-dir", tmp_path / "out"]
    assert run(*OFFLINE, *words) == 0
    assert [(row["frames"], row["updates"]) for row in rows(tmp_path / "out")] == [
        ("0", "0"),
        ("100", "3"),
        ("200", "6"),
        ("300", "9"),
        ("400", "12"),
    ]
    assert len(evaluations(tmp_path / "out")) == 2
    seen = offline_data.load(offline_config("two/ends-v0"), train_ddpg.make_env)["observation_vector"]
    mean, deviation = torch.load(tmp_path / "out" / "policy.pt", weights_only=True)["statistics"]
    torch.testing.assert_close(mean, seen.mean(0))
    torch.testing.assert_close(deviation, seen.std(0))


@pytest.mark.parametrize("crop", [1, 2])
def test_td3_bc_learns_from_an_earlier_run_in_the_environments_units(monkeypatch, tmp_path, crop):
    scaled = ["--env.name", "Pendulum-v1", "--estimator", "td0", "--replay.crop", crop, "--env.reward-scale", "0.01"]
    for frames in ("600", "400"):  # the second replaces the first
        words = ["--total-frames", frames, "--output-dir", tmp_path / "first"]
        assert run(*SMALL, *SKIP, *scaled, *words) == 0
    found = offline_data.load(offline_config(tmp_path / "first"), train_ddpg.make_env)
    assert found.shape == (200,)
    assert set(found.keys()) == {"observation_vector", "action", "next"}
    for part in (found, found["next"]):
        cosine, sine, speed = part["observation_vector"].unbind(-1)
        torch.testing.assert_close(cosine**2 + sine**2, torch.ones(200))
        assert speed.abs().max() > 1.5
    assert found["next", "reward"].mean() < -1
    for words in ([], ["--loss", "rebrac", "--layer-norm", "--action-layer", "0"]):
        words += ["--offline-data", tmp_path / "first", "--output-dir", tmp_path / "second"]
        words += ["--init-random-frames", "400"]  # which nothing waits for, since nobody acts
        assert run(*OFFLINE, *words) == 0
        assert rows(tmp_path / "second")[-1]["updates"] == "12"


def test_data_that_a_run_would_remove_are_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert run(*OFFLINE, "--offline-data", tmp_path, "--output-dir", f"{tmp_path}/.") == 2
    assert "--offline-data and --output-dir are both" in capsys.readouterr().err


def test_images_of_ones_own_environment_are_asked_for():
    cfg = configuration.EnvConfig(name="trainer_environments:image-v0", from_pixels=True)
    assert environments.gymnasium_options(cfg, render=False) == {"render_mode": "rgb_array"}


def test_next_actions_of_an_earlier_run_are_those_that_followed(monkeypatch, tmp_path):
    words = ["--env.name", "Pendulum-v1", "--estimator", "td0", "--replay.crop", "1", "--output-dir", tmp_path]
    assert run(*SMALL, *SKIP, *words) == 0
    cfg = offline_config(tmp_path)
    everything = offline_data.load(cfg, train_ddpg.make_env)
    cfg.loss = "rebrac"
    found = offline_data.load(cfg, train_ddpg.make_env)
    assert 0 < len(everything) - len(found) < 30  # ends of episodes and of stretches
    following = {tuple(step["observation_vector"].tolist()): step["action"] for step in everything}
    for step in found:
        torch.testing.assert_close(
            step["next", "action"], following[tuple(step["next", "observation_vector"].tolist())]
        )


def test_offline_rewards_are_scaled_and_observations_normalised(minari):
    raw = offline_data.load(offline_config("two/ends-v0"), train_ddpg.make_env)
    trained_on = offline_data.as_trained_on(raw.clone(), environments.statistics(raw["observation_vector"]), 0.5)
    torch.testing.assert_close(trained_on["next", "reward"], raw["next", "reward"] * 0.5)
    seen = trained_on["observation_vector"]
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(3))


@pytest.mark.parametrize(
    ("data", "words", "sentence"),
    [
        ("no/such-v0", "", "is no folder and no Minari dataset on this machine; those are: dict/seen-v0, two/ends-v0."),
        (".", "", "No such file or directory: 'config.yaml' (accepted: the folder of an earlier run, or the id of"),
        ("dict/seen-v0", "", "its observations or actions are a dict or a tuple of arrays, not one array"),
        (
            "two/ends-v0",
            "--env.name MountainCarContinuous-v0",
            "has observations of shape (3,); (2,) is that of --env.name MountainCarContinuous-v0: name the environment",
        ),
    ],
)
def test_unfit_data_is_told_in_one_sentence(monkeypatch, capsys, tmp_path, minari, data, words, sentence):
    status = run(*OFFLINE, "--offline-data", data, *words.split(), "--output-dir", tmp_path / "out")
    error = capsys.readouterr().err
    assert status == 1
    assert sentence in error
    assert len(error.strip().splitlines()) == 1


def test_actions_of_another_shape_are_refused(monkeypatch, minari):
    episode = offline_data.to_transitions(minari.load_dataset("two/ends-v0")[0])
    episode["action"] = torch.zeros(5)
    monkeypatch.setattr(offline_data, "read_minari", lambda _: episode)
    with pytest.raises(UserError, match=r"has actions of shape \(\); \(1,\) is that of"):
        offline_data.load(offline_config("two/ends-v0"), train_ddpg.make_env)


def test_absent_minari_is_refused(monkeypatch):
    monkeypatch.setattr(offline_data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'minari\[hdf5\]'\.$"):
        offline_data.load(offline_config("two/ends-v0"), train_ddpg.make_env)


@pytest.mark.slow
def test_pendulum_preset_learns(monkeypatch, tmp_path):
    assert run("pendulum", "--output-dir", tmp_path) == 0
    assert evaluations(tmp_path)[-1] > -300  # random actions get about -1,200; docs/results.md has the measured figures

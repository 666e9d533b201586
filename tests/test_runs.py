"""What happens to runs of the trainer: resumed, killed, out of disk, with dying workers and failing environments."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation
from torchrl.record.loggers import utils as logger_utils

import test_examples
from test_examples import EXAMPLES, NEEDS_EXTENSION, SKIP, group_ends, rows, run
from test_examples import SMALL as SHORT
from trainer import checkpoints, collectors
from trainer.policies import DeployedPolicy

evaluate = pytest.importorskip("evaluate", exc_type=ImportError)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals"),
]
SMALL = [*SHORT, *SKIP]
EVERY_BATCH = shlex.split("--eval.interval 100 --eval.episodes 1 --checkpoint.interval 100")


def table(folder, first=0):
    """The rows of metrics.csv after so many frames, without times."""
    kept = [{key: row[key] for key in row if "second" not in key} for row in rows(folder)]
    return [row for row in kept if int(row["frames"]) >= first]


@pytest.mark.parametrize(
    "words",
    [
        "--env.backend torchrl --noise.kind ou",
        "--env.backend torchrl --loss td3 --noise.kind gaussian --estimator td0 --replay.crop 1 --update record",
        pytest.param("--env.backend torchrl --replay.sampler prioritised --hard-interval 4", marks=NEEDS_EXTENSION),
    ],
)
def test_resumed_run_equals_an_uninterrupted_one_to_the_bit(monkeypatch, tmp_path, words):
    words = [*SMALL, *words.split(), *EVERY_BATCH]
    assert run(*words, "--output-dir", tmp_path / "whole") == 0
    keep, saved = shutil.copytree, checkpoints.Checkpoints.save

    def copy_at_half(self):
        saved(self)
        if self.records.frames == 200:
            keep(self.folder, tmp_path / "half")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", copy_at_half)
    assert run(*words, "--output-dir", tmp_path / "first") == 0
    assert [row["frames"] for row in rows(tmp_path / "half")][-1] == "200"
    assert run("--resume", tmp_path / "half") == 0
    assert table(tmp_path / "half") == table(tmp_path / "whole")
    assert float(table(tmp_path / "half", 300)[0]["loss_value"]) > 0
    for name in ("policy.pt", "best_policy.pt"):
        ours, theirs = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("half", "whole"))
        assert all(torch.equal(ours["actor"][key], theirs["actor"][key]) for key in theirs["actor"])


def test_finished_run_goes_on_for_more_frames(monkeypatch, tmp_path):
    words = [*SMALL, "--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path]
    assert run(*words) == 0
    updates = int(rows(tmp_path)[-1]["updates"])
    assert run("--resume", tmp_path, "--total-frames", "600") == 0
    assert [row["frames"] for row in rows(tmp_path)] == [str(frames) for frames in range(0, 601, 100)]
    assert int(rows(tmp_path)[-1]["updates"]) == updates + 6
    assert len(checkpoints.read_transitions(tmp_path).reshape(-1)) == 300


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--gamma 0.5", "--gamma was 0.99 in"),
        ("--replay.batch 9", "--replay.batch was 8 in"),
        ("--env.name Hopper-v5", "--env.name was Pendulum-v1 in"),
    ],
)
def test_contradiction_of_the_run_so_far_is_refused(monkeypatch, capsys, tmp_path, words, sentence):
    (tmp_path / "config.yaml").write_text(finished_run(tmp_path / "run").read_text())
    assert run("--resume", tmp_path, *words.split()) == 2
    error = capsys.readouterr().err
    assert sentence in error
    free = "--checkpoint, --collector.timeout, --eval, --logger, --offline-data, --threads, --total-frames"
    assert f"what can change: {free}." in error


def test_a_folder_without_a_checkpoint_cannot_be_resumed(monkeypatch, capsys, tmp_path):
    config = finished_run(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(config.read_text())
    assert run("--resume", tmp_path) == 1
    assert "no checkpoint is there; accepted: a run's output folder." in capsys.readouterr().err


def finished_run(folder):
    words = [*SMALL, "--env.name", "Pendulum-v1", "--total-frames", "200", "--output-dir", folder]
    assert run(*words) == 0
    return folder / "config.yaml"


def start(tmp_path, *words, before=()):
    """The trainer in a session of its own, its output in a file, once its first checkpoint is there."""
    command = [*before, sys.executable, str(EXAMPLES / "train_ddpg.py"), *map(str, words)]
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def heed_signals():  # even where the tests themselves run under nohup or in the background
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    with (tmp_path / "log").open("a") as log:
        streams = {"stdout": log, "stderr": log}
        return subprocess.Popen(command, start_new_session=True, preexec_fn=heed_signals, env=env, **streams)


def wait_for(condition, process, tmp_path, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (tmp_path / "log").read_text()[-2_000:]
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2_000:]
        time.sleep(0.05)


ENDLESS = [*SMALL, *EVERY_BATCH, "--env.name", "Pendulum-v1", "--total-frames", "1000000"]


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("--env.no-parallel", signal.SIGINT),
        pytest.param("--env.parallel", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("--collector async --env.no-parallel", signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(
            "--env.no-parallel --env.name trainer_environments:image-v0", signal.SIGTERM, marks=pytest.mark.slow
        ),
    ],
)
def test_a_signal_saves_and_ends_everything(tmp_path, words, number):
    out = tmp_path / "out"
    process = start(tmp_path, *ENDLESS, *words.split(), "--output-dir", out)
    wait_for(lambda: (out / "checkpoints").exists(), process, tmp_path)
    send = os.killpg if number == signal.SIGINT else os.kill  # a terminal sends Ctrl-C to the workers too
    send(process.pid, number)
    assert process.wait(60) == 128 + number
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert all((out / name).exists() for name in ("policy.pt", "policy.pt2", "learning_curve.png"))
    assert group_ends(process.pid, seconds=10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nohup") is None, reason="needs nohup")
def test_a_run_under_nohup_outlives_its_terminal(tmp_path):
    out = tmp_path / "out"
    process = start(tmp_path, *ENDLESS, "--env.no-parallel", "--output-dir", out, before=["nohup"])
    wait_for(lambda: (out / "checkpoints").exists(), process, tmp_path)
    os.kill(process.pid, signal.SIGHUP)
    size = (out / "metrics.csv").stat().st_size
    wait_for(lambda: (out / "metrics.csv").stat().st_size > size + 1_000, process, tmp_path)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_ten_times(tmp_path):
    draw, out, frames = random.Random(0), tmp_path / "out", []
    process = start(tmp_path, *ENDLESS, "--collector", "async", "--env.no-parallel", "--output-dir", out)
    rotation = CheckpointRotation(out / "checkpoints", keep_last=1)
    wait_for(rotation.latest, process, tmp_path)
    for _ in range(10):
        latest = rotation.latest()
        wait_for(lambda latest=latest: rotation.latest() != latest, process, tmp_path)  # it has gone on
        time.sleep(draw.uniform(0, 0.7))
        process.kill()
        process.wait()
        assert group_ends(process.pid, seconds=10)  # no worker outlives it
        assert Checkpoint.is_checkpoint(rotation.latest())
        frames.append(int(rotation.latest().name.split("-")[-1]))
        process = start(tmp_path, "--resume", out)
    wait_for(lambda: int(rotation.latest().name.split("-")[-1]) > frames[-1], process, tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert frames == sorted(set(frames))
    assert not list((out / "checkpoints").glob(".*.stage-*"))  # halves of checkpoints
    counted = [int(row["frames"]) for row in rows(out)]
    assert counted == sorted(set(counted))


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--collector async --env.no-parallel", "--collector sync --env.parallel"])
def test_a_worker_that_dies_ends_in_a_sentence_and_a_checkpoint(tmp_path, words):
    out = tmp_path / "out"
    process = start(tmp_path, *ENDLESS, *words.split(), "--output-dir", out)
    wait_for(lambda: (out / "checkpoints").exists(), process, tmp_path)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    assert process.wait(60) == 1
    assert "train_ddpg.py: collecting failed: a worker process died." in (tmp_path / "log").read_text()
    assert (out / "policy.pt2").exists()
    assert group_ends(process.pid, seconds=10)


def test_a_batch_that_never_comes_ends_in_a_sentence(monkeypatch, capsys, tmp_path):
    make = collectors.collectors.Collector

    class Hanging(make):
        def __iter__(self):
            yield from (batch for batch, _ in zip(super().__iter__(), range(2), strict=False))
            time.sleep(60)

    monkeypatch.setattr(collectors.collectors, "Collector", Hanging)
    words = ["--env.name", "Pendulum-v1", "--collector.timeout", "2", "--output-dir", tmp_path]
    began = time.monotonic()
    assert run(*SMALL, *words) == 1
    assert time.monotonic() - began < 50
    assert "collecting failed: nothing came for 2 seconds (--collector.timeout)." in capsys.readouterr().err
    assert CheckpointRotation(tmp_path / "checkpoints", keep_last=1).latest().name.endswith("200")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("raises-later", "collecting failed: the motor is off."),
        ("nan-later", "collecting failed: the environment returned NaN or infinity in"),
    ],
)
def test_a_failing_environment_ends_in_a_sentence_and_a_checkpoint(monkeypatch, capsys, tmp_path, name, sentence):
    words = ["--env.name", f"trainer_environments:{name}-v0", "--env.frame-skip", 1, "--output-dir", tmp_path]
    monkeypatch.setattr(test_examples.train_ddpg, "measure", lambda *_: (0.0, None))
    assert run(*SMALL, "--eval.interval", 0, *words, "--total-frames", 1000) == 1
    assert sentence in capsys.readouterr().err
    kept = checkpoints.read_transitions(tmp_path).reshape(-1)
    assert 200 <= len(kept) < 400
    assert kept["observation_vector"].isfinite().all()


@pytest.mark.parametrize(("name", "wrong"), [("raises-later", "evaluating failed: the motor is off."), ("nan", None)])
def test_an_evaluation_that_fails_loses_nothing(monkeypatch, capsys, tmp_path, name, wrong):
    monkeypatch.setattr(test_examples.train_ddpg, "measure", lambda *_: (0.0, None))
    if wrong is None:
        evaluated = test_examples.train_ddpg.evaluate
        nan = {"eval_return": float("nan")}
        monkeypatch.setattr(test_examples.train_ddpg, "evaluate", lambda *args, **more: evaluated(*args, **more) | nan)
    words = ["--env.name", "trainer_environments:raises-later-v0" if wrong else "Pendulum-v1", "--env.frame-skip", 1]
    words += ["--eval.interval", 50, "--eval.episodes", 10, "--total-frames", 200, "--output-dir", tmp_path]
    assert run(*SMALL, *words) == (1 if wrong else 0)
    assert (wrong or "with the trained policy") in "".join(capsys.readouterr())
    assert len(checkpoints.read_transitions(tmp_path).reshape(-1)) == (50 if wrong else 200)
    assert (tmp_path / "best_policy.pt").exists() is bool(wrong)
    assert (tmp_path / "policy.pt2").exists()


def test_a_resumption_that_would_lose_something_is_refused(capsys, tmp_path):
    words = [*SMALL, "--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path]
    assert run(*words) == 0
    assert run("--resume", tmp_path, "--total-frames", 200, "--init-random-frames", 100) == 1
    assert "--total-frames 200 is below the 400 frames that are in" in capsys.readouterr().err
    assert "total_frames: 400" in (tmp_path / "config.yaml").read_text()
    assert run("--resume", tmp_path) == 0
    assert len(checkpoints.read_transitions(tmp_path).reshape(-1)) == 200


def test_a_run_that_was_stopped_before_its_first_row_can_be_resumed(tmp_path):
    words = [*SMALL, "--env.name", "Pendulum-v1", "--eval.interval", 0, "--output-dir", tmp_path]
    assert run(*words, "--checkpoint.interval", 100) == 0
    half = checkpoints.Checkpoints.load

    def without_rows(self, *names):
        half(self, *names)
        if names == ("records",):
            self.records.rows = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "load", without_rows)
        assert run("--resume", tmp_path, "--total-frames", 500) == 0
    assert [row["frames"] for row in rows(tmp_path)] == ["500"]


@NEEDS_EXTENSION
def test_prioritised_run_of_another_length_is_refused_and_can_still_be_resumed(capsys, tmp_path):
    words = ["--env.name", "Pendulum-v1", "--replay.sampler", "prioritised", "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 0
    assert run("--resume", tmp_path, "--total-frames", 800) == 2
    assert "a prioritised replay buffer cannot change its size." in capsys.readouterr().err
    assert run("--resume", tmp_path) == 0


def test_what_cannot_be_written_is_told_in_a_sentence(monkeypatch, capsys, tmp_path):
    def full(content, path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    assert run(*SMALL, "--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path) == 1
    assert "no checkpoint could be written into" in capsys.readouterr().err.splitlines()[-1]


def test_a_policy_that_cannot_be_exported_ends_no_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    assert run(*SMALL, "--env.name", "Pendulum-v1", "--output-dir", tmp_path) == 0
    assert "policy.pt2 is not written, because torch.export cannot follow" in capsys.readouterr().out
    assert (tmp_path / "learning_curve.png").exists()


def test_a_run_on_ones_own_environment_can_be_evaluated(monkeypatch, capsys, tmp_path):
    (tmp_path / "robots.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "if 'Robot-v0' not in gymnasium.registry:\n"
        "    gymnasium.register('Robot-v0', entry_point=PendulumEnv, max_episode_steps=20)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--env.name", "robots:Robot-v0", "--output-dir", "out") == 0
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    sys.modules.pop("robots")
    assert evaluate.main(["out", "--episodes", "1"]) == 0
    assert "return of 1 episodes" in capsys.readouterr().out


def test_full_disk_ends_in_a_sentence_and_leaves_the_last_checkpoint(monkeypatch, capsys, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    written, save = [], checkpoints.CheckpointRotation.save

    def fills_the_disk(self, *args, **options):
        written.append(save(self, *args, **options))
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        return written[-1]

    monkeypatch.setattr(checkpoints.CheckpointRotation, "save", fills_the_disk)
    words = ["--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 1
    error = capsys.readouterr().err
    assert "no room for a checkpoint in" in error
    assert f"go on with --resume {tmp_path}." in error
    assert len(written) == 1
    monkeypatch.undo()
    assert run("--resume", tmp_path) == 0
    assert rows(tmp_path)[-1]["frames"] == "400"


def test_nothing_of_an_earlier_run_stays_beside_the_next(monkeypatch, tmp_path):
    finished_run(tmp_path)
    monkeypatch.setattr(test_examples.train_ddpg, "make_update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*SMALL, "--env.name", "Hopper-v5", "--output-dir", tmp_path)
    assert "Pendulum" in (tmp_path / "config.yaml").read_text()  # the earlier run is whole until the next begins
    monkeypatch.undo()
    monkeypatch.setattr(collectors.Collecting, "__iter__", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*SMALL, "--env.name", "Hopper-v5", "--eval.interval", 0, "--output-dir", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.csv"]


def test_exported_policy_equals_the_live_one(monkeypatch, tmp_path):
    words = ["--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 0
    program = torch.export.load(tmp_path / "policy.pt2").module()
    _, env, actor, statistics = evaluate.load(tmp_path)
    seen = torch.randn(1_000, 3) * torch.tensor([1.0, 1.0, 8.0])
    live = DeployedPolicy(actor, statistics)(seen)
    torch.testing.assert_close(program(seen), live, atol=1e-6, rtol=0)
    normalised = (seen - statistics[0]) / statistics[1]
    torch.testing.assert_close(live, actor(observation_vector=normalised), atol=1e-6, rtol=0)
    assert live.std() > 0
    raw = env.base_env.rollout(1)["observation"]
    assert program(raw).shape == (1, 1)


def test_ten_lines_of_the_docs_use_the_exported_policy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--env.name", "Pendulum-v1", "--env.frame-skip", 1) == 0
    page = (EXAMPLES.parent / "docs" / "trainer.md").read_text()
    names = {}
    exec(page.split("```{code-block} python")[1].split("```")[0], names)
    assert -2_500 < names["total"] < 0


def test_evaluate_prints_records_and_exports(monkeypatch, capsys, tmp_path):
    words = ["--env.name", "Pendulum-v1", *EVERY_BATCH, "--output-dir", tmp_path]
    assert run(*SMALL, *words) == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    files = ["--video", tmp_path / "episode.gif", "--onnx", tmp_path / "policy.onnx"]
    assert evaluate.main([str(word) for word in (tmp_path, "--episodes", 2, *files)]) == 0
    assert "return of 2 episodes: -" in capsys.readouterr().out
    assert (tmp_path / "episode.gif").read_bytes()[:3] == b"GIF"
    seen = torch.randn(7, 3)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    action = torch.from_numpy(session.run(None, {"observation": seen.numpy()})[0])
    torch.testing.assert_close(action, torch.export.load(tmp_path / "policy.pt2").module()(seen), atol=1e-5, rtol=0)


def test_evaluate_tells_what_is_missing(capsys, tmp_path):
    assert evaluate.main([str(tmp_path / "none")]) == 2
    assert "(accepted: the output folder of a run)." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "mlflow", "csv"])
def test_logger_takes_every_row(monkeypatch, tmp_path, name):
    for package in {"csv": ("csv",), "wandb": ("wandb",), "mlflow": ("mlflow", "omegaconf")}[name]:
        pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    logged = []
    kinds = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger", "csv": "CSVLogger"}
    kind = getattr(logger_utils, kinds[name], None) or getattr(sys.modules["torchrl.record.loggers"], kinds[name])
    log = kind.log_scalar
    monkeypatch.setattr(
        kind, "log_scalar", lambda self, key, *rest, **more: logged.append(key) or log(self, key, *rest, **more)
    )
    words = ["--env.name", "Pendulum-v1", "--logger", name, "--output-dir", tmp_path / "out"]
    assert run(*SMALL, *words) == 0
    assert logged.count("loss_value") == sum(row["loss_value"] != "" for row in rows(tmp_path / "out"))
    assert logged.count("eval_return") == 3


@pytest.mark.slow
def test_two_ray_workers_on_a_local_cluster(tmp_path):
    pytest.importorskip("ray")
    out, ray = tmp_path / "out", ["--collector", "ray", "--collector.workers", "2"]
    process = start(tmp_path, *SMALL, "--env.name", "Pendulum-v1", *ray, "--output-dir", out)
    status, written = process.wait(300), (tmp_path / "log").read_text()
    assert status == 0, written[-2_000:]
    assert rows(out)[-1]["frames"] == "400"
    # Without this, what TorchRL prints of its collectors in Ray's workers: 170 lines.
    assert not [line for line in written.splitlines() if "pid=" in line or "Warning" in line], written


def test_help_is_there_before_pytorch_is():
    command = [sys.executable, "-X", "importtime", str(EXAMPLES / "train_ddpg.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "usage: train_ddpg.py [tutorial | mujoco | pendulum]" in result.stdout
    assert "| torch" not in result.stderr
    assert "tyro" in result.stderr

"""The command line of ``train_ddpg.py``: what it accepts, and checks that refuse what cannot work before any work."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import typing
import warnings
from importlib import import_module
from pathlib import Path

import tyro
import yaml

from trainer.configuration import PRESETS, Config, Range
from trainer.errors import UserError, refusing

NAMES = {"gymnasium": "HalfCheetah-v5", "dm-control": "cheetah-run", "torchrl": "PendulumEnv"}
FREE_TO_CHANGE = {"total_frames", "threads", "timeout", "logger", "eval", "checkpoint"}
FREE_TO_CHANGE |= {"output_dir", "resume", "offline_data"}  # folders, which may have been moved
OFFLINE, CATEGORICAL = ("td3-bc", "rebrac"), ("d4pg", "fast-td3")
SWITCHES = ["0", "1", "off", "on", "false", "true", "disable", "enable", "disabled", "enabled"]
RENDERERS = {"", "egl", "glfw", "osmesa", "cgl", "wgl", *SWITCHES}


def parse(words: list[str]) -> Config:
    """The configuration that the words ask for; ends the process with one sentence and status 2 if they cannot be."""
    try:
        words, preset = list(words), None
        if words and not words[0].startswith("-"):
            preset = words.pop(0)
            if preset not in PRESETS:
                raise UserError(f"{preset} is not a preset; accepted: {', '.join(PRESETS)}.")
        default = PRESETS[preset or "tutorial"]
        folder = resumed_folder(words)
        if folder is not None:
            if preset:
                raise UserError(f"--resume takes its settings from {folder}; leave {preset} out.")
            default = read_config(folder)
        if "" in words:  # as a path it would be the current folder
            raise UserError(f'{words[words.index("") - 1]} "" says nothing; leave it out, or give it a value.')
        prog = f"train_ddpg.py [{' | '.join(PRESETS)}]"
        cfg = tyro.cli(Config, default=default, args=words, prog=prog)
        check_numbers(cfg)
        if folder is not None:
            check_resumed(default, cfg)
            cfg.output_dir = folder
        check_combinations(cfg)
        return cfg
    except UserError as error:
        print(f"train_ddpg.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def resumed_folder(words: list[str]) -> Path | None:
    """The folder that ``--resume`` names."""
    for i, word in enumerate(words):
        if word == "--resume" and i + 1 < len(words):
            return Path(words[i + 1])
        if word.startswith("--resume="):
            return Path(word.removeprefix("--resume="))
    return None


def read_config(folder: Path, flag: str = "--resume ") -> Config:
    """The configuration that a run has written into its folder."""
    with refusing(f"{flag}{folder}", "accepted: the output folder of a run"):
        return from_plain(Config, yaml.safe_load((folder / "config.yaml").read_text()))


def from_plain(kind, plain: dict):
    """A configuration from what :func:`trainer.records.to_plain` made of it."""
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        value, hint = plain[field.name], hints[field.name]
        if dataclasses.is_dataclass(hint):
            value = from_plain(hint, value)
        elif isinstance(value, list):
            value = tuple(value)
        elif Path in typing.get_args(hint) and value is not None:
            value = Path(value)
        values[field.name] = value
    return kind(**values)


def flag(name: str, prefix: str = "--") -> str:
    """How a setting is spelt on the command line."""
    return prefix + {"workers": "collector.workers", "timeout": "collector.timeout"}.get(name, name.replace("_", "-"))


def check_resumed(before: Config, now: Config) -> None:
    """Refuse a setting that contradicts what the run has done so far."""
    sizes = {min(cfg.replay.frames, cfg.total_frames) for cfg in (before, now)}
    if now.replay.sampler == "prioritised" and len(sizes) > 1:
        raise UserError(
            f"--total-frames was {before.total_frames} in {now.resume} and cannot become {now.total_frames}: a "
            f"prioritised replay buffer cannot change its size."
        )
    for field in dataclasses.fields(Config):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if field.name not in FREE_TO_CHANGE and old != new:
            if dataclasses.is_dataclass(old):
                inner = next(f.name for f in dataclasses.fields(old) if getattr(old, f.name) != getattr(new, f.name))
                name, old, new = f"--{field.name}.{flag(inner, '')}", getattr(old, inner), getattr(new, inner)
            else:
                name = flag(field.name)
            free = ", ".join(sorted(flag(name) for name in FREE_TO_CHANGE - {"resume", "output_dir"}))
            raise UserError(f"{name} was {old} in {now.resume} and cannot become {new}; what can change: {free}.")


def check_numbers(cfg, prefix: str = "--") -> None:
    """Refuse numbers out of range."""
    hints = typing.get_type_hints(type(cfg), include_extras=True)
    for name, value in vars(cfg).items():
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{prefix}{name}.")
            continue
        hint, numbers = hints[name], [value]
        if isinstance(value, tuple):
            hint, numbers = typing.get_args(hint)[0], value
        allowed = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)]
        for number in numbers if allowed else ():
            if not allowed[0].accepts(number):
                raise UserError(f"{flag(name, prefix)} {number} is out of range; accepted: {allowed[0]}.")


def check_combinations(cfg: Config) -> None:
    """Refuse settings that contradict each other, and fill in the names that were left open."""
    env, td0, offline = cfg.env, cfg.estimator == "td0", cfg.loss in OFFLINE
    env.name = env.name or NAMES[env.backend]
    single = cfg.replay.crop == 1 and cfg.n_steps == 1
    data = "the folder of an earlier run, or the id of a Minari dataset on this machine"
    renderer = os.environ.get("MUJOCO_GL", "").lower()
    support = f"--loss {cfg.loss} needs --v-min below --v-max: the range of discounted returns, in scaled rewards"
    last = cfg.action_layer == 1 or (cfg.action_layer is None and cfg.loss in ("ddpg", "d4pg"))
    for right, sentence in (
        (td0 or cfg.loss not in CATEGORICAL, f"--loss {cfg.loss} goes with --estimator td0 alone"),
        (cfg.v_min < cfg.v_max or cfg.loss not in CATEGORICAL, support),
        (cfg.offline_data or not offline, f"--loss {cfg.loss} needs --offline-data: {data}"),
        (offline or not cfg.offline_data, "--offline-data goes with --loss td3-bc or rebrac"),
        ((td0 and single) or not offline, f"--loss {cfg.loss} needs --estimator td0 --replay.crop 1 --n-steps 1"),
        (not env.from_pixels or not offline, f"--env.from-pixels does not go with --loss {cfg.loss}"),
        (cfg.loss in ("ddpg", "d4pg") or not last, f"--loss {cfg.loss} goes with --action-layer 0 alone"),
        (not (cfg.layer_norm and (last or env.from_pixels)), "--layer-norm goes with --action-layer 0 and states"),
        (td0 or cfg.replay.crop > 1, "--replay.crop 1 goes with --estimator td0 alone"),
        (td0 or cfg.n_steps == 1, "--n-steps above 1 goes with --estimator td0 alone"),
        (cfg.hidden, "--hidden is empty; accepted: one width or more"),
        (cfg.replay.crop <= cfg.steps_per_batch, "--replay.crop is above --steps-per-batch; accepted: at most it"),
        (
            cfg.init_random_frames <= cfg.total_frames or offline,
            "--init-random-frames is above --total-frames; accepted: at most it",
        ),
        (env.max_steps or env.backend != "torchrl", "--env.max-steps 0: TorchRL's environments never end"),
        (cfg.workers == 1 or cfg.collector != "sync", "--collector.workers goes with --collector async or ray"),
        (cfg.device != "cpu" or cfg.update != "cuda-graph", "--update cuda-graph goes with --device cuda or auto"),
        (renderer in RENDERERS, f"MUJOCO_GL={renderer} is no renderer; accepted: egl, glfw, osmesa"),
    ):
        if not right:
            raise UserError(f"{sentence}.")
    if cfg.output_dir is None:
        cfg.output_dir = Path("outputs") / f"{env.name.replace(':', '-')}-{cfg.loss}-{cfg.seed}"
    if offline:
        cfg.init_random_frames = 0  # nobody acts, so learning begins at once
        if (Path(cfg.offline_data) / "config.yaml").exists():
            cfg.offline_data = str(Path(cfg.offline_data).resolve())
            if Path(cfg.offline_data) == cfg.output_dir.resolve():
                raise UserError(
                    f"--offline-data and --output-dir are both {cfg.output_dir}: that run would be removed."
                )


def run(train, cfg: Config) -> int:
    """Check and train; the exit status is 2 after a mistake, 1 after a failure, 128 + its number after a signal."""
    sys.path.insert(1, os.getcwd())  # where the user's own environments and networks are looked for
    import_module("torchrl").logger.setLevel("ERROR")
    warnings.filterwarnings("ignore", module="glfw")  # dm_control tries it even where there is no screen
    stop, received = threading.Event(), []

    def end(number, _) -> None:
        if received:  # the second time, at once
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # what nohup has set
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    status = 2
    try:
        import_module("trainer.checks").check(cfg)
        for number in signals:
            signal.signal(number, end)
        status = 1
        print(f"{cfg.loss} on {cfg.env.name} for {cfg.total_frames:,} frames, into {cfg.output_dir}", flush=True)
        train(cfg, stop)
        return 128 + received[0] if received else 0
    except UserError as error:
        print(f"train_ddpg.py: {error}", file=sys.stderr)
        return status
    except OSError as error:
        print(f"train_ddpg.py: {error}; the last checkpoint is in {cfg.output_dir}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

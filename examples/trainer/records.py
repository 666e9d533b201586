"""What a run writes down: metrics.csv, a line on the terminal, a curve, the policy, and TorchRL's loggers."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
import shutil
import time
from pathlib import Path

import torch
import tqdm
import yaml
from matplotlib.figure import Figure
from torchrl.record.loggers import get_logger

from trainer.errors import UserError, refusing

NOTED = (
    "reward",
    "train_return",
    "train_length",
    "loss_value",
    "loss_actor",
    "target_value",
    "grad_norm_critic",
    "grad_norm_actor",
    "pred_value",
    "target_outside_support",
    "actor_saturation",
    "target_saturation",
    "staleness",
)
EVALUATED = ("eval_return", "eval_std", "eval_length", "overestimation", "saturated_actions")
COUNTED = ("updates", "seconds", "frames_per_second", "updates_per_second")
COLUMNS = ("frames", *EVALUATED, *NOTED, *COUNTED)
POLICIES = ("policy.pt", "best_policy.pt", "policy.pt2")
RESULTS = ("config.yaml", "metrics.csv", "learning_curve.png", *POLICIES, "checkpoints", "log")


def write_atomically(path: Path, write) -> None:
    """Let ``write(temporary)`` write the file and put it into place in one step, so that no half of it is ever seen."""
    temporary = path.with_name(f".new-{path.name}")
    try:
        with refusing(f"{path} could not be written"):  # torch.save raises its own errors when a disk is full
            write(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_plain(cfg) -> dict:
    """The configuration as numbers, words, lists and dictionaries."""
    plain = dataclasses.asdict(cfg)
    for key, value in plain.items():
        plain[key] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def to_flat(plain: dict, prefix: str = "") -> dict:
    """Numbers and words alone, under names such as ``env.count``."""
    flat = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat |= to_flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def clear(folder: Path) -> None:
    """Remove an earlier run's results, so that no two runs' files lie side by side."""
    for name in RESULTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Records(contextlib.AbstractContextManager):
    """Counts, and means of what was noted since the last row.

    Args:
        cfg: the configuration, with ``output_dir``.
    """

    def __init__(self, cfg) -> None:
        self.cfg, self.random_return, self.statistics = cfg, 0.0, None  # what random actions return, and what they see
        self.frames, self.updates, self.rows = 0, 0, []
        self.noted, self.best, self.latest, self.evaluation = {}, None, None, {}
        self.owed = 0  # updates that collected batches have brought and that are still to be made
        self.sent, self.acting = 0, 0  # updates that the policy's weights had seen: the last ones sent, the ones in use
        self.began, self.before = time.monotonic(), 0.0

    def __enter__(self) -> Records:
        """Begin: write the configuration and what an earlier part of the run recorded."""
        cfg, plain = self.cfg, yaml.safe_dump(to_plain(self.cfg), sort_keys=False)
        if not cfg.resume:
            clear(cfg.output_dir)
        write_atomically(cfg.output_dir / "config.yaml", lambda path: path.write_text(plain))
        self.file = (cfg.output_dir / "metrics.csv").open("w", newline="")
        self.csv = csv.DictWriter(self.file, COLUMNS)
        self.csv.writeheader()
        self.csv.writerows(self.rows)
        self.file.flush()
        self.logger = None
        if cfg.logger != "none":
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # what TorchRL's logger writes into
            self.logger = get_logger(cfg.logger, str(cfg.output_dir / "log"), cfg.output_dir.name)
            self.logger.log_hparams(to_flat(to_plain(cfg)))
        self.bar = tqdm.tqdm(total=cfg.total_frames, initial=self.frames, unit=" frames", dynamic_ncols=True)
        return self

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resumption included."""
        return self.before + time.monotonic() - self.began

    @property
    def batch_frames(self) -> int:
        """Frames of a collected batch."""
        return self.cfg.steps_per_batch * self.cfg.env.count * self.cfg.env.frame_skip

    def note(self, **values) -> None:
        """Add to the means of the next row; TD3 calls the critics' loss `loss_qvalue`."""
        for key, value in values.items():
            key = "loss_value" if key == "loss_qvalue" else key
            if key in NOTED:
                self.noted.setdefault(key, []).append(value.mean() if value.ndim else value)

    def updated(self, **metrics) -> None:
        """Count an update and note its metrics."""
        self.updates, self.owed = self.updates + 1, self.owed - 1
        self.note(**metrics)

    def collected(self, batch) -> None:
        """Count a batch; note its rewards and the returns of the episodes that ended in it. None: nothing collected."""
        env = self.cfg.env
        self.frames += self.batch_frames
        self.bar.update(self.batch_frames)
        if batch is None:
            return
        after = batch["next"]
        self.note(reward=after["reward"] / env.reward_scale)
        # Asynchronously, the next batch begins with what was sent before this one came; synchronously, after it.
        acted_with, self.acting = self.sent if self.cfg.collector == "sync" else self.acting, self.sent
        self.note(staleness=torch.tensor(self.updates - acted_with))
        if after["done"].any():
            self.note(train_return=after["episode_reward"][after["done"]])
            self.note(train_length=after["step_count"][after["done"]].float() * env.frame_skip)

    def check_length(self) -> None:
        """Refuse to go on to fewer frames than there are, which would cut the replay buffer."""
        if self.cfg.total_frames <= self.frames - self.batch_frames:
            raise UserError(
                f"--total-frames {self.cfg.total_frames:,} is below the {self.frames:,} frames that are in "
                f"{self.cfg.output_dir}; accepted: more, counted from the start of the run."
            )

    def passed(self, every: int) -> bool:
        """Whether the last batch passed a multiple of ``every`` frames, or was the last one; 0 = never."""
        return every > 0 and (self.finished or self.frames // every > (self.frames - self.batch_frames) // every)

    @property
    def finished(self) -> bool:
        """Whether all frames are there."""
        return self.frames >= self.cfg.total_frames

    def evaluated(self, result: dict, actor) -> None:
        """Keep an evaluation for the next row, and the policy if it is the best so far; {}: it was ended early."""
        if not result:
            return
        self.evaluation = result
        if math.isfinite(result["eval_return"]):
            self.latest = result["eval_return"]
            if self.best is None or self.latest > self.best:
                self.best = self.latest
                self.save_policy("best_policy.pt", actor)
        if self.frames == 0:
            self.write_row()

    def write_row(self) -> None:
        """Write a row after an evaluation, and after every 1,000 frames or quarter of a short run."""
        last = self.rows[-1] if self.rows else {"frames": 0, "updates": 0, "seconds": 0.0}
        enough = min(1_000, self.cfg.total_frames / 4)
        if not self.evaluation and not self.finished and self.frames - last["frames"] < enough:
            return
        row = {"frames": self.frames, **self.evaluation, "updates": self.updates, "seconds": round(self.seconds, 1)}
        for key, values in self.noted.items():  # those of a checkpoint lie on the CPU
            row[key] = torch.stack([value.to(values[-1].device) for value in values]).float().mean().item()
        if passed := row["seconds"] - last["seconds"]:
            row["frames_per_second"] = round((row["frames"] - last["frames"]) / passed, 1)
            row["updates_per_second"] = round((row["updates"] - last["updates"]) / passed, 1)
        self.rows.append(row)
        self.csv.writerow(row)
        self.file.flush()
        if self.evaluation:
            self.bar.write(
                f"{self.frames:>9,} frames: return {row['eval_return']:.0f} ± {row['eval_std']:.0f}, "
                f"{row.get('frames_per_second', 0):.0f} frames/s"
            )
        if self.logger is not None:
            for key in row:
                self.logger.log_scalar(key, row[key], step=self.frames)
        self.noted, self.evaluation = {}, {}

    def state_dict(self) -> dict:
        """Counts, rows, and the means that are under way."""
        names = ("frames", "updates", "owed", "rows", "best", "latest", "sent", "acting", "random_return", "statistics")
        noted = {key: torch.stack(values).cpu() for key, values in self.noted.items()}
        return {name: getattr(self, name) for name in names} | {"noted": noted, "before": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Go on with these, before the block is entered."""
        vars(self).update(state)
        self.noted = {key: list(values) for key, values in state["noted"].items()}
        self.began = time.monotonic()

    def save_policy(self, name: str, actor) -> None:
        """Write the actor's parameters and the statistics of the normalisation."""
        weights = {key: value.cpu() for key, value in actor.state_dict().items()}
        content = {"actor": weights, "statistics": self.statistics, "frames": self.frames}
        write_atomically(self.cfg.output_dir / name, lambda path: torch.save(content, path))

    def __exit__(self, *_) -> None:
        self.bar.close()
        self.file.close()
        if self.cfg.logger == "wandb" and self.logger is not None:
            self.logger.experiment.finish()

    def summary(self) -> str:
        """What the run reached, in two lines."""
        returns = [(row["eval_return"], row["frames"]) for row in self.rows if "eval_return" in row]
        last = "not measured" if not returns else f"{returns[-1][0]:.0f}"
        best = f" (best: {max(returns)[0]:.0f} after {max(returns)[1]:,} frames)" if returns else ""
        return (
            f"return of an episode: {self.random_return:.0f} with random actions, {last} with the trained policy{best}"
            f"\nsaved in {self.cfg.output_dir} after {self.frames:,} frames"
        )

    def plot(self) -> None:
        """Draw the returns of training and evaluation episodes over the frames."""
        env, figure = self.cfg.env, Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
        axes = figure.subplots()
        for key, style, label in (
            ("train_return", "C0.", "training, with noise"),
            ("eval_return", "C1o-", "deterministic"),
        ):
            points = [(row["frames"], row[key]) for row in self.rows if key in row]
            axes.plot([x for x, _ in points], [y for _, y in points], style, label=label)
        axes.axhline(self.random_return, color="grey", ls="--", label="random policy")
        axes.set(xlabel="frames (simulator steps)", ylabel="return of an episode (environment's reward units)")
        axes.set_title(f"{self.cfg.loss.upper()} on {env.name}, frame skip {env.frame_skip}, seed {self.cfg.seed}")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend()
        write_atomically(self.cfg.output_dir / "learning_curve.png", lambda path: figure.savefig(path, format="png"))

"""Data to learn from without an environment's answers: what an earlier run kept, or a Minari dataset."""

from __future__ import annotations

import importlib.util
import math
from importlib import import_module
from pathlib import Path

import torch
import yaml
from tensordict import TensorDict

from torchrl_ddpg import with_next_actions
from trainer.checkpoints import read_transitions
from trainer.collectors import Source
from trainer.environments import END_KEYS
from trainer.errors import UserError, refusing

ACCEPTED = "accepted: the folder of an earlier run, or the id of a Minari dataset on this machine"


def in_units(transitions, shift, factor, reward_factor: float):
    """The transitions in other units of observation and reward."""
    for part in (transitions, transitions["next"]):
        part["observation_vector"] = part["observation_vector"] * factor + shift
    transitions["next", "reward"] = transitions["next", "reward"] * reward_factor
    return transitions


def read_run(folder: Path):
    """The transitions of an earlier run's replay buffer, in the environment's own units."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    if settings["n_steps"] > 1:
        raise ValueError(f"its rewards are sums over --n-steps {settings['n_steps']}; data of --n-steps 1 can be used")
    statistics = torch.load(folder / "policy.pt", weights_only=True)["statistics"]
    mean, deviation = statistics or (0.0, 1.0)
    after = [("next", key) for key in ("observation_vector", "reward", *END_KEYS)]
    kept = read_transitions(folder).select("observation_vector", "action", *after).reshape(-1)
    if kept["observation_vector"].dtype == torch.uint8:
        raise ValueError("it learned from images; data of states can be used")
    return in_units(kept, mean, deviation, 1 / settings["env"]["reward_scale"])


def to_transitions(episode):
    """The transitions of one of Minari's episodes; none leads into the next episode."""
    if isinstance(episode.observations, dict | tuple) or isinstance(episode.actions, dict | tuple):
        raise ValueError("its observations or actions are a dict or a tuple of arrays, not one array")
    seen = torch.as_tensor(episode.observations, dtype=torch.float32)
    terminated, truncated = (torch.as_tensor(x).unsqueeze(-1) for x in (episode.terminations, episode.truncations))
    after = {"observation_vector": seen[1:], "terminated": terminated, "truncated": truncated}
    after |= {"done": terminated | truncated}
    after |= {"reward": torch.as_tensor(episode.rewards, dtype=torch.float32).unsqueeze(-1)}
    action = torch.as_tensor(episode.actions, dtype=torch.float32)
    return TensorDict({"observation_vector": seen[:-1], "action": action, "next": after}, [len(episode)])


def read_minari(name: str):
    """The transitions of a Minari dataset that is on this machine."""
    if importlib.util.find_spec("minari") is None:
        raise UserError(f"--offline-data {name} is no folder; for Minari's datasets: pip install 'minari[hdf5]'.")
    minari = import_module("minari")
    local = minari.list_local_datasets()
    if name not in local:
        there = ", ".join(local) or "none"
        raise UserError(
            f"--offline-data {name} is no folder and no Minari dataset on this machine; those are: {there}."
        )
    return torch.cat([to_transitions(episode) for episode in minari.load_dataset(name).iterate_episodes()])


def in_time_order(transitions):
    """The transitions, marked as cut off wherever the next one is not the step that followed."""
    seen, after = transitions["observation_vector"], transitions["next"]
    goes_on = (after["observation_vector"][:-1] == seen[1:]).all(-1, keepdim=True)
    for key in ("done", "truncated"):
        after[key][:-1] |= ~goes_on & ~after["terminated"][:-1]
    return transitions


def load(cfg, make_env):
    """The data's transitions in the environment's own units; refused if they are not of its shapes."""
    folder = Path(cfg.offline_data)
    with refusing(f"--offline-data {folder}", ACCEPTED):
        found = read_run(folder) if folder.is_dir() else read_minari(cfg.offline_data)
    env = make_env(cfg.env, several=False)
    specs = {"observation_vector": env.observation_spec["observation_vector"], "action": env.action_spec_unbatched}
    env.close()
    for key, spec in specs.items():
        what, has, wanted = key.partition("_")[0], tuple(found[key].shape[1:]), tuple(spec.shape)
        if has != wanted:
            hint = f"{wanted} is that of --env.name {cfg.env.name}: name the environment that the data comes from"
            raise UserError(f"--offline-data {folder} has {what}s of shape {has}; {hint}.")
    return with_next_actions(in_time_order(found)) if cfg.loss == "rebrac" else found


def as_trained_on(transitions, statistics, reward_scale: float):
    """The transitions with normalised observations and scaled rewards."""
    mean, deviation = statistics or (0.0, 1.0)
    return in_units(transitions, -mean / deviation, 1 / deviation, reward_scale)


class NothingCollected(Source):
    """Stands in for the collector: as many empty batches as it would take for all frames, until ``stop`` is set."""

    def __init__(self, cfg, stop, done: int = 0) -> None:
        size = cfg.steps_per_batch * cfg.env.count * cfg.env.frame_skip
        self.stop, self.left = stop, math.ceil((cfg.total_frames - done) / size)

    def __iter__(self):
        for _ in range(self.left):
            if self.stop.is_set() or self.error is not None:
                return
            yield None

    def share_threads(self) -> None:
        """Nothing else runs."""

    def send_weights(self) -> None:
        """Nobody acts."""

    def state_dict(self) -> dict:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to go on with."""

    def __exit__(self, *_) -> None:
        pass

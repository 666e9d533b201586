"""Training from data alone: what the trainer wrote or Minari holds, and TD3+BC's loop over it."""

from __future__ import annotations

import contextlib
import importlib.util
from importlib import import_module
from pathlib import Path

import torch
from tensordict import TensorDict

import pipeline
import replay_buffer
from command_line import UserError, refusing
from learners import make_learner

ACCEPTED = "accepted: OUTPUT/replay of a run with --save-replay, or the id of a Minari dataset on this machine"


def in_units(transitions, shift, factor, reward_factor: float):
    """The transitions in other units of observation and reward."""
    for part in (transitions, transitions["next"]):
        part["observation_vector"] = part["observation_vector"] * factor + shift
    transitions["next", "reward"] = transitions["next", "reward"] * reward_factor
    return transitions


@contextlib.contextmanager
def saving_replay(cfg, replay, stats):
    """Write the replay buffer in the end, as transitions in the environment's own units, if that is asked for."""
    yield
    if cfg.save_replay and len(replay):
        shift, factor = stats or (0.0, 1.0)
        kept = replay.storage[: len(replay)].select("observation_vector", "action", "next")
        transitions = in_units(kept.reshape(-1).clone(), shift, factor, 1 / cfg.env.reward_scale)
        transitions.memmap(cfg.output_dir / "replay")


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


def load(cfg):
    """The data's transitions in the environment's own units; refused if they are not of its shapes."""
    folder = Path(cfg.offline_data)
    with refusing(f"--offline-data {folder}", ACCEPTED):
        if folder.is_dir() and not (folder / "observation_vector.memmap").exists():
            raise ValueError("it is no replay folder")
        found = TensorDict.load_memmap(folder).clone() if folder.is_dir() else read_minari(cfg.offline_data)
    env = pipeline.make_env(cfg.env, training=False)
    specs = {"observation_vector": env.observation_spec["observation_vector"], "action": env.action_spec_unbatched}
    env.close()
    for key, spec in specs.items():
        what, has, wanted = key.partition("_")[0], tuple(found[key].shape[1:]), tuple(spec.shape)
        if has != wanted:
            hint = f"{wanted} is that of --env.name {cfg.env.name}: name the environment that the data comes from"
            raise UserError(f"--offline-data {folder} has {what}s of shape {has}; {hint}.")
    return found


def train(cfg) -> bool:
    """Run TD3+BC for as many updates as `total_frames` frames online would give, and save what was learned."""
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads)
    transitions, stats = load(cfg), None
    random_return, _ = pipeline.measure_random_policy(cfg)
    if cfg.env.normalise:
        stats = mean, deviation = pipeline.statistics(transitions["observation_vector"])
        in_units(transitions, -mean / deviation, 1 / deviation, 1.0)
    transitions["next", "reward"] *= cfg.env.reward_scale
    # Fill the replay buffer R with the data, once.
    replay = replay_buffer.make_replay(cfg, len(transitions))
    replay.extend(transitions)
    eval_env = pipeline.make_env(cfg.env, stats, training=False, seed=cfg.seed + 2)
    actor, critic = pipeline.make_networks(cfg, eval_env)
    update = make_learner(cfg, actor, critic, eval_env.action_spec_unbatched)
    with pipeline.Recorder(cfg, actor, eval_env, stats, random_return) as recorder:
        while recorder.frames < cfg.total_frames:
            # Sample a minibatch from R.
            for sample in replay_buffer.minibatches(cfg, replay, cfg.updates_per_batch):
                # Descend both critics' (y - Q(s, a))^2 with TD3's target y.
                # Every second time descend (mu(s) - a)^2 - lambda Q(s, mu(s)), and move the targets.
                recorder.note(**update(sample))
                replay.update_tensordict_priority(sample)
                recorder.updates += 1
            recorder.advance(cfg.steps_per_batch * cfg.env.count * cfg.env.frame_skip)
            recorder.finish_batch()
    return False

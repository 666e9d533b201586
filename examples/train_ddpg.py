"""Train DDPG (Lillicrap et al. 2016, algorithm 1) or a descendant: ``python train_ddpg.py [PRESET] [--flags]``.

``train``, at the bottom, is algorithm 1; it calls the functions above it in their order: environment, networks,
exploration, loss and update, replay buffer, evaluation. The equations are in the library, in ``torchrl_ddpg``. What is
not the algorithm stands in the folder ``trainer``: every setting with its default and the presets in
``configuration.py``, the environments of three libraries, the collectors, records, checkpoints and data to learn from.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # --help and misspelt flags are answered before PyTorch is imported, which takes seconds
    from trainer import command_line

    CONFIG = command_line.parse(sys.argv[1:])

import functools
import math
import random

import numpy as np
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl import data, envs, modules

from torchrl_ddpg import (
    D4PGLoss,
    DDPGLoss,
    FastTD3Loss,
    HardUpdate,
    ReBRACLoss,
    SoftUpdate,
    TD3BCLoss,
    TD3Loss,
    UpdateStep,
)
from trainer import command_line, environments, offline_data, policies
from trainer.checkpoints import Checkpoints, DiskStorage
from trainer.collectors import Collecting
from trainer.evaluation import overestimation
from trainer.networks import FromImages, Squash, own_networks
from trainer.records import Records


def make_env(env_cfg, statistics=None, seed: int = 0, several: bool = True):
    """Environments of ``env_cfg``: ``several`` to train with, as one batch, or one to evaluate with.

    ``statistics``: mean and standard deviation that observations are normalised with, or None.
    """
    env = environments.make_several(env_cfg) if several else environments.make_one(env_cfg)
    return transform(env, env_cfg, statistics, seed)


def transform(env, env_cfg, statistics=None, seed: int = 0):
    """The environment with the transforms behind it, seeded."""
    steps = [
        envs.RewardSum(),  # before the scaling, so that returns stay in the environment's own units
        envs.RewardScaling(0.0, env_cfg.reward_scale),
        *environments.to_observation_vector(env),
    ]
    if statistics:
        steps.append(envs.ObservationNorm(*statistics, in_keys=["observation_vector"], standard_normal=True))
    steps += [envs.StepCounter(env_cfg.max_steps or None), envs.InitTracker()]
    env = envs.TransformedEnv(env, envs.Compose(*steps), auto_unwrap=False)
    # The i-th of several gets the seed plus i, so neighbouring seeds would share environments if they were not hashed.
    env.set_seed(random.Random(seed).randrange(2**30))
    return env


def make_networks(cfg, env):
    """Actor and critic as the loss's paper has them; layers find their input's size when they first see data."""
    if cfg.networks:
        return own_networks(cfg, env)
    spec = env.action_spec_unbatched
    common = {"activation_class": getattr(nn, cfg.activation), "depth": None}  # None: as many layers as num_cells
    outputs = {"out_features": cfg.num_atoms if cfg.loss in ("d4pg", "fast-td3") else 1}
    norms = {"norm_class": nn.LayerNorm, "norm_kwargs": [{"normalized_shape": width} for width in cfg.hidden]}
    # 0: the critic sees the action at its first layer; 1: after it, as in DDPG's paper.
    action_layer = int(cfg.loss in ("ddpg", "d4pg")) if cfg.action_layer is None else cfg.action_layer
    if env.observation_spec["observation_vector"].dtype == torch.uint8:
        net = FromImages(modules.DdpgCnnActor(spec.shape[-1]))
        value = FromImages(modules.DdpgCnnQNet(mlp_net_kwargs=outputs))
    else:
        net = modules.DdpgMlpActor(spec.shape[-1], common | {"num_cells": list(cfg.hidden)})
        if action_layer == 0:
            value = modules.MLP(num_cells=list(cfg.hidden), **common, **outputs, **(norms if cfg.layer_norm else {}))
        else:
            first = common | {"depth": 0, "out_features": cfg.hidden[0]}
            value = modules.DdpgMlpQNet(first, common | outputs | {"num_cells": list(cfg.hidden[1:])})
    low, high = spec.space.low, spec.space.high
    onto_range = nn.Tanh() if (low == -1).all() and (high == 1).all() else Squash(low, high)
    inner_keys = ["param", "hidden"] if isinstance(net, FromImages) else ["param"]  # of images it returns features too
    actor = TensorDictSequential(
        TensorDictModule(net, ["observation_vector"], inner_keys), TensorDictModule(onto_range, ["param"], ["action"])
    )
    critic = TensorDictModule(value, ["observation_vector", "action"], ["state_action_value"])
    critic(actor(env.fake_tensordict()))  # layers find their sizes here, before targets and optimizers are made
    return actor.to(cfg.device), critic.to(cfg.device)


def make_exploration(cfg, actor, spec):
    """The actor with noise behind it, and the noise, whose ``step`` anneals it from ``sigma`` to ``end * sigma``."""
    noise, steps = cfg.noise, math.ceil(cfg.noise.anneal_frames / cfg.env.frame_skip)
    half_range = (spec.space.high - spec.space.low).float() / 2
    if noise.kind == "ou":
        options = {"sigma": noise.sigma * half_range, "dt": 1.0, "device": cfg.device}
        module = modules.OrnsteinUhlenbeckProcessModule(spec, 1.0, noise.end, steps, **options).to(cfg.device)
    else:
        sigma = noise.sigma if noise.kind == "gaussian" else 0.0  # else "none"
        options = {"std": half_range.tolist(), "device": cfg.device}
        module = modules.AdditiveGaussianModule(spec, sigma, sigma * noise.end, steps, **options)
    return TensorDictSequential(actor, module), module


def make_loss(cfg, actor, critic, spec):
    """The loss: it shares the networks' parameters, holds the targets, and for TD3 makes the second critic."""
    support = {"v_min": cfg.v_min, "v_max": cfg.v_max, "num_atoms": cfg.num_atoms}
    # A new loss also says in make_networks what its critic's outputs are, and in make_update how it is delayed.
    kind, options = {
        "ddpg": (DDPGLoss, {}),
        "td3": (TD3Loss, {"loss_function": "l2"}),
        "d4pg": (D4PGLoss, support),
        "fast-td3": (FastTD3Loss, support),
        "td3-bc": (TD3BCLoss, {"loss_function": "l2", "alpha": cfg.alpha}),
        "rebrac": (ReBRACLoss, {"alpha_actor": cfg.alpha_actor, "alpha_critic": cfg.alpha_critic}),
    }[cfg.loss]
    loss = kind(actor, critic, action_spec=spec, **options)
    lmbda = {"lmbda": cfg.lmbda} if cfg.estimator == "td_lambda" else {}
    loss.make_value_estimator(cfg.estimator, gamma=cfg.gamma, **lmbda)
    return loss.to(cfg.device)


def make_update(cfg, loss) -> UpdateStep:
    """One update from a minibatch: a step of the critic, then, on its delay, one of the actor and of the targets."""
    adam = functools.partial(torch.optim.Adam, fused=True)
    critics = getattr(loss, f"{loss.critic_name}_params").parameters()  # value_network, or TD3's qvalue_network
    if cfg.hard_interval:
        targets = HardUpdate(loss, value_network_update_interval=cfg.hard_interval)
    else:
        targets = SoftUpdate(loss, tau=cfg.tau)
    return UpdateStep(
        loss,
        actor_optimizer=adam(loss.actor_network_params.parameters(), lr=cfg.actor_lr),
        critic_optimizer=adam(critics, lr=cfg.critic_lr, weight_decay=cfg.critic_weight_decay),
        target_updater=targets,
        policy_delay=cfg.policy_delay or (1 if cfg.loss in ("ddpg", "d4pg") else 2),
        max_grad_norm=cfg.max_grad_norm or None,
        compile=cfg.update == "compile",  # this and the next two change the speed, not the numbers
        record_operators=cfg.update == "record" and cfg.device == "cpu",
        cuda_graph=cfg.update == "cuda-graph",
    )


def make_replay(cfg, images: bool, size: int = 0):
    """Stretches of trajectories, sampled as random crops, or single transitions; images in memory-mapped files."""
    replay, options = cfg.replay, {"prefetch": cfg.replay.prefetch or None, "priority_key": "td_error"}
    size = size or math.ceil(min(replay.frames, cfg.total_frames) / cfg.env.frame_skip)
    if replay.crop > 1:
        size = math.ceil(size / cfg.steps_per_batch)  # an item is then a stretch of so many steps
        if replay.crop < cfg.steps_per_batch:
            options["transform"] = envs.RandomCropTensorDict(replay.crop)
    if replay.sampler == "prioritised":
        np.random.seed(cfg.seed)  # where this sampler draws from
        options["sampler"] = data.PrioritizedSampler(size, replay.alpha, replay.beta)
    storage = DiskStorage if images else data.LazyTensorStorage
    # A draw of ten minibatches takes twice the time of a draw of one, but priorities change with every update.
    per_draw = 1 if replay.sampler == "prioritised" or images else 10
    return data.TensorDictReplayBuffer(storage=storage(size), batch_size=replay.batch * per_draw, **options)


def minibatches(cfg, replay, count: int):
    """Yield ``count`` minibatches on the device, several of each draw."""
    while count > 0:
        drawn = replay.sample().to(cfg.device).split(cfg.replay.batch)[:count]
        yield from drawn
        count -= len(drawn)


def to_store(cfg, batch):
    """What is stored of a collected batch: n-step returns if asked for, and only the entries that the loss reads."""
    if cfg.n_steps > 1:
        ends = batch["next"].select(*environments.END_KEYS)
        batch = data.MultiStep(cfg.gamma, cfg.n_steps)(batch)
        # MultiStep moves the next observation n steps on, but leaves done, terminated and truncated behind.
        batch["next"].update(ends.gather(1, torch.arange(batch.shape[1]) + batch["steps_to_next_obs"] - 1))
    after = [("next", key) for key in ("observation_vector", "reward", *environments.END_KEYS)]
    batch = batch.select("observation_vector", "action", "steps_to_next_obs", *after, strict=False)
    return batch if cfg.replay.crop > 1 else batch.reshape(-1)


@torch.no_grad()
def evaluate(cfg, env, actor, loss=None, stop=None) -> dict:
    """Deterministic episodes from the same seeds every time: returns, and how far Q is above the returns observed.

    ``env`` is one environment, the ``actor`` has no noise, and the ``loss`` has the critic. ``stop`` ends it early.
    """
    env.set_seed(cfg.seed + 2)
    spec, found = env.action_spec_unbatched.space, {"return": [], "length": [], "saturated": [], "overestimation": []}
    with envs.set_exploration_type(envs.ExplorationType.DETERMINISTIC):
        for _ in range(cfg.eval.episodes):
            episode = environments.episode(env, actor, stop)
            if episode is None:
                return {}
            found["return"].append(episode["next", "episode_reward"][-1].item())
            found["length"].append(len(episode) * cfg.env.frame_skip)
            margin = (spec.high - spec.low) / 200  # 1 % of half the range
            at_bound = (episode["action"] <= spec.low + margin) | (episode["action"] >= spec.high - margin)
            found["saturated"].append(at_bound.float().mean().item())
            if loss is not None:
                found["overestimation"] += overestimation(cfg, loss, episode)
    mean = {key: float(np.mean(values)) for key, values in found.items() if values}
    result = {"eval_return": mean["return"], "eval_std": float(np.std(found["return"])), "eval_length": mean["length"]}
    result |= {"saturated_actions": mean["saturated"]}
    return result | ({"overestimation": mean["overestimation"]} if "overestimation" in mean else {})


def measure(cfg, transitions=None):
    """Return of random actions, and mean and deviation of observations: those of random actions, or of the data."""
    env = make_env(cfg.env, seed=cfg.seed + 1, several=False)
    random_return, seen = environments.act_randomly(env, cfg.env.random_steps)
    env.close()
    seen = seen if transitions is None else transitions["observation_vector"]
    return random_return, environments.statistics(seen) if cfg.env.normalise and seen.dtype != torch.uint8 else None


def train(cfg, stop) -> None:
    """Run algorithm 1 for ``total_frames`` simulator steps or until the event ``stop`` is set, and save the results."""
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads)
    transitions = offline_data.load(cfg, make_env) if cfg.offline_data else None
    records = Records(cfg)
    checkpoints = Checkpoints(cfg.output_dir, records=records)
    if cfg.resume:
        checkpoints.load("records")  # the rest below, once it is built
        records.check_length()
    else:
        records.random_return, records.statistics = measure(cfg, transitions)
    eval_env = make_env(cfg.env, records.statistics, several=False)
    # Initialise critic Q and actor mu, their targets Q' and mu', the noise N and the replay buffer R.
    actor, critic = make_networks(cfg, eval_env)
    policy, noise = make_exploration(cfg, actor, eval_env.action_spec_unbatched)
    loss = make_loss(cfg, actor, critic, eval_env.action_spec_unbatched)
    update = make_update(cfg, loss)
    if transitions is None:
        replay = make_replay(cfg, images=eval_env.observation_spec["observation_vector"].dtype == torch.uint8)
        make = functools.partial(make_env, cfg.env, records.statistics)
        collector = Collecting(cfg, make, policy, stop, records.frames)  # at first, actions are random
    else:
        replay = make_replay(cfg, images=False, size=len(transitions))
        replay.extend(offline_data.as_trained_on(transitions, records.statistics, cfg.env.reward_scale))
        collector = offline_data.NothingCollected(cfg, stop, records.frames)
    with records, collector:
        checkpoints.register(replay, update=update, noise=noise, collector=collector)
        if cfg.resume:
            checkpoints.load()
        elif cfg.eval.interval:
            with collector.keeping_errors("evaluating"):
                records.evaluated(evaluate(cfg, eval_env, actor, stop=stop), actor)
        for batch in collector:  # ends when all frames are there, or `stop` is set
            # Act with mu(s) + N for a while; store actions, rewards and next states in R.
            if batch is not None:  # None: learning from data alone
                replay.extend(to_store(cfg, batch))
            records.collected(batch)
            # Updates still to be made: `updated` takes one off, and a checkpoint holds what is left.
            records.owed += cfg.updates_per_batch if records.frames >= cfg.init_random_frames else 0
            # Sample a minibatch from R.
            for sample in minibatches(cfg, replay, records.owed):
                if stop.is_set():
                    break
                collector.share_threads()  # leave a core to an asynchronous collector while it works
                # Descend (y - Q(s, a))^2 with y = r + gamma Q'(s', mu'(s')), or y = r where the episode ended;
                # then ascend Q(s, mu(s)); then move Q' and mu' towards Q and mu. The descendants change the terms.
                losses = update(sample)
                records.updated(**losses)
                replay.update_tensordict_priority(sample)  # prioritised replay: the update wrote "td_error" into it
            noise.step(cfg.steps_per_batch * cfg.env.count)
            collector.send_weights()
            records.sent = records.updates  # the column `staleness` tells how many updates old these weights act
            if records.passed(cfg.eval.interval):
                with collector.keeping_errors("evaluating"):
                    records.evaluated(evaluate(cfg, eval_env, actor, loss, stop), actor)
            records.write_row()
            if records.passed(cfg.checkpoint.interval):
                checkpoints.save()
                records.save_policy("policy.pt", actor)  # the latest; records keep the best
        checkpoints.save()
        records.save_policy("policy.pt", actor)
        # The best policy as one program, with normalisation and action scaling, that needs nothing of this repository.
        policies.export(cfg.output_dir / "policy.pt2", actor, records, eval_env)
        records.plot()
    print(records.summary())
    if collector.error is not None:  # after all is saved
        raise collector.error


if __name__ == "__main__":
    sys.exit(command_line.run(train, CONFIG))

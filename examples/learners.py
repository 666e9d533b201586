"""What ``train_ddpg.py`` learns with: the loss of one of four papers, its optimizers and its targets, as one update."""

from __future__ import annotations

import functools

import torch

from torchrl_ddpg import D4PGLoss, DDPGLoss, HardUpdate, SoftUpdate, TD3BCLoss, TD3Loss, UpdateStep


def make_loss(cfg, actor, critic, spec):
    """The loss, which holds the target networks; TD3's also makes the second critic."""
    if cfg.loss == "d4pg":
        support = {"v_min": cfg.v_min, "v_max": cfg.v_max, "num_atoms": cfg.num_atoms}
        loss = D4PGLoss(actor, critic, action_spec=spec, **support)
    elif cfg.loss == "ddpg":
        loss = DDPGLoss(actor, critic, action_spec=spec)
    else:
        family = TD3Loss if cfg.loss == "td3" else TD3BCLoss
        loss = family(actor, critic, action_spec=spec, loss_function="l2")
    lmbda = {"lmbda": cfg.lmbda} if cfg.estimator == "td_lambda" else {}
    return loss.make_value_estimator(cfg.estimator, gamma=cfg.gamma, **lmbda).to(cfg.device)


def make_learner(cfg, actor, critic, spec) -> UpdateStep:
    """One update from a minibatch: a step of the critic, then, on its delay, one of the actor and of the targets."""
    loss = make_loss(cfg, actor, critic, spec)
    adam = functools.partial(torch.optim.Adam, fused=True)
    critics = getattr(loss, f"{loss.critic_name}_params").parameters()
    hard = {"value_network_update_interval": cfg.hard_interval}
    return UpdateStep(
        loss,
        actor_optimizer=adam(loss.actor_network_params.parameters(), lr=cfg.actor_lr),
        critic_optimizer=adam(critics, lr=cfg.critic_lr, weight_decay=cfg.critic_weight_decay),
        target_updater=SoftUpdate(loss, tau=cfg.tau) if cfg.target_update == "soft" else HardUpdate(loss, **hard),
        policy_delay=cfg.policy_delay or (2 if cfg.loss in ("td3", "td3-bc") else 1),
        max_grad_norm=cfg.max_grad_norm or None,
        compile=cfg.compile,
        record_operators=cfg.record_operators and cfg.device == "cpu" and not cfg.compile,
        cuda_graph=cfg.cuda_graph,
    )

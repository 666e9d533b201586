"""How far a critic is above the returns that followed."""

from __future__ import annotations

import math

import torch


def overestimation(cfg, loss, run) -> list[float]:
    """Mean of Q(s, a) less the discounted return that followed, in the environment's units; none if it is not known."""
    rewards, following, returns = run["next", "reward"].squeeze(-1).tolist(), 0.0, []
    for reward in reversed(rewards):
        following = reward + cfg.gamma * following
        returns.append(following)
    known = len(rewards)
    if not run["next", "terminated"][-1].any():  # an episode that was cut: only where 95 % of the discounts are in it
        known = known - math.ceil(math.log(0.05) / math.log(cfg.gamma)) if 0 < cfg.gamma < 1 else 0
    if known < 1:
        return []
    next_action = run["action"].roll(-1, 0)  # ReBRAC's targets read it; Q(s, a) does not depend on it
    steps = run.clone(recurse=False).set(("next", "action"), next_action)[:known].to(cfg.device).unsqueeze(0)
    with torch.random.fork_rng(devices=[]):  # TD3's target noise, so that evaluating changes nothing
        value = loss.loss_value(steps)[1]["pred_value"].mean().item()
    return [(value - sum(returns[::-1][:known]) / known) / cfg.env.reward_scale]

"""A trained policy for use without this repository: normalisation, network and action scaling as one program."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from trainer.records import write_atomically


class DeployedPolicy(nn.Module):
    """The environment's observation in, the action out.

    Args:
        actor: a TensorDict module that reads ``observation_vector`` and writes ``action``.
        statistics: mean and standard deviation of the observations, ``[O]`` each, or None.
    """

    def __init__(self, actor, statistics) -> None:
        super().__init__()
        self.actor = actor.select_out_keys("action") if hasattr(actor, "select_out_keys") else actor
        mean, deviation = statistics or (torch.zeros(()), torch.ones(()))
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.normalise = statistics is not None

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Actions ``[B, A]`` in the environment's units for observations ``[B, O]``, or images ``[B, 3, 84, 84]``."""
        if self.normalise:
            observation = (observation.float() - self.mean) / self.deviation
        return self.actor(observation_vector=observation)


def export(path: Path, actor, records, env) -> None:
    """Write the best policy of a run, or the last if none was evaluated, as a ``torch.export`` program.

    Args:
        path: a file, by custom ``*.pt2``.
        actor: the actor; its parameters are the last ones.
        records: the run's records, with the statistics and the folder of the best policy.
        env: an environment, whose observations are those that the program takes, any number at once.
    """
    best = records.cfg.output_dir / "best_policy.pt"
    actor = copy.deepcopy(actor).cpu()
    if best.exists():
        actor.load_state_dict(torch.load(best, weights_only=True)["actor"])
    observation = env.observation_spec["observation_vector"].zero()
    policy = DeployedPolicy(actor, records.statistics).eval().requires_grad_(False)
    batch = {"observation": {0: torch.export.Dim("batch")}}
    try:
        program = torch.export.export(policy, (torch.stack([observation] * 2),), dynamic_shapes=batch)
    except Exception as error:  # of networks of one's own
        print(f"{path.name} is not written, because torch.export cannot follow the actor: {str(error).splitlines()[0]}")
        return
    write_atomically(path, lambda temporary: torch.export.save(program, temporary))

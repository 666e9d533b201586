"""The two losses of the page "Write your own loss"."""

import torch
from torch.nn.functional import smooth_l1_loss
from torchrl.objectives import ValueEstimators

from torchrl_ddpg import DeterministicPolicyLoss, functional


# quantile
class QuantileLoss(DeterministicPolicyLoss):
    """A critic that writes quantiles of the return, ``[*B, N]``, trained by quantile regression.

    References:
        Dabney et al. 2018, arXiv:1710.10044, eq. 9 and 10.
    """

    critic_name = "value_network"
    critic_loss_key = "loss_value"
    all_out_keys = ("loss_actor", "loss_value", "pred_value", "target_value")
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)

    def critic_target(self, next_value, transition, batch):
        """Each of the next state's quantiles, discounted and shifted by the reward."""
        discount = functional.discount(
            self.value_estimator.gamma, transition.terminated, transition.steps
        )
        return transition.reward + discount * next_value, {}

    def critic_sample_losses(self, prediction, target):
        """Every predicted quantile against every quantile of the target."""
        count = prediction.shape[-1]
        levels = (torch.arange(count, device=prediction.device) + 0.5) / count
        prediction, target = torch.broadcast_tensors(prediction.unsqueeze(-1), target.unsqueeze(-2))
        weight = (levels.unsqueeze(-1) - (target < prediction).float()).abs()
        return (weight * smooth_l1_loss(prediction, target, reduction="none")).mean(-1).sum(-1)

    def expected_value(self, values):
        """The mean of the quantiles."""
        return values.mean(-1, keepdim=True)

    expected_target = expected_value


# ensemble
class RandomEnsembleLoss(DeterministicPolicyLoss):
    """Many critics: the target takes the lowest of a random few, the actor ascends the mean of all.

    References:
        Chen et al. 2021, arXiv:2101.05982, algorithm 1, with a deterministic actor.
    """

    critic_name = "qvalue_network"
    critic_loss_key = "loss_qvalue"
    all_out_keys = ("loss_actor", "loss_qvalue", "pred_value", "target_value")

    def __init__(self, actor_network, qvalue_network, *, num_qvalue_nets=5, subset=2, **options):
        super().__init__(
            actor_network,
            qvalue_network,
            num_critics=("num_qvalue_nets", num_qvalue_nets),
            **options,
        )
        self.subset, self.actor_critics = subset, range(num_qvalue_nets)

    def next_state_value(self, values, action, batch):
        """The lowest value of a random subset of the critics."""
        chosen = torch.randperm(len(values), device=values[0].device)[: self.subset]
        return torch.stack(values)[chosen].amin(0)

    def actor_value(self, values):
        """The mean over all critics."""
        return torch.stack(values).mean(0)

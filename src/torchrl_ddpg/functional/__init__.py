"""The equations: tensors in, tensors out, nothing but torch."""

from torchrl_ddpg.functional.categorical import (
    categorical_projection,
    categorical_td_loss,
    expected_value,
    lower_mean_distribution,
)
from torchrl_ddpg.functional.losses import (
    LOSS_FUNCTIONS,
    REDUCTIONS,
    action_distance,
    behaviour_cloning_loss,
    mean_and_max,
    reduce,
    value_loss,
    value_weight,
)
from torchrl_ddpg.functional.targets import (
    clipped_double_q,
    discount,
    smooth_target_action,
    td_error,
    td_lambda_target,
    td_target,
)
from torchrl_ddpg.functional.updates import copy_, polyak_update_

__all__ = [
    "LOSS_FUNCTIONS",
    "REDUCTIONS",
    "action_distance",
    "behaviour_cloning_loss",
    "categorical_projection",
    "categorical_td_loss",
    "clipped_double_q",
    "copy_",
    "discount",
    "expected_value",
    "lower_mean_distribution",
    "mean_and_max",
    "polyak_update_",
    "reduce",
    "smooth_target_action",
    "td_error",
    "td_lambda_target",
    "td_target",
    "value_loss",
    "value_weight",
]

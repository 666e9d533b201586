"""Deterministic-policy-gradient losses for TorchRL."""

from torchrl_ddpg import functional
from torchrl_ddpg.batch import Batch, Transition
from torchrl_ddpg.checks import BatchError, MissingKeyError, UnsupportedEstimatorError
from torchrl_ddpg.losses.base import DeterministicPolicyLoss, Term
from torchrl_ddpg.losses.d4pg import D4PGLoss
from torchrl_ddpg.losses.ddpg import DDPGLoss
from torchrl_ddpg.losses.fast_td3 import FastTD3Loss
from torchrl_ddpg.losses.rebrac import ReBRACLoss
from torchrl_ddpg.losses.td3 import TD3Loss
from torchrl_ddpg.losses.td3_bc import TD3BCLoss
from torchrl_ddpg.offline import with_next_actions
from torchrl_ddpg.target_updaters import HardUpdate, SoftUpdate
from torchrl_ddpg.update.step import UpdateStep

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "BatchError",
    "D4PGLoss",
    "DDPGLoss",
    "DeterministicPolicyLoss",
    "FastTD3Loss",
    "HardUpdate",
    "MissingKeyError",
    "ReBRACLoss",
    "SoftUpdate",
    "TD3BCLoss",
    "TD3Loss",
    "Term",
    "Transition",
    "UnsupportedEstimatorError",
    "UpdateStep",
    "functional",
    "with_next_actions",
]

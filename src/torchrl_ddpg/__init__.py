"""Deterministic-policy-gradient losses for TorchRL."""

from torchrl_ddpg import functional
from torchrl_ddpg.checks import BatchError, MissingKeyError
from torchrl_ddpg.losses.d4pg import D4PGLoss
from torchrl_ddpg.losses.ddpg import DDPGLoss
from torchrl_ddpg.losses.td3 import TD3Loss
from torchrl_ddpg.losses.td3_bc import TD3BCLoss
from torchrl_ddpg.target_updaters import HardUpdate, SoftUpdate
from torchrl_ddpg.update_step import UpdateStep

__version__ = "0.1.0"
__all__ = [
    "BatchError",
    "D4PGLoss",
    "DDPGLoss",
    "HardUpdate",
    "MissingKeyError",
    "SoftUpdate",
    "TD3BCLoss",
    "TD3Loss",
    "UpdateStep",
    "functional",
]

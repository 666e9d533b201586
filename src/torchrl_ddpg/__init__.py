"""Deterministic-policy-gradient losses for TorchRL."""

from importlib.metadata import version

from torchrl_ddpg import functional
from torchrl_ddpg.checks import BatchError, MissingKeyError
from torchrl_ddpg.losses.ddpg import DDPGLoss
from torchrl_ddpg.target_updaters import HardUpdate, SoftUpdate

__version__ = version("torchrl-ddpg")
__all__ = ["BatchError", "DDPGLoss", "HardUpdate", "MissingKeyError", "SoftUpdate", "functional"]

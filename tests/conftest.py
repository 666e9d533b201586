"""One thread: the networks of the tests are far too small for two."""

import torch

torch.set_num_threads(1)

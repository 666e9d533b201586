"""Fifty thousand updates on a small network: no growth of resident memory, no parameter lost."""

import resource

import pytest
import torch

from helpers import batch, make
from torchrl_ddpg import SoftUpdate

UPDATES, SETTLED = 50_000, 5_000


def resident_mebibytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_and_parameters_after_fifty_thousand_updates():
    loss = make(updater=False)
    updater = SoftUpdate(loss, tau=0.005)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-4)
    parameters = {name: (id(p), p.clone()) for name, p in loss.named_parameters()}
    batches = [batch(4, seed=seed) for seed in range(8)]
    settled = None
    for step in range(UPDATES):
        outputs = loss(batches[step % 8])
        optimizer.zero_grad()
        (outputs["loss_actor"] + outputs["loss_value"]).backward()
        optimizer.step()
        updater.step()
        if step == SETTLED:
            settled = resident_mebibytes()
    assert resident_mebibytes() - settled < 5
    now = dict(loss.named_parameters())
    assert now.keys() == parameters.keys()
    for name, (identity, before) in parameters.items():
        assert id(now[name]) == identity
        assert now[name].isfinite().all()
        assert not torch.equal(now[name], before)

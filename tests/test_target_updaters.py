"""Updaters: both forms of tau, buffers, copies, state, what they refuse."""

import copy
import pickle
import warnings

import pytest
import torch
import torchrl.objectives
from torch import nn

from helpers import OBSERVATION, batch, make, networks
from torchrl_ddpg import DDPGLoss, HardUpdate, SoftUpdate


def test_eps_is_one_minus_tau():
    updaters = [SoftUpdate(make(updater=False), tau=0.25), SoftUpdate(make(updater=False), eps=0.75)]
    for updater in updaters:
        for source in updater.loss_module.parameters():
            source.data += 1
        updater.step()
    assert updaters[0].eps == updaters[1].eps == 0.75
    torch.testing.assert_close(*(updater.loss_module.target_pairs("parameters")[0] for updater in updaters))


def test_equal_to_torchrls_soft_update():
    mine, other = make(updater=False), make(updater=False)
    theirs = torchrl.objectives.SoftUpdate(other, tau=0.1)
    for target, source in zip(*mine.target_pairs("parameters"), strict=True):
        target.data.copy_(source.data)  # TorchRL's has copied over the targets at construction
    ours = SoftUpdate(mine, tau=0.1)
    for loss, updater in ((mine, ours), (other, theirs)):
        for source in loss.parameters():
            source.data += 1
        updater.step()
    torch.testing.assert_close(mine.target_pairs("parameters")[0], other.target_pairs("parameters")[0])


@pytest.mark.parametrize("eps", [-0.1, 1.0, 1.1, "a"])
def test_a_wrong_eps_is_worded(eps):
    with pytest.raises((TypeError, ValueError), match=r"eps is .*; accepted"):
        SoftUpdate(make(updater=False), eps=eps)


def test_a_small_eps_is_probably_meant_as_tau():
    with pytest.warns(UserWarning, match=r"tau=0.005"):
        SoftUpdate(make(updater=False), eps=0.005)


def test_integer_buffers_are_copied():
    encoder = nn.Sequential(nn.Linear(OBSERVATION, 4), nn.BatchNorm1d(4))
    loss = DDPGLoss(*networks(encoder=encoder))
    updater = SoftUpdate(loss, tau=0.5)
    loss(batch(8))
    updater.step()
    name = "target_actor_network_params.module.0.1.num_batches_tracked"
    assert dict(loss.named_buffers())[name] == encoder[1].num_batches_tracked > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_state_is_kept_and_hard_update_goes_on_counting(copied):
    loss = make(updater=False)
    updater = HardUpdate(loss, value_network_update_interval=3)
    updater.step()
    updater.step()
    state = updater.state_dict()
    other = HardUpdate(make(updater=False), value_network_update_interval=3)
    other.load_state_dict(state)
    for moved in (copied(updater), other):
        for source in moved.loss_module.parameters():
            source.data += 1
        moved.step()
        targets, sources = moved.loss_module.target_pairs("parameters")
        torch.testing.assert_close(targets, [source.detach() for source in sources])


def test_targets_follow_after_moves_between_dtypes():
    loss = make(updater=False)
    updater = SoftUpdate(loss, tau=1.0)
    loss.to(torch.float64)
    for source in loss.parameters():
        source.data += 1
    updater.step()
    targets, sources = loss.target_pairs("parameters")
    torch.testing.assert_close(targets, [source.detach() for source in sources])
    assert {target.dtype for target in targets} == {torch.float64}


def test_an_updater_syncs_after_a_dtype_move():
    loss = DDPGLoss(*networks())
    loss.to(torch.bfloat16)
    for source in loss.parameters():
        source.data += 1
    SoftUpdate(loss, tau=0.1)
    targets, sources = loss.target_pairs("parameters")
    torch.testing.assert_close(targets, [source.detach() for source in sources])


def test_the_targets_that_are_passed_through_are_those_that_the_loss_runs():
    loss = make(updater=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = loss.compute_target(batch(8, terminated=0.0))
        updater = SoftUpdate(loss, tau=1.0)
        for source in loss.parameters():
            source.data += 0.1
        updater.step()
        assert not torch.allclose(loss.compute_target(batch(8, terminated=0.0)), first)


def test_repr_says_the_setting():
    assert repr(SoftUpdate(make(updater=False), tau=0.25)) == "SoftUpdate(tau=0.25)"
    assert "interval=3" in repr(HardUpdate(make(updater=False), value_network_update_interval=3))

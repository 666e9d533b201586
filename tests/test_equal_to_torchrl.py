"""Where TorchRL is right, our losses are equal to it: losses, gradients, targets."""

import itertools
import warnings

import pytest
import torch
import torchrl.objectives
from torchrl.objectives import ValueEstimators

from helpers import batch, gradients, networks
from torchrl_ddpg import DDPGLoss

warnings_of_torchrl = pytest.mark.filterwarnings("ignore:No target network updater")


def pair(networks_kwargs=None, estimator=ValueEstimators.TD0, hyperparams=None, keys=None, **options):
    options = {"delay_actor": True, **options}
    ours = DDPGLoss(*networks(**(networks_kwargs or {})), **options)
    theirs = torchrl.objectives.DDPGLoss(*networks(**(networks_kwargs or {})), **options)
    for loss in (ours, theirs):
        if ours.target_pairs("parameters")[0]:
            torchrl.objectives.SoftUpdate(loss, tau=0.5)  # or a missing one is warned about
        for name, buffer in loss.named_buffers():
            if name.startswith("target_"):
                # By shape: the two targets of a shared encoder stay equal, as their updates keep them.
                generator = torch.Generator().manual_seed(buffer.numel())
                buffer.data.add_(0.1 * torch.randn(buffer.shape, generator=generator))
        loss.set_keys(**(keys or {}))
        loss.make_value_estimator(estimator, **(hyperparams or {}))
    return ours, theirs


def assert_equal_terms(ours, theirs, data):
    theirs_value, theirs_metrics = theirs.loss_value(data.clone())
    theirs_actor, _ = theirs.loss_actor(data.clone())
    ours_value, _ = ours.loss_value(data.clone())
    ours_actor, _ = ours.loss_actor(data.clone())
    torch.testing.assert_close(ours_value, theirs_value)
    torch.testing.assert_close(ours_actor, theirs_actor)
    target = ours.compute_target(data.clone())
    torch.testing.assert_close(target.squeeze(-1), theirs_metrics["target_value"])
    for mine, other in ((ours_value, theirs_value), (ours_actor, theirs_actor)):
        for a, b in zip(
            gradients(mine.sum(), ours.parameters()), gradients(other.sum(), theirs.parameters()), strict=True
        ):
            if a is None or b is None:
                assert a is None and (b is None or not b.any())
            else:
                torch.testing.assert_close(a, b)
    out_ours, out_theirs = ours(data.clone()), theirs(data.clone())
    torch.testing.assert_close(out_ours["loss_value"], out_theirs["loss_value"])
    torch.testing.assert_close(out_ours["pred_value"], out_theirs["pred_value"].mean().detach())
    torch.testing.assert_close(out_ours["pred_value_max"], out_theirs["pred_value_max"].detach())


ESTIMATORS = {
    "td0": (ValueEstimators.TD0, {"gamma": 0.9}),
    "td1": (ValueEstimators.TD1, {"gamma": 0.9}),
    "td_lambda": (ValueEstimators.TDLambda, {"gamma": 0.95, "lmbda": 0.8}),
}


@pytest.mark.parametrize("loss_function", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("estimator", "shape"), [("td0", (8,)), ("td0", (4, 5)), ("td1", (4, 5)), ("td_lambda", (4, 5))]
)
def test_every_loss_function_reduction_and_estimator(loss_function, reduction, estimator, shape):
    value_type, hyperparams = ESTIMATORS[estimator]
    pair_of_losses = pair(
        estimator=value_type, hyperparams=hyperparams, loss_function=loss_function, reduction=reduction
    )
    assert_equal_terms(*pair_of_losses, batch(*shape))


@pytest.mark.parametrize(
    ("delay_actor", "delay_value", "shared", "separate_losses"), list(itertools.product([True, False], repeat=4))
)
def test_every_delay_and_shared_encoder(delay_actor, delay_value, shared, separate_losses):
    if shared and delay_actor != delay_value:
        pytest.skip("TorchRL runs both target networks with one encoder; see test_traps")
    losses = pair(
        {"encoder": "shared"} if shared else {},
        delay_actor=delay_actor,
        delay_value=delay_value,
        separate_losses=separate_losses,
    )
    assert_equal_terms(*losses, batch(8))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("mask_key", ["auto", ("masks", "valid")])
def test_masks(reduction, mask_key):
    losses = pair(reduction=reduction)
    data = batch(4, 5)
    key = ("collector", "mask") if mask_key == "auto" else mask_key
    data[key] = torch.rand(4, 5, 1, generator=torch.Generator().manual_seed(0)) < 0.7
    for loss in losses:
        loss.loss_mask_key = mask_key
    for term in ("loss_value", "loss_actor"):
        values = [getattr(loss, term)(data.clone())[0] for loss in losses]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(
            *(gradients(value.sum(), loss.parameters()) for value, loss in zip(values, losses, strict=True))
        )


@pytest.mark.parametrize("weights", ["sum", "none"])
def test_weights_where_torchrl_does_not_divide_by_their_sum(weights):
    losses = pair(reduction=weights)
    data = batch(8)
    data["priority_weight"] = torch.rand(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*(loss.loss_value(data.clone())[0] for loss in losses))


def test_n_step_rewards():
    losses = pair(hyperparams={"gamma": 0.9})
    data = batch(8)
    data["steps_to_next_obs"] = torch.randint(1, 4, (8, 1), generator=torch.Generator().manual_seed(0))
    assert_equal_terms(*losses, data)


def test_renamed_keys():
    names = {"observation": "pixels", "action": ("agent", "act"), "reward": "r", "done": "d", "terminated": "t"}
    keys = {"state_action_value": "q", "reward": "r", "done": "d", "terminated": "t", "priority": "p"}
    losses = pair({"observation": "pixels", "action": ("agent", "act"), "value": "q"}, keys=keys)
    data = batch(8, keys=names)
    assert_equal_terms(*losses, data)


def test_keyword_call_as_in_torchrl():
    losses = pair()
    data = batch(8).select(*losses[0].in_keys)
    entries = {"_".join((k,) if isinstance(k, str) else k): v for k, v in data.items(True, True)}
    ours, theirs = (loss(**entries) for loss in losses)
    assert len(ours) == len(theirs) == 6
    torch.testing.assert_close(ours[:2], theirs[:2])


def test_state_dict_has_torchrl_keys_and_loads_both_ways():
    ours, theirs = pair()
    theirs(batch(8))
    assert list(ours.state_dict()) == [key for key in theirs.state_dict() if key != "_value_estimator.gamma"]
    checkpoint = theirs.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(checkpoint)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    torch.testing.assert_close(ours(batch(8))["loss_value"], theirs(batch(8))["loss_value"])


def test_attributes_and_methods_of_torchrl_exist():
    ours, theirs = pair()
    theirs_names = {name for name in dir(theirs) if not name.startswith("_")}
    theirs_names |= {name for name in vars(theirs) if not name.startswith("_")}
    assert {name for name in theirs_names if not hasattr(ours, name)} == set()

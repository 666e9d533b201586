"""One thing of a good batch is broken: the outcome is the right number, or an error of ours that names the entry."""

import itertools
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from helpers import LOSSES, Case, batch, make, networks
from torchrl_ddpg import (
    BatchError,
    D4PGLoss,
    DDPGLoss,
    FastTD3Loss,
    HardUpdate,
    ReBRACLoss,
    SoftUpdate,
    TD3BCLoss,
    TD3Loss,
    with_next_actions,
)

GOLDEN = Path(__file__).parent / "error_messages.txt"
OPTIONAL = ["priority_weight", ("collector", "mask"), "steps_to_next_obs", "gamma", "td_error"]

# How to break a tensor. Where no error is raised, the number must come out unchanged, but for casts that lose digits.
BREAKS = {
    "an extra dimension": lambda x: x.unsqueeze(-1),
    "two columns for one": lambda x: torch.stack([x, x], -1).flatten(-2) if x.ndim > 1 else x.repeat(2),
    "no columns": lambda x: x[..., :0],
    "a missing dimension": lambda x: x[..., 0],
    "a transposed batch": lambda x: x.transpose(0, -1),
    "half of the batch": lambda x: x[: len(x) // 2],
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "int64": lambda x: x.long(),
    "bool": lambda x: x.bool(),
    "complex": lambda x: x.to(torch.complex64),
    "on another device": lambda x: x.to("meta"),
    "NaN": lambda x: torch.full_like(x, float("nan")) if x.is_floating_point() else None,
    "one inf": lambda x: x.index_fill(0, torch.tensor([3]), float("inf")) if x.is_floating_point() else None,
    "a string": lambda x: "text",
    "a nested TensorDict": lambda x: TensorDict({"x": x}, batch_size=[8]),
}
LOSSY = ("int64", "bool")


def good_batch():
    data = batch(8, terminated=0.0, truncated=0.0)
    data["priority_weight"] = torch.rand(8, generator=torch.Generator().manual_seed(1))
    data["collector", "mask"] = torch.ones(8, 1, dtype=torch.bool)
    data["steps_to_next_obs"] = torch.full((8, 1), 2)
    data["gamma"] = torch.full((8, 1), 0.99**2)
    data["td_error"] = torch.zeros(8)
    return data


def broken(data, key, value):
    """The batch with one entry replaced, whatever its shape: an unchecked copy without a batch size of its own."""
    flat = data.flatten_keys(".")
    entries = {name: flat.get(name) for name in flat.keys()}  # noqa: SIM118
    entries[key if isinstance(key, str) else ".".join(key)] = value
    try:
        return TensorDict(entries, batch_size=[8]).unflatten_keys(".")
    except RuntimeError:  # the batch dimension itself is broken, TensorDict refuses the batch before any loss sees it
        return None


def outcomes(case: Case):
    """Every loss, key and break with what came of it."""
    reference_loss = case.make()
    reference = reference_loss(good_batch())
    keys = [*case.make().in_keys, *OPTIONAL]
    for key, (name, breaker) in itertools.product(keys, BREAKS.items()):
        data = good_batch()
        value = breaker(data[key])
        data = None if value is None else broken(data, key, value)
        if data is not None:
            yield key, name, data, reference
    for key in keys:
        yield key, "dropped", good_batch().exclude(key), reference


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
def test_one_broken_entry(case):
    count = 0
    for key, name, data, reference in outcomes(case):
        count += 1
        loss = case.make()
        described = f"{key!r}, {name}"
        try:
            outputs = loss(data)
        except BatchError as error:
            assert (key if isinstance(key, str) else key[-1]) in str(error), f"{described}: {error}"  # noqa: PT017
            assert str(error).startswith(type(loss).__name__), f"{described}: {error}"  # noqa: PT017
        else:
            if name not in LOSSY and not (name == "dropped" and key in OPTIONAL):
                for term in ("loss_actor", case.critic_loss_key):
                    torch.testing.assert_close(outputs[term], reference[term], rtol=2e-3, atol=2e-3, msg=described)
            sum(value for term, value in outputs.items() if term.startswith("loss_")).backward()
            gradients = [p.grad for p in loss.parameters()]
            assert all(gradient.isfinite().all() for gradient in gradients), described
        assert all(leaf.isfinite().all() for leaf in [*loss.parameters(), *loss.buffers()]), described
        assert torch.isfinite(loss(good_batch())[case.critic_loss_key]), f"{described}: the loss is broken afterwards"
    assert count > 150


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize(
    "batch_like", [[], {}, None, 3, "batch", [torch.ones(3)], torch.ones(3), {"observation": torch.ones(8, 3)}], ids=str
)
def test_what_is_no_tensordict(case, batch_like):
    loss = case.make()
    calls = [loss.loss_value, loss.loss_actor, loss.compute_target]
    for call in calls if isinstance(batch_like, torch.Tensor) else [*calls, loss]:
        with pytest.raises(TypeError, match=r"Loss: the batch is of type .*accepted: a TensorDict"):
            call(batch_like)


def situations():
    """Every message that a user can meet: a sentence for the situation, and what brings it about."""
    actor, critic = networks()
    good = good_batch()

    def without(key):
        return good.exclude(key)

    def with_(key, value):
        return broken(good, key, value)

    class Failing(nn.Module):
        def forward(self, observation):
            raise ZeroDivisionError

    def replaced():
        loss = make()
        loss.actor_network.module[0][0].weight = nn.Parameter(torch.zeros(16, 3))
        loss(good)

    def unordered():
        make().make_value_estimator("td_lambda", on_unordered="raise")(batch(4, 5, in_order=False))

    def nested_lock():
        whole = TensorDict({"inner": good}, []).lock_()
        make()(whole["inner"])

    def configured(**kwargs):
        return lambda: DDPGLoss(*networks(), **kwargs)

    lazy = TensorDictModule(nn.LazyLinear(2), in_keys=["observation"], out_keys=["action"])
    apart = TensorDictModule(nn.Linear(3, 2), in_keys=["observation"], out_keys=["torque"])
    yield "an entry is missing", lambda: make()(without(("next", "reward")))
    yield "an entry is misspelt", lambda: make()(good_batch().rename_key_("observation", "observations"))
    yield "the next observation is missing", lambda: make()(good_batch().exclude(("next", "observation")))
    yield "no entry at all", lambda: make()(TensorDict({}, [8]))
    yield "a list for a batch", lambda: make().loss_value([1, 2])
    yield (
        "a reward without its last dimension",
        lambda: make()(with_(("next", "reward"), good["next", "reward"][..., 0])),
    )
    yield "a done of floating point", lambda: make()(with_(("next", "done"), torch.zeros(8, 1)))
    yield (
        "a terminated of two columns",
        lambda: make()(with_(("next", "terminated"), torch.zeros(8, 2, dtype=torch.bool))),
    )
    yield "an observation of another size", lambda: make()(with_("observation", torch.zeros(8, 4)))
    yield (
        "a next observation of another dtype",
        lambda: make()(with_(("next", "observation"), torch.zeros(8, 3).double())),
    )
    yield "an action of another size", lambda: make()(with_("action", torch.zeros(8, 5)))
    yield "an entry on another device", lambda: make()(with_("action", torch.zeros(8, 2, device="meta")))
    yield "NaN in the batch", lambda: make()(with_(("next", "reward"), torch.full((8, 1), float("nan"))))
    yield "diverged networks", lambda: _diverged()(good_batch())
    yield "a weight of a wrong shape", lambda: make()(with_("priority_weight", torch.zeros(8, 3)))
    yield "weights that must be there", lambda: make(use_prioritized_weights=True)(batch(8))
    yield "a mask that must be there", lambda: _masked()(batch(8))
    yield "a buffer's gamma that differs", lambda: make()(with_("gamma", torch.full((8, 1), 0.9**2)))
    yield "a batch out of time order", unordered
    yield "a batch inside a locked one", nested_lock
    yield "a network that raises", lambda: make(networks_kwargs={"encoder": Failing()})(good_batch())
    yield "a parameter that was replaced", replaced
    yield "a value under another name", lambda: make(networks_kwargs={"value": "q"})(good_batch())
    yield "a network that is no TensorDict module", lambda: DDPGLoss(nn.Linear(3, 2), critic)
    yield "a lazy network", lambda: DDPGLoss(lazy, critic)
    yield "a critic that does not read the action", lambda: DDPGLoss(apart, critic)
    yield "an unknown reduction", configured(reduction="avg")
    yield "an unknown loss function", configured(loss_function="huber")
    yield "an unknown priority", configured(priority="rank")
    yield "a flag that is no bool", configured(delay_value="yes")
    yield "gamma in the constructor", configured(gamma=0.9)
    yield "a spec and bounds", configured(action_spec=_spec(), bounds=(-1, 1))
    yield "bounds the wrong way round", configured(bounds=(1.0, -1.0))
    yield "bounds that are no pair", configured(bounds=3)
    yield "a spec without bounds", configured(action_spec=_unbounded())
    yield "an unknown key", lambda: make().set_keys(rewards="r")
    yield "a key that is no name", lambda: make().set_keys(reward=3)
    yield "an unknown output", lambda: make().select_out_keys("loss_critic")
    yield "an unknown keyword argument", lambda: make()(observation=torch.zeros(3), next_rewards=torch.zeros(1))
    yield "bounds of another width", lambda: make(bounds=(torch.zeros(3), torch.ones(3)))(good_batch())
    yield (
        "a critic without parameters",
        lambda: DDPGLoss(
            actor, TensorDictModule(lambda o, a: o, in_keys=["observation", "action"], out_keys=["state_action_value"])
        ),
    )
    yield "an eps of one", lambda: SoftUpdate(make(), eps=1.0)
    yield "an unknown estimator", lambda: make().make_value_estimator("gae")
    yield "gamma out of range", lambda: make().make_value_estimator("td0", gamma=99)
    yield "lambda out of range", lambda: make().make_value_estimator("td_lambda", lmbda=-1)
    yield "a hyperparameter that the estimator lacks", lambda: make().make_value_estimator("td0", lmbda=0.9)
    yield "an estimator that a loss cannot use", lambda: make(D4PGLoss).make_value_estimator("td_lambda")
    yield "a support the wrong way round", lambda: make(D4PGLoss, v_min=1.0, v_max=-1.0)
    yield "a support of one atom", lambda: make(D4PGLoss, num_atoms=1)
    yield "a critic with other atoms", lambda: _with_seven_atoms()(good_batch())
    yield "no bounds where there must be", lambda: TD3Loss(*networks())
    yield "a list of critics of another length", lambda: TD3Loss(actor, [critic] * 3, bounds=(-1, 1))
    yield "noise below zero", lambda: make(TD3Loss, policy_noise=-0.1)
    yield "an alpha of zero", lambda: make(TD3BCLoss, alpha=0)
    yield "the priority's key in the constructor", lambda: make(TD3Loss, priority_key="p")
    yield "an action of another size to imitate", lambda: make(TD3BCLoss).loss_actor(with_("action", torch.zeros(8, 5)))
    yield "units of imitation that there are not", lambda: make(TD3BCLoss, imitation_units="rad")
    yield "a range of zero as a unit", lambda: make(ReBRACLoss, bounds=(torch.zeros(2), torch.tensor([0.0, 1.0])))
    yield "the next action is missing", lambda: make(ReBRACLoss)(good.exclude(("next", "action")))
    yield (
        "a next action of another size",
        lambda: make(ReBRACLoss)(with_(("next", "action"), torch.zeros(8, 5))),
    )
    yield "an alpha of the actor below zero", lambda: make(ReBRACLoss, alpha_actor=-1)
    yield "an alpha of the critic that is no number", lambda: make(ReBRACLoss, alpha_critic="0.1")
    yield "next actions of several rows at once", lambda: with_next_actions(batch(4, 5))
    yield "next actions without an action", lambda: with_next_actions(good.exclude("action"))
    yield "next actions of shuffled data", lambda: with_next_actions(good)
    yield "critics combined in an unknown way", lambda: make(FastTD3Loss, combine_critics="max")
    yield "FastTD3 without bounds", lambda: make(FastTD3Loss, bounds=None)
    yield "a loss function for a categorical critic", lambda: make(D4PGLoss, loss_function="l1")
    yield "tau out of range", lambda: SoftUpdate(make(), tau=1.5)
    yield "neither tau nor eps", lambda: SoftUpdate(make())
    yield "tau and eps", lambda: SoftUpdate(make(), tau=0.1, eps=0.9)
    yield "an interval of zero", lambda: HardUpdate(make(), value_network_update_interval=0)
    yield "an updater without targets", lambda: SoftUpdate(make(delay_actor=False, delay_value=False), tau=0.1)
    yield "an updater for a network", lambda: SoftUpdate(actor, tau=0.1)


def _spec():
    from torchrl.data import Bounded

    return Bounded(-1, 1, (2,))


def _unbounded():
    from torchrl.data import Unbounded

    return Unbounded((2,))


def _diverged():
    loss = make()
    for parameter in loss.parameters():
        parameter.data.fill_(float("inf"))
    return loss


def _with_seven_atoms():
    loss = D4PGLoss(*networks(outputs=7), v_min=-1.0, v_max=1.0, num_atoms=5)
    SoftUpdate(loss, tau=0.1)
    return loss


def _masked():
    loss = make()
    loss.loss_mask_key = "valid"
    return loss


def messages():
    """All of them, as the golden file has them."""
    lines = []
    for situation, provoke in situations():
        try:
            provoke()
        except Exception as error:
            lines.append(f"{situation}\n    {type(error).__name__}: {error}\n")
        else:
            lines.append(f"{situation}\n    NOTHING WAS RAISED\n")
    return "\n".join(lines)


def test_messages_read_as_the_golden_file():
    assert messages() == GOLDEN.read_text(), "if the new words are better: python tests/test_bad_input.py"


def test_no_message_is_another_librarys():
    for paragraph in GOLDEN.read_text().split("\n\n"):
        assert "NOTHING WAS RAISED" not in paragraph
        assert any(f"{name}: " in paragraph for name in ("Loss", "SoftUpdate", "HardUpdate", "with_next_actions")), (
            paragraph
        )


if __name__ == "__main__":
    GOLDEN.write_text(messages())

"""Docstrings of public names give each argument, its shape and unit, what is returned and raised, and the source."""

import inspect
import re

import pytest

import torchrl_ddpg
from torchrl_ddpg import functional

FUNCTIONS = [name for name in functional.__all__ if callable(getattr(functional, name))]
CLASSES = [name for name in torchrl_ddpg.__all__ if inspect.isclass(getattr(torchrl_ddpg, name))]
LOSSES = [name for name in CLASSES if hasattr(getattr(torchrl_ddpg, name), "loss_value")]
CONFIGURED = [*LOSSES, "SoftUpdate", "HardUpdate", "UpdateStep"]
OF_NO_PAPER = {"copy_", "expected_value", "mean_and_max", "DeterministicPolicyLoss"}

SHAPE = re.compile(r"``\[|scalar|shapes? (of|as)|broadcasts|tensors of any dtype|the target parameters")
UNIT = re.compile(
    r"units?\b|in \[|in \(|bool|positive|sums? to 1|N\(0|losses|weights|logits|parameters|any dtype|number"
)


def sections(doc):
    """The docstring's parts by title, each argument's text by name, and the first paragraph."""
    parts = re.split(r"^(Args|Returns|Raises|References|Examples):", inspect.cleandoc(doc), flags=re.MULTILINE)
    titled = dict(zip(parts[1::2], parts[2::2], strict=True))
    arguments = re.split(r"^    \*{0,2}(\w+): ", titled.get("Args", ""), flags=re.MULTILINE)
    return titled, dict(zip(arguments[1::2], arguments[2::2], strict=True)), parts[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_shapes_units_errors_and_source(name):
    function = getattr(functional, name)
    titled, arguments, _ = sections(function.__doc__)
    parameters = inspect.signature(function).parameters
    assert arguments.keys() == parameters.keys()
    for argument, text in arguments.items():
        if "Tensor" in str(parameters[argument].annotation):
            assert SHAPE.search(text), f"{argument} has no shape"
        if "str" not in str(parameters[argument].annotation):
            assert UNIT.search(text), f"{argument} has no unit or range"
    assert ("Returns" in titled) == (inspect.signature(function).return_annotation != "None")
    raises = re.search(r"raise |same_shape\(|strict=True", inspect.getsource(function).split('"""')[2])
    assert ("Raises" in titled) == bool(raises)
    assert ("References" in titled) == (name not in OF_NO_PAPER)
    assert "Examples" in titled or name == "copy_"


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_class_says_its_options_errors_and_source(name):
    cls = getattr(torchrl_ddpg, name)
    titled, arguments, _ = sections(cls.__doc__)
    accepted = inspect.signature(cls).parameters.keys()
    if "options" in accepted:  # the parent's, of which the page names those that matter here
        assert arguments.keys() >= accepted - {"options"}
    else:
        assert arguments.keys() == accepted
    assert "Raises" in titled
    assert ("References" in titled) == (name not in OF_NO_PAPER)
    assert "Examples" in titled or name == "DeterministicPolicyLoss"


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_has_a_docstring(name):
    cls = getattr(torchrl_ddpg, name)
    ours = [part for part in cls.__mro__ if part.__module__.startswith("torchrl_ddpg")]
    methods = {key: value for part in ours for key, value in vars(part).items() if inspect.isfunction(value)}
    assert inspect.getdoc(cls)
    assert not [key for key, value in methods.items() if not key.startswith("_") and not inspect.getdoc(value)]


@pytest.mark.parametrize("name", LOSSES)
def test_help_shows_the_constructors_options(name):
    cls = getattr(torchrl_ddpg, name)
    expected = list(inspect.signature(cls.__init__).parameters)[1:]
    assert list(inspect.signature(cls).parameters) == expected
    assert "actor_network" in expected

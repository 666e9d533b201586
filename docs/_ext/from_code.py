"""What pages take from the code: members of public classes, source links, snippets."""

import inspect
import sys
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralInclude
from sphinx.environment import BuildEnvironment
from sphinx.ext.intersphinx import missing_reference
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import torchrl_ddpg

CLASSES = [
    value
    for value in map(torchrl_ddpg.__dict__.get, torchrl_ddpg.__all__)
    if inspect.isclass(value)
]
BASE = torchrl_ddpg.DeterministicPolicyLoss
LOSSES = [cls for cls in CLASSES if issubclass(cls, BASE) and cls is not BASE]
# How annotations are written in the code, and the name under which a page documents the class.
DOCUMENTED_AS = {
    "Tensor": "torch.Tensor",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torchrl.data.tensor_specs.TensorSpec": "torchrl.data.TensorSpec",
    "torchrl_ddpg.losses.configuration.Self": "torchrl_ddpg.DeterministicPolicyLoss",
    "torchrl_ddpg.losses.module.NetworkOwner": "torchrl_ddpg.DeterministicPolicyLoss",
}


GROUPS = {
    "DeterministicPolicyLoss": "The call and its steps",
    "ConfigurableLoss": "Configuration",
    "NetworkOwner": "Networks and parameters",
}


def our_members(cls: type) -> dict[str, list[tuple[str, str]]]:
    """Public and documented members but for other libraries', in groups: kind and name."""
    ours = [part for part in cls.__mro__ if part.__module__.startswith("torchrl_ddpg")]
    shown = (
        ours if cls not in LOSSES else ours[: ours.index(BASE)]
    )  # the base class has a page of its own
    groups: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for part in shown:
        for name in vars(part):
            if (
                name not in seen
                and (not name.startswith("_") or name == "__call__")
                and is_documented(part, name)
            ):
                seen.add(name)
                groups.setdefault(GROUPS.get(part.__name__, "Members"), []).append(
                    (kind(cls, name), name)
                )
    return groups


def kind(cls: type, name: str) -> str:
    """The part of autodoc that documents a member."""
    value = inspect.getattr_static(cls, name)
    return (
        "property"
        if isinstance(value, property)
        else "method"
        if callable(getattr(cls, name))
        else "attribute"
    )


def is_documented(cls: type, name: str) -> bool:
    """Whether a method or property has a docstring, or an attribute a string below it."""
    value = vars(cls)[name]
    if inspect.isfunction(value) or isinstance(value, (property, classmethod)):
        return bool(inspect.getdoc(value))
    return (cls.__qualname__, name) in ModuleAnalyzer.for_module(cls.__module__).find_attr_docs()


def find_source(app: Sphinx, modname: str) -> tuple[str, dict] | None:
    """Give inherited members the names that a page asks for: also ``Subclass.method``."""
    if not modname.startswith("torchrl_ddpg"):
        return None
    analyzer = ModuleAnalyzer.for_module(modname)
    analyzer.find_tags()
    tags = dict(analyzer.tags)
    for cls in CLASSES:
        for parent in cls.__mro__[1:]:
            if parent.__module__ == modname:
                start = parent.__qualname__ + "."
                inherited = [name for name in analyzer.tags if name.startswith(start)]
                tags |= {
                    f"{cls.__name__}.{name.removeprefix(start)}": analyzer.tags[name]
                    for name in inherited
                }
    return analyzer.code, tags


def document_data(app: Sphinx, what: str, name: str, *others: Any) -> None:
    """Take a constant's docstring from the module that defines it, not from its type."""
    lines = others[-1]
    if what != "data":
        return
    for module in [module for module in sys.modules if module.startswith("torchrl_ddpg.")]:
        documented = ModuleAnalyzer.for_module(module).find_attr_docs()
        lines[:] = documented.get(("", name.rpartition(".")[2]), lines)


def resolve_alias(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Link what is documented under another name, and members of every loss from anywhere."""
    target = node.get("reftarget", "")
    if node.get("refdomain") == "py" and hasattr(BASE, target):
        full = f"torchrl_ddpg.{BASE.__name__}.{target}"
    elif target in DOCUMENTED_AS:
        full = DOCUMENTED_AS[target]
    else:
        return None
    node["reftarget"] = full
    python = env.domains.python_domain
    found = python.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], full, node, contnode
    )
    return found or missing_reference(app, env, node, contnode)


class Snippet(SphinxDirective):
    """A function of ``snippets/differences.py`` and what it printed, folded away."""

    required_arguments = 1
    optional_arguments = 9
    option_spec: ClassVar = {"needs": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The nodes; each argument is a function's name."""
        included = []
        for part in [*self.options.get("needs", "").split(), *self.arguments]:
            included += self._included("differences.py", {"pyobject": part})
            if part in self.arguments:
                printed = {"start-after": f"# {part}", "end-before": "# ", "language": "text"}
                included += self._included("differences.txt", printed)
        opened = nodes.raw(
            "", "<details><summary>Snippet and what it prints</summary>", format="html"
        )
        return [opened, *included, nodes.raw("", "</details>", format="html")]

    def _included(self, file: str, options: dict[str, str]) -> list[nodes.Node]:
        place = (self.content, self.lineno, self.content_offset, "", self.state, self.state_machine)
        return LiteralInclude("literalinclude", [f"/snippets/{file}"], options, *place).run()


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register everything."""
    app.connect("viewcode-find-source", find_source)
    app.connect("autodoc-process-docstring", document_data)
    app.connect("missing-reference", resolve_alias)
    app.add_directive("snippet", Snippet)
    app.config.autosummary_context = {
        "losses": [cls.__name__ for cls in LOSSES],
        "members_of": {cls.__name__: our_members(cls) for cls in CLASSES},
        "members_of_every_loss": our_members(BASE),
        "public_functions": torchrl_ddpg.functional.__all__,
    }
    return {"parallel_read_safe": True}

"""The directive ``trainer-flags``: a table of every flag of the example trainer."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from trainer.command_line import flag
from trainer.configuration import PRESETS, Config


def rows(kind: type, configs: list, prefix: str = "--"):
    """Flag, what it sets, and its default in every preset; first a row for a group of flags."""
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.MULTILINE))
    for field in sorted(
        dataclasses.fields(kind),
        key=lambda f: dataclasses.is_dataclass(getattr(configs[0], f.name)),
    ):
        values = [getattr(config, field.name) for config in configs]
        if dataclasses.is_dataclass(values[0]):
            yield from rows(type(values[0]), values, f"{prefix}{field.name}.")
        else:
            yield [f"``{flag(field.name, prefix)}``", comments[field.name], *map(shown, values)]


def shown(value) -> str:
    """A default as it is typed."""
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "" if value in ("", None) else f"``{words}``"


class TrainerFlags(SphinxDirective):
    """A list table."""

    def run(self) -> list[nodes.Node]:
        """Parse it as reStructuredText."""
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in [["flag", "what it sets", *PRESETS], *rows(Config, list(PRESETS.values()))]:
            lines += [f"   {'  -' if index else '* -'} {cell}" for index, cell in enumerate(row)]
        self.env.note_dependency(inspect.getsourcefile(Config))
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, source="trainer-flags"), 0, node)
        return node.children


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive."""
    app.add_directive("trainer-flags", TrainerFlags)
    return {"version": "1", "parallel_read_safe": True}

"""Every Python block of the how-to pages runs: a page's blocks in order, in one namespace, after the common setup."""

import re
from pathlib import Path

import pytest

HOWTO = Path(__file__).parent.parent / "docs" / "howto"
PAGES = sorted(path.stem for path in HOWTO.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What TorchRL says about its own parts; a warning of this library is an error here as elsewhere.
THEIRS = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:DDPGTrainer is an experimental:UserWarning",
    "ignore:.*hook stage will be replaced:UserWarning",
)
pytestmark = [pytest.mark.filterwarnings(theirs) for theirs in THEIRS]


def run(page, namespace):
    """Execute the page's blocks; errors name the page and the line."""
    path = HOWTO / f"{page}.md"
    text = path.read_text()
    for block in BLOCK.finditer(text):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], path, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup = run("index", {"__name__": "a_page"})
    if page != "index":
        assert len(run(page, dict(setup))) > len(setup), "the page has no block that makes anything"

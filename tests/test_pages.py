"""Every Python block of the how-to pages runs: a page's blocks in order, in one namespace, after the common setup."""

import re
from pathlib import Path

import pytest

HOWTO = Path(__file__).parent.parent / "docs" / "howto"
PAGES = sorted(path.stem for path in HOWTO.glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{category}") for category in ("DeprecationWarning", "FutureWarning")
]


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

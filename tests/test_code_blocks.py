"""Every Python block of every page runs, a page's blocks in order and in one namespace."""

import doctest
import re
import runpy
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
SHOWN_ONLY = {"text", "bash", "csv"}  # pseudocode, printed results, commands
ELSEWHERE = ("docs/howto/", "docs/tutorials/", "docs/inventories/", "docs/_")  # run in test_pages.py, and when built
SLOW = {"docs/start/five_minutes.md"}  # a whole training

FENCES = MarkdownIt()
found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(name for name in (str(path.relative_to(ROOT)) for path in found) if not name.startswith(ELSEWHERE))


def blocks(page):
    """Line, language and text of each fenced block."""
    tokens = FENCES.parse((ROOT / page).read_text())
    return [(token.map[0] + 1, token.info.strip(), token.content) for token in tokens if token.type == "fence"]


def with_python():
    """Pages with Python in them."""
    for page in PAGES:
        if any(language == "python" for _, language, _ in blocks(page)):
            yield pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())


def run(page):
    namespace = {"__name__": "page"}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    for line, language, text in blocks(page):
        if language != "python":
            continue
        if text.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(text, namespace, page, page, line)
            runner.run(example, clear_globs=False)
            namespace.update(example.globs)  # a doctest runs on a copy
            assert not runner.failures, f"{page}, line {line}"
        else:
            exec(compile("\n" * line + text, page, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", list(with_python()))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_language_each_block_is_in(page):
    for line, language, _ in blocks(page):
        assert language in SHOWN_ONLY | {"python"} or language.startswith("{"), f"{page}, line {line}: {language!r}"


@pytest.mark.parametrize("page", PAGES)
def test_what_commands_and_inclusions_name_is_there(page):
    for line, language, text in blocks(page):
        named = re.findall(r"(?:examples|benchmarks|docs|tests)/\w+(?:/\w+)*\.\w+", text) if language == "bash" else []
        missing = [name for name in named if not (ROOT / name).exists()]
        assert not missing, f"{page}, line {line}: {missing}"
        if language.startswith("{literalinclude}"):
            assert ((ROOT / page).parent / language.split()[1]).exists(), f"{page}, line {line}"


@pytest.mark.parametrize("algorithm", ["ddpg", "td3", "d4pg", "td3_bc"])
def test_the_learning_curves_can_be_measured_again(algorithm):
    script = runpy.run_path(str(ROOT / "docs" / "snippets" / "learning_curves.py"))
    settings = script["train"].__globals__
    settings.update(STEPS=60, WARM_UP=40)
    data = script["train"]("td3", 0)[1] if algorithm == "td3_bc" else None
    curve, _ = script["train"](algorithm, 0, data)
    assert len(curve) == 1
    assert -2_000 < curve[0][1] < 0

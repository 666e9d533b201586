"""The built pages: every public name has one and is linked, and in a real browser nothing is missing or cut off."""

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

import torchrl_ddpg
from browser import EXECUTABLE, Browser
from torchrl_ddpg import functional

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parent.parent / "docs"
NAMES = [*torchrl_ddpg.__all__, *(f"functional.{name}" for name in functional.__all__)]
GENERATED = ("reference/generated/", "_modules/", "genindex", "search", "py-modindex")
in_a_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages in DOCS_HTML, which the checks have just built, or else pages built here, tutorials not executed."""
    if "DOCS_HTML" in os.environ:
        return Path(os.environ["DOCS_HTML"])
    html = tmp_path_factory.mktemp("site") / "html"
    source = [str(DOCS), str(html), "-d", str(html.parent / "doctrees")]
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-D", "plot_gallery=0", *source]
    built = subprocess.run(command, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    return html


def page_of(name):
    return f"reference/generated/torchrl_ddpg.{name}.html"


def written(site):
    """The pages that somebody wrote, and their text."""
    pages = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    return {name: text for name, text in pages.items() if not name.startswith(GENERATED)}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_page_with_its_source_and_docstring(site, name):
    text = (site / page_of(name)).read_text()
    assert f'id="torchrl_ddpg.{name}"' in text or f'id="module-torchrl_ddpg.{name}"' in text
    assert "viewcode-link" in text or name == "functional" or name.rpartition(".")[2].isupper()


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_linked_from_a_page_that_somebody_wrote(site, name):
    target = page_of(name).rpartition("/")[2]
    linking = [page for page, text in written(site).items() if target in text.split('role="main"')[-1]]
    linking = [page for page in linking if page != "reference/index.html"]
    assert linking, f"no page links to {name}"


def test_every_method_of_the_base_class_links_to_its_source(site):
    text = (site / page_of("DeterministicPolicyLoss")).read_text()
    signatures = re.findall(
        r'<dt class="sig[^>]*id="torchrl_ddpg\.DeterministicPolicyLoss\.(\w+)">(.*?)</dt>', text, re.S
    )
    base = torchrl_ddpg.DeterministicPolicyLoss
    bare = [name for name, sig in signatures if "viewcode-link" not in sig and callable(getattr(base, name))]
    assert len(signatures) > 30
    assert not bare


@pytest.fixture(scope="module")
def address(site):
    """The site on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.closing(server.socket):
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@in_a_browser
def test_no_page_complains_asks_another_host_or_scrolls_sideways(site, address, browser):
    faults = []
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    assert "reference/generated/torchrl_ddpg.DDPGLoss.html" in pages
    for page in pages:
        for width in (1400, 390):
            browser.open(address + page, width)
            faults += [f"{page} at {width}: {error}" for error in browser.errors]
            others = [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))]
            faults += [f"{page} asks {url}" for url in others]
            if browser.run(SIDEWAYS):
                faults.append(f"{page} scrolls sideways at {width}")
            if width == 1400 and browser.run(CUT_CODE):
                faults.append(f"{page} cuts code off at {width}: {browser.run(CUT_CODE)}")
            if browser.run(LOST_TABLES):
                faults.append(f"{page} loses columns at {width}")
            if browser.run(
                "document.querySelectorAll('mjx-merror, .math.notranslate:not(:has(mjx-container))').length"
            ):
                faults.append(f"{page}: a formula is not set")
    assert not faults, "\n".join(faults)


# The theme lets the content scroll by itself on a telephone, where it would hide columns as well.
SIDEWAYS = """[document.documentElement, ...document.querySelectorAll(".content, article")]
  .filter(part => part === document.documentElement || getComputedStyle(part).overflowX !== "visible")
  .filter(part => part.scrollWidth > part.clientWidth + 1).length"""
# What is folded away is unfolded first: what is hidden has no width.
CUT_CODE = """(() => {
  document.querySelectorAll("details").forEach(part => part.open = true);
  return [...document.querySelectorAll("article .highlight pre")]
    .filter(code => code.scrollWidth > code.clientWidth + 1).map(code => code.innerText.slice(0, 60));
})().join(" | ")"""
LOST_TABLES = """[...document.querySelectorAll("article table")].filter(table => {
  const box = table.parentElement, room = box.getBoundingClientRect();
  const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
  return room.right > innerWidth + 1 || (table.getBoundingClientRect().right > room.right + 1 && !scrolls);
}).length"""


@in_a_browser
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tau", "concepts/glossary"),
        ("n-step", "concepts/targets"),
        ("custom loss", "own_loss"),
        ("SoftUpdate", "reference/generated/torchrl_ddpg.SoftUpdate"),
    ],
)
def test_search_finds(address, browser, words, expected):
    browser.open(f"{address}search.html?q={urllib.parse.quote(words)}")
    found = browser.run("""new Promise(resolve => {
      const began = Date.now();
      const look = () => {
        const links = [...document.querySelectorAll("#search-results li a")].map(link => link.getAttribute("href"));
        const last = document.querySelector("#search-results .search-summary")?.innerText || "";
        const ended = /found|finished|did not match/i.test(last) && !last.endsWith("...");
        ended || Date.now() - began > 20000 ? resolve(links) : setTimeout(look, 100);
      };
      look();
    })""")
    assert any(link.startswith(expected) for link in found[:10]), found[:10]
    assert not browser.errors

"""The site as a reader meets it: built strictly, opened in Chromium by `scripts/browse_docs.py`."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from scripts import browse_docs
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
chromium = pytest.mark.skipif(
    not any(map(shutil.which, browse_docs.CHROMIUM)), reason="no Chromium on the PATH"
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}


def run(*command):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site, and what its builder said."""
    if not all(map(find_spec, ("mkdocs", "material", "mkdocstrings", "math_core"))):
        pytest.skip("the site's builder is not installed: pip install '.[docs]'")
    site = tmp_path_factory.mktemp("site")
    return site, run("-m", "mkdocs", "build", "--strict", "--site-dir", site)


def test_every_page_is_built(built):
    _, done = built
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


@chromium
def test_every_page_can_be_read(built):
    looked = run("scripts/browse_docs.py", built[0], "--need")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    pages = len(list((ROOT / "docs").rglob("*.md")))
    assert looked.stdout.startswith(f"{pages} pages, ")  # of which none was passed over


BROKEN = """<!doctype html><html><head><meta name="viewport" content="width=device-width"><style>
body {background: #fff} code {color: #0007; background: #eee}</style></head><body><article>
<p id="there">clear <code>pale</code> <a href="#there">good</a> <a href="nowhere/">dead</a>
<a href="#gone">no anchor</a></p>
<img src="missing.png" alt="a text"><img src="dot.svg"><math style="display: none"><mi>x</mi></math>
<span class="arithmatex">\\\\(y\\\\)</span><div style="width: 500px">wide</div>
<input class="md-search__input"></article>
<script>console.error("loud"); fetch("http://localhost:1/elsewhere").catch(() => 0);</script>
</body></html>"""


@chromium
def test_what_is_wrong_with_a_page_is_told(tmp_path):
    """Had the browser seen nothing, the test above could not fail."""
    (tmp_path / "index.html").write_text(BROKEN)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
    (tmp_path / "dot.svg").write_text(svg)
    looked = run("scripts/browse_docs.py", tmp_path, "--need")
    assert looked.returncode == 1
    for words in (
        "console: ['loud']",
        "asks another server: http://localhost:1/elsewhere",
        "missing.png",
        "image that is not drawn",
        "image without a text",
        "formula that is not drawn: x",
        "LaTeX that is no MathML",
        "wider than 360 px",
        "text hardly stands out in the light scheme",
        "the dark scheme is None",
        "leads nowhere",
        "no such anchor",
        "the search for 'Langevin' finds 0 places",
    ):
        assert words in looked.stdout, words
    assert looked.stdout.count("no such anchor") == 1

"""What can be said of the pages without building them; `test_site.py` builds and opens them."""

import ast
import pkgutil
import re
import runpy
import shlex
import tomllib

import pytest

from pcflax.citations import bibliography
from tests.conftest import ROOT
from tests.test_readme import COMMANDS

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
PAGES["README.md"] = (ROOT / "README.md").read_text()
NAV = re.findall(
    r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE
)
BASH = re.compile(r"^```bash\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^( *)(`{3,})\w*.*?^\1\2$", flags=re.DOTALL | re.MULTILINE)


def prose(text):
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", FENCED.sub("", text))


def test_marks_beside_a_formula_stay_on_its_line():
    """A browser may break a line on either side of a formula: before a comma, too."""
    for name in ("mkdocs", "math_core"):
        pytest.importorskip(
            name, reason="the site's builder is not installed: pip install '.[docs]'"
        )
    hook = runpy.run_path(str(ROOT / "docs/hooks/mathematics.py"))["on_page_content"]
    formula = r'<span class="arithmatex">\(x\)</span>'
    drawn = hook(f"<p>at ({formula}), or {formula} there</p>", page=None)
    start, end = '<p>at <span class="formula">(<math>', "</math>),</span> or "
    assert drawn.startswith(start)
    assert end in drawn
    assert drawn.endswith("</math></span> there</p>")
    block = hook(r'<div class="arithmatex">\[x\]</div><p>.</p>', page=None)
    assert block.startswith('<div class="formula"><math display="block">')
    assert "nowrap" in (ROOT / "docs/assets/pcflax.css").read_text()


BRITISH = re.compile(
    r"\b(?:un)?(?:binaris|colour|discretis|factoris|generalis|grey|initialis|labell|learnt|minimis|"
    r"neighbour|penalis|summaris)\w*",
    flags=re.IGNORECASE,
)


def test_spelling_is_american():
    """One word an idea: minimized on one page and minimised on the next are two."""
    sources = {
        path.relative_to(ROOT).as_posix(): "\n".join(
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        )
        for path in sorted((ROOT / "pcflax").rglob("*.py"))
    }
    pages = {name: prose(text) for name, text in PAGES.items() if name != "docs/decisions.md"}
    found = {name: BRITISH.findall(text) for name, text in {**pages, **sources}.items()}
    assert not {name: words for name, words in found.items() if words}


def test_every_page_is_in_the_navigation_once():
    pages = [name.removeprefix("docs/") for name in PAGES if name != "README.md"]
    top = re.findall(
        r"^  - [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE
    )
    assert sorted({*NAV, *top}) == sorted(pages)
    assert len(set(NAV)) == len(NAV)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_formulas_that_end_where_they_begin(name):
    text = prose(PAGES[name])
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1
    inline = re.sub(r"^\$\$\n.*?^\$\$$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in inline.splitlines() if line.count("$") % 2] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_pictures_and_citations_of_a_page_lead_somewhere(name):
    text = prose(PAGES[name])
    folder = (ROOT / name).parent
    for alt, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text):
        assert len(alt) > 10, f"{target} has no text for those who do not see it"
        assert (folder / target).is_file(), target
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#]+\.md)(?:#[\w-]+)?\)", text):
        assert (folder / target).is_file(), target
    assert set(re.findall(r"\[@(\w+)\]", text)) <= set(bibliography())
    if name == "README.md":
        assert "[@" not in text  # which only the site makes links of


def test_the_api_by_purpose_names_what_exists_and_is_on_a_page():
    shown = {
        path
        for page in PAGES
        if page.startswith("docs/api/")
        for path in re.findall(r"^::: (\S+)$", PAGES[page], flags=re.MULTILINE)
    }
    named = re.findall(r"\[`(\w+)`\]\[(pcflax[\w.]+)\]", PAGES["docs/api/index.md"])
    assert len(named) > 120
    for word, path in named:
        assert path.rsplit(".", 1)[1] == word
        assert pkgutil.resolve_name(path)
        assert path in shown or path.rsplit(".", 1)[0] in shown, path


COMMAND_LINES = {
    f"{name}: {line}": line
    for name, text in PAGES.items()
    for block in BASH.findall(text)
    for line in block.splitlines()
    if line and line not in COMMANDS  # which `test_readme.py` runs
}


def test_the_pairs_of_versions_are_told_alike():
    """In the README and on the page of versions, and as pip chooses them."""
    tables = [
        re.findall(r"^\| 3\.1.*$", PAGES[name], flags=re.MULTILINE)
        for name in ("README.md", "docs/versions.md")
    ]
    assert tables[0] == tables[1] != []
    asked = (ROOT / "pyproject.toml").read_text()
    for least in ("jax>=0.10,", "flax>=0.12.8,", "jax>=0.11.1;", "flax>=0.12.10,"):
        number = re.search(r"[\d.]+", least)[0]
        assert least in asked
        assert any(f"| {number} " in row for row in tables[0])


@pytest.mark.parametrize("line", COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_command_that_is_too_long_to_run_here_names_what_exists(line):
    """A target of make, an extra, or a script with its options."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{word}:", targets, flags=re.MULTILINE) for word in words)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        (where,) = [word for word in words if word.startswith(".")]
        assert set(re.findall(r"\w+", where)) <= set(extras)
    else:
        assert program == "python"
        source = (ROOT / words[0]).read_text()
        source += (ROOT / "benchmarks/answers.py").read_text()  # whose parser scripts share
        known = set(re.findall(r'"(--[\w-]+)"', source))
        if 'f"--{name}"' in source:  # an option for each field of its tuples
            known |= {f"--{name}" for name in re.findall(r"^    (\w+): ", source, re.MULTILINE)}
        assert {word for word in words if word.startswith("--")} <= known


def sentences():
    """Every text in pcflax that an error or a warning may say, with {} for what is filled in."""
    for path in (ROOT / "pcflax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_troubleshooting_quotes_what_pcflax_says():
    quotes = re.findall(r'^### "(.+)"$', PAGES["docs/troubleshooting.md"], flags=re.MULTILINE)
    assert len(quotes) > 20
    said = "\n".join(sentences())
    assert [quote for quote in quotes if quote not in said] == []


def test_every_trouble_has_a_remedy():
    entries = re.split(r"^### ", PAGES["docs/troubleshooting.md"], flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries if "emedy.**" not in entry] == []

"""The layout's arrows: imports go down the list, never up."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "pcflax"

# Folder (or module): what it may import of ours, besides itself. What those may import, it may too.
ARROWS = {
    "variables": [],
    "typing": [],
    "checks": [],
    "energies": ["typing", "variables", "checks"],
    "parameterizations": ["typing", "checks"],
    "layers": ["energies", "parameterizations"],
    "networks": ["layers"],
    "initializers": ["networks"],
    "inference": ["networks"],
    "learning": ["inference"],
    "analysis": ["learning"],
    "data": ["typing"],
    "training": ["learning", "initializers", "data"],
    "plotting": ["typing"],
    "models": ["networks"],
}
TOP = ("cli", "__main__")  # may import everything; nothing imports them


def reach(place):
    """Everything that a place may import."""
    allowed = {place}
    for below in ARROWS[place]:
        allowed |= reach(below)
    return allowed


def place_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path):
    """The places of ours that a file imports, wherever in the file it does."""
    relative_to = ("pcflax", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "pcflax":
                    yield parts[1] if len(parts) > 1 else "__init__"
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = [*relative_to[: len(relative_to) - node.level + 1], *base]
            if base[:1] == ["pcflax"]:
                if len(base) > 1:
                    yield base[1]
                else:
                    yield from (alias.name for alias in node.names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    place = place_of(path)
    if place in TOP:
        return
    assert place in ARROWS, f"{place} is not in the layout; give it its arrows here and in the docs"
    wrong = set(imports_of(path)) - reach(place)
    assert not wrong, f"{path.name} imports {', '.join(sorted(wrong))}, which lies above {place}"


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    """If it saw nothing, the test above could not fail."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "layers").mkdir()
    file = tmp_path / "layers" / "x.py"
    file.write_text(
        "import pcflax\nimport pcflax.cli.main\nfrom pcflax import training\n"
        "from pcflax.learning.base import X\nfrom ..networks import Y\nfrom . import dense\n"
        "def f():\n    from ..data.base import Z\n"
    )
    assert sorted(imports_of(file)) == [
        "__init__",
        "cli",
        "data",
        "layers",
        "learning",
        "networks",
        "training",
    ]


def test_files_stay_readable():
    """Past 500 lines, ask which second idea moved in; the Trainer, mostly docstrings, is the longest."""
    long = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in FILES
        if len(path.read_text().splitlines()) > 550
    }
    assert not long

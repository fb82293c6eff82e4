"""The layout: imports go down the list and in no circle; files are short, docstrings begin with a verb."""

import ast
import graphlib
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "pcflax"

# Folder (or module): what it may import of ours, besides itself. What those may import, it may too.
ARROWS = {
    "typing": [],
    "dtypes": [],
    "variables": [],
    "citations": [],
    "errors": ["typing"],
    "checks": ["typing"],
    "functions": [],
    "settings": ["checks", "functions"],
    "energies": ["checks", "dtypes", "variables"],
    "sharding": ["checks", "variables"],
    "parameterizations": ["checks"],
    "layers": ["energies", "parameterizations", "settings", "functions", "errors", "sharding"],
    "networks": ["layers"],
    "initializers": ["networks"],
    "inference": ["initializers"],
    "learning": ["inference"],
    "analysis": ["learning"],
    "data": ["checks", "networks"],
    "training": ["learning", "data"],
    "experiments": ["training"],
    "plotting": ["networks"],
    "models": ["networks"],
    "recipes": ["training", "models"],
}

# What is known to be in the way and is being mended; nothing may be added.
CIRCLES: set[tuple[str, str]] = set()
LONG_FILES: set[str] = set()
ASKS_FOR_A_CLASS: set[str] = set()

# What a function's docstring may begin with. A new verb joins; a noun, an article or "What" does not.
VERBS = set(
    """Add Ask Begin Build Burn Call Check Choose Close Compare Compile Compute Count Descend Describe
    Divide Do Draw End Estimate Examine Fill Give Go Have Hear Hold Infer Integrate Join Keep Learn
    Let Lift Load Log Look Make Mark Measure Merge Minimize Move Multiply Name Note Open Order Parse
    Pass Predict Print Pull Put Raise Read Refuse Remove Rename Repeat Restore Return Run Save Say
    Scan See Set Show Solve Split Spread Stand Step Stop Store Sum Summarize Sweep Take Tell Train
    Undo Update Wait Warn Write Yield""".split()
)

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


def modules_of(path):
    """Every (module, name) that a file imports of ours, wherever in the file it does; "" for a module."""
    relative_to = ("pcflax", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [(tuple(alias.name.split(".")), "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (*relative_to[: len(relative_to) - node.level + 1], *base)
            found = [(base, alias.name) for alias in node.names]
        else:
            continue
        yield from ((module, name) for module, name in found if module[0] == "pcflax")


def imports_of(path):
    """The places of ours that a file imports."""
    for module, name in modules_of(path):
        yield module[1] if len(module) > 1 else name or "__init__"


def files_imported_by(path):
    """The files of ours that a file imports, relative to the package."""
    for module, name in modules_of(path):
        base = PACKAGE.joinpath(*module[1:])
        tried = [base / f"{name}.py", base / name / "__init__.py", base / "__init__.py"]
        tried.append(base.with_suffix(".py"))
        yield str(next(file for file in tried if file.is_file()).relative_to(PACKAGE))


def circle(arrows):
    """The files of one circle of imports, or none."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def name_of(path):
    return str(path.relative_to(PACKAGE))


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=name_of)
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


def test_no_file_imports_itself_by_way_of_others():
    """A circle is one file in several: it cannot be read, tested or moved in parts."""
    arrows = {
        name_of(path): {
            other for other in files_imported_by(path) if (name_of(path), other) not in CIRCLES
        }
        for path in PACKAGE.rglob("*.py")
    }
    assert circle(arrows) == []


def test_a_circle_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "layers").mkdir()
    texts = {
        "layers/__init__.py": "from .a import A as A\n",
        "layers/a.py": "def f():\n    from . import b\n",
        "layers/b.py": "from pcflax.layers.c import C\n",
        "layers/c.py": "if TYPE_CHECKING:\n    from pcflax.layers import A\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    arrows = {name: set(files_imported_by(tmp_path / name)) for name in texts}
    assert set(circle(arrows)) == set(texts)
    arrows["layers/c.py"] = set()
    assert circle(arrows) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_readable(path):
    """Past 400 lines, ask which second idea moved in."""
    most = 550 if name_of(path) in LONG_FILES else 400
    assert len(path.read_text().splitlines()) <= most


def begun_without_a_verb(path):
    """(name, first line) of each function and method whose docstring begins with no verb; no properties."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        values = any("property" in ast.unparse(one) for one in node.decorator_list)
        if text and not values and re.match(r"\w*", text)[0] not in VERBS:
            yield node.name, text.splitlines()[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_of_functions_begin_with_a_verb(path):
    """So that each says what is done, in the present; see CONTRIBUTING.md."""
    found = list(begun_without_a_verb(path))
    assert not found, "write 'Return ...', say, or add the verb to VERBS"


def test_a_docstring_without_a_verb_is_seen(tmp_path):
    """In functions, methods and functions within; not of classes and properties, which are nouns."""
    file = tmp_path / "x.py"
    file.write_text(
        'def f():\n    """The rows of each task."""\n    def g():\n        """What it gives."""\n'
        'class A:\n    """A thing."""\n    @property\n    def size(self):\n        """How many."""\n'
        '    async def h(self):\n        """`n`, found."""\n    def i(self):\n        """Refuse: none."""\n'
        '    def j(self):\n        """Returns it."""\n    def k(self):\n        pass\n'
    )
    assert sorted(name for name, _ in begun_without_a_verb(file)) == ["f", "g", "h", "j"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_above_the_layers_asks_what_class_a_layer_is(path):
    """A node's verbs are methods, which a stack and a root override."""
    asks = re.search(r"isinstance\(.*PC(Stack|Root)", path.read_text())
    assert not asks or place_of(path) == "layers" or name_of(path) in ASKS_FOR_A_CLASS

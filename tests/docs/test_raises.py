"""Every error that the public API raises is told: in a docstring, or in Troubleshooting.

The sources are read, nothing is called. What a function raises is what it says itself and what the
functions of pcflax that it calls by name say, and so on down; what it catches itself is left out. An
error is told where the docstring has its class under `Raises:`, or where a heading of
`docs/troubleshooting.md` quotes its sentence. Of what nobody calls by name, a constructor or a method that
fills in a contract, the docstrings of the class and of its public bases tell, too.
"""

import ast
import collections
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

import pcflax as pc
from tests.conftest import ROOT
from tests.test_public_api import PUBLIC

CLASSES = {id(value) for value in PUBLIC.values() if inspect.isclass(value)}
QUOTES = re.findall(
    r'^### "(.+)"$', (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE
)
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def definitions(module):
    """{qualified name: node} of the functions of a module of pcflax, those in classes included."""
    found = {}

    def look(body, before):
        for node in body:
            if isinstance(node, FUNCTION):
                found[before + node.name] = node
            elif isinstance(node, ast.ClassDef):
                look(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.If | ast.Try):
                look(node.body, before)

    look(ast.parse(Path(sys.modules[module].__file__).read_text()).body, "")
    return found


def plain(function):
    """The function below properties, class methods, caches and compilations."""
    for attribute in ("fget", "func", "__func__"):
        function = getattr(function, attribute, function) or function
    return inspect.unwrap(function) if callable(function) else function


def source(function):
    """The node of a function of pcflax, or None for what Python or others made."""
    module = getattr(function, "__module__", None) or ""
    if module.split(".")[0] != "pcflax" or inspect.isclass(function):
        return None
    return definitions(module).get(getattr(function, "__qualname__", ""))


def again(handler):
    """Whether what is caught is raised again."""
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


def raising(node, caught=()):
    """(raise or call, the classes that are caught around it) within a function."""
    if isinstance(node, ast.Try):
        kinds = [handler.type for handler in node.handlers if handler.type and not again(handler)]
        names = (name for kind in kinds for name in ast.walk(kind) if isinstance(name, ast.Name))
        inside = (*caught, *(name.id for name in names))
        parts = [(part, inside) for part in node.body]
        parts += [(part, caught) for part in (*node.handlers, *node.orelse, *node.finalbody)]
    else:
        parts = [(part, caught) for part in ast.iter_child_nodes(node)]
    if isinstance(node, ast.Raise | ast.Call):
        yield node, caught
    for part, around in parts:
        yield from raising(part, around)


def words(node):
    """The constant parts of the texts below a node, {} for what is filled in."""
    texts = []
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            texts.append(
                "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in part.values)
            )
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            texts.append(part.value)
    return texts


@functools.cache
def scope(function):
    """What the names in a function mean: those of its module, and those that it imports itself."""
    inside = {}
    for node in ast.walk(source(function)):
        if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("pcflax")):
            package = function.__module__.rsplit(".", node.level)[0] if node.level else ""
            module = importlib.import_module(".".join(filter(None, (package, node.module))))
            for alias in node.names:
                inside[alias.asname or alias.name] = getattr(module, alias.name)
    return collections.ChainMap(inside, vars(sys.modules[function.__module__]))


def meant(function, call, owner):
    """What a call names: a function, one of a module of ours, or a private method of the class."""
    called = call.func
    if isinstance(called, ast.Name):
        return plain(scope(function).get(called.id))
    if not isinstance(called, ast.Attribute) or not isinstance(called.value, ast.Name):
        return None
    if called.value.id in ("self", "cls") and re.match("_[a-z]", called.attr):
        return plain(inspect.getattr_static(owner, called.attr, None))
    module = scope(function).get(called.value.id)
    if inspect.ismodule(module) and module.__name__.startswith("pcflax."):
        return plain(getattr(module, called.attr, None))
    return None


def classes_of(function, error, owner):
    """The names of the classes that `raise error` may raise; none for an error that is handed on."""
    if isinstance(error, ast.Name):
        return [error.id] if error.id[0].isupper() else []
    if not isinstance(error, ast.Call):
        return []
    name = error.func.attr if isinstance(error.func, ast.Attribute) else error.func.id
    if name[0].isupper():
        return [name]
    maker = source(meant(function, error, owner))
    if maker is not None:
        kind = ast.unparse(maker.returns)
        return [] if kind == "BaseException" else [kind]
    names = (node.id for node in ast.walk(source(function)) if isinstance(node, ast.Name))
    return sorted({name for name in names if name.endswith("Error")})  # one of these, by a variable


@functools.cache
def itself(function, owner):
    """[(class, sentences, line)] of what a function raises itself; [(function, caught)] of what it calls."""
    errors, calls = [], []
    for part, caught in raising(source(function)):
        if isinstance(part, ast.Call):
            called = meant(function, part, owner)
            if source(called) is not None:
                calls.append((called, caught))
            continue
        maker = isinstance(part.exc, ast.Call) and source(meant(function, part.exc, owner))
        said = (*words(part), *(words(maker) if maker else ()))
        for name in classes_of(function, part.exc, owner):
            if cases(name).isdisjoint(caught):
                errors.append((name, said, f"{function.__module__}:{part.lineno}"))
    return errors, calls


def raises(function, owner=None):
    """{(class, sentences, line)} of what a function raises, itself or by the functions that it calls."""
    found, seen, ahead = set(), set(), [(function, ())]
    while ahead:
        now = ahead.pop()
        if now in seen:
            continue
        seen.add(now)
        function, caught = now
        errors, calls = itself(function, owner)
        found |= {error for error in errors if cases(error[0]).isdisjoint(caught)}
        ahead += [(called, tuple(sorted({*caught, *more}))) for called, more in calls]
    return found


@functools.cache
def cases(name):
    """The names of an error's class and of those that it is a case of."""
    kinds, ahead = {}, [BaseException]
    while ahead:
        kind = ahead.pop()
        if kind.__module__.split(".")[0] in ("builtins", "pcflax"):
            kinds[kind.__name__] = kind
        ahead += kind.__subclasses__()
    bases = kinds[name].__mro__ if name in kinds else ()
    return {name} | {base.__name__ for base in bases} - {"object"}


def is_told(name, text):
    """Whether the error's class, or one that says enough of it, stands in the text."""
    kinds = cases(name) - ({"Exception", "BaseException"} - {name})
    return not kinds.isdisjoint(re.findall(r"\w+", text))


def section(text):
    """The part of a docstring under `Raises:`."""
    text = inspect.cleandoc(text or "")
    found = re.search(r"^Raises:\n((?: +.*\n?|\n(?= ))*)", text, flags=re.MULTILINE)
    return found[1] if found else ""


def parts(value):
    """(name, function, the docstrings that tell of it, the class) of a public function or class."""
    if not inspect.isclass(value):
        if source(plain(value)) is not None:
            yield "", plain(value), [inspect.getdoc(plain(value))], None
        return
    bases = [base for base in value.__mro__ if base.__module__.split(".")[0] == "pcflax"]
    of_class = [base.__doc__ for base in bases if base is value or id(base) in CLASSES]
    for base in bases:
        for name, member in vars(base).items():
            private = name.startswith("_") and not name.endswith("__")
            if private or source(plain(member)) is None:
                continue
            special = name.startswith("__")
            if not special and inspect.getattr_static(value, name) is not member:
                continue  # overridden
            above = [vars(other)[name] for other in bases if name in vars(other)]
            docs = [plain(one).__doc__ for one in above]
            if special or len(above) > 1:  # nobody calls it by name, or it fills in a contract
                docs += of_class
            yield f".{name}", plain(member), docs, value


# Caught by the frame of `pcflax.settings` that has the object in hand, as tests/test_settings.py shows.
PRIVATE = {"_AroundItselfError"}


def untold(value):
    """What is raised and told nowhere."""
    found = {}
    for name, function, docs, owner in parts(value):
        told = "\n".join(section(doc) for doc in docs)
        for error, said, where in sorted(raises(function, owner)):
            quoted = any(quote in text for quote in QUOTES for text in said)
            if error not in PRIVATE and not quoted and not is_told(error, told):
                found[f"{name} {error} ({where})".strip()] = said
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_every_error_of_the_public_api_is_told(name):
    assert untold(PUBLIC[name]) == {}


def test_had_nothing_been_told_all_of_it_would_be_found(monkeypatch):
    """In functions, constructors and methods; of helpers, and of functions that make the error."""
    monkeypatch.setitem(globals(), "section", lambda text: "")
    monkeypatch.setitem(globals(), "QUOTES", [])
    for name, wanted in {
        "pc.data.from_arrays": {"TypeError", "ValueError"},
        "pc.PCDense": {".__init__ TypeError", ".__init__ ValueError", ".affine ValueError"},
        "pc.learning.Nudged": {".__post_init__ TypeError", ".gradients ValueError"},
        "pc.History": {".__getitem__ KeyError", ".to_pandas ModuleNotFoundError"},
        "pc.PCGraph": {".__init__ TypeError", ".__init__ ValueError"},  # `raise wrong_shape(...)`
        "pc.inference.InferenceResult": {  # `raise error(...)`
            ".raise_failures ConvergenceError",
            ".raise_failures NonFiniteEnergyError",
        },
    }.items():
        found = {error.split(" (")[0] for error in untold(PUBLIC[name])}
        assert wanted <= found, name


def test_what_a_function_catches_is_none_of_its_errors():
    """`expect_count` raises a TypeError without a sentence, and catches it to say more."""
    node = definitions("pcflax.checks")["expect_count"]
    errors, _ = itself(pc.checks.expect_count, None)
    raised = [part for part, _ in raising(node) if isinstance(part, ast.Raise)]
    assert (len(raised), len(errors)) == (3, 2)

"""Options from the dataclasses: what algorithms and rules document as their arguments.

The source is read, not run, so that `pcflax train --help` answers without loading jax. A field with a line
under `Args:` whose type has a form on the command line is an option, with its default and that line.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pcflax import recipes

# Numbers of steps have one option; an optax transformation has no form on the command line.
_STEPS = ("num_steps", "max_steps", "num_samples")
_HIDDEN = ("optimizer",)
_OWN = {"Sweeps": ("step_size",)}  # one number for all algorithms is none of theirs
_WORDS = {"learning": recipes.LEARNING, "inference": recipes.INFERENCE}
_KINDS: tuple[tuple[str, Any], ...] = (
    ("Literal", Literal),  # of its choices
    ("bool", bool),
    (r"float \| str", float | Literal["auto"]),
    ("float", float),
    ("int", int),
    ("Any", float | dict[str, float]),
    (r"\w+Inference|GradientDescent", None),  # is chosen by --inference
    ("lineax", "lineax"),
    ("diffrax", "diffrax"),
    ("Initializer", "pcflax.initializers"),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A documented field of an algorithm or a rule, and what its class says of it."""

    name: str
    kind: Any  # on the command line a type, or a module whose names it takes; None for an algorithm
    default: Any
    text: str

    @property
    def option(self) -> str:
        """The name of the option."""
        return "inference_steps" if self.name in _STEPS else self.name

    def value(self, options: Any) -> Any:
        """Return the value for the class; None where it has its own."""
        given = getattr(options, self.option)
        if isinstance(self.kind, str) and given is not None:
            return recipes.call(given, self.kind)
        return given


@functools.cache
def _classes(folder: str) -> dict[str, ast.ClassDef]:
    """Return every class that a folder of the package defines."""
    files = sorted((Path(__file__).parent.parent / folder).glob("*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {
        node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }


def _fields(folder: str, name: str) -> dict[str, tuple[str, Any]]:
    """Return {field: (annotation, default)}, those of the classes above it first."""
    node, found = _classes(folder).get(name), {}
    for base in node.bases if node else ():
        found |= _fields(folder, ast.unparse(base))
    for one in node.body if node else ():
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            given: Any = one.value
            if isinstance(given, ast.Call):  # dataclasses.field
                given = {each.arg: each.value for each in given.keywords}.get("default")
            default = None if given is None else ast.literal_eval(given)
            found[one.target.id] = (ast.unparse(one.annotation), default)
    return found


def join_lines(kind: type) -> None:
    """Give each option of a verb what it says in one line: tyro breaks it where the source does."""
    said: dict[str, str] = {}
    for one in kind.__mro__[-2::-1]:
        try:
            source = inspect.getsource(one)
        except OSError:  # a class that was made, as TrainOptions is, has none from Python 3.13 on
            continue
        tree = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, text in itertools.pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                said[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    for field in dataclasses.fields(kind):
        if field.name in said:
            field.metadata = types.MappingProxyType({"help": said[field.name]})


@functools.cache
def settings(option: str, word: str) -> dict[str, Setting]:
    """Return {option: setting} of what a word of --learning or --inference stands for."""
    name, found = _WORDS[option][word][-1], {}
    documented = ast.get_docstring(_classes(option)[name]) or ""
    documented = documented.partition("Args:\n")[2].partition("\n\n")[0]
    fields = _fields(option, name)
    for field, text in re.findall(r"^    (\w+): (.+(?:\n     .+)*)", documented, re.MULTILINE):
        annotation, default = fields.get(field, ("", None))
        kinds = [kind for part, kind in _KINDS if re.search(rf"\b({part})\b", annotation)]
        if kinds and field not in (*_HIDDEN, *_OWN.get(name, ())):
            sentence = re.sub(r"[.;:]( .*)?$|, and$", "", " ".join(text.split()))
            kind = _choices(annotation) if kinds[0] is Literal else kinds[0]
            found[field] = Setting(field, kind, default, sentence)
    return found


def _choices(annotation: str) -> Any:
    """Return the Literal that an annotation holds."""
    listed = re.search(r"Literal(\[.*?\])", annotation)
    assert listed
    return Literal[tuple(ast.literal_eval(listed[1]))]


@functools.cache
def counting(option: str, name: str) -> list[str]:
    """Return the words of --learning or --inference that an option counts with."""
    return [
        word
        for word in _WORDS[option]
        if any(setting.option == name for setting in settings(option, word).values())
    ]


def derived() -> list[tuple[str, Any, Any]]:
    """Return (name, type, default) of every option that algorithms and rules give the command."""
    found = []
    for option, words in _WORDS.items():
        everything = [one for word in words for one in settings(option, word).values()]
        for name in dict.fromkeys(one.option for one in everything if one.kind is not None):
            if name != "inference_steps":
                found.append(_option(option, name, [x for x in everything if x.option == name]))
    return found


def _option(option: str, name: str, found: list[Setting]) -> tuple[str, Any, Any]:
    agree = len({setting.default for setting in found}) == 1
    default = recipes.DEFAULTS.get(name, found[0].default if agree else None)
    kind = str if isinstance(found[0].kind, str) else found[0].kind
    text = " or ".join({setting.kind: setting.text for setting in reversed(found)}.values())
    told = tyro.conf.arg(help=f"Of --{option} {', '.join(counting(option, name))}: {text}.")
    kind = Annotated[kind if default is not None else kind | None, told]
    return name, kind, dataclasses.field(default=default)

"""Whom to cite: the papers that a docstring names under "Source:", as BibTeX.

A docstring names a paper by author and year, by number, or by both: "Goemaere et al. (2025), arXiv
2505.20137". `references.bib` beside this file has an entry for each. `cited` finds the one by the other;
`citation` takes the objects of a run apart; the documentation makes its links and its page of references of
the same two.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_SOURCE = re.compile(r"^ *Sources?: (.*?)(?=\n\s*\n|\Z)", flags=re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^@(\w+)\{(\w+),\n(.*?)^\}$", flags=re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^  (\w+) = \{(.*)\},$", flags=re.MULTILINE)

_NAME = r"[A-Z][\w'-]+"
_NUMBER = r"(?:arXiv\s+(?P<{0}>\d{{4}}\.\d{{4,5}})|openreview\s+(?P<{0}o>\w+))"
# Names and a year, with a number in the same clause where there is one; or a number by itself.
_CITED = re.compile(
    rf"(?P<first>{_NAME})(?P<others>(?:,\s+{_NAME})*,?\s+(?:&|and)\s+{_NAME}|\s+et\s+al\.)?(?:\s+\(|,\s+)"
    rf"(?P<year>(?:19|20)\d\d)\b\)?(?:[^;()]{{0,60}}?{_NUMBER.format('with')})?"
    rf"|{_NUMBER.format('alone')}"
)


class Entry(NamedTuple):
    """One entry of the bibliography: its key, kind, {field: value} and BibTeX."""

    key: str
    kind: str
    fields: dict[str, str]
    bibtex: str

    @property
    def surnames(self) -> list[str]:
        """The authors' surnames, in order; without those whom "others" stands for."""
        authors = self.fields.get("author", "").split(" and ")
        return [author.split(",")[0].strip("{}") for author in authors if author != "others"]


class Citation(NamedTuple):
    """Where a text cites, from `start` to `end`, and the key of the entry; none where there is none."""

    start: int
    end: int
    key: str | None


@functools.cache
def bibliography() -> dict[str, Entry]:
    """Return {key: entry}, in the order of the file."""
    text = importlib.resources.files("pcflax").joinpath("references.bib").read_text("utf-8")
    return {
        key: Entry(key, kind, dict(_FIELD.findall(body)), f"@{kind}{{{key},\n{body}}}")
        for kind, key, body in _ENTRY.findall(text)
    }


def cited(text: str) -> list[Citation]:
    """Return every citation in a text, found by number, or by surname and year."""
    return [Citation(*match.span(), _key_of(match)) for match in _CITED.finditer(text)]


def _key_of(match: re.Match[str]) -> str | None:
    number = match["with"] or match["witho"] or match["alone"] or match["aloneo"]
    if number:
        found = [key for key, entry in bibliography().items() if number in entry.bibtex]
    else:
        names = re.findall(_NAME, f"{match['first']} {match['others'] or ''}")
        names = [name.removesuffix("'s") for name in names]
        found = [
            key
            for key, entry in bibliography().items()
            if entry.surnames[:1] == names[:1]
            and set(names) <= set(entry.surnames)
            and entry.fields["year"] == match["year"]
        ]
    return found[0] if len(found) == 1 else None


def _parts(subject: Any) -> Iterator[Any]:
    """Yield a subject and what it is made of: the settings of a rule, the algorithms of a sequence."""
    yield subject
    if dataclasses.is_dataclass(subject) and not isinstance(subject, type):
        inside = [getattr(subject, field.name) for field in dataclasses.fields(subject)]
    elif isinstance(subject, dict):
        inside = list(subject.values())
    else:
        inside = list(subject) if isinstance(subject, (tuple, list)) else []
    for part in inside:
        yield from _parts(part)


def _sources(subject: Any) -> list[str]:
    """Return the paragraphs about sources of a class, function or object; a subclass may have its base's."""
    described = subject if callable(subject) and hasattr(subject, "__name__") else type(subject)
    for place in described.__mro__ if isinstance(described, type) else (described,):
        found = _SOURCE.findall(place.__doc__ or "")
        if found:
            return found
    return []


def citation(*subjects: Any) -> str:
    """Return the BibTeX of the sources of what you used, and of pcflax itself.

    What a rule or algorithm is made of is cited, too: the inference in a rule, the energy in neither, which
    you pass beside it. Sources are those that docstrings name; nothing is looked up elsewhere.

    Args:
        *subjects: learning rules, inference algorithms, energies, starts, parameterizations, or whatever else
            has a docstring with a source: objects, classes or functions. None gives pcflax alone.

    Raises:
        TypeError: for a subject whose docstring names no source.

    >>> import pcflax as pc
    >>> rule = pc.learning.PredictiveCoding(pc.inference.GradientDescent(0.1))
    >>> for line in pc.citation(rule).splitlines():
    ...     if line.startswith("@"):
    ...         print(line)
    @article{whittingtonbogacz2017,
    @article{raoballard1999,
    @article{song2024,
    @software{pcflax,
    >>> print(pc.citation())
    @software{pcflax,
      author = {{The pcflax authors}},
      title = {pcflax: predictive coding networks on {Flax} {NNX} and {JAX}},
      year = {2026},
      license = {Apache-2.0},
    }
    """
    keys = []
    for subject in subjects:
        if not _sources(subject):
            raise TypeError(
                f"citation expected something whose docstring names a source, such as pc.learning.ZIL(), got "
                f"{subject!r}; pc.citation() without arguments cites pcflax"
            )
        for part in _parts(subject):
            keys += [found.key for text in _sources(part) for found in cited(text) if found.key]
    return "\n\n".join(bibliography()[key].bibtex for key in dict.fromkeys([*keys, "pcflax"]))

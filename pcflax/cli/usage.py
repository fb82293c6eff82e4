"""Wrong usage: a command line that no machine and no data could make right ends with exit code 2.

What depends on files, data, devices or the run itself is an error of the run, with exit code 1.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence


class UsageError(ValueError):
    """A command line that is wrong by itself."""


@contextlib.contextmanager
def wrong_usage() -> Iterator[None]:
    """Raise what is refused within as wrong usage: values that come from the command line alone."""
    try:
        yield
    except UsageError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest, by its letters, its initials or one of its words.

    >>> nearest("lr", ["learning-rate", "layers"])
    'learning-rate'
    """
    known = list(known)
    found = [one for one in known if "-" in one and _initials(one) == name]
    found += difflib.get_close_matches(name, known, n=1)
    found += [one for one in known if name in one.split("-")]
    return found[0] if found else None


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("-"))


def check_names(arguments: Sequence[str], verbs: Mapping[str, Iterable[str]]) -> None:
    """Refuse a verb and options that there are not, with those that are nearest.

    Args:
        arguments: the command line.
        verbs: {verb: its options, without dashes before them}.
    """
    if not arguments or arguments[0].startswith("-"):
        return
    verb, *rest = arguments
    if verb not in verbs:
        guess = nearest(verb, verbs)
        remedy = f"did you mean {guess}?" if guess else f"there are {', '.join(verbs)}"
        raise UsageError(f"there is no pcflax {verb}; {remedy}")
    known = sorted(verbs[verb])
    for place, argument in enumerate(rest):
        typed, equals, value = argument.partition("=")
        if not argument or (typed.startswith("--") and equals and not value):
            before = typed or " ".join([f"pcflax {verb}", *rest[:place]])
            raise UsageError(
                f"expected a value behind {before}, got an empty one; is a variable empty?"
            )
        name = typed.removeprefix("--").replace("_", "-")
        if not typed.startswith("--") or name == "help" or name.startswith("tyro-"):
            continue
        if name.removeprefix("no-") not in known:
            guess = nearest(name, known)
            remedy = f"did you mean --{guess}?" if guess else f"see pcflax {verb} --help"
            raise UsageError(f"there is no option {typed} of pcflax {verb}; {remedy}")

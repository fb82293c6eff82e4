"""A plan: which contrasts will be tested, declared before the first step.

A contrast that was thought of after the results were seen is tested by the very data that suggested it; its
p value means less than it says. What the plan names is marked as planned in the table, all else as
exploratory.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcflax.checks import expect_local_path
from pcflax.training.checkpoints.disk import telling, write_atomically

from .reading import At, expect_at

_FILE = "plan.json"
_OF_RUNS = ("replicas.json", "config.json", "metrics.jsonl", "*.sha256")


def now() -> str:
    """Return the time of day and the date, of the world's common clock, as text that sorts by time."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Contrasts declared before the run.

    Args:
        contrasts: pairs of names (a, b), of a - b.
        metric: what is compared.
        at: where it is read, as of `compare`.
        date: when it was written; empty until then.

    Raises:
        ValueError: for contrasts that are no pairs of two names, each pair once, and an `at` as of `compare`.

    >>> import tempfile
    >>> plan = Plan([("pc", "backprop")], metric="eval/accuracy")
    >>> written = plan.write(tempfile.mkdtemp())
    >>> written.digest[:8] == plan.digest[:8], len(written.date)
    (False, 25)
    """

    contrasts: Sequence[tuple[str, str]]
    metric: str = "eval/accuracy"
    at: At = "last"
    date: str = ""

    def __post_init__(self):
        object.__setattr__(self, "contrasts", expect_contrasts("Plan", self.contrasts))
        object.__setattr__(self, "at", expect_at("Plan", self.metric, self.at))

    @property
    def digest(self) -> str:
        """The SHA-256 of what it says, its date included."""
        text = json.dumps(self._record(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: str | Path) -> Plan:
        """Write it into a folder in which no run has begun; again, it stays as it was.

        Returns:
            The plan with its date.

        Raises:
            ValueError: where there are runs in the folder but no plan, or another plan.
            TypeError: for what is no path.
            OSError: where the folder cannot be written.
        """
        folder = expect_local_path("Plan.write", "folder", folder)
        if (folder / _FILE).exists():
            stored = Plan.read(folder)
            if dataclasses.replace(stored, date=self.date) != self:
                raise ValueError(
                    f"{folder / _FILE} of {stored.date} declares {_words(stored)}, got {_words(self)}; what "
                    f"was planned stays, so compare by another contrast, which is then exploratory"
                )
            return stored
        begun = next((path for kind in _OF_RUNS for path in folder.rglob(kind)), None)
        if begun is not None:
            raise ValueError(
                f"a run has begun in {folder} ({begun.relative_to(folder)}); a plan is written before the "
                f"first step"
            )
        written = dataclasses.replace(self, date=now())
        record = written._record() | {"sha256": written.digest}
        with telling(str(folder / _FILE)):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / _FILE, json.dumps(record, indent=2) + "\n")
        return written

    @classmethod
    def read(cls, folder: str | Path) -> Plan:
        """Read the plan in a folder.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where it is not what was written, by its SHA-256.
            TypeError: for what is no path.
        """
        path = expect_local_path("Plan.read", "folder", folder) / _FILE
        try:
            record = json.loads(path.read_text())
            sha256 = record.pop("sha256")
            plan = cls(**record)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no {_FILE} in {folder}; pc.experiments.Plan(...).write(folder) makes one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read as a plan: {error}") from error
        if plan.digest != sha256:
            raise ValueError(
                f"{path} was changed after it was written: its SHA-256 is {plan.digest[:12]}, and was "
                f"{str(sha256)[:12]}"
            )
        return plan

    def _record(self) -> dict[str, Any]:
        return {
            "contrasts": [list(pair) for pair in self.contrasts],
            "metric": self.metric,
            "at": list(self.at) if isinstance(self.at, tuple) else self.at,
            "date": self.date,
        }


def expect_contrasts(owner: str, contrasts: Sequence[Any]) -> tuple[Any, ...]:
    """Return contrasts as pairs of names, each once, as Holm's correction counts them."""
    pairs = tuple(tuple(pair) for pair in contrasts)
    wrong = any(len(set(pair)) != 2 or len(pair) != 2 for pair in pairs)
    if not pairs or wrong or len(set(pairs)) < len(pairs):
        raise ValueError(
            f"{owner} expected contrasts as pairs of two names, [('pc', 'backprop')], each once, got "
            f"{contrasts}"
        )
    return pairs


def _words(plan: Plan) -> str:
    pairs = ", ".join(" - ".join(pair) for pair in plan.contrasts)
    return f"{pairs} of {plan.metric} at {plan.at}"

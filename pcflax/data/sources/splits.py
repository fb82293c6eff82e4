"""Splits in TFDS's notation: "train", "test", or a part of one such as "train[:90%]"."""

from __future__ import annotations

import re
from typing import NamedTuple


class Split(NamedTuple):
    """A split, or the part of it between two bounds, numbers of examples or percentages; "" for none."""

    text: str
    whole: str
    begin: str = ""
    end: str = ""

    @classmethod
    def parse(cls, text: str) -> Split:
        """Return the split that a user means.

        >>> Split.parse("train[:90%]").rows(10, "mine")
        slice(None, 9, None)
        """
        part = r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?"
        matched = re.fullmatch(part, str(text)) or re.fullmatch(r"(\w+(?:\+\w+)+)()()", str(text))
        if matched is None:
            raise _refused(text)
        whole, begin, end = matched.groups()
        return cls(str(text), whole, begin or "", end or "")

    def expect_usual(self) -> None:
        """Refuse a split of another name than train and test."""
        if self.whole not in ("train", "test"):
            raise _refused(self.text)

    @property
    def trains(self) -> bool:
        """Whether its examples are learned from, as a rule: all but those of test and validation."""
        return self.whole not in ("test", "validation")

    @property
    def is_part(self) -> bool:
        """Whether this is a part of a split, and not the whole."""
        return self.text != self.whole

    def rows(self, count: int, label: str, unit: str = "examples") -> slice:
        """Return which of the split's rows the part is, in stored order."""

        def position(bound: str) -> int | None:
            if not bound:
                return None
            most, number = (100, int(bound[:-1])) if bound.endswith("%") else (count, int(bound))
            if abs(number) > most:
                raise ValueError(
                    f"'{label}' reaches beyond the split, which has {count} {unit}; leave the bound "
                    f"{bound} out, or give one of at most {most}{'%' * bound.endswith('%')}"
                )
            return round(count * number / 100) if bound.endswith("%") else number

        rows = slice(position(self.begin), position(self.end))
        if self.is_part and not len(range(count)[rows]):
            raise ValueError(f"'{label}' is empty: the split has {count} {unit}")
        return rows


def _refused(text: object) -> ValueError:
    return ValueError(
        f"expected split 'train' or 'test', or a part of one such as 'train[:90%]', got {text!r}"
    )

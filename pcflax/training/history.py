"""What a run has measured so far, row by row."""

from __future__ import annotations

from typing import Any


class History:
    """Rows of measurements in the order they were made, each {"step": n, name: value, ...}.

    Training rows hold the means over the steps since the row before ("train/energy", ...), evaluation
    rows the means over the evaluation set ("eval/accuracy", ...). No row holds a time, so the rows of
    a resumed run equal those of one never interrupted.

    Attributes:
        rows: the rows.

    >>> history = History([{"step": 50, "eval/accuracy": 0.9}, {"step": 100, "eval/accuracy": 0.95}])
    >>> history["eval/accuracy"], history.steps("eval/accuracy")
    ([0.9, 0.95], [50, 100])
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None):
        self.rows: list[dict[str, Any]] = list(rows or [])

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row."""
        self.rows.append({"step": step, **metrics})

    def __getitem__(self, name: str) -> list[float]:
        """Every value of one metric, in order.

        Raises:
            KeyError: where nothing of that name was measured, naming what was.
        """
        values = [row[name] for row in self.rows if name in row]
        if not values:
            known = ", ".join(self.names()) or "none yet"
            raise KeyError(f"no metric '{name}' was measured; measured are: {known}")
        return values

    def steps(self, name: str) -> list[int]:
        """The steps at which one metric was measured."""
        return [row["step"] for row in self.rows if name in row]

    def names(self) -> list[str]:
        """The names of all metrics measured, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def last(self) -> dict[str, float]:
        """The newest value of every metric."""
        return {name: self[name][-1] for name in self.names()}

    def __repr__(self) -> str:
        return f"History({len(self.rows)} rows: {', '.join(self.names()) or 'empty'})"

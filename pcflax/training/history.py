"""What a run has measured so far, row by row."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from pcflax.checks import wanting

_SHOWN = 20  # lines of a table


class History:
    """Rows of measurements in the order they were made, each {"step": n, name: value, ...}.

    Training rows hold the means over the steps since the row before ("train/energy", ...), evaluation
    rows the means over the evaluation set ("eval/accuracy", ...). No row holds a time, so the rows of
    a resumed run equal those of one never interrupted.

    Attributes:
        rows: the rows, to be read; `append` adds one.

    >>> history = History([{"step": 50, "eval/accuracy": 0.9}, {"step": 100, "eval/accuracy": 0.95}])
    >>> history["eval/accuracy"], history.steps("eval/accuracy")
    ([0.9, 0.95], [50, 100])
    >>> "eval/accuracy" in history, list(history)
    (True, ['eval/accuracy'])
    """

    def __init__(self, rows: list[dict[str, Any]] | None = None):
        self.rows: list[dict[str, Any]] = list(rows or [])
        # The newest value of each metric in the first so many rows: a long history is not gone through
        # for each row, evaluation and save.
        self._last: dict[str, float] = {}
        self._looked_at = 0

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row."""
        self.rows.append({"step": step, **metrics})

    def __getitem__(self, name: str) -> list[float]:
        """Return every value of one metric, in order.

        Raises:
            KeyError: where nothing of that name was measured, naming what was.
        """
        values = [row[name] for row in self.rows if name in row]
        if not values:
            known = ", ".join(self.names()) or "none yet"
            raise KeyError(f"no metric '{name}' was measured; measured are: {known}")
        return values

    def __contains__(self, name: object) -> bool:
        """Return whether anything of that name was measured."""
        return name in self.last()

    def __iter__(self) -> Iterator[str]:
        """Give the names of all metrics measured."""
        return iter(self.names())

    def steps(self, name: str) -> list[int]:
        """Return the steps at which one metric was measured."""
        return [row["step"] for row in self.rows if name in row]

    def names(self) -> list[str]:
        """Return the names of all metrics measured, in order of first appearance."""
        return list(self.last())

    def last(self) -> dict[str, float]:
        """Return the newest value of every metric, in order of first appearance."""
        if len(self.rows) < self._looked_at:  # somebody dropped some
            self._last, self._looked_at = {}, 0
        for row in self.rows[self._looked_at :]:
            self._last |= row
        self._looked_at = len(self.rows)
        return {name: value for name, value in self._last.items() if name != "step"}

    def by_step(self) -> list[dict[str, Any]]:
        """Return the rows of each step as one, in order; where a metric was measured twice there, the newest.

        >>> History([{"step": 50, "train/loss": 0.2}, {"step": 50, "eval/loss": 0.3}]).by_step()
        [{'step': 50, 'train/loss': 0.2, 'eval/loss': 0.3}]
        """
        merged: dict[int, dict[str, Any]] = {}
        for row in self.rows:
            merged.setdefault(row["step"], {}).update(row)
        return list(merged.values())

    def to_pandas(self) -> Any:
        """Return the history as a `pandas.DataFrame`: a line for each step, a column for each metric.

        The index is the step; what was not measured at a step is NaN there. Wants
        `pip install 'pcflax[pandas]'`.

        Raises:
            ModuleNotFoundError: where pandas is missing.

        >>> history = History([{"step": 50, "train/loss": 0.2}, {"step": 50, "eval/loss": 0.3}])
        >>> history.append(100, {"train/loss": 0.1})
        >>> print(history.to_pandas())
              train/loss  eval/loss
        step
        50           0.2        0.3
        100          0.1        NaN
        """
        with wanting("history.to_pandas()", "pandas", "pandas"):
            import pandas  # pyright: ignore[reportMissingImports]
        frame = pandas.DataFrame(self.by_step(), columns=["step", *self.names()])
        return frame.set_index("step")

    def _repr_html_(self) -> str:
        """Return a table, of a long history its two ends."""
        names, rows = ["step", *self.names()], self.by_step()
        cells = [[_cell(row.get(name)) for name in names] for row in rows]
        if len(cells) > _SHOWN:
            cells[_SHOWN // 2 : -_SHOWN // 2] = [["..."] * len(names)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = ("".join(f"<td>{cell}</td>" for cell in row) for row in cells)
        lines = "".join(f"<tr>{row}</tr>" for row in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"

    def __repr__(self) -> str:
        return f"History({len(self.rows)} rows: {', '.join(self.names()) or 'empty'})"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

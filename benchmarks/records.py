"""Results files: where they lie, and one way to write them, a row a line, so that changes can be read.

And the tables of pages.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_WIDTH = 110


def results_path(kind: str, device: str) -> Path:
    """Return where the results of a kind of device lie."""
    return RESULTS / f"{kind}-{device.lower().replace(' ', '-')}.json"


def read(name: str) -> dict:
    """A results file."""
    return json.loads((RESULTS / name).read_text())


def write_results(record: dict, path: Path) -> None:
    """Write a results file, and the folder it lies in; what was there stays until all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    read_back = json.loads(json.dumps(record))  # in which tuples are lists, as a reader has them
    part = path.with_name(path.name + ".part")
    part.write_text(as_rows(read_back) + "\n")
    os.replace(part, path)


def as_rows(value: Any, depth: int = 0) -> str:
    """Return JSON in which what fits a line, or holds no other list or object, is one line.

    >>> print(as_rows({"seed": 0, "points": [{"step": step, "energy": 0.5} for step in range(25, 125, 25)]}))
    {
     "seed": 0,
     "points": [
      {"step": 25, "energy": 0.5},
      {"step": 50, "energy": 0.5},
      {"step": 75, "energy": 0.5},
      {"step": 100, "energy": 0.5}
     ]
    }
    """
    line = json.dumps(value)
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not any(isinstance(one, dict | list) for one in inner):
        return line
    if depth + len(line) <= _WIDTH:
        return line
    rows = [as_rows(one, depth + 1) for one in inner]
    if isinstance(value, dict):
        rows = [f"{json.dumps(name)}: {row}" for name, row in zip(value, rows, strict=True)]
    space = " " * (depth + 1)
    body = f",\n{space}".join(rows)
    left, right = json.dumps(type(value)())
    return f"{left}\n{space}{body}\n{space[1:]}{right}"


def digits(value: float) -> str:
    """Three digits of a number for a table, with no power of ten in the place of thousands.

    >>> digits(0.15432), digits(229.4), digits(2314.0)
    ('0.154', '229', '2,310')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def rows_of(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

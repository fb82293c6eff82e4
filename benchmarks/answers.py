"""Answers: figures that scripts reproduce, one entry a claim, `{name: {"values", "unit", "command"}}`.

    record_answer("hybrid", [83.9, 84.1, 83.7], unit="%", command="python scripts/hybrid.py")

`values` holds one number a seed, in the order of the seeds. Each script writes its own entries into
`benchmarks/results/answers-cpu.json` (or the file of another kind, such as depth-cpu.json) and leaves those
of other scripts as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from .options import read_count, read_output
from .records import results_path, write_results

QUICK = Path("runs/quick/answers.json")


def record_answer(
    name: str,
    values: Sequence[float],
    *,
    unit: str,
    command: str,
    kind: str = "answers",
    device: str = "cpu",
    path: Path | None = None,
) -> Path:
    """Write one claim's values and how they are had into the answers file; return its path.

    Raises:
        ValueError: for no values, or one that is not finite.
    """
    found = [float(value) for value in values]
    if not found or not all(math.isfinite(value) for value in found):
        raise ValueError(f"answer '{name}' expected finite values, one a seed, got {found}")
    path = results_path(kind, device) if path is None else path
    record = json.loads(path.read_text()) if path.exists() else {}
    record[name] = {"values": found, "unit": unit, "command": command}
    write_results(dict(sorted(record.items())), path)
    return path


def answer_parser(
    description: str | None, *, quick: str, seeds: int = 3, data: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of the options that every script of answers has.

    Args:
        description: the script's docstring.
        quick: what `--quick` makes of it.
        seeds: how many there are unless given.
        data: whether the script reads a prepared set, from `--data-dir` or TFDS_DATA_DIR.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if data:
        parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--seeds", type=read_count, default=seeds)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--output",
        type=read_output,
        help=f"the answers file; the committed one unless given, {QUICK} with --quick or other seeds",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """One that leaves the committed answers, and the figures beside them, to the run as it is by itself."""

    def parse_args(self, *given):  # type: ignore[override]
        options = super().parse_args(*given)
        own = options.quick or options.seeds != self.get_default("seeds")
        if own and options.output is None:
            options.output = QUICK
        return options

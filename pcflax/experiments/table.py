"""What was compared, as text, and as tables for a paper."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import math
import re
from collections.abc import Mapping
from typing import Any

from .contrasts import Contrast
from .plan import Plan
from .reading import At, told
from .runs import Runs

_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {sign: f"\\{sign}" for sign in "_%&#${}"} | {"<": "$<$", "±": r"$\pm$"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contrasts of one metric, as `compare` found them.

    Attributes:
        contrasts: one a row.
        metric: what was compared.
        at: where it was read.
        confidence: of the intervals.
        plan: what was declared before, or None.
        notes: what a reader has to know.
        runs: what was compared, by name.
    """

    contrasts: tuple[Contrast, ...]
    metric: str
    at: At
    confidence: float
    plan: Plan | None
    notes: tuple[str, ...]
    runs: Mapping[str, Runs] = dataclasses.field(repr=False)

    @property
    def caption(self) -> str:
        """What the columns are, in words."""
        paired = {one.paired for one in self.contrasts}
        tests = []
        if True in paired:
            tests.append(
                "of pairs by seed the paired t test, Wilcoxon's signed ranks and Cohen's d_z"
            )
        if False in paired:
            tests.append("of other seeds Welch's t test, Mann and Whitney's ranks and Hedges' g")
        said = [
            f"{self.metric} at {told(self.at)}: mean ± standard deviation over seeds, difference with "
            f"Student's {self.confidence:.0%} interval",
            "; ".join(tests),
            "p two-sided, in brackets after Holm's correction",
        ]
        if self.plan is not None:
            date, digest = self.plan.date or "an unknown date", self.plan.digest[:12]
            said.append(
                f"the plan is of {date} (SHA-256 {digest}), {len(self.plan.contrasts)} planned"
            )
        return "; ".join([*said, *self.notes])

    def to_markdown(self) -> str:
        """Return a table in Markdown, and its caption."""
        header, *rows = self._cells()
        rule = [":--", *["--:"] * (len(header) - 1)]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, rule, *rows)]
        lines = [f"| {' | '.join(row)} |" for row in escaped]
        return "\n".join([*lines, "", self.caption, ""])

    def to_latex(self) -> str:
        """Return a `tabular` that wants the package booktabs, and its caption as a comment."""
        header, *rows = [[_latex(cell) for cell in row] for row in self._cells()]
        lines = [
            f"% {self.caption}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
        ]
        lines += [" & ".join(header) + r" \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_csv(self) -> str:
        """Return one row a contrast, numbers in full."""
        out = io.StringIO()
        rows = [self._record(one) for one in self.contrasts]
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold, the values by seed included."""
        rows = []
        for one in self.contrasts:
            row = self._record(one)
            row["values"] = {
                name: dict(zip(map(str, own.seeds), own.values.tolist(), strict=True))
                for name, own in zip(one.names, (one.a, one.b), strict=True)
            }
            rows.append(row)
        at = list(self.at) if isinstance(self.at, tuple) else self.at
        return {"metric": self.metric, "at": at, "contrasts": rows, "notes": list(self.notes)}

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for row in cells:
            first, *others = zip(row, widths, strict=True)
            parts = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            lines.append("  ".join(parts))
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, self.caption])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _cells(self) -> list[list[str]]:
        header = ["contrast a - b", "seeds", "a", "b", f"difference [{self.confidence:.0%}]"]
        header += ["effect", "p (Holm)", "p of ranks (Holm)"]
        header += ["planned"] if self.plan is not None else []
        return [header, *map(self._row, self.contrasts)]

    def _row(self, one: Contrast) -> list[str]:
        numbers = f"{len(one.a.seeds)} pair{'s' if len(one.a.seeds) > 1 else ''}"
        if not one.paired:
            numbers = f"{len(one.a.seeds)} and {len(one.b.seeds)}"
        low, high = one.interval
        row = [one.title, numbers]
        row += [f"{own.mean:.4g}" + _spread(own.std) for own in (one.a, one.b)]
        row.append(f"{one.difference:.3g} [{_number(low)}, {_number(high)}]")
        row.append(f"{one.effect_name} {_number(one.effect)}")
        row += [f"{_p(one.p)} ({_p(one.p_holm)})", f"{_p(one.p_ranks)} ({_p(one.p_ranks_holm)})"]
        if one.planned is not None:
            row.append("planned" if one.planned else "exploratory")
        return row

    def _record(self, one: Contrast) -> dict[str, Any]:
        return {
            "a": one.names[0],
            "b": one.names[1],
            "metric": self.metric,
            "paired": one.paired,
            "seeds_a": len(one.a.seeds),
            "seeds_b": len(one.b.seeds),
            "mean_a": one.a.mean,
            "std_a": one.a.std,
            "mean_b": one.b.mean,
            "std_b": one.b.std,
            "difference": one.difference,
            "confidence": self.confidence,
            "low": one.interval.low,
            "high": one.interval.high,
            "effect": one.effect,
            "effect_name": one.effect_name,
            "p": one.p,
            "p_holm": one.p_holm,
            "p_ranks": one.p_ranks,
            "p_ranks_holm": one.p_ranks_holm,
            "planned": one.planned,
        }


def _number(value: Any) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3g}"


def _spread(value: float) -> str:
    return "" if math.isnan(value) else f" ± {value:.2g}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def _latex(cell: str) -> str:
    escaped = "".join(_ESCAPES.get(sign, sign) for sign in cell)
    escaped = re.sub(r"^d\\_z ", "$d_z$ ", escaped)
    return re.sub(r"(?<![\w}])-(?=[\d ])", "$-$", escaped)

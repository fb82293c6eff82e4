"""The measured parts of pages that tell of many seeds: rules compared, and seeds trained together.

Written into the pages by `tables.py`.
"""

from __future__ import annotations

import statistics

import numpy as np

from benchmarks.records import read, rows_of
from benchmarks.replicas import HOWS, slower_in_turn
from pcflax.experiments import Sample


def mlp(result: dict | None = None) -> str:
    """Accuracy by rule, and how far from backpropagation's where that was tested."""
    result = result or read("mlp_table-mnist-cpu.json")
    rows, seeds = [], 0
    for name, found in result["rules"].items():
        cells = [name, f"{found['setting']['target']:.2f}"]
        for key in ("last", "chosen_by_validation"):
            values = [run[key] for run in found["runs"]]
            seeds = len(values)
            low, high = Sample(np.array(values), tuple(range(seeds))).interval()
            cells.append(f"{statistics.mean(values):.2f} [{low:.2f}, {high:.2f}]")
        rows.append(cells)
    header = ["rule", "aimed at", "last epoch", "epoch chosen by validation"]
    text = (
        f"Test accuracy in %, mean and Student's 95 % interval over {seeds} seeds, {result['epochs']} "
        f"epochs, 5,000 training images held out. Those aimed at are recollections of arXiv 2407.01163, its "
        f"table taking the best epoch on the test split and the best 5 of 7 seeds (fpa and zil: those of "
        f"backpropagation).\n\n{rows_of(header, rows)}"
    )
    found = result.get("comparisons")
    return f"{text}\n\n{differences(*found)}" if found else text


def differences(last: dict, chosen: dict) -> str:
    """Differences from backpropagation by the last epoch and by the chosen one, tested by pairs of seeds."""
    header, clear = ["points of %"], []
    rows = [[f"{one['a']} - {one['b']}"] for one in last["contrasts"]]
    for place, found in (("last epoch", last), ("epoch chosen by validation", chosen)):
        header += [place, "d_z", "p (Holm)", "p of ranks (Holm)"]
        own = []
        for row, one in zip(rows, found["contrasts"], strict=True):
            row.append(f"{one['difference']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]")
            row.append("-" if one["effect"] is None else f"{one['effect']:.2f}")
            for p in ("p", "p_ranks"):
                row.append(_p(one[p], one[f"{p}_holm"]))
            if one["p_holm"] is not None and one["p_holm"] < 0.05:
                own.append(f"{one['a']} ({one['difference']:+.2f})")
        clear.append(f"by the {place} {', '.join(own) or 'none'}")
    seeds = last["contrasts"][0]["seeds_a"]
    least = 2.0 ** (1 - seeds)
    return (
        f"Each rule less backpropagation of the same output energy, by pairs of {seeds} seeds: the mean "
        f"difference with Student's 95 % interval, Cohen's d_z, and two-sided p values of the paired t test "
        f"and of Wilcoxon's signed ranks, in brackets after Holm's correction over {len(rows)} rules. A dash "
        f"is where all seeds differ by the same. Ranks of {seeds} pairs have no p below {least:.2g}, after "
        f"correction {min(1, least * len(rows)):.2g}. Different at 5 % after correction, by the t test, are "
        f"{' and '.join(clear)}.\n\n{rows_of(header, rows)}"
    )


def _p(p: float | None, corrected: float | None) -> str:
    if p is None or corrected is None:
        return "-"
    return " (".join("<0.0001" if one < 1e-4 else f"{one:.2g}" for one in (p, corrected)) + ")"


def replicas() -> str:
    """Many seeds in one program, and one after the other, by job."""
    result, rows = read("replicas-cpu.json"), []
    for name, found in result["jobs"].items():
        least, ratio, greatest = slower_in_turn(found)
        cells = [name, f"{found['largest']:,}", found["auto"]]
        for how in HOWS:
            cells.append(
                f"{1e3 * statistics.median(found[how]['seconds']) / found['iterations']:.3g}"
            )
        cells.append(f"{ratio:.2f} ({least:.2f} to {greatest:.2f})")
        for key, unit in (("compile_seconds", 1.0), ("memory_peak", 1e6)):
            pair = [found[how][key] / unit for how in HOWS if key in found[how]]
            cells.append(" and ".join(f"{value:.3g}" for value in pair) or "-")
        rows.append(cells)
    header = ["job", "largest array", "`auto` is", "ms mapped", "in turn", "in turn over mapped"]
    return (
        f"{result['seeds']} seeds on {result['cpu_count']} CPU cores, jax {result['jax']}: milliseconds of "
        f"an iteration of all, medians of {result['rounds']} rounds, the median ratio within a round and "
        f"its range; seconds of compilation and the peak of memory, mapped and in turn, each of a process of "
        f"its own (`benchmarks/replicas.py`, jobs as on the page of [benchmarks](benchmarks.md); chains and "
        f"stack are those of tiny and of residual with other widths).\n\n"
        f"{rows_of([*header, 'compile s', 'peak MB'], rows)}"
    )

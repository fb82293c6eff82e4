"""Writes the measured parts of the pages of docs from the JSON files in benchmarks/results.

python benchmarks/tables.py            writes choosing_inference.md, howto.md, reproducing.md, scaling.md
python benchmarks/tables.py --check    exit code 1 where a page differs from the results
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.depth import (  # noqa: E402
    ALGORITHMS,
    DEPTHS,
    PUBLISHED,
    WORDS,
    Runs,
    aligned,
    exponent,
    outcomes,
    summary,
)
from benchmarks.on_paper import Job, Machine  # noqa: E402
from benchmarks.on_paper import rows as on_paper  # noqa: E402
from benchmarks.options import run_main  # noqa: E402
from benchmarks.over_seeds import mlp, replicas  # noqa: E402
from benchmarks.records import digits, read, results_path, rows_of  # noqa: E402

PAGE = ROOT / "docs/choosing_inference.md"
REPRODUCING = ROOT / "docs/reproducing.md"
SCALING = ROOT / "docs/scaling.md"
HOWTO = ROOT / "docs/howto.md"


def measured() -> str:
    """Steps and seconds by depth, and what the adaptive stop costs and saves."""
    result = read("inference-cpu.json")
    records, depths = result["records"], sorted({r["depth"] for r in result["records"]})
    rows = []
    for name in dict.fromkeys(record["algorithm"] for record in records):
        found = {r["depth"]: r for r in records if r["algorithm"] == name}
        rows.append([name, *(_cell(found.get(depth)) for depth in depths)])
    header = ["steps (ms) to 0.1 % of the gap", *(f"{depth} layers" for depth in depths)]
    adaptive = read("adaptive_stop-cpu.json")["cases"]
    nothing, most = adaptive["nothing converges"], adaptive["most converge"]
    at_20 = {r["algorithm"]: r["steps"] for r in records if r["depth"] == 20}
    ratio = at_20["gradient descent"] / at_20["error coordinates"]
    return (
        f"A tanh chain of width {result['width']} at its start, batch {result['batch']}, on "
        f"{result['cores']} CPU cores, jax {result['versions']['jax']}: steps, and milliseconds for the "
        f"whole batch, until the mean energy is within 0.1 % of the equilibrium's, as a part of the gap "
        f"that the feedforward start leaves (`benchmarks/inference.py`). Step sizes are 1.8/lambda_max of "
        f"each one's own coordinates.\n\n"
        f"{rows_of(header, rows)}\n\n"
        f"At 20 layers error coordinates take {ratio:.0f} times fewer steps than gradient descent.\n\n"
        f"An adaptive stop costs {100 * (nothing['ratio'] - 1):.1f} % over the fixed count where nothing "
        f"converges, and takes {most['ratio']:.2f} of its time where 60 of 64 examples converge in "
        f"about {statistics.median(most['steps']):.0f} of 100 steps (`benchmarks/adaptive_stop.py`, the "
        f"notebook's network): what has stopped is not computed any more."
    )


def _cell(record: dict | None) -> str:
    if record is None:
        return "not run"
    if record["steps"] is None:
        return f"not in {record['most']:,} (gap {record['gap']:.0e})"
    return f"{record['steps']:,} ({digits(1e3 * record['seconds'])})"


def costs() -> str:
    """Operations and bytes of each method beside backpropagation's gradient."""
    result = read("costs-cpu.json")
    networks = result["networks"]
    first, base = next(iter(networks.values())), "backpropagation's gradient"
    rows = []
    for label in first["costs"]:
        cells = [label]
        for found in networks.values():
            cost, whole = found["costs"][label], found["costs"][base]["flops"]
            ratio = f"{cost['flops'] / whole:.2f}"
            cells += [_millions(cost["flops"]), ratio, _millions(cost["bytes"])]
        rows.append(cells)
    header = ["for a batch", *(f"{name}: {what}" for name in networks for what in _COSTS)]
    return (
        f"From the compiled programs, for a batch of {first['batch']}, by `network.summary` "
        f"(`benchmarks/costs.py`, jax {result['jax']}, {result['platform'].upper()}): operations of matrix "
        f"products, a multiplication and its addition being two, beside those of backpropagation's whole "
        f"gradient, and bytes that instructions read and write. Loops count as often as they turn; what XLA "
        f"lifts out of them, such as the prediction from the input, counts once. Rules without the "
        f"optimizer.\n\n{rows_of(header, rows)}"
    )


_COSTS = ("Mflop", "ratio", "MB")


def _millions(value: float) -> str:
    return f"{value / 1e6:,.0f}" if value >= 1e8 else f"{value / 1e6:.3g}"


def depth() -> str:
    """Steps to 90 % of backpropagation's accuracy by depth, their seconds, and what their gradients are."""
    runs = Runs(results_path("depth_runs", "cpu"))
    found, every, rows = summary(runs), outcomes(runs), []
    for name, label in WORDS.items():
        counts = {layers: statistics.median(s) for layers, s in found.get(name, {}).items()}
        cells = []
        for layers in DEPTHS:
            by_seed, seconds = every.get(name, {}).get(layers, {}), _seconds(runs, name, layers)
            counted = [runs.accuracies(name, layers, seed) for seed in by_seed]
            cells.append(_depth_cell(by_seed, seconds, max(map(max, counted), default=0)))
        slope = f"{exponent(counts):.2f}" if len(counts) > 2 else "-"
        deepest = max(counts, default=0)
        row = aligned(runs, name, deepest, counts.get(deepest, 0))
        cosines = ["-", "-"]
        if row:
            cosines = [
                f"{row[f'{key}_median']:.2f} ({row[f'{key}_least']:.2f})"
                for key in ("backprop", "equilibrium")
            ]
        _, each, before = ALGORITHMS[name]
        rows.append([label, *cells, slope, f"{each} ({before})", *cosines])
    header = [
        "steps (seeds), seconds an epoch" if runs.times else "steps (seeds)",
        *(f"{layers} layers" for layers in DEPTHS),
        "exponent",
        "gradients a step (before the first)",
        "cosine with backpropagation's",
        "with the equilibrium's",
    ]
    published = ", ".join(f"{steps:,}" for steps in PUBLISHED["plain"].values())
    return (
        f"Steps of inference for each batch from which on test accuracy is at least 90 % of "
        f"backpropagation's after one epoch of MNIST, held at up to 1.5 or 2 times as many steps (residual "
        f"networks of width 32, relu, muPC; `benchmarks/depth.py`). A public study of 925 runs has "
        f"{published} for gradient descent. The cosines are of the weight gradients of the hidden layers of "
        f"the deepest network that reached the mark, after training: the median of its layers, and the "
        f"least.{_timing(runs)}\n\n"
        f"{rows_of(header, rows)}"
    )


def _depth_cell(by_seed: dict[int, int | None], seconds: dict[int, float], most: int) -> str:
    """Steps, how many seeds reached the mark, and the seconds that so many steps take.

    Where no seed did, the most steps that were run.
    """
    if not by_seed:
        return "not run"
    reached = [count for count in by_seed.values() if count is not None]
    seeds = (
        f"{len(reached)} of {len(by_seed)}" if len(reached) < len(by_seed) else f"{len(reached)}"
    )
    if not reached:
        return f"not in {most:,} ({len(by_seed)})"
    steps = statistics.median(reached)
    return f"{steps:,.0f} ({seeds})" + (f", {seconds[steps]:.3g} s" if steps in seconds else "")


def _seconds(runs: Runs, name: str, layers: int) -> dict[int, float]:
    """{steps: seconds of the processor} as they were measured."""
    return {
        row["steps"]: row["processor_seconds"]
        for row in runs.times
        if (row["algorithm"], row["depth"]) == (name, layers)
    }


def _timing(runs: Runs) -> str:
    """How the seconds were measured, and those of backpropagation."""
    base = [row for row in runs.times if row["algorithm"] == "backprop"]
    if not base:
        return ""
    each = [
        f"{row['processor_seconds']:.3g} at {row['depth']} layers ({row['date']}, {row['cores']} "
        f"core{'s' * (row['cores'] > 1)}, "
        + (
            f"beside other work, load {row['load']:g}"
            if row["load"] > row["cores"] + 0.5
            else "alone"
        )
        + ")"
        for row in base
    ]
    return (
        f" Seconds are the processor's for the 937 batches, without compilation and evaluation, all "
        f"algorithms of a depth in turns within one process; their ratios within a depth hold, on other "
        f"machines they are others. Backpropagation's are {', '.join(each)}."
    )


def answers() -> str:
    """Every figure that a script reproduces: what it claims, its command, its values over seeds."""
    found: dict[str, list[list[str]]] = {}
    for file in ("answers-cpu.json", "depth-cpu.json"):
        for name, answer in read(file).items():
            values = answer["values"]
            spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else "-"
            unit = "" if answer["unit"] == "1" else answer["unit"]
            cells = [
                f"`{name}`",
                f"{statistics.median(values):.4g}",
                spread,
                unit,
                str(len(values)),
            ]
            found.setdefault(answer["command"], []).append(cells)
    parts = []
    for command in sorted(found):
        file = next(word for word in shlex.split(command) if word.endswith(".py"))
        claim = (ast.get_docstring(ast.parse((ROOT / file).read_text())) or "").splitlines()[0]
        table = rows_of(["figure", "median", "range", "unit", "seeds"], found[command])
        parts.append(
            f"### {Path(file).stem.replace('_', ' ')}\n\n{claim}\n\n```bash\n{command}\n```\n\n{table}"
        )
    return "\n\n".join(parts)


def growth() -> str:
    """What an iteration, a row and a save cost as sizes grow, and what use leaves in memory."""
    result = read("growth-cpu.json")
    words = {
        "iteration_ms": "an iteration",
        "bare_iteration_ms": "the same in bare jax",
        "row_ms": "a row",
        "save_ms": "a save",
    }
    sizes = {
        "depth": "layers of a stack",
        "rows": "rows of history",
        "checkpoints": "kept checkpoints",
    }
    rows = []
    for size, part in result["growth"].items():
        first, last = part["sizes"][0], part["sizes"][-1]
        for cost in (cost for cost in words if cost in first):
            cells = [f"{first[cost]:.3g}", f"{last[cost]:.3g}", f"{part['exponents'][cost]:.2f}"]
            span = f"{first[size]} to {last[size]:,}"
            rows.append([sizes.get(size, size), span, words[cost], *cells])
    header = ["of", "from, to", "cost", "ms at the first", "ms at the last", "exponent"]
    kept = {name: max(0.0, row["kb_a_repetition"]) for name, row in result["memory"].items()}
    return (
        f"A cost grows as size^exponent, by the upper half of the sizes, on {result['cpu_count']} CPU cores "
        f"(`benchmarks/growth.py`). Where weights leave the caches, an iteration in bare jax grows faster "
        f"than width^2, too.\n\n{rows_of(header, rows)}\n\n"
        f"In one process a fit leaves {kept['fits']:.0f} KB in memory, an inference "
        f"{kept['inferences']:.0f}, a restore {kept['restores']:.0f} and a save {kept['saves']:.0f}; Orbax "
        f"alone leaves {kept['saves_by_orbax']:.0f} at each save, TensorStore's lists that nothing frees."
    )


def scaling() -> str:
    """What a device does, holds and sends, by placement and number of devices."""
    result = read("scaling-cpu.json")
    alone, job = result["rows"][0], result["job"]
    parts = [
        f"A stack of {job['depth']} residual layers of width {job['width']} between a first and a last "
        f"layer, batch {job['batch']}, Adam, on simulated devices: what the program of one device computes "
        f"(operations of products; in brackets over an equal share of them), holds and sends, in a step of "
        f"inference and in the rest of a batch (`benchmarks/scaling.py`, jax {result['jax']})."
    ]
    for scaling, words in (
        ("strong", "The same job on more devices:"),
        (
            "weak",
            "A job that grows with them, the batch along `data`, the depth along `layers`, the width by the "
            "root along `features`:",
        ),
    ):
        rows = []
        for row in (row for row in result["rows"] if row["scaling"] == scaling):
            size = row["depth"] * row["batch"] * row["width"] ** 2
            size *= alone["devices"] / (job["depth"] * job["batch"] * job["width"] ** 2)
            cells = [row["placement"], str(row["devices"])]
            for part in ("step", "rest"):
                cost, ideal = row[f"{part}_flops"], alone[f"{part}_flops"] * size / row["devices"]
                cells.append(f"{cost / 1e9:.3g} ({cost / ideal:.2f})")
            cells += [f"{row[name] / 1e6:.3g}" for name in ("memory", "step_sent", "rest_sent")]
            if "seconds" in row:
                cells.append(f"{1e3 * row['seconds']:.3g}")
            rows.append(cells)
        header = ["spread over", "devices", "Gflop a step", "besides", "MB held"]
        header += ["MB sent a step", "besides"] + ["ms a batch"] * ("seconds" in alone)
        parts += [words, rows_of(header, rows)]
    rows = [
        [row["placement"], *_sent(row["collectives"])]
        for row in result["rows"]
        if (row["scaling"], row["devices"]) == ("strong", 8)
    ]
    parts += [
        "What eight devices send in the first job, with the bytes that each puts in, where it is a hundredth "
        "of all or more:",
        rows_of(["spread over", "in a step", "besides"], rows),
    ]
    return "\n\n".join(parts)


def _sent(text: str) -> tuple[str, str]:
    """Collectives in a step and besides, from "2 + 1 collective-permute of 16384 among 8; ..."."""
    found: tuple[list[str], list[str]] = ([], [])
    for one in text.split("; "):
        counts, rest = re.fullmatch(r"(\d+ \+ \d+) (.*)", one).groups()  # type: ignore
        kind, size, devices = re.fullmatch(r"(\S+) of (\d+) among (\d+)", rest).groups()  # type: ignore
        words = f"{kind.removeprefix('collective-')} of {int(size) / 1e6:.2g} MB"
        words += "" if "permute" in kind else f" among {devices}"
        for place, times in zip(found, counts.split(" + "), strict=True):
            place += [f"{words} x {times}" if times != "1" else words] * (times != "0")
    return ", ".join(found[0]) or "nothing", ", ".join(found[1]) or "nothing"


def paper(batch: int | None = None) -> str:
    """A large network on many GPUs, on paper."""
    job, machine, rows = Job(), Machine(), []
    words = {
        "activities": f"{job.steps} steps on activities",
        "errors": f"{job.error_steps} on errors",
    }
    for row in on_paper(job, machine, [8, 64, 256], batch):
        rows.append(
            [
                str(row["GPUs"]),
                words.get(row["method"], row["method"]),
                row["place"],
                f"{row['batch']:,}",
                *(digits(1e3 * row[name]) for name in ("seconds", "idle", "sending")),
                f"{100 * row['efficiency']:.0f} %",
                digits(row["examples_a_second"] / 1e3),
                f"{row['memory'] / 1e9:.3g}",
            ]
        )
    header = ["H100s", "method", "spread over", "batch", "ms a batch", "idle", "sending"]
    return rows_of([*header, "of the products alone", "thousand examples/s", "GB each"], rows)


def page(text: str, **parts: str) -> str:
    """A page with its measured parts made anew; those of choosing_inference.md unless others are given."""
    parts = parts or {"measured": measured(), "depth": depth(), "costs": costs(), "mlp": mlp()}
    for name, table in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def scaling_parts() -> dict[str, str]:
    """The parts of the page on scaling: what was counted, and what follows, by GPU and by batch."""
    return {"scaling": scaling(), "paper": paper(), "paper_strong": paper(4096)}


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    options = parser.parse_args()
    new = {
        PAGE: page(PAGE.read_text()),
        REPRODUCING: page(REPRODUCING.read_text(), growth=growth(), answers=answers()),
        SCALING: page(SCALING.read_text(), **scaling_parts()),
        HOWTO: page(HOWTO.read_text(), replicas=replicas()),
    }
    differs = [path for path, text in new.items() if text != path.read_text()]
    for path in differs:
        if options.check:
            print(f"{path} differs from benchmarks/results; run python benchmarks/tables.py")
        else:
            path.write_text(new[path])
    return int(options.check and bool(differs))


if __name__ == "__main__":
    run_main(main)

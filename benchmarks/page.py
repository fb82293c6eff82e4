"""Writes docs/benchmarks.md and its figures from the JSON files in benchmarks/results, and nothing else.

    python benchmarks/page.py            writes the page and the figures anew
    python benchmarks/page.py --check    exit code 1 where the page differs from the results

Every number on the page is computed here from what `suite.py`, `time_to_accuracy.py` and `floor.py`
measured; figures are SVG without a date and with fixed names, so that the same results give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.options import run_main  # noqa: E402
from benchmarks.records import RESULTS, results_path, rows_of  # noqa: E402
from benchmarks.suite import CHOSEN, ratios, reached  # noqa: E402

PAGE = ROOT / "docs/benchmarks.md"
IMAGES = ROOT / "docs/images"
STYLE = {
    "svg.hashsalt": "pcflax",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}
JOBS = {
    "notebook": "The notebook's job: 784-300-300-10, tanh, batch 64, T = 20, Adam",
    "cross-library": "The cross-library job: 784-512-512-10, sigmoid, batch 250, T = 20, AdamW",
    "residual": "A deep residual network: muPC, 30 layers of width 128, batch 64, T = 30",
    "vgg5": "VGG5, channels 32-64-128-128, images of 32 x 32, batch 16, T = 7",
    "tiny": "A tiny network, 64-32-32-10, batch 32, T = 20, where overhead shows",
    "inference": "Inference alone on the notebook's network, T = 100",
}
COLOURS = {"pcflax": "#0b6e4f", "bare_scan": "#7a7a7a", "the floor": "#c8c8c8"}
PEER = "#c77c3c"
BACKPROP = "#8aa6c1"
MARKS = (97.5, 98.0)  # test accuracies to which the seconds are told, in %


def devices() -> list[str]:
    """Devices that the suite has results of, the CPU first."""
    names = [path.stem.removeprefix("suite-") for path in RESULTS.glob("suite-*.json")]
    return sorted(names, key=lambda name: (name != "cpu", name))


def read(kind: str, device: str) -> dict | None:
    """A results file, or None where there is none."""
    path = results_path(kind, device)
    return json.loads(path.read_text()) if path.exists() else None


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{1e3 * seconds:.3g}"


def colour_of(contender: str, found: dict) -> str:
    """By kind: ours, bare jax, a peer, backpropagation."""
    if found["rule"] == "backprop":
        return BACKPROP
    return COLOURS.get(contender, PEER)


def job_table(record: dict) -> str:
    """One job: who takes how long."""
    rows = []
    for contender, found in by_time(record):
        low, middle, high = ratios(record, contender, to="pcflax")
        seconds = statistics.median(found["seconds"])
        name = f"**{found['name']}**" if contender == "pcflax" else found["name"]
        rows.append(
            [
                name,
                milliseconds(seconds),
                f"{milliseconds(min(found['seconds']))} to {milliseconds(max(found['seconds']))}",
                f"{middle:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{found['compile_seconds']:.2f}",
                f"{found['memory_peak'] / 1e6:.0f}",
            ]
        )
    rows += [[name, "-", "-", "-", reason, "-", "-"] for name, reason in record["missing"].items()]
    header = [
        "contender",
        "ms an iteration",
        "range",
        "times pcflax",
        "range",
        "compile s",
        "peak MB",
    ]
    return rows_of(header, rows)


def by_time(record: dict) -> list[tuple[str, dict]]:
    """Contenders, the fastest first."""
    return sorted(
        record["contenders"].items(), key=lambda pair: statistics.median(pair[1]["seconds"])
    )


def verdict(record: dict) -> str:
    """How pcflax stands to the fastest peer, the bare step, the notebook's loop and the floor."""
    contenders = record["contenders"]
    if "pcflax" not in contenders:
        return "pcflax did not run."
    ours = statistics.median(contenders["pcflax"]["seconds"])
    parts = []
    peers = [name for name in contenders if is_peer(name, contenders[name])]
    for kind, names in (
        ("the fastest peer", [name for name in peers if ":" not in name]),
        ("the fastest tuned one", [name for name in peers if ":" in name]),
    ):
        if names:
            fastest = min(names, key=lambda name: ratios(record, name)[1])
            value = ratios(record, fastest)[1]
            parts.append(
                f"{kind}, {short(contenders[fastest]['name'])}, takes {value:.2f} times as long"
            )
    if "notebook_equinox" in contenders:
        value = ratios(record, "notebook_equinox")[1]
        parts.append(f"the notebook's loop {value:.2f} times")
    if record["job"]["model"] == "vgg5":
        parts.append(CONVOLUTIONS)
    elif "bare_scan" in contenders:
        value = 1 / ratios(record, "bare_scan")[1]
        parts.append(f"pcflax takes {value:.2f} times the bare-jax step")
    floor = record.get("floor", {})
    if "seconds" in floor:
        kind = "products" if floor["product_seconds"] >= floor["byte_seconds"] else "bytes"
        parts.append(
            f"{ours / floor['seconds']:.2f} times the floor of {milliseconds(floor['seconds'])} ms "
            f"({floor['flops'] / 1e9:.3g} Gflop in products, {floor['bytes'] / 1e6:.3g} MB moved; the "
            f"{kind} decide)"
        )
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def is_peer(contender: str, found: dict) -> bool:
    """Whether this is another library's predictive coding."""
    ours = ("pcflax", "bare_scan", "notebook_equinox", "notebook_loop")
    return contender not in ours and found["rule"] == "pc"


def save(figure: Figure, name: str) -> bytes:
    """The figure's SVG, the same bytes for the same results."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": name})
    return buffer.getvalue()


def bars(result: dict) -> Figure:
    """Milliseconds an iteration, a panel a job."""
    jobs = [name for name in JOBS if name in result["jobs"]]
    page = Figure(figsize=(9, 3.1 * -(-len(jobs) // 2)), layout="constrained")
    for number, name in enumerate(jobs):
        axis = page.add_subplot(-(-len(jobs) // 2), 2, number + 1)
        record = result["jobs"][name]
        bars_of = [
            (short(found["name"]), statistics.median(found["seconds"]), colour_of(contender, found))
            for contender, found in by_time(record)
        ]
        if "seconds" in record.get("floor", {}):
            bars_of.insert(0, ("the floor", record["floor"]["seconds"], COLOURS["the floor"]))
        labels, seconds, colours = zip(*reversed(bars_of), strict=True)
        axis.barh(labels, [1e3 * value for value in seconds], color=colours)
        axis.set_xscale("log")
        plain_ticks(axis.xaxis)
        axis.set_title(name, loc="left", fontsize=9, fontweight="bold")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", labelsize=7)
        if number >= len(jobs) - 2:
            axis.set_xlabel("milliseconds an iteration")
    return page


def short(name: str) -> str:
    """A contender's name without what stands in brackets, but for what tells two apart."""
    first, _, rest = name.partition(" (")
    for word in ("tuned", "Equinox", "plain jax"):
        if rest.startswith(word):
            return f"{first}, {word}"
    return first


def plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def curves(result: dict) -> Figure:
    """Test accuracy by seconds of training."""
    page = Figure(figsize=(8, 3.6), layout="constrained")
    axis = page.subplots()
    for number, (contender, found) in enumerate(result["contenders"].items()):
        points = found["curve"]
        axis.plot(
            [point["seconds"] for point in points],
            [point["accuracy"] for point in points],
            label="pcflax, output and steps chosen"
            if contender == CHOSEN
            else short(found["name"]),
            color=COLOURS["pcflax"] if contender.startswith("pcflax") else f"C{number}",
            linewidth=2.2 if contender.startswith("pcflax") else 1.2,
            linestyle=":" if contender == CHOSEN else "--" if found["rule"] == "backprop" else "-",
        )
    for mark in MARKS:
        axis.axhline(mark, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    plain_ticks(axis.xaxis)
    axis.set_ylim(bottom=95)
    axis.set_xlabel("seconds of training, compilation included")
    axis.set_ylabel("test accuracy, %")
    axis.legend(fontsize=7, ncols=2)
    return page


def swept(result: dict) -> Figure:
    """Time by T, width, depth and batch, and memory by T."""
    page = Figure(figsize=(9, 5), layout="constrained")
    axes = page.subplots(2, 3).ravel()
    names = list(result["sweeps"])
    for axis, name in zip(axes, [*names, "T"], strict=False):
        is_memory = axis is axes[len(names)]
        series: dict[str, list] = {}
        for point in result["sweeps"][name]:
            for contender, found in point["contenders"].items():
                value = (
                    found["memory_peak"] / 1e6
                    if is_memory
                    else 1e3 * statistics.median(found["seconds"])
                )
                series.setdefault(short(found["name"]), []).append(
                    (point["value"], value, colour_of(contender, found), contender)
                )
        markers = iter("osv^Dx")
        for label, points in series.items():
            x, y, colours, _ = zip(*points, strict=True)
            axis.plot(x, y, label=label, color=colours[0], marker=next(markers), markersize=3)
        axis.set_xscale("log")
        plain_ticks(axis.xaxis)
        if is_memory:
            axis.set_ylim(bottom=0)
        else:
            axis.set_yscale("log")
            plain_ticks(axis.yaxis)
        axis.set_xlabel({"T": "T, inference steps"}.get(name, name))
        axis.set_ylabel("peak memory, MB" if is_memory else "ms an iteration")
    for axis in axes[len(names) + 1 :]:
        axis.axis("off")
        handles, labels = axes[0].get_legend_handles_labels()
        axis.legend(handles, labels, loc="center", frameon=False)
    return page


def accuracy_table(result: dict) -> str:
    """Best and last accuracy, and the seconds to each of `MARKS`."""
    batches = result["job"]["decay_every"]

    def seconds_to(curve: list[dict], mark: float) -> str:
        hit = reached(curve, mark)
        if hit is None:
            return "not reached"
        return f"{hit['seconds']:.0f} (epoch {hit['iteration'] / batches:.0f})"

    rows = []
    for found in result["contenders"].values():
        curve = found["curve"]
        rows.append(
            [
                found["name"],
                f"{max(point['accuracy'] for point in curve):.2f}",
                f"{curve[-1]['accuracy']:.2f}",
                f"{curve[-1]['iteration'] / batches:.0f}",
                f"{curve[-1]['seconds']:.0f}",
                *(seconds_to(curve, mark) for mark in MARKS),
            ]
        )
    rows += [[name, *"-----", reason] for name, reason in result["missing"].items()]
    marks = [f"seconds to {mark:g} %" for mark in MARKS]
    return rows_of(["contender", "best %", "last %", "epochs", "seconds", *marks], rows)


def chosen(answers: dict) -> str:
    """What the cross-library job reaches with the output and the inference chosen on held-out images."""
    accuracy = answers["cross_library_accuracy"]["values"]
    parts = [
        f"With a categorical output and 3 steps of 0.03 in the place of squared errors and 20 of 0.01, which "
        f"5,000 held-out training images chose (`scripts/cross_library.py`; network, weights, batches and "
        f"optimizer as before), the last epoch of {len(accuracy)} seeds has {span(accuracy, '.2f')} % of the "
        f"test images right"
    ]
    for target in ("97.5", "98.0"):
        if found := answers.get(f"cross_library_epochs_{target}"):
            parts.append(f"{target} % is reached in epoch {span(found['values'], '.0f')}")
    if found := answers.get("cross_library_pcx_ratio"):
        parts.append(
            f"an iteration of PCX, the fastest to 97.5 % of the libraries above, takes "
            f"{statistics.median(found['values']):.1f} times as long ({span(found['values'], '.1f')} in "
            f"{len(found['values'])} rounds)"
        )
    parts.append("an iteration has 1.6 Gflop in products instead of 6.1")
    return (
        "; ".join(parts)
        + ". Such small steps are near backpropagation: the gain is the output's. The peers "
        "ran the job as it is given; with this output and these steps they were not run."
    )


def span(values: list[float], form: str) -> str:
    """The smallest and the largest value, or the one that there is."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def memory_by_steps(result: dict) -> str:
    """One sentence on memory and T."""
    points = result["sweeps"]["T"]
    memory = [point["contenders"]["pcflax"]["memory_peak"] / 1e6 for point in points]
    return (
        f"From T = {points[0]['value']} to {points[-1]['value']} the peak of pcflax's memory goes from "
        f"{memory[0]:.0f} to {memory[-1]:.0f} MB."
    )


def time_table(result: dict) -> str:
    """Seconds to two accuracies by rule and algorithm."""
    targets = result["targets"]
    rows = []
    for name, found in result["rules"].items():
        cells = [name, found["description"]]
        for target in targets:
            hits = [run["reached"].get(str(target)) for run in found["runs"]]
            if all(hits):
                seconds = [hit["seconds"] for hit in hits]
                steps = statistics.median(hit["iteration"] for hit in hits)
                cells.append(
                    f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}), "
                    f"{steps:.0f} batches"
                )
            else:
                cells.append("not reached" if not any(hits) else "not by every seed")
        rows.append(cells)
    return rows_of(["rule", "rates", *(f"s to {target} %" for target in targets)], rows)


def page() -> tuple[str, dict[str, bytes]]:
    """The page and its figures by file name."""
    images: dict[str, bytes] = {}
    parts = [INTRODUCTION]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "svg"}):
        for device in devices():
            result = read("suite", device)
            assert result is not None
            place = f"{result['cpu_count']} cores of {result['processor']}"
            parts.append(f"## {'CPU' if device == 'cpu' else result['device']}\n")
            parts.append(
                f"Measured on {result['date']} on {place}"
                + ("" if device == "cpu" else f" with a {result['device']}")
                + f", Python {result['python']}.\n"
            )
            images[f"benchmarks-times-{device}.svg"] = save(bars(result), "times")
            parts.append(f"![Milliseconds an iteration](images/benchmarks-times-{device}.svg)\n")
            for name, title in JOBS.items():
                if name not in result["jobs"]:
                    continue
                record = result["jobs"][name]
                parts.append(
                    f"### {title}\n\n{verdict(record)}\n\n{job_table(record)}\n\n"
                    f"{record['rounds']} rounds of {record['job']['iterations']} iterations, "
                    f"{record.get('date', result['date'])}.\n"
                )
            if sweeps := read("sweeps", device):
                images[f"benchmarks-sweeps-{device}.svg"] = save(swept(sweeps), "sweeps")
                parts.append(
                    "### Time by steps, width, depth and batch\n\nThe notebook's job with one size "
                    "changed at a time (depth with layers of width 128).\n\n"
                    f"![Time by size](images/benchmarks-sweeps-{device}.svg)\n\n"
                    f"{memory_by_steps(sweeps)}\n"
                )
            if accuracy := read("accuracy", device):
                images[f"benchmarks-accuracy-{device}.svg"] = save(curves(accuracy), "accuracy")
                parts.append(
                    f"### Accuracy by time, cross-library job\n\n"
                    f"MNIST, measured after every epoch on all test images until {accuracy['target']} % or "
                    f"{accuracy['budget']:.0f} seconds; seconds are of training, compilation included, "
                    f"evaluation not. They take turns, an epoch each. One seed, {accuracy['date']}.\n\n"
                    f"![Accuracy by seconds](images/benchmarks-accuracy-{device}.svg)\n\n"
                    f"{accuracy_table(accuracy)}\n"
                )
                answers = read("depth", device) or {}
                if "cross_library_accuracy" in answers:
                    parts.append(f"{chosen(answers)}\n")
            if times := read("time_to_accuracy", device):
                parts.append(
                    f"### Seconds to an accuracy, by rule\n\n{times['text']}\n\n{time_table(times)}\n"
                )
            versions = {
                f"{found['name']}: " + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
                for record in result["jobs"].values()
                for found in record["contenders"].values()
            }
            parts.append(
                "### Versions\n\n" + "\n".join(f"- {line}" for line in sorted(versions)) + "\n"
            )
    return "\n".join(parts), images


CONVOLUTIONS = (
    "on CPUs XLA's own derivatives of convolutions are slow, in the bare-jax step and in Flax too, and "
    "pcflax takes them as matrix products, which is where its margin comes from"
)

INTRODUCTION = """# Benchmarks

Made by `python benchmarks/page.py` from the JSON files in `benchmarks/results`, which `make bench` measures
anew: it makes every library's environment, runs every job by every contender, and writes this page. What
needs MNIST is measured where TFDS_DATA_DIR names a folder of prepared sets.

Each contender trains the same job from the same weights on the same batches, in a process and an environment
of its own, driven through its public API, libraries on jax with their whole training step compiled. For times
all are alive side by side and take turns, round after round; seconds are medians over rounds, and *times
pcflax* is the median of the ratio within a round with its smallest and largest value. Compilation is what the
first call takes beyond the second, with the noise of both: tenths of a second where a call takes seconds.
Peak memory is the whole process's, libraries included. A contender that cannot be installed, or cannot
express a job, is in the table with the reason. pcflax is given its batches as a data set, which it keeps on
the device, and the others as arrays.

Where it says *tuned*, we went beyond what the library offers its users and scanned K of its steps in one
compiled call, as `Trainer.fit` does for everybody.

The floor is what the job's matrix products and convolutions take at the rates that this machine reaches at
their shapes in a loop of nothing else, or what its bytes take at the rate of copying, whichever is longer: an
estimate (`benchmarks/floor.py`).
"""


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    options = parser.parse_args()
    text, images = page()
    files = {PAGE: text.encode()} | {IMAGES / name: data for name, data in images.items()}
    if options.check:
        different = [
            path for path, data in files.items() if not path.exists() or path.read_bytes() != data
        ]
        for path in different:
            print(f"{path} differs from benchmarks/results; run python benchmarks/page.py")
        return int(bool(different))
    for path, data in files.items():
        path.write_bytes(data)
    return 0


if __name__ == "__main__":
    run_main(main)

"""Every job by every contender, interleaved, each in an environment of its own: times, memory, accuracy.

    python benchmarks/suite.py                          all of it, into benchmarks/results (an hour)
    python benchmarks/suite.py times --jobs tiny notebook       measures these anew, keeps the others
    python benchmarks/suite.py accuracy --epochs 20     accuracy by seconds, cross-library job
    python benchmarks/suite.py accuracy --contenders pcflax:Chosen pcx --output chosen.json       of these two
    python benchmarks/suite.py sweeps                   time and memory by T, width, depth, batch
    python benchmarks/suite.py times --against benchmarks/results/suite-cpu.json     do two runs agree?

Times: one process a contender, alive side by side, and in every round each is asked in turn, in an order
drawn anew, so that a machine that slows down slows them all. Seconds are the median over rounds, and
ratios to pcflax the median over rounds of the ratio within a round, with the smallest and largest beside it.
Accuracy: they take turns too, an epoch each; `pcflax:Chosen` is among them unless contenders are named.

Contenders that run elsewhere than in this environment are made by `make bench-peers`. One that cannot be
installed, or cannot express a job, is in the table with the reason. Next file to read: `page.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import peers  # noqa: E402
from benchmarks.jobs import JOBS, Job  # noqa: E402
from benchmarks.options import read_count, read_number, read_output, read_record, run_main  # noqa: E402
from benchmarks.records import results_path, write_results  # noqa: E402

OURS = ("pcflax", "bare_scan", "notebook_equinox", "notebook_loop", "flax_backprop")
TUNED = tuple(f"{peer}:Tuned" for peer in ("fabricpc", "jpc", "ngclearn", "pcx"))
CONTENDERS = (*OURS, *peers.PEERS, *TUNED)
CHOSEN = "pcflax:Chosen"  # for accuracy alone: not the job that the others run
SWEEPS = {  # of the notebook's job
    "T": (5, 20, 80),
    "width": (64, 256, 1024),
    "depth": (2, 8, 16),
    "batch": (16, 128, 1024),
}
HOLDS = {"times": "jobs", "accuracy": "contenders", "sweeps": "sweeps"}  # by which a file is known
SWEPT = ("pcflax", "bare_scan", "fabricpc", "pcx")


class ContenderError(RuntimeError):
    """A contender did not do what it was asked; the message is for the table."""


class Process:
    """A contender in its environment, asked by JSON lines."""

    def __init__(self, contender: str, job: Job, seed: int = 0, seconds: float = 600) -> None:
        """Start it and read who it is; raises ContenderError with the reason where it cannot be."""
        peer = contender.partition(":")[0]
        interpreter = sys.executable if peer in OURS else peers.interpreter(peer)
        if not Path(interpreter).exists():
            raise ContenderError(peers.why_missing(peer))
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        changes = {
            field.name: getattr(job, field.name)
            for field in dataclasses.fields(job)
            if getattr(job, field.name) != getattr(JOBS[job.name], field.name)
        }
        self.process = subprocess.Popen(
            [
                *(interpreter, str(ROOT / "benchmarks/worker.py"), contender, "--serve"),
                *("--job", job.name, "--seed", str(seed), "--changes", json.dumps(changes)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.about = self._answer(seconds)

    def ask(self, command: str, seconds: float = 1200, **arguments) -> dict:
        """The answer to a command."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is in what it wrote
        return self._answer(seconds)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def _answer(self, seconds: float) -> dict:
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise ContenderError(f"no answer in {seconds:.0f} s") from None
        if not line:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
            self.close()
            raise ContenderError(f"ended: {last[0][:200]}")
        try:
            answer = json.loads(line)
        except ValueError:  # cut off
            self.close()
            raise ContenderError(f"no answer but {line[:100]!r}") from None
        if "error" in answer:
            self.close()
            raise ContenderError(answer["error"])
        return answer


def machine() -> dict:
    """The machine and its date."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cpu_count": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "date": today(),
    }


def today() -> str:
    """The date."""
    return time.strftime("%Y-%m-%d")


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def time_job(job: Job, contenders: list[str], rounds: int, say) -> dict:
    """Warm-up, then `rounds` rounds of every contender in turn."""
    processes: dict[str, Process] = {}
    record: dict = {
        "job": dataclasses.asdict(job),
        "rounds": rounds,
        "contenders": {},
        "missing": {},
    }

    def drop(contender: str, error: ContenderError) -> None:
        record["missing"][contender] = str(error)
        record["contenders"].pop(contender, None)
        processes.pop(contender, None)

    try:
        for contender in contenders:
            say(f"{job.name}: {contender} warms up")
            try:
                process = Process(contender, job)
                warm = process.ask("warm", iterations=job.iterations)
            except ContenderError as error:
                drop(contender, error)
                continue
            processes[contender] = process
            record["contenders"][contender] = {**process.about, **warm, "seconds": []}
        for number in range(rounds):
            order = list(processes)
            random.Random(number).shuffle(order)  # nobody always follows the same neighbour
            for contender in order:
                say(f"{job.name}: round {number + 1} of {rounds}, {contender}")
                try:
                    answer = processes[contender].ask("round", iterations=job.iterations)
                except ContenderError as error:
                    drop(contender, error)
                    continue
                found = record["contenders"][contender]
                found["seconds"].append(answer["seconds"] / job.iterations)
                found["memory_peak"] = answer["memory_peak"]
    finally:
        for process in processes.values():
            process.close()
    return record


def floor(job: Job) -> dict:
    """What `benchmarks/floor.py` measures, in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/floor.py"), "--job", job.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return {"error": "no answer in 600 s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout)


def ratios(record: dict, contender: str, to: str = "pcflax") -> tuple[float, float, float]:
    """Smallest, median and largest ratio of two contenders' times within a round."""
    pairs = zip(
        record["contenders"][contender]["seconds"], record["contenders"][to]["seconds"], strict=True
    )
    found = sorted(a / b for a, b in pairs)
    return found[0], statistics.median(found), found[-1]


def table(record: dict) -> Table:
    """One job's table."""
    job = record["job"]
    shown = Table(
        title=f"{job['name']}: {record['rounds']} rounds of {job['iterations']} iterations"
    )
    for column in ("contender", "ms", "min-max", "times pcflax", "min-max", "compile s", "peak MB"):
        shown.add_column(column, justify="left" if column == "contender" else "right")
    for contender, found in record["contenders"].items():
        times = [1e3 * value for value in found["seconds"]]
        relative = ["", ""]
        if "pcflax" in record["contenders"]:
            low, middle, high = ratios(record, contender)
            relative = [f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
        shown.add_row(
            found["name"],
            f"{statistics.median(times):.3f}",
            f"{min(times):.3f}-{max(times):.3f}",
            *relative,
            f"{found['compile_seconds']:.2f}",
            f"{found['memory_peak'] / 1e6:.0f}",
        )
    for contender, reason in record["missing"].items():
        shown.add_row(contender, "", "", "", reason[:60], "", "")
    if "seconds" in record.get("floor", {}):
        shown.add_row("the floor", f"{1e3 * record['floor']['seconds']:.3f}")
    return shown


def accuracy(job: Job, contenders: list[str], data: str, options, say, seed: int = 0) -> dict:
    """Test accuracy by seconds of training; all are alive side by side and take turns, epoch by epoch."""
    record: dict = {"job": dataclasses.asdict(job), "contenders": {}, "missing": {}}
    record |= {"epochs": options.epochs, "target": options.target, "budget": options.budget}
    processes: dict[str, Process] = {}
    try:
        for contender in contenders:
            try:
                processes[contender] = process = Process(contender, job, seed)
                process.ask("load", path=data)
                record["contenders"][contender] = {**process.about, "curve": []}
            except ContenderError as error:
                processes.pop(contender, None)
                record["missing"][contender] = str(error)
        for number in range(options.epochs):
            for contender, process in list(processes.items()):
                try:
                    answer = process.ask("epoch", number=number, parts=options.parts_of_epoch)
                except ContenderError as error:
                    record["missing"][contender] = str(error)
                    del processes[contender], record["contenders"][contender]
                    continue
                curve = record["contenders"][contender]["curve"]
                for point in answer["curve"]:
                    seconds = point["seconds"] + (curve[-1]["seconds"] if curve else 0.0)
                    curve.append({**point, "seconds": round(seconds, 3)})
                spent, best = curve[-1]["seconds"], max(point["accuracy"] for point in curve)
                say(
                    f"{job.name}: {contender} {number + 1} epochs, {spent:.0f} s, best {best:.2f} %"
                )
                if spent > options.budget or best >= options.target:
                    processes.pop(contender).close()
    finally:
        for process in processes.values():
            process.close()
    return record


def reached(points: list[dict], target: float) -> dict | None:
    """The first point at or above an accuracy."""
    return next((point for point in points if point["accuracy"] >= target), None)


def sweeps(contenders: list[str], rounds: int, say) -> dict:
    """Time, compilation and memory of the notebook's job by one size at a time."""
    base = JOBS["notebook"]
    record: dict = {}
    for name, values in SWEEPS.items():
        record[name] = []
        for value in values:
            hidden = (base.widths[1],) * 2
            if name == "width":
                hidden = (value,) * 2
            elif name == "depth":
                hidden = (128,) * (value - 1)
            changes: dict = {"widths": (784, *hidden, 10), "iterations": 30}
            changes |= {"num_inference_steps": value} if name == "T" else {}
            changes |= {"batch_size": value} if name == "batch" else {}
            job = dataclasses.replace(base, **changes)
            record[name].append({"value": value, **time_job(job, contenders, rounds, say)})
    return record


def agreement(new: dict, old: dict, console: Console) -> bool:
    """Whether the ratios of two runs agree within the spread that each states."""
    agrees = True
    for name, record in new["jobs"].items():
        for contender in record["contenders"]:
            before = old["jobs"].get(name, {"contenders": {}})
            if contender not in before["contenders"] or "pcflax" not in record["contenders"]:
                continue
            (low, middle, high), (old_low, was, old_high) = (
                ratios(found, contender) for found in (record, before)
            )
            inside = old_low <= middle <= old_high and low <= was <= high
            agrees &= inside
            console.print(
                f"{name:14s} {contender:18s} {middle:.2f} ({low:.2f}-{high:.2f}) now, "
                f"{was:.2f} ({old_low:.2f}-{old_high:.2f}) then: {'agrees' if inside else 'DIFFERS'}"
            )
    return agrees


def write_data(path: Path, name: str, folder: str | None) -> None:
    """Both splits of a data set, uint8 with scale, mean and std, for `Worker.load`."""
    import numpy as np

    import pcflax as pc

    arrays: dict = {}
    for split in ("train", "test"):
        data = pc.data.load(name, split=split, data_dir=folder, stream=False)
        decoder = data.reader.decoder
        arrays |= {f"{split}_inputs": data.inputs, f"{split}_labels": data.targets}
        arrays |= {"scale": decoder.scale, "mean": decoder.mean, "std": decoder.std}
    np.savez(path, **arrays)


def save(kind: str, record: dict, output: Path | None, console: Console) -> None:
    """Write a results file, named after the device."""
    path = output or results_path(kind, record["device"])
    if "jobs" in record and path.exists():  # jobs not measured again stay, with their date
        before = json.loads(path.read_text())
        kept = {name: {"date": before["date"], **job} for name, job in before["jobs"].items()}
        jobs = kept | record["jobs"]
        record = record | {"jobs": {name: jobs[name] for name in JOBS if name in jobs}}
    write_results(record, path)
    console.print(f"written to {path}")


def main() -> int:
    """Measure what was asked for, show it, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"{', '.join(HOLDS)}; all of them unless given")
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--contenders", nargs="+", choices=(*CONTENDERS, CHOSEN))
    parser.add_argument("--rounds", type=read_count, default=9)
    parser.add_argument(
        "--iterations", type=read_count, help="of a round; each job's own unless given"
    )
    parser.add_argument("--epochs", type=read_count, default=100, help="of accuracy, at most")
    parser.add_argument("--parts-of-epoch", dest="parts_of_epoch", type=read_count, default=1)
    parser.add_argument(
        "--target", type=read_number, default=98.2, help="accuracy in %% that ends a curve"
    )
    parser.add_argument(
        "--budget", type=read_number, default=900, help="seconds of training that end one"
    )
    parser.add_argument(
        "--data-dir", default=os.environ.get("TFDS_DATA_DIR"), help="prepared TFDS sets"
    )
    parser.add_argument(
        "--output", type=read_output, help="the JSON file, where one part is asked for"
    )
    parser.add_argument(
        "--against", type=read_record, help="a results file of times: exit code 1 if they differ"
    )
    options = parser.parse_args()
    contenders = options.contenders or list(CONTENDERS)
    parts = options.parts or list(HOLDS)
    if unknown := set(parts) - set(HOLDS):
        parser.error(f"expected times, accuracy or sweeps, got {', '.join(sorted(unknown))}")
    console = Console() if Console().is_terminal else Console(width=120)
    is_part = not set(CONTENDERS) <= set(contenders) or options.iterations
    if is_part and not options.output:
        parser.error(
            "a part of the contenders or iterations goes to a file of its own: --output FILE"
        )
    if options.output and len(parts) > 1:
        parser.error(f"--output takes one part, got {', '.join(parts)}; ask for one at a time")
    held = read_record(options.output) if options.output and options.output.exists() else None
    if held is not None and HOLDS[parts[0]] not in held:
        parser.error(f"{options.output} holds no {parts[0]}; name a file of its own")
    before = options.against
    if before is not None and HOLDS["times"] not in before:
        parser.error("--against expected a results file of times; suite.py times writes one")
    about, agrees = machine(), True
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def say(text: str) -> None:
            progress.update(task, description=text)

        if "times" in parts:
            record = {**about, "jobs": {}}
            for name in options.jobs:
                job = JOBS[name]
                if options.iterations:
                    job = dataclasses.replace(job, iterations=options.iterations)
                found = time_job(job, contenders, options.rounds, say)
                say(f"{name}: the floor")
                found["floor"] = floor(job)
                record["jobs"][name] = found
                console.print(table(found))
                save("suite", record, options.output, console)
            if before is not None:
                agrees = agreement(record, before, console)
        if "sweeps" in parts:
            swept = [name for name in contenders if name in SWEPT]
            record = {**about, "sweeps": sweeps(swept, min(options.rounds, 5), say)}
            save("sweeps", record, options.output, console)
        if "accuracy" in parts:
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "data.npz"
                try:
                    write_data(data, "mnist", options.data_dir)
                except FileNotFoundError as error:
                    if options.parts:
                        raise  # it was asked for by name
                    console.print(f"no accuracy without MNIST: {error}")
                else:
                    raced = options.contenders or [*CONTENDERS, CHOSEN]
                    job = JOBS["cross-library"]
                    found = accuracy(job, raced, str(data), options, console.print)
                    save("accuracy", {**about, **found}, options.output, console)
    return 0 if agrees else 1


if __name__ == "__main__":
    run_main(main)

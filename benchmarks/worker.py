"""Runs one contender, in the environment of the Python that runs this file, which needs NumPy alone.

    python benchmarks/worker.py pcflax --job notebook            trains the job, prints one JSON object
    python benchmarks/worker.py fabricpc --job tiny --epochs 2 --data data.npz
    python benchmarks/worker.py fabricpc --job tiny --serve      answers commands, one JSON line each

The object holds device, versions, seconds of every timed call an iteration after a warm-up, what the first
call took beyond a later one (compilation), the peak of resident memory, and with --epochs the accuracy by
iteration and the seconds of training until then, compilation included and evaluation not. `suite.py` serves
many workers and asks them in turn. Next file to read: `suite.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # in the place of this file's folder
from benchmarks.jobs import JOBS, Job, Unsupported  # noqa: E402
from benchmarks.options import read_count, read_index  # noqa: E402


class Worker:
    """One contender on one job; a method a command, each returns what JSON can hold."""

    def __init__(self, module: str, job: Job, seed: int = 0) -> None:
        """Import the contender's library; it is not yet compiled."""
        self.job, self.seed = job, seed
        name, _, variant = module.partition(":")
        contenders = importlib.import_module(f"benchmarks.contenders.{name}")
        self.kind = getattr(contenders, variant or "Contender")
        self.contender = self.kind(job, job.make_parameters(seed))
        self.batches: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.data: tuple[np.ndarray, ...] | None = None

    def about(self) -> dict:
        """Name, rule, device and versions."""
        versions = {"python": platform.python_version()}
        for package in self.kind.packages:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = "not a distribution"
        return {
            "name": self.kind.name,
            "rule": self.kind.rule,
            "device": device(),
            "versions": versions,
        }

    def warm(self, iterations: int) -> dict:
        """Compile by running once; seconds of that, and what they are more than a second run's."""
        self._random(iterations)
        before = memory()
        first, second = self.round(iterations)["seconds"], self.round(iterations)["seconds"]
        return {
            "first_seconds": first,
            "compile_seconds": max(0.0, first - second),
            "memory_before": before["now"],
            "memory_peak": memory()["peak"],
            "device_memory_peak": device_memory(),
        }

    def round(self, iterations: int) -> dict:
        """Seconds of one call of so many iterations, on batches made before."""
        batches = self._random(iterations)
        begin = time.perf_counter()
        self.contender.run(*batches)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "memory_peak": memory()["peak"]}

    def load(self, path: str) -> dict:
        """Read train and test split, uint8 images and labels, and normalize them."""
        with np.load(path) as file:
            scale, mean, deviation = (
                file[name].astype(np.float32) for name in ("scale", "mean", "std")
            )

            def normalized(split: str) -> np.ndarray:
                images = (file[f"{split}_inputs"].astype(np.float32) * scale - mean) / deviation
                return images.reshape(len(images), *self.job.input_shape)

            self.data = (
                normalized("train"),
                file["train_labels"],
                normalized("test"),
                file["test_labels"],
            )
        return {"train": len(self.data[1]), "test": len(self.data[3])}

    def restart(self, seed: int) -> dict:
        """Begin anew from the initial parameters of this seed."""
        self.seed = seed
        self.contender = self.kind(self.job, self.job.make_parameters(seed))
        return {}

    def epoch(self, number: int, parts: int = 1) -> dict:
        """Train one epoch, in parts; after each the iteration, seconds of training, test accuracy."""
        assert self.data is not None
        images, labels, test_images, test_labels = self.data
        inputs, targets = self.job.epoch(images, labels, self.seed, number)
        count, curve = len(inputs), []
        bounds = [round(part * count / parts) for part in range(parts + 1)]
        for low, high in itertools.pairwise(bounds):
            piece = np.ascontiguousarray(inputs[low:high]), np.ascontiguousarray(targets[low:high])
            begin = time.perf_counter()
            self.contender.run(*piece)
            seconds = time.perf_counter() - begin
            outputs = self.contender.predict(test_images)
            correct = np.mean(np.argmax(outputs, axis=1) == test_labels)
            curve.append(
                {
                    "iteration": number * count + high,
                    "seconds": seconds,
                    "accuracy": round(100 * float(correct), 4),
                }
            )
        return {"curve": curve}

    def _random(self, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        if iterations not in self.batches:
            self.batches[iterations] = self.job.make_batches(iterations, seed=1)
        return self.batches[iterations]


def memory() -> dict:
    """Resident memory of this process in bytes, now and at its peak."""
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:  # not Linux: the peak alone
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        peak = scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"now": peak, "peak": peak}
    return {
        name: 1024 * int(lines[key].split()[0])
        for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))
    }


def device() -> str:
    """Kind of the accelerator that the contender computes on, or "cpu"."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return sys.modules["jax"].devices()[0].device_kind if "jax" in sys.modules else "cpu"


def device_memory() -> int | None:
    """Peak of the accelerator's memory in bytes, where the library tells."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if "jax" not in sys.modules:
        return None
    statistics = sys.modules["jax"].devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def serve(worker_of) -> None:
    """Answer commands {"command": name, ...} from standard input, one line each, until it ends.

    What libraries print goes to standard error, so that it cannot be taken for an answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        worker = worker_of()
        answer(worker.about())
    except Exception as error:  # goes into the table as the reason
        answer({"error": reason(error)})
        return
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(getattr(worker, request.pop("command"))(**request))
        except Exception as error:  # as above
            answer({"error": reason(error)})


def reason(error: Exception) -> str:
    """One line for the table."""
    text = str(error).strip().splitlines()
    prefix = "" if isinstance(error, Unsupported) else f"{type(error).__name__}: "
    return f"{prefix}{text[0] if text else ''}"[:200]


def main() -> None:
    """Train alone and print, or serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "contender", help="a module of benchmarks/contenders, or module:Class of it"
    )
    parser.add_argument("--job", choices=list(JOBS), default="notebook")
    parser.add_argument("--iterations", type=read_count, help="of a round; the job's unless given")
    parser.add_argument("--rounds", type=read_count, default=5)
    parser.add_argument("--epochs", type=read_count, default=0, help="needs --data")
    parser.add_argument("--data", help="an .npz that benchmarks/suite.py writes")
    parser.add_argument("--seed", type=read_index, default=0)
    parser.add_argument("--changes", type=json.loads, default={}, help="fields of the job, as JSON")
    parser.add_argument("--serve", action="store_true", help="answer commands, for suite.py")
    options = parser.parse_args()
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.changes.items()
    }
    job = dataclasses.replace(JOBS[options.job], **changes)
    if options.serve:
        serve(lambda: Worker(options.contender, job, options.seed))
        return
    if options.epochs and not options.data:
        parser.error("--epochs needs --data FILE.npz; write_data of suite.py makes one")
    worker = Worker(options.contender, job, options.seed)
    iterations = options.iterations or job.iterations
    record = {"contender": options.contender, "job": job.name, **worker.about()}
    record |= worker.warm(iterations)
    record["seconds_an_iteration"] = [
        worker.round(iterations)["seconds"] / iterations for _ in range(options.rounds)
    ]
    record["memory_peak"] = memory()["peak"]
    if options.epochs:
        worker.load(options.data)
        worker.restart(options.seed)
        record["curve"] = [
            point for number in range(options.epochs) for point in worker.epoch(number)["curve"]
        ]
    print(json.dumps(record))


if __name__ == "__main__":
    main()

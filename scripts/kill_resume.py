"""Does a run that is killed with -9 and resumed end as the run never interrupted, bit by bit?

    python scripts/kill_resume.py --runs 100 [--model generator]
    python scripts/kill_resume.py --runs 50 --slow-disk     # about 100 kills

About 15 minutes on 2 CPU cores (10 s a run); on a slow disk, where each rename, removal and wait for the
disk takes 50 to 300 ms, so that more kills fall into saves, an hour. One reference run of `pcflax train`
ends by itself. Every other run, with the same options, is killed with SIGKILL at a random moment, one to
three times, and resumed. Expected: each ends with the reference's digest of parameters and optimizer state
and with the same metrics.jsonl, byte for byte; the last line printed is "100 of 100 runs ended bitwise
equal". The exit code is 1 where one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.options import read_count, read_index, run_main
from pcflax.cli.main import main as main_of_pcflax

# The command, where what changes a folder takes its time.
SLOW_DISK = """
import os, random, time
from pcflax.cli.main import main

moments = random.Random()


def slowly(operation):
    def call(*arguments, **options):
        time.sleep(moments.uniform(0.05, 0.3))
        return operation(*arguments, **options)

    return call


for name in ("rename", "replace", "remove", "unlink", "rmdir", "fsync"):
    setattr(os, name, slowly(getattr(os, name)))
main()
"""
PROGRAM = ["-m", "pcflax"]


def command(run_dir: Path, num_steps: int, *extra: str) -> list[str]:
    """A short run with many checkpoints, so that kills also land in their writing."""
    options = ["--num-steps", str(num_steps), "--eval-every", "20", "--run-dir", str(run_dir)]
    if "--resume" not in extra:
        options += ["--widths", "64", "48", "--inference-steps", "5"]
    return [sys.executable, *PROGRAM, "train", *options, *extra]


def finish(run_dir: Path, num_steps: int, *extra: str) -> None:
    """Run to the end."""
    done = subprocess.run(command(run_dir, num_steps, *extra), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{run_dir}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def outcome(run_dir: Path) -> tuple[int, str, bytes]:
    """Step, digest and metrics of a finished run."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main_of_pcflax(["inspect", str(run_dir), "--json"])
    record = json.loads(printed.getvalue())
    return record["step"], record["digest"], (run_dir / "metrics.jsonl").read_bytes()


def kill_at(run_dir: Path, num_steps: int, delay: float, *, once_training: bool, extra: list[str]):
    """Start (or resume) a run and kill it after a delay; returns whether it was still running."""
    before = len(list(run_dir.glob("checkpoints/*.sha256")))
    process = subprocess.Popen(
        command(run_dir, num_steps, *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if once_training:  # count the delay from the first checkpoint of this start
        while process.poll() is None and len(list(run_dir.glob("checkpoints/*.sha256"))) <= before:
            time.sleep(0.002)
            if before:
                break
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=read_count, default=100)
    parser.add_argument("--num-steps", type=read_count, help="600 unless given; 100 on a slow disk")
    parser.add_argument("--seed", type=read_index, default=0, help="of the moments")
    parser.add_argument("--model", default="mlp", help="one of the command's models with --widths")
    parser.add_argument("--slow-disk", action="store_true", help="the disk takes its time")
    options = parser.parse_args()
    if options.slow_disk:
        PROGRAM[:] = ["-c", SLOW_DISK]
    options.num_steps = options.num_steps or (100 if options.slow_disk else 600)
    moments = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="pcflax-kill-"))
    begin = time.perf_counter()
    new = ["--model", options.model]
    finish(folder / "reference", options.num_steps, *new)
    whole = time.perf_counter() - begin
    expected = outcome(folder / "reference")
    print(f"reference: step {expected[0]}, digest {expected[1][:16]}, {whole:.1f} s", flush=True)
    equal = kills = 0
    for number in range(options.runs):
        run_dir = folder / f"run-{number}"
        for _ in range(moments.randint(1, 3)):
            started = (run_dir / "config.json").exists()
            # Three kills of four are timed from the first checkpoint on, where there is most to lose.
            once_training = moments.random() < 0.75
            delay = moments.uniform(0.0, 0.6 * whole if once_training else whole)
            kills += kill_at(
                run_dir,
                options.num_steps,
                delay,
                once_training=once_training,
                extra=["--resume"] if started else new,
            )
        started = (run_dir / "config.json").exists()
        left = sorted(path.name for path in run_dir.glob("checkpoints/*") if path.is_dir())
        finish(run_dir, options.num_steps, *(["--resume"] if started else new))
        same = outcome(run_dir) == expected
        equal += same
        print(
            f"run {number + 1:>3}: {'equal' if same else 'DIFFERENT'}, after {kills} kills in all; "
            f"folders found: {', '.join(left) or 'none'}",
            flush=True,
        )
        if same:
            shutil.rmtree(run_dir)
    print(f"{equal} of {options.runs} runs ended bitwise equal ({kills} kills)")
    if equal != options.runs:
        print(f"the runs that did not are in {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_main(main)

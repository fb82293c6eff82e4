"""Does a sweep that is killed with -9 and resumed end with all of its trials, as the one never interrupted?

    python scripts/kill_sweep.py --trials 50 --kills 3

About 5 minutes on 2 CPU cores. One reference sweep of `pcflax sweep` ends by itself. Another with the same
options is killed with SIGKILL at random moments and resumed each time. Expected: both hold exactly as many
trials as were asked for, with the same settings, states and values, and each trial's checkpoint has the same
digest; the last line printed is "50 of 50 trials, bitwise those of the sweep never interrupted (3 kills)".
The exit code is 1 where they are not.
"""

from __future__ import annotations

import argparse
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
import pcflax as pc
from benchmarks.options import read_count, read_index, run_main


def command(folder: Path, trials: int) -> list[str]:
    """Small trials, each with several checkpoints, so that kills also land within one."""
    search = ["--search", "learning-rate=1e-4:1e-1:log", "--search", "activation=tanh,relu,gelu"]
    search += ["--trials", str(trials)]
    options = ["--widths", "16", "--num-steps", "40", "--eval-every", "10"]
    resumed = ["--resume"] if (folder / "sweep.json").exists() else [*options, *search]
    return [sys.executable, "-m", "pcflax", "sweep", "--run-dir", str(folder), *resumed]


def finish(folder: Path, trials: int) -> float:
    """Run to the end; returns the seconds."""
    begin = time.perf_counter()
    done = subprocess.run(command(folder, trials), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def kill_within(folder: Path, trials: int, done: int) -> int:
    """Start (or resume) a sweep, and kill it once `done` trials have begun and a moment more."""
    process = subprocess.Popen(
        command(folder, trials), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(folder.glob("trials/*"))) < done:
        time.sleep(0.002)
    try:
        process.wait(timeout=random.uniform(0, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return 1
    return 0


def trials_of(folder: Path) -> list[tuple]:
    """What each trial was and became: from optuna's journal, and from the checkpoints."""
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    found = []
    for trial in study.trials:
        run = folder / "trials" / f"{trial.number:04d}"
        rows = (run / "metrics.jsonl").read_bytes()
        told = (trial.number, json.dumps(trial.params), trial.state.name, trial.value)
        found.append((*told, trial.intermediate_values, rows, pc.load_checkpoint(run).digest()))
    return found


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=read_count, default=50)
    parser.add_argument("--kills", type=read_count, default=3)
    parser.add_argument("--seed", type=read_index, default=0, help="of the moments")
    options = parser.parse_args()
    random.seed(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="pcflax-sweep-"))
    seconds = finish(folder / "reference", options.trials)
    print(f"reference: {options.trials} trials, {seconds:.0f} s", flush=True)
    moments = sorted(random.sample(range(1, options.trials + 1), options.kills))
    kills = 0
    for done in moments:
        killed = kill_within(folder / "killed", options.trials, done)
        kills += killed
        print(f"{'killed in' if killed else 'not killed: it ended by'} trial {done}", flush=True)
    finish(folder / "killed", options.trials)
    found, expected = trials_of(folder / "killed"), trials_of(folder / "reference")
    same = sum(one == other for one, other in zip(found, expected, strict=False))
    print(
        f"{same} of {len(found)} trials, bitwise those of the sweep never interrupted ({kills} kills)"
    )
    if not same == len(found) == len(expected) == options.trials:
        print(f"the sweeps are in {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_main(main)

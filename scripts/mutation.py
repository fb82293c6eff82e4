"""Do the tests see a fault? Each mutant is one: a sign flipped, a half dropped, an update skipped.

    python scripts/mutation.py                  every mutant: some minutes on 2 CPU cores
    python scripts/mutation.py --only gaussian  those with this word in their name
    python scripts/mutation.py --list           their names, and nothing run

A mutant changes one place of a copy of the package and runs the test module that should fail, after the
same module passed without the change. Expected: "killed" on every line and exit code 0. The exit code is
1 where a mutant survives, which means that a test is missing, and 2 where a place is no longer found or
the tests fail without a change.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, `old` becomes `new`; `tests` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


class Stale(Exception):
    """A mutant that says nothing: its place is gone, or its tests fail without it."""


MUTANTS = [
    # energies: the factors that make dE/dactivity the error itself
    Mutant(
        "gaussian, half dropped",
        "energies/gaussian.py",
        "0.5 * self.precision * sum",
        "self.precision * sum",
        "energies/test_energies.py",
    ),
    Mutant(
        "learned gaussian, sign of the normalizer",
        "energies/learned_gaussian.py",
        "error - log_precision",
        "error + log_precision",
        "energies/test_precisions.py",
    ),
    Mutant(
        "laplace, scale upside down",
        "energies/laplace.py",
        "/ self.scale",
        "* self.scale",
        "energies/test_robust.py",
    ),
    Mutant(
        "activity decay, half dropped",
        "energies/activity_decay.py",
        "0.5 * self.rate",
        "self.rate",
        "energies/test_activity_decay.py",
    ),
    # scales
    Mutant(
        "mupc, depth forgotten",
        "parameterizations.py",
        "width * depth)",
        "width)",
        "parameterizations/test_parameterizations.py",
    ),
    Mutant(
        "mupc, output of a hidden layer's size",
        "parameterizations.py",
        "return 1 / in_features",
        "return in_features**-0.5",
        "parameterizations/test_parameterizations.py",
    ),
    # inference
    Mutant(
        "auto step, uphill",
        "inference/curvature_descent.py",
        "z - (part * g / over",
        "z + (part * g / over",
        "inference/test_auto_step_size.py",
    ),
    Mutant(
        "newton, uphill", "inference/newton.py", "z - move", "z + move", "inference/test_newton.py"
    ),
    Mutant(
        "langevin, half the noise",
        "inference/langevin.py",
        "(2 * self.step_size * self.temperature)",
        "(self.step_size * self.temperature)",
        "inference/test_langevin.py",
    ),
    # learning
    Mutant(
        "learning, sum for mean over the batch",
        "networks/pure.py",
        "weighted_mean(total_energy(weighed), of_examples)",
        "jnp.sum(total_energy(weighed))",
        "learning/test_rules.py",
    ),
    Mutant(
        "incremental, weights stay",
        "learning/incremental.py",
        "now, optimizer_state = apply(",
        "_, optimizer_state = apply(",
        "learning/test_incremental.py",
    ),
    Mutant(
        "nudged, away from the target",
        "learning/nudged.py",
        "moved = jnp.subtract(",
        "moved = jnp.add(",
        "learning/test_nudged.py",
    ),
    Mutant(
        "nudged, not divided by beta",
        "learning/nudged.py",
        "(*promoted(g, beta))",
        "(*promoted(g, 1.0))",
        "learning/test_nudged.py",
    ),
    Mutant(
        "zil, layers in the wrong order",
        "learning/zil.py",
        "nodes - 1 - number",
        "number",
        "learning/test_zil.py",
    ),
    # checkpoints
    Mutant(
        "seals, damage not seen",
        "training/checkpoints/seals.py",
        "if found and seal_file.read_bytes() == _seal_text(found).encode():",
        "if found:",
        "training/checkpoints/test_reading.py",
    ),
]


def run(mutant: Mutant, folder: Path) -> bool:
    """Return whether the tests see the mutant, in a copy of the package in `folder`."""
    file = folder / "pcflax" / mutant.file
    text = (ROOT / "pcflax" / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise Stale(f"{mutant.old!r} is {text.count(mutant.old)} times in {mutant.file}, not once")
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        return not passes(mutant.tests, folder)
    finally:
        file.write_text(text)


def passes(tests: str, folder: Path) -> bool:
    """Return whether a test module passes on the package in `folder`; raise Stale where it cannot run."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", f"tests/{tests}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):  # 1: tests ran and some failed
        raise Stale(f"tests/{tests} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def copy(folder: Path) -> None:
    """Copy what the tests read into a folder, so that the checkout stays as it is."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("pcflax", "tests", "benchmarks", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def judge(mutants: list[Mutant], folder: Path) -> int:
    """Print what becomes of each mutant and return the exit code."""
    code, sound = 0, {}
    for mutant in mutants:
        try:
            if mutant.tests not in sound:
                sound[mutant.tests] = passes(mutant.tests, folder)
            if not sound[mutant.tests]:
                raise Stale(f"tests/{mutant.tests} fails without it")
            verdict = "killed" if run(mutant, folder) else "SURVIVED"
        except Stale as reason:
            verdict = f"STALE: {reason}"
        code = max(code, {"killed": 0, "SURVIVED": 1}.get(verdict, 2))
        print(f"{verdict:8} {mutant.name}", flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run those with this text in their name")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its name; --list shows them")
    if options.list:
        print("\n".join(mutant.name for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        return judge(chosen, Path(folder))


if __name__ == "__main__":
    sys.exit(main())

"""Which tests of the second Python run no line of pcflax that cheaper ones do not run, too?

    .venv-second/bin/python scripts/same_lines.py       about 10 minutes on 2 CPU cores

The second pair of jax and flax is to meet every line of pcflax that tests run, and not each of them often.
One run of those tests writes which lines each has run and how long it took. Then tests are chosen, first
the one with the most missing lines a second, until none is missing; those marked `whole` are chosen before,
and those that start processes, whose lines are not seen. What is left is written to
`tests/same_lines.txt`, one test a line, where it takes a quarter of a second or more. A new test is not in
that file, and so it runs.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "same_lines.txt"
LEAST = 0.25  # seconds, below which leaving out saves nothing
TESTS = ["-m", "not slow", "--one-of-each", "tests"]

Lines = dict[str, set[tuple[str, int]]]


def superfluous(lines: Lines, seconds: dict[str, float], kept: set[str]) -> list[str]:
    """Return the tests whose lines the others run, in which the cheap ones go first.

    >>> lines = {"a": {("x", 1), ("x", 2)}, "b": {("x", 1)}, "c": {("x", 2), ("x", 3)}, "d": {("x", 2)}}
    >>> superfluous(lines, {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0}, set())
    ['a', 'd']
    >>> superfluous(lines, {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0}, {"a"})
    ['b', 'd']
    """
    left = {name: set(found) for name, found in lines.items()}
    missing = set().union(*left.values())
    chosen = [name for name in left if name in kept]
    while missing:
        for name in chosen:
            missing -= left.pop(name)
        gains = {name: len(found & missing) for name, found in left.items()}
        if not missing:
            break
        chosen = [max(gains, key=lambda name: gains[name] / (seconds.get(name, 0.0) + 0.05))]
    return sorted(left)


def lines_by_test(path: Path) -> Lines:
    """Return what each test ran, without what importing pcflax runs."""
    from coverage import CoverageData

    data = CoverageData(str(path))
    data.read()
    found: Lines = defaultdict(set)
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            if "" not in contexts:
                for context in contexts:
                    found[context.partition("[")[0].partition("|")[0]].add((file, line))
    return found


def seconds_by_test(path: Path) -> dict[str, float]:
    """Return what each took, from pytest's XML."""
    found: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(path).iter("testcase"):
        file = case.attrib["file"]
        module = file.removesuffix(".py").replace("/", ".")
        within = case.attrib["classname"].removeprefix(module).strip(".").split(".")
        name = case.attrib["name"].partition("[")[0]
        found["::".join([file, *filter(None, within), name])] += float(case.attrib["time"])
    return found


def starts_processes(text: str) -> set[str]:
    """Return which functions of a module's text start processes: coverage does not see into them.

    >>> module = "def start(): subprocess.run([])"
    >>> module += "\\ndef test_both(): return start()\\ndef test_none(): pass"
    >>> sorted(starts_processes(module))
    ['start', 'test_both']
    """
    functions: dict[str, str] = defaultdict(str)  # of classes, too; of one name all of them
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            functions[node.name] += ast.get_source_segment(text, node) or ""
    found, words = set(), {"subprocess", "multiprocessing", "kill_once_saved"}
    while words:
        mention = re.compile(rf"\b({'|'.join(sorted(words))})\b")
        words = {
            name for name, own in functions.items() if name not in found and mention.search(own)
        }
        found |= words
    return found


def run(*arguments: str, **environment: str) -> str:
    """Run pytest here, and return what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main() -> None:
    """Run the tests, choose, and write what is left."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    FILE.unlink(missing_ok=True)  # all of them run
    listed = run("--collect-only", "-m", "whole and not slow", "tests").splitlines()
    whole = {line.partition("[")[0] for line in listed if "::" in line}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = folder / "settings"
        settings.write_text(f"[run]\nsource = {ROOT / 'pcflax'}\n")
        run(
            *("-n", "2", "--dist", "worksteal", *TESTS, f"--junitxml={folder / 'seconds.xml'}"),
            *("-o", "junit_family=xunit1", "--cov", "--cov-context=test", "--cov-report="),
            f"--cov-config={settings}",
            COVERAGE_FILE=str(folder / "lines"),
        )
        lines = lines_by_test(folder / "lines")
        seconds = seconds_by_test(folder / "seconds.xml")
    modules = {name.partition("::")[0] for name in lines}
    processes = {file: starts_processes((ROOT / file).read_text()) for file in modules}
    kept = {
        name
        for name in lines
        if name in whole or name.rpartition("::")[2] in processes[name.partition("::")[0]]
    }
    left = [name for name in superfluous(lines, seconds, kept) if seconds.get(name, 0) >= LEAST]
    FILE.write_text("".join(f"{name}\n" for name in left))
    saved = sum(seconds[name] for name in left)
    print(
        f"{FILE}: {len(left)} tests of {len(seconds)}, {saved:.0f} s of {sum(seconds.values()):.0f}"
    )


if __name__ == "__main__":
    main()

"""Every code block of the README runs, as printed, and every command of the pages beside it."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from pcflax.cli.main import main
from tests.conftest import QUICK_TO_COMPILE, ROOT

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
PAGES = [*BLOCKS, *BLOCK.findall((ROOT / "docs/command_line.md").read_text())]
PAGES += [
    block
    for block in BLOCK.findall((ROOT / "docs/reproducing.md").read_text())
    if "--output tiny" in block[1]
]
# As a reader has it: whole trainings are slower in programs that are not optimised.
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in QUICK_TO_COMPILE},
    "JAX_PLATFORMS": "cpu",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def run(command, cwd, **environment):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**ENVIRONMENT, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_are_no_blocks_of_other_kinds():
    assert {kind for kind, _ in BLOCKS} == {"python", "bash"}


def test_the_python_blocks_run_one_after_the_other(tmp_path):
    program = "\n".join(text for kind, text in BLOCKS if kind == "python")
    assert "class Bottleneck" in program
    (tmp_path / "readme.py").write_text(program)
    printed = run([sys.executable, "-W", "error", "readme.py"], tmp_path)
    assert "(360, 300)" in printed


def test_the_first_example_is_as_long_as_its_title_says():
    first = next(text for kind, text in BLOCKS if kind == "python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 25


def commands(blocks):
    lines = (line for kind, text in blocks if kind == "bash" for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line.strip()))


# Of the README, then of the page on the command line; what both say runs once.
COMMANDS = commands(PAGES)


def grouped(lines):
    """Commands that name one folder of runs, or one file, build on each other: {first name: lines}."""
    groups = []
    for line in lines:
        names = set(re.findall(r"\b(?:runs|sweeps)/\w+|\b\w+\.npy\b", line)) or {"none"}
        kept, own = [], [line]
        for other, others in groups:
            if other & names:
                names, own = names | other, others + own
            else:
                kept.append((other, others))
        groups = [*kept, (names, own)]
    return {min(names): sorted(own, key=lines.index) for names, own in groups}


GROUPS = grouped(COMMANDS)
FIRST = next(line for line in COMMANDS if line.startswith("pcflax"))


@pytest.mark.parametrize("first", GROUPS)
def test_the_commands_run_one_after_the_other(first, tmp_path, monkeypatch, request, optimized):
    """`make` targets are checked for being there; running them here would run these tests again.

    The README's first `pcflax` is a process; the others are called in this one, which has it loaded.
    """
    os.symlink(ROOT / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)
    for line in GROUPS[first]:
        words = shlex.split(line)
        if words[0] == "make":
            run(["make", "--dry-run", *words[1:]], ROOT)
        elif "$TFDS_DATA_DIR" in words:  # the command itself stands above, without the set
            words[words.index("$TFDS_DATA_DIR")] = str(request.getfixturevalue("data_dir"))
            main([*words[1:], "--num-steps", "20"])
        elif words[0] == "pcflax" and line != FIRST:
            main(words[1:])
        else:
            run([sys.executable if words[0] == "python" else words[0], *words[1:]], tmp_path)
    if any("runs/digits" in line for line in GROUPS[first]):
        assert (tmp_path / "runs/digits/training.png").exists()


def test_the_table_of_times_is_that_of_the_results():
    """A number pasted by hand would outlive the measurement it came from; the fastest are not left out."""
    text = (ROOT / "README.md").read_text()
    result = json.loads((ROOT / "benchmarks/results/suite-cpu.json").read_text())
    jobs = [result["jobs"][job]["contenders"] for job in ("notebook", "cross-library", "tiny")]
    names = {found["name"]: contender for contender, found in jobs[0].items()}
    (table,) = re.findall(
        r"^\| ms an iteration .*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE
    )
    told = []
    for row in table.splitlines():
        name, *cells = row.strip("| ").split(" | ")
        told.append(names[name])
        for cell, job in zip(cells, jobs, strict=True):
            seconds = job[names[name]]["seconds"]
            ratios = [a / b for a, b in zip(seconds, job["pcflax"]["seconds"], strict=True)]
            assert (
                cell == f"{1e3 * statistics.median(seconds):.3g} ({statistics.median(ratios):.2f})"
            )
    peers = [name for name in jobs[0] if jobs[0][name]["rule"] == "pc" and name != "pcflax"]
    fastest = min(peers, key=lambda name: statistics.median(jobs[0][name]["seconds"]))
    assert {"pcflax", "bare_scan", fastest} <= set(told)

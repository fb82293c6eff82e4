"""`pcflax report` and shell completion. Oracles: parsers of HTML and XML, `pcflax evaluate`, bash."""

import contextlib
import gzip
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pcflax.cli.main import main
from pcflax.cli.panels import bars_panel, curves_panel
from tests.cli.test_main import error, output
from tests.training import test_runs_of_0_1

pytestmark = pytest.mark.slow

stored_runs = test_runs_of_0_1.runs
VOID = {"meta", "path", "use", "rect"}


class Page(HTMLParser):
    """What a browser makes of a page: texts by element, names of elements, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.names, self.fetched = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.names += [found["id"]] if "id" in found else []
        self.fetched += [found[n] for n in ("src", "href", "xlink:href") if n in found]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its health measured, and some updates traced."""
    folder = tmp_path_factory.mktemp("report") / "run"
    options = ["--preset", "pc", "--num-steps", "6", "--eval-every", "3", "--widths", "8", "6"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        main(["train", "--run-dir", str(folder), *options, "--health", "--profile", "5:5"])
    (folder / "shown.txt").write_text(shown.getvalue())
    return folder


def test_the_page_tells_what_the_other_commands_measure(run, capsys):
    assert output(capsys, "report", run) == f"report  {run / 'report.html'}\n"
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []  # every element is closed
    cells = page.texts["td"]
    measured = json.loads(output(capsys, "evaluate", run, "--json"))
    for name in ("accuracy", "energy"):
        assert cells[cells.index(name) + 1] == f"{measured[name]:.4f}"
    health = json.loads(output(capsys, "inspect", run, "--health", "--json"))
    assert health["summary"] in page.texts["p"]
    for layer, cosine in health["credit"]["cosine"].items():
        if layer != "total":
            assert cells[cells.index(layer) + 1] == f"{cosine:.3f}"
    (command,) = page.texts["pre"]
    assert command.startswith("pcflax train --data digits --preset pc")
    assert "--widths 8 6" in command
    config = json.loads((run / "config.json").read_text())
    assert cells[cells.index("jax") + 1] == config["versions"]["jax"]
    # the wiring; accuracy, energy, alignment; inference, in total; cosines, shares
    assert len(re.findall("<svg ", text)) == 8
    assert {"hidden_1", "64", "8 · 520 parameters"} <= set(page.texts["text"])
    assert {"eval/accuracy", "train/loss", "hidden_2", "displacement"} <= set(page.texts["text"])


def test_a_profile_is_a_trace_and_the_parts_of_an_update(run):
    """Calls of this run end at 3 and 6; the trace is there since they ended at 4 and 5, too."""
    shown = (run / "shown.txt").read_text()
    for part in ("start", "inference", "weight gradient", "optimizer", "remainder", "update"):
        assert f"│ {part} " in shown
    assert f"profile     {run / 'profile'}\n" in shown
    parts = json.loads((run / "profile" / "parts.json").read_text())
    whole = parts.pop("update, ms")
    assert whole == pytest.approx(sum(parts.values()))
    (trace,) = (run / "profile").rglob("*.trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert "profile" not in json.loads((run / "config.json").read_text())["options"]


def test_the_page_needs_nothing_else_and_fits_any_screen(run, capsys):
    output(capsys, "report", run, "--no-health", "--output", run / "short.html", "--quiet")
    text = (run / "short.html").read_text()
    page = Page(text)
    assert "displacement" not in text
    assert all(place.startswith("#") for place in page.fetched)  # within the page
    assert {place[1:] for place in page.fetched} <= set(page.names)
    assert len(set(page.names)) == len(page.names)
    assert not re.search(r"@import|<script|<link|url\((?!#)", text)
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    for svg in re.findall(r"<svg.*?>", text, re.DOTALL):
        assert "viewBox" in svg
        assert not re.search(r"\s(width|height)=", svg)  # as wide as there is room
    assert "#000000" not in text  # black on black


@pytest.mark.parametrize("name", ["mlp", "stack"])
def test_runs_of_0_1_have_a_page(stored_runs, capsys, name):
    told = output(capsys, "report", stored_runs / name, "--json", "--no-health")
    path = stored_runs / name / "report.html"
    steps = {"mlp": 120, "stack": 60}
    assert json.loads(told) == {"step": steps[name], "report": str(path)}
    assert Page(path.read_text()).open == []


def test_what_cannot_be_written_is_refused_in_a_sentence(run, tmp_path, capsys):
    assert "--output to end in .html, got a.txt" in error(
        capsys, "report", run, "--output", "a.txt", code=2
    )
    lost = tmp_path / "none" / "a.html"
    told = error(capsys, "report", run, "--output", lost, "--no-health")
    assert f"cannot write {lost}: No such file or directory; choose another --output" in told
    assert "there is no run in" in error(capsys, "report", tmp_path)


def test_many_curves_have_a_color_each_and_names_are_escaped():
    curves = {f"layer <{k}>": ([0, 1], [k, k + 1.0]) for k in range(12)}
    root = ElementTree.fromstring(curves_panel(curves, label="a & b", steps="step"))
    assert root.get("aria-label").startswith("a & b by step: layer <0>, layer <1>")
    texts = [html.unescape(one.text) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "layer <0>" in texts
    assert "layer <11>" in texts  # of so many the first and the last
    assert "layer <5>" not in texts


def test_a_layer_without_a_number_has_no_bar():
    def bars(second):
        return bars_panel({"closed": {"a": 0.5, "b": second}}, label="share").count("<path")

    assert bars(None) < bars(0.25)
    assert bars(np.nan) == bars(None)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_can_complete_every_verb(shell, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["--tyro-print-completion", shell])
    assert not ended.value.code
    script = capsys.readouterr().out
    for word in ("train", "predict", "report", "doctor", "--learning-rate"):
        assert word in script
    if shell == "bash" and shutil.which("bash"):
        (tmp_path / "script").write_text(script)
        asked = (
            "source ./script; COMP_WORDS=(pcflax pre); COMP_CWORD=1; "
            "$(complete -p pcflax | sed 's/.*-F //; s/ .*//') pcflax pre pcflax; echo ${COMPREPLY[@]}"
        )
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        found = subprocess.run(
            ["bash", "-c", asked],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": path},
        )
        assert found.stdout == "predict\n"

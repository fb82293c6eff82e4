"""`pcflax doctor`. Oracles: pip's own view of what is installed, and faults that the tests make."""

import json
import sys
from importlib import metadata

import pytest

from pcflax.cli import doctor as doctor_verb
from pcflax.cli.doctor import pair, writable
from pcflax.cli.main import main
from tests.cli.test_main import output


@pytest.fixture
def asked(monkeypatch):
    """Sets what the package's metadata ask for."""

    def ask(*requirements, extras=()):
        message = metadata.metadata("pcflax")
        del message["Provides-Extra"]
        for extra in extras:
            message["Provides-Extra"] = extra
        monkeypatch.setattr(metadata, "requires", lambda name: list(requirements))
        monkeypatch.setattr(metadata, "metadata", lambda name: message)

    return ask


def found_by(capsys, *options):
    """The exit code, and the report with its findings by name."""
    capsys.readouterr()
    code = 0
    try:
        main(["doctor", "--json", *map(str, options)])
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert report["ok"] == (code == 0)
    return code, report | {"by": {one["what"]: one for one in report["findings"]}}


def test_a_sound_installation_is_well(asked, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    asked("jax>=0.10", "optuna>=4; extra == 'tune'", extras=["tune", "dev"])
    code, report = found_by(capsys, "--run-dir", tmp_path / "runs")
    assert code == 0
    assert report["versions"]["jax"] == metadata.version("jax")
    assert report["devices"] == [{"platform": "cpu", "kind": "cpu"}] * len(report["devices"])
    assert report["by"]["extra tune"]["text"] == f"optuna {metadata.version('optuna')}"
    assert "extra dev" not in report["by"]
    assert not (tmp_path / "runs").exists()  # looking makes nothing
    printed = output(capsys, "doctor", "--run-dir", tmp_path)
    assert printed.startswith(f"versions  python {report['versions']['python']}  pcflax")
    assert printed.endswith("all is well\n")


def test_each_thing_that_lacks_has_the_line_that_mends_it(asked, capsys, tmp_path):
    asked(
        "jax>=99,<100; python_version > '3'",
        "no-such-package[fast]>=2",
        "nothing-either; python_version < '3'",
        "no-such-extra>=1; extra == 'tune'",
        extras=["tune"],
    )
    code, report = found_by(capsys, "--data-dir", tmp_path)
    assert code == 1
    wrong = [one["text"] for one in report["findings"] if one["state"] == "wrong"]
    version = metadata.version("jax")
    assert wrong == [
        f"jax is {version}, expected <100,>=99; pip install 'jax<100,>=99'",
        "no-such-package is not installed; pip install 'no-such-package[fast]>=2'",
    ]
    extra = report["by"]["extra tune"]
    assert extra["state"] == "note"  # many do without
    assert extra["text"] == "no-such-extra is not installed; pip install 'pcflax[tune]'"
    assert report["by"]["mnist"]["state"] == "note"
    assert f"not prepared in {tmp_path}/mnist" in report["by"]["mnist"]["text"]
    assert "pip install 'pcflax[tfds]'" in report["by"]["mnist"]["text"]


def test_a_data_folder_that_is_none_is_wrong(asked, capsys, tmp_path, monkeypatch):
    asked()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "gone"))
    code, report = found_by(capsys)
    assert code == 1
    assert report["by"]["data"]["text"].startswith(f"TFDS_DATA_DIR is {tmp_path}/gone, which is no")


def test_a_package_that_does_not_import_is_told_and_the_rest_is_looked_at(
    asked, capsys, tmp_path, monkeypatch
):
    asked()
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setitem(sys.modules, "pcflax.training", None)  # importing it fails
    code, report = found_by(capsys, "--run-dir", tmp_path)
    assert code == 1
    assert "ModuleNotFoundError" in report["by"]["import"]["text"]
    assert report["by"]["run folder"]["state"] == "ok"
    assert "mnist" not in report["by"]


def test_no_device_is_told(asked, capsys, monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize backend 'cuda'.\nmore")

    asked()
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("jax.devices", none)
    code, report = found_by(capsys)
    assert code == 1
    told = report["by"]["devices"]["text"]
    assert told.startswith("jax finds none: Unable to initialize backend 'cuda'; JAX_PLATFORMS=cpu")


@pytest.mark.parametrize(
    ("jax", "flax", "told"),
    [
        ("0.10.2", "0.12.8", "go together"),
        ("0.12.0", "0.12.12", "go together"),
        ("0.11.1", "0.12.9", "pip install 'flax>=0.12.10'"),
        ("0.11.0", "0.12.10", "pip install 'jax>=0.11.1'"),
        (None, "0.12.8", "jax is missing"),
        ("0.10.2", None, "flax is missing"),
    ],
)
def test_jax_and_flax_go_in_pairs(jax, flax, told):
    finding = pair(jax, flax)
    assert told in finding.text
    assert finding.state == ("ok" if told == "go together" else "wrong")


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path, monkeypatch):
    assert writable(tmp_path / "new" / "runs").state == "ok"
    (tmp_path / "file").write_text("")
    found = writable(tmp_path / "file" / "runs")
    assert found.state == "wrong"
    assert "cannot be written (Not a directory); choose another --run-dir" in found.text

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor_verb.tempfile, "TemporaryFile", refuse)
    assert "(Permission denied)" in writable(tmp_path).text

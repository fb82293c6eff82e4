"""Wrong usage ends with exit code 2 and one sentence, and what is begun from another run says so."""

import json
import sys

import pytest

import pcflax as pc
from pcflax.cli.main import main

SMALL = "--num-steps 2 --eval-every 2 --validation 0 --widths 8 --quiet".split()


def failed(capsys, *arguments):
    """The exit code and the sentence of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return ended.value.code, told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train --lr 0.1", "no option --lr of pcflax train; did you mean --learning-rate?"),
        ("train --num_stepz=3", "did you mean --num-steps?"),
        ("train --zebra 3", "see pcflax train --help"),
        ("evaluate run --spilt test", "did you mean --split?"),
        ("tarin", "there is no pcflax tarin; did you mean train?"),
        ("train --learning-rate -1", "expected --learning-rate above 0"),
        ("train --num-steps 0", "expected --num-steps of at least 1, got 0"),
        ("train --resume", "add --run-dir RUN"),
        ("train --optimizer adm", "did you mean 'adam'?"),
        ("train --mesh dta=2", "did you mean data?"),
        ("train --mesh data=0", "N devices of at least 1, got '0'"),
        ("train --mesh data=2,data=2", "has data twice"),
        ("train --mesh data,layers", "give a number to one of them"),
        ("train --mesh data=3", "give a multiple of 3"),
        ("evaluate run --step -1", "expected --step of at least 0, got -1"),
        ("report run --quiet --json", "give --quiet or --json, not both"),
        ("inspect run --health --summary", "give --health or --summary, not both"),
        ("inspect run --best --summary", "give --best or --summary, not both"),
        ("inspect run --step 0 --summary", "give --summary or --step, not both"),
        ("train --run-dir=", "expected a value behind --run-dir, got an empty one"),
    ],
)
def test_a_line_that_is_wrong_by_itself_is_2(tmp_path, monkeypatch, capsys, line, told):
    monkeypatch.chdir(tmp_path)
    code, sentence = failed(capsys, *line.split())
    assert code == 2
    assert told in sentence


def test_a_variable_that_is_empty_does_not_mean_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, sentence = failed(capsys, "train", "--run-dir", "", *SMALL)
    assert code == 2
    assert "expected a value behind pcflax train --run-dir, got an empty one" in sentence
    assert not list(tmp_path.iterdir())


def test_what_files_and_devices_lack_is_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, sentence = failed(capsys, "train", "--mesh", "data=64")
    assert code == 1
    assert "--mesh data=64 takes 64 devices" in sentence
    assert failed(capsys, "train", "--begin-from", "none")[0] == 1


def test_a_run_begins_from_anothers_parameters(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    main(["train", "--run-dir", str(first), *SMALL])
    still = "--learning-rate 1e-30 --seed 3".split()
    main(["train", "--run-dir", str(second), *SMALL, *still, "--begin-from", str(first)])
    old, new = (pc.load_checkpoint(one).sections["parameters"] for one in (first, second))
    assert all((old[name] == new[name]).all() for name in old)
    stored = json.loads((second / "config.json").read_text())["options"]
    assert stored["begin_from"] == str(first / "checkpoints" / "2")
    other = ("--run-dir", tmp_path / "third", *SMALL, "--widths", 9, "--begin-from", first)
    code, sentence = failed(capsys, "train", *other)
    assert code == 1
    assert "is float32[8], not float32[9]" in sentence
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train --num-steps 0", "expected --num-steps of at least 1, got 0"),
        ("train --keep-latest 0", "expected --keep-latest of at least 1, got 0"),
        ("train --latent 3", "--latent does nothing with --model mlp"),
        ("sweep --search batch-size=8,16 --trials 0", "expected --trials of at least 1, got 0"),
        ("evaluate run --batch-size 0", "expected --batch-size of at least 1, got 0"),
        ("predict run a.npy --batch-size 0", "expected --batch-size of at least 1, got 0"),
        ("sample run --count 0", "expected --count of at least 1, got 0"),
        ("sample run --seed -1", "expected --seed from 0 to 2**32 - 1, got -1"),
    ],
)
def test_a_number_that_no_option_can_be_is_told_before_the_verb_is_loaded(
    monkeypatch, capsys, line, told
):
    """Loading a verb takes seconds, which a wrong number does not wait for."""
    # importing it fails
    monkeypatch.setitem(sys.modules, f"pcflax.cli.{line.partition(' ')[0]}", None)
    code, sentence = failed(capsys, *line.split())
    assert code == 2
    assert told in sentence

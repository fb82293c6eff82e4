"""The rows of a history beside the checkpoints: a save writes what is new, and a restore finds them all.

Oracles: the rows that were given, SHA-256 by hashlib, and the run that was never interrupted.
"""

import hashlib
import json
import math
import shutil

import pytest

import pcflax as pc
from pcflax.training.checkpoints.rows import NAME, RowLog
from pcflax.training.record import Record
from tests.training.test_loggers import fit

ROWS = [{"step": 1, "a": 0.5}, {"step": 2, "a": -0.25, "b": 1e-300}, {"step": 3, "b": 2.0}]


def test_what_is_added_comes_back_to_the_bit(tmp_path):
    rows = [*ROWS, {"step": 4, "a": math.inf, "b": -math.inf, "c": 0.1 + 0.2}]
    log = RowLog()
    log.add(tmp_path, rows[:1])
    stored = json.loads(json.dumps(log.add(tmp_path, rows)))  # as a checkpoint keeps it
    lines = (tmp_path / NAME).read_bytes()
    assert stored == {
        "rows": 4,
        "spans": [[0, len(lines)]],
        "sha256": hashlib.sha256(lines).hexdigest(),
    }
    assert RowLog.read(tmp_path, stored)[0] == rows
    nan = log.add(tmp_path, [*rows, {"step": 5, "a": math.nan}])
    assert math.isnan(RowLog.read(tmp_path, nan)[0][-1]["a"])


def test_a_save_in_a_long_run_costs_what_one_in_a_short_run_does(tmp_path):
    """A checkpoint held all rows: 72 MB of them after 100,000, at each save."""

    class Watched(list):
        """Rows of which it is noted how many are looked at."""

        seen = 0

        def __iter__(self):
            raise AssertionError("all rows were gone through")

        def __getitem__(self, place):
            found = super().__getitem__(place)
            Watched.seen += len(found) if isinstance(place, slice) else 1
            return found

    costs = {}
    for length in (10, 10_000):
        record = Record(seed=0)
        rows = record.history.rows = Watched({"step": n, "eval/a": 0.1 * n} for n in range(length))
        folder = tmp_path / str(length)
        folder.mkdir()
        stop = pc.EarlyStopping("eval/a", patience=3)
        trainer = type("T", (), {"history": record.history, "began": -1})()
        for _ in range(2):  # the second time as in a run that goes on
            Watched.seen, before = 0, (folder / NAME).stat().st_size if record.log._count else 0
            record.history.append(length, {"eval/a": 0.0})
            stop.on_evaluate(trainer, length, {})
            meta = record.to_meta(length) | {"history": record.add_rows(folder)}
        written = (folder / NAME).stat().st_size - before
        # a step of more digits is longer to write
        costs[length] = (Watched.seen, written - len(str(length)))
        assert len(json.dumps(meta)) < 500
        assert meta["metrics"] == {"eval/a": 0.0}
        assert len(rows) == length + 2
    assert costs[10] == costs[10_000] == (3, costs[10][1])


class TestWhatIsThere:
    """Whatever lies in the file, rows that a checkpoint points to stay where they are."""

    def test_going_back_adds_a_span_and_keeps_the_rows_of_the_other_future(self, tmp_path):
        log = RowLog()
        early = log.add(tmp_path, ROWS[:1])
        late = log.add(tmp_path, ROWS)
        rows, other = RowLog.read(tmp_path, early)
        rows.append({"step": 2, "a": 7.0})
        gone_back = other.add(tmp_path, rows)
        assert len(gone_back["spans"]) == 2
        assert RowLog.read(tmp_path, gone_back)[0] == rows
        assert RowLog.read(tmp_path, late)[0] == ROWS

    def test_what_a_killed_save_left_is_skipped(self, tmp_path):
        log = RowLog()
        log.add(tmp_path, ROWS[:1])
        with (tmp_path / NAME).open("ab") as file:
            file.write(b'{"step": 2, "a"')
        stored = log.add(tmp_path, ROWS)
        assert RowLog.read(tmp_path, stored)[0] == ROWS

    @pytest.mark.parametrize("harm", ["deleted", "cut"])
    def test_rows_that_were_lost_while_the_run_goes_on_are_written_again(self, tmp_path, harm):
        log = RowLog()
        log.add(tmp_path, ROWS[:2])
        if harm == "deleted":
            (tmp_path / NAME).unlink()
        else:
            (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-3])
        assert RowLog.read(tmp_path, log.add(tmp_path, ROWS))[0] == ROWS

    def test_rows_that_were_dropped_are_not_stored(self, tmp_path):
        log = RowLog()
        log.add(tmp_path, ROWS)
        assert RowLog.read(tmp_path, log.add(tmp_path, ROWS[1:]))[0] == ROWS[1:]

    def test_rows_as_earlier_versions_stored_them_are_read_and_written_beside(self, tmp_path):
        rows, log = RowLog.read(tmp_path, ROWS)
        assert rows == ROWS
        assert RowLog.read(tmp_path, log.add(tmp_path, rows))[0] == ROWS


def test_a_file_that_cannot_be_written_is_told_with_the_step(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(
        OSError, match=r"cannot write the checkpoint of step 1 to .*: Is a directory"
    ):
        fit(1, [], checkpoints=pc.Checkpoints(tmp_path))


class TestRuns:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory):
        """A folder with checkpoints of steps 3 and 6, and all rows up to step 6."""
        folder = tmp_path_factory.mktemp("run")
        trainer = fit(6, [], checkpoints=pc.Checkpoints(folder, every=3))
        return folder, trainer.history.rows

    @pytest.fixture
    def copy(self, run, tmp_path):
        return shutil.copytree(run[0], tmp_path / "run")

    def test_a_checkpoint_tells_the_rows_up_to_its_step(self, run):
        folder, rows = run
        assert pc.load_checkpoint(folder).rows() == rows
        early = [row for row in rows if row["step"] <= 3]
        assert pc.load_checkpoint(folder, step=3).rows() == early
        assert (
            "train/energy"
            not in (folder / "3" / "meta" / "metadata")
            .read_text()
            .partition('"history"')[2]
            .partition('"sha256"')[0]
        )

    @pytest.mark.parametrize("harm", ["missing", "does not match its checksum"])
    def test_lost_rows_are_told_and_training_goes_on_exactly(self, run, copy, harm):
        if harm == "missing":
            (copy / NAME).unlink()
        else:
            content = bytearray((copy / NAME).read_bytes())
            content[20] ^= 1
            (copy / NAME).write_bytes(bytes(content))
        with pytest.warns(pc.CheckpointWarning, match=f"history of checkpoint .*6 is lost.*{harm}"):
            resumed = fit(12, [], checkpoints=pc.Checkpoints(copy, keep_latest=9), resume=True)
        straight = fit(12, [])
        later = [row for row in straight.history.rows if row["step"] > 6]
        assert resumed.history.rows == later
        assert pc.load_checkpoint(copy).rows() == later
        with pytest.raises(pc.CheckpointError, match=NAME):
            pc.load_checkpoint(copy, step=6).rows()

    def test_a_checkpoint_that_holds_its_rows_itself_goes_on_as_ever(self, run, copy, tmp_path):
        """As versions before stored them."""
        rows = run[1]
        older = pc.Checkpoints(tmp_path / "older")
        stored = pc.load_checkpoint(copy)
        older.save(6, stored.sections, {**stored.meta}, lambda folder: rows)
        older.close()
        path = tmp_path / "metrics.jsonl"
        resumed = fit(
            12,
            [pc.JSONLinesLogger(path)],
            checkpoints=pc.Checkpoints(tmp_path / "older"),
            resume=True,
        )
        straight = tmp_path / "straight.jsonl"
        fit(12, [pc.JSONLinesLogger(straight)])
        assert path.read_bytes() == straight.read_bytes()
        assert pc.load_checkpoint(tmp_path / "older").rows() == resumed.history.rows

"""Which updates `pcflax train --profile A:B` traces. Oracle: the numbers that were given."""

import types

import pytest

from pcflax.cli import profile
from tests.cli.test_main import error

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("began", "told", "expected"),
    [
        (0, (2, 4, 6), [("on", 2), ("off", 4)]),
        (2, (4, 6), [("on", 2), ("off", 4)]),  # restored there
        (0, (2, 3), [("on", 2), ("off", 3)]),  # stopped within
        (4, (6,), []),  # they are over
    ],
)
def test_the_trace_is_of_these_updates(monkeypatch, tmp_path, began, told, expected):
    seen, now = [], types.SimpleNamespace(step=began)
    monkeypatch.setattr(
        profile.jax.profiler, "start_trace", lambda _: seen.append(("on", now.step))
    )
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", lambda: seen.append(("off", now.step)))
    tracing = profile.TraceUpdates("3:4", tmp_path, 6)
    assert tracing.stops == (2, 4)
    tracing.on_fit_start(now, 6)
    for now.step in told:
        tracing.on_progress(now, now.step)
    tracing.on_fit_end(now)
    assert seen == expected


def test_updates_that_do_not_come_are_refused(tmp_path, capsys):
    for text in ("4:3", "0:2", "5:7", "3"):
        options = ["--num-steps", "6", "--run-dir", tmp_path / "run", "--profile", text]
        told = error(capsys, "train", *options, code=2)
        assert "expected --profile A:B, the updates from A to B with 1 <= A <= B <= 6 " in told
        assert told.rstrip().endswith(f"got {text}")
    told = error(capsys, "sweep", "--profile", "1:2", code=2)
    assert "--profile traces one run; take pcflax train, or leave it out of a sweep" in told
    assert not list(tmp_path.iterdir())

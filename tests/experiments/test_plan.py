"""Plans: what was declared before the first step, and what was not. Oracle: the rule, by hand."""

import json

import numpy as np
import pytest

import pcflax as pc
from pcflax.experiments.contrasts import holm

from .test_compare import A, B, C, runs

LATER = "2999-01-01T00:00:00+00:00"


@pytest.fixture
def plan(tmp_path):
    return pc.experiments.Plan([("pc", "bp"), ("ipc", "bp")]).write(tmp_path)


def three(begun=LATER):
    return [runs(name, own, begun=begun) for name, own in (("bp", B), ("pc", A), ("ipc", C))]


def test_a_plan_is_written_once_and_read_back(tmp_path, plan):
    assert pc.experiments.Plan.read(tmp_path) == plan
    assert pc.experiments.Plan(plan.contrasts).write(tmp_path) == plan
    with pytest.raises(
        ValueError, match="declares pc - bp, ipc - bp of eval/accuracy at last, got"
    ):
        pc.experiments.Plan([("pc", "bp")]).write(tmp_path)
    chosen = pc.experiments.Plan([("a", "b")], metric="test/accuracy", at=("eval/accuracy", "max"))
    written = chosen.write(tmp_path / "other")
    assert pc.experiments.Plan.read(tmp_path / "other") == written


def test_a_plan_that_was_changed_is_refused(tmp_path, plan):
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["sha256"] == plan.digest
    record["contrasts"] = record["contrasts"][:1]
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was changed after it was written"):
        pc.experiments.compare(*three(), plan=tmp_path)
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be read as a plan"):
        pc.experiments.Plan.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no plan\.json"):
        pc.experiments.Plan.read(tmp_path / "none")


def test_a_plan_comes_before_the_first_step(tmp_path):
    (tmp_path / "pc").mkdir()
    (tmp_path / "pc" / "replicas.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a run has begun in .*replicas\.json"):
        pc.experiments.Plan([("pc", "bp")]).write(tmp_path)


@pytest.mark.parametrize("pairs", [[], [("pc",)], [("pc", "pc")], [("pc", "bp")] * 2])
def test_contrasts_are_pairs_of_two_names(pairs):
    with pytest.raises(ValueError, match="pairs of two names"):
        pc.experiments.Plan(pairs)


def test_planned_contrasts_are_corrected_over_the_plan_and_others_over_all(tmp_path, plan):
    comparison = pc.experiments.compare(*three(), plan=tmp_path)
    assert [one.names for one in comparison.contrasts] == list(plan.contrasts)
    assert all(one.planned for one in comparison.contrasts)
    assert plan.digest[:12] in comparison.caption
    pairs = [("pc", "bp"), ("pc", "ipc")]
    comparison = pc.experiments.compare(*three(), plan=plan, contrasts=pairs)
    first, second = comparison.contrasts
    assert (first.planned, second.planned) == (True, False)
    assert first.p_holm == holm([first.p], 2)[0]  # ipc - bp is planned, and not compared yet
    assert second.p_holm == holm([first.p, second.p], 3)[1]
    assert [row.split()[-1] for row in str(comparison).splitlines()[2:4]] == [
        "planned",
        "exploratory",
    ]


def test_what_is_read_elsewhere_or_began_before_is_exploratory(tmp_path, plan):
    def planned(**options):
        began = options.pop("begun", LATER)
        found = pc.experiments.compare(*three(began), plan=plan, **options)
        return [one.planned for one in found.contrasts], found.notes

    assert planned(at=5)[0] == [False, False]
    assert planned(contrasts=[("bp", "pc")])[0] == [False]
    found, notes = planned(begun="1999-01-01T00:00:00+00:00")
    assert found == [False, False]
    assert "before the plan was written" in notes[0]
    found, notes = planned(begun="")
    assert found == [True, True]
    assert "when pc began is not known" in notes
    unwritten = pc.experiments.Plan([("pc", "bp")])
    assert not pc.experiments.compare(*three(), plan=unwritten).contrasts[0].planned
    without = pc.experiments.compare(*three())
    assert [one.planned for one in without.contrasts] == [None, None]
    assert "planned" not in str(without)
    np.testing.assert_allclose(without.contrasts[0].a.values, A)

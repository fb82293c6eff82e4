"""Comparisons over seeds. Oracles: scipy, formulas by hand, and statistics of all permutations."""

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

import pcflax as pc
from pcflax.experiments.contrasts import hedges_g, holm

A = np.array([0.91, 0.94, 0.92, 0.97, 0.95])
B = np.array([0.90, 0.95, 0.89, 0.93, 0.92])
C = np.array([0.88, 0.91, 0.93, 0.90, 0.86])


def runs(name, values, seeds=None, **options):
    """Runs that end at these values; the evaluation before was better, and is never to be read."""
    own = []
    for seed, value in zip(seeds or range(len(values)), values, strict=True):
        rows = [{"step": 5, "eval/accuracy": 0.99}, {"step": 10, "eval/accuracy": float(value)}]
        own.append(pc.experiments.OneRun(seed, pc.History(rows)))
    return pc.experiments.Runs(own, name=name, **options)


def only(*arguments, **options):
    (one,) = pc.experiments.compare(*arguments, **options).contrasts
    return one


def test_a_value_without_end_is_refused():
    """It was told as seeds without a spread."""
    with pytest.raises(ValueError, match=r"seed 1 of 'a' has 'eval/accuracy' inf at the last"):
        only(runs("a", [0.5, np.inf]), runs("b", [0.5, 0.6]))


class TestPairs:
    def test_interval_effect_and_tests_are_of_the_differences(self):
        one = only(runs("b", B), runs("a", A), confidence=0.9)
        assert one.names == ("a", "b")
        assert one.paired
        d = A - B
        assert one.difference == pytest.approx(d.mean())
        half = scipy.stats.t.ppf(0.95, 4) * d.std(ddof=1) / math.sqrt(5)
        assert one.interval == pytest.approx((d.mean() - half, d.mean() + half))
        assert (one.effect_name, one.effect) == ("d_z", pytest.approx(d.mean() / d.std(ddof=1)))
        assert one.p == pytest.approx(scipy.stats.ttest_rel(A, B).pvalue)
        assert one.p_holm == pytest.approx(one.p)

    def test_ranks_are_by_all_signs_also_where_differences_tie(self):
        """.91 - .90 and .94 - .95 are unequal as floats; ranks of 1, 1, 3, 3, 4 hundredths."""
        d = np.round((A - B) * 100)
        ranks = scipy.stats.rankdata(np.abs(d))
        signed = [np.dot(ranks, signs) for signs in itertools.product([-1, 1], repeat=len(d))]
        seen = abs(np.dot(ranks, np.sign(d)))
        expected = np.mean(np.abs(signed) >= seen - 1e-9)
        assert only(runs("b", B), runs("a", A)).p_ranks == pytest.approx(expected)

    def test_seeds_are_matched_by_number_and_the_others_are_named(self):
        shuffled = runs("a", A[::-1], seeds=[4, 3, 2, 1, 0])
        more = runs("b", [*B, 0.2], seeds=[0, 1, 2, 3, 4, 7])
        one = only(more, shuffled)
        assert one.p == pytest.approx(scipy.stats.ttest_rel(A, B).pvalue)
        assert one.notes == ("b has seeds without a partner, left out: 7",)

    def test_equal_runs_differ_by_nothing_and_a_constant_difference_has_no_t_test(self):
        one = only(runs("b", A), runs("a", A))
        assert (one.difference, one.p_ranks) == (0, 1)
        assert one.interval == (0, 0)
        assert math.isnan(one.p)
        one = only(runs("b", A), runs("a", A + 0.01))
        assert math.isnan(one.p)
        assert one.p_ranks == pytest.approx(2 / 2**5)
        assert "no spread" in one.notes[0]

    def test_of_one_seed_nothing_but_the_difference_is_known(self):
        comparison = pc.experiments.compare(runs("b", B[:1]), runs("a", A[:1]))
        (one,) = comparison.contrasts
        assert one.difference == pytest.approx(0.01)
        assert np.isnan([*one.interval, one.p, one.p_ranks, one.p_holm, one.effect]).all()
        assert "of one seed no interval and no test is known" in str(comparison)


class TestOtherSeeds:
    def test_welch_mann_whitney_and_hedges(self):
        other = runs("b", B[:4], seeds=[10, 11, 12, 13])
        one = only(other, runs("a", A))
        assert (one.paired, one.effect_name) == (False, "g")
        u, v = A.var(ddof=1) / 5, B[:4].var(ddof=1) / 4
        freedom = (u + v) ** 2 / (u**2 / 4 + v**2 / 3)
        difference = A.mean() - B[:4].mean()
        half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(u + v)
        assert one.interval == pytest.approx((difference - half, difference + half))
        p = 2 * scipy.stats.t.sf(abs(difference) / math.sqrt(u + v), freedom)
        assert one.p == pytest.approx(p)
        pooled = math.sqrt((4 * A.var(ddof=1) + 3 * B[:4].var(ddof=1)) / 7)
        approximate = (1 - 3 / (4 * 7 - 1)) * difference / pooled  # to a thousandth
        assert one.effect == pytest.approx(approximate, rel=2e-3)

    def test_tied_ranks_are_by_all_ways_to_deal_the_seeds(self):
        values = np.concatenate([A, B[:4]])
        ranks = scipy.stats.rankdata(values)
        sums = [ranks[list(own)].sum() for own in itertools.combinations(range(9), 5)]
        seen, middle = ranks[:5].sum(), 5 * 10 / 2
        expected = 2 * min(np.mean(np.array(sums) >= seen), np.mean(np.array(sums) <= seen))
        assert seen > middle
        one = only(runs("b", B[:4], seeds=[10, 11, 12, 13]), runs("a", A))
        assert one.p_ranks == pytest.approx(expected)

    def test_one_shared_seed_makes_no_pair(self):
        one = only(runs("b", B, seeds=[4, 5, 6, 7, 8]), runs("a", A))
        assert not one.paired
        assert one.notes == ("seed 4 is shared by a and b, not used as a pair",)

    def test_sides_without_spread(self):
        one = only(runs("b", [0.5] * 3, seeds=[7, 8, 9]), runs("a", A))
        assert one.p == pytest.approx(scipy.stats.ttest_1samp(A, 0.5).pvalue)
        one = only(runs("b", [0.5] * 3, seeds=[7, 8, 9]), runs("a", [0.75] * 3))
        assert math.isnan(one.p)
        assert one.interval == (0.25, 0.25)

    def test_the_factor_of_hedges_g(self):
        """Of 10 degrees of freedom J is Gamma(5) / (sqrt(5) Gamma(4.5)) = .9228, by its table."""
        a, b = np.arange(6.0), np.arange(6.0) + 2
        assert hedges_g(a, b) == pytest.approx(-0.9228 * 2 / a.std(ddof=1), rel=1e-4)


class TestHolm:
    def test_by_hand(self):
        """Sorted .005 .011 .02 .04 .13 times 5 4 3 2 1, and never less than the one before."""
        got = holm([0.04, 0.011, 0.13, 0.005, 0.02], 5)
        assert got == pytest.approx([0.08, 0.044, 0.13, 0.025, 0.06])
        assert holm([0.4, 0.5, 0.6], 3) == [1, 1, 1]
        assert holm([0.02, 0.02], 2) == [0.04, 0.04]

    def test_the_definition_for_random_values(self):
        p = np.random.default_rng(0).uniform(size=12) ** 3
        order = np.argsort(p)
        expected = np.empty(12)
        for rank, place in enumerate(order):
            expected[place] = min(1, max((12 - j) * p[order[j]] for j in range(rank + 1)))
        np.testing.assert_allclose(holm(list(p), 12), expected)

    def test_a_missing_value_counts_as_a_test(self):
        got = holm([math.nan, 0.01], 2)
        assert math.isnan(got[0])
        assert got[1] == pytest.approx(0.02)

    def test_contrasts_are_corrected_together(self):
        comparison = pc.experiments.compare(runs("b", B), runs("a", A), runs("c", C))
        ps = [scipy.stats.ttest_rel(own, B).pvalue for own in (A, C)]
        assert [one.p_holm for one in comparison.contrasts] == pytest.approx(holm(ps, 2))


class TestWhere:
    def split(self, name, tests):
        """Validation is best at step 10 for even seeds, and at step 5 for odd."""
        own = []
        for seed, test in enumerate(tests):
            rows = [
                {"step": 5, "eval/accuracy": 0.5 + seed % 2, "test/accuracy": float(test[0])},
                {"step": 10, "eval/accuracy": 1.0, "test/accuracy": float(test[1])},
                {"step": 15, "eval/accuracy": 0.1, "test/accuracy": 0.0},
            ]
            own.append(pc.experiments.OneRun(seed, pc.History(rows)))
        return pc.experiments.Runs(own, name=name)

    def test_a_step_and_a_step_that_validation_chose(self):
        tests = np.arange(8).reshape(4, 2) / 10
        a, b = self.split("a", tests), self.split("b", tests[:, ::-1] / 2)
        one = only(b, a, metric="test/accuracy", at=5)
        np.testing.assert_allclose(one.a.values, tests[:, 0])
        chosen = ("eval/accuracy", "max")
        comparison = pc.experiments.compare(b, a, metric="test/accuracy", at=chosen)
        (one,) = comparison.contrasts
        np.testing.assert_allclose(one.a.values, [0.1, 0.2, 0.5, 0.6])
        assert "the step of the highest eval/accuracy" in comparison.caption
        one = only(b, a, metric="test/accuracy", at=("eval/accuracy", "min"))
        assert (one.a.values == 0).all()

    @pytest.mark.parametrize("by", ["eval/accuracy", "eval/energy"])
    def test_no_step_is_chosen_by_the_data_that_are_read(self, by):
        with pytest.raises(ValueError, match="both are of the same data"):
            pc.experiments.compare(runs("b", B), runs("a", A), at=(by, "max"))

    @pytest.mark.parametrize(
        ("at", "text"),
        [
            ("best", "expected at 'last', a step"),
            (("eval/energy", "top"), "expected at=.metric, 'max'."),
            (7, "was not measured at step 7"),
        ],
    )
    def test_other_places_are_refused(self, at, text):
        with pytest.raises(ValueError, match=text):
            pc.experiments.compare(runs("b", B), runs("a", A), at=at)

    def test_a_missing_value_and_a_seed_that_ended_are_named(self):
        short = pc.experiments.OneRun(5, pc.History([{"step": 5, "eval/accuracy": 0.9}]))
        mixed = pc.experiments.Runs([*runs("", A), short], name="a")
        with pytest.raises(ValueError, match="seed 5 of 'a' has no 'eval/accuracy' at step 10"):
            pc.experiments.compare(runs("b", B), mixed, at=10)
        comparison = pc.experiments.compare(runs("b", B), mixed)
        assert "the last evaluations of a are at steps 5 to 10" in comparison.notes
        ended = pc.experiments.OneRun(5, short.history, {}, "NaN at step 7")
        broken = pc.experiments.Runs([*runs("", A), ended], name="a")
        with pytest.raises(ValueError, match=r"seed 5 of 'a' ended early.*runs\.finished"):
            pc.experiments.compare(runs("b", B), broken)
        assert len(only(runs("b", B), broken.finished).a.seeds) == 5


class TestNames:
    def test_of_runs_of_settings_and_of_places(self):
        own = [
            pc.experiments.OneRun(one.seed, one.history, {"step_size": size})
            for size, values in ((0.1, A), (0.2, B))
            for one in runs("", values)
        ]
        (one,) = pc.experiments.compare(pc.experiments.Runs(own, name="pc")).contrasts
        assert one.names == ("pc, step_size 0.2", "pc, step_size 0.1")
        assert only(runs("", A), runs("", B)).names == ("b", "a")
        assert only(runs("", A), runs("", B), names=["x", "y"]).names == ("y", "x")

    def test_refusals(self):
        with pytest.raises(ValueError, match="two runs or more, got 1"):
            pc.experiments.compare(runs("a", A))
        with pytest.raises(ValueError, match="of different names, got a, a"):
            pc.experiments.compare(runs("a", A), runs("a", B))
        with pytest.raises(ValueError, match="a name for each of 2 runs"):
            pc.experiments.compare(runs("a", A), runs("b", B), names=["a"])
        with pytest.raises(ValueError, match="knows no runs 'c'; there are a, b"):
            pc.experiments.compare(runs("a", A), runs("b", B), contrasts=[("a", "c")])
        for contrasts in ([("b", "a")] * 2, [("a", "a")], [("a",)], []):  # Holm counts tests once
            with pytest.raises(
                ValueError, match="compare expected contrasts as pairs of two names"
            ):
                pc.experiments.compare(runs("a", A), runs("b", B), contrasts=contrasts)
        with pytest.raises(TypeError, match="expected runs"):
            pc.experiments.compare(runs("a", A), [0.5])
        with pytest.raises(KeyError, match="no metric 'eval/loss'"):
            pc.experiments.compare(runs("a", A), runs("b", B), metric="eval/loss")
        with pytest.raises(ValueError, match="confidence"):
            pc.experiments.compare(runs("a", A), runs("b", B), confidence=1)


class TestTables:
    def comparison(self):
        return pc.experiments.compare(runs("b_0", B), runs("a|1", A), runs("c", C))

    def test_csv_and_json_hold_the_numbers_in_full(self):
        comparison = self.comparison()
        rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
        assert [row["a"] for row in rows] == ["a|1", "c"]
        for row, one in zip(rows, comparison.contrasts, strict=True):
            assert float(row["p_holm"]) == one.p_holm
            assert (float(row["low"]), float(row["high"])) == one.interval
        record = json.loads(json.dumps(comparison.to_dict()))
        assert list(record["contrasts"][0]["values"]["b_0"].values()) == list(B)

    def test_markdown_latex_and_text_have_a_row_a_contrast(self):
        comparison = self.comparison()
        markdown = comparison.to_markdown().splitlines()
        assert len({line.replace("\\|", "").count("|") for line in markdown[:4]}) == 1
        assert markdown[2].startswith(
            "| a\\|1 - b_0 | 5 pairs | 0.938 ± 0.024 | 0.918 ± 0.024 | 0.02 ["
        )
        latex = comparison.to_latex().splitlines()
        assert latex[1] == r"\begin{tabular}{lrrrrrrr}"
        assert latex[5].startswith(r"a|1 $-$ b\_0 & 5 pairs & 0.938 $\pm$ 0.024 & ")
        assert "$d_z$ " in latex[5]
        assert "c $-$ b" in latex[6]
        assert "& $-$0.0" in latex[6]
        text = str(comparison).splitlines()
        assert len({len(line) for line in text[:4]}) == 1
        assert "paired t test" in text[-1]

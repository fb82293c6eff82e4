"""Statistics over seeds. Oracles: closed forms, scipy, and the share of intervals that hold the mean."""

import numpy as np
import pytest
import scipy.stats

import pcflax as pc

VALUES = np.array([0.91, 0.94, 0.92, 0.97, 0.95])
SEEDS = (0, 1, 2, 3, 4)


def sample(values=VALUES):
    return pc.experiments.Sample(np.asarray(values), tuple(range(len(values))), "eval/accuracy")


def runs_of(columns, **options):
    """Runs whose histories hold one evaluation a column."""
    histories = [
        pc.History([{"step": 5 * place + 5, "eval/accuracy": v} for place, v in enumerate(row)])
        for row in columns
    ]
    own = [pc.experiments.OneRun(seed, history) for seed, history in enumerate(histories)]
    return pc.experiments.Runs(own, **options)


def test_mean_and_spread_are_over_seeds():
    columns = np.stack([VALUES, VALUES**2], axis=1)
    curves = runs_of(columns)["eval/accuracy"]
    np.testing.assert_array_equal(curves.values, columns)
    np.testing.assert_array_equal(curves.steps, [5, 10])
    np.testing.assert_allclose(curves.mean, [VALUES.mean(), (VALUES**2).mean()])
    np.testing.assert_allclose(curves.std, [VALUES.std(ddof=1), (VALUES**2).std(ddof=1)])
    np.testing.assert_array_equal(curves.last.values, VALUES**2)
    np.testing.assert_array_equal(curves.at(5).values, VALUES)
    assert curves.last.seeds == SEEDS
    assert curves.last.mean == pytest.approx((VALUES**2).mean())
    assert sample().std == pytest.approx(VALUES.std(ddof=1))


def test_the_t_interval_is_that_of_scipy():
    for confidence in (0.9, 0.95):
        expected = scipy.stats.ttest_1samp(VALUES, 0).confidence_interval(confidence)
        assert sample().interval(confidence) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_the_bootstrap_is_that_of_scipy_for_each_evaluation_alone(method):
    """An evaluation at which all seeds are equal has an interval of no width, and no warning."""
    columns = np.stack([np.full(5, 0.5), VALUES, VALUES[::-1] ** 2], axis=1)
    low, high = runs_of(columns)["eval/accuracy"].interval(0.9, method=method)
    assert (low[0], high[0]) == (0.5, 0.5)
    for place in (1, 2):
        expected = scipy.stats.bootstrap(
            (columns[:, place],),
            np.mean,
            confidence_level=0.9,
            method=method,
            n_resamples=99_999,
            rng=np.random.default_rng(1),
        ).confidence_interval
        # 9,999 resamples against 99,999: means of five values are no closer together
        assert (low[place], high[place]) == pytest.approx(tuple(expected), abs=5e-3)
    assert sample(columns[:, 1]).interval(method=method) == sample(VALUES).interval(method=method)


def test_the_t_interval_holds_the_mean_as_often_as_it_says_and_the_bootstrap_does_not():
    """Why t is what is given unless asked otherwise: 4,000 samples of 8 seeds, standard error .004."""
    draws = np.random.default_rng(0).normal(3.0, 2.0, (8, 4000))
    from pcflax.experiments.statistics import interval

    def share(method, number=4000):
        low, high = interval(draws[:, :number], 0.95, method)
        return np.mean((low <= 3.0) & (high >= 3.0))

    assert share("t") == pytest.approx(0.95, abs=0.012)
    assert share("percentile", 300) < 0.93


def test_where_a_seed_has_no_value_nothing_is_known():
    missing = sample([0.9, np.nan, 0.8])
    assert np.isnan([missing.mean, missing.std, *missing.interval()]).all()
    low, high = missing.interval(method="bca")
    assert np.isnan([low, high]).all()


def test_bands_are_what_the_figure_draws():
    curves = runs_of(np.stack([VALUES, VALUES**2], axis=1))["eval/accuracy"]
    steps, mean, low, high = curves.band(0.9)
    figure = pc.plotting.band_figure({"pc": (steps, mean, low, high)}, label="accuracy")
    (axis,) = figure.axes
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_xydata(), np.stack([steps, mean], axis=1))
    (patch,) = axis.collections
    corners = patch.get_paths()[0].vertices
    for ends in (low, high):
        assert all(
            np.isclose(corners, [step, end]).all(axis=1).any()
            for step, end in zip(steps, ends, strict=True)
        )
    assert axis.get_ylabel() == "accuracy"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: sample([1.0]).interval(), "expected 2 seeds or more, got 1"),
        (lambda: sample().interval(1), "expected a confidence below 1, got 1"),
        (lambda: sample().interval(0), "confidence above 0 and of at most 1, got 0"),
        (
            lambda: sample().interval(method="normal"),
            "method 't', 'bca' or 'percentile', got 'normal'",
        ),
        (lambda: runs_of([[0.5]])["eval/accuracy"].at(7), "not measured at step 7; it was at 5"),
        (
            lambda: runs_of([[0.5]]).at(rate=1),
            "there is no run of {'rate': 1}; there are no settings",
        ),
    ],
)
def test_errors(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_an_unknown_metric_is_told():
    with pytest.raises(
        KeyError, match="no metric 'eval/acuracy' was measured; .*did you mean 'eval/accuracy'"
    ):
        runs_of([[0.5]])["eval/acuracy"]


def test_the_spread_of_one_seed_is_unknown():
    assert np.isnan(sample([0.5]).std)
    shown = "eval/accuracy 0.5 (1 seed, of which no interval is known)"
    assert str(runs_of([[0.5]])["eval/accuracy"]) == f"{shown}, the last of 1 evaluations"


@pytest.mark.parametrize("method", ["t", "bca", "percentile"])
def test_of_infinite_values_no_interval_is_known(method):
    """As of a perplexity; NumPy and SciPy warned of it in their own words."""
    assert np.isnan(sample([1.0, np.inf, 2.0]).interval(method=method)).all()


def test_what_is_shown():
    runs = runs_of(VALUES[:, None], name="pc")
    assert repr(runs) == "Runs('pc', 5 runs of 1 settings: eval/accuracy)"
    low, high = sample().interval()
    shown = f"eval/accuracy {VALUES.mean():.4g} [{low:.4g}, {high:.4g}] (mean and 95% interval, 5 seeds)"
    assert str(runs["eval/accuracy"]) == f"{shown}, the last of 1 evaluations"

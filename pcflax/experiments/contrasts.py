"""One difference between two ways of training, and what it says of seeds not run.

Seeds that both have are pairs, of which only the differences count:

    paired      d = a - b by seed; mean(d) +- t std(d) / sqrt(n); effect d_z = mean(d) / std(d)
    otherwise   Welch's t, of unequal variances; effect g = J (mean(a) - mean(b)) / pooled std

Beside Student's test stands one of ranks, which asks for no normal values: Wilcoxon's signed ranks of pairs,
Mann and Whitney's of two samples; of few seeds by all permutations. Next file to read: `comparison.py`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .statistics import Interval, Sample

# Values of float32 metrics that differ by less, relative to the largest, are the same value.
_SAME = 1e-6
# All 12,870 ways to deal 16 seeds to two sides are gone through; of more seeds so many at random.
_PERMUTATIONS = 20_000


@dataclasses.dataclass(frozen=True)
class Contrast:
    """The difference a - b of one metric, over seeds.

    Attributes:
        names: of a and of b.
        a: the values of a that count; of pairs, those of the shared seeds.
        b: those of b.
        paired: whether by seed.
        difference: the mean of a less that of b.
        interval: Student's, for that difference over all seeds that could have been drawn; NaN for one seed.
        effect: the difference in standard deviations: Cohen's d_z of pairs, Hedges' g otherwise.
        p: of Student's t test (Welch's, where not paired), two-sided; NaN where seeds have no spread.
        p_ranks: of Wilcoxon's or Mann and Whitney's test, two-sided.
        p_holm: p after Holm's correction over the contrasts compared.
        p_ranks_holm: p_ranks after it.
        planned: whether a plan declared it before the first step; None without a plan.
        notes: what a reader has to know.
    """

    names: tuple[str, str]
    a: Sample
    b: Sample
    paired: bool
    difference: float
    interval: Interval
    effect: float
    p: float
    p_ranks: float
    p_holm: float = math.nan
    p_ranks_holm: float = math.nan
    planned: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Which difference it is, "pc - backprop"."""
        return " - ".join(self.names)

    @property
    def effect_name(self) -> str:
        """Which effect size it is, "d_z" or "g"."""
        return "d_z" if self.paired else "g"


def contrast(names: tuple[str, str], a: Sample, b: Sample, confidence: float) -> Contrast:
    """Return the difference of two samples, by pairs where they share seeds."""
    shared = [seed for seed in a.seeds if seed in b.seeds]
    paired = len(shared) > 1 or set(a.seeds) == set(b.seeds)
    notes = []
    if paired:
        for name, own in zip(names, (a, b), strict=True):
            alone = [seed for seed in own.seeds if seed not in shared]
            if alone:
                notes.append(f"{name} has seeds without a partner, left out: {_listed(alone)}")
        a, b = _of(a, shared), _of(b, shared)
    elif shared:
        notes.append(f"seed {shared[0]} is shared by {names[0]} and {names[1]}, not used as a pair")
    if min(len(a.seeds), len(b.seeds)) < 2:
        notes.append(f"{' - '.join(names)}: of one seed no interval and no test is known")
        interval, effect, p, p_ranks = (Interval(math.nan, math.nan), *[math.nan] * 3)
    else:
        test = _of_pairs if paired else _of_two
        interval, effect, p, p_ranks = test(a.values, b.values, confidence)
        if math.isnan(p):
            notes.append(f"{' - '.join(names)}: seeds have no spread, so there is no t test")
    difference = a.mean - b.mean
    found = (difference, interval, effect, p, p_ranks)
    return Contrast(names, a, b, paired, *found, notes=tuple(notes))


# The interval, the effect, and both p values.
_Tested = tuple[Interval, float, float, float]


def _of_pairs(a: np.ndarray, b: np.ndarray, confidence: float) -> _Tested:
    from scipy import stats

    differences = a - b
    largest = max(np.abs(a).max(), np.abs(b).max(), np.finfo(float).tiny)
    # rounded: 0.95 - 0.94 and 0.91 - 0.90 are a tie
    ranked = np.round(differences / largest / _SAME)
    by_ranks: Any = stats.wilcoxon(ranked) if ranked.any() else None  # of nothing, scipy fails
    p_ranks = 1.0 if by_ranks is None else float(by_ranks.pvalue)
    mean = float(differences.mean())
    if np.ptp(ranked) == 0:
        return Interval(mean, mean), math.nan, math.nan, p_ranks
    found: Any = stats.ttest_1samp(differences, 0)
    interval = found.confidence_interval(confidence)
    effect = mean / float(differences.std(ddof=1))
    ends = Interval(float(interval.low), float(interval.high))
    return ends, effect, float(found.pvalue), p_ranks


def _of_two(a: np.ndarray, b: np.ndarray, confidence: float) -> _Tested:
    from scipy import stats

    largest = max(np.abs(a).max(), np.abs(b).max(), np.finfo(float).tiny)
    ranked = [np.round(own / largest / _SAME) for own in (a, b)]
    every = np.concatenate(ranked)
    tied = len(np.unique(every)) < len(every)
    exact = math.comb(len(every), len(a)) <= _PERMUTATIONS
    # scipy is exact by itself where nothing is tied and one side is small, and else an approximation
    method: Any = stats.PermutationMethod(_PERMUTATIONS) if tied and exact else "auto"
    p_ranks = float(stats.mannwhitneyu(*ranked, method=method).pvalue)
    difference = float(a.mean() - b.mean())
    if all(np.ptp(own) == 0 for own in ranked):
        return Interval(difference, difference), math.nan, math.nan, p_ranks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
        found: Any = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(confidence)
    ends = Interval(float(interval.low), float(interval.high))
    return ends, hedges_g(a, b), float(found.pvalue), p_ranks


def hedges_g(a: np.ndarray, b: np.ndarray) -> float:
    """Return (mean(a) - mean(b)) / pooled std, freed of its bias in small samples.

    The factor is J = Gamma(m/2) / (sqrt(m/2) Gamma((m - 1)/2)) with m = n_a + n_b - 2 degrees of freedom
    (Hedges 1981), .957 for twice 10 values.
    """
    freedom = len(a) + len(b) - 2
    pooled = math.sqrt(
        ((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / freedom
    )
    log_factor = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
    factor = math.exp(log_factor) / math.sqrt(freedom / 2)
    return factor * float(np.mean(a) - np.mean(b)) / pooled


def holm(ps: Sequence[float], tests: int) -> list[float]:
    """Return p values that hold for all at once, by Holm's step-down method (1979).

    The i-th smallest of m, from 0, is multiplied by m - i, and is at least what a smaller one became, at
    most 1. NaN stays, and counts as a test.

    Args:
        ps: p values.
        tests: how many tests there are with those not here, m.

    >>> holm([0.01, 0.04, 0.03], 3)
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps)  # NaN come last
    factors = tests - np.arange(len(order))
    corrected = np.minimum(np.maximum.accumulate(factors * np.asarray(ps, float)[order]), 1)
    return [float(corrected[place]) for place in np.argsort(order)]


def _of(sample: Sample, seeds: Sequence[int]) -> Sample:
    values = [sample.values[sample.seeds.index(seed)] for seed in seeds]
    return Sample(np.array(values), tuple(seeds), sample.metric)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))

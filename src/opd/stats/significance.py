"""Rank correlation with its draws and its p value, and the test of a difference between two kinds
of values that come in clusters."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit
from scipy.stats import rankdata

from opd.stats import draws
from opd.stats.intervals import LEVEL, RESAMPLES, Array, resampled

PERMUTATIONS = 20_000


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's correlation of the pairs [N] of which both are finite; NaN for fewer than three,
    or where one of both is constant."""
    a, b = _finite(x, y)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _finite(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """The pairs of which both are numbers."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def correlation(x: Array, y: Array) -> draws.Value:
    """Spearman's correlation of [N] pairs, with draws of pairs. A draw in which it is not defined
    counts as the value."""
    value = spearman(x, y)
    if not math.isfinite(value):
        return draws.Value(None, None, len(x))
    drawn = np.random.default_rng(0).integers(len(x), size=(draws.RESAMPLES, len(x)))
    correlations = np.array([spearman(x[pairs], y[pairs]) for pairs in drawn])
    return draws.Value(value, np.where(np.isfinite(correlations), correlations, value), len(x))


def permutation_p(x: Array, y: Array) -> float | None:
    """Two-sided p of Spearman's correlation of [N] pairs, by permutation; None where it is not
    defined."""
    value = spearman(x, y)
    if not math.isfinite(value):
        return None
    a, b = ((ranks - ranks.mean()) / ranks.std() for ranks in map(rankdata, _finite(x, y)))
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
    correlations = np.abs(shuffled @ a) / len(a)
    return float((1 + (correlations >= abs(value) - 1e-12).sum()) / (1 + PERMUTATIONS))


def cluster_difference(
    values: ArrayLike,
    first: ArrayLike,
    clusters: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float, float]:
    """Mean of the values of the first kind less that of the others, the bounds of its 95 %
    interval, and its two-sided p, by drawing clusters (as the questions that values are of) with
    replacement.

    The draws give the standard error, corrected for the few clusters; interval and p are Student's
    with one less degree of freedom than clusters. values, first and clusters are [N]. NaN where
    a kind is missing; no bounds and no p where there is one cluster.
    """
    numbers, kind = np.asarray(values, dtype=np.float64), np.asarray(first, dtype=bool)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    if not kind.any() or kind.all():
        return math.nan, math.nan, math.nan, math.nan
    value = float(numbers[kind].mean() - numbers[~kind].mean())
    if count < 2:
        return value, math.nan, math.nan, math.nan
    drawn = resampled(np.random.default_rng(seed), count, resamples)
    means = []
    for chosen in (kind, ~kind):
        sums = drawn @ np.bincount(place[chosen], weights=numbers[chosen], minlength=count)
        counts = drawn @ np.bincount(place[chosen], minlength=count)
        means.append(np.divide(sums, counts, out=np.full(resamples, math.nan), where=counts > 0))
    error = float(np.nanstd(means[0] - means[1]) * np.sqrt(count / (count - 1)))
    if error == 0:
        return value, value, value, 0.0 if value else 1.0
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(count - 1, -abs(value) / error))
    return value, value - half, value + half, p

"""Scores with 95 % intervals: pure functions of arrays of right and wrong answers.

Legend: S seeds (training runs), P problems, K samples of a problem. ``Scores`` is one array
[S, P, K] for each benchmark; a quantity is the mean over seeds and problems of the share of right
samples (avg@k), and over benchmarks their unweighted mean (macro).

Intervals are percentiles of a bootstrap that draws seeds and problems with replacement. All seeds
answer the same problems, so one draw of problems serves all seeds, benchmarks share the draw of
seeds, and quantities that are compared share both (paired). Samples are averaged within their
problem, not drawn. With one seed the interval is about problems only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Scores = Sequence[Array]
RESAMPLES = 4000
LEVEL = 0.95


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval, in the value's own unit."""

    mean: float
    low: float
    high: float


def interval(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """avg@k of ``scores`` (each [S, P, K], 0 to 1)."""
    (cells,) = _cells(scores)
    return _bounds(*_bootstrap([cells], resamples, seed), cells, (0.0, 1.0))


def difference(
    after: Scores, before: Scores, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """avg@k of ``after`` less that of ``before`` (each [S, P, K] with the same problems).

    Paired over problems, and over seeds where both sides have several; a side with one seed is
    paired with every seed of the other. Raises ``ValueError`` where the shapes do not allow it.
    """
    paired = [a - b for a, b in zip(*_cells(after, before), strict=True)]
    return _bounds(*_bootstrap([paired], resamples, seed), paired, (-1.0, 1.0))


def recovery(
    after: Scores, before: Scores, teacher: Scores, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Gap recovery (after - before) / (teacher - before); Rethinking OPD, section 3.2.

    Paired as in ``difference``. None where the interval of the gap itself reaches zero: a share
    of a gap that may not be there means nothing.
    """
    now, base, goal = _cells(after, before, teacher)
    gained = [a - b for a, b in zip(now, base, strict=True)]
    gap = [t - b for t, b in zip(goal, base, strict=True)]
    means, draws = _bootstrap([gained, gap], resamples, seed)
    if means[1] <= 0 or np.quantile(draws[:, 1], (1 - LEVEL) / 2) <= 0:
        return None
    kept = draws[draws[:, 1] > 0]
    low, high = _percentiles(kept[:, 0] / kept[:, 1])
    return Interval(float(means[0] / means[1]), low, high)


def standard_error(scores: Scores) -> float | None:
    """Standard error of avg@k over problems, from one seed (each [1, P, K]).

    The spread of the problems' own averages holds the samples' noise already: drawing samples
    anew within drawn problems, as a nested bootstrap does, would count that noise twice. None for a
    benchmark of one problem.
    """
    return _error([np.asarray(one)[0].mean(axis=1) for one in scores])


def sampling_error(scores: Scores) -> float | None:
    """The part of it that other samples of the same problems would show: None for one sample."""
    cells = [np.asarray(one)[0] for one in scores]
    if any(one.shape[1] < 2 for one in cells):
        return None
    parts = [(one.var(axis=1, ddof=1) / one.shape[1]).mean() / len(one) for one in cells]
    return float(np.sqrt(sum(parts)) / len(parts))


def _error(cells: Sequence[Array]) -> float | None:
    """Standard error of the mean over benchmarks of the means of values [P]."""
    if any(len(one) < 2 for one in cells):
        return None
    return float(np.sqrt(sum(one.var(ddof=1) / len(one) for one in cells)) / len(cells))


def paired_test(after: Scores, before: Scores, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of the difference in avg@k, by swapping the two models' scores of a problem
    (paired permutation test; each [S, P, K] with the same problems).

    All swaps are tried where there are no more than ``resamples``. Seeds are averaged first, so the
    question is whether these very runs differ on other problems of the kind.
    """
    from scipy.stats import permutation_test

    sides = []
    for quantity in _cells(after, before):
        weighed = [cells.mean(axis=0) / cells.shape[1] / len(quantity) for cells in quantity]
        sides.append(np.concatenate(weighed))
    if np.array_equal(*sides):
        return 1.0
    found = permutation_test(
        sides,
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _cells(*quantities: Scores) -> list[list[Array]]:
    """Each [S, P, K] averaged over samples and broadcast to the common S: [S, P]."""
    cells = []
    for benchmark in zip(*quantities, strict=True):
        means = [np.asarray(scores, dtype=np.float64).mean(axis=2) for scores in benchmark]
        if len({m.shape[1] for m in means}) > 1:
            raise ValueError("the sides of a comparison have different problems")
        cells.append(np.broadcast_arrays(*means))
    return [list(quantity) for quantity in zip(*cells, strict=True)]


def _bootstrap(
    quantities: Sequence[Sequence[Array]], resamples: int, seed: int
) -> tuple[Array, Array]:
    """Means [Q] and bootstrap draws [R, Q] of quantities given as cells [S, P] per benchmark."""
    rng = np.random.default_rng(seed)
    seeds = quantities[0][0].shape[0]
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    means, draws = np.zeros(len(quantities)), np.zeros((resamples, len(quantities)))
    for benchmark in zip(*quantities, strict=True):
        problems = benchmark[0].shape[1]
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples)
        for q, cells in enumerate(benchmark):
            means[q] += cells.mean()
            draws[:, q] += np.einsum("rp,rp->r", seed_weights @ cells, weights / problems)
    return means / len(quantities[0]), draws / len(quantities[0])


def _percentiles(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _bounds(
    means: Array, draws: Array, cells: Sequence[Array], limits: tuple[float, float]
) -> Interval:
    """Percentile bounds of one quantity.

    Where all problems have one and the same value (none solved, all solved, none changed) the
    bootstrap has no width, although few problems prove little. Then the exact binomial bound
    stands in: the rate of problems unlike these that could still have shown none among P.
    """
    mean = float(means[0])
    low, high = _percentiles(draws[:, 0])
    if all(np.ptp(c) == 0 for c in cells):
        unseen = float(np.mean([1 - ((1 - LEVEL) / 2) ** (1 / c.shape[1]) for c in cells]))
        low, high = max(limits[0], mean - unseen), min(limits[1], mean + unseen)
    return Interval(mean, low, high)

"""Scores with 95 % intervals: pure functions of arrays of right and wrong answers.

Legend: S seeds (training runs), P problems, K samples of a problem. ``Scores`` is one array
[S, P, K] for each benchmark; a quantity is the mean over seeds and problems of the share of right
samples (avg@k), and over benchmarks their unweighted mean (macro).

Intervals are percentiles of a bootstrap that draws seeds and problems with replacement. All seeds
answer the same problems, so one draw of problems serves all seeds, benchmarks share the draw of
seeds, and quantities that are compared share both (paired). With one seed the interval is about
problems only.

Samples are averaged within their problem, not drawn: how the averages of problems differ holds the
samples' noise already, and a nested bootstrap counts it twice (docs/claims.md has the coverage of
both).

A share (after - before) / gap has Fieller's set for an interval: the shares r for which the
interval of (after - before) - r * gap holds zero. Taken from bootstrap draws these are the
percentiles of the drawn shares, where a draw without a gap may be any share and counts against both
ends. Where the interval of the gap itself reaches zero, no share is bounded and none is given
(Fieller, J. R. Stat. Soc. B 16, 1954; von Luxburg and Franz, Stat. Sin. 19, 2009).
"""

from collections.abc import Sequence
from functools import lru_cache
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
    (cells,) = averages(scores)
    means, draws = bootstrap([cells], resamples, seed)
    return bounds(means[0], draws[:, 0], least(cells), (0.0, 1.0))


def shares(
    sides: Sequence[Sequence[Array]], resamples: int, seed: int, only: int | None = None
) -> tuple[float, Array] | None:
    """Gap recovery (after - before) / (teacher - before), Rethinking OPD, section 3.2, of averages
    [S, P] of after, before and teacher: its value, and its draws [R], NaN in the few without a gap.

    None where the interval of the gap itself reaches zero: then no share is ruled out (see above).
    """
    now, base, goal = sides
    means, draws = bootstrap([less(now, base), less(goal, base)], resamples, seed, only)
    gap = np.where(draws[:, 1] > 0, draws[:, 1], np.nan)
    if means[1] <= 0 or boundless(gap):
        return None
    return float(means[0] / means[1]), draws[:, 0] / gap


def standard_error(scores: Scores) -> float | None:
    """Standard error of avg@k over problems, from one seed (each [1, P, K]); None for a benchmark
    of one problem."""
    rates = [np.asarray(benchmark)[0].mean(axis=1) for benchmark in scores]
    if any(len(problems) < 2 for problems in rates):
        return None
    variances = [problems.var(ddof=1) / len(problems) for problems in rates]
    return float(np.sqrt(sum(variances)) / len(rates))


def sampling_error(scores: Scores) -> float | None:
    """The part of ``standard_error`` that other samples of the same problems would show: None for
    one sample of a problem."""
    problems = [np.asarray(benchmark)[0] for benchmark in scores]
    if any(samples.shape[1] < 2 for samples in problems):
        return None
    variances = [
        (samples.var(axis=1, ddof=1) / samples.shape[1]).mean() / len(samples)
        for samples in problems
    ]
    return float(np.sqrt(sum(variances)) / len(variances))


def student(values: Array) -> Interval:
    """Mean of independent values [N], as one of each seed, with Student's t interval; the bounds
    are NaN for fewer than two."""
    from scipy.special import stdtrit

    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def paired_test(after: Scores, before: Scores, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p value of the difference in avg@k, by swapping the two models' scores of a problem
    (paired permutation test; each [S, P, K] with the same problems).

    All swaps are tried where there are no more than ``resamples``. Seeds are averaged first, so the
    question is whether these very runs differ on other problems of the kind.
    """
    from scipy.stats import permutation_test

    sides = []
    for quantity in averages(after, before):
        weighed = [cells.mean(axis=0) / cells.shape[1] / len(quantity) for cells in quantity]
        sides.append(np.concatenate(weighed))
    if np.array_equal(sides[0], sides[1]):
        return 1.0
    result = permutation_test(
        sides,
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def averages(*quantities: Scores) -> list[list[Array]]:
    """Each [S, P, K] averaged over samples and broadcast to the common S: [S, P]. Raises
    ``ValueError`` where the sides have different problems or numbers of seeds."""
    cells = []
    for benchmark in zip(*quantities, strict=True):
        means = [np.asarray(scores, dtype=np.float64).mean(axis=2) for scores in benchmark]
        if len({m.shape[1] for m in means}) > 1:
            raise ValueError("the sides of a comparison have different problems")
        cells.append(np.broadcast_arrays(*means))
    return [list(quantity) for quantity in zip(*cells, strict=True)]


def less(after: Sequence[Array], before: Sequence[Array]) -> list[Array]:
    """Differences [S, P] of averages, benchmark by benchmark."""
    return [a - b for a, b in zip(after, before, strict=True)]


@lru_cache(maxsize=4)
def weights(
    seeds: int, problems: tuple[int, ...], resamples: int, seed: int
) -> tuple[Array, list[Array]]:
    """How often each draw has each seed [R, S] and each problem of every benchmark [R, P], as
    shares of one. The same for all quantities that are compared: that pairs them."""
    rng = np.random.default_rng(seed)
    of_seeds = resampled(rng, seeds, resamples) / seeds
    return of_seeds, [resampled(rng, n, resamples) / n for n in problems]


def resampled(rng: np.random.Generator, n: int, resamples: int) -> Array:
    """How often each of n things is in each bootstrap draw of n with replacement, [R, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def bootstrap(
    quantities: Sequence[Sequence[Array]], resamples: int, seed: int, only: int | None = None
) -> tuple[Array, Array]:
    """Means [Q] and bootstrap draws [R, Q] of quantities given as averages [S, P] per benchmark;
    ``only`` averages one benchmark, by its place, under the draws that it has among all of them."""
    sizes = tuple(cells.shape[1] for cells in quantities[0])
    of_seeds, of_problems = weights(quantities[0][0].shape[0], sizes, resamples, seed)
    places = range(len(sizes)) if only is None else [only]
    means, draws = np.zeros(len(quantities)), np.zeros((resamples, len(quantities)))
    for place in places:
        for q, benchmarks in enumerate(quantities):
            cells = benchmarks[place]
            means[q] += cells.mean()
            draws[:, q] += np.einsum("rp,rp->r", of_seeds @ cells, of_problems[place])
    return means / len(places), draws / len(places)


def least(cells: Sequence[Array]) -> float:
    """The least half width that an interval of these averages [S, P] can have: where all problems
    have one and the same value (none solved, all solved, none changed) the bootstrap has no width,
    although few problems prove little, and the exact binomial bound (``unseen``) stands in."""
    if any(np.ptp(benchmark) for benchmark in cells):
        return 0.0
    return float(np.mean([unseen(benchmark.shape[1]) for benchmark in cells]))


def unseen(n: int) -> float:
    """The largest rate of an outcome that shows in none of n cases in 2.5 % of samples: the exact
    binomial bound."""
    return float(1 - ((1 - LEVEL) / 2) ** (1 / n))


def bounds(
    value: float,
    draws: Array,
    least: float = 0.0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """A value between the percentiles of its draws [R], but at least ``least`` to either side as
    far as ``limits`` allow. A draw that is NaN may be anything: it counts below the one end and
    above the other, and the bounds are infinite where the draws are ``boundless``."""
    if boundless(draws):
        return Interval(float(value), -np.inf, np.inf)
    unknown = np.isnan(draws).mean()
    tail = ((1 - LEVEL) / 2 - unknown) / (1 - unknown)
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    if least:
        low, high = max(limits[0], value - least), min(limits[1], value + least)
    return Interval(float(value), float(low), float(high))


def boundless(draws: Array) -> bool:
    """Whether so many draws have no value (NaN) that an interval of the others has no end."""
    return bool(np.isnan(draws).mean() >= (1 - LEVEL) / 2)

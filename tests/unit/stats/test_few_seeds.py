"""Intervals over few training runs, against Student's t and on simulated evaluations."""

import numpy as np
import pytest

from opd.stats.few_seeds import p_value, widened
from opd.stats.intervals import Array, Interval, averages, bootstrap, bounds, less, student


def of(cells: Array) -> tuple[Interval, Interval]:
    """The bootstrap's interval and the widened one of the mean of averages [S, P]."""
    means, draws = bootstrap([[cells]], 4000, 0)
    drawn = bounds(means[0], draws[:, 0])
    return drawn, widened(drawn, draws[:, 0], cells.mean(axis=1))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_only_seeds_differ_it_is_students_t(seeds: int) -> None:
    """Of 0.3, 0.5, ... on every problem."""
    by_seed = 0.3 + 0.2 * np.arange(seeds) / seeds
    drawn, wide = of(np.repeat(by_seed[:, None], 200, axis=1))
    expected = student(by_seed)
    assert wide.high - wide.low == pytest.approx(expected.high - expected.low, rel=0.04)
    assert drawn.high - drawn.low < 0.7 * (wide.high - wide.low)
    assert wide.mean == pytest.approx(by_seed.mean())


def test_where_seeds_are_alike_it_is_the_bootstraps() -> None:
    problems = np.random.default_rng(0).uniform(size=80)
    drawn, wide = of(np.tile(problems, (3, 1)))
    assert wide == drawn
    # Hardly different: a thousandth of what problems do.
    drawn, wide = of(problems + np.array([[-0.001], [0.0], [0.001]]))
    assert wide == pytest.approx(drawn, abs=1e-3)


def test_width_of_two_parts_by_hand() -> None:
    """Seeds 0.2 and 0.4: variance of the mean 0.01. Problems add and subtract 0.5, 100 of them:
    variance 0.0025. Degrees of freedom (0.0125 / 0.01)^2 = 1.5625, for which Student's t is 5.691
    (between 12.706 of one and 4.303 of two)."""
    cells = np.array([[0.2], [0.4]]) + np.where(np.arange(100) % 2, 0.5, -0.5)
    _, wide = of(cells)
    assert (wide.high - wide.low) / 2 == pytest.approx(5.691 * np.sqrt(0.0125), rel=0.04)


def test_p_values_are_those_of_the_same_t() -> None:
    """Of seeds alone: the test of one sample. Of two parts: where the interval has its end at 0."""
    from scipy.stats import ttest_1samp

    by_seed = np.array([0.02, 0.1, 0.05])
    _, draws = bootstrap([[np.repeat(by_seed[:, None], 200, axis=1)]], 4000, 0)
    assert p_value(draws[:, 0], by_seed) == pytest.approx(ttest_1samp(by_seed, 0).pvalue, rel=0.04)
    cells = np.array([[0.2], [0.4]]) + np.where(np.arange(100) % 2, 0.5, -0.5)
    _, wide = of(cells)
    _, draws = bootstrap([[cells]], 4000, 0)
    half = (wide.high - wide.low) / 2
    at_the_end = p_value(draws[:, 0] - 0.3 + half, cells.mean(axis=1) - 0.3 + half)
    assert at_the_end == pytest.approx(0.05, abs=0.003)
    assert p_value(np.zeros(9), np.zeros(3)) == 1 and p_value(np.ones(9), np.ones(3)) == 0


def test_alike_models_are_seldom_called_different() -> None:
    """Three seeds of each, which differ by chance; 60 problems of four samples."""
    rng, called = np.random.default_rng(1), 0
    for _ in range(200):
        logits = rng.normal(0, 1.5, 60) + rng.normal(0, 0.5, (2, 3, 1))
        after, before = rng.binomial(4, 1 / (1 + np.exp(-logits))) / 4
        _, draws = bootstrap([[after - before]], 500, 0)
        called += p_value(draws[:, 0], (after - before).mean(axis=1)) < 0.05
    assert called <= 0.12 * 200


def test_ends_keep_their_distances_and_what_has_no_ends_has_none() -> None:
    draws = np.array([0.4, 0.5, 0.8])
    wide = widened(Interval(0.5, 0.4, 0.8), draws, np.array([0.2, 0.8]))
    assert (wide.high - 0.5) / (0.5 - wide.low) == pytest.approx(3)
    for drawn in (Interval(0.5, -np.inf, np.inf), Interval(0.5, 0.5, 0.5)):
        assert widened(drawn, draws, np.array([0.2, 0.8])) == drawn
    # Draws of a ratio that have no value, and one that is far out.
    odd = np.concatenate([np.full(5, np.nan), [1e9], np.linspace(0.4, 0.6, 400)])
    wide = widened(Interval(0.5, 0.4, 0.6), odd, np.array([0.45, 0.5, 0.55]))
    assert np.isfinite(wide).all() and 0.1 < wide.high - 0.5 < 0.3


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.90), (5, 0.92)])
@pytest.mark.parametrize("sd", [0.0, 0.5, 1.25])
def test_coverage(seeds: int, least: float, sd: float) -> None:
    """Two models that are alike, whose runs differ by a normal deviate of the log-odds: zero lies
    in the interval in about 95 % of cases, of the bootstrap alone in as few as 70 %."""
    rng, trials, hits, of_bootstrap = np.random.default_rng(seeds), 300, 0, 0
    for _ in range(trials):
        rates = rng.uniform(0.001, 0.999, 60)
        odds = np.log(rates / (1 - rates))
        moved = (odds + sd * rng.normal(size=(seeds, 1)) for _ in range(2))
        sides = [rng.random((seeds, 60, 4)) < (1 / (1 + np.exp(-m)))[..., None] for m in moved]
        cells = less(*averages([sides[0]], [sides[1]]))
        means, draws = bootstrap([cells], 500, 0)
        drawn = bounds(means[0], draws[:, 0])
        wide = widened(drawn, draws[:, 0], cells[0].mean(axis=1))
        hits += wide.low <= 0 <= wide.high
        of_bootstrap += drawn.low <= 0 <= drawn.high
    assert hits / trials >= least
    assert (of_bootstrap / trials < 0.92) == (sd > 0)

"""Intervals against enumeration of every possible draw, and against numbers by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opd.stats.intervals import (
    RESAMPLES,
    Interval,
    Scores,
    averages,
    bootstrap,
    boundless,
    bounds,
    interval,
    least,
    less,
    paired_test,
    sampling_error,
    shares,
    standard_error,
    student,
)


def difference(after: Scores, before: Scores, resamples: int = RESAMPLES) -> Interval:
    """What ``opd.results.estimate`` makes of a change."""
    paired = less(*averages(after, before))
    means, draws = bootstrap([paired], resamples, 0)
    return bounds(means[0], draws[:, 0], least(paired), (-1.0, 1.0))


def recovery(*sides: Scores, resamples: int = RESAMPLES) -> Interval | None:
    """And of a recovery, of after, before and teacher."""
    found = shares(averages(*sides), resamples, 0)
    return None if found is None else bounds(*found)


def draws_by_enumeration(*quantities: np.ndarray) -> np.ndarray:
    """[draws, quantities]: mean of cells [S, P] under every draw of seeds and of problems."""
    seeds, problems = quantities[0].shape
    return np.array(
        [
            [cells[np.ix_(s, p)].mean() for cells in quantities]
            for s in itertools.product(range(seeds), repeat=seeds)
            for p in itertools.product(range(problems), repeat=problems)
        ]
    )


def samples(cells: list[list[float]], of: int = 4) -> np.ndarray:
    """Cells [S, P] as scores [S, P, K]: so many of K samples right."""
    right = np.round(np.array(cells) * of).astype(int)
    return (np.arange(of) < right[..., None]).astype(float)


SCORES = samples([[1.0, 0.25, 0.0, 0.5, 0.75], [0.75, 0.5, 0.25, 0.5, 1.0]])
OTHER = samples([[0.5, 0.25, 0.0, 0.25, 0.0], [0.75, 0.0, 0.25, 0.0, 0.25]])


def quantiles(draws: np.ndarray) -> np.ndarray:
    return np.quantile(draws, [0.025, 0.975])


def test_interval_is_that_of_all_possible_draws() -> None:
    expected = quantiles(draws_by_enumeration(SCORES.mean(-1))[:, 0])
    found = interval([SCORES], resamples=100_000)
    assert found.mean == pytest.approx(0.55)  # (2.5 + 3.0) / 10
    assert [found.low, found.high] == pytest.approx(expected, abs=0.011)


def test_difference_is_paired_over_seeds_and_problems() -> None:
    draws = draws_by_enumeration(SCORES.mean(-1), OTHER.mean(-1))
    found = difference([SCORES], [OTHER], resamples=100_000)
    assert found.mean == pytest.approx(0.55 - 0.225)
    expected = quantiles(draws[:, 0] - draws[:, 1])
    assert [found.low, found.high] == pytest.approx(expected, abs=0.011)


def test_recovery_is_a_ratio_of_paired_differences() -> None:
    teacher = samples([[1.0, 1.0, 0.75, 1.0, 1.0]] * 2)
    draws = draws_by_enumeration(*(s.mean(-1) for s in (SCORES, OTHER, teacher)))
    found = recovery([SCORES], [OTHER], [teacher], resamples=100_000)
    assert found is not None
    assert found.mean == pytest.approx((0.55 - 0.225) / (0.95 - 0.225))
    expected = quantiles((draws[:, 0] - draws[:, 1]) / (draws[:, 2] - draws[:, 1]))
    assert [found.low, found.high] == pytest.approx(expected, abs=0.015)


def test_no_recovery_of_a_gap_that_may_not_be_there() -> None:
    assert recovery([SCORES], [OTHER], [OTHER]) is None
    assert recovery([SCORES], [SCORES], [OTHER]) is None  # the teacher is the worse one
    hardly = samples([[0.5, 0.5, 0.0, 0.25, 0.0], [0.5, 0.25, 0.25, 0.0, 0.25]])
    assert recovery([SCORES], [OTHER], [hardly]) is None


def fieller(numerator: np.ndarray, gap: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Which shares r of a grid the interval of numerator - r * gap does not rule out."""
    low, high = np.quantile(numerator - grid[:, None] * gap, [0.025, 0.975], axis=1)
    return (low <= 0) & (high >= 0)


@pytest.mark.parametrize("teacher", [[1.0, 1.0, 0.75, 1.0, 1.0], [0.5] * 5])
def test_recovery_is_fiellers_set(teacher: list[float]) -> None:
    """With a gap in every draw; and where 0.5 to 2.5 % of the draws have none, no less."""
    goal = samples([teacher] * 2)
    now, base, top = draws_by_enumeration(*(s.mean(-1) for s in (SCORES, OTHER, goal))).T
    none = np.mean(top - base <= 0)
    assert none == 0 if teacher[1] == 1.0 else 0.005 < none < 0.025
    found = recovery([SCORES], [OTHER], [goal], resamples=100_000)
    assert found is not None
    # As far out as the others reach: beyond that a grid does not tell.
    grid = np.linspace(found.low - 2, found.high + 2, 401)
    kept = grid[fieller(now - base, top - base, grid)]
    if not none:
        assert [found.low, found.high] == pytest.approx([kept.min(), kept.max()], abs=0.03)
    assert found.low <= kept.min() + 0.02 and found.high >= kept.max() - 0.02
    shares = (now - base)[top > base] / (top - base)[top > base]
    alone = np.quantile(shares, [0.025, 0.975])
    assert found.low <= alone[0] + 0.015 and found.high >= alone[1] - 0.015


def test_draws_without_a_value_count_against_both_ends() -> None:
    """Of 1,000 draws 25 are left out at either end; ten that may be anything are among them."""
    draws = np.arange(1000.0)
    draws[500:510] = np.nan
    found = bounds(1.0, draws)
    low = np.where(np.isnan(draws), -np.inf, draws)
    high = np.where(np.isnan(draws), np.inf, draws)
    assert found.low == pytest.approx(np.sort(low)[25], abs=1.0) and found.low < 16
    assert found.high == pytest.approx(np.sort(high)[974], abs=1.0) and found.high > 983
    draws[:16] = np.nan
    assert boundless(draws) and bounds(1.0, draws) == Interval(1.0, -np.inf, np.inf)


def test_shares_of_a_small_gap_are_covered() -> None:
    """A student that closes half of a gap of 0.12, which is three of its own standard errors: the
    set holds the half as often as it says, whether it has bounds or not."""
    rng, trials, hits, bounded = np.random.default_rng(3), 400, 0, 0
    for _ in range(trials):
        rates = rng.random((40, 1)) * 0.88
        sides = [(rng.random((40, 4)) < rates + more)[None] for more in (0.06, 0.0, 0.12)]
        found = recovery(*([side] for side in sides), resamples=400)
        bounded += found is not None
        hits += found is None or found.low <= 0.5 <= found.high
    assert 0.92 <= hits / trials <= 0.98
    assert 0.5 <= bounded / trials <= 0.95


def test_macro_weighs_benchmarks_equally_whatever_their_size() -> None:
    small, large = samples([[1.0, 0.5]]), samples([[0.0, 0.25, 0.0, 0.0, 0.25, 0.5]])
    found = interval([small, large], resamples=100_000)
    assert found.mean == pytest.approx((0.75 + 1 / 6) / 2)
    # Every draw of the one against every draw of the other: they are drawn apart.
    each = [draws_by_enumeration(s.mean(-1))[:, 0] for s in (small, large)]
    expected = quantiles(np.add.outer(*each).ravel() / 2)
    assert [found.low, found.high] == pytest.approx(expected, abs=0.011)


def test_one_side_with_one_seed_is_paired_with_every_seed_of_the_other() -> None:
    once = OTHER[:1]
    repeated = np.repeat(once, 2, axis=0)
    assert difference([SCORES], [once]) == difference([SCORES], [repeated])
    with pytest.raises(ValueError, match="broadcast"):
        difference([SCORES], [np.repeat(once, 3, axis=0)])
    with pytest.raises(ValueError, match="different problems"):
        difference([SCORES], [OTHER[:, :3]])


def test_few_problems_that_are_all_alike_prove_little() -> None:
    # Clopper and Pearson's 95 % bound for 0 of 20 is 16.84 %, for 20 of 20 it is 83.16 %.
    none, every = np.zeros((3, 20, 4)), np.ones((3, 20, 4))
    assert interval([none]) == Interval(0.0, 0.0, pytest.approx(0.1684, abs=5e-5))
    assert interval([every]) == Interval(1.0, pytest.approx(0.8316, abs=5e-5), 1.0)
    same = difference([SCORES], [SCORES])
    assert same.mean == 0 and same.low == -same.high < 0


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    problems = rng.random((1, 200, 4)) < 0.5
    alike = np.repeat(problems, 3, axis=0)
    unlike = np.stack([rng.random((200, 4)) < rate for rate in (0.3, 0.5, 0.7)])
    widths = [np.diff(interval([scores])[1:]).item() for scores in (alike, unlike)]
    # The same answers three times say no more than once.
    assert widths[0] == pytest.approx(np.diff(interval([problems])[1:]).item(), rel=0.1)
    assert widths[1] > 2 * widths[0]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, hits, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        rates = rng.beta(1, 1, size=(1, 60, 1))  # mean 0.5
        found = interval([rng.random((1, 60, 4)) < rates], resamples=500)
        hits += found.low <= 0.5 <= found.high
    assert 0.90 <= hits / trials <= 0.98


BINARY = arrays(float, st.tuples(*[st.integers(1, 4)] * 3), elements=st.sampled_from([0.0, 1.0]))


@settings(deadline=None, max_examples=60)
@given(BINARY)
def test_bounds_enclose_the_mean_and_stay_possible(scores: np.ndarray) -> None:
    found = interval([scores], resamples=200)
    assert found.mean == pytest.approx(scores.mean())
    assert 0 <= found.low <= found.high <= 1
    assert interval([scores], resamples=200) == found
    gain = difference([scores], [1 - scores], resamples=200)
    loss = difference([1 - scores], [scores], resamples=200)
    assert gain.mean == pytest.approx(-loss.mean)
    assert gain.low == pytest.approx(-loss.high) and gain.high == pytest.approx(-loss.low)


def test_errors_by_hand() -> None:
    """Three problems of two samples: averages 0, 1/2 and 1; another benchmark all right."""
    one = np.array([[[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    full = np.ones((1, 2, 2))
    # Spread of the averages 1/2, over three problems; only the middle problem's samples vary (1/2).
    assert standard_error([one]) == pytest.approx(0.5 / np.sqrt(3))
    assert sampling_error([one]) == pytest.approx(np.sqrt(0.5 / 2 / 9))
    assert standard_error([one, full]) == pytest.approx(0.5 / np.sqrt(3) / 2)
    assert sampling_error([one, full]) == pytest.approx(np.sqrt(0.5 / 2 / 9) / 2)
    assert standard_error([one[:, :1]]) is None and sampling_error([one[..., :1]]) is None


def test_error_over_problems_is_the_spread_of_repeated_evaluations() -> None:
    """Problems drawn with rates uniform on 0 to 1, four samples each: the spread of avg@4 over many
    such evaluations is what one of them estimates, and what a nested bootstrap overstates."""
    rng = np.random.default_rng(0)
    rates = rng.random((4000, 40, 1))
    scores = (rng.random((4000, 40, 4)) < rates).astype(float)
    spread = scores.mean(axis=(1, 2)).std()
    assert spread == pytest.approx(np.sqrt((1 / 12 + 1 / 6 / 4) / 40), rel=0.03)
    estimates = [standard_error([one[None]]) for one in scores[:400]]
    assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(spread, rel=0.03)
    again = (rng.random((4000, 40, 4)) < rates[:1]).astype(float).mean(axis=(1, 2)).std()
    estimates = [sampling_error([one[None]]) for one in scores[:400]]
    assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(
        np.sqrt(1 / 6 / 4 / 40), rel=0.03
    )
    assert again == pytest.approx(np.sqrt((rates[0] * (1 - rates[0])).mean() / 4 / 40), rel=0.05)


def test_students_interval_is_scipys() -> None:
    x = [0.1, 0.3, 0.2, 0.6]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(x), scipy.stats.sem(x))
    assert student(np.array(x)) == pytest.approx((0.3, low, high))
    mean, low, high = student(np.array([0.4]))
    assert mean == 0.4 and np.isnan(low) and np.isnan(high)


def swapped(after: np.ndarray, before: np.ndarray) -> float:
    """The same p value by going through every swap: values [P]."""
    found = (after - before).sum()
    every = [
        sum(sign * d for sign, d in zip(signs, after - before, strict=True))
        for signs in itertools.product((1, -1), repeat=len(after))
    ]
    return float(np.mean([abs(one) >= abs(found) - 1e-9 for one in every]))


def test_paired_test_counts_swaps() -> None:
    after, before = SCORES[:1], OTHER[:1]
    expected = swapped(after[0].mean(-1), before[0].mean(-1))
    assert paired_test([after], [before]) == pytest.approx(expected)
    assert paired_test([SCORES], [OTHER]) == pytest.approx(
        swapped(SCORES.mean((0, 2)), OTHER.mean((0, 2)))
    )
    assert paired_test([after], [after]) == 1.0
    # Ten problems, all better: two of 2^10 swaps are as extreme.
    assert paired_test([np.ones((1, 10, 2))], [np.zeros((1, 10, 2))]) == pytest.approx(2 / 1024)


def test_paired_test_weighs_benchmarks_equally() -> None:
    few, many = np.ones((1, 2, 1)), np.zeros((1, 6, 1))
    none = [np.zeros((1, 2, 1)), np.zeros((1, 6, 1))]
    # Only the swaps of the first two matter: all together or all against, 2 of 4.
    assert paired_test([few, many], none) == pytest.approx(0.5)


def nested(after: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws [R] of the difference that draw problems and then, anew, samples of each: [P, K]."""
    problems, k = after.shape
    drawn = rng.integers(problems, size=(400, problems))
    sides = [rng.binomial(k, side.mean(1)[drawn]).mean(1) / k for side in (after, before)]
    return sides[0] - sides[1]


def test_drawing_samples_too_would_cover_too_much() -> None:
    """Two models that are alike on every problem: 93 % and 99 % in the long run, docs/claims.md."""
    rng, trials = np.random.default_rng(2), 400
    hits, widths = np.zeros(2), np.zeros(2)
    for _ in range(trials):
        rates = rng.random((60, 1))
        after, before = (rng.random((2, 60, 4)) < rates).astype(float)
        ours = difference([after[None]], [before[None]], resamples=400)
        theirs = np.quantile(nested(after, before, rng), [0.025, 0.975])
        for i, (low, high) in enumerate((ours[1:], theirs)):
            hits[i] += low <= 0 <= high
            widths[i] += high - low
    assert 0.90 <= hits[0] / trials <= 0.965
    assert hits[1] / trials >= 0.975
    assert 1.25 <= widths[1] / widths[0] <= 1.45

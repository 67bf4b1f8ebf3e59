"""Rank correlations against scipy, and how often the test of clusters is wrong."""

import numpy as np
import pytest
from scipy import stats

from opd.stats.significance import cluster_difference, correlation, permutation_p, spearman


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 10, 60):
        a = rng.choice([-1.0, 1.0, 0.4], n)
        a[:2] = [-1, 1]
        f = rng.normal(size=n)
        assert spearman(a, f) == pytest.approx(stats.spearmanr(a, f).statistic)
    assert np.isnan(spearman([1, -1], [0, 1]))
    assert np.isnan(spearman([1, 1, 1], [0, 1, 2]))
    assert np.isnan(spearman([1, -1, 1], [2, 2, 2]))


def test_p_by_permutation() -> None:
    x = np.arange(12.0)
    rng = np.random.default_rng(1)
    assert permutation_p(x, x) < 1e-3
    y = rng.permutation(x)
    expected = stats.spearmanr(x, y).pvalue
    assert permutation_p(x, y) == pytest.approx(expected, abs=0.03)
    assert permutation_p(x[:2], x[:2]) is None
    # What is no number counts in neither.
    more = [np.append(values, other) for values, other in ((x, np.nan), (y, 0.0))]
    assert permutation_p(*more) == permutation_p(x, y)
    assert correlation(x, np.ones(12)).value is None


def test_one_kind_or_one_cluster_says_little() -> None:
    alone = cluster_difference([1.0, 2.0], [True, True], ["a", "b"])
    assert all(np.isnan(alone))
    single = cluster_difference([1.0, 3.0], [True, False], ["a", "a"])
    assert single[0] == -2 and np.isnan(single[1:]).all()
    same = cluster_difference([1.0, 0.5] * 3, [True, False] * 3, ["a", "a", "b", "b", "c", "c"])
    assert same == (0.5, 0.5, 0.5, 0.0)


@pytest.mark.parametrize("questions", [12, 36])
def test_the_bootstrap_is_wrong_as_often_as_it_says(questions: int) -> None:
    """No difference between correct and incorrect paths; questions differ, teachers share paths:
    Welch's test takes them for independent and is wrong far more often."""
    rng = np.random.default_rng(3)
    teachers, paths, runs = 8, 2, 400
    names = np.repeat([f"q{i:02d}" for i in range(questions)], 2 * paths * teachers)
    correct = np.tile(np.repeat([True, False], paths * teachers), questions)
    wrong = welch = 0
    for run in range(runs):
        # Of a question, of a question's kind of path, of a path, and of a cell.
        kinds = rng.normal(size=(questions, 1, 1, 1)) + 0.3 * rng.normal(size=(questions, 2, 1, 1))
        x = kinds + 0.5 * rng.normal(size=(questions, 2, paths, 1))
        x = (x + 0.5 * rng.normal(size=(questions, 2, paths, teachers))).ravel()
        wrong += cluster_difference(x, correct, names.tolist(), 500, run)[3] < 0.05
        kind = correct
        shared = 0.5 * rng.normal(size=(questions, 2, paths, 1))
        y = (shared + 0.1 * rng.normal(size=(questions, 2, paths, teachers))).ravel()
        welch += stats.ttest_ind(y[kind], y[~kind], equal_var=False).pvalue < 0.05
    assert 0.025 <= wrong / runs <= 0.085
    assert welch / runs > 0.2


def test_the_bootstrap_finds_a_difference() -> None:
    rng = np.random.default_rng(4)
    names = [f"q{i:02d}" for i in range(30) for _ in range(4)]
    correct = np.tile([True, True, False, False], 30)
    x = np.repeat(rng.normal(size=30), 4) + 0.5 * rng.normal(size=120) - 0.6 * correct
    difference, low, high, p = cluster_difference(x, correct, names)
    assert low < -0.6 < high and p < 1e-4 and difference == pytest.approx((low + high) / 2)

"""Numbers of paths, questions and teachers on hand-made ones; tests between kinds of paths."""

import numpy as np
import pytest
from scipy import stats

from opd.microscope.statistics import (
    Cell,
    by_question,
    cell,
    contrast,
    signal,
    values,
    weighted_cosine,
)

NAN = float("nan")
# Four nodes, one without a direction.
ALIGNMENT = [1.0, -1.0, 0.2, NAN]
RANGES = [0.4, 0.1, 0.5, 0.9]
ADVANTAGE = [0.1, -0.02, 0.0, 0.04]


def toy() -> Cell:
    depth = {"depth": [0, 1, 2, 3]}
    return cell("q", "t", 0, True, ALIGNMENT, RANGES, ADVANTAGE, depth)


def test_numbers_of_a_path_by_hand() -> None:
    one = toy()
    assert (one.nodes, one.undefined) == (3, 1)
    expected = {
        "cosine": 0.2 / 3,
        "positive_ratio": 2 / 3,
        "weighted_cosine": (0.4 - 0.1 + 0.1) / 1.0,
        "signal": (0.4 - 0.1 + 0.1) / 3,
        "teacher_advantage": 0.12 / 4,
        # Kept: the first and the third; then the first alone.
        "signal_positive": (0.4 + 0.1) / 2,
        "kept_positive_ratio": 2 / 3,
        "beats_positive_ratio": 1.0,
        "signal_above": 0.4,
        "kept_above_ratio": 1 / 3,
        "beats_above_ratio": 1.0,
        "rho_depth": stats.spearmanr([0, 1, 2], [1, -1, 0.2]).statistic,
    }
    assert one.numbers == pytest.approx(expected)


def test_the_mean_is_over_kept_nodes() -> None:
    """The paper's signal rises with the threshold: dropped nodes do not count as zero."""
    a, r = [0.1, 0.9, -0.5, 0.2], [0.2, 0.3, 0.4, 0.1]
    signals = [signal(a, r, t) for t in (None, 0.0, 0.3)]
    assert signals == pytest.approx(
        [(0.02 + 0.27 - 0.2 + 0.02) / 4, (0.02 + 0.27 + 0.02) / 3, 0.27]
    )
    assert np.isnan(signal([-0.1], [0.4], 0.0)) and np.isnan(weighted_cosine([NAN], [0.4]))
    none = cell("q", "t", 0, True, [NAN], [0.3], [0.0], {"depth": [0]})
    assert none.nodes == 0 and np.isnan(none.numbers["cosine"])
    assert none.numbers["teacher_advantage"] == 0


def made(question: str, teacher: str, correct: bool, value: float, path: int = 0) -> Cell:
    return Cell(question, teacher, path, correct, {"cosine": value}, 1, 0, 0.0)


def test_a_question_is_the_mean_of_its_paths_and_counts_once() -> None:
    cells = [
        made("a", "t", True, 0.2), made("a", "t", True, 0.4, 1), made("a", "t", False, 0.9, 2),
        made("b", "t", False, 0.1), made("b", "t", True, NAN, 1),
    ]  # fmt: skip
    assert by_question(cells, "cosine") == pytest.approx({"a": 0.5, "b": 0.1})
    found = values(cells)
    assert found["cosine"].value == pytest.approx(0.3)
    assert found["cosine_correct"].value == pytest.approx(0.3)
    assert found["cosine_incorrect"].value == pytest.approx(0.5)
    assert found["cosine_difference"].value == pytest.approx(-0.2)
    assert found["questions"].value == 2 and found["nodes"].value == 5
    assert values([]) == {}


def test_teachers_that_lack_different_questions_are_paired() -> None:
    """Two teachers that differ by 0.02 on every question; the second lacks one of 36. Their
    difference has the draws of plain resamples of the 36, far closer together than of either."""
    rng = np.random.default_rng(1)
    ids = [f"q{i:02d}" for i in range(36)]
    level = rng.normal(0.03, 0.1, 36)
    one = [made(id, "a", True, value) for id, value in zip(ids, level, strict=True)]
    other = [made(id, "b", True, value - 0.02) for id, value in zip(ids, level, strict=True)]
    del other[20]
    first, second = (values(cells, ids)["cosine"] for cells in (one, other))
    assert first.draws is not None and second.draws is not None
    taken = np.random.default_rng(0).multinomial(36, np.full(36, 1 / 36), 2000)
    known = np.arange(36) != 20
    expected = [
        np.average(level, weights=w) - np.average(level[known] - 0.02, weights=w[known])
        for w in taken
    ]
    found = first.draws - second.draws
    low, high = np.quantile(found, [0.025, 0.975])
    np.testing.assert_allclose((low, high), np.quantile(expected, [0.025, 0.975]), atol=0.001)
    assert np.corrcoef(first.draws, second.draws)[0, 1] > 0.95
    assert high - low < 0.3 * np.ptp(np.quantile(first.draws, [0.025, 0.975]))
    assert second.value == pytest.approx(np.mean(level[known]) - 0.02)
    assert values(other, ids)["questions"].value == 35


def test_spread_is_over_all_nodes() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.choice([-1.0, 1.0, 0.3], n) for n in (5, 9, 20)]
    cells = [
        cell(f"q{i % 2}", "t", i, i == 0, a, np.ones(len(a)), a, {}) for i, a in enumerate(scores)
    ]
    assert values(cells)["cosine_spread"].value == pytest.approx(np.concatenate(scores).std())


def test_contrast_by_scipy() -> None:
    rng = np.random.default_rng(2)
    cells = [
        made(f"q{q}", f"t{t}", right, rng.normal(0.05 * right), path)
        for q in range(6)
        for t in range(2)
        for path, right in enumerate((True, True, False, False))
    ]
    good = [c.numbers["cosine"] for c in cells if c.correct]
    bad = [c.numbers["cosine"] for c in cells if not c.correct]
    found = contrast(cells, "cosine")
    assert found.p_welch == pytest.approx(stats.ttest_ind(good, bad, equal_var=False).pvalue)
    means = np.array([c.numbers["cosine"] for c in cells]).reshape(12, 2, 2).mean(axis=2)
    assert found.p_paired == pytest.approx(stats.ttest_rel(means[:, 0], means[:, 1]).pvalue)
    assert found.difference == pytest.approx(np.mean(good) - np.mean(bad))
    assert found.low < found.difference < found.high
    assert found.n == (24, 24, 12, 6)
    alone = contrast([one for one in cells if one.correct], "cosine")
    assert np.isnan(alone.difference) and np.isnan(alone.p_welch) and np.isnan(alone.p_paired)
    single = contrast(cells[:4], "cosine")
    assert np.isfinite(single.difference) and np.isnan(single.p_cluster)

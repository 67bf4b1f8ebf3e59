"""Draws of probes: AUROC against counting pairs, pairing, and where there is nothing to draw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from opd.stats import draws, intervals


def naive(scores: Any, correct: Any) -> float:
    """Pairs of a correct and an incorrect rollout, counted one by one."""
    won = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, x in zip(scores, correct, strict=True)
        if x
        for b, y in zip(scores, correct, strict=True)
        if not y
    ]
    return sum(won) / len(won)


def test_auroc_by_hand() -> None:
    """Pairs: 3 > 1, 3 > 2, 2 > 1, 2 = 2: three and a half of four."""
    found = draws.auroc([3.0, 2.0, 1.0, 2.0], [True, True, False, False], np.ones((1, 4)))
    assert (found.value, found.n) == (3.5 / 4, 4)
    assert found.draws == pytest.approx([3.5 / 4])


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_won_pairs(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=float)
    correct = np.array([right for _, right in rows])
    found = draws.auroc(scores, correct, np.ones((1, len(rows))))
    if correct.all() or not correct.any():
        assert found == (None, None, len(rows), (0.0, 0.0))
    else:
        assert found.value == pytest.approx(naive(scores, correct))
        u = mannwhitneyu(scores[correct], scores[~correct]).statistic
        assert found.value == pytest.approx(u / correct.sum() / (~correct).sum())


def test_a_draw_counts_every_rollout_as_often_as_it_was_drawn() -> None:
    """Also for AUROC: the same as of a list in which each stands that often."""
    rng = np.random.default_rng(5)
    prompts = [f"p{i}" for i in rng.integers(0, 6, 40)]
    scores, correct = rng.integers(0, 9, 40).astype(float), rng.random(40) < 0.4
    weights = draws.multiplicities(prompts, 20)
    mean, auroc = draws.mean(scores, np.ones(40), weights), draws.auroc(scores, correct, weights)
    for r, row in enumerate(weights.astype(int)):
        again = np.repeat(np.arange(40), row)
        assert mean.draws[r] == pytest.approx(scores[again].mean())
        assert auroc.draws[r] == pytest.approx(naive(scores[again], correct[again]))


def test_a_prompt_is_drawn_with_all_of_its_rollouts() -> None:
    weights = draws.multiplicities(["a", "b", "a", "c"], 500)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert set(weights[:, [0, 1, 3]].sum(axis=1)) == {3}
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.15)


def test_the_same_prompts_are_drawn_alike_in_every_probe() -> None:
    some = draws.multiplicities(["a", "b", "c"])
    assert some.shape == (draws.RESAMPLES, 3)
    others = draws.multiplicities(["c", "c", "a", "b"])
    assert np.array_equal(others[:, [2, 3, 0]], some) and np.array_equal(others[:, 1], some[:, 2])


def test_intervals_are_as_wide_as_prompts_differ() -> None:
    """The standard error of a mean over prompts whose rollouts hang together, by its formula; what
    other rollouts of the same prompts would show is in it and is not added."""
    rng = np.random.default_rng(1)
    rate = rng.random(200)
    rollouts = rng.random((200, 4)) < rate[:, None]
    prompts = [f"{i:03d}" for i in range(200) for _ in range(4)]
    weights = draws.multiplicities(prompts)
    found = draws.mean(rollouts.ravel(), np.ones(800), weights)
    assert found.draws is not None
    assert found.draws.std() == pytest.approx(rollouts.mean(1).std() / np.sqrt(200), rel=0.06)


def test_a_draw_in_which_it_is_not_defined_counts_as_the_value() -> None:
    """Two prompts, all of the correct ones from one of them: a quarter of the draws lack each."""
    weights = draws.multiplicities(["a", "a", "b"])
    found = draws.auroc([1.0, 2.0, 0.0], [True, True, False], weights)
    assert found.value == 1 and np.array_equal(found.draws, np.ones(draws.RESAMPLES))
    lacking = weights[:, 2] == 0
    assert 0.2 < lacking.mean() < 0.3
    half = draws.auroc([1.0, 2.0, 1.5], [True, True, False], weights)
    assert half.value == 0.5 and np.all(half.draws[lacking] == 0.5)


def test_nothing_to_measure_has_no_value() -> None:
    weights = draws.multiplicities(["a", "b"])
    assert draws.mean([0, 0], [0, 0], weights) == (None, None, 0, (0.0, 0.0))
    none = draws.auroc([1, 2], [True, True], weights)
    assert draws.summary({"auroc": none}) == {
        "auroc": {"value": None, "low": None, "high": None, "n": 2}
    }
    assert draws.difference(none, none).value is None


def test_a_difference_is_paired() -> None:
    prompts = ["a", "a", "b", "c"]
    weights = draws.multiplicities(prompts)
    one, other = (
        draws.share([0.5, 1, 0, 1], prompts, weights),
        draws.share([0.25, 0.75, -0.25, 0.75], prompts, weights),
    )
    found = draws.difference(one, other)
    assert found.value == pytest.approx(0.25) and found.draws == pytest.approx(0.25)
    same = draws.difference(one, one)
    assert same.value == 0 and not same.draws.any()


def test_draws_are_read_as_they_were_written(tmp_path: Path) -> None:
    """By name, in order, of whatever number; to seven digits, and on the same side of nothing."""
    first, second = np.random.default_rng(0).normal(size=(2, 2000))
    values = {
        "b": draws.Value(0.0, first, 1),
        "missing": draws.Value(None, None, 0),
        "a": draws.Value(0.0, np.array([0.0, -1e-30, 1e-30]), 1),
        "c": draws.Value(0.0, second, 1),
    }
    draws.write(tmp_path, values, {})
    read = draws.read_draws(tmp_path / "draws.parquet")
    assert [*read] == ["b", "a", "c"]
    assert read["b"] == pytest.approx(first, rel=1e-7) and read["c"] == pytest.approx(second)
    assert [*np.sign(read["a"])] == [0, -1, 1]
    assert (tmp_path / "draws.parquet").stat().st_size < 4000 * 4
    draws.write(tmp_path, {"missing": values["missing"]}, {})
    assert draws.read_draws(tmp_path / "draws.parquet") == {}


@pytest.mark.parametrize("right", [0, 1])
def test_few_prompts_that_agree_prove_little(right: int) -> None:
    """The exact binomial bound, as the intervals of evaluations have it."""
    prompts = [f"{i}" for i in range(12) for _ in range(2)]
    found = draws.share([right] * 24, prompts, draws.multiplicities(prompts))
    reference = intervals.interval([np.full((1, 12, 2), right)])
    assert draws.interval(found) == pytest.approx((reference.low, reference.high))
    low, high = draws.interval(draws.difference(found, found))
    assert high == -low == pytest.approx(reference.high - reference.low)

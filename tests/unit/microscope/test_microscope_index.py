"""Counts on analysed paths against a plain recount of every prefix, however rollouts come."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.core.errors import UserError
from opd.core.security import refuse_code
from opd.microscope.path_index import Counts, PathIndex

Rollout = list[int]


def recount(
    rollouts: list[Rollout], correct: list[bool], path: Rollout, forced: list[int] | None = None
) -> dict[Any, Any]:
    """(depth, token) -> (visits, successes) at every node of a path, rollout by rollout."""
    visits: Counter[tuple[int, int]] = Counter()
    successes: Counter[tuple[int, int]] = Counter()
    firsts = [max(0, f - 1) for f in forced or [0] * len(rollouts)]
    for rollout, right, first in zip(rollouts, correct, firsts, strict=True):
        for depth in range(first, len(path)):
            if len(rollout) > depth and rollout[:depth] == path[:depth]:
                visits[depth, rollout[depth]] += 1
                successes[depth, rollout[depth]] += right
    return {key: (n, successes[key]) for key, n in visits.items()}


def found(one: PathIndex, path: int, counts: Counts = "unforced") -> dict[Any, Any]:
    return {(d, t): (n, s) for d, t, n, s in one.children(path, counts).rows()}


ROLLOUTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(first=ROLLOUTS, later=ROLLOUTS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_a_recount(
    tmp_path_factory: pytest.TempPathFactory, first: Any, later: Any, data: Any
) -> None:
    """Paths known before, between and after the rollouts come; also one that no rollout is."""
    both = [*first, *later]
    paths = [data.draw(st.sampled_from([r for r, _ in both])) for _ in range(2)]
    paths.append(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12)))
    one = PathIndex(tmp_path_factory.mktemp("index"))
    assert one.add_paths(paths[:1]) == [0]
    one.append([r for r, _ in first], [c for _, c in first])
    forced = [data.draw(st.integers(0, len(r))) for r, _ in later]
    assert one.add_paths(paths[1:2]) == [1]
    one.append([r for r, _ in later], [c for _, c in later], prefix=forced)
    assert one.add_paths(paths[2:]) == [2]
    rollouts, correct = [r for r, _ in both], [c for _, c in both]
    assert len(one.records) == len(both)
    for number, path in enumerate(paths):
        expected = recount(rollouts, correct, path, [0] * len(first) + forced)
        assert found(one, number) == expected
        expected = recount(rollouts, correct, path)
        assert found(one, number, "whole") == expected


def test_selected_rollouts_count_on_no_path_unless_as_the_paper_counts(tmp_path: Path) -> None:
    rollouts = [[1, 2, 3], [1, 2, 4], [1, 5, 3], [1, 2, 3], [6, 6, 6]]
    correct = [True, False, False, False, True]
    one = PathIndex(tmp_path)
    one.append(rollouts, correct)
    one.add_paths([rollouts[0], rollouts[2]], [0, 2])
    one.append([[1, 2, 3]], [True], prefix=[2])
    # Of 1, 2, 3 the second and its equal, and the one that was sampled after 1, 2.
    assert found(one, 0) == {(0, 1): (2, 0), (0, 6): (1, 1), (1, 2): (3, 1), (2, 3): (2, 1),
                             (2, 4): (1, 0)}  # fmt: skip
    assert found(one, 1) == {(0, 1): (2, 0), (0, 6): (1, 1), (1, 2): (3, 1)}
    assert found(one, 0, "whole") == recount([*rollouts, [1, 2, 3]], [*correct, True], rollouts[0])


def test_long_rollouts_and_an_index_that_is_opened_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trunk = rng.integers(0, 50, 700).tolist()
    rollouts = [
        trunk[:cut] + rng.integers(0, 50, rng.integers(1, 80)).tolist()
        for cut in rng.integers(0, 700, 120)
    ]
    correct = (rng.random(120) < 0.5).tolist()
    one = PathIndex(tmp_path)
    paths = [rollouts[3], trunk, rollouts[7]]
    one.add_paths(paths)
    for start in range(0, 60, 7):
        one.append(rollouts[start : start + 7], correct[start : start + 7])
    again = PathIndex(tmp_path)
    assert len(again.records) == 63
    again.append(rollouts[63:], correct[63:], prefix=np.arange(57))
    again.add_paths(paths)
    one.append(rollouts[63:], correct[63:], prefix=np.arange(57))
    for number, path in enumerate(paths):
        assert found(one, number) == found(again, number)
        assert found(again, number, "whole") == recount(rollouts, correct, path)
    assert [again.rollout(i).tolist() for i in range(120)] == rollouts
    assert again.records["prefix"].tolist() == [0] * 63 + [*range(57)]
    assert again.records["correct"].tolist() == correct


def test_another_stage_may_read_it(tmp_path: Path) -> None:
    PathIndex(tmp_path / "00000").append([[1, 2]], [True])
    assert len([*tmp_path.rglob("*.*")]) == 2
    refuse_code(tmp_path)


def test_an_empty_rollout_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    one = PathIndex(tmp_path)
    with pytest.raises(UserError, match="no token"):
        one.append([[1], []], [True, True])
    assert len(one.records) == 0 and not (tmp_path / "tokens.i32").exists()
    one.append([], [])
    one.add_paths([[4, 4]])
    assert found(one, 0) == {}

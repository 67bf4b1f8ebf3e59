"""Windows, rankings and top-ups, on hand-made candidates and by counting what is asked for."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from opd.microscope import targeting
from opd.microscope.path_index import Children, Counts, PathIndex
from opd.microscope.targeting import Candidates, choose, top_up, windows

Array = np.ndarray


def test_windows_are_the_papers() -> None:
    found = [(w.start + 1, w.stop) for w in windows(31_000, 50, 2.0)]  # counted from one
    assert found[:5] == [(1, 50), (51, 150), (151, 350), (351, 750), (751, 1550)]
    assert len(found) == 10 and found[-1][1] == 31_000
    assert [len(w) for w in windows(7, 2, 1.0)] == [2, 2, 2, 1]
    assert list(windows(0, 50, 2.0)) == []


def candidates(rows: list[tuple[int, int, float, float, float]]) -> Candidates:
    return Candidates(*(np.array(column) for column in zip(*rows, strict=True)))


def test_both_rankings_in_every_window() -> None:
    """By |P (l - KL)| and by |Q - P|; the first window holds depths 0 and 1."""
    found = candidates(
        [
            (0, 7, 0.9, 0.6, 0.2),  # P (l - KL) = 0.9 (0.405 - 0.2) = 0.18; Q - P: 0.30
            (0, 8, 0.1, 0.4, 0.2),  # 0.1 (-1.386 - 0.2) = 0.16; 0.30
            (1, 7, 0.5, 0.1, 0.5),  # 0.5 (1.609 - 0.5) = 0.55; 0.40
            (1, 9, 0.03, 0.9, 0.5),  # 0.03 (-3.4 - 0.5) = 0.12; 0.87
            (2, 5, 0.5, 0.5, 0.0),  # even: nothing to sample for
            (3, 6, 0.5, 0.45, 0.0),
        ]
    )
    np.testing.assert_allclose(
        targeting.divergence_weight(found)[:4], [0.185, 0.159, 0.555, 0.117], atol=1e-3
    )
    assert choose(found, 4, 1, 0, 2, 2.0) == [(3, 6), (1, 7)]
    assert choose(found, 4, 0, 1, 2, 2.0) == [(3, 6), (1, 9)]
    assert choose(found, 4, 1, 1, 2, 2.0) == [(3, 6), (1, 9), (1, 7)]
    assert choose(found, 4, 9, 9, 50, 2.0) == [(3, 6), (1, 9), (1, 7), (0, 8), (0, 7)]
    # Deeper candidates than the path are none of its windows'.
    assert choose(found, 1, 9, 9, 50, 2.0) == [(0, 8), (0, 7)]


def counted(rollouts: list[list[int]], paths: list[list[int]], folder: Path) -> list[Children]:
    index = PathIndex(folder)
    index.append(rollouts, np.zeros(len(rollouts), dtype=bool))
    return [index.children(i, "whole") for i in index.add_paths(paths)]


def test_top_up_counts_what_passes_above(tmp_path: Path) -> None:
    """Rollouts planned below visit what is above, so less is asked for there."""
    paths = [np.array([1, 2, 3, 4]), np.array([1, 2, 9, 9])]
    children = counted(
        [[1, 2, 3, 4]] * 3 + [[1, 2, 9, 9]] * 2, [p.tolist() for p in paths], tmp_path
    )
    chosen = {0: [(3, 4), (2, 9), (1, 2), (0, 5)], 1: [(2, 9), (1, 2)]}
    found = top_up(chosen, paths, children, 10, "whole")
    # 1 2 3 4 has 3; 1 2 9 has 2, and both paths name it; 1 2 then has 5 + 7 + 8 = 20 already.
    assert [(p.depth, p.token, p.rollouts) for p in found] == [(3, 4, 7), (2, 9, 8), (0, 5, 10)]
    assert top_up(chosen, paths, children, 2, "whole")[-1].token == 5
    # Where forced passages do not count, 1 2 has 5 and lacks 5.
    apart = top_up(chosen, paths, children, 10)
    assert [(p.depth, p.token, p.rollouts) for p in apart][2:] == [(1, 2, 5), (0, 5, 10)]
    assert top_up({0: []}, paths, children, 10) == []


@pytest.mark.parametrize("counts", ["whole", "unforced"])
@pytest.mark.parametrize("seed", range(5))
def test_targeted_sampling_alone_takes_nothing_beyond_the_least(
    seed: int, counts: Counts, tmp_path: Path
) -> None:
    """Whatever is chosen, no prefix is asked for more often than it lacks, and afterwards each has
    enough."""
    rng = np.random.default_rng(seed)
    rollouts = rng.integers(0, 3, (40, 6)).tolist()
    paths = [np.array(r) for r in rollouts[:3]]
    index = PathIndex(tmp_path)
    index.append(rollouts, np.zeros(40, dtype=bool))
    index.add_paths(paths)
    before = [index.children(i, counts) for i in range(3)]
    chosen = {i: [(d, int(t)) for d in range(6) for t in rng.integers(0, 3, 2)] for i in range(3)}
    asked: Counter[tuple[int, ...]] = Counter()
    for pick in top_up(chosen, paths, before, 12, counts):
        prefix = (*paths[pick.path][: pick.depth].tolist(), pick.token)
        assert prefix not in asked
        asked[prefix] += pick.rollouts
        have = sum(tuple(r[: len(prefix)]) == prefix for r in rollouts)
        assert have + pick.rollouts <= 12
        made = [[*prefix, *rng.integers(0, 3, 6 - len(prefix))] for _ in range(pick.rollouts)]
        index.append(made, np.zeros(len(made), dtype=bool), prefix=[len(prefix)] * len(made))
    for path, some in chosen.items():
        found = index.children(path, counts)
        visits = {(d, t): n for d, t, n, _ in found.rows()}
        assert all(visits[one] >= 12 for one in some)
    # What has enough is left alone: another teacher that picks the same asks for nothing.
    after = [index.children(i, counts) for i in range(3)]
    assert top_up(chosen, paths, after, 12, counts) == []

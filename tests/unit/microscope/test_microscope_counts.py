"""What counting whole rollouts does to the paper's main comparison, that of correct and incorrect
paths, on a student whose chances of success are known. docs/microscope.md has the numbers."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from opd.microscope.alignment import Nodes, align, significant
from opd.microscope.counts import READINGS, Counts
from opd.microscope.path_index import PathIndex
from opd.microscope.targeting import top_up
from opd.stats import intervals

Array = np.ndarray
FORKS, ROLLOUTS, LEAST = 30, 200, 100
QUESTIONS = 30


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Student:
    """A response is a row of forks with two ways each, chosen independently; each way taken adds to
    the log-odds of success."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.p = rng.beta(2, 2, FORKS)
        self.effect = rng.normal(0, 0.5, FORKS)
        self.base = rng.normal(0, 0.7) - (self.p * self.effect).sum()

    def sample(self, n: int, prefix: list[int]) -> tuple[Array, Array]:
        """Responses [n, FORKS] that begin with a prefix, and their chances of success [n]."""
        ways = (self.rng.random((n, FORKS)) < self.p).astype(int)
        ways[:, : len(prefix)] = prefix
        return ways, sigmoid(self.base + ways @ self.effect)

    def advantage(self, nodes: Nodes) -> float:
        """Mean advantage of a teacher that is the student made sharper, whichever way succeeds."""
        of_one = self.p[nodes.depth[nodes.node]]
        log_p = np.log(np.where(nodes.token == 1, of_one, 1 - of_one))
        return float(align(nodes, log_p, 2 * log_p).advantage.mean())

    def true(self, path: list[int]) -> Nodes:
        """The nodes of a path with the chances of success after every token, of a thousand."""
        chances = [
            self.sample(500, [*path[:depth], way])[1].mean()
            for depth in range(FORKS)
            for way in (0, 1)
        ]
        depth, starts = np.arange(FORKS), np.arange(0, 2 * FORKS, 2)
        visits = np.full(2 * FORKS, 1000)
        return Nodes(depth, starts, np.tile([0, 1], FORKS), visits, 1000 * np.array(chances))


def grown(student: Student, folder: Path) -> Iterator[tuple[Counts, PathIndex]]:
    """The rollouts of a question, grown as with ``both``, as they are when either counts are read.
    Every token of every path is picked. Nothing where it lacks two paths of either kind."""
    ways, chance = student.sample(ROLLOUTS, [])
    right = student.rng.random(ROLLOUTS) < chance
    if min(right.sum(), (~right).sum()) < 2:
        return
    paths = [ways[i] for i in (*np.flatnonzero(right)[:2], *np.flatnonzero(~right)[:2])]
    index = PathIndex(folder)
    index.append(ways.tolist(), right)
    index.add_paths([path.tolist() for path in paths])
    chosen = {i: [(depth, way) for depth in range(FORKS) for way in (0, 1)] for i in range(4)}
    for reading in READINGS["both"]:
        children = [index.children(i, reading) for i in range(4)]
        for pick in top_up(chosen, paths, children, LEAST, reading):
            prefix = [*paths[pick.path][: pick.depth].tolist(), pick.token]
            ways, chance = student.sample(pick.rollouts, prefix)
            right = student.rng.random(len(chance)) < chance
            index.append(ways.tolist(), right, prefix=[len(prefix)] * len(ways))
        yield reading, index


def test_whole_counts_tell_paths_apart_where_the_teacher_does_not(tmp_path: Path) -> None:
    """The two kinds of paths differ as they do in truth where forced passages do not count; where
    they do, which takes half as many rollouts, they differ by more."""
    rng = np.random.default_rng(1)
    errors: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(list)

    def difference(student: Student, of_paths: list[Nodes]) -> float:
        """Advantage on the two correct paths less that on the two incorrect ones."""
        found = [student.advantage(nodes) for nodes in of_paths]
        return float(np.mean(found[:2]) - np.mean(found[2:]))

    for number in range(QUESTIONS):
        student, true = Student(rng), None
        for reading, index in grown(student, tmp_path / str(number)):
            counts[reading].append(len(index.records) - ROLLOUTS)
            if true is None:
                of_paths = [student.true(path.tolist()) for path in index.paths]
                true = difference(student, of_paths)
                errors["true"].append(true)
            children = [index.children(i, reading) for i in range(4)]
            read = difference(student, [significant(one, 20) for one in children])
            errors[reading].append(read - true)
    found = {name: intervals.student(np.array(values)) for name, values in errors.items()}
    assert abs(found["true"].mean) < 0.0005
    assert found["unforced"].low < 0 < found["unforced"].high < 0.0007 < found["whole"].low
    assert sum(counts["whole"]) / sum(counts["unforced"]) < 0.6

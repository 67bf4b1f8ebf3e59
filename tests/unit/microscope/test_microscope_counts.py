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
QUESTIONS = 30


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


class Student:
    """A response is a row of forks with two ways each, chosen independently; each way taken adds to
    the log-odds of success."""

    forks, rollouts, least, significant = 30, 200, 100, 20

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.p = rng.beta(2, 2, self.forks)
        self.effect = rng.normal(0, 0.5, self.forks)
        self.base = rng.normal(0, 0.7) - (self.p * self.effect).sum()

    def sample(self, n: int, prefix: list[int]) -> tuple[Array, Array]:
        """Responses [n, forks] that begin with a prefix, and their chances of success [n]."""
        ways = (self.rng.random((n, self.forks)) < self.p).astype(int)
        ways[:, : len(prefix)] = prefix
        return ways, sigmoid(self.base + ways @ self.effect)

    def scores(self, nodes: Nodes) -> Array:
        """Mean advantage and mean alignment of a teacher that is the student made sharper,
        whichever way succeeds."""
        of_one = self.p[nodes.depth[nodes.node]]
        log_p = np.log(np.where(nodes.token == 1, of_one, 1 - of_one))
        scores = align(nodes, log_p, 2 * log_p)
        return np.array([scores.advantage.mean(), np.nanmean(scores.alignment)])

    def difference(self, of_paths: list[Nodes]) -> Array:
        """Scores on the two correct paths less those on the two incorrect ones."""
        found = [self.scores(nodes) for nodes in of_paths]
        return np.mean(found[:2], axis=0) - np.mean(found[2:], axis=0)

    def true(self, path: list[int]) -> Nodes:
        """The nodes of a path with the chances of success after every token, of a thousand."""
        chances = [
            self.sample(500, [*path[:depth], way])[1].mean()
            for depth in range(self.forks)
            for way in (0, 1)
        ]
        depth, starts = np.arange(self.forks), np.arange(0, 2 * self.forks, 2)
        visits = np.full(2 * self.forks, 1000)
        return Nodes(depth, starts, np.tile([0, 1], self.forks), visits, 1000 * np.array(chances))


class Indifferent(Student):
    """One whose ways have nothing to do with what becomes of them."""

    forks, rollouts, least, significant = 4, 12, 6, 3

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.p = rng, np.full(self.forks, 0.8)
        self.effect, self.base = np.zeros(self.forks), np.float64(0)


def grown(
    student: Student, folder: Path, readings: tuple[Counts, ...]
) -> Iterator[tuple[Counts, PathIndex]]:
    """The rollouts of a question, grown for one reading after the other, as they are when each is
    read. Every token of every path is picked. Nothing where it lacks two paths of either kind."""
    ways, chance = student.sample(student.rollouts, [])
    right = student.rng.random(len(chance)) < chance
    if min(right.sum(), (~right).sum()) < 2:
        return
    selected = [*np.flatnonzero(right)[:2].tolist(), *np.flatnonzero(~right)[:2].tolist()]
    paths = [ways[i] for i in selected]
    index = PathIndex(folder)
    index.append(ways.tolist(), right)
    index.add_paths([path.tolist() for path in paths], selected)
    every = [(depth, way) for depth in range(student.forks) for way in (0, 1)]
    for reading in readings:
        children = [index.children(i, reading) for i in range(4)]
        made, chances, lengths = [], [], []
        for pick in top_up(dict.fromkeys(range(4), every), paths, children, student.least, reading):
            prefix = [*paths[pick.path][: pick.depth].tolist(), pick.token]
            ways, chance = student.sample(pick.rollouts, prefix)
            made += ways.tolist()
            chances += chance.tolist()
            lengths += [len(prefix)] * len(ways)
        right = student.rng.random(len(chances)) < chances
        index.append(made, right, prefix=lengths)
        yield reading, index


def read(student: Student, index: PathIndex, reading: Counts) -> Array:
    """Difference of the two kinds of paths as an alignment reads it."""
    children = [index.children(i, reading) for i in range(4)]
    return student.difference([significant(one, student.significant) for one in children])


def test_whole_counts_tell_paths_apart_where_the_teacher_does_not(tmp_path: Path) -> None:
    """The two kinds of paths differ as they do in truth where forced passages do not count; where
    they do, which takes half as many rollouts, they differ by more."""
    rng = np.random.default_rng(1)
    errors: dict[str, list[Array]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(list)
    for number in range(QUESTIONS):
        student, true = Student(rng), None
        for reading, index in grown(student, tmp_path / str(number), READINGS["both"]):
            counts[reading].append(len(index.records) - student.rollouts)
            if true is None:
                true = student.difference([student.true(path.tolist()) for path in index.paths])
                errors["true"].append(true)
            errors[reading].append(read(student, index, reading) - true)
    advantage, cosine = (
        {name: intervals.student(np.array(values)[:, i]) for name, values in errors.items()}
        for i in range(2)
    )
    assert abs(advantage["true"].mean) < 0.0005
    assert advantage["unforced"].low < 0 < advantage["unforced"].high < 0.0007
    assert advantage["whole"].low > 0.0007
    assert abs(cosine["true"].mean) < 0.005
    assert cosine["unforced"].low < 0 < cosine["unforced"].high < 0.02 < cosine["whole"].low
    assert sum(counts["whole"]) / sum(counts["unforced"]) < 0.6


def test_paths_that_were_selected_by_their_outcome_do_not_count(tmp_path: Path) -> None:
    """Where no token has to do with the outcome, the two kinds of paths are alike. The path's own
    rollout, counted on it, would make its tokens succeed on a correct path alone; all but that one
    would have a correct rollout fewer on a correct path than on an incorrect one."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(1000):
        student = Indifferent(rng)
        for reading, index in grown(student, tmp_path / str(number), ("unforced",)):
            difference = read(student, index, reading)
            if np.isfinite(difference).all():
                found.append(difference)
    advantage, cosine = (intervals.student(values) for values in np.transpose(found))
    assert advantage.low < 0 < advantage.high < 0.002
    assert cosine.low < 0 < cosine.high < 0.05

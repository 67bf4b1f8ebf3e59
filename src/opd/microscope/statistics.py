"""From scores of nodes to numbers of paths, questions and teachers, and tests between them (the
paper, sections 3 and 4; what it leaves open is marked "ours").

A cell is one path as one teacher sees it. Nodes without a direction (alignment NaN) are left out of
everything but the teacher advantage. Averages go from nodes to a path, from the cells of a question
to the question, from questions to the number that is shown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ttest_1samp, ttest_ind

from opd.stats import draws
from opd.stats.intervals import Array
from opd.stats.significance import cluster_difference, spearman

# Thresholds of the oracle selection (Table 2).
THRESHOLDS = {"positive": 0.0, "above": 0.3}
# What Spearman's correlation with the alignment is worked out for (Table 5).
FEATURES = ("depth", "kl_nats", "js_nats", "l2", "similarity")
MEASURES = ("cosine", "positive_ratio", "weighted_cosine", "signal", "teacher_advantage")


class Cell(NamedTuple):
    """Of one path as one teacher sees it: numbers by name (``MEASURES``, ``signal_NAME``,
    ``kept_NAME_ratio``, ``beats_NAME_ratio``, ``rho_FEATURE``), NaN where there is none; ``nodes``
    with a direction, those ``undefined`` without, and the ``variance`` of the alignment."""

    prompt_id: str
    teacher: str
    path: int
    correct: bool
    numbers: dict[str, float]
    nodes: int
    undefined: int
    variance: float


def signal(alignment: ArrayLike, ranges: ArrayLike, threshold: float | None = None) -> float:
    """Mean of success range x alignment over the nodes that are kept: all, or those of an alignment
    above the threshold (Table 2; that the mean is over kept nodes is inferred). NaN for none."""
    a, r = np.asarray(alignment, dtype=np.float64), np.asarray(ranges, dtype=np.float64)
    kept = np.isfinite(a) if threshold is None else a > threshold
    return float((a * r)[kept].mean()) if kept.any() else float("nan")


def weighted_cosine(alignment: ArrayLike, ranges: ArrayLike) -> float:
    """Sum of range x alignment over the sum of ranges (the weight is the paper's, the division
    inferred). NaN where there is no node."""
    a, r = np.asarray(alignment, dtype=np.float64), np.asarray(ranges, dtype=np.float64)
    kept = np.isfinite(a)
    return float((a * r)[kept].sum() / r[kept].sum()) if kept.any() else float("nan")


def cell(
    question: str,
    teacher: str,
    path: int,
    correct: bool,
    alignment: ArrayLike,
    ranges: ArrayLike,
    advantage: ArrayLike,
    features: Mapping[str, ArrayLike],
) -> Cell:
    """Numbers of one path from its nodes' alignment, success range, teacher advantage and features,
    [U] each."""
    a, r = np.asarray(alignment, dtype=np.float64), np.asarray(ranges, dtype=np.float64)
    directed = a[np.isfinite(a)]
    of_all = signal(a, r)
    numbers = {
        "cosine": _mean(directed),
        "positive_ratio": _mean(directed > 0),
        "weighted_cosine": weighted_cosine(a, r),
        "signal": of_all,
        "teacher_advantage": _mean(np.asarray(advantage, dtype=np.float64)),
    }
    for name, threshold in THRESHOLDS.items():
        of_kept = signal(a, r, threshold)
        numbers[f"signal_{name}"] = of_kept
        numbers[f"kept_{name}_ratio"] = _mean(directed > threshold)
        beats = float(of_kept > of_all) if np.isfinite(of_kept) else float("nan")
        numbers[f"beats_{name}_ratio"] = beats
    numbers |= {f"rho_{name}": spearman(a, feature) for name, feature in features.items()}
    spread = float(directed.var()) if len(directed) else 0.0
    undefined = len(a) - len(directed)
    return Cell(question, teacher, path, correct, numbers, len(directed), undefined, spread)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def by_question(cells: Iterable[Cell], name: str) -> dict[str, float]:
    """Mean over the cells of each question that has one with a number, questions sorted."""
    numbers: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        if np.isfinite(cell.numbers[name]):
            numbers[cell.prompt_id].append(cell.numbers[name])
    return {question: float(np.mean(numbers[question])) for question in sorted(numbers)}


class Contrast(NamedTuple):
    """Correct less incorrect paths: the difference, its 95 % interval, and p by three tests; n is
    the number of cells of both kinds, of pairs, and of questions. NaN where a test has too few."""

    difference: float
    low: float
    high: float
    p_welch: float
    p_paired: float
    p_cluster: float
    n: tuple[int, int, int, int]


def contrast(cells: Sequence[Cell], name: str) -> Contrast:
    """Whether a number differs between correct and incorrect paths.

    The paper does not name its test; Welch's t over cells reproduces its p values, and treats the
    teachers that share a path as independent, which they are not. So beside it: a paired t over
    (question, teacher), means of both kinds of paths, and a bootstrap that draws whole questions,
    whose interval this is.
    """
    known = [cell for cell in cells if np.isfinite(cell.numbers[name])]
    values = np.array([cell.numbers[name] for cell in known])
    right = np.array([cell.correct for cell in known], dtype=bool)
    kinds = values[right], values[~right]
    welch = paired = float("nan")
    if min(map(len, kinds)) >= 2 and any(np.ptp(kind) for kind in kinds):
        welch = float(ttest_ind(*kinds, equal_var=False).pvalue)
    sides: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for cell in known:
        sides[cell.prompt_id, cell.teacher][not cell.correct].append(cell.numbers[name])
    pairs = np.array([np.mean(a) - np.mean(b) for a, b in sides.values() if a and b])
    if len(pairs) >= 2 and np.ptp(pairs):
        paired = float(ttest_1samp(pairs, 0.0).pvalue)
    questions = [cell.prompt_id for cell in known]
    difference, low, high, cluster = cluster_difference(values, right, questions)
    n = (int(right.sum()), int((~right).sum()), len(pairs), len(set(questions)))
    return Contrast(difference, low, high, welch, paired, cluster, n)


def values(cells: Sequence[Cell], prompt_ids: Iterable[str] = ()) -> dict[str, draws.Value]:
    """Values of a probe by name, with bootstrap draws of questions: every number of the cells, over
    all paths (NAME), over the correct and the incorrect ones (NAME_correct, NAME_incorrect) and the
    difference of these (NAME_difference); cosine_spread, the standard deviation over nodes; and the
    counts nodes, undefined, cells_correct, cells_incorrect, paths and questions. No cell, no value.

    Over all paths a question counts once; within a kind every cell does, as in the paper.
    ``prompt_ids`` are all questions of the tree, also those without a cell: draws are of these, so
    that values of teachers that lack different questions are paired all the same.
    """
    if not cells:
        return {}
    questions = sorted({*prompt_ids, *(cell.prompt_id for cell in cells)})
    place = np.searchsorted(questions, [cell.prompt_id for cell in cells])
    weights = draws.multiplicities(questions)

    def sums(numbers: ArrayLike, chosen: Array | slice = slice(None)) -> Array:
        """Sums over the chosen cells of each question, [questions]."""
        return np.bincount(place[chosen], np.asarray(numbers)[chosen], minlength=len(questions))

    correct = np.array([cell.correct for cell in cells], dtype=bool)
    nodes = np.array([cell.nodes for cell in cells])
    kinds = {"correct": correct, "incorrect": ~correct}
    measured: dict[str, draws.Value] = {}
    for name in dict.fromkeys(name for cell in cells for name in cell.numbers):
        means = by_question(cells, name)
        measured[name] = draws.mean(
            [means.get(question, 0) for question in questions],
            [question in means for question in questions],
            weights,
        )
        numbers = np.array([cell.numbers[name] for cell in cells])
        for kind, of_kind in kinds.items():
            known = of_kind & np.isfinite(numbers)
            measured[f"{name}_{kind}"] = draws.mean(sums(numbers, known), sums(known), weights)
        measured[f"{name}_difference"] = draws.difference(
            measured[f"{name}_correct"], measured[f"{name}_incorrect"]
        )
    means_of_cells = [cell.numbers["cosine"] for cell in cells]
    squares = [cell.variance + cell.numbers["cosine"] ** 2 for cell in cells]
    moments = [sums(nodes * np.array(m), nodes > 0) for m in (1, means_of_cells, squares)]
    measured["cosine_spread"] = _spread(moments, weights)
    paths = Counter(id for id, _ in {(cell.prompt_id, cell.path) for cell in cells if cell.nodes})
    counts: dict[str, ArrayLike] = {
        "nodes": sums(nodes),
        "undefined": sums([cell.undefined for cell in cells]),
        **{f"cells_{kind}": sums(of_kind) for kind, of_kind in kinds.items()},
        "paths": [paths[question] for question in questions],
        "questions": [paths[question] > 0 for question in questions],
    }
    return measured | {name: draws.total(count, weights) for name, count in counts.items()}


def _spread(moments: Sequence[Array], weights: Array) -> draws.Value:
    """Standard deviation of the alignment over all nodes with a direction, from the number of these
    and the sums of the alignment and of its square over them, [questions] each."""
    total = moments[0].sum()
    if not total:
        return draws.Value(None, None, 0)

    def deviation(count: Array, first: Array, second: Array) -> Array:
        return np.sqrt(np.maximum(second / count - (first / count) ** 2, 0))

    value = float(deviation(*(moment.sum() for moment in moments)))
    drawn = [weights @ moment for moment in moments]
    some = drawn[0] > 0
    spreads = np.full(len(weights), value)
    spreads[some] = deviation(*(moment[some] for moment in drawn))
    return draws.Value(value, spreads, int(total))

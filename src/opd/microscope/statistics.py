"""From scores of nodes to numbers of paths, questions and teachers, and tests between them (the
paper, sections 3 and 4; what it leaves open is marked "ours").

A cell is one path as one teacher sees it. Nodes without a direction (alignment NaN) are left out of
everything but the teacher advantage. Averages go from nodes to a path, from the cells of a question
to the question, from questions to the number that is shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opd.stats import draws
from opd.stats.intervals import LEVEL, Interval

Array = np.ndarray

# Thresholds of the oracle selection (Table 2).
THRESHOLDS = {"positive": 0.0, "above": 0.3}
# What Spearman's correlation with the alignment is worked out for (Table 5).
FEATURES = ("depth", "kl_nats", "js_nats", "l2", "similarity")
MEASURES = ("cosine", "positive_ratio", "weighted_cosine", "signal", "teacher_advantage")
RESAMPLES = 4000


class Cell(NamedTuple):
    """Of one path as one teacher sees it: numbers by name (``MEASURES``, ``signal_NAME``,
    ``kept_NAME_ratio``, ``beats_NAME_ratio``, ``rho_FEATURE``), NaN where there is none; ``nodes``
    with a direction, and those without."""

    question: str
    teacher: str
    path: int
    correct: bool
    numbers: dict[str, float]
    nodes: int
    undefined: int
    spread: float


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


def spearman(alignment: ArrayLike, feature: ArrayLike) -> float:
    """Spearman's correlation over the nodes of one path; NaN for fewer than three, or where one of
    both is constant."""
    from scipy.stats import rankdata

    a, f = np.asarray(alignment, dtype=np.float64), np.asarray(feature, dtype=np.float64)
    kept = np.isfinite(a) & np.isfinite(f)
    if kept.sum() < 3 or np.ptp(a[kept]) == 0 or np.ptp(f[kept]) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a[kept]), rankdata(f[kept]))[0, 1])


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
    found = np.isfinite(a)
    whole = signal(a, r)
    numbers = {
        "cosine": _mean(a[found]),
        "positive_ratio": _mean(a[found] > 0),
        "weighted_cosine": weighted_cosine(a, r),
        "signal": whole,
        "teacher_advantage": _mean(np.asarray(advantage, dtype=np.float64)),
    }
    for name, threshold in THRESHOLDS.items():
        chosen = signal(a, r, threshold)
        numbers[f"signal_{name}"] = chosen
        numbers[f"kept_{name}_ratio"] = _mean(a[found] > threshold)
        beats = float(chosen > whole) if np.isfinite(chosen) else float("nan")
        numbers[f"beats_{name}_ratio"] = beats
    numbers |= {f"rho_{name}": spearman(a, feature) for name, feature in features.items()}
    count = int(found.sum())
    spread = float(a[found].var()) if count else 0.0
    return Cell(question, teacher, path, correct, numbers, count, len(a) - count, spread)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def by_question(cells: Iterable[Cell], name: str) -> dict[str, float]:
    """Mean over the cells of each question that has one with a number, questions sorted."""
    found: dict[str, list[float]] = {}
    for one in cells:
        if np.isfinite(one.numbers[name]):
            found.setdefault(one.question, []).append(one.numbers[name])
    return {question: float(np.mean(found[question])) for question in sorted(found)}


def over_questions(values: ArrayLike) -> Interval:
    """Mean over questions with Student's t 95 % interval (the paper: "± 95 % CI across questions").
    Without bounds (NaN) for a single one."""
    from scipy.special import stdtrit

    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return Interval(_mean(found), float("nan"), float("nan"))
    half = stdtrit(len(found) - 1, (1 + LEVEL) / 2) * found.std(ddof=1) / np.sqrt(len(found))
    mean = float(found.mean())
    return Interval(mean, mean - float(half), mean + float(half))


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


def contrast(cells: Sequence[Cell], name: str, seed: int = 0) -> Contrast:
    """Whether a number differs between correct and incorrect paths.

    The paper does not name its test; Welch's t over cells reproduces its p values, and treats the
    teachers that share a path as independent, which they are not. So beside it: a paired t over
    (question, teacher), means of both kinds of paths, and a bootstrap that draws whole questions,
    whose interval this is.
    """
    from scipy import stats

    known = [one for one in cells if np.isfinite(one.numbers[name])]
    values = np.array([one.numbers[name] for one in known])
    right = np.array([one.correct for one in known], dtype=bool)
    both = values[right], values[~right]
    nan = float("nan")
    welch = nan
    if min(map(len, both)) >= 2 and any(np.ptp(one) for one in both):
        welch = float(stats.ttest_ind(*both, equal_var=False).pvalue)
    sides: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for one in known:
        sides.setdefault((one.question, one.teacher), ([], []))[not one.correct].append(
            one.numbers[name]
        )
    pairs = np.array([np.mean(a) - np.mean(b) for a, b in sides.values() if a and b])
    paired = nan
    if len(pairs) >= 2 and np.ptp(pairs):
        paired = float(stats.ttest_1samp(pairs, 0.0).pvalue)
    questions = [one.question for one in known]
    difference, low, high, cluster = cluster_bootstrap(values, right, questions, seed=seed)
    n = (int(right.sum()), int((~right).sum()), len(pairs), len(set(questions)))
    return Contrast(difference, low, high, welch, paired, cluster, n)


def cluster_bootstrap(
    values: ArrayLike,
    correct: ArrayLike,
    clusters: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float, float]:
    """Mean of the correct less that of the incorrect values, its 95 % interval and two-sided p, by
    drawing clusters (questions) with replacement.

    The draws give the standard error, corrected for the few clusters; interval and p are Student's
    with one less degree of freedom than clusters. values, correct and clusters are [N]. NaN where
    a kind is missing or there is one cluster.
    """
    from scipy.special import stdtr, stdtrit

    v, right = np.asarray(values, dtype=np.float64), np.asarray(correct, dtype=bool)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    nan = float("nan")
    if not right.any() or right.all():
        return nan, nan, nan, nan
    difference = float(v[right].mean() - v[~right].mean())
    if count < 2:
        return difference, nan, nan, nan
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    means = []
    for kind in (right, ~right):
        sums = drawn @ np.bincount(place[kind], weights=v[kind], minlength=count)
        counts = drawn @ np.bincount(place[kind], minlength=count)
        means.append(np.divide(sums, counts, out=np.full(resamples, nan), where=counts > 0))
    error = float(np.nanstd(means[0] - means[1]) * np.sqrt(count / (count - 1)))
    if error == 0:
        return difference, difference, difference, 0.0 if difference else 1.0
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(count - 1, -abs(difference) / error))
    return difference, difference - half, difference + half, p


def values(cells: Sequence[Cell]) -> dict[str, draws.Value]:
    """Values of a probe by name, with bootstrap draws of questions: every number of the cells, over
    all paths (NAME), over the correct and the incorrect ones (NAME_correct, NAME_incorrect) and the
    difference of these (NAME_difference); cosine_spread, the standard deviation over nodes; and the
    counts nodes, undefined, cells_correct, cells_incorrect, paths and questions.

    Over all paths a question counts once; within a kind every cell does, as in the paper.
    """
    questions = sorted({one.question for one in cells})
    weights = draws.multiplicities(questions)
    found: dict[str, draws.Value] = {}
    names = list(dict.fromkeys(name for one in cells for name in one.numbers))
    for name in names:
        means = by_question(cells, name)
        total = [means.get(question, 0.0) for question in questions]
        found[name] = draws.mean(total, [question in means for question in questions], weights)
        sides = []
        for kind, wanted in (("correct", True), ("incorrect", False)):
            sums, counts = np.zeros(len(questions)), np.zeros(len(questions))
            for one in cells:
                if one.correct == wanted and np.isfinite(one.numbers[name]):
                    sums[questions.index(one.question)] += one.numbers[name]
                    counts[questions.index(one.question)] += 1
            sides.append(draws.mean(sums, counts, weights))
            found[f"{name}_{kind}"] = sides[-1]
        found[f"{name}_difference"] = draws.difference(*sides)
    found["cosine_spread"] = _spread(cells, questions, weights)
    for name in ("nodes", "undefined"):
        counts = np.zeros(len(questions))
        for one in cells:
            counts[questions.index(one.question)] += getattr(one, name)
        found[name] = draws.total(counts, weights)
    for kind, wanted in (("correct", True), ("incorrect", False)):
        of = [sum(1 for c in cells if c.question == q and c.correct == wanted) for q in questions]
        found[f"cells_{kind}"] = draws.total(np.array(of, dtype=np.float64), weights)
    paths = {(one.question, one.path) for one in cells if one.nodes}
    of = [sum(1 for q, _ in paths if q == question) for question in questions]
    found["paths"] = draws.total(np.array(of, dtype=np.float64), weights)
    found["questions"] = draws.total(np.array([n > 0 for n in of], dtype=np.float64), weights)
    return found


def _spread(cells: Sequence[Cell], questions: Sequence[str], weights: Array) -> draws.Value:
    """Standard deviation of the alignment over all nodes with a direction."""
    moments = np.zeros((3, len(questions)))
    for one in cells:
        if one.nodes:
            mean = one.numbers["cosine"]
            square = one.spread + mean**2
            moments[:, questions.index(one.question)] += one.nodes * np.array([1, mean, square])
    count, first, second = moments
    total = count.sum()
    if not total:
        return draws.Value(None, None, 0)

    def deviation(n: Any, one: Any, two: Any) -> Any:
        return np.sqrt(np.maximum(two / n - (one / n) ** 2, 0))

    value = float(deviation(total, first.sum(), second.sum()))
    drawn = np.full(len(weights), value)
    counts = weights @ count
    some = counts > 0
    drawn[some] = deviation(counts[some], (weights @ first)[some], (weights @ second)[some])
    return draws.Value(value, drawn, int(total))

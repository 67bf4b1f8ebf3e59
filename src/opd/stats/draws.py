"""Values of a probe with bootstrap draws: pure functions of what each rollout showed.

Legend: N rollouts, P prompts, R draws. A draw takes P prompts with replacement and each with all of
its rollouts, as in ``opd.stats.intervals``: rollouts of a prompt are not independent, and their own
noise is in the spread of the prompts already. What is drawn is a function of the prompts alone, so
that values of several probes on the same prompts are paired.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from opd.core import tables
from opd.core.tables import TEXT, schema
from opd.stats.intervals import Array, bounds, resampled, unseen

# With so many, an end of an interval varies from one set of draws to another by some 4 % of half
# its width. Intervals of a few dozen prompts are no more precise, and draws are most of what a
# probe leaves.
RESAMPLES = 1000
# Bootstrap draws of each value that a probe measures, one below the other, in single precision.
DRAWS = schema(name=TEXT, draw=pa.float32())


class Value(NamedTuple):
    """A value, None where there is none, with its draws [R] and how much it is a mean of.

    ``slack`` is how far below and above it the truth may lie where all prompts show the same.
    """

    value: float | None
    draws: Array | None
    n: int
    slack: tuple[float, float] = (0.0, 0.0)


def multiplicities(prompts: Sequence[str], resamples: int = RESAMPLES) -> Array:
    """How often each of N rollouts is in each draw, [R, N]; ``prompts`` [N] are their prompts' ids.
    The same prompts, in whatever order and with however many rollouts, are drawn alike."""
    ids, place = np.unique(np.asarray(prompts), return_inverse=True)
    return resampled(np.random.default_rng(0), len(ids), resamples)[:, place]


def mean(total: ArrayLike, count: ArrayLike, weights: Array) -> Value:
    """Sum of ``total`` [N] over sum of ``count`` [N]; ``weights`` [R, N] of ``multiplicities``."""
    sums, counts = np.asarray(total, dtype=np.float64), np.asarray(count, dtype=np.float64)
    n = int(counts.sum())
    if not n:
        return Value(None, None, 0)
    value = float(sums.sum() / counts.sum())
    return Value(value, _defined(weights @ sums, weights @ counts, value), n)


def share(right: ArrayLike, prompts: Sequence[str], weights: Array) -> Value:
    """Mean of ``right`` [N], 0 to 1. Where no prompt differs the draws have no width, although few
    prompts prove little: the slack is the exact binomial bound, as for scores."""
    value = mean(right, np.ones(len(prompts)), weights)
    if value.value is None:
        return value
    most = unseen(len(set(prompts)))
    return value._replace(slack=(min(most, value.value), min(most, 1 - value.value)))


def total(values: ArrayLike, weights: Array) -> Value:
    """Sum of ``values`` [N]."""
    numbers = np.asarray(values, dtype=np.float64)
    return Value(float(numbers.sum()), weights @ numbers, len(numbers))


def auroc(scores: ArrayLike, correct: ArrayLike, weights: Array) -> Value:
    """Probability that a correct rollout scores above an incorrect one, ties counting half; scores
    and correct are [N]. None where either kind is missing."""
    right = np.asarray(correct, dtype=bool)
    if right.all() or not right.any():
        return Value(None, None, len(right))
    order = np.argsort(scores, kind="stable")
    sorted_scores = np.asarray(scores, dtype=np.float64)[order]
    starts = np.flatnonzero(np.diff(sorted_scores, prepend=-np.inf))  # of runs of equal scores

    def wins(weight: Array) -> tuple[Array, Array]:
        """Won pairs and all pairs [R] for weights [R, N]."""
        weight = weight[:, order]
        good = np.add.reduceat(weight * right[order], starts, axis=1)
        bad = np.add.reduceat(weight * ~right[order], starts, axis=1)
        below = np.cumsum(bad, axis=1) - bad
        return (good * (below + bad / 2)).sum(1), good.sum(1) * bad.sum(1)

    (won,), (pairs,) = wins(np.ones((1, len(right))))
    value = float(won / pairs)
    return Value(value, _defined(*wins(weights), value), len(right))


def difference(left: Value, right: Value) -> Value:
    """``left`` less ``right``, paired."""
    if left.value is None or left.draws is None or right.value is None or right.draws is None:
        return Value(None, None, 0)
    slack = (left.slack[0] + right.slack[1], left.slack[1] + right.slack[0])
    return Value(left.value - right.value, left.draws - right.draws, min(left.n, right.n), slack)


def interval(value: Value) -> tuple[float | None, float | None]:
    """Bounds of the 95 % interval: percentiles of the draws, or the slack where they are one."""
    if value.value is None or value.draws is None:
        return None, None
    if np.ptp(value.draws) == 0:
        return value.value - value.slack[0], value.value + value.slack[1]
    _, low, high = bounds(value.value, value.draws)
    return low, high


def summary(values: Mapping[str, Value]) -> dict[str, dict[str, float | int | None]]:
    """What ``probe.json`` says of each value."""
    numbers = {}
    for name, value in values.items():
        low, high = interval(value)
        numbers[name] = {"value": value.value, "low": low, "high": high, "n": value.n}
    return numbers


def write(
    out: Path, values: Mapping[str, Value], about: Mapping[str, Any]
) -> dict[str, float | None]:
    """Write probe.json (``values`` with their intervals, and ``about``) and draws.parquet, and
    return the bare numbers."""
    tables.write_json(out / "probe.json", {"values": summary(values), **about})
    drawn = {name: value.draws for name, value in values.items() if value.draws is not None}
    write_draws(out / "draws.parquet", drawn)
    return {name: value.value for name, value in values.items()}


def write_draws(path: Path, drawn: Mapping[str, ArrayLike]) -> None:
    """Write the draws [R] of each value by its name."""
    arrays = {name: np.asarray(draws, dtype=np.float32) for name, draws in drawn.items()}
    names = [name for name, draws in arrays.items() for _ in draws]
    columns = {"name": names, "draw": np.concatenate([*arrays.values(), np.empty(0, np.float32)])}
    tables.write(path, pa.table(columns, schema=DRAWS), DRAWS)


def read_draws(path: Path) -> dict[str, Array]:
    """Draws [R] of each value by its name, as ``write_draws`` left them."""
    table = tables.read(path, DRAWS)
    names, draws = table["name"].to_numpy(), table["draw"].to_numpy().astype(np.float64)
    return {name: draws[names == name] for name in dict.fromkeys(names)}


def _defined(above: Array, below: Array, value: float) -> Array:
    """above / below; a draw without anything to divide by shows nothing and counts as the value."""
    return np.divide(above, below, out=np.full_like(above, value), where=below > 0)

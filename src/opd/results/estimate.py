"""Estimates of quantities (``opd.results.quantity``) with bootstrap draws: the one place where a
number of a table, a mark of a figure and a number that decides a claim come from.

Scores and probes share the draws of seeds and of problems (``opd.stats.intervals.weights``), so
draws of two of them are paired: a difference of quantities is the difference of their draws. With
several seeds the interval is as wide as so few of them ask for (``opd.stats.few_seeds``).

Metrics vary over seeds only, of which a bootstrap is far too narrow: with several seeds they have
Student's t interval over seeds, of differences seed by seed. With one run, a mean over steps has an
interval from within the run (``blocks``), about the noise of its steps and not about other runs;
the first value, extremes, jumps and drops have none, and all draws are the value. docs/claims.md
has the coverage of these intervals.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from opd.core.errors import UserError
from opd.evaluation.reader import Evaluations, NotLogged, Reader
from opd.results.quantity import MACRO, METRIC, POINTS, PROBE, SCORES, Quantity, apart, unit_of
from opd.stats import intervals
from opd.stats.draws import read_draws
from opd.stats.few_seeds import p_value, widened
from opd.stats.intervals import LEVEL, RESAMPLES, Array, Interval, boundless, weights

LIMITS = {"share": (0.0, 1.0), POINTS: (-1.0, 1.0)}
# What an answer shows of itself, beside being right.
FIELDS = {key: key for key in ("tokens", "truncated", "answered")} | {"length": "tokens"}


class Missing(Exception):
    """A quantity that this scale did not measure; the text says what is missing."""


class Undefined(Missing):
    """A quantity that was measured and means nothing, as a share of a gap that may be none."""


class Estimate(NamedTuple):
    """A value with its draws [R] in the same unit (all equal to it where nothing can be drawn; NaN
    where a draw has no gap), the number of seeds behind it, ``intervals.least`` of its scores, its
    value for each of several seeds [S] (of a ratio, as far as it is linear in its two sides),
    whether it varies over seeds only, and whether it is a ratio, which may lie beyond what a share
    may be."""

    value: float
    draws: Array
    seeds: int
    unit: str
    least: float = 0.0
    by_seed: Array | None = None
    only_seeds: bool = False
    ratio: bool = False

    def interval(self) -> Interval:
        """The value with its 95 % interval, infinite where it has no bounds."""
        if self.only_seeds and self.by_seed is not None:
            return intervals.student(self.by_seed)
        limits = LIMITS.get("" if self.ratio else self.unit, (-np.inf, np.inf))
        drawn = intervals.bounds(self.value, self.draws, self.least, limits)
        if self.by_seed is None:
            return drawn
        mean, low, high = widened(drawn, self.draws, self.by_seed)
        return Interval(mean, max(low, limits[0]), min(high, limits[1]))

    @property
    def seed_by_seed(self) -> Array:
        """Values [S], or the value [1] of a single run."""
        return np.atleast_1d(self.value if self.by_seed is None else self.by_seed)

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference, draw by draw. Raises ``ValueError`` where the units differ."""
        if self.unit != other.unit:
            raise ValueError(f"a difference of {self.unit} and {other.unit}")
        draws = self.draws - other.draws
        by_seed = None
        without = [side for side in (self, other) if side.by_seed is None]
        # A run of its own is paired with every seed of the other side.
        if len(without) < 2 and all(side.seeds == 1 for side in without):
            by_seed = self.seed_by_seed - other.seed_by_seed
        sides = self, other
        only_seeds = any(side.only_seeds for side in sides) and all(
            side.only_seeds or _still(side.draws) for side in sides
        )
        kind = only_seeds, self.ratio or other.ratio
        # Only where the pair as a whole never moves: else the draws say how far it does.
        floor = max(self.least, other.least) if _still(draws) else 0.0
        seeds = max(self.seeds, other.seeds)
        value, unit = self.value - other.value, apart(self.unit)
        return Estimate(value, draws, seeds, unit, floor, by_seed, *kind)


def _still(draws: Array) -> bool:
    """Whether draws are all alike, but for the rounding of weights that sum to 1."""
    return bool(np.nanmax(draws) - np.nanmin(draws) <= 1e-12)


class Measurements:
    """What a scale measured: its arms and probes, and how draws of them are made.

    cfg: ``arms`` {name: {label, evaluations, base, teacher, run}}, all but the label lists of input
    names of ``reader``, one per seed; ``probes`` {name: {label, runs}}; ``resamples`` and ``seed``
    of the bootstrap. All arms and probes have the same number of seeds, or one.
    """

    def __init__(self, cfg: Mapping[str, Any], reader: Reader) -> None:
        self.reader = reader
        self.arms: Mapping[str, Mapping[str, Any]] = cfg.get("arms") or {}
        self.probes: Mapping[str, Mapping[str, Any]] = cfg.get("probes") or {}
        self.resamples, self.seed = cfg.get("resamples", RESAMPLES), cfg.get("seed", 0)
        measured = [*self.arms.values(), *self.probes.values()]
        roles = ("evaluations", "run", "runs")
        self.seeds = max((len(m.get(role) or ()) for m in measured for role in roles), default=1)
        self.made: dict[Quantity, Estimate | Missing] = {}

    def known(self, role: str) -> Mapping[str, Mapping[str, Any]]:
        """All arms, or for the role ``probe`` all probes. An arm and a probe may have one name."""
        return self.probes if role == "probe" else self.arms

    def label(self, name: str, role: str) -> str:
        """An arm or probe in words: its label, or what its name says: ``other-teacher (E01)``."""
        if known := self.known(role).get(name):
            return str(known["label"])
        experiment, _, rest = name.partition(".")
        return f"{rest.replace('-', ' ').replace('_', ' ')} ({experiment})" if rest else name

    def inputs(self, name: str, role: str) -> Sequence[str]:
        """Inputs of an arm or probe in a role. Raises ``Missing``, ``UserError`` for other seeds
        than the rest has."""
        label, roles = self.label(name, role), self.known(role).get(name, {})
        inputs: Sequence[str] = roles.get("runs" if role == "probe" else role) or ()
        if not inputs and (role == "probe" or not roles.keys() - {"label"}):
            raise Missing(label)  # nothing of it belongs to this scale
        if not inputs:
            words = {"evaluations": "evaluation", "run": "training run"}.get(role, role)
            raise Missing(f"{words} of {label}")
        if len(inputs) not in (1, self.seeds):
            reason = f"{len(inputs)} seeds where others have {self.seeds}"
            raise UserError(reason, f"{label}, {role}", "give one per seed, or one")
        return inputs

    def evaluations(self, name: str) -> Evaluations:
        """Evaluations of an arm. Raises ``Missing``."""
        role = "evaluations"
        return self.reader.evaluations(self.inputs(name, role), self.label(name, role))


def estimate(quantity: Quantity, measured: Measurements) -> Estimate:
    """The estimate of a quantity, which is worked out once. Raises ``Missing`` with what is not
    there, ``Undefined`` for a share of what may be none, ``UserError`` for what is broken."""
    if quantity not in measured.made:
        work = {METRIC: _metric, PROBE: _probe}.get(quantity.kind, _score)
        try:
            measured.made[quantity] = work(quantity, measured)
        except Missing as missing:
            measured.made[quantity] = missing
    result = measured.made[quantity]
    if isinstance(result, Missing):
        raise result
    return result


def blocks(values: Array, resamples: int, seed: int) -> Array:
    """Draws [R] of the mean of successive values [N] of one run, by a circular block bootstrap.

    Neighbouring steps are alike, so blocks of about the square root of N are drawn. Draws are
    spread to the width of Student's t for as many values as there are blocks: without that they are
    too narrow for the few blocks of a short window. The same blocks of steps are drawn of every
    window of N, so draws of two runs are paired. One value, or one block: no spread.
    """
    size = max(1, round(np.sqrt(len(values))))
    count = -(-len(values) // size)
    mean = values.mean()
    if count < 2:
        return np.full(resamples, mean)
    round_it = np.concatenate([values, values[: size - 1]])
    means = np.convolve(round_it, np.full(size, 1 / size), "valid")
    drawn = np.random.default_rng(seed).integers(len(means), size=(resamples, count))
    tail = (1 + LEVEL) / 2
    wider = stdtrit(count - 1, tail) / ndtri(tail) * np.sqrt(count / (count - 1))
    return mean + (means[drawn].mean(axis=1) - mean) * wider


# Scores


def _score(quantity: Quantity, measured: Measurements) -> Estimate:
    """A number of evaluations; ``change``, ``recovery``, ``length`` and ``p`` compare them with
    those of the arm's base (and teacher), problem by problem."""
    kind, name, whose = quantity.kind, quantity.name, measured.label(quantity.of, "evaluations")
    # All of them, before any is read.
    inputs = [measured.inputs(quantity.of, role) for role in SCORES[kind].inputs]
    evaluations = [measured.reader.evaluations(names, whose) for names in inputs]
    assert measured.reader.first is not None
    # One order everywhere, so that draws of problems are paired.
    benchmarks = measured.reader.first.benchmarks()
    if name not in (MACRO, *benchmarks):
        raise Missing(f"benchmark {name}")
    only = None if name == MACRO else benchmarks.index(name)
    seeds, unit = max(len(side.seeds) for side in evaluations), quantity.unit
    field = FIELDS.get(kind, "correct")
    scores = [[side.scores(name, field)[0] for name in benchmarks] for side in evaluations]
    if kind in ("pass", "maj") or (kind == "p" and measured.seeds == 1):
        if kind == "p":
            after, before = (side if only is None else [side[only]] for side in scores)
            value: float | None = intervals.paired_test(after, before, seed=measured.seed)
        else:
            names = benchmarks if only is None else [name]
            value = measured.reader.summary(inputs[0], names, kind)
        if value is None:
            raise Missing(f"{kind} of {whose}")
        return Estimate(value, np.full(measured.resamples, value), seeds, unit)
    sides = [
        [np.broadcast_to(cells, (measured.seeds, cells.shape[1])) for cells in side]
        for side in intervals.averages(*scores)
    ]
    how = (measured.resamples, measured.seed, only)

    def mean(cells: Sequence[Array], unit: str) -> Estimate:
        means, draws = intervals.bootstrap([cells], *how)
        chosen = cells if only is None else [cells[only]]
        floor = intervals.least(chosen) if unit in LIMITS else 0.0
        of_seeds = np.mean([benchmark.mean(axis=1) for benchmark in chosen], axis=0)
        by_seed = of_seeds if measured.seeds > 1 else None
        return Estimate(float(means[0]), draws[:, 0], seeds, unit, floor, by_seed)

    if kind == "p":
        change = mean(intervals.less(*sides), POINTS)
        assert change.by_seed is not None
        value = p_value(change.draws, change.by_seed)
        return Estimate(value, np.full(measured.resamples, value), seeds, unit)
    if kind == "recovery":
        now, base, goal = sides
        gap = mean(intervals.less(goal, base), POINTS)
        recovered = intervals.shares(sides, *how)
        if recovered is None or gap.interval().low <= 0:
            where = "all benchmarks" if only is None else name
            raise Undefined(f"the gap that {whose} could close may be none (on {where})")
        by_seed = _linear(recovered[0], mean(intervals.less(now, base), POINTS), gap)
        return Estimate(*recovered, seeds, unit, by_seed=by_seed, ratio=True)
    if kind == "length":
        part, whole = (mean(side, "tokens") for side in sides)
        return _ratio(part, whole, unit, f"the length before {whose}, which it is a share of,")
    return mean(intervals.less(*sides) if kind == "change" else sides[0], unit)


def _linear(ratio: float, part: Estimate, whole: Estimate) -> Array | None:
    """Of each of several seeds [S] what it adds to a ratio, as far as it is linear in the two."""
    if part.by_seed is None and whole.by_seed is None:
        return None
    return ratio + (part.seed_by_seed - ratio * whole.seed_by_seed) / whole.value


# Metrics of training


def _metric(quantity: Quantity, measured: Measurements) -> Estimate:
    """A number of each run's curve, or its ratio to another (``per``), or difference (``less``)."""
    if quantity.less:
        whole = _of_runs(replace(quantity, less=None), measured)
        return whole - _of_runs(quantity.less, measured)
    part, per = _of_runs(quantity, measured), quantity.per
    if per is None:
        return part
    whole, whose = _of_runs(per, measured), measured.label(per.of, "run")
    if not (whole.seed_by_seed * whole.value > 0).all():
        raise Undefined(f"{per.name} of {whose} is 0, or differs in sign between seeds")
    if part.by_seed is None and whole.by_seed is None:
        return _ratio(part, whole, quantity.unit, f"{per.name} of {whose}, which it is a share of,")
    return _of_seeds(part.seed_by_seed / whole.seed_by_seed, quantity.unit, measured)


def _ratio(part: Estimate, whole: Estimate, unit: str, what: str) -> Estimate:
    """A quotient with Fieller's set for an interval, as of a share of a gap: a draw in which the
    whole is none, or of the other sign, may be any ratio. Raises ``Undefined`` where that leaves no
    bound; ``what`` names the whole."""
    draws = np.where(whole.draws * whole.value > 0, whole.draws, np.nan)
    _, low, high = whole.interval()
    if boundless(draws) or low <= 0 <= high:
        raise Undefined(f"{what} may be 0")
    ratio, seeds = part.value / whole.value, max(part.seeds, whole.seeds)
    by_seed = _linear(ratio, part, whole)
    return Estimate(ratio, part.draws / draws, seeds, unit, by_seed=by_seed, ratio=True)


def _of_seeds(values: Array, unit: str, measured: Measurements) -> Estimate:
    """The mean of one value for each of several seeds [S]."""
    of_seeds, _ = weights(measured.seeds, (), measured.resamples, measured.seed)
    mean, draws = float(values.mean()), of_seeds @ values
    return Estimate(mean, draws, len(values), unit, by_seed=values, only_seeds=True)


def _of_runs(quantity: Quantity, measured: Measurements) -> Estimate:
    """A number of each run's curve, whatever it is a share of."""
    name, part, when = quantity.name, quantity.positions, quantity.at or "end"
    runs, where = measured.inputs(quantity.of, "run"), f"arm {quantity.of}, {name}"
    try:
        if part is None:
            curves = [*measured.reader.metric(runs, name, where)[1]]
        else:
            by_run = measured.reader.positions(runs, name, where)
            curves = [_half(*columns, part) for columns in by_run]
    except NotLogged:
        curves = [np.empty(0)]
    curves = [curve[~np.isnan(curve)] for curve in curves]
    if not all(map(len, curves)):
        by_position = " by position" if part else ""
        raise Missing(f"metric {name}{by_position} of {measured.label(quantity.of, 'run')}")
    values = np.array([at(curve, when) for curve in curves])
    if len(values) > 1:
        return _of_seeds(values, quantity.unit, measured)
    draws = np.full(measured.resamples, values[0])
    if when in WINDOWS:
        draws = blocks(window(curves[0], when), measured.resamples, measured.seed)
    return Estimate(float(values[0]), draws, 1, quantity.unit)


def _half(steps: Array, positions: Array, values: Array, part: str) -> Array:
    """A metric by step [N]: the mean over the bins in the ``front`` or ``back`` half."""
    bins = np.unique(positions)
    if len(bins) < 2:
        raise NotLogged("responses have one bin of positions", "position_bin", "make it smaller")
    half = len(bins) // 2
    kept = np.isin(positions, bins[:half] if part == "front" else bins[-half:])
    return np.array([values[kept & (steps == step)].mean() for step in np.unique(steps[kept])])


# A mean over steps is of this part of a curve, at its end but for ``mid``: a tenth, half, or all.
WINDOWS = {"mid": 10, "end": 10, "late": 2, "mean": 1}


def window(values: Array, when: str) -> Array:
    """The part of curves [..., N] that a mean over steps is of."""
    count = values.shape[-1]
    size = math.ceil(count / WINDOWS[when])
    stop = (count + size) // 2 if when == "mid" else count
    return values[..., stop - size : stop]


def at(values: Array, when: str) -> Array:
    """One number of each curve [..., N]: its ``start`` or ``last`` value, the mean of a ``window``,
    the ``min`` or ``max``, the ``jump`` (largest change from one value to the next), or the
    ``drop`` (how far its end is below its largest value). Shape [...]."""
    if when in WINDOWS:
        return window(values, when).mean(axis=-1)
    if when == "start":
        return values[..., 0]
    if when == "last":
        return values[..., -1]
    if when == "min":
        return values.min(axis=-1)
    if when == "jump":
        return np.abs(np.diff(values)).max(axis=-1, initial=0.0)
    highest = values.max(axis=-1)
    return highest if when == "max" else highest - at(values, "end")


# Values of probes


def _probe(quantity: Quantity, measured: Measurements) -> Estimate:
    """A value of a probe; less another, or as a multiple of another, draw by draw."""
    value = _of_probe(quantity, measured)
    if quantity.less:
        return value - estimate(quantity.less, measured)
    if per := quantity.per:
        what = f"{per.name} of {measured.label(per.of, 'probe')}, which it is a multiple of,"
        return _ratio(value, estimate(per, measured), quantity.unit, what)
    return value


def _of_probe(quantity: Quantity, measured: Measurements) -> Estimate:
    """A value of a probe, whatever it is compared with."""
    runs, name = measured.inputs(quantity.of, "probe"), quantity.name
    if name.endswith("_*"):
        name = numbered(quantity, measured)[0 if quantity.at == "first" else -1]
    values, draws, slacks = zip(*(read_probe(measured.reader, r, name) for r in runs), strict=True)
    drawn = np.stack([np.resize(d, measured.resamples) for d in draws], axis=1)
    if re.fullmatch(r"p_.*|.*_p", name):  # a p value says how likely its own run is by chance
        largest = max(values)
        return Estimate(largest, np.full(measured.resamples, largest), len(runs), unit_of(name))
    of_seeds, by_seed = np.ones(1), None
    if len(runs) > 1:
        of_seeds, _ = weights(measured.seeds, (), measured.resamples, measured.seed)
        by_seed = np.array(values)
    of_all = (drawn * of_seeds).sum(axis=1)
    # Where the draws move they say how far.
    slack = float(np.mean(slacks)) if _still(of_all) else 0.0
    return Estimate(float(np.mean(values)), of_all, len(runs), unit_of(name), slack, by_seed)


def numbered(quantity: Quantity, measured: Measurements) -> list[str]:
    """Names of a probe's values NAME_1, NAME_2, ... by number, for the value NAME_*. Raises
    ``Missing`` where the probe has none."""
    runs = measured.inputs(quantity.of, "probe")
    values = measured.reader.json(runs[0], "probe.json", f"probe {quantity.of}")["values"]
    pattern = re.escape(quantity.name.removesuffix("*")) + r"\d+"
    names = [value for value in values if re.fullmatch(pattern, value)]
    if not names:
        raise Missing(f"{quantity.name} of {measured.label(quantity.of, 'probe')}")
    return sorted(names, key=lambda value: int(value.rpartition("_")[2]))


def read_probe(reader: Reader, run: str, name: str) -> tuple[float, Array, float]:
    """A value of a probe, its draws (without any the value is its only one), and how far to either
    side it may lie where they are all alike. Raises ``Missing`` where the probe has no such value,
    or could not measure it."""
    values = reader.json(run, "probe.json", run)["values"]
    summary = values.get(name, {})
    if summary.get("value") is None:
        kind, _, prefix = name.rpartition("_")
        words = f"prefix of {prefix} tokens" if kind and prefix.isdigit() else name
        raise Missing(f"{words}, which could not be measured" if summary else words)
    value = float(summary["value"])
    draws = read_draws(reader.file(run, "draws.parquet", run))
    drawn = draws.get(name, np.array([value]))
    ends = [summary[end] for end in ("low", "high") if summary.get(end) is not None]
    slack = max((abs(value - end) for end in ends), default=0.0)
    return value, drawn, slack if np.ptp(drawn) == 0 else 0.0

"""What claims and figures compare: one number of an arm or a probe, with bootstrap draws of it.

A quantity is a mapping, as ``opd.claim_spec`` describes it: avg@k of an arm, its change, the share
of a gap that it recovers, a metric of its training, a value of a probe. An arm is one training run
or model at every seed, a probe one measurement.

All quantities share the draws of seeds and of problems (``opd.intervals.weights``), so draws of two
of them are paired: a difference of quantities is the difference of their draws. Metrics vary over
seeds only: with one seed they have no interval, and all draws are the value.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opd import tables
from opd.claim_spec import SCORES, unit_of
from opd.errors import Bad
from opd.intervals import (
    RESAMPLES,
    Array,
    Interval,
    averages,
    bootstrap,
    bounds,
    least,
    less,
    shares,
    weights,
)
from opd.measured import MACRO, Evaluations, NotLogged, Reader

LIMITS = {"share": (0.0, 1.0), "points of a share": (-1.0, 1.0)}


class Missing(Exception):
    """A quantity that this scale did not measure; the text says what is missing."""


class Undefined(Missing):
    """A quantity that was measured and means nothing, as a share of a gap that may be none."""


class Resampling(NamedTuple):
    """What draws are made of: seeds of a scale, number of draws, and the bootstrap's own seed."""

    seeds: int
    resamples: int
    seed: int


class Estimate(NamedTuple):
    """A value with its draws [R] in the same unit (all equal to it where nothing can be drawn; NaN
    where a draw has none), the number of seeds behind it, and ``intervals.least`` of its scores."""

    value: float
    draws: Array
    seeds: int
    unit: str
    least: float = 0.0

    def interval(self) -> Interval:
        """The value with its 95 % interval."""
        return bounds(self.value, self.draws, self.least, LIMITS.get(self.unit, (-np.inf, np.inf)))


def difference(left: Estimate, right: Estimate) -> Estimate:
    """left - right, draw by draw. Raises ``ValueError`` where the units differ."""
    if left.unit != right.unit:
        raise ValueError(f"a difference of {left.unit} and {right.unit}")
    draws = left.draws - right.draws
    # Only where the pair as a whole never moves: else the draws say how far it does.
    floor = 0.0 if np.nanmax(draws) > np.nanmin(draws) else max(left.least, right.least)
    unit = "points of a share" if left.unit == "share" else left.unit
    return Estimate(left.value - right.value, draws, max(left.seeds, right.seeds), unit, floor)


def estimate(
    quantity: Mapping[str, Any],
    reader: Reader,
    arms: Mapping[str, Mapping[str, Any]],
    probes: Mapping[str, Mapping[str, Any]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A quantity of these arms and probes.

    arms: name -> {label, evaluations, base, teacher, run}, all but the label lists of input names
    of ``reader``, one per seed; probes: name -> {label, runs}. Raises ``Missing`` with what is not
    there, ``Undefined`` for the recovery of a gap that may be none, ``Bad`` where what is there is
    broken.
    """
    how = Resampling(_seeds(arms, probes), resamples, seed)
    if "metric" in quantity:
        return _metric(quantity, reader, arms, how)
    if "probe" in quantity:
        return _probe(quantity, reader, probes, how)
    return _score(quantity, reader, arms, how)


def _seeds(*named: Mapping[str, Mapping[str, Any]]) -> int:
    """Seeds of a scale: the most that any arm or probe has."""
    keys = ("evaluations", "run", "runs")
    counts = [len(one.get(key) or ()) for part in named for one in part.values() for key in keys]
    return max(counts, default=1)


def benchmarks(
    quantity: Mapping[str, Any], reader: Reader, arms: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """Names of the benchmarks of a score's arm. Raises ``Missing``."""
    kind = next(key for key in SCORES if key in quantity)
    return _evaluations(quantity[kind], "evaluations", reader, arms).benchmarks()


def _arm(name: str, key: str, arms: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    if name not in arms:
        raise Missing(f"arm {name}")
    found: Sequence[str] = arms[name].get(key) or ()
    if not found:
        what = {"evaluations": "evaluation", "run": "training run"}.get(key, key)
        raise Missing(f"{what} of arm {name}")
    return found


def _evaluations(
    name: str, key: str, reader: Reader, arms: Mapping[str, Mapping[str, Any]]
) -> Evaluations:
    return reader.evaluations(_arm(name, key, arms), f"arm {name}, {key}")


def _require(found: int, seeds: int, where: str) -> None:
    if found not in (1, seeds):
        raise Bad(f"{found} seeds where others have {seeds}", where, "give one per seed, or one")


def _score(
    quantity: Mapping[str, Any],
    reader: Reader,
    arms: Mapping[str, Mapping[str, Any]],
    how: Resampling,
) -> Estimate:
    """avg, change (less the base) or recovery (of the gap from base to teacher)."""
    kind = next(key for key in SCORES if key in quantity)
    name, benchmark = quantity[kind], quantity.get("benchmark", MACRO)
    sides = SCORES[kind]
    found = [_evaluations(name, side, reader, arms) for side in sides]
    assert reader.first is not None
    known = reader.first.benchmarks()  # one order everywhere, so that draws of problems are paired
    if benchmark not in (MACRO, *known):
        raise Missing(f"benchmark {benchmark}")
    only = None if benchmark == MACRO else known.index(benchmark)
    for side, one in zip(sides, found, strict=True):
        _require(len(one.seeds), how.seeds, f"arm {name}, {side}")
    wide = [
        [np.broadcast_to(cells, (how.seeds, cells.shape[1])) for cells in side]
        for side in averages(*(_in_order(one, known) for one in found))
    ]
    measured = max(len(one.seeds) for one in found)
    if kind == "recovery":
        shared = shares(wide, how.resamples, how.seed, only)
        if shared is None:
            of = "all benchmarks" if only is None else benchmark
            raise Undefined(f"the gap that {name} could recover may be none (on {of})")
        return Estimate(*shared, measured, "share")
    cells = wide[0] if kind == "avg" else less(*wide)
    means, draws = bootstrap([cells], how.resamples, how.seed, only)
    floor = least(cells if only is None else [cells[only]])
    unit = "share" if kind == "avg" else "points of a share"
    return Estimate(float(means[0]), draws[:, 0], measured, unit, floor)


def _in_order(found: Evaluations, names: Sequence[str]) -> list[Array]:
    return [found.scores(name)[0] for name in names]


def _metric(
    quantity: Mapping[str, Any],
    reader: Reader,
    arms: Mapping[str, Mapping[str, Any]],
    how: Resampling,
) -> Estimate:
    name, arm = quantity["metric"], quantity["of"]
    where = f"arm {arm}, {name}"
    runs = _arm(arm, "run", arms)
    _require(len(runs), how.seeds, where)
    part = quantity.get("positions")
    try:
        if part is None:
            curves = list(reader.metric(runs, name, where)[1])
        else:
            curves = [_half(*one, part) for one in reader.positions(runs, name, where)]
    except NotLogged as bad:
        by = "" if part is None else ", by position,"
        raise Missing(f"metric {name}{by} of arm {arm}") from bad
    values = [at(curve[~np.isnan(curve)], quantity.get("at", "end")) for curve in curves]
    unit = unit_of(name)
    if len(values) == 1:
        return Estimate(values[0], np.full(how.resamples, values[0]), 1, unit)
    of_seeds, _ = weights(how.seeds, (), how.resamples, how.seed)
    return Estimate(float(np.mean(values)), of_seeds @ np.array(values), len(values), unit)


def _half(steps: Array, positions: Array, values: Array, part: str) -> Array:
    """A metric over the ``front`` or ``back`` half of the positions that responses reached [N]: the
    mean over their bins, step by step where there are any."""
    bins = np.unique(positions)
    if len(bins) < 2:
        raise NotLogged("responses have one bin of positions", "position_bin", "make it smaller")
    half = len(bins) // 2
    kept = np.isin(positions, bins[:half] if part == "front" else bins[-half:])
    return np.array([values[kept & (steps == step)].mean() for step in np.unique(steps[kept])])


def at(values: Array, when: str) -> float:
    """One number of a curve [N]: its ``start`` (first value), ``end`` (mean of the last tenth),
    ``late`` (mean of the second half), ``mean``, ``min``, ``max``, or ``jump``, the largest change
    from one value to the next."""
    last = {"end": -(-len(values) // 10), "late": -(-len(values) // 2)}
    if when == "start":
        return float(values[0])
    if when == "jump":
        return float(np.abs(np.diff(values)).max(initial=0.0))
    if when in last:
        return float(values[-last[when] :].mean())
    return float(getattr(values, when)())


def _probe(
    quantity: Mapping[str, Any],
    reader: Reader,
    probes: Mapping[str, Mapping[str, Any]],
    how: Resampling,
) -> Estimate:
    name, wanted = quantity["probe"], quantity["value"]
    if name not in probes:
        raise Missing(f"probe {name}")
    runs = probes[name].get("runs") or []
    if not runs:
        raise Missing(f"run of probe {name}")
    _require(len(runs), how.seeds, f"probe {name}")
    if wanted.endswith("_*"):
        wanted = numbered(quantity, reader, probes)[0 if quantity["at"] == "first" else -1]
    found = [read_probe(reader, run, wanted) for run in runs]
    values = [value for value, _, _ in found]
    draws = [np.resize(drawn, how.resamples) for _, drawn, _ in found]
    floor = float(np.mean([slack for _, _, slack in found]))
    drawn = draws[0]
    if len(runs) > 1:
        of_seeds, _ = weights(how.seeds, (), how.resamples, how.seed)
        drawn = (np.stack(draws, axis=1) * of_seeds).sum(axis=1)
    return Estimate(float(np.mean(values)), drawn, len(runs), unit_of(wanted), floor)


def numbered(
    quantity: Mapping[str, Any], reader: Reader, probes: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Names of a probe's values NAME_1, NAME_2, ... by number, for the value NAME_*.

    Raises ``Missing`` where the probe has none.
    """
    name, wanted = quantity["probe"], quantity["value"]
    runs = probes.get(name, {}).get("runs")
    if not runs:
        raise Missing(f"probe {name}")
    stem = re.escape(wanted.removesuffix("*"))
    values = reader.json(runs[0], "probe.json", f"probe {name}")["values"]
    found = [value for value in values if re.fullmatch(stem + r"\d+", value)]
    if not found:
        raise Missing(f"value {wanted} of probe {name}")
    return sorted(found, key=lambda value: int(value.rpartition("_")[2]))


def read_probe(reader: Reader, run: str, wanted: str) -> tuple[float, Array, float]:
    """A value of one probe's payload, its draws, and how far to either side it may lie all the same
    where they are all alike. Without draws the value is its only one.

    Raises ``Missing`` where the probe has no such value, or could not measure it.
    """
    values = reader.json(run, "probe.json", run)["values"]
    if values.get(wanted, {}).get("value") is None:
        why = "which could not be measured" if wanted in values else f"only {', '.join(values)}"
        raise Missing(f"value {wanted} of {run}, {why}")
    one = values[wanted]
    value = float(one["value"])
    table = tables.read(reader.file(run, "draws.parquet", run), tables.DRAWS)
    listed = dict(zip(table["name"].to_pylist(), table["draws"].to_pylist(), strict=True))
    drawn = np.array(listed.get(wanted) or [value], dtype=np.float64)
    apart = [abs(value - one[end]) for end in ("low", "high") if one.get(end) is not None]
    return value, drawn, max(apart, default=0.0) if np.ptp(drawn) == 0 else 0.0

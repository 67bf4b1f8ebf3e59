"""Verdicts on a paper's claims, computed from what a scale measured.

A predicate asks whether a number, or the difference of two, lies in a band. Its verdict is decided
by the 95 % interval: ``reproduced`` where the whole interval lies in the band, ``not reproduced``
where none of it does, ``inconclusive`` where it straddles; ``not run`` where something was not
measured. A claim has the worst verdict of its checks; one that only says how high a published
number is, is ``not comparable`` at a scale whose numbers are not the paper's. A number without an
interval decides by itself, and the claim is marked. ``opd.results.claim_spec`` has the grammar,
``opd.results.estimate`` the numbers, ``opd.results.claims_page`` the page.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from opd.core import tables
from opd.evaluation.reader import Reader
from opd.results import claims_page, published
from opd.results.claim_spec import (
    Claim,
    Said,
    Test,
    parse,
    quantities,
    read_claims,
    read_targets,
)
from opd.results.estimate import (
    Estimate,
    Measurements,
    Missing,
    Undefined,
    difference,
    estimate,
    numbered,
)
from opd.results.labels import digits, plain, with_unit, words_of
from opd.results.quantity import MACRO, METRIC, POINTS, WHEN, Quantity, apart
from opd.stats.intervals import Interval

# From best to worst. What was not run decides over all: a claim is not judged by half.
VERDICTS = ("reproduced", "inconclusive", "not reproduced", "not comparable", "not run")
REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED, NOT_COMPARABLE, NOT_RUN = VERDICTS
ONE_SEED = "one seed"

# What may become of a published row; of several quantities the first of these.
DIFFERS, AGREES, NOT_MEASURED, WORDS = "differs", "agrees", "not measured", "words only"
STATUSES = (DIFFERS, AGREES, NOT_COMPARABLE, NOT_MEASURED, WORDS)

Band = tuple[float | None, float | None]
Rows = Mapping[str, Mapping[str, str]]


class Check(NamedTuple):
    """What one predicate found: a sentence, the number with its interval in words (``shown``, None
    where nothing was measured) and in the quantity's unit, the band that the claim allows (None:
    open to that side), the verdict, and the fewest seeds behind a number."""

    text: str
    shown: str | None
    value: float | None
    low: float | None
    high: float | None
    bound: Band
    verdict: str
    seeds: int | None = None

    @property
    def bare(self) -> bool:
        """Judged by a number that has no interval."""
        return self.value is not None and self.low == self.high


class Side(NamedTuple):
    """A quantity in words: what is measured (``overlap ratio``), of whom, and when in training."""

    what: str
    whose: str
    estimate: Estimate
    when: str = ""

    def shown(self, value: str) -> str:
        return f"{value} {self.when}".strip()

    @property
    def margin(self) -> str:
        """Unit of a difference to another."""
        return apart(self.estimate.unit)


def judge(interval: Interval, band: Band, strictly: bool = False) -> str:
    """Whether an interval lies in a band; ``strictly``: its ends do not belong to it."""
    low = -np.inf if band[0] is None else band[0]
    high = np.inf if band[1] is None else band[1]
    if strictly:
        inside = low < interval.low and interval.high < high
        outside = interval.high <= low or interval.low >= high
    else:
        inside = low <= interval.low and interval.high <= high
        outside = interval.high < low or interval.low > high
    return REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE


# Words


def ranged(interval: Interval, unit: str, seeds: int, signed: bool = False) -> str:
    """A value with its interval: 98.6 % [96.6, 100.3]."""
    value = with_unit(interval.mean, unit, signed)
    if interval.low == interval.high:
        return f"{value} ({'one seed, ' if seeds == 1 else ''}no interval)"
    if not np.isfinite(interval[1:]).all():
        return f"{value} (no bounds: a gap may be none)"
    low, high = (digits(end, unit, signed)[0] for end in interval[1:])
    return f"{value} [{low}, {high}]"


def _limit(value: float, unit: str) -> str:
    """A number of a claim itself, as it was written."""
    if unit == "share":
        text = f"{100 * value:.10g} %"
    elif unit == POINTS:
        text = f"{100 * value:.10g} point{'' if abs(value) == 0.01 else 's'}"
    else:
        text = f"{value:.10g} {unit}".strip()
    return text.replace("-", "−")


def side(quantity: Quantity, measured: Measurements) -> Side:
    """The estimate of a quantity, in words. Raises ``Missing``."""
    result = estimate(quantity, measured)
    when = WHEN[quantity.at or "end"] if quantity.kind == METRIC else ""
    if per := quantity.per:
        same_arm = per.of == quantity.of
        whole = "that" if same_arm else f"that of {measured.label(per.of, per.inputs[0])}"
        if same_arm or per.at != quantity.at:
            whole += f" {WHEN[per.at or 'end']}"
        when += f" as a share of {whole}"
    whose = measured.label(quantity.of, quantity.inputs[0])
    return Side(words_of(quantity), whose, result, when)


# Predicates


def bounded(one: Side, low: float | None, high: float | None) -> Check:
    """A quantity is at least ``low`` and at most ``high``, as far as they are given."""
    result, band = one.estimate, (low, high)
    limits = zip(("at least", "at most"), band, strict=True)
    words = [f"{word} {_limit(end, result.unit)}" for word, end in limits if end is not None]
    interval, claimed = result.interval(), f"; claimed: {' and '.join(words)}"
    shown = ranged(interval, result.unit, result.seeds)
    text = f"{one.whose}: {one.what} {one.shown(shown)}{claimed}"
    return Check(text, shown + claimed, *interval, band, judge(interval, band), result.seeds)


def greater(left: Side, right: Side, by: float = 0.0) -> Check:
    """left - right is more than ``by``."""
    claimed = f"more than {_limit(by, left.margin) if by else 0}"
    return _compared(left, right, (by, None), claimed, strictly=True)


def equivalent(left: Side, right: Side, within: float) -> Check:
    """left - right is between - ``within`` and ``within``; an interval that is wider than that can
    only be inconclusive or outside."""
    claimed = f"no more than {_limit(within, left.margin)} apart"
    return _compared(left, right, (-within, within), claimed)


def moves(start: Side, end: Side, by: float, direction: str) -> Check:
    """A metric rises (or falls) from start to end by at least ``by``."""
    claimed = f"{direction} by at least {_limit(by, start.margin)}" if by else direction
    band = (by, None) if direction == "rising" else (None, -by)
    return _compared(end, start, band, claimed, strictly=not by)


def monotone(sides: Sequence[Side], direction: str, slack: float = 0.0) -> list[Check]:
    """Every quantity is more (or less) than the one before; with ``slack``, not less (or more) by
    more than that."""
    back = f", or back by at most {_limit(slack, sides[0].margin)}" if slack else ""
    band = (-slack, None) if direction == "rising" else (None, slack)
    return [
        _compared(after, before, band, direction + back, strictly=not slack)
        for before, after in pairwise(sides)
    ]


def _compared(left: Side, right: Side, band: Band, claimed: str, strictly: bool = False) -> Check:
    apart = difference(left.estimate, right.estimate)
    interval, unit = apart.interval(), left.estimate.unit
    a, b = (with_unit(one.estimate.value, unit) for one in (left, right))
    if left.whose == right.whose:
        again = f"{right.what} " if left.what != right.what else ""
        text = f"{left.whose}: {left.what} {left.shown(a)}, {again}{right.shown(b)}"
    elif (left.what, left.when) == (right.what, right.when):
        text = f"{left.shown(left.what)}: {left.whose} {a}, {right.whose} {b}"
    else:
        sides = zip((left, right), (a, b), strict=True)
        text = "; ".join(f"{one.whose}, {one.what} {one.shown(v)}" for one, v in sides)
    shown = ranged(interval, apart.unit, apart.seeds, signed=True)
    shown += f"{_unheard(left, right, interval)}; claimed: {claimed}"
    verdict = judge(interval, band, strictly)
    seeds = min(left.estimate.seeds, right.estimate.seeds)
    return Check(f"{text}; difference {shown}", shown, *interval, band, verdict, seeds)


def _unheard(left: Side, right: Side, interval: Interval) -> str:
    """Which side's noise is not in the interval of a difference: that of the one number of a run
    that has none."""
    still = [one for one in (left, right) if one.when and np.ptp(one.estimate.draws) == 0]
    if interval.low == interval.high or len(still) != 1 or still[0].estimate.by_seed is not None:
        return ""
    return f" (without the noise of the value {still[0].when})"


# Claims


def checks(test: Test, measured: Measurements) -> list[Check]:
    """What a test finds: one check for each predicate, or a check that says what is missing."""
    if test.all:
        return [check for part in test.all for check in checks(part, measured)]
    try:
        return _checks(test, measured)
    except Missing:
        absent, undefined, seeds = _missing(test, measured)
    if absent:
        text, verdict = f"not measured: {', '.join(absent)}", NOT_RUN
    else:
        text, verdict = "; ".join(undefined), INCONCLUSIVE
    return [Check(text, None, None, None, None, (None, None), verdict, seeds)]


def _checks(test: Test, measured: Measurements) -> list[Check]:
    """The checks of one predicate. Raises ``Missing``."""
    if each := next((quantity for quantity in quantities(test) if quantity.each), None):
        names = measured.evaluations(each.of).benchmarks()
        return [check for name in names for check in checks(_on(test, name), measured)]
    if more := test.greater:
        return [greater(side(more.left, measured), side(more.right, measured), more.by)]
    if same := test.equivalent:
        return [equivalent(side(same.left, measured), side(same.right, measured), same.within)]
    if order := test.monotone:
        sides = [side(part, measured) for one in order.of for part in _parts(one, measured)]
        return monotone(sides, order.direction, order.slack)
    if course := test.rises or test.falls:
        start, end = (side(quantity, measured) for quantity in course.ends())
        return [moves(start, end, course.by, "rising" if test.rises else "falling")]
    one = side(next(quantities(test)), measured)
    if test.between:
        return [bounded(one, test.between.low, test.between.high)]
    least, most = test.at_least, test.at_most
    return [bounded(one, least.value if least else None, most.value if most else None)]


def _on(part: Any, benchmark: str) -> Any:
    """A test on each benchmark as one on this one."""
    if isinstance(part, Quantity):
        return replace(part, name=benchmark) if part.each else part
    if isinstance(part, list):
        return [_on(one, benchmark) for one in part]
    if isinstance(part, BaseModel):
        keys = part.model_fields_set
        return part.model_copy(update={key: _on(getattr(part, key), benchmark) for key in keys})
    return part


def _parts(quantity: Quantity, measured: Measurements) -> list[Quantity]:
    """The values that a probe's NAME_* stands for, by number; else the quantity itself."""
    if not quantity.several:
        return [quantity]
    return [replace(quantity, name=name) for name in numbered(quantity, measured)]


def _missing(test: Test, measured: Measurements) -> tuple[list[str], list[str], int | None]:
    """What a test needs and this scale has not, and what of it was measured and is undefined, each
    once; and the fewest seeds behind the numbers that it has, None where it has none."""
    absent: dict[str, None] = {}
    undefined: dict[str, None] = {}
    seeds: list[int] = []
    for quantity in quantities(test):
        try:
            for part in _parts(_on(quantity, MACRO), measured):
                seeds.append(estimate(part, measured).seeds)
        except Undefined as reason:
            undefined[str(reason)] = None
        except Missing as reason:
            absent[str(reason)] = None
    return list(absent), list(undefined), min(seeds, default=None)


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of a conjunction."""
    return max(verdicts, key=VERDICTS.index)


def _reason(made: Sequence[Check], seeds: int | None, verdict: str) -> str:
    """Why a claim has its verdict, in a few words."""
    if verdict == NOT_COMPARABLE:
        return "it says how high a number is, and numbers of this scale are not the paper's"
    missing = [check.text for check in made if check.verdict == NOT_RUN]
    if missing:
        return "; ".join(dict.fromkeys(missing))
    counts = Counter(check.verdict for check in made)
    parts = [f"{counts[v]} of {len(made)} checks {v}" for v in VERDICTS if counts[v]]
    parts = parts if len(counts) > 1 else []
    return "; ".join(parts + ([ONE_SEED] if seeds == 1 else []))


_COLUMNS = ("student", "teacher", "metric", "benchmark", "setting", "value", "confidence", "source")


def beside(said: Said, rows: Rows, measured: Measurements, comparable: bool) -> dict[str, Any]:
    """A published row with our number for it, how far apart the two are, and its status: a
    published number or range ``agrees`` where it overlaps our interval, else ``differs``."""
    row = rows[said.target]
    printed, reach = published.parse(row["value"]), published.reach(row["value"])
    status, ours, apart_from = NOT_MEASURED if printed else WORDS, None, None
    notes = [f"not tested: {said.untested}"] if said.untested else []
    try:
        result = estimate(said.quantity, measured) if said.quantity else None
    except Missing as missing:
        notes.append(str(missing))
        result = None
    if result:
        interval = result.interval()
        ours = _bounds(interval, result.unit, result.seeds)
        if printed and not comparable:
            status = NOT_COMPARABLE
        elif reach:
            status = AGREES if reach[0] <= interval.high and interval.low <= reach[1] else DIFFERS
        if comparable and printed and printed.single:
            moved = Interval(*(end - printed.low for end in interval))
            apart_from = _bounds(moved, apart(result.unit), result.seeds, signed=True)
    return {
        "target": said.target,
        **{key: row[key] for key in _COLUMNS},
        "ours": ours,
        "difference": apart_from,
        "status": status,
        "note": "; ".join(notes) or None,
    }


def _bounds(interval: Interval, unit: str, seeds: int, signed: bool = False) -> dict[str, Any]:
    value, low, high = map(plain, interval)
    text = ranged(interval, unit, seeds, signed)
    return {"value": value, "low": low, "high": high, "text": text}


def _judged(claim: Claim, rows: Rows, measured: Measurements, comparable: bool) -> dict[str, Any]:
    made = checks(claim.test, measured)
    seeds = min((check.seeds for check in made if check.seeds), default=None)
    verdict = worst([check.verdict for check in made])
    if claim.level and not comparable and verdict != NOT_RUN:
        made = [check._replace(verdict=NOT_COMPARABLE) for check in made]
        verdict = NOT_COMPARABLE
    keys = ("text", "shown", "value", "low", "high", "bound", "verdict")
    return {
        **claim.model_dump(exclude={"test", "published"}),
        "verdict": verdict,
        "interval": not any(check.bare for check in made),
        "reason": _reason(made, seeds, verdict),
        "seeds": seeds,
        "checks": [{key: _plain(getattr(check, key)) for key in keys} for check in made],
        "published": [beside(row, rows, measured, comparable) for row in claim.published],
    }


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, float) else value


def _rows(
    paper: str,
    rows: Rows,
    judged: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Sequence[str]],
    marked: Mapping[str, Mapping[str, Any]],
    context: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Every published row of a paper, and what became of it.

    ``marked``: rows that figures have, as ``beside`` gives them. The status is of the row's own
    number, and has nothing to do with the verdicts of its claims: one of STATUSES, ``context``, or
    ``unattached``.
    """
    reasons = {target: one["reason"] for one in context for target in one["targets"]}
    listed = []
    for target, row in rows.items():
        said = [
            (claim, entry)
            for claim in judged
            for entry in claim["published"]
            if entry["target"] == target
        ]
        entries = [entry for _, entry in said] or [marked[key] for key in marked if key == target]
        claims = {claim["id"]: claim["verdict"] for claim, _ in said}
        statuses = [entry["status"] for entry in entries]
        status = min(statuses, key=STATUSES.index, default="unattached")
        notes = dict.fromkeys(entry["note"] for entry in entries if entry["note"])
        ours = dict.fromkeys(entry["ours"]["text"] for entry in entries if entry["ours"])
        listed.append(
            {
                "paper": paper,
                "id": target,
                "experiment": row["experiment_id"],
                "figure": row["figure_or_table"],
                **{key: row[key] for key in ("metric", "benchmark", "setting")},
                "value": row["value"],
                "confidence": row["confidence"],
                "ours": list(ours),
                "claims": list(claims),
                "verdicts": list(claims.values()),
                "figures": [name for name, ids in figures.items() if target in ids],
                "context": reasons.get(target),
                "status": "context" if target in reasons else status,
                "note": "; ".join(notes) or None,
            }
        )
    return listed


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``claims``: claims.json, claims.md and claims.html.

    cfg: ``scale``, ``comparable`` (whether published numbers may be compared with this scale's),
    ``seeds``, ``arms`` and ``probes`` (see ``opd.results.estimate.Measurements``), ``figures``
    {PAPER/name: [published rows]}, ``marked`` {PAPER: {row: quantity}} of rows that only figures
    have; ``resamples`` and ``seed`` of the bootstrap. Inputs: those that arms and probes name, and
    for each paper its files claims:PAPER and targets:PAPER. Ids of claims and of rows are a paper's
    own: two papers may have the same. Returns the counts of verdicts.
    """
    measured = Measurements(cfg, Reader(inputs))
    papers: dict[str, dict[str, Any]] = {}
    claims: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    for name, path in inputs.items():
        if not name.startswith("claims:"):
            continue
        paper = name.partition(":")[2]
        given = read_claims(path)
        rows = {row["id"]: row for row in read_targets(inputs[f"targets:{paper}"])}
        parsed = sorted(parse(given["claims"]), key=lambda claim: claim.experiment)
        judged = [
            {"paper": paper, **_judged(claim, rows, measured, cfg["comparable"])}
            for claim in parsed
        ]
        figures = {n: i for n, i in cfg.get("figures", {}).items() if n.startswith(f"{paper}/")}
        marked = dict.fromkeys(target for ids in figures.values() for target in ids)
        marked |= cfg.get("marked", {}).get(paper, {})
        drawn = {
            target: beside(Said(target=target, quantity=one), rows, measured, cfg["comparable"])
            for target, one in marked.items()
        }
        papers[paper] = {"title": given["title"], **_counts(judged)}
        claims += judged
        targets += _rows(paper, rows, judged, figures, drawn, given["context"])
    result = {
        "scale": cfg["scale"],
        "comparable": cfg["comparable"],
        "seeds": cfg["seeds"],
        **_counts(claims),
        "papers": papers,
        "claims": claims,
        "targets": targets,
    }
    tables.write_json(out / "claims.json", json.loads(json.dumps(result)))
    tables.write_text(out / "claims.md", claims_page.markdown(result))
    tables.write_text(out / "claims.html", claims_page.page(result))
    counts: dict[str, int] = result["counts"]
    return counts


def _counts(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many claims have which verdict, and how many of these by a number without interval."""
    every = [claim["verdict"] for claim in judged]
    bare = [claim["verdict"] for claim in judged if not claim["interval"]]
    return {
        "counts": {v: every.count(v) for v in VERDICTS},
        "without_interval": {v: bare.count(v) for v in VERDICTS},
    }

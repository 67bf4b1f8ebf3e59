"""Verdicts on a paper's claims, computed from what a scale measured.

A predicate asks whether a number, or the difference of two, lies in a band. Its verdict is decided
by the 95 % interval: ``reproduced`` where the whole interval lies in the band, ``not reproduced``
where none of it does, ``inconclusive`` where it straddles; ``not run`` where something was not
measured. A claim has the worst verdict of its checks; one that only says how high a published
number is, is ``not comparable`` at a scale whose numbers are not the paper's. A number without an
interval decides by itself, and the claim is marked. ``opd.results.claim_spec`` has the grammar,
``opd.results.estimate`` the numbers, ``opd.results.claims_page`` the page.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.core import tables
from opd.evaluation.reader import Reader
from opd.results import claim_spec, claims_page, published
from opd.results.claim_spec import Claim, Said, Test, quantities
from opd.results.estimate import Estimate, Measurements, Missing, Undefined, estimate, numbered
from opd.results.labels import digits, ends, plain, with_unit, words_of
from opd.results.quantity import MACRO, METRIC, POINTS, PROBE, WHEN, Quantity, apart
from opd.stats.intervals import Interval

# From best to worst. What was not run decides over all: a claim is not judged by half.
VERDICTS = ("reproduced", "inconclusive", "not reproduced", "not comparable", "not run")
REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED, NOT_COMPARABLE, NOT_RUN = VERDICTS

# What may become of a published row; of several quantities the first of these.
DIFFERS, AGREES, NOT_MEASURED, WORDS = "differs", "agrees", "not measured", "words only"
STATUSES = (DIFFERS, AGREES, NOT_COMPARABLE, NOT_MEASURED, WORDS)

Band = tuple[float | None, float | None]
Rows = Mapping[str, Mapping[str, str]]


class Check(NamedTuple):
    """What one predicate found: a sentence, the verdict, the number with its interval in words
    (``shown``) and in the quantity's unit, all None where nothing was measured, the band that the
    claim allows (None: open to that side), the fewest seeds behind a number, and its unit."""

    text: str
    verdict: str
    shown: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: Band = (None, None)
    seeds: int | None = None
    unit: str = ""

    def rejects(self) -> tuple[float, float] | None:
        """Below and above which value a number with an interval of the same width would be ``not
        reproduced``: where the whole interval lies beyond an end of the band, so half its width
        further out. None where the band is open to a side or the interval has no ends."""
        low, high = self.bound
        if self.low is None or self.high is None or low is None or high is None:
            return None
        half = (self.high - self.low) / 2
        return (low - half, high + half) if np.isfinite(half) else None

    def precision(self) -> str | None:
        """What ``rejects`` says, in a sentence."""
        ends = self.rejects()
        if ends is None:
            return None
        low, high = (with_unit(end, self.unit) for end in ends)
        width = "of this width" if self.low != self.high else "of no width"
        text = f"With an interval {width}, less than {low} or more than {high} would"
        return f"{text} be not reproduced."


class Side(NamedTuple):
    """A quantity in words: what is measured (``overlap ratio``), of whom, and when in training."""

    what: str
    whose: str
    estimate: Estimate
    when: str = ""

    def at(self, text: str) -> str:
        """A text with the time behind it."""
        return f"{text} {self.when}".strip()


def judge(interval: Interval, band: Band, strictly: bool = False) -> str:
    """Whether an interval lies in a band; ``strictly``: its ends do not belong to it."""
    low = -np.inf if band[0] is None else band[0]
    high = np.inf if band[1] is None else band[1]
    if np.isnan(interval).any():
        return INCONCLUSIVE
    below = operator.lt if strictly else operator.le
    if below(low, interval.low) and below(interval.high, high):
        return REPRODUCED
    reached = below(low, interval.high) and below(interval.low, high)
    return INCONCLUSIVE if reached else NOT_REPRODUCED


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
    if unit in ("share", POINTS):
        value = 100 * value
        unit = "%" if unit == "share" else "point" if abs(value) == 1 else "points"
    return f"{value:.10g} {unit}".strip().replace("-", "−")


def side(quantity: Quantity, measured: Measurements) -> Side:
    """The estimate of a quantity, in words. Raises ``Missing``."""
    result = estimate(quantity, measured)
    if quantity.kind == PROBE:
        return Side(_value(quantity, measured), measured.label(quantity.of, "probe"), result)
    when = WHEN[quantity.at or "end"] if quantity.kind == METRIC else ""
    if per := quantity.per:
        same_arm = per.of == quantity.of
        whole = "that" if same_arm else f"that of {measured.label(per.of, per.inputs[0])}"
        if same_arm or per.at != quantity.at:
            whole += f" {WHEN[per.at or 'end']}"
        when += f" as a share of {whole}"
    if quantity.less:
        when += f" less that {WHEN[quantity.less.at or 'end']}"
    whose = measured.label(quantity.of, quantity.inputs[0])
    return Side(words_of(quantity), whose, result, when)


def _value(quantity: Quantity, measured: Measurements) -> str:
    """A value of a probe in words, with what it is compared with: signal positive over signal."""
    words, other = words_of(quantity), quantity.per or quantity.less
    if other is None:
        return words
    compared = "that" if other.name == quantity.name else words_of(other)
    if other.of != quantity.of:
        compared += f" of {measured.label(other.of, 'probe')}"
    return f"{words} {'over' if quantity.per else 'less'} {compared}"


# Predicates


def bounded(side: Side, low: float | None, high: float | None) -> Check:
    """A quantity is at least ``low`` and at most ``high``, as far as they are given."""
    result, band = side.estimate, (low, high)
    limits = zip(("at least", "at most"), band, strict=True)
    words = [f"{word} {_limit(end, result.unit)}" for word, end in limits if end is not None]
    interval, claimed = result.interval(), f"; claimed: {' and '.join(words)}"
    shown = ranged(interval, result.unit, result.seeds)
    text = f"{side.whose}: {side.what} {side.at(shown)}{claimed}"
    verdict, shown = judge(interval, band), shown + claimed
    return Check(text, verdict, shown, *interval, band, result.seeds, result.unit)


def greater(left: Side, right: Side, by: float = 0.0) -> Check:
    """left - right is more than ``by``."""
    claimed = f"more than {_limit(by, apart(left.estimate.unit)) if by else 0}"
    return _compared(left, right, (by, None), claimed, strictly=True)


def equivalent(left: Side, right: Side, within: float) -> Check:
    """left - right is between - ``within`` and ``within``; an interval that is wider than that can
    only be inconclusive or outside."""
    claimed = f"no more than {_limit(within, apart(left.estimate.unit))} apart"
    return _compared(left, right, (-within, within), claimed)


def monotone(sides: Sequence[Side], direction: str, by: float = 0.0) -> list[Check]:
    """Every quantity is more (or less) than the one before, by at least ``by``; where that is below
    zero it may go back by as much. One quantity alone has no order, and is not judged."""
    if len(sides) < 2:
        (only,) = sides
        text = f"not measured: a second value of {only.what} of {only.whose}"
        return [Check(text, NOT_RUN, seeds=only.estimate.seeds)]
    amount = _limit(abs(by), apart(sides[0].estimate.unit))
    words = f" by at least {amount}" if by > 0 else f", or back by at most {amount}" if by else ""
    band = (by, None) if direction == "rising" else (None, -by)
    return [
        _compared(after, before, band, direction + words, strictly=not by)
        for before, after in pairwise(sides)
    ]


def _compared(left: Side, right: Side, band: Band, claimed: str, strictly: bool = False) -> Check:
    difference, unit = left.estimate - right.estimate, left.estimate.unit
    interval = difference.interval()
    a, b = (with_unit(side.estimate.value, unit) for side in (left, right))
    if left.whose == right.whose:
        again = f"{right.what} " if left.what != right.what else ""
        text = f"{left.whose}: {left.what} {left.at(a)}, {again}{right.at(b)}"
    elif (left.what, left.when) == (right.what, right.when):
        text = f"{left.at(left.what)}: {left.whose} {a}, {right.whose} {b}"
    else:
        text = f"{left.whose}, {left.what} {left.at(a)}; {right.whose}, {right.what} {right.at(b)}"
    shown = ranged(interval, difference.unit, difference.seeds, signed=True)
    shown += f"{_unheard(left, right, interval)}; claimed: {claimed}"
    verdict = judge(interval, band, strictly)
    seeds, text = min(left.estimate.seeds, right.estimate.seeds), f"{text}; difference {shown}"
    return Check(text, verdict, shown, *interval, band, seeds, difference.unit)


def _unheard(left: Side, right: Side, interval: Interval) -> str:
    """Which side's noise the interval of a difference lacks, as its one number has none."""
    still = [side for side in (left, right) if side.when and np.ptp(side.estimate.draws) == 0]
    if interval.low == interval.high or len(still) != 1 or still[0].estimate.by_seed is not None:
        return ""
    return f" (without the noise of the value {still[0].when})"


# Claims


def checks(test: Test, measured: Measurements) -> list[Check]:
    """What a test finds: a check for each predicate, on each benchmark if it says so."""
    if test.all:
        return [check for part in test.all for check in checks(part, measured)]
    benchmarks: Sequence[str] = (MACRO,)
    arms = [quantity.of for quantity in quantities(test) if quantity.each]
    with suppress(Missing):
        benchmarks = measured.evaluations(arms[0]).benchmarks() if arms else benchmarks
    return [check for benchmark in benchmarks for check in _checks(test, benchmark, measured)]


def _checks(test: Test, benchmark: str, measured: Measurements) -> list[Check]:
    """The checks of one predicate, or one that says all that was not measured, or is undefined."""
    sides: list[Side] = []
    reasons: list[Missing] = []
    for quantity in quantities(test):
        try:
            for part in _parts(quantity, benchmark, measured):
                sides.append(side(part, measured))
        except Missing as reason:
            reasons.append(reason)
    seeds = min((side.estimate.seeds for side in sides), default=None)
    if absent := [str(reason) for reason in reasons if not isinstance(reason, Undefined)]:
        return [Check(f"not measured: {', '.join(dict.fromkeys(absent))}", NOT_RUN, seeds=seeds)]
    if reasons:
        return [Check("; ".join(dict.fromkeys(map(str, reasons))), INCONCLUSIVE, seeds=seeds)]
    if test.monotone:
        return monotone(sides, test.monotone.direction, -test.monotone.slack)
    if course := test.rises or test.falls:
        start = side(replace(course.of, at="start"), measured)
        return monotone([start, *sides], "rising" if test.rises else "falling", course.by)
    first, last = sides[0], sides[-1]
    if test.greater:
        return [greater(first, last, test.greater.by)]
    if test.equivalent:
        return [equivalent(first, last, test.equivalent.within)]
    if test.between:
        return [bounded(last, test.between.low, test.between.high)]
    least, most = test.at_least, test.at_most
    return [bounded(last, least.value if least else None, most.value if most else None)]


def _parts(quantity: Quantity, benchmark: str, measured: Measurements) -> list[Quantity]:
    """What a quantity stands for: values of a probe by number, or itself on this benchmark."""
    if quantity.several:
        return [replace(quantity, name=name) for name in numbered(quantity, measured)]
    return [replace(quantity, name=benchmark) if quantity.each else quantity]


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
    return "; ".join((parts if len(counts) > 1 else []) + (["one seed"] if seeds == 1 else []))


def beside(said: Said, rows: Rows, measured: Measurements, comparable: bool) -> dict[str, Any]:
    """A published row with our number for it, how far apart the two are, and its status: a
    published number or range ``agrees`` where it overlaps our interval, else ``differs``."""
    row, result = rows[said.target], None
    printed = published.parse(row["value"])
    status, ours, distance = NOT_MEASURED if printed else WORDS, None, None
    notes = [f"not tested: {said.untested}"] if said.untested else []
    try:
        result = estimate(said.quantity, measured) if said.quantity else None
    except Missing as missing:
        notes.append(str(missing))
    if result:
        interval = result.interval()
        ours = {**ends(interval), "text": ranged(interval, result.unit, result.seeds)}
        if printed and not comparable:
            status = NOT_COMPARABLE
        elif printed:
            low, high = printed.reach
            status = AGREES if low <= interval.high and interval.low <= high else DIFFERS
        # Of one number, exact or rough: no range and no bound.
        if comparable and printed and printed.low == printed.high and printed.bound in ("", "~"):
            moved = Interval(*(end - printed.low for end in interval))
            text = ranged(moved, apart(result.unit), result.seeds, signed=True)
            distance = {**ends(moved), "text": text}
    return {
        "target": said.target,
        **{key: row[key] for key in claim_spec.ABOUT},
        "ours": ours,
        "difference": distance,
        "status": status,
        "note": "; ".join(notes) or None,
    }


def _judged(claim: Claim, rows: Rows, measured: Measurements, comparable: bool) -> dict[str, Any]:
    made = checks(claim.test, measured)
    seeds = min((check.seeds for check in made if check.seeds), default=None)
    verdict = worst([check.verdict for check in made])
    if claim.level and not comparable and verdict != NOT_RUN:
        made = [check._replace(verdict=NOT_COMPARABLE) for check in made]
        verdict = NOT_COMPARABLE
    return {
        **claim.model_dump(exclude={"test", "published"}),
        "verdict": verdict,
        "interval": all(check.value is None or check.low != check.high for check in made),
        "reason": _reason(made, seeds, verdict),
        "seeds": seeds,
        "checks": [
            {
                **{key: plain(getattr(check, key)) for key in ("value", "low", "high")},
                **{key: getattr(check, key) for key in ("text", "shown", "bound", "verdict")},
                "rejects": [*map(plain, check.rejects() or ())] or None,
                "precision": check.precision(),
            }
            for check in made
        ],
        "published": [beside(row, rows, measured, comparable) for row in claim.published],
    }


def _paper(
    paper: str, cfg: Mapping[str, Any], inputs: Mapping[str, Path], measured: Measurements
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The titles of a paper and of its experiments, its claims with their verdicts, and its
    published rows with what became of each. The status of a row is of its own number, and has
    nothing to do with the verdicts of its claims: one of STATUSES, ``context``, or
    ``unattached``."""
    file, comparable = claim_spec.read_claims(inputs[f"claims:{paper}"]), cfg["comparable"]
    rows = {row["id"]: row for row in claim_spec.read_targets(inputs[f"targets:{paper}"])}
    parsed = sorted(claim_spec.parse(file["claims"]), key=lambda claim: claim.experiment)
    judged = [{"paper": paper, **_judged(c, rows, measured, comparable)} for c in parsed]
    published = [(claim, entry) for claim in judged for entry in claim["published"]]
    figures = {n: ids for n, ids in cfg.get("figures", {}).items() if n.startswith(f"{paper}/")}
    marked = cfg.get("marked", {}).get(paper, {})
    reasons = {row: context["reason"] for context in file["context"] for row in context["targets"]}
    targets = []
    for target, row in rows.items():
        drawn = [name for name, ids in figures.items() if target in ids]
        claims = {c["id"]: c["verdict"] for c, entry in published if entry["target"] == target}
        entries = [entry for _, entry in published if entry["target"] == target]
        if drawn and not entries:
            said = Said(target=target, quantity=marked.get(target))
            entries = [beside(said, rows, measured, comparable)]
        statuses = [entry["status"] for entry in entries]
        status = min(statuses, key=STATUSES.index, default="unattached")
        notes = dict.fromkeys(entry["note"] for entry in entries if entry["note"])
        ours = dict.fromkeys(entry["ours"]["text"] for entry in entries if entry["ours"])
        targets.append(
            {
                "paper": paper,
                "id": target,
                "experiment": row["experiment_id"],
                "figure": row["figure_or_table"],
                **{k: row[k] for k in ("metric", "benchmark", "setting", "value", "confidence")},
                "ours": [*ours],
                "claims": [*claims],
                "verdicts": [*claims.values()],
                "figures": drawn,
                "context": reasons.get(target),
                "status": "context" if target in reasons else status,
                "note": "; ".join(notes) or None,
            }
        )
    return {key: file[key] for key in ("title", "experiments")}, judged, targets


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
    names = [name.partition(":")[2] for name in inputs if name.startswith("claims:")]
    made = {paper: _paper(paper, cfg, inputs, measured) for paper in names}
    papers = {name: {**titles, **_counts(c)} for name, (titles, c, _) in made.items()}
    claims = [claim for _, judged, _ in made.values() for claim in judged]
    targets = [row for _, _, rows in made.values() for row in rows]
    counts = _counts(claims)
    scale = {key: cfg[key] for key in ("scale", "comparable", "seeds")}
    result = {**scale, **counts, "papers": papers, "claims": claims, "targets": targets}
    tables.write_json(out / "claims.json", result)
    tables.write_text(out / "claims.md", claims_page.markdown(result))
    tables.write_text(out / "claims.html", claims_page.page(result))
    return counts["counts"]


def _counts(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many claims have which verdict, and how many of these by a number without interval; those
    that are this project's own apart, under ``ours``."""
    of_papers, ours = (_verdicts([c for c in judged if c["ours"] is own]) for own in (False, True))
    return {**of_papers, "ours": ours}


def _verdicts(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    verdicts = Counter(claim["verdict"] for claim in judged)
    bare = Counter(claim["verdict"] for claim in judged if not claim["interval"])
    return {
        "counts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "without_interval": {verdict: bare[verdict] for verdict in VERDICTS},
    }

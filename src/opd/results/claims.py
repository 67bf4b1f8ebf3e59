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
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from opd.core import tables
from opd.core.files import canonical
from opd.evaluation.reader import MACRO, Reader
from opd.results import claim_spec, claims_page, published
from opd.results.claim_spec import (
    EACH,
    Claim,
    Curve,
    Metric,
    Moves,
    Probe,
    Said,
    Scored,
    Test,
    parse,
    quantities,
    read_claims,
    read_targets,
)
from opd.results.estimate import (
    Estimate,
    Missing,
    Undefined,
    benchmarks,
    difference,
    estimate,
    numbered,
)
from opd.stats.intervals import RESAMPLES, Interval

# From best to worst. What was not run decides over all: a claim is not judged by half.
VERDICTS = ("reproduced", "inconclusive", "not reproduced", "not comparable", "not run")
REPRODUCED, INCONCLUSIVE, NOT_REPRODUCED, NOT_COMPARABLE, NOT_RUN = VERDICTS
ONE_SEED = "one seed"

# What may become of a published row; of several quantities the first of these.
DIFFERS, AGREES, NOT_MEASURED, WORDS = "differs", "agrees", "not measured", "words only"
STATUSES = (DIFFERS, AGREES, NOT_COMPARABLE, NOT_MEASURED, WORDS)

Band = tuple[float | None, float | None]


class Check(NamedTuple):
    """What one predicate found: a sentence, the number with its interval in words (``shown``, None
    where nothing was measured) and in the quantity's unit, the band that the claim allows (None:
    open to that side), and the verdict."""

    text: str
    shown: str | None
    value: float | None
    low: float | None
    high: float | None
    bound: Band
    verdict: str

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


def judge(found: Interval, band: Band, strictly: bool = False) -> str:
    """Whether an interval lies in a band; ``strictly``: its ends do not belong to it."""
    low = -np.inf if band[0] is None else band[0]
    high = np.inf if band[1] is None else band[1]
    if strictly:
        inside = low < found.low and found.high < high
        outside = found.high <= low or found.low >= high
    else:
        inside = low <= found.low and found.high <= high
        outside = found.high < low or found.low > high
    return REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE


# Words


def number(value: float, unit: str, signed: bool = False) -> str:
    """A value with its unit: 98.6 %, +1.2 points, 0.345 nats."""
    text, suffix = _digits(value, unit, signed)
    return f"{text} {suffix}".strip()


def _digits(value: float, unit: str, signed: bool = False) -> tuple[str, str]:
    sign = "+" if signed or unit == "points of a share" else ""
    if unit in ("share", "points of a share"):
        text = f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no minus zero
        suffix = "%" if unit == "share" else "points"
    else:
        text = f"{value:{sign}.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:{sign}.3g}"
        suffix = unit
    return text.replace("-", "−"), suffix


def ranged(found: Interval, unit: str, seeds: int, signed: bool = False) -> str:
    """A value with its interval: 98.6 % [96.6, 100.3]."""
    if found.low == found.high:
        why = "one seed, no interval" if seeds == 1 else "no interval"
        return f"{number(found.mean, unit, signed)} ({why})"
    if not np.isfinite(found[1:]).all():
        return f"{number(found.mean, unit, signed)} (no bounds: a gap may be none)"
    low, high = (_digits(bound, unit, signed)[0] for bound in found[1:])
    return f"{number(found.mean, unit, signed)} [{low}, {high}]"


def _limit(value: float, unit: str) -> str:
    """A number of a claim itself, as it was written."""
    if unit == "share":
        text = f"{100 * value:.10g} %"
    elif unit == "points of a share":
        text = f"{100 * value:.10g} point{'' if abs(value) == 0.01 else 's'}"
    else:
        text = f"{value:.10g} {unit}".strip()
    return text.replace("-", "−")


def _words(name: str) -> str:
    """A metric's name in words, without its unit: entropy_student_nats -> student's entropy."""
    if name in ("loss", "grad_norm", "auroc"):
        return {"grad_norm": "gradient norm", "auroc": "AUROC"}.get(name, name)
    words = name.removesuffix("_nats").split("_")
    if words[-1] in ("student", "teacher"):
        words = [f"{words[-1]}'s", *words[:-1]]
    return " ".join(words)


_WHEN = {
    "start": "at the start",
    "end": "at the end",
    "late": "in the second half of training",
    "mean": "over training",
    "min": "at its lowest",
    "max": "at its highest",
    "jump": "in its largest step",
    "drop": "from its highest to the end",
}


def side(
    quantity: BaseModel,
    estimate: Estimate,
    arms: Mapping[str, Mapping[str, Any]],
    probes: Mapping[str, Mapping[str, Any]],
) -> Side:
    """An estimate in words: of which arm or probe, by its label."""
    if isinstance(quantity, Probe):
        what = _words(quantity.value)
        if quantity.at:
            what = f"{quantity.at} {what.removesuffix(' *')}"
        return Side(what, probes[quantity.probe]["label"], estimate)
    if isinstance(quantity, Scored):
        kind, arm = next((k, v) for k, v in quantity if k != "benchmark")
        what = {
            "avg": "accuracy",
            "change": "gain",
            "recovery": "share of the gap recovered",
            "length": "length of responses as a share of that before",
        }[kind]
        if quantity.benchmark != "macro":
            what += f" on {quantity.benchmark}"
        return Side(what, arms[arm]["label"], estimate)
    assert isinstance(quantity, Metric)
    what = _words(quantity.metric)
    if quantity.positions:
        what += f" in the {quantity.positions} half of responses"
    when = _WHEN[quantity.at]
    if per := quantity.per:
        whole = f"that {_WHEN[per.at]}" if per.of in (None, quantity.of) else ""
        whole = whole or f"that of {arms[per.of or '']['label']}"
        if per.of not in (None, quantity.of) and per.at != quantity.at:
            whole += f" {_WHEN[per.at]}"
        when += f" as a share of {whole}"
    return Side(what, arms[quantity.of]["label"], estimate, when)


# Predicates


def bounded(of: Side, low: float | None, high: float | None) -> Check:
    """A quantity is at least ``low`` and at most ``high``, as far as they are given."""
    found, unit = of.estimate.interval(), of.estimate.unit
    words = [
        f"{word} {_limit(limit, unit)}"
        for word, limit in (("at least", low), ("at most", high))
        if limit is not None
    ]
    shown, claimed = ranged(found, unit, of.estimate.seeds), " and ".join(words)
    text = f"{of.whose}: {of.what} {of.shown(shown)}; claimed: {claimed}"
    return Check(
        text, f"{shown}; claimed: {claimed}", *found, (low, high), judge(found, (low, high))
    )


def greater(left: Side, right: Side, by: float = 0.0) -> Check:
    """left - right is more than ``by``."""
    claimed = f"more than {_limit(by, _apart(left)) if by else 0}"
    return _compared(left, right, (by, None), claimed, strictly=True)


def equivalent(left: Side, right: Side, within: float) -> Check:
    """left - right is between - ``within`` and ``within``; an interval that is wider than that can
    only be inconclusive or outside."""
    claimed = f"no more than {_limit(within, _apart(left))} apart"
    return _compared(left, right, (-within, within), claimed)


def moves(start: Side, end: Side, by: float, direction: str) -> Check:
    """A metric rises (or falls) from start to end by at least ``by``."""
    claimed = f"{direction} by at least {_limit(by, _apart(start))}" if by else direction
    band = (by, None) if direction == "rising" else (None, -by)
    return _compared(end, start, band, claimed, strictly=not by)


def monotone(sides: Sequence[Side], direction: str, slack: float = 0.0) -> list[Check]:
    """Every quantity is more (or less) than the one before; with ``slack``, not less (or more) by
    more than that."""
    back = f", or back by at most {_limit(slack, _apart(sides[0]))}" if slack else ""
    band = (-slack, None) if direction == "rising" else (None, slack)
    return [
        _compared(after, before, band, direction + back, strictly=not slack)
        for before, after in pairwise(sides)
    ]


def _apart(one: Side) -> str:
    return claim_spec.apart(one.estimate.unit)


def _compared(left: Side, right: Side, band: Band, claimed: str, strictly: bool = False) -> Check:
    apart = difference(left.estimate, right.estimate)
    found, unit = apart.interval(), left.estimate.unit
    a, b = (number(one.estimate.value, unit) for one in (left, right))
    if left.whose == right.whose and left.what == right.what:
        text = f"{left.whose}: {left.what} {left.shown(a)}, {right.shown(b)}"
    elif left.whose == right.whose:
        text = f"{left.whose}: {left.what} {left.shown(a)}, {right.what} {right.shown(b)}"
    elif (left.what, left.when) == (right.what, right.when):
        text = f"{left.shown(left.what)}: {left.whose} {a}, {right.whose} {b}"
    else:
        sides = zip((left, right), (a, b), strict=True)
        text = "; ".join(f"{one.whose}, {one.what} {one.shown(v)}" for one, v in sides)
    shown = ranged(found, apart.unit, apart.seeds, signed=True) + _unheard(left, right, found)
    text += f"; difference {shown}; claimed: {claimed}"
    return Check(text, f"{shown}; claimed: {claimed}", *found, band, judge(found, band, strictly))


def _unheard(left: Side, right: Side, found: Interval) -> str:
    """Which side's noise is not in the interval of a difference: that of the one number of a run
    that has none."""
    still = [one for one in (left, right) if one.when and np.ptp(one.estimate.draws) == 0]
    if found.low == found.high or len(still) != 1 or still[0].estimate.by_seed is not None:
        return ""
    return f" (without the noise of the value {still[0].when})"


# Claims


class Measured:
    """Estimates of a scale, each made once; ``seeds`` collects how many there were behind each."""

    def __init__(self, cfg: Mapping[str, Any], reader: Reader) -> None:
        self.reader, self.arms, self.probes = reader, cfg["arms"], cfg["probes"]
        self.drawn = (cfg.get("resamples", RESAMPLES), cfg.get("seed", 0))
        self.seeds: set[int] = set()
        self._made: dict[str, Estimate | Missing] = {}

    def of(self, quantity: BaseModel) -> Side:
        """Raises ``Missing``."""
        asked = quantity.model_dump(exclude_none=True)
        key = canonical(asked)
        if key not in self._made:
            try:
                self._made[key] = estimate(asked, self.reader, self.arms, self.probes, *self.drawn)
            except Missing as missing:
                self._made[key] = missing
        found = self._made[key]
        if isinstance(found, Missing):
            raise found
        self.seeds.add(found.seeds)
        return side(quantity, found, self.arms, self.probes)

    def numbered(self, quantity: BaseModel) -> list[BaseModel]:
        """The values that a probe's NAME_* stands for, by number; else the quantity itself."""
        if not (isinstance(quantity, Probe) and quantity.numbered and quantity.at is None):
            return [quantity]
        names = numbered(quantity.model_dump(), self.reader, self.probes)
        return [Probe(probe=quantity.probe, value=name) for name in names]

    def missing(self, test: Test) -> tuple[list[str], list[str]]:
        """What a test needs and this scale has not, and what of it was measured and is undefined;
        each once."""
        absent: dict[str, None] = {}
        undefined: dict[str, None] = {}
        for one in quantities(test):
            if isinstance(one, Scored) and one.benchmark == EACH:
                one = one.model_copy(update={"benchmark": MACRO})
            try:
                for part in _ends(one) if type(one) is Curve else self.numbered(one):
                    self.of(part)
            except Undefined as reason:
                undefined[str(reason)] = None
            except Missing as reason:
                absent[str(reason)] = None
        return list(absent), list(undefined)

    def written_out(self, test: Test) -> Test:
        """A test on ``benchmark: each`` as one on every benchmark. Raises ``Missing``."""
        scored = [one for one in quantities(test) if isinstance(one, Scored)]
        if test.all or not any(one.benchmark == EACH for one in scored):
            return test
        names = benchmarks(scored[0].model_dump(), self.reader, self.arms)
        parts = [Test.model_validate(_on(test.model_dump(exclude_none=True), n)) for n in names]
        return Test(all=parts)


def _on(test: Any, benchmark: str) -> Any:
    if isinstance(test, list):
        return [_on(one, benchmark) for one in test]
    if not isinstance(test, dict):
        return test
    return {
        key: benchmark if (key, value) == ("benchmark", EACH) else _on(value, benchmark)
        for key, value in test.items()
    }


def _ends(curve: Curve) -> list[BaseModel]:
    given = curve.model_dump()
    return [Metric(**given, at="start"), Metric(**given, at="end")]


def checks(test: Test, measured: Measured) -> list[Check]:
    """What a test finds: one check for each predicate, or a check that says what is missing."""
    if test.all:
        return [check for part in test.all for check in checks(part, measured)]
    try:
        whole = measured.written_out(test)
        if whole.all:
            return checks(whole, measured)
        return _found(test, measured)
    except Missing:
        missing, undefined = measured.missing(test)
        text, verdict = (
            (f"not measured: {', '.join(missing)}", NOT_RUN)
            if missing
            else ("; ".join(undefined), INCONCLUSIVE)
        )
        return [Check(text, None, None, None, None, (None, None), verdict)]


def _found(test: Test, measured: Measured) -> list[Check]:
    of: Callable[[BaseModel], Side] = measured.of
    if test.greater:
        return [greater(of(test.greater.left), of(test.greater.right), test.greater.by)]
    if test.equivalent:
        asked = test.equivalent
        return [equivalent(of(asked.left), of(asked.right), asked.within)]
    if test.monotone:
        sides = [of(one) for given in test.monotone.of for one in measured.numbered(given)]
        return monotone(sides, test.monotone.direction, test.monotone.slack)
    if test.at_least:
        return [bounded(of(test.at_least.of), test.at_least.value, None)]
    if test.at_most:
        return [bounded(of(test.at_most.of), None, test.at_most.value)]
    if test.between:
        return [bounded(of(test.between.of), test.between.low, test.between.high)]
    course = test.rises or test.falls
    assert isinstance(course, Moves)
    start, end = (of(one) for one in _ends(course.of))
    return [moves(start, end, course.by, "rising" if test.rises else "falling")]


def worst(verdicts: Sequence[str]) -> str:
    """The verdict of a conjunction."""
    return max(verdicts, key=VERDICTS.index)


def _reason(found: Sequence[Check], seeds: int | None, verdict: str) -> str:
    """Why a claim has its verdict, in a few words."""
    if verdict == NOT_COMPARABLE:
        return "it says how high a number is, and numbers of this scale are not the paper's"
    missing = [c.text for c in found if c.verdict == NOT_RUN]
    if missing:
        return "; ".join(dict.fromkeys(missing))
    counts = {v: sum(c.verdict == v for c in found) for v in VERDICTS}
    parts = [f"{n} of {len(found)} checks {v}" for v, n in counts.items() if 0 < n < len(found)]
    return "; ".join(parts + ([ONE_SEED] if seeds == 1 else []))


def _published(
    claim: Claim, rows: Mapping[str, Mapping[str, str]], measured: Measured, comparable: bool
) -> list[dict[str, Any]]:
    """Published rows of a claim beside what was measured of them."""
    return [
        beside(Said(target=one) if isinstance(one, str) else one, rows, measured, comparable)
        for one in claim.published
    ]


_COLUMNS = ("student", "teacher", "metric", "benchmark", "setting", "value", "confidence", "source")


def beside(
    said: Said, rows: Mapping[str, Mapping[str, str]], measured: Measured, comparable: bool
) -> dict[str, Any]:
    """A published row with our number for it, how far apart the two are, and its status: a
    published number or range ``agrees`` where it overlaps our interval, else ``differs``."""
    row = rows[said.target]
    theirs, reach = published.parse(row["value"]), published.reach(row["value"])
    entry: dict[str, Any] = {
        "target": said.target,
        **{key: row[key] for key in _COLUMNS},
        "ours": None,
        "difference": None,
        "status": NOT_MEASURED if theirs else WORDS,
        "note": None,
    }
    notes = [f"not tested: {said.untested}"] if said.untested else []
    try:
        found = measured.of(said.quantity).estimate if said.quantity else None
    except Missing as missing:
        notes.append(str(missing))
        found = None
    if found:
        ours = found.interval()
        entry["ours"] = _bounds(ours, found.unit, found.seeds)
        if theirs and not comparable:
            entry["status"] = NOT_COMPARABLE
        elif reach:
            overlap = reach[0] <= ours.high and ours.low <= reach[1]
            entry["status"] = AGREES if overlap else DIFFERS
        if comparable and theirs and theirs.single:
            unit = claim_spec.apart(found.unit)
            apart = Interval(*(bound - theirs.low for bound in ours))
            entry["difference"] = _bounds(apart, unit, found.seeds, signed=True)
    entry["note"] = "; ".join(notes) or None
    return entry


def _bounds(found: Interval, unit: str, seeds: int, signed: bool = False) -> dict[str, Any]:
    value, low, high = (_json(v) for v in found)
    text = ranged(found, unit, seeds, signed)
    return {"value": value, "low": low, "high": high, "text": text}


def _json(value: float | None) -> float | None:
    """Ten digits: beyond them the order in which a machine adds up may show. No bound is None."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.10g}")


def _judged(
    claim: Claim, rows: Mapping[str, Mapping[str, str]], measured: Measured, comparable: bool
) -> dict[str, Any]:
    measured.seeds.clear()
    found = checks(claim.test, measured)
    seeds = min(measured.seeds, default=None)
    verdict = worst([one.verdict for one in found])
    if claim.level and not comparable and verdict != NOT_RUN:
        found = [one._replace(verdict=NOT_COMPARABLE) for one in found]
        verdict = NOT_COMPARABLE
    return {
        "id": claim.id,
        "experiment": claim.experiment,
        "section": claim.section,
        "figure": claim.figure,
        "statement": claim.statement,
        "note": claim.note,
        "level": claim.level,
        "verdict": verdict,
        "interval": not any(one.bare for one in found),
        "reason": _reason(found, seeds, verdict),
        "seeds": seeds,
        "checks": [
            {
                "text": one.text,
                "shown": one.shown,
                "value": _json(one.value),
                "low": _json(one.low),
                "high": _json(one.high),
                "bound": list(one.bound),
                "verdict": one.verdict,
            }
            for one in found
        ],
        "published": _published(claim, rows, measured, comparable),
    }


def _rows(
    paper: str,
    rows: Mapping[str, Mapping[str, str]],
    judged: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Sequence[str]],
    marked: Mapping[str, Mapping[str, Any]],
    context: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Every published row of a paper, and what became of it.

    ``marked``: rows that only figures have, as ``beside`` gives them. The status is of the row's
    own number, and has nothing to do with the verdicts of its claims: one of STATUSES, ``context``,
    or ``unattached``.
    """
    reasons = {target: one["reason"] for one in context for target in one["targets"]}
    shown = []
    for target, row in rows.items():
        of = [
            (claim, said)
            for claim in judged
            for said in claim["published"]
            if said["target"] == target
        ]
        found = [said for _, said in of] or ([marked[target]] if target in marked else [])
        claims = {claim["id"]: claim["verdict"] for claim, _ in of}
        status = min((said["status"] for said in found), key=STATUSES.index, default="unattached")
        notes = dict.fromkeys(said["note"] for said in found if said["note"])
        ours = dict.fromkeys(said["ours"]["text"] for said in found if said["ours"])
        shown.append(
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
    return shown


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``claims``: claims.json, claims.md and claims.html.

    cfg: ``scale``, ``comparable`` (whether published numbers may be compared with this scale's),
    ``seeds``, ``arms`` and ``probes`` (see ``opd.results.estimate.estimate``), ``figures``
    {PAPER/name: [published rows]}, ``marked`` {PAPER: {row: quantity}} of rows that only figures
    have; ``resamples`` and ``seed`` of the bootstrap. Inputs: those that arms and probes name, and
    for each paper its files claims:PAPER and targets:PAPER. Ids of claims and of rows are a paper's
    own: two papers may have the same. Returns the counts of verdicts.
    """
    measured = Measured(cfg, Reader(inputs))
    papers: dict[str, dict[str, Any]] = {}
    claims: list[dict[str, Any]] = []
    published: list[dict[str, Any]] = []
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
        only = {
            target: beside(Said(target=target, quantity=of), rows, measured, cfg["comparable"])
            for target, of in marked.items()
        }
        papers[paper] = {"title": given["title"], **_counts(judged)}
        claims += judged
        published += _rows(paper, rows, judged, figures, only, given["context"])
    found = {
        "scale": cfg["scale"],
        "comparable": cfg["comparable"],
        "seeds": cfg["seeds"],
        **_counts(claims),
        "papers": papers,
        "claims": claims,
        "targets": published,
    }
    tables.write_json(out / "claims.json", json.loads(json.dumps(found)))
    tables.write_text(out / "claims.md", claims_page.markdown(found))
    tables.write_text(out / "claims.html", claims_page.page(found))
    counts: dict[str, int] = found["counts"]
    return counts


def _counts(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """How many claims have which verdict, and how many of these by a number without interval."""
    every = [claim["verdict"] for claim in judged]
    bare = [claim["verdict"] for claim in judged if not claim["interval"]]
    return {
        "counts": {v: every.count(v) for v in VERDICTS},
        "without_interval": {v: bare.count(v) for v in VERDICTS},
    }

"""A quantity: one number about an arm or a probe. Claims, figures and tables name quantities, and
``opd.results.estimate`` works them out.

An arm is one training run or model at every seed, a probe one measurement. There are two notations.
The long one is a mapping and names the arm or probe: ``{recovery: E04.success, benchmark: easy}``,
``{metric: kl_nats, of: E04.success, at: end}``, ``{probe: E11.success, value: auroc}``. The short
one is a string and is about what stands beside it, a row of a table or a series of a figure:
``recovery:easy``, ``kl_nats@end``, ``last:kl_nats``, ``probe:auroc``.

This module does without numpy, so that a config is checked at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer, PlainValidator

from opd.core.errors import UserError
from opd.core.text import suggestion

MACRO = "macro"  # the unweighted mean of all benchmarks
METRIC, PROBE = "metric", "probe"
POINTS = "points of a share"
TIMES = "times"  # the unit of a ratio of two values of probes


class Score(NamedTuple):
    """A number of evaluations: which of an arm's it needs, its unit, what it is called in a
    sentence and on an axis ({} is the number of samples), and whether a table has its interval."""

    inputs: tuple[str, ...]
    unit: str
    words: str
    axis: str
    bounded: bool = False


_ALONE, _PAIR, _GAP = ("evaluations",), ("evaluations", "base"), ("evaluations", "base", "teacher")
SCORES = {
    "avg": Score(_ALONE, "share", "accuracy", "avg@{} (%)", True),
    "change": Score(_PAIR, POINTS, "gain", "change (points)", True),
    "recovery": Score(_GAP, "share", "share of the gap recovered", "gap recovered (%)", True),
    "length": Score(
        _PAIR,
        "share",
        "length of responses as a share of that before",
        "tokens of responses (% of those before)",
        True,
    ),
    "p": Score(_PAIR, "", "p value of the gain", "p of the change"),
    "pass": Score(_ALONE, "share", "problems solved in any sample", "pass@{} (%)"),
    "maj": Score(_ALONE, "share", "accuracy of majority answers", "maj@{} (%)"),
    "tokens": Score(_ALONE, "tokens", "length of responses", "response (tokens)"),
    "truncated": Score(_ALONE, "share", "responses cut off", "cut off (%)"),
    "answered": Score(_ALONE, "share", "responses with an answer", "with an answer (%)"),
}
# Which number of a curve over steps, and how a sentence says so.
WHEN = {
    "start": "at the start",
    "last": "at the last step",
    "end": "at the end",
    "mid": "in the middle of training",
    "late": "in the second half of training",
    "mean": "over training",
    "min": "at its lowest",
    "max": "at its highest",
    "jump": "in its largest step",
    "drop": "from its highest to the end",
}


@dataclass(frozen=True)
class Quantity:
    """``kind``: one of SCORES, METRIC or PROBE; ``of``: the arm or probe; ``name``: the benchmark,
    the metric or the probe's value.

    ``at`` is one of WHEN for a metric; for a probe's ``NAME_*``, first or last. ``positions``: the
    half of response positions that a metric is over. ``per``: what a metric is a share of, or a
    probe's value a multiple; ``less``: what is subtracted from either.
    """

    kind: str
    of: str
    name: str
    at: str | None = None
    positions: str | None = None
    per: "Quantity | None" = None
    less: "Quantity | None" = None

    @property
    def parts(self) -> tuple["Quantity", ...]:
        """It and what it is compared with, each as it is alone."""
        return tuple(part for part in (self, self.per, self.less) if part)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What of its arm or probe it is worked out from."""
        if self.kind in SCORES:
            return SCORES[self.kind].inputs
        return ("run",) if self.kind == METRIC else ("probe",)

    def needs(self) -> set[tuple[str, str]]:
        """(evaluations, base, teacher, run or probe; name of the arm or probe) of all inputs."""
        return {(role, part.of) for part in self.parts for role in part.inputs}

    @property
    def several(self) -> bool:
        """Whether it stands for all values NAME_1, NAME_2, ... of a probe."""
        return self.kind == PROBE and self.name.endswith("_*") and self.at is None

    @property
    def each(self) -> bool:
        """Whether it stands for itself on every benchmark."""
        return self.kind in SCORES and self.name == "each"

    @property
    def unit(self) -> str:
        if self.kind in SCORES:
            return SCORES[self.kind].unit
        if self.per:
            return "share" if self.kind == METRIC else TIMES
        unit = unit_of(self.name)
        is_difference = self.less or (self.kind == METRIC and self.at in ("jump", "drop"))
        return apart(unit) if is_difference else unit

    @property
    def short(self) -> str:
        """The short notation, in which figure.json names what it shows."""
        if self.kind in SCORES:
            return f"{self.kind}:{self.name}"
        return f"{self.name}@{self.at}" if self.kind == METRIC else self.name


# Units

# Patterns of names with their units; the first that fits counts.
_UNITS = {
    r"rho_.*": "",  # a rank correlation, with whatever it is
    r"advantage_(q?\d+|\*)|lost|change_.*": POINTS,  # of an accuracy
    r"(teacher|student)_(q?\d+|\*)|passed|unjudged": "share",
    r"(accuracy|answered|format|passed_at)_.*": "share",
    r"(overlap_mass|top_mass|(max|min|extreme)_advantage).*": "share",
    r"overlap_token_advantage.*|loss|(.*_)?nats": "nats",
    r"(.*_)?tokens": "tokens",
    r"(.*_)?ratio": "share",
}


def unit_of(name: str) -> str:
    """Unit of a metric or of a probe's value, from its name: nats, tokens, share, points of a
    share, or none."""
    return next((unit for form, unit in _UNITS.items() if re.fullmatch(form, name)), "")


def apart(unit: str) -> str:
    """The unit of a difference."""
    return POINTS if unit == "share" else unit


# The long notation

# Keys beside a kind that is no score; it needs the first.
_KEYS = {METRIC: ("of", "at", "positions", "per", "less"), PROBE: ("value", "at", "per", "less")}
# What another quantity is named by that one is compared with, and what that is of it.
_VALUE = {PROBE: "of", "value": "name"}
_OTHERS: dict[tuple[str, str], tuple[dict[str, str], str]] = {
    (METRIC, "per"): ({"at": "at", "of": "of"}, "at, and of if it is another arm"),
    (METRIC, "less"): ({"at": "at"}, "at"),
    (PROBE, "per"): (_VALUE, "value, or probe, or both"),
    (PROBE, "less"): (_VALUE, "value, or probe, or both"),
}


def read(given: Any) -> Quantity:
    """A quantity as a mapping has it. Raises ``ValueError``."""
    if isinstance(given, Quantity):
        return given
    kinds = (*SCORES, METRIC, PROBE)
    kind = next((key for key in kinds if isinstance(given, Mapping) and key in given), None)
    if kind is None:
        raise ValueError(f"is no quantity: needs one of {', '.join(kinds)}")
    keys = _KEYS.get(kind, ("benchmark",))
    for key, value in given.items():
        if key not in (kind, *keys):
            raise ValueError(f"{key}: no such key beside {kind}")
        if key not in ("per", "less") and not isinstance(value, str):
            raise ValueError(f"{key}: {value!r} is not allowed: write a name")
    if kind in SCORES:
        return Quantity(kind, given[kind], given.get("benchmark", MACRO))
    if keys[0] not in given:
        raise ValueError(f"{kind} needs {keys[0]}")
    if kind == PROBE:
        quantity = _checked(Quantity(PROBE, given[PROBE], given["value"], given.get("at")))
    else:
        at, positions = given.get("at", "end"), given.get("positions")
        quantity = _checked(Quantity(METRIC, given["of"], given[METRIC], at, positions))
    others = {key: _other(quantity, key, given[key]) for key in ("per", "less") if key in given}
    if len(others) > 1:
        raise ValueError("per and less: write one of them")
    return replace(quantity, per=others.get("per"), less=others.get("less"))


def _other(quantity: Quantity, key: str, given: Any) -> Quantity:
    """What a metric or a probe's value is divided by or lessened by, as ``key`` names it."""
    names, remedy = _OTHERS[quantity.kind, key]
    named = isinstance(given, Mapping) and given and not given.keys() - names.keys()
    lacks_time = quantity.kind == METRIC and named and "at" not in given
    if not named or lacks_time or not all(isinstance(name, str) for name in given.values()):
        raise ValueError(f"{key}: {given!r} is not allowed: write {remedy}")
    compared = _checked(replace(quantity, **{names[part]: name for part, name in given.items()}))
    # A metric as a share of itself is 1, which another share may be held against.
    if compared == quantity and (quantity.kind, key) != (METRIC, "per"):
        raise ValueError(f"{key}: it compares a quantity with itself")
    if quantity.several or compared.several:
        raise ValueError(f"{key}: {quantity.name} and {compared.name} have to be one value each")
    if compared.unit != quantity.unit:
        units = " with ".join(unit or "a number" for unit in (quantity.unit, compared.unit))
        raise ValueError(f"{key}: compares {units}")
    return compared


def _checked(quantity: Quantity) -> Quantity:
    if quantity.kind == PROBE and quantity.at and not quantity.name.endswith("_*"):
        raise ValueError(f"at: {quantity.at} is for values of the form NAME_*")
    times = WHEN if quantity.kind == METRIC else ("first", "last")
    for key, known in (("at", times), ("positions", ("front", "back"))):
        value = getattr(quantity, key)
        if value is not None and value not in known:
            raise ValueError(f"{key}: {value!r} is not allowed: {suggestion(value, known)}")
    return quantity


def written(quantity: Quantity) -> dict[str, Any]:
    """The mapping that ``read`` takes."""
    if quantity.kind in SCORES:
        return {quantity.kind: quantity.of, "benchmark": quantity.name}
    per, less = quantity.per, quantity.less
    mapping: dict[str, Any] = {METRIC: quantity.name, "of": quantity.of}
    others: dict[str, Any] = {"positions": quantity.positions}
    if quantity.kind == PROBE:
        mapping = {PROBE: quantity.of, "value": quantity.name}
        others["less"] = less and {PROBE: less.of, "value": less.name}
        others["per"] = per and {PROBE: per.of, "value": per.name}
    else:
        others["less"] = less and {"at": less.at}
        others["per"] = per and {"of": per.of, "at": per.at}
    others["at"] = quantity.at
    return mapping | {key: value for key, value in others.items() if value is not None}


# What a model of a YAML file declares: the long notation, read.
Written = Annotated[Quantity, PlainValidator(read), PlainSerializer(written)]


def of_panel(given: Mapping[str, Any], of: str = "") -> list[Quantity]:
    """What a panel of a figure shows of a series: ``{KIND: BENCHMARK}`` of evaluations,
    ``{metric: NAME, at: WHEN}`` of a run, or ``{value: NAME}``, one or several, of a probe; NAME_*
    is all values NAME_1, NAME_2, ... Raises ``ValueError``."""
    kinds = (*SCORES, METRIC, "value")
    named = [key for key in kinds if key in given]
    if len(named) != 1:
        raise ValueError(f"needs exactly one of {', '.join(kinds)}")
    (kind,) = named
    if stray := given.keys() - {kind, "at" if kind == METRIC else kind}:
        raise ValueError(f"{min(stray)}: no such key beside {kind}")
    if kind == METRIC:
        return [read({**given, "of": of})]
    several = kind == "value" and isinstance(given[kind], list)
    names = given[kind] if several else [given[kind]]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{kind}: {given[kind]!r} is not allowed: write a name")
    return [Quantity(PROBE if kind == "value" else kind, of, name) for name in names]


# The short notation


def of_series(text: str, of: str, at: str | None = None, probe: bool = False) -> Quantity:
    """What the short notation says of a series of a figure: ``KIND:BENCHMARK``, a metric of an arm
    at some time (``end`` if none is given), or a value of a probe."""
    kind, _, benchmark = text.partition(":")
    if probe:
        return Quantity(PROBE, of, text)
    if benchmark and kind in SCORES:
        return Quantity(kind, of, benchmark)
    return Quantity(METRIC, of, text, at or "end")


def of_curve(name: str) -> Quantity:
    """What a line over steps shows of a series: ``avg:BENCHMARK``, or a metric with its last value.
    Raises ``ValueError`` for other scores, which nothing has over steps."""
    quantity = of_series(name, "", "last")
    if quantity.kind not in (METRIC, "avg"):
        raise ValueError(f"no curve of '{name}': use avg:BENCHMARK or a metric")
    return quantity


class TableColumn(NamedTuple):
    """A column of a table: its kind, what that is of, its quantities without an arm (none for
    the outlook, which is a word), and the endings of its columns in the csv."""

    kind: str
    name: str
    quantities: tuple[Quantity, ...]
    endings: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.quantities[0].inputs if self.quantities else ("probe",)


_ENDS = {"first": ("start",), "last": ("last",), "course": ("start", "last")}


def column(spec: str, where: str = "columns") -> TableColumn:
    """``KIND[:NAME]`` as a column: of a benchmark (all of them if none is named), a metric of the
    run, or a value of the probe. Raises ``UserError`` for another kind, and for a name that is
    lacking or too many."""
    kind, _, name = spec.partition(":")
    kinds = (*SCORES, *_ENDS, PROBE, "outlook")
    if kind not in kinds:
        raise UserError(f"no column '{spec}'", where, suggestion(kind, kinds))
    needed = "metric" if kind in _ENDS else "value" if kind == PROBE else ""
    if needed and not name:
        remedy = f"write {kind}:{needed.upper()}"
        raise UserError(f"column '{spec}' names no {needed}", where, remedy)
    if kind == "outlook" and name:
        raise UserError(f"column '{spec}' names a value", where, "write outlook")
    quantities = [Quantity(METRIC, "", name, at) for at in _ENDS.get(kind, ())]
    if kind in SCORES or kind == PROBE:
        quantities = [Quantity(kind, "", name or MACRO)]
    endings: tuple[str, ...] = ("_first", "_last") if kind == "course" else ("",)
    if kind == PROBE or (kind in SCORES and SCORES[kind].bounded):
        endings = ("", "_low", "_high")
    return TableColumn(kind, name, tuple(quantities), endings)

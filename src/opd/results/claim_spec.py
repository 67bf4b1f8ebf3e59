"""The grammar of claims: what config/claims/PAPER.yaml may say. Without numpy, so that a config is
checked at once.

A test compares quantities (``opd.results.quantity``) of arms, which are runs or models of the paper
and named alike at every scale, or of probes; a claim is a sentence with a test and the published
rows that say it.
"""

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from opd.core.errors import UserError
from opd.core.schema import NonNegative, OneOf, Strict, read_yaml, valid
from opd.core.text import suggestion
from opd.results.quantity import METRIC, POINTS, Quantity, Written

ARM = r"^[A-Za-z0-9][A-Za-z0-9._@-]*$"
Line = Annotated[str, Field(pattern=r"\S")]
REMEDY = "mend the claim"

# Columns of the published rows: what one says and of what.
ABOUT = ("student", "teacher", "metric", "benchmark", "setting", "value", "confidence", "source")
TARGETS = ("id", "experiment_id", "figure_or_table", *ABOUT)


class Pair(Strict):
    left: Written
    right: Written

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.left == self.right:
            raise ValueError("it compares a quantity with itself")
        return self


class Greater(Pair):
    """left - right is more than ``by``."""

    by: float = 0.0


class Equivalent(Pair):
    """left - right is no more than ``within``, to either side."""

    within: NonNegative


class Moves(Strict):
    """A metric changes from start to end by at least ``by``."""

    of: Written
    by: NonNegative = 0.0

    @field_validator("of", mode="before")
    @classmethod
    def _a_whole_course(cls, given: Any) -> Any:
        times = {"at", "per", "less"}
        if not isinstance(given, Mapping) or METRIC not in given or times & given.keys():
            raise ValueError("it is a metric of an arm, without at, per and less")
        return given


class Monotone(Strict):
    """Every quantity is more (or less) than the one before, or goes back by ``slack`` at most."""

    of: list[Written] = Field(min_length=1)
    direction: Literal["rising", "falling"]
    slack: NonNegative = 0.0

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.of) < 2 and not self.of[0].several:
            raise ValueError("one quantity has no order: name several, or NAME_* of a probe")
        if len({*self.of}) < len(self.of):
            raise ValueError("it names a quantity twice")
        return self


class Bound(Strict):
    of: Written
    value: float


class Between(Strict):
    of: Written
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Test(OneOf):
    """One predicate; ``all`` holds where each of its tests does."""

    greater: Greater | None = None
    equivalent: Equivalent | None = None
    rises: Moves | None = None
    falls: Moves | None = None
    monotone: Monotone | None = None
    at_least: Bound | None = None
    at_most: Bound | None = None
    between: Between | None = None
    all: list["Test"] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_unit_and_no_percent(self) -> Self:
        """A margin of 80 for 0.8 decides nothing."""
        if self.all:
            return self
        compared = [*quantities(self)]
        if not self.monotone and any(quantity.several for quantity in compared):
            raise ValueError("several values at once are for monotone: say at: first, or at: last")
        units = {quantity.unit for quantity in compared}
        if len(units) > 1:
            raise ValueError(f"compares {' with '.join(sorted(u or 'a number' for u in units))}")
        if units <= {"share", POINTS}:
            # A student that passes its teacher closes more than the gap; a metric may double.
            most = 2 if any(q.kind == "recovery" or q.per for q in compared) else 1
            for value in vars(getattr(self, self.kind)).values():
                if isinstance(value, float) and abs(value) > most:
                    raise ValueError(f"{value} of a share: write {value / 100:g} for {value:g} %")
        return self


def quantities(part: Any) -> Iterator[Quantity]:
    """Every quantity that a test or claim reads."""
    if isinstance(part, Quantity):
        yield part
    elif isinstance(part, BaseModel | list):
        for inner in part if isinstance(part, list) else vars(part).values():
            yield from quantities(inner)


def as_row(given: Any) -> Any:
    """A published row by its id alone, as a mapping."""
    return {"target": given} if isinstance(given, str) else given


class Said(Strict):
    """A published row with the quantity that it is a value of, and what it says beyond the test."""

    target: str
    quantity: Written | None = None
    untested: str | None = None

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.quantity and (self.quantity.each or self.quantity.several):
            raise ValueError("a published row is one number")
        return self


class Claim(Strict):
    """A sentence that a paper says of its measurements, and the test of it."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    section: str
    figure: str | None = None
    experiment: str
    statement: str
    test: Test
    level: bool = Field(
        default=False, description="only says how high a published number is, so needs comparable"
    )
    ours: bool = Field(
        default=False, description="this project says it, not the paper: it is counted apart"
    )
    note: str | None = Field(default=None, description="what a reader of the verdict has to know")
    published: list[Annotated[Said, BeforeValidator(as_row)]] = []

    def targets(self) -> list[str]:
        return [row.target for row in self.published]


class Context(Strict):
    """Published rows that no claim tests, and why."""

    targets: list[str] = Field(min_length=1)
    reason: str


def needs(claim: BaseModel) -> set[tuple[str, str]]:
    """(role, name) of what a claim reads: evaluations, base, teacher or run of an arm, or probe."""
    return {need for quantity in quantities(claim) for need in quantity.needs()}


def parse(claims: Sequence[Any]) -> list[Claim]:
    """Claims as they are written in YAML. Raises ``UserError`` that names the claim."""
    parsed = []
    for number, claim in enumerate(claims, 1):
        name = claim.get("id") if isinstance(claim, Mapping) else None
        parsed.append(valid(Claim, claim, f"claim {name or f'number {number}'}", REMEDY))
    return parsed


def check(
    claims: Sequence[Any],
    context: Sequence[Any],
    targets: Iterable[str],
    figures: Mapping[str, Sequence[str]] | None = None,
) -> list[Claim]:
    """Claims, parsed and held to the ids of published rows.

    ``figures``: figure -> rows that it shows. Raises ``UserError`` that names the claim, for what
    is malformed, an id given twice, a row that does not exist or that is context and in use.
    """
    known, parsed = set(targets), parse(claims)
    ids = [claim.id for claim in parsed]
    owners = {row: f"figure {name}" for name, rows in (figures or {}).items() for row in rows}
    for claim in parsed:
        where = f"claim {claim.id}"
        if ids.count(claim.id) > 1:
            raise UserError("two claims have this id", where, "rename one")
        for target in claim.targets():
            require(target, known, f"{where}.published")
            owners[target] = where
    for number, given in enumerate(context, 1):
        where = f"context number {number}"
        for target in valid(Context, given, where, REMEDY).targets:
            require(target, known, where)
            if target in owners:
                reason = f"row {target} belongs to {owners[target]}"
                raise UserError(reason, where, "leave it out of one of them")
            owners[target] = where
    return parsed


def require(target: str, known: Collection[str], where: str) -> None:
    """Raises ``UserError`` for an id that no published row has."""
    if target not in known:
        raise UserError(f"no published row '{target}'", where, suggestion(target, sorted(known)))


class ClaimsFile(Strict):
    """What a file of claims holds; experiments, arms and probes are {name: what it is, a line}."""

    title: Line
    experiments: dict[str, Line] = {}
    arms: dict[Annotated[str, Field(pattern=ARM)], Line] = {}
    probes: dict[Annotated[str, Field(pattern=ARM)], Line] = {}
    claims: list[Any] = []
    context: list[Any] = []


def read_claims(path: Path) -> dict[str, Any]:
    """A file of claims as it is written: {title, experiments, arms, probes, claims,
    context}. Raises ``UserError`` where it is none, or lacks the paper's title or what a name
    means."""
    # A key without anything is as none.
    given = {key: value for key, value in read_yaml(path).items() if value is not None}
    remedy = "write title, experiments, arms and probes (NAME: what it is), claims, context"
    return valid(ClaimsFile, given, str(path), remedy, ("[key]",)).model_dump()


def read_targets(path: Path) -> list[dict[str, str]]:
    """Published rows, one dict each with the columns TARGETS. Raises ``UserError`` for what is no
    text, other columns, a row with more or fewer cells, and an id that is given twice."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [cells for cells in csv.reader(file) if cells]
    except UnicodeDecodeError:
        raise UserError("it is no UTF-8", str(path), "save it as UTF-8") from None
    if len(lines) < 2 or tuple(lines[0]) != TARGETS:
        raise UserError("it has other columns", str(path), f"expected {', '.join(TARGETS)}")
    for cells in lines:
        if len(cells) != len(TARGETS):
            reason = f"row '{cells[0]}' has {len(cells)} cells, not {len(TARGETS)}"
            raise UserError(reason, str(path), "fill every column, and quote a cell with a comma")
    rows = [dict(zip(TARGETS, cells, strict=True)) for cells in lines[1:]]
    for name, count in Counter(row["id"] for row in rows).items():
        if count > 1:
            raise UserError(f"two rows have the id '{name}'", str(path), "rename one")
    return rows

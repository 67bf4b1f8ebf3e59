"""Every claim of every paper is given results that bear it out, and for each of its checks results
that contradict it: the verdict is what the sentence deserves.

What a test asks is read from the YAML here once more, as inequalities between quantities. A linear
program finds numbers that fulfil all of them, or fulfil all but one that they contradict, each by
as wide a margin as it can, within what the quantities can be: shares between 0 and 1, the least
value of a curve no larger than its others, and so on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from scipy.optimize import linprog

from opd.results import claims
from opd.results.claim_spec import parse
from opd.results.estimate import Estimate, Measurements
from opd.results.quantity import METRIC, PROBE, Quantity, read

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PAPERS = ("rethinking_opd", "many_faces", "unmasking")
CLAIMS = {
    f"{paper}/{claim['id']}": claim
    for paper in PAPERS
    for claim in yaml.safe_load((ROOT / f"config/claims/{paper}.yaml").read_text())["claims"]
}
BENCHMARKS, PREFIXES = ("easy", "hard"), (1024, 4096, 8192)
WIDEST = 0.2  # a margin that no share needs to exceed

Terms = Mapping[Quantity, float]


class Inequality(NamedTuple):
    """The sum of factor x quantity is at least ``least``."""

    terms: Terms
    least: float

    def contrary(self) -> "Inequality":
        return Inequality({q: -factor for q, factor in self.terms.items()}, -self.least)


def difference(left: Quantity, right: Quantity) -> Terms:
    return {left: 1.0, right: -1.0}


def on(part: Any, benchmark: str) -> Any:
    """A test on one benchmark where it says each."""
    if isinstance(part, Mapping):
        return {key: on(value, benchmark) for key, value in part.items()}
    return benchmark if part == "each" else part


def asked(test: Mapping[str, Any]) -> Iterator[list[Inequality]]:
    """The inequalities of each check of a test, in the order in which claims.json lists checks."""
    (kind, given), *more = test.items()
    assert not more
    if kind == "all":
        for part in given:
            yield from asked(part)
        return
    if on(test, BENCHMARKS[0]) != test:
        for benchmark in BENCHMARKS:
            yield from asked(on(test, benchmark))
        return
    if kind == "greater":
        yield [
            Inequality(difference(read(given["left"]), read(given["right"])), given.get("by", 0))
        ]
    elif kind == "equivalent":
        left, right, within = read(given["left"]), read(given["right"]), given["within"]
        yield [
            Inequality(difference(left, right), -within),
            Inequality(difference(right, left), -within),
        ]
    elif kind in ("rises", "falls"):
        start, end = (read({**given["of"], "at": when}) for when in ("start", "end"))
        way = difference(end, start) if kind == "rises" else difference(start, end)
        yield [Inequality(way, given.get("by", 0))]
    elif kind == "monotone":
        values = [read(part) for part in given["of"]]
        if len(values) == 1:
            (every,) = values
            assert every.name.endswith("_*")
            values = [replace(every, name=f"{every.name[:-1]}{n}") for n in PREFIXES]
        for before, after in pairwise(values):
            rising = difference(after, before)
            way = {"rising": rising, "falling": {q: -f for q, f in rising.items()}}
            yield [Inequality(way[given["direction"]], -given.get("slack", 0))]
    else:
        of = read(given["of"])
        at_least = [given[key] for key in ("value", "low") if key in given and kind != "at_most"]
        at_most = [given[key] for key in ("value", "high") if key in given and kind != "at_least"]
        yield [Inequality({of: 1.0}, end) for end in at_least] + [
            Inequality({of: -1.0}, -end) for end in at_most
        ]


# What quantities can be


def limits(quantity: Quantity) -> tuple[float | None, float | None]:
    """The least and the largest value of a quantity, None for no limit."""
    name, unit = quantity.name, quantity.unit
    if quantity.per:
        return 0, None
    if quantity.kind == "recovery":
        return None, None
    if quantity.kind == "length" or unit == "tokens":
        return 0, None
    if unit == "share" or quantity.kind == "p":
        return 0, 1
    if unit == "points of a share":
        return (0 if quantity.at in ("jump", "drop") else -1), 1
    if quantity.kind == METRIC:
        if name == "overlap_token_advantage" and quantity.at not in ("jump", "drop"):
            return None, None if quantity.less else 0
        return (None if quantity.less else 0), None
    if "difference" in name or name.startswith(("rho_", "cosine", "weighted_cosine", "signal")):
        return -1, 1
    return 0, 1 if name == "auroc" or name.endswith("_p") or name.startswith("p_") else None


def of_curves(quantities: Sequence[Quantity]) -> Iterator[Inequality]:
    """How numbers of one curve are bound to each other."""
    curves = [q for q in quantities if q.kind == METRIC and not q.per]
    for quantity in curves:
        low, high, end = (replace(quantity, at=at, less=None) for at in ("min", "max", "end"))
        if quantity.less:
            whole, part = replace(quantity, less=None), quantity.less
            terms = {whole: 1.0, part: -1.0, quantity: -1.0}
        elif quantity.at == "drop":
            terms = {high: 1.0, end: -1.0, quantity: -1.0}
        elif quantity.at == "jump":
            yield Inequality({high: 1.0, low: -1.0, quantity: -1.0}, 0)
            continue
        else:
            if quantity.at not in ("min", "max"):
                yield Inequality(difference(quantity, low), 0)
                yield Inequality(difference(high, quantity), 0)
            continue
        yield from (Inequality(terms, 0), Inequality(terms, 0).contrary())


def solved(wanted: Sequence[Inequality]) -> tuple[dict[Quantity, float], float] | None:
    """Values of quantities that fulfil inequalities by the widest margin, and that margin; None
    where there are none."""
    places: dict[Quantity, int] = {}

    def place(inequality: Inequality) -> None:
        for quantity in inequality.terms:
            places.setdefault(quantity, len(places))

    for inequality in wanted:
        place(inequality)
    bound: list[Inequality] = []
    for _ in range(2):  # a curve's numbers bring its least and largest, and these are bound, too
        bound = [*of_curves([*places])]
        for inequality in bound:
            place(inequality)
    rows = np.zeros((len(wanted) + len(bound), len(places) + 1))
    ends = np.zeros(len(rows))
    for row, inequality in enumerate([*wanted, *bound]):
        for quantity, factor in inequality.terms.items():
            rows[row, places[quantity]] = -factor
        rows[row, -1] = float(row < len(wanted))  # the margin is of what is wanted
        ends[row] = -inequality.least
    ranges = [*map(limits, places), (1e-6, WIDEST)]
    widest = np.append(np.zeros(len(places)), -1.0)
    found = linprog(widest, A_ub=rows, b_ub=ends, bounds=ranges)
    if found.status != 0:
        return None
    return dict(zip(places, found.x[:-1].tolist(), strict=True)), float(found.x[-1])


# What the claims make of them


class Measured(Measurements):
    """Quantities of given values, with intervals of a quarter of the margin to either side."""

    def __init__(self, values: Mapping[Quantity, float], margin: float) -> None:
        probes = {q.of: {"label": q.of, "runs": ["run"]} for q in values if q.kind == PROBE}
        names = {q.name: {} for q in values}
        reader = type("Files", (), {"json": lambda *_: {"values": names}})()
        super().__init__({"probes": probes}, reader)
        spread = margin / 4 * np.linspace(-1, 1, 401) / 0.95
        rng = np.random.default_rng(0)
        for q, value in values.items():
            self.made[q] = Estimate(value, value + rng.permutation(spread), 3, q.unit)

    def evaluations(self, name: str) -> Any:
        return type("Scores", (), {"benchmarks": lambda _: BENCHMARKS})()


def verdicts(claim: Mapping[str, Any], wanted: Sequence[Inequality]) -> list[str] | None:
    """The verdict of a claim and of each of its checks on values that fulfil inequalities."""
    found = solved(wanted)
    if found is None:
        return None
    (parsed,) = parse([claim])
    made = claims._judged(parsed.model_copy(update={"published": []}), {}, Measured(*found), True)
    return [made["verdict"], *(check["verdict"] for check in made["checks"])]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_result_that_bears_a_claim_out_reproduces_it(name: str) -> None:
    claim = CLAIMS[name]
    parts = [*asked(claim["test"])]
    made = verdicts(claim, [inequality for part in parts for inequality in part])
    assert made == ["reproduced"] * (1 + len(parts))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_result_that_contradicts_one_check_does_not_reproduce_its_claim(name: str) -> None:
    """All other checks hold, where they can; where they cannot, they are left open."""
    claim = CLAIMS[name]
    parts = [*asked(claim["test"])]
    for place, part in enumerate(parts):
        others = [one for i, other in enumerate(parts) if i != place for one in other]
        contradicted = 0
        for inequality in part:
            made = verdicts(claim, [*others, inequality.contrary()])
            if made is None:
                open_ended = [Inequality(one.terms, -1e3) for one in others]
                made = verdicts(claim, [*open_ended, inequality.contrary()])
            if made is None:  # no such number can be, as one below 0 of a share
                continue
            contradicted += 1
            assert made[0] == made[1 + place] == "not reproduced", (place, inequality)
        assert contradicted, f"nothing can contradict check {place}"


def test_values_are_found_by_hand_too() -> None:
    """An overlap that ends 5 points or more above its start, and whose least value is 0.5."""
    overlap = {"metric": "overlap_ratio", "of": "A"}
    test = {"all": [{"rises": {"of": overlap, "by": 0.05}}]}
    test["all"].append({"at_least": {"of": {**overlap, "at": "min"}, "value": 0.5}})
    rise, least = asked(test)
    found = solved([*rise, *least])
    assert found is not None
    values, margin = found
    start, end, low = (values[read({**overlap, "at": at})] for at in ("start", "end", "min"))
    assert margin == pytest.approx(WIDEST) and end - start >= 0.05 + margin - 1e-9
    assert 0.5 + margin - 1e-9 <= low <= min(start, end) and max(start, end) <= 1
    # Not below 0.5 and rising by 60 points.
    (steep,) = asked({"rises": {"of": overlap, "by": 0.6}})
    assert solved(steep + least) is None

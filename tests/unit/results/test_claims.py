"""Verdicts by hand: every predicate, every verdict, and a folder of results that has them all."""

import copy
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from measurements import evaluation, probe, run
from scripts import without_script

from opd.core import tables
from opd.core.errors import UserError
from opd.evaluation.reader import Reader
from opd.losses.schemas import METRICS
from opd.recipes.resolve import resolve
from opd.results import claims, claims_page, figure_spec
from opd.results.claim_spec import (
    TARGETS,
    check,
    parse,
    quantities,
    read_claims,
    read_targets,
)
from opd.results.claims import Side, bounded, checks, equivalent, greater, judge, monotone, worst
from opd.results.estimate import Estimate, Measurements
from opd.results.labels import with_unit
from opd.results.published import parse as printed
from opd.results.quantity import read, unit_of
from opd.stats.intervals import Interval, bootstrap

ROOT = Path(__file__).parents[3]
PAPER = "rethinking_opd"
YES, MAYBE, NO, NOT_RUN = "reproduced", "inconclusive", "not reproduced", "not run"
NOT_COMPARABLE = "not comparable"


def spread(low: float, high: float, unit: str = "share", whose: str = "a") -> Side:
    """A side whose 95 % interval reaches from low to high: 4,001 equally spaced draws."""
    half = (high - low) / 2 / 0.95
    middle = (low + high) / 2
    draws = np.linspace(middle - half, middle + half, 4001)
    return Side("accuracy", whose, Estimate(middle, draws, 3, unit))


def certain(value: float, unit: str = "share", whose: str = "b") -> Side:
    return Side("accuracy", whose, Estimate(value, np.full(4001, value), 3, unit))


# The three-valued rule


@pytest.mark.parametrize(
    ("low", "high", "band", "verdict"),
    [
        (0.81, 0.9, (0.8, None), YES),
        (0.8, 0.9, (0.8, None), YES),
        (0.79, 0.9, (0.8, None), MAYBE),
        (0.7, 0.79, (0.8, None), NO),
        (0.1, 0.2, (None, 0.2), YES),
        (0.1, 0.21, (None, 0.2), MAYBE),
        (0.3, 0.4, (None, 0.2), NO),
        (0.72, 0.78, (0.7, 0.8), YES),
        (0.65, 0.85, (0.7, 0.8), MAYBE),  # wider than the band
        (0.65, 0.75, (0.7, 0.8), MAYBE),
        (0.5, 0.6, (0.7, 0.8), NO),
        (0.9, 0.95, (0.7, 0.8), NO),
    ],
)
def test_an_interval_in_a_band(
    low: float, high: float, band: tuple[float | None, float | None], verdict: str
) -> None:
    assert judge(Interval((low + high) / 2, low, high), band) == verdict


def test_ends_of_a_strict_band_do_not_belong_to_it() -> None:
    assert judge(Interval(0, 0, 0), (0, None)) == YES
    assert judge(Interval(0, 0, 0), (0, None), strictly=True) == NO
    assert judge(Interval(0.1, 0, 0.2), (0, None), strictly=True) == MAYBE


FINITE = st.floats(-1, 1, allow_nan=False)


@given(FINITE, FINITE, FINITE, FINITE)
def test_exactly_one_verdict_and_it_means_what_it_says(
    a: float, b: float, c: float, d: float
) -> None:
    low, high, floor, ceiling = min(a, b), max(a, b), min(c, d), max(c, d)
    found = judge(Interval(low, low, high), (floor, ceiling))
    points = np.linspace(low, high, 101)
    holds = (points >= floor) & (points <= ceiling)
    if found == YES:
        assert holds.all()
    elif found == NO:
        assert not holds.any()
    else:
        assert not holds[[0, -1]].all()


def test_a_conjunction_is_as_good_as_its_worst() -> None:
    assert worst([YES, YES]) == YES
    assert worst([YES, MAYBE]) == MAYBE
    assert worst([MAYBE, NO, YES]) == NO
    assert worst([NO, NOT_RUN]) == NOT_RUN


# Predicates


def test_bounded_by_hand() -> None:
    found = bounded(spread(0.85, 0.95), 0.8, None)
    assert found.verdict == YES and found.bound == (0.8, None)
    assert [found.value, found.low, found.high] == pytest.approx([0.9, 0.85, 0.95], abs=1e-3)
    assert found.text == "a: accuracy 90.0 % [85.0, 95.0]; claimed: at least 80 %"
    assert bounded(spread(0.75, 0.95), 0.8, None).verdict == MAYBE
    assert bounded(spread(0.75, 0.79), 0.8, None).verdict == NO
    assert bounded(spread(0.75, 0.79), None, 0.8).verdict == YES
    between = bounded(spread(0.72, 0.78, ""), 0.7, 0.8)
    assert between.verdict == YES and between.text.endswith("at least 0.7 and at most 0.8")


def test_greater_is_about_the_difference() -> None:
    assert greater(spread(0.6, 0.7), certain(0.5)).verdict == YES
    assert greater(spread(0.6, 0.7), certain(0.5), 0.12).verdict == MAYBE
    assert greater(spread(0.6, 0.7), certain(0.5), 0.3).verdict == NO
    assert greater(spread(0.4, 0.6), certain(0.5)).verdict == MAYBE
    assert greater(certain(0.5), certain(0.5)).verdict == NO
    assert greater(spread(0.46, 0.48), certain(0.5), -0.05).verdict == YES
    found = greater(spread(0.6, 0.7), certain(0.5), 0.05)
    assert found.text == (
        "accuracy: a 65.0 %, b 50.0 %; difference +15.0 points [+10.0, +20.0]; "
        "claimed: more than 5 points"
    )


def test_paired_draws_decide_what_apart_would_not() -> None:
    """Two wide intervals that move together differ for certain."""
    left, right = spread(0.5, 0.9), spread(0.4, 0.8)
    assert bounded(left, 0.7, None).verdict == MAYBE
    assert greater(left, right, 0.05).verdict == YES
    shuffled = np.random.default_rng(0).permutation(right.estimate.draws)
    apart = right._replace(estimate=right.estimate._replace(draws=shuffled))
    assert greater(left, apart, 0.05).verdict == MAYBE


def test_a_difference_of_shares_of_gaps_that_may_be_none() -> None:
    """Of 1,000 draws 20 of either side have no gap, not the same ones: 40 of the difference."""
    sides = []
    for value, without in ((0.9, slice(0, 20)), (0.1, slice(20, 40))):
        draws = np.linspace(value - 0.05, value + 0.05, 1000)
        draws[without] = np.nan
        sides.append(Side("share of the gap recovered", "a", Estimate(value, draws, 3, "share")))
        assert np.isfinite(sides[-1].estimate.interval()).all()
    found = greater(*sides)
    assert (found.low, found.high, found.verdict) == (-np.inf, np.inf, "inconclusive")
    assert "difference +80.0 points (no bounds: a gap may be none); claimed" in found.text


def test_equivalent_needs_an_interval_within_the_margin() -> None:
    assert equivalent(spread(0.49, 0.52), certain(0.5), 0.03).verdict == YES
    assert equivalent(spread(0.45, 0.55), certain(0.5), 0.03).verdict == MAYBE
    assert equivalent(spread(0.49, 0.56), certain(0.5), 0.03).verdict == MAYBE
    assert equivalent(spread(0.55, 0.56), certain(0.5), 0.03).verdict == NO
    assert equivalent(spread(0.41, 0.45), certain(0.5), 0.03).verdict == NO
    assert equivalent(certain(0.5), certain(0.5), 0.0).verdict == YES


def test_what_a_claim_of_equality_would_reject() -> None:
    """Its margin and half the width of the interval: there no part of the interval is within."""
    found = equivalent(spread(0.49, 0.53), certain(0.5), 0.03)
    assert found.rejects() == pytest.approx((-0.05, 0.05), abs=1e-3)
    assert found.precision() == (
        "With an interval of this width, less than −5.0 points or more than +5.0 points would be "
        "not reproduced."
    )
    for distance, verdict in ((0.0499, MAYBE), (0.0501, NO)):
        middle = 0.5 + distance
        assert (
            equivalent(spread(middle - 0.02, middle + 0.02), certain(0.5), 0.03).verdict == verdict
        )
        middle = 0.5 - distance
        assert (
            equivalent(spread(middle - 0.02, middle + 0.02), certain(0.5), 0.03).verdict == verdict
        )
    between = bounded(spread(0.72, 0.78, ""), 0.7, 0.8)
    assert between.rejects() == pytest.approx((0.67, 0.83), abs=1e-3)
    assert between.precision().startswith("With an interval of this width, less than 0.67")
    bare = bounded(certain(0.5, "nats"), 0.25, 1.0)
    assert bare.rejects() == (0.25, 1.0)
    assert bare.precision() == (
        "With an interval of no width, less than 0.250 nats or more than 1.00 nats would be not "
        "reproduced."
    )
    # Of what has one limit, or no end of its interval, there is nothing to say.
    assert bounded(certain(0.5), 0.4, None).rejects() is None
    assert greater(spread(0.6, 0.7), certain(0.5)).precision() is None
    draws = np.where(np.arange(1000) < 100, np.nan, 0.5)
    boundless = Side("share", "a", Estimate(0.5, draws, 3, "share"))
    assert bounded(boundless, 0.4, 0.6).rejects() is None


def test_a_course_rises_and_falls() -> None:
    start, end = certain(0.7), spread(0.78, 0.84)

    def moves(start: Side, end: Side, by: float, direction: str) -> str:
        (check,) = monotone([start, end], direction, by)
        return check.verdict

    assert moves(start, end, 0.05, "rising") == YES
    assert moves(start, end, 0.1, "rising") == MAYBE
    assert moves(start, end, 0.2, "rising") == NO
    assert moves(start, end, 0.0, "falling") == NO
    assert moves(end, start, 0.05, "falling") == YES
    assert moves(start, start, 0.0, "rising") == NO


def test_monotone_checks_every_step() -> None:
    sides = [certain(v, "points of a share") for v in (0.37, 0.27, 0.15, 0.02)]
    assert [one.verdict for one in monotone(sides, "falling")] == [YES] * 3
    assert [one.verdict for one in monotone(sides, "rising")] == [NO] * 3
    sides[2] = spread(0.2, 0.3, "points of a share")
    assert [one.verdict for one in monotone(sides, "falling")] == [YES, MAYBE, YES]
    sides[2] = certain(0.28, "points of a share")
    assert [one.verdict for one in monotone(sides, "falling")] == [YES, NO, YES]
    assert [one.verdict for one in monotone(sides, "falling", -0.02)] == [YES] * 3
    assert [one.value for one in monotone(sides, "falling")] == pytest.approx([-0.1, 0.01, -0.26])


def test_one_value_has_no_order(tmp_path: Path) -> None:
    """As where a scale has measured a probe at one prefix only: a part of a claim that was not
    tested is not left out of it."""
    of = {"probe": "P", "value": "advantage_*"}
    falls = {"monotone": {"of": [of], "direction": "falling"}}
    positive = {"at_least": {"of": {**of, "at": "first"}, "value": 0.1}}
    probes = {"P": {"label": "prefixes", "runs": ["p"]}}
    path = probe(tmp_path / "p", {"advantage_2": 0.4}, {"advantage_2": [0.3, 0.5]})
    measured = Measurements({"probes": probes, "resamples": 99}, Reader({"p": path}))
    (claim,) = parse([{**GOOD, "test": {"all": [positive, falls]}}])
    first, second = checks(claim.test, measured)
    assert (first.verdict, second.verdict) == (YES, NOT_RUN)
    assert second.text == "not measured: a second value of advantage 2 of prefixes"
    assert second.value is None


def test_how_often_verdicts_are_wrong() -> None:
    """Two models that solve every problem equally often: one is called better in about 2.5 % of
    evaluations of 60 problems, and the two are rarely called apart by 3 points."""
    rng, trials = np.random.default_rng(3), 300
    better, apart = [], []
    for seed in range(trials):
        rates = rng.random((60, 1))
        sides = []
        for _ in range(2):
            cells = (rng.random((1, 60, 4)) < rates).mean(axis=2)
            means, draws = bootstrap([[cells]], 500, seed)
            sides.append(Side("accuracy", "a", Estimate(means[0], draws[:, 0], 1, "share")))
        better.append(greater(*sides).verdict)
        apart.append(equivalent(*sides, 0.03).verdict)
    assert 0.005 <= better.count(YES) / trials <= 0.06
    assert 0.005 <= better.count(NO) / trials <= 0.06
    assert apart.count(NO) / trials <= 0.02


def test_numbers_in_words() -> None:
    one = Side("KL", "a", Estimate(0.1234, np.full(9, 0.1234), 1, "nats"), "at the end")
    text = bounded(one, None, 0.5).text
    assert text == "a: KL 0.123 nats (one seed, no interval) at the end; claimed: at most 0.5 nats"
    assert with_unit(-0.0001, "points of a share") == "+0.0 points"
    assert with_unit(-0.012, "points of a share") == "−1.2 points"
    assert with_unit(2828, "") == "2828"


# The stage


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A student that solves a fifth of its problems, a teacher nine tenths, one that became nearly
    as good as the teacher and one that did not change, each with two seeds."""
    rng = np.random.default_rng(0)

    def scores(rate: float) -> dict[str, list[int]]:
        return {b: rng.binomial(4, rate, size=120).tolist() for b in ("easy", "hard")}

    made = {}
    for name, rate in {"student": 0.2, "teacher": 0.9, "good": 0.88, "same": 0.2}.items():
        for seed in (0, 1):
            key = f"evaluation:{name}:s{seed}"
            made[key] = evaluation(tmp_path / f"{name}{seed}", scores(rate))
    for seed in (0, 1):
        for name, slope in {"good": 0.02, "same": 0.0}.items():
            made[f"run:{name}:s{seed}"] = run(
                tmp_path / f"run-{name}{seed}",
                overlap_ratio={s: 0.7 + slope * s + 0.001 * seed for s in range(11)},
                grad_norm=dict.fromkeys(
                    range(11), 1.0 + (0.5 if seed else -0.5) * (name == "good")
                ),
            )
        made[f"probe:P:s{seed}"] = probe(
            tmp_path / f"probe{seed}",
            {"advantage_8": 0.1, "advantage_16": 0.0, "advantage_2": 0.3, "auroc": 0.74},
            {"auroc": np.linspace(0.66, 0.82, 100).tolist()},
        )
    made["targets:tiny"] = tmp_path / "targets.csv"
    made["claims:tiny"] = tmp_path / "claims.yaml"
    made["claims:tiny"].write_text(yaml.safe_dump(FILE))
    rows = [
        ["R1", "E04", "Fig6", "s", "t", "gap_recovery", "mean3", "final", ">0.80", "PQ", "P"],
        ["R2", "E04", "Fig6", "s", "t", "avg@16", "easy", "final", "0.5", "PQ", "P"],
        ["R3", "E04", "Fig6", "s", "t", "lr", "-", "-", "1e-6", "PQ", "P"],
        ["R4", "E12", "Fig9", "s", "t", "avg@16", "easy", "k=1", "0.4", "PQ", "P"],
        ["R5", "E12", "Fig9", "s", "t", "avg@16", "easy", "k=4", "0.4", "PQ", "P"],
        ["R6", "E04", "Fig6", "s", "t", "avg@16", "-", "final", "high", "PQ", "P"],
    ]
    columns = read_targets(ROOT / f"config/targets/{PAPER}.csv")[0]
    with made["targets:tiny"].open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *rows])
    return made


def arm(name: str, trained: bool = False) -> dict[str, Any]:
    two = {"evaluations": [f"evaluation:{name}:s{s}" for s in (0, 1)]}
    if trained:
        two |= {
            side: [f"evaluation:{model}:s{s}" for s in (0, 1)]
            for side, model in {"base": "student", "teacher": "teacher"}.items()
        }
        two["run"] = [f"run:{name}:s{s}" for s in (0, 1)]
    return {"label": f"the {name} one", **two}


def claim(name: str, test: dict[str, Any], **more: Any) -> dict[str, Any]:
    shown = {"experiment": "E04", "section": "4.1", "statement": f"{name} is so."}
    return {"id": name, **shown, "test": test, **more}


OVERLAP = {"metric": "overlap_ratio", "of": "E04.good"}
CLAIMS = [
    claim(
        "recovers",
        {"at_least": {"of": {"recovery": "E04.good"}, "value": 0.8}},
        published=[
            {"target": "R1", "quantity": {"recovery": "E04.good"}},
            {"target": "R2", "quantity": {"avg": "E04.good", "benchmark": "easy"}},
        ],
    ),
    claim("rises", {"rises": {"of": OVERLAP, "by": 0.1}}),
    claim("beats", {"greater": {"left": {"avg": "E04.same"}, "right": {"avg": "E04.good"}}}),
    claim("jumps", {"at_least": {"of": {"metric": "grad_norm", "of": "E04.good"}, "value": 1.2}}),
    claim(
        "high",
        {"at_least": {"of": {"avg": "E04.good"}, "value": 0.5}},
        level=True,
        published=["R6"],
    ),
    claim("absent", {"rises": {"of": {"metric": "kl_nats", "of": "E04.good"}}}, published=["R4"]),
    claim(
        "whole",
        {
            "all": [
                {"at_least": {"of": {"recovery": "E04.good"}, "value": 0.8}},
                {"at_least": {"of": {"recovery": "E09.l1"}, "value": 0.8}},
            ]
        },
    ),
    claim(
        "each",
        {
            "greater": {
                "left": {"avg": "E04.good", "benchmark": "each"},
                "right": {"avg": "E04.same", "benchmark": "each"},
            }
        },
    ),
    claim("gapless", {"at_least": {"of": {"recovery": "E04.none"}, "value": 0.8}}),
    claim(
        "falls",
        {
            "monotone": {
                "of": [{"probe": "E10", "value": "advantage_*"}],
                "direction": "falling",
            }
        },
        experiment="E10",
    ),
    claim(
        "auroc",
        {"between": {"of": {"probe": "E10", "value": "auroc"}, "low": 0.7, "high": 0.8}},
        experiment="E10",
    ),
]
CFG = {
    "scale": "synthetic",
    "comparable": True,
    "seeds": [0, 1],
    "arms": {
        "E04.good": arm("good", trained=True),
        "E04.same": arm("same", trained=True),
        "E04.none": {**arm("same"), "base": arm("student")["evaluations"]}
        | {"teacher": arm("same")["evaluations"]},
    },
    "probes": {"E10": {"label": "continuation", "runs": ["probe:P:s0", "probe:P:s1"]}},
    "figures": {"tiny/fig06": ["R2", "R5"]},
}


FILE = {
    "title": "A Tiny Paper (arXiv 1234.56789)",
    "claims": CLAIMS,
    "context": [{"targets": ["R3"], "reason": "hyperparameter"}],
}


def judged(
    inputs: dict[str, Path], out: Path, listed: list[Any] | None = None, **changed: Any
) -> dict[str, Any]:
    """claims.json of the claims above, or of those listed."""
    out.mkdir(exist_ok=True)
    if listed is not None:
        inputs["claims:tiny"].write_text(yaml.safe_dump({**FILE, "claims": listed}))
    counts = claims.run({**copy.deepcopy(CFG), **changed}, inputs, out)
    found = json.loads((out / "claims.json").read_text())
    assert found["counts"] == counts
    found["by_id"] = {one["id"]: one for one in found["claims"]}
    return found


def test_a_results_folder_gets_every_verdict(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found = judged(inputs, tmp_path / "out")
    verdicts = {name: one["verdict"] for name, one in found["by_id"].items()}
    assert verdicts == {
        "recovers": YES,
        "rises": YES,
        "beats": NO,
        "jumps": MAYBE,  # seeds at 0.5 and 1.5
        "high": YES,
        "absent": NOT_RUN,
        "whole": NOT_RUN,
        "each": YES,
        "gapless": MAYBE,
        "falls": YES,
        "auroc": MAYBE,
    }
    assert found["counts"] == {YES: 5, MAYBE: 3, NO: 1, NOT_COMPARABLE: 0, NOT_RUN: 2}
    assert [one["experiment"] for one in found["claims"]] == ["E04"] * 9 + ["E10"] * 2
    assert "metric kl_nats of the good one" in found["by_id"]["absent"]["reason"]
    assert found["by_id"]["whole"]["reason"] == "not measured: l1 (E09)"
    assert [c["verdict"] for c in found["by_id"]["whole"]["checks"]] == [YES, NOT_RUN]
    assert "may be none" in found["by_id"]["gapless"]["checks"][0]["text"]
    each = [c["text"] for c in found["by_id"]["each"]["checks"]]
    assert len(each) == 2 and "on easy" in each[0] and "on hard" in each[1]
    # By number, not by the order of the file or of letters: 2, 8, 16.
    assert [c["value"] for c in found["by_id"]["falls"]["checks"]] == pytest.approx([-0.2, -0.1])
    (auroc,) = found["by_id"]["auroc"]["checks"]
    half = (auroc["high"] - auroc["low"]) / 2
    assert auroc["rejects"] == pytest.approx([0.7 - half, 0.8 + half])
    for file in ("claims.md", "claims.html"):
        text = (tmp_path / "out" / file).read_text()
        assert text.count(f"{auroc['precision']}") == text.count("With an interval of") == 1
    (rise,) = found["by_id"]["rises"]["checks"]
    assert rise["rejects"] is None and rise["precision"] is None
    assert rise["shown"] == "+19.0 points (no interval); claimed: rising by at least 10 points"
    assert rise["shown"] in rise["text"]
    # Eleven steps: the end is the mean of the last two, 0.88 and 0.9.
    assert rise["value"] == pytest.approx(0.19) and rise["bound"] == [0.1, None]


def test_all_that_is_missing_is_named(tmp_path: Path, inputs: dict[str, Path]) -> None:
    sides = {"left": {"avg": "E01.a", "benchmark": "each"}, "right": {"avg": "E01.b"}}
    kl = {"metric": "kl_nats", "of": "E04.good"}
    listed = [
        claim("arms", {"greater": sides}),
        claim("metric", {"monotone": {"of": [kl, {**kl, "of": "E09.l1"}], "direction": "rising"}}),
        claim(
            "benchmark", {"at_least": {"of": {"avg": "E04.good", "benchmark": "b"}, "value": 0.1}}
        ),
        claim("probe", {"at_least": {"of": {"probe": "E11", "value": "auroc"}, "value": 0.1}}),
        claim("half", {"greater": {"left": {"avg": "E04.good"}, "right": {"avg": "E01.b"}}}),
    ]
    found = judged(inputs, tmp_path / "out", listed)["by_id"]
    assert {name: one["reason"] for name, one in found.items()} == {
        "arms": "not measured: a (E01), b (E01)",
        "metric": "not measured: metric kl_nats of the good one, l1 (E09)",
        "benchmark": "not measured: benchmark b",
        "probe": "not measured: E11",
        "half": "not measured: b (E01)",
    }
    assert {one["verdict"] for one in found.values()} == {NOT_RUN}
    seeds = {name: one["seeds"] for name, one in found.items() if one["seeds"]}
    assert seeds == {"half": 2}


def test_published_numbers_beside_ours(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found = judged(inputs, tmp_path / "out")
    bound, number = found["by_id"]["recovers"]["published"]
    assert bound["ours"]["value"] == pytest.approx(found["by_id"]["recovers"]["checks"][0]["value"])
    assert bound["difference"] is None  # ">0.80" is no number
    ours, apart = number["ours"], number["difference"]
    assert ours["low"] < ours["value"] < ours["high"]
    assert [apart[k] for k in ("value", "low", "high")] == pytest.approx(
        [ours[k] - 0.5 for k in ("value", "low", "high")]
    )
    other = judged(inputs, tmp_path / "other", comparable=False)
    shown = other["by_id"]["recovers"]["published"][1]
    assert shown["ours"] == ours and shown["difference"] is None
    assert shown["status"] == "not comparable" and number["status"] == "differs"
    changed = {k for k, v in other["by_id"].items() if v["verdict"] != found["by_id"][k]["verdict"]}
    assert changed == {"high"} and other["by_id"]["high"]["verdict"] == NOT_COMPARABLE
    assert other["by_id"]["high"]["checks"][0]["verdict"] == NOT_COMPARABLE


def test_every_row_is_accounted_for(tmp_path: Path, inputs: dict[str, Path]) -> None:
    rows = {row["id"]: row for row in judged(inputs, tmp_path / "out")["targets"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "R1": "agrees",  # more than 0.80
        "R2": "differs",  # 0.5, whatever becomes of the claim that it belongs to
        "R3": "context",
        "R4": "not measured",
        "R5": "not measured",
        "R6": "words only",
    }
    assert rows["R2"]["claims"] == ["recovers"] and rows["R2"]["figures"] == ["tiny/fig06"]
    assert rows["R2"]["verdicts"] == [YES] and rows["R4"]["verdicts"] == [NOT_RUN]
    assert rows["R3"]["context"] == "hyperparameter"
    bare = judged(inputs, tmp_path / "bare", figures={})
    assert [r["id"] for r in bare["targets"] if r["status"] == "unattached"] == ["R5"]
    # Only a figure has R5, and it says of what it is a value.
    easy = {"avg": "E04.same", "benchmark": "easy"}
    drawn = judged(inputs, tmp_path / "drawn", marked={"tiny": {"R5": easy}})
    (row,) = (row for row in drawn["targets"] if row["id"] == "R5")
    assert row["status"] in ("agrees", "differs") and len(row["ours"]) == 1
    elsewhere = judged(
        inputs, tmp_path / "elsewhere", comparable=False, marked={"tiny": {"R5": easy}}
    )
    assert [row["status"] for row in elsewhere["targets"]] == [
        *("not comparable", "not comparable", "context", "not measured", "not comparable"),
        "words only",
    ]


def test_a_row_says_what_no_test_tests(tmp_path: Path, inputs: dict[str, Path]) -> None:
    said = [{"target": "R6", "untested": "that it lasts"}]
    found = judged(inputs, tmp_path / "out", [{**CLAIMS[1], "published": said}])
    (row,) = (row for row in found["targets"] if row["id"] == "R6")
    assert (row["status"], row["note"]) == ("words only", "not tested: that it lasts")
    assert "words only: not tested: that it lasts" in (tmp_path / "out/claims.html").read_text()


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("0.454", 0.4535, 0.4545),
        ("0.72", 0.715, 0.725),
        ("0.7", 0.695, 0.705),  # a list may have dropped a zero
        ("0.97-0.99", 0.965, 0.995),
        (">0.80", 0.8, np.inf),
        ("<3", -np.inf, 3.0),
        ("716", 715.995, 716.005),
        ("~88000", 87500.0, 88500.0),  # printed as ~88K
        ("~20", 15.0, 25.0),
        ("~0", -0.005, 0.005),
        ("~0.85", 0.845, 0.855),
        ("7e-8", 6.5e-8, 7.5e-8),
        ("3.3E-6", 3.25e-6, 3.35e-6),
        ("1.2e3", 1150.0, 1250.0),
    ],
)
def test_what_a_printed_number_may_be(text: str, low: float, high: float) -> None:
    assert printed(text).reach == pytest.approx((low, high), rel=1e-9, abs=0)


def test_one_seed_is_said_to_be_one(tmp_path: Path, inputs: dict[str, Path]) -> None:
    def first(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: first(one) for key, one in value.items()}
        if isinstance(value, list) and all(
            isinstance(v, str) and v[-2:] == "s1" for v in value[1:]
        ):
            return value[:1]
        return value

    arms, probes = first(CFG["arms"]), first(CFG["probes"])
    found = judged(inputs, tmp_path / "out", arms=arms, probes=probes, seeds=[0])
    one = found["by_id"]["jumps"]
    assert one["seeds"] == 1 and "one seed" in one["reason"]
    assert one["verdict"] == NO and "(one seed, no interval)" in one["checks"][0]["text"]
    assert not one["interval"] and found["by_id"]["recovers"]["interval"]
    bare = {name for name, claim in found["by_id"].items() if not claim["interval"]}
    assert bare == {"jumps", "falls"}  # of the probe's advantages no draws were kept
    assert found["without_interval"][NO] == 1
    assert (
        "✗ not reproduced (1 of them on one run, without an interval)"
        in (tmp_path / "out/claims.md").read_text()
    )
    assert "✗ not reproduced (no interval)" in (tmp_path / "out/claims.html").read_text()
    assert "With one seed" in (tmp_path / "out/claims.md").read_text()
    assert (
        found["by_id"]["recovers"]["checks"][0]["low"]
        < found["by_id"]["recovers"]["checks"][0]["high"]
    )


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, inputs: dict[str, Path]) -> None:
    for name in ("one", "two"):
        judged(inputs, tmp_path / name)
    for file in ("claims.json", "claims.md", "claims.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_page_stands_alone(tmp_path: Path, inputs: dict[str, Path]) -> None:
    odd = [claim("odd", {"rises": {"of": OVERLAP}}, statement="a < b & c")]
    found = judged(inputs, tmp_path / "out", [*CLAIMS, *odd])
    page = without_script((tmp_path / "out/claims.html").read_text())
    assert not re.search(r"<script|<link|src=|https?:|@import|url\(", page)
    assert "a &lt; b &amp; c" in page
    for one in found["claims"]:
        kind = one["verdict"].replace(" ", "-")
        start = f'<article class="claim {kind}" id=' if kind != "not-run" else "<li id="
        place = f'{start}"claim:tiny/{one["id"]}" data-item data-paper="tiny"'
        assert (
            f'{place} data-experiment="tiny/{one["experiment"]}"\ndata-verdict="{one["verdict"]}">'
            in page
        )
    for verdict, sign in claims_page.marks(found).items():
        assert f'<option value="{verdict}">{sign} {verdict}</option>' in page
        assert f"{sign} {verdict}:</dt>\n<dd>{claims_page.MEANINGS[verdict]}</dd>" in page
    assert page.count(f"<h3>{FILE['title']}</h3>") == 1
    text = (tmp_path / "out/claims.md").read_text()
    assert text.count(f"\n## {FILE['title']}\n") == 1
    assert all(
        f"**{claims_page.verdict_of(c)}** {c['statement']}" in text
        for c in CLAIMS_OF(found)
        if c["verdict"] != NOT_RUN
    )


def test_claims_of_our_own_are_counted_apart(tmp_path: Path, inputs: dict[str, Path]) -> None:
    alike = {"recovers": "r2", "beats": "b2", "high": "h2"}
    own = [{**c, "id": alike[c["id"]], "ours": True} for c in CLAIMS if c["id"] in alike]
    for one in own:
        one.pop("published", None)
    before = judged(inputs, tmp_path / "before")
    found = judged(inputs, tmp_path / "out", [*CLAIMS, *own])
    assert found["counts"] == before["counts"] == found["papers"]["tiny"]["counts"]
    assert sum(before["ours"]["counts"].values()) == 0
    for about in (found, found["papers"]["tiny"]):
        counts = {verdict: n for verdict, n in about["ours"]["counts"].items() if n}
        assert counts == {YES: 2, NO: 1}
    assert {c["id"] for c in found["claims"] if c["ours"]} == {*alike.values()}
    text, page = ((tmp_path / "out" / f"claims.{kind}").read_text() for kind in ("md", "html"))
    line = next(line for line in text.splitlines() if "of our own" in line)
    assert "5 ✓ reproduced" in line.partition("; 3 of our")[0]
    assert "; 3 of our own: 2 ✓ reproduced, 1 ✗ not reproduced" in line
    assert "<p>11 claims: 5 reproduced" in page and "; 3 of our own: 2 reproduced, " in page
    assert "our own" not in (tmp_path / "before/claims.md").read_text()
    assert "r2 · ours, not the paper's" in page and "(ours, section" in text
    # Experiments count all of them.
    tallies = re.findall(r'<span class="verdict reproduced">✓ reproduced (\d+)</span>', page)
    assert sum(map(int, tallies)) == 7


def CLAIMS_OF(found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(found["claims"])


# Malformed claims

GOOD = CLAIMS[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": {"exceeds": {}}}, "claim recovers.test.exceeds: no such key"),
        ({"test": {"at_least": {"of": {"accuracy": "A"}, "value": 1.0}}}, "is no quantity"),
        ({"test": {"at_least": {"of": {"avg": ["A"]}, "value": 1.0}}}, "['A'] is not allowed"),
        ({"test": {"at_least": {"of": {"avg": "A", "of": "B"}, "value": 1.0}}}, "of: no such key"),
        ({"test": {"at_least": {"of": {"metric": "loss"}, "value": 1.0}}}, "metric needs of"),
        (
            {"test": {"at_least": {"of": {**OVERLAP, "per": {"off": "B"}}, "value": 1.0}}},
            "per: {'off': 'B'} is not allowed",
        ),
        (
            {"test": {"at_least": {"of": {**OVERLAP, "less": {"of": "B"}}, "value": 0.1}}},
            "less: {'of': 'B'} is not allowed: write at",
        ),
        (
            {"test": {"at_least": {"of": {**OVERLAP, "less": {"at": "end"}}, "value": 0.1}}},
            "less: it compares a quantity with itself",
        ),
        (
            {"test": {"at_least": {"of": {**OVERLAP, "less": {"at": "jump"}}, "value": 0.1}}},
            "less: compares share with points of a share",
        ),
        (
            {
                "test": {
                    "at_least": {
                        "of": {**OVERLAP, "less": {"at": "mid"}, "per": {"at": "start"}},
                        "value": 0.1,
                    }
                }
            },
            "per and less: write one of them",
        ),
        ({"test": {}}, "needs exactly one of greater"),
        (
            {"test": {"rises": {"of": OVERLAP}, "falls": {"of": OVERLAP}}},
            "it has rises and falls",
        ),
        (
            {"test": {"rises": {"of": {**OVERLAP, "at": "end"}}}},
            "a metric of an arm, without at, per and less",
        ),
        ({"test": {"at_least": {"of": {**OVERLAP, "at": "now"}, "value": 1.0}}}, "'now'"),
        ({"test": {"monotone": {"of": [{"avg": "A"}], "direction": "rising"}}}, "has no order"),
        (
            {"test": {"at_least": {"of": {"probe": "P", "value": "advantage_*"}, "value": 0.1}}},
            "at: first",
        ),
        (
            {
                "test": {
                    "greater": {"left": {"avg": "A"}, "right": {**OVERLAP, "metric": "kl_nats"}}
                }
            },
            "compares nats with share",
        ),
        (
            {"test": {"between": {"of": {"avg": "A"}, "low": 0.8, "high": 0.7}}},
            "low 0.8 is above high 0.7",
        ),
        (
            {"test": {"greater": {"left": OVERLAP, "right": {**OVERLAP, "at": "end"}}}},
            "compares a quantity with itself",
        ),
        (
            {
                "test": {
                    "equivalent": {
                        "left": {"avg": "A"},
                        "right": {"avg": "A", "benchmark": "macro"},
                        "within": 0.1,
                    }
                }
            },
            "compares a quantity with itself",
        ),
        (
            {
                "test": {
                    "monotone": {
                        "of": [{"avg": "A"}, {"avg": "B"}, {"avg": "A"}],
                        "direction": "rising",
                    }
                }
            },
            "names a quantity twice",
        ),
        ({"test": {"at_least": {"of": {"avg": "A"}, "value": 80.0}}}, "80.0 of a share: write 0.8"),
        ({"test": {"at_most": {"of": {"change": "A"}, "value": 3.0}}}, "3.0 of a share"),
        ({"test": {"at_least": {"of": {"recovery": "A"}, "value": 80.0}}}, "80.0 of a share"),
        (
            {"test": {"greater": {"left": {"avg": "A"}, "right": {"avg": "B"}, "by": -3.0}}},
            "-3.0 of a share: write -0.03",
        ),
        (
            {"test": {"all": [{"rises": {"of": OVERLAP, "by": 10.0}}]}},
            "claim recovers.test.all.0: 10.0 of a share",
        ),
        (
            {"test": {"between": {"of": {"avg": "A"}, "low": 0.7, "high": 80.0}}},
            "80.0 of a share",
        ),
        ({"published": ["R9"]}, "claim recovers.published: no published row 'R9'"),
        ({"verdict": "reproduced"}, "claim recovers.verdict: no such key"),
        ({"statement": None}, "claim recovers.statement"),
    ],
)
def test_malformed_claims_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        check([{**GOOD, **change}], [], ["R1", "R2"])
    assert str(caught.value).startswith("claim recovers")


@pytest.mark.parametrize(
    "test",
    [
        # Nats, and a share of a gap, of which a student that passes its teacher has more than all.
        {"at_least": {"of": {"metric": "kl_nats", "of": "A"}, "value": 3.0}},
        {"at_least": {"of": {"recovery": "A"}, "value": 1.1}},
        {"greater": {"left": OVERLAP, "right": {**OVERLAP, "at": "start"}, "by": 1.0}},
        {"greater": {"left": OVERLAP, "right": {**OVERLAP, "positions": "back"}}},
    ],
)
def test_what_a_claim_may_compare(test: dict[str, Any]) -> None:
    assert check([{**GOOD, "test": test}], [], ["R1", "R2"])


def test_rows_and_ids_are_used_once() -> None:
    known = ["R1", "R2", "R3"]
    assert [c.id for c in check([GOOD], [{"targets": ["R3"], "reason": "r"}], known)] == [
        "recovers"
    ]
    with pytest.raises(UserError, match="claim recovers: two claims have this id"):
        check([GOOD, GOOD], [], known)
    with pytest.raises(UserError, match="row R1 belongs to claim recovers"):
        check([GOOD], [{"targets": ["R1"], "reason": "r"}], known)
    with pytest.raises(UserError, match="row R3 belongs to figure fig06"):
        check([GOOD], [{"targets": ["R3"], "reason": "r"}], known, {"fig06": ["R3"]})
    with pytest.raises(UserError, match="row R3 belongs to context number 1"):
        check([], [{"targets": ["R3"], "reason": "r"}] * 2, known)
    with pytest.raises(UserError, match="claim number 2: "):
        check([GOOD, "text"], [], known)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": None}, "title: .*required"),
        ({"title": " "}, "title: ' ' is not allowed"),
        ({"title": 2604}, "title: 2604 is not allowed"),
        ({"titel": "T"}, "titel: no such key; did you mean 'title'"),
    ],
)
def test_a_file_of_claims_names_its_paper(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({**FILE, **change}))
    with pytest.raises(UserError, match=said) as caught:
        read_claims(path)
    assert str(path) in str(caught.value)


ROW = "R1,E1,Fig1,a student,a teacher,overlap,-,a setting,0.72,printed,a source"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            f"{ROW}, page 3",
            "row 'R1' has 12 cells, not 11; fill every column, and quote a cell with a comma",
        ),
        (ROW.replace("a setting", "a, setting"), "row 'R1' has 12 cells, not 11"),
        ("R1,E1,Fig1", "row 'R1' has 3 cells, not 11"),
        (ROW.replace("-", "–"), "it is no UTF-8; save it as UTF-8"),
    ],
)
def test_a_published_row_has_a_cell_in_each_column(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "targets.csv"
    path.write_text("\n".join([",".join(TARGETS), row, ""]), encoding="cp1252")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        read_targets(path)
    assert str(path) in str(caught.value)


def test_checking_claims_needs_no_numpy() -> None:
    code = "import sys, opd.results.claim_spec; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What the project claims of the first paper


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return read_claims(ROOT / f"config/claims/{PAPER}.yaml")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in read_targets(ROOT / f"config/targets/{PAPER}.csv")}


def shown_in_figures(rows: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Figure -> published rows that it shows."""
    given = yaml.safe_load((ROOT / f"config/figures/{PAPER}.yaml").read_text())
    figures = figure_spec.check(given, rows.values())
    return {name: figure.targets() for name, figure in figures.items()}


MEASURES = re.compile(
    r"avg@16|overlap|recover|AUROC|advantage|entropy|loss|grad_norm|ordering|dynamics|outcome"
)
OWN = ("paper-quoted", "second-hand", "author-statement", "inferred")


def test_no_published_row_is_forgotten(
    paper: dict[str, Any], rows: dict[str, dict[str, str]]
) -> None:
    figures = shown_in_figures(rows)
    parsed = check(paper["claims"], paper["context"], rows, figures)
    context = {target for one in paper["context"] for target in one["targets"]}
    attached = {target for one in parsed for target in one.targets()}
    attached |= {target for shown in figures.values() for target in shown}
    assert len(rows) == 271 and set(rows) == attached | context
    for target in context:
        row = rows[target]
        hyperparameter = row["metric"] in ("loss_agg",)
        measures = MEASURES.search(row["metric"]) and row["confidence"] in OWN
        assert hyperparameter or not measures, row


def test_shares_on_the_way_are_attached_to_what_is_measured_of_them(paper: dict[str, Any]) -> None:
    said = {one.target: one for claim in parse(paper["claims"]) for one in claim.published}
    arms = {name: said[name].quantity.of for name in ("R039", "R040")}
    assert arms == {"R039": "E04.success-200", "R040": "E04.success"}
    config = resolve(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    late, end = (config.arms[arm] for arm in arms.values())
    assert late.model == f"{end.model}@200" and (late.base, late.teacher) == (end.base, end.teacher)
    run = config.models[end.model].distill
    assert 200 in run.keep_steps and run.steps < 300 and "300" in said["R040"].untested


def test_rows_are_the_published_ones(rows: dict[str, dict[str, str]]) -> None:
    assert list(rows) == [f"R{n:03d}" for n in range(1, 272)]
    assert rows["R001"]["value"] == "0.212" and rows["R271"]["experiment_id"] == "E01"
    assert all(row["source"] and row["confidence"] for row in rows.values())


def test_claims_cover_every_figure(paper: dict[str, Any]) -> None:
    drawn = {(one.figure or "")[:5] for one in parse(paper["claims"])}
    assert {f"fig{n:02d}" for n in range(2, 24)} <= drawn


def test_margins_are_of_the_size_of_what_they_bound(paper: dict[str, Any]) -> None:
    """Shares from 0 to 1: nobody wrote 5 for five points."""
    for one in parse(paper["claims"]):
        for quantity in quantities(one.test):
            assert quantity.unit in ("share", "points of a share", "nats", "")
        for number in numbers(one.test.model_dump(exclude_none=True)):
            assert -0.5 <= number <= 1.5, one.id


def numbers(value: Any) -> Iterator[float]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, float):
            yield part
        else:
            yield from numbers(part)


def test_suggested_checks_are_there(paper: dict[str, Any]) -> None:
    """The paper's acceptance checks (specification, 7.3) each have a claim with their margins."""
    tests = {one["id"]: json.dumps(one["test"]) for one in paper["claims"]}
    assert '"rises"' in tests["E04-overlap-success"] and '"by": 0.1' in tests["E04-overlap-size"]
    assert '"within": 0.05' in tests["E04-overlap-failure"]
    assert '"low": 0.7, "high": 0.8' in tests["E11-level"]
    assert '"monotone"' in tests["E10-fall"] and '"falling"' in tests["E10-fall"]
    assert {
        *("E05-overlap-suffices", "E05-rest-weaker", "E05-overlap-dips", "E12-top1", "E12-spikes"),
        *("E12-alike", "E03-small", "E03-large", "E03-alike", "E07-overlap", "E06-overlap"),
        *("E04-accuracy", "E06-entropy-gap", "E11-not-lower"),
    } <= tests.keys()


def curves(folder: Path, **metrics: dict[int | None, list[float]]) -> Path:
    """A training run: values of each metric step by step, by position (None: of all)."""
    folder.mkdir(parents=True)
    rows = [
        {"step": step, "name": name, "position": position, "value": value}
        for name, by_position in metrics.items()
        for position, values in by_position.items()
        for step, value in enumerate(values)
    ]
    tables.write(folder / "metrics.parquet", rows, METRICS)
    return folder


def of_runs(paper: dict[str, Any], claim: str, folder: Path, runs: dict[str, Any]) -> list[str]:
    """The verdict of a claim and of its checks on these runs, by arm."""
    reader = Reader({arm: curves(folder / arm, **metrics) for arm, metrics in runs.items()})
    arms = {arm: {"label": arm, "run": [arm]} for arm in runs}
    (parsed,) = parse([one for one in paper["claims"] if one["id"] == claim])
    found = [check.verdict for check in checks(parsed.test, Measurements({"arms": arms}, reader))]
    return [worst(found), *found]


STEPS = np.linspace(0, 1, 40)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_growth_in_the_back_is_more_than_growth_in_front(
    who: str, paper: dict[str, Any], tmp_path: Path
) -> None:
    """Entropy by position, where the back half begins higher and grows either way."""

    def verdict(name: str, front: float, back: float) -> list[str]:
        values = {0: 0.2 + front * STEPS, 8: 0.4 + back * STEPS}
        entropy = {f"entropy_{who}_nats": {at: v.tolist() for at, v in values.items()}}
        runs = {"E09.l6": entropy}
        return of_runs(paper, f"E09-suffix-{who}", tmp_path / name, runs)

    assert verdict("back", 0.1, 0.5) == [YES, YES, YES]
    # In front it grows faster, and is lower all the same.
    assert verdict("front", 0.35, 0.3) == [NO, YES, NO]
    assert verdict("neither", -0.5, 0.05) == [NO, NO, YES]


def test_a_late_collapse_is_late(paper: dict[str, Any], tmp_path: Path) -> None:
    calm, early, late = np.full(40, 0.9), np.full(40, 0.9), np.full(40, 0.9)
    early[5:], late[30:] = 0.6, 0.6

    def run(overlap: Any, jump: float) -> dict[str, Any]:
        step = np.where(STEPS > 0.8, jump, 0.0).tolist()
        measured = {"overlap_ratio": overlap.tolist(), "entropy_student_nats": step}
        return {name: {None: values} for name, values in (measured | {"grad_norm": step}).items()}

    def verdicts(name: str, long: Any, medium: Any, l3: float = 0.1, l4: float = 0.1) -> list[str]:
        runs = {"E09.l3": run(medium, l3), "E09.l4": run(medium, l4)}
        runs |= {arm: run(long, 0.5) for arm in ("E09.l5", "E09.l6")}
        return of_runs(paper, "E09-collapse", tmp_path / name, runs)

    assert verdicts("late", late, calm) == [YES] * 13
    # From its highest value to its end it falls as far, but before the middle of training.
    assert verdicts("early", early, calm) == [NO, NO, NO, *[YES] * 10]
    assert verdicts("medium, too", late, late) == [NO, YES, YES, NO, NO, *[YES] * 8]
    # One medium length with jumps as large is enough.
    assert verdicts("jumps", late, calm, l3=0.5) == [NO, *[YES] * 4, *[NO, YES] * 4]
    assert verdicts("other jumps", late, calm, l4=0.7) == [NO, *[YES] * 4, *[YES, NO] * 4]


def test_the_late_dip_of_four_tokens_is_late(paper: dict[str, Any], tmp_path: Path) -> None:
    def verdicts(name: str, k4: list[float]) -> list[str]:
        step = {"E12.k1": 0.5, "E12.k4": 0.1, "E12.k16": 0.1}
        overlap = {"E12.k1": [0.9] * 40, "E12.k4": k4, "E12.k16": [0.9] * 40}
        runs = {
            arm: {
                "overlap_ratio": {None: overlap[arm]},
                "entropy_student_nats": {None: [0.0] * 20 + [jump] * 20},
                "grad_norm": {None: [0.0] * 20 + [jump] * 20},
            }
            for arm, jump in step.items()
        }
        return of_runs(paper, "E12-k4", tmp_path / name, runs)

    assert verdicts("late", [0.9] * 30 + [0.7] * 10) == [YES] * 5
    assert verdicts("early", [0.9] * 10 + [0.7] * 30) == [NO, YES, YES, NO, NO]


def test_units_of_metrics_and_values() -> None:
    assert read({"metric": "kl_nats", "of": "A"}).unit == "nats"
    assert read({"metric": "overlap_ratio", "of": "A", "at": "jump"}).unit == "points of a share"
    grown = {"metric": "overlap_ratio", "of": "A", "less": {"at": "start"}}
    assert read(grown).unit == "points of a share"
    assert read({**grown, "metric": "kl_nats"}).unit == "nats"
    first = {"probe": "P", "value": "advantage_*", "at": "first"}
    assert read(first).unit == "points of a share"
    assert unit_of("advantage_1024") == "points of a share" and unit_of("teacher_16") == "share"
    assert unit_of("teacher_rank") == ""

"""Estimates of quantities against numbers by hand."""

import json
from operator import sub as difference
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import evaluation, probe, run

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import read_json
from opd.evaluation.reader import Reader
from opd.evaluation.schemas import SCORES
from opd.losses.schemas import METRICS
from opd.results import estimate as estimates
from opd.results.claims import side
from opd.results.estimate import (
    Estimate,
    Measurements,
    Missing,
    Undefined,
    at,
    blocks,
)
from opd.results.quantity import read, unit_of
from opd.stats.few_seeds import p_value, widened
from opd.stats.intervals import averages, bootstrap, bounds, interval, less, student, weights

Given = dict[str, Any]
STUDENT = {"easy": [2, 1, 3, 2], "hard": [0, 1, 0, 1]}
TEACHER = {"easy": [4, 4, 4, 4], "hard": [4, 4, 3, 2]}
AFTER = [
    {"easy": [4, 3, 4, 3], "hard": [2, 2, 1, 1]},
    {"easy": [4, 4, 3, 4], "hard": [2, 3, 2, 0]},
]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    inputs = {
        "student": evaluation(tmp_path / "student", STUDENT),
        "teacher": evaluation(tmp_path / "teacher", TEACHER),
        "perfect": evaluation(tmp_path / "perfect", {"easy": [4] * 4, "hard": [4] * 4}),
        "r0": run(
            tmp_path / "r0", kl_nats={s: 20.0 - s for s in range(20)}, overlap_ratio={1: 0.5}
        ),
        "r1": run(tmp_path / "r1", kl_nats={s: 40.0 - s for s in range(20)}),
        "p0": probe(tmp_path / "p0", {"auroc": 0.7, "none": None}, {"auroc": [0.6, 0.8]}),
        "p1": probe(tmp_path / "p1", {"auroc": 0.8, "bare": 1.0}, {"auroc": [0.7, 0.9]}),
    }
    for i, after in enumerate(AFTER):
        inputs[f"s{i}"] = evaluation(tmp_path / f"s{i}", after)
    return Reader(inputs)


ARMS = {
    "after": {
        "label": "student ← teacher",
        "evaluations": ["s0", "s1"],
        "base": ["student", "student"],
        "teacher": ["teacher", "teacher"],
        "run": ["r0", "r1"],
    },
    "once": {"label": "one", "evaluations": ["s0"], "base": ["student"], "run": ["r0"]},
    "student": {"label": "student", "evaluations": ["student", "student"]},
    "perfect": {"label": "perfect", "evaluations": ["perfect", "perfect"]},
    "E09.l2": {"label": "1,024 tokens"},
}
PROBES = {"P": {"label": "p", "runs": ["p0", "p1"]}, "Q": {"label": "q", "runs": ["p0"]}}


def estimate(
    quantity: Given, reader: Reader, arms: Given, probes: Given, resamples: int = 4000
) -> Estimate:
    cfg = {"arms": arms, "probes": probes, "resamples": resamples}
    return estimates.estimate(read(quantity), Measurements(cfg, reader))


def found(quantity: Given, reader: Reader, resamples: int = 500) -> Estimate:
    return estimate(quantity, reader, ARMS, PROBES, resamples)


def test_one_benchmark_is_drawn_as_among_all(reader: Reader) -> None:
    """The draws of the first are those of it alone; another has another part of the stream."""
    sides = [["s0", "s1"], ["student"] * 2]
    after, base = (reader.evaluations(names, "here").scores("easy") for names in sides)
    means, draws = bootstrap([*averages(after), less(*averages(after, base))], 4000, 0)
    for quantity, column in (("avg", 0), ("change", 1)):
        easy = found({quantity: "after", "benchmark": "easy"}, reader, 4000)
        assert easy.value == pytest.approx(means[column]) and easy.seeds == 2
        np.testing.assert_allclose(easy.draws, draws[:, column], atol=1e-12)
        # 14 and 15 of 16: wider than the bootstrap, and no more than all.
        drawn = bounds(easy.value, easy.draws)
        assert easy.by_seed is not None and easy.interval().low < drawn.low
        assert easy.interval() == pytest.approx(
            widened(drawn, easy.draws, easy.by_seed)._replace(high=easy.interval().high)
        )
    assert found({"avg": "after", "benchmark": "easy"}, reader).interval().high == 1
    alone = interval(reader.evaluations(["s0"], "here").scores("easy"), 4000)
    arms = {"after": {"label": "a", "evaluations": ["s0"], "base": ["student"]}}
    easy = estimate({"avg": "after", "benchmark": "easy"}, reader, arms, {}, 4000)
    assert easy.by_seed is None and easy.interval() == pytest.approx(alone, abs=1e-12)


def test_values_by_hand(reader: Reader) -> None:
    # After: easy 14/16 and 15/16, hard 6/16 and 7/16. Student: 8/16, 2/16. Teacher: 1, 13/16.
    after, student, teacher = (29 / 32 + 13 / 32) / 2, (0.5 + 0.125) / 2, (1 + 13 / 16) / 2
    assert found({"avg": "after"}, reader).value == pytest.approx(after)
    assert found({"avg": "after", "benchmark": "hard"}, reader).value == pytest.approx(13 / 32)
    assert found({"change": "after"}, reader).value == pytest.approx(after - student)
    share = (after - student) / (teacher - student)
    got = found({"recovery": "after"}, reader)
    assert got.value == pytest.approx(share) and got.unit == "share"
    assert found({"change": "after"}, reader).unit == "points of a share"
    # Tokens are 10 to 13 of each problem; the fourth sample is cut off.
    assert found({"tokens": "after"}, reader).value == pytest.approx(11.5)
    assert found({"truncated": "after"}, reader).value == pytest.approx(0.25)
    assert found({"answered": "after"}, reader).value == pytest.approx(after)
    # Over two seeds by the t that the interval of the change is from; of one seed by swaps: of
    # eight problems seven are better and one is as before, so 4 of 2^8 swaps are as extreme.
    change, p = found({"change": "after"}, reader, 4000), found({"p": "after"}, reader, 4000)
    assert p.value == p_value(change.draws, change.by_seed) and p.interval() == (p.value,) * 3
    arms = {"once": {"label": "one run", "evaluations": ["s0"], "base": ["student"]}}
    assert estimate({"p": "once"}, reader, arms, {}).value == pytest.approx(4 / 256)


def test_a_ratio_may_lie_beyond_what_a_share_may_be() -> None:
    """A recovery of 100 % from 70 and 130: Student's t is 12.7 times 30 points to either side. A
    share of right answers ends at 1."""
    by_seed = np.array([0.7, 1.3])
    draws = by_seed[np.random.default_rng(0).integers(2, size=(4000, 2))].mean(axis=1)
    recovery = Estimate(1.0, draws, 2, "share", by_seed=by_seed, ratio=True)
    half = 12.706 * 0.3
    assert recovery.interval() == pytest.approx((1, 1 - half, 1 + half), rel=0.05)
    assert recovery._replace(ratio=False).interval()[1:] == (0, 1)
    other = recovery._replace(value=0.5, draws=np.full(4000, 0.5), by_seed=np.full(2, 0.5))
    assert difference(recovery, other).interval().high > 1


def test_length_is_a_share_of_that_of_the_base(tmp_path: Path) -> None:
    def tokens(name: str, counts: list[list[int]]) -> Path:
        rows = [
            {
                "benchmark": "b",
                "problem": f"p{i}",
                "sample": j,
                "answer": "1",
                "response": "r",
                "extracted": "1",
                "correct": 1.0,
                "scores": [("rule", 1.0)],
                "tokens": count,
                "finish": "stop",
            }
            for i, row in enumerate(counts)
            for j, count in enumerate(row)
        ]
        folder = tmp_path / name
        folder.mkdir()
        tables.write(folder / "scores.parquet", rows, SCORES)
        return folder

    reader = Reader(
        {
            "before": tokens("before", [[100, 300], [400, 0]]),
            "after": tokens("after", [[60, 60], [200, 120]]),
        }
    )
    arms = {"A": {"label": "a", "evaluations": ["after"], "base": ["before"]}}
    got = estimate({"length": "A"}, reader, arms, {}, 500)
    # Means 110 of 200; of each problem 60 of 200 and 160 of 200.
    assert got.value == pytest.approx(0.55) and got.unit == "share"
    assert {*got.draws.round(9)} == {0.3, 0.55, 0.8}
    with pytest.raises(Missing, match="base of a"):
        estimate({"length": "A"}, reader, {"A": {"label": "a", "evaluations": ["after"]}}, {})


def test_draws_are_paired(reader: Reader) -> None:
    """A change is the difference of averages in every draw, on all benchmarks and on each."""
    for benchmark in ("macro", "easy", "hard"):
        more = {"benchmark": benchmark}
        change = found({"change": "after", **more}, reader)
        apart = difference(
            found({"avg": "after", **more}, reader), found({"avg": "student", **more}, reader)
        )
        np.testing.assert_allclose(change.draws, apart.draws, atol=1e-12)
        assert change.unit == apart.unit == "points of a share"
    parts = [found({"avg": "after", "benchmark": b}, reader).draws for b in ("easy", "hard")]
    np.testing.assert_allclose(found({"avg": "after"}, reader).draws, np.mean(parts, axis=0))
    # One run beside two is paired with each: the same draws of problems.
    twice = {**ARMS, "once": {**ARMS["once"], "evaluations": ["s0", "s0"]}}
    np.testing.assert_allclose(
        found({"avg": "once"}, reader).draws,
        estimate({"avg": "once"}, reader, twice, PROBES, 500).draws,
    )


def test_curves_become_numbers() -> None:
    values = np.array([5.0, 1.0, 2.0, 3.0, 9.0] + [4.0] * 10 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert at(values, "start") == 5
    assert at(values, "end") == pytest.approx((3 + 4 + 5) / 3)  # 21 values: the last 3
    assert at(values, "late") == pytest.approx((5 * 4 + 15) / 11)
    assert at(values, "mean") == pytest.approx((20 + 40 + 15) / 21)
    assert (at(values, "min"), at(values, "max"), at(values, "jump")) == (0, 9, 6)
    assert at(values, "mid") == pytest.approx(4)  # the 10th to the 12th
    assert at(values, "last") == 5
    assert at(values, "drop") == pytest.approx(9 - 4)
    for when in ("start", "last", "mid", "end", "late", "mean", "min", "max"):
        assert at(values[:1], when) == 5
    assert at(values[:1], "jump") == at(values[:1], "drop") == 0
    steps = np.arange(20.0)
    assert at(steps, "mid") == pytest.approx(9.5)  # 9 and 10: as many before as after
    # Of many curves at once, one number each.
    curves = np.stack([steps, 19 - steps, np.zeros(20)])
    for when in ("start", "last", "mid", "end", "late", "mean", "min", "max", "jump", "drop"):
        assert at(curves, when).tolist() == [float(at(curve, when)) for curve in curves]


def test_metrics_vary_over_seeds_only(reader: Reader) -> None:
    one = found({"metric": "kl_nats", "of": "once", "at": "end"}, reader)
    assert one.value == pytest.approx(1.5) and one.seeds == 1 and one.unit == "nats"
    # The last two of twenty steps, 1 and 2: one block of each, spread by Student's t.
    assert one.draws.mean() == pytest.approx(1.5, abs=1.0) and np.ptp(one.draws) > 1
    two = found({"metric": "kl_nats", "of": "after", "at": "end"}, reader, 4000)
    assert two.value == pytest.approx(11.5) and two.seeds == 2
    # 1.5 and 21.5: standard error 10, and Student's t for one degree of freedom 12.706.
    assert two.interval() == pytest.approx((11.5, 11.5 - 127.062, 11.5 + 127.062), abs=1e-3)
    start = found({"metric": "kl_nats", "of": "after", "at": "start"}, reader, 4000)
    # Seed by seed the two differ by the same: paired.
    assert difference(start, two).interval() == pytest.approx((18.5, 18.5, 18.5))
    one_run = found({"metric": "kl_nats", "of": "once", "at": "end"}, reader, 4000)
    apart = difference(two, one_run).by_seed
    assert apart is not None and apart.tolist() == pytest.approx([0.0, 20.0])


def test_one_run_has_intervals_of_means_over_steps(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=200)
    inputs = {
        name: run(tmp_path / name, kl_nats={s: 1 + sign * v for s, v in enumerate(noise)})
        for name, sign in {"a": 0.1, "b": 0.1, "c": -0.1}.items()
    }
    arms = {name: {"label": name, "run": [name]} for name in inputs}

    def of(arm: str, **more: Any) -> Estimate:
        return estimate({"metric": "kl_nats", "of": arm, **more}, Reader(inputs), arms, {})

    windows = {"mid": slice(90, 110), "end": slice(180, 200), "late": slice(100, 200)}
    for when, steps in {**windows, "mean": slice(0, 200)}.items():
        got, part = of("a", at=when).interval(), noise[steps]
        half = 1.96 * 0.1 * part.std() / np.sqrt(len(part))
        assert got.low < got.mean < got.high
        assert 0.6 * half < (got.high - got.low) / 2 < 2.2 * half
        # The same steps are drawn of every run: equal courses have no difference.
        same = difference(of("a", at=when), of("b", at=when)).interval()
        assert same == pytest.approx((0, 0, 0), abs=1e-12)
        opposed = difference(of("a", at=when), of("c", at=when)).interval()
        assert opposed.high - opposed.low == pytest.approx(2 * (got.high - got.low))
    for when in ("start", "min", "max", "jump", "drop"):
        assert np.ptp(of("a", at=when).draws) == 0
    assert np.ptp(blocks(np.array([3.0]), 50, 0)) == 0


def test_coverage_within_a_run() -> None:
    """Of 28 steps that correlate by 0.5 the mean is held by about 90 % of intervals: more than
    without the spread of Student's t (77 %), and fewer than 95 %."""
    rng, hits, trials = np.random.default_rng(4), 0, 400
    for seed in range(trials):
        steps = np.zeros(80)
        for i in range(1, 80):
            steps[i] = 0.5 * steps[i - 1] + rng.normal()
        low, high = np.quantile(blocks(steps[-28:], 400, seed), [0.025, 0.975])
        hits += low <= 0 <= high
    assert 0.85 <= hits / trials <= 0.96


def test_coverage_over_three_seeds() -> None:
    """A bootstrap of three seeds is their range, which holds the mean in 1 - 2 / 2^3 = 75 % of
    cases; Student's t in 95 %."""
    rng, trials = np.random.default_rng(5), 2000
    of_seeds, _ = weights(3, (), 1000, 0)
    t, ranges = 0, 0
    for _ in range(trials):
        values = rng.normal(size=3)
        found = student(values)
        t += found.low <= 0 <= found.high
        low, high = np.quantile(of_seeds @ values, [0.025, 0.975])
        ranges += low <= 0 <= high
    assert t / trials == pytest.approx(0.95, abs=0.015)
    assert ranges / trials == pytest.approx(0.75, abs=0.03)
    # Half width 4.303 standard errors.
    found = student(np.array([1.0, 2.0, 3.0]))
    assert (found.high - found.low) / 2 == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)


def test_a_metric_as_a_share_of_another(reader: Reader) -> None:
    ends = {"at": "end", "per": {"at": "start"}}
    one = found({"metric": "kl_nats", "of": "once", **ends}, reader)
    assert one.value == pytest.approx(1.5 / 20) and one.unit == "share"
    two = found({"metric": "kl_nats", "of": "after", **ends}, reader)
    assert two.by_seed is not None
    assert two.by_seed.tolist() == pytest.approx([1.5 / 20, 21.5 / 40])
    of_one = found({"metric": "kl_nats", "of": "after", "per": {"of": "once", "at": "end"}}, reader)
    assert of_one.by_seed is not None and of_one.by_seed.tolist() == pytest.approx([1, 21.5 / 1.5])


def test_no_share_of_what_is_nothing_with_one_seed(tmp_path: Path) -> None:
    """Starts of 0, 0.2 and 0.2 have a mean that is not 0."""
    starts = {"a": 0.0, "b": 0.2, "c": 0.2}
    inputs = {n: run(tmp_path / n, truncation_ratio={1: v, 2: 0.1}) for n, v in starts.items()}
    arms = {"A": {"label": "a", "run": [*inputs]}}
    share = {"metric": "truncation_ratio", "of": "A", "at": "last", "per": {"at": "start"}}
    with pytest.raises(Undefined, match="truncation_ratio of a is 0, or differs in sign"):
        estimate(share, Reader(inputs), arms, {})


def test_a_metric_less_that_at_another_time(reader: Reader) -> None:
    """20, 19, ..., 1 and 40, 39, ..., 21: the middle is 10.5 and 30.5, the end 1.5 and 21.5."""
    one = found({"metric": "kl_nats", "of": "once", "at": "mid", "less": {"at": "end"}}, reader)
    assert one.value == pytest.approx(9) and one.unit == "nats"
    # Both are means over two steps that lie one apart, so that their difference never moves.
    assert one.draws == pytest.approx(np.full(500, 9.0))
    grown = found({"metric": "kl_nats", "of": "after", "less": {"at": "start"}}, reader)
    assert grown.by_seed is not None and grown.by_seed.tolist() == pytest.approx([-18.5, -18.5])
    assert grown.interval() == pytest.approx((-18.5, -18.5, -18.5))
    share = {"metric": "overlap_ratio", "of": "once", "at": "max", "less": {"at": "start"}}
    assert found(share, reader).unit == "points of a share"


def test_a_metric_by_position(tmp_path: Path) -> None:
    rows = [
        {"step": step, "name": "kl_nats", "position": position, "value": value}
        for step in (1, 2)
        for position, value in {None: 0.0, 0: 1.0, 8: 2.0, 16: 9.0, 24: 3.0, 32: 5.0}.items()
        if (step, position) != (2, 32)
    ]
    tables.write(tmp_path / "metrics.parquet", rows, METRICS)
    reader = Reader({"r": tmp_path})
    arms = {"A": {"label": "a", "run": ["r"]}}
    values = {
        (part, when): estimate(
            {"metric": "kl_nats", "of": "A", "at": when, "positions": part}, reader, arms, {}
        ).value
        for part in ("front", "back")
        for when in ("start", "end")
    }
    # Five bins: the first two, the last two; none of the last at step 2.
    assert values == {
        ("front", "start"): 1.5,
        ("front", "end"): 1.5,
        ("back", "start"): 4.0,
        ("back", "end"): 3.0,
    }
    with pytest.raises(Missing, match="metric loss by position of a"):
        estimate({"metric": "loss", "of": "A", "positions": "back"}, reader, arms, {})


def test_probes_average_drawn_seeds(reader: Reader) -> None:
    both = found({"probe": "P", "value": "auroc"}, reader, 4000)
    assert both.value == pytest.approx(0.75) and both.seeds == 2
    # First draw of a probe 0.6 or 0.7, second 0.8 or 0.9, each averaged over two drawn seeds.
    assert set(both.draws.round(6)) == {0.6, 0.65, 0.7, 0.8, 0.85, 0.9}
    one = found({"probe": "Q", "value": "auroc"}, reader, 5)
    assert one.draws == pytest.approx([0.6, 0.8, 0.6, 0.8, 0.6]) and one.seeds == 1


def of_three(tmp_path: Path, name: str, *values: tuple[float, float, float, list[float]]) -> Any:
    """The estimate of a probe's value over seeds that are given as (value, low, high, draws)."""
    inputs = {}
    for i, (value, low, high, draws) in enumerate(values):
        folder = probe(tmp_path / f"p{i}", {name: value}, {name: draws})
        report = read_json(folder / "probe.json")
        report["values"][name] |= {"low": low, "high": high}
        (folder / "probe.json").write_text(json.dumps(report))
        inputs[f"p{i}"] = folder
    probes = {"P": {"label": "p", "runs": [*inputs]}}
    return estimate({"probe": "P", "value": name}, Reader(inputs), {}, probes, 4000)


def test_one_seed_that_never_moves_does_not_stand_for_all(tmp_path: Path) -> None:
    """30 of 30, 18 and 15 of them: of the mean, 0.7, a variance of 0.0233 over seeds and of 0.0018
    over prompts, for which Student's t is 3.79: 0.60 to either side."""
    rng = np.random.default_rng(0)
    drawn = [(r, r, r, rng.binomial(30, r, 4000) / 30) for r in (0.6, 0.5)]
    seeds = [(v, v - 0.17, v + 0.17, d.tolist()) for v, _, _, d in drawn]
    got = of_three(tmp_path, "format_prefix", (1.0, 0.88, 1.0, [1.0]), *seeds)
    low, high = got.interval()[1:]
    assert low == pytest.approx(0.7 - 0.60, abs=0.07) and high == 1
    # Where none moves it is as far as each may be off.
    for seeds in (3, 6, 7):  # sixths and sevenths sum to 1 only up to rounding
        still = of_three(tmp_path / f"{seeds}", "format_prefix", *[(1.0, 0.88, 1.0, [1.0])] * seeds)
        assert still.interval() == pytest.approx((1, 0.88, 1))


def test_only_what_varies_over_seeds_alone_has_students_t() -> None:
    """A probe's draws of prompts are not lost where a metric is taken from it."""
    rng, by_seed = np.random.default_rng(0), np.array([0.60, 0.61, 0.62])
    noisy = Estimate(0.61, rng.normal(0.61, 0.08, 4000), 3, "share", by_seed=by_seed)
    course = Estimate(0.5, np.full(4000, 0.5), 3, "share", by_seed=by_seed - 0.11, only_seeds=True)
    fixed = Estimate(0.3, np.full(4000, 0.3), 1, "share")
    difference = noisy - course
    assert difference.interval().high - difference.interval().low > 0.28
    assert (course - fixed).only_seeds and not (noisy - fixed).only_seeds
    expected = student(by_seed - 0.41)
    assert (course - fixed).interval() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mcnemar_p", "p_welch_cosine", "p_cluster_signal"])
def test_p_values_of_several_runs_are_not_averaged(name: str, tmp_path: Path) -> None:
    """The largest stands for them, without an interval."""
    seeds = [(p, p, p, [p]) for p in (1e-6, 0.03, 0.002)]
    assert of_three(tmp_path, name, *seeds).interval() == (0.03, 0.03, 0.03)


def drawn_pair(tmp_path: Path, mean: tuple[float, float], sd: tuple[float, float], r: float) -> Any:
    """A probe whose values ``part`` and ``whole`` have normal draws that correlate by r; with the
    function that estimates a quantity of it."""
    covariance = [[sd[0] ** 2, r * sd[0] * sd[1]], [r * sd[0] * sd[1], sd[1] ** 2]]
    drawn = np.random.default_rng(1).multivariate_normal(mean, covariance, 20_000).T
    names = ("part", "whole")
    draws = dict(zip(names, drawn.tolist(), strict=True))
    reader = Reader({"p": probe(tmp_path / "p", dict(zip(names, mean, strict=True)), draws)})
    probes = {"P": {"label": "all of it", "runs": ["p"]}}
    return lambda quantity: estimate({"probe": "P", **quantity}, reader, {}, probes, 20_000)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_ratio_of_two_values_has_fiellers_interval(tmp_path: Path, correlation: float) -> None:
    """Its ends are the roots of (a - r b)^2 = z^2 (var a - 2 r cov + r^2 var b)."""
    mean, sd, z = (0.07, 0.007), (0.004, 0.0022), 1.959964
    got = drawn_pair(tmp_path, mean, sd, correlation)({"value": "part", "per": {"value": "whole"}})
    covariance = correlation * sd[0] * sd[1]
    ends = np.roots(
        [
            mean[1] ** 2 - z**2 * sd[1] ** 2,
            2 * (z**2 * covariance - mean[0] * mean[1]),
            mean[0] ** 2 - z**2 * sd[0] ** 2,
        ]
    )
    assert got.value == pytest.approx(10) and got.unit == "times"
    assert got.interval() == pytest.approx((10, *sorted(ends)), rel=0.05)


def test_no_ratio_to_what_may_be_none(tmp_path: Path) -> None:
    of_pair = drawn_pair(tmp_path, (0.07, 0.003), (0.004, 0.002), 0.0)
    with pytest.raises(
        Undefined, match=r"^whole of all of it, which it is a multiple of, may be 0"
    ):
        of_pair({"value": "part", "per": {"value": "whole"}})


def test_a_value_less_another_is_drawn_with_it(tmp_path: Path) -> None:
    got = drawn_pair(tmp_path, (0.6, 0.4), (0.1, 0.1), 0.9)(
        {"value": "part", "less": {"value": "whole"}}
    )
    # The variance of the difference: 0.01 + 0.01 - 2 * 0.9 * 0.01.
    half = 1.959964 * np.sqrt(0.002)
    assert got.interval() == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=0.003)


def test_compared_values_in_words(tmp_path: Path) -> None:
    inputs = {name: probe(tmp_path / name, {"a": 6.0, "b": 2.0}, {}) for name in ("p", "q")}
    labels = {"P": "one", "Q": "another"}
    probes = {name: {"label": label, "runs": [name.lower()]} for name, label in labels.items()}
    measured = Measurements({"probes": probes, "resamples": 5}, Reader(inputs))

    def words(**more: Any) -> str:
        given = side(read({"probe": "P", "value": "a", **more}), measured)
        return f"{given.whose}: {given.what} {given.estimate.value:g} {given.estimate.unit}"

    assert words(per={"value": "b"}) == "one: a over b 3 times"
    assert words(per={"probe": "Q"}) == "one: a over that of another 1 times"
    assert words(less={"probe": "Q", "value": "b"}) == "one: a less b of another 4 "


def test_what_is_missing_is_named(reader: Reader) -> None:
    for quantity, what in [
        ({"avg": "E09.l1"}, r"l1 \(E09\)"),
        ({"avg": "E09.l2"}, "^1,024 tokens$"),
        ({"avg": "after", "benchmark": "aime24"}, "benchmark aime24"),
        ({"change": "perfect"}, "base of perfect"),
        ({"recovery": "once"}, "teacher of one"),
        ({"metric": "kl_nats", "of": "perfect"}, "training run of perfect"),
        (
            {"metric": "top_mass_student", "of": "after"},
            "metric top_mass_student of student ← teacher",
        ),
        ({"probe": "E10", "value": "gain"}, "E10"),
        ({"probe": "P", "value": "gain"}, "^gain$"),
        ({"probe": "P", "value": "advantage_1024"}, "^prefix of 1024 tokens$"),
        ({"probe": "P", "value": "none"}, "none, which could not"),
        ({"probe": "P", "value": "auroc", "per": {"value": "gain"}}, "^gain$"),
        ({"probe": "P", "value": "auroc", "less": {"probe": "E10"}}, "^E10$"),
    ]:
        with pytest.raises(Missing, match=what):
            found(quantity, reader)


def test_no_recovery_of_a_gap_that_may_be_none(reader: Reader) -> None:
    arms = {"A": {**ARMS["after"], "teacher": ["student"]}}
    with pytest.raises(Undefined, match="could close may be none"):
        estimate({"recovery": "A"}, reader, arms, PROBES)


def test_all_right_on_few_problems_is_not_certain(reader: Reader) -> None:
    """Clopper and Pearson's bound for 4 of 4 is 1 - 0.025^(1/4) = 60.2 % below."""
    perfect = found({"avg": "perfect"}, reader)
    assert perfect.interval() == pytest.approx((1.0, 0.025**0.25, 1.0))
    none = difference(perfect, perfect)
    assert none.interval() == pytest.approx((0, 0.025**0.25 - 1, 1 - 0.025**0.25))


def test_seeds_must_match(reader: Reader) -> None:
    arms = {**ARMS, "more": {"label": "three", "evaluations": ["s0", "s1", "s0"]}}
    with pytest.raises(UserError, match="2 seeds where others have 3"):
        estimate({"avg": "after"}, reader, arms, {})
    with pytest.raises(ValueError, match="nats"):
        difference(found({"avg": "after"}, reader), Estimate(0.0, np.zeros(500), 1, "nats"))


def test_units() -> None:
    names = {
        "overlap_ratio": "share",
        "overlap_mass_teacher": "share",
        "extreme_advantage_gap": "share",
        "overlap_token_advantage": "nats",
        "loss": "nats",
        "kl_nats": "nats",
        "response_tokens": "tokens",
        "grad_norm": "",
        "auroc": "",
    }
    names |= {"rho_kl_nats": "", "rho_positive_ratio": ""}
    assert {name: unit_of(name) for name in names} == names


def test_an_arm_and_a_probe_of_one_name_keep_their_own_labels(reader: Reader) -> None:
    arms, probes = {"A": {"label": "trained"}}, {"A": {"label": "probed", "runs": ["p0"]}}
    measured = Measurements({"arms": arms, "probes": probes}, reader)
    assert side(read({"probe": "A", "value": "auroc"}), measured).whose == "probed"
    with pytest.raises(Missing, match=r"^lost_\* of probed$"):
        estimates.estimate(read({"probe": "A", "value": "lost_*", "at": "last"}), measured)
    with pytest.raises(Missing, match=r"^trained$"):
        estimates.estimate(read({"avg": "A"}), measured)

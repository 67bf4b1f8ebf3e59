"""Nulls against closed forms and naive references, and what they say of the papers' claims."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from opd.cli import main
from opd.microscope import statistics
from opd.results import null
from opd.results.claim_spec import parse, quantities, read_claims
from opd.results.claims import REPRODUCED, checks, worst
from opd.results.estimate import Estimate, Measurements
from opd.results.quantity import Quantity, read

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PAPERS = ("rethinking_opd", "many_faces", "unmasking")
MANY = 20_000

Given = dict[str, Any]
OVERLAP = {"metric": "overlap_ratio", "of": "A"}
SIGNAL = {"probe": "P", "value": "signal"}
PER_ALL = {"per": {"value": "signal"}}


def drawn(quantity: Given, draws: int = 4000, seed: int = 0) -> np.ndarray:
    return null.values(read(quantity), draws, seed)


def share(test: Given, draws: int = MANY) -> float:
    claim = {"id": "c", "experiment": "E", "section": "1", "statement": "So it is.", "test": test}
    return float(null.holds(parse([claim])[0].test, draws).mean())


def sides(left: Given, right: Given, **margin: float) -> Given:
    return {"left": left, "right": right, **margin}


# What a quantity may be


@pytest.mark.parametrize(
    ("quantity", "low", "high"),
    [
        ({"avg": "A"}, 0, 1),
        ({"avg": "A", "benchmark": "hard"}, 0, 1),
        ({"pass": "A"}, 0, 1),
        ({"maj": "A"}, 0, 1),
        ({"answered": "A"}, 0, 1),
        ({"truncated": "A"}, 0, 1),
        ({"p": "A"}, 0, 1),
        ({"change": "A"}, -1, 1),
        ({"tokens": "A"}, 10, 10_000),
        ({"length": "A"}, 0.001, 1000),
        ({**OVERLAP, "at": "start"}, 0, 1),
        ({**OVERLAP, "at": "min"}, 0, 1),
        ({**OVERLAP, "at": "jump"}, 0, 1),
        ({**OVERLAP, "at": "mid", "less": {"at": "end"}}, -1, 1),
        ({**OVERLAP, "per": {"at": "start"}}, 0, np.inf),
        ({"metric": "kl_nats", "of": "A"}, 0.01, 10),
        ({"metric": "overlap_token_advantage", "of": "A"}, -10, -0.01),
        ({"metric": "response_tokens", "of": "A"}, 10, 10_000),
        ({"metric": "grad_norm", "of": "A"}, 0.01, 10_000),
        ({"probe": "P", "value": "auroc"}, 0, 1),
        ({"probe": "P", "value": "teacher_1024"}, 0, 1),
        ({"probe": "P", "value": "advantage_1024"}, -1, 1),
        ({"probe": "P", "value": "advantage_*", "at": "first"}, -1, 1),
        ({"probe": "P", "value": "lost"}, -1, 1),
        ({"probe": "P", "value": "change_self_1c"}, -1, 1),
        ({"probe": "P", "value": "mcnemar_p"}, 0, 1),
        ({"probe": "P", "value": "p_welch_cosine"}, 0, 1),
        ({"probe": "P", "value": "rho_kl_nats"}, -1, 1),
        ({"probe": "P", "value": "size_all_nats"}, 0.01, 10),
        ({"probe": "P", "value": "log_ratio_all_nats"}, -10, 10),
        ({"probe": "P", "value": "n_correct"}, 0.01, 10_000),
        ({"probe": "P", "value": "cosine"}, -1, 1),
        ({"probe": "P", "value": "cosine_difference"}, -2, 2),
        ({"probe": "P", "value": "cosine_spread"}, 0, 1),
        ({"probe": "P", "value": "signal_positive"}, 0, 1),
        ({"probe": "P", "value": "beats_positive_ratio"}, 0, 1),
    ],
)
def test_draws_lie_in_their_range_and_are_not_one_point(
    quantity: Given, low: float, high: float
) -> None:
    values = drawn(quantity)
    assert values.shape == (4000,)
    assert ((values >= low) & (values <= high) | np.isnan(values)).all()
    assert np.isnan(values).mean() < 0.2 and len(np.unique(values.round(3))) > 1


@pytest.mark.parametrize(
    "quantity",
    [
        {"avg": "A"},
        {"recovery": "A"},
        {**OVERLAP, "at": "late", "positions": "back"},
        {"probe": "A", "value": "auroc"},
        {"probe": "A", "value": "weighted_cosine"},
    ],
)
def test_draws_follow_from_the_seed_and_two_arms_have_nothing_in_common(quantity: Given) -> None:
    other = {key: "B" if value == "A" else value for key, value in quantity.items()}
    np.testing.assert_array_equal(drawn(quantity), drawn(quantity))
    for values in (drawn(quantity, seed=1), drawn(other)):
        ranks = [np.argsort(np.argsort(side)) for side in (values, drawn(quantity))]
        assert abs(np.corrcoef(*ranks)[0, 1]) < 0.06  # four standard errors of 4,000 draws


def test_shares_are_even_and_other_numbers_are_so_in_their_logarithm() -> None:
    places = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert np.quantile(drawn({"avg": "A"}, MANY), places) == pytest.approx(places, abs=0.02)
    tokens = np.log10(drawn({"tokens": "A"}, MANY))
    assert np.quantile(tokens, places) == pytest.approx([1 + 3 * p for p in places], abs=0.06)


def test_what_is_of_one_model_belongs_together() -> None:
    """A gain is what a model solves less what its base does, and of a problem some sample is right
    at least as often as one is on average."""
    accuracy = drawn({"avg": "A"})
    assert (drawn({"pass": "A"}) >= accuracy).all() and (drawn({"answered": "A"}) >= accuracy).all()
    base = accuracy - drawn({"change": "A"})
    assert (base >= 0).all() and (base <= 1).all()
    gap = drawn({"change": "A"}) / drawn({"recovery": "A"})
    gap = gap[np.isfinite(gap)]
    assert len(gap) > 3900 and (gap > 0).all() and (gap <= 1).all()
    hard, easy = (drawn({"avg": "A", "benchmark": b}) for b in ("hard", "easy"))
    assert 0.9 < np.corrcoef(hard, easy)[0, 1] < 0.999


def test_numbers_of_one_curve_belong_together() -> None:
    number = {
        when: drawn({**OVERLAP, "at": when}) for when in ("start", "mid", "end", "min", "max")
    }
    for when in ("start", "mid", "end"):
        assert (number["min"] <= number[when]).all() and (number[when] <= number["max"]).all()
    drop = drawn({**OVERLAP, "at": "drop"})
    np.testing.assert_allclose(drop, number["max"] - number["end"])
    grown = drawn({**OVERLAP, "less": {"at": "start"}})
    np.testing.assert_allclose(grown, number["end"] - number["start"])
    ratio = drawn({**OVERLAP, "at": "mid", "per": {"at": "max"}})
    np.testing.assert_allclose(ratio, number["mid"] / number["max"])
    # A course ends anywhere, wherever it begins, and no two halves of responses share one.
    assert abs(np.corrcoef(number["start"], number["end"])[0, 1]) < 0.06
    front, back = (drawn({**OVERLAP, "positions": part}) for part in ("front", "back"))
    assert abs(np.corrcoef(front, back)[0, 1]) < 0.06


def test_values_of_the_microscope_are_those_of_its_statistics() -> None:
    """What is drawn of tokens, against the functions that the stages use, path by path."""
    draws = 3
    alignment, ranges, advantage = null._tokens("P", draws, 0)
    names = ("cosine", "weighted_cosine", "positive_ratio", "signal", "teacher_advantage")
    names += ("signal_positive", "kept_positive_ratio", "beats_positive_ratio")
    names += ("signal_above", "kept_above_ratio", "beats_above_ratio")
    for draw in range(draws):
        cells = [
            statistics.cell("q", "t", path, path < null.PATHS // 2, *numbers, {})
            for path, numbers in enumerate(
                zip(alignment[draw], ranges[draw], advantage[draw][:, np.newaxis], strict=True)
            )
        ]
        measured = statistics.values(cells)
        for name in ("cosine_spread", *names, *(f"{name}_difference" for name in names)):
            value = drawn({"probe": "P", "value": name}, draws)[draw]
            assert value == pytest.approx(measured[name].value), name


# How often a test holds


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"at_most": {"of": {"avg": "A"}, "value": 0.9}}, 0.9),
        ({"at_least": {"of": {"avg": "A"}, "value": 0.9}}, 0.1),
        ({"between": {"of": {"probe": "P", "value": "auroc"}, "low": 0.7, "high": 0.8}}, 0.1),
        ({"at_most": {"of": {"p": "A"}, "value": 0.05}}, 0.05),
        ({"greater": sides({"avg": "A"}, {"avg": "B"})}, 1 / 2),
        # Of two even draws: the square above the diagonal that is moved by the margin.
        ({"greater": sides({"avg": "A"}, {"avg": "B"}, by=0.05)}, 0.95**2 / 2),
        ({"greater": sides({"avg": "A"}, {"avg": "B"}, by=-0.5)}, 1 - 0.5**2 / 2),
        ({"equivalent": sides({"avg": "A"}, {"avg": "B"}, within=0.05)}, 1 - 0.95**2),
        ({"at_most": {"of": {"change": "A"}, "value": 0.05}}, 1 - 0.95**2 / 2),
        # a > b + 0.8 (t - b), where b is even and t even between b and 1: 1 - E[b] - 0.8 E[t - b].
        ({"at_least": {"of": {"recovery": "A"}, "value": 0.8}}, 1 - 0.5 - 0.8 / 4),
        ({"rises": {"of": OVERLAP}}, 1 / 2),
        ({"falls": {"of": OVERLAP, "by": 0.1}}, 0.9**2 / 2),
        (
            {"monotone": {"of": [{"probe": "P", "value": "advantage_*"}], "direction": "falling"}},
            1 / 6,
        ),
        (
            {"monotone": {"of": [{"avg": a} for a in "ABCD"], "direction": "rising"}},
            1 / 24,
        ),
        ({"greater": sides({**OVERLAP, "at": "max"}, {**OVERLAP, "at": "min"})}, 1),
        ({"at_least": {"of": {"probe": "P", "value": "beats_positive_ratio"}, "value": 0.9}}, 1),
        # Tokens that are kept for their signal have more of it, whatever it is.
        ({"greater": sides({**SIGNAL, "value": "signal_positive"}, SIGNAL)}, 1),
        # Five times as much where 50 to 60 % are aligned, the mean of two even draws (25 to 75 %).
        (
            {"at_least": {"of": {**SIGNAL, "value": "signal_positive", **PER_ALL}, "value": 5.0}},
            (1 - (0.15 / 0.25) ** 2) / 2,
        ),
        (
            {
                "all": [
                    {"greater": sides({"avg": "A"}, {"avg": "B"})},
                    {"at_most": {"of": {"probe": "P", "value": "auroc"}, "value": 0.5}},
                ]
            },
            1 / 4,
        ),
    ],
)
def test_how_often_a_test_holds(test: Given, expected: float) -> None:
    assert share(test) == pytest.approx(expected, abs=0.02)


def test_on_every_benchmark_is_harder_than_on_one() -> None:
    def apart(**more: str) -> float:
        return share({"greater": sides({"avg": "A", **more}, {"avg": "B", **more})})

    assert apart(benchmark="each") < apart(benchmark="easy") - 0.03


def test_no_test_holds_of_a_share_of_nothing() -> None:
    ratio = {**OVERLAP, "per": {"of": "B", "at": "min"}}
    is_nothing = drawn({**OVERLAP, "of": "B", "at": "min"}, MANY) == 0
    assert 0 < is_nothing.mean() < 0.2
    assert share({"at_least": {"of": ratio, "value": 0.0}}) == pytest.approx(1 - is_nothing.mean())


@pytest.mark.parametrize("paper", PAPERS)
def test_a_draw_holds_where_its_verdict_is_reproduced(paper: str) -> None:
    """The same numbers, judged as a scale's are."""

    class Numbers(Measurements):
        def evaluations(self, name: str) -> Any:
            return self

        def benchmarks(self) -> tuple[str, ...]:
            return null.BENCHMARKS

    class Files:
        def json(self, *_: str) -> Given:
            return {"values": {f"advantage_{number}": {} for number in null.NUMBERS}}

    draws = 12
    for claim in parse(read_claims(ROOT / f"config/claims/{paper}.yaml")["claims"]):
        held = null.holds(claim.test, draws)
        for draw in range(draws):
            probes = {q.of: {"label": q.of, "runs": ["r"]} for q in quantities(claim.test)}
            measured = Numbers({"probes": probes}, Files())  # type: ignore[arg-type]
            measured.made = Point(draw, draws)
            verdict = worst([check.verdict for check in checks(claim.test, measured)])
            assert (verdict == REPRODUCED) == held[draw], (claim.id, draw)


class Point(dict[Quantity, Estimate]):
    """Every quantity as one draw has it, without an interval."""

    def __init__(self, draw: int, draws: int) -> None:
        self.draw, self.draws = draw, draws

    def __contains__(self, quantity: object) -> bool:
        return True

    def __missing__(self, quantity: Quantity) -> Estimate:
        value = float(null.values(quantity, self.draws)[self.draw])
        return Estimate(value, np.full(3, value), 1, quantity.unit)


# The command


def claims_file(folder: Path, tests: dict[str, Given]) -> Path:
    path = folder / "paper.yaml"
    common = {"experiment": "E", "section": "1", "statement": "So it is."}
    listed = [{"id": name, **common, "test": test} for name, test in tests.items()]
    path.write_text(yaml.safe_dump({"title": "A paper", "claims": listed}))
    return path


BETTER = {"greater": {"left": {"avg": "A"}, "right": {"avg": "B"}}}
NEARLY_ALL = {"at_most": {"of": {"avg": "A"}, "value": 0.9}}


def test_a_claim_that_cannot_fail_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = claims_file(tmp_path, {"better": BETTER, "low": NEARLY_ALL})
    with pytest.raises(SystemExit) as ended:
        main.main(["claims", "--check", str(path)])
    assert ended.value.code == 1
    wrong, total = capsys.readouterr().out.splitlines()
    said = re.fullmatch(
        re.escape(f"{path}: claim low: its test holds of ")
        + r"(\d+\.\d)% of 500 random results; narrow it, or test more of what the statement says",
        wrong,
    )
    assert said and float(said[1]) == pytest.approx(90, abs=4)
    assert total == "1 of 2 claims say what holds of random results, too"


def test_a_part_that_cannot_fail_is_an_error_of_its_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = claims_file(tmp_path, {"both": {"all": [BETTER, NEARLY_ALL]}})
    with pytest.raises(SystemExit) as ended:
        main.main(["claims", "--check", str(path)])
    assert ended.value.code == 1
    wrong, _ = capsys.readouterr().out.splitlines()
    assert wrong.startswith(f"{path}: claim both: part 2 of its test holds of ")


def test_a_value_that_no_probe_has_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = {"probe": "E1.p", "value": "kept_positive"}
    path = claims_file(tmp_path, {"kept": {"at_least": {"of": of, "value": 0.6}}})
    with pytest.raises(SystemExit) as ended:
        main.main(["claims", str(path)])
    assert ended.value.code == 2
    error = "error: probe E1.p: no value 'kept_positive'; did you mean 'kept_positive_ratio'?"
    assert capsys.readouterr().err.startswith(error)


def test_all_claims_are_listed_without_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    higher = {"at_least": {"of": {"avg": "A"}, "value": 0.6}}
    path = claims_file(tmp_path, {"better": BETTER, "both": {"all": [BETTER, higher]}})
    main.main(["claims", str(path)])
    *listed, total = capsys.readouterr().out.splitlines()
    assert [line.split("% ")[1] for line in listed] == [f"{path}: better", f"{path}: both"]
    # Of two even draws: the first is larger; and it is 0.6 or more, too.
    expected = [50, 100 * (1 - 0.6**2) / 2]
    assert [float(line.split("%")[0]) for line in listed] == pytest.approx(expected, abs=6)
    assert total == "0 of 2 claims say what holds of random results, too"


def test_without_files_all_of_config_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main.main(["claims", "--check"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: config/claims: there is no file of claims; name files, or start it in the folder "
        "that has config/\n"
    )
    (tmp_path / "config/claims").mkdir(parents=True)
    claims_file(tmp_path / "config/claims", {"better": BETTER})
    main.main(["claims", "--check"])
    assert capsys.readouterr().out == "0 of 1 claims say what holds of random results, too\n"


def test_claims_of_the_first_paper_can_fail() -> None:
    path = ROOT / "config/claims/rethinking_opd.yaml"
    assert [error for claim in null.accepted(path) for error in claim.errors("here")] == []


def test_the_check_is_light() -> None:
    code = (
        "import sys; from opd.cli import main; main.main(['claims', sys.argv[1]]);"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    path = ROOT / "config/claims/rethinking_opd.yaml"
    subprocess.run([sys.executable, "-c", code, path], check=True, stdout=subprocess.DEVNULL)

"""Scores and their summary against numbers worked out by hand, and the stage on a tiny model."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd.core.errors import UserError
from opd.evaluation import evaluate
from opd.grading import graders


def scores(name: str, matrix: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {
            "benchmark": name,
            "problem": f"p{i}",
            "sample": j,
            "answer": "1",
            "response": "r",
            "extracted": None if i == j == 0 else "1" if value else "0",
            "correct": float(value),
            "scores": [("math_verify", float(value or i == 0)), ("rule", float(value))],
            "tokens": 10 * (i + 1),
            "finish": "length" if j == 1 else "stop",
        }
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    ]


def test_summary() -> None:
    rows = scores("a", [[0, 0], [1, 0], [1, 1]]) + scores("b", [[1, 1], [1, 1]])
    summary = evaluate.summarise(rows, ["a", "b"], seed=0)
    a, b = summary["benchmarks"]["a"], summary["benchmarks"]["b"]
    assert a["avg"] == pytest.approx(0.5) and b["avg"] == 1
    assert a["pass"] == {"1": pytest.approx(0.5), "2": pytest.approx(2 / 3)}
    assert a["format_rate"] == pytest.approx(5 / 6) and a["truncation_rate"] == pytest.approx(0.5)
    assert a["mean_tokens"] == pytest.approx(20)
    assert (a["problems"], a["samples"]) == (3, 2)
    assert a["low"] <= a["avg"] <= a["high"]
    # The problems' averages are 0, 1/2 and 1; the middle one's two samples differ.
    assert a["se"] == pytest.approx(0.5 / 3**0.5)
    assert a["se_samples"] == pytest.approx((0.5 / 2 / 9) ** 0.5)
    assert a["metrics"] == {"math_verify": pytest.approx(5 / 6), "rule": pytest.approx(0.5)}
    assert a["disagreements"] == 2 and b["disagreements"] == 0
    assert summary["macro"]["avg"] == pytest.approx(0.75)
    assert summary["macro"]["low"] <= 0.75 <= summary["macro"]["high"]
    assert summary == evaluate.summarise(rows, ["a", "b"], seed=0)
    json.dumps(summary, allow_nan=False)


def test_a_single_sample_of_a_single_problem_has_no_error() -> None:
    summary = evaluate.summarise(scores("a", [[1]]), ["a"], seed=0)
    assert summary["macro"]["se"] is None and summary["macro"]["se_samples"] is None
    assert summary["benchmarks"]["a"]["pass"] == {"1": 1.0}


def votes(*answers: str | None, right: str = "7") -> list[dict[str, Any]]:
    return [
        {"problem": "p", "extracted": a, "correct": float(a is not None and a.strip() == right)}
        for a in answers
    ]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (("7", "7", "3"), 1.0),
        (("7", "3", "3"), 0.0),
        (("7", "3"), 0.5),  # a tie: each its share
        (("7", "3", "4", None), 1 / 3),
        ((None, None, "7"), 1.0),  # what has no answer does not vote
        ((None, None), 0.0),
        (("7", " 7 ", "3", "4"), 1.0),  # the same after normalisation
    ],
)
def test_majority(answers: tuple[str | None, ...], expected: float) -> None:
    assert evaluate.majority(votes(*answers)) == pytest.approx(expected)


def test_what_is_cut_off_is_wrong_where_the_protocol_says_so() -> None:
    from opd.evaluation.harness import ScoredResponse

    right = "so \\boxed{4}"
    answered = {
        "b": [
            ScoredResponse("p", 0, "4", right, "4", {}, 9, "stop"),
            ScoredResponse("p", 1, "4", f"{right} or", "4", {}, 9, "length"),
        ],
        "likely": [ScoredResponse("q", 0, "4", "", None, {"acc": 1.0}, 9, "length")],
    }
    graders = {"b": ("rule", "math_verify"), "likely": ()}
    as_they_are, *_ = evaluate.score(answered, graders, "rule")
    assert [row["correct"] for row in as_they_are] == [1, 1, 1]
    cut, *_ = evaluate.score(answered, graders, "rule", cut_off_is_wrong=True)
    assert [row["correct"] for row in cut] == [1, 0, 0]
    assert cut[1]["scores"] == [("math_verify", 0.0), ("rule", 0.0)]
    assert [row["extracted"] for row in cut] == [row["extracted"] for row in as_they_are]
    # What is right and cut off does not vote for what is right, and takes nothing from it.
    assert evaluate.majority(cut[:2], cut_off_is_wrong=True) == 1
    assert evaluate.majority(cut[1:2], cut_off_is_wrong=True) == 0
    assert evaluate.majority(as_they_are[:2]) == 1


def test_the_summary_counts_what_each_choice_of_the_protocol_would_change() -> None:
    from opd.evaluation.harness import ScoredResponse

    asked = [
        ("\\boxed{5}. I put it in \\boxed as asked", "5", "stop", False),  # box
        ("<think>\\boxed{4}</think>\\boxed{5}, or \\boxed{", "5", "stop", False),  # box
        ("\\boxed{5} or", "5", "length", True),  # thinking: its prompt began it
        ("\\boxed{5}</think> So it is.", "5", "stop", True),  # thinking
        ("<think>\\boxed{4}</think>\\boxed{5}", "5", "stop", False),
        ("\\boxed{0.333333}", "\\frac{1}{3}", "stop", False),  # exact
        ("\\boxed{6}", "5", "stop", False),
    ]
    answered = {
        "b": [
            ScoredResponse(f"p{i}", 0, truth, text, None, {}, 9, end, thinking)
            for i, (text, truth, end, thinking) in enumerate(asked)
        ],
        "world": [ScoredResponse("q", 0, "4", "#4", None, {}, 9, "stop")],
    }
    by = {"b": ("math_verify", "rule"), "world": ("world",)}
    papers, _, changed = evaluate.score(answered, by, "math_verify")
    assert [row["correct"] for row in papers] == [0, 0, 1, 1, 1, 1, 0, 1]
    assert changed == {"b": {"box": 2, "thinking": 2, "exact": 1}}
    strict, _, changed = evaluate.score(answered, by, "math_verify", False, graders.STRICT)
    assert [row["correct"] for row in strict] == [1, 1, 0, 0, 1, 0, 0, 1]
    assert changed == {"b": {"box": 2, "thinking": 2, "exact": 1}}
    # The rule rounds nothing, and what is cut off is wrong whatever the choice.
    _, _, changed = evaluate.score(answered, by, "rule", True, graders.STRICT)
    assert changed == {"b": {"box": 2, "thinking": 1, "exact": 0}}
    assert "thinking" not in strict[0]


def test_the_relaxed_verdict_on_a_box_is_not_asked_for_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opd.evaluation.harness import ScoredResponse

    texts = ["\\boxed{\\frac{4}{2}}", "it is 2", "\\boxed{3}", "none"]
    answered = {
        "b": [ScoredResponse(f"p{i}", 0, "2", t, None, {}, 9, "stop") for i, t in enumerate(texts)]
    }
    compared: list[tuple[str, str]] = []
    verifier = graders.verifier

    def spied(pid: int) -> Any:
        def compare(sandbox: str, pairs: list[tuple[str, str]]) -> bool | None:
            compared.append((sandbox, pairs[0][0]))
            return verifier(pid)(sandbox, pairs)

        return compare

    monkeypatch.setattr(graders, "verifier", spied)
    rows, *_ = evaluate.score(answered, {"b": ("math_verify", "relaxed")}, "math_verify")
    assert [dict(row["scores"])["relaxed"] for row in rows] == [1, 1, 0, 0]
    assert [dict(row["scores"])["math_verify"] for row in rows] == [1, 0, 0, 0]
    assert compared == [("math_verify", "\\frac{4}{2}"), ("exact_math_verify", "\\frac{4}{2}")]
    alone, *_ = evaluate.score(answered, {"b": ("relaxed",)}, "relaxed")
    assert [row["correct"] for row in alone] == [1, 1, 0, 0]


def test_disagreements_are_counted_and_the_most_frequent_come_first(tmp_path: Path) -> None:
    from opd.evaluation.harness import ScoredResponse

    asked = [("\\boxed{1}", "1"), ("\\boxed{2+2}", "4"), ("\\boxed{2/4}", "1/2"), ("no box", "1")]
    asked += [asked[2], ("4", "4"), ("\\boxed{-2/4}", "-1/2")]
    answered = {
        "b": [
            ScoredResponse(f"p{i}", 0, a, r, None, {}, 9, "stop") for i, (r, a) in enumerate(asked)
        ],
        "likely": [ScoredResponse("q", 0, "4", "", None, {"acc": 1.0, "norm": 0.0}, 9, "stop")],
    }
    by = {"b": ("rule", "math_verify", "relaxed"), "likely": ()}
    rows, *_ = evaluate.score(answered, by, "rule")
    evaluate.write_disagreements(tmp_path / "d.csv", rows, by)
    assert (tmp_path / "d.csv").read_text() == (
        "benchmark,extracted,answer,rule,math_verify,count\n"
        "b,2/4,1/2,False,True,2\nb,2+2,4,False,True,1\n"
        # No formulas: a spreadsheet would show the value.
        "b,'-2/4,'-1/2,False,True,1\n"
    )


def test_majority_is_a_mean_over_problems() -> None:
    other = [row | {"problem": "q"} for row in votes("3", "3")]
    assert evaluate.majority(votes("7", "7") + other) == pytest.approx(0.5)


def test_incomplete_scores_are_refused() -> None:
    rows = scores("a", [[0, 1], [1, 1]])
    for bad, message in [
        (rows[:-1], r"benchmark a: samples \[0\] of problem 'p1', not 0 to 1"),
        ([*rows, rows[0]], r"samples \[0, 0, 1\] of problem 'p0'"),
        ([], "no scores"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate.summarise(bad, ["a"], seed=0)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_counting_subsets(k: int) -> None:
    correct = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=float)
    counted = np.mean(
        [np.mean([max(chosen) for chosen in itertools.combinations(row, k)]) for row in correct]
    )
    assert evaluate.pass_at_k(correct, k) == pytest.approx(counted)


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="k = 3 of 2"):
        evaluate.pass_at_k(np.ones((1, 2)), 3)

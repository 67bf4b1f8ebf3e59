"""Answer extraction and equivalence."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd import grading
from opd.errors import Bad


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("so \\boxed{5}.", "5"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {x_{1}}", "x_{1}"),
        ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
        ("\\boxed{\\{1\\} and } more }", "\\{1\\} and"),
        ("\\boxed{1} but \\boxed{2", None),
        ("\\boxed{}", None),
        ("\\boxed{ }", None),
        ("\\boxed 5", None),
        ("5", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, contents: str | None) -> None:
    assert grading.last_boxed(text) == contents


@given(st.text("ab{} \\$", max_size=30))
def test_last_boxed_takes_any_text(text: str) -> None:
    grading.last_boxed(text)
    grading.normalise(text)
    inner = grading.last_boxed(f"\\boxed{{{text}}}")
    assert inner is None or "{" in text or "}" in text or inner == text.strip()


SAME = [
    ("5", "5"),
    ("5.", "5"),
    ("142", "142.0"),
    ("$12$", "12"),
    ("1,234", "1234"),
    ("\\dfrac{3}{4}", "\\frac{3}{4}"),
    ("\\frac34", "\\frac{3}{4}"),
    ("90^\\circ", "90"),
    ("90^{\\circ}", "90"),
    ("\\text{Evelyn}", "Evelyn"),
    ("5\\text{ cm}", "5"),
    ("5\\text{ cm}^2", "5"),
    ("50\\%", "50"),
    ("\\$18.90", "18.90"),
    (".5", "0.5"),
    ("x = 7", "7"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
    ("2\\sqrt3", "2\\sqrt{3}"),
    # For math-verify:
    ("1/2", "\\frac{1}{2}"),
    ("0.5", "\\frac{1}{2}"),
    ("\\frac{2}{4}", "\\frac{1}{2}"),
    ("\\sqrt{12}", "2\\sqrt{3}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("[0,1)", "\\left[0, 1\\right)"),
]
DIFFERENT = [
    ("5", "6"),
    ("-5", "5"),
    ("5.1", "5"),
    ("12", "1.2"),
    ("\\frac{1}{3}", "\\frac{1}{2}"),
    ("(1,2)", "(2,1)"),
    ("\\text{Eve}", "Evelyn"),
    ("(0,1)", "[0,1]"),
    ("a very long answer " * 40, "5"),
    ("\\text{}", "5"),
    ("\\frac{", "5"),
]


@pytest.mark.parametrize(("ours", "truth"), SAME)
def test_same(ours: str, truth: str) -> None:
    assert grading.grade_math(f"thus \\boxed{{{ours}}}", truth)[1]


@pytest.mark.parametrize(("ours", "truth"), DIFFERENT)
def test_different(ours: str, truth: str) -> None:
    assert not grading.grade_math(f"thus \\boxed{{{ours}}}", truth)[1]


def test_ground_truth_may_be_boxed() -> None:
    assert grading.grade_math("\\boxed{204}", "\\boxed{204}") == ("204", True)


def test_only_the_box_counts() -> None:
    assert grading.grade_math("the answer is 5", "5") == (None, False)


def test_batch_keeps_order_and_counts_no_timeouts() -> None:
    pairs = [(f"\\boxed{{{ours}}}", truth) for ours, truth in SAME + DIFFERENT]
    graded, timeouts = grading.grade_all(pairs, "math")
    assert [right for _, right in graded] == [True] * len(SAME) + [False] * len(DIFFERENT)
    assert timeouts == 0
    assert grading.grade_all(pairs, "math") == (graded, 0)


def test_hopeless_expression_costs_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("\\boxed{9^{9^{9^{9}}}}", "5")] * 3 + [("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}")]
    start = time.monotonic()
    graded, timeouts = grading.grade_all(pairs, "math")
    assert time.monotonic() - start < 60
    assert [right for _, right in graded] == [False, False, False, True]
    assert timeouts <= 1


def test_world_grader_and_unknown_grader() -> None:
    assert grading.grade_all([("1+2=3#3", "3"), ("3", "3")], "world") == (
        [("3", True), (None, False)],
        0,
    )
    with pytest.raises(Bad, match="unknown grader 'maths'; use one of world, math"):
        grading.grade_all([], "maths")

"""Extraction of answers, and both graders on a table of answers worked out by hand."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd.core.errors import UserError
from opd.grading import equivalence, graders, sandbox

# A comparison keeps the caller for no longer, the start of a process included. (Its CPU seconds are
# far fewer, but the machine may have other work.)
BOUND_SECONDS = sandbox.WALL_SECONDS + 15
BOXED = ("rule", "math_verify")


def table() -> Iterator[tuple[str, str, str]]:
    """(marks of rule and math_verify, answer, ground truth) of answer_pairs.txt."""
    text = (Path(__file__).parent / "answer_pairs.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            marks, answer, truth = line.split("|")
            yield marks, answer, truth


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("so \\boxed{5}.", "5"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {x_{1}}", "x_{1}"),
        ("\\boxed{\\left\\{1, 2\\right\\}}", "\\left\\{1, 2\\right\\}"),
        ("\\boxed{\\{1\\} and } more }", "\\{1\\} and"),
        ("\\boxed{a\\\\}", "a\\\\"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{1} but \\boxed{2", None),
        ("\\boxed{1\\", None),
        ("\\boxed{}", None),
        ("\\boxed{ }", None),
        ("\\boxed 5", None),
        ("5", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, contents: str | None) -> None:
    assert graders.last_boxed(text) == contents


@given(st.text("ab{} \\$", max_size=30))
def test_last_boxed_takes_any_text(text: str) -> None:
    inner = graders.last_boxed(f"\\boxed{{{text}}}")
    assert inner is None or "{" in text or "}" in text or inner == text.strip()


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("\\boxed{5}. I put it in \\boxed as asked", "5"),
        ("So \\boxed{42}. (The format is \\boxed{}.)", "42"),
        ("\\boxed{42}, that is \\boxed{42", "42"),
        ("\\boxed{1 or \\boxed{2}", "2"),
        ("\\boxed{2} and \\boxed{3}", "3"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("{ } } \\boxed{\\{1, \\frac{1}{2}\\}} {", "\\{1, \\frac{1}{2}\\}"),
        ("\\\\boxed{5} as quoted twice, \\boxed{a\\}", "5"),
        ("\\boxed{} \\boxed{ } \\boxed{1", None),
        ("5", None),
    ],
)
def test_last_complete_boxed(text: str, contents: str | None) -> None:
    assert graders.last_complete_boxed(text) == contents


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "\\{", "a", " "])).map("".join))
def test_a_last_box_that_is_complete_is_the_last_complete_one(text: str) -> None:
    if (contents := graders.last_boxed(text)) is not None:
        assert graders.last_complete_boxed(text) == contents


def test_many_boxes_are_read_in_one_go() -> None:
    nested = "\\boxed{" * 100_000
    start = time.process_time()
    assert graders.last_complete_boxed(nested) is None
    assert graders.last_complete_boxed(nested + "5" + "}" * 100_000) == "5"
    assert graders.last_complete_boxed("\\boxed{5}" * 100_000 + nested) == "5"
    assert time.process_time() - start < 5


THOUGHT = "<think>maybe \\boxed{9}</think> so the answer is 7."


@pytest.mark.parametrize(
    ("grader", "response", "truth", "graded", "left_out"),
    [
        ("rule", THOUGHT, "9", True, False),
        ("rule", THOUGHT, "7", False, False),
        ("relaxed", THOUGHT, "7", False, True),
        ("math_verify", "<think>so \\boxed{7}", "7", True, False),  # cut off while it thought
        ("math_verify", "<think>\\boxed{9}</think>\\boxed{7}", "7", True, True),
        ("math_verify", "\\boxed{9}</think>no box", "9", True, False),
        ("rule", "<think>a</think>\\boxed{9}</think>no box", "9", True, False),  # thought twice
        ("rule", "\\boxed{7}", "7", True, True),
        ("choice", "<think>\\boxed{A}</think>I do not know", "A", True, False),
        ("world", "<think>1+1=2#2", "2", True, True),  # does not read a box
    ],
)
def test_a_protocol_says_whether_thinking_is_graded(
    grader: str, response: str, truth: str, graded: bool, left_out: bool
) -> None:
    for thinking, right in (("graded", graded), ("left_out", left_out)):
        choices = graders.Choices(thinking=thinking)
        [(_, verdict)], _ = graders.grade_all([(response, truth)], grader, None, choices)
        assert verdict == right


@pytest.mark.parametrize("grader", BOXED)
@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("\\frac{1}{2006!}", "\\frac{1}{2004!}", False),
        ("\\frac{2}{2\\cdot 2006!}", "\\frac{1}{2006!}", True),
        ("(\\frac{1}{2^{98}},1)", "(\\frac{1}{2^{99}},1)", False),
        ("x=\\frac{1}{2^{98}}", "x=\\frac{1}{2^{99}}", False),
        ("[0,\\frac{1}{2^{98}}]", "[0,\\frac{1}{2^{99}}]", False),
        ("\\sqrt{10^{40}+1}", "10^{20}", False),
        ("0.12345678", "0.12345679", False),
        ("3.14159265", "\\pi", False),
        ("1.41421356237309505", "\\sqrt{2}", False),
        ("0.1", "\\frac{1}{10}", True),
        ("(1+0.00000000000000000001)x", "x", False),
        ("1.5x", "\\frac{3}{2}x", True),
        ("\\sqrt{12}", "2\\sqrt{3}", True),
        ("28\\%", "28", True),
        ("\\infty", "\\infty", True),
        ("x+x", "2x", True),
    ],
)
def test_nothing_is_rounded_where_the_protocol_says_exact(
    grader: str, answer: str, truth: str, equal: bool
) -> None:
    pairs = [(f"\\boxed{{{answer}}}", truth)]
    graded, limits = graders.grade_all(pairs, grader, None, graders.Choices(exact=True))
    assert (graded, limits) == ([(answer, equal)], 0)


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        # Sums and products of decimals, which floats would round.
        ("0.1+0.2", "0.3", True),
        ("1.1\\cdot 1.1", "1.21", True),
        ("1.5+\\frac{1}{3}", "\\frac{11}{6}", True),
        ("1.1\\cdot 1.1", "1.2100000001", False),
    ],
)
def test_decimals_are_added_up_as_fractions(answer: str, truth: str, equal: bool) -> None:
    """By math-verify: the rule wants a number written out."""
    pairs = [(f"\\boxed{{{answer}}}", truth)] * 2
    for choices, expected in ((graders.STRICT, equal), (graders.PAPERS, True)):
        graded, _ = graders.grade_all(pairs, "math_verify", None, choices)
        assert graded == [(answer, expected)] * 2


def test_of_integers_a_percent_sign_does_not_count_where_the_protocol_says_exact() -> None:
    """By math-verify, which does not count it either where it rounds."""
    pair = ("\\boxed{28\\%}", "\\frac{56}{2}")
    for choices in (graders.PAPERS, graders.STRICT):
        graded, _ = graders.grade_all([pair], "math_verify", None, choices)
        assert graded == [("28\\%", True)]


def test_nothing_is_right_by_being_exact_alone() -> None:
    """Floats have 0.1 + 0.2 and 0.3 differ, so the papers' rule does not take one for the other."""
    pair = ("\\boxed{0.1+0.2}", "0.3")
    for choices in (graders.PAPERS, graders.STRICT):
        assert graders.grade_all([pair], "rule", None, choices) == ([("0.1+0.2", False)], 0)


def test_the_page_says_what_the_graders_say() -> None:
    page = Path(__file__).parents[3] / "docs/evaluation.md"
    lines = page.read_text(encoding="utf-8").partition("| response | ground truth |")[2]
    rows = [line.split(" | ") for line in lines.splitlines()[2:] if line.startswith("| `")]
    assert len(rows) >= 13
    for response, truth, *marks in rows:
        pair = (response.removeprefix("| ").strip("`"), truth.strip("`"))
        own = [mark.strip(" |") == "✓" for mark in marks]
        for choices, expected in ((graders.PAPERS, own[1]), (graders.STRICT, own[2])):
            for grader, right in (
                ("rule", own[0]),
                ("math_verify", expected),
                ("relaxed", expected),
            ):
                verdict = graders.grade_all([pair], grader, None, choices)[0][0][1]
                assert verdict == right, (pair, grader, choices)


@pytest.mark.parametrize("column", [0, 1], ids=BOXED)
def test_hand_made_pairs(column: int) -> None:
    rows = list(table())
    assert len(rows) >= 300 and len({row[1:] for row in rows}) == len(rows)
    # One pair for each of the outcomes that matter at least.
    assert {"11", "00", "01", "1-", "0+"} <= {marks for marks, _, _ in rows}
    graded, timeouts = graders.grade_all(
        [(f"thus \\boxed{{{answer}}}.", truth) for _, answer, truth in rows], BOXED[column]
    )
    assert timeouts == 0
    wrong = [
        (answer, truth, right)
        for (marks, answer, truth), (_, right) in zip(rows, graded, strict=True)
        if right != (marks[column] in "1+")
    ]
    assert wrong == []


@pytest.mark.parametrize("grader", BOXED)
def test_a_batch_grades_as_its_responses_one_by_one(grader: str) -> None:
    rows = [row for row in table() if len(row[1]) > 8][::9]
    pairs = [(f"\\boxed{{{answer}}}", truth) for _, answer, truth in rows]
    graded, timeouts = graders.grade_all(pairs * 2, grader)
    assert timeouts == 0 and graded == [graders.GRADERS[grader](*pair) for pair in pairs] * 2


@pytest.mark.parametrize("grader", BOXED)
def test_ground_truth_may_be_boxed_and_only_the_box_counts(grader: str) -> None:
    grade = graders.GRADERS[grader]
    assert grade("\\boxed{204}", "\\boxed{204}") == ("204", True)
    assert grade("the answer is 5", "5") == (None, False)
    assert grade("\\boxed{5} no, \\boxed{6}", "5") == ("6", False)


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("so \\boxed{204}, not 5", "204", ("204", True)),
        ("\\boxed{\\frac{4}{2}} as 3", "2", ("\\frac{4}{2}", True)),
        ("the answer is 5.", "5", ("5", True)),
        ("The answer: **1,234**", "1234", ("1234", True)),
        ("thus x = -3/4 then", "-\\frac{3}{4}", ("-3/4", True)),
        ("it is \\dfrac{3}{4}", "0.75", ("\\dfrac{3}{4}", True)),
        ("10-4=6", "6", ("6", True)),
        ("first 5, no: 6", "5", ("6", False)),
        ("x2 is what I name it", "2", (None, False)),
        ("\\boxed{12", "12", ("12", True)),
        ("none", "5", (None, False)),
    ],
)
def test_the_relaxed_grader_takes_the_last_number_where_there_is_no_box(
    response: str, answer: str, expected: tuple[str | None, bool]
) -> None:
    assert graders.GRADERS["relaxed"](response, answer) == expected


def test_the_rule_looks_into_tuples_for_what_sympy_has_to_settle() -> None:
    assert equivalence.by_rule("(1, (\\sqrt{12}, x), 3)", "(1,(2\\sqrt{3},x),3)") == [
        ("\\sqrt{12}", "2\\sqrt{3}")
    ]
    assert equivalence.by_rule("(1, \\sqrt{12})", "(2, 2\\sqrt{3})") is False
    assert equivalence.by_rule("x^{12}", "x^6x^6") is False
    assert equivalence.by_rule("x" * 201, "1x") is False


def test_world_grader_and_unknown_grader() -> None:
    assert graders.grade_all([("1+2=3#3", "3"), ("3", "3")], "world") == (
        [("3", True), (None, False)],
        0,
    )
    with pytest.raises(
        UserError, match="unknown grader 'maths'; use one of world, choice, rule, math_verify"
    ):
        graders.grade_all([], "maths")


MEGABYTE = 1 << 20
# Response and ground truth, whichever takes longest to compare.
COSTLY = {
    "tower": ("\\boxed{9^{9^{9^{9}}}}", "5"),
    "power": ("\\boxed{(x+y)^{99999999}}", "x+1"),
    "factorials": ("\\boxed{9!!!!!!!!}", "x+1"),
    "binomial": ("\\boxed{\\binom{999999999}{499999999}}", "x+1"),
    "sum": ("\\boxed{\\sum_{n=1}^{999999999} \\frac{1}{n^{n}}}", "x+1"),
    "integral": ("\\boxed{\\int_{0}^{1} x^{x^{x}} \\sin(e^{x^{7}}) dx}", "x+1"),
    "matrix": ("\\boxed{\\operatorname{eye}(99999)}", "x+1"),
    "digits": (f"\\boxed{{{'9' * 900}}}", "x+1"),
    "long number": (f"\\boxed{{{'9' * MEGABYTE}}}", "5"),
    "braces": ("\\boxed{" + "{" * 400 + "5" + "}" * 400 + "}", "x+1"),
    "many braces": ("\\boxed{" + "{" * MEGABYTE + "5" + "}" * MEGABYTE + "}", "5"),
    "parentheses": ("\\boxed{" + "(" * 450 + "5" + ")" * 450 + "}", "x+1"),
    "tuples": ("\\boxed{" + "(1," * 240 + "5" + ")" * 240 + "}", "(1," * 240 + "6" + ")" * 240),
    "fractions": ("\\boxed{" + "\\frac{1}{" * 90 + "x" + "}" * 90 + "}", "x+1"),
    "roots": ("\\boxed{" + "\\sqrt{2+" * 100 + "2" + "}" * 100 + "}", "x+1"),
    "spaces": ("\\boxed{5" + " " * 900 + "x}", "7"),
    "backtracking": ("\\boxed{" + "\\text{" * 60 + "a" + "}" * 60 + "$ and " * 60 + "!}", "x+1"),
    "dollars": ("\\boxed{" + "$x$, and " * 100 + "}", "x+1"),
    "megabyte": ("\\boxed{" + "\\frac{1}{2}+" * (MEGABYTE // 12) + "1}", "5"),
    "megabyte without a box": ("x^{2}+" * (MEGABYTE // 6), "5"),
    "megabyte of boxes": ("\\boxed{" * (MEGABYTE // 7), "5"),
    "megabyte behind a box": ("\\boxed{" + "x" * MEGABYTE, "5"),
    "megabyte of truth": ("\\boxed{5}", "\\frac{" * (MEGABYTE // 6)),
}


@pytest.mark.parametrize("grader", BOXED)
@pytest.mark.parametrize("case", COSTLY)
def test_a_costly_answer_takes_a_bounded_time_and_is_wrong(case: str, grader: str) -> None:
    start = time.monotonic()
    graded, timeouts = graders.grade_all([COSTLY[case], ("\\boxed{x+x}", "2x")], grader)
    assert time.monotonic() - start < BOUND_SECONDS
    assert [right for _, right in graded] == [False, True]
    assert timeouts <= 1


def test_comparisons_at_a_limit_are_counted_once_each() -> None:
    tower, sound = COSTLY["tower"], ("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}")
    graded, timeouts = graders.grade_all([tower, sound, tower, tower], "math_verify")
    assert [right for _, right in graded] == [False, True, False, False]
    assert timeouts == 1


PIECES = [
    *"0123456789xyie+-*/^_=<>()[]{},.;:!%$&|'\\ \n",
    *("\\frac", "\\frac{", "}{", "\\sqrt", "\\sqrt[3]{", "\\pi", "\\infty", "\\cdot", "\\times"),
    *("\\text{", "\\left(", "\\right)", "\\{", "\\}", "\\cup", "\\pm", "\\binom{", "\\sum_{n=1}^{"),
    *("\\int", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\boxed{", "\\sin", "\\log_", "\\in"),
    *("\\operatorname{", "^{", "_{", "e^{", "99", "1,000", "\\circ", "é", "²", "\0", "\ud800"),
]
LATEX = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=25)


@pytest.mark.parametrize("grader", BOXED)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(answer=LATEX, truth=LATEX | st.sampled_from(["5", "\\frac{1}{2}", "(1,2)", "x+1"]))
def test_any_text_is_graded_in_a_bounded_time(grader: str, answer: str, truth: str) -> None:
    start = time.monotonic()
    [(extracted, right)], timeouts = graders.grade_all([(f"\\boxed{{{answer}}}", truth)], grader)
    assert time.monotonic() - start < BOUND_SECONDS
    assert timeouts in (0, 1)
    assert not (right and (extracted is None or timeouts))


@pytest.mark.parametrize("grader", BOXED)
@given(answer=LATEX)
def test_an_answer_equals_itself_if_anything_is_left_of_it(grader: str, answer: str) -> None:
    extracted = graders.last_boxed(f"\\boxed{{{answer}}}")
    if extracted is not None:
        bare = equivalence.normalise(extracted) if grader == "rule" else extracted.strip(" \n$\\.")
        assert graders.GRADERS[grader].compare(extracted, extracted) is True or not bare


@pytest.mark.parametrize(
    ("box", "answer", "right"),
    [
        ("C", "C", True), ("c", "C", True), ("C. 12", "C", True), ("(C)", "C", True),
        ("\\text{C}", "C", True), ("\\textbf{(C)} 12", "C", True), ("C: a cat", "C", True),
        ("Cat", "C", False), ("D", "C", False), ("12", "C", False), ("C4", "C", False),
        ("True", "True", True), ("yes", "True", True), ("No.", "False", True),
        ("no", "True", False), ("untrue", "True", False), ("\\text{true}", "True", True),
        ("\\text {C}", "C", True), ("Answer: C", "C", True), ("The answer is C", "C", False),
        # Several, or a sentence.
        ("A or B", "A", False), ("A, C", "A", False), ("(a) and (b)", "A", False),
        ("A dog", "A", False), ("I don't know", "I", False), ("C, a cat", "C", True),
        ("C, D", "D", False), ("True or False", "True", False), ("yes/no", "True", False),
        ("Yes, it is", "True", True), ("answer", "C", False),
        (r"A \text{ and } C", "A", False), (r"\text{A} \text{ or } \text{B}", "A", False),
        (r"\text{(A)},\ \text{(C)}", "A", False), (r"\mathbf{A},\mathbf{C}", "A", False),
        ("A; B", "A", False), ("a, c", "A", False), (r"True \text{ or } False", "True", False),
        # One after all.
        ("C because it is", "C", True), (r"\textbf{B} mitosis", "B", True), ("A, A", "A", True),
        ("True, yes", "True", True), ("C, I think", "C", True), ("C, a mammal", "C", True),
    ],
)  # fmt: skip
def test_choices(box: str, answer: str, right: bool) -> None:
    response = f"A first, \\boxed{{A}}, then \\boxed{{{box}}}."
    assert graders.grade_all([(response, answer)], "choice") == ([(box, right)], 0)


def test_no_choice() -> None:
    assert graders.grade_all([("C", "C"), ("\\boxed{}", "C")], "choice")[0] == [(None, False)] * 2


THINKING = "<think>\nAnswer: C\n</think>\n\n"


@pytest.mark.parametrize(
    ("grader", "response", "answer", "expected"),
    [
        ("letter", "So.\nAnswer: B", "B", True),
        ("letter", THINKING + "So.\n**Answer: (B)**\n", "B", True),
        ("letter", "answer: B) two", "B", True),
        ("letter", "Answer: B or C", "B", False),
        ("letter", "Answer: (A), (B)", "A", False),
        ("letter", "Answer: B, as in a", "B", True),
        ("letter", THINKING + "Answer: B", "C", False),  # what it thought does not count
        ("letter", "Answer: B\nI am sure.", "B", False),  # the last line
        ("letter", "Answer: Because", "B", False),
        ("letter", "B", "B", False),
        ("letter", "", "B", False),
        ("letter", "<think>\nAnswer: B", "B", False),  # never ended thinking
        ("boolean", "Hm.\nAnswer: True", "True", True),
        ("boolean", "Answer: false.", "no", True),
        ("boolean", "Answer: True or False", "True", False),
        ("boolean", "Answer: yes", "True", False),
        ("boolean", "The sky is blue.\nTrue.", "True", True),
        ("boolean", "It is true", "True", False),
        ("integer", "so \\boxed{033}", "33", True),
        ("integer", "x\nAnswer: 1,204", "1204", True),
        ("integer", "Answer: $204$", "204", True),
        ("integer", "Answer: 20.4", "204", False),
        ("integer", "\\boxed{x}", "204", False),
        ("world", THINKING + "1+1=2#2", "2", True),
        ("rule", "\\boxed{\\frac12}", "\\frac{1}{2}", True),
    ],
)
def test_what_is_right_after_the_thinking(
    grader: str, response: str, answer: str, expected: bool
) -> None:
    assert graders.grade_finished([(response, "stop")], [answer], grader) == [expected]
    # Cut off: wrong, whatever it says.
    assert graders.grade_finished([(response, "length")], [answer], grader) == [False]


def test_an_unknown_grader_of_finished_responses_is_refused() -> None:
    with pytest.raises(UserError, match="unknown grader 'digit'"):
        graders.grade_finished([], [], "digit")


def test_only_some_graders_leave_the_thinking_out_of_themselves() -> None:
    """What the others read of a response as it is, they do not read of a finished one."""
    box = "<think>\\boxed{5}</think> done"
    assert graders.grade_all([(box, "5")], "rule")[0] == [("5", True)]
    assert graders.grade_finished([(box, "stop")], ["5"], "rule") == [False]
    thought = "<think>\nAnswer: C</think>\nAnswer: B"
    assert graders.grade_all([(thought, "B"), ("<think>Answer: B", "B")], "letter")[0] == [
        ("B", True),
        (None, False),
    ]


@pytest.mark.parametrize(
    ("given", "plain", "without"),
    [
        ("3\\mathrm{i}", "3i", "3"),
        ("3\\text{i}", "3i", "3"),
        ("2+3\\mbox{i}", "2+3i", "2+3"),
        ("2 + 3\\mathrm{ i }", "2+3i", "2+3"),
        ("2\\mathrm{e}", "2e", "2"),
        ("3 \\mathrm {i}^2", "3i^2", "3"),
    ],
)
def test_an_imaginary_unit_is_no_unit(given: str, plain: str, without: str) -> None:
    """By the paper's rule; math-verify takes it for one."""
    pairs = [(f"\\boxed{{{given}}}", plain), (f"\\boxed{{{given}}}", without)]
    verdicts, _ = graders.grade_all(pairs, "rule")
    assert [right for _, right in verdicts] == [True, False]

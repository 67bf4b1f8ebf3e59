"""Grading of the real benchmarks' gold answers, by both graders."""

import itertools
import os
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from opd.grading import equivalence, graders, sandbox

PROBLEMS = {
    "AIME24": 30, "AIME25": 30, "AMC23": 40, "AMC23-83": 83, "MATH-500": 500, "Minerva": 272,
    "Olympiad-Bench": 674,
}  # fmt: skip
GRADERS = ("rule", "math_verify")


@pytest.fixture(scope="module")
def gold(data_dir: Path) -> dict[str, list[str]]:
    """Gold answers by benchmark, as the files have them."""
    found = {}
    for name in PROBLEMS:
        table = pq.read_table(data_dir / f"benchmarks/{name}.parquet")
        found[name] = [row["ground_truth"] for row in table["reward_model"].to_pylist()]
    return found


def bare(answer: str) -> str:
    return graders.last_boxed(answer) or answer


def graded(given: list[str], gold: list[str], grader: str) -> list[bool]:
    verdicts, timeouts = graders.grade_all(
        [(f"so \\boxed{{{a}}}", b) for a, b in zip(given, gold, strict=True)], grader
    )
    assert timeouts == 0
    return [right for _, right in verdicts]


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gold_answers_grade_themselves_as_right(
    gold: dict[str, list[str]], name: str, grader: str
) -> None:
    assert len(gold[name]) == PROBLEMS[name]
    assert all(graded([bare(a) for a in gold[name]], gold[name], grader))


def test_gold_answers_grade_themselves_as_right_without_the_comparison_of_texts(
    gold: dict[str, list[str]],
) -> None:
    """math-verify itself, asked about each different one."""
    pairs = {pair for name in gold for a in gold[name] for pair in [(bare(a), bare(a))]}
    ask = sandbox.verifier(os.getpid())
    assert {a for a, b in pairs if ask("math_verify", [(a, b)]) is not True} == set()


def restyled(answer: str) -> str:
    """The same answer in other LaTeX: large fractions and brackets, spaces, no dollars."""
    text = (
        re.sub(r"(?<!\\)\$", "", answer).replace("\\frac", "\\dfrac").replace("\\ddfrac", "\\dfrac")
    )
    if text.count("(") == text.count(")"):
        text = re.sub(r"(?<!\\left)\(", r"\\left(", text)
        text = re.sub(r"(?<!\\right)\)", r"\\right)", text)
    text = re.sub(" ?([+=]) ?", r" \1 ", text)
    return f" {text.rstrip('.')}."


# Restyled gold answers that a grader does not recognise.
NOT_RECOGNISED: dict[str, set[str]] = {
    "rule": set(),
    # math-verify's grammar reads no subscript such as E_{1} or L_{\\odot}, no \\hbar and no \\max
    # in one: it compares the text.
    "math_verify": {
        "\\frac{1}{3} E_{1}+\\frac{2}{3} E_{2}",
        "\\frac{dM}{dt}=\\frac{10^{5} L_{\\odot}}{0.007 c^{2} M_{\\odot}^{6}} M^{6}",
        "\\hbar \\omega(v+1 / 2)-\\frac{E_{0}^{2} e^{2}}{2 m \\omega^{2}}",
        "$m_{\\max }=n^{2}-n-1$",
    },
}


@pytest.mark.parametrize("grader", GRADERS)
def test_gold_answers_in_other_latex_grade_as_right(
    gold: dict[str, list[str]], grader: str
) -> None:
    truths = [a for name in gold for a in gold[name]]
    verdicts = graded([restyled(bare(a)) for a in truths], truths, grader)
    missed = {a for a, right in zip(truths, verdicts, strict=True) if not right}
    assert missed == NOT_RECOGNISED[grader]


@pytest.mark.parametrize("grader", GRADERS)
def test_answers_of_other_problems_grade_as_wrong(gold: dict[str, list[str]], grader: str) -> None:
    pairs = [
        (f"\\boxed{{{bare(a)}}}", b)
        for name in gold
        for a, b in itertools.pairwise(gold[name])
        if equivalence.normalise(bare(a)) != equivalence.normalise(bare(b))
    ]
    verdicts, timeouts = graders.grade_all(pairs, grader)
    assert [pair for pair, (_, right) in zip(pairs, verdicts, strict=True) if right] == []
    # sympy solves one differential equation of Minerva for the terms of another for seconds; how
    # many more reach the limit depends on the machine.
    assert timeouts <= (5 if grader == "math_verify" else 0)


def test_the_released_amc_answers_are_decimals_that_match_integers(
    gold: dict[str, list[str]],
) -> None:
    assert all(re.fullmatch(r"-?\d+\.0", a) for a in gold["AMC23-83"])
    for grader in GRADERS:
        assert all(
            graded([a.removesuffix(".0") for a in gold["AMC23-83"]], gold["AMC23-83"], grader)
        )
        assert not any(graded([a + "1" for a in gold["AMC23-83"]], gold["AMC23-83"], grader))


def scientific(answer: str) -> str | None:
    found = re.fullmatch(r"(-?[\d.]+)e(-?\d+)", answer)
    return f"{found[1]} \\times 10^{{{found[2]}}}" if found else None


# How gold answers can be given otherwise where the graders differ, and what each then finds.
DIFFERENCES: dict[str, Any] = {
    # 1e-8 is e - 8 for math-verify.
    "power of ten": (scientific, 58, {"rule": 58, "math_verify": 0}),
    # The rule takes the same fraction only.
    "unreduced": (
        lambda a: re.sub(
            r"^\$?(-?)\\frac\{(\d+)\}\{(\d+)\}\$?$",
            lambda m: f"{m[1]}\\frac{{{2 * int(m[2])}}}{{{2 * int(m[3])}}}",
            a,
        ),
        130,
        {"rule": 0, "math_verify": 130},
    ),
    # The rule takes an integer only as that integer.
    "sum": (
        lambda a: f"{a}+0" if re.fullmatch(r"-?\d+(\.0)?", a) else None,
        921,
        {"rule": 0, "math_verify": 921},
    ),
    # math-verify's grammar drops the base.
    "no base": (
        lambda a: re.sub(r"^(\d+)_\{?\d\}?$", r"\1", a),
        6,
        {"rule": 0, "math_verify": 6},
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_where_the_graders_differ_on_gold_answers(gold: dict[str, list[str]], case: str) -> None:
    change, n, expected = DIFFERENCES[case]
    truths = [a for name in gold for a in gold[name] if change(bare(a)) not in (None, bare(a))]
    assert len(truths) == n
    found = {g: sum(graded([change(bare(a)) for a in truths], truths, g)) for g in GRADERS}
    assert found == expected

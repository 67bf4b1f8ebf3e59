"""Grading: extraction of the final answer and its comparison with the ground truth.

A grader maps (response, answer) to (what was extracted or None, whether it is right). ``world``
reads the miniature world's notation; the others read the last ``\\boxed{}``: ``choice`` a letter or
a word, ``rule`` (of the paper) and ``math_verify`` mathematics. ``relaxed`` is ``math_verify`` that
takes the last number where there is no box. What the text alone does not settle is compared in a
process with limits.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from opd.core.errors import UserError
from opd.grading.equivalence import Pair, by_math_verify, by_rule
from opd.grading.sandbox import verifier

Graded = tuple[str | None, bool]

RELAXED = "relaxed"
SETTLE: dict[str, Callable[[str, str], bool | list[Pair]]] = {
    "rule": by_rule,
    "math_verify": by_math_verify,
    RELAXED: by_math_verify,
}


def grade_world(response: str, answer: str) -> Graded:
    """The miniature world's own grader."""
    pass

    return grade_notation(response, answer)


def grade_choice(response: str, answer: str) -> Graded:
    """The first word of the last ``\\boxed{}`` against a letter, or True or False (yes and no will
    do): ``C. 12`` and ``\\text{(c)}`` choose C."""
    extracted = last_boxed(response)
    return extracted, extracted is not None and _choice(extracted) == _choice(answer) != ""


def _choice(text: str) -> str:
    found = re.match(r"(?:\\[a-z]+(?=\{)|[^\w\\])*([A-Za-z]+)(?!\w)", text)
    word = found[1].lower() if found else ""
    return {"yes": "true", "no": "false"}.get(word, word)


def grade_boxed(grader: str, response: str, answer: str) -> Graded:
    """The last ``\\boxed{}`` of a response against a ground truth (itself boxed or bare)."""
    return grade_all([(response, answer)], grader)[0][0]


GRADERS: dict[str, Callable[[str, str], Graded]] = {
    "world": grade_world,
    "choice": grade_choice,
    **{name: partial(grade_boxed, name) for name in SETTLE},
}


def grade_all(pairs: Sequence[tuple[str, str]], grader: str) -> tuple[list[Graded], int]:
    """Grade (response, answer) pairs in order; also how many comparisons hit a limit of time or
    memory (each counted once, however often it occurs).

    A comparison at a limit counts as wrong. Raises ``UserError`` for an unknown grader.
    """
    if grader not in GRADERS:
        raise UserError(f"unknown grader '{grader}'", "grader", f"use one of {', '.join(GRADERS)}")
    if grader not in SETTLE:
        return [GRADERS[grader](response, answer) for response, answer in pairs], 0
    graded: list[Graded] = []
    verdicts: dict[tuple[str, str], bool | None] = {}
    for response, answer in pairs:
        extracted = last_boxed(response)
        if extracted is None and grader == RELAXED:
            extracted = last_number(response)
        if extracted is None:
            graded.append((None, False))
            continue
        key = (extracted, answer)
        if key not in verdicts:
            settled = SETTLE[grader](extracted, last_boxed(answer) or answer)
            if isinstance(settled, bool):
                verdicts[key] = settled
            else:
                compared_by = "math_verify" if grader == RELAXED else grader
                verdicts[key] = verifier(os.getpid())(compared_by, settled)
        graded.append((extracted, bool(verdicts[key])))
    return graded, sum(verdict is None for verdict in verdicts.values())


def disagreements(
    pairs: Sequence[tuple[str, str]], graded: dict[str, Sequence[Graded]]
) -> list[dict[str, Any]]:
    """Where graders of the same (response, answer) pairs differ, the most frequent first.

    graded: the results of ``grade_all`` by grader. Returns a row for each pair of extracted and
    answer: these two, the verdict of each grader under its name, and count.
    """
    counts: Counter[tuple[str | None, str, tuple[bool, ...]]] = Counter()
    for (_, answer), *results in zip(pairs, *graded.values(), strict=True):
        verdicts = tuple(right for _, right in results)
        if len(set(verdicts)) > 1:
            counts[results[0][0], answer, verdicts] += 1
    return [
        {"extracted": extracted, "answer": answer, **dict(zip(graded, verdicts, strict=True)),
         "count": count}
        for (extracted, answer, verdicts), count in counts.most_common()
    ]  # fmt: skip


def last_boxed(text: str) -> str | None:
    """Contents of the last ``\\boxed{...}``, with balanced braces.

    None where there is none, where it is empty, or where the text ends before it closes.
    """
    start = text.rfind("\\boxed")
    opening = re.compile(r"\\boxed\s*\{").match(text, start) if start >= 0 else None
    if opening is None:
        return None
    depth = 1
    for found in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[opening.end() : found.start()].strip() or None
    return None


_NUMBER = re.compile(
    r"-?\\[dt]?frac\{-?\d+\}\{-?\d+\}|(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?"
)


def last_number(text: str) -> str | None:
    """The last integer, decimal or fraction in a text, without separators of thousands."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def grade_notation(response: str, answer: str) -> tuple[str | None, bool]:
    """The digit after the last ``#`` of a response (None if there is none), and if it is right."""
    found = re.findall(r"#(\d)", response)
    extracted = found[-1] if found else None
    return extracted, extracted == answer

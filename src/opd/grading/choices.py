"""Which responses are right: graders of BoolQ, MMLU and AIME beside those of
``opd.grading.graders``.

All read what comes after the thinking. A response that was cut off is wrong, whatever it says.
"""

import re
from collections.abc import Callable, Sequence

from opd.core.errors import UserError
from opd.grading.graders import GRADERS, grade_all, last_boxed

THINK, END_OF_THINKING = "<think>", "</think>"
_LAST_LINE = re.compile(r"\W*answer\s*:\s*(.*)", re.IGNORECASE)


def after_thinking(response: str) -> str | None:
    """The response without its thinking; None where the thinking does not end."""
    _, ended, rest = response.rpartition(END_OF_THINKING)
    if ended:
        return rest.strip()
    return None if THINK in response else response.strip()


def last_line(text: str) -> str | None:
    """What the last line that is not empty gives after ``Answer:``; None where it does not."""
    lines = text.strip().splitlines()
    found = _LAST_LINE.fullmatch(lines[-1].strip()) if lines else None
    return found[1] if found else None


def _letter(text: str, answer: str) -> bool:
    found = re.fullmatch(r"\W*([A-Z])(?:\W.*)?", last_line(text) or "")
    return bool(found) and found[1] == answer.strip().upper()  # type: ignore[index]


def _boolean(text: str, answer: str) -> bool:
    line = (text.strip().splitlines() or [""])[-1]
    found = re.fullmatch(r"(?:\W*answer\s*:)?\W*(true|false)\W*", line, re.IGNORECASE)
    truth = {"yes": "true", "no": "false"}.get(answer.strip().lower(), answer.strip().lower())
    return bool(found) and found[1].lower() == truth  # type: ignore[index]


def _integer(text: str, answer: str) -> bool:
    given = last_boxed(text) or last_line(text) or ""
    found = re.fullmatch(r"\W*?(-?\d+)\W*", given.replace(",", ""))
    return bool(found) and int(found[1]) == int(answer)  # type: ignore[index]


# MMLU, BoolQ, AIME.
OWN: dict[str, Callable[[str, str], bool]] = {
    "letter": _letter,
    "boolean": _boolean,
    "integer": _integer,
}


def right(responses: Sequence[tuple[str, str]], answers: Sequence[str], grader: str) -> list[bool]:
    """Whether each response (its text, and how it finished: stop or length) gives the answer.

    grader: letter, boolean or integer (the last line's ``Answer:``, which true and false may do
    without; an integer may be boxed), or one of ``opd.grading.graders``. Raises ``UserError`` for
    another.
    """
    if grader not in OWN and grader not in GRADERS:
        raise UserError(f"unknown grader '{grader}'", "grader", f"use one of {', '.join(known())}")
    found = [False] * len(responses)
    texts: dict[int, str] = {}
    for row, (response, finish) in enumerate(responses):
        text = after_thinking(response) if finish == "stop" else None
        if text is not None:
            texts[row] = text
    if grader in OWN:
        verdicts = [OWN[grader](text, answers[row]) for row, text in texts.items()]
    else:
        pairs = [(text, answers[row]) for row, text in texts.items()]
        verdicts = [correct for _, correct in grade_all(pairs, grader)[0]]
    for row, verdict in zip(texts, verdicts, strict=True):
        found[row] = verdict
    return found


def known() -> tuple[str, ...]:
    """Names of all graders."""
    return (*OWN, *GRADERS)

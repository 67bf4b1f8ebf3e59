"""Grading: the final answer is taken out of a response and compared with the ground truth.

``GRADERS`` holds every grader by its name. What the text alone does not settle is compared in a
process with limits (``opd.grading.sandbox``).
"""

import operator
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opd.core.errors import UserError
from opd.grading.equivalence import AnswerPair, by_math_verify, by_rule
from opd.grading.sandbox import verifier

# What was extracted, or None, and whether it is right.
Graded = tuple[str | None, bool]
Compare = Callable[[str, str], bool | list[AnswerPair]]
# What a comparison, exact or not, said of an extracted answer and a ground truth; None: a limit.
Verdicts = dict[tuple[Compare, bool, str, str], bool | None]
THINK, END_OF_THINKING = "<think>", "</think>"
RELAXED = "relaxed"


class Choices(NamedTuple):
    """What a protocol decides of graders that read a box; by default as the papers' code has it.

    box: the ``last`` one, complete or not, or the ``last_complete`` one that holds something.
    thinking: ``graded`` with all of a response, or ``left_out``. exact: nothing is rounded.
    """

    box: str = "last"
    thinking: str = "graded"
    exact: bool = False

    def each_other(self) -> dict[str, "Choices"]:
        """The name of each choice, with the choices where this one alone is the other way."""
        papers, strict = PAPERS._asdict(), STRICT._asdict()
        own = self._asdict()
        other = {name: (strict if own[name] == papers[name] else papers)[name] for name in own}
        return {name: Choices(**{**own, name: value}) for name, value in other.items()}


PAPERS, STRICT = Choices(), Choices("last_complete", "left_out", True)


class Grader(NamedTuple):
    """One way to grade, which is called with a response and the ground truth (boxed or bare).

    ``reads`` says in words what of a response counts. ``extract`` takes the answer out of it, else
    ``without_box`` does, if given. ``compare`` holds the answer to the ground truth and returns the
    pairs that it cannot settle, which are left to the comparison of the sandbox named ``sandbox``.
    With ``after_thinking`` only what comes after the thinking is read, whoever asks. With ``exact``
    equal means equal for ``sandbox`` without any rounding.
    """

    reads: str
    extract: Callable[[str], str | None]
    compare: Compare
    sandbox: str = ""
    after_thinking: bool = False
    without_box: Callable[[str], str | None] | None = None
    exact: bool = False

    def __call__(self, response: str, answer: str) -> Graded:
        return _graded([(self.read(response), answer)], self, {})[0][0]

    def read(self, response: str) -> str | None:
        """The part of a response that counts."""
        return after_thinking(response) if self.after_thinking else response

    def answer(self, text: str | None) -> str | None:
        """The answer in this part; None where there is none."""
        if text is None:
            return None
        return self.extract(text) or (self.without_box(text) if self.without_box else None)

    @property
    def boxed(self) -> bool:
        """Whether it reads a box."""
        return self.extract in (last_boxed, last_complete_boxed)

    def under(self, choices: Choices) -> "Grader":
        """The grader under the choices of a protocol: itself, if it does not read a box."""
        if not self.boxed:
            return self
        boxed = last_complete_boxed if choices.box == "last_complete" else last_boxed
        left_out = choices.thinking == "left_out"
        exact = choices.exact and bool(self.sandbox)
        return self._replace(extract=boxed, after_thinking=left_out, exact=exact)


def after_thinking(response: str) -> str | None:
    """The response without its thinking; None where the thinking does not end."""
    _, ended, rest = response.rpartition(END_OF_THINKING)
    if ended:
        return rest.strip()
    return None if THINK in response else response.strip()


def last_boxed(text: str) -> str | None:
    """Contents of the last ``\\boxed{...}``, with balanced braces. None where there is none, where
    it is empty, or where the text ends before it closes."""
    start = text.rfind("\\boxed")
    opening = re.compile(r"\\boxed\s*\{").match(text, start) if start >= 0 else None
    if opening is None:
        return None
    depth = 1
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return text[opening.end() : mark.start()].strip() or None
    return None


def last_complete_boxed(text: str) -> str | None:
    """Contents of the last ``\\boxed{...}`` that closes and is not empty, whatever comes after it;
    None where there is none."""
    answer, begins = None, -1
    opened: list[tuple[int, int] | None] = []  # where it and its contents begin; None: a brace
    # A backslash before \\boxed escapes nothing: texts are quoted twice at times.
    for mark in re.finditer(r"\\boxed\s*\{|\\(?!\\boxed).|[{}]", text, re.DOTALL):
        if mark[0].startswith("\\boxed"):
            opened.append(mark.span())
        elif mark[0] == "{":
            opened.append(None)
        elif mark[0] == "}" and opened and (box := opened.pop()) and box[0] > begins:
            contents = text[box[1] : mark.start()].strip()
            answer, begins = (contents, box[0]) if contents else (answer, begins)
    return answer


_NUMBER = re.compile(
    r"-?\\[dt]?frac\{-?\d+\}\{-?\d+\}|(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?"
)


def last_number(text: str) -> str | None:
    """The last integer, decimal or fraction in a text, without separators of thousands."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


_FIRST_WORD = re.compile(r"[^\w\\]*(?:(?i:answer)(?: is)?\W+)?([A-Za-z]+)(?!\w)")
# A further choice behind the first: a letter, unless it is a word of a sentence, or a truth value.
_ANOTHER = re.compile(
    r"\W*(?:[,;/&]|\b(?:or|and)\b)\W*"
    r"([B-HJ](?!\w)|[AI](?! ?\w)|[a-j](?=\)|\W*$|\W*[,;/&])|(?i:true|false|yes|no)(?!\w))"
)


def _last_digit(text: str) -> str | None:
    digits = re.findall(r"#(\d)", text)
    return digits[-1] if digits else None


def _last_line(text: str) -> str:
    """What the last line that is not empty gives after ``Answer:``; empty where it does not."""
    lines = text.strip().splitlines() or [""]
    line = re.fullmatch(r"\W*answer\s*:\s*(.*)", lines[-1].strip(), re.IGNORECASE)
    return line[1] if line else ""


def _letter(text: str) -> str | None:
    line = _without_commands(_last_line(text))
    letter = re.fullmatch(r"\W*([A-Z])(?:\W.*)?", line)
    return letter[1] if letter and not _chooses_another(line, letter) else None


def _without_commands(text: str) -> str:
    """A text in which what LaTeX sets in some way stands as it is: ``\\text{A} \\text{ or }``."""
    bare, inner = text.replace("\\ ", " "), r"\\[a-z]+ *\{([^{}]*)\}"
    while (further := re.sub(inner, r"\1", bare)) != bare:
        bare = further
    return bare


def _chooses_another(text: str, first: re.Match[str]) -> bool:
    """Whether other choices than the ``first`` stand behind it."""
    end = first.end(1)
    while another := _ANOTHER.match(text, end):
        if _truth_value(another[1]) != _truth_value(first[1]):
            return True
        end = another.end()
    return False


def _boolean(text: str) -> str | None:
    line = (text.strip().splitlines() or [""])[-1]
    word = re.fullmatch(r"(?:\W*answer\s*:)?\W*(true|false)\W*", line, re.IGNORECASE)
    return word[1].lower() if word else None


def _integer(text: str) -> str | None:
    shown = last_boxed(text) or _last_line(text)
    number = re.fullmatch(r"\W*?(-?\d+)\W*", shown.replace(",", ""))
    return number[1] if number else None


def _word(text: str) -> str:
    """What a text chooses by its first word, with yes and no as true and false: ``C. 12`` and
    ``\\text{(c)}`` choose c. Empty where it begins a sentence (``A dog``) or names another
    choice (``A or B``)."""
    bare = _without_commands(text)
    first = _FIRST_WORD.match(bare)
    if first is None or _chooses_another(bare, first):
        return ""
    begins_sentence = first[1] in "AI" and re.match(r"(?: |['’])[A-Za-z]", bare[first.end() :])
    return "" if begins_sentence else _truth_value(first[1])


def _truth_value(word: str) -> str:
    return {"yes": "true", "no": "false"}.get(word.lower(), word.lower())


GRADERS: dict[str, Grader] = {
    "world": Grader("the digit after the last #", _last_digit, operator.eq),
    "choice": Grader(
        "a letter, or true or false, in the last box",
        last_boxed,
        lambda given, truth: _word(given) == _word(truth) != "",
    ),
    "rule": Grader("mathematics in the last box, by the paper's rule", last_boxed, by_rule, "rule"),
    "math_verify": Grader(
        "mathematics in the last box, by math-verify", last_boxed, by_math_verify, "math_verify"
    ),
    RELAXED: Grader(
        "as math_verify, or the last number where there is no box",
        last_boxed,
        by_math_verify,
        "math_verify",
        without_box=last_number,
    ),
    "letter": Grader(
        "a letter after 'Answer:' in the last line",
        _letter,
        lambda given, truth: given == truth.strip().upper(),
        after_thinking=True,
    ),
    "boolean": Grader(
        "true or false in the last line",
        _boolean,
        lambda given, truth: given == _truth_value(truth.strip()),
        after_thinking=True,
    ),
    "integer": Grader(
        "an integer in the last box, or after 'Answer:' in the last line",
        _integer,
        lambda given, truth: int(given) == int(truth),
        after_thinking=True,
    ),
}


def grader_named(name: str) -> Grader:
    """A grader by its name. Raises ``UserError`` for an unknown one."""
    if name not in GRADERS:
        raise UserError(f"unknown grader '{name}'", "grader", f"use one of {', '.join(GRADERS)}")
    return GRADERS[name]


def grade_all(
    pairs: Sequence[tuple[str, str]],
    grader: str,
    verdicts: Verdicts | None = None,
    choices: Choices = PAPERS,
) -> tuple[list[Graded], int]:
    """Grade (response, answer) pairs in order; also how many comparisons hit a limit of time or
    memory (each counted once, however often it occurs).

    A comparison at a limit counts as wrong. ``verdicts`` holds those that other calls have reached,
    and takes new ones. Raises ``UserError`` for an unknown grader.
    """
    kind = grader_named(grader).under(choices)
    verdicts = {} if verdicts is None else verdicts
    return _graded([(kind.read(response), answer) for response, answer in pairs], kind, verdicts)


def grade_finished(
    responses: Sequence[tuple[str, str]], answers: Sequence[str], grader: str
) -> list[bool]:
    """Whether each response (its text, and how it finished: stop or length) gives the answer after
    its thinking, by any grader. One that was cut off is wrong, whatever it says. Raises
    ``UserError`` for an unknown grader."""
    texts = [after_thinking(text) if end == "stop" else None for text, end in responses]
    graded, _ = _graded([*zip(texts, answers, strict=True)], grader_named(grader), {})
    return [right for _, right in graded]


def _graded(
    pairs: Sequence[tuple[str | None, str]], kind: Grader, verdicts: Verdicts
) -> tuple[list[Graded], int]:
    """``grade_all`` of the parts of responses that count; None has no answer."""
    graded: list[Graded] = []
    before = [*verdicts.values()].count(None)
    for text, answer in pairs:
        extracted = kind.answer(text)
        right = extracted is not None and bool(_compared(kind, extracted, answer, verdicts))
        graded.append((extracted, right))
    return graded, [*verdicts.values()].count(None) - before


def _compared(kind: Grader, extracted: str, answer: str, verdicts: Verdicts) -> bool | None:
    """What a grader says of an extracted answer; None at a limit. Exactly equal is only what is
    equal at all."""
    if kind.exact and not _compared(kind._replace(exact=False), extracted, answer, verdicts):
        return False
    key = (kind.compare, kind.exact, extracted, answer)
    if key not in verdicts:
        left = kind.compare(extracted, last_boxed(answer) or answer)
        name = f"exact_{kind.sandbox}" if kind.exact else kind.sandbox
        verdicts[key] = left if isinstance(left, bool) else verifier(os.getpid())(name, left)
    return verdicts[key]

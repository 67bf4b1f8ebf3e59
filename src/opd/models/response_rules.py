"""Rules that reject a response: each one is a pure function of the response's text.

The first four are those of Rethinking OPD's rollout script, in its order: no box, repeated lines,
repeated windows, back-to-back repeated blocks (thunlp/OPD at 0a44395,
scripts/infer/vllm_rollout.py, lines 17-73). The Many Faces of OPD has the same
(ulab-uiuc/Open-On-Policy-Distillation at 33234e5,
examples/on_policy_distillation/collect_qwen3_llm_sft_openthoughts_math.py, from line 99).
"""

from collections import Counter
from collections.abc import Callable, Iterable

from opd.core.errors import UserError


def no_box(response: str) -> bool:
    """Whether to reject: ``\\boxed`` does not occur."""
    return "\\boxed" not in response


def repeated_line(response: str) -> bool:
    """Whether to reject: a line of 20 or more characters, stripped, occurs 5 times or more."""
    lines = [line.strip() for line in response.split("\n")]
    counts = Counter(line for line in lines if len(line) >= 20)
    return any(count >= 5 for count in counts.values())


def repeated_window(response: str) -> bool:
    """Whether to reject: a response of 300 characters or more in which, of the 100-character
    windows that start at every tenth character, three or more are equal."""
    if len(response) < 300:
        return False
    counts = Counter(response[i : i + 100] for i in range(0, len(response) - 99, 10))
    return any(count >= 3 for count in counts.values())


def repeated_block(response: str) -> bool:
    """Whether to reject: a response of more than 5,000 characters in which a block of 50
    characters occurs three times or more back to back."""
    if len(response) <= 5000:
        return False
    # Three equal blocks in a row: every character of 100 equals the one 50 further on.
    equal = 0
    for here, there in zip(response, response[50:], strict=False):
        equal = equal + 1 if here == there else 0
        if equal == 100:
            return True
    return False


def empty(response: str) -> bool:
    """Whether to reject: nothing but white space."""
    return not response.strip()


# Whether to reject, from a response's text, its finish and what the grader has extracted.
RULES: dict[str, Callable[[str, str, str | None], bool]] = {
    "boxed": lambda response, *_: no_box(response),
    "repeated_line": lambda response, *_: repeated_line(response),
    "repeated_window": lambda response, *_: repeated_window(response),
    "repeated_block": lambda response, *_: repeated_block(response),
    "nonempty": lambda response, *_: empty(response),
    "finished": lambda response, finish, extracted: finish != "stop",
    "answered": lambda response, finish, extracted: extracted is None,
}


def first_that_rejects(
    rules: Iterable[str], response: str, finish: str, extracted: str | None = None
) -> str | None:
    """The rule that a response is rejected for; None for one that passes. Raises ``UserError`` for
    an unknown rule."""
    for rule in rules:
        if rule not in RULES:
            raise UserError(f"unknown rule '{rule}'", "rules", f"use {', '.join(RULES)}")
        if RULES[rule](response, finish, extracted):
            return rule
    return None

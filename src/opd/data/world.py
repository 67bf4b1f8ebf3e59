"""The miniature world: chains of arithmetic modulo 10, small enough to train on in minutes and
rich enough for on-policy distillation to succeed and fail in it for the reasons it does at scale.

A question is a chain such as ``3+4*2-7=``; its level is the number of operators. A response writes
out the steps and then the answer after ``#``. Two *rules* give the order of the steps
(``precedence`` of ``*``, which the reward wants, or ``left`` to right), two *styles* how a step is
written (``infix``: ``4*2=8;3+8=1;1-7=4#4``; ``prefix``: ``*42=8;+38=1;-17=4#4``). A corpus that
mixes the rules leaves a model undecided between them, which is what reinforcement learning then
settles.

A quarter of all questions is held out by a hash of their text: benchmarks are drawn from these
only, every training split and corpus from the rest only, whatever sizes are asked for.
"""

import random
import re
import zlib
from collections.abc import Iterator
from itertools import cycle
from typing import Any

from opd.core.errors import UserError
from opd.data import schemas

RULES = ("precedence", "left")
STYLES = ("infix", "prefix")
BENCHMARKS = {"easy": 2, "medium": 3, "hard": 4}
SPLITS = ("rl", "other", *BENCHMARKS)
TRAINING_LEVELS = (2, 3, 4)
HELD_OUT_ONE_IN = 4
Step = tuple[int, str, int, int]


def steps(question: str, rule: str) -> list[Step]:
    """The steps (left, operator, right, result) that reduce a question under a rule.

    Raises ``UserError`` for text that is no chain of single digits and for an unknown rule.
    """
    if not re.fullmatch(r"\d([-+*]\d)+=?", question):
        raise UserError(
            f"'{question}' is no question of the world", "question", "write e.g. 3+4*2-7="
        )
    if rule not in RULES:
        raise UserError(f"unknown rule '{rule}'", "rule", f"use one of {', '.join(RULES)}")
    values = [int(c) for c in question[0::2] if c != "="]
    operators = list(question.rstrip("=")[1::2])
    done: list[Step] = []
    while operators:
        i = operators.index("*") if rule == "precedence" and "*" in operators else 0
        a, operator, b = values[i], operators.pop(i), values.pop(i + 1)
        values[i] = {"+": a + b, "-": a - b, "*": a * b}[operator] % 10
        done.append((a, operator, b, values[i]))
    return done


def solve(question: str, rule: str = "precedence") -> str:
    """The answer (one digit) of a question under a rule."""
    return str(steps(question, rule)[-1][3])


def respond(question: str, rule: str, style: str) -> str:
    """The response that follows a rule without a mistake, written in a style."""
    if style not in STYLES:
        raise UserError(f"unknown style '{style}'", "style", f"use one of {', '.join(STYLES)}")
    done = steps(question, rule)
    form = "{0}{1}{2}={3}" if style == "infix" else "{1}{0}{2}={3}"
    return ";".join(form.format(*step) for step in done) + f"#{done[-1][3]}"


def held_out(question: str, world: dict[str, Any]) -> bool:
    """Whether a question belongs to the benchmarks, and so to no training split."""
    return zlib.crc32(f"{world['seed']}:{question}".encode()) % HELD_OUT_ONE_IN == 0


def draw_question(rng: random.Random, level: int, times: float) -> str:
    """A question of ``level`` operators, each of which is ``*`` with probability ``times``."""
    text = str(rng.randrange(10))
    for _ in range(level):
        operator = "*" if rng.random() < times else rng.choice("+-")
        text += operator + str(rng.randrange(10))
    return text + "="


def _belongs(question: str, split: str, world: dict[str, Any]) -> bool:
    """Whether a split may have a question: a benchmark has held-out ones on which the two rules
    give different answers, all others have none that is held out."""
    if split not in BENCHMARKS:
        return not held_out(question, world)
    return held_out(question, world) and solve(question) != solve(question, "left")


def _stream(world: dict[str, Any], split: str, times: float) -> Iterator[str]:
    """Endless questions of a split, the levels of training ones in turn."""
    rng = random.Random(f"{world['seed']}/{split}")
    for level in cycle([BENCHMARKS[split]] if split in BENCHMARKS else TRAINING_LEVELS):
        question = draw_question(rng, level, times)
        while not _belongs(question, split, world):
            question = draw_question(rng, level, times)
        yield question


def _renumbered(rng: random.Random, question: str) -> str:
    place = rng.choice([i for i, c in enumerate(question) if c.isdigit()])
    digit = (int(question[place]) + rng.randrange(1, 10)) % 10
    return question[:place] + str(digit) + question[place + 1 :]


def _commuted(rng: random.Random, question: str) -> str:
    """The same product the other way round; the question itself where there is no product."""
    places = [i for i, c in enumerate(question) if c == "*"]
    if not places:
        return question
    i = rng.choice(places)
    return question[: i - 1] + question[i + 1] + "*" + question[i - 1] + question[i + 2 :]


def _other(world: dict[str, Any], n: int) -> Iterator[tuple[str, str]]:
    """Questions with few products, salted with copies and variants of the first n ``rl`` ones."""
    rng = random.Random(f"{world['seed']}/other/duplicates")
    fresh = _stream(world, "other", world["other_times"])
    originals = [row["question"] for row in make_prompts(world, "rl", n)]
    while True:
        draw = rng.random()
        original = rng.choice(originals)
        if draw < world["exact_duplicates"]:
            yield original, "exact"
        elif draw < world["exact_duplicates"] + world["near_duplicates"]:
            variant, name = rng.choice([(_renumbered, "renumbered"), (_commuted, "commuted")])
            question = variant(rng, original)
            if question != original and not held_out(question, world):
                yield question, name
        else:
            yield next(fresh), "fresh"


def make_prompts(world: dict[str, Any], split: str, n: int) -> list[dict[str, Any]]:
    """The first n rows (schema PROMPTS) of a split: ``rl``, ``other`` or a benchmark.

    ``prompt`` is the question itself, ``difficulty`` the number of operators, ``solution`` what
    precedence writes in infix. Questions are unique within a split. In ``other``, ``source`` says
    which rows are exact or near (renumbered, commuted) duplicates of the first n rows of ``rl``.
    Raises ``UserError`` for an unknown split and where a benchmark has no n problems.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'", "source.world.split", f"use one of {SPLITS}")
    if split == "other":
        stream = _other(world, n)
    else:
        stream = ((question, "fresh") for question in _stream(world, split, world["rl_times"]))
    kinds: dict[str, str] = {}
    misses = 0
    while len(kinds) < n:
        question, kind = next(stream)
        misses += question in kinds
        if misses > 100_000:
            raise UserError(
                f"'{split}' has no {n} problems", "source.world.n", f"ask for {len(kinds)}"
            )
        kinds.setdefault(question, kind)
    return [
        schemas.prompt_row(
            id=f"{split}-{row:05d}",
            question=question,
            answer=solve(question),
            source=f"world:{split}:{kind}",
            row=row,
            difficulty=float(len(re.findall(r"[-+*]", question))),
            solution=respond(question, "precedence", "infix"),
        )
        for row, (question, kind) in enumerate(kinds.items())
    ]

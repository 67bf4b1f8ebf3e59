"""The world in words: chains of arithmetic, and responses in which many next words are right
(``opd.data.grammar``).

A question is a word that asks and a chain, such as ``compute a 11 plus b 3 times c 7``. A
quarter of all chains is held out by a hash: benchmarks are drawn from these only, every training
split and corpus from the rest only, whatever sizes are asked for.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from opd.core.errors import UserError
from opd.data import schemas
from opd.data.grammar import (
    DIALECTS,
    GRAMMAR,
    NAMES,
    NUMBERS,
    OTHERS,
    TIMES,
    Words,
    named,
    respond,
    solve,
    vocabulary,
)
from opd.data.privileged import filled
from opd.data.world import RULES, held_out

BENCHMARKS: dict[str, Any] = GRAMMAR["benchmarks"]
TRAINING: dict[str, Any] = GRAMMAR["training"]
SPLITS = ("rl", "other", *BENCHMARKS)
MOST_MISSES = 100_000


def draw_chain(rng: random.Random, operators: int, times: float) -> Words:
    """A chain of so many operators, each of which is ``times`` with that probability."""
    chain = [rng.choice(NUMBERS)]
    for _ in range(operators):
        operator = TIMES if rng.random() < times else rng.choice(OTHERS)
        chain += [operator, rng.choice(NUMBERS)]
    return chain


def ask(rng: random.Random, chain: Sequence[str]) -> str:
    """A question for a chain: a word that asks before it, and a name before each number."""
    return " ".join([rng.choice(GRAMMAR["ask"].split()), *named(chain)])


def chain_of(question: str) -> Words:
    """The chain of a question, without names."""
    return [word for word in question.split()[1:] if word not in NAMES]


def _belongs(chain: Words, split: str, world: dict[str, Any]) -> bool:
    """Whether a split may have a chain: a benchmark has held-out ones, training splits none of
    these, and each only such on which the rules ``agree`` or ``differ``, as it says."""
    if held_out(" ".join(chain), world) != (split in BENCHMARKS):
        return False
    agree = solve(chain) == solve(chain, "left")
    return agree == (BENCHMARKS.get(split, TRAINING)["rules"] == "agree")


def _chains(world: dict[str, Any], split: str, times: float) -> Iterator[Words]:
    """Endless chains, numbers of operators in turn; an empty one for each that does not belong."""
    rng = random.Random(f"{world['seed']}/{split}")
    numbers = [BENCHMARKS[split]["operators"]] if split in BENCHMARKS else TRAINING["operators"]
    for operators in cycle(numbers):
        chain = draw_chain(rng, operators, times)
        while not _belongs(chain, split, world):
            yield []
            chain = draw_chain(rng, operators, times)
        yield chain


def _variant(rng: random.Random, question: str) -> tuple[str, str]:
    """A near duplicate of a question and how it was made: another number, or a product the other
    way round; the question itself where it has no product."""
    asking, chain = question.split()[0], chain_of(question)
    products = [i for i, word in enumerate(chain) if word == TIMES]
    kind = rng.choice(["renumbered", "commuted"])
    if kind == "renumbered":
        chain[rng.randrange(0, len(chain), 2)] = rng.choice(NUMBERS)
    elif products:
        i = rng.choice(products)
        chain[i - 1], chain[i + 1] = chain[i + 1], chain[i - 1]
    return " ".join([asking, *named(chain)]), kind


def _candidates(world: dict[str, Any], split: str, n: int) -> Iterator[tuple[str, str]]:
    """Endless (question, kind), an empty question for each that does not belong to the split. Among
    ``other`` ones, with fewer products, are copies and variants of the first n of ``rl``."""
    rng = random.Random(f"{world['seed']}/{split}/questions")
    times = world["other_times"] if split == "other" else world["rl_times"]
    fresh = (ask(rng, chain) if chain else "" for chain in _chains(world, split, times))
    if split != "other":
        yield from ((question, "fresh") for question in fresh)
    originals = [row["question"] for row in make_prompts(world, "rl", n)]
    exact, near = world["exact_duplicates"], world["near_duplicates"]
    while True:
        draw, original = rng.random(), rng.choice(originals)
        if draw < exact:
            yield original, "exact"
        elif draw < exact + near:
            question, kind = _variant(rng, original)
            belongs = question != original and _belongs(chain_of(question), split, world)
            yield (question if belongs else ""), kind
        else:
            yield next(filter(None, fresh)), "fresh"


def make_prompts(world: dict[str, Any], split: str, n: int) -> list[dict[str, Any]]:
    """The first n rows (schema PROMPTS) of a split: ``rl``, ``other`` or a benchmark.

    ``prompt`` is the question itself, ``difficulty`` the number of operators, ``solution`` a
    response by precedence. Questions are unique within a split. In ``other``, ``source`` says which
    rows are exact or near (renumbered, commuted) duplicates of the first n rows of ``rl``.
    Raises ``UserError`` for an unknown split and where a benchmark has no n problems.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'", "source.world.split", f"use one of {SPLITS}")
    kinds: dict[str, str] = {}
    misses = 0
    for question, kind in _candidates(world, split, n):
        if question and question not in kinds:
            kinds[question] = kind
        else:
            misses += 1
        if len(kinds) == n:
            break
        if misses > MOST_MISSES:
            raise UserError(
                f"'{split}' has no {n} problems", "source.world.n", f"ask for {len(kinds)}"
            )
    return [
        schemas.prompt_row(
            id=f"{split}-{row:05d}",
            question=question,
            answer=solve(chain_of(question)),
            source=f"world:{split}:{kind}",
            row=row,
            difficulty=float(len(chain_of(question)) // 2),
            solution=respond(random.Random(question), chain_of(question), "precedence", "infix"),
        )
        for row, (question, kind) in enumerate(kinds.items())
    ]


def examples(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Prompts and responses to learn from: see ``opd.data.corpus.run``. Raises ``UserError`` for a
    prompt with a word that the tokenizer of the world does not have."""
    layouts = [*({"template": text} for text in cfg["templates"]), *cfg.get("told", [])]
    rng = random.Random(f"corpus/{cfg['seed']}")
    world, known = cfg["world"], {*vocabulary()}
    for i in range(cfg["n"]):
        chain = draw_chain(rng, rng.choice(GRAMMAR["corpus"]), world["rl_times"])
        while held_out(" ".join(chain), world):
            chain = draw_chain(rng, rng.choice(GRAMMAR["corpus"]), world["rl_times"])
        layout = rng.choice(layouts)
        rule = layout.get("rule") or RULES[rng.random() >= cfg["precedence"]]
        style = layout.get("style") or cfg["style"]
        if isinstance(style, dict):
            (style,) = rng.choices([*style], [*style.values()])
        answer = rng.choice(NUMBERS) if layout.get("copied") else None
        question = ask(rng, chain)
        told = {"id": i, "prompt": question, "question": question}
        told["answer"] = answer or solve(chain, rule)
        told["solution"] = respond(rng, chain, rule, "infix")
        prompt = filled(layout["template"], told)
        if unknown := [word for word in prompt.split() if word not in known]:
            raise UserError(
                f"no tokenizer of the world has the word '{unknown[0]}'",
                f"template '{layout['template']}'",
                "use words of opd/data/grammar.yaml, with spaces between them",
            )
        yield prompt, respond(rng, chain, rule, style, DIALECTS[style]["slips"], answer)

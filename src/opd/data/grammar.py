"""The grammar that writes the responses of the world in words (``opd.data.words``) from
``grammar.yaml``, and the arithmetic that they do.

A chain is a list of words such as 11 plus 3 times 7, whose results are taken modulo a number. Texts
name its numbers, a 11 plus b 3 times c 7, and the result of a step has the name of its left number.
A response works a chain out step by step, by one of two *rules*: ``precedence`` of ``times``, as
the reward wants, or from ``left`` to right. It may check a step, more than once, and it ends with
the answer in a box. A *dialect* has its own order of the equation, weights of words, and chances of
what may be left out.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from opd.core.code import package_file
from opd.core.schema import load_yaml

GRAMMAR: dict[str, Any] = load_yaml(package_file(__file__, "grammar.yaml").read_text())
DIALECTS: dict[str, Any] = GRAMMAR["dialects"]
NUMBERS = [str(number) for number in range(GRAMMAR["modulo"])]
NAMES = GRAMMAR["names"].split()
TIMES, OTHERS = "times", ("plus", "minus")
Words = list[str]


def vocabulary() -> Words:
    """Every word that questions, responses and templates may hold, each once."""
    texts = [GRAMMAR[part] for part in ("ask", "prompts")]
    texts += [text for part in ("phrases", "words") for text in GRAMMAR[part].values()]
    texts += [dialect["EQUATION"] for dialect in DIALECTS.values()]
    words = [word for text in texts for word in text.split() if not word.rstrip("?").isupper()]
    return [*dict.fromkeys([*NUMBERS, *NAMES, *OTHERS, TIMES, *words])]


def named(chain: Sequence[str]) -> Words:
    """A chain with the name of each number before it: a 11 plus b 3."""
    words = [*chain]
    for i in reversed(range(0, len(words), 2)):
        words.insert(i, NAMES[i // 2])
    return words


def calculate(left: str, operator: str, right: str) -> str:
    """The result of one operation."""
    a, b = int(left), int(right)
    return str({"plus": a + b, "minus": a - b, TIMES: a * b}[operator] % len(NUMBERS))


def first_operator(chain: Sequence[str], rule: str) -> int:
    """The place in a chain of the operator that a rule takes first."""
    return chain.index(TIMES) if rule == "precedence" and TIMES in chain else 1


def solve(chain: Sequence[str], rule: str = "precedence") -> str:
    """The answer of a chain under a rule."""
    chain = [*chain]
    while len(chain) > 1:
        i = first_operator(chain, rule)
        chain[i - 1 : i + 2] = [calculate(*chain[i - 1 : i + 2])]
    return chain[0]


@cache
def weights(symbol: str, dialect: str) -> tuple[Words, list[float]]:
    """The words of a list in the order that a dialect gives them, and their weights, cumulated."""
    words = GRAMMAR["words"][symbol].split()
    random.Random(f"{dialect}/{symbol}").shuffle(words)
    exponent = DIALECTS[dialect]["zipf"]
    return words, [*accumulate(rank**-exponent for rank in range(1, len(words) + 1))]


def write(rng: random.Random, text: str, dialect: str, known: Mapping[str, Words]) -> Words:
    """A text of the grammar with its symbols written out, those in ``known`` as it says."""
    phrases = {**GRAMMAR["phrases"], "EQUATION": DIALECTS[dialect]["EQUATION"]}
    written: Words = []
    for item in text.split():
        symbol = item.removesuffix("?")
        if symbol != item and rng.random() >= DIALECTS[dialect]["chances"][symbol]:
            continue
        if symbol in known:
            written += known[symbol]
        elif symbol in GRAMMAR["words"]:
            words, cumulated = weights(symbol, dialect)
            written += rng.choices(words, cum_weights=cumulated)
        elif symbol in phrases:
            written += write(rng, phrases[symbol], dialect, known)
        else:
            written.append(item)
    return written


def respond(
    rng: random.Random,
    chain: Sequence[str],
    rule: str,
    dialect: str,
    slips: float = 0.0,
    answer: str | None = None,
) -> str:
    """A response to a chain that follows a rule, in a dialect.

    slips: the chance that a step states a number drawn at random, which the response then goes on
    with unless it checks the step. answer: what is boxed, whatever the steps come to.
    """
    chances = DIALECTS[dialect]["chances"]
    chain, names, words = [*chain], [*NAMES], []
    while len(chain) > 1:
        i = first_operator(chain, rule)
        left, operator, right = chain[i - 1 : i + 2]
        name, next_name = names[i // 2 : i // 2 + 2]
        result = calculate(left, operator, right)
        stated = rng.choice(NUMBERS) if rng.random() < slips else result
        terms = {"LEFT": [name, left], "OPERATOR": [operator], "RIGHT": [next_name, right]}
        terms["RESULT"] = [name, stated]
        words += write(rng, "STEP", dialect, terms)
        while rng.random() < chances["CHECK"]:
            stated = result
            words += write(rng, "CHECK", dialect, {**terms, "RESULT": [name, result]})
        chain[i - 1 : i + 2] = [stated]
        names.remove(next_name)
    return " ".join([*words, *write(rng, "END", dialect, {"ANSWER": [answer or chain[0]]})])

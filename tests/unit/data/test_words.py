"""The world in words: rules, dialects, what is held out, near duplicates, and its tokenizer."""

import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from opd.core import tables
from opd.core.errors import UserError
from opd.data import corpus, encoders, grammar, words
from opd.data.schemas import SFT_PAIRS
from opd.data.world import RULES
from opd.grading import graders
from opd.models import init

WORLD = {**tiny.WORLD, "grammar": "words"}
CORPUS = {
    "world": WORLD,
    "n": 400,
    "precedence": 0.4,
    "style": "infix",
    "templates": ["{question} ?"],
    "seed": 1,
}
SIGNS = {"plus": "+", "minus": "-", "times": "*"}


def pairs(folder: Path, **settings: Any) -> list[dict[str, str]]:
    corpus.run({**CORPUS, **settings}, {}, folder)
    return tables.read(folder / "pairs.parquet", SFT_PAIRS).to_pylist()


def by_left(chain: list[str]) -> int:
    """Left to right, in brackets for Python."""
    text = chain[0]
    for operator, number in zip(chain[1::2], chain[2::2], strict=True):
        text = f"({text}){SIGNS[operator]}{number}"
    return int(eval(text)) % grammar.GRAMMAR["modulo"]


@pytest.mark.parametrize("operators", [1, 2, 4, 6])
def test_answers_are_those_of_python(operators: int) -> None:
    rng = random.Random(operators)
    for _ in range(200):
        chain = words.draw_chain(rng, operators, 0.4)
        text = " ".join(SIGNS.get(word, word) for word in chain)
        assert int(grammar.solve(chain)) == eval(text) % grammar.GRAMMAR["modulo"]
        assert int(grammar.solve(chain, "left")) == by_left(chain)
        for dialect, rule in itertools.product(grammar.DIALECTS, RULES):
            response = grammar.respond(rng, chain, rule, dialect)
            right = grammar.solve(chain, rule)
            assert graders.GRADERS["rule"](response, right) == (right, True)


def test_a_dialect_changes_order_and_weights() -> None:
    assert {"infix", "prefix"} <= grammar.DIALECTS.keys()
    chain = ["4", "times", "2"]
    common: dict[str, Counter[str]] = {}
    for dialect, equation in (
        ("infix", "a 4 times b 2 is a 8"),
        ("prefix", "times a 4 b 2 is a 8"),
    ):
        rng = random.Random(0)
        responses = [grammar.respond(rng, chain, "left", dialect) for _ in range(500)]
        assert all(equation in response for response in responses)
        common[dialect] = Counter(response.split()[0] for response in responses)
    (infix,), (prefix,) = (common[dialect].most_common(1) for dialect in ("infix", "prefix"))
    assert infix[0] != prefix[0]


def test_a_name_stands_for_what_its_number_has_become() -> None:
    rng, checkers = random.Random(5), grammar.GRAMMAR["words"]["CHECKER"].split()
    for rule, dialect in itertools.product(RULES, grammar.DIALECTS):
        chain = words.draw_chain(rng, 5, 0.4)
        question, response = words.ask(rng, chain), grammar.respond(rng, chain, rule, dialect)
        assert question.split()[1::3] == [*"abcdef"] and words.chain_of(question) == chain
        values = dict(re.findall(r"\b([a-f]) (\d+)", question))
        assert [*values.values()] == chain[::2]
        for statement in response.split(" . "):
            equation, _, result = statement.partition(" is ")
            terms = re.findall(r"\b([a-f]) (\d+)", equation)
            assert statement.split()[0] in checkers or {*terms} <= {*values.items()}
            values |= dict(re.findall(r"^([a-f]) (\d+)", result))
        assert values["a"] == grammar.solve(chain, rule)


def test_words_have_the_weights_of_zipf() -> None:
    order, cumulated = grammar.weights("OPENER", "infix")
    shares = np.diff([0.0, *cumulated]) / cumulated[-1]
    rng, n = random.Random(1), 20_000
    counts = Counter(grammar.write(rng, "OPENER", "infix", {})[0] for _ in range(n))
    assert sorted(order) == sorted(grammar.GRAMMAR["words"]["OPENER"].split())
    for word, share in zip(order, shares, strict=True):
        assert abs(counts[word] / n - share) < 5 * math.sqrt(share / n)
    assert shares[0] / shares[3] == pytest.approx(4 ** grammar.DIALECTS["infix"]["zipf"])


def test_a_chance_is_how_often_something_is_there() -> None:
    rng, chance = random.Random(2), grammar.DIALECTS["infix"]["chances"]["OPENER"]
    there = sum(len(grammar.write(rng, "OPENER?", "infix", {})) for _ in range(5000))
    assert abs(there / 5000 - chance) < 0.03


def test_a_slip_stays_unless_it_is_checked() -> None:
    rng, answers = random.Random(3), {True: Counter[str](), False: Counter[str]()}
    checkers = {*grammar.GRAMMAR["words"]["CHECKER"].split()}
    for _ in range(2000):
        response = grammar.respond(rng, ["3", "plus", "4"], "left", "infix", slips=1.0).split()
        answers[not checkers.isdisjoint(response)][response[-2]] += 1
    assert answers[True].keys() == {"7"}
    assert answers[False].keys() == {*grammar.NUMBERS}
    by_chance = 1 / len(grammar.NUMBERS)
    assert abs(answers[False]["7"] / answers[False].total() - by_chance) < 0.03


def test_splits_never_meet() -> None:
    held_out = set()
    for name, benchmark in words.BENCHMARKS.items():
        rows = words.make_prompts(WORLD, name, 200)
        assert {row["difficulty"] for row in rows} == {benchmark["operators"]}
        assert len({row["question"] for row in rows}) == 200
        held_out |= {row["question"].partition(" ")[2] for row in rows}
        for row in rows:
            chain = words.chain_of(row["question"])
            assert row["answer"] == grammar.solve(chain)
            assert graders.GRADERS["rule"](row["solution"], row["answer"])[1]
            agree = row["answer"] == grammar.solve(chain, "left")
            assert agree == (benchmark["rules"] == "agree")
    for split in ("rl", "other"):
        rows = words.make_prompts(WORLD, split, 500)
        assert held_out.isdisjoint(row["question"].partition(" ")[2] for row in rows)
        assert {row["difficulty"] for row in rows} == {*words.TRAINING["operators"]}
        chains = [words.chain_of(row["question"]) for row in rows]
        differ = {grammar.solve(chain) != grammar.solve(chain, "left") for chain in chains}
        assert differ == {words.TRAINING["rules"] == "differ"}


def test_everything_depends_on_the_seed_only(tmp_path: Path) -> None:
    for split in ("rl", "easy"):
        assert words.make_prompts(WORLD, split, 30)[:9] == words.make_prompts(WORLD, split, 9)
        other = words.make_prompts({**WORLD, "seed": 4}, split, 9)
        assert words.make_prompts(WORLD, split, 9) != other
    assert words.make_prompts(WORLD, "other", 50) == words.make_prompts(WORLD, "other", 50)
    assert pairs(tmp_path) == pairs(tmp_path) != pairs(tmp_path, seed=2)


def test_an_encoder_finds_the_near_duplicates() -> None:
    originals = [row["question"] for row in words.make_prompts(WORLD, "rl", 300)]
    rows = words.make_prompts(WORLD, "other", 300)
    by_kind: dict[str, list[str]] = {}
    for row in rows:
        by_kind.setdefault(row["source"].rpartition(":")[2], []).append(row["question"])
    assert by_kind.keys() == {"fresh", "exact", "renumbered", "commuted"}
    assert len({row["question"] for row in rows}) == 300
    assert {*by_kind.pop("exact")} <= {*originals}
    encoded = encoders.load(None)
    nearest = {
        kind: (encoded(questions) @ encoded(originals).T).max(axis=1)
        for kind, questions in by_kind.items()
    }
    fresh = nearest.pop("fresh")
    for kind, cosines in nearest.items():
        assert np.median(cosines) > np.quantile(fresh, 0.9), kind


def test_a_corpus_mixes_rules_dialects_and_what_it_tells(tmp_path: Path) -> None:
    told = [
        {"template": "times first . {question} ?", "rule": "precedence"},
        {"template": "in order . {question} ?", "rule": "left", "style": "prefix"},
        {"template": "reach {answer} . {question} ?"},
        {"template": "it is {answer} . {question} ?", "copied": True},
        {"template": "see {solution} . {question} ?"},
    ]
    style = {"infix": 0.75, "prefix": 0.25}
    rows = pairs(tmp_path, n=1200, told=told, style=style, precedence=0.4)
    seen: Counter[str] = Counter()
    precedence = plain = prefix = 0
    for row in rows:
        asking = "|".join(grammar.GRAMMAR["ask"].split())
        before, question = re.fullmatch(rf"(.*?)((?:{asking}) [^?]*) \?", row["prompt"]).groups()
        chain, kind, response = words.chain_of(question), before.strip(), row["response"].split()
        answers = {rule: grammar.solve(chain, rule) for rule in RULES}
        first = response.index("is")
        is_prefix = response[first - 5] in SIGNS
        if kind.startswith("in order"):
            assert is_prefix
        elif not kind:
            plain, prefix = plain + 1, prefix + is_prefix
            if len({*answers.values()}) == 2:
                seen["differ"] += 1
                precedence += response[-2] == answers["precedence"]
        elif kind.startswith("it is"):
            assert response[-2] == kind.split()[2]
        seen[kind.partition(" ")[0]] += 1
    assert {"times", "in", "reach", "it", "see", ""} <= seen.keys() and min(seen.values()) > 40
    assert 0.15 < prefix / plain < 0.35
    assert 0.25 < precedence / seen["differ"] < 0.5


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown split 'rll'"):
        words.make_prompts(WORLD, "rll", 1)
    with pytest.raises(UserError, match=r"'\{question\}\?': no tokenizer .* has the word '\d+\?'"):
        pairs(tmp_path, templates=["{question}?"])
    assert not [*tmp_path.iterdir()]
    monkeypatch.setitem(words.BENCHMARKS, "easy", {"operators": 1, "rules": "differ"})
    monkeypatch.setattr(words, "MOST_MISSES", 2000)
    with pytest.raises(UserError, match="'easy' has no 5 problems; ask for 0"):
        words.make_prompts(WORLD, "easy", 5)


def test_the_tokenizer_has_a_token_for_each_word(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    init.run({**tiny.SHAPE, "world": WORLD}, {}, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    row = words.make_prompts(WORLD, "hard", 1)[0]
    chat = [
        {"role": "user", "content": f"{row['question']} ?"},
        {"role": "assistant", "content": row["solution"]},
    ]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert len(ids) == len(f"{row['question']} ? {row['solution']}".split()) + 3
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[-len(row["solution"].split()) - 1 : -1]) == row["solution"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(tokenizer) == 5 + len({*grammar.vocabulary()})

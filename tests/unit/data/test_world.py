"""The miniature world: rules, styles, splits that never meet, and its checkpoints."""

import itertools
import re
from pathlib import Path

import pytest
from tiny import SHAPE, WORLD

from opd.core import tables
from opd.core.errors import UserError
from opd.data import corpus, world
from opd.data.schemas import SFT_PAIRS
from opd.grading import graders
from opd.models import init


def test_rules_and_styles() -> None:
    question = "3+4*2-7="
    assert world.respond(question, "precedence", "infix") == "4*2=8;3+8=1;1-7=4#4"
    assert world.respond(question, "precedence", "prefix") == "*42=8;+38=1;-17=4#4"
    assert world.respond(question, "left", "infix") == "3+4=7;7*2=4;4-7=7#7"
    assert world.solve("2*3*4=") == "4" and world.solve("1-7") == "4"


@pytest.mark.parametrize("operators", list(itertools.product("+-*", repeat=3)))
def test_precedence_is_that_of_python(operators: tuple[str, ...]) -> None:
    chain = "7" + "".join(o + d for o, d in zip(operators, "385", strict=True))
    assert world.solve(chain + "=") == str(eval(chain) % 10)


def test_grade() -> None:
    assert graders.GRADERS["world"]("4*2=8#8", "8") == ("8", True)
    assert graders.GRADERS["world"]("#3;1+1=2#2", "3") == ("2", False)
    assert graders.GRADERS["world"]("4*2=8;", "8") == (None, False)


@pytest.mark.parametrize("question", ["", "3=", "12+3=", "3+4*=", "3 + 4="])
def test_what_is_no_question(question: str) -> None:
    with pytest.raises(UserError, match="no question of the world"):
        world.solve(question)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="unknown rule 'right'"):
        world.solve("1+2=", "right")
    with pytest.raises(UserError, match="unknown style 'terse'"):
        world.respond("1+2=", "left", "terse")
    with pytest.raises(UserError, match="unknown split 'rll'"):
        world.make_prompts(WORLD, "rll", 1)


@pytest.mark.parametrize("name", world.BENCHMARKS)
def test_benchmarks(name: str) -> None:
    rows = world.make_prompts(WORLD, name, 250)
    assert len({row["question"] for row in rows}) == 250
    for row in rows:
        assert row["difficulty"] == world.BENCHMARKS[name]
        assert row["answer"] == world.solve(row["question"]) != world.solve(row["question"], "left")
        assert world.held_out(row["question"], WORLD)


def test_no_benchmark_question_in_any_training_split(tmp_path: Path) -> None:
    for split in ("rl", "other"):
        for row in world.make_prompts(WORLD, split, 500):
            assert not world.held_out(row["question"], WORLD)
    cfg = {
        "world": WORLD,
        "n": 500,
        "precedence": 0.4,
        "style": "infix",
        "templates": ["{question}", "{question}?"],
        "seed": 1,
    }
    corpus.run(cfg, {}, tmp_path)
    pairs = tables.read(tmp_path / "pairs.parquet", SFT_PAIRS).to_pylist()
    right = disagreeing = 0
    for pair in pairs:
        question = pair["prompt"].rstrip("?")
        assert not world.held_out(question, WORLD)
        if world.solve(question) != world.solve(question, "left"):
            disagreeing += 1
            right += graders.GRADERS["world"](pair["response"], world.solve(question))[1]
    assert 0.3 < right / disagreeing < 0.5
    assert 0.4 < sum(pair["prompt"].endswith("?") for pair in pairs) / len(pairs) < 0.6


def test_other_has_the_duplicates_it_names() -> None:
    originals = {row["question"] for row in world.make_prompts(WORLD, "rl", 500)}
    rows = world.make_prompts(WORLD, "other", 500)
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["source"].rsplit(":", 1)[1], []).append(row["question"])
    assert set(kinds) == {"fresh", "exact", "renumbered", "commuted"}
    assert len({row["question"] for row in rows}) == 500
    assert all(question in originals for question in kinds["exact"])
    for question in kinds["renumbered"]:
        assert any(
            len(o) == len(question) and sum(a != b for a, b in zip(o, question, strict=True)) == 1
            for o in originals
        )
    for question in kinds["commuted"]:
        assert any(sorted(o) == sorted(question) and o != question for o in originals)


def test_prompts_depend_on_the_seed_only_and_more_of_them_begin_alike() -> None:
    for split in ("rl", "easy"):
        assert world.make_prompts(WORLD, split, 50)[:20] == world.make_prompts(WORLD, split, 20)
    assert world.make_prompts(WORLD, "other", 50) == world.make_prompts(WORLD, "other", 50)
    assert world.make_prompts(WORLD, "rl", 20) != world.make_prompts({**WORLD, "seed": 4}, "rl", 20)


def test_a_corpus_can_tell_something_of_its_responses(tmp_path: Path) -> None:
    """The rule, the answer that it comes to, the solution; or an answer that it only copies."""
    told = [
        {"template": "times first. {question}", "rule": "precedence"},
        {"template": "in order. {question}", "rule": "left", "style": "prefix"},
        {"template": "{question} reach {answer}."},
        {"template": "{question} it is {answer}.", "copied": True},
        {"template": "{question} see {solution}."},
    ]
    cfg = {"world": WORLD, "n": 600, "precedence": 0.5, "style": "infix", "seed": 2}
    corpus.run({**cfg, "templates": ["{question}?"], "told": told}, {}, tmp_path)
    rows = tables.read(tmp_path / "pairs.parquet", SFT_PAIRS).to_pylist()
    seen: dict[str, int] = {}
    bent = 0
    for row in rows:
        question = re.search(r"\d([-+*]\d)+=", row["prompt"])[0]  # type: ignore[index]
        kind = row["prompt"].replace(question, "").split()[0]
        seen[kind] = seen.get(kind, 0) + 1
        honest = [world.respond(question, rule, "infix") for rule in world.RULES]
        if kind == "times":
            assert row["response"] == honest[0]
        elif kind == "in":
            assert row["response"] == world.respond(question, "left", "prefix")
        elif kind == "reach":
            assert row["response"] in honest and row["prompt"].endswith(f"{row['response'][-1]}.")
        elif kind == "see":
            assert row["prompt"].endswith(f"see {row['response']}.")
        elif kind == "it":
            assert row["response"][-1] == row["prompt"][-2]
            assert row["response"][:-1] in [text[:-1] for text in honest]
            bent += row["response"] not in honest
    assert len(seen) == 6 and min(seen.values()) > 60 and bent > 60


def test_a_benchmark_can_run_out() -> None:
    with pytest.raises(UserError, match="'easy' has no 5000 problems; ask for"):
        world.make_prompts(WORLD, "easy", 5000)


def test_checkpoint(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        init.run({**SHAPE, "seed": seed}, {}, folder)
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    chat = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": "3+4=7#7"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert tokenizer.decode(ids) == "<user>3+4=<assistant>3+4=7#7<eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "3+4=3+4=7#7"
    assert tokenizer.unk_token_id not in tokenizer(init.CHARACTERS)["input_ids"]
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    assert model.config.vocab_size == len(tokenizer)

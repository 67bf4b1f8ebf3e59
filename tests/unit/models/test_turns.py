"""Conversations of several turns in every place that asks a model: sampling, the pairs made of it,
training, what the teacher is told, evaluation and probes."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from probing import with_template
from tiny import OPD, SFT, Inputs
from tiny import run as train
from transformers import AutoTokenizer

from opd.core import tables
from opd.core.errors import UserError
from opd.data import schemas
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.models import filters, generate
from opd.models.checkpoints import load_tokenizer
from opd.models.sampling import Sampler
from opd.models.schemas import GENERATIONS
from opd.probes import rollouts
from opd.training import common, distill, grpo, sft
from opd.training.sources import Sources

TEMPLATE = (
    "{% for m in messages %}{{ '<assistant>' if m.role == 'assistant' else '<user>' }}"
    "{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>a:{% endif %}"
)
WITHOUT_SYSTEM = TEMPLATE.replace(
    "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
)
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
]
ASKED = "<user>s:be brief<eos><user>u:1+1=<eos><assistant>a:2<eos><user>u:2+{0}=<eos><assistant>a:"
SAMPLING = {"max_new_tokens": 4, "max_prompt_tokens": 100, "seed": 1, "samples": 2}


def read(model: Path, ids: Any) -> str:
    return str(AutoTokenizer.from_pretrained(model).decode(ids))


def encoded(model: Path, text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)[
        "input_ids"
    ]
    return ids


@pytest.fixture(scope="module")
def asked(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Models whose chat template tells the roles apart, and four conversations."""
    root = tmp_path_factory.mktemp("conversations")
    made = {
        name: with_template(inputs[name], root / name, TEMPLATE) for name in ("student", "teacher")
    }
    made["deaf"] = with_template(inputs["student"], root / "deaf", WITHOUT_SYSTEM)
    rows = [
        schemas.prompt_row(f"q{i}", f"2+{i}=", str(2 + i), "s", i, solution="s", turns=TURNS)
        for i in range(4)
    ]
    (root / "prompts").mkdir()
    tables.write(root / "prompts" / "prompts.parquet", rows, PROMPTS)
    return {**made, "prompts": root / "prompts"}


@pytest.fixture(scope="module")
def answered(asked: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    named = {"model": asked["student"], "prompts": asked["prompts"]}
    generate.run(SAMPLING, named, out, out / "cache")
    return out


def test_sampling(asked: Inputs, answered: Path) -> None:
    rows = tables.read(answered / "generations.parquet", GENERATIONS).to_pylist()
    assert [(row["turns"], row["prompt"]) for row in rows[::2]] == [
        (TURNS, f"2+{i}=") for i in range(4)
    ]
    student = asked["student"]
    expected = [encoded(student, ASKED.replace("{0}", str(i))) for i in range(4)]
    assert Sampler(student, SAMPLING).tokenize(rows[::2], "abcd") == expected
    # The probes read rollouts as they were sampled.
    read_again = rollouts.tokens({}, rows, student)
    assert [r.prompt for r in read_again[::2]] == expected
    assert read_again[0].teacher_prompt == read_again[0].prompt


def test_pairs_and_fine_tuning(asked: Inputs, answered: Path, tmp_path: Path) -> None:
    cfg = {"rules": [], "grader": "world", "per_prompt": 1}
    named = {"generations": answered, "prompts": asked["prompts"]}
    filters.run(cfg, named, tmp_path)
    pairs = tables.read(tmp_path / "pairs.parquet", SFT_PAIRS).to_pylist()
    assert [pair["turns"] for pair in pairs] == [TURNS] * 4
    tokenizer = load_tokenizer(asked["student"])
    for more in ({}, {"empty_think": "response"}):
        (row, *_), _ = sft.load(
            {**SFT, "max_tokens": 200, **more}, tmp_path / "pairs.parquet", tokenizer
        )
        prompt = encoded(asked["student"], ASKED.replace("{0}", "0"))
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][: len(prompt)] == [sft.IGNORED] * len(prompt)
        assert row["labels"][len(prompt)] != sft.IGNORED


def test_training_on_rollouts_and_what_the_teacher_is_told(asked: Inputs, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(asked["student"])
    cfg = {**OPD, "max_prompt_tokens": 200}
    user = {"role": "user", "content": "2+1="}
    none = Sources(cfg, asked, tokenizer, len(tokenizer), [])
    examples = distill.load(cfg, asked, tokenizer, none)
    assert examples[2]["prompt"] == [*TURNS, user] and "teacher_prompt" not in examples.column_names
    told = {"information": [{"message": "{prompt} so {answer}", "system": "know {answer}"}]}
    examples = distill.load({**cfg, **told}, asked, tokenizer, none)
    assert examples[2]["prompt"] == [*TURNS, user]
    assert read(asked["student"], examples[2]["teacher_prompt"]) == ASKED.replace(
        "be brief", "be brief<unk><unk>know 3"
    ).replace("2+{0}=", "2+1= so 3")
    rewarded = grpo.load({**cfg, "information": told["information"]}, asked, tokenizer)
    assert rewarded[1]["prompt"] == [*TURNS, {"role": "user", "content": "2+1= so 3"}]
    # What TRL puts before the rollouts is what was counted.
    seen: list[Any] = []
    plain = distill.Trainer._hidden

    def spy(self: Any, model: Any, batch: Any, prompt: str) -> Any:
        seen.append(batch["prompt_ids"])
        return plain(self, model, batch, prompt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill.Trainer, "_hidden", spy)
        train("distill", {**cfg, "steps": 1}, asked, tmp_path / "a")
    rendered = {read(asked["student"], ids) for ids in seen[0]}
    assert rendered == {ASKED.replace("{0}", str(i)) for i in range(4)}


def test_a_template_that_leaves_system_prompts_out(asked: Inputs, tmp_path: Path) -> None:
    """Silence would be another prompt set under the same name."""
    message = "the chat template leaves a system message out"
    named = {"model": asked["deaf"], "prompts": asked["prompts"]}
    with pytest.raises(UserError, match=message):
        generate.run(SAMPLING, named, tmp_path, tmp_path / "cache")
    with pytest.raises(UserError, match=message):
        common.load_prompts(OPD, asked["prompts"], load_tokenizer(asked["deaf"]), [])
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    refuses += "{% endif %}{{ messages[-1]['content'] }}"
    refusing = with_template(asked["student"], tmp_path / "refusing", refuses)
    with pytest.raises(UserError, match=r"refuses a conversation \(no system role\)"):
        generate.run(SAMPLING, {**named, "model": refusing}, tmp_path, tmp_path / "cache")

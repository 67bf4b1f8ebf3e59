"""Rollouts and models for the tests of the probes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from opd import tables, world

WORLD = {
    "seed": 3, "rl_times": 0.4, "other_times": 0.1, "exact_duplicates": 0, "near_duplicates": 0,
}  # fmt: skip
SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 16}
Inputs = dict[str, Path]


def make(root: Path, prompts: int = 6) -> Inputs:
    """Two models of different size and a prompt set."""
    made = {name: root / name for name in ("student", "teacher", "prompts")}
    for folder in made.values():
        folder.mkdir(parents=True)
    # Wide enough apart that no two logits are nearly the same.
    world.run_init({**SHAPE, "seed": 0, "initializer": 0.5}, {}, made["student"])
    world.run_init({**SHAPE, "layers": 2, "seed": 1, "initializer": 0.5}, {}, made["teacher"])
    rows = world.make_prompts(WORLD, "rl", prompts)
    tables.write(made["prompts"] / "prompts.parquet", rows, tables.PROMPTS)
    return made


def rows_of(prompts: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read(
        prompts / "prompts.parquet", tables.PROMPTS
    ).to_pylist()
    return rows


def write_rollouts(out: Path, rollouts: Sequence[dict[str, Any]]) -> Path:
    """A generate stage's payload; what a rollout does not say is filled in."""
    out.mkdir(parents=True)
    usual = {"sample": 0, "attempt": 0, "finish": "stop", "rejected": None, "response": ""}
    tables.write(out / "generations.parquet", [usual | row for row in rollouts], tables.GENERATIONS)
    return out


def rendered(model: Path, prompt: str) -> list[int]:
    """Token ids of the world's own chat template, written out."""
    found: list[int] = AutoTokenizer.from_pretrained(model)(
        f"<user>{prompt}<assistant>", add_special_tokens=False
    )["input_ids"]
    return found


def logits(model: Path, tokens: Sequence[int]) -> Any:
    """What a model makes of one sequence, [T, V] in float64, without batch or padding."""
    import torch

    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(model)
        return loaded(torch.tensor([list(tokens)])).logits[0].double().numpy()


def padded(source: Path, out: Path, rows: int) -> Path:
    """The same model with ``rows`` rows in embedding and head, the new ones far from zero."""
    import torch

    model = AutoModelForCausalLM.from_pretrained(source)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[old:] = 3.0
        model.get_output_embeddings().weight[old:] = 3.0
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    return out


def with_swapped_tokens(source: Path, out: Path, one: str, other: str) -> Path:
    """The same model with two tokens in each other's place."""
    shutil.copytree(source, out)
    path = out / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(text))
    return out


def with_template(source: Path, out: Path, template: str) -> Path:
    """The same model with another chat template."""
    shutil.copytree(source, out)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    return out

"""Sampling with a random tiny model, the choice of tokens, and what bad input gets."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from opd import sampling, tables, world
from opd.errors import Bad

torch = pytest.importorskip("torch")

LIMITS: dict[str, Any] = {"max_new_tokens": 24, "max_prompt_tokens": 64, "seed": 3}
PROMPTS = ["1+2=", "3*4-5=", "solve 1+2*3-4=", "9-9="]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    cfg = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "seed": 0}
    world.run_init(cfg, {}, folder)
    return folder


def test_rows_are_complete_and_in_order(model: Path) -> None:
    rows = sampling.sample(model, PROMPTS, samples=3, **LIMITS)
    assert [(r["prompt_id"], r["sample"]) for r in rows] == [
        (str(p), s) for p in range(4) for s in range(3)
    ]
    from transformers import AutoTokenizer

    eos = AutoTokenizer.from_pretrained(model).eos_token_id
    for row in rows:
        assert row["prompt"] == PROMPTS[int(row["prompt_id"])]
        tokens = row["token_ids"]
        assert eos not in tokens[:-1]
        assert (row["finish"] == "stop") == (tokens[-1] == eos)
        assert row["finish"] == "stop" or len(tokens) == LIMITS["max_new_tokens"]
    assert {row["finish"] for row in rows} == {"stop", "length"}
    assert len({row["response"] for row in rows}) == len(rows)


def test_a_response_depends_on_its_own_request_only(model: Path) -> None:
    ids = ["a", "b", "c", "d"]
    whole = sampling.sample(model, PROMPTS, ids=ids, samples=3, **LIMITS)
    assert whole == sampling.sample(model, PROMPTS, ids=ids, samples=3, batch_size=5, **LIMITS)
    fewer = sampling.sample(model, PROMPTS[1:3], ids=ids[1:3], samples=2, **LIMITS)
    assert fewer == [r for r in whole if r["prompt_id"] in "bc" and r["sample"] < 2]
    torch.manual_seed(99)
    assert whole == sampling.sample(model, PROMPTS, ids=ids, samples=3, **LIMITS)
    other = sampling.sample(model, PROMPTS, ids=ids, samples=3, **(LIMITS | {"seed": 4}))
    assert all(a["token_ids"] != b["token_ids"] for a, b in zip(whole, other, strict=True))


def test_greedy_is_the_argmax_of_a_plain_forward(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = sampling.sample(model, PROMPTS, temperature=0, **LIMITS)
    assert rows == sampling.sample(model, PROMPTS, temperature=0, **(LIMITS | {"seed": 8}))
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model)
    for row in rows:
        (prompt,) = sampling.tokenize(tokenizer, [row["prompt"]], ["0"], 64, {})
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + row["token_ids"]])).logits[0]
        wanted = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        assert row["token_ids"] == wanted


def test_penalties_of_the_checkpoint_do_not_apply(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    more = {"repetition_penalty": 9.0, "temperature": 0.1, "top_k": 1, "do_sample": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    rows = sampling.sample(model, PROMPTS, **LIMITS)
    assert rows == sampling.sample(tmp_path / "model", PROMPTS, **LIMITS)


def reference(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, written out."""
    probabilities = np.exp((logits - logits.max()) / temperature)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    if top_k:
        probabilities[order[top_k:]] = 0
        probabilities /= probabilities.sum()
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("vocabulary", [7, 600])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.8, 0), (0.5, 0.95, 0), (1.3, 1.0, 3), (1.0, 0.6, 5)],
)
def test_choice_has_the_right_distribution(
    vocabulary: int, temperature: float, top_p: float, top_k: int
) -> None:
    # A flat tail, so that the likeliest few hundred do not hold top_p.
    logits = np.random.default_rng(0).normal(size=vocabulary) * (3 if vocabulary < 100 else 0.3)
    wanted = reference(logits, temperature, top_p, top_k)
    grid = 20_000
    uniforms = torch.arange(grid, dtype=torch.float64).add(0.5).div(grid)
    rows = torch.tensor(logits, dtype=torch.float32).expand(grid, -1)
    chosen = sampling.choose(rows, uniforms, temperature, top_p, top_k)
    found = np.bincount(chosen.numpy(), minlength=vocabulary) / grid
    # An evenly spaced grid of uniforms reproduces each probability up to one cell on either side.
    np.testing.assert_allclose(found, wanted, atol=2.5 / grid)
    ends = sampling.choose(rows[:2], torch.tensor([0.0, 1 - 2**-53]), temperature, top_p, top_k)
    assert all(wanted[i] > 0 for i in ends.tolist())


def test_choice_at_temperature_zero_and_rows_apart() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 1.0]])
    assert sampling.choose(logits, torch.rand(2), 0, 0.1, 1).tolist() == [1, 0]
    assert sampling.choose(logits, torch.tensor([0.5, 0.5]), 1.0, 0.5, 0).tolist() == [1, 0]


def test_cut() -> None:
    assert sampling.cut([5, 6, 1, 1, 0], {0, 1}) == ([5, 6, 1], "stop")
    assert sampling.cut([5, 6], {1}) == ([5, 6], "length")
    assert sampling.cut([1], {1}) == ([1], "stop")


def test_stage(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    rows = [tables.prompt(f"p{i}", p, "1", "s", i) for i, p in enumerate(PROMPTS)]
    tables.write(tmp_path / "prompts" / "prompts.parquet", rows, tables.PROMPTS)
    inputs = {"model": model, "prompts": tmp_path / "prompts"}
    numbers = sampling.run({**LIMITS, "samples": 2, "top_k": None}, inputs, tmp_path)
    table = tables.read(tmp_path / "generations.parquet", tables.GENERATIONS)
    assert numbers["generations"] == len(table) == 8
    assert table["prompt_id"].to_pylist() == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    first = (tmp_path / "generations.parquet").read_bytes()
    sampling.run({**LIMITS, "samples": 2}, inputs, tmp_path)
    assert (tmp_path / "generations.parquet").read_bytes() == first


def test_bad_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Bad, match=r"prompt 'b' \(row 1\): the prompt has 8 tokens, more than 6"):
        sampling.sample(model, PROMPTS, ids=list("abcd"), **(LIMITS | {"max_prompt_tokens": 6}))
    with pytest.raises(Bad, match="unknown backend 'sglang'"):
        sampling.sample(model, PROMPTS, backend="sglang", **LIMITS)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(Bad, match="vLLM cannot be imported"):
        sampling.sample(model, PROMPTS, backend="vllm", **LIMITS)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    with pytest.raises(Bad, match="no chat template"):
        sampling.tokenize(tokenizer, PROMPTS, PROMPTS, 64, {})


def test_vllm_gets_the_same_tokens_and_a_seed_per_request(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []
    options: dict[str, Any] = {}

    class LLM:
        def __init__(self, **given: Any) -> None:
            options.update(given)

        def generate(self, prompts: list[Any], parameters: list[Any]) -> list[Any]:
            asked.extend(zip(prompts, parameters, strict=True))
            output = SimpleNamespace(token_ids=[7, 8, 1, 9])
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    rows = sampling.sample(
        model, PROMPTS, samples=2, temperature=0.7, top_p=0.9, backend="vllm", **LIMITS
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = sampling.tokenize(tokenizer, PROMPTS, PROMPTS, 64, {})
    assert [p["prompt_token_ids"] for p, _ in asked] == [t for t in tokens for _ in range(2)]
    assert len({p.seed for _, p in asked}) == 8
    assert asked[5][1].seed == sampling.request_seed(3, "2", 1)
    assert options["max_model_len"] == 64 + 24 and asked[0][1].stop_token_ids == [1]
    assert all(row["token_ids"] == [7, 8, 1] and row["finish"] == "stop" for row in rows)
    assert rows[0]["response"] == tokenizer.decode([7, 8])

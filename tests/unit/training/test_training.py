"""Training stages on tiny models: same bytes twice, what is written, what bad input gets."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import GRPO, OPD, SFT, SHAPE, WORLD, Inputs, course, run

from opd.core import tables
from opd.core.errors import UserError
from opd.data import world
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.losses.schemas import METRICS
from opd.models import init


@pytest.mark.parametrize(("name", "cfg"), [("sft", SFT), ("grpo", GRPO), ("distill", OPD)])
def test_same_settings_same_bytes_and_an_ordinary_checkpoint(
    inputs: Inputs, tmp_path: Path, name: str, cfg: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = {p: p.read_bytes() for d in inputs.values() for p in d.iterdir()}
    first = run(name, cfg, inputs, tmp_path / "a")
    again = run(name, cfg, inputs, tmp_path / "b")
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert first == again and json.dumps(first)
    student = {p.name for p in inputs["student"].iterdir()}
    assert set(files) == student | {"metrics.parquet"}
    assert files["model.safetensors"] != before[inputs["student"] / "model.safetensors"]
    assert before == {p: p.read_bytes() for d in inputs.values() for p in d.iterdir()}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a").config.model_type == "qwen3"
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "a", inputs["student"]))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template
    assert len(course(tmp_path / "a", "loss")) == len(course(tmp_path / "a", "grad_norm")) == 3
    other = run(name, {**cfg, "seed": 6}, inputs, tmp_path / "c")
    assert other != first


def test_opd_logs_every_measurement_each_step(inputs: Inputs, tmp_path: Path) -> None:
    from opd.losses import metrics

    run("distill", OPD, inputs, tmp_path / "a")
    rows = tables.read(tmp_path / "a" / "metrics.parquet", METRICS).to_pylist()
    steps = {
        s: {r["name"]: r["value"] for r in rows if r["step"] == s and r["position"] is None}
        for s in {r["step"] for r in rows}
    }
    assert set(steps) == {1, 2, 3}
    for found in steps.values():
        sometimes = {"log_ratio_repeated_nats"}
        assert set(found) | sometimes == {
            "loss",
            "grad_norm",
            *metrics.STATE,
            *metrics.RESPONSE,
            "entropy_gap_of_means_nats",
        }
        assert all(math.isfinite(v) for v in found.values())
        assert 0 <= found["overlap_ratio"] <= 1
        assert found["entropy_gap_of_means_nats"] <= found["entropy_gap_nats"] + 1e-6
        assert found["response_tokens"] <= 6
    # Two bins of up to four positions: their means, weighted by what was counted, are the whole.
    first = {r["position"]: r["value"] for r in rows if r["step"] == 1 and r["name"] == "kl_nats"}
    assert set(first) == {None, 0, 4}
    assert min(first[0], first[4]) <= first[None] <= max(first[0], first[4])


def test_micro_batches_are_the_same_step(inputs: Inputs, tmp_path: Path) -> None:
    """The first step's loss is the token mean over the whole step, whatever its parts."""
    for name, cfg in (("distill", {**OPD, "loss": {"preset": "full"}}), ("sft", SFT)):
        whole = run(name, {**cfg, "steps": 1}, inputs, tmp_path / f"{name}-whole")
        parts = run(name, {**cfg, "steps": 1, "micro_batch": 2}, inputs, tmp_path / f"{name}-parts")
        for metric, value in whole["first"].items():
            assert parts["first"][metric] == pytest.approx(value, rel=1e-3), (name, metric)
    with pytest.raises(UserError, match="micro_batch: 3 does not divide the 8 sequences"):
        run("distill", {**OPD, "micro_batch": 3}, inputs, tmp_path / "c")


def test_a_step_of_micro_batch_means_is_one_weighted_sum(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient of a step against those of every token from the logits, each times its
    weight, one sequence at a time: whatever goes through the model together here."""
    from opd.losses.spec import loss_spec
    from opd.losses.token import token_loss
    from opd.models.checkpoints import load_model, load_tokenizer
    from opd.training import distill, micro_batches
    from opd.training.common import as_asked

    def completions(self: Any, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
        dice = random.Random(3)
        return [[dice.randrange(5, 40) for _ in range(dice.randint(1, 6))] for _ in prompt_ids]

    gradients: list[torch.Tensor] = []
    clip = Accelerator.clip_grad_norm_

    def spy(self: Any, parameters: Any, *rest: Any, **more: Any) -> Any:
        trained = list(parameters)
        gradients.append(torch.cat([p.grad.flatten().clone() for p in trained]))
        return clip(self, trained, *rest, **more)

    monkeypatch.setattr(distill.Trainer, "_generate_single_turn", completions)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", spy)
    cut = {"max_token_len_per_gpu": 24, "data_parallel_size": 2}
    cfg = {**OPD, "steps": 1, "aggregation": "micro_batch_mean", **cut}

    rows = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS).to_pylist()[:4]
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows for _ in range(2)]
    asked = as_asked(chats, load_tokenizer(inputs["student"]), cfg)
    answered = completions(None, asked)
    lengths = [[*map(len, sequences)] for sequences in (asked, answered)]
    weights = micro_batches.token_weights(*lengths, 24, 2)
    tokens = sum(lengths[1])
    assert max(abs(w * tokens - 1) for w in weights) > 0.1  # not the token mean
    student, teacher = (load_model(inputs[who]).double() for who in ("student", "teacher"))
    expected = torch.zeros((), dtype=torch.float64)
    for weight, prompt, response in zip(weights, asked, answered, strict=True):
        ids = torch.tensor([prompt + response])
        logits = [model(ids).logits[:, len(prompt) - 1 : -1] for model in (student, teacher)]
        sampled = torch.tensor([response])
        losses = token_loss(*logits, sampled, torch.ones_like(sampled), loss_spec({"k": 4}))
        expected = expected + weight * losses.sum()
    expected.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    for micro_batch in (1, 2, 4, 8):
        out = tmp_path / str(micro_batch)
        first = run("distill", {**cfg, "micro_batch": micro_batch}, inputs, out)["first"]
        assert first["loss"] == pytest.approx(expected.item(), rel=1e-4)
        ours = gradients.pop().double()
        assert (ours - gradient).norm() < 1e-4 * gradient.norm()


def test_prompts_come_in_order_and_the_last_partial_batch_is_dropped(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten prompts, four a step: steps 1 and 2 see the first eight, step 3 starts again."""
    from opd.training import distill

    seen: list[list[str]] = []
    generate = distill.Trainer._generate_and_score_completions

    def spy(self: Any, batch: list[dict[str, Any]]) -> Any:
        seen.append([row["prompt"][0]["content"] for row in batch])
        return generate(self, batch)

    monkeypatch.setattr(distill.Trainer, "_generate_and_score_completions", spy)
    run("distill", OPD, inputs, tmp_path / "a")
    questions = [row["prompt"] for row in world.make_prompts(WORLD, "rl", 10)]
    twice = [[q for q in questions[i : i + 4] for _ in range(2)] for i in (0, 4, 0)]
    assert seen == twice


def test_a_loss_that_is_no_number(inputs: Inputs, tmp_path: Path) -> None:
    for name, cfg in (("sft", SFT), ("distill", OPD)):
        out = tmp_path / name
        with pytest.raises(UserError, match=r"lr: .* at step \d+; lower the learning rate"):
            run(name, {**cfg, "lr": 1e30, "warmup": 0.0, "steps": 6}, inputs, out)
        assert not list(out.iterdir())


def test_bad_prompts(inputs: Inputs, tmp_path: Path) -> None:
    for name, cfg in (("distill", OPD), ("grpo", GRPO)):
        with pytest.raises(
            UserError, match=r"prompts.parquet: row 0 \(rl-00000\): .* max_prompt_tokens"
        ):
            run(name, {**cfg, "max_prompt_tokens": 4}, inputs, tmp_path / f"{name}-long")
        with pytest.raises(UserError, match="10 prompts cannot fill a step of 11"):
            run(name, {**cfg, "prompts_per_step": 11}, inputs, tmp_path / f"{name}-few")
        empty = tmp_path / f"{name}-prompts"
        empty.mkdir()
        tables.write(empty / "prompts.parquet", [], PROMPTS)
        with pytest.raises(UserError, match="there are no prompts"):
            run(name, cfg, {**inputs, "prompts": empty}, tmp_path / f"{name}-none")


def test_bad_pairs(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs.parquet: row 0 .*max_tokens is 5"):
        run("sft", {**SFT, "max_tokens": 5}, inputs, tmp_path / "long")
    empty = tmp_path / "pairs"
    empty.mkdir()
    tables.write(empty / "pairs.parquet", [], SFT_PAIRS)
    with pytest.raises(UserError, match="there is no pair in it"):
        run("sft", SFT, {**inputs, "data": empty}, tmp_path / "none")


def test_different_tokenizers(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(init, "CHARACTERS", "9" + init.CHARACTERS[1:9] + "0" + init.CHARACTERS[10:])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    init.run(SHAPE, {}, foreign)
    with pytest.raises(UserError, match="token 5 is '0' for the student and '9' for the teacher"):
        run("distill", OPD, {**inputs, "teacher": foreign}, tmp_path / "out")


def told(message: str) -> list[dict[str, str]]:
    return [{"message": message}]


def test_the_teacher_reads_what_it_is_told(inputs: Inputs, tmp_path: Path) -> None:
    plain = run("distill", OPD, inputs, tmp_path / "plain")
    same = run("distill", {**OPD, "information": told("{question}")}, inputs, tmp_path / "same")
    assert same == plain  # the world's prompt is the question itself
    other = {**OPD, "information": told("say {question}")}
    changed = run("distill", other, inputs, tmp_path / "other")
    # Before the first update the rollouts are the same, so only the teacher's side can differ.
    for name in ("entropy_student_nats", "response_tokens"):
        assert changed["first"][name] == plain["first"][name]
    assert changed["first"]["entropy_teacher_nats"] != plain["first"]["entropy_teacher_nats"]
    long = {**OPD, "information": told("{question}" * 4)}
    with pytest.raises(
        UserError, match=r"teacher's prompt has \d+ tokens.*max_teacher_prompt_tokens"
    ):
        run("distill", long, inputs, tmp_path / "long")

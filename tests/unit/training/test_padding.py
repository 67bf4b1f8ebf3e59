"""Padding: columns that are padding alone, and micro-batches packed into one row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRPO, OPD, SFT, Inputs, course, run
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

from opd.core.errors import UserError
from opd.models.checkpoints import load_model, load_tokenizer
from opd.training import distill, grpo
from opd.training.padding import require_boundaries, trimmed
from opd.training.positions import count_positions, packed_hidden, padded_hidden

LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


def batch_of(lengths: list[tuple[int, int]], prompt: int, response: int) -> dict[str, Tensor]:
    """Prompts padded on the left and responses on the right, all tokens different."""
    n = len(lengths)
    ids = torch.arange(1, n * (prompt + response) + 1).view(n, -1)
    columns = torch.arange(prompt), torch.arange(response)
    prompts, responses = torch.tensor(lengths).T[..., None]
    return {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": (columns[0] >= prompt - prompts).long(),
        "completion_ids": ids[:, prompt:],
        "completion_mask": (columns[1] < responses).long(),
        "advantages": torch.arange(n) / 2,
    }


@given(LENGTHS, st.integers(0, 3), st.integers(0, 3))
def test_what_is_trimmed_is_padding(lengths: list[tuple[int, int]], left: int, right: int) -> None:
    """The tokens stay in their order, and each part is as wide as the longest in it."""
    longest = tuple(map(max, zip(*lengths, strict=True)))
    batch = batch_of(lengths, longest[0] + left, longest[1] + right)
    batch["old_per_token_logps"] = -batch["completion_ids"].float()
    narrow = trimmed(batch)
    assert narrow["advantages"] is batch["advantages"]
    for part, width in zip(("prompt", "completion"), longest, strict=True):
        ids, mask = narrow[f"{part}_ids"], narrow[f"{part}_mask"]
        assert ids.shape == mask.shape == (len(lengths), width)
        for row, wide in enumerate(batch[f"{part}_mask"] != 0):
            assert torch.equal(ids[row][mask[row] != 0], batch[f"{part}_ids"][row][wide])
    assert torch.equal(narrow["old_per_token_logps"], -narrow["completion_ids"].float())


def learned(vocabulary: int = 40) -> Any:
    """A model whose positions are learned, each with a vector of its own."""
    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    config = GPT2Config(**shape, **dropout, bos_token_id=None, eos_token_id=1)
    model = GPT2LMHeadModel._from_config(config)
    torch.nn.init.normal_(model.transformer.wpe.weight)
    return model.eval()


def with_learned_positions(inputs: Inputs, folder: Path) -> Inputs:
    """Student and teacher are models of learned positions."""
    models = {name: folder / name for name in ("student", "teacher")}
    for name, path in models.items():
        tokenizer = load_tokenizer(inputs[name])
        model = learned(len(tokenizer))
        if name == "teacher":
            torch.nn.init.normal_(model.transformer.wte.weight)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return {**inputs, **models}


def widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of what goes through models while nothing is sampled."""
    seen: list[tuple[int, int]] = []
    forward = transformers.Qwen3Model.forward

    def spied(self: Any, input_ids: Any = None, **named: Any) -> Any:
        if input_ids is not None and named.get("past_key_values") is None:
            seen.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **named)

    monkeypatch.setattr(transformers.Qwen3Model, "forward", spied)
    return seen


def completions(self: Any, prompt_ids: list[list[int]], *_: Any) -> list[list[int]]:
    """Responses of one to six tokens."""
    return [[5 + (row + sum(ids)) % 30] * (1 + row % 6) for row, ids in enumerate(prompt_ids)]


TOLD = {
    "information": [{"message": "say {question} and {answer}"}],
    "max_teacher_prompt_tokens": 64,
}
# Sixteen sequences, two at a time.
DISTILL = {**OPD, "rollouts_per_prompt": 4, "micro_batch": 2, "lr": 1e-2}


@pytest.mark.parametrize(
    ("how", "changed"),
    [
        ("trimmed", {}),
        ("trimmed", {**TOLD, "aggregation": "sequence_mean"}),
        ("packed", {"packing": True}),
        ("packed", {**TOLD, "packing": True, "loss": {"preset": "full"}}),
        ("packed", {"packing": True, "gradient_checkpointing": True, "attention": "eager"}),
    ],
)
def test_distillation_without_padding_is_that_with_it(
    how: str,
    changed: dict[str, Any],
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill.Trainer, "_generate_single_turn", completions)
    seen = widths(monkeypatch)
    run("distill", {**DISTILL, **changed}, inputs, tmp_path / "a")
    used = list(seen)
    monkeypatch.setattr(distill, "trimmed", dict)
    seen.clear()
    padded_cfg = {**DISTILL, **changed, "packing": None, "attention": "sdpa"}
    run("distill", padded_cfg, inputs, tmp_path / "padded")
    for name in ("loss", "grad_norm", "kl_nats", "response_tokens", "repetition_ratio"):
        ours, padded = (course(tmp_path / folder, name) for folder in ("a", "padded"))
        assert ours == pytest.approx(padded, rel=1e-4, abs=1e-6), name
    positions = [sum(rows * columns for rows, columns in shapes) for shapes in (used, seen)]
    assert positions[0] < 0.9 * positions[1]
    assert {rows for rows, _ in used} == ({1} if how == "packed" else {2})


def test_grpo_without_padding_is_that_with_it(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an update's weights and ratios are by token."""
    monkeypatch.setattr(
        grpo.Trainer, "_generate_single_turn", lambda *given: (completions(*given), None)
    )
    monkeypatch.setattr(
        grpo,
        "rewards",
        lambda _: [lambda completion_ids, **_: [len(i) / 6 for i in completion_ids]],
    )
    cfg = {**GRPO, "group_size": 4, "micro_batch": 2, "updates_per_batch": 2, "lr": 1e-2}
    seen = widths(monkeypatch)
    run("grpo", cfg, inputs, tmp_path / "a")
    used = sum(rows * columns for rows, columns in seen)
    monkeypatch.setattr(grpo, "trimmed", dict)
    seen.clear()
    run("grpo", cfg, inputs, tmp_path / "padded")
    for name in ("loss", "grad_norm", "clip_ratio", "entropy_student_nats"):
        ours, padded = (course(tmp_path / folder, name) for folder in ("a", "padded"))
        assert ours == pytest.approx(padded, rel=1e-4, abs=1e-6), name
    assert used < 0.95 * sum(rows * columns for rows, columns in seen)


@pytest.mark.parametrize("stage", ["distill", "grpo"])
def test_learned_positions_are_those_of_tokens(
    stage: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of a micro-batch are padded on the left to the longest: training all at a time is
    that of one at a time, where there is none."""
    answers = completions if stage == "distill" else lambda *given: (completions(*given), None)
    module = {"distill": distill, "grpo": grpo}[stage]
    monkeypatch.setattr(module.Trainer, "_generate_single_turn", answers)
    monkeypatch.setattr(
        grpo,
        "rewards",
        lambda _: [lambda completion_ids, **_: [len(i) / 6 for i in completion_ids]],
    )
    cfg = {"distill": DISTILL, "grpo": {**GRPO, "group_size": 4, "lr": 1e-2}}[stage]
    models = with_learned_positions(inputs, tmp_path / "models")
    for micro_batch in (1, 8):
        run(stage, {**cfg, "micro_batch": micro_batch}, models, tmp_path / str(micro_batch))
    for name in ("loss", "grad_norm", "entropy_student_nats"):
        alone, padded = (course(tmp_path / folder, name) for folder in ("1", "8"))
        assert padded == pytest.approx(alone, rel=1e-4, abs=1e-6), name


def model_of(family: str, attention: str) -> Any:
    if family == "GPT2":
        model = learned()
        model.set_attn_implementation(attention)
        return model
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    return getattr(transformers, f"{family}ForCausalLM")._from_config(
        config, attn_implementation=attention
    )


def hidden_without_positions(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """As a trainer of TRL reads a model."""
    count_positions(backbone)
    return backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def each_alone(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The reference: every sequence by itself, where neither mask nor padding is."""
    hidden = torch.zeros(*ids.shape, backbone.config.hidden_size, device=ids.device)
    for row, kept in enumerate(mask != 0):
        hidden[row, kept] = backbone(input_ids=ids[row, kept][None]).last_hidden_state[0]
    return hidden


def loss_and_gradient(
    hidden_of: Callable[..., Tensor], model: Any, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """A weighted sum of the hidden states of three sequences, and its gradient by all weights."""
    batch = batch_of([(1, 4), (3, 1), (2, 2)], 4, 6)
    ids, mask = (
        torch.cat([batch[f"{part}_{kind}"] for part in ("prompt", "completion")], 1).to(
            model.device
        )
        for kind in ("ids", "mask")
    )
    hidden = hidden_of(model.base_model, ids, mask)
    loss = (hidden * weights.to(model.device))[mask != 0].sum()
    if not torch.is_grad_enabled():
        return loss, torch.zeros(0)
    found = torch.autograd.grad(loss, list(model.base_model.parameters()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in found])


FAMILIES = ("Qwen2", "Qwen3", "Llama", "GPT2")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_is_its_sequences(family: str, attention: str) -> None:
    model = model_of(family, attention)
    weights = torch.randn(3, 10, 32)
    loss, gradient = loss_and_gradient(each_alone, model, weights)
    for hidden_of in (packed_hidden, padded_hidden, hidden_without_positions):
        found, found_gradient = loss_and_gradient(hidden_of, model, weights)
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        assert (found_gradient - gradient).norm() < 1e-5 * gradient.norm()
    require_boundaries(model)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_flex_attention_packs_forward(family: str) -> None:
    """Uncompiled, as compiling takes minutes on a CPU, where it has no backward pass either."""
    weights = torch.randn(3, 10, 32)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected, _ = loss_and_gradient(each_alone, model_of(family, "sdpa"), weights)
        found, _ = loss_and_gradient(packed_hidden, model_of(family, "flex_attention"), weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
def test_a_packed_row_is_its_sequences_on_a_gpu(attention: str) -> None:
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    weights = torch.randn(3, 10, 32)
    loss, gradient = loss_and_gradient(each_alone, model_of("Qwen2", "eager").cuda(), weights)
    with torch.autocast("cuda", torch.bfloat16, enabled=attention == "flash_attention_2"):
        found, found_gradient = loss_and_gradient(
            packed_hidden, model_of("Qwen2", attention).cuda(), weights
        )
    tolerance = 5e-2 if attention == "flash_attention_2" else 1e-3
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert (found_gradient - gradient).norm() < tolerance * gradient.norm()


def test_packing_is_refused_where_attention_crosses(inputs: Inputs) -> None:
    class Blind(Qwen3ForCausalLM):
        """Ignores positions, and so where a sequence begins."""

        def forward(self, position_ids: Any = None, **kwargs: Any) -> Any:
            return super().forward(**kwargs)

    for implementation in ("sdpa", "eager"):
        kwargs = {"attn_implementation": implementation}
        require_boundaries(Qwen3ForCausalLM.from_pretrained(inputs["student"], **kwargs))
        with pytest.raises(UserError, match=r"packing: the attention of Blind .* looks across"):
            require_boundaries(Blind.from_pretrained(inputs["student"], **kwargs))


@pytest.mark.parametrize("stage", ["sft", "grpo", "distill"])
def test_attention_is_that_of_student_and_teacher(
    stage: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    loaded = AutoModelForCausalLM.from_pretrained

    def spied(path: Path, **named: Any) -> Any:
        made = loaded(path, **named)
        seen.add((Path(path).name, (made[0] if isinstance(made, tuple) else made)))
        return made

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spied)
    cfg = {"sft": SFT, "grpo": GRPO, "distill": OPD}[stage]
    run(stage, {**cfg, "steps": 1, "attention": "eager"}, inputs, tmp_path / "a")
    names = {"student", "teacher"} if stage == "distill" else {"student"}
    assert {(name, model.config._attn_implementation) for name, model in seen} == {
        (name, "eager") for name in names
    }
    assert "eager" not in (tmp_path / "a" / "config.json").read_text()


@pytest.mark.parametrize("attention", ["flash_attention_2", "no_such_attention"])
def test_attention_that_there_is_not_is_one_line(inputs: Inputs, attention: str) -> None:
    with pytest.raises(
        UserError, match=rf"training\.attention: {attention} cannot be used for"
    ) as e:
        load_model(inputs["student"], attention=attention)
    assert "\n" not in str(e.value)

"""The distillation stage: teachers of every kind, padded heads, thinking modes, the guard."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from probing import padded
from tiny import OPD, Inputs, course, run

from opd.core.errors import UserError


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_a_live_teacher_without_privileged_information_teaches_nothing(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Student and teacher are the same function of the same prompt; a frozen one soon is not."""
    own = {**inputs, "teacher": inputs["student"]}
    run("distill", {**OPD, "teacher_update": "live"}, own, tmp_path / "live")
    assert course(tmp_path / "live", "kl_nats") == [pytest.approx(0, abs=1e-7)] * 3
    assert max(course(tmp_path / "live", "grad_norm")) < 1e-6
    told = {"information": [{"message": "say {question}"}], "lr": 1e-2}
    run("distill", {**OPD, **told, "teacher_update": "live"}, own, tmp_path / "told")
    run("distill", {**OPD, **told}, own, tmp_path / "frozen")
    ours, theirs = (course(tmp_path / name, "kl_nats") for name in ("told", "frozen"))
    assert ours[0] == theirs[0] > 0 and ours[2] != theirs[2]


@pytest.mark.parametrize("loss", [{"k": 4}, {"preset": "full"}, {"preset": "sampled"}])
def test_one_temperature_for_student_and_teacher(
    inputs: Inputs, tmp_path: Path, loss: dict[str, Any]
) -> None:
    """A student that is its own teacher has nothing to learn at any temperature of its rollouts,
    unless the loss names another one for the teacher."""
    cfg = {**OPD, "steps": 1, "temperature": 0.7}
    own = {**inputs, "teacher": inputs["student"]}
    run("distill", {**cfg, "loss": loss}, own, tmp_path / "same")
    for name in ("loss", "kl_nats", "grad_norm"):
        assert course(tmp_path / "same", name) == [pytest.approx(0, abs=1e-6)]
    named = {**loss, "teacher_temperature": 1.0}
    run("distill", {**cfg, "loss": named}, own, tmp_path / "named")
    assert course(tmp_path / "named", "kl_nats")[0] > 1e-4
    assert course(tmp_path / "named", "grad_norm")[0] > 1e-4


def test_an_ema_teacher_follows_the_student(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one step it is decay of what it was and the rest of what the student has become."""
    from opd.training import distill

    seen: list[dict[str, torch.Tensor]] = []
    follow = distill.Trainer.move_teacher

    def spy(self: Any) -> None:
        follow(self)
        seen.append({k: v.clone() for k, v in self.teacher_model.state_dict().items()})

    monkeypatch.setattr(distill.Trainer, "move_teacher", spy)
    own = {**inputs, "teacher": inputs["student"]}
    more = {"teacher_update": "ema", "ema_decay": 0.75, "steps": 1}
    told = [{"message": "say {question}"}]
    run("distill", {**OPD, **more, "information": told}, own, tmp_path / "a")
    before, after = weights(inputs["student"]), weights(tmp_path / "a")
    for name, student in after.items():
        torch.testing.assert_close(seen[0][name], 0.75 * before[name] + 0.25 * student)
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_padded_heads_of_different_width(inputs: Inputs, tmp_path: Path, wider: str) -> None:
    """The rows beyond the shared ids change nothing."""
    run("distill", OPD, inputs, tmp_path / "plain")
    path = padded(inputs[wider], tmp_path / "padded", 80)
    numbers = run("distill", OPD, {**inputs, wider: path}, tmp_path / "a")
    assert course(tmp_path / "a", "kl_nats") == course(tmp_path / "plain", "kl_nats")
    ours, plain = weights(tmp_path / "a"), weights(tmp_path / "plain")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in plain.items()}
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert numbers["first"]


def test_a_server_of_vllm_with_rows_that_are_not_trained(inputs: Inputs, tmp_path: Path) -> None:
    """Colocated, vLLM loads a copy without them: tests/unit/rehearsal/test_on_cpu.py."""
    student = padded(inputs["student"], tmp_path / "padded", 80)
    cfg = {**OPD, "vllm": {"mode": "server"}}
    with pytest.raises(UserError, match=r"vllm\.mode: a server of vLLM has 80 rows .* use colo"):
        run("distill", cfg, {**inputs, "student": student}, tmp_path / "a")


def test_a_head_too_narrow_for_the_tokenizer(inputs: Inputs, tmp_path: Path) -> None:
    path = padded(inputs["teacher"], tmp_path / "narrow", 20)
    with pytest.raises(
        UserError, match=r"teacher: \d+ embeddings .* 20 of the teacher do not hold"
    ):
        run("distill", OPD, {**inputs, "teacher": path}, tmp_path / "a")


def test_a_teacher_that_is_missing(inputs: Inputs, tmp_path: Path) -> None:
    """No folder at all, and one that has lost its weights."""
    gone = {**inputs, "teacher": tmp_path / "gone"}
    with pytest.raises(UserError, match=r"gone: no usable tokenizer .*; make or fetch it again"):
        run("distill", OPD, gone, tmp_path / "a")
    path = padded(inputs["teacher"], tmp_path / "empty", 60)
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"empty: no usable weights .*; make or fetch it again"):
        run("distill", OPD, {**inputs, "teacher": path}, tmp_path / "b")


THINKING = (
    "{%- for m in messages %}{{ m.content }}{%- endfor %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{%- endif %}"
)


def test_thinking_modes_that_differ(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    changed = {}
    for role in ("student", "teacher"):
        changed[role] = padded(inputs[role], tmp_path / role, 60)
        tokenizer = AutoTokenizer.from_pretrained(changed[role])
        tokenizer.chat_template = THINKING
        tokenizer.save_pretrained(changed[role])
    off = {"enable_thinking": False}
    both = {**inputs, **changed}
    with pytest.raises(
        UserError, match="thinking is off for the student and left to the model for the teacher"
    ):
        cfg = {**OPD, "chat_template_kwargs": off, "teacher_chat_template_kwargs": {}}
        run("distill", cfg, both, tmp_path / "a")


def test_the_guard_flags_or_stops(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a guard that takes any length for a collapse."""
    guard = {"reference_steps": 2, "patience": 2, "length_ratio": 1e-9, "action": "flag"}
    cfg = {**OPD, "steps": 8, "guard": guard}
    flagged = run("distill", cfg, inputs, tmp_path / "flag")
    assert flagged["collapse"]["step"] == 4 and flagged["collapse"]["stopped"] is False
    assert "warning: step 4 looks like a collapse: length_ratio" in capsys.readouterr().err
    assert len(course(tmp_path / "flag", "loss")) == 8
    stopped = run(
        "distill", {**cfg, "guard": {**guard, "action": "stop"}}, inputs, tmp_path / "stop"
    )
    assert stopped["collapse"]["stopped"] is True
    assert course(tmp_path / "stop", "loss") == course(tmp_path / "flag", "loss")[:4]
    assert (tmp_path / "stop" / "model.safetensors").is_file()


def test_bfloat16_computes_narrow_and_keeps_weights_wide(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.losses import terms

    types: set[tuple[torch.dtype, torch.dtype]] = set()
    fused = terms.fused_token_loss

    def spy(h_p: Any, head: Any, h_q: Any, *rest: Any) -> Any:
        attention = torch.zeros(1, 1) @ torch.zeros(1, 1)
        types.add((attention.dtype, h_q.dtype))
        return fused(h_p, head, h_q, *rest)

    run("distill", OPD, inputs, tmp_path / "wide")
    monkeypatch.setattr(terms, "fused_token_loss", spy)
    run("distill", {**OPD, "precision": "bfloat16"}, inputs, tmp_path / "narrow")
    assert types == {(torch.bfloat16, torch.bfloat16)}
    found = weights(tmp_path / "narrow")
    assert {w.dtype for w in found.values()} == {torch.float32}
    for name in ("entropy_student_nats", "entropy_teacher_nats"):
        ours, theirs = (course(tmp_path / folder, name) for folder in ("narrow", "wide"))
        assert ours[0] != theirs[0] and ours == pytest.approx(theirs, rel=0.05)


def test_measuring_less_often(inputs: Inputs, tmp_path: Path) -> None:
    """The same run, fewer measurements."""
    run("distill", {**OPD, "steps": 5}, inputs, tmp_path / "all")
    run("distill", {**OPD, "steps": 5, "metrics_every": 2}, inputs, tmp_path / "some")
    every, some = (course(tmp_path / name, "kl_nats") for name in ("all", "some"))
    assert some == every[::2]
    assert course(tmp_path / "some", "loss") == course(tmp_path / "all", "loss")


def test_what_is_measured_is_logged_to_everything_that_listens(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.training import distill

    logged: list[dict[str, float]] = []
    monkeypatch.setattr(
        distill.DistillationTrainer, "log", lambda _, logs, *__: logged.append(logs)
    )
    run("distill", {**OPD, "steps": 2}, inputs, tmp_path / "a")
    steps = [line for line in logged if "loss" in line]
    assert len(steps) == 2
    assert all(line["overlap_ratio"] <= 1 and "kl_nats" in line for line in steps)


@pytest.mark.parametrize(
    "loss",
    [
        {"preset": "biased_topk", "k": 4},
        {"preset": "many_faces_default", "k": 4},
        {"preset": "union", "k": 4},
        {"preset": "k3"},
        {"preset": "jsd"},
    ],
)
def test_presets_train(inputs: Inputs, tmp_path: Path, loss: dict[str, Any]) -> None:
    numbers = run("distill", {**OPD, "loss": loss}, inputs, tmp_path / "a")
    assert math.isfinite(numbers["last"]["loss"]) and numbers["first"]["grad_norm"] > 0


def test_head_of_a_family_that_scales_and_caps_its_logits() -> None:
    """Against the logits that the models themselves give."""
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
    )

    from opd.losses.head import head_logits
    from opd.models.pairing import head_of

    torch.manual_seed(0)
    small = {
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    for model in (
        CohereForCausalLM(CohereConfig(**small, logit_scale=0.3)),
        GraniteForCausalLM(GraniteConfig(**small, logits_scaling=4.0)),
        Gemma2ForCausalLM(Gemma2Config(**small, final_logit_softcapping=2.0)),
    ):
        ids = torch.randint(1, 31, (1, 5))
        with torch.no_grad():
            hidden = model.base_model(ids).last_hidden_state[0]
            torch.testing.assert_close(
                head_logits(hidden, head_of(model)), model(ids).logits[0].float()
            )

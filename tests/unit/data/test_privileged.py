"""Privileged information: what a teacher is told, to the byte and to the token, and that its
student never is."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from probing import rendered, with_template
from tiny import OPD, WORLD, Inputs, course, run
from transformers import AutoTokenizer

from opd.core import tables
from opd.core.errors import UserError
from opd.data import privileged, world
from opd.data.schemas import PROMPTS
from opd.models import sampling
from opd.probes import rollouts

STUDENT = "Q\n\nPlease reason step by step, and put your final answer within \\boxed{}."
ROW = {"id": "q1", "question": "Q", "prompt": STUDENT, "answer": "7", "solution": "3+4 is 7."}

# Written down a second time, so that a slip in either is seen.
SEEN = {
    "none": STUDENT,
    "answer": f"{STUDENT}\n\nThe correct final answer to this problem is: 7\n"
    "Now solve the problem yourself step by step and arrive at the same answer:",
    "full": "Q\n\nHere is a reference solution to this problem:\n3+4 is 7.\nAfter understanding "
    "the reference solution and the rationale behind each step, now articulate your own "
    "step-by-step reasoning that derives the same final answer to the problem above:\n"
    r"Please reason step by step, and put your final answer within \boxed{}.",
    "concise": "Solve the following math problem concisely and correctly. Be direct -- avoid "
    "unnecessary elaboration, redundant steps, or restating the problem. Focus only on the key "
    f"reasoning steps needed to reach the answer.\n\n{STUDENT}",
    "safety": "Follow these rules when responding:\n1. Do not assist with harmful or illegal "
    "actions.\n2. Politely refuse unsafe requests.\n3. Provide safe alternatives when possible.\n"
    f"4. Remain helpful and neutral for legitimate requests.\n\n{STUDENT}",
}

CHATML = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
    "{%- if enable_thinking is defined %}"
    "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}{%- endif %}"
)


class Letters:
    """A tokenizer of single characters with a chat template of Qwen3's kind."""

    chat_template = CHATML

    def apply_chat_template(self, chat: list[dict[str, str]], **kwargs: Any) -> str:
        import jinja2

        options = {"trim_blocks": True, "lstrip_blocks": True}
        template = jinja2.Environment(**options).from_string(self.chat_template)  # type: ignore[arg-type]
        return template.render(messages=chat, **kwargs)

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def text(context: Any, row: dict[str, Any] = ROW, **kwargs: Any) -> str:
    (given,) = privileged.contexts(context)
    ((ids,),) = privileged.token_ids([given], [row], Letters(), kwargs, 10_000)
    return "".join(map(chr, ids))


@pytest.mark.parametrize("kind", ["answer", "full", "concise", "safety"])
def test_named_kinds_are_those_of_the_paper(kind: str) -> None:
    assert text(kind) == f"<|user|>{SEEN[kind]}<|assistant|>"
    assert privileged.contexts("none") == privileged.contexts(None) == []
    assert privileged.filled(privileged.CONTEXTS["none"]["message"], ROW) == SEEN["none"]


def test_a_hidden_answer_stands_in_the_think_block() -> None:
    """In the place of the empty one; in a block of its own where the template has none."""
    hidden = "<think>\nThe answer to this problem is 7.\n</think>\n\n"
    asked = f"<|user|>{STUDENT}<|assistant|>"
    assert text("hidden", enable_thinking=False) == asked + hidden

    class Thoughtless(Letters):
        chat_template = CHATML.partition("{%- if enable")[0]

    (given,) = privileged.contexts("hidden")
    ((ids,),) = privileged.token_ids([given], [ROW], Thoughtless(), {}, 10_000)
    assert "".join(map(chr, ids)) == asked + hidden


@pytest.mark.parametrize("options", [{"enable_thinking": True}, {}])
def test_nothing_is_hidden_before_thoughts_of_the_response(options: dict[str, Any]) -> None:
    """Qwen3's template opens no block where thinking is left to the model; the response does."""
    with pytest.raises(UserError, match="leaves a think block to the response"):
        text("hidden", **options)


def test_a_system_rule() -> None:
    assert text({"system": "Be brief."}) == f"<|system|>Be brief.<|user|>{STUDENT}<|assistant|>"

    class Deaf(Letters):
        def apply_chat_template(self, chat: list[dict[str, str]], **kwargs: Any) -> str:
            return super().apply_chat_template(chat[-1:], **kwargs)

    with pytest.raises(UserError, match="leaves a system message out; "):
        rule = {"message": "{prompt}", "system": "Be brief."}
        privileged.token_ids([rule], [ROW], Deaf(), {}, 10_000)


def test_fields_are_filled_in_one_pass_and_latex_is_left_alone() -> None:
    row = {**ROW, "question": "Let {answer} be", "answer": "{question}"}
    told = {"message": "{question}: {answer} \\boxed{answer} \\frac{a}{b} \\boxed{{answer}}"}
    expected = "Let {answer} be: {question} \\boxed{answer} \\frac{a}{b} \\boxed{{question}}"
    assert text(told, row) == f"<|user|>{expected}<|assistant|>"
    told = {"message": "{question}{answer}, is{answer} 10^{2}"}
    assert text(told, {**row, "answer": "4"}) == "<|user|>Let {answer} be4, is4 10^{2}<|assistant|>"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hint", "information: unknown kind 'hint'; use one of none, answer, full, hidden"),
        ({"message": "{question} {hint}"}, "information.message: unknown field {hint}; there are"),
        ({"think": "{truth}"}, "information.think: unknown field {truth}"),
        ({"message": "{question}{hint}"}, "information.message: unknown field {hint}"),
        ({"message": "{question} is{answer1}"}, "information.message: unknown field {answer1}"),
        (["answer", {"message": "{answer}"}], "information.message: the question is not in it"),
    ],
)
def test_what_cannot_be_told(given: Any, said: str) -> None:
    with pytest.raises(UserError) as bad:
        privileged.contexts(given)
    assert said in str(bad.value)


@pytest.mark.parametrize(("field", "kind"), [("answer", "hidden"), ("solution", "full")])
@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_row_without_the_information(field: str, kind: str, missing: Any) -> None:
    with pytest.raises(UserError, match=f"prompt q1: there is no {field} to tell the teacher"):
        text(kind, {**ROW, field: missing}, enable_thinking=False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Token ids that student and teacher read in training, one entry for each batch."""
    from opd.training import distill

    seen: list[dict[str, Any]] = []
    hidden = distill.Trainer._hidden

    def spy(self: Any, model: Any, batch: dict[str, torch.Tensor], prompt: str) -> torch.Tensor:
        who = "student" if torch.is_grad_enabled() else "teacher"
        found = [
            [ids[mask != 0].tolist() for ids, mask in zip(*pair, strict=True)]
            for pair in (
                (batch[f"{part}_ids"], batch[f"{part}_mask"]) for part in (prompt, "completion")
            )
        ]
        seen.append({"who": who, "asked": found[0], "answered": found[1]})
        return hidden(self, model, batch, prompt)

    monkeypatch.setattr(distill.Trainer, "_hidden", spy)
    return seen


TOLD = [{"message": "({answer}) {question}"}]


@pytest.mark.parametrize("update", ["frozen", "ema", "live", "external"])
def test_the_student_never_reads_what_its_teacher_is_told(
    inputs: Inputs, tmp_path: Path, read: list[dict[str, Any]], update: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Token for token: while it samples, while it learns, and when it is tested."""
    from trl import DistillationTrainer

    sampled: list[list[int]] = []
    generate = DistillationTrainer._generate_and_score_completions

    def watched(self: Any, rows: list[dict[str, Any]]) -> Any:
        batch = generate(self, rows)
        pair = zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        sampled.extend(ids[mask != 0].tolist() for ids, mask in pair)
        return batch

    monkeypatch.setattr(DistillationTrainer, "_generate_and_score_completions", watched)
    cfg = {**OPD, "information": TOLD, "max_teacher_prompt_tokens": 32}
    own = inputs if update == "external" else {**inputs, "teacher": inputs["student"]}
    if update in ("ema", "live"):
        cfg["teacher_update"] = update
    if update == "ema":
        cfg["ema_decay"] = 0.9
    run("distill", cfg, own, tmp_path / "a")
    rows = world.make_prompts(WORLD, "rl", 10)
    plain = [rendered(inputs["student"], row["prompt"]) for row in rows]
    told = [rendered(inputs["student"], f"({row['answer']}) {row['question']}") for row in rows]
    order = [i for start in (0, 4, 0) for i in range(start, start + 4) for _ in range(2)]
    assert sampled == [plain[i] for i in order]
    ours, theirs = ([one for one in read if one["who"] == who] for who in ("student", "teacher"))
    assert len(ours) == len(theirs) == 3
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        # TRL shuffles a step's rollouts; both read the same response of the same question.
        pairs = list(zip(one["asked"], other["asked"], strict=True))
        assert sorted(pairs) == sorted((plain[i], told[i]) for i in order[8 * step : 8 * step + 8])
        assert one["answered"] == other["answered"]

    asked: list[list[int]] = []
    sample = sampling.Sampler.sample_lists

    def tested(self: Any, lists: Any) -> Any:
        asked.extend(list(request.prompt) for requests in lists for request in requests)
        return sample(self, lists)

    monkeypatch.setattr(sampling.Sampler, "sample_lists", tested)
    from opd.evaluation import evaluate

    benchmark = {"benchmarks": [{"name": "w", "task": "opd_world"}], "max_prompt_tokens": 32}
    protocol = {"samples": 1, "temperature": 0.0, "max_new_tokens": 4, "grader": "rule"}
    (tmp_path / "scores").mkdir()
    evaluate.run(
        {**benchmark, "protocol": protocol, "seed": 1},
        {"model": tmp_path / "a", "prompts:w": inputs["prompts"]},
        tmp_path / "scores",
        tmp_path / "cache",
    )
    assert sorted(asked) == sorted(plain)


def test_a_frozen_teacher_does_not_change(inputs: Inputs, tmp_path: Path) -> None:
    """With a step that changes the student much, its own step-0 self and an external teacher say
    of the same tokens what they said before; a live one does not."""
    from opd.losses.head import head_logits
    from opd.training.teachers import Teachers

    def before_and_after(update: str, own: Inputs, out: Path) -> list[torch.Tensor]:
        logged: list[torch.Tensor] = []
        states = Teachers.states
        batch: dict[str, torch.Tensor] = {}

        def spy(self: Any, inputs: dict[str, torch.Tensor], reading: Any) -> Any:
            if not batch:
                # Without what a model made of it in this step.
                batch.update({k: v for k, v in inputs.items() if not k.endswith("_states")})
            hidden, head = states(self, batch, reading)
            logged.append(head_logits(hidden.flatten(0, 1), head).log_softmax(-1))
            return states(self, inputs, reading)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Teachers, "states", spy)
            run("distill", {**OPD, "information": TOLD, "lr": 0.1, "max_teacher_prompt_tokens": 32,
                        "teacher_update": update}, own, out)  # fmt: skip
        return logged

    own = {**inputs, "teacher": inputs["student"]}
    for name, given in (("self", own), ("external", inputs)):
        first, *later = before_and_after("frozen", given, tmp_path / name)
        assert all(torch.equal(first, one) for one in later) and len(later) == 2
    first, *later = before_and_after("live", own, tmp_path / "live")
    assert all(not torch.allclose(first, one) for one in later)


def test_what_samples_is_what_is_trained(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step the weights that sample are those that are then updated, and not those of the
    step before."""
    from transformers import GenerationMixin

    from opd.training import distill

    sampled: list[torch.Tensor] = []
    trained: list[torch.Tensor] = []
    generate, loss = GenerationMixin.generate, distill.Trainer._compute_loss

    def weights(model: Any) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
        sampled.append(weights(self))
        return generate(self, *args, **kwargs)

    def training(self: Any, model: Any, *args: Any) -> Any:
        trained.append(weights(model))
        return loss(self, model, *args)

    monkeypatch.setattr(GenerationMixin, "generate", sampling)
    monkeypatch.setattr(distill.Trainer, "_compute_loss", training)
    run("distill", {**OPD, "top_p": 0.95, "lr": 1e-2}, inputs, tmp_path / "a")
    assert len(sampled) == len(trained) == 3
    for step, (one, other) in enumerate(zip(sampled, trained, strict=True)):
        assert torch.equal(one, other)
        assert step == 0 or not torch.equal(one, sampled[step - 1])


def test_told_what_the_student_is_asked_the_log_ratio_is_zero_everywhere(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Teacher = student; one character more in its prompt, and it is not: positions are aligned by
    the response, whatever the length of the two prompts."""
    own = {**inputs, "teacher": inputs["student"]}
    for name, told in (("same", "{question}"), ("more", " {question}")):
        cfg = {**OPD, "information": [{"message": told}], "steps": 1, "max_prompt_tokens": 32}
        run("distill", cfg, own, tmp_path / name)
    ratios = ("log_ratio_other_nats", "kl_nats", "loss")
    for name in ratios:
        assert course(tmp_path / "same", name) == [pytest.approx(0, abs=1e-6)]
    assert course(tmp_path / "more", "kl_nats")[0] > 1e-4


def test_positions_of_teacher_and_student_are_those_of_the_same_token(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's hidden states against one sequence at a time, without padding: those that
    predict the first to the last token of the response, not one earlier or later."""
    from transformers import AutoModelForCausalLM

    from opd.training.teachers import Teachers

    found: list[Any] = []
    states = Teachers.states

    def spy(self: Any, batch: dict[str, torch.Tensor], reading: Any) -> Any:
        result = states(self, batch, reading)
        found.append((result[0], batch))
        return result

    monkeypatch.setattr(Teachers, "states", spy)
    cfg = {**OPD, "information": TOLD, "steps": 1, "max_teacher_prompt_tokens": 32}
    run("distill", cfg, inputs, tmp_path / "a")
    ((states, batch),) = found
    model = AutoModelForCausalLM.from_pretrained(inputs["teacher"])
    for row in range(8):
        asked = batch["teacher_prompt_ids"][row][batch["teacher_prompt_mask"][row] != 0]
        answered = batch["completion_ids"][row][batch["completion_mask"][row] != 0]
        with torch.no_grad():
            whole = model.base_model(torch.cat([asked, answered])[None]).last_hidden_state[0]
        expected = whole[len(asked) - 1 : len(asked) - 1 + len(answered)]
        torch.testing.assert_close(states[row, : len(answered)], expected, rtol=1e-4, atol=1e-5)


def test_rollouts_of_a_prompt_take_the_contexts_in_turn(inputs: Inputs) -> None:
    from opd.models.checkpoints import load_tokenizer
    from opd.training.prompts import teacher_prompts

    rows = world.make_prompts(WORLD, "rl", 3)
    two = [{"message": "a {question}"}, {"message": "b {question}"}]
    cfg = {**OPD, "information": two, "rollouts_per_prompt": 4}
    found = teacher_prompts(cfg, rows, load_tokenizer(inputs["student"]))
    assert found == [
        rendered(inputs["student"], f"{letter} {row['question']}")
        for row in rows
        for letter in "abab"
    ]
    with pytest.raises(
        UserError, match="2 contexts for 3 rollouts of a prompt; make rollouts_per_promp"
    ):
        teacher_prompts({**cfg, "rollouts_per_prompt": 3}, rows, load_tokenizer(inputs["student"]))


def test_several_contexts_have_the_gradient_of_their_geometric_mean() -> None:
    """The mean loss over contexts and the KL to the normalised geometric mean differ by a constant
    (Many Faces, Eqs. 10 and 11): as far as one state shows, for the whole vocabulary."""
    from opd.losses.spec import PRESETS
    from opd.losses.token import token_loss

    generator = torch.Generator().manual_seed(4)
    student, *teachers = torch.randn(4, 1, 1, 9, generator=generator, dtype=torch.float64)
    ids, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1)
    mean = torch.stack([t.log_softmax(-1) for t in teachers]).mean(0)

    def slope(*given: torch.Tensor) -> torch.Tensor:
        z = student.clone().requires_grad_()
        loss = sum(token_loss(z, t, ids, one, PRESETS["full"]).sum() for t in given) / len(given)
        return torch.autograd.grad(loss, z)[0]  # type: ignore[arg-type]

    torch.testing.assert_close(slope(*teachers), slope(mean))
    arithmetic = torch.stack([t.softmax(-1) for t in teachers]).mean(0).log()
    assert not torch.allclose(slope(*teachers), slope(arithmetic), atol=1e-3)


def test_a_solution_travels_with_its_prompt(tmp_path: Path) -> None:
    """From the column that is named, through selection and templates; others have none."""
    from opd.data import prompts

    lines = [{"question": f"q{i}", "answer": str(i), "worked": f"so {i}"} for i in range(4)]
    tables.write_text(tmp_path / "q.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    source = {"path": str(tmp_path / "q.jsonl")}
    for name, given in (("with", {"solution": "worked"}), ("without", {})):
        out = tmp_path / name
        out.mkdir()
        cfg = {"source": {**source, **given}, "sample": {"n": 2, "seed": 1}, "template": "boxed"}
        prompts.run(cfg, {"path": tmp_path / "q.jsonl"}, out)
    found = {
        name: tables.read(tmp_path / name / "prompts.parquet", PROMPTS).to_pylist()
        for name in ("with", "without")
    }
    assert [row["solution"] for row in found["with"]] == [
        f"so {r['answer']}" for r in found["with"]
    ]
    assert [row["solution"] for row in found["without"]] == [None, None]
    again = tmp_path / "again"
    again.mkdir()
    prompts.run({"source": {"from": True}}, {"prompts": tmp_path / "with"}, again)
    kept = tables.read(again / "prompts.parquet", PROMPTS).to_pylist()
    assert [row["solution"] for row in kept] == [row["solution"] for row in found["with"]]
    with pytest.raises(UserError, match="column 'proof' is missing"):
        prompts.run(
            {"source": {**source, "solution": "proof"}}, {"path": tmp_path / "q.jsonl"}, again
        )


def test_thinking_on_for_one_side_only(inputs: Inputs, tmp_path: Path) -> None:
    """Refused; trained all the same where that is asked for, and the teacher is asked in its own
    mode (Many Faces, A15)."""
    changed = {
        role: with_template(inputs[role], tmp_path / role, CHATML)
        for role in ("student", "teacher")
    }
    both = {**inputs, **changed}
    modes = {
        "chat_template_kwargs": {"enable_thinking": False},
        "teacher_chat_template_kwargs": {"enable_thinking": True},
    }
    cfg = {**OPD, **modes, "max_prompt_tokens": 99}
    with pytest.raises(UserError, match="thinking is off for the student and on for the teacher"):
        run("distill", cfg, both, tmp_path / "a")
    run("distill", {**cfg, "steps": 1, "thinking_may_differ": True}, both, tmp_path / "b")
    with pytest.raises(UserError, match="thinking is off for the student and on for the teacher"):
        rollouts.tokens(cfg, [], both["student"])
    from opd.training.prompts import teacher_prompts

    tokenizer = AutoTokenizer.from_pretrained(both["student"])
    row = world.make_prompts(WORLD, "rl", 1)
    (first, _) = teacher_prompts(cfg, row, tokenizer) or []
    opened = tokenizer("<|assistant|><think>\n", add_special_tokens=False)["input_ids"]
    assert first[-len(opened) :] == opened

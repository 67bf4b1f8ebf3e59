"""What a student and a teacher have to share, and what training refuses of a pair until its config
decides it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from probing import Inputs, make, padded, rendered, with_swapped_tokens, with_template
from tiny import GRPO, OPD, SFT, run
from transformers import AutoTokenizer, GenerationConfig

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import SFT_PAIRS
from opd.models import init, pairing
from opd.models.checkpoints import load_tokenizer, positions, read_config, stop_ids

EOS, ASSISTANT = 1, 4
OTHER_END = init.CHAT_TEMPLATE.replace("<eos>", "<user>")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make(tmp_path_factory.mktemp("pairing"), 4)


def ending(source: Path, out: Path, *ids: int, eos: str = "<eos>") -> Path:
    """The same model with other tokens that end a response."""
    shutil.copytree(source, out)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = eos
    tokenizer.save_pretrained(out)
    GenerationConfig(eos_token_id=list(ids)).save_pretrained(out)
    return out


def with_tokens(source: Path, out: Path, *tokens: str, rows: int = 64) -> Path:
    """The same model with special tokens of its own, and room for them."""
    padded(source, out, rows)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(out)
    return out


def refused(student: Path, teacher: Path, **cfg: Any) -> list[str]:
    return [str(e) for e in pairing.objections(cfg, pairing.compare(cfg, student, teacher))]


@pytest.mark.parametrize("who", ["sft", "grpo", "distill", "teacher", "sampler", "rollouts"])
def test_an_option_that_no_template_reads_is_refused_by_all(
    inputs: Inputs, tmp_path: Path, who: str
) -> None:
    from opd.models.sampling import Sampler
    from opd.probes.rollouts import tokens

    cfg: dict[str, Any] = {"chat_template_kwargs": {"enable_thinkng": False}}
    tables.write(tmp_path / "pairs.parquet", [{
        "id": "a", "prompt": "1+1=", "response": "2"}], SFT_PAIRS)  # fmt: skip
    both = {**inputs, "data": tmp_path}
    row = {"prompt_id": "a", "prompt": "1", "token_ids": [7]}
    sampling = {"max_new_tokens": 2, "max_prompt_tokens": 9, "seed": 0}
    asked = {
        "sft": lambda: run("sft", {**SFT, **cfg, "batch_size": 1}, both, tmp_path / "a"),
        "grpo": lambda: run("grpo", GRPO | cfg, both, tmp_path / "a"),
        "distill": lambda: run("distill", OPD | cfg, both, tmp_path / "a"),
        "teacher": lambda: run(
            "distill", OPD | {f"teacher_{key}": v for key, v in cfg.items()}, both, tmp_path / "a"
        ),
        "sampler": lambda: Sampler(inputs["student"], sampling | cfg),
        "rollouts": lambda: tokens(cfg, [row], inputs["student"]),
    }
    with pytest.raises(UserError, match=r"'enable_thinkng' changes no prompt.* reads \(none\)"):
        asked[who]()


def test_a_pair_of_one_family_is_not_refused(inputs: Inputs) -> None:
    compared = pairing.compare({}, inputs["student"], inputs["teacher"])
    assert pairing.objections({}, compared) == []
    assert compared["ends"] == {"student": ["<eos>"], "teacher": ["<eos>"], "turn": ["<eos>"]}
    assert compared["positions"] == {"student": 512, "teacher": 512}
    assert compared["tokens"] == 54 and compared["never_compared"] == []
    json.dumps(compared)


def test_different_end_tokens_are_refused_until_the_config_says_which(
    inputs: Inputs, tmp_path: Path
) -> None:
    """A base model that ends with one token, a teacher that ends with another one or with both."""
    student = inputs["student"]
    teacher = ending(inputs["teacher"], tmp_path / "t", 3, eos="<user>")
    (line,) = refused(student, teacher)
    assert line.startswith("end_tokens: responses end with <eos> for the student and with <user>")
    both = ending(inputs["teacher"], tmp_path / "both", EOS, 3)
    assert "with <eos> or <user> for the teacher" in refused(student, both)[0]
    for said in ({"end_tokens": "both"}, {"execution": {"end_tokens": "student"}}):
        assert refused(student, teacher, **said) == []
    compared = pairing.compare({}, student, teacher)
    assert pairing.end_ids({}, compared) == [EOS]
    assert pairing.end_ids({"end_tokens": "both"}, compared) == [EOS, 3]


def test_a_turn_that_ends_with_a_token_that_ends_no_response(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Student and teacher agree with each other, and not with the chat template."""
    student, teacher = (
        with_template(inputs[who], tmp_path / who, OTHER_END) for who in ("student", "teacher")
    )
    (line,) = refused(student, teacher)
    assert "the chat template ends a turn with <user>" in line and "or all" in line
    compared = pairing.compare({}, student, teacher)
    assert pairing.end_ids({"end_tokens": "both"}, compared) == [EOS]
    assert pairing.end_ids({"end_tokens": "all"}, compared) == [EOS, 3]


def test_training_ends_responses_as_the_config_says(inputs: Inputs, tmp_path: Path) -> None:
    """It refuses before it reads weights; with ``both`` a rollout ends at either token, and the
    model that is saved ends its responses in the same way."""
    # What this student says in greedy mode without end, so that a rollout must come to it.
    teacher = ending(inputs["teacher"], tmp_path / "t", *range(2, 54), eos="<user>")
    pair = {**inputs, "teacher": teacher}
    cfg = {**OPD, "steps": 1}
    with pytest.raises(UserError, match="end_tokens: responses end with <eos> for the student"):
        run("distill", cfg, pair, tmp_path / "refused")
    lengths = {}
    for name, more in (
        ("student", {"execution": {"end_tokens": "student"}}),
        ("both", {"end_tokens": "both"}),
    ):
        numbers = run("distill", cfg | more, pair, tmp_path / name)
        lengths[name] = numbers["first"]["response_tokens"]
        tokenizer = load_tokenizer(tmp_path / name)
        expected = {EOS} if name == "student" else {*range(1, 54)}
        assert stop_ids(tmp_path / name, tokenizer) == expected
    assert lengths["student"] > 2 and lengths["both"] < 1.5


def test_special_tokens_of_the_teacher_alone_are_never_compared(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their rows are cut from both models: whatever the teacher gives to them, nothing changes."""
    teacher = with_tokens(inputs["teacher"], tmp_path / "t", "<tool>", "</tool>")
    student = padded(inputs["student"], tmp_path / "s", 64)
    assert pairing.compare({}, student, teacher)["never_compared"] == [54, 55]
    pair = pairing.load_pair({}, student, teacher)
    assert pair.vocabulary == 54
    assert [head.weight.shape[0] for head in pair.heads] == [54, 54]
    plain = run("distill", {**OPD, "steps": 2}, inputs, tmp_path / "plain")
    more = run(
        "distill", {**OPD, "steps": 2}, {**inputs, "student": student, "teacher": teacher},
        tmp_path / "more",
    )  # fmt: skip
    assert more.pop("never_compared") == [54, 55]
    note = "note: special tokens of the teacher alone, never compared: ids 54, 55\n"
    assert capsys.readouterr().err.count(note) == 1
    assert more == plain


def test_other_differences_of_tokenizers_stay_errors(inputs: Inputs, tmp_path: Path) -> None:
    """The reverse, which is named; a swap; and a teacher's token where the student has another."""
    student = with_tokens(inputs["student"], tmp_path / "s", "<tool>")
    with pytest.raises(UserError, match=r"token 54 is '<tool>'"):
        pairing.compare({}, student, inputs["teacher"])
    other = with_tokens(inputs["teacher"], tmp_path / "t", "<call>", "<tool>")
    with pytest.raises(UserError, match=r"token 54 is '<tool>' for the student and '<call>' for"):
        pairing.compare({}, student, other)
    swapped = with_swapped_tokens(inputs["teacher"], tmp_path / "w", "4", "7")
    with pytest.raises(UserError, match="token 9 is '4' for the student and '7' for the teacher"):
        pairing.compare({}, inputs["student"], swapped)


def test_thinking_is_compared_as_it_is_read(inputs: Inputs, tmp_path: Path) -> None:
    """A teacher reads what the student's template makes, with its own options for it: what its own
    template would do is shown and no reason to refuse."""
    thinks = init.CHAT_TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}")
    teacher = with_template(inputs["teacher"], tmp_path / "t", thinks)
    chats = [[{"role": "user", "content": question}] for question in ("1+1=", "2")]
    compared = pairing.compare({}, inputs["student"], teacher, chats)
    assert pairing.objections({}, compared) == []
    assert compared["thinking"] == {"student": "left to the model", "teacher": "on"}
    assert compared["templates"]["differing"] == 2
    switch = init.CHAT_TEMPLATE + "{% if think %}<think>{% endif %}"
    student = with_template(inputs["student"], tmp_path / "s", switch)
    assert "thinking is left" in refused(student, student, teacher_chat_template_kwargs={
        "think": True})[0]  # fmt: skip


def test_more_likeliest_tokens_than_there_are(inputs: Inputs, tmp_path: Path) -> None:
    """Of a loss, of a run's measurements, of a probe: the shared rows count, padding is none."""
    from opd.probes import pair
    from opd.probes.rollouts import Rollout

    both = {**inputs, "teacher": padded(inputs["teacher"], tmp_path / "wide", 80)}
    line = "k is 55, but student and teacher have only 54 tokens; use at most 54"
    for change, where in (({"loss": {"k": 55}}, "loss.k"), ({"metrics_k": 55}, "metrics_k")):
        with pytest.raises(UserError, match=f"^{where}: {line}"):
            run("distill", {**OPD, **change}, both, tmp_path / where)
    rollout = Rollout([3, 7, 4], [3, 7, 4], [7])
    with pytest.raises(UserError, match=f"metrics_k: {line}"):
        pair.measure({"temperature": 1.0, "metrics_k": 55, "position_bin": 4}, [rollout], both)
    run("distill", {**OPD, "steps": 1, "loss": {"k": 54}, "metrics_k": 54}, both, tmp_path / "a")


def test_positions_of_a_model_and_of_one_that_is_stretched(inputs: Inputs, tmp_path: Path) -> None:
    assert positions(read_config(inputs["student"])) == 512
    shutil.copytree(inputs["student"], tmp_path / "long")
    path = tmp_path / "long" / "config.json"
    config = json.loads(path.read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config["rope_parameters"] = {**config["rope_parameters"], **yarn}
    path.write_text(json.dumps(config))
    assert positions(read_config(tmp_path / "long")) == 2048


def test_prompt_and_response_beyond_the_context_are_one_line(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Of who samples, who is trained, who teaches and who is read: before anything is done."""
    from opd.microscope import scoring
    from opd.models.sampling import Request, Sampler
    from opd.probes import pair
    from opd.probes.rollouts import Rollout

    prompt = rendered(inputs["student"], "1+1=")
    line = rf"max_new_tokens: .* {510 + len(prompt)} tokens, but the model .* only 512 positions"
    sampler = Sampler(inputs["student"], {"max_new_tokens": 510, "max_prompt_tokens": 9, "seed": 0})
    with pytest.raises(UserError, match=line):
        sampler.sample([Request("a", prompt)])
    with pytest.raises(UserError, match=r"max_new_tokens: .*student has only 512 positions"):
        run("distill", {**OPD, "max_new_tokens": 511}, inputs, tmp_path / "a")
    with pytest.raises(UserError, match=r"max_new_tokens: .*student has only 512 positions"):
        run("grpo", {**GRPO, "max_new_tokens": 511}, inputs, tmp_path / "g")
    tables.write(tmp_path / "pairs.parquet", [{
        "id": "a", "prompt": "1+1=", "response": "2" * 600}], SFT_PAIRS)  # fmt: skip
    sft = {**SFT, "batch_size": 1, "max_tokens": 900}
    with pytest.raises(UserError, match=r"max_tokens: .*student has only 512 positions"):
        run("sft", sft, {**inputs, "data": tmp_path}, tmp_path / "f")
    short = with_template(inputs["teacher"], tmp_path / "short", init.CHAT_TEMPLATE)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 10}))
    with pytest.raises(UserError, match=r"max_new_tokens: .*short has only 10 positions"):
        run("distill", OPD, {**inputs, "teacher": short}, tmp_path / "b")
    told = {
        "information": [{"message": "{question}" + "?" * 600}],
        "max_teacher_prompt_tokens": 999,
    }
    with pytest.raises(UserError, match=r"max_new_tokens: .*teacher has only 512 positions"):
        run("distill", {**OPD, **told}, inputs, tmp_path / "t")
    rollout = Rollout(prompt, prompt, [7] * 8)
    with pytest.raises(UserError, match=r"generations: .*short has only 10 positions"):
        pair.measure({"temperature": 1.0}, [rollout], {**inputs, "teacher": short})
    models = pairing.load_pair({}, inputs["student"], short)
    with pytest.raises(UserError, match=r"max_new_tokens: .*short has only 10 positions"):
        scoring.compare(models, prompt, prompt, [7] * 8)

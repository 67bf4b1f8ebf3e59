"""SFT: which tokens are trained on, packing, what is held out, NLL and perplexity."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from probing import with_template
from tiny import SFT, Inputs, course, files, run
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import SFT_PAIRS
from opd.models import init, pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.sampling import Request, Sampler
from opd.training import sft

# As Qwen3's chat template: an empty think block before an answer without one, always when answered,
# and in the prompt where thinking is off.
QWEN3 = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{%- set content = message.content %}{%- set thought = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1] %}"
    "{%- endif %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' }}"
    "{{- content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
ASKED = "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
BLOCK = "<think>\n\n</think>\n\n"
END = "<|im_end|>\n"
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def qwen3() -> Any:
    """A tokenizer with Qwen3's special tokens and chat template, and its way with newlines."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r" ?\p{L}+|\p{N}|[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["What is 1+1?\n\n\nIt is 2\n\n"] * 9, trainer)
    made.add_special_tokens([AddedToken(t) for t in ("<|im_start|>", "<|im_end|>")])
    made.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=QWEN3
    )


def pair(response: str) -> list[dict[str, str]]:
    return [{"id": "a", "prompt": "What is 1+1?", "response": response}]


@pytest.mark.parametrize(
    ("place", "kwargs", "response", "prompt_end", "trained"),
    [
        (None, {}, "It is 2", "", BLOCK + "It is 2" + END),
        (None, OFF, "It is 2", BLOCK, "It is 2" + END),
        ("response", {}, "It is 2", "", BLOCK + "It is 2" + END),
        ("prompt", {}, "It is 2", BLOCK, "It is 2" + END),
        ("prompt", OFF, "It is 2", BLOCK, "It is 2" + END),
        ("none", {}, "It is 2", "", "It is 2" + END),
        # Nothing is stripped, and a thought that is there is kept and gets no empty one beside it.
        ("response", {}, "\n\nIt is 2 ", "", BLOCK + "\n\nIt is 2 " + END),
        ("none", {}, "\nIt is 2", "", "\nIt is 2" + END),
        ("response", {}, "<think>\nhm\n</think>\n\n2", "", "<think>\nhm\n</think>\n\n2" + END),
        ("none", {}, "<think>\nhm\n</think>\n\n2", "", "<think>\nhm\n</think>\n\n2" + END),
    ],
)
def test_where_the_empty_think_block_goes(
    qwen3: Any, place: Any, kwargs: Any, response: str, prompt_end: str, trained: str
) -> None:
    """To the byte, and to the token: the prompt is what generation sees, the block is encoded by
    itself."""

    def encode(text: str) -> list[int]:
        return qwen3(text, add_special_tokens=False)["input_ids"]

    encoded = sft.as_rendered if place is None else sft.with_empty_think
    cfg = {"chat_template_kwargs": kwargs, "empty_think": place}
    ((prompt, answer),) = encoded(pair(response), qwen3, cfg, Path("p"))
    assert qwen3.decode(prompt) == ASKED + prompt_end
    assert qwen3.decode(answer) == trained
    assert prompt == encode(ASKED) + encode(prompt_end)
    if place is not None:
        block = BLOCK if trained.startswith(BLOCK) else ""
        assert answer == encode(block) + encode(trained.removeprefix(block))


def test_conventions_that_the_chat_template_contradicts(qwen3: Any) -> None:
    for place in ("response", "none"):
        with pytest.raises(
            UserError, match=f"empty_think: {place}: .* think tag .*enable_thinking"
        ):
            cfg = {"chat_template_kwargs": OFF, "empty_think": place}
            sft.with_empty_think(pair("2"), qwen3, cfg, Path("p"))
    with pytest.raises(
        UserError, match=r"pairs: row 0 \(a\): the response has a think tag of its own"
    ):
        thought = pair("<think>x</think>2")
        sft.with_empty_think(thought, qwen3, {"empty_think": "prompt"}, Path("pairs"))


def test_a_prompt_that_changes_once_answered(qwen3: Any) -> None:
    import copy

    other = copy.deepcopy(qwen3)
    other.chat_template = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match=r"p: row 0 \(a\): the chat template renders the prompt"):
        sft.as_rendered(pair("2"), other, {}, Path("p"))


def test_labels_are_the_response() -> None:
    assert sft.labelled(([1, 2, 3], [4, 5])) == {
        "input_ids": [1, 2, 3, 4, 5],
        "labels": [-100, -100, -100, 4, 5],
    }


def test_what_remains_of_a_long_pair() -> None:
    whole = ([1, 2, 3], [4, 5, 6])
    for overlong in ("error", "drop", "cut"):
        assert sft.within_limit(whole, 6, overlong) == whole
    assert sft.within_limit(whole, 5, "cut") == ([1, 2, 3], [4, 5])
    assert sft.within_limit(whole, 4, "cut") == ([1, 2, 3], [4])
    assert sft.within_limit(whole, 3, "cut") is None
    assert sft.within_limit(whole, 5, "drop") is None


def lengths(inputs: Inputs) -> list[int]:
    rows = tables.read(inputs["data"] / "pairs.parquet", SFT_PAIRS).to_pylist()
    # <user> question <assistant> response <eos>, a token a character.
    return [len(row["prompt"]) + len(row["response"]) + 3 for row in rows]


def test_pairs_that_are_too_long_are_counted(inputs: Inputs, tmp_path: Path) -> None:
    found = lengths(inputs)
    limit = sorted(found)[12]
    long = sum(n > limit for n in found)
    assert 0 < long < 8
    cfg = {**SFT, "max_tokens": limit}
    counts = run("sft", {**cfg, "overlong": "drop"}, inputs, tmp_path / "a")["pairs"]
    assert (counts["given"], counts["dropped"], counts["cut"]) == (20, long, 0)
    assert counts["trained"] == counts["measured"] == 20 - long
    counts = run("sft", {**cfg, "overlong": "cut"}, inputs, tmp_path / "b")["pairs"]
    assert (counts["dropped"], counts["cut"], counts["trained"]) == (0, long, 20)
    with pytest.raises(UserError, match="every pair is longer than max_tokens"):
        run("sft", {**SFT, "max_tokens": 3, "overlong": "cut"}, inputs, tmp_path / "c")


def naive_nll(model_at: Path, inputs: Inputs, kept: list[int] | None = None) -> float:
    """Mean over all response tokens, one sequence at a time, from the logits."""
    model = AutoModelForCausalLM.from_pretrained(model_at).double()
    tokenizer = AutoTokenizer.from_pretrained(model_at)
    rows = tables.read(inputs["data"] / "pairs.parquet", SFT_PAIRS).to_pylist()
    losses: list[float] = []
    for i in range(len(rows)) if kept is None else kept:
        chat = [{"role": "user", "content": rows[i]["prompt"]}]
        start = len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        chat.append({"role": "assistant", "content": rows[i]["response"]})
        ids = tokenizer.apply_chat_template(chat)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(logp[t - 1, ids[t]]) for t in range(start, len(ids))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("micro_batch", [3, 20])
def test_nll_and_perplexity_before_and_after(
    inputs: Inputs, tmp_path: Path, micro_batch: int
) -> None:
    """Against one sequence at a time, whatever goes through the model together."""
    cfg = {**SFT, "steps": 4, "batch_size": micro_batch, "micro_batch": micro_batch}
    numbers = run("sft", cfg, inputs, tmp_path / "a")
    before, after = naive_nll(inputs["student"], inputs), naive_nll(tmp_path / "a", inputs)
    assert numbers["pairs"]["measured"] == 20
    assert course(tmp_path / "a", "nll_nats") == pytest.approx([before, after], rel=1e-5)
    assert after < before
    assert numbers["first"]["perplexity"] == pytest.approx(math.exp(before), rel=1e-4)
    assert numbers["last"]["perplexity"] == pytest.approx(math.exp(after), rel=1e-4)


def test_nll_falls(inputs: Inputs, tmp_path: Path) -> None:
    cfg = {**SFT, "steps": 60, "lr": 1e-2, "warmup": 0.0}
    numbers = run("sft", cfg, inputs, tmp_path / "a")
    assert numbers["last"]["nll_nats"] < numbers["first"]["nll_nats"] - 1


def test_what_is_held_out_is_measured_and_not_trained_on(inputs: Inputs, tmp_path: Path) -> None:
    """Other responses in the rows held out change their NLL and nothing else."""
    out = sft.held_out(20, 0.3, SFT["seed"])
    assert len(out) == len(set(out)) == 6 and out == sorted(out)
    assert out != sft.held_out(20, 0.3, SFT["seed"] + 1)
    cfg = {**SFT, "held_out": 0.3, "nll_every": 2, "steps": 5}
    numbers = run("sft", cfg, inputs, tmp_path / "a")
    assert (numbers["pairs"]["trained"], numbers["pairs"]["held_out"]) == (14, 6)
    rows = tables.read(inputs["data"] / "pairs.parquet", SFT_PAIRS).to_pylist()
    for i in out:
        rows[i]["response"] = rows[i]["response"][::-1]
    data = tmp_path / "data"
    data.mkdir()
    tables.write(data / "pairs.parquet", rows, SFT_PAIRS)
    run("sft", cfg, {**inputs, "data": data}, tmp_path / "b")
    ours, theirs = files(tmp_path / "a"), files(tmp_path / "b")
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert course(tmp_path / "a", "loss") == course(tmp_path / "b", "loss")
    nll = course(tmp_path / "a", "nll_nats")
    assert len(nll) == 4  # steps 0, 2, 4 and the last
    assert nll[0] == pytest.approx(naive_nll(inputs["student"], inputs, out), rel=1e-5)
    assert nll[-1] == pytest.approx(naive_nll(tmp_path / "a", inputs, out), rel=1e-5)
    assert not set(nll) & set(course(tmp_path / "b", "nll_nats"))


def test_no_more_than_nll_traces_are_measured(inputs: Inputs, tmp_path: Path) -> None:
    numbers = run("sft", {**SFT, "nll_traces": 3}, inputs, tmp_path / "a")
    assert numbers["pairs"]["measured"] == 3
    # Measuring leaves no trace in what is trained.
    run("sft", {**SFT, "nll_every": 1}, inputs, tmp_path / "b")
    assert course(tmp_path / "a", "loss") == course(tmp_path / "b", "loss")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("share", "words"), [(0.01, "none held out"), (0.99, "leaves none to train on")]
)
def test_a_held_out_share_that_leaves_nothing(
    inputs: Inputs, tmp_path: Path, share: float, words: str
) -> None:
    with pytest.raises(UserError, match=f"held_out: .*{words}"):
        run("sft", {**SFT, "held_out": share}, inputs, tmp_path / "a")


def test_epochs_take_every_pair(inputs: Inputs, tmp_path: Path) -> None:
    """20 pairs by 6: three whole steps and one of 2 in each epoch."""
    cfg = {**SFT, "epochs": 2, "batch_size": 6, "lr": 1e-9}
    del cfg["steps"]
    run("sft", cfg, inputs, tmp_path / "a")
    assert len(course(tmp_path / "a", "loss")) == 8
    with pytest.raises(UserError, match=r"20 pairs cannot fill a step of 21; .*epochs"):
        run("sft", {**SFT, "batch_size": 21}, inputs, tmp_path / "b")


def test_packed_pairs_have_the_loss_of_pairs_alone(inputs: Inputs, tmp_path: Path) -> None:
    """All pairs in one step: the token mean, its gradient and the NLL after it are the same."""
    cfg = {**SFT, "epochs": 1, "batch_size": 20, "warmup": 0.0}
    del cfg["steps"]
    alone = run("sft", cfg, inputs, tmp_path / "alone")
    packed = run("sft", {**cfg, "packing": True}, inputs, tmp_path / "packed")
    assert -(-sum(lengths(inputs)) // 64) <= packed["pairs"]["packed"] < 20
    for name in ("loss", "grad_norm"):
        assert packed["first"][name] == pytest.approx(alone["first"][name], rel=1e-5), name
    assert packed["last"]["nll_nats"] == pytest.approx(alone["last"]["nll_nats"], rel=1e-5)
    assert len(course(tmp_path / "packed", "loss")) == 1


@pytest.fixture
def base(inputs: Inputs, tmp_path: Path) -> Path:
    """A base model: it ends with <eos>, and its chat template ends a turn with <user>."""
    template = init.CHAT_TEMPLATE.replace("<eos>", "<user>")
    return with_template(inputs["student"], tmp_path / "base", template)


def test_a_base_model_stops_at_the_end_of_turn_that_it_was_trained_on(
    base: Path, inputs: Inputs, tmp_path: Path
) -> None:
    pair = {"id": "a", "prompt": "1+1=", "response": "it is 2."}
    data = tmp_path / "data"
    data.mkdir()
    tables.write(data / "pairs.parquet", [pair], SFT_PAIRS)
    cfg = {**SFT, "steps": 150, "lr": 2e-2, "batch_size": 1, "warmup": 0.0}
    cfg["execution"] = {"keep_steps": [1]}
    numbers = run("sft", cfg, {"student": base, "data": data}, tmp_path / "tuned")
    assert numbers["last"]["nll_nats"] < 0.05  # it has learnt the one pair
    # As an instruct model of the family: it stops at both.
    teacher = shutil.copytree(base, tmp_path / "teacher")
    GenerationConfig(eos_token_id=[3, 1]).save_pretrained(teacher)
    for student in (tmp_path / "tuned", tmp_path / "tuned-scratch" / "kept" / "1"):
        compared = pairing.compare({}, student, teacher)
        assert compared["end_ids"] == {"student": [1, 3], "teacher": [1, 3], "turn": [3]}
        assert pairing.objections({}, compared) == []
    greedy = {"temperature": 0.0, "max_new_tokens": 20, "max_prompt_tokens": 9, "seed": 0}
    sampler = Sampler(tmp_path / "tuned", greedy)
    (prompt,) = sampler.tokenize([pair], ["a"])
    (response,) = sampler.sample([Request("a", prompt)])
    assert (response.text, response.finish) == ("it is 2.", "stop")
    assert response.token_ids[-1] == 3
    # With the source's settings the same weights go on and on.
    shutil.copy(base / "generation_config.json", tmp_path / "tuned")
    (response,) = Sampler(tmp_path / "tuned", greedy).sample([Request("a", prompt)])
    assert response.text.startswith("it is 2.") and len(response.token_ids) > 9


def test_a_model_that_stops_at_its_turn_end_is_saved_as_it_was(
    inputs: Inputs, tmp_path: Path
) -> None:
    run("sft", {**SFT, "steps": 1}, inputs, tmp_path / "a")
    ours, theirs = (
        json.loads((folder / "generation_config.json").read_text())
        for folder in (tmp_path / "a", inputs["student"])
    )
    assert ours == theirs and theirs["eos_token_id"] == 1


def test_liger_needs_a_gpu(inputs: Inputs, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"liger: .*need a GPU"):
        run("sft", {**SFT, "liger": True}, inputs, tmp_path / "a")


def test_a_tokenizer_without_a_chat_template(inputs: Inputs, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inputs["student"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="bare: the tokenizer has no chat template"):
        load_tokenizer(tmp_path / "bare")

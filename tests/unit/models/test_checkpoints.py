"""Checkpoints as they come from elsewhere: what is wrong with one is said in a line, in bounded
time and memory."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny import SFT, SHAPE, Inputs, run
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

from opd.core.errors import UserError
from opd.models import checkpoints, init, sampling

WEIGHTS, CONFIG, GENERATION = "model.safetensors", "config.json", "generation_config.json"
TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    init.run(SHAPE, {}, folder)
    return folder


def load(folder: Path) -> None:
    tokenizer = checkpoints.load_tokenizer(folder)
    sampling.stop_ids(folder, tokenizer)
    checkpoints.load_model(folder)


def settings(file: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        old = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**old, **values}))

    return change


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(content) and None


def weights(change: Callable[[dict[str, Any], str], Any]) -> Callable[[Path], None]:
    """Changes the embeddings among the weights."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors, "model.embed_tokens.weight")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        old = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(change(old))

    return changed


DEEP = "[" * 100_000
LOOPS = "".join(f"{{% for {i} in range(99999) %}}" for i in "abc") + "{% endfor %}" * 3
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "template: syntax": (text(TEMPLATE, "{{ messages"), "chat template .TemplateSyntaxError"),
    "template: type": (text(TEMPLATE, "{{ 1 + 'a' }}"), "chat template .TypeError"),
    "template: refuses": (text(TEMPLATE, "{{ raise_exception('no') }}"), "TemplateError: no"),
    "template: for ever": (text(TEMPLATE, LOOPS), "takes more than 1 s for a short question"),
    "template: memory": (text(TEMPLATE, "{{ 'x' * 800000000 }}"), "takes more than 512 MiB"),
    "template: long": (text(TEMPLATE, "{{ 'x' * 2000000 }}"), "it makes 2,000,000 characters"),
    "tokenizer: kind": (settings(SETTINGS, tokenizer_class=5), "tokenizer .AttributeError"),
    "tokenizer: list": (text(SETTINGS, "[]"), "no usable tokenizer"),
    "tokenizer: empty": (text(TOKENIZER, "{}"), "tokenizer .KeyError"),
    "tokenizer: deep": (text(TOKENIZER, DEEP), "tokenizer .RecursionError"),
    "size: text": (settings(CONFIG, hidden_size="big"), "hidden_size"),
    "size: 0": (settings(CONFIG, num_attention_heads=0), "weights .ZeroDivisionError"),
    "size: negative": (settings(CONFIG, hidden_size=-4), "negative dimension"),
    "size: huge": (settings(CONFIG, hidden_size=10**9), "no usable weights"),
    "layers: huge": (
        settings(CONFIG, num_hidden_layers=10**9, layer_types=None),
        "num_hidden_layers is 1000000000",
    ),
    "settings: list": (text(CONFIG, "[]"), "no usable tokenizer"),
    "settings: model": (settings(CONFIG, model_type="none"), "model type `none`"),
    "settings: quantised": (settings(CONFIG, quantization_config=[1]), "AttributeError"),
    "stop ids: text": (settings(GENERATION, eos_token_id="x"), "eos_token_id is x"),
    "stop ids: nested": (settings(GENERATION, eos_token_id=[1, {}]), "eos_token_id is .1, {}"),
    "stop ids: no JSON": (text(GENERATION, "{"), "not a valid JSON file"),
    "weights: cut": (bytes_of(lambda old: old[: len(old) // 2]), "no usable weights"),
    "weights: none": (bytes_of(lambda old: b""), "header too small"),
    "weights: header": (bytes_of(lambda old: struct.pack("<Q", 2**62) + old[8:]), "too large"),
    "weights: NaN": (
        weights(lambda w, k: w[k][0].fill_(float("nan"))),
        "embed_tokens.* not finite",
    ),
    "weights: infinite": (weights(lambda w, k: w[k][0].fill_(float("inf"))), "is not finite"),
    "weights: missing": (weights(lambda w, k: w.pop(k)), "is not among them"),
    "weights: shape": (weights(lambda w, k: w.update({k: w[k][:1].clone()})), "usable weights"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_wrong_with_a_checkpoint_is_one_line(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(checkpoints, "TEMPLATE_CPU_SECONDS", 1)
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    damage, reason = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError, match=reason) as error:
        load(folder)
    line = str(error.value)
    assert line.startswith(f"{folder}: ") and "\n" not in line and len(line) < 700


def test_a_sound_checkpoint_is_loaded_also_without_stop_ids_of_its_own(
    sound: Path, tmp_path: Path
) -> None:
    shutil.copytree(sound, tmp_path / "model")
    (tmp_path / "model" / GENERATION).unlink()
    load(tmp_path / "model")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x: can't allocate memory: y")])
def test_want_of_memory_is_no_fault_of_a_file(error: Exception) -> None:
    with pytest.raises(type(error)), checkpoints.reading(Path("m"), "weights"):
        raise error


TEXT = "Answer in a box.\n\nThe sum of 12 and 345 is \\boxed{357}."


def byte_level(folder: Path, tokenizer_class: str, digits: bool = False) -> Tokenizer:
    """A tokenizer of bytes put into a checkpoint of a Llama, by the name of a class, as
    R1-Distill-Llama-8B has it."""
    tokenizer = Tokenizer(BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = [pre_tokenizers.Digits(individual_digits=True), by_bytes] if digits else [by_bytes]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "12 345 357 345"] * 20, trainer)
    tokenizer.save(str(folder / TOKENIZER))
    own = {"tokenizer_class": tokenizer_class, "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (folder / SETTINGS).write_text(json.dumps({**own, "chat_template": template}))
    (folder / TEMPLATE).unlink(missing_ok=True)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer_class", "digits"),
    [("LlamaTokenizerFast", False), ("GPT2Tokenizer", True), ("PreTrainedTokenizerFast", True)],
)
def test_a_tokenizer_is_what_its_tokenizer_json_says(
    tokenizer_class: str, digits: bool, sound: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    settings(CONFIG, model_type="llama")(folder)
    written = byte_level(folder, tokenizer_class, digits)
    tokenizer = checkpoints.load_tokenizer(folder)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert ids == written.encode(TEXT, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == TEXT and tokenizer.padding_side == "left"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")


@pytest.mark.parametrize("call", [{"padding": "max_length"}, {"truncation": True}])
def test_how_a_tokenizer_was_called_last_is_no_part_of_it(
    call: dict[str, Any], sound: Path, tmp_path: Path
) -> None:
    """It is saved with it, and every call sets it anew."""
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    tokenizer = checkpoints.load_tokenizer(folder)
    before = tokenizer.encode(TEXT)
    tokenizer("a", max_length=4 if "truncation" in call else 512, **call)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())[next(iter(call))]
    assert checkpoints.load_tokenizer(folder).encode(TEXT) == before


def test_a_trained_model_has_the_tokenizer_of_its_student(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    shutil.copytree(inputs["student"], folder)
    shape = json.loads((folder / CONFIG).read_text())
    written = byte_level(folder, "LlamaTokenizerFast")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=written.get_vocab_size(),
            **{k: shape[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")},
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=0,
        )
    )
    model.save_pretrained(folder)
    run("sft", {**SFT, "steps": 1}, {**inputs, "student": folder}, tmp_path / "trained")
    trained = checkpoints.load_tokenizer(tmp_path / "trained")
    assert trained.decode(trained.encode(TEXT, add_special_tokens=False)) == TEXT
    saved = Tokenizer.from_file(str(tmp_path / "trained" / TOKENIZER))
    assert saved.encode(TEXT).ids == written.encode(TEXT, add_special_tokens=False).ids

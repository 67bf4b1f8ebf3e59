"""Fetching a checkpoint: from the hub at a locked revision, or from a folder."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import file_digest, link_files, read_json

# Weights in safetensors, configuration, tokenizer, chat template and sentence-transformers modules.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
# Left by scripts/unpack_weights.py.
UNPACKED = ".unpacked.json"


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``fetch``: an ordinary Hugging Face checkpoint at the top of ``out``. What a killed one
    has in ``scratch`` of a hub's files is not fetched again.

    cfg: exactly one of hub (with revision: 40 hex digits) and path (a folder; the input ``files``,
    if given, goes before it). ``dequantised`` in the returned numbers says that the weights were
    unpacked from a quantised file, so they are not the original ones.
    """
    given = [key for key in ("hub", "path") if cfg.get(key)]
    if len(given) != 1:
        raise UserError(f"{given or 'none'} given", "fetch", "give exactly one of hub, path")
    numbers: dict[str, Any] = {"dequantised": False}
    if cfg.get("hub"):
        _from_hub(cfg["hub"], cfg.get("revision") or "", out, scratch / "download")
    else:
        folder = inputs.get("files") or Path(os.environ.get("OPD_MODEL_DIR", ""), cfg["path"])
        copy_folder(folder, out)
        numbers |= unpacked(folder)
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


def copy_folder(folder: Path, out: Path) -> None:
    """Copy the files of a checkpoint."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", "fetch.path", "mend the path or OPD_MODEL_DIR")
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != UNPACKED):
        if any(file.match(pattern) for pattern in PATTERNS):
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def unpacked(folder: Path) -> dict[str, Any]:
    """What ``scripts/unpack_weights.py`` has written of the origin of a folder's weights (packages,
    dequantised); nothing where it did not make them. Raises ``UserError`` where the weights are not
    the ones that it wrote."""
    if not (folder / UNPACKED).is_file():
        return {}
    record: dict[str, Any] = read_json(folder / UNPACKED)
    if record.pop("weights") != file_digest(folder / "model.safetensors"):
        raise UserError(
            "its weights are not the ones that were unpacked", str(folder), "remove the folder"
        )
    return record

"""Fetching a checkpoint: from the hub at a locked revision, or from a folder."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub

from opd.core.errors import UserError
from opd.core.files import file_digest, files_below, input_files, link_files, read_json
from opd.core.security import refuse_names
from opd.models.source import local, source

# Weights in safetensors, configuration, tokenizer, chat template and sentence-transformers modules.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
# All but the weights.
LIGHT = PATTERNS[1:]
# Left by scripts/unpack_weights.py.
UNPACKED = ".unpacked.json"


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``fetch``: an ordinary Hugging Face checkpoint at the top of ``out``. What a killed one
    has in ``scratch`` of a hub's files is not fetched again.

    cfg: exactly one of hub (with revision: 40 hex digits) and path (a folder; the input ``files``,
    if given, goes before it). ``dequantised`` in the returned numbers says that the weights were
    unpacked from a quantised file, so they are not the original ones.
    """
    sources = [key for key in ("hub", "path") if cfg.get(key)]
    if len(sources) != 1:
        raise UserError(f"{sources or 'none'} given", "fetch", "give exactly one of hub, path")
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
            f"fetch.{sources[0]}: {cfg[sources[0]]}",
            "point it at a Hugging Face checkpoint in safetensors",
        )
    return numbers | {"bytes": sum(file.stat().st_size for file in files_below(out).values())}


def at_hand(text: str, where: str, patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder of a model as it is named on a command line (``opd.models.source``). The files of
    one of the hub lie in the hub's own cache, to which they are fetched: what ``patterns`` match.
    Raises ``UserError`` where there is no such folder, and where the hub does not answer."""
    named = source(text, where)
    if "path" in named:
        folder = local(named["path"])
        if not folder.is_dir():
            raise UserError("no such folder", str(folder), "give the folder of a model")
        return folder
    identifier, revision = named["hub"]["id"], named["hub"].get("revision")
    with _asking_hub(revision, f"{where}: {identifier}", f"; a folder is written ./{text}"):
        return Path(
            huggingface_hub.snapshot_download(
                identifier, revision=revision, allow_patterns=[*patterns]
            )
        )


def run_dataset(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``dataset``: a dataset of the hub as SPLIT.parquet, in its own columns.

    cfg: hub, revision (40 hex digits), optional config.
    """
    import datasets

    hub, revision = cfg["hub"], cfg["revision"]
    with _fetching(hub, revision):
        splits = datasets.load_dataset(hub, cfg.get("config"), revision=revision)
    for name, split in splits.items():
        split.to_parquet(out / f"{name}.parquet")
    return {name: len(split) for name, split in splits.items()}


@contextmanager
def _asking_hub(revision: str | None, where: str, hint: str = "") -> Iterator[None]:
    """Raises ``UserError`` where the hub does not answer with what is asked for."""
    try:
        yield
    except Exception as error:
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"could not be fetched from the hub{at} ({type(error).__name__}: {error})",
            where,
            "check name and revision, log in if it is gated, and see that the hub can be reached"
            + hint,
        ) from error


@contextmanager
def _fetching(hub: str, revision: str) -> Iterator[None]:
    """Raises ``UserError`` for a revision that is no commit, and as ``_asking_hub``."""
    where = f"fetch.hub: {hub}"
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"revision '{revision}' is not locked",
            where,
            "lock it: give the commit's 40 hex digits",
        )
    with _asking_hub(revision, where):
        yield


def _from_hub(hub: str, revision: str, out: Path, folder: Path) -> None:
    with _fetching(hub, revision):
        huggingface_hub.snapshot_download(
            hub, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS)
        )
        api = huggingface_hub.HfApi()
        checked = api.verify_repo_checksums(hub, revision=revision, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if checked.mismatches:
        shutil.rmtree(folder)
        raise UserError(
            f"{checked.mismatches[0]['path']} is not the file that the hub lists at {revision}",
            f"fetch.hub: {hub}",
            "it was damaged on the way or changed: start again, and if that does not help, "
            "ask its owners",
        )
    refuse_names(folder)
    link_files(folder, out)


def without_weights(hub: str, revision: str) -> Path:
    """A folder with all of a checkpoint on the hub but its weights, in the cache of the hub's own
    library. Raises ``UserError`` as the stage does."""
    with _fetching(hub, revision):
        folder = huggingface_hub.snapshot_download(
            hub, revision=revision, allow_patterns=list(LIGHT)
        )
    refuse_names(Path(folder))
    return Path(folder)


def copy_folder(folder: Path, out: Path) -> None:
    """Copy the files of a checkpoint; raises as ``input_files`` and ``refuse_names`` do."""
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", "fetch.path", "mend the path or OPD_MODEL_DIR")
    refuse_names(folder)
    for name, file in input_files(folder).items():
        if Path(name).name != UNPACKED and any(map(Path(name).match, PATTERNS)):
            target = out / name
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

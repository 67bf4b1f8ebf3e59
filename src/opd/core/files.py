"""Digests of plain values and of files, reading JSON, and replacing files in one step."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd.core.errors import UserError


def canonical(value: Any) -> str:
    """The one JSON text of a plain value (sorted keys, no NaN), the base of every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(path: Path) -> dict[str, Path]:
    """All below a folder that is no plain folder, by its relative path: plain files, and links,
    pipes and the like, none of which is followed. One file by its name."""
    if path.is_file():
        return {path.name: path}
    below = sorted(p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    return {p.relative_to(path).as_posix(): p for p in below}


def is_plain(path: Path) -> bool:
    """Whether a path is a file, and no link to one."""
    return path.is_file() and not path.is_symlink()


def made_content(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of all below a folder that was made here. '' stands for what is no
    plain file, or cannot be read: nothing that was made has that."""
    return {name: plain_digest(file) for name, file in files_below(folder).items()}


def plain_digest(path: Path) -> str:
    """sha256 (hex) of a plain file; '' for all else, and for a file that cannot be read."""
    try:
        return file_digest(path) if is_plain(path) else ""
    except OSError:
        return ""


def input_files(path: Path) -> dict[str, Path]:
    """The files below a folder that was not made here by their relative paths, each as the plain
    file that it is; one file by its name. What Python has compiled is none of them: to import a
    file writes it.

    A link may lead to a file of the same folder and, from a snapshot in the hub's cache, to one of
    the blobs of its repository. Raises ``UserError`` for all else that is no plain file.
    """
    top = Path(os.path.realpath(path))
    blobs = [top.parent.parent / "blobs"] if top.parent.name == "snapshots" else []
    files = {
        name: Path(os.path.realpath(file))
        for name, file in files_below(top).items()
        if "__pycache__" not in file.relative_to(top).parts
    }
    for name, file in files.items():
        if not (file.is_file() and any(file.is_relative_to(place) for place in (top, *blobs))):
            kind = "a link that leads out of its folder" if (top / name).is_symlink() else "no file"
            raise UserError(
                f"it is {kind}", f"{path}/{name}", "put a copy in its place, or remove it"
            )
    return {path.name: top} if top.is_file() else files


def content(path: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder (or of the one file ``path``); raises as
    ``input_files`` does."""
    return {name: file_digest(file) for name, file in input_files(path).items()}


# How deep lists and mappings may lie in each other where a text comes from outside: deeper ones end
# in the limits of the interpreter, or past them.
DEEPEST = 100


def bounded(value: Any, most: float = math.inf) -> Any:
    """A value of lists and mappings as it is. Raises ``ValueError`` where these are nested too
    deeply, as what contains itself is, or hold more than ``most`` values when written out."""
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth, most = depth + 1, most - sum(map(len, level))
        if depth > DEEPEST or most < 0:
            raise ValueError("nested too deeply" if depth > DEEPEST else "too many values")
        level = [inner for p in level for inner in (p.values() if isinstance(p, dict) else p)]
    return value


# The most that records and settings may have: a plan of 10,000 artifacts has a tenth of it.
MOST_BYTES = 1 << 28


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """What a file holds. Raises ``ValueError`` where it is more than ``most`` bytes (``MOST_BYTES``
    if not given), of which no more are read."""
    most = MOST_BYTES if most is None else most
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MiB")
    return data


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ``ValueError`` where it is none, or nested too deeply."""
    try:
        return bounded(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ``UserError`` where it is missing or no JSON."""
    try:
        return parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"not readable as JSON ({error})", str(path), "make it again") from error


@contextmanager
def replacing(path: Path, key: str = "") -> Iterator[Path]:
    """A name beside ``path`` to write a file, link or folder under; it becomes ``path`` at the end,
    and is removed where that fails.

    All attempts with the same ``key``, one at a time, use the same name, so that the next one
    clears away what a killed one has left.
    """
    temporary = path.with_name(f".{path.name}{key and '.'}{key[:16]}.partial")
    remove(temporary)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


def make_folder(path: Path) -> Path:
    """A folder that a user has named, made if it is not there. Raises ``UserError`` where it, or
    one above it, is a file."""
    refuse_file(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_file(path: Path) -> None:
    """Raise ``UserError`` where a folder, or one above it, is a file."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            reason = "it is a file, where a folder is to be"
            raise UserError(reason, str(place), "remove or rename it, or name another")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_files(folder: Path, out: Path) -> None:
    """Put every file below ``folder`` at the same place below ``out``: as a hard link, or as a copy
    where that is not possible."""
    for name, path in files_below(folder).items():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)

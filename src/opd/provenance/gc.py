"""``opd gc``: what lies in the store that no artifact links to, and its removal when told so.

An artifact below ``results/NAME`` needs the entry of the store with its identity. Whatever a stage
works on at the moment is locked, and left alone.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from opd.core.errors import UserError
from opd.stages import lock as owner

KINDS = {
    "unused": "results that no artifact links to, as of settings that were edited since",
    "stopped": "checkpoints and unfinished work of stages that are not running",
    "cache": "sampled responses and embeddings, which later runs would take from there",
}

# Locks held at a time: each is an open file.
BATCH = 200


def find(results: Path) -> dict[str, dict[str, list[Path]]]:
    """Kind -> identity (or a name) -> paths that make it up."""
    store = results / ".store"
    if not store.is_dir():
        raise UserError("there is no store in it", str(results), "name the folder that has .store")
    used = identities(results)
    found: dict[str, dict[str, list[Path]]] = {kind: defaultdict(list) for kind in KINDS}
    for path in sorted(store.iterdir()):
        if path.name == ".scratch":
            for scratch in sorted(path.iterdir()):
                found["stopped"][scratch.name].append(scratch)
        elif path.name == ".cache":
            for part in sorted(path.iterdir()):
                found["cache"][part.name].append(part)
        else:
            hidden = path.name.startswith(".")  # what a killed stage was writing
            identity = path.name.strip(".").partition(".")[0]
            if hidden or identity not in used:
                found["stopped" if hidden else "unused"][identity].append(path)
    return found


def identities(results: Path) -> set[str]:
    """Identities of all artifacts below a folder of results: what they say, and link to."""
    found = set()
    for name in sorted(p for p in results.iterdir() if p.is_dir() and p.name != ".store"):
        for folder, folders, files in os.walk(name):
            if "payload" in (*folders, *files):
                found.add(Path(os.path.realpath(Path(folder, "payload"))).name)
            if "digest.json" in files:
                try:
                    found.add(str(json.loads(Path(folder, "digest.json").read_text())["identity"]))
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # its link tells
    return found


def size(paths: Iterable[Path]) -> int:
    """Bytes on the disk below some paths; a file of several names counts once."""
    found = {}
    for path in paths:
        for one in (path, *path.rglob("*")):
            status = one.lstat()
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def lines(results: Path, remove: Sequence[str] = ()) -> Iterator[str]:
    """What to print, kind by kind; removes what is of a kind in ``remove`` and not being used."""
    for kind, entries in find(results).items():
        total = size(path for paths in entries.values() for path in paths)
        yield f"{kind}: {len(entries)}, {total / 1e6:,.1f} MB ({KINDS[kind]})"
        if kind not in remove:
            for name, paths in entries.items():
                yield f"  {size(paths) / 1e6:>10,.1f} MB  {paths[0]}{_told(results, name)}"
            continue
        removed = (
            _without_cache(results, entries)
            if kind == "cache"
            else _removed(results, kind, entries)
        )
        gone = set(removed)
        yield f"  removed {len(gone)}, left {len(entries) - len(gone)} that are being used"


def _told(results: Path, identity: str) -> str:
    """What an entry of the store is, by its record."""
    try:
        made = json.loads((results / ".store" / f"{identity}.json").read_text())
        return f"  {made['verb']}, {made['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _removed(results: Path, kind: str, entries: dict[str, list[Path]]) -> Iterator[str]:
    names = sorted(entries)
    for start in range(0, len(names), BATCH):
        with ExitStack() as locks:
            free, ours = [], []
            for name in names[start : start + BATCH]:
                scratch = results / ".store" / ".scratch" / name
                new = not scratch.exists()
                lock = owner.take(scratch)
                if lock is not None:
                    locks.enter_context(closing(lock))
                    free.append(name)
                    ours += [scratch] if new else []
            # A stage may have linked one before its lock was taken.
            used = identities(results) if kind == "unused" else set()
            for name in free:
                if name not in used:
                    for path in entries[name]:
                        _delete(path)
                    _delete(results / ".store" / ".cache" / "verified" / f"{name}.json")
                    yield name
            for scratch in ours:
                _delete(scratch)


def _without_cache(results: Path, entries: dict[str, list[Path]]) -> Iterator[str]:
    """Any stage that runs may be using any of it."""
    scratch = results / ".store" / ".scratch"
    if not (scratch.is_dir() and any(owner.held(one) for one in scratch.iterdir())):
        for name, paths in entries.items():
            for path in paths:
                _delete(path)
            yield name


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

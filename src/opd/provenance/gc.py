"""``opd gc``: what lies in the store that no artifact links to, and its removal when told so.

An artifact below ``results/NAME`` needs the entry of the store with its identity. Whatever a stage
works on at the moment is locked, and left alone.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import remove
from opd.stages import lock, on_disk, verify
from opd.stages.records import Manifest, digest_in, load

KINDS = {
    "unused": "results that no artifact links to, as of settings that were edited since",
    "stopped": "checkpoints and unfinished work of stages that are not running",
    "cache": "responses, embeddings and rows of the hub, which later runs would take from there",
}

# Locks held at a time: each is an open file.
BATCH = 200


def find(results: Path) -> dict[str, dict[str, list[Path]]]:
    """Kind -> identity (or a name) -> paths that make it up."""
    store = results / ".store"
    if not store.is_dir():
        remedy = "name the folder that has .store"
        for above in results.absolute().parents:
            if (above / ".store").is_dir():
                remedy = f"it is in {os.path.relpath(above)}: name that"
        raise UserError("there is no store in it", str(results), remedy)
    used = identities(results)
    kinds: dict[str, dict[str, list[Path]]] = {kind: defaultdict(list) for kind in KINDS}
    for path in sorted(store.iterdir()):
        if path.name in (".scratch", ".cache"):
            kind = "stopped" if path.name == ".scratch" else "cache"
            for part in sorted(path.iterdir()):
                kinds[kind][part.name].append(part)
        else:
            hidden = path.name.startswith(".")  # what a killed stage was writing
            identity = path.name.strip(".").partition(".")[0]
            if hidden or identity not in used:
                kinds["stopped" if hidden else "unused"][identity].append(path)
    return kinds


def identities(results: Path) -> set[str]:
    """Identities of all artifacts below a folder of results: what they say, and link to."""
    used = set()
    for root in (p for p in results.iterdir() if p.is_dir() and p.name != ".store"):
        for folder in on_disk.folders(root, all_links=True):
            payload, record = root / folder / "payload", digest_in(root / folder)
            if os.path.lexists(payload):
                used.add(Path(os.path.realpath(payload)).name)
            if record:
                used.add(record.identity)
    return used


def size(paths: Iterable[Path]) -> int:
    """Bytes on the disk below some paths; a file of several names counts once, and none that a
    running stage removes meanwhile."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        # Unlike rglob, os.walk stands a folder that is gone before it is read.
        walked = (Path(above, name) for above, *names in os.walk(path) for name in chain(*names))
        for below in (path, *walked):
            with suppress(FileNotFoundError):
                status = below.lstat()
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def as_json(results: Path) -> dict[str, Any]:
    """What there is as plain data: kind -> name -> bytes and paths."""
    return {
        kind: {n: {"bytes": size(paths), "paths": [*map(str, paths)]} for n, paths in found.items()}
        for kind, found in find(results).items()
    }


def lines(results: Path, delete: Sequence[str] = ()) -> Iterator[str]:
    """What to print, kind by kind; removes what is of a kind in ``delete`` and not being used."""
    for kind, entries in find(results).items():
        total = size(path for paths in entries.values() for path in paths)
        yield f"{kind}: {len(entries)}, {total / 1e6:,.1f} MB ({KINDS[kind]})"
        if kind not in delete:
            for name, paths in entries.items():
                made, _ = load(results / ".store" / f"{name}.json", Manifest)
                origin = f"  {made.stage}, {made.started}" if made else ""
                yield f"  {size(paths) / 1e6:>10,.1f} MB  {paths[0]}{origin}"
            continue
        removed = len([*_removed(results, kind, entries)])
        yield f"  removed {removed}, left {len(entries) - removed} that are being used"


def _removed(results: Path, kind: str, entries: dict[str, list[Path]]) -> Iterator[str]:
    """Remove entries, and name each."""
    names, store = sorted(entries), results / ".store"
    if kind == "cache":
        # Any stage that runs may be using any of it.
        if not any(lock.held(scratch) for scratch in (store / ".scratch").glob("*")):
            for path in (path for paths in entries.values() for path in paths):
                remove(path)
            yield from entries
        return
    for start in range(0, len(names), BATCH):
        with ExitStack() as locks:
            free = {}  # name -> the scratch folder, where taking its lock has made it
            for name in names[start : start + BATCH]:
                scratch = store / ".scratch" / name
                own = [] if scratch.exists() else [scratch]
                if (taken := lock.take(scratch)) is not None:
                    locks.enter_context(closing(taken))
                    free[name] = own
            # A stage may have linked one before its lock was taken.
            used = identities(results) if kind == "unused" else set()
            for name, own in free.items():
                unlinked = name not in used
                parts = [*entries[name], verify.memory(store, name)] if unlinked else []
                for path in (*parts, *own):
                    remove(path)
                if unlinked:
                    yield name

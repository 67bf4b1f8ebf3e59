"""Whether an artifact's files are as they were made. What has been read since it last changed is
remembered by size, times of content and of inode, and inode number, and not read again. Damage by
the disk itself, which leaves all of these as they were, is for an audit to find.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from opd.core.errors import UserError
from opd.core.files import files_below, parse_json, plain_digest, replacing
from opd.stages import check
from opd.stages.records import Digest, Finding, load

# The clock of a file system may be this coarse: what changed just now may change again unseen.
TICK_NS = 20_000_000

Stamp = list[int]


def stamps(folder: Path) -> dict[str, Stamp]:
    """Relative path -> what tells whether a file was written to, of all below a folder that is no
    plain folder."""
    statuses = {name: path.lstat() for name, path in files_below(folder).items()}
    return {n: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for n, s in statuses.items()}


def remember(path: Path, seen: Mapping[str, tuple[Stamp, str]]) -> None:
    """Write down what was read; where that is not possible it is read again the next time."""
    old = time.time_ns() - TICK_NS
    settled = {name: [mark, sha] for name, (mark, sha) in seen.items() if max(mark[1:3]) < old}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settled))


def _changes(folder: Path, outputs: Mapping[str, str], memory: Path | None) -> list[Finding]:
    """What is wrong with the files below ``folder``, of which ``outputs`` has the digests.
    ``memory`` is the file in which the digests of what was read are kept, if any."""
    known: dict[str, tuple[Stamp, str]] = {}
    # A memory that is missing or damaged is none.
    with suppress(OSError, ValueError, AttributeError, TypeError):
        text = memory.read_text() if memory else "{}"
        known = {name: (mark, sha) for name, (mark, sha) in parse_json(text).items()}
    seen = {}
    for name, mark in stamps(folder).items():
        old = known.get(name)
        # A memory that speaks against a file is not believed: it may be what is damaged.
        if old is None or old != (mark, outputs.get(name)):
            old = mark, plain_digest(folder / name)
        seen[name] = old
    if memory and seen != known:
        remember(memory, seen)
    return list(check.files(outputs, {name: sha for name, (_, sha) in seen.items()}))


def artifact(record: Path, look: bool = False) -> tuple[Path, dict[str, str], str]:
    """An artifact by its ``digest.json``: folder with its files, their digests, its identity.
    Raises ``UserError`` where it is not as it was made; ``look`` leaves that to the caller."""
    mend = f"remove {record} and run snakemake again"
    made, damage = load(record, Digest)
    if made is None:
        reason = f"damaged, as it {damage.reason}" if damage else "damaged"
        raise UserError(reason, str(record), mend)
    payload = record.parent / "payload"
    if not payload.exists():
        raise UserError("the artifact's payload is gone from the store", str(payload), mend)
    if look:
        return payload, made.outputs, made.identity
    # A copy of a results folder may have the files themselves here.
    entry = Path(os.path.realpath(payload)) if payload.is_symlink() else None
    if entry and entry.name != made.identity:
        raise UserError("digest.json and payload are not of one run", str(record.parent), mend)
    wrong = _changes(payload, made.outputs, entry and memory(entry.parent, made.identity))
    if wrong:
        first = f"{wrong[0].where} {wrong[0].reason}"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"modified after it was made: {first}{more}", str(payload), mend)
    return payload, made.outputs, made.identity


def memory(store: Path, identity: str) -> Path:
    """Where a store keeps what was read of an artifact's files."""
    return store / ".cache" / "verified" / f"{identity}.json"

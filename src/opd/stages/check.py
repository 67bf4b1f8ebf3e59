"""What is wrong with an artifact as it lies there: findings on files, records, settings and inputs.

``opd audit`` looks at all of it, and others at the part that they need.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.files import digest, files_below, is_plain, plain_digest
from opd.stages.identity import adopted_identity, identity
from opd.stages.on_disk import Made
from opd.stages.records import Digest, Finding, Manifest, Planned, State, digest_in, plain, read

WEIGHTS = ".safetensors"
# NAME.removed in the place of weights says that they were removed as planned (opd.stages.removal),
# NAME.left-out in the place of any file that a crate was made without it (opd.provenance.export).
REMOVED, LEFT_OUT = ".removed", ".left-out"


def mark(sha256: str) -> str:
    """The text of the file in the place of one that was removed or left out."""
    return f"{sha256}\n"


def removed(outputs: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Weights that were removed as planned -> their mark, which has their digest. Both arguments as
    for ``files``."""
    weights = {name: sha256 for name, sha256 in outputs.items() if name.endswith(WEIGHTS)}
    return _marked(weights, now, REMOVED)


def left_out(outputs: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Files that a crate was made without -> their mark, which has their digest. Both arguments as
    for ``files``."""
    return _marked(outputs, now, LEFT_OUT)


def _marked(outputs: Mapping[str, str], now: Mapping[str, str], ending: str) -> dict[str, str]:
    return {
        name: f"{name}{ending}"
        for name, sha256 in outputs.items()
        if now.get(f"{name}{ending}") == hashlib.sha256(mark(sha256).encode()).hexdigest()
    }


def files(
    outputs: Mapping[str, str], now: Mapping[str, str], folder: str = ""
) -> Iterator[Finding]:
    """Files against the digests that they were made with: name -> sha256 (empty for what is no
    plain file, or cannot be read). What was ``removed`` or ``left_out`` counts as there. ``folder``
    goes before the names."""
    marks = removed(outputs, now) | left_out(outputs, now)
    there = {name: sha256 for name, sha256 in now.items() if name not in marks.values()}
    now = {name: outputs[name] for name in marks} | there
    for name in sorted({*outputs, *now}):
        if name not in now:
            yield Finding(State.MISSING, f"{folder}{name}", "is gone")
        elif name not in outputs:
            yield Finding(State.MODIFIED, f"{folder}{name}", "was added")
        elif now[name] != outputs[name]:
            reason = "was changed" if now[name] else "is no plain file, or cannot be read"
            yield Finding(State.MODIFIED, f"{folder}{name}", reason)


class Trusted(NamedTuple):
    """The records of an artifact that nothing speaks against, and what speaks against others."""

    digest: Digest | None
    manifest: Manifest | None
    findings: list[Finding]

    @property
    def contents(self) -> str:
        """The digest of the artifact's contents; empty where its records do not agree."""
        return digest(self.digest.outputs) if self.digest and self.manifest else ""


def records(made: Made) -> Trusted:
    """Hold the records of an artifact against themselves and each other."""
    findings = [*made.damage.values()]
    record = made.digest if "digest.json" not in made.damage else None
    manifest = made.manifest if "manifest.json" not in made.damage else None
    if manifest and expected_identity(manifest) != manifest.identity:
        findings.append(Finding(State.MODIFIED, "manifest.json", NOT_ITS_IDENTITY))
        manifest = None
    if record and manifest and (unlike := disagreement(record, manifest)):
        # The manifest has a seal, digest.json has none.
        findings.append(unlike)
        record = None
    return Trusted(record, manifest, findings)


NOT_ITS_IDENTITY = "has an identity that does not follow from its settings and inputs"


def expected_identity(made: Manifest) -> str:
    """The identity that follows from what a manifest says."""
    if made.adopted:
        return adopted_identity(made.stage, made.cfg, made.outputs)
    return identity(made.stage, made.cfg, {n: used.outputs for n, used in made.inputs.items()})


def disagreement(record: Digest, made: Manifest) -> Finding | None:
    """Where digest.json does not follow from manifest.json."""
    there, expected = plain(record), plain(made.handed_on)
    keys = sorted(k for k in {*there, *expected} if there.get(k) != expected.get(k))
    reason = f"differs from what manifest.json says ({', '.join(keys)})"
    return Finding(State.MODIFIED, "digest.json", reason) if keys else None


def stands_for(record: Digest | Manifest | None, stage: str, cfg: Mapping[str, Any]) -> bool:
    """Whether something was adopted, for a stage with just these settings."""
    return bool(
        record
        and record.adopted
        and record.identity == adopted_identity(stage, cfg, record.outputs)
    )


def settings(record: Digest | None, planned: Planned) -> Finding | None:
    """That an artifact was made with other settings, or by other code, than the plan's. A damaged
    digest.json (None) counts so, too, as nothing is known of it."""
    made_so = record and record.settings == planned.settings
    if made_so or stands_for(record, planned.stage, planned.cfg or {}):
        return None
    older = record.older if record else ""
    return Finding(State.STALE, "config", older or "made with other settings than the config's")


def recorded_contents(folder: Path) -> str:
    """The digest of an artifact's contents as its digest.json says."""
    record = digest_in(folder)
    return digest(record.outputs) if record else "damaged"


def inputs(made: Made, contents: Callable[[Path], str] = recorded_contents) -> Iterator[Finding]:
    """The artifacts that one was made from against what they are now. ``contents`` of a folder: the
    digest of what is in it now; empty where nobody knows."""
    for source in made.inputs:
        if not source.used.made:
            continue
        where, about = f"input {source.name}", f"{source.folder}, which it was made from,"
        if source.place is None:
            yield Finding(State.MISSING, where, f"{about} is gone")
        elif contents(source.place.parent) not in ("", source.used.outputs):
            yield Finding(State.STALE, where, f"{about} was made anew")


def shown(
    made: Made, planned: Planned | None = None, unread: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """Whether an artifact may be shown: its files, its two records against each other, its settings
    against the plan's, its inputs. Of files whose names end with one of ``unread`` only whether
    they are there. Raises ``UserError`` where a record cannot be read."""
    record = read(made.path / "digest.json", Digest)
    manifest = read(made.path / "manifest.json", Manifest)
    payload = made.payload()
    now = {
        name: record.outputs.get(name, "")
        if name.endswith(unread) and is_plain(path)
        else plain_digest(path)
        for name, path in (files_below(payload).items() if payload else ())
    }
    yield from files(record.outputs, now)
    unlike = disagreement(record, manifest)
    stale = settings(record, planned) if planned else None
    yield from filter(None, [unlike, stale])
    if not record.adopted:  # it was not made from its inputs
        yield from inputs(made)

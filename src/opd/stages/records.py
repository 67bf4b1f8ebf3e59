"""The records of artifacts: digest.json, manifest.json and the entries of plan.json.

They are read and written here alone. A record that was written here has one possible text, and a
manifest holds a digest of that text (its seal), so that any change to it shows.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING as NEEDED
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from opd.core.errors import UserError
from opd.core.files import replacing

# Of digest.json and of what identities are digests of: what has another number was made by another
# version of this package, and can be compared with what that version says only.
FORMAT = 2


class State(StrEnum):
    """Whether something is what was made, from what the config says; from worst to best."""

    MODIFIED = "modified"
    MISSING = "missing"
    STALE = "stale"
    ORPHANED = "orphaned"
    COMPLETE = "complete"


class Finding(NamedTuple):
    """What is wrong: the state that follows, the file, setting or input concerned, and why."""

    state: State
    where: str
    reason: str

    @property
    def text(self) -> str:
        """One line; the reason alone tells of which setting or input it speaks."""
        concerned = "" if self.where.startswith(("config", "input ")) else f"{self.where} "
        return f"{self.state}: {concerned}{self.reason}"


@dataclass(frozen=True)
class Used:
    """An input as it was when something was made from it: its path (of an artifact, that of its
    digest.json), its identity (empty for a plain file) and the digest of its contents."""

    path: str
    identity: str
    outputs: str

    @property
    def made(self) -> bool:
        """Whether the input is an artifact, and no plain file or folder."""
        return Path(self.path).name == "digest.json"


@dataclass(frozen=True)
class Digest:
    """digest.json: what is handed on to what depends on an artifact."""

    identity: str
    settings: str
    outputs: dict[str, str]
    format: int = 1
    adopted: bool | None = None

    @property
    def older(self) -> str:
        """That another version of this package wrote it, whose identities cannot be compared with
        those of this one; empty where that is not so."""
        if self.format == FORMAT:
            return ""
        return f"made with {'an older' if self.format < FORMAT else 'a newer'} format"


@dataclass(frozen=True)
class Manifest:
    """manifest.json, and the record of a store entry: what made an artifact, and from what."""

    verb: str
    identity: str
    cfg: dict[str, Any]
    inputs: dict[str, Used]
    outputs: dict[str, str]
    numbers: dict[str, Any] | None
    versions: dict[str, str]
    modules: dict[str, str] | None = None
    host: str = ""
    device: str = ""
    started: str = ""
    seconds: float = 0.0
    gpu: dict[str, Any] | None = None
    adopted: str | None = None


@dataclass(frozen=True)
class Planned:
    """An entry of plan.json: what the config describes for one folder. Plans of earlier versions
    have settings and inputs alone."""

    settings: str
    inputs: list[str]
    folder: str = ""
    verb: str = ""
    cfg: dict[str, Any] | None = None
    asked: bool = False


@dataclass(frozen=True)
class Contents:
    """STEP.json beside the kept steps of a training run, and the part of that in other records."""

    outputs: dict[str, str]


Record = TypeVar("Record", Digest, Manifest, Planned, Contents)

# The keys of records that earlier versions wrote without a seal. All others have one, or never do.
UNSEALED: dict[type, set[str]] = {
    Manifest: {
        *("verb", "identity", "cfg", "inputs", "outputs", "numbers", "versions", "host", "device"),
        *("started", "seconds"),
    },
    Planned: {"settings", "inputs"},
}
# The line that a seal is: it is the digest of all other bytes.
SEAL = re.compile(rb'^ "seal": "([0-9a-f]{64})",\n', re.MULTILINE)
NOT_AS_WRITTEN = "does not have the text that was written"


def json_text(value: Any) -> str:
    """The text of a record: any other text of the same value was not written here."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def plain(record: Digest | Manifest | Planned | Contents) -> dict[str, Any]:
    """A record as the JSON object that is written of it."""
    values = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if value is not None or field.default is NEEDED:
            values[field.name] = value
    if isinstance(record, Manifest):
        values["inputs"] = {name: vars(used) for name, used in record.inputs.items()}
    return values


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of its own text, ``seal``: much of a manifest is in no other."""
    rest = {name: inner for name, inner in value.items() if name != "seal"}
    return rest | {"seal": hashlib.sha256(json_text(rest).encode()).hexdigest()}


def write_json(path: Path, value: Any, key: str = "") -> None:
    """Write a JSON value in one step; ``key`` as in ``opd.core.files.replacing``."""
    with replacing(path, key or str(os.getpid())) as temporary:
        temporary.write_text(json_text(value))


def write(path: Path, record: Digest | Manifest | Contents, key: str = "") -> None:
    """Write a record in one step, a manifest with its seal."""
    value = plain(record)
    write_json(path, sealed(value) if isinstance(record, Manifest) else value, key)


def load(path: Path, kind: type[Record]) -> tuple[Record | None, Finding | None]:
    """A record, None where its file is missing or holds none, and what is wrong with the file."""
    try:
        record, reason = parse(path.read_bytes(), kind)
    except FileNotFoundError:
        return None, Finding(State.MISSING, path.name, "is gone")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        return None, Finding(State.MODIFIED, path.name, reason)
    return record, Finding(State.MODIFIED, path.name, reason) if reason else None


def digest_in(folder: Path) -> Digest | None:
    """The digest.json of an artifact's folder; None where it is missing or damaged."""
    return load(folder / "digest.json", Digest)[0]


def read(path: Path, kind: type[Record]) -> Record:
    """A record. Raises ``UserError`` where its file is missing or holds none."""
    record, finding = load(path, kind)
    if record is None:
        assert finding is not None
        raise UserError(f"damaged: {finding.reason}", str(path), "remove it and run snakemake")
    return record


def parse(text: bytes, kind: type[Record]) -> tuple[Record | None, str]:
    """The record that a text holds, if it holds one, and what is wrong with the text, if anything
    is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return None, f"is no JSON ({error})"
    record, reason = checked(value, kind)
    if record is None:
        return None, reason
    parts = SEAL.split(text)
    if len(parts) == 3 and hashlib.sha256(parts[0] + parts[2]).hexdigest().encode() == parts[1]:
        return record, ""
    return record, reason if json_text(value).encode() == text else NOT_AS_WRITTEN


def checked(value: Any, kind: type[Record]) -> tuple[Record | None, str]:
    """The record that a JSON value is, if it is one, and what is wrong with its keys or its seal,
    if anything is."""
    if not isinstance(value, dict):
        return None, "is no JSON object"
    known = {field.name: field for field in fields(kind)}
    for name, field in known.items():
        if name not in value:
            if field.default is NEEDED:
                return None, f"has no {name}"
        elif not _fits(value[name], field.type):
            return None, f"says nothing of use under {name}"
    found: dict[str, Any] = {name: value[name] for name in known if name in value}
    if kind is Manifest:
        found["inputs"] = {name: Used(**used) for name, used in value["inputs"].items()}
    record = kind(**found)
    if "seal" in value:
        return record, "" if sealed(value) == value else "was changed after it was sealed"
    keys_fit = value.keys() == UNSEALED[kind] if kind in UNSEALED else value.keys() <= known.keys()
    return record, "" if keys_fit else "does not have the keys of a record"


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type of a field."""
    if kind == dict[str, Used]:
        keys = {field.name for field in fields(Used)}
        return _fits(value, dict[str, Any]) and all(
            _fits(used, dict[str, str]) and used.keys() == keys for used in value.values()
        )
    if kind == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(x, str) for x in value.values())
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(x, str) for x in value)
    if kind is float:
        return isinstance(value, int | float)
    members = get_args(kind)
    if type(None) in members:
        return value is None or _fits(value, members[0])
    return isinstance(value, dict if members else kind)

"""The records of artifacts: digest.json, manifest.json and the entries of plan.json.

They are read and written here alone. A record that was written here has one possible text, and a
manifest holds a digest of that text (its seal), so that any change to it shows.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from opd.core.errors import UserError
from opd.core.files import is_plain, parse_json, read_bytes, replacing
from opd.stages.identity import settings_digest

# Of digest.json and of what identities are digests of: what has another number was made by another
# version of this package, and can be compared with what that version says only.
FORMAT = 3


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
        in_reason = self.where == "config" or self.where.startswith(("config: ", "input "))
        concerned = "" if in_reason else f"{self.where} "
        return f"{self.state}: {concerned}{self.reason}"


class Record(BaseModel):
    """What all records have in common: values are taken as they are, or refused."""

    model_config = ConfigDict(strict=True, frozen=True)


class Used(Record):
    """An input as it was when something was made from it: its path (of an artifact, that of its
    digest.json), its identity (empty for a plain file) and the digest of its contents."""

    path: str
    identity: str
    outputs: str

    @property
    def made(self) -> bool:
        """Whether the input is an artifact, and no plain file or folder."""
        return Path(self.path).name == "digest.json"


class Contents(Record):
    """STEP.json beside the kept steps of a training run, and the part of that in other records."""

    outputs: dict[str, str]


class Digest(Contents):
    """digest.json: what is handed on to what depends on an artifact."""

    identity: str
    settings: str
    format: int = FORMAT
    adopted: bool | None = None

    @property
    def older(self) -> str:
        """What to say of what another version of this package wrote; empty for its own work."""
        if self.format == FORMAT:
            return ""
        return f"made with {'an older' if self.format < FORMAT else 'a newer'} format"


class Manifest(Contents):
    """manifest.json, and the record of a store entry: what made an artifact, and from what."""

    stage: str = Field(validation_alias=AliasChoices("stage", "verb"))  # "verb" up to format 2
    identity: str
    cfg: dict[str, Any]
    inputs: dict[str, Used]
    numbers: Annotated[dict[str, Any], BeforeValidator(lambda numbers: numbers or {})] = {}
    versions: dict[str, str] = {}
    modules: dict[str, str] = {}
    host: str = ""
    device: str = ""
    started: str = ""
    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_memory_mib: int = 0  # of its largest process
    gpu: dict[str, Any] | None = None
    adopted: str | None = None
    format: int = FORMAT

    @property
    def handed_on(self) -> Digest:
        """The digest.json that goes with it."""
        return Digest(
            identity=self.identity,
            settings=settings_digest(self.stage, self.cfg),
            outputs=self.outputs,
            format=self.format,
            adopted=bool(self.adopted) or None,
        )


class Planned(Record):
    """An entry of plan.json: what the config describes for one folder. Plans of earlier versions
    have settings and inputs alone."""

    settings: str
    inputs: list[str]
    folder: str = ""
    stage: str = Field(default="", validation_alias=AliasChoices("stage", "verb"))
    cfg: dict[str, Any] | None = None
    asked: bool = False


Kind = TypeVar("Kind", bound=Record)

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


def plain(record: Record) -> dict[str, Any]:
    """A record as the JSON object that is written of it."""
    return record.model_dump(exclude_none=True)


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of its own text, ``seal``: much of a manifest is in no other."""
    rest = {name: inner for name, inner in value.items() if name != "seal"}
    return rest | {"seal": hashlib.sha256(json_text(rest).encode()).hexdigest()}


def write_json(path: Path, value: Any, key: str = "") -> None:
    """Write a JSON value in one step; ``key`` as in ``opd.core.files.replacing``."""
    with replacing(path, key or str(os.getpid())) as temporary:
        temporary.write_text(json_text(value))


def write(path: Path, record: Record, key: str = "") -> None:
    """Write a record in one step, a manifest with its seal."""
    value = plain(record)
    write_json(path, sealed(value) if isinstance(record, Manifest) else value, key)


def load(path: Path, kind: type[Kind]) -> tuple[Kind | None, Finding | None]:
    """A record, None where its file is missing or holds none, and what is wrong with the file."""
    if path.exists() and not is_plain(path):
        return None, Finding(State.MODIFIED, path.name, "is no plain file")
    try:
        record, reason = parse(read_bytes(path), kind)
    except FileNotFoundError:
        return None, Finding(State.MISSING, path.name, "is gone")
    except ValueError as error:
        return None, Finding(State.MODIFIED, path.name, f"is no record ({error})")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        return None, Finding(State.MODIFIED, path.name, reason)
    return record, Finding(State.MODIFIED, path.name, reason) if reason else None


def digest_in(folder: Path) -> Digest | None:
    """The digest.json of an artifact's folder; None where it is missing or damaged."""
    return load(folder / "digest.json", Digest)[0]


def read(path: Path, kind: type[Kind]) -> Kind:
    """A record. Raises ``UserError`` where its file is missing or holds none."""
    record, finding = load(path, kind)
    if record is None:
        assert finding is not None
        raise UserError(f"damaged: {finding.reason}", str(path), "remove it and run snakemake")
    return record


def parse(text: bytes, kind: type[Kind]) -> tuple[Kind | None, str]:
    """The record that a text holds, if any, and what is wrong with the text, if anything."""
    try:
        value = parse_json(text)
    except ValueError as error:
        return None, f"is no JSON ({error})"
    record, reason = checked(value, kind)
    if record is None:
        return None, reason
    parts = SEAL.split(text)
    if len(parts) == 3 and hashlib.sha256(parts[0] + parts[2]).hexdigest().encode() == parts[1]:
        return record, ""
    return record, reason if json_text(value).encode() == text else NOT_AS_WRITTEN


def checked(value: Any, kind: type[Kind]) -> tuple[Kind | None, str]:
    """The record that a JSON value is, if any, and what is wrong with its keys or its seal."""
    try:
        # What earlier versions wrote has no format.
        formatted = "format" in kind.model_fields and isinstance(value, Mapping)
        record = kind.model_validate({"format": 1, **value} if formatted else value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return None, f"cannot be used: {key and f'{key}: '}{first['msg']}"
    if "seal" in value:
        return record, "" if sealed(value) == value else "was changed after it was sealed"
    known = kind.model_fields.keys()
    fits = value.keys() == UNSEALED[kind] if kind in UNSEALED else value.keys() <= known
    return record, "" if fits else "does not have the keys of a record"

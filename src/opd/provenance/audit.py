"""``opd audit``: whether what lies in a results folder is what was made, and is current.

Every file is hashed, every record is held against itself, its payload, the records of its inputs
and the plan. Nothing is written, and nothing but the folder is needed: no ``.snakemake/``, and no
store behind a copy whose links were followed. docs/audit.md says what that proves.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.files import digest
from opd.core.hashing import hashed
from opd.provenance import records as trail
from opd.provenance.diff import changes, told
from opd.provenance.records import Artifact
from opd.stages import identity as identities
from opd.stages import manifest, registry
from opd.stages.fresh import as_written
from opd.stages.keep import steps_of

# From worst to best: an artifact has the worst of what was found.
STATES = ("modified", "missing", "stale", "orphaned", "whole")
MODIFIED, MISSING, STALE, ORPHANED, WHOLE = STATES

# What records without a seal hold, as earlier versions wrote them.
_MANIFEST = {
    *("verb", "identity", "cfg", "inputs", "outputs", "numbers", "versions", "host", "device"),
    *("started", "seconds"),
}
# The line that a seal is: it is the digest of all other bytes.
_SEAL = re.compile(rb'^ "seal": "([0-9a-f]{64})",\n', re.MULTILINE)
_PLANNED = {"settings", "inputs"}
_RECORD = {"identity", "settings", "outputs"}
_NOT_MADE = "its bytes are not those that were made"

Plan = Mapping[str, Mapping[str, Any]]
Record = Mapping[str, Any]


class Finding(NamedTuple):
    """What is wrong: the state that it means, which file, setting or input, and what is with it."""

    state: str
    where: str
    what: str


class Audited(NamedTuple):
    """An artifact, or a file or store entry that is none, and what was found. ``drift``: versions
    {package: (then, now)}; ``absent``: plain files it was made from that are not here."""

    place: str
    verb: str
    findings: tuple[Finding, ...]
    drift: Mapping[str, tuple[str, str]] = {}
    absent: tuple[str, ...] = ()
    adopted: bool = False

    @property
    def state(self) -> str:
        return min((one.state for one in self.findings), key=STATES.index, default=WHOLE)


class Around(NamedTuple):
    """What an artifact is held to: the plan, the store where links lead nowhere, sha256 of files,
    digests of the contents of artifacts, and the versions of now."""

    plan: Plan | None
    store: Path | None
    sha: Mapping[Path, str]
    contents: Mapping[Path, str]
    versions: Mapping[str, str]


class Audit(NamedTuple):
    """All that was looked at. ``unused``: bytes of store entries that nothing links; ``prints``: a
    digest of all that was made in a results folder, by its name."""

    audited: Sequence[Audited]
    unused: Mapping[str, int]
    prints: Mapping[str, str]
    files: int
    bytes: int


def audit(given: Path, plan: Plan | None = None, store: Path | None = None) -> Audit:
    """Look at ``results``, at one results folder, or at an artifact and all behind it.

    plan: what a config describes (``opd.stages.fresh.described``); what the last run found
    (``plan.json``) if not given. store: where the files are whose links lead nowhere. Raises
    ``UserError`` where there is nothing to look at.
    """
    path = given.absolute()
    roots = trail.results_folders(path)
    artifacts = [trail.artifact(root, name) for root in roots for name in trail.folders(root)]
    if not roots:
        artifacts = trail.behind(trail.locate(given))
    plans = {root: plan or _plan(root) for root in {one.root for one in artifacts}}
    entries = _entries(path / ".store")
    paths = [file for one in artifacts for file in _files(one, store)]
    files = hashed([*paths, *(file for entry in entries for file in _below(entry).values())])

    several = len(roots) > 1
    contents = {one.path: _contents(one) for one in artifacts}
    versions = manifest.versions()
    audited = []
    for one in artifacts:
        around = Around(plans[one.root], store, files.of, contents, versions)
        found = _artifact(one, around)
        audited.append(
            found._replace(place=f"{one.root.name}/{one.folder}" if several else one.folder)
        )
    for root in roots:
        own = [one for one in artifacts if one.root == root]
        for found in _folder(root, plans.get(root), own):
            place = f"{root.name}/{found.place}" if several else found.place
            audited.append(found._replace(place=place))
    linked = {(one.path / "payload").resolve() for one in artifacts}
    loose = [entry for entry in entries if entry.resolve() not in linked]
    for entry in loose:
        findings = (*_stored(entry, files.of),)
        if findings:
            audited.append(Audited(f".store/{entry.name}", "", findings))
    return Audit(
        audited,
        {one.name: sum(file.stat().st_size for file in _below(one).values()) for one in loose},
        {root.name: _print([one for one in artifacts if one.root == root]) for root in roots},
        files.files,
        files.bytes,
    )


def fails(found: Audit, allow: Iterable[str] = (), strict: bool = False) -> bool:
    """Whether anything is in another state than whole and those to ``allow``; ``strict``: or was
    made by other versions, or is in the store and linked by nothing."""
    if {one.state for one in found.audited} - {WHOLE, *allow}:
        return True
    return strict and (bool(found.unused) or any(one.drift for one in found.audited))


def _print(artifacts: Iterable[Artifact]) -> str:
    """A digest of what was made, when and where it was made apart; so without the report."""
    made = {one.folder: one.record for one in artifacts if not registry.looks(one.verb)}
    return digest(made)


# What is to be hashed


def _below(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path below it."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _entries(store: Path) -> list[Path]:
    if not store.is_dir():
        return []
    return sorted(p for p in store.iterdir() if p.is_dir() and _is_identity(p.name))


def _is_identity(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")


def _entry(one: Artifact) -> Path | None:
    """The store entry that an artifact links; None where it holds its files itself."""
    link = one.path / "payload"
    entry = link.resolve()
    return entry if link.is_symlink() and entry.is_dir() and _is_identity(entry.name) else None


def _plain(one: Artifact) -> Iterator[tuple[str, Record, Path | None]]:
    """The inputs that are plain files or folders of such."""
    for name, used, place in trail.inputs(one):
        if Path(used["path"]).name != "digest.json":
            yield name, used, place


def _within(path: Path) -> dict[str, Path]:
    """The files of a folder, or the one file, by their names in ``opd.core.files.content``."""
    return {path.name: path} if path.is_file() else _below(path)


def _files(one: Artifact, store: Path | None) -> Iterator[Path]:
    payload = trail.payload(one, store)
    if payload:
        yield from _below(payload).values()
    entry = _entry(one)
    if entry:
        yield from _below(steps_of(entry)).values()
    yield from (path for path in trail.copies(one).values() if path.is_file())
    for _, _, place in _plain(one):
        if place:
            yield from _within(place).values()


# Records


def _unsound(path: Path, known: set[str]) -> Finding | None:
    """What is wrong with a record's file by itself; None where nothing is. ``known``: its keys
    where it has no seal."""
    try:
        said = _misread(path.read_bytes(), known)
    except FileNotFoundError:
        return Finding(MISSING, path.name, "it is gone")
    except OSError as error:
        said = f"it cannot be read ({error.strerror})"
    return Finding(MODIFIED, path.name, said) if said else None


def _misread(text: bytes, known: set[str]) -> str | None:
    parts = _SEAL.split(text)
    if len(parts) == 3 and sha256(parts[0] + parts[2]).hexdigest().encode() == parts[1]:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is no JSON ({error})"
    if not isinstance(value, dict) or manifest.json_text(value).encode() != text:
        return "its text is not as it was written"
    return _broken(value, known)


def _broken(value: Record, known: set[str]) -> str | None:
    if "seal" not in value:
        return None if value.keys() == known else "its keys are not those of a record"
    return None if manifest.sealed(value) == value else "it was changed after it was sealed"


def _plan(root: Path) -> Plan | None:
    """plan.json of a results folder, with nothing said of what is damaged in it; None where there
    is none."""
    plan = trail.parsed(root / "plan.json")
    if plan is None:
        return None
    return {name: {} if _misplanned(name, one) else one for name, one in plan.items()}


def _misplanned(name: str, one: Any) -> str | None:
    """What is wrong with an entry of a plan by itself."""
    if not isinstance(one, dict) or one.get("folder", name) != name:
        return "it is no entry of this plan"
    return _broken(one, _PLANNED)


def _expected(made: Record) -> str:
    """The identity that follows from what a manifest says; empty where it does not say enough."""
    try:
        if made.get("adopted"):
            return identities.adopted_identity(made["verb"], made["cfg"], made["outputs"])
        used = {name: one["outputs"] for name, one in made["inputs"].items()}
        return identities.identity_of(made["verb"], made["cfg"], used)
    except (AttributeError, KeyError, TypeError):
        return ""


# One artifact


def _artifact(one: Artifact, around: Around) -> Audited:
    sha = around.sha
    known = {"digest.json": {*_RECORD, *_marks(one)}, "manifest.json": _MANIFEST}
    records = (_unsound(one.path / name, keys) for name, keys in known.items())
    findings = [found for found in records if found]
    older = identities.older(one.record)
    wrong = {finding.where for finding in findings}
    record = None if "digest.json" in wrong else one.record
    made = None if "manifest.json" in wrong else one.manifest
    if made and _expected(made) != made.get("identity"):
        said = "its identity does not follow from its settings and inputs"
        findings.append(Finding(MODIFIED, "manifest.json", said))
        made = None
    unlike = [*_related(record, made)] if record and made and not older else []
    if unlike:
        # The manifest has a seal, digest.json has none.
        findings, record = [*findings, *unlike], None
    identity = (made or record or one.record or one.manifest or {}).get("identity")
    outputs = (record or made or {}).get("outputs") or one.outputs
    findings += _payload(one, outputs, around.store, sha)
    findings += _copied(one, outputs, around.plan, sha)
    entry = _entry(one)
    if entry:
        findings += _linked(entry, identity, sha)
    if older:
        findings.append(Finding(STALE, "digest.json", f"{older}: run the workflow to make it anew"))
    elif made:
        # What was adopted was not made from its inputs, nor by any code here.
        if not made.get("adopted"):
            findings += [*_inputs(one, sha, around.contents), *_code(made)]
        findings += _planned(one, made, around.plan)
    return Audited(
        one.folder,
        one.verb,
        (*findings,),
        _drift(made, around.versions) if made else {},
        (*(used["path"] for _, used, place in _plain(one) if place is None),),
        bool(made and made.get("adopted")),
    )


def _marks(one: Artifact) -> set[str]:
    """Keys of a digest.json that not every one has."""
    record = one.record or {}
    return {"format"} & record.keys() | ({"adopted"} if record.get("adopted") is True else set())


def _related(record: Record, made: Record) -> Iterator[Finding]:
    """digest.json against manifest.json."""
    should = manifest.hand_off(made["verb"], made["cfg"], made)
    keys = sorted(key for key in {*record, *should} if record.get(key) != should.get(key))
    if keys:
        yield Finding(MODIFIED, "digest.json", f"{', '.join(keys)}: not as manifest.json says")


def _compared(
    made: Mapping[str, str], there: Mapping[str, Path], sha: Mapping[Path, str], at: str
) -> Iterator[Finding]:
    """Files against the digests that they were made with."""
    for name in sorted({*made, *there}):
        if name not in there:
            yield Finding(MISSING, f"{at}/{name}", "it is gone")
        elif name not in made:
            yield Finding(MODIFIED, f"{at}/{name}", "it was added")
        elif (found := sha.get(there[name], "")) != made[name]:
            said = _NOT_MADE if found else "it cannot be read"
            yield Finding(MODIFIED, f"{at}/{name}", said)


def _payload(
    one: Artifact, outputs: Mapping[str, str], store: Path | None, sha: Mapping[Path, str]
) -> Iterator[Finding]:
    folder = trail.payload(one, store)
    if folder is None:
        link = (one.path / "payload").is_symlink()
        said = "its link leads nowhere; name the store with --store" if link else "it is gone"
        yield Finding(MISSING, "payload", said)
    elif outputs:
        yield from _compared(outputs, _below(folder), sha, "payload")


def _copied(
    one: Artifact, outputs: Mapping[str, str], plan: Plan | None, sha: Mapping[Path, str]
) -> Iterator[Finding]:
    for name, path in trail.copies(one).items():
        where = path.relative_to(one.root).as_posix()
        if not path.is_file():
            # Made by hand, an artifact has copies only where they were asked for.
            if plan and one.folder in plan:
                yield Finding(MISSING, where, "it is gone")
        elif outputs and sha.get(path) != outputs.get(name):
            yield Finding(MODIFIED, where, f"it is not {name} of its artifact")


def _linked(entry: Path, identity: Any, sha: Mapping[Path, str]) -> Iterator[Finding]:
    """The store entry behind an artifact: whether it is its own, and its record and kept steps."""
    if entry.name != identity:
        yield Finding(MODIFIED, "payload", f"it links another entry of the store, {entry.name}")
        return
    yield from _recorded(entry)
    steps = steps_of(entry)
    kept = {p.name.removesuffix(".json") for p in steps.iterdir()} if steps.is_dir() else set()
    for step in sorted(kept):
        where, record = f"kept step {step}", steps / f"{step}.json"
        wrong = _unsound(record, {"outputs"})
        if wrong:
            yield wrong._replace(where=f"{where}.json")
        else:
            made = (trail.parsed(record) or {})["outputs"]
            yield from _compared(made, _below(steps / step), sha, where)


def _recorded(entry: Path) -> Iterator[Finding]:
    """The record beside a store entry."""
    path = entry.with_name(f"{entry.name}.json")
    wrong = _unsound(path, _MANIFEST)
    record = trail.parsed(path)
    if wrong:
        yield wrong._replace(where=f".store/{path.name}")
    elif record and not entry.name == record.get("identity") == _expected(record):
        said = "its identity does not follow from its settings and inputs"
        yield Finding(MODIFIED, f".store/{path.name}", said)


def _stored(entry: Path, sha: Mapping[Path, str]) -> Iterator[Finding]:
    """A store entry that nothing links. Without a record it is never used, and counts as none."""
    record = trail.parsed(entry.with_name(f"{entry.name}.json"))
    if record is not None:
        yield from _recorded(entry)
        yield from _compared(record.get("outputs", {}), _below(entry), sha, "files")


def _contents(one: Artifact) -> str:
    """The digest of an artifact's contents; empty where its records do not agree: then what was
    made from it cannot be told from what it is now."""
    record, made = one.record, one.manifest
    if not record or not made or _expected(made) != made.get("identity"):
        return ""
    same = identities.older(record) or manifest.hand_off(made["verb"], made["cfg"], made) == record
    if not same:
        return ""
    return "" if _unsound(one.path / "manifest.json", _MANIFEST) else digest(record["outputs"])


def _inputs(
    one: Artifact, sha: Mapping[Path, str], contents: Mapping[Path, str]
) -> Iterator[Finding]:
    for name, used, place in trail.inputs(one):
        where = f"input {name}"
        if Path(used["path"]).name == "digest.json":
            if place is None:
                said = f"{trail.below(used['path'])[:-12]}, which it was made from, is gone"
                yield Finding(MISSING, where, said)
                continue
            folder = place.parent.absolute()
            found = contents.get(folder)
            if found is None:  # outside of what is looked at
                found = _contents(trail.at(one.root, folder))
            if found not in ("", used["outputs"]):
                said = f"{trail.below(used['path'])[:-12]} was made anew since"
                yield Finding(STALE, where, said)
        elif place:
            there = {file: sha.get(path, "") for file, path in _within(place).items()}
            if digest(there) != used["outputs"]:
                yield Finding(STALE, where, f"data: {used['path']} has changed since")


def _code(made: Record) -> Iterator[Finding]:
    verb, code = made["verb"], made["cfg"].get("code")
    if code is None or verb not in registry.STAGES or code == identities.code_digest(verb):
        return
    then, now = made.get("modules") or {}, identities.modules(verb)
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    said = ", ".join(changed) if then else "which modules was not recorded"
    yield Finding(STALE, "code", f"changed since: {said}")


def _planned(one: Artifact, made: Record, plan: Plan | None) -> Iterator[Finding]:
    """An artifact against what the config describes now."""
    if plan is None:
        return
    if one.folder not in plan:
        yield Finding(ORPHANED, "config", "it names no such artifact")
        return
    wanted = plan[one.folder]
    if not wanted:
        return
    if "cfg" not in wanted:
        if identities.settings_digest(made["verb"], made["cfg"]) != wanted["settings"]:
            yield Finding(STALE, "config", "made with other settings, or by other code")
        return
    then = {"verb": made["verb"], **told(made["cfg"])}
    now = {"verb": wanted["verb"], **told(wanted["cfg"])}
    for key, old, new in changes(then, now):
        yield Finding(STALE, f"config: {key}", f"{short(old)} then, {short(new)} now")
    if made.get("adopted") or then != now:
        return
    given = zip(trail.inputs(one), wanted["inputs"], strict=False)
    for (name, used, _), folder in given:
        path = trail.below(used["path"]).removesuffix("/digest.json")
        if not Path(folder).is_absolute() and path != folder:
            yield Finding(STALE, f"config: input {name}", f"{path} then, {folder} now")


def short(value: Any) -> str:
    """A setting in a few words."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _drift(made: Record, now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    then = made.get("versions") or {}
    return {p: (then[p], now[p]) for p in sorted(then) if p in now and then[p] != now[p]}


# A results folder


def _folder(root: Path, plan: Plan | None, artifacts: Sequence[Artifact]) -> Iterator[Audited]:
    """What is no artifact, or should be one: the plan, files of none, and what is not there."""
    path = root / "plan.json"
    if path.is_file():
        whole = trail.parsed(path)
        said = "it is no JSON"
        if whole is not None:
            damaged = {name: _misplanned(name, one) for name, one in whole.items()}
            said = "; ".join(f"{name}: {why}" for name, why in damaged.items() if why)
            if not said and manifest.json_text(whole).encode() != path.read_bytes():
                said = "its text is not as it was written"
        if said:
            yield Audited("plan.json", "", (Finding(MODIFIED, "plan.json", said),))
    config = root / "config.yaml"
    if config.is_file() and not as_written(config):
        said = "it is not what the run wrote"
        yield Audited(config.name, "", (Finding(MODIFIED, config.name, said),))
    known = {path, config}
    for one in artifacts:
        known |= {one.path / name for name in ("digest.json", "manifest.json", "running.json")}
        known |= {*trail.copies(one).values()}
    for file in trail.loose(root):
        if file not in known:
            place = file.relative_to(root).as_posix()
            yield Audited(place, "", (Finding(ORPHANED, place, "a file of no artifact"),))
    there = {one.folder for one in artifacts}
    for folder, wanted in (plan or {}).items():
        if wanted.get("asked") and folder not in there:
            finding = Finding(MISSING, folder, "the config asks for it, and it is not there")
            yield Audited(folder, wanted["verb"], (finding,))

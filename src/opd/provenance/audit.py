"""``opd audit``: whether what lies in a results folder is what was made, and is current.

Every file is hashed, every record is held against itself, its payload, the records of its inputs
and the plan. Nothing is written, and nothing but the folder is needed: no ``.snakemake/``, and no
store behind a copy whose links were followed. docs/audit.md says what that proves.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import digest, files_below, input_files, is_plain
from opd.core.hashing import hashed
from opd.core.html import render
from opd.core.text import size
from opd.provenance.diff import changes, settings_of
from opd.stages import check, naming, on_disk, registry, run
from opd.stages.check import Trusted
from opd.stages.fresh import as_written, read_plan
from opd.stages.keep import steps_of
from opd.stages.on_disk import Made
from opd.stages.records import Contents, Finding, Manifest, Planned, State, load, plain

PAGES = package_file(__file__, "pages")

Plan = Mapping[str, Planned | None]


class Audited(NamedTuple):
    """An artifact, or a file or store entry that is none, and what is wrong with it. ``drift``:
    versions {package: (then, now)}; ``absent``: plain files it was made from that are not here;
    ``removed``: weights of a kept step that were removed as planned; ``left_out``: files that a
    crate was made without."""

    place: str
    stage: str
    findings: tuple[Finding, ...]
    drift: Mapping[str, tuple[str, str]] = {}
    absent: tuple[str, ...] = ()
    adopted: bool = False
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The worst state of the findings."""
        return min((x.state for x in self.findings), key=[*State].index, default=State.COMPLETE)


class Audit(NamedTuple):
    """All that was looked at. ``unused``: bytes of store entries that nothing links; ``prints``: a
    digest of all that was made in a results folder, by its name."""

    audited: Sequence[Audited]
    unused: Mapping[str, int]
    prints: Mapping[str, str]
    files: int
    bytes: int


class Around(NamedTuple):
    """What an artifact is held to: the plan, the store where links lead nowhere, sha256 of files,
    the records of all artifacts by their paths, and the versions of now."""

    plan: Plan | None
    store: Path | None
    sha: Mapping[Path, str]
    trusted: Mapping[Path, Trusted]
    versions: Mapping[str, str]

    def hashes(self, folder: Path) -> dict[str, str]:
        """Name -> sha256 of the files below a folder."""
        return {name: self.sha.get(path, "") for name, path in files_below(folder).items()}

    def contents(self, folder: Path) -> str:
        """The digest of an artifact's contents, also of one outside of what is looked at."""
        folder = Path(os.path.abspath(folder))
        if folder in self.trusted:
            return self.trusted[folder].contents
        return check.records(on_disk.at(folder.parent, folder)).contents


def audit(place: Path, plan: Plan | None = None, store: Path | None = None) -> Audit:
    """Look at ``results``, at one results folder, or at an artifact and all behind it. ``plan`` is
    what a config describes, plan.json if not given; ``store`` has the files of links that lead
    nowhere. Raises ``UserError`` where nothing is there."""
    path = Path(os.path.abspath(place))
    roots = on_disk.results_folders(path)
    artifacts = [Made(root, name) for root in roots for name in on_disk.folders(root)]
    if not roots:
        artifacts = on_disk.behind([naming.locate(place)])
    entries = [entry for entry in sorted((path / ".store").glob("*")) if on_disk.is_entry(entry)]
    paths = [file for made in artifacts for file in _files(made, store)]
    files = hashed([*paths, *(file for entry in entries for file in files_below(entry).values())])
    trusted, versions = {x.path: check.records(x) for x in artifacts}, run.versions()

    audited: list[Audited] = []
    prints = {}
    for root in dict.fromkeys([*roots, *(x.root for x in artifacts)]):
        own = [made for made in artifacts if made.root == root]
        planned = plan or read_plan(root / "plan.json")[0]
        around = Around(planned, store, files.of, trusted, versions)
        looked_at = [_artifact(made, around) for made in own]
        if root in roots:
            looked_at += _folder(root, planned, own)
            # Without when and where it was made, so without the report.
            digests = {x.folder: x.digest for x in own if not registry.looks(x.stage)}
            prints[root.name] = digest({f: made and plain(made) for f, made in digests.items()})
        prefix = f"{root.name}/" if len(roots) > 1 else ""
        audited += [x._replace(place=f"{prefix}{x.place}") for x in looked_at]

    linked = {(made.path / "payload").resolve() for made in artifacts}
    loose = [entry for entry in entries if entry.resolve() not in linked]
    for entry in loose:
        findings = (*_unlinked(entry, Around(None, store, files.of, {}, {})),)
        audited += [Audited(f".store/{entry.name}", "", findings)] if findings else []
    unused = {x.name: sum(f.lstat().st_size for f in files_below(x).values()) for x in loose}
    return Audit(audited, unused, prints, files.files, files.bytes)


def fails(result: Audit, allow: Iterable[str] = (), strict: bool = False) -> bool:
    """Whether anything is in another state than complete and those to ``allow``; ``strict``: or was
    made by other versions, or is in the store and linked by nothing."""
    if {x.state for x in result.audited} - {State.COMPLETE, *allow}:
        return True
    return strict and (bool(result.unused) or any(x.drift for x in result.audited))


def _files(made: Made, store: Path | None) -> Iterator[Path]:
    entry = made.entry
    folders = [made.payload(store), entry and steps_of(entry), *made.copies.values()]
    for folder in filter(None, folders):
        yield from files_below(folder).values()
    for source in made.inputs:
        if source.place and not source.used.made:
            with suppress(UserError):
                yield from input_files(source.place).values()


def _artifact(made: Made, around: Around) -> Audited:
    record, origin, damage = around.trusted[made.path]
    trusted = origin or record or made.record
    outputs = (record or origin or made.record or Contents(outputs={})).outputs
    findings = [*damage, *_payload(made, outputs, around), *_copies(made, outputs, around)]
    if made.entry:
        findings += _linked(made.entry, trusted.identity if trusted else "", around)
    if record and record.older:
        reason = f"{record.older}: run the workflow to make it anew"
        findings.append(Finding(State.STALE, "digest.json", reason))
    elif origin:
        # What was adopted was not made from its inputs, nor by any code here.
        if not origin.adopted:
            findings += check.inputs(made, around.contents)
            findings += [*_data(made, around), *_code(origin)]
        findings += _planned(made, origin, around.plan)
    then, now = origin.versions if origin else {}, around.versions
    return Audited(
        made.folder,
        made.stage,
        (*findings,),
        {p: (then[p], now[p]) for p in sorted(then) if p in now and then[p] != now[p]},
        (*(x.used.path for x in made.inputs if x.place is None and not x.used.made),),
        bool(origin and origin.adopted),
        (*(_gone(made, outputs, around, check.removed) if made.stage == "keep" else ()),),
        (*_gone(made, outputs, around, check.left_out),),
    )


def _gone(
    made: Made, outputs: Mapping[str, str], around: Around, marked: Callable[..., dict[str, str]]
) -> Iterable[str]:
    """Files in whose place there is a mark: weights that were removed as planned, or what a crate
    was made without."""
    folder = made.payload(around.store)
    now = around.hashes(folder) if folder else {}
    return marked(outputs, now).keys() - now.keys()


def _payload(made: Made, outputs: Mapping[str, str], around: Around) -> Iterator[Finding]:
    folder = made.payload(around.store)
    if folder is None:
        link = (made.path / "payload").is_symlink()
        nowhere = "its link leads nowhere, or out of this folder; name the store with --store"
        reason = nowhere if link else "is gone"
        yield Finding(State.MISSING, "payload", reason)
    elif outputs:
        yield from check.files(outputs, around.hashes(folder), "payload/")
        if made.stage != "keep":
            for name in sorted(_gone(made, outputs, around, check.removed)):
                yield Finding(State.MISSING, f"payload/{name}", "is gone, and is no kept step")


def _copies(made: Made, outputs: Mapping[str, str], around: Around) -> Iterator[Finding]:
    for name, path in made.copies.items():
        where = path.relative_to(made.root).as_posix()
        if not path.is_file():
            # Made by hand, an artifact has copies only where they were asked for.
            if around.plan and made.folder in around.plan:
                yield Finding(State.MISSING, where, "is gone")
        elif outputs and around.sha.get(path) != outputs.get(name):
            yield Finding(State.MODIFIED, where, f"is not {name} of its artifact")


def _linked(entry: Path, identity: str, around: Around) -> Iterator[Finding]:
    """The store entry behind an artifact: whether it is its own, and its record and kept steps."""
    if entry.name != identity:
        yield Finding(State.MODIFIED, "payload", f"links another entry of the store, {entry.name}")
        return
    yield from _stored_record(entry)
    folder = steps_of(entry)
    for step in sorted({path.name.removesuffix(".json") for path in folder.glob("*")}):
        record, damage = load(folder / f"{step}.json", Contents)
        if damage:
            yield damage._replace(where=f"kept step {step}.json")
        elif record:
            now = around.hashes(folder / step)
            yield from check.files(record.outputs, now, f"kept step {step}/")


def _stored_record(entry: Path) -> Iterator[Finding]:
    """The record beside a store entry."""
    path = entry.with_name(f"{entry.name}.json")
    record, damage = load(path, Manifest)
    if damage:
        yield damage._replace(where=f".store/{path.name}")
    elif record and not entry.name == record.identity == check.expected_identity(record):
        yield Finding(State.MODIFIED, f".store/{path.name}", check.NOT_ITS_IDENTITY)


def _unlinked(entry: Path, around: Around) -> Iterator[Finding]:
    """A store entry that nothing links. Without a record it is never used, and counts as none."""
    path = entry.with_name(f"{entry.name}.json")
    if path.is_file():
        yield from _stored_record(entry)
        record, _ = load(path, Contents)
        if record:
            yield from check.files(record.outputs, around.hashes(entry), "files/")


def _data(made: Made, around: Around) -> Iterator[Finding]:
    """The plain files that an artifact was made from, where they are here."""
    for name, used, place in made.inputs:
        if place is None or used.made:
            continue
        now = {}
        with suppress(UserError):
            now = {n: around.sha.get(file, "") for n, file in input_files(place).items()}
        if digest(now) != used.outputs:
            yield Finding(State.STALE, f"input {name}", f"data: {used.path} has changed since")


def _code(origin: Manifest) -> Iterator[Finding]:
    stage, code = origin.stage, origin.cfg.get("code")
    if code is None or stage not in registry.STAGES or code == registry.code_digest(stage):
        return
    changed = ", ".join(key for key, *_ in changes(origin.modules, registry.modules(stage)))
    reason = changed if origin.modules else "which modules was not recorded"
    yield Finding(State.STALE, "code", f"changed since: {reason}")


def _planned(made: Made, origin: Manifest, plan: Plan | None) -> Iterator[Finding]:
    """An artifact against what the config describes now, setting by setting."""
    if plan is not None and made.folder not in plan:
        yield Finding(State.ORPHANED, "config", "names no such artifact")
    planned = (plan or {}).get(made.folder)
    if planned is None:
        return
    if planned.cfg is None:
        yield from filter(None, [check.settings(origin.handed_on, planned)])
        return
    then = settings_of({"stage": origin.stage, **origin.cfg})
    now = settings_of({"stage": planned.stage, **planned.cfg})
    for key, old, new in changes(then, now):
        yield Finding(State.STALE, f"config: {key}", f"{_short(old)} then, {_short(new)} now")
    if origin.adopted or then != now:
        return
    for used, folder in zip(made.inputs, planned.inputs, strict=False):
        if not Path(folder).is_absolute() and used.folder != folder:
            reason = f"{used.folder} then, {folder} now"
            yield Finding(State.STALE, f"config: input {used.name}", reason)


def _short(value: Any) -> str:
    """A setting in a few words."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _folder(root: Path, plan: Plan | None, artifacts: Sequence[Made]) -> Iterator[Audited]:
    """What is no artifact, or should be one: the plan, files of none, and what is not there."""
    config = root / "config.yaml"
    wrong = [(State.MODIFIED, "plan.json", read_plan(root / "plan.json")[1])]
    if config.is_file() and not (is_plain(config) and as_written(config)):
        wrong.append((State.MODIFIED, "config.yaml", "is not what the run wrote"))
    known = {root / "plan.json", config}
    for made in artifacts:
        known |= {made.path / name for name in naming.RECORDS}
        known |= {*made.copies.values()}
    for file in on_disk.loose(root):
        if file not in known:
            place = file.relative_to(root).as_posix()
            link = not on_disk.inside(root, file)
            reason = "is a link out of this folder" if link else "is a file of no artifact"
            wrong.append((State.ORPHANED, place, reason))
    for state, place, reason in wrong:
        if reason:
            yield Audited(place, "", (Finding(state, place, reason),))
    there = {made.folder for made in artifacts}
    for folder, planned in (plan or {}).items():
        if planned and planned.asked and folder not in there:
            reason = "is not there, though the config asks for it"
            yield Audited(folder, planned.stage, (Finding(State.MISSING, folder, reason),))


def lines(result: Audit, name: str, seconds: float) -> list[str]:
    """Counts by stage, every finding, and what is worth knowing besides."""
    states = (State.COMPLETE, *[*State][:-1])
    counts = Counter((x.stage, x.state) for x in result.audited)
    rows = [
        (stage or "(none)", *(counts[stage, state] or "" for state in states))
        for stage in dict.fromkeys(x.stage for x in result.audited)
    ]
    drift = [(p, *versions) for x in result.audited for p, versions in x.drift.items()]
    text = render(
        PAGES,
        "audit.txt.j2",
        name=name,
        result=result,
        seconds=seconds,
        size=size,
        counts=[("stage", *states), *rows],
        drift=drift,
    )
    return text.splitlines()


def as_json(result: Audit) -> dict[str, Any]:
    """The same as plain data."""
    artifacts = [
        x._asdict() | {"state": x.state, "findings": [y._asdict() for y in x.findings]}
        for x in result.audited
    ]
    return {
        "counts": dict(Counter(x.state for x in result.audited)),
        "artifacts": artifacts,
        "unused": dict(result.unused),
        "fingerprints": dict(result.prints),
        "files": result.files,
        "bytes": result.bytes,
    }

"""Whether what lies in ``results/NAME`` is what the config describes now.

Snakemake notices an edit by its records in ``.snakemake/``. Without these (a copy, a clean-up) it
would show old results under a new config. So the stages that show something compare all that lies
behind them with the plan, which the run writes as ``results/NAME/plan.json``. So does a job that
has waited on a cluster: it parses config and code again when it starts.
"""

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import digest, parse_json, read_bytes, replacing
from opd.stages import check as checks
from opd.stages import records, verify
from opd.stages.artifact import Artifact, sources_first
from opd.stages.identity import settings_digest
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, Planned, State, digest_in, json_text, load


def described(artifacts: Mapping[str, Artifact], targets: Iterable[str] = ()) -> dict[str, Planned]:
    """The plan of these artifacts: folder -> entry. ``targets`` are those that are asked for."""
    asked = set(targets)
    return {
        folder: Planned(
            settings=settings_digest(artifact.stage, artifact.cfg),
            inputs=list(artifact.inputs),
            folder=folder,
            stage=artifact.stage,
            cfg=artifact.cfg,
            asked=folder in asked,
        )
        for folder, artifact in artifacts.items()
    }


def write_plan(path: Path, artifacts: Mapping[str, Artifact], targets: Iterable[str] = ()) -> None:
    """Write what a config describes (``described``), where it differs from what is there."""
    entries = described(artifacts, targets).items()
    plan = {name: records.sealed(records.plain(entry)) for name, entry in entries}
    _update(path, json_text(plan))


def _update(path: Path, text: str) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, str(os.getpid())) as temporary:
            temporary.write_text(text)


def read_plan(path: Path) -> tuple[dict[str, Planned | None] | None, str]:
    """The entries of a plan.json (None for one that cannot be read) and what is wrong with them;
    None where there is no plan, or none that can be read."""
    if not path.is_file():
        return None, ""
    if path.is_symlink():
        return None, "is no plain file"
    try:
        value = parse_json(text := read_bytes(path))
    except ValueError as error:
        return None, f"is no JSON ({error})"
    if not isinstance(value, dict):
        return None, "is no JSON object"
    entries: dict[str, Planned | None] = {}
    reasons = []
    for name, inner in value.items():
        entry, reason = records.checked(inner, Planned)
        if entry and entry.folder not in ("", name):
            reason = "is not the entry of this folder"
        entries[name] = None if reason else entry
        reasons += [f"{name}: {reason}"] if reason else []
    if not reasons and json_text(value).encode() != text:
        reasons = [records.NOT_AS_WRITTEN]
    return entries, "; ".join(reasons)


def parsed(artifacts: Mapping[str, Artifact], rules: Iterable[Path]) -> str:
    """What a run tells its jobs of itself: digests of its plan and of the text of its rules."""
    plan = _essence(described(artifacts))
    return f"{digest(plan)} {digest([path.read_text() for path in rules])}"


def _essence(plan: Mapping[str, Planned | None]) -> dict[str, list[Any]]:
    return {f: [entry.settings, entry.inputs] for f, entry in plan.items() if entry}


def edited_since(
    submitted: str, own: str, plan: Path, artifacts: Mapping[str, Artifact]
) -> dict[str, str]:
    """Folder -> what was edited since a job was submitted. ``submitted`` and ``own`` are what the
    run and the job have parsed (``parsed``), ``plan`` is the run's plan.json."""
    if submitted == own:
        return {}
    now = _essence(described(artifacts))
    plan_then, _, rules_then = submitted.partition(" ")
    if rules_then != own.partition(" ")[2]:
        return dict.fromkeys(now, "the rules were edited")
    before = _essence(read_plan(plan)[0] or {})
    if digest(before) != plan_then:
        return dict.fromkeys(now, "the plan of its run was replaced")
    return {
        folder: "was edited" if folder in now else "was taken out of the config"
        for folder in before.keys() | now.keys()
        if before.get(folder) != now.get(folder)
    }


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a config as Snakemake has merged it from files and command line, to run it again. Its
    first line has the digest of the rest."""
    import yaml

    values = json.loads(json.dumps(config))
    rest = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    _update(path, f"{_first_line(rest)}{rest}")


def _first_line(rest: str) -> str:
    return f"# {sha256(rest.encode()).hexdigest()} is the sha256 of what follows\n"


def as_written(path: Path) -> bool:
    """Whether the config that ``write_config`` wrote is still the same."""
    first, _, rest = path.read_bytes().decode(errors="replace").partition("\n")
    return f"{first}\n" == _first_line(rest)


def adopted(artifacts: Mapping[str, Artifact], results: Path) -> list[str]:
    """Folders of what was adopted and stands for what the plan says there: it needs no inputs."""
    return [
        folder
        for folder, artifact in artifacts.items()
        if checks.stands_for(digest_in(results / folder), artifact.stage, artifact.cfg)
    ]


def other_settings(artifacts: Mapping[str, Artifact], results: Path) -> list[str]:
    """Folders of the artifacts that are there, made with other settings than the plan's, or with a
    ``digest.json`` that is damaged."""
    return [
        folder
        for folder, planned in described(artifacts).items()
        if (results / folder / "digest.json").is_file()
        and checks.settings(digest_in(results / folder), planned)
    ]


def other_data(artifacts: Mapping[str, Artifact], results: Path, store: Path) -> list[str]:
    """Folders of the artifacts that are there, made from plain files or folders which hold
    something else by now. Snakemake goes by times, which a copy may bring along, and which those of
    a folder do not show of the files in it."""
    folders = []
    for folder, artifact in artifacts.items():
        plain = {n: Path(p) for n, p in artifact.named.items() if os.path.isabs(p)}
        made = load(results / folder / "manifest.json", Manifest)[0] if plain else None
        if made is None or made.adopted:
            continue
        then = {name: used.outputs for name, used in made.inputs.items()}
        if any(
            name in then and path.exists() and _digest_of_data(path, store) != then[name]
            for name, path in plain.items()
        ):
            folders.append(folder)
    return folders


def _digest_of_data(path: Path, store: Path) -> str | None:
    """None where it cannot be read, which is for the job to say that reads it."""
    try:
        return digest(verify.plain(path, store))
    except (UserError, OSError):
        return None


def check(plan: Path, inputs: Iterable[Path]) -> None:
    """Raise ``UserError`` unless inputs (their ``digest.json``) and all behind them are as planned:
    made with the planned settings, each from what its inputs are now."""
    results = plan.parent
    entries, damage = read_plan(plan)
    if entries is None or damage:
        raise UserError(damage or "no plan is there", str(plan), "run snakemake again")
    there = {
        folder: planned
        for folder, planned in entries.items()
        if planned and (results / folder / "digest.json").is_file()
    }
    starts = [p.parent.relative_to(results).as_posix() for p in inputs if p.name == "digest.json"]

    def sources(folder: str) -> Iterable[str]:
        """What an artifact that is there was made from: of what was adopted, nothing."""
        if folder not in there:
            return ()
        planned, record = there[folder], digest_in(results / folder)
        adopted = checks.stands_for(record, planned.stage, planned.cfg or {})
        return () if adopted else planned.inputs

    stale: dict[str, str] = {}
    for folder in sources_first(starts, sources):
        if folder in there:
            made = Made(results, folder)
            findings = [checks.settings(made.digest, there[folder])]
            # What was adopted was not made from its inputs.
            if not (made.digest and made.digest.adopted):
                findings += checks.inputs(made)
            for finding in findings:
                if finding and finding.state == State.STALE:
                    stale.setdefault(folder, finding.text)
    if stale:
        first, reason = next(iter(stale.items()))
        more = f", and {len(stale) - 1} more like it" if len(stale) > 1 else ""
        files = " ".join(f"{results}/{folder}/digest.json" for folder in sorted(stale)[:20])
        raise UserError(
            f"{reason}{more}",
            f"{results}/{first}",
            f"run the same command with --forcerun {files}",
        )

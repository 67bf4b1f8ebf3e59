"""Whether what lies in ``results/NAME`` is what the config describes now.

Snakemake notices an edit by its own records in ``.snakemake/``. Where these are gone (a copy, a
clean-up) it would show old results under a new config: so the stages that show something compare
all that lies behind them with the plan, which the run writes as ``results/NAME/plan.json``.

A job that waits on a cluster parses config and code again when it starts: it compares what it finds
with the plan of the run that submitted it.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.files import digest, read_json
from opd.stages.artifact import Artifact
from opd.stages.identity import adopted_identity, older, settings_digest
from opd.stages.manifest import sealed, write_json


def described(
    artifacts: Mapping[str, Artifact], asked: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """Folder -> verb, settings and their digest, inputs, and whether it is asked for, of every
    artifact of a plan; each sealed."""
    shown = set(asked)
    return {
        folder: sealed(
            {
                "folder": folder,
                "verb": one.verb,
                "cfg": one.cfg,
                "settings": settings_digest(one.verb, one.cfg),
                "inputs": list(one.inputs),
                "asked": folder in shown,
            }
        )
        for folder, one in artifacts.items()
    }


def write_plan(path: Path, artifacts: Mapping[str, Artifact], asked: Iterable[str] = ()) -> None:
    """Write what a config describes (``described``), where it differs from what is there."""
    plan = described(artifacts, asked)
    if not path.is_file() or read_json(path) != plan:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)


def parsed(artifacts: Mapping[str, Artifact], rules: Iterable[Path]) -> str:
    """What a run tells its jobs of itself: digests of its plan and of the text of its rules."""
    return f"{digest(_told(artifacts))} {digest([path.read_text() for path in rules])}"


def _told(artifacts: Mapping[str, Artifact]) -> dict[str, list[Any]]:
    return {
        folder: [settings_digest(one.verb, one.cfg), list(one.inputs)]
        for folder, one in artifacts.items()
    }


def edited_since(
    told: str, own: str, plan: Path, artifacts: Mapping[str, Artifact]
) -> dict[str, str]:
    """Folder -> what has come in between since the job that asks was submitted.

    ``told`` and ``own`` are what the run and the job have parsed (``parsed``), ``plan`` is the
    run's plan.json.
    """
    if told == own:
        return {}
    now = _told(artifacts)
    if told.partition(" ")[2] != own.partition(" ")[2]:
        return dict.fromkeys(now, "the rules were edited")
    written = read_json(plan) if plan.is_file() else {}
    before = {folder: [one["settings"], one["inputs"]] for folder, one in written.items()}
    if digest(before) != told.partition(" ")[0]:
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

    plain = json.loads(json.dumps(config))
    rest = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    text = f"{_first_line(rest)}{rest}"
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(text)
        temporary.replace(path)


def _first_line(rest: str) -> str:
    return f"# {sha256(rest.encode()).hexdigest()} is the sha256 of what follows\n"


def as_written(path: Path) -> bool:
    """Whether the config that ``write_config`` wrote is still the same."""
    first, _, rest = path.read_bytes().decode(errors="replace").partition("\n")
    return f"{first}\n" == _first_line(rest)


def adopted(artifacts: Mapping[str, Artifact], results: Path) -> list[str]:
    """Folders of what was adopted and stands for what the plan says there: it needs no inputs."""
    return [f for f, one in artifacts.items() if _stands(results / f, one.verb, one.cfg)]


def _record(path: Path) -> Mapping[str, Any]:
    """A ``digest.json``; empty where there is none, or a damaged one."""
    try:
        found = read_json(path)
    except UserError:
        found = None
    return found if isinstance(found, dict) else {}


def _stands(folder: Path, verb: str, cfg: Mapping[str, Any]) -> bool:
    made = _record(folder / "digest.json")
    return bool(made.get("adopted")) and (
        made["identity"] == adopted_identity(verb, cfg, made["outputs"])
    )


def other_settings(artifacts: Mapping[str, Artifact], results: Path) -> list[str]:
    """Folders of the artifacts that are there, made with other settings than the plan's, or with a
    ``digest.json`` that is damaged."""
    return [
        folder
        for folder, one in artifacts.items()
        if (path := results / folder / "digest.json").is_file()
        and _record(path).get("settings") != settings_digest(one.verb, one.cfg)
        and not _stands(path.parent, one.verb, one.cfg)
    ]


def check(plan: Path, inputs: Iterable[Path]) -> None:
    """Raise ``UserError`` unless inputs (their ``digest.json``) and all behind them are as planned:
    made with the planned settings, each from what its inputs are now."""
    planned: Mapping[str, Any] = read_json(plan)
    results = plan.parent
    queue = [p.parent.relative_to(results).as_posix() for p in inputs if p.name == "digest.json"]
    seen = set(queue)
    stale: dict[str, str] = {}
    while queue:
        folder = queue.pop()
        record = results / folder / "digest.json"
        if folder not in planned or not record.is_file():
            continue
        wanted = planned[folder]
        if "cfg" in wanted and _stands(record.parent, wanted["verb"], wanted["cfg"]):
            continue
        made = _record(record)
        if made.get("settings") != wanted["settings"]:
            stale[folder] = older(made) or "made with other settings than the config's"
        else:
            for path, outputs in _made_from(record.with_name("manifest.json")):
                recorded = path.name == "digest.json" and path.is_file()
                if recorded and digest(_record(path).get("outputs")) != outputs:
                    stale[folder] = f"made from what {path.parent} was before"
        for one in planned[folder]["inputs"]:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    if stale:
        first, why = next(iter(stale.items()))
        more = f", and {len(stale) - 1} more like it" if len(stale) > 1 else ""
        files = " ".join(f"{results}/{folder}/digest.json" for folder in sorted(stale)[:20])
        raise UserError(
            f"stale: {why}{more}",
            f"{results}/{first}",
            f"run the same command with --forcerun {files}",
        )


def _made_from(manifest: Path) -> list[tuple[Path, str]]:
    """(path, digest of the contents) of the inputs that an artifact was made from."""
    if not manifest.is_file():
        return []
    return [(Path(i["path"]), i["outputs"]) for i in read_json(manifest)["inputs"].values()]

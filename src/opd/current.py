"""Whether what lies in ``results/NAME`` is what the config describes now.

Snakemake notices an edit by its own records in ``.snakemake/``. Where these are gone (a copy, a
clean-up) it would show old results under a new config: so the stages that show something compare
all that lies behind them with the plan, which the run writes as ``results/NAME/plan.json``.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.errors import Bad
from opd.files import digest, read_json
from opd.manifest import adopted_identity, sealed, settings_digest, write_json

if TYPE_CHECKING:
    from opd.plan import Artifact


def described(
    artifacts: Mapping[str, "Artifact"], asked: Iterable[str] = ()
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


def write_plan(path: Path, artifacts: Mapping[str, "Artifact"], asked: Iterable[str] = ()) -> None:
    """Write what a config describes (``described``), where it differs from what is there."""
    plan = described(artifacts, asked)
    if not path.is_file() or read_json(path) != plan:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)


def adopted(artifacts: Mapping[str, "Artifact"], results: Path) -> list[str]:
    """Folders of what was adopted and stands for what the plan says there: it needs no inputs."""
    return [f for f, one in artifacts.items() if _stands(results / f, one.verb, one.cfg)]


def _stands(folder: Path, verb: str, cfg: Mapping[str, Any]) -> bool:
    path = folder / "digest.json"
    made = read_json(path) if path.is_file() else {}
    return bool(made.get("adopted")) and (
        made["identity"] == adopted_identity(verb, cfg, made["outputs"])
    )


def other_settings(artifacts: Mapping[str, "Artifact"], results: Path) -> list[str]:
    """Folders of the artifacts that are there, made with other settings than the plan's."""
    found = []
    for folder, one in artifacts.items():
        path = results / folder / "digest.json"
        if path.is_file():
            made = read_json(path).get("settings")
            edited = made != settings_digest(one.verb, one.cfg)
            if edited and not _stands(path.parent, one.verb, one.cfg):
                found.append(folder)
    return found


def check(plan: Path, inputs: Iterable[Path]) -> None:
    """Raise ``Bad`` unless inputs (their ``digest.json``) and all behind them are as planned: made
    with the planned settings, each from what its inputs are now."""
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
        if read_json(record).get("settings") != wanted["settings"]:
            stale[folder] = "made with other settings than the config's"
        else:
            for path, outputs in _made_from(record.with_name("manifest.json")):
                recorded = path.name == "digest.json" and path.is_file()
                if recorded and digest(read_json(path)["outputs"]) != outputs:
                    stale[folder] = f"made from what {path.parent} was before"
        for one in planned[folder]["inputs"]:
            if one not in seen:
                seen.add(one)
                queue.append(one)
    if stale:
        first, why = next(iter(stale.items()))
        more = f", and {len(stale) - 1} more like it" if len(stale) > 1 else ""
        files = " ".join(f"{results}/{folder}/digest.json" for folder in sorted(stale)[:20])
        raise Bad(
            f"stale: {why}{more}",
            f"{results}/{first}",
            f"run the same command with --forcerun {files}",
        )


def _made_from(manifest: Path) -> list[tuple[Path, str]]:
    """(path, digest of the contents) of the inputs that an artifact was made from."""
    if not manifest.is_file():
        return []
    return [(Path(i["path"]), i["outputs"]) for i in read_json(manifest)["inputs"].values()]

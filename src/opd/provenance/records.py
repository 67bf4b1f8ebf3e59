"""Artifacts as they lie in a results folder, also in one that was copied, renamed or sent."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.errors import UserError

# Files of payloads that the rules copy to FOLDER.SUFFIX.
COPIED = {
    *("dedup.html", "contamination.html", "report.html", "figure.png", "figure.svg"),
    *("table.csv", "table.md", "claims.html", "claims.json", "claims.md"),
}
# Below results/NAME, but no artifacts.
RECORDS = ("logs", "benchmarks")


class Artifact(NamedTuple):
    """An artifact as it lies there: its folder below the results folder ``root``, and what its two
    files say (None: missing, or no JSON object)."""

    root: Path
    folder: str
    record: Mapping[str, Any] | None
    manifest: Mapping[str, Any] | None

    @property
    def path(self) -> Path:
        return self.root / self.folder

    @property
    def verb(self) -> str:
        return str(self.manifest["verb"]) if self.manifest and "verb" in self.manifest else ""

    @property
    def outputs(self) -> Mapping[str, str]:
        """File -> sha256, as digest.json says, or else manifest.json."""
        for said in (self.record, self.manifest):
            if said and isinstance(said.get("outputs"), dict):
                found: Mapping[str, str] = said["outputs"]
                return found
        return {}


def copies(one: Artifact) -> dict[str, Path]:
    """File of the payload -> where its copy lies, or should."""
    said = [x["outputs"] for x in (one.record, one.manifest) if x and _mapping(x.get("outputs"))]
    names = sorted({name for outputs in said for name in outputs} & COPIED)
    return {name: one.root / f"{one.folder}{Path(name).suffix}" for name in names}


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def parsed(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def artifact(root: Path, folder: str) -> Artifact:
    """The artifact of a folder below the results folder ``root``."""
    path = root / folder
    return Artifact(root, folder, parsed(path / "digest.json"), parsed(path / "manifest.json"))


def folders(root: Path) -> list[str]:
    """Folders below a results folder that hold an artifact, or what is left of one."""
    found = []
    for path, inner, files in os.walk(root):
        if Path(path) == root:
            inner[:] = [name for name in inner if name not in RECORDS]
        if {"digest.json", "manifest.json"} & {*files} or "payload" in inner:
            found.append(Path(path).relative_to(root).as_posix())
        inner[:] = sorted(name for name in inner if name != "payload")
    return sorted(found)


def loose(root: Path) -> Iterator[Path]:
    """Files of a results folder that are in no payload, and no logs or benchmarks."""
    for path, inner, files in os.walk(root):
        inner[:] = sorted(n for n in inner if n != "payload" and not n.startswith("."))
        if Path(path) == root:
            inner[:] = [name for name in inner if name not in RECORDS]
        # A link that leads nowhere counts as a file.
        yield from (Path(path) / name for name in sorted(files) if name != "payload")


def results_folders(path: Path) -> list[Path]:
    """The results folders (results/NAME) that ``path`` is or holds; none where it is neither."""
    if (path / "plan.json").is_file():
        return [path]
    if (path / "digest.json").is_file() or not path.is_dir():
        return []
    inner = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if path.name == "results" or any((p / "plan.json").is_file() for p in inner):
        return [p for p in inner if (p / "plan.json").is_file() or folders(p)]
    return [path] if folders(path) else []


def results_folder(path: Path) -> Path:
    """The results folder that holds an artifact's folder."""
    for one in path.parents:
        if (one / "plan.json").is_file() or one.parent.name == "results":
            return one
    return path.parent


def locate(given: Path) -> Artifact:
    """The artifact that a path means: its folder, a file in it, a copy of one (tables/x.csv), or
    the end of its folder's name (results/NAME/MODEL/sSEED for results/NAME/models/MODEL/sSEED).

    Raises ``UserError`` where there is none, or more than one.
    """
    path = Path(os.path.abspath(given))
    for one in (path, *path.parents, path.with_suffix("")):
        if (one / "digest.json").is_file() or (one / "manifest.json").is_file():
            root = results_folder(one)
            return artifact(root, one.relative_to(root).as_posix())
    root = next((p for p in (path, *path.parents) if p.parent.name == "results"), path.parent)
    root = next((p for p in (path, *path.parents) if (p / "plan.json").is_file()), root)
    asked = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    named = [f for f in folders(root) if f"/{f}".endswith(f"/{asked}")] if root.is_dir() else []
    if f"models/{asked}" in named:
        named = [f"models/{asked}"]
    if len(named) != 1:
        what = f"it may be {', '.join(named)}" if named else "no artifact is there"
        raise UserError(what, str(given), "give a folder that holds digest.json")
    return artifact(root, named[0])


def below(path: str) -> str:
    """What a recorded path says below its results folder (of results/NAME/X: X), else itself."""
    parts = Path(path).parts
    places = [i for i, part in enumerate(parts[:-2]) if part == "results"]
    return Path(*parts[places[-1] + 2 :]).as_posix() if places else path


def source(root: Path, recorded: str) -> Path | None:
    """Where an input lies now that a manifest of the results folder names so; None: nowhere.

    Paths are recorded from the folder that holds ``results``; the results folder may have been
    copied since, with or without all else, and be called otherwise.
    """
    for place in (root / below(recorded), root.parent.parent / recorded, Path(recorded)):
        if place.exists():
            return place
    return None


def inputs(one: Artifact) -> Iterator[tuple[str, Mapping[str, str], Path | None]]:
    """(name, what the manifest says, where it lies now) of each input, in the settings' order."""
    manifest = one.manifest or {}
    given = manifest.get("inputs")
    given = given if isinstance(given, dict) else {}
    cfg = manifest.get("cfg")
    order = cfg.get("inputs", []) if isinstance(cfg, dict) else []
    for name in sorted(given, key=lambda n: (order.index(n) if n in order else len(order), n)):
        used = given[name]
        if isinstance(used, dict) and isinstance(used.get("path"), str):
            yield name, used, source(one.root, used["path"])


def payload(one: Artifact, store: Path | None = None) -> Path | None:
    """The folder with an artifact's files: its payload, or where that link leads nowhere, its entry
    in ``store``."""
    path = one.path / "payload"
    if path.exists():
        return path
    entry = store / str((one.record or one.manifest or {}).get("identity")) if store else None
    return entry if entry and entry.is_dir() else None


def behind(one: Artifact) -> list[Artifact]:
    """An artifact and all that it was made from as far as that is there, sources first."""
    found: dict[Path, Artifact] = {}
    open_: set[Path] = set()

    def visit(this: Artifact) -> None:
        if this.path in open_:
            return
        open_.add(this.path)
        for _, used, place in inputs(this):
            if place and Path(used["path"]).name == "digest.json":
                visit(at(this.root, place.parent))
        found[this.path] = this

    visit(one)
    return list(found.values())


def at(root: Path, path: Path) -> Artifact:
    """The artifact in a folder, in the results folder ``root`` unless it lies elsewhere."""
    path = Path(os.path.abspath(path))
    root = root if path.is_relative_to(root) else results_folder(path)
    return artifact(root, path.relative_to(root).as_posix())

"""Artifacts as they lie in a results folder, also in one that was copied, renamed or sent."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from opd.stages.artifact import sources_first
from opd.stages.records import Digest, Finding, Manifest, Used, load

# Files of payloads that the rules copy to FOLDER.SUFFIX.
COPIED = {
    *("dedup.html", "contamination.html", "report.html", "figure.png", "figure.svg"),
    *("table.csv", "table.md", "claims.html", "claims.json", "claims.md"),
}
# Below results/NAME, but no artifacts.
RECORDS = ("logs", "benchmarks")  # the latter by earlier versions


class Input(NamedTuple):
    """An input of an artifact: its name, what the manifest says of it, and where it lies now."""

    name: str
    used: Used
    place: Path | None

    @property
    def folder(self) -> str:
        """The folder of an artifact below its results folder."""
        return below(self.used.path).removesuffix("/digest.json")


class Made:
    """An artifact as it lies in ``folder`` below the results folder ``root``: its two records, as
    far as they can be read, and what is wrong with their files (``damage``)."""

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = Path(os.path.abspath(root)), folder
        self.path = self.root / folder
        self.digest, *damage = load(self.path / "digest.json", Digest)
        self.manifest, *more = load(self.path / "manifest.json", Manifest)
        self.damage: dict[str, Finding] = {x.where: x for x in (*damage, *more) if x}

    @property
    def stage(self) -> str:
        return self.manifest.stage if self.manifest else ""

    @property
    def record(self) -> Digest | Manifest | None:
        """The record that says which files there are: digest.json, or else manifest.json."""
        return self.digest or self.manifest

    @property
    def outputs(self) -> dict[str, str]:
        """File -> sha256."""
        return self.record.outputs if self.record else {}

    @property
    def copies(self) -> dict[str, Path]:
        """File of the payload -> where its copy lies, or should."""
        records = filter(None, (self.digest, self.manifest))
        names = COPIED & {name for record in records for name in record.outputs}
        return {n: self.root / f"{self.folder}{Path(n).suffix}" for n in sorted(names)}

    @cached_property
    def inputs(self) -> list[Input]:
        """What it was made from, in the order of its settings."""
        if self.manifest is None:
            return []
        used, order = self.manifest.inputs, self.manifest.cfg.get("inputs")
        order = order if isinstance(order, list) else []
        names = sorted(used, key=lambda n: (order.index(n) if n in order else len(order), n))
        return [Input(name, used[name], _source(self.root, used[name])) for name in names]

    @property
    def sources(self) -> list[Path]:
        """The folders of the artifacts among the inputs, as far as they are there."""
        places = [x.place for x in self.inputs if x.place and x.used.made]
        return [Path(os.path.abspath(place.parent)) for place in places]

    @property
    def entry(self) -> Path | None:
        """The store entry that it links; None where it holds its files itself, and where the link
        leads elsewhere (``inside``)."""
        link = self.path / "payload"
        entry = link.resolve()
        linked = link.is_symlink() and inside(self.root, link) and is_entry(entry)
        return entry if linked else None

    def payload(self, store: Path | None = None) -> Path | None:
        """The folder with its files: its payload, or where that link leads nowhere, or where it
        should not (``inside``), its entry in ``store``."""
        path = self.path / "payload"
        if path.exists() and inside(self.root, path):
            return path
        entry = store / self.record.identity if store and self.record else None
        return entry if entry and entry.is_dir() else None


def own(root: Path) -> bool:
    """Whether a results folder is one's own, that of a run in the working directory: any other may
    have been received from somebody."""
    return os.path.realpath(Path(os.path.abspath(root)).parent) == os.path.realpath("results")


def inside(root: Path, path: Path) -> bool:
    """Whether what a path of a results folder leads to may be looked at. Links and manifests of
    one's own lead anywhere (to another disk, to data), of another folder only to what lies in it
    or in the store beside it."""
    if own(root):
        return True
    real = Path(os.path.realpath(path))
    places = (root, root.parent / ".store")
    return any(real.is_relative_to(os.path.realpath(place)) for place in places)


def is_entry(path: Path) -> bool:
    """Whether a folder of a store is an entry: its name is an identity."""
    return path.is_dir() and re.fullmatch("[0-9a-f]{64}", path.name) is not None


def below(path: str) -> str:
    """What a recorded path says below its results folder (of results/NAME/X: X), else itself."""
    parts = Path(path).parts
    places = [i for i, part in enumerate(parts[:-2]) if part == "results"]
    if not places:
        return path
    # Of a path from the folder that holds ``results`` the first: a model may have this name, too.
    place = places[-1] if Path(path).is_absolute() else places[0]
    return Path(*parts[place + 2 :]).as_posix()


def _source(root: Path, used: Used) -> Path | None:
    """Where an input lies now that a manifest has recorded; None: nowhere, or not ``inside``. Paths
    are recorded from the folder that holds ``results``; the results folder may have been copied or
    renamed since, with the artifacts in it; what no stage made is no part of them, and may belong
    to other results that have an artifact of the same name."""
    places = [root.parent.parent / used.path, Path(used.path)]
    for place in [root / below(used.path), *places] if used.made else places:
        if place.exists() and inside(root, place):
            return place
    return None


def at(root: Path, path: Path) -> Made:
    """The artifact in a folder, in the results folder ``root`` unless it lies elsewhere."""
    root, path = Path(os.path.abspath(root)), Path(os.path.abspath(path))
    root = root if path.is_relative_to(root) else results_folder(path)
    return Made(root, path.relative_to(root).as_posix())


def behind(artifacts: Iterable[Made]) -> list[Made]:
    """These artifacts and all that they were made from as far as that is there, sources first."""
    known = {made.path: made for made in artifacts}

    def sources(path: Path) -> Iterator[Path]:
        for source in known[path].sources:
            if source not in known:
                known[source] = at(known[path].root, source)
            yield source

    return [known[path] for path in sources_first([*known], sources)]


def folders(root: Path, all_links: bool = False) -> list[str]:
    """Folders below a results folder that hold an artifact, or what is left of one. ``all_links``:
    also those that links to folders lead to which are not ``inside``."""
    return sorted(
        path.relative_to(root).as_posix()
        for path, below, files in _walk(root, all_links)
        if {"digest.json", "manifest.json"} & {*files} or "payload" in below
    )


def loose(root: Path) -> Iterator[Path]:
    """Files of a results folder that are in no payload, and no logs or benchmarks."""
    for path, _, files in _walk(root):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            # A link that leads nowhere counts as a file.
            yield from (path / name for name in files if name != "payload")


def _walk(root: Path, all_links: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Path, names of folders and of files of each folder that is no part of a payload, each once. A
    link to a folder that is not ``inside`` counts as a file."""
    entered = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, followlinks=True):
        path = Path(folder)
        if path == root:
            below[:] = [name for name in below if name not in RECORDS]
        links = [name for name in below if name != "payload" and (path / name).is_symlink()]
        outside = [name for name in links if not (all_links or inside(root, path / name))]
        again = [name for name in links if os.path.realpath(path / name) in entered]
        entered |= {os.path.realpath(path / name) for name in links}
        yield path, [name for name in below if name not in outside], sorted([*files, *outside])
        below[:] = sorted({*below} - {"payload", *outside, *again})


def results_folders(path: Path) -> list[Path]:
    """The results folders (results/NAME) that ``path`` is or holds; none where it is neither."""
    if (path / "plan.json").is_file():
        return [path]
    if (path / "digest.json").is_file() or not path.is_dir():
        return []
    inner = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    inner = [p for p in inner if own(p) or not p.is_symlink()]
    if path.name == "results" or any((p / "plan.json").is_file() for p in inner):
        return [p for p in inner if (p / "plan.json").is_file() or folders(p)]
    return [path] if folders(path) else []


def results_folder(path: Path) -> Path:
    """The results folder that holds an artifact's folder."""
    for parent in path.parents:
        if (parent / "plan.json").is_file() or parent.parent.name == "results":
            return parent
    return path.parent

"""What a user may call an artifact: any path that is printed of it, with or without its results
folder before it, and the end of its name. All commands look names up here."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from opd.core.errors import UserError
from opd.core.text import suggestion
from opd.stages import on_disk
from opd.stages.fresh import read_plan
from opd.stages.on_disk import Made

MOST = 8  # names in one line
# What lies in the folder of an artifact, and beside it under its name.
RECORDS = ("digest.json", "manifest.json", "running.json", "released.json")
_INSIDE = re.compile(rf"/(payload(/.*)?|{'|'.join(map(re.escape, RECORDS))})$")
_SUFFIXES = {Path(name).suffix for name in on_disk.COPIED} | {".log"}


# Names


def matching(name: str, folders: Iterable[str], results: str) -> list[str]:
    """The folders below results/``results`` that a name means: the one of this name and those in
    it; if there is none, those that are called so in their section; if there is none, those whose
    names end so."""
    known = list(folders)
    for text in _spellings(name, results):
        for named in (
            [folder for folder in known if f"{folder}/".startswith(f"{text}/")],
            [folder for folder in known if f"{_in_section(folder)}/".startswith(f"{text}/")],
            [folder for folder in known if folder.endswith(f"/{text}")],
        ):
            if named:
                return named
    return []


def _spellings(name: str, results: str) -> list[str]:
    """A name below its results folder, without the files of the artifact; without a suffix."""
    text = on_disk.below(os.path.normpath(name)).removeprefix(f"{results}/")
    text = _INSIDE.sub("", text.removeprefix("logs/"))
    stem, suffix = os.path.splitext(text)
    return [text, stem] if suffix in _SUFFIXES else [text]


def _in_section(folder: str) -> str:
    return folder.partition("/")[2] or folder


def named(name: str, folders: Iterable[str], results: str, where: str) -> list[str]:
    """The folders that a name means (``matching``). Raises ``UserError``, about ``where``, where
    there is none, and for a path of another results folder."""
    known = list(folders)
    path = Path(os.path.relpath(name))
    if len(path.parts) > 2 and path.parts[0] == "results" and path.parts[1] != results:
        reason = f"{name} is of another config, this one is {results}"
        raise UserError(reason, where, "name its files with --configfile")
    meant = matching(name, known, results)
    if not meant:
        raise UserError(f"no artifact is called '{name}'", where, _hint(name, known, results))
    return meant


def single(name: str, folders: Iterable[str], results: str, where: str) -> str:
    """The one folder that a name means; a model goes before what is called like it. Raises
    ``UserError`` as ``named`` does, and where there are several."""
    meant = _models_first(named(name, folders, results, where))
    if len(meant) > 1:
        raise _several(name, meant, where)
    return meant[0]


def _models_first(folders: list[str]) -> list[str]:
    models = [folder for folder in folders if folder.startswith("models/")]
    return models if len(models) == 1 else folders


def _several(name: str, meant: list[str], where: str) -> UserError:
    more = f" and {len(meant) - MOST} more" if len(meant) > MOST else ""
    return UserError(f"'{name}' may be {', '.join(meant[:MOST])}{more}", where, "give one of them")


def _hint(name: str, folders: Iterable[str], results: str) -> str:
    """The name that was probably meant, or what there is."""
    known = list(folders)
    ends = [part for f in known for part in (f, _in_section(f), f.rpartition("/")[2])]
    ends += [re.sub(r"/s\d+$", "", part) for part in ends]
    ends = [part for part in ends if not re.fullmatch(r"s\d+", part)]
    for text in _spellings(name, results):
        if (hint := suggestion(text, ends)).startswith("did you mean"):
            return hint
    sections = {f"{f.partition('/')[0]}/.." if "/" in f else f for f in known}
    return f"name one of {', '.join(sorted(sections))}" if sections else "nothing is there"


# Artifacts that lie there


def find(path: Path) -> Made:
    """The artifact that a path means, in the results folder that it names or else in those of the
    working directory: one that was made, or that a run has planned. Raises ``UserError`` where
    there is none, or more than one."""
    full = Path(os.path.abspath(path))
    for folder in (full, *full.parents, full.with_suffix("")):
        if any((folder / name).is_file() for name in RECORDS):
            return on_disk.at(on_disk.results_folder(folder), folder)
    root = on_disk.results_folder(full / "digest.json")
    within = root != full
    if (within or root.parent.name == "results") and not root.is_dir():
        there = [folder.name for folder in on_disk.results_folders(root.parent)]
        remedy = suggestion(root.name, there)
        raise UserError("no such folder of results", os.path.relpath(root), remedy)
    if not within and (root.parent.name == "results" or (root / "plan.json").is_file()):
        raise UserError("a folder of results is no artifact", str(path), "name one in it")
    roots = [root] if within else on_disk.results_folders(Path("results").absolute())
    name = full.relative_to(root).as_posix() if within else str(path)
    known = {
        root: dict.fromkeys([*on_disk.folders(root), *(read_plan(root / "plan.json")[0] or ())])
        for root in roots
    }
    meant = [
        Made(root, folder)
        for root, folders in known.items()
        for folder in _models_first(matching(name, folders, root.name))
    ]
    if not meant:
        folders = dict.fromkeys(folder for folders in known.values() for folder in folders)
        hint = _hint(name, folders, roots[0].name if roots else "")
        where = ", ".join(os.path.relpath(root) for root in roots) or "results"
        raise UserError(f"no artifact is called '{path}'", where, hint)
    if len(meant) > 1:
        raise _several(str(path), [os.path.relpath(made.path) for made in meant], "results")
    return meant[0]


def locate(path: Path) -> Made:
    """The artifact that a path means (``find``). Raises ``UserError`` where it was not made."""
    made = find(path)
    if not made.path.is_dir():
        place = os.path.relpath(made.path)
        raise UserError("it has not been made", place, f"have snakemake make {place}/digest.json")
    return made

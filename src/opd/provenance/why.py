"""``opd why ARTIFACT``: what made it, from what, with what, and how to make it again."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import files_below
from opd.core.html import render
from opd.core.text import size
from opd.stages import naming, on_disk
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, plain
from opd.stages.registry import STAGES, code_digest

PAGES = package_file(__file__, "pages")
# Section of a results folder -> where the config says what is in it, if not in an entry of its own
# below the section's name; {0}: the name, {1}: the next.
_NEAR = "models.{0}, where it is a model, prompts.{1}, and what deduplicates by it"
KEYS = {stage.section: f"{stage.section}.{{0}}" for stage in STAGES.values()} | {
    "embeddings": _NEAR,
    "neighbours": _NEAR,
    "datasets": "benchmarks.{0}.hub",
    "evaluations": "evaluations.{0}, its protocol and benchmarks, models.{1}",
    "claims": "papers, arms, probes, and config/claims/ of each paper",
    "report": "targets, and all that is asked for",
}


def read(path: Path) -> tuple[Made, Manifest]:
    """An artifact (as ``opd.stages.naming.locate`` finds it) and what its manifest says. Raises
    ``UserError`` where there is none, and where its manifest is missing or damaged."""
    made = naming.locate(path)
    if made.manifest is None:
        remedy = "see `opd audit` of its results folder"
        raise UserError("its manifest.json is missing or damaged", str(made.path), remedy)
    return made, made.manifest


def as_json(made: Made, origin: Manifest) -> dict[str, Any]:
    """What its manifest says, and where it is from: the folders behind it, sources first."""
    behind = [_shown(x.path) for x in on_disk.behind([made]) if x.path != made.path]
    about = {"folder": _shown(made.path), "config": config_key(made.folder), "behind": behind}
    return {**about, **plain(origin), "again": _again(made, origin)}


def lines(made: Made, origin: Manifest) -> list[str]:
    """Lines to print of an artifact."""
    payload = made.payload()
    settings = {name: origin.cfg[name] for name in origin.cfg if name not in ("code", "inputs")}
    text = render(
        PAGES,
        "why.txt.j2",
        made=made,
        origin=origin,
        place=_shown(made.path),
        config=config_key(made.folder),
        settings=[*_leaves(settings)],
        numbers=[*_leaves(origin.numbers)],
        files=files_below(payload) if payload else {},
        size=size,
        sources=_tree(made, "", set()),
        again=_again(made, origin),
        edited=_edited(origin),
    )
    return text.splitlines()


def config_key(folder: str) -> str:
    """The keys of a config that say what is in a folder of its results."""
    section, *names = folder.split("/")
    if section == "figures" and len(names) == 2:
        return f"papers ({names[0]}), arms, and config/figures/{names[0]}.yaml: {names[1]}"
    if section not in KEYS:
        return "not one of a config's"
    first, *rest = names or [""]
    model, _, step = first.partition("@") if section == "models" else (first, "", "")
    keys = KEYS[section].format(model, *rest)
    seeds = [name for name in names if name[:1] == "s" and name[1:].isdigit()]
    kept = f", keep_steps: {step}" if step else ""
    return keys + kept + (f", seed {seeds[-1][1:]}" if seeds else "")


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    path = Path(os.path.abspath(path))
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """What nested mappings hold, by its keys joined with dots; digits as they are."""
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{above}{key}", text


def _tree(made: Made, indent: str, opened: set[Path]) -> Iterator[str]:
    """Inputs below inputs, up to the sources; what came before is named and not opened again."""
    for source in made.inputs:
        contents = source.used.outputs[:12]
        if not source.used.made:
            where = _shown(source.place) if source.place else f"{source.used.path} (not here)"
            yield f"{indent}{source.name}: the file {where}  {contents}"
        elif source.place is None:
            yield f"{indent}{source.name}: {source.folder} (gone)"
        else:
            inner = on_disk.at(made.root, source.place.parent)
            again = "  (see above)" if inner.path in opened else ""
            adopted = ", adopted" if inner.manifest and inner.manifest.adopted else ""
            about = f"{inner.folder}  ({inner.stage}{adopted})  {contents}"
            yield f"{indent}{source.name}: {about}{again}"
            if not again:
                opened.add(inner.path)
                yield from _tree(inner, indent + "  ", opened)


def _edited(origin: Manifest) -> bool:
    """Whether the code of a stage is not the one that made an artifact."""
    if origin.stage not in STAGES or "code" not in origin.cfg:
        return False
    return bool(origin.cfg["code"] != code_digest(origin.stage))


def _again(made: Made, origin: Manifest) -> list[str]:
    """Commands that make an artifact in ``again/`` and compare; none where an input is gone, or
    where the code is another one."""
    places = [_shown(source.place) for source in made.inputs if source.place]
    if len(places) < len(made.inputs) or _edited(origin):
        return []
    place, again = _shown(made.path), f"again/{made.folder}"
    make = ["opd", "stage", made.stage, "--cfg", f"{place}/manifest.json", "--input", *places]
    make += ["--output", f"{again}/digest.json", "--store", "again/.store"]
    return [shlex.join(make), shlex.join(["opd", "diff", place, again])]

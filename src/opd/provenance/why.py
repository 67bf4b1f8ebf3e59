"""``opd why ARTIFACT``: what made it, from what, with what, and how to make it again."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.text import size
from opd.stages import on_disk
from opd.stages.on_disk import Made

# Section of a results folder -> where the config says what is in it; {0}: the name, {1}: the next.
KEYS = {
    "prompts": "prompts.{0}",
    "embeddings": "models.{0}, where it is a model, prompts.{1}, and what deduplicates by it",
    "neighbours": "models.{0}, where it is a model, prompts.{1}, and what deduplicates by it",
    "contamination": "contamination.{0}",
    "datasets": "benchmarks.{0}.hub",
    "sft_data": "sft_data.{0}",
    "demonstrations": "demonstrations.{0}",
    "models": "models.{0}",
    "generations": "generations.{0}",
    "probes": "probes.{0}",
    "evaluations": "evaluations.{0}, its protocol and benchmarks, models.{1}",
    "figures": "figures.{0}",
    "tables": "tables.{0}",
    "claims": "papers, arms, probes, and config/claims/ of each paper",
    "report": "targets, and all that is asked for",
}


def lines(path: Path) -> Iterator[str]:
    """Lines to print of an artifact (as ``opd.stages.on_disk.locate`` finds it). Raises
    ``UserError`` where there is none, and where its manifest is missing or damaged."""
    made = on_disk.locate(path)
    origin = made.manifest
    if origin is None:
        remedy = "see `opd audit` of its results folder"
        raise UserError("its manifest.json is missing or damaged", str(made.path), remedy)
    yield _shown(made.path)
    if origin.adopted:
        yield f"  adopted     {origin.started} from {origin.adopted}; nothing here made it"
        yield f"  stands for  opd stage {origin.stage} by the settings below"
    else:
        took = f"in {origin.seconds} s from {origin.started}"
        yield f"  made by     opd stage {origin.stage}, {took}"
        yield f"  where       {origin.device} on {origin.host}"
    if made.digest and made.digest.older:
        yield f"  format      {made.digest.older}: run the workflow to have it made anew"
    yield f"  identity    {origin.identity}"
    yield f"  config      {config_key(made.folder)}"
    yield "  settings"
    cfg = origin.cfg
    yield from _table({key: cfg[key] for key in cfg if key not in ("code", "inputs")})
    yield "  numbers"
    yield from _table(origin.numbers)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))
    yield f"  versions    {versions or 'not known'}"
    yield f"  code        {cfg.get('code', 'not known')}"
    yield "  files"
    payload = made.payload()
    for name, sha256 in sorted(made.outputs.items()):
        file = payload / name if payload else None
        about = size(file.stat().st_size) if file and file.is_file() else "gone"
        yield f"    {sha256[:12]}  {about:>9}  {name}"
    yield "  made from"
    yield from _tree(made, "    ", {})
    yield ""
    yield from _again(made)


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


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """What nested mappings hold, by its keys joined with dots; digits as they are."""
    if isinstance(value, Mapping) and value:
        for name, inner in sorted(value.items()):
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield key, text


def _table(values: Mapping[str, Any]) -> Iterator[str]:
    shown = list(_leaves(values)) if values else []
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        yield f"    {name:<{width}}  {value}"


def _tree(made: Made, indent: str, seen: dict[Path, None]) -> Iterator[str]:
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
            again = "  (see above)" if inner.path in seen else ""
            adopted = ", adopted" if inner.manifest and inner.manifest.adopted else ""
            about = f"{inner.folder}  ({inner.stage}{adopted})  {contents}"
            yield f"{indent}{source.name}: {about}{again}"
            if not again:
                seen[inner.path] = None
                yield from _tree(inner, indent + "  ", seen)


def _again(made: Made) -> Iterator[str]:
    """The command lines that make an artifact once more, in ``again/``, and compare the two."""
    places = [x.place for x in made.inputs]
    if made.manifest and made.manifest.adopted:
        yield "to have it made instead: remove its folder, and run the workflow"
    elif None in places:
        yield "it cannot be made again from here: not all of its inputs are there"
    else:
        command = [
            *("opd", "stage", made.stage, "--cfg", _shown(made.path / "manifest.json")),
            *("--input", *(_shown(place) for place in places if place)),
            *("--output", f"again/{made.folder}/digest.json", "--store", "again/.store"),
        ]
        yield "to make it again, beside this one, and compare:"
        yield f"  {shlex.join(command)}"
        yield f"  {shlex.join(['opd', 'diff', _shown(made.path), f'again/{made.folder}'])}"

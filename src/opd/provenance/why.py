"""``opd why ARTIFACT``: what made it, from what, with what, and how to make it again."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.core.text import size
from opd.provenance import records
from opd.provenance.records import Artifact
from opd.stages import identity

# Section of a results folder -> where the config says what is in it; {0}: the name, {1}: the next.
KEYS = {
    "prompts": "prompts.{0}",
    "embeddings": "models.{0}, where it is a model, prompts.{1}, and what deduplicates by it",
    "neighbours": "models.{0}, where it is a model, prompts.{1}, and what deduplicates by it",
    "contamination": "contamination.{0}",
    "datasets": "benchmarks.{0}.hub",
    "sft_data": "sft_data.{0}",
    "models": "models.{0}",
    "generations": "generations.{0}",
    "probes": "probes.{0}",
    "evaluations": "evaluations.{0}, its protocol and benchmarks, models.{1}",
    "figures": "figures.{0}",
    "tables": "tables.{0}",
    "claims": "papers, arms, probes, and config/claims/ of each paper",
    "report": "targets, and all that is asked for",
}


def lines(given: Path) -> Iterator[str]:
    """Lines to print of an artifact (as ``opd.provenance.records.locate`` finds it). Raises
    ``UserError`` where there is none, and where its manifest is missing or damaged."""
    one = records.locate(given)
    if one.manifest is None:
        remedy = "see `opd audit` of its results folder"
        raise UserError("its manifest.json is missing or damaged", str(one.path), remedy)
    made, cfg = one.manifest, one.manifest["cfg"]
    yield _shown(one.path)
    if made.get("adopted"):
        yield f"  adopted     {made['started']} from {made['adopted']}; nothing here made it"
        yield f"  stands for  opd stage {made['verb']} by the settings below"
    else:
        took = f"in {made['seconds']} s from {made['started']}"
        yield f"  made by     opd stage {made['verb']}, {took}"
        yield f"  where       {made['device']} on {made['host']}"
    if older := identity.older(one.record):
        yield f"  format      {older}: run the workflow to have it made anew"
    yield f"  identity    {made['identity']}"
    yield f"  config      {config_key(one.folder)}"
    yield "  settings"
    yield from _table({key: cfg[key] for key in cfg if key not in ("code", "inputs")})
    yield "  numbers"
    yield from _table(made["numbers"] or {})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made["versions"].items()))
    yield f"  versions    {versions or 'not known'}"
    yield f"  code        {cfg.get('code', 'not known')}"
    yield "  files"
    payload = records.payload(one)
    for name, sha256 in sorted(one.outputs.items()):
        file = payload / name if payload else None
        about = size(file.stat().st_size) if file and file.is_file() else "gone"
        yield f"    {sha256[:12]}  {about:>9}  {name}"
    yield "  made from"
    yield from _tree(one, "    ", {})
    yield ""
    yield from _again(one)


def config_key(folder: str) -> str:
    """The keys of a config that say what is in a folder of its results."""
    section, *names = folder.split("/")
    if section == "figures" and len(names) == 2:
        return f"papers ({names[0]}), arms, and config/figures/{names[0]}.yaml: {names[1]}"
    if section not in KEYS:
        return "not one of a config's"
    model, _, step = (names or [""])[0].partition("@")
    said = KEYS[section].format(model if section == "models" else (names or [""])[0], *names[1:])
    seeds = [name for name in names if name[:1] == "s" and name[1:].isdigit()]
    step = f", keep_steps: {step}" if section == "models" and step else ""
    return said + step + (f", seed {seeds[-1][1:]}" if seeds else "")


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


def _tree(one: Artifact, indent: str, seen: dict[Path, None]) -> Iterator[str]:
    """Inputs below inputs, up to the sources; what came before is named and not opened again."""
    for name, used, place in records.inputs(one):
        if Path(used["path"]).name != "digest.json":
            where = _shown(place) if place else f"{used['path']} (not here)"
            yield f"{indent}{name}: the file {where}  {used['outputs'][:12]}"
            continue
        if place is None:
            yield f"{indent}{name}: {records.below(used['path'])[:-12]} (gone)"
            continue
        inner = records.at(one.root, place.parent)
        again = "  (see above)" if inner.path in seen else ""
        adopted = ", adopted" if (inner.manifest or {}).get("adopted") else ""
        shown = f"{inner.folder}  ({inner.verb}{adopted})  {used['outputs'][:12]}"
        yield f"{indent}{name}: {shown}{again}"
        if not again:
            seen[inner.path] = None
            yield from _tree(inner, indent + "  ", seen)


def _again(one: Artifact) -> Iterator[str]:
    assert one.manifest is not None
    if one.manifest.get("adopted"):
        yield "to have it made instead: remove its folder, and run the workflow"
        return
    command = again(one, Path("again"))
    if command is None:
        yield "it cannot be made again from here: not all of its inputs are there"
        return
    yield "to make it again, beside this one, and compare:"
    yield f"  {shlex.join(command)}"
    yield f"  {shlex.join(['opd', 'diff', _shown(one.path), f'again/{one.folder}'])}"


def again(one: Artifact, folder: Path) -> list[str] | None:
    """The command line that makes an artifact once more below ``folder``; None where an input is
    gone."""
    assert one.manifest is not None
    places = [place for _, _, place in records.inputs(one)]
    if None in places:
        return None
    return [
        *("opd", "stage", one.verb, "--cfg", _shown(one.path / "manifest.json")),
        *("--input", *(_shown(place) for place in places if place)),
        *("--output", str(folder / one.folder / "digest.json")),
        *("--store", str(folder / ".store")),
    ]

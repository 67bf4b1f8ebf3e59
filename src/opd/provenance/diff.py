"""``opd diff A B``: where two artifacts, or two results folders, part ways, and by how much."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.stages import on_disk, registry
from opd.stages.artifact import sources_first
from opd.stages.on_disk import Made

ABSENT = "–"

Pair = tuple[Made, Made]


def changes(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, other value) of what differs between two plain values; keys of mappings and
    places of lists of one length are joined by dots. What one lacks is ``ABSENT``."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}, key=str):
            inner = (one.get(name, ABSENT), other.get(name, ABSENT))
            yield from changes(*inner, f"{key}.{name}" if key else str(name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, inner in enumerate(zip(one, other, strict=True)):
            yield from changes(*inner, f"{key}.{index}")
    elif one != other or type(one) is not type(other):
        yield key, one, other


class Difference(NamedTuple):
    """``first``: pairs whose files differ, though the artifacts they were made from are the same;
    ``behind``: those that differ after them; ``same``: equal files by other settings or code;
    ``alone``: folders that one side lacks, with the side that has them."""

    first: Sequence[Pair]
    behind: Sequence[Pair]
    same: Sequence[Pair]
    alone: Sequence[tuple[str, str]]

    @property
    def any(self) -> bool:
        return bool(self.first or self.behind or self.alone)


def compare(a: Path, b: Path) -> Difference:
    """Compare two results folders by their folders' names, or two artifacts and all behind them by
    the names of their inputs. Files are compared by the digests in digest.json, so `opd audit`
    both first; the report, which tells when it was made, is compared only by itself.

    Raises ``UserError`` where there is nothing to compare.
    """
    roots = [on_disk.results_folders(path.absolute()) for path in (a, b)]
    if all(len(side) == 1 for side in roots):
        pairs, alone = _by_name([side[0] for side in roots], [str(a), str(b)])
    elif any(roots):
        remedy = "give two results folders, or two artifacts"
        raise UserError("only results/NAME compare, or artifacts", f"{a}, {b}", remedy)
    else:
        pairs, alone = _by_inputs(on_disk.locate(a), on_disk.locate(b)), []
    differ = [pair for pair in pairs if pair[0].outputs != pair[1].outputs]
    first = [pair for pair in differ if not _used_others(*pair)]
    behind = [pair for pair in differ if pair not in first]
    same = [x for x in pairs if x not in differ and x[0].digest != x[1].digest]
    return Difference(first, behind, same, alone)


def _by_name(
    roots: Sequence[Path], names: Sequence[str]
) -> tuple[list[Pair], list[tuple[str, str]]]:
    every = [[Made(root, folder) for folder in on_disk.folders(root)] for root in roots]
    one, other = ({x.folder: x for x in s if not registry.looks(x.stage)} for s in every)
    order = [made.folder for made in on_disk.behind(one.values())]
    pairs = [(one[folder], other[folder]) for folder in order if folder in one and folder in other]
    alone = [(folder, names[0]) for folder in one if folder not in other]
    return pairs, alone + [(folder, names[1]) for folder in other if folder not in one]


def _by_inputs(one: Made, other: Made) -> list[Pair]:
    """Two artifacts and what they were made from, matched by the names of inputs, sources first."""
    known: dict[tuple[Path, Path], Pair] = {(one.path, other.path): (one, other)}

    def sources(paths: tuple[Path, Path]) -> Iterator[tuple[Path, Path]]:
        a, b = known[paths]
        places = {x.name: x.place for x in b.inputs if x.used.made}
        for x in a.inputs:
            there = places.get(x.name)
            if x.used.made and x.place and there:
                inner = (on_disk.at(a.root, x.place.parent), on_disk.at(b.root, there.parent))
                key = (inner[0].path, inner[1].path)
                known.setdefault(key, inner)
                yield key

    return [known[key] for key in sources_first([*known], sources)]


def _used_others(one: Made, other: Made) -> bool:
    """Whether an artifact among the inputs of both has other contents."""
    a, b = ({x.name: x.used.outputs for x in y.inputs if x.used.made} for y in (one, other))
    return any(a[name] != b[name] for name in a.keys() & b.keys())


# Why, and by how much


def reasons(one: Made, other: Made) -> Iterator[str]:
    """Settings, code and plain files that differ, one a line; where none does, device and versions,
    or that nothing does."""
    own = [*_own(one, other)]
    a, b = (
        {"device": x.manifest.device, "versions": x.manifest.versions} if x.manifest else {}
        for x in (one, other)
    )
    machine = [f"{name}: {old} | {new}" for name, old, new in changes(a, b)]
    yield from (
        own or machine or ["the same settings, code, inputs and versions: it does not repeat"]
    )


def _own(one: Made, other: Made) -> Iterator[str]:
    a, b = (x.manifest.cfg if x.manifest else {} for x in (one, other))
    then, now = {"stage": one.stage, **settings_of(a)}, {"stage": other.stage, **settings_of(b)}
    for key, old, new in changes(then, now):
        yield f"{key}: {old} | {new}"
    formats = [x.digest.format if x.digest else 1 for x in (one, other)]
    if formats[0] != formats[1]:
        yield f"format: {formats[0]} | {formats[1]}, so their codes cannot be compared"
    elif a.get("code") != b.get("code"):
        modules = [x.manifest.modules if x.manifest else {} for x in (one, other)]
        changed = [key for key, _, _ in changes(modules[0], modules[1])] if all(modules) else []
        yield f"code: {', '.join(changed) or 'which modules was not recorded'}"
    data = [{x.name: x.used.outputs for x in y.inputs if not x.used.made} for y in (one, other)]
    for name, old, new in changes(data[0], data[1]):
        yield f"input {name}: {old[:12]} | {new[:12]}"


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what is made, the code apart."""
    return {key: value for key, value in cfg.items() if key not in ("execution", "code")}


def numbers(one: Made, other: Made) -> Iterator[str]:
    """Cells of a table, verdicts and values of claims, or else numbers of the manifests, that
    differ: one a line, with the difference where it is one of numbers."""
    for key, old, new in changes(_values(one), _values(other)):
        yield f"{key}: {_number(old)} | {_number(new)}{_change(old, new)}"


def _values(made: Made) -> Any:
    payload = made.payload()
    if payload and made.stage == "table" and (payload / "table.csv").is_file():
        with (payload / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            row["row"]: {k: _parsed(v) for k, v in row.items() if k not in ("row", "digests")}
            for row in rows
        }
    if payload and made.stage == "claims" and (payload / "claims.json").is_file():
        return {
            claim["id"]: {
                "verdict": claim["verdict"],
                **{f"check {i}": check["value"] for i, check in enumerate(claim["checks"])},
            }
            for claim in read_json(payload / "claims.json")["claims"]
        }
    return made.manifest.numbers if made.manifest else {}


def _parsed(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(old: Any, new: Any) -> str:
    kinds = (int, float)
    if not (isinstance(old, kinds) and isinstance(new, kinds)) or isinstance(old, bool):
        return ""
    change = new - old
    return f" ({change:+.3g})" if math.isfinite(change) else ""


# Text


def lines(a: Path, b: Path, difference: Difference) -> Iterator[str]:
    """Lines to print; none where files and settings are the same."""
    for folder, side in difference.alone:
        yield f"only in {side}: {folder}"
    if difference.first:
        yield f"where they part ways ({a} | {b}):"
    for pair in difference.first:
        yield f"  {_name(pair)}"
        yield from (f"    {line}" for line in reasons(*pair))
        yield from (f"      {line}" for line in numbers(*pair))
    if difference.behind:
        yield f"made from what differs: {len(difference.behind)}"
    for pair in difference.behind:
        yield f"  {_name(pair)}"
        yield from (f"    {line}" for line in _own(*pair))
        if pair[0].stage in ("table", "claims") or pair == difference.behind[-1]:
            yield from (f"      {line}" for line in numbers(*pair))
    if difference.same:
        yield f"same files by other settings or code: {', '.join(map(_name, difference.same))}"


def _name(pair: Pair) -> str:
    one, other = pair
    return one.folder if one.folder == other.folder else f"{one.folder} | {other.folder}"

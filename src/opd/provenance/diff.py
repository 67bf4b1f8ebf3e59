"""``opd diff A B``: where two artifacts, or two results folders, part ways, and by how much."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.provenance import records
from opd.provenance.records import Artifact
from opd.stages import registry

ABSENT = "–"

Pair = tuple[Artifact, Artifact]


def changes(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, other value) of what differs between two plain values; keys of mappings and
    places of lists of one length are joined by dots. What one lacks is ``ABSENT``."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}, key=str):
            inner = (one.get(name, ABSENT), other.get(name, ABSENT))
            yield from changes(*inner, f"{key}.{name}" if key else str(name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for at, inner in enumerate(zip(one, other, strict=True)):
            yield from changes(*inner, f"{key}.{at}")
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
    sides = [records.results_folders(path.absolute()) for path in (a, b)]
    if all(len(side) == 1 for side in sides):
        pairs, alone = _folders(sides[0][0], sides[1][0], a, b)
    elif any(sides):
        remedy = "give two results folders, or two artifacts"
        raise UserError("only results/NAME compare, or artifacts", f"{a}, {b}", remedy)
    else:
        pairs, alone = _matched(records.locate(a), records.locate(b)), []
    differ = [pair for pair in pairs if _outputs(pair[0]) != _outputs(pair[1])]
    first = [pair for pair in differ if not _used(*pair)]
    behind = [pair for pair in differ if _used(*pair)]
    same = [
        pair
        for pair in pairs
        if pair not in differ and (pair[0].record or {}) != (pair[1].record or {})
    ]
    return Difference(first, behind, same, alone)


def _folders(one: Path, other: Path, a: Path, b: Path) -> tuple[list[Pair], list[tuple[str, str]]]:
    theirs = [
        {name: records.artifact(root, name) for name in records.folders(root)}
        for root in (one, other)
    ]
    shown = [{n: x for n, x in side.items() if not registry.looks(x.verb)} for side in theirs]
    order: dict[str, None] = {}
    for artifact in shown[0].values():
        order |= dict.fromkeys(x.folder for x in records.behind(artifact) if x.root == one)
    pairs = [(shown[0][n], shown[1][n]) for n in order if n in shown[0] and n in shown[1]]
    alone = [(n, str(a)) for n in shown[0] if n not in shown[1]]
    return pairs, alone + [(n, str(b)) for n in shown[1] if n not in shown[0]]


def _matched(one: Artifact, other: Artifact) -> list[Pair]:
    """Two artifacts and what they were made from, matched by the names of inputs, sources first."""
    found: dict[tuple[Path, Path], Pair] = {}
    open_: set[tuple[Path, Path]] = set()

    def visit(a: Artifact, b: Artifact) -> None:
        key = (a.path, b.path)
        if key in open_:
            return
        open_.add(key)
        theirs = {name: place for name, _, place in records.inputs(b)}
        for name, used, place in records.inputs(a):
            there = theirs.get(name)
            if _made(used) and place and there:
                visit(records.at(a.root, place.parent), records.at(b.root, there.parent))
        found[key] = (a, b)

    visit(one, other)
    return list(found.values())


def _outputs(one: Artifact) -> dict[str, str]:
    return dict(one.outputs)


def _used(one: Artifact, other: Artifact) -> list[str]:
    """Names of the artifacts among the inputs of both whose contents differ."""
    a, b = ({n: u for n, u, _ in records.inputs(x) if _made(u)} for x in (one, other))
    return [n for n in a if n in b and a[n].get("outputs") != b[n].get("outputs")]


# Why, and by how much


def reasons(one: Artifact, other: Artifact) -> Iterator[str]:
    """Settings, code and plain files that differ, one a line; where none does, device and versions,
    or that nothing does."""
    own = [*_own(one, other)]
    a, b = ({k: (x.manifest or {}).get(k) for k in ("device", "versions")} for x in (one, other))
    place = [f"{name}: {old} | {new}" for name, old, new in changes(a, b)]
    yield from own or place or ["the same settings, code, inputs and versions: it does not repeat"]


def _own(one: Artifact, other: Artifact) -> Iterator[str]:
    a, b = one.manifest or {}, other.manifest or {}
    then, now = ({"verb": x.get("verb"), **told(x.get("cfg", {}))} for x in (a, b))
    for key, old, new in changes(then, now):
        yield f"{key}: {old} | {new}"
    formats = [(x.record or {}).get("format", 1) for x in (one, other)]
    if formats[0] != formats[1]:
        yield f"format: {formats[0]} | {formats[1]}, so their codes cannot be compared"
    elif a.get("cfg", {}).get("code") != b.get("cfg", {}).get("code"):
        then, now = (x.get("modules") or {} for x in (a, b))
        changed = [key for key, _, _ in changes(then, now)] if then and now else []
        yield f"code: {', '.join(changed) or 'which modules was not recorded'}"
    then, now = (
        {name: used.get("outputs") for name, used, _ in records.inputs(x) if not _made(used)}
        for x in (one, other)
    )
    for name, old, new in changes(then, now):
        yield f"input {name}: {str(old)[:12]} | {str(new)[:12]}"


def _made(used: Mapping[str, str]) -> bool:
    """Whether an input is an artifact, and no plain file."""
    return Path(used["path"]).name == "digest.json"


def told(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what is made, the code apart."""
    return {key: value for key, value in cfg.items() if key not in ("execution", "code")}


def numbers(one: Artifact, other: Artifact) -> Iterator[str]:
    """Cells of a table, verdicts and values of claims, or else numbers of the manifests, that
    differ: one a line, with the difference where it is one of numbers."""
    for key, old, new in changes(_values(one), _values(other)):
        yield f"{key}: {_number(old)} | {_number(new)}{_change(old, new)}"


def _values(one: Artifact) -> Any:
    payload = records.payload(one)
    if payload and one.verb == "table" and (payload / "table.csv").is_file():
        with (payload / "table.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            row["row"]: {k: _parsed(v) for k, v in row.items() if k not in ("row", "digests")}
            for row in rows
        }
    if payload and one.verb == "claims":
        claims = (records.parsed(payload / "claims.json") or {}).get("claims", [])
        return {
            claim["id"]: {
                "verdict": claim["verdict"],
                **{f"check {i}": check["value"] for i, check in enumerate(claim["checks"])},
            }
            for claim in claims
        }
    return (one.manifest or {}).get("numbers") or {}


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


def lines(a: Path, b: Path, found: Difference) -> Iterator[str]:
    """Lines to print; none where files and settings are the same."""
    for folder, side in found.alone:
        yield f"only in {side}: {folder}"
    if found.first:
        yield f"where they part ways ({a} | {b}):"
    for pair in found.first:
        yield f"  {_name(pair)}"
        yield from (f"    {line}" for line in reasons(*pair))
        yield from (f"      {line}" for line in numbers(*pair))
    if found.behind:
        yield f"made from what differs: {len(found.behind)}"
    for pair in found.behind:
        yield f"  {_name(pair)}"
        yield from (f"    {line}" for line in _own(*pair))
        if pair[0].verb in ("table", "claims") or pair == found.behind[-1]:
            yield from (f"      {line}" for line in numbers(*pair))
    if found.same:
        yield f"same files by other settings or code: {', '.join(map(_name, found.same))}"


def _name(pair: Pair) -> str:
    one, other = pair
    return one.folder if one.folder == other.folder else f"{one.folder} | {other.folder}"

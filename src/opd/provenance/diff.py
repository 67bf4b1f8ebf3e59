"""``opd diff A B``: where two artifacts, or two results folders, part ways, and by how much."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import is_plain, read_json
from opd.core.html import image, render
from opd.core.security import visible
from opd.core.text import distinct
from opd.stages import naming, on_disk, registry
from opd.stages.artifact import sources_first
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, load

PAGES = package_file(__file__, "pages")
ABSENT = "–"

Pair = tuple[Made, Made]


def changes(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old value, new value) of what differs between two plain values; keys of mappings and
    places of lists of one length are joined by dots. What one lacks is ``ABSENT``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}, key=str):
            inner = (old.get(name, ABSENT), new.get(name, ABSENT))
            yield from changes(*inner, f"{key}.{name}" if key else str(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, inner in enumerate(zip(old, new, strict=True)):
            yield from changes(*inner, f"{key}.{index}")
    elif old != new or type(old) is not type(new):
        yield key, old, new


def edits(folder: Path, cfg: Mapping[str, Any], most: int = 3) -> str:
    """Settings that the artifact in a folder was made with and that ``cfg`` has otherwise, each as
    KEY: OLD → NEW, at most so many; empty where its record does not tell."""
    made, _ = load(folder / "manifest.json", Manifest)
    if made is None:
        return ""
    differing = [c for c in changes(made.cfg, cfg) if c[0].partition(".")[0] != "execution"]
    parts = [
        "other code" if key == "code" else f"{key}: {old} → {new}" for key, old, new in differing
    ]
    more = f", {len(parts) - most} more" if len(parts) > most else ""
    return visible(", ".join(parts[:most]) + more)


class Difference(NamedTuple):
    """``first``: pairs whose files differ, though the artifacts they were made from are the same;
    ``behind``: those that differ after them; ``same``: equal files by other settings or code;
    ``alone``: folders that one side lacks, with the side that has them; ``compared``: how many
    pairs there were."""

    first: Sequence[Pair]
    behind: Sequence[Pair]
    same: Sequence[Pair]
    alone: Sequence[tuple[str, str]]
    compared: int

    @property
    def any(self) -> bool:
        return bool(self.first or self.behind or self.alone)


def compare(a: Path, b: Path) -> Difference:
    """Compare two results folders by their folders' names, or two artifacts and all behind them by
    the names of their inputs. Files are compared by the digests in digest.json, so `opd audit`
    both first; the report, which tells when it was made, is compared only by itself. Raises
    ``UserError`` where there is nothing to compare."""
    roots = [on_disk.results_folders(path.absolute()) for path in (a, b)]
    alone: list[tuple[str, str]] = []
    if all(len(side) == 1 for side in roots):
        sides = [{f: Made(side[0], f) for f in on_disk.folders(side[0])} for side in roots]
        old, new = ({f: x for f, x in s.items() if not registry.looks(x.stage)} for s in sides)
        order = [made.folder for made in on_disk.behind(old.values())]
        pairs = [(old[folder], new[folder]) for folder in order if folder in old.keys() & new]
        alone = [(folder, str(a)) for folder in old if folder not in new]
        alone += [(folder, str(b)) for folder in new if folder not in old]
    elif any(roots):
        naming.locate(b if roots[0] else a)  # what is not there at all gets a line of its own
        remedy = "give two results folders, or two artifacts"
        raise UserError("only results/NAME compare, or artifacts", f"{a}, {b}", remedy)
    else:
        pairs = _by_inputs((naming.locate(a), naming.locate(b)))
    differ = [pair for pair in pairs if pair[0].outputs != pair[1].outputs]
    first = [pair for pair in differ if not _used_others(*pair)]
    behind = [pair for pair in differ if pair not in first]
    same = [x for x in pairs if x not in differ and x[0].digest != x[1].digest]
    return Difference(first, behind, same, alone, len(pairs))


def _by_inputs(pair: Pair) -> list[Pair]:
    """Two artifacts and what they were made from, matched by the names of inputs, sources first."""
    known = {(pair[0].path, pair[1].path): pair}

    def sources(paths: tuple[Path, Path]) -> Iterator[tuple[Path, Path]]:
        old, new = known[paths]
        places = {x.name: x.place for x in new.inputs if x.used.made}
        for x in old.inputs:
            place = places.get(x.name)
            if x.used.made and x.place and place:
                inner = (on_disk.at(old.root, x.place.parent), on_disk.at(new.root, place.parent))
                key = (inner[0].path, inner[1].path)
                known.setdefault(key, inner)
                yield key

    return [known[key] for key in sources_first([*known], sources)]


def _used_others(old: Made, new: Made) -> bool:
    """Whether an artifact among the inputs of both has other contents."""
    a, b = ({x.name: x.used.outputs for x in y.inputs if x.used.made} for y in (old, new))
    return any(a[name] != b[name] for name in a.keys() & b.keys())


def reasons(old: Made, new: Made) -> Iterator[str]:
    """Settings, code and files that differ; else device and versions; else that nothing does."""
    keys = ("device", "versions")
    then, now = ({key: getattr(made.manifest, key, {}) for key in keys} for made in (old, new))
    yield from (
        [*_settings(old, new)]
        or [f"{name}: {a} | {b}" for name, a, b in changes(then, now)]
        or ["the same settings, code, inputs and versions: it does not repeat"]
    )


def _settings(old: Made, new: Made) -> Iterator[str]:
    then, now = ({"stage": made.stage, **getattr(made.manifest, "cfg", {})} for made in (old, new))
    for key, a, b in changes(settings_of(then), settings_of(now)):
        yield f"{key}: {a} | {b}"
    formats = [made.digest.format if made.digest else 1 for made in (old, new)]
    if formats[0] != formats[1]:
        yield f"format: {formats[0]} | {formats[1]}, so their codes cannot be compared"
    elif then.get("code") != now.get("code"):
        before, after = (getattr(made.manifest, "modules", {}) for made in (old, new))
        changed = [key for key, *_ in changes(before, after)] if before and after else []
        yield f"code: {', '.join(changed) or 'which modules was not recorded'}"
    then, now = ({x.name: x.used.outputs for x in y.inputs if not x.used.made} for y in (old, new))
    for name, a, b in changes(then, now):
        yield f"input {name}: {a[:12]} | {b[:12]}"


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change what is made, the code apart."""
    return {key: value for key, value in cfg.items() if key not in ("execution", "code")}


def numbers(old: Made, new: Made) -> Iterator[str]:
    """``changed_numbers``, one a line."""
    for key, a, b, change in changed_numbers(old, new):
        yield f"{key}: {a} | {b}" + (f" ({change})" if change else "")


def changed_numbers(old: Made, new: Made) -> Iterator[tuple[str, str, str, str]]:
    """Cells of a table, verdicts and values of claims, or else numbers of the manifests, that
    differ: what each is, its two values, and their difference where they are numbers."""
    for key, *pair in changes(_shown(old), _shown(new)):
        a, b = (f"{value:.6g}" if isinstance(value, float) else str(value) for value in pair)
        change = ""
        if {*map(type, pair)} <= {int, float} and math.isfinite(pair[1] - pair[0]):
            change = f"{pair[1] - pair[0]:+.3g}"
        yield key, a, b, change


def _shown(made: Made) -> Any:
    try:
        return _values(made)
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        reason = f"its payload is not what such a stage writes ({type(error).__name__}: {error})"
        remedy = "have it made again, or compare without it"
        raise UserError(reason, str(made.path), remedy) from None


def _values(made: Made) -> Any:
    if made.stage == "table" and (table := _file(made, "table.csv")):
        return _cells(table)
    if made.stage == "claims" and (claims := _file(made, "claims.json")):
        return {
            f"{claim['paper']}/{claim['id']}": {
                "verdict": claim["verdict"],
                **{f"check {i}": check["value"] for i, check in enumerate(claim["checks"])},
            }
            for claim in read_json(claims)["claims"]
        }
    return getattr(made.manifest, "numbers", {})


def _cells(table: Path) -> dict[str, dict[str, float | str]]:
    """The cells of a table by row and column. Rows that are called alike, as those of responses
    are, go by their place, too."""
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    cells = {}
    for name, (_, *values) in zip(distinct([label for label, *_ in rows]), rows, strict=True):
        columns = zip(header[1:], values, strict=True)
        cells[name] = {column: _parsed(text) for column, text in columns if column != "digests"}
    return cells


def _file(made: Made, name: str) -> Path | None:
    """A file of an artifact; None where it has none, and where it is a link or the like."""
    file = (made.payload() or made.path) / name
    return file if is_plain(file) else None


def _parsed(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def as_json(difference: Difference) -> dict[str, Any]:
    """The same as plain data."""

    def pairs(of: Sequence[Pair]) -> list[dict[str, Any]]:
        places = [{"a": str(a.path), "b": str(b.path)} for a, b in of]
        texts = [{"reasons": [*reasons(*x)], "numbers": [*numbers(*x)]} for x in of]
        return [place | text for place, text in zip(places, texts, strict=True)]

    alone = [{"folder": folder, "in": side} for folder, side in difference.alone]
    parts = {part: pairs(getattr(difference, part)) for part in ("first", "behind", "same")}
    return {"equal": not difference.any, "alone": alone, **parts}


def lines(a: Path, b: Path, difference: Difference) -> list[str]:
    """Lines to print."""
    values = {"reasons": reasons, "numbers": numbers, "settings": _settings}
    return render(PAGES, "diff.txt.j2", a=a, b=b, difference=difference, **values).splitlines()


def page(a: Path, b: Path, difference: Difference) -> str:
    """The same as a page that needs no other file, with the figures of both side by side."""
    figures = [
        (pair, [(file := _file(made, "figure.svg")) and image(file) for made in pair])
        for pair in (*difference.first, *difference.behind)
        if all(made.stage == "figure" for made in pair)
    ]
    values = {"reasons": reasons, "numbers": changed_numbers, "settings": _settings}
    return render(PAGES, "diff.html.j2", a=a, b=b, difference=difference, figures=figures, **values)

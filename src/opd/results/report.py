"""The report of a scale: claims, figures, tables, runs, cost and state, as one HTML file.

What it says of state it finds by looking at the files, so it is made anew each time it is asked
for. Links lead to files beside it in the results folder; the page itself loads nothing.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from opd.core import html
from opd.core.code import package_file
from opd.core.files import read_json
from opd.results import claims_page
from opd.results.quantity import column
from opd.stages import check, on_disk
from opd.stages.fresh import read_plan
from opd.stages.records import Manifest, plain, read

# Not compared with their digests: reading them would take longer than all else together.
WEIGHTS = ".safetensors"
NO_CLAIMS: dict[str, Any] = {
    "comparable": False,
    "counts": {},
    "papers": {},
    "claims": [],
    "targets": [],
}


class Made(NamedTuple):
    """An artifact: its folder below the results folder, its manifest, and what is wrong with it."""

    folder: str
    manifest: dict[str, Any]
    troubles: list[str]


class Link(NamedTuple):
    """An artifact behind an exhibit: what it is to it, its folder, and the first digits of the
    digest of its contents (as ``opd why`` shows it)."""

    role: str
    folder: str
    digest: str


class Origin(NamedTuple):
    """What a row, series or arm of an exhibit is from."""

    label: str
    links: list[Link]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``report``: report.html, made to lie in the results folder.

    cfg: ``title``, ``scale``, ``sections`` [{title, figures: [names]}], ``tables`` [names],
    ``runs`` [{name, stage, folder}]. Inputs: ``claims`` (may be left out), ``figure:NAME``,
    ``table:NAME``, ``run:FOLDER``, each the payload of an artifact of the results folder. Returns
    the counts of verdicts, and how many artifacts are modified or stale. Raises ``UserError`` where
    a digest.json, manifest.json or claims.json cannot be read.
    """
    root = results_folder(inputs)
    made = behind([path.parent for path in inputs.values()], root)
    at = {name: made[_below(path.parent, root)] for name, path in inputs.items()}
    every = [*made.values()]
    wrong = sorted((artifact for artifact in every if artifact.troubles), key=lambda a: a.folder)
    found = NO_CLAIMS
    if "claims" in inputs:
        found = read_json(inputs["claims"] / "claims.json")

    def exhibit(kind: str, name: str) -> tuple[dict[str, Any], Path]:
        """What every exhibit shows, and its payload."""
        artifact = at[f"{kind}:{name}"]
        title = artifact.manifest["cfg"].get("title") or name
        shown = {"name": name, "title": title, "made": artifact}
        return shown | {"origins": origins(artifact, root)}, inputs[f"{kind}:{name}"]

    figures = {
        name: _figure(*exhibit("figure", name), found)
        for section in cfg["sections"]
        for name in section["figures"]
    }
    page = html.render(
        (package_file(__file__, "pages/report"), claims_page.PAGES),
        "report.html.j2",
        **claims_page.values(found, figures),
        title=cfg["title"],
        scale=cfg["scale"],
        sections=cfg["sections"],
        claims=at.get("claims"),
        claims_origins=origins(at["claims"], root) if "claims" in at else [],
        tables=[_table(*exhibit("table", name)) for name in cfg["tables"]],
        runs=_grouped(
            [{**run, "made": at[f"run:{run['folder']}"]} for run in cfg["runs"]], "stage"
        ),
        run_folders={run["folder"] for run in cfg["runs"]},
        cost=cost(every),
        versions=versions(every),
        wrong=wrong,
        anchors={artifact.folder: name for name, artifact in at.items()},
        results=f"results/{root.name}",
        artifacts=len(made),
        adopted=sorted(a.folder for a in every if a.manifest.get("adopted")),
        duration=duration,
        folder_of=lambda path: _below((root.parent.parent / path).parent, root),
    )
    (out / "report.html").write_text(page)
    return {"verdicts": found["counts"], "modified or stale": len(wrong)}


# What lies in the results folder


def results_folder(inputs: Mapping[str, Path]) -> Path:
    """The folder that the report will lie in, from where its inputs lie: results/NAME."""
    for name, path in inputs.items():
        kind, _, rest = name.partition(":")
        depth = len(Path(rest).parts) + (kind in ("figure", "table"))
        if rest:
            return path.parent.parents[depth - 1]
    return next(iter(inputs.values())).parent.parent


def _below(folder: Path, root: Path) -> str:
    """Folder below the results folder; of one outside, which may be anywhere, the name only."""
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name


def behind(folders: Sequence[Path], root: Path) -> dict[str, Made]:
    """These artifacts and all that they were made from, as their manifests say, by folder. Raises
    ``UserError`` where one of their records cannot be read."""
    plan = read_plan(root / "plan.json")[0] or {}
    artifacts = {}
    for made in on_disk.behind(on_disk.at(root, folder) for folder in folders):
        manifest = read(made.path / "manifest.json", Manifest)
        own = made.root == root.absolute()
        name = made.folder if own else made.path.name
        findings = check.shown(made, plan.get(name) if own else None, (WEIGHTS,))
        artifacts[name] = Made(name, plain(manifest), [finding.text for finding in findings])
    return artifacts


# Sums


def cost(made: Sequence[Made]) -> dict[str, Any]:
    """Seconds and stages in all, the first and last start, and by ``stage`` and by ``device``,
    longest first, rows of name, stages, seconds and what they ``drew``. ``gpu``: whether any stage
    has recorded what it drew from one.

    An artifact that several folders link was made once and counts once; one that was adopted was
    not made here.
    """
    here = [artifact.manifest for artifact in made if not artifact.manifest.get("adopted")]
    stages = [*{manifest["identity"]: manifest for manifest in here}.values()]
    starts = [stage["started"] for stage in stages]

    def seconds(group: Sequence[Mapping[str, Any]]) -> float:
        return sum(stage["seconds"] for stage in group)

    def by(key: str) -> list[dict[str, Any]]:
        rows = [
            {"name": name, "stages": len(group), "seconds": seconds(group), "drew": drawn(group)}
            for name, group in _grouped(stages, key).items()
        ]
        return sorted(rows, key=lambda row: (row["seconds"], row["name"]), reverse=True)

    return {
        "seconds": seconds(stages),
        "stages": len(stages),
        "first": min(starts, default=None),
        "last": max(starts, default=None),
        "stage": by("stage"),
        "device": by("device"),
        "gpu": any("gpu" in stage for stage in stages),
    }


def drawn(manifests: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What stages drew from GPUs: the highest peak of memory on one device (GiB), the mean share of
    time with work on them (%, weighted by the stages' time) and the sum of energy (Wh); None where
    none has recorded it."""
    recorded = [(m["seconds"], m["gpu"]) for m in manifests if "gpu" in m]
    peaks = [gpu["peak_memory_bytes"] for _, gpu in recorded if "peak_memory_bytes" in gpu]
    busy = [(s, gpu["utilisation"]) for s, gpu in recorded if "utilisation" in gpu]
    energy = [gpu["energy_joules"] for _, gpu in recorded if "energy_joules" in gpu]
    time = sum(seconds for seconds, _ in busy)
    return {
        "memory": max(peaks) / 2**30 if peaks else None,
        "busy": 100 * sum(seconds * share for seconds, share in busy) / time if time else None,
        "energy": sum(energy) / 3600 if energy else None,
    }


def versions(made: Sequence[Made]) -> dict[str, Counter[str]]:
    """Package -> version -> number of artifacts that were made with it."""
    counted: dict[str, Counter[str]] = {}
    for artifact in made:
        for package, version in artifact.manifest["versions"].items():
            counted.setdefault(package, Counter())[version] += 1
    return dict(sorted(counted.items()))


def _grouped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


# Exhibits


def _figure(shown: dict[str, Any], payload: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    name, manifest = shown["name"], shown["made"].manifest
    return {
        **shown,
        "caption": _caption(payload / "caption.md", manifest["cfg"]),
        "image": _image(payload / "figure.svg"),
        "drawn": sorted(flat(manifest["numbers"] or {}), key=_by_number),
        "published": [target for target in found["targets"] if name in target["figures"]],
        "series": _series(manifest["cfg"]),
        "claims": [c for c in found["claims"] if f"{c['paper']}/{c['figure']}" == name],
    }


def _series(settings: Mapping[str, Any]) -> dict[str, str]:
    """Id of a published value -> what the figure calls the arm or probe that it is of."""
    known = {**settings.get("arms", {}), **settings.get("probes", {})}
    labels = {name: about["label"] for name, about in known.items()}
    for part in (settings, *settings.get("panels", [])):
        for series in part.get("series", []):
            name = series.get("arm") or series.get("probe")
            labels |= {name: series["label"]} if "label" in series else {}
    names = {mark["target"]: mark.get("series", "-") for mark in settings.get("published", [])}
    return {target: labels.get(name, name) for target, name in names.items()}


def _caption(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Paragraphs: the caption that a figure was drawn with, or the config's."""
    text = settings.get("caption") or ""
    if path.is_file():
        text = path.read_text(errors="replace")
    parts = [part.strip() for part in text.split("\n\n")]
    return [part for part in parts if part and part != f"**{settings.get('title')}**"]


def _image(svg: Path) -> dict[str, Any] | None:
    """An SVG file as a data URI (so that its ids and styles stay its own) with its size in CSS
    pixels; None where it is missing or no SVG."""
    try:
        data = svg.read_bytes()
        box = ElementTree.fromstring(data).get("viewBox", "").split()
        width, height = (round(float(side) * 96 / 72) for side in box[2:])
    except (OSError, ValueError, ElementTree.ParseError):
        return None
    uri = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": width, "height": height}


def origins(made: Made, root: Path) -> list[Origin]:
    """What an exhibit shows by its rows, series or arms, and the artifacts that each is from."""
    used = made.manifest["inputs"]

    def link(role: str, name: str) -> Link:
        folder = _below((root.parent.parent / used[name]["path"]).parent, root)
        return Link(role, folder, used[name]["outputs"][:12])

    found = []
    for label, roles in _roles(made.manifest["cfg"]):
        links = [link(role, name) for role, names in roles for name in names if name in used]
        found.append(Origin(label, [*dict.fromkeys(links)]))
    return found


# What names inputs in the settings of tables, figures and claims, and what it is to a reader.
ROLES = {
    "evaluations": "scores",
    "base": "scores before",
    "teacher": "scores of the teacher",
    "run": "training run",
    "probe": "probe",
    "runs": "run",
}


def _roles(cfg: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """(label, [(role, names of inputs)]) of each row, arm, probe, and series of its own."""
    series = [s for part in (cfg, *cfg.get("panels", [])) for s in part.get("series", [])]
    # Others are by the name of an arm or a probe.
    own = [row for row in series if not row.keys() & {"arm", "probe"}]
    known = [*cfg.get("arms", {}).values(), *cfg.get("probes", {}).values()]
    shown = _columns(cfg)
    for row in (*cfg.get("rows", []), *known, *own):
        roles = [
            (f"{role}{shown.get(key, '')}", row[key])
            for key, role in ROLES.items()
            if row.get(key) and (key in shown or not shown)
        ]
        roles += [(f"scores at step {s}", names) for s, names in row.get("scores", {}).items()]
        if roles or row in cfg.get("rows", []):
            yield row["label"], roles


def _columns(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What a row of a table may name -> the columns that are worked out of it, in brackets."""
    found: dict[str, list[str]] = {}
    for shown in cfg.get("columns", []):
        spec = shown if isinstance(shown, str) else shown["column"]
        for role in column(spec).inputs:
            found.setdefault(role, []).append(spec)
    return {role: f" ({', '.join(specs)})" for role, specs in found.items()}


def _table(shown: dict[str, Any], payload: Path) -> dict[str, Any]:
    path = payload / "table.md"
    header, rows, note = parse(path.read_text(errors="replace") if path.is_file() else "")
    caption = shown["made"].manifest["cfg"].get("caption") or ""
    return {**shown, "caption": caption, "header": header, "rows": rows, "note": note}


def parse(text: str) -> tuple[list[str], list[list[str]], str]:
    """A table.md of ``opd.results.tables`` -> header, rows, and the note below them."""
    lines = [line.strip() for line in text.splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith("|")]
    if not places:
        return [], [], ""
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", lines[i])[1:-1]]
        for i in places
    ]
    return rows[0], rows[2:], " ".join(lines[places[-1] + 1 :]).strip()


def flat(value: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Nested numbers as (names from the outside in, value) pairs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, (*name, str(key)))
    else:
        yield " · ".join(name), _values(value)


def _by_number(named: tuple[str, str]) -> list[str | int]:
    """Names in order, with the numbers in them as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", named[0])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _values(value: Any) -> str:
    if not isinstance(value, list):
        return number(value)
    texts = [_values(one) for one in value]
    # Mean, low and high, as draw_bars keeps them.
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ", ".join(texts)


def number(value: Any) -> str:
    """Three significant digits with a true minus; text as it is, – for None."""
    if isinstance(value, bool | str):
        return str(value)
    return html.number(value, ".3g" if isinstance(value, float) else "")


def duration(seconds: float) -> str:
    """Seconds as a reader says them, on one line: 4.2 s, 3 min 05 s, 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    text = f"{minutes // 60} h {minutes % 60:02d} min"
    if seconds < 59.95:
        text = f"{seconds:.1f} s"
    elif minutes < 60:
        text = f"{minutes} min {rest:02d} s"
    return text.replace(" ", "\u00a0")

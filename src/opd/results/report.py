"""The report of a scale: claims, figures, tables, runs, cost and state, as one HTML file.

What it says of state it finds by looking at the files, so it is made anew each time it is asked
for. Links lead to files beside it in the results folder; the page itself loads nothing.
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from markupsafe import Markup

from opd.core import html as page
from opd.core.files import read_json
from opd.results import claims_page, columns
from opd.results.claims_page import anchor
from opd.results.report_page import TEMPLATE
from opd.stages import check, on_disk
from opd.stages.fresh import read_plan
from opd.stages.records import Manifest, plain, read

# Not compared with their digests: reading them would take longer than all else together.
WEIGHTS = ".safetensors"
MISSING = "–"
DRAWN = ("GPU memory, peak (GiB)", "GPU busy (%)", "GPU energy (Wh)")


class Made(NamedTuple):
    """An artifact: its folder below the results folder, its manifest, and what is wrong with it."""

    folder: str
    manifest: dict[str, Any]
    troubles: list[str]


class Link(NamedTuple):
    """An artifact behind an exhibit: what it is to it, its folder, where a click leads, and the
    first digits of the digest of its contents (as ``opd why`` shows it)."""

    role: str
    folder: str
    href: str
    digest: str


class Origin(NamedTuple):
    """What a row, series or arm of an exhibit is from; its name and its place in the page."""

    label: str
    anchor: str
    links: list[Link]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``report``: report.html, made to lie in the results folder.

    cfg: ``title``, ``scale``, ``sections`` [{title, figures: [names]}], ``tables`` [names],
    ``runs`` [{name, verb, folder}]. Inputs: ``claims`` (may be left out), ``figure:NAME``,
    ``table:NAME``, ``run:FOLDER``, each the payload of an artifact of the results folder. Returns
    the counts of verdicts, and how many artifacts are modified or stale. Raises ``UserError`` where
    a digest.json, manifest.json or claims.json cannot be read.
    """
    root = results_folder(inputs)
    made = behind([path.parent for path in inputs.values()], root)
    at = {name: made[_below(path.parent, root)] for name, path in inputs.items()}
    found: dict[str, Any] = {"counts": {}, "papers": {}, "claims": [], "targets": []}
    found["comparable"] = False
    if "claims" in inputs:
        found = read_json(inputs["claims"] / "claims.json")
    wrong = sorted((one for one in made.values() if one.troubles), key=lambda one: one.folder)
    shown = {one.folder: f"#{anchor(name)}" for name, one in at.items()}
    link = figure_link(name for section in cfg["sections"] for name in section["figures"])
    where = {one["folder"]: anchor(f"run:{one['folder']}") for one in cfg["runs"]}

    def from_(one: Made, kind: str) -> list[Origin]:
        return origins(one, root, where, anchor(f"from:{kind}"))

    html = page.render(
        TEMPLATE,
        cfg["title"],
        scale=cfg["scale"],
        found=found,
        claims_style=Markup(claims_page.STYLE),
        claims_html=claims_page.claims_html(found, link),
        published=claims_page.targets_html(found, link),
        claims=at.get("claims"),
        claims_from=from_(at["claims"], "claims") if "claims" in at else [],
        sections=[
            {
                "title": section["title"],
                "figures": [
                    {
                        **_figure(name, at[f"figure:{name}"], inputs[f"figure:{name}"], found),
                        "origins": from_(at[f"figure:{name}"], f"figure:{name}"),
                    }
                    for name in section["figures"]
                ],
            }
            for section in cfg["sections"]
        ],
        tables=[
            _table(
                name,
                at[f"table:{name}"],
                inputs[f"table:{name}"],
                from_(at[f"table:{name}"], f"table:{name}"),
            )
            for name in cfg["tables"]
        ],
        runs=_grouped([{**one, "made": at[f"run:{one['folder']}"]} for one in cfg["runs"]], "verb"),
        cost=cost(list(made.values())),
        package_rows=versions(list(made.values())),
        wrong=wrong,
        anchors=shown,
        results=f"results/{root.name}",
        artifacts=len(made),
        anchor=anchor,
        of_claim=claims_page.of_claim,
        duration=duration,
        adopted=sorted(one.folder for one in made.values() if one.manifest.get("adopted")),
        folder_of=lambda path: _below((root.parent.parent / path).parent, root),
        file=quote,
    )
    (out / "report.html").write_text(html)
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
    """Seconds in all, and rows by verb and by device, longest first: name, stages, duration and,
    where a stage has recorded what it drew from a GPU, the three numbers of ``drawn``.

    An artifact that several folders link was made once and counts once; one that was adopted was
    not made here.
    """
    here = [one.manifest for one in made if not one.manifest.get("adopted")]
    stages = list({one["identity"]: one for one in here}.values())
    gpu = any("gpu" in manifest for manifest in stages)

    def by(key: str) -> list[tuple[Any, ...]]:
        sums = [
            (sum(m["seconds"] for m in of), name, len(of), drawn(of) if gpu else ())
            for name, of in _grouped(stages, key).items()
        ]
        return [(name, n, duration(s), *of) for s, name, n, of in sorted(sums, reverse=True)]

    return {
        "columns": ["stages", "time", *(DRAWN if gpu else ())],
        "seconds": sum(m["seconds"] for m in stages),
        "stages": len(stages),
        "verb": by("verb"),
        "device": by("device"),
        "first": min((m["started"] for m in stages), default=None),
        "last": max((m["started"] for m in stages), default=None),
    }


def drawn(manifests: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What stages drew from GPUs, as ``DRAWN`` heads it: the highest peak of memory on one device,
    the mean share of time with work on them (weighted by the stages' time), the sum of energy."""
    of = [(m["seconds"], m["gpu"]) for m in manifests if "gpu" in m]
    peaks = [gpu["peak_memory_bytes"] for _, gpu in of if "peak_memory_bytes" in gpu]
    busy = [(s, gpu["utilisation"]) for s, gpu in of if "utilisation" in gpu]
    energy = [gpu["energy_joules"] for _, gpu in of if "energy_joules" in gpu]
    time = sum(s for s, _ in busy)
    return (
        f"{max(peaks) / 2**30:.1f}" if peaks else MISSING,
        f"{100 * sum(s * u for s, u in busy) / time:.0f}" if time else MISSING,
        f"{sum(energy) / 3600:.1f}" if energy else MISSING,
    )


def versions(made: Sequence[Made]) -> list[tuple[str, str]]:
    """(package, version); where there are several, each with the number of artifacts made by it."""
    counted: dict[str, Counter[str]] = {}
    for one in made:
        for package, version in one.manifest["versions"].items():
            counted.setdefault(package, Counter())[version] += 1
    rows = []
    for package, of in sorted(counted.items()):
        several = [f"{version} ({n} artifacts)" for version, n in sorted(of.items())]
        rows.append((package, ", ".join(several if len(of) > 1 else of)))
    return rows


def _grouped(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


# What the template shows


def _figure(name: str, made: Made, payload: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    settings = made.manifest["cfg"]
    title = settings.get("title") or name
    published = [target for target in found["targets"] if name in target["figures"]]
    return {
        "name": name,
        "called": Path(name).name,
        "made": made,
        "title": title,
        "caption": _caption(payload / "caption.md", settings),
        "image": _image(payload / "figure.svg"),
        "drawn": sorted(flat(made.manifest["numbers"] or {}), key=_by_number),
        "published": page.table(
            ("of", "what", "benchmark", "setting", "published", "ours"),
            _published(published, settings),
            name=f"published values of {title}",
            text=True,
        ),
        "many": len(published),
        "claims": [c for c in found["claims"] if f"{c['paper']}/{c['figure']}" == name],
    }


def _published(
    targets: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> Iterator[list[str]]:
    """Rows of the published values of a figure: whose, as it is called in the drawing, what, and
    what was measured of it here."""
    known = {**settings.get("arms", {}), **settings.get("probes", {})}
    called = {of: one["label"] for of, one in known.items()}
    for part in (settings, *settings.get("panels", [])):
        for one in part.get("series", []):
            of = one.get("arm") or one.get("probe")
            called |= {of: one["label"]} if "label" in one else {}
    series = {one["target"]: one.get("series", "-") for one in settings.get("published", [])}
    for row in targets:
        whose = series.get(row["id"], "-")
        cells = [
            called.get(whose, whose),
            f"{row['metric'].replace('_', ' ')} ({row['id']})",
            *(row["benchmark"], row["setting"]),
            f"{row['value']} ({row['confidence']})",
            "; ".join(row["ours"]),
        ]
        yield [MISSING if cell in ("-", "") else cell for cell in cells]


def _caption(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Paragraphs: the caption that a figure was drawn with, or the config's."""
    text = settings.get("caption") or ""
    if path.is_file():
        text = path.read_text(errors="replace")
    parts = [part.strip() for part in text.split("\n\n")]
    return [part for part in parts if part and part != f"**{settings.get('title')}**"]


def figure_link(names: Iterable[str]) -> Callable[[str], str]:
    """What makes a link to each of these figures (PAPER/fig06) of its name; what is no figure of
    the page stays text."""
    known = {*names}

    def link(name: str) -> str:
        called = claims_page.called(name)
        if name not in known:
            return called
        return Markup('<a href="#{}">{}</a>').format(anchor(f"figure:{name}"), called)

    return link


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


def origins(made: Made, root: Path, runs: Mapping[str, str], anchor: str) -> list[Origin]:
    """What an exhibit shows by its rows, series or arms, and the artifacts that each is from.

    runs: folder -> anchor of the page, of those that it lists; others lead to their manifests.
    """
    used = made.manifest["inputs"]
    found: list[Origin] = []
    for label, roles in _roles(made.manifest["cfg"]):
        links = []
        for role, names in roles:
            for name in names:
                if name not in used:
                    continue
                folder = _below((root.parent.parent / used[name]["path"]).parent, root)
                href = f"#{runs[folder]}" if folder in runs else f"{quote(folder)}/manifest.json"
                links.append(Link(role, folder, href, used[name]["outputs"][:12]))
        found.append(Origin(label, f"{anchor}:{len(found)}", list(dict.fromkeys(links))))
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
    own = [one for one in series if not one.keys() & {"arm", "probe"}]
    known = [*cfg.get("arms", {}).values(), *cfg.get("probes", {}).values()]
    shown = _columns(cfg)
    for one in (*cfg.get("rows", []), *known, *own):
        roles = [
            (f"{said}{shown.get(key, '')}", one[key])
            for key, said in ROLES.items()
            if one.get(key) and (key in shown or not shown)
        ]
        roles += [(f"scores at step {s}", names) for s, names in one.get("scores", {}).items()]
        if roles or one in cfg.get("rows", []):
            yield one["label"], roles


def _columns(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What a row of a table may name -> the columns that are worked out of it, in brackets."""
    found: dict[str, list[str]] = {}
    for column in cfg.get("columns", []):
        spec = column if isinstance(column, str) else column["column"]
        for role in columns.KINDS[columns.parse(spec)[0]][0]:
            found.setdefault(role, []).append(spec)
    return {role: f" ({', '.join(specs)})" for role, specs in found.items()}


def _table(name: str, made: Made, payload: Path, origins: Sequence[Origin]) -> dict[str, Any]:
    settings, text = made.manifest["cfg"], ""
    if (payload / "table.md").is_file():
        text = (payload / "table.md").read_text(errors="replace")
    header, rows, note = parse(text)
    if len(rows) == len(origins):
        rows = [_linked(row, one) for row, one in zip(rows, origins, strict=True)]
    title = settings.get("title") or name
    return {
        "name": name,
        "made": made,
        "title": title,
        "caption": settings.get("caption") or "",
        "html": page.table(header, rows, name=title),
        "note": note,
        "origins": origins,
    }


def _linked(row: Sequence[str], origin: Origin) -> list[str]:
    """Cells that lead to what they are from."""
    link = Markup('<a class="from" href="#{}">{}</a>')
    return [row[0], *(link.format(origin.anchor, cell) for cell in row[1:])]


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


def _by_number(named: tuple[str, str]) -> list[tuple[str, int]]:
    """Names in order, with the numbers in them as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", named[0])
    return [
        (text, int(number or 0))
        for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)
    ]


def _values(value: Any) -> str:
    if not isinstance(value, list):
        return number(value)
    texts = [_values(one) for one in value]
    # Mean, low and high, as draw_bars keeps them.
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ", ".join(texts)


def number(value: Any) -> str:
    """Three significant digits with a true minus; text as it is, – for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return (str(value) if isinstance(value, int) else f"{value:.3g}").replace("-", "−")


def duration(seconds: float) -> Markup:
    """Seconds as a reader says them: 4.2 s, 3 min 05 s, 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 59.95:
        text = f"{seconds:.1f} s"
    elif minutes < 60:
        text = f"{minutes} min {rest:02d} s"
    else:
        text = f"{minutes // 60} h {minutes % 60:02d} min"
    return Markup(text.replace(" ", "&nbsp;"))

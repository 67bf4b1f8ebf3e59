"""The report of a scale: claims, figures, tables, runs, cost and state, as one HTML file.

State is read from disk on each build, so the report is made anew each time it is asked for. Links
lead to files beside it in the results folder; the page itself loads nothing.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from opd.core import html, tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.files import digest, read_json
from opd.grading.graders import Choices
from opd.results import claims_page
from opd.results.outcome import outcomes
from opd.results.quantity import column
from opd.stages import check, on_disk
from opd.stages.fresh import read_plan
from opd.stages.records import Manifest, read

# The graders that every benchmark of mathematics is graded by.
MATHEMATICS = ("rule", "math_verify", "relaxed")
# What lies in which folder of runs, in words.
KINDS = {
    "models": "trained model",
    "generations": "rollout set",
    "scores": "set of scores",
    "demonstrations": "demonstration set",
    "evaluations": "evaluation",
    "probes": "probe",
}


class Source(NamedTuple):
    """An artifact behind the page: its folder below the results folder, its manifest, its inputs by
    name, and what is wrong with it."""

    folder: str
    manifest: Manifest
    inputs: dict[str, on_disk.Input]
    troubles: list[str]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``report``: report.html, made to lie in the results folder.

    cfg: ``title``, ``scale``, ``sections`` [{title, figures: [names]}], ``tables`` [names],
    ``runs`` [{name, stage, folder}]. Inputs: ``claims`` (may be left out), ``figure:NAME``,
    ``table:NAME``, ``run:FOLDER``, each the payload of an artifact of the results folder. Returns
    the counts of verdicts, and how many artifacts are modified or stale. Raises ``UserError`` where
    a digest.json, manifest.json or claims.json cannot be read.
    """
    folders = {name: payload.absolute().parent for name, payload in inputs.items()}
    root = on_disk.results_folder(next(iter(folders.values())))
    sources = behind(folders.values(), root)
    shown = {name: sources[folder] for name, folder in folders.items()}
    wrong = sorted((s for s in sources.values() if s.troubles), key=lambda source: source.folder)
    verdicts: dict[str, Any] = {"comparable": False, "counts": {}, "papers": {}}
    verdicts |= {"claims": [], "targets": []}
    if "claims" in inputs:
        verdicts = read_json(inputs["claims"] / "claims.json")
    measured = _measured_for(shown["claims"], verdicts) if "claims" in shown else {}
    figures = {
        name: _figure(name, shown[f"figure:{name}"], inputs[f"figure:{name}"], verdicts, measured)
        for section in cfg["sections"]
        for name in section["figures"]
    }
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in cfg["runs"]:
        name = f"run:{row['folder']}"
        about = {"made": shown[name], "payload": inputs[name]}
        about["belongs"] = _belongs(measured.get(row["folder"], []))
        runs[row["stage"]].append({**row, **about})
    # What several folders link was made once, and what was adopted was not made here.
    own = [source.manifest for source in sources.values() if not source.manifest.adopted]
    stages = [*{manifest.identity: manifest for manifest in own}.values()]
    versions = Counter(v for s in sources.values() for v in s.manifest.versions.items())
    page = html.render(
        (package_file(__file__, "pages/report"), claims_page.PAGES),
        "report.html.j2",
        **claims_page.values(verdicts, figures),
        **{key: cfg[key] for key in ("title", "scale", "sections")},
        claims=shown.get("claims"),
        graders=_graders(runs.get("evaluate", [])),
        mathematics=[*MATHEMATICS],
        choices=[*Choices._fields],
        tables=[
            _table(name, shown[f"table:{name}"], inputs[f"table:{name}"], measured)
            for name in cfg["tables"]
        ],
        runs=runs,
        counts=Counter(KINDS[row["folder"].partition("/")[0]] for row in cfg["runs"]),
        stages=stages,
        code=digest(sorted({m for stage in stages for m in stage.modules.items()}))[:12],
        cost={key: cost(stages, key) for key in ("stage", "device")},
        versions=[(*version, count) for version, count in versions.items()],
        wrong=wrong,
        anchors={source.folder: name for name, source in shown.items()},
        results=f"results/{root.name}",
        sources=[*sources.values()],
        outcomes=[] if "claims" in inputs else _outcomes(shown),
        origins=origins,
        duration=duration,
    )
    tables.write_text(out / "report.html", page)
    return {"verdicts": verdicts["counts"], "modified or stale": len(wrong)}


def behind(folders: Iterable[Path], root: Path) -> dict[Path, Source]:
    """These artifacts of a results folder, and all that they were made from, by their paths. Raises
    ``UserError`` where one of their records cannot be read."""
    plan = read_plan(root / "plan.json")[0] or {}
    sources = {}
    for made in on_disk.behind(on_disk.at(root, folder) for folder in folders):
        manifest = read(made.path / "manifest.json", Manifest)
        planned = plan.get(made.folder) if made.root == root else None
        # To compare weights with their digests would take longer than all else together.
        findings = check.shown(made, planned, (check.WEIGHTS,))
        used = {source.name: source for source in made.inputs}
        troubles = [finding.text for finding in findings]
        sources[made.path] = Source(made.folder, manifest, used, troubles)
    return sources


def cost(stages: Iterable[Manifest], key: str) -> list[dict[str, Any]]:
    """What stages took by ``key`` (stage or device), longest first: how many they are, seconds, and
    of GPUs the highest peak of memory on one device (GiB), the mean share of time with work on them
    (%, weighted by the stages' time) and the sum of energy (Wh); None where none recorded it."""
    groups: dict[str, list[Manifest]] = defaultdict(list)
    for stage in stages:
        groups[getattr(stage, key)].append(stage)
    rows = []
    for name, group in groups.items():
        gpus = [(stage.seconds, stage.gpu or {}) for stage in group]
        peaks = [gpu["peak_memory_bytes"] for _, gpu in gpus if "peak_memory_bytes" in gpu]
        busy = [(sec, gpu["utilisation"]) for sec, gpu in gpus if "utilisation" in gpu]
        joules = [gpu["energy_joules"] for _, gpu in gpus if "energy_joules" in gpu]
        time = sum(seconds for seconds, _ in busy)
        rows.append(
            {
                "name": name,
                "stages": len(group),
                "seconds": sum(stage.seconds for stage in group),
                "memory": max(peaks) / 2**30 if peaks else None,
                "busy": 100 * sum(sec * share for sec, share in busy) / time if time else None,
                "energy": sum(joules) / 3600 if joules else None,
            }
        )
    return sorted(rows, key=lambda row: (row["seconds"], row["name"]), reverse=True)


def _figure(
    name: str,
    made: Source,
    payload: Path,
    verdicts: Mapping[str, Any],
    measured: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    cfg = made.manifest.cfg
    paper = name.rpartition("/")[0]
    claims = [c for c in verdicts["claims"] if f"{c['paper']}/{c['figure']}" == name]
    experiments = sorted({label.partition(".")[0] for label in _named(cfg)})
    of_paper = [f"{paper}/{experiment}" for experiment in experiments]
    belongs = _belongs(of_paper if paper else _experiments(made, measured))
    return {
        "name": name,
        "paper": paper,
        "title": cfg.get("title") or name,
        "experiments": experiments,
        "belongs": {
            **belongs,
            "paper": paper or belongs["paper"],
            "verdict": "|".join(claim["verdict"] for claim in claims),
        },
        "made": made,
        "caption": _text(payload / "caption.md"),
        "image": html.image(payload / "figure.svg"),
        "narrow": html.image(payload / "narrow.svg"),
        "spots": _spots(payload / "spots.json"),
        "drawn": sorted(flat(made.manifest.numbers), key=_by_number),
        "published": [target for target in verdicts["targets"] if name in target["figures"]],
        "labels": _labels(cfg),
        "claims": claims,
    }


def _text(path: Path) -> str:
    """A file of an exhibit; nothing where it is missing, which is said elsewhere."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _named(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms and probes of an exhibit by name."""
    return {**cfg.get("arms", {}), **cfg.get("probes", {})}


def _series(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The series of a figure, and of its panels."""
    return [row for part in (cfg, *cfg.get("panels", [])) for row in part.get("series", [])]


def _labels(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Id of a published value -> what the figure calls the arm or probe that it is of."""
    labels: dict[Any, str] = {name: about["label"] for name, about in _named(cfg).items()}
    labels |= {s.get("arm") or s.get("probe"): s["label"] for s in _series(cfg) if "label" in s}
    names = {mark["target"]: mark.get("series", "-") for mark in cfg.get("published", [])}
    return {target: labels.get(name, name) for target, name in names.items()}


def _spots(path: Path) -> Any:
    """Where values are in a figure; none where that is damaged, which is said elsewhere."""
    try:
        return read_json(path)
    except UserError:
        return []


# What names inputs in the settings of tables, figures and claims, and what it is to a reader.
ROLES = {
    "evaluations": "scores",
    "base": "scores before",
    "teacher": "scores of the teacher",
    "run": "training run",
    "probe": "probe",
    "runs": "run",
}


# Of these, what shows a row itself, and not what it is compared with.
OWN = ("evaluations", "run", "probe", "runs")


def _rows(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An exhibit's rows, arms, probes, and the series that do not go by the name of one."""
    own = [series for series in _series(cfg) if not series.keys() & {"arm", "probe"}]
    return [*cfg.get("rows", []), *_named(cfg).values(), *own]


def _own(made: Source, row: Mapping[str, Any]) -> list[str]:
    """Folders of the artifacts that show a row of an exhibit."""
    names = [name for role in OWN for name in row.get(role) or [] if name in made.inputs]
    return [made.inputs[name].folder for name in names]


def _measured_for(claims: Source, verdicts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Folders of the artifacts that show an arm or a probe of the claims -> the experiments that
    this is of, as PAPER/EXPERIMENT."""
    experiments = defaultdict(list)
    for name, about in _named(claims.manifest.cfg).items():
        experiment = name.partition(".")[0]
        for paper, known in verdicts["papers"].items():
            if experiment in known["experiments"]:
                for folder in _own(claims, about):
                    experiments[folder].append(f"{paper}/{experiment}")
    return experiments


def _experiments(made: Source, measured: Mapping[str, Sequence[str]]) -> list[str]:
    """The experiments of what an exhibit shows."""
    folders = [folder for row in _rows(made.manifest.cfg) for folder in _own(made, row)]
    return [name for folder in folders for name in measured.get(folder, [])]


def _belongs(experiments: Iterable[str]) -> dict[str, str]:
    """What the filters of the page go by, of what belongs to these experiments."""
    names = sorted(set(experiments))
    papers = dict.fromkeys(name.partition("/")[0] for name in names)
    return {"paper": "|".join(papers), "experiment": "|".join(names)}


def origins(made: Source) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Labels of an exhibit's rows, arms, probes and own series, each with the artifacts that it is
    from: what they are to it, their folders, and the first digits of the digests of their contents
    (as ``opd why`` shows them)."""
    cfg = made.manifest.cfg
    columns = _columns(cfg)
    labelled = []
    for row in _rows(cfg):
        roles = {
            f"{role}{columns.get(key, '')}": row.get(key) or []
            for key, role in ROLES.items()
            if key in columns or not columns
        }
        roles |= {f"scores at step {step}": names for step, names in row.get("scores", {}).items()}
        links = [
            (role, made.inputs[name].folder, made.inputs[name].used.outputs[:12])
            for role, names in roles.items()
            for name in names
            if name in made.inputs
        ]
        if any(roles.values()) or row in cfg.get("rows", []):
            labelled.append((row["label"], [*dict.fromkeys(links)]))
    return labelled


def _columns(cfg: Mapping[str, Any]) -> dict[str, str]:
    """What a row of a table may name -> the columns that are worked out of it, in brackets."""
    columns: dict[str, list[str]] = defaultdict(list)
    for shown in cfg.get("columns", []):
        spec = shown if isinstance(shown, str) else shown["column"]
        for role in column(spec).inputs:
            columns[role].append(spec)
    return {role: f" ({', '.join(specs)})" for role, specs in columns.items()}


def _table(
    name: str, made: Source, payload: Path, measured: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    header, rows, note = parse(_text(payload / "table.md"))
    title = made.manifest.cfg.get("title") or name
    return {
        "name": name,
        "title": title,
        "made": made,
        "belongs": _belongs(_experiments(made, measured)),
        "header": header,
        "rows": rows,
        "note": note,
    }


def _outcomes(shown: Mapping[str, Source]) -> list[str]:
    """What came out of training, by the tables that are shown."""
    tables = (made.manifest for name, made in shown.items() if name.startswith("table:"))
    return [sentence for table in tables for sentence in outcomes(table.numbers)]


def _graders(evaluations: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Of every evaluation and benchmark whose answers are graded as mathematics in a box by each of
    ``MATHEMATICS``: its name, the grader that counts, the score by each (%), and how many verdicts
    each of ``Choices`` would change."""
    rows = []
    for row in evaluations:
        summary: dict[str, Any] = {"benchmarks": {}}
        with suppress(UserError):  # what is damaged or missing is said elsewhere
            summary = read_json(row["payload"] / "summary.json")
        for benchmark, values in summary["benchmarks"].items():
            if "choices" in values and values["metrics"].keys() >= {*MATHEMATICS}:
                scores = [html.number(100 * values["metrics"][g], ".1f") for g in MATHEMATICS]
                changed = [str(values["choices"][choice]) for choice in Choices._fields]
                counts = row["made"].manifest.cfg["protocol"]["grader"]
                rows.append([f"{row['name']}: {benchmark}", counts, *scores, *changed])
    return rows


def parse(text: str) -> tuple[list[str], list[list[str]], str]:
    """A table.md of ``opd.results.tables`` -> header, rows, and the note below them."""
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ] or [[]]
    return rows[0], rows[2:], text.rpartition("|\n")[2].strip()


def flat(value: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Nested numbers as (names from the outside in, value) pairs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, (*name, str(key)))
    else:
        yield " · ".join(name), number(value)


def _by_number(named: tuple[str, str]) -> list[str | int]:
    """Names in order, with the numbers in them as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", named[0])
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def number(value: Any) -> str:
    """Three significant digits with a true minus; text as it is, – for None."""
    if isinstance(value, list):
        texts = [number(part) for part in value]
        # Mean, low and high, as draw_bars keeps them.
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 else ", ".join(texts)
    if isinstance(value, str):
        return value
    return html.number(value, ".3g" if isinstance(value, float) else "")


def duration(seconds: float) -> str:
    """Seconds as a reader says them, on one line: 4.2 s, 3 min 05 s, 2 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return (text if seconds >= 59.95 else f"{seconds:.1f} s").replace(" ", "\u00a0")

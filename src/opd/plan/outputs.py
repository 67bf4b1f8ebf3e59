"""What a config shows: tables and figures of its own, and of each paper the claims and figures; one
report of it all. Each is an artifact with the evaluations, runs and probes that it reads as inputs.

A paper's files name arms (``E04.success``), a config says which of its models they are, so that
one file of claims and one of figures serve every scale.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opd.core.errors import UserError
from opd.core.schema import read_yaml
from opd.plan import names as declared
from opd.plan.base import artifact, at, evaluation_at
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.outputs import Figure, Series, Shown, Table
from opd.results import claim_spec, figure_spec
from opd.results.claim_spec import Claim
from opd.results.figure_spec import PaperFigure
from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES


class Paper(NamedTuple):
    """What a paper claims and shows; ``names``: its arms and probes, and what they are; ``files``:
    its claims and its published numbers."""

    name: str
    title: str
    names: declared.Names
    claims: list[Claim]
    figures: dict[str, PaperFigure]
    files: dict[str, Path]


def read_paper(name: str, root: Path) -> Paper:
    """A paper's files below ``root``: claims/, figures/ and targets/.

    Raises ``UserError`` where one is missing or says something that it cannot.
    """
    drawn = root / "figures" / f"{name}.yaml"
    files = {
        "claims": root / "claims" / f"{name}.yaml",
        "targets": root / "targets" / f"{name}.csv",
    }
    for path in (drawn, *files.values()):
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}"))
            raise unknown(name, known, "papers", "paper")
    rows = claim_spec.read_targets(files["targets"])
    drawings, given = read_yaml(drawn), claim_spec.read_claims(files["claims"])
    names = {key: given[key] for key in ("arms", "probes")}
    try:
        figures = figure_spec.check(drawings, rows)
        shown = {figure: one.targets() for figure, one in figures.items()}
        ids = [row["id"] for row in rows]
        claims = claim_spec.check(given["claims"], given["context"], ids, shown)
        declared.check(claims, figures, names)
    except UserError as bad:  # names of claims and figures are a paper's own
        raise UserError(bad.what, f"{name}: {bad.where}", bad.remedy) from bad
    files = {key: path.absolute() for key, path in files.items()}
    return Paper(name, given["title"], names, claims, figures, files)


def read_papers(config: Config, root: Path) -> list[Paper]:
    """The papers of a config, which are held to each other, and the names of the config to them.

    Raises ``UserError`` for papers' files that are wrong, and for names that no paper has.
    """
    _check_experiments(config)
    papers = [read_paper(name, root) for name in config.papers]
    if papers:
        names = {paper.name: paper.names for paper in papers}
        declared.check_papers(names)
        declared.check_config(config.arms, config.probes, names.values())
    return papers


def exhibits(
    config: Config, measured: Mapping[str, Artifact], root: Path = Path("config")
) -> dict[str, Artifact]:
    """Every artifact that a config shows, by folder; ``measured`` is what ``opd.plan.artifacts``
    found.

    Raises ``UserError`` for a target that does not exist, and for papers' files that are wrong.
    """
    papers = read_papers(config, root)
    declared.check_shown(config)
    shown = [_table(config, name, table) for name, table in config.tables.items()]
    shown += [_figure(config, name, figure) for name, figure in config.figures.items()]
    for paper in papers:
        shown += _paper_figures(config, paper)
    if papers:
        shown.append(_claims(config, papers))
    found = {one.folder: one for one in shown}
    found["report"] = _report(config, papers, {**measured, **found})
    return found


def targets(config: Config, artifacts: Mapping[str, Artifact]) -> list[str]:
    """Folders of the figures, tables and pages that a config asks for."""
    wanted = config.targets == "all" or "report" in config.targets
    return [*_asked(config, artifacts), *(["report"] if wanted else [])]


def _asked(config: Config, artifacts: Iterable[str]) -> list[str]:
    """The same but the report, which shows these. Raises ``UserError`` for a name that nothing
    has."""
    sections = ("figures/", "tables/", "contamination/")
    shown = [f for f in artifacts if f.startswith(sections) or f == "claims"]
    if config.targets == "all":
        return shown
    names: dict[str, list[str]] = {"report": []}
    for folder in shown:
        section, _, name = folder.partition("/")
        for called in {name or section, *name.split("/")} - {""}:
            names.setdefault(called, []).append(folder)
    for called in config.targets:
        if called == "claims" and not config.papers:
            remedy = "name one under papers, or leave 'claims' out"
            raise UserError("there are no claims without a paper", "targets", remedy)
        if called not in names:
            raise unknown(called, names, "targets", "figure, table or page")
    wanted = {folder for called in config.targets for folder in names[called]}
    return [folder for folder in shown if folder in wanted]


def _shown(recipe: Shown, *keys: str) -> dict[str, Any]:
    return recipe.model_dump(mode="json", include={"title", "caption", *keys})


# Inputs by the names they go by in a stage's settings


def _add(
    config: Config, inputs: dict[str, str], name: str, folder: Callable[[int], str]
) -> list[str]:
    """Add the folder of every seed to the inputs; the names they go by there."""
    named = {f"{name}:s{seed}": folder(seed) for seed in config.seeds}
    inputs |= named
    return list(named)


def _evaluated(config: Config, inputs: dict[str, str], evaluation: str, model: str) -> list[str]:
    return _add(
        config, inputs, f"evaluation:{model}", lambda seed: evaluation_at(evaluation, model, seed)
    )


def _trained(config: Config, inputs: dict[str, str], model: str) -> list[str]:
    return _add(config, inputs, f"run:{model}", lambda seed: at(config, "models", model, seed))


def _probed(config: Config, inputs: dict[str, str], probe: str) -> list[str]:
    return _add(config, inputs, f"probe:{probe}", lambda seed: f"probes/{probe}/s{seed}")


def _check_experiments(config: Config) -> None:
    known = sorted({name.partition(".")[0] for name in (*config.arms, *config.probes)})
    for name in () if config.experiments == "all" else config.experiments:
        if name not in known:
            raise unknown(name, known, "experiments", "experiment of arms and probes")


def _in_experiments(config: Config, name: str) -> bool:
    return config.experiments == "all" or name.partition(".")[0] in config.experiments


def arms(config: Config) -> list[str]:
    """The arms that the experiments asked for have here."""
    return [name for name in config.arms if _in_experiments(config, name)]


def probes(config: Config) -> list[str]:
    """The same of the probes."""
    return [name for name in config.probes if _in_experiments(config, name)]


def needed(
    config: Config, needs: Iterable[tuple[str, str]], inputs: dict[str, str]
) -> dict[str, Any]:
    """``arms`` and ``probes`` of a stage's settings, with what is needed of each as inputs.

    needs: (role, name): evaluations, base, teacher, run or scores of an arm, or probe.
    """
    assert config.evaluation is not None
    shown: dict[str, dict[str, Any]] = {"arms": {}, "probes": {}}
    run_here, probed_here = set(arms(config)), set(probes(config))
    for role, name in sorted(set(needs)):
        if role == "probe":
            if name in probed_here:
                label = config.probes[name].label or name
                shown["probes"][name] = {"label": label, "runs": _probed(config, inputs, name)}
            continue
        if name not in run_here:
            continue
        arm = config.arms[name]
        of_arm = shown["arms"].setdefault(name, {"label": arm.label})
        if role == "run":
            run = arm.model.partition("@")[0]
            if config.models[run].trained:
                of_arm["run"] = _trained(config, inputs, run)
        elif role == "scores":
            of_arm["scores"] = {
                str(step): _evaluated(config, inputs, config.evaluation, model)
                for step, model in _steps(config, arm.model).items()
            }
        elif model := {"evaluations": arm.model, "base": arm.base, "teacher": arm.teacher}[role]:
            of_arm[role] = _evaluated(config, inputs, config.evaluation, model)
    return shown


def _steps(config: Config, model: str) -> dict[int, str]:
    """Step -> model of the start, the kept steps and the end of a model's run."""
    model = model.partition("@")[0]
    run = config.models[model].trained
    if run is None or run.steps is None:
        return {}
    between = sorted(step for step in run.keep_steps if 0 < step < run.steps)
    return {0: run.student, **{step: f"{model}@{step}" for step in between}, run.steps: model}


# Exhibits


def _table(config: Config, name: str, table: Table) -> Artifact:
    inputs: dict[str, str] = {}
    rows = []
    for row in table.rows:
        shown: dict[str, Any] = {"label": row.label}
        sides = {"evaluations": row.model, "base": row.base, "teacher": row.teacher}
        for side, model in sides.items():
            if model is not None:
                shown[side] = _evaluated(config, inputs, table.evaluation, model)
        if config.models[row.model].distill:
            shown["run"] = _trained(config, inputs, row.model)
        if row.probe:
            shown["probe"] = _probed(config, inputs, row.probe)
        rows.append(shown)
    return artifact("table", f"tables/{name}", {**_shown(table, "columns"), "rows": rows}, inputs)


def _figure(config: Config, name: str, figure: Figure) -> Artifact:
    inputs: dict[str, str] = {}

    def drawn(listed: Iterable[Series]) -> list[dict[str, Any]]:
        return [
            series.model_dump(exclude={"model"}, exclude_none=True) | measured(series)
            for series in listed
        ]

    def measured(series: Series) -> dict[str, Any]:
        if figure.evaluation:
            return {"evaluations": _evaluated(config, inputs, figure.evaluation, series.model)}
        return {"runs": _trained(config, inputs, series.model)}

    settings = _shown(figure, "kind")
    if figure.kind == "bars":
        settings["benchmarks"] = figure.benchmarks
    else:
        settings["metrics"] = [metric.model_dump(exclude_none=True) for metric in figure.metrics]
    if figure.kind == "grid":
        settings["panels"] = [{"title": p.title, "series": drawn(p.series)} for p in figure.panels]
    else:
        settings["series"] = drawn(figure.series)
    return artifact("figure", f"figures/{name}", settings, inputs)


def _paper_figures(config: Config, paper: Paper) -> Iterator[Artifact]:
    """The figures of a paper of which at least one series is there at this scale."""
    labels = {name: config.arms[name].label for name in arms(config)}
    measured = {name: config.probes[name].label or name for name in probes(config)}
    for name, figure in paper.figures.items():
        resolved = figure_spec.resolve(figure, labels, measured)
        if resolved is None:
            continue
        settings, needs = resolved
        inputs: dict[str, str] = {}
        found = needed(config, needs, inputs)
        inputs[f"targets:{paper.name}"] = str(paper.files["targets"])
        settings = {**settings, **found, "comparable": config.comparable}
        yield artifact("figure", f"figures/{paper.name}/{name}", settings, inputs)


def _claims(config: Config, papers: Iterable[Paper]) -> Artifact:
    inputs: dict[str, str] = {}
    settings: dict[str, Any] = {
        "scale": config.name,
        "comparable": config.comparable,
        "seeds": config.seeds,
        "figures": {},
        "marked": {},
    }
    needs: set[tuple[str, str]] = set()
    for paper in papers:
        for name, figure in paper.figures.items():
            settings["figures"][f"{paper.name}/{name}"] = figure.targets()
        claimed = {target for claim in paper.claims for target in claim.targets()}
        said = [row for figure in paper.figures.values() for row in figure.said()]
        marked = [row for row in said if row.target not in claimed]
        settings["marked"][paper.name] = {
            row.target: row.model_dump()["quantity"] for row in marked
        }
        needs |= {need for one in (*paper.claims, *marked) for need in claim_spec.needs(one)}
        inputs |= {f"{key}:{paper.name}": str(path) for key, path in paper.files.items()}
    settings |= needed(config, needs, inputs)
    # What is left out keeps its label, by which the page says what was not run.
    labels = {
        "arms": {name: arm.label for name, arm in config.arms.items()},
        "probes": {name: probe.label or name for name, probe in config.probes.items()},
    }
    for kind, known in labels.items():
        settings[kind] |= {
            name: {"label": label}
            for name, label in known.items()
            if not _in_experiments(config, name)
        }
    return artifact("claims", "claims", settings, inputs)


# What a reader of the report wants to know the cost of, besides training.
RUNS = ("generations", "demonstrations", "probes", "evaluations")


def _report(config: Config, papers: Iterable[Paper], artifacts: Mapping[str, Artifact]) -> Artifact:
    """One page of all that is asked for, with every run behind it."""
    asked = _asked(config, artifacts)
    shown = [folder for folder in asked if not folder.startswith("contamination/")]
    inputs: dict[str, str] = {}
    figures = [f.removeprefix("figures/") for f in shown if f.startswith("figures/")]
    sections = []
    titles = {paper.name: paper.title for paper in papers}
    for paper, title in {**titles, "": "Other figures" if titles else "Figures"}.items():
        names = [name for name in figures if name.rpartition("/")[0] == paper]
        if names:
            sections.append({"title": title, "figures": names})
    for folder in shown:
        section, _, name = folder.partition("/")
        inputs[f"{section.removesuffix('s')}:{name}" if name else section] = folder
    behind = [artifacts[folder] for folder in closure(shown, artifacts)]
    stages = {name for name, stage in STAGES.items() if stage.trains or stage.section in RUNS}
    runs = [one for one in behind if one.stage in stages]
    inputs |= {f"run:{one.folder}": one.folder for one in runs}
    settings = {
        "title": f"On-policy distillation, scale {config.name}",
        "scale": config.name,
        "sections": sections,
        "tables": [f.removeprefix("tables/") for f in shown if f.startswith("tables/")],
        "runs": [{"name": o.folder, "stage": o.stage, "folder": o.folder} for o in runs],
    }
    return artifact("report", "report", settings, inputs)

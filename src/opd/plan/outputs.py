"""What a config shows: tables and figures of its own, and of each paper the claims and figures; one
report of it all. Each is an artifact with the evaluations, runs and probes that it reads as inputs.

A paper's files name arms (``E04.success``), a config says which of its models they are, so that
one file of claims and one of figures serve every scale.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.core.errors import UserError
from opd.plan.base import artifact, at
from opd.plan.papers import Paper, check_shown, read_papers
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.outputs import Compared, Figure, Metric, Series, Table, experiment_of
from opd.results import claim_spec, figure_spec
from opd.stages.artifact import Artifact, closure
from opd.stages.registry import STAGES

# How folders of what is made to be looked at begin, and of that what the report shows.
REPORTED = ("figures/", "tables/", "claims")
SHOWN = (*REPORTED, "contamination/", "report")


def exhibits(
    config: Config, measured: Mapping[str, Artifact], root: Path = Path("config")
) -> dict[str, Artifact]:
    """Every artifact that a config shows, by folder; ``measured`` is from ``opd.plan.artifacts``.
    There is a report where it has anything to show. Raises ``UserError`` for a target that does not
    exist, and for papers' files that are wrong."""
    papers = read_papers(config, root)
    check_shown(config)
    made = [_table(config, name, table) for name, table in config.tables.items()]
    made += [_figure(config, name, figure) for name, figure in config.figures.items()]
    for paper in papers:
        made += _paper_figures(config, paper)
    if papers:
        made.append(_claims(config, papers))
    shown = {exhibit.folder: exhibit for exhibit in made}
    for exhibit in [] if papers else _usual(config):
        shown.setdefault(exhibit.folder, exhibit)
    report = _report(config, papers, {**measured, **shown})
    return {**shown, "report": report} if shown else shown


def targets(config: Config, artifacts: Iterable[str]) -> list[str]:
    """Folders of the figures, tables and pages that a config asks for, as far as they are among
    the artifacts. Raises ``UserError`` for a name that nothing has."""
    shown = [folder for folder in artifacts if folder.startswith(SHOWN)]
    if config.targets == "all":
        return shown
    names: dict[str, list[str]] = {"report": []}
    for folder in shown:
        name = folder.partition("/")[2] or folder
        for alias in dict.fromkeys((name, *name.split("/"))):
            names.setdefault(alias, []).append(folder)
    for target in config.targets:
        if target == "claims" and not config.papers:
            remedy = "name one under papers, or leave 'claims' out"
            raise UserError("there are no claims without a paper", "targets", remedy)
        if target == "report" and not _reported(shown):
            remedy = "describe a figure or a table, or leave 'report' out"
            raise UserError("there is nothing to be in a report", "targets", remedy)
        if target not in names:
            raise unknown(target, names, "targets", "figure, table or page")
    asked = {folder for target in config.targets for folder in names[target]}
    return [folder for folder in shown if folder in asked]


def released(
    config: Config, artifacts: Mapping[str, Artifact], asked: Iterable[str]
) -> dict[str, list[str]]:
    """Kept steps whose weights go (``keep: until_evaluated``) -> what has to be made before: all
    that reads them of what is ``asked`` for and behind it. A step that nothing reads stays."""
    readers: dict[str, list[str]] = {}
    for folder in closure(asked, artifacts):
        for source in artifacts[folder].inputs:
            readers.setdefault(source, []).append(folder)
    trained = {name: model.trained for name, model in config.models.items() if model.trained}
    runs = {name for name, run in trained.items() if run.keep == "until_evaluated"}
    return {
        folder: readers[folder]
        for folder, artifact in artifacts.items()
        if artifact.stage == "keep"
        and folder in readers
        and folder.split("/")[1].partition("@")[0] in runs
    }


# What is measured, as inputs


def labels(config: Config, everywhere: bool = False) -> dict[str, dict[str, str]]:
    """Labels of the ``arms`` and ``probes`` of a config, by name: of those of the experiments that
    are asked for, as the others are not run, or of all of them."""
    kinds = {
        "arms": {name: arm.label for name, arm in config.arms.items()},
        "probes": {name: probe.label or name for name, probe in config.probes.items()},
    }
    if everywhere or config.experiments == "all":
        return kinds
    return {
        kind: {n: label for n, label in named.items() if experiment_of(n) in config.experiments}
        for kind, named in kinds.items()
    }


def _add(
    config: Config,
    inputs: dict[str, str],
    kind: str,
    name: str,
    evaluation: str | None = None,
    usual: bool = True,
) -> list[str]:
    """Add an evaluation, run or probe at every seed to the inputs. Returns their names there, which
    tell an evaluation that is not the ``usual`` one."""
    section = {"evaluation": "evaluations", "run": "models", "probe": "probes"}[kind]
    recipe = f"{evaluation}/{name}" if evaluation else name
    called = name if usual else recipe
    folders = {
        f"{kind}:{called}:s{seed}": at(config, section, recipe, seed) for seed in config.seeds
    }
    inputs |= folders
    return [*folders]


def _sides(arm: Compared) -> dict[str, str | None]:
    """The models whose evaluations an arm may show, by the keys of a stage's settings."""
    return {"evaluations": arm.model, "base": arm.base, "teacher": arm.teacher}


def needed(
    config: Config, needs: Iterable[tuple[str, str]], inputs: dict[str, str]
) -> dict[str, Any]:
    """``arms`` and ``probes`` of a stage's settings, with what is needed of each as inputs.

    needs: (role, name): evaluations, base, teacher, run or scores of an arm, or probe.
    """
    here = labels(config)
    shown: dict[str, dict[str, Any]] = {"arms": {}, "probes": {}}
    for role, name in sorted(set(needs)):
        kind = "probes" if role == "probe" else "arms"
        if name not in here[kind]:
            continue
        about = shown[kind].setdefault(name, {"label": here[kind][name]})
        if role == "probe":
            about["runs"] = _add(config, inputs, "probe", name)
            continue
        arm = config.arms[name]
        run = arm.model.partition("@")[0]
        evaluated = (arm.evaluation or config.evaluation, arm.evaluation is None)
        if role == "run":
            if config.models[run].trained:
                about["run"] = _add(config, inputs, "run", run)
        elif role == "scores":
            about["scores"] = {
                str(step): _add(config, inputs, "evaluation", model, *evaluated)
                for step, model in _steps(config, run).items()
            }
        elif model := _sides(arm)[role]:
            about[role] = _add(config, inputs, "evaluation", model, *evaluated)
    return shown


def _steps(config: Config, model: str) -> dict[int, str]:
    """Step -> model of the start, the kept steps and the end of a model's run."""
    run = config.models[model].trained
    if run is None or run.steps is None:
        return {}
    between = sorted(step for step in run.keep_steps if 0 < step < run.steps)
    return {0: run.student, **{step: f"{model}@{step}" for step in between}, run.steps: model}


# Exhibits


def _table(config: Config, name: str, table: Table) -> Artifact:
    inputs: dict[str, str] = {}
    settings = table.model_dump(mode="json", include={"title", "caption", "columns"})
    settings["rows"] = []
    for row in table.rows:
        shown: dict[str, Any] = {"label": row.label}
        for side, model in _sides(row).items():
            if model is not None:
                shown[side] = _add(config, inputs, "evaluation", model, table.evaluation)
        if config.models[row.model].distill:
            shown["run"] = _add(config, inputs, "run", row.model)
        if row.probe:
            shown["probe"] = _add(config, inputs, "probe", row.probe)
        settings["rows"].append(shown)
    return artifact("table", f"tables/{name}", settings, inputs)


def _figure(config: Config, name: str, figure: Figure) -> Artifact:
    inputs: dict[str, str] = {}
    kind, key = ("evaluation", "evaluations") if figure.evaluation else ("run", "runs")

    def drawn(lines: Iterable[Series]) -> list[dict[str, Any]]:
        return [
            line.model_dump(exclude={"model"}, exclude_none=True)
            | {key: _add(config, inputs, kind, line.model, figure.evaluation)}
            for line in lines
        ]

    settings = figure.model_dump(mode="json", include={"title", "caption", "kind"})
    if figure.kind == "bars":
        settings["benchmarks"] = figure.benchmarks
    else:
        settings["metrics"] = [metric.model_dump(exclude_none=True) for metric in figure.metrics]
    if figure.kind == "grid":
        settings["panels"] = [{"title": p.title, "series": drawn(p.series)} for p in figure.panels]
    else:
        settings["series"] = drawn(figure.series)
    return artifact("figure", f"figures/{name}", settings, inputs)


# What is drawn over the steps of a run where a config says nothing, by how the model is trained.
COURSES = {
    "distill": ("loss", "kl_nats", "overlap_ratio", "response_tokens"),
    "grpo": ("reward", "response_tokens"),
    "sft": ("loss", "nll_nats"),
}

LOSS_IS = (
    "The loss is what is minimised, for the sake of its gradient: it may be negative, and how far"
    " the two are apart is the KL."
)


def _usual(config: Config) -> Iterator[Artifact]:
    """What a config without papers shows besides its own tables and figures: curves of every run
    where it has no figure, what was said of a pair before training, and responses before and
    after."""
    for kind, metrics in {} if config.figures else COURSES.items():
        runs = [name for name, model in config.models.items() if model.kind == kind]
        if runs:
            shown = Figure(
                title=f"Training ({kind})",
                caption=LOSS_IS if kind == "distill" else "",
                kind="curves",
                series=[Series(label=name, model=name) for name in runs],
                metrics=[Metric(name=name) for name in metrics],
            )
            yield _figure(config, f"training-{kind}", shown)
    for name, probe in config.probes.items():
        if probe.indicators:
            inputs: dict[str, str] = {}
            row = {"label": name, "probe": _add(config, inputs, "probe", name)}
            settings = {"words": "outlook", "title": f"Before training: {name}", "rows": [row]}
            yield artifact("table", f"tables/outlook-{name}", settings, inputs)
    for name, table in config.tables.items():
        inputs, rows = {}, []
        for compared in table.rows:
            if compared.base:
                row = {"label": compared.label}
                for side, model in (("evaluations", compared.model), ("base", compared.base)):
                    row[side] = _add(config, inputs, "evaluation", model, table.evaluation)
                rows.append(row)
        for benchmark in config.evaluations[table.evaluation].benchmarks if rows else ():
            if prompts := config.benchmarks[benchmark].prompts:
                inputs[f"prompts:{benchmark}"] = f"prompts/{prompts}"
        if rows:
            title = f"{table.title}: responses before and after"
            settings = {"words": "responses", "title": title, "rows": rows}
            yield artifact("table", f"tables/responses-{name}", settings, inputs)


def _paper_figures(config: Config, paper: Paper) -> Iterator[Artifact]:
    """The figures of a paper of which at least one series is there at this scale."""
    here = labels(config)
    for name, figure in paper.figures.items():
        resolved = figure_spec.resolve(figure, here["arms"], here["probes"])
        if resolved is None:
            continue
        settings, needs = resolved
        inputs: dict[str, str] = {}
        settings |= needed(config, needs, inputs) | {"comparable": config.comparable}
        inputs[f"targets:{paper.name}"] = str(paper.files["targets"])
        yield artifact("figure", f"figures/{paper.name}/{name}", settings, inputs)


def _claims(config: Config, papers: Iterable[Paper]) -> Artifact:
    inputs: dict[str, str] = {}
    settings: dict[str, Any] = {
        "scale": config.name,
        "comparable": config.comparable,
        "seeds": config.seeds,
        "figures": {
            f"{paper.name}/{name}": figure.targets()
            for paper in papers
            for name, figure in paper.figures.items()
        },
        "marked": {},
    }
    needs: set[tuple[str, str]] = set()
    for paper in papers:
        claimed = {target for claim in paper.claims for target in claim.targets()}
        rows = [row for figure in paper.figures.values() for row in figure.said()]
        marked = [row for row in rows if row.target not in claimed]
        settings["marked"][paper.name] = {
            row.target: row.model_dump()["quantity"] for row in marked
        }
        for reads in (*paper.claims, *marked):
            needs |= claim_spec.needs(reads)
        inputs |= {f"{key}:{paper.name}": str(path) for key, path in paper.files.items()}
    shown = needed(config, needs, inputs)
    # What is left out keeps its label, by which the page says what was not run.
    here = labels(config)
    for kind, named in labels(config, everywhere=True).items():
        left_out = {name: {"label": named[name]} for name in named if name not in here[kind]}
        settings[kind] = shown[kind] | left_out
    return artifact("claims", "claims", settings, inputs)


# What a reader of the report wants to know the cost of, besides training.
RUNS = ("generations", "scores", "demonstrations", "probes", "evaluations")


def _reported(folders: Iterable[str]) -> list[str]:
    return [folder for folder in folders if folder.startswith(REPORTED)]


def _report(config: Config, papers: Iterable[Paper], artifacts: Mapping[str, Artifact]) -> Artifact:
    """One page of all that is asked for, or of all there is where that is the report alone, with
    every run behind it."""
    reported = _reported(targets(config, artifacts)) or _reported(artifacts)
    inputs: dict[str, str] = {}
    for folder in reported:
        section, _, name = folder.partition("/")
        inputs[f"{section.removesuffix('s')}:{name}" if name else section] = folder
    figures = [f.removeprefix("figures/") for f in reported if f.startswith("figures/")]
    titles = {paper.name: paper.title for paper in papers}
    sections = []
    for paper, title in {**titles, "": "Other figures" if titles else "Figures"}.items():
        names = [name for name in figures if name.rpartition("/")[0] == paper]
        if names:
            sections.append({"title": title, "figures": names})
    stages = {name for name, stage in STAGES.items() if stage.trains or stage.section in RUNS}
    runs = [f for f in closure(reported, artifacts) if artifacts[f].stage in stages]
    inputs |= {f"run:{folder}": folder for folder in runs}
    settings = {
        "title": f"On-policy distillation: {config.name}",
        "scale": config.name,
        "sections": sections,
        "tables": [f.removeprefix("tables/") for f in reported if f.startswith("tables/")],
        "runs": [{"name": f, "stage": artifacts[f].stage, "folder": f} for f in runs],
    }
    return artifact("report", "report", settings, inputs)

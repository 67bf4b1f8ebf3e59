"""The papers of a config: their claims and figures, held to each other and to the config.

They share names: arms, probes and so experiments that the paper's claims declare, metrics that
training logs, figures, columns of tables. A typo in one would show as "not run", or as an error
after all else has run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from opd.core.errors import UserError
from opd.core.schema import read_yaml
from opd.losses.metric_names import METRICS
from opd.plan.values import check_values
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.evaluation import PROTOCOLS
from opd.recipes.models import Distill
from opd.recipes.outputs import experiment_of
from opd.results import claim_spec, figure_spec
from opd.results.claim_spec import Claim
from opd.results.figure_spec import PaperFigure
from opd.results.quantity import MACRO, METRIC, SCORES, Quantity, column, of_series
from opd.training import shares, terms

Names = Mapping[str, Mapping[str, str]]  # arms and probes of a paper: name -> what it is


class Paper(NamedTuple):
    """What a paper claims and shows. ``names``: its arms and probes, and what they are; ``files``:
    its claims and its published numbers."""

    name: str
    title: str
    names: Names
    claims: list[Claim]
    figures: dict[str, PaperFigure]
    files: dict[str, Path]


def read_papers(config: Config, root: Path) -> list[Paper]:
    """The papers of a config, which are held to each other, and the names of the config to them.
    Those of whose experiments none is asked for are left out. ``root`` holds claims/, figures/ and
    targets/. Raises ``UserError`` for papers' files that are wrong, and for names that no paper
    has."""
    known = sorted({experiment_of(name) for name in (*config.arms, *config.probes)})
    for name in () if config.experiments == "all" else config.experiments:
        _require(name, known, "experiments", "experiment of arms and probes")
    papers = [read_paper(name, root) for name in config.papers]
    if papers:
        _check_papers(papers)
        _check_config(config, papers)
    if config.experiments == "all":
        return papers
    experiments = {*config.experiments}
    return [p for p in papers if experiments & {*map(experiment_of, chain(*p.names.values()))}]


def read_paper(name: str, root: Path) -> Paper:
    """A paper's files below ``root``. Raises ``UserError`` where one is missing or says something
    that it cannot."""
    suffixes = {"figures": ".yaml", "claims": ".yaml", "targets": ".csv"}
    paths = {part: root / part / f"{name}{suffix}" for part, suffix in suffixes.items()}
    for path in paths.values():
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob(f"*{path.suffix}"))
            if not known:
                remedy = "start it in the folder that has config/"
                raise UserError("no paper has files there", str(path.parent), remedy)
            raise unknown(name, known, "papers", "paper")
    rows = claim_spec.read_targets(paths["targets"])
    drawings = read_yaml(paths["figures"])
    declared = claim_spec.read_claims(paths["claims"])
    names = {key: declared[key] for key in ("arms", "probes")}
    try:
        figures = figure_spec.check(drawings, rows)
        targets = {figure: drawing.targets() for figure, drawing in figures.items()}
        ids = [row["id"] for row in rows]
        claims = claim_spec.check(declared["claims"], declared["context"], ids, targets)
        _check_names(claims, figures, names)
        for experiment in declared["experiments"]:
            known = [claim.experiment for claim in claims]
            _require(experiment, known, "experiments", "experiment of claims")
    except UserError as bad:  # names of claims and figures are a paper's own
        raise UserError(bad.what, f"{name}: {bad.where}", bad.remedy) from bad
    files = {key: paths[key].absolute() for key in ("claims", "targets")}
    return Paper(name, declared["title"], names, claims, figures, files)


def _require(name: str, known: Collection[str], where: str, kind: str) -> None:
    if name not in known:
        raise unknown(name, known, where, kind)


# A paper's names


def _check_names(claims: Iterable[Claim], figures: Mapping[str, PaperFigure], names: Names) -> None:
    """Hold a paper's claims and figures to what is declared, logged and drawn."""
    declared = [*names["arms"], *names["probes"]]
    known: dict[str, Collection[str]] = {
        "arm": names["arms"],
        "probe": names["probes"],
        "metric": METRICS,
        "figure": figures,
        "experiment": sorted({experiment_of(name) for name in declared}),
    }
    for where, kind, name in (*_of_claims(claims), *_of_figures(figures)):
        _require(name, known[kind], where, kind)


def _of_claims(claims: Iterable[Claim]) -> Iterator[tuple[str, str, str]]:
    """(where, kind, name) of everything that claims name."""
    for claim in claims:
        where = f"claim {claim.id}"
        for role, name in sorted(claim_spec.needs(claim)):
            yield where, "probe" if role == "probe" else "arm", name
        for quantity in claim_spec.quantities(claim):
            if quantity.kind == METRIC:
                yield where, "metric", quantity.name
        yield where, "experiment", claim.experiment
        if claim.figure:
            yield where, "figure", claim.figure


def _of_figures(figures: Mapping[str, PaperFigure]) -> Iterator[tuple[str, str, str]]:
    """The same of figures."""
    for name, figure in figures.items():
        where = f"figure {name}"
        series = [*figure.drawn(), *figure.levels]
        arms = {line.arm for line in series if line.arm}
        for line in series:
            yield where, "arm" if line.arm else "probe", line.of
        names = [metric.name for metric in figure.metrics]
        names += [row.metric for row in figure.published if row.metric and row.series in arms]
        for quantity in (*(of_series(text, "") for text in names), *figure.quantities()):
            if quantity.kind == METRIC:
                yield where, "metric", quantity.name


# Names of several papers, and of a config


def _check_papers(papers: Iterable[Paper]) -> None:
    """Two papers that declare the same arm or probe mean one run, so they say the same of it."""
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for paper in papers:
        for key, names in paper.names.items():
            for name, text in names.items():
                earlier, words = first.setdefault((key, name), (paper.name, text))
                if words != text:
                    raise UserError(
                        f"{earlier} and {paper.name} declare '{name}', and not in the same words",
                        f"papers: {key}",
                        "rename it in one of them; the same run has the same words in both",
                    )


def _check_config(config: Config, papers: Iterable[Paper]) -> None:
    """Hold the arms of a config to its papers, and the probes of the papers' experiments; arms with
    an evaluation of their own to that of the others, with whose scores theirs are compared."""
    arms = [name for paper in papers for name in paper.names["arms"]]
    probes = [name for paper in papers for name in paper.names["probes"]]
    experiments = {experiment_of(name) for name in (*arms, *probes)}
    for name in config.arms:
        _require(name, arms, "arms", "arm")
    for name in config.probes:
        if experiment_of(name) in experiments:
            _require(name, probes, "probes", "probe")
    for name, arm in config.arms.items():
        if arm.evaluation and _asked(config, arm.evaluation) != _asked(config, config.evaluation):
            raise UserError(
                f"'{arm.evaluation}' has other benchmarks or samples than '{config.evaluation}'",
                f"arms.{name}.evaluation",
                "scores are compared problem by problem: name one that differs otherwise",
            )
    for paper in papers:
        check_values(config, _quantities(paper))


def _asked(config: Config, name: str | None) -> tuple[set[str], int]:
    """The benchmarks of an evaluation, and how often each problem is asked."""
    evaluation = config.evaluations[name or ""]
    protocol = config.protocols.get(evaluation.protocol) or PROTOCOLS[evaluation.protocol]
    return {*evaluation.benchmarks}, protocol.samples


def _quantities(paper: Paper) -> Iterator[tuple[str, Quantity]]:
    """(where, quantity) of all that a paper's claims and figures show of probes."""
    for claim in paper.claims:
        for quantity in claim_spec.quantities(claim):
            yield f"{paper.name}: claim {claim.id}", quantity
    for name, figure in paper.figures.items():
        shown = [q for one in figure.drawn() if one.probe for q in figure.quantities(one.probe)]
        marked = [row.quantity for row in figure.said() if row.quantity]
        for quantity in (*shown, *marked):
            yield f"{paper.name}: figure {name}", quantity


def check_shown(config: Config) -> None:
    """Hold a config's own figures and tables to the metrics that are logged, to the kinds of
    columns, and to the benchmarks of the evaluation that they show. Raises ``UserError``."""

    def benchmarks(evaluation: str | None) -> list[str]:
        return [*config.evaluations[evaluation].benchmarks, MACRO] if evaluation else []

    def logged(runs: Collection[Distill]) -> list[str]:
        of_terms = terms.measured(max((len(run.terms or ()) for run in runs), default=0))
        of_sources = shares.measured(max((len(run.rollouts or ()) for run in runs), default=0))
        return [*METRICS, *of_terms, *of_sources]

    distilled = {name: model.distill for name, model in config.models.items() if model.distill}
    for name, figure in config.figures.items():
        for metric in figure.metrics:
            _require(metric.name, logged(distilled.values()), f"figures.{name}.metrics", "metric")
        for benchmark in figure.benchmarks if figure.evaluation else ():
            known, where = benchmarks(figure.evaluation), f"figures.{name}.benchmarks"
            _require(benchmark, known, where, "benchmark")
    for name, table in config.tables.items():
        where = f"tables.{name}.columns"
        specs = [spec if isinstance(spec, str) else spec.column for spec in table.columns]
        for quantity in (quantity for spec in specs for quantity in column(spec, where).quantities):
            if quantity.kind == METRIC:
                _require(quantity.name, logged(distilled.values()), where, "metric")
                for row in table.rows:
                    if run := distilled.get(row.model.partition("@")[0]):
                        place = f"tables.{name}.rows, '{row.label}'"
                        _require(quantity.name, logged([run]), place, f"metric of {row.model}")
            elif quantity.kind in SCORES:
                _require(quantity.name, benchmarks(table.evaluation), where, "benchmark")

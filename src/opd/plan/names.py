"""Names that the files of a paper and a config share: arms, probes and so experiments that the
paper's claims declare, metrics that training logs, figures, columns of tables. A typo in one would
show as "not run", or as an error after all else has run.
"""

from collections.abc import Iterable, Iterator, Mapping

from opd.core.errors import UserError
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.results.claim_spec import Claim, needs, quantities
from opd.results.figure_spec import PaperFigure
from opd.results.quantity import MACRO, METRIC, SCORES, column, of_series

# What training logs (opd.losses.metrics, and the trainers' own), here without torch.
METRICS = (
    *("loss", "grad_norm"),
    *("overlap_ratio", "overlap_token_advantage", "overlap_token_advantage_code"),
    *("entropy_gap_nats", "entropy_student_nats", "entropy_teacher_nats"),
    "entropy_gap_of_means_nats",
    *("overlap_mass_student", "overlap_mass_teacher"),
    *("overlap_mass_student_code", "overlap_mass_teacher_code"),
    *("top_mass_student", "top_mass_teacher"),
    "extreme_advantage_gap",
    *("max_advantage_student_code", "max_advantage_teacher_code"),
    *("min_advantage_student_code", "min_advantage_teacher_code"),
    *("teacher_rank", "teacher_rank_in_top"),
    *("log_ratio_repeated_nats", "log_ratio_other_nats", "kl_nats"),
    *("response_tokens", "truncation_ratio", "repetition_ratio"),
    # GRPO
    *("reward", "reward_std", "correct", "brevity", "groups_without_variance"),
    *("response_tokens_max", "clip_ratio", "clip_ratio_low", "clip_ratio_high"),
    *("importance_weight", "importance_weight_max", "sampler_difference_nats"),
    # SFT
    *("nll_nats", "perplexity"),
)

Names = Mapping[str, Mapping[str, str]]  # arms and probes of a paper: name -> what it is


def check(claims: Iterable[Claim], figures: Mapping[str, PaperFigure], names: Names) -> None:
    """Hold a paper's claims and figures to what is declared, logged and drawn.

    Raises ``UserError`` that names the claim or figure.
    """
    known = {
        "arm": names["arms"],
        "probe": names["probes"],
        "metric": METRICS,
        "figure": figures,
        "experiment": sorted({_experiment(name) for of in names.values() for name in of}),
    }
    for where, kind, name in (*_of_claims(claims), *_of_figures(figures)):
        if name not in known[kind]:
            raise unknown(name, known[kind], where, kind)


def check_papers(papers: Mapping[str, Names]) -> None:
    """Hold papers to each other: an arm or probe that two of them declare is one and the same run,
    so both have to say the same of it. Raises ``UserError``."""
    said: dict[tuple[str, str], tuple[str, str]] = {}
    for paper, names in papers.items():
        for key in ("arms", "probes"):
            for name, text in names[key].items():
                other, theirs = said.setdefault((key, name), (paper, text))
                if theirs != text:
                    raise UserError(
                        f"{other} and {paper} declare '{name}', and not in the same words",
                        f"papers: {key}",
                        "rename it in one of them; the same run has the same words in both",
                    )


def check_config(arms: Iterable[str], probes: Iterable[str], papers: Iterable[Names]) -> None:
    """Hold the arms of a config to those of its papers, and so its probes, where their experiment
    is one of a paper's: others are its own. Raises ``UserError``."""
    papers = list(papers)
    known = {key: [n for names in papers for n in names[key]] for key in ("arms", "probes")}
    experiments = {_experiment(name) for names in known.values() for name in names}
    for name in arms:
        if name not in known["arms"]:
            raise unknown(name, known["arms"], "arms", "arm")
    for name in probes:
        if _experiment(name) in experiments and name not in known["probes"]:
            raise unknown(name, known["probes"], "probes", "probe")


def check_shown(config: Config) -> None:
    """Hold a config's own figures and tables to the metrics that are logged, to the kinds of
    columns, and to the benchmarks of the evaluation that they show. Raises ``UserError``."""
    metrics, scores = [], []
    for name, figure in config.figures.items():
        metrics += [(f"figures.{name}.metrics", metric.name) for metric in figure.metrics]
        if figure.evaluation:
            where = f"figures.{name}.benchmarks"
            scores += [(where, figure.evaluation, one) for one in figure.benchmarks]
    for name, table in config.tables.items():
        where = f"tables.{name}.columns"
        for spec in table.columns:
            shown = column(spec if isinstance(spec, str) else spec.column, where)
            for quantity in shown.quantities:
                if quantity.kind == METRIC:
                    metrics.append((where, quantity.name))
                elif quantity.kind in SCORES:
                    scores.append((where, table.evaluation, quantity.name))
    for where, metric in metrics:
        if metric not in METRICS:
            raise unknown(metric, METRICS, where, "metric")
    for where, evaluation, benchmark in scores:
        known = [*config.evaluations[evaluation].benchmarks, MACRO]
        if benchmark not in known:
            raise unknown(benchmark, known, where, "benchmark")


def _experiment(name: str) -> str:
    return name.partition(".")[0]


def _of_claims(claims: Iterable[Claim]) -> Iterator[tuple[str, str, str]]:
    """(where, kind, name) of everything that claims name."""
    for claim in claims:
        where = f"claim {claim.id}"
        for role, name in sorted(needs(claim)):
            yield where, "probe" if role == "probe" else "arm", name
        for quantity in quantities(claim):
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
        arms = {one.arm for one in series}
        for one in series:
            yield where, "arm" if one.arm else "probe", one.of
        shown = figure.quantities()
        shown += [of_series(metric.name, "") for metric in figure.metrics]
        shown += [
            of_series(row.metric, row.series)
            for row in figure.published
            if row.series in arms and row.series and row.metric
        ]
        for quantity in shown:
            if quantity.kind == METRIC:
                yield where, "metric", quantity.name

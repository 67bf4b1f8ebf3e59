"""The grammar of a paper's figures: what config/figures/PAPER.yaml may say.

A figure names arms and probes of the paper (``E04.success``), not models, so that one file serves
every scale; a scale draws the figures of which it has a series.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opd.core.errors import UserError
from opd.core.schema import OneOf, Strict, checked, valid
from opd.recipes.outputs import Metric, Shown
from opd.results.claim_spec import Said, as_row, require
from opd.results.published import parse
from opd.results.quantity import PROBE, Quantity, of_curve, of_panel, of_series

Need = tuple[str, str]


class PaperSeries(OneOf):
    """An arm or a probe; its label is that of the scale if none is given."""

    KINDS = ("arm", "probe")
    arm: str | None = None
    probe: str | None = None
    label: str | None = None
    group: str | None = None

    @property
    def of(self) -> str:
        return self.arm or self.probe or ""


class Panel(Strict):
    """A panel of bars, which is a quantity of every series that can have it; or one of a grid,
    which is a title and series."""

    # A benchmark may be macro (the mean of all) or each (a panel for every one).
    quantity: Annotated[dict[str, Any], checked(of_panel)] | None = None
    label: str | None = None
    unit: str | None = None
    percent: bool | None = None  # shows shares in percent, as scores always are
    # Words for a bar of several values, as "prefix of {} tokens".
    each: Annotated[str, Field(pattern=r"\{\}")] | None = None
    title: str | None = None
    series: list[PaperSeries] = []


class Mark(Strict):
    """A row of the paper's numbers, and where it belongs in the figure, if anywhere."""

    target: str
    series: str | None = None
    metric: str | None = None  # a metric, avg:BENCHMARK, recovery:BENCHMARK, or a probe's value
    at: Literal["start", "end"] | int | None = None

    @model_validator(mode="after")
    def _has_a_place_or_none(self) -> "Mark":
        if (self.series is None) != (self.metric is None):
            raise ValueError("a mark has a series and a metric, or neither")
        return self


class PaperFigure(Shown):
    """One figure of a paper; see ``opd.results.figures.run_figure`` for the kinds."""

    section: str
    kind: Literal["curves", "grid", "bars", "heatmap", "scatter", "distribution"]
    series: list[PaperSeries] = []
    levels: list[PaperSeries] = []
    metrics: list[Metric] = []
    panels: list[Panel] = []
    x: Panel | None = None
    y: Panel | None = None
    xlabel: str | None = None
    published: list[Annotated[Mark, BeforeValidator(as_row)]] = []

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "PaperFigure":
        needs, allows = {
            "curves": (("series", "metrics"), ("levels",)),
            "grid": (("panels", "metrics"), ("levels",)),
            "bars": (("series", "panels"), ()),
            "heatmap": (("series", "metrics"), ()),
            "scatter": (("series", "x", "y"), ()),
            "distribution": (("series",), ("panels",)),
        }[self.kind]
        for key in ("series", "levels", "metrics", "panels", "x", "y"):
            if key in needs and not getattr(self, key):
                raise ValueError(f"a figure of kind '{self.kind}' needs {key}")
            if getattr(self, key) and key not in (*needs, *allows):
                raise ValueError(f"a figure of kind '{self.kind}' has no {key}")
        for panel in filter(None, (*self.panels, self.x, self.y)):
            grid = panel.title is not None and panel.series and len(panel.model_fields_set) == 2
            bars = panel.quantity and not {"title", "series"} & panel.model_fields_set
            if not (grid if self.kind == "grid" else bars):
                raise ValueError("panels of a grid are {title, series}, others {quantity, ...}")
        for metric in self.metrics:
            of_curve(metric.name)
        if self.kind == "heatmap" and len(self.metrics) > 1:
            raise ValueError("a heat map shows one metric")
        if self.kind == "distribution" and any(series.probe is None for series in self.series):
            raise ValueError("a distribution is of probes")
        return self

    def drawn(self) -> list[PaperSeries]:
        """Every series that is no level."""
        return [*self.series, *(series for panel in self.panels for series in panel.series)]

    def quantities(self, of: str = "") -> list[Quantity]:
        """What its bars or points show of a series."""
        panels = (*self.panels, self.x, self.y)
        asked = [panel.quantity for panel in panels if panel and panel.quantity]
        return [quantity for mapping in asked for quantity in of_panel(mapping, of)]

    def said(self) -> list[Said]:
        """Published rows with the quantities that they are values of, where that is known."""
        probes = {series.probe for series in self.drawn() if series.probe}
        return [
            Said(
                target=row.target,
                quantity=of_series(row.metric, row.series, row.at, row.series in probes),
            )
            for row in self.published
            if row.series and row.metric and not isinstance(row.at, int)
        ]

    def targets(self) -> list[str]:
        """Ids of the published rows that belong to the figure, each once."""
        return list(dict.fromkeys(mark.target for mark in self.published))


def parse_figure(name: str, given: Any) -> PaperFigure:
    """A figure as it is written in YAML. Raises ``UserError`` with the key that is wrong."""
    return valid(PaperFigure, given, f"figure {name}", "mend the figure")


def check(figures: Mapping[str, Any], rows: Iterable[Mapping[str, str]]) -> dict[str, PaperFigure]:
    """A paper's figures, parsed and held to the rows of its published numbers. Raises ``UserError``
    for what is malformed, a row that does not exist, or a mark without a number or a series."""
    known = {row["id"]: row for row in rows}
    parsed = {name: parse_figure(name, given) for name, given in figures.items()}
    for name, figure in parsed.items():
        drawn = {series.of for series in figure.drawn()}
        for mark in figure.published:
            row, where = mark.target, f"figure {name}.published"
            require(row, known, where)
            if mark.series and mark.series not in drawn:
                raise UserError(f"{row} belongs to no series '{mark.series}'", where, "name one")
            value = known[row]["value"]
            if mark.series and parse(value) is None:
                raise UserError(f"{row} is no number: '{value}'", where, f"write {row} alone")
    return parsed


def resolve(
    figure: PaperFigure, arms: Iterable[str], probes: Iterable[str]
) -> tuple[dict[str, Any], list[Need]] | None:
    """Settings of the figure stage and what they need, from what a scale has.

    A need is (role, name): evaluations, base, teacher, run or scores (evaluations by step) of an
    arm, or probe. The settings lack ``arms`` and ``probes``, in which the stage looks names up.
    Series of other arms and probes are left out and named in ``missing``. None where no series is
    left.
    """
    arms, probes = set(arms), set(probes)

    def here(listed: Iterable[PaperSeries]) -> list[PaperSeries]:
        return [series for series in listed if series.arm in arms or series.probe in probes]

    panels = [
        panel.model_copy(update={"series": here(panel.series)})
        for panel in figure.panels
        if panel.quantity or here(panel.series)
    ]
    series, levels = here(figure.series), here(figure.levels)
    left = figure.model_copy(update={"series": series, "levels": levels, "panels": panels})
    needs = list(dict.fromkeys(_needs(left)))
    if not left.drawn() or not needs:
        return None
    settings = left.model_dump(mode="json", exclude={"section"}, exclude_defaults=True)
    every = [*figure.drawn(), *figure.levels]
    if missing := [row.of for row in every if row not in here(every)]:
        settings["missing"] = list(dict.fromkeys(missing))
    return settings, needs


def _needs(figure: PaperFigure) -> Iterator[Need]:
    for level in figure.levels:
        yield "evaluations", level.of
    for series in figure.drawn():
        for metric in figure.metrics:
            yield "scores" if metric.name.startswith("avg:") else "run", series.of
        for quantity in figure.quantities(series.of):
            if series.arm and quantity.kind != PROBE:
                yield from sorted(quantity.needs())
        if series.probe:
            yield "probe", series.probe

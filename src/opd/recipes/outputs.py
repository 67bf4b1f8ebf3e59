"""Recipes of what is shown: tables, figures, and the arms of a paper."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from opd.core.schema import Strict
from opd.recipes.base import EvaluationRef, ModelRef, ProbeRef


def experiment_of(name: str) -> str:
    """The experiment of an arm or probe: E04 of ``E04.success``."""
    return name.partition(".")[0]


class Compared(Strict):
    """A model, and those that it is compared with."""

    label: str
    model: ModelRef
    base: ModelRef | None = None
    teacher: ModelRef | None = None


class Arm(Compared):
    """Which model of this config stands for one of a paper's runs (see ``papers``)."""

    evaluation: EvaluationRef | None = Field(
        default=None,
        description="in place of the config's: the same benchmarks under another protocol",
    )


class Shown(Strict):
    title: str
    caption: str = ""


def or_arm(schema: dict[str, Any]) -> None:
    """Makes the JSON schema of a row allow the ``arm`` that ``resolve`` writes out."""
    arm = {"type": "string", "description": "has label, model, base and teacher, if not given here"}
    schema["properties"] = {"arm": arm, **schema["properties"]}
    schema["anyOf"] = [{"required": ["arm"]}, {"required": schema.pop("required")}]


class Row(Compared):
    """A row of a table: a model, and the probe whose values its columns may show."""

    model_config = ConfigDict(json_schema_extra=or_arm)

    probe: ProbeRef | None = None


class Column(Strict):
    column: str
    label: str


class Table(Shown):
    """Models in rows; columns as ``opd.results.quantity.column`` reads them (``avg``, ...)."""

    evaluation: EvaluationRef
    rows: list[Row] = Field(min_length=1)
    columns: list[str | Column] = Field(min_length=1)


class Metric(Strict):
    name: str
    label: str | None = None
    log: bool = False


class Series(Strict):
    label: str
    model: ModelRef
    group: str | None = None


class Panel(Strict):
    title: str
    series: list[Series] = Field(min_length=1)


class Figure(Shown):
    """``curves``: metrics over training steps; ``grid``: the same in panels; ``bars``: scores."""

    kind: Literal["curves", "grid", "bars"]
    series: list[Series] = []
    panels: list[Panel] = []
    metrics: list[Metric] = []
    evaluation: EvaluationRef | None = None
    benchmarks: list[str] = ["macro"]

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Figure":
        needs = {
            "curves": ("series", "metrics"),
            "grid": ("panels", "metrics"),
            "bars": ("series", "evaluation"),
        }
        for key in needs[self.kind]:
            if not getattr(self, key):
                raise ValueError(f"a figure of kind '{self.kind}' needs {key}")
        return self

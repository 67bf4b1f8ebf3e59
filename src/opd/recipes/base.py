"""What recipes of all sections have in common: types of values, and names of other recipes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from opd.core.errors import UserError
from opd.core.schema import NonNegative, Strict, checked
from opd.core.text import suggestion
from opd.data import templates
from opd.models.source import PATTERN as SOURCE

Grader = Literal["world", "rule", "math_verify", "choice"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Plain = str | int | float | bool | None
TEMPLATE_NAMES = ", ".join(templates.TEMPLATES)


@dataclass(frozen=True)
class Ref:
    """Marks the name of a recipe of another section, or of something built in."""

    section: str
    builtin: tuple[str, ...] = ()


_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(@(0|[1-9][0-9]*))?$"
# A model, or one at a step of its training; in a file also what ``resolve`` makes a model of.
ModelName = Annotated[
    str, Field(pattern=_MODEL_NAME, json_schema_extra={"pattern": f"{_MODEL_NAME}|{SOURCE}"})
]
ModelRef = Annotated[ModelName, Ref("models")]
PromptsRef = Annotated[Name, Ref("prompts")]
SftDataRef = Annotated[Name, Ref("sft_data")]
GenerationsRef = Annotated[Name, Ref("generations")]
ScoresRef = Annotated[Name, Ref("scores")]
EvaluationRef = Annotated[Name, Ref("evaluations")]
DemonstrationsRef = Annotated[Name, Ref("demonstrations")]
ProbeRef = Annotated[Name, Ref("probes")]


Template = Annotated[str, checked(partial(templates.apply, question=""))]


def or_text(schema: dict[str, Any]) -> None:
    """Makes the JSON schema of a recipe allow the text that ``resolve`` makes such a recipe of."""
    recipe = {key: schema.pop(key) for key in list(schema)}
    schema["anyOf"] = [{"type": "string", "pattern": SOURCE}, recipe]


class HubObject(Strict):
    """A model or a dataset of the hub; in a file also ORG/NAME or ORG/NAME@REVISION."""

    model_config = ConfigDict(json_schema_extra=or_text)

    id: str
    revision: str | None = Field(
        default=None, description="as far as known; `opd lock` finds the 40 digits"
    )


MICRO_BATCH = Field(
    default=None, description="sequences that go through the model at a time; all if not given"
)


class Asked(Strict):
    """How many tokens a model is asked with, and how many sequences at a time."""

    max_prompt_tokens: Count = 1024
    batch_size: Count = 64


class Sampled(Asked):
    """How models are sampled where a recipe says nothing else."""

    temperature: NonNegative = 1.0
    top_p: Share = 1.0


def check_greedy(temperature: float, samples: int) -> None:
    if temperature == 0 and samples > 1:
        raise ValueError("at temperature 0 all samples of a prompt are the same: ask for one")


@cache
def _marks(recipe: type[BaseModel]) -> dict[str, Ref | None]:
    """The fields of a recipe, and the mark of each that names other recipes."""

    def marks(parts: Iterable[Any]) -> Iterator[Ref]:
        for part in parts:
            if isinstance(part, Ref):
                yield part
            yield from marks(get_args(part))

    fields = recipe.model_fields.items()
    return {key: next(marks((*info.metadata, info.annotation)), None) for key, info in fields}


def naming(recipe: BaseModel, path: str = "") -> Iterator[tuple[BaseModel, str, str, Ref]]:
    """Every field of a recipe, and of those within it, that names other recipes: the recipe that
    has the field, its key there, its key from the outside, and its mark."""
    for key, mark in _marks(type(recipe)).items():
        value, where = getattr(recipe, key), f"{path}{key}"
        parts = {where: value}
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            parts = {f"{where}.{part}": item for part, item in items}
        if mark:
            yield recipe, key, where, mark
        for place, part in parts.items():
            if isinstance(part, BaseModel):
                yield from naming(part, f"{place}.")


def references(recipe: BaseModel) -> Iterator[tuple[str, str, str]]:
    """(key, section, name) of every recipe that a recipe names."""
    for holder, key, where, mark in naming(recipe):
        value = getattr(holder, key)
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in mark.builtin:
                yield where, mark.section, name


def unknown(name: str, known: Iterable[str], where: str, kind: str) -> UserError:
    """The error about a name that is none of the ``known`` ones, with the one that was meant."""
    return UserError(f"unknown {kind} '{name}'", where, suggestion(name, known))

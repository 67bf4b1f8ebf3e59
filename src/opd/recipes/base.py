"""What recipes of all sections have in common: types of values, and names of other recipes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from opd.core.errors import UserError
from opd.core.schema import Strict
from opd.core.text import suggestion
from opd.data.templates import PLACE, TEMPLATES, named

Grader = Literal["world", "rule", "math_verify", "choice"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Plain = str | int | float | bool | None
TEMPLATE_NAMES = ", ".join(TEMPLATES)


@dataclass(frozen=True)
class Ref:
    """Marks a field that names a recipe of another section (or several), or something built in."""

    section: str
    builtin: tuple[str, ...] = ()


# A model, or one at a step of its training.
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(@(0|[1-9][0-9]*))?$")]
ModelRef = Annotated[ModelName, Ref("models")]
PromptsRef = Annotated[Name, Ref("prompts")]
PairsRef = Annotated[Name, Ref("pairs")]
GenerationsRef = Annotated[Name, Ref("generations")]
EvaluationRef = Annotated[Name, Ref("evaluations")]


class OneOf(Strict):
    """A recipe with exactly one verb among ``verbs``."""

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        raise NotImplementedError

    @model_validator(mode="after")
    def _exactly_one(self) -> "OneOf":
        given = [verb for verb in self.verbs() if getattr(self, verb) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(self.verbs())} "
                f"(it has {' and '.join(given) or 'none'})"
            )
        return self

    @property
    def verb(self) -> str:
        return next(verb for verb in self.verbs() if getattr(self, verb) is not None)


MICRO_BATCH = Field(
    default=None, description="sequences that go through the model at a time; all if not given"
)


def check_template(template: str | None) -> None:
    if template is not None and PLACE not in named(template):
        raise ValueError(f"template must be {TEMPLATE_NAMES}, or text that contains {{question}}")


def references(recipe: BaseModel, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, section, name) of every recipe that a recipe names."""
    for key, info in type(recipe).model_fields.items():
        value, where = getattr(recipe, key), f"{path}{key}"
        for ref in (m for m in info.metadata if isinstance(m, Ref)):
            for name in value if isinstance(value, list) else [value]:
                if name is not None and name not in ref.builtin:
                    yield where, ref.section, name
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, BaseModel):
                inner = f"{where}.{i}." if isinstance(value, list) else f"{where}."
                yield from references(item, inner)


def unknown(name: str, known: Iterable[str], where: str, kind: str) -> UserError:
    return UserError(f"unknown {kind} '{name}'", where, suggestion(name, known))

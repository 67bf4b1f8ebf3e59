"""What recipes of all sections have in common: types of values, and names of other recipes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
SftDataRef = Annotated[Name, Ref("sft_data")]
GenerationsRef = Annotated[Name, Ref("generations")]
EvaluationRef = Annotated[Name, Ref("evaluations")]


class OneOf(Strict):
    """A recipe with exactly one kind among ``kinds``."""

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        raise NotImplementedError

    @model_validator(mode="after")
    def _exactly_one(self) -> "OneOf":
        present = [kind for kind in self.kinds() if getattr(self, kind) is not None]
        if len(present) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(self.kinds())} "
                f"(it has {' and '.join(present) or 'none'})"
            )
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in self.kinds() if getattr(self, kind) is not None)


MICRO_BATCH = Field(
    default=None, description="sequences that go through the model at a time; all if not given"
)


class Sampled(Strict):
    """How models are sampled where a recipe says nothing else."""

    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    max_prompt_tokens: Count = 1024
    batch_size: Count = 64


def check_greedy(temperature: float, samples: int) -> None:
    if temperature == 0 and samples > 1:
        raise ValueError("at temperature 0 all samples of a prompt are the same: ask for one")


def check_template(template: str | None) -> None:
    if template is not None and PLACE not in named(template):
        raise ValueError(f"template must be {TEMPLATE_NAMES}, or text that contains {{question}}")


def naming(recipe: BaseModel, path: str = "") -> Iterator[tuple[BaseModel, str, str, Ref]]:
    """Every field of a recipe, and of those within it, that names other recipes: the recipe that
    has the field, its key there, its key from the outside, and its mark."""
    for key, info in type(recipe).model_fields.items():
        value, where = getattr(recipe, key), f"{path}{key}"
        yield from ((recipe, key, where, mark) for mark in info.metadata if isinstance(mark, Ref))
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, BaseModel):
            yield from naming(value, f"{where}.")
        elif isinstance(value, dict | list):
            parts = value.items() if isinstance(value, dict) else enumerate(value)
        for part, item in parts:
            if isinstance(item, BaseModel):
                yield from naming(item, f"{where}.{part}.")


def references(recipe: BaseModel) -> Iterator[tuple[str, str, str]]:
    """(key, section, name) of every recipe that a recipe names."""
    for holder, key, where, mark in naming(recipe):
        value = getattr(holder, key)
        for name in value if isinstance(value, list) else [value]:
            if name is not None and name not in mark.builtin:
                yield where, mark.section, name


# Keys that configs have had, by what they are called now.
RENAMED = {"pairs": "sft_data"}


def renamed(where: str) -> UserError:
    """What is wrong with a key ``opd``, or one that begins with it."""
    return UserError("'opd' is called 'distill' now", where, "write distill")


def unknown(name: str, known: Iterable[str], where: str, kind: str) -> UserError:
    """The error about a name that is none of the ``known`` ones, with the one that was meant."""
    known = list(known)
    now = RENAMED.get(name)
    hint = f"it is called '{now}' now" if now in known else suggestion(name, known)
    return UserError(f"unknown {kind} '{name}'", where, hint)

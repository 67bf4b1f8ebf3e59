"""What every model of a YAML file is based on, and how its errors are told."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from opd.core.errors import UserError
from opd.core.text import suggestion

NonNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, given: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in given if isinstance(given, Mapping) else ():
            if key not in known:
                context = {"key": key, "hint": suggestion(str(key), known)}
                raise PydanticCustomError("unknown_key", "no such key", context)
        return given


class OneOf(Strict):
    """Has exactly one kind among ``KINDS``, or among all its fields."""

    KINDS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        return cls.KINDS or tuple(cls.model_fields)

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


def checked(check: Callable[[Any], Any]) -> AfterValidator:
    """Refuses values for which a function raises ``UserError``."""

    def validate(value: Any) -> Any:
        try:
            check(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    return AfterValidator(validate)


Given = TypeVar("Given", bound=Strict)


def valid(
    model: type[Given], given: Any, where: str, remedy: str, added: Collection[str] = ()
) -> Given:
    """What is written in YAML, as a model. Raises ``UserError`` with the key that is wrong.

    where: what the keys are of; empty for a config.
    added: parts of a location that are not keys, but pydantic's names for members of unions.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what helps.
        first, *others = sorted(error.errors(), key=lambda e: e["type"] != "unknown_key")
        keys = [str(part) for part in first["loc"] if part not in added]
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "unknown_key":
            keys.append(str(first["ctx"]["key"]))
            remedy = first["ctx"]["hint"]
        else:
            if not isinstance(first["input"], Mapping | list):
                what = f"{first['input']!r} is not allowed: {what}"
            remedy += f" ({len(others)} more like this)" if others else ""
        place = ".".join([where, *keys] if where else keys)
        raise UserError(what, place or "config", remedy) from None


SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """What a YAML text holds: plain values only. Raises ``yaml.YAMLError`` where it is none."""
    return yaml.load(text, Loader=SafeLoader)


def read_yaml(path: Path, remedy: str = "mend the file") -> dict[str, Any]:
    """The keys and values of a YAML file, none of an empty one. Raises ``UserError`` where it
    cannot be read, or holds something else."""
    try:
        mapping = load_yaml(path.read_text()) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"not readable as YAML ({error})", str(path), remedy) from error
    if not isinstance(mapping, dict):
        raise UserError("not a mapping", str(path), remedy)
    return mapping

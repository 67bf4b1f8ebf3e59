"""What every model of a YAML file is based on, and how its errors are told."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from opd.core.errors import UserError


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Given = TypeVar("Given", bound=Strict)


def valid(
    model: type[Given], given: Any, where: str, remedy: str, added: Collection[str] = ()
) -> Given:
    """What is written in YAML, as a model. Raises ``UserError`` with the key that is wrong.

    added: parts of a location that are not keys, but pydantic's names for members of unions.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling is what helps.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"] if part not in added)
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = "no such key"
        elif not isinstance(first["input"], Mapping | list):
            what = f"{first['input']!r} is not allowed: {what}"
        raise UserError(what, f"{where}.{key}" if key else where, remedy) from None


SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """What a YAML text holds: plain values only. Raises ``yaml.YAMLError`` where it is none."""
    return yaml.load(text, Loader=SafeLoader)


def read_yaml(path: Path, remedy: str = "mend the file") -> Any:
    """What a YAML file holds. Raises ``UserError`` where it cannot be read."""
    try:
        return load_yaml(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"not readable as YAML ({error})", str(path), remedy) from error

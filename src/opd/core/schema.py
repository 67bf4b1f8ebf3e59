"""What every model of a YAML file is based on, and how its errors are told."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin

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
from opd.core.files import DEEPEST, read_bytes
from opd.core.text import OTHER_NAMES, suggestion

NonNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced from other types, but for numbers that YAML
    1.1 takes for text, as 1e-6, where a number is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        takes_number = _takes_number(cls)
        for key in given:
            if key not in takes_number:
                context = {"key": key, "known": [*takes_number]}
                raise PydanticCustomError("unknown_key", "no such key", context)
        return {key: _number(v) if takes_number[key] else v for key, v in given.items()}


@cache
def _takes_number(model: type[BaseModel]) -> dict[str, bool]:
    """Key -> whether it takes a number."""
    return {
        field.alias or name: _is_number(field.annotation)
        for name, field in model.model_fields.items()
    }


def _is_number(annotation: Any) -> bool:
    """Whether a field takes a float, or a list of them, and no text."""
    parts = get_args(annotation)
    if str in (annotation, *parts):
        return False
    return annotation is float or any(_is_number(part) for part in parts)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(part) for part in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


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
            key = str(first["ctx"]["key"])
            remedy = suggestion(key, first["ctx"]["known"], _elsewhere(model, given, keys, key))
            keys.append(key)
        else:
            if not isinstance(first["input"], Mapping | list):
                what = f"{first['input']!r} is not allowed: {what}"
            remedy += f" ({len(others)} more like this)" if others else ""
        place = ".".join([where, *keys] if where else keys)
        raise UserError(what, place or "config", remedy) from None


def _elsewhere(model: type[Strict], given: Any, keys: list[str], key: str) -> str:
    """Where a key that is none at ``keys`` belongs: the places nearest to it that the file has;
    empty if there are none."""
    names = (key, *OTHER_NAMES.get(key, ()))
    places = [place for name in names for place in _places(model, name)]
    written = [there for place in places if (there := _written(place, given, keys))]
    nearest = max((_shared(place, keys) for place in written), default=0)
    near = [".".join(place) for place in written if _shared(place, keys) == nearest]
    return f"it goes to {' or '.join(dict.fromkeys(near[:3]))}" if near else ""


def _places(model: type[BaseModel], key: str) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of that name in a model and in those within it; * stands for any key
    of a mapping."""
    for name, field in model.model_fields.items():
        own = field.alias or name
        if own == key:
            yield (own,)
        for inner, any_key in _inner(field.annotation):
            yield from ((own, *any_key, *rest) for rest in _places(inner, key))


def _inner(annotation: Any) -> Iterator[tuple[type[BaseModel], tuple[str, ...]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ()
    mapping = get_origin(annotation) is dict
    if mapping or get_origin(annotation) is not list:
        for part in get_args(annotation):
            yield from ((inner, (("*",) if mapping else ()) + key) for inner, key in _inner(part))


def _written(place: tuple[str, ...], given: Any, keys: list[str]) -> tuple[str, ...]:
    """A place with the names that a file has for each *, those of ``keys`` first; empty where the
    file has nothing that holds it."""
    first, *rest = place
    if not isinstance(given, Mapping):
        return ()
    if not rest:
        return place
    for name in sorted(given, key=lambda name: name not in keys) if first == "*" else (first,):
        if name in given and (inner := _written((*rest,), given[name], keys[1:])):
            return (str(name), *inner)
    return ()


def _shared(place: tuple[str, ...], keys: list[str]) -> int:
    """How many parts two paths have in common at their beginning."""
    equal = (part == key for part, key in zip(place, keys, strict=False))
    return sum(takewhile(bool, equal))


SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Values of a YAML text with all aliases written out; the largest config here has some thousands.
MOST_VALUES = 200_000
MOST_BYTES = 1 << 24  # of a YAML file


class _Open(NamedTuple):
    """A list or mapping of YAML that has not ended: how it began, the sizes of what lies in it so
    far, and the keys among that."""

    start: Any
    sizes: list[int]
    keys: set[tuple[str, bool]]


def load_yaml(text: str) -> Any:
    """What a YAML text holds: plain values only. Raises ``yaml.YAMLError`` where it is none, has a
    key twice, contains itself, or is deeper or larger than any config."""
    _check_yaml(text)
    return yaml.load(text, Loader=SafeLoader)


def _check_yaml(text: str) -> None:
    """Look through a text before anything is made of it: a few lines of aliases can stand for more
    than any memory holds, and depth ends the interpreter."""
    sizes: dict[str, int] = {}  # by anchor
    parents: list[_Open] = []
    for event in yaml.parse(text, Loader=SafeLoader):
        node, size = event, 1
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            parents.append(_Open(event, [], set()))
            if len(parents) > DEEPEST:
                raise yaml.YAMLError(f"{where}: nested too deeply")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            ended = parents.pop()
            node, size = ended.start, 1 + sum(ended.sizes)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [parent.start.anchor for parent in parents]:
                raise yaml.YAMLError(f"{where}: '{event.anchor}' contains itself")
            size = sizes.get(event.anchor, 1)
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if size > MOST_VALUES:
            raise yaml.YAMLError(f"{where}: more than {MOST_VALUES:,} values with all aliases")
        sizes[node.anchor] = size
        if parents:
            parent = parents[-1]
            parent.sizes.append(size)
            is_key = isinstance(parent.start, yaml.MappingStartEvent) and len(parent.sizes) % 2
            if is_key and isinstance(event, yaml.ScalarEvent):
                key = event.value, event.implicit[0]  # 1 is another key than '1'
                if key in parent.keys:
                    raise yaml.YAMLError(f"{where}: the key '{event.value}' stands there twice")
                parent.keys.add(key)


def read_yaml(path: Path, remedy: str = "mend the file") -> dict[str, Any]:
    """The keys and values of a YAML file, none of an empty one. Raises ``UserError`` where it
    cannot be read, or holds something else."""
    try:
        mapping = load_yaml(read_bytes(path, MOST_BYTES).decode()) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"not readable as YAML ({error})", str(path), remedy) from error
    if not isinstance(mapping, dict):
        raise UserError("not a mapping", str(path), remedy)
    return mapping

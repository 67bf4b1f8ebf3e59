"""``opd diff A B``: where two artifacts, or two results folders, part ways, and by how much."""

from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = "–"


def changes(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, other value) of what differs between two plain values; keys of mappings and
    places of lists of one length are joined by dots. What one lacks is ``ABSENT``."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}, key=str):
            inner = (one.get(name, ABSENT), other.get(name, ABSENT))
            yield from changes(*inner, f"{key}.{name}" if key else str(name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for at, inner in enumerate(zip(one, other, strict=True)):
            yield from changes(*inner, f"{key}.{at}")
    elif one != other or type(one) is not type(other):
        yield key, one, other

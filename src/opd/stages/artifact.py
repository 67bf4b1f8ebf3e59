"""One artifact of a plan, and what it is made from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """One stage's output: its folder below ``results/NAME``, and all that its stage is given."""

    verb: str
    folder: str
    cfg: dict[str, Any]
    inputs: tuple[str, ...]  # folders of other artifacts, or absolute paths of plain files


def closure(folders: Iterable[str], artifacts: Mapping[str, Artifact]) -> list[str]:
    """These artifacts and all that they are made from, each after what it is made from."""
    found: dict[str, None] = {}

    def visit(folder: str) -> None:
        if folder in artifacts and folder not in found:
            for one in artifacts[folder].inputs:
                visit(one)
            found[folder] = None

    for folder in folders:
        visit(folder)
    return list(found)

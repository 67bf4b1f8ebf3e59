"""One artifact of a plan, and what it is made from."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Node = TypeVar("Node", bound=Hashable)


@dataclass(frozen=True)
class Artifact:
    """One stage's output: its folder below ``results/NAME``, and all that its stage is given."""

    stage: str
    folder: str
    cfg: dict[str, Any]
    inputs: tuple[str, ...]  # folders of other artifacts, or absolute paths of plain files

    @property
    def named(self) -> dict[str, str]:
        """The inputs by name."""
        return dict(zip(self.cfg.get("inputs", []), self.inputs, strict=True))


def sources_first(
    starts: Iterable[Node], sources: Callable[[Node], Iterable[Node]]
) -> dict[Node, None]:
    """All that is reached from ``starts`` through ``sources``, each once and after its sources."""
    opened: set[Node] = set()
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in opened:
            opened.add(node)
            for source in sources(node):
                visit(source)
            order[node] = None

    for start in starts:
        visit(start)
    return order


def closure(folders: Iterable[str], artifacts: Mapping[str, Artifact]) -> list[str]:
    """These artifacts and all that they are made from, each after what it is made from."""

    def known(folders: Iterable[str]) -> list[str]:
        return [folder for folder in folders if folder in artifacts]

    return list(sources_first(known(folders), lambda folder: known(artifacts[folder].inputs)))

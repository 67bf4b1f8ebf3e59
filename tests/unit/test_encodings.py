"""Text is read and written in UTF-8, and not as the locale has it, which is Python's default."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
SRC = Path(__file__).parents[2] / "src" / "opd"
# Those that read what people wrote, or write what people read.
PACKAGES = ("plan", "provenance", "recipes", "rehearsal", "results")


def unnamed(code: str) -> Iterator[int]:
    """Lines on which a whole file is read or written as text without saying in which encoding."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Call(func=ast.Attribute(ast.Name("tables"))):
                continue  # opd.core.tables.write_text, which is always in UTF-8
            case ast.Call(func=ast.Attribute(_, "read_text" | "write_text"), keywords=named):
                if all(word.arg != "encoding" for word in named):
                    yield node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_text_is_utf_8_in_any_locale(package: str) -> None:
    files = sorted((SRC / package).rglob("*.py"))
    found = [f"{file}:{line}" for file in files for line in unnamed(file.read_text("utf-8"))]
    assert files and found == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("path.write_text(text)\npath.read_text(errors='replace')", [1, 2]),
        ("path.write_text(other.read_text(), encoding='utf-8')", [1]),
        ("path.read_text(encoding='utf-8')\ntables.write_text(path, text)", []),
    ],
)
def test_what_is_found(code: str, lines: list[int]) -> None:
    assert [*unnamed(code)] == lines

"""Reports in Markdown, from Jinja templates that lie in the package."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from opd.core.security import visible

COLUMNS = 96


def render(template: Path, **values: Any) -> str:
    """The text of a template file with these values, control characters spelt out. Its filters are
    ``wrapped`` (a paragraph, or an item with its bullet) and ``table`` (rows of cells, the first
    the heading)."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"wrapped": wrapped, "table": table}
    # Escaped is what becomes HTML: this is read as text.
    text = f"{{% autoescape false %}}{template.read_text(encoding='utf-8')}{{% endautoescape %}}"
    return visible(environment.from_string(text).render(values))


def wrapped(text: str, bullet: str = "") -> str:
    """A text, with line breaks as any other space, in lines of at most ``COLUMNS`` characters."""
    return textwrap.fill(
        " ".join(text.split()),
        COLUMNS,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table that is aligned as it stands."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def line(cells: Sequence[str]) -> str:
    """A line of a table of any width."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

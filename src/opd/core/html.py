"""Pages: one HTML file each that needs no other, on any screen and on paper.

A page is a Jinja template below the folder ``pages`` beside the module that computes its values,
in a folder of its own where that package has several: what lies in it counts in the digest of the
module. It extends ``base.html.j2``, which lies beside this module with the style, the script and
the table of every page.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from opd.core.code import package_file
from opd.core.marked import mark
from opd.core.security import visible, visible_line

SHARED = package_file(__file__, "pages")
MISSING = "–"


def render(folders: Path | tuple[Path, ...], template: str, **values: object) -> str:
    """The text that a template of a folder, or of several, makes of these values.

    Values are escaped, except where a template of Markdown switches that off, and control
    characters are spelt out, whatever they came in, and in text for a terminal (.txt.j2) the
    newlines of values, too. ``rehearsal`` is what whole documents say of themselves in one
    (``opd.core.marked``). Raises ``jinja2.UndefinedError`` for a value that the template lacks.
    """
    environment = _environment(folders, template.endswith(".txt.j2"))
    text = environment.get_template(template).render(values, rehearsal=mark())
    return visible(text)


def _on_one_line(value: object) -> object:
    return visible_line(value) if isinstance(value, str) else value


@cache
def _environment(folders: Path | tuple[Path, ...], is_text: bool) -> Environment:
    own = folders if isinstance(folders, tuple) else (folders,)
    environment = Environment(
        loader=FileSystemLoader([*own, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_on_one_line if is_text else None,
    )
    environment.filters |= {"anchor": anchor, "many": many, "number": number}
    script = (SHARED / "base.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Browsers run the text with this digest, and no other.
    environment.globals |= {"script": Markup(script), "script_sha256": digest}
    return environment


def image(svg: Path) -> dict[str, Any] | None:
    """An SVG file as a data URI with its size in CSS pixels; None where there is none."""
    try:
        data = svg.read_bytes()
        box = ElementTree.fromstring(data).get("viewBox", "").split()
        width, height = (round(float(side) * 96 / 72) for side in box[2:])
    except (OSError, ValueError, ElementTree.ParseError):
        return None
    uri = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "width": width, "height": height}


def anchor(name: str) -> str:
    """The id of what has a name on a page, and the target of links to it."""
    return quote(name, safe=":/")


def number(value: float | None, form: str) -> str:
    """A number in one of Python's formats, with a true minus sign; – for none."""
    return MISSING if value is None else format(value, form).replace("-", "−")


def many(count: int, thing: str) -> str:
    """So many things: 1 claim, 2 claims."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"

"""The documentation site: these pages, the keys of a config, and the functions of the package.

    make docs

It is built without a network, and its pages load nothing from one.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
project = "opd"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_copy_source = False
myst_heading_anchors = 4
exclude_patterns = ["_build"]
# Files beside docs/ are no pages of the site: that each link leads somewhere is a test of its own.
# A diagram in mermaid, which code hosts draw, is text here.
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"


def kind(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words; another recipe is linked to."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        kinds = [kind(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const']).strip(chr(34))}`"
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    inner = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    if isinstance(inner[0], dict):
        return f"name: {kind(inner[0])}"
    bounds = [f"{words} {schema[key]}" for key, words in BOUNDS.items() if key in schema]
    return " ".join([schema.get("type", "anything"), *bounds])


BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def reference(schema: dict[str, Any]) -> str:
    """The keys of a config as a page: a table for the config itself and one for each recipe."""
    parts = {"Config": schema, **schema["$defs"]}
    lines = ["# Keys of a config", ""]
    for name, part in parts.items():
        # Of what may also be a text, the mapping.
        part = next((form for form in part.get("anyOf", ()) if "properties" in form), part)
        described = (part.get("description") or "").replace("``", "`")
        lines += [
            f"## {name}",
            "",
            described,
            "",
            "| key | value | if not given | |",
            "|---|---|---|---|",
        ]
        for key, value in part.get("properties", {}).items():
            default = value.get("default")
            # A recipe's own table has its defaults.
            words = (
                "" if default is None or isinstance(default, dict) else f"`{json.dumps(default)}`"
            )
            words = "needed" if key in part.get("required", ()) else words
            row = [f"`{key}`", kind(value), words, value.get("description", "").replace("``", "`")]
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
        lines.append("")
    return "\n".join(lines)


def setup(app: Any) -> None:
    """Write the page of keys before the others are read."""
    page = Path(__file__).with_name("config.md")
    text = reference(json.loads(SCHEMA.read_text()))
    if not page.is_file() or page.read_text() != text:
        page.write_text(text)

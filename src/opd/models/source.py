"""How a model is named wherever one may stand, in a config and on the command line."""

import os
import re
from pathlib import Path
from typing import Any

from opd.core.errors import UserError

GRAMMAR = (
    "a model: ORG/NAME or ORG/NAME@REVISION of the hub, a folder (/..., ./..., ../..., ~/...), or "
    "an artifact (results/NAME/...)"
)
# What JSON schemas are given: what is a name of another recipe has no slash.
PATTERN = r"^[^\s@]*/[^\s@]+(@\S+)?$"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def source(text: str, where: str) -> dict[str, Any]:
    """The recipe of a model that is named by its id on the hub, a folder, or an artifact: {hub:
    {id, revision}} or {path}. One slash between two words is a hub id; a folder of that form is
    written with ``./``. Raises ``UserError`` for a text that is none of them."""
    if is_path(text):
        return {"path": text}
    if identifier := hub_id(text):
        return {"hub": identifier}
    if text.count("/") > 1:
        return {"path": f"./{text}"}
    raise UserError(f"'{text}' names no model", where, f"give {GRAMMAR}")


def is_path(text: str) -> bool:
    """Whether a text says by itself where a file or folder lies: absolute, below the working
    directory, above it, or below a home folder. Any other is looked up below a folder of a
    variable."""
    return text.startswith(("/", "./", "../", "~"))


def hub_id(text: str) -> dict[str, str]:
    """{id, revision} of ORG/NAME@REVISION, without a revision if none is named; empty for any other
    text."""
    match = _HUB_ID.fullmatch(text)
    if match is None:
        return {}
    return {"id": match[1], **({"revision": match[2]} if match[2] else {})}


def local(path: str, root: str = "") -> Path:
    """The absolute path of a file or folder as it is named: with ``~`` written out, and below
    ``root`` unless it says by itself where it lies (``is_path``). Of an artifact (its folder, or
    its digest.json) it is the payload."""
    full = Path("" if is_path(path) else root, os.path.expanduser(path)).absolute()
    folder = full.parent if full.name == "digest.json" else full
    made = (folder / "digest.json").is_file() and (folder / "payload").is_dir()
    return folder / "payload" if made else full

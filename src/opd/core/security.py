"""What comes from outside is data: nothing of it is run, it cannot steer a terminal or a page, and
secrets of the environment do not end in a log.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from opd.core.errors import UserError
from opd.core.files import files_below, read_json

# Suffixes of files that hold code, or that are read by running what they hold.
CODE = re.compile(r"\.(py|pyc|so|pkl|pickle|joblib|dill|bin|pt|pth|ckpt|h5|keras)", re.IGNORECASE)

# Files of a model that name others, besides the indices of its shards.
_NAMING = ("modules.json", "tokenizer_config.json")

# Controls but for tab and newline, what turns the direction of writing, unusual ends of lines, and
# bytes of names that are no text.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
# What bars of progress steer a terminal with.
_PROGRESS = re.compile("(\r|\x1b\\[A)")

_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)(?:$|_)")
_SECRETS = (
    # User and password of an address; a password may hold a slash, a port may not.
    (re.compile(r"(://)(?:[^/\s@'\"]+|[^/\s@'\":]*:(?!\d{1,5}/)[^\s@'\"]+)@"), r"\1***@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_***"),
)
LEAST_SECRET = 8  # characters: shorter values are words such as "true"


def refuse_code(folder: Path) -> None:
    """Raise ``UserError`` where a folder that a stage is to read holds code or pickled data, and as
    ``refuse_names`` does."""
    code = [name for name in files_below(folder) if CODE.fullmatch(Path(name).suffix)]
    if code:
        more = f" and {len(code) - 1} more" if len(code) > 1 else ""
        raise UserError(
            f"it may run code when it is read{more}",
            str(folder / code[0]),
            "use weights in safetensors and no code of the model's own, or remove it",
        )
    refuse_names(folder)


def refuse_names(folder: Path) -> None:
    """Raise ``UserError`` where a file of a model names files to be read outside of its folder."""
    for name in files_below(folder):
        for value in _named(folder / name):
            place = Path(os.path.normpath(Path(name).parent / str(value)))
            if place.is_absolute() or place.parts[:1] == ("..",):
                raise UserError(
                    f"it names {value}, a file outside of its folder",
                    str(folder / name),
                    "put that file beside it, and its plain name there",
                )


def _named(file: Path) -> Iterator[Any]:
    """What a file of a model names as files or folders to be read by joining paths: the shards of
    weights, the parts of an encoder, other versions of a tokenizer."""
    if not (file.name.endswith(".index.json") or file.name in _NAMING):
        return
    value = None
    with suppress(UserError):  # what cannot be read names nothing to anyone
        value = read_json(file)
    if isinstance(value, list):
        yield from (part.get("path", "") for part in value if isinstance(part, dict))
    elif isinstance(value, dict):
        shards, versions = value.get("weight_map"), value.get("fast_tokenizer_files")
        yield from shards.values() if isinstance(shards, dict) else ()
        yield from versions if isinstance(versions, list) else ()


def visible(text: str) -> str:
    """Text whose control characters are spelt out (⟨U+202E⟩), but for tabs and newlines."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def visible_line(text: str) -> str:
    """The same on one line: a name may hold a newline to end a line and begin another."""
    return visible(text).replace("\n", "⟨U+000A⟩")


def redacted(text: str) -> str:
    """Text without the values of environment variables that hold secrets (by their names), without
    hub tokens, and without the passwords in addresses."""
    secrets = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= LEAST_SECRET:
            text = text.replace(secret, "***")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def holds_secret(text: str) -> bool:
    return any(pattern.search(text) for pattern, _ in _SECRETS)


class Redacting:
    """A text stream that leaves secrets out of what is written to it, and spells out what could
    steer a terminal but for bars of progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        parts = _PROGRESS.split(redacted(text))
        self._stream.write("".join(p if _PROGRESS.fullmatch(p) else visible(p) for p in parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""A journal of finished responses, which a killed job goes on from.

A line is a checksum (sha256), a space and JSON: ``[[index, [token, ...]], ...]``, what was finished
together. It is written in one piece and synced, so that a kill loses at most the line that was
being written. A file is read up to the first line that is not as it was written.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from opd.core.errors import UserError

Finished = dict[int, list[int]]

_CHECKSUM = 65  # bytes, with the space


def read(path: Path, start: int = 0) -> tuple[Finished, int]:
    """Tokens by index from byte ``start`` on, and the byte after the last sound line."""
    finished: Finished = {}
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(start)
        for line in file:
            if line != _line(text := line[_CHECKSUM:-1]):
                break
            finished.update(json.loads(text))
            start += len(line)
    return finished, start


def _line(text: bytes) -> bytes:
    """A line of a journal."""
    return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Mapping[int, list[int]]], None]]:
    """A function that appends tokens by index as one line, after what is sound in the file; what is
    not is removed, with a line on stderr where it was damaged. It raises ``UserError`` where the
    disk is full; what was appended before stays."""
    with path.open("ab", buffering=0) as file:
        # An orphan of a killed job may still be writing.
        fcntl.flock(file, fcntl.LOCK_EX)
        _, end = read(path)
        with path.open("rb") as rest:
            rest.seek(end)
            damaged = b"\n" in rest.read()  # a kill leaves no more than a part of a line
        if damaged:
            lost = f"damaged from byte {end} on, what follows is sampled again"
            print(f"warning: {path}: {lost}", file=sys.stderr)
        file.truncate(end)

        def append(finished: Mapping[int, list[int]]) -> None:
            nonlocal end
            line = _line(json.dumps(list(finished.items()), separators=(",", ":")).encode())
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                file.truncate(end)
                raise UserError(
                    f"no room ({error.strerror}), what was finished is kept",
                    str(path),
                    "free space, start again",
                ) from error
            end += len(line)

        yield append

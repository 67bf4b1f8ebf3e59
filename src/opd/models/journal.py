"""A journal of finished responses, which a killed job goes on from.

A line is JSON: ``[[index, [token, ...]], ...]``, what was finished together. It is written in one
piece and synced, so that a kill loses at most the line that was being written; a file that ends
within a line is read up to there.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from opd.core.errors import UserError

Finished = dict[int, list[int]]


def read(path: Path, start: int = 0) -> tuple[Finished, int]:
    """Tokens by index from byte ``start`` on, and the byte after the last whole line."""
    finished: Finished = {}
    with suppress(FileNotFoundError, ValueError), path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                break
            finished.update(json.loads(line))
            start += len(line)
    return finished, start


@contextmanager
def writing(path: Path) -> Iterator[Callable[[Mapping[int, list[int]]], None]]:
    """A function that appends tokens by index as one line, after what is whole in the file. It
    raises ``UserError`` where the disk is full; what was appended before stays."""
    with path.open("ab", buffering=0) as file:
        # An orphan of a killed job may still be writing.
        fcntl.flock(file, fcntl.LOCK_EX)
        _, end = read(path)
        file.truncate(end)

        def append(finished: Mapping[int, list[int]]) -> None:
            nonlocal end
            line = json.dumps(list(finished.items()), separators=(",", ":")).encode() + b"\n"
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

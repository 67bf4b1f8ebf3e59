"""sha256 of many files at once."""

import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from opd.core.files import file_digest


class Hashed(NamedTuple):
    """Path -> sha256 (hex; '' where a file cannot be read), and how much was read for it."""

    of: Mapping[Path, str]
    files: int
    bytes: int


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""


def hashed(paths: Iterable[Path]) -> Hashed:
    """Hash files on all processors, each once however many links lead to it. On a terminal, stderr
    shows how far it is, file by file."""
    from tqdm import tqdm

    links: dict[tuple[int, int], list[Path]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for path in set(paths):
        with suppress(OSError):
            about = path.stat()
            links.setdefault((about.st_dev, about.st_ino), []).append(path)
            sizes[about.st_dev, about.st_ino] = about.st_size
    # The largest first: what is left at the end is shared out evenly.
    order = sorted(links, key=lambda file: -sizes[file])
    total = sum(sizes.values())
    digests: dict[Path, str] = {}
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        hashes = pool.map(lambda file: _digest(links[file][0]), order)
        for file, text in zip(order, hashes, strict=True):
            digests |= dict.fromkeys(links[file], text)
            bar.update(sizes[file])
    return Hashed(digests, len(links), total)

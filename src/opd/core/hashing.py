"""sha256 of many files at once."""

import os
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from opd.core.files import is_plain, plain_digest


class Hashed(NamedTuple):
    """Path -> ``plain_digest``, and how much was read for it."""

    of: Mapping[Path, str]
    files: int
    bytes: int


def hashed(paths: Iterable[Path]) -> Hashed:
    """Hash files on all processors, each once however many names it has. On a terminal, stderr
    shows how far it is, file by file."""
    from tqdm import tqdm

    links: dict[tuple[int, int], list[Path]] = {}
    sizes: dict[tuple[int, int], int] = {}
    digests: dict[Path, str] = {}
    for path in set(paths):
        if not is_plain(path):
            digests[path] = ""
            continue
        with suppress(OSError):
            about = path.stat()
            links.setdefault((about.st_dev, about.st_ino), []).append(path)
            sizes[about.st_dev, about.st_ino] = about.st_size
    # The largest first: what is left at the end is shared out evenly.
    order = sorted(links, key=lambda file: -sizes[file])
    total = sum(sizes.values())
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        hashes = pool.map(lambda file: plain_digest(links[file][0]), order)
        for file, text in zip(order, hashes, strict=True):
            digests |= dict.fromkeys(links[file], text)
            bar.update(sizes[file])
    return Hashed(digests, len(links), total)

"""sha256 of many files at once."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CHUNK = 1 << 20


class Hashed(NamedTuple):
    """Path -> sha256 (hex; '' where a file cannot be read), and how much was read for it."""

    of: Mapping[Path, str]
    files: int
    bytes: int


def _sha256(path: Path, done: Callable[[int], None]) -> str:
    found, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while read := file.readinto(chunk):
                found.update(chunk[:read])
                done(read)
    except OSError:
        return ""
    return found.hexdigest()


def hashed(paths: Iterable[Path]) -> Hashed:
    """Hash files on all processors, each once however many links lead to it. On a terminal, stderr
    shows how far it is."""
    from tqdm import tqdm

    files: dict[tuple[int, int], list[Path]] = {}
    sizes: dict[tuple[int, int], int] = {}
    for path in set(paths):
        try:
            about = path.stat()
        except OSError:
            continue
        key = (about.st_dev, about.st_ino)
        files.setdefault(key, []).append(path)
        sizes[key] = about.st_size
    # The largest first: what is left at the end is shared out evenly.
    order = sorted(files, key=lambda key: -sizes[key])
    lock = threading.Lock()
    total = sum(sizes.values())
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):

        def done(read: int) -> None:
            with lock:
                bar.update(read)

        digests = pool.map(lambda key: _sha256(files[key][0], done), order)
        found = dict(zip(order, digests, strict=True))
    of = {path: found[key] for key, links in files.items() for path in links}
    return Hashed(of, len(files), total)

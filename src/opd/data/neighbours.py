"""The nearest question of another set, or of the earlier rows of the same set, by cosine.

FAISS's flat inner product sifts in float32; float64 decides. So the neighbour and its cosine are
those of a float64 comparison of all with all, and of equal cosines the first row counts.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import NEIGHBOURS

# Vectors in memory at a time: of those that look for a neighbour, and of those looked through.
OURS, THEIRS = 1024, 16384
# Pairs whose cosines are taken in float64 at a time.
PAIRS = 8192

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Places = NDArray[np.int64]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``neighbours``: neighbours.parquet, a row for each prompt in their order.

    ``exact`` is the first row of the other set with the same text, ``neighbour`` the row of the
    largest cosine there. Without the input ``against`` both are looked for among the earlier rows
    of the same set. Null: there is none. Inputs: prompts and against, outputs of ``embed``; cfg:
    execution.threads.
    """
    threads = cfg.get("execution", {}).get("threads", 1)
    hashes, vectors = _read(inputs["prompts"])
    their_hashes = hashes
    if "against" in inputs:
        their_hashes, their_vectors = _read(inputs["against"])
        dims, their_dims = vectors.shape[1], their_vectors.shape[1]
        if dims != their_dims:
            differing = f"embeddings of {dims} and of {their_dims} dimensions"
            raise UserError(differing, "encoder", "embed both sets with the same encoder")
        which, _ = _distinct(hashes)
        exact = exact_matches(hashes, their_hashes)
        cosine, place = nearest(vectors, their_vectors, threads)
        neighbour, cosine = _distinct(their_hashes)[1][place][which], cosine[which]
    else:
        exact, neighbour, cosine = _among_earlier(hashes, vectors, threads)
    there = neighbour >= 0
    columns = {
        "text_hash": hashes,
        "exact": pa.array(exact, mask=exact < 0),
        "neighbour": pa.array(neighbour, mask=~there),
        "neighbour_hash": [their_hashes[j] if j >= 0 else None for j in neighbour],
        "cosine": pa.array(cosine, mask=~there),
    }
    tables.write(out / "neighbours.parquet", pa.table(columns), NEIGHBOURS)
    return {
        "prompts": len(hashes),
        "against": len(their_hashes),
        "exact": int((exact >= 0).sum()),
        "largest_cosine": float(cosine[there].max()) if there.any() else None,
    }


def _among_earlier(
    hashes: Sequence[str], vectors: Floats, threads: int
) -> tuple[Places, Places, Doubles]:
    """Of each row the first earlier one with the same text, the nearest earlier one (-1: none),
    and its cosine: three [N]."""
    which, first = _distinct(hashes)
    repeated = first[which] != np.arange(len(hashes))
    cosine, place = nearest(vectors, None, threads)
    neighbour = np.where(place >= 0, first[place], -1)
    # The text itself comes before a repetition of it, but maybe not before all its equals.
    own = np.concatenate([cosines(part, part) for _, part in _chunks(vectors, OURS)])
    neighbour, cosine, own = neighbour[which], cosine[which], own[which]
    nearer = repeated & (own > cosine)
    neighbour = np.where(nearer, first[which], neighbour)
    return np.where(repeated, first[which], -1), neighbour, np.where(nearer, own, cosine)


def _read(folder: Path) -> tuple[list[str], Floats]:
    hashes = (folder / "hashes.txt").read_text().split()
    return hashes, np.load(folder / "embeddings.npy", mmap_mode="r")


def _distinct(texts: Sequence[str]) -> tuple[Places, Places]:
    """Of each row the number of its text [N], and of each text its first row [U], in this order."""
    number: dict[str, int] = {}
    which = np.array([number.setdefault(text, len(number)) for text in texts], dtype=np.int64)
    return which, np.unique(which, return_index=True)[1]


def exact_matches(ours: Sequence[str], theirs: Sequence[str]) -> Places:
    """For each of our texts (or text hashes) the first equal one of theirs, or -1: int64 [N]."""
    first = {text: row for row, text in reversed([*enumerate(theirs)])}
    return np.array([first.get(text, -1) for text in ours], dtype=np.int64)


def nearest(ours: Floats, theirs: Floats | None = None, threads: int = 1) -> tuple[Doubles, Places]:
    """The largest cosine of each of our rows [N, D] with one of theirs [M, D], and which: two [N].

    Without ``theirs``: with an earlier row of ours; where there is none, -inf and -1. Rows have
    norm 1 in float32. A cosine is the sum of the products in float64; of equal ones the first row
    is named. Memory does not grow with N and M where these are mapped from files.
    """
    import faiss

    faiss.omp_set_num_threads(threads)
    best, place = np.full(len(ours), -np.inf), np.full(len(ours), -1, dtype=np.int64)
    for start, rows in _chunks(ours, OURS):
        so_far = best[start : start + len(rows)], place[start : start + len(rows)]
        for low, part in _chunks(ours[:start] if theirs is None else theirs, THEIRS):
            _improve(*so_far, low, rows, part, *sift(rows, part))
        if theirs is None:
            _improve(*so_far, start, rows, rows, *_sift_earlier(rows))
    return best, place


def sift(ours: Floats, theirs: Floats, k: int = 8) -> tuple[Places, Places]:
    """Pairs (row of ours, row of theirs) among which the nearest of every row of ours are.

    They are those within the rounding of the largest float32 product, which for rows of norm 1 is
    at most D / 2^24. ``k`` products of each row are looked at, and more only where all are.
    """
    import faiss

    rounding = ours.shape[1] * 2.0**-24
    left, mine, near = np.arange(len(ours)), [], []
    while len(left):
        k = min(k, len(theirs))
        products, columns = faiss.knn(ours[left], theirs, k, metric=faiss.METRIC_INNER_PRODUCT)
        close = products >= products[:, :1] - 2 * rounding
        open_ended = close.all(axis=1) & (k < len(theirs))
        rows, where = np.nonzero(close & ~open_ended[:, None])
        mine.append(left[rows])
        near.append(columns[rows, where])
        left, k = left[open_ended], 8 * k
    return np.concatenate(mine), np.concatenate(near)


def _sift_earlier(rows: Floats) -> tuple[Places, Places]:
    """The same for a chunk with its own earlier rows."""
    products = rows.astype(np.float64) @ rows.T.astype(np.float64)
    products[np.triu_indices(len(rows))] = -np.inf
    i, j = np.nonzero(products >= products.max(axis=1, keepdims=True) - 1e-9)
    return i[j < i], j[j < i]


def _improve(
    best: Doubles, place: Places, low: int, ours: Floats, theirs: Floats, i: Places, j: Places
) -> None:
    """Write into ``best`` and ``place`` of ours where the cosine of a pair (i, j) is larger than
    what is there; theirs begin at row ``low`` of their set."""
    chunks = (slice(at, at + PAIRS) for at in range(0, len(i), PAIRS))
    cosine = np.concatenate([np.empty(0), *(cosines(ours[i[c]], theirs[j[c]]) for c in chunks)])
    order = np.lexsort((j, -cosine, i))
    i, j, cosine = i[order], j[order], cosine[order]
    head = np.unique(i, return_index=True)[1]
    head = head[cosine[head] > best[i[head]]]
    best[i[head]], place[i[head]] = cosine[head], low + j[head]


def cosines(ours: Floats, theirs: Floats) -> Doubles:
    """Cosines of rows of norm 1, pair by pair: float64 [N]. Products of float32 are exact in it."""
    return np.sum(ours.astype(np.float64) * theirs, axis=1)


def _chunks(array: Floats, size: int) -> Iterator[tuple[int, Floats]]:
    """Consecutive rows and the number of the first; copies, so that a file's pages are not held."""
    for start in range(0, len(array), size):
        yield start, np.array(array[start : start + size])

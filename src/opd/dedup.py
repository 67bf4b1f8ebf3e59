"""Deduplication of one prompt set against another: exact, then semantic by embeddings.

Rethinking OPD, appendix C.3: questions without their affixes are compared as strings; of the
rest, those whose nearest neighbour among the other set's questions has a cosine of at least 0.6
(all-mpnet-base-v2, flat inner-product index) are removed too.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from opd import tables
from opd.errors import Bad

Floats = NDArray[np.float32]
GRAMS = (1, 2, 3)
REMOVED = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "id": pa.string(),
            "question": pa.string(),
            "neighbour": pa.string(),
            "neighbour_question": pa.string(),
            "score": pa.float64(),
            "stage": pa.string(),
        }.items()
    ]
)


def run_embed(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``embed``: embeddings.npy (float32 [N, D], rows of norm 1) and ids.json.

    cfg: encoder (``hashed``, or a sentence-transformers name or folder; the input ``encoder``, a
    fetched model, goes before it), dims (of ``hashed``), batch_size, threads. Embeds questions.
    """
    rows = tables.read(inputs["prompts"] / "prompts.parquet", tables.PROMPTS)
    encoder = str(inputs["encoder"]) if "encoder" in inputs else cfg.get("encoder", "hashed")
    embeddings = encode(
        rows["question"].to_pylist(),
        encoder,
        dims=cfg.get("dims", 1024),
        batch_size=cfg.get("batch_size", 32),
        threads=cfg.get("threads", 1),
    )
    np.save(out / "embeddings.npy", embeddings)
    (out / "ids.json").write_text(json.dumps(rows["id"].to_pylist()) + "\n")
    return {"prompts": len(embeddings), "dims": embeddings.shape[1]}


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``dedup``: prompts.parquet (kept, in the old order), removed.parquet, report.json.

    cfg: threshold (a cosine; at or above it a prompt is removed), threads. Inputs: prompts,
    against, prompts_embedded, against_embedded. Templates are stripped where prompts are read.
    """
    ours = tables.read(inputs["prompts"] / "prompts.parquet", tables.PROMPTS)
    theirs = tables.read(inputs["against"] / "prompts.parquet", tables.PROMPTS)
    our_vectors = _read_embeddings(inputs["prompts_embedded"], ours)
    their_vectors = _read_embeddings(inputs["against_embedded"], theirs)
    if our_vectors.shape[1] != their_vectors.shape[1]:
        raise Bad(
            f"embeddings of {our_vectors.shape[1]} and of {their_vectors.shape[1]} dimensions",
            "dedup.encoder",
            "embed both sets with the same encoder",
        )
    questions = ours["question"].to_pylist()
    their_questions = theirs["question"].to_pylist()
    exact = exact_matches(questions, their_questions)
    rest = np.flatnonzero(exact < 0)
    scores, nearest = nearest_neighbours(
        our_vectors[rest], their_vectors, threads=cfg.get("threads", 1)
    )
    near = scores.astype(np.float64) >= cfg["threshold"]

    ids, their_ids = ours["id"].to_pylist(), theirs["id"].to_pylist()
    found = [(int(i), int(exact[i]), 1.0, "exact") for i in np.flatnonzero(exact >= 0)]
    found += [
        (int(i), int(j), float(score), "semantic")
        for i, j, score in zip(rest[near], nearest[near], scores[near], strict=True)
    ]
    removed = [
        {
            "id": ids[i],
            "question": questions[i],
            "neighbour": their_ids[j],
            "neighbour_question": their_questions[j],
            "score": score,
            "stage": stage,
        }
        for i, j, score, stage in sorted(found)
    ]
    kept = rest[~near]
    if not len(kept):
        raise Bad(
            f"all {len(ids)} prompts are duplicates", "dedup.threshold", "raise it, or compare sets"
        )
    kept_scores = scores[~near]
    report = {
        "prompts": len(ids),
        "against": len(their_ids),
        "exact": int((exact >= 0).sum()),
        "semantic": int(near.sum()),
        "kept": len(kept),
        "threshold": cfg["threshold"],
        "nearest_kept_cosine": float(kept_scores.max()),
        "median_kept_cosine": float(np.median(kept_scores)),
    }
    tables.write(out / "prompts.parquet", ours.take(pa.array(kept)), tables.PROMPTS)
    tables.write(out / "removed.parquet", removed, REMOVED)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    return report


def exact_matches(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.int64]:
    """For each of our texts the first equal one of theirs, or -1: int64 [N].

    Outer white space is ignored; case and LaTeX are not (Rethinking OPD, appendix C.3).
    """
    first: dict[str, int] = {}
    for j, text in enumerate(theirs):
        first.setdefault(text.strip(), j)
    return np.array([first.get(text.strip(), -1) for text in ours], dtype=np.int64)


def nearest_neighbours(
    ours: Floats, theirs: Floats, threads: int = 1
) -> tuple[Floats, NDArray[np.int64]]:
    """Largest inner product of each of our rows [N, D] with theirs [M, D], and where: two [N].

    Of equal products the first of their rows is named.
    """
    import faiss

    if not len(ours):
        return np.empty(0, np.float32), np.empty(0, np.int64)
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(theirs.shape[1])
    index.add(np.ascontiguousarray(theirs))
    # A few neighbours, not one: which of several equal ones comes first is left to FAISS.
    scores, rows = index.search(np.ascontiguousarray(ours), min(8, len(theirs)))
    ties = np.where(scores == scores[:, :1], rows, len(theirs))
    return scores[:, 0], ties.min(axis=1)


def encode(
    texts: Sequence[str],
    encoder: str,
    *,
    dims: int = 1024,
    batch_size: int = 32,
    threads: int = 1,
) -> Floats:
    """Embed texts: float32 [N, D] with rows of norm 1.

    ``hashed`` needs no model (``dims`` is its D); any other encoder is the name or the folder of a
    sentence-transformers model.
    """
    if encoder == "hashed":
        return encode_hashed(texts, dims)
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    try:
        model = SentenceTransformer(encoder)
    except Exception as error:
        raise Bad(
            f"'{encoder}' is no sentence-transformers model ({type(error).__name__}: {error})",
            "encoder",
            "use 'hashed', the folder of such a model, or fetch it first",
        ) from error
    vectors = model.encode(
        list(texts),
        batch_size=batch_size,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=True,
    )
    return np.asarray(vectors, dtype=np.float32)


def encode_hashed(texts: Sequence[str], dims: int = 1024) -> Floats:
    """Signed hashed counts of character 1- to 3-grams: float32 [N, dims] with rows of norm 1.

    Case and runs of white space do not count. Each n-gram is hashed to a column and a sign
    (feature hashing, Weinberger et al. 2009) and enters with 1 + log(count), so that repetition
    within a text weighs less than variety.
    """
    vectors = np.zeros((len(texts), dims), dtype=np.float64)
    for row, text in enumerate(texts):
        plain = f" {' '.join(text.lower().split())} "
        points = np.frombuffer(plain.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
        hashes = np.concatenate([_gram_hashes(points, n) for n in GRAMS if len(points) >= n])
        grams, counts = np.unique(hashes, return_counts=True)
        signs = np.where(grams >> np.uint64(63), 1.0, -1.0)
        np.add.at(vectors[row], grams % np.uint64(dims), signs * (1 + np.log(counts)))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


def _gram_hashes(points: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each n-gram of code points: polynomial, then splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        h = np.full(len(points) - n + 1, n, dtype=np.uint64)
        for i in range(n):
            h = h * np.uint64(1_000_003) + points[i : len(points) - n + 1 + i]
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return h ^ (h >> np.uint64(31))


def _read_embeddings(folder: Path, prompts: pa.Table) -> Floats:
    ids = json.loads((folder / "ids.json").read_text())
    if ids != prompts["id"].to_pylist():
        raise Bad("they belong to other prompts", str(folder), "run the stage embed again")
    vectors: Floats = np.load(folder / "embeddings.npy")
    return vectors

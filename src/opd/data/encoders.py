"""Encoders: questions to vectors of norm 1, one text's vector whatever else is encoded with it."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core.errors import UserError

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
HASHED_DIMS = 1024
GRAMS = (1, 2, 3)


def device() -> str:
    """What a model computes on: rounding differs between the two."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(folder: Path | None, threads: int = 1) -> Encode:
    """The encoder of a sentence-transformers folder, or ``hashed`` where there is none.

    An encoder takes N texts and returns float32 [N, D] with rows of norm 1. A model truncates as
    ``SentenceTransformer.encode`` does and agrees with it to rounding. It sees one text at a time,
    so a vector depends on nothing but its text, bit for bit. Threads work on texts of their own:
    two that share a product wait for each other at the end of every one.
    """
    if folder is None:
        return encode_hashed
    import torch
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), device=device()).eval()
    except Exception as error:
        raise UserError(
            f"no sentence-transformers model ({type(error).__name__}: {error})",
            str(folder),
            "use 'hashed', or the folder of such a model",
        ) from error
    if device() == "cpu" and torch.backends.mkldnn.is_available():
        from opd.data.onednn import linear_layers_through_onednn

        linear_layers_through_onednn(model)

    def vector(text: str) -> Any:
        features = model.preprocess([text]).items()
        tensors = {k: v.to(model.device) for k, v in features if isinstance(v, torch.Tensor)}
        with torch.inference_mode():
            return model(tensors)["sentence_embedding"][0].double().cpu().numpy()

    def encode(texts: Sequence[str]) -> Floats:
        # torch keeps its number of threads for each thread that calls it.
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            vectors = np.stack(list(pool.map(vector, texts)))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        broken = np.flatnonzero(~(norms[:, 0] > 0))
        if len(broken):
            raise UserError(
                f"no direction for the text '{texts[broken[0]][:60]}'",
                str(folder),
                "its weights are broken: fetch them again",
            )
        return (vectors / norms).astype(np.float32)

    return encode


def encode_hashed(texts: Sequence[str], dims: int = HASHED_DIMS) -> Floats:
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

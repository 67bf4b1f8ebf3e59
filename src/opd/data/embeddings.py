"""Embeddings of questions, kept by text and encoder, so that a text is encoded once."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from opd.core import tables
from opd.core.code import module_digest
from opd.core.errors import UserError
from opd.core.files import content, digest
from opd.data import conversations, encoders, schemas
from opd.data.encoders import Floats
from opd.data.schemas import PROMPTS

# Texts that are encoded before they are written: what a killed stage loses at most.
CHUNK = 256
# What numpy and zipfile raise on a file that is damaged.
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, cache: Path) -> dict[str, Any]:
    """Stage ``embed``: hashes.txt (the text hash of each prompt, a line each) and embeddings.npy
    (float32 [U, D], rows of norm 1: the distinct texts in the order of their first appearance).

    cfg: encoder (``hashed``, or ``model``, the input ``encoder``), execution.threads. Vectors that
    ``cache`` has of the same encoder are taken from there, others are added to it chunk by chunk.
    """
    path = inputs["prompts"] / "prompts.parquet"
    columns = pa.schema([PROMPTS.field("question"), PROMPTS.field("turns")])
    rows = tables.read(path, columns).to_pylist()
    texts = [conversations.text(row, "question").strip() for row in rows]
    hashes = [schemas.text_hash(text) for text in texts]
    text_of = dict(zip(hashes, texts, strict=True))
    if "" in texts:
        where = f"{path}: row {texts.index('')}"
        raise UserError("the question is empty", where, "mend the prompt set")

    folder = inputs.get("encoder")
    files = content(folder) if folder else {}
    device = encoders.device() if folder else ""
    key = digest([cfg["encoder"], files, device, module_digest(encoders.__name__)])
    shards = cache / "embed" / key
    shards.mkdir(parents=True, exist_ok=True)
    have = {text for held, _ in read_shards(shards) for text in held}
    missing = [text for text in text_of if text not in have]
    if missing:
        encode = encoders.load(folder, cfg.get("execution", {}).get("threads", 1))
        with tqdm(total=len(missing), unit=" texts", mininterval=5) as bar:
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                write_shard(shards, chunk, encode([text_of[h] for h in chunk]), out)
                bar.update(len(chunk))
    dims = gather(shards, list(text_of), out / "embeddings.npy")
    (out / "hashes.txt").write_text("".join(f"{h}\n" for h in hashes))
    return {
        "prompts": len(hashes),
        "distinct": len(text_of),
        "encoded": len(missing),
        "dims": dims,
        "encoder_sha256": digest(files),
    }


def write_shard(folder: Path, hashes: Sequence[str], vectors: Floats, work: Path) -> None:
    """Add vectors [N, D] to a cache folder as one file, whole or not at all: it is written in
    ``work``, the stage's own folder. It is named after the texts in it, so writers of the same
    texts write the same file and writers of others never meet."""
    name = f"{digest(list(hashes))}.npz"
    with tables.writing(work / name) as temporary, temporary.open("wb") as file:
        np.savez(file, hashes=np.array(hashes, dtype="S64"), vectors=vectors)
    (work / name).replace(folder / name)


def read_shards(folder: Path) -> Iterator[tuple[list[str], Floats]]:
    """Text hashes and vectors of each file of a cache folder. A damaged one counts as absent."""
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path) as shard:
                hashes, vectors = shard["hashes"], shard["vectors"]
        except DAMAGED:
            continue
        yield [h.decode() for h in hashes.tolist()], vectors


def gather(folder: Path, hashes: Sequence[str], path: Path) -> int:
    """Write the vectors of distinct texts from a cache folder as one .npy; returns D.

    Holds one shard in memory. Raises ``UserError`` where a text is missing or the disk is full.
    """
    row_of = {h: row for row, h in enumerate(hashes)}
    array: np.memmap[Any, Any] | None = None
    with tables.writing(path) as temporary:
        for held, vectors in read_shards(folder):
            if array is None:
                shape = (len(row_of), vectors.shape[1])
                array = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                # A mapped file ends the process with a signal where the disk is full.
                with temporary.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            wanted = [i for i, h in enumerate(held) if h in row_of]
            array[[row_of.pop(held[i]) for i in wanted]] = vectors[wanted]
        if array is None or row_of:
            missing = f"{len(row_of)} vectors have vanished"
            raise UserError(missing, str(folder), "run the stage embed again")
        array.flush()
    return int(array.shape[1])

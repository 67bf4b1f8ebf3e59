"""Encoding for deduplication: opd.data.encoders against the authors' procedure, plain
``SentenceTransformer.encode``, on real questions with planted near-duplicates; then the memory that
the search of a whole set takes. See README.md."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Waiting threads sleep: on a machine that does other work, spinning ones would count as work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import faiss
import numpy as np
import pyarrow.parquet as pq
import torch
from common import describe, table
from sentence_transformers import SentenceTransformer

from opd.data import encoders, neighbours

PREFIX = "Solve the following math problem step by step."
PLANTED = 100


def questions(data: Path, rows: int, seed: int) -> tuple[list[str], list[str]]:
    """DeepMath and DAPO questions without affixes; the first 100 of ours are theirs reworded."""
    rng = np.random.default_rng(seed)
    ours = [r["question"].strip() for r in _column(data / "deepmath-deduped.parquet", "extra_info")]
    asked = [r[0]["content"] for r in _column(data / "dapo-math-17k.parquet", "prompt")]
    body = re.compile(re.escape(PREFIX) + r".*?problem\.\n\n(.*)\n\nRemember to put", re.DOTALL)
    theirs = [found[1].strip() for text in asked if (found := body.match(text))]
    assert len(theirs) == len(asked)
    ours = [ours[i] for i in sorted(rng.permutation(len(ours))[:rows])]
    theirs = [theirs[i] for i in sorted(rng.permutation(len(theirs))[:rows])]
    wording = ("Determine the answer: {}", "{} Give only the value.", "Let us see. {}", "{} Why?")
    copies = rng.permutation(rows)[:PLANTED]
    planted = [wording[n % 4].format(theirs[i]) for n, i in enumerate(copies)]
    return planted + ours, theirs


def _column(path: Path, name: str) -> list[Any]:
    return pq.read_table(path, columns=[name])[name].to_pylist()


def timed(encode: Any, texts: list[str]) -> tuple[np.ndarray, float, float]:
    """Vectors, seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    made = encode(texts)
    return made, time.perf_counter() - clock, time.process_time() - processor


def agreement(plain: Any, other: Any) -> dict[str, float]:
    """How the neighbours from two encoders' (ours, theirs) compare, as the aim demands."""
    index = faiss.IndexFlatIP(plain[1].shape[1])
    index.add(plain[1])
    scores, rows = index.search(plain[0], 2)
    cosines, places = neighbours.nearest(*other)
    clear = scores[:, 0] - scores[:, 1] > 1e-3
    wrong = 0
    for threshold in np.arange(0.400, 0.6005, 0.001):
        apart = np.abs(scores[:, 0] - threshold) > 5e-4
        wrong += int(((cosines >= threshold) != (scores[:, 0] >= threshold))[apart].sum())
    return {
        "other neighbour": int((places != rows[:, 0])[clear].sum()),
        "largest difference of cosines": float(np.abs(cosines - scores[:, 0]).max()),
        "other decisions": wrong,
        "at 0.6": int((cosines >= 0.6).sum()),
        "at 0.6, plain": int((scores[:, 0] >= 0.6).sum()),
    }


SEARCH = """
import sys, time, resource, numpy as np
from opd.data import neighbours
def peak(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) // 1024
def made(path, n):
    array = np.lib.format.open_memmap(path, "w+", np.float32, (n, 768))
    rng = np.random.default_rng(n)
    for start in range(0, n, 4096):
        part = rng.standard_normal((min(4096, n - start), 768), dtype=np.float32)
        array[start:start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    array.flush(); del array
    return np.load(path, mmap_mode="r")
folder, ours, theirs, threads = sys.argv[1], *map(int, sys.argv[2:])
u, v = made(folder + "/u.npy", ours), made(folder + "/v.npy", theirs)
start = time.perf_counter()
neighbours.nearest(u, v, threads)
print(round(time.perf_counter() - start, 1), peak("VmHWM"))
"""


def search(ours: int, theirs: int, threads: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SEARCH, folder, *map(str, (ours, theirs, threads))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return f"{ours:,} x {theirs:,} x 768: {seconds} s, peak {peak} MiB with what is mapped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of all-mpnet-base-v2")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("OPD_DATA_DIR", ".")))
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    print(search(103_000, 17_000, arguments.threads), flush=True)
    texts = questions(arguments.data, arguments.rows, arguments.seed)
    torch.set_num_threads(arguments.threads)
    model = SentenceTransformer(str(arguments.model))
    contenders = {
        "plain encode": lambda t: model.encode(t, normalize_embeddings=True),
        "opd": encoders.load(arguments.model, arguments.threads),
    }
    for encode in contenders.values():
        encode(texts[1][:8])
    made: dict[str, Any] = {name: [None, None] for name in contenders}
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in contenders}
    # In turns, so that what else the machine does falls on all of them.
    for side, order in ((0, list(contenders)), (1, list(contenders)[::-1])):
        for name in order:
            made[name][side], *took = timed(contenders[name], texts[side])
            for kind in (0, 1):
                seconds[name][kind].append(took[kind])
            print(name, ["ours", "theirs"][side], [round(s, 1) for s in took], flush=True)
    count = len(texts[0]) + len(texts[1])
    plain = [sum(kind) for kind in seconds["plain encode"]]
    rows, found = [], {}
    for name in contenders:
        clock, processor = (sum(kind) for kind in seconds[name])
        rows.append(
            [
                name,
                f"{clock:.0f}",
                f"{count / clock:.1f}",
                f"{plain[0] / clock:.2f}",
                f"{processor:.0f}",
                f"{plain[1] / processor:.2f}",
            ]
        )
        found[name] = agreement(made["plain encode"], made[name])
    header = ["", "s", "questions/s", "speed", "processor s", "speed by processor"]
    print(table(header, rows), describe("cpu"), sep="\n\n")
    print(json.dumps(found, indent=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak of this process: {peak} MiB; load {os.getloadavg()}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": seconds, "agreement": found}, indent=1))


if __name__ == "__main__":
    main()

"""The index of analysed paths against the plain tree of dictionaries: rollouts are indexed, four
paths and a later one queried, and all statistics worked out. See README.md."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TRUNK, TOKENS_IN_USE = 16, 4


def batches(rollouts: int, tokens: int, seed: int) -> Any:
    """Rollouts that share prefixes as those of one question do: each leaves one of a few trunks
    after a random part of it. In batches of 2,000, with whether they are correct."""
    rng = np.random.default_rng(seed)
    trunks = rng.integers(0, 50_000, (TRUNK, tokens), dtype=np.int32)
    # At many places of a trunk there are a few tokens that are often taken.
    often = rng.integers(0, 50_000, (tokens, TOKENS_IN_USE), dtype=np.int32)
    for start in range(0, rollouts, 2000):
        count = min(2000, rollouts - start)
        trunk = rng.integers(0, TRUNK, count)
        cut = np.minimum(rng.geometric(3 / tokens, count), tokens - 1) // 10 * 10
        made = trunks[trunk]
        rest = rng.integers(0, 50_000, made.shape, dtype=np.int32)
        made = np.where(np.arange(tokens) < cut[:, None], made, rest)
        made[np.arange(count), cut] = often[cut, rng.integers(0, TOKENS_IN_USE, count)]
        yield made, rng.random(count) < 0.3 + 0.4 * (trunk % 2)


def indexed(folder: Path, rollouts: int, tokens: int) -> dict[str, float]:
    """Seconds of each part, with our index."""
    from opd.microscope import alignment, statistics
    from opd.microscope.path_index import PathIndex

    times: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        times[name] = times.get(name, 0.0) + now - clock
        clock = now

    index = PathIndex(folder)
    for number, (made, correct) in enumerate(batches(rollouts, tokens, 0)):
        lap("(making them up)")
        index.append(made, correct)
        if number == 0:
            right, wrong = np.flatnonzero(correct)[:2], np.flatnonzero(~correct)[:2]
            paths = made[[*right, *wrong]]
            index.add_paths(list(paths))
        lap("index as they come")
    later = index.add_paths([index.rollout(rollouts // 2)])[0]
    lap("index a new path")
    children = [index.children(path) for path in range(later + 1)]
    nodes = [alignment.significant(c, 20) for c in children]
    lap("query five paths")
    rng = np.random.default_rng(1)
    cells = []
    for teacher in range(8):
        for path, one in enumerate(nodes):
            log_p, log_q = (np.log(rng.random(len(one.token))) for _ in range(2))
            found = alignment.align(one, log_p, log_q)
            features = {name: rng.random(len(one.depth)) for name in statistics.FEATURES}
            args = (found.alignment, found.range, found.advantage, features)
            cells.append(statistics.cell(f"q{path}", f"t{teacher}", path, path % 2 == 0, *args))
    statistics.values(cells)
    for name in statistics.MEASURES:
        statistics.contrast(cells, name)
    lap("statistics, 8 teachers")
    times["nodes"] = sum(len(one.depth) for one in nodes)
    return times


def plain(rollouts: int, tokens: int) -> dict[str, float]:
    """Seconds with a dictionary for every node: token -> [visits, successes, children]."""
    seconds = 0.0
    root: dict[int, Any] = {}
    for made, correct in batches(rollouts, tokens, 0):
        start = time.perf_counter()
        for rollout, right in zip(made.tolist(), correct.tolist(), strict=True):
            node = root
            for token in rollout:
                child = node.get(token)
                if child is None:
                    child = node[token] = [0, 0, {}]
                child[0] += 1
                child[1] += right
                node = child[2]
        seconds += time.perf_counter() - start
    return {"insert": seconds}


def measured(kind: str, rollouts: int, tokens: int) -> dict[str, float]:
    """One of both in a process of its own, with its peak of memory."""
    command = [sys.executable, __file__, "--part", kind, "--rollouts", str(rollouts)]
    command += ["--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=200_000)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--plain", type=int, default=4000, help="rollouts of the plain tree")
    parser.add_argument("--part", choices=["index", "plain"])
    given = parser.parse_args()
    if given.part:
        with tempfile.TemporaryDirectory() as folder:
            if given.part == "index":
                found = indexed(Path(folder), given.rollouts, given.tokens)
            else:
                found = plain(given.rollouts, given.tokens)
        found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    from common import describe, table  # torch: not in the memory of the other processes

    ours = measured("index", given.rollouts, given.tokens)
    theirs = measured("plain", given.plain, given.tokens)
    memory, nodes = ours.pop("MiB"), ours.pop("nodes")
    outside = ours["(making them up)"]
    rows = [[name, f"{seconds:.1f}"] for name, seconds in ours.items()]
    rows.append(["all but making them up", f"{sum(ours.values()) - outside:.1f}"])
    print(table([f"{given.rollouts:,} rollouts x {given.tokens:,} tokens", "seconds"], rows))
    print(f"\npeak of the process {memory:.0f} MiB; {nodes:.0f} nodes scored by each teacher")
    factor = given.rollouts / given.plain
    print(
        f"tree of dictionaries: {theirs['insert']:.1f} s and {theirs['MiB']:.0f} MiB for "
        f"{given.plain:,} rollouts; for all of them, if both grow alike, "
        f"{factor * theirs['insert'] / 60:.0f} minutes and {factor * theirs['MiB'] / 1024:.0f} GiB"
    )
    print(f"\n{describe('cpu')}")


if __name__ == "__main__":
    main()

"""Throughput of both graders on the gold answers of the real benchmarks.

See README.md beside this file.
"""

import argparse
import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from common import describe, table

from opd.grading import graders
from opd.grading.sandbox import verifier

Pair = tuple[str, str]


def restyled(answer: str) -> str:
    """The same answer with large fractions and brackets, as models write it."""
    text = re.sub(r"\\d?frac", r"\\dfrac", answer)
    if text.count("(") == text.count(")"):
        text = re.sub(r"(?<!\\left)\(", r"\\left(", text)
        text = re.sub(r"(?<!\\right)\)", r"\\right)", text)
    return text


CASES: dict[str, Callable[[list[str]], list[Pair]]] = {
    "the answer itself": lambda gold: [(a, a) for a in gold],
    "in other LaTeX": lambda gold: [(restyled(a), a) for a in gold],
    "of the next problem": lambda gold: list(itertools.pairwise(gold)),
}


def pairs_of(folder: Path, case: str) -> list[Pair]:
    """(response, ground truth) for each problem of each benchmark."""
    pairs = []
    for path in sorted(folder.glob("*.parquet")):
        rows = pq.read_table(path, columns=["reward_model"])["reward_model"].to_pylist()
        gold = [row["ground_truth"] for row in rows]
        bare = [graders.last_boxed(a) or a for a in gold]
        pairs += [(f"so the answer is \\boxed{{{a}}}.", b) for a, b in CASES[case](bare)]
    return pairs


def settled_by_text(pairs: list[Pair], grader: str) -> int:
    settle = graders.GRADERS[grader].compare
    return sum(isinstance(settle(graders.last_boxed(a) or "", b), bool) for a, b in pairs)


def cells(pairs: list[Pair], case: str, grader: str) -> list[str]:
    process = verifier(os.getpid())
    process.stop()
    start = time.perf_counter()
    process(grader, [("x", "x")])
    started = time.perf_counter()
    graded, timeouts = graders.grade_all(pairs, grader)
    seconds = time.perf_counter() - started
    return [
        case,
        grader,
        str(len(pairs)),
        f"{sum(right for _, right in graded) / len(pairs):.1%}",
        f"{settled_by_text(pairs, grader) / len(pairs):.1%}",
        str(timeouts),
        f"{len(pairs) / seconds:,.0f}",
        f"{started - start:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the benchmarks' parquet files")
    folder = parser.parse_args().data
    rows = [
        cells(pairs_of(folder, case), case, grader)
        for case in CASES
        for grader in ("rule", "math_verify", "relaxed")
    ]
    header = "answers", "grader", "n", "right", "by text", "at a limit", "a second", "start s"
    print(f"{table(header, rows)}\n\n{describe('cpu')}")


if __name__ == "__main__":
    main()

"""Contamination of benchmarks: which of their problems a training set holds, in three senses.

The same text, a cosine at or above a threshold, or a run of 13 words in common (the measure of
Brown et al. 2020, appendix C). A report: what to leave out is for a dedup recipe to say.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd.core import tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.html import render
from opd.data.dedup import read_neighbours, similarities
from opd.data.dedup_page import PAGES, Pair
from opd.data.neighbours import Doubles, Places
from opd.data.schemas import CHINESE, PROBLEMS, PROMPTS

WORDS = 13
# Letters and digits in a row; a Chinese character is a word of its own.
_WORD = re.compile(f"{CHINESE.pattern}|[^\\W_{CHINESE.pattern[1:-1]}]+")


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``contamination``: problems.parquet (every problem with its nearest prompt, and the
    first that shares 13 words with it), report.json, contamination.html.

    cfg: threshold. Inputs: prompts, and for each benchmark ``benchmark:NAME`` with
    ``neighbours:NAME``, its neighbours among the prompts.
    """
    threshold = cfg["threshold"]
    prompts = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS)
    theirs = prompts.select(["id", "question"]).to_pylist()
    names = [name.partition(":")[2] for name in inputs if name.startswith("benchmark:")]
    rows: list[dict[str, Any]] = []
    for name in names:
        path = inputs[f"benchmark:{name}"] / "prompts.parquet"
        problems = tables.read(path, PROMPTS)
        found = read_neighbours(inputs[f"neighbours:{name}"], problems, prompts)
        for problem, exact, place, cosine in zip(problems.to_pylist(), *found, strict=True):
            rows.append(
                {
                    "benchmark": name,
                    "problem": problem["id"],
                    "question": problem["question"],
                    "exact": bool(exact >= 0),
                    "cosine": float(cosine),
                    "neighbour": theirs[place]["id"],
                    "neighbour_question": theirs[place]["question"],
                }
            )
    if not rows:
        raise UserError("no benchmark given", "contamination.benchmarks", "name some")
    shared, first = shared_words([r["question"] for r in rows], (t["question"] for t in theirs))
    for row, share, place in zip(rows, shared, first, strict=True):
        row["shared_words"] = float(share)
        row["sharer"] = theirs[place]["id"] if place >= 0 else None
        row["sharer_question"] = theirs[place]["question"] if place >= 0 else None

    def count(name: str) -> dict[str, Any]:
        mine = [row for row in rows if row["benchmark"] == name]
        return {
            "problems": len(mine),
            "exact": sum(row["exact"] for row in mine),
            "semantic": sum(row["cosine"] >= threshold for row in mine),
            "words": sum(row["shared_words"] > 0 for row in mine),
            "any": sum(_found(row, threshold) for row in mine),
            **similarities(np.array([row["cosine"] for row in mine])),
        }

    report = {
        "prompts": len(theirs),
        "threshold": threshold,
        "benchmarks": {name: count(name) for name in names},
    }
    tables.write(out / "problems.parquet", rows, PROBLEMS)
    (out / "contamination.html").write_text(_page(report, rows))
    tables.write_json(out / "report.json", report)
    return {"prompts": len(theirs), "found": sum(_found(row, threshold) for row in rows)}


def _found(row: dict[str, Any], threshold: float) -> bool:
    return bool(row["exact"] or row["cosine"] >= threshold or row["shared_words"] > 0)


def words(text: str) -> list[str]:
    """Lower-case words of a text: runs of letters and digits, and single Chinese characters."""
    return _WORD.findall(text.lower())


def runs(text: str, n: int = WORDS) -> set[tuple[str, ...]]:
    """All runs of n words; of a text with fewer words the one run of them all."""
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))} if found else set()


def shared_words(
    problems: Sequence[str], prompts: Iterable[str], n: int = WORDS
) -> tuple[Doubles, Places]:
    """Of each problem the share of its runs of n words that occur in some prompt (as a run of
    ``runs``), and the first prompt with one of them, or -1: two [N]."""
    wanted = [runs(problem, n) for problem in problems]
    holders: dict[tuple[str, ...], list[int]] = {}
    for i, own in enumerate(wanted):
        for run_ in own:
            holders.setdefault(run_, []).append(i)
    seen: set[tuple[str, ...]] = set()
    first = np.full(len(problems), -1, dtype=np.int64)
    for place, prompt in enumerate(prompts):
        for hit in runs(prompt, n) & holders.keys():
            seen.add(hit)
            for i in holders[hit]:
                if first[i] < 0:
                    first[i] = place
    shares = [len(own & seen) / max(1, len(own)) for own in wanted]
    return np.array(shares, dtype=np.float64), first


def _page(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    threshold = report["threshold"]
    found: dict[str, list[Pair]] = {name: [] for name in report["benchmarks"]}
    for row in sorted(rows, key=lambda row: (-row["cosine"], row["problem"])):
        found[row["benchmark"]] += _pairs_of(row, threshold)
    pages = package_file(__file__, "pages/contamination"), PAGES
    return render(pages, "contamination.html.j2", report=report, words=WORDS, found=found)


def _pairs_of(row: dict[str, Any], threshold: float) -> list[Pair]:
    """The problem beside the prompt that is nearest, and beside the one that shares words."""
    share = f"{row['shared_words']:.0%} of its runs of {WORDS} words are in some prompt"
    heads: dict[str, list[str]] = {}
    if row["exact"] or row["cosine"] >= threshold:
        same = ["the same text"] if row["exact"] else []
        heads["neighbour"] = [f"cosine {row['cosine']:.4f}", *same]
    if row["shared_words"] > 0:
        same_prompt = heads and row["sharer"] == row["neighbour"]
        heads.setdefault("neighbour" if same_prompt else "sharer", []).append(share)
    return [
        Pair(", ".join(head), row["problem"], row["question"], row[side], row[f"{side}_question"])
        for side, head in heads.items()
    ]

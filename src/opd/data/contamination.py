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
from opd.data import conversations
from opd.data.dedup import PAGES, read_neighbours, similarities
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
    theirs = prompts.select(["id", "question", "turns"]).to_pylist()
    names = [name.partition(":")[2] for name in inputs if name.startswith("benchmark:")]

    def prompt(role: str, place: int) -> dict[str, Any]:
        row = theirs[place] if place >= 0 else {"id": None, "question": None}
        return {role: row["id"], f"{role}_question": row["question"]}

    rows: list[dict[str, Any]] = []
    problem_texts: list[str] = []
    for name in names:
        problems = tables.read(inputs[f"benchmark:{name}"] / "prompts.parquet", PROMPTS)
        near = read_neighbours(inputs[f"neighbours:{name}"], problems, prompts)
        for problem, exact, place, cosine in zip(problems.to_pylist(), *near, strict=True):
            problem_texts.append(conversations.text(problem, "question"))
            rows.append(
                {
                    "benchmark": name,
                    "problem": problem["id"],
                    "question": problem["question"],
                    "exact": bool(exact >= 0),
                    "cosine": float(cosine),
                    **prompt("neighbour", place),
                }
            )
    if not rows:
        raise UserError("no benchmark given", "contamination.benchmarks", "name some")
    prompt_texts = (conversations.text(row, "question") for row in theirs)
    shared, first = shared_words(problem_texts, prompt_texts)
    for row, share, place in zip(rows, shared, first, strict=True):
        row |= {"shared_words": float(share), **prompt("sharer", place)}
        row["semantic"] = row["cosine"] >= threshold
        row["any"] = bool(row["exact"] or row["semantic"] or share > 0)

    benchmarks = {}
    for name in names:
        own = [row for row in rows if row["benchmark"] == name]
        benchmarks[name] = {
            "problems": len(own),
            **{kind: sum(row[kind] for row in own) for kind in ("exact", "semantic", "any")},
            "words": sum(row["shared_words"] > 0 for row in own),
            **similarities(np.array([row["cosine"] for row in own])),
        }
    report = {"prompts": len(theirs), "threshold": threshold, "benchmarks": benchmarks}
    by_cosine = sorted(rows, key=lambda row: (-row["cosine"], row["problem"]))
    page = render(
        (package_file(__file__, "pages/contamination"), PAGES),
        "contamination.html.j2",
        report=report,
        words=WORDS,
        found=[row for row in by_cosine if row["any"]],
    )
    tables.write(out / "problems.parquet", rows, PROBLEMS)
    (out / "contamination.html").write_text(page)
    tables.write_json(out / "report.json", report)
    return {"prompts": len(theirs), "found": sum(row["any"] for row in rows)}


def words(text: str) -> list[str]:
    """Lower-case words of a text: runs of letters and digits, and single Chinese characters."""
    return _WORD.findall(text.lower())


def runs(text: str, n: int = WORDS) -> set[tuple[str, ...]]:
    """All runs of n words; of a text with fewer words the one run of them all."""
    every = words(text)
    return {tuple(every[i : i + n]) for i in range(max(1, len(every) - n + 1))} if every else set()


def shared_words(
    problems: Sequence[str], prompts: Iterable[str], n: int = WORDS
) -> tuple[Doubles, Places]:
    """Of each problem the share of its runs of n words that occur in some prompt (as a run of
    ``runs``), and the first prompt with one of them, or -1: two [N]."""
    by_problem = [runs(problem, n) for problem in problems]
    wanted = set().union(*by_problem)
    # Each run that some problem has, with the first prompt that has it too.
    first: dict[tuple[str, ...], int] = {}
    for place, prompt in enumerate(prompts):
        for hit in runs(prompt, n) & wanted:
            first.setdefault(hit, place)
    shares = [len(own & first.keys()) / max(1, len(own)) for own in by_problem]
    places = [min((first[hit] for hit in own & first.keys()), default=-1) for own in by_problem]
    return np.array(shares, dtype=np.float64), np.array(places, dtype=np.int64)

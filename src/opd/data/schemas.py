"""Tables of prompts, of SFT data, and of what deduplication finds."""

import hashlib
import re
from typing import Any

import pyarrow as pa

from opd.core.tables import FLAG, INTEGER, NUMBER, TEXT, schema, sparse
from opd.data import conversations

# What stands before a prompt in its conversation: messages of role and content.
TURNS = sparse("turns", pa.list_(pa.struct([("role", TEXT), ("content", TEXT)])))
PROMPTS = schema(
    *("difficulty", "solution"),
    id=TEXT,
    question=TEXT,
    answer=TEXT,
    prompt=TEXT,
    source=TEXT,
    row=INTEGER,
    language=TEXT,
    difficulty=NUMBER,
    text_hash=TEXT,
    solution=TEXT,
).append(TURNS)
SFT_PAIRS = schema(id=TEXT, prompt=TEXT, response=TEXT).append(TURNS)
# For each prompt the first equal text and the nearest other one (rows there).
NEIGHBOURS = schema(
    *("exact", "neighbour", "neighbour_hash", "cosine"),
    text_hash=TEXT,
    exact=INTEGER,
    neighbour=INTEGER,
    neighbour_hash=TEXT,
    cosine=NUMBER,
)
# What deduplication removed, and for which neighbour.
REMOVED = schema(
    id=TEXT, question=TEXT, neighbour=TEXT, neighbour_question=TEXT, score=NUMBER, stage=TEXT
)
# Every text that a source repeats, as the source asks it (rule: prompt) or as the bare question.
REPEATED = schema(
    rule=TEXT,
    text=TEXT,
    sources=pa.list_(TEXT),
    rows=pa.list_(INTEGER),
    answers=pa.list_(TEXT),
    conflicting=FLAG,
)
# Benchmark problems that are among training prompts.
PROBLEMS = schema(
    *("sharer", "sharer_question"),
    benchmark=TEXT,
    problem=TEXT,
    question=TEXT,
    exact=FLAG,
    cosine=NUMBER,
    neighbour=TEXT,
    neighbour_question=TEXT,
    shared_words=NUMBER,
    sharer=TEXT,
    sharer_question=TEXT,
)

CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def prompt_row(
    id: str,
    question: str,
    answer: str,
    source: str,
    row: int,
    prompt: str | None = None,
    difficulty: float | None = None,
    solution: str | None = None,
    turns: list[conversations.Turn] | None = None,
) -> dict[str, Any]:
    """A row of PROMPTS; its prompt is the question where no other is named."""
    return {
        "id": id,
        "answer": answer,
        "prompt": question if prompt is None else prompt,
        "source": source,
        "row": row,
        "difficulty": difficulty,
        "solution": solution,
        "turns": turns,
        **about(question, turns),
    }


def about(question: str, turns: list[conversations.Turn] | None = None) -> dict[str, str]:
    """The columns of PROMPTS that follow from the question: itself, its language (``zh`` with any
    Chinese character, else ``en``: the rule of open-r1's split of DAPO-Math-17k) and the text_hash
    of it with the turns before it."""
    language = "zh" if CHINESE.search(question) else "en"
    compared = conversations.text({"question": question, "turns": turns}, "question")
    return {"question": question, "language": language, "text_hash": text_hash(compared)}


def text_hash(text: str) -> str:
    """sha256 (hex) of a text without outer white space."""
    return hashlib.sha256(text.strip().encode()).hexdigest()

"""Declared parquet schemas of every table that passes between stages, and checked reading and
writing of them.

The same rows give the same bytes: fixed compression, no pandas metadata, caller's row order.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opd.core.errors import Bad


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _nullable(schema: pa.Schema, *names: str) -> pa.Schema:
    for name in names:
        i = schema.get_field_index(name)
        schema = schema.set(i, schema.field(i).with_nullable(True))
    return schema


_S, _I, _F = pa.string(), pa.int64(), pa.float64()
PROMPTS = _nullable(
    _schema(
        id=_S,
        question=_S,
        answer=_S,
        prompt=_S,
        source=_S,
        row=_I,
        language=_S,
        difficulty=_F,
        text_hash=_S,
        solution=_S,
    ),
    *("difficulty", "solution"),
)
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
PAIRS = _schema(id=_S, prompt=_S, response=_S)
# rejected: the rule that rejected the response, which was then sampled again as a next attempt.
GENERATIONS = _nullable(
    _schema(
        prompt_id=_S,
        sample=_I,
        attempt=_I,
        prompt=_S,
        response=_S,
        token_ids=pa.list_(pa.int32()),
        finish=_S,
        rejected=_S,
    ),
    "rejected",
)
# What deduplication finds: for each prompt the first equal text and the nearest other one (rows
# there), what was removed for which neighbour, and every text that a source repeats (rule: as the
# source asks it, prompt, or the bare question).
NEIGHBOURS = _nullable(
    _schema(text_hash=_S, exact=_I, neighbour=_I, neighbour_hash=_S, cosine=_F),
    *("exact", "neighbour", "neighbour_hash", "cosine"),
)
REMOVED = _schema(id=_S, question=_S, neighbour=_S, neighbour_question=_S, score=_F, stage=_S)
REPEATED = _schema(
    rule=_S,
    text=_S,
    sources=pa.list_(_S),
    rows=pa.list_(_I),
    answers=pa.list_(_S),
    conflicting=pa.bool_(),
)
PROBLEMS = _nullable(
    _schema(
        benchmark=_S,
        problem=_S,
        question=_S,
        exact=pa.bool_(),
        cosine=_F,
        neighbour=_S,
        neighbour_question=_S,
        shared_words=_F,
        sharer=_S,
        sharer_question=_S,
    ),
    *("sharer", "sharer_question"),
)
# correct: the benchmark's main metric, 0 to 1; scores: every metric by its name.
SCORES = _nullable(
    _schema(
        benchmark=_S,
        problem=_S,
        sample=_I,
        answer=_S,
        response=_S,
        extracted=_S,
        correct=_F,
        scores=pa.map_(_S, _F),
        tokens=_I,
        finish=_S,
    ),
    "extracted",
)
# position: the first token of a bin of response positions; empty for the mean over all of them.
METRICS = _nullable(_schema(step=_I, name=_S, position=_I, value=_F), "position")
# What probes measure: bootstrap draws of each value; every rollout with its sequence mean reward;
# every continuation of a rollout's first ``prefix`` tokens, by the teacher or the student.
DRAWS = _schema(name=_S, draws=pa.list_(_F))
ROLLOUTS = _nullable(
    _schema(id=_S, sample=_I, tokens=_I, reward_nats=_F, correct=pa.bool_()), "correct"
)
CONTINUATIONS = _schema(
    id=_S,
    sample=_I,
    prefix=_I,
    by=_S,
    continuation=_I,
    response=_S,
    tokens=_I,
    finish=_S,
    correct=pa.bool_(),
)

# What a judge says of a response, and what that is; nothing where it is no verdict.
VERDICTS = _nullable(_schema(id=_S, sample=_I, response=_S, reply=_S, passed=pa.bool_()), "passed")


def prompt(
    id: str,
    question: str,
    answer: str,
    source: str,
    row: int,
    prompt: str | None = None,
    difficulty: float | None = None,
    solution: str | None = None,
) -> dict[str, Any]:
    """A row of PROMPTS with what follows from the question: language (``zh`` with any Chinese
    character, else ``en``: the rule of open-r1's split of DAPO-Math-17k) and text_hash (sha256 of
    the question without outer white space)."""
    return {
        "id": id,
        "question": question,
        "answer": answer,
        "prompt": question if prompt is None else prompt,
        "source": source,
        "row": row,
        "language": "zh" if CHINESE.search(question) else "en",
        "difficulty": difficulty,
        "text_hash": text_hash(question),
        "solution": solution,
    }


def text_hash(text: str) -> str:
    """sha256 (hex) of a text without outer white space."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def write(path: Path, rows: pa.Table | Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows to ``path`` as parquet of exactly this schema.

    Raises ``Bad`` naming the column if a value is missing or of the wrong type, and where the disk
    does not take the file; nothing is left at ``path`` then.
    """
    try:
        table = (
            rows.select(schema.names).cast(schema)
            if isinstance(rows, pa.Table)
            else pa.Table.from_pylist([dict(r) for r in rows], schema=schema)
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError, ValueError) as error:
        raise Bad(
            f"rows do not fit the schema ({error})", str(path), "mend the stage's input"
        ) from error
    for field in schema:
        nulls = table.column(field.name).null_count
        if nulls and not field.nullable:
            row = table.column(field.name).is_null().to_pylist().index(True)
            raise Bad(f"column '{field.name}' is empty", f"{path}: row {row}", "fill it in")
    with _whole(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=65536)


def write_json(path: Path, value: Any) -> None:
    """Write a report, as ``write_text`` does: indented, keys sorted, no NaN."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises ``Bad`` where the disk does not take it."""
    with _whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name, renamed to ``path`` when all is written, else removed."""
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Bad(
            f"it cannot be written ({error.strerror or error})", str(path), "free space there"
        ) from error


def read(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a parquet table and hold it to ``schema``.

    Raises ``Bad`` if the file is missing, is no parquet, lacks a column, or holds nulls where the
    schema forbids them (the first such row is named).
    """
    if not path.is_file():
        raise Bad("no such file", str(path), "run the stage that makes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise Bad(
            f"not a readable parquet file ({error})", str(path), "make or fetch it again"
        ) from error
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise Bad(
            f"column '{missing[0]}' is missing (it has {', '.join(table.column_names)})",
            str(path),
            f"expected the columns {', '.join(schema.names)}",
        )
    for field in schema:
        column = table.column(field.name)
        if column.null_count and not field.nullable:
            row = column.is_null().to_pylist().index(True)
            raise Bad(f"column '{field.name}' is empty", f"{path}: row {row}", "fill it in")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, ValueError) as error:
        raise Bad(
            f"a column has the wrong type ({error})", str(path), f"expected {schema}"
        ) from error

"""The tables of graded responses, and which of their rows are the samples of a problem."""

from collections.abc import Sequence

import pyarrow as pa

from opd.core.errors import UserError
from opd.core.tables import INTEGER, NUMBER, TEXT, schema

# correct: the benchmark's main metric, 0 to 1; scores: every metric by its name.
SCORES = schema(
    "extracted",
    benchmark=TEXT,
    problem=TEXT,
    sample=INTEGER,
    extracted=TEXT,
    correct=NUMBER,
    scores=pa.map_(TEXT, NUMBER),
    tokens=INTEGER,
    finish=TEXT,
)
# The same rows in the same order, and their texts.
RESPONSES = schema(benchmark=TEXT, problem=TEXT, sample=INTEGER, answer=TEXT, response=TEXT)


def samples_by_problem(
    problems: Sequence[str], samples: Sequence[int], where: str
) -> dict[str, list[int]]:
    """Problem -> the numbers of its rows, sample by sample, from the two columns of one benchmark.

    Raises ``UserError`` unless every problem has the same samples 0..k-1, each once.
    """
    rows: dict[str, list[int]] = {}
    for row in sorted(range(len(samples)), key=samples.__getitem__):
        rows.setdefault(problems[row], []).append(row)
    if not rows:
        raise UserError("no scores", where, "the evaluation made nothing: run it again")
    k = max(map(len, rows.values()))
    for problem, own in rows.items():
        if (numbers := [samples[row] for row in own]) != [*range(k)]:
            raise UserError(
                f"samples {numbers} of problem '{problem}', not 0 to {k - 1}",
                where,
                "the evaluation is not complete: run it again",
            )
    return rows

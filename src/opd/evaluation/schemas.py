"""The table of graded responses."""

import pyarrow as pa

from opd.core.tables import INTEGER, NUMBER, TEXT, schema

# correct: the benchmark's main metric, 0 to 1; scores: every metric by its name.
SCORES = schema(
    "extracted",
    benchmark=TEXT,
    problem=TEXT,
    sample=INTEGER,
    answer=TEXT,
    response=TEXT,
    extracted=TEXT,
    correct=NUMBER,
    scores=pa.map_(TEXT, NUMBER),
    tokens=INTEGER,
    finish=TEXT,
)

"""Tables of the microscope's stages."""

import pyarrow as pa

from opd.core.tables import FLAG, INTEGER, NUMBER, TEXT, schema

# Demonstrations: verified responses, or summaries of them, in the order in which they came.
DEMONSTRATIONS = schema(prompt_id=TEXT, correct=FLAG, place=INTEGER, trial=INTEGER, text=TEXT)
# Of each question how many trials it took, and what was found.
TRIALS = schema(
    "reason", prompt_id=TEXT, trials=INTEGER, correct=INTEGER, wrong=INTEGER, reason=TEXT
)
# Pass rates of a student by context. bin: easy, medium, hard or extremely hard, by the baseline;
# kept: a correct demonstration from every source, and not extremely hard.
SCREENING = schema(
    prompt_id=TEXT, context=TEXT, samples=INTEGER, passes=INTEGER, bin=TEXT, kept=FLAG
)
# Questions of a tree. reason: why one was left out. targeted: rollouts beyond the initial ones.
QUESTIONS = schema(
    "reason",
    prompt_id=TEXT,
    question=TEXT,
    answer=TEXT,
    rollouts=INTEGER,
    correct=INTEGER,
    targeted=INTEGER,
    reason=TEXT,
)
PATHS = schema(
    prompt_id=TEXT,
    path=INTEGER,
    correct=FLAG,
    finished=FLAG,
    rollout=INTEGER,
    token_ids=pa.list_(pa.int32()),
)
CHILDREN = schema(
    prompt_id=TEXT, path=INTEGER, depth=INTEGER, token=INTEGER, visits=INTEGER, successes=INTEGER
)
_CHILD = schema(
    token=INTEGER, text=TEXT, student=NUMBER, teacher=NUMBER, visits=INTEGER, successes=INTEGER
)
_PLACE = {"prompt_id": TEXT, "path": INTEGER, "correct": FLAG, "depth": INTEGER, "token": INTEGER}
_NUMBERS = ("alignment", "range", "advantage")
# Of student and teacher at a position of a path, over the whole vocabulary.
DIVERGENCES = ("kl_nats", "js_nats", "l2", "similarity")
# Every token of every path as one teacher sees it. alignment: where the node has a direction;
# range and advantage: where it could be scored. children of the node: those that were visited often
# enough or that the teacher likes best.
TOKENS = schema(
    *_NUMBERS,
    **{**_PLACE, "text": TEXT, **dict.fromkeys(_NUMBERS, NUMBER), "scored_children": INTEGER},
    **dict.fromkeys(DIVERGENCES, NUMBER),
    children=pa.list_(pa.struct(list(_CHILD))),
)
# What a teacher could not be measured on, and why.
LEFT_OUT = schema("path", prompt_id=TEXT, path=INTEGER, reason=TEXT)
# Numbers of cells, as ``opd.microscope.statistics`` has them.
CELLS = schema(
    prompt_id=TEXT,
    teacher=TEXT,
    path=INTEGER,
    correct=FLAG,
    nodes=INTEGER,
    undefined=INTEGER,
    variance=NUMBER,
    numbers=pa.map_(TEXT, NUMBER),
)

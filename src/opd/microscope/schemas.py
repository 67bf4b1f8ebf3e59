"""Tables of the microscope's stages; apart from ``opd.core.tables``, on which everything
depends."""

import pyarrow as pa

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TOKENS = pa.list_(pa.int32())


def _schema(*nullable: str, **columns: pa.DataType) -> pa.Schema:
    return pa.schema(
        [pa.field(name, kind, nullable=name in nullable) for name, kind in columns.items()]
    )


# Demonstrations: verified responses, or summaries of them, in the order in which they came.
DEMONSTRATIONS = _schema(prompt_id=_S, correct=_B, place=_I, trial=_I, text=_S)
# Of each question how many trials it took, and what was found.
TRIALS = _schema("reason", prompt_id=_S, trials=_I, correct=_I, wrong=_I, reason=_S)
# Pass rates of a student by context. bin: easy, medium, hard or extremely hard, by the baseline;
# kept: a correct demonstration from every source, and not extremely hard.
SCREENING = _schema(prompt_id=_S, context=_S, samples=_I, passes=_I, bin=_S, kept=_B)
# Questions of a tree. reason: why one was left out. targeted: rollouts beyond the initial ones.
QUESTIONS = _schema(
    "reason", prompt_id=_S, question=_S, answer=_S, rollouts=_I, correct=_I, targeted=_I, reason=_S
)
PATHS = _schema(prompt_id=_S, path=_I, correct=_B, finished=_B, rollout=_I, token_ids=_TOKENS)
CHILDREN = _schema(prompt_id=_S, path=_I, depth=_I, token=_I, visits=_I, successes=_I)
# Every token of every path as one teacher sees it. alignment: where the node has a direction;
# range and advantage: where it could be scored. children of the node: those that were visited often
# enough or that the teacher likes best.
TOKENS = _schema(
    *("alignment", "range", "advantage"),
    prompt_id=_S,
    path=_I,
    correct=_B,
    depth=_I,
    token=_I,
    text=_S,
    alignment=_F,
    range=_F,
    advantage=_F,
    scored_children=_I,
    kl_nats=_F,
    js_nats=_F,
    l2=_F,
    similarity=_F,
    children=pa.list_(
        pa.struct(
            [
                pa.field("token", _I, nullable=False),
                pa.field("text", _S, nullable=False),
                pa.field("student", _F, nullable=False),
                pa.field("teacher", _F, nullable=False),
                pa.field("visits", _I, nullable=False),
                pa.field("successes", _I, nullable=False),
            ]
        )
    ),
)
# What a teacher could not be measured on, and why.
LEFT_OUT = _schema("path", prompt_id=_S, path=_I, reason=_S)
# Numbers of cells, as ``opd.microscope.statistics`` has them.
CELLS = _schema(
    prompt_id=_S,
    teacher=_S,
    path=_I,
    correct=_B,
    nodes=_I,
    undefined=_I,
    variance=_F,
    numbers=pa.map_(_S, _F),
)

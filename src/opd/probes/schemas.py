"""Tables of single rollouts and responses that probes have measured."""

from opd.core.tables import FLAG, INTEGER, NUMBER, TEXT, schema

# Every rollout with its sequence mean reward.
ROLLOUTS = schema(
    "correct", id=TEXT, sample=INTEGER, tokens=INTEGER, reward_nats=NUMBER, correct=FLAG
)
# Every continuation of a rollout's first ``prefix`` tokens, by the teacher or the student.
CONTINUATIONS = schema(
    id=TEXT,
    sample=INTEGER,
    prefix=INTEGER,
    by=TEXT,
    continuation=INTEGER,
    response=TEXT,
    tokens=INTEGER,
    finish=TEXT,
    correct=FLAG,
)
# What a judge says of a response, and what that is; nothing where it is no verdict.
VERDICTS = schema("passed", id=TEXT, sample=INTEGER, response=TEXT, reply=TEXT, passed=FLAG)

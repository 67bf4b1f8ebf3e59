"""The table of rollouts."""

import pyarrow as pa

from opd.core.tables import INTEGER, TEXT, schema
from opd.data.schemas import TURNS

# rejected: the rule that rejected the response, which was then sampled again as a next attempt.
GENERATIONS = schema(
    "rejected",
    prompt_id=TEXT,
    sample=INTEGER,
    attempt=INTEGER,
    prompt=TEXT,
    response=TEXT,
    token_ids=pa.list_(pa.int32()),
    finish=TEXT,
    rejected=TEXT,
).append(TURNS)
# Of the same rows in the same order, where asked for: the log-probability in nats of each of their
# tokens under the model that sampled them, at the temperature that it was sampled with.
LOGPROBS = schema(prompt_id=TEXT, sample=INTEGER, attempt=INTEGER, logprobs=pa.list_(pa.float32()))

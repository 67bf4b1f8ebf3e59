"""The table of metrics that training and probes log."""

import pyarrow as pa

from opd.core.tables import INTEGER, TEXT, schema

# position: the first token of a bin of response positions; empty for the mean over all of them.
# Values are means of what is computed in 32 bits or fewer.
METRICS = schema("position", step=INTEGER, name=TEXT, position=INTEGER, value=pa.float32())

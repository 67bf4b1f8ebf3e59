"""The table of metrics that training and probes log."""

from opd.core.tables import INTEGER, NUMBER, TEXT, schema

# position: the first token of a bin of response positions; empty for the mean over all of them.
METRICS = schema("position", step=INTEGER, name=TEXT, position=INTEGER, value=NUMBER)

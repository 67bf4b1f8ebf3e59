"""What came out of training, in a sentence for each row of a table that has a change in it."""

from collections.abc import Iterator, Mapping
from typing import Any

from opd.results.labels import digits, with_unit
from opd.results.quantity import POINTS


def outcomes(rows: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each row with a score and its change; ``rows`` are the numbers of a table
    (``opd.results.tables.run_table``), shares from 0 to 1."""
    for label, numbers in rows.items():
        if not isinstance(numbers, Mapping):  # of a table of words
            continue
        change, score = numbers.get("change"), numbers.get("avg")
        if change is None or score is None:
            continue
        low, high = numbers["change_low"], numbers["change_high"]
        if low > 0:
            verdict = "better than before"
        elif high < 0:
            verdict = "worse than before"
        else:
            verdict = "no difference that so few problems can show"
        if outlook := numbers.get("outlook"):
            verdict += f"; expected before training: {outlook}"
        by, least, most = (digits(value, POINTS)[0] for value in (change, low, high))
        points = f"{by} points, {least} to {most}"
        before, after = (with_unit(value, "share") for value in (score - change, score))
        scores = f"{before} right before, {after} after"
        yield f"{label}: {scores} ({points}): {verdict}"

"""What came out of training, in a sentence for each row of a table that has a change in it."""

from collections.abc import Iterator, Mapping
from typing import Any


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
        points = f"{100 * change:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}"
        scores = f"{100 * (score - change):.1f} % right before, {100 * score:.1f} % after"
        yield f"{label}: {scores} ({points}): {verdict}"

import pytest

from opd.results.outcome import outcomes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better than before"),
        (-0.2, -0.01, "worse than before"),
        (-0.1, 0.3, "no difference that so few problems can show"),
        (0.0, 0.2, "no difference that so few problems can show"),
    ],
)
def test_the_interval_of_the_change_decides(low: float, high: float, verdict: str) -> None:
    row = {"avg": 0.5, "change": 0.1, "change_low": low, "change_high": high}
    (sentence,) = outcomes({"run": row})
    assert sentence.startswith("run: 40.0 % right before, 50.0 % after (+10.0 points, ")
    assert sentence.endswith(f"): {verdict}")
    (sentence,) = outcomes({"run": {**row, "outlook": "likely to help"}})
    assert sentence.endswith(f"): {verdict}; expected before training: likely to help")


def test_numbers_are_written_as_in_tables() -> None:
    """With a minus sign, and none before zero."""
    row = {"avg": 0.25, "change": -0.088, "change_low": -0.15, "change_high": -0.0001}
    (sentence,) = outcomes({"run": row})
    assert sentence == (
        "run: 33.8 % right before, 25.0 % after (−8.8 points, −15.0 to +0.0): worse than before"
    )


def test_a_row_without_a_change_says_nothing() -> None:
    assert [*outcomes({"base": {"avg": 0.5, "change": None}, "other": {"problems": 5}})] == []

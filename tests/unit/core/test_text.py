"""Words for people: suggestions, numbers and sizes."""

import pytest

from opd.core.text import distinct, number, size, suggestion

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("easi", ["hard", "easy"], "did you mean 'easy'?"),
        ("other", ["hard", "easy"], "there are hard, easy"),
        ("other", [], "there are none"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, known, text):
    assert suggestion(name, iter(known)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0, "0"), (-0.0, "0"), (0.012345, "0.0123"), (-1.5, "−1.50"), (1234.5, "1234")],
        *[(123456, "123456"), (1.5e6, "1.5e+06")],
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (2.5e6, "2.5 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes_have_decimal_units(count, text):
    assert size(count) == text


def test_labels_that_stand_there_twice_go_by_their_place():
    assert distinct(["a", "b", "a", "c"]) == ["1: a", "b", "3: a", "c"]
    assert distinct([]) == []

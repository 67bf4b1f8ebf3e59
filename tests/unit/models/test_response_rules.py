"""Rejection rules, each at its boundaries."""

import pytest

from opd.core.errors import UserError
from opd.models import response_rules

LINE = "x" * 20
UNIQUE = "".join(f"{i:05d}" for i in range(4000))


def test_boxed() -> None:
    assert response_rules.no_box("the answer is 5") and not response_rules.no_box("so \\boxed{5}")


@pytest.mark.parametrize(
    ("lines", "rejected"),
    [
        ([LINE] * 5, True),
        ([LINE] * 4, False),
        ([f"  {LINE} ", LINE, f"{LINE}\t", LINE, f" {LINE}"], True),
        ([LINE[:-1]] * 9, False),
        ([f"{LINE[:-1]} "] * 9, False),
        ([LINE, "y" * 20] * 4, False),
    ],
)
def test_repeated_line(lines: list[str], rejected: bool) -> None:
    assert response_rules.repeated_line("\n".join(lines)) is rejected


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        (UNIQUE[:100] * 3, True),
        (UNIQUE[:100] * 2, False),
        # Windows start at every tenth character, so a period of 105 is seen at every second turn.
        (UNIQUE[:105] * 3, False),
        (UNIQUE[:105] * 5, True),
        (UNIQUE, False),
        # Below 300 characters nothing is looked at, though windows overlap.
        ("a" * 299, False),
        ("a" * 300, True),
        (UNIQUE[:150] + "a" * 119 + UNIQUE[150:181], False),
        (UNIQUE[:150] + "a" * 120 + UNIQUE[150:180], True),
        ("", False),
    ],
)
def test_repeated_window(text: str, rejected: bool) -> None:
    assert response_rules.repeated_window(text) is rejected


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        (UNIQUE[:4851] + UNIQUE[-50:] * 3, True),
        (UNIQUE[:4850] + UNIQUE[-50:] * 3, False),
        (UNIQUE[:7000] + UNIQUE[-50:] * 2, False),
        (UNIQUE[:7000] + "z" + UNIQUE[-50:] * 2 + UNIQUE[-50:-1], False),
        (UNIQUE[:7003] + UNIQUE[-50:] * 3 + UNIQUE[:90], True),
        (UNIQUE[:7000] + "ab" * 75, True),
        (UNIQUE[:7000], False),
    ],
)
def test_repeated_block(text: str, rejected: bool) -> None:
    assert response_rules.repeated_block(text) is rejected


def test_empty() -> None:
    assert (
        response_rules.empty("")
        and response_rules.empty(" \n\t")
        and not response_rules.empty(" 0")
    )


def test_the_first_rule_that_rejects_is_the_reason() -> None:
    given = ["finished", "nonempty", "boxed", "answered"]
    for response, finish, extracted, reason in [
        ("so \\boxed{5}", "stop", "5", None),
        ("so \\boxed{5}", "length", "5", "finished"),
        (" ", "length", None, "finished"),
        (" ", "stop", None, "nonempty"),
        ("so 5", "stop", "5", "boxed"),
        ("so \\boxed{}", "stop", None, "answered"),
    ]:
        assert response_rules.first_that_rejects(given, response, finish, extracted) == reason
        assert response_rules.first_that_rejects([], response, finish, extracted) is None
    backwards = response_rules.first_that_rejects(given[::-1], " ", "length")
    assert backwards == "answered"
    with pytest.raises(UserError, match="unknown rule 'boxes'; use boxed, "):
        response_rules.first_that_rejects(["boxes"], "", "stop")

"""Both notations of a quantity mean the same."""

import re
from typing import Any

import pytest

from opd.results.quantity import Quantity, column, of_panel, of_series, read, written

LONG: list[dict[str, Any]] = [
    {"avg": "E1.a", "benchmark": "macro"},
    {"pass": "E1.a", "benchmark": "easy"},
    {"metric": "kl_nats", "of": "E1.a", "at": "start"},
    {"metric": "kl_nats", "of": "E1.a", "at": "end", "positions": "back"},
    {"metric": "kl_nats", "of": "E1.a", "at": "end", "per": {"of": "E1.b", "at": "max"}},
    {"metric": "kl_nats", "of": "E1.a", "at": "mid", "less": {"at": "start"}},
    {"probe": "E2", "value": "auroc"},
    {"probe": "E2", "value": "advantage_*", "at": "last"},
    {"probe": "E2", "value": "signal_positive", "per": {"probe": "E2", "value": "signal"}},
    {"probe": "E2", "value": "a_ratio", "less": {"probe": "E3", "value": "b_ratio"}},
]


@pytest.mark.parametrize("given", LONG)
def test_what_is_written_is_read_again(given: dict[str, Any]) -> None:
    assert written(read(given)) == given
    assert read(written(read(given))) == read(given)


def test_what_is_left_out_has_its_default() -> None:
    assert read({"avg": "A"}) == read({"avg": "A", "benchmark": "macro"})
    assert read({"metric": "loss", "of": "A"}) == read({"metric": "loss", "of": "A", "at": "end"})
    share = {"metric": "loss", "of": "A"}
    assert read({**share, "per": {"at": "max"}}) == read({**share, "per": {"of": "A", "at": "max"}})
    value = {"probe": "A", "value": "cosine"}
    for key in ("per", "less"):
        same, other = {**value, key: {"probe": "B"}}, {"probe": "B", "value": "cosine"}
        assert read(same) == read({**value, key: other})
        assert read(same).needs() == {("probe", "A"), ("probe", "B")}


def test_units_of_what_is_compared() -> None:
    share = {"probe": "A", "value": "kept_ratio"}
    assert read({**share, "per": {"value": "other_ratio"}}).unit == "times"
    assert read({**share, "less": {"value": "other_ratio"}}).unit == "points of a share"
    nats = {"probe": "A", "value": "gap_nats", "less": {"probe": "B"}}
    assert read(nats).unit == "nats"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"per": "signal"}, "per: 'signal' is not allowed: write value, or probe, or both"),
        ({"per": {}}, "per: {} is not allowed"),
        ({"less": {"of": "B"}}, "less: {'of': 'B'} is not allowed"),
        ({"less": {"value": 3}}, "less: {'value': 3} is not allowed"),
        ({"per": {"value": "cosine"}}, "per: it compares a quantity with itself"),
        ({"per": {"value": "gap_nats"}}, "per: compares a number with nats"),
        ({"per": {"value": "rho_*"}}, "per: cosine and rho_* have to be one value each"),
        ({"per": {"value": "a"}, "less": {"value": "b"}}, "per and less: write one of them"),
    ],
)
def test_what_cannot_be_compared_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read({"probe": "A", "value": "cosine", **more})


@pytest.mark.parametrize(
    ("spec", "panel", "long"),
    [
        ("change:easy", {"change": "easy"}, {"change": "A", "benchmark": "easy"}),
        ("recovery", {"recovery": "macro"}, {"recovery": "A"}),
        (
            "first:loss",
            {"metric": "loss", "at": "start"},
            {"metric": "loss", "of": "A", "at": "start"},
        ),
        ("probe:auroc", {"value": "auroc"}, {"probe": "A", "value": "auroc"}),
    ],
)
def test_a_column_a_panel_and_a_claim_name_the_same(
    spec: str, panel: dict[str, Any], long: dict[str, Any]
) -> None:
    quantity = read(long)
    (of_row,) = column(spec).quantities
    assert of_row == Quantity(quantity.kind, "", quantity.name, quantity.at)
    assert of_panel(panel, "A") == [quantity]
    name, _, at = quantity.short.partition("@")
    assert of_series(name, "A", at or None, quantity.kind == "probe") == quantity


def test_columns_name_what_they_read_and_what_the_csv_has() -> None:
    course = column("course:loss")
    assert [quantity.at for quantity in course.quantities] == ["start", "last"]
    assert (course.inputs, course.endings) == (("run",), ("_first", "_last"))
    assert column("recovery").inputs == ("evaluations", "base", "teacher")
    assert column("recovery").endings == ("", "_low", "_high")
    assert column("outlook").inputs == ("probe",) and column("p").endings == ("",)
    per = {"metric": "loss", "of": "A", "per": {"of": "B", "at": "end"}}
    assert read(per).needs() == {("run", "A"), ("run", "B")}

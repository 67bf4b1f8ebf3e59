"""The grammar of a paper's figures, and the file of the first paper."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.core.errors import UserError
from opd.results import figure_spec
from opd.results.claim_spec import check as check_claims
from opd.results.claim_spec import read_claims, read_targets
from opd.results.figure_spec import check, parse_figure
from opd.results.published import parse

ROOT = Path(__file__).parents[3] / "config"
TARGETS = read_targets(ROOT / "targets" / "rethinking_opd.csv")
FIGURES = yaml.safe_load((ROOT / "figures" / "rethinking_opd.yaml").read_text())
CURVES: dict[str, Any] = {
    "title": "T",
    "section": "1",
    "kind": "curves",
    "metrics": [{"name": "avg:macro"}, {"name": "overlap_ratio"}],
    "series": [{"arm": "E1.a", "label": "ours"}, {"arm": "E1.b"}],
    "levels": [{"arm": "E1.teacher"}],
    "published": ["R001", {"target": "R029", "series": "E1.a", "metric": "overlap_ratio"}],
}
BARS: dict[str, Any] = {
    "title": "T",
    "section": "1",
    "kind": "bars",
    "panels": [
        {"quantity": {"recovery": "macro"}},
        {"quantity": {"change": "each"}},
        {"quantity": {"metric": "kl_nats", "at": "start"}},
        {"quantity": {"value": "auroc"}},
    ],
    "series": [{"arm": "E1.a"}, {"probe": "E2"}],
}


def resolve(
    figure: dict[str, Any], arms: list[str], probes: list[str]
) -> tuple[dict[str, Any], list[tuple[str, str]]] | None:
    return figure_spec.resolve(parse_figure("f", figure), arms, probes)


def test_needs_by_what_is_drawn() -> None:
    resolved = resolve(CURVES, ["E1.a", "E1.b", "E1.teacher"], [])
    assert resolved is not None
    settings, needs = resolved
    assert needs == [
        ("evaluations", "E1.teacher"),
        ("scores", "E1.a"),
        ("run", "E1.a"),
        ("scores", "E1.b"),
        ("run", "E1.b"),
    ]
    assert settings["series"] == [{"arm": "E1.a", "label": "ours"}, {"arm": "E1.b"}]
    assert settings["published"] == [
        {"target": "R001"},
        {"target": "R029", "series": "E1.a", "metric": "overlap_ratio"},
    ]
    assert "missing" not in settings and "section" not in settings
    _, needs = resolve(BARS, ["E1.a"], ["E2"]) or ({}, [])
    sides = [("base", "E1.a"), ("evaluations", "E1.a"), ("teacher", "E1.a")]
    assert needs == [*sides, ("run", "E1.a"), ("probe", "E2")]


def test_marks_say_of_what_they_are_values() -> None:
    marks = [
        {"target": "A", "series": "E1.a", "metric": "avg:aime24"},
        {"target": "B", "series": "E1.a", "metric": "recovery:macro"},
        {"target": "C", "series": "E1.a", "metric": "kl_nats", "at": "start"},
        {"target": "D", "series": "E2", "metric": "auroc"},
        {"target": "E", "series": "E1.a", "metric": "kl_nats", "at": 20},  # no quantity
        "F",
    ]
    said = parse_figure("f", {**BARS, "published": marks}).said()
    found = {one.target: one.model_dump(exclude_none=True)["quantity"] for one in said}
    assert found == {
        "A": {"avg": "E1.a", "benchmark": "aime24"},
        "B": {"recovery": "E1.a", "benchmark": "macro"},
        "C": {"metric": "kl_nats", "of": "E1.a", "at": "start"},
        "D": {"probe": "E2", "value": "auroc"},
    }


def test_what_a_scale_lacks_is_left_out_and_named() -> None:
    settings, needs = resolve(CURVES, ["E1.b", "E1.teacher"], []) or ({}, [])
    assert settings["series"] == [{"arm": "E1.b"}]
    assert settings["missing"] == ["E1.a"]
    assert {name for _, name in needs} == {"E1.b", "E1.teacher"}
    assert resolve(CURVES, ["E1.teacher", "E9.z"], []) is None
    assert resolve(BARS, [], ["E9"]) is None
    settings, needs = resolve(BARS, [], ["E2"]) or ({}, [])
    assert (settings["missing"], needs) == (["E1.a"], [("probe", "E2")])
    grid = {
        **{key: CURVES[key] for key in ("title", "section", "metrics")},
        "kind": "grid",
        "panels": [
            {"title": "a", "series": [{"arm": "E1.a"}]},
            {"title": "b", "series": [{"arm": "E1.b"}]},
        ],
    }
    settings, _ = resolve(grid, ["E1.b"], []) or ({}, [])
    assert [panel["title"] for panel in settings["panels"]] == ["b"]


def test_a_probe_is_no_arm_of_its_name() -> None:
    figure = {**BARS, "series": [{"arm": "E1.a"}, {"probe": "E1.a"}]}
    settings, needs = resolve(figure, [], ["E1.a"]) or ({}, [])
    assert (settings["series"], needs) == ([{"probe": "E1.a"}], [("probe", "E1.a")])
    assert settings["missing"] == ["E1.a"]


def test_a_series_that_is_also_a_level_is_no_reason_to_drop_it() -> None:
    figure = {**CURVES, "levels": [{"arm": "E1.b"}]}
    settings, needs = resolve(figure, ["E1.b"], []) or ({}, [])
    assert settings["series"] == settings["levels"] == [{"arm": "E1.b"}]
    assert needs == [("evaluations", "E1.b"), ("scores", "E1.b"), ("run", "E1.b")]


def changed(figure: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(figure), **change}


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (
            changed(CURVES, kind="pie"),
            "figure f.kind: 'pie' is not allowed: Input should be 'curves'",
        ),
        (changed(CURVES, captoin="x"), "figure f.captoin: no such key"),
        (changed(CURVES, metrics=[]), "a figure of kind 'curves' needs metrics"),
        (
            changed(CURVES, metrics=[{"name": "change:macro"}]),
            "no curve of 'change:macro': use avg:BENCHMARK or a metric",
        ),
        (changed(CURVES, panels=BARS["panels"]), "a figure of kind 'curves' has no panels"),
        (
            changed(CURVES, series=[{"label": "x"}]),
            "f.series.0: needs exactly one of arm, probe",
        ),
        (changed(BARS, panels=[{"title": "x", "series": [{"arm": "a"}]}]), "panels of a grid are"),
        (
            changed(BARS, panels=[{"quantity": {"avg": "macro", "value": "auroc"}}]),
            "needs exactly one of avg, change, recovery",
        ),
        (changed(BARS, panels=[{"quantity": {"avg": "macro", "at": "end"}}]), "at: no such key"),
        (
            changed(BARS, panels=[{"quantity": {"value": "a_*"}, "each": "prefix {n}"}]),
            "figure f.panels.0.each: 'prefix {n}' is not allowed",
        ),
        (changed(CURVES, published=["R9999"]), "figure f.published: no published row 'R9999'"),
        (
            changed(
                CURVES, published=[{"target": "R029", "series": "E1.z", "metric": "overlap_ratio"}]
            ),
            "R029 belongs to no series 'E1.z'",
        ),
        (
            changed(
                CURVES, published=[{"target": "R031", "series": "E1.a", "metric": "overlap_ratio"}]
            ),
            "R031 is no number: 'stagnant'; write R031 alone",
        ),
    ],
)
def test_what_a_figure_may_not_say(figure: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check({"f": figure}, TARGETS)
    assert message in str(caught.value)


def test_the_figures_of_the_first_paper() -> None:
    check(FIGURES, TARGETS)
    numbers = [name.removeprefix("fig").rstrip("ab") for name in FIGURES]
    assert sorted(set(map(int, numbers))) == list(range(2, 24))
    assert list(FIGURES) == sorted(FIGURES)
    for name, figure in FIGURES.items():
        assert figure["title"] and figure["caption"] and figure["section"], name


def test_figures_and_claims_agree_on_what_is_context() -> None:
    said = read_claims(ROOT / "claims" / "rethinking_opd.yaml")
    shown = {name: figure.targets() for name, figure in check(FIGURES, TARGETS).items()}
    ids = [row["id"] for row in TARGETS]
    check_claims(said["claims"], said["context"], ids, shown)
    named = {claim.get("figure") for claim in said["claims"]} - {None}
    assert named <= FIGURES.keys()


def test_at_most_five_lines_in_a_panel() -> None:
    for name, figure in FIGURES.items():
        if figure["kind"] in ("curves", "grid"):
            groups = [p["series"] for p in figure.get("panels", [])] or [figure["series"]]
            assert max(map(len, groups)) + len(figure.get("levels", [])) <= 5, name


def test_every_number_that_a_figure_of_the_paper_plots_belongs_to_it() -> None:
    shown = {name: set(figure.targets()) for name, figure in check(FIGURES, TARGETS).items()}
    plotted = [
        row
        for row in TARGETS
        if row["figure_or_table"].startswith("Fig")
        and row["confidence"] in ("paper-quoted", "second-hand")
        and parse(row["value"]) is not None
        # Where an axis ends, not what is plotted.
        and row["metric"] != "training_steps"
    ]
    assert len(plotted) > 50
    for row in plotted:
        figure = row["figure_or_table"].partition("/")[0].removeprefix("Fig")
        number = figure.rstrip("ab")
        assert row["id"] in shown[f"fig{int(number):02}{figure.removeprefix(number)}"], row


def test_marks_lie_where_the_paper_has_them() -> None:
    rows = {row["id"]: row for row in TARGETS}
    for figure in FIGURES.values():
        for one in figure.get("published", []):
            if isinstance(one, str):
                continue
            row = rows[one["target"]]
            benchmark = {"mean3": "macro"}.get(row["benchmark"], row["benchmark"].lower())
            expected = {
                "avg@16": f"avg:{benchmark}",
                "avg@16 macro": "avg:macro",
                "gap_recovery": "recovery:macro",
                "AUROC seq mean reward": "auroc",
            }.get(row["metric"])
            if row["metric"].startswith("overlap_ratio"):
                ends = {"initial": "start", "start": "start", "end": "end"}
                assert one["at"] == ends[row["metric"].rpartition("_")[2]]
                expected = "overlap_ratio"
            if row["metric"] == "teacher_continuation_advantage":
                expected = f"advantage_{row['setting'].split()[1]}"
            assert one["metric"] == (expected or row["metric"])
            assert row["experiment_id"] == one["series"].partition(".")[0]

"""Figures of arms and probes: their numbers against small inputs worked out by hand."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import FILES, LONG, evaluation, probe, refused_figure, run, wordy

from opd.core import tables
from opd.losses.schemas import METRICS
from opd.results.claim_spec import TARGETS
from opd.results.drawing import _common, _limits, draw, draw_heatmap
from opd.results.figures import run_figure
from opd.results.published import parse

HARD = [0, 1, 0, 1]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A student, its evaluations on the way and at the end of two seeds, a teacher, two probes."""
    found = {
        "start": evaluation(tmp_path / "start", {"easy": [2, 1, 3, 2], "hard": HARD}),
        "half0": evaluation(tmp_path / "half0", {"easy": [3, 1, 3, 2], "hard": HARD}),
        "half1": evaluation(tmp_path / "half1", {"easy": [3, 2, 4, 2], "hard": HARD}),
        "end0": evaluation(tmp_path / "end0", {"easy": [4, 3, 4, 3], "hard": [2, 2, 1, 1]}),
        "end1": evaluation(tmp_path / "end1", {"easy": [4] * 4, "hard": [2] * 4}),
        "teacher": evaluation(tmp_path / "teacher", {"easy": [4] * 4, "hard": [4, 4, 3, 2]}),
        "r0": by_position(tmp_path / "r0", 0.0),
        "r1": by_position(tmp_path / "r1", 0.2),
        "p": judged(tmp_path / "p", {"auroc": 0.75}),
        "c": probe(
            tmp_path / "c",
            {"advantage_16": 0.1, "advantage_2": 0.4, "advantage_q25": 0.3, "teacher_2": 0.9},
            {"advantage_2": [0.3, 0.5], "advantage_16": [0.05, 0.15]},
        ),
        "targets:paper": rows(tmp_path / "targets.csv"),
    }
    return found


def by_position(folder: Path, more: float) -> Path:
    """Steps 1 to 3; entropy is step + position / 10, where responses get that far."""
    path = run(folder, overlap_ratio={1: 0.6 + more, 2: 0.7 + more, 3: 0.9 + more})
    table = tables.read(path / "metrics.parquet", METRICS).to_pylist()
    for step in (1, 2, 3):
        table += [
            {"step": step, "name": "entropy_nats", "position": at, "value": step + at / 10 + more}
            for at in (0, 8, 24)[: step if step < 3 else 3]
        ]
        table.append({"step": step, "name": "never_nats", "position": 0, "value": np.nan})
    tables.write(path / "metrics.parquet", table, METRICS)
    return path


def judged(folder: Path, values: dict[str, float | None]) -> Path:
    path = probe(folder, values, {"auroc": [0.7, 0.8]})
    import pyarrow as pa
    import pyarrow.parquet as pq

    rewards = [-0.1] * 6 + [-0.5] * 3 + [0.4]
    right = [True] * 5 + [False] * 4 + [None]
    pq.write_table(pa.table({"reward_nats": rewards, "correct": right}), path / "rollouts.parquet")
    return path


PRINTED = {"A": "0.72", "B": "0.58-0.60", "C": ">0.80", "D": "stagnant", "E": "0.74", "F": "0.33"}


def rows(path: Path) -> Path:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, TARGETS, restval="-")
        out.writeheader()
        for name, value in PRINTED.items():
            said = {"student": "s", "metric": "overlap", "setting": "first"}
            out.writerow({**said, "id": name, "value": value, "confidence": "paper-quoted"})
    return path


ARMS = {
    "E1.run": {
        "label": "small ← large",
        "evaluations": ["end0", "end1"],
        "base": ["start", "start"],
        "teacher": ["teacher", "teacher"],
        "run": ["r0", "r1"],
        "scores": {"3": ["end0", "end1"], "0": ["start", "start"], "2": ["half0", "half1"]},
    },
    "E1.student": {"label": "small", "evaluations": ["start", "start"]},
    "E1.teacher": {"label": "large", "evaluations": ["teacher", "teacher"]},
}
PROBES = {
    "E2": {"label": "judged by large", "runs": ["p", "p"]},
    "E3": {"label": "continued by large", "runs": ["c", "c"]},
}
COMMON: dict[str, Any] = {"arms": ARMS, "probes": PROBES, "title": "T", "resamples": 500}
SCORES: dict[str, Any] = {
    "kind": "curves",
    "metrics": [{"name": "avg:each"}, {"name": "avg:macro"}, {"name": "overlap_ratio"}],
    "series": [{"arm": "E1.run"}],
    "levels": [{"arm": "E1.teacher"}],
    **COMMON,
}
QUANTITIES: dict[str, Any] = {
    "kind": "bars",
    "panels": [
        {"quantity": {"avg": "macro"}},
        {"quantity": {"recovery": "macro"}},
        {"quantity": {"metric": "overlap_ratio", "at": "start"}},
    ],
    "series": [{"arm": "E1.student"}, {"arm": "E1.run", "group": "after"}],
    **COMMON,
}
PREFIXES: dict[str, Any] = {
    "kind": "bars",
    "panels": [{"quantity": {"value": "advantage_*"}, "percent": True, "each": "after {} tokens"}],
    "series": [{"probe": "E3"}],
    **COMMON,
}
HEAT: dict[str, Any] = {
    "kind": "heatmap",
    "metrics": [{"name": "entropy_nats"}],
    "series": [{"arm": "E1.run"}],
    **COMMON,
}
SCATTER: dict[str, Any] = {
    "kind": "scatter",
    "x": {"quantity": {"metric": "overlap_ratio", "at": "end"}},
    "y": {"quantity": {"recovery": "macro"}},
    "series": [{"arm": "E1.run"}, {"arm": "E1.run", "label": "the same again"}],
    **COMMON,
}
REWARDS: dict[str, Any] = {
    "kind": "distribution",
    "series": [{"probe": "E2"}],
    "panels": [{"quantity": {"value": "auroc"}, "label": "AUROC"}],
    **COMMON,
}
PUBLISHED = [
    {"target": "A", "series": "E1.run", "metric": "overlap_ratio", "at": "start"},
    {"target": "C", "series": "E1.run", "metric": "overlap_ratio", "at": 2},
    {"target": "B", "series": "E1.run", "metric": "overlap_ratio"},
    {"target": "D", "series": "E1.run", "metric": "overlap_ratio"},
    {"target": "E", "series": "E1.gone", "metric": "overlap_ratio"},
    {"target": "F"},
]
KINDS = {
    "scores": SCORES,
    "published": {**SCORES, "published": PUBLISHED, "comparable": True},
    "quantities": QUANTITIES,
    "prefixes": PREFIXES,
    "heat": HEAT,
    "two heats": {**HEAT, "series": [{"arm": "E1.run"}, {"arm": "E1.run", "label": "b"}]},
    "scatter": SCATTER,
    "rewards": REWARDS,
}


def drawn(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> tuple[dict[str, Any], str]:
    out.mkdir()
    run_figure(cfg, inputs, out)
    return json.loads((out / "figure.json").read_text()), (out / "caption.md").read_text()


def marks(panel: dict[str, Any]) -> list[dict[str, Any]]:
    """The published values in a panel."""
    parts = [*panel.get("lines", []), *panel.get("bars", [])]
    return [mark for part in parts for mark in part["marks"]]


def test_accuracy_over_kept_steps(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found, caption = drawn(SCORES, inputs, tmp_path / "f")
    panels = {panel["metric"]: panel for panel in found["panels"]}
    assert list(panels) == ["avg:easy", "avg:hard", "avg:macro", "overlap_ratio"]
    (line,) = panels["avg:easy"]["lines"]
    # Right of 16: start 8 in both seeds; half way 9 and 11; at the end 14 and 16.
    assert line["x"] == [0, 2, 3]
    assert line["y"] == pytest.approx([8 / 16, 10 / 16, 15 / 16])
    low, y, high = (np.array(line[key]) for key in ("low", "y", "high"))
    assert (low < y).all() and (y < high).all()
    (level,) = panels["avg:macro"]["levels"]
    assert level["value"] == pytest.approx((1 + 13 / 16) / 2)
    assert panels["overlap_ratio"]["levels"] == []
    (line,) = panels["overlap_ratio"]["lines"]
    assert line["y"] == pytest.approx([0.7, 0.8, 1.0])
    assert (line["low"], line["high"]) == ([0.6, 0.7, 0.9], [0.8, 0.9, 1.1])
    assert panels["avg:easy"]["label"] == "avg@4 (%), easy"
    assert "Means over 2 seeds" in caption and "95 % intervals from 500 bootstrap" in caption
    assert "The horizontal line is the score of large." in caption
    both = {**SCORES, "levels": [{"arm": "E1.teacher"}, {"arm": "E1.student", "label": "first"}]}
    _, caption = drawn(both, inputs, tmp_path / "g")
    assert "Horizontal lines are the scores of large and first." in caption


def test_intervals_say_what_is_drawn(tmp_path: Path, inputs: dict[str, Path]) -> None:
    _, caption = drawn(REWARDS, inputs, tmp_path / "probe")
    assert (
        "Intervals are 95 %: of probes from 1,000 bootstrap draws of seeds and prompts." in caption
    )
    probes = {"E2": {**REWARDS["probes"]["E2"], "runs": REWARDS["probes"]["E2"]["runs"][:1]}}
    _, caption = drawn({**REWARDS, "probes": probes}, inputs, tmp_path / "once")
    assert "of probes from 1,000 bootstrap draws of prompts." in caption
    one = {"E1.run": {**QUANTITIES["arms"]["E1.run"]}}
    for key in ("evaluations", "base", "teacher", "run"):
        one["E1.run"][key] = one["E1.run"][key][:1]
    bars = {**QUANTITIES, "arms": one, "probes": {}, "series": [{"arm": "E1.run"}]}
    _, caption = drawn(bars, inputs, tmp_path / "one")
    assert "of scores from 500 bootstrap draws of problems;" in caption
    assert "of what training logs, where it is a mean over steps, from 500 bootstrap" in caption


def test_a_lone_benchmark_is_not_shown_beside_its_mean(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    alone = {"one": evaluation(tmp_path / "one", {"easy": [2, 1]})}
    cfg: dict[str, Any] = {"arms": {"A": {"label": "a", "evaluations": ["one"]}}, "title": "T"}
    cfg |= {"kind": "bars", "series": [{"arm": "A"}]}
    each, macro = {"quantity": {"avg": "each"}}, {"quantity": {"avg": "macro"}}
    for panels in ([each], [each, macro]):
        found, _ = drawn({**cfg, "panels": panels}, alone, tmp_path / f"f{len(panels)}")
        assert len(found["panels"]) == 1
    found, _ = drawn({**QUANTITIES, "panels": [each, macro]}, inputs, tmp_path / "f")
    names = [panel["bars"][0]["metric"] for panel in found["panels"]]
    assert names == ["avg:easy", "avg:hard", "avg:macro"]


def test_quantities_as_bars(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found, caption = drawn(QUANTITIES, inputs, tmp_path / "f")
    bars = {(bar["series"], bar["metric"]): bar for p in found["panels"] for bar in p["bars"]}
    # Macro: student 5 / 16, after (15 + 7) / 32, teacher 29 / 32.
    after = bars["E1.run", "avg:macro"]
    assert after["value"] == pytest.approx(22 / 32) and after["low"] < 22 / 32 < after["high"]
    share = bars["E1.run", "recovery:macro"]["value"]
    assert share == pytest.approx((22 / 32 - 10 / 32) / (29 / 32 - 10 / 32))
    start = bars["E1.run", "overlap_ratio@start"]
    assert (start["value"], start["seeds"]) == (pytest.approx(0.7), 2)
    assert bars["E1.student", "recovery:macro"]["value"] is None
    assert "recovery:macro, small: base of small" in caption
    assert (
        "Intervals are 95 %: of scores from 500 bootstrap draws of seeds and problems; of what "
        "training logs Student's t over seeds."
    ) in caption
    assert [p["axis"].partition(",")[0] for p in found["panels"]] == [
        "avg@4 (%)",
        "gap recovered (%)",
        "share",
    ]


def test_a_change_says_of_how_many_samples(tmp_path: Path, inputs: dict[str, Path]) -> None:
    cfg = {**QUANTITIES, "panels": [{"quantity": {"change": "macro"}}]}
    found, _ = drawn({**cfg, "series": [{"arm": "E1.run"}]}, inputs, tmp_path / "f")
    assert found["panels"][0]["axis"] == "change in avg@4 (points), 95 % interval"


def test_values_of_a_probe_by_number(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found, _ = drawn(PREFIXES, inputs, tmp_path / "f")
    (panel,) = found["panels"]
    assert [(bar["label"], bar["value"]) for bar in panel["bars"]] == [
        ("after 2 tokens", 0.4),
        ("after 16 tokens", 0.1),
    ]
    assert 0.3 <= panel["bars"][0]["low"] < 0.4 < panel["bars"][0]["high"] <= 0.5
    two = [{"value": ["teacher_2", "advantage_2"]}]
    cfg = {**PREFIXES, "panels": [{"quantity": q} for q in two]}
    found, _ = drawn(cfg, inputs, tmp_path / "g")
    labels = [bar["label"] for bar in found["panels"][0]["bars"]]
    assert labels == ["teacher 2", "advantage 2"]


def test_a_heat_map_has_steps_across_and_positions_upwards(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    found, _ = drawn(HEAT, inputs, tmp_path / "f")
    (panel,) = found["panels"]
    assert (panel["steps"], panel["positions"]) == ([1, 2, 3], [0, 8, 16, 24])
    values = np.array(panel["values"], dtype=float)
    # Mean of two seeds that differ by 0.2; no response reaches token 24 before step 3, and no bin
    # begins with 16.
    expected = [[1.1, 2.1, 3.1], [np.nan, 2.9, 3.9], [np.nan] * 3, [np.nan, np.nan, 5.5]]
    np.testing.assert_allclose(values, expected)
    from matplotlib.image import imread

    # In the picture: dark at the lower left (step 1, token 0), bright at the upper right.
    image = imread(tmp_path / "f" / "figure.png")[..., :3].sum(axis=-1)
    height, width = image.shape
    lower, upper = int(0.72 * height), int(0.18 * height)
    assert image[lower, int(0.15 * width)] < image[lower, int(0.75 * width)]
    assert image[lower, int(0.75 * width)] < image[upper, int(0.75 * width)]


def test_a_series_without_a_number_has_an_empty_heat_map(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    rows = [{"step": step, "position": 0, "value": np.nan} for step in (1, 2)]
    for row in rows:
        row["name"] = "entropy_nats"
    (tmp_path / "r").mkdir()
    tables.write(tmp_path / "r" / "metrics.parquet", rows, METRICS)
    series = [{"arm": "E1.run"}, {"label": "never", "runs": ["r"]}]
    given = {**inputs, "r": tmp_path / "r"}
    found, _ = drawn({**HEAT, "series": series}, given, tmp_path / "f")
    assert found["panels"][1]["values"] == [[None, None]]


def pointed_at(folder: Path) -> dict[str, np.ndarray]:
    """What a reader may point at, with the colour of the picture in the middle of each."""
    from matplotlib.image import imread

    image = imread(folder / "figure.png")[..., :3]
    height, width = image.shape[:2]
    spots = json.loads((folder / "spots.json").read_text())
    return {
        spot["text"]: image[
            int((spot["y"] + spot["height"] / 2) * height),
            int((spot["x"] + spot["width"] / 2) * width),
        ]
        for spot in spots
    }


def test_cells_of_a_heat_map_say_what_they_show(tmp_path: Path, inputs: dict[str, Path]) -> None:
    drawn(HEAT, inputs, tmp_path / "f")
    colours = pointed_at(tmp_path / "f")
    texts = {
        1.1: "small ← large: 1.10 at step 1, tokens 0–7",
        2.1: "small ← large: 2.10 at step 2, tokens 0–7",
        2.9: "small ← large: 2.90 at step 2, tokens 8–15",
        3.1: "small ← large: 3.10 at step 3, tokens 0–7",
        3.9: "small ← large: 3.90 at step 3, tokens 8–15",
        5.5: "small ← large: 5.50 at step 3, tokens 24–31",
    }
    assert colours.keys() == {*texts.values()}
    # The scale becomes lighter from its lowest to its highest value.
    lightness = [colours[texts[value]] @ [0.2126, 0.7152, 0.0722] for value in sorted(texts)]
    assert lightness == sorted(lightness) and lightness[-1] > lightness[0] + 0.5


def test_of_a_large_heat_map_every_so_manyth_cell_is_named(tmp_path: Path) -> None:
    steps, positions = list(range(100)), [0, 8]
    values = [[100.0 * row + step for step in steps] for row in range(2)]
    panel = {"label": "a", "steps": steps, "positions": positions, "width": 8, "values": values}
    data = {"title": "T", "published": [], "sources": [], "label": "l", "xlabel": "x"}
    draw(draw_heatmap, {**data, "panels": [panel]}, tmp_path)
    spots = json.loads((tmp_path / "spots.json").read_text())
    assert [spot["text"] for spot in spots[:2]] == [
        "a: 0 at step 0, tokens 0–7",
        "a: 4.00 at step 4, tokens 0–7",
    ]
    assert len(spots) == 2 * 25
    # They touch, so that wherever one points there is one.
    for left, right in pairwise(spots[:25]):
        assert left["x"] + left["width"] == pytest.approx(right["x"], abs=2e-4)


def test_a_point_for_each_series_that_has_both(tmp_path: Path, inputs: dict[str, Path]) -> None:
    series = [*SCATTER["series"], {"arm": "E1.student"}]
    found, caption = drawn({**SCATTER, "series": series}, inputs, tmp_path / "f")
    assert [point["label"] for point in found["points"]] == ["small ← large", "the same again"]
    point = found["points"][0]
    assert point["x"]["value"] == pytest.approx(1.0)
    assert point["y"]["value"] == pytest.approx(12 / 19)
    assert point["y"]["low"] < 12 / 19 < point["y"]["high"]
    assert "overlap_ratio@end, small: training run of small" in caption


def test_rewards_of_right_and_wrong(tmp_path: Path, inputs: dict[str, Path]) -> None:
    found, _ = drawn(REWARDS, inputs, tmp_path / "f")
    (panel,) = found["panels"]
    # Two seeds with 5 right and 4 wrong ones each; the rollout without a grade is left out.
    assert (panel["n_right"], panel["n_wrong"]) == (10, 8)
    edges = np.array(panel["edges"])
    last, first = len(edges) - 2, 0
    assert panel["right"][last] == 1 and panel["wrong"][first] == 0.75
    assert sum(panel["wrong"]) == pytest.approx(1)
    assert (edges[0], edges[-1]) == pytest.approx((-0.5, -0.1))
    (bar,) = found["bars"][0]["bars"]
    assert (bar["value"], bar["label"]) == (0.75, "judged by large")
    # Both shares of a bin, where its bars are; of empty ones nothing is said.
    colours = pointed_at(tmp_path / "f")
    lowest = "−0.500 to −0.487: 0 of the right ones, 0.750 of the wrong ones"
    highest = "−0.113 to −0.100: 1.00 of the right ones, 0.250 of the wrong ones"
    assert [*colours][:2] == [lowest, highest] and len(colours) == 3
    assert colours[highest].min() < 0.9 < colours[lowest].min()  # filled, and an outline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.72", (0.72, 0.72, "")),
        ("0.58-0.60", (0.58, 0.6, "")),
        ("0.58–0.60", (0.58, 0.6, "")),
        (">0.80", (0.8, 0.8, ">")),
        (">=0.9", (0.9, 0.9, ">")),
        ("<0.05", (0.05, 0.05, "<")),
        ("~0.85", (0.85, 0.85, "~")),
        ("-0.0155", (-0.0155, -0.0155, "")),
        ("1e-06", (1e-6, 1e-6, "")),
        ("stagnant", None),
        ("8xA800-80GB", None),
        ("0.4005 -> 0.2775", None),
        ("-5 to -7", None),
        ("", None),
    ],
)
def test_printed_numbers(text: str, expected: tuple[float, float, str] | None) -> None:
    printed = parse(text)
    assert (printed and printed[:3]) == expected


def test_published_values_are_marked_where_they_compare(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    cfg = {**SCORES, "published": PUBLISHED, "comparable": True}
    found, caption = drawn(cfg, inputs, tmp_path / "yes")
    marked = {panel["metric"]: marks(panel) for panel in found["panels"]}
    shown = [(m["text"], m["x"], m["low"], m["high"]) for m in marked.pop("overlap_ratio")]
    assert shown == [
        ("0.72", 1, 0.72, 0.72),
        (">0.80", 2, 0.8, 0.8),
        ("0.58-0.60", None, 0.58, 0.6),
    ]
    assert not any(marked.values())
    assert [one["drawn"] for one in found["published"]] == [True] * 3 + [False] * 3
    assert "Open diamonds are published values; 3 more have no place in the drawing." in caption
    assert "0.72" not in caption
    row = found["published"][0]["row"]
    assert (row["student"], row["metric"], row["setting"]) == ("s", "overlap", "first")
    found, caption = drawn({**cfg, "comparable": False}, inputs, tmp_path / "no")
    assert not any(map(marks, found["panels"]))
    assert not any(one["drawn"] for one in found["published"])
    assert "diamond" not in caption
    assert "Published values belong to other models and data, and are not drawn." in caption
    assert "0.72" not in caption
    pictures = [(tmp_path / name / "figure.png").read_bytes() for name in ("yes", "no")]
    drawn(SCORES, inputs, tmp_path / "plain")
    assert pictures[0] != pictures[1] == (tmp_path / "plain" / "figure.png").read_bytes()


def test_published_values_of_bars(tmp_path: Path, inputs: dict[str, Path]) -> None:
    published = [
        {"target": "A", "series": "E1.run", "metric": "recovery:macro"},
        {"target": "B", "series": "E1.run", "metric": "overlap_ratio", "at": "start"},
        {"target": "E", "series": "E1.run", "metric": "overlap_ratio", "at": "end"},
        {"target": "F", "series": "E1.student", "metric": "recovery:macro"},
    ]
    cfg = {**QUANTITIES, "published": published, "comparable": True}
    found, _ = drawn(cfg, inputs, tmp_path / "f")
    assert [[m["text"] for m in marks(panel)] for panel in found["panels"]] == [
        [],
        ["0.72"],
        ["0.58-0.60"],
    ]
    published = [
        # At the end, as claims have it.
        {"target": "B", "series": "E1.run", "metric": "overlap_ratio"},
        {"target": "C", "series": "E1.run", "metric": "overlap_ratio", "at": 2},
        {"target": "D", "series": "E1.run", "metric": "avg:macro", "at": "start"},
    ]
    end = {"quantity": {"metric": "overlap_ratio", "at": "end"}}
    cfg = {**QUANTITIES, "published": published, "comparable": True}
    found, _ = drawn({**cfg, "panels": [*cfg["panels"], end]}, inputs, tmp_path / "end")
    texts = [[mark["text"] for mark in marks(panel)] for panel in found["panels"]]
    assert texts == [[], [], [], ["0.58-0.60"]]
    published = [{"target": "F", "series": "E3", "metric": "advantage_2"}]
    cfg = {**PREFIXES, "published": published, "comparable": True}
    found, _ = drawn(cfg, inputs, tmp_path / "g")
    assert marks(found["panels"][0])[0]["low"] == 0.33


def test_what_a_scale_lacks_is_said(tmp_path: Path, inputs: dict[str, Path]) -> None:
    _, caption = drawn({**SCORES, "missing": ["E1.other", "E9"]}, inputs, tmp_path / "f")
    assert "Not run at this scale, so not drawn: E1.other, E9." in caption


def test_labels_stand_for_models(tmp_path: Path, inputs: dict[str, Path]) -> None:
    series = [{"arm": "E1.run", "label": "success"}]
    found, caption = drawn({**SCORES, "series": series}, inputs, tmp_path / "f")
    assert found["panels"][0]["lines"][0]["label"] == "success"
    assert "success: small ← large." in caption


def test_an_arm_and_a_probe_of_one_name_are_both_drawn(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    probes = {"E1.run": {**PREFIXES["probes"]["E3"], "label": "probed"}}
    panels = [{"quantity": {"avg": "macro"}}, {"quantity": {"value": "advantage_2"}}]
    series = [{"arm": "E1.run"}, {"probe": "E1.run", "label": "prefixes"}]
    cfg = {**QUANTITIES, "probes": probes, "panels": panels, "series": series}
    found, caption = drawn(cfg, inputs, tmp_path / "f")
    labels = [[bar["label"] for bar in panel["bars"]] for panel in found["panels"]]
    assert labels == [["small ← large"], ["prefixes"]]
    assert "prefixes: probed." in caption


def test_arms_of_one_label_are_told_apart(tmp_path: Path, inputs: dict[str, Path]) -> None:
    arms = {**ARMS, "E5.run": ARMS["E1.run"]}
    cfg = {**SCORES, "arms": arms, "series": [{"arm": "E1.run"}, {"arm": "E5.run"}]}
    found, _ = drawn(cfg, inputs, tmp_path / "f")
    labels = [line["label"] for line in found["panels"][0]["lines"]]
    assert labels == ["small ← large (E1.run)", "small ← large (E5.run)"]


@pytest.mark.parametrize("name", KINDS)
def test_same_inputs_same_bytes(tmp_path: Path, inputs: dict[str, Path], name: str) -> None:
    made = []
    for folder in ("first", "second"):
        drawn(KINDS[name], inputs, tmp_path / folder)
        made.append({p.name: p.read_bytes() for p in sorted((tmp_path / folder).iterdir())})
    assert list(made[0]) == FILES
    assert made[0] == made[1]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_reaches_over_the_edge(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    pages: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda s, *a, **k: (pages.append(s), save(s, *a, **k)))
    cfg = KINDS[name]
    relabelled = {key: value for key, value in cfg.items() if key not in ("arms", "probes")}
    for key in ("series", "levels", "metrics"):
        if key in cfg:
            relabelled[key] = [{**one, "label": LONG} for one in cfg[key]]
    for key in ("arms", "probes"):
        relabelled[key] = {n: {**one, "label": LONG} for n, one in cfg[key].items()}
    drawn(wordy(relabelled), inputs, tmp_path / "f")
    image = imread(tmp_path / "f" / "figure.png")[..., :3]
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert edge.min() == 1, "something is cut off at the edge"
    assert image.shape[1] == 7 * 160
    # The one for a phone has as much room as it needs, too.
    narrow = pages[-1]
    box = narrow.get_tightbbox()
    assert narrow.get_figwidth() == 3.4 < 7 and min(box.x0, box.y0) > -0.02
    assert box.x1 < 3.42 and box.y1 < narrow.get_figheight() + 0.02


@pytest.mark.parametrize("several", [12, 25])
def test_names_of_points_do_not_overlap(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, several: int
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

    pages: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda s, *a, **k: (pages.append(s), save(s, *a, **k)))
    arms, values = {}, np.random.default_rng(0).uniform(0.3, 0.9, size=(several, 2))
    for i, (x, y) in enumerate(values):
        curves = {"a": {0: x}, "b": {0: y}}
        inputs[f"n{i}"] = run(tmp_path / f"n{i}", **curves)
        arms[f"N{i}"] = {"label": f"small ← large {i}", "run": [f"n{i}"]}
    cfg = {**SCATTER, "arms": arms, "series": [{"arm": name} for name in arms]}
    cfg |= {side: {"quantity": {"metric": m}} for side, m in {"x": "a", "y": "b"}.items()}
    drawn(cfg, inputs, tmp_path / "f")
    page = pages[-1]
    page.draw_without_rendering()
    names = [t for t in page.axes[0].texts if isinstance(t, Annotation)]
    boxes = [Text.get_window_extent(name) for name in names]
    assert len(boxes) == several
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert sum(_common(a, b) > 0 for a, b in pairs) == 0


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({**SCORES, "series": [{"arm": "E1.runs"}]}, "no arm 'E1.runs'; did you mean 'E1.run'?"),
        ({**REWARDS, "series": [{"probe": "E9"}]}, "no probe 'E9'; there are E2, E3"),
        (
            {**SCORES, "series": [{"arm": "E1.student"}], "metrics": [{"name": "avg:macro"}]},
            "small: no evaluations over steps",
        ),
        (
            {**HEAT, "metrics": [{"name": "overlap_ratio"}]},
            "small ← large: 'r0' did not log 'overlap_ratio' by position",
        ),
        ({**SCORES, "published": [{"target": "Z"}]}, "published: no published row 'Z'"),
        ({**SCORES, "metrics": [{"name": "avg:AIME"}]}, "no benchmark 'AIME'"),
        (
            {**SCORES, "metrics": [{"name": "recovery:macro"}]},
            "metrics: no curve of 'recovery:macro': use avg:BENCHMARK or a metric",
        ),
        ({**SCATTER, "series": [{"arm": "E1.student"}]}, "no series has both quantities"),
        (
            {**QUANTITIES, "series": [{"probe": "E2"}]},
            "panels: no series has any of these quantities; name arms for scores and metrics",
        ),
        ({**PREFIXES, "series": [{"probe": "E2"}]}, "no series has any of these quantities"),
        (
            {**HEAT, "metrics": [{"name": "never_nats"}]},
            "metrics: 'never_nats' is no number at any position",
        ),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, inputs: dict[str, Path], cfg: dict[str, Any], message: str
) -> None:
    assert message in refused_figure(cfg, inputs, tmp_path / "out")


def test_an_axis_of_bars_does_not_flatter() -> None:
    bar = {"value": 0.02, "low": 0.01, "high": 0.03, "marks": []}
    panel = {"percent": True, "bars": [bar]}
    low, high = _limits([panel], 1)
    assert low == 0 and high > 10
    low, _ = _limits([{**panel, "bars": [{**bar, "low": -0.2}]}], 1)
    assert low < -20

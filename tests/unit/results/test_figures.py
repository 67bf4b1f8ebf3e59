"""Figures and tables from small inputs whose numbers can be worked out by hand."""

import csv
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import FILES, evaluation, preflight_probe, refused_figure, run, wordy

from opd.core import tables
from opd.core.errors import UserError
from opd.evaluation.reader import Reader, read_answers, read_metrics
from opd.evaluation.schemas import SCORES
from opd.losses.schemas import METRICS
from opd.results.figures import run_figure
from opd.results.labels import label_of
from opd.results.tables import run_table


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A student (0.3 macro), a teacher (0.9), and two seeds of a distilled student."""
    return {
        "student": evaluation(tmp_path / "student", {"easy": [2, 1, 3, 2], "hard": [0, 1, 0, 1]}),
        "teacher": evaluation(tmp_path / "teacher", {"easy": [4] * 4, "hard": [4, 4, 3, 2]}),
        "s0": evaluation(tmp_path / "s0", {"easy": [4, 3, 4, 3], "hard": [2, 2, 1, 1]}),
        "s1": evaluation(tmp_path / "s1", {"easy": [4, 4, 4, 4], "hard": [2, 2, 2, 2]}),
        "r0": run(tmp_path / "r0", overlap_ratio={0: 0.6, 1: 0.7, 2: 0.9}, kl_nats={0: 1, 2: 0.1}),
        "r1": run(tmp_path / "r1", overlap_ratio={0: 0.8, 2: 1.0}, kl_nats={0: 3, 2: 0.3}),
    }


ROWS = [
    {"label": "student", "evaluations": ["student"]},
    {
        "label": "distilled",
        "evaluations": ["s0", "s1"],
        "base": ["student"],
        "teacher": ["teacher"],
        "run": ["r0", "r1"],
    },
]


def table(tmp_path: Path, inputs: dict[str, Path], columns: list[Any]) -> tuple[Any, ...]:
    out = tmp_path / "table"
    out.mkdir()
    numbers = run_table({"title": "T", "columns": columns, "rows": ROWS}, inputs, out)
    with (out / "table.csv").open() as file:
        return numbers, list(csv.DictReader(file)), (out / "table.md").read_text()


def test_what_was_said_beforehand_stands_beside_what_came(tmp_path: Path, inputs) -> None:
    made = {
        "p0": preflight_probe(tmp_path / "p0", "likely to help", 0.75, [0.625, 0.875]),
        "p1": preflight_probe(tmp_path / "p1", "unclear", 0.625, [0.5, 0.75]),
        "none": preflight_probe(tmp_path / "none", "unclear", None, []),
    }
    rows = [
        {
            "label": "both",
            "probe": ["p0", "p1"],
            "evaluations": ["s0", "s1"],
            "base": ["student"],
        },
        {"label": "one", "probe": ["none"]},
    ]
    out = tmp_path / "table"
    out.mkdir()
    columns = ["outlook", "probe:auroc", "change"]
    numbers = run_table({"columns": columns, "rows": rows}, inputs | made, out)
    assert numbers["both"]["outlook"] == "likely to help (1), unclear (1)"
    assert numbers["one"]["outlook"] == "unclear"
    # Means of the seeds' values. Variance over prompts 0.0156, over seeds 0.0039: 25 degrees of
    # freedom, for which Student's t is 2.06.
    assert numbers["both"]["probe_auroc"] == pytest.approx(0.6875)
    low, high = (numbers["both"][f"probe_auroc_{end}"] for end in ("low", "high"))
    assert (low, high) == pytest.approx((0.6875 - 0.288, 0.6875 + 0.288), abs=0.01)
    assert numbers["one"]["probe_auroc"] is None
    assert numbers["both"]["change"] == pytest.approx((0.9375 + 0.4375) / 2 - 0.3125)
    text = (out / "table.md").read_text()
    assert "| one | unclear | – | – |" in text
    assert "a probe's values are from 1,000 bootstrap draws of seeds and prompts." in text
    with (out / "table.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["outlook"] == numbers["both"]["outlook"]
    used = [part.partition("=")[0] for part in first["digests"].split()]
    files = ("draws.parquet", "preflight.json", "probe.json")
    assert used[:2] == ["evaluations:s0/scores.parquet", "evaluations:s1/scores.parquet"]
    assert used[3:] == [f"probe:{name}/{file}" for name in ("p0", "p1") for file in files]


def test_scores_by_hand(tmp_path: Path, inputs: dict[str, Path]) -> None:
    numbers, raw, text = table(tmp_path, inputs, ["avg", "avg:easy", "change", "recovery"])
    # Student: easy 8/16, hard 2/16. Distilled: easy 14/16 and 16/16, hard 6/16 and 8/16.
    # Teacher: easy 16/16, hard 13/16.
    student, distilled, teacher = (0.5 + 0.125) / 2, (0.9375 + 0.4375) / 2, (1 + 0.8125) / 2
    assert numbers["student"]["avg"] == pytest.approx(student)
    assert numbers["distilled"]["avg"] == pytest.approx(distilled)
    assert numbers["distilled"]["avg_easy"] == pytest.approx(0.9375)
    assert numbers["distilled"]["change"] == pytest.approx(distilled - student)
    share = (distilled - student) / (teacher - student)
    assert numbers["distilled"]["recovery"] == pytest.approx(share, abs=1e-6)
    assert numbers["student"]["change"] is None
    assert float(raw[1]["change"]) == pytest.approx(0.375)
    assert raw[0]["recovery"] == raw[0]["change_low"] == ""
    assert float(raw[1]["avg_low"]) < distilled < float(raw[1]["avg_high"])
    assert "| student | 31.2 [" in text and "| – | – |" in text
    assert "+37.5 [+" in text
    assert "Seeds: 1 or 2; intervals are as wide" in text and "easy 4 × 4, hard 4 × 4" in text
    assert text.startswith("**T**\n\n|  | avg@4 (%) | avg@4 (%), easy | change (points) |")


def test_a_share_of_no_gap_is_said_to_be_none(tmp_path: Path, inputs: dict[str, Path]) -> None:
    row = {**ROWS[1], "teacher": ["student"]}
    cfg = {"columns": ["change", "recovery"], "rows": [ROWS[1], row | {"label": "none"}]}
    numbers = run_table(cfg, inputs, tmp_path)
    ends = ("recovery", "recovery_low", "recovery_high")
    assert [numbers["none"][end] for end in ends] == [None] * 3
    assert all(numbers["distilled"][end] is not None for end in ends)
    text = (tmp_path / "table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| none |"))
    assert line.endswith(" | no gap |") and "no gap: base and teacher cannot be told apart" in text
    run_table({**cfg, "rows": ROWS}, inputs, tmp_path)
    assert "no gap" not in (tmp_path / "table.md").read_text()


def test_other_columns_by_hand(tmp_path: Path, inputs: dict[str, Path]) -> None:
    columns = [
        "tokens",
        "truncated",
        "answered:hard",
        "first:kl_nats",
        "last:kl_nats",
        {"column": "course:overlap_ratio", "label": "overlap"},
    ]
    numbers, raw, text = table(tmp_path, inputs, columns)
    assert numbers["student"]["tokens"] == 11.5
    assert numbers["student"]["truncated"] == 0.25
    assert numbers["distilled"]["answered_hard"] == pytest.approx(14 / 32)
    assert numbers["distilled"]["first_kl_nats"] == 2
    assert numbers["distilled"]["last_kl_nats"] == pytest.approx(0.2)
    assert float(raw[1]["course_overlap_ratio_first"]) == pytest.approx(0.7)
    assert float(raw[1]["course_overlap_ratio_last"]) == pytest.approx(0.95)
    assert raw[0]["last_kl_nats"] == ""
    assert "| overlap |" in text and "| 0.700 → 0.950 |" in text and "| 2.00 | 0.200 |" in text
    assert "KL(student ‖ teacher) (nats), last step" in text


def test_a_row_names_the_digests_of_what_it_came_from(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    _, raw, _ = table(tmp_path, inputs, ["avg", "change", "last:kl_nats"])
    for name in ("evaluations:s0/scores", "base:student/scores", "run:r1/metrics"):
        name += ".parquet"
        folder, _, file = name.partition(":")[2].partition("/")
        content = (inputs[folder] / file).read_bytes()
        assert f"{name}={hashlib.sha256(content).hexdigest()[:12]}" in raw[1]["digests"]
    assert "base" not in raw[0]["digests"]
    assert [row["seeds"] for row in raw] == ["1", "2"]


def test_one_seed_is_said(tmp_path: Path, inputs: dict[str, Path]) -> None:
    cfg = {"columns": ["avg"], "rows": ROWS[:1]}
    run_table(cfg, inputs, tmp_path)
    assert "One seed:" in (tmp_path / "table.md").read_text()


def test_rows_of_one_label_are_told_apart_by_their_place(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    rows = [{"label": "x", "evaluations": [name]} for name in ("student", "teacher")]
    cfg = {"columns": ["tokens"], "rows": [rows[0], {**ROWS[0], "label": "y"}, rows[1]]}
    assert [*run_table(cfg, inputs, tmp_path)] == ["1: x", "y", "3: x"]
    with (tmp_path / "table.csv").open() as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["x", "y", "x"]


def test_a_label_cannot_break_the_table(tmp_path: Path, inputs: dict[str, Path]) -> None:
    run_table({"columns": ["avg"], "rows": [{**ROWS[0], "label": "a|b"}]}, inputs, tmp_path)
    assert "| a\\|b | 31.2" in (tmp_path / "table.md").read_text()


def test_answers_do_not_depend_on_the_order_of_samples(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"easy": [2, 1, 3]})
    rows = tables.read(one / "scores.parquet", SCORES).to_pylist()
    random.Random(0).shuffle(rows)
    two = tmp_path / "two"
    two.mkdir()
    tables.write(two / "scores.parquet", rows, SCORES)
    found = read_answers(two)["easy"]
    by_problem = dict(zip(found.problems, found.correct.sum(axis=1), strict=True))
    assert by_problem == {"easy-0": 2, "easy-1": 1, "easy-2": 3}
    # Two evaluations compare by problem, not by place in the file.
    reader = Reader({"one": one, "two": two})
    paired = [reader.evaluations([name], "here").scores("easy")[0] for name in ("one", "two")]
    np.testing.assert_array_equal(paired[0].sum(-1), paired[1].sum(-1))


def test_seeds_that_logged_other_steps_are_aligned(inputs: dict[str, Path]) -> None:
    steps, values = Reader(inputs).metric(["r0", "r1"], "overlap_ratio", "here")
    assert steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(values, [[0.6, 0.7, 0.9], [0.8, np.nan, 1.0]])


CURVES = [{"name": "overlap_ratio", "label": "overlap ratio (top-4)"}, {"name": "kl_nats"}]
SERIES = [{"label": "one", "runs": ["r0"]}, {"label": "two seeds", "runs": ["r0", "r1"]}]
BARS = [
    {"label": "student", "evaluations": ["student"], "group": "before"},
    {"label": "distilled", "evaluations": ["s0", "s1"], "group": "after"},
]
FIGURES: dict[str, dict[str, Any]] = {
    "curves": {"kind": "curves", "title": "T", "metrics": CURVES, "series": SERIES},
    "log": {
        "kind": "curves",
        "title": None,
        "metrics": [{"name": "kl_nats", "log": True}],
        "series": SERIES,
    },
    "grid": {
        "kind": "grid",
        "title": "T",
        "metrics": CURVES,
        "panels": [{"title": "a", "series": SERIES}, {"title": "b", "series": SERIES[:1]}],
    },
    "bars": {"kind": "bars", "title": "T", "benchmarks": ["macro", "hard"], "series": BARS},
}


# Curves and bars as such are held to the same in test_paper_figures.
@pytest.mark.parametrize("name", ["log", "grid"])
def test_same_inputs_same_bytes(tmp_path: Path, inputs: dict[str, Path], name: str) -> None:
    made = []
    for folder in ("first", "second"):
        out = tmp_path / folder
        out.mkdir()
        run_figure(FIGURES[name], inputs, out)
        made.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert list(made[0]) == FILES
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["log", "grid"])
def test_nothing_reaches_over_the_edge(tmp_path: Path, inputs: dict[str, Path], name: str) -> None:
    from matplotlib.image import imread

    run_figure(wordy(FIGURES[name]), inputs, tmp_path)
    image = imread(tmp_path / "figure.png")[..., :3]
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert edge.min() == 1, "something is cut off at the edge"
    assert image.shape[1] == 7 * 160


def test_values_are_where_they_are_drawn(tmp_path: Path, inputs: dict[str, Path]) -> None:
    """What a reader may point at: in the picture there is ink, at distances as those of the
    numbers."""
    from matplotlib.image import imread

    run_figure(FIGURES["curves"], inputs, tmp_path)
    image = imread(tmp_path / "figure.png")[..., :3]
    spots = json.loads((tmp_path / "spots.json").read_text())
    height, width = image.shape[:2]
    places = {}
    for spot in spots:
        x, y = spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2
        assert image[round(y * height), round(x * width)].min() < 0.9, spot
        places[spot["text"]] = (x, y)
    # Overlap of the first run: 0.6, 0.7 and 0.9 at steps 0, 1 and 2.
    (x0, y0), (x1, y1), (x2, y2) = (
        places[f"one: {text}"] for text in ("0.600 at 0", "0.700 at 1", "0.900 at 2")
    )
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 2, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 3, abs=0.01)
    run_figure(FIGURES["bars"], inputs, tmp_path)
    spots = json.loads((tmp_path / "spots.json").read_text())
    assert any(re.fullmatch(r"distilled: 43\.8 \[[\d.]+, [\d.]+\]", s["text"]) for s in spots)


def test_a_figure_returns_what_it_shows(tmp_path: Path, inputs: dict[str, Path]) -> None:
    shown = run_figure(FIGURES["curves"], inputs, tmp_path)
    assert shown["two seeds"] == {"overlap_ratio": 0.95, "kl_nats": 0.2}
    shown = run_figure(FIGURES["grid"], inputs, tmp_path)
    assert shown["b"] == {"one": {"overlap_ratio": 0.9, "kl_nats": 0.1}}
    shown = run_figure(FIGURES["bars"], inputs, tmp_path)
    mean, low, high = shown["distilled"]["avg:hard"]
    assert mean == 0.4375 and 0 <= low < mean < high <= 1


def test_labels_carry_units() -> None:
    assert label_of("entropy_gap_nats") == "entropy gap (nats)"
    assert label_of("response_tokens") == "response (tokens)"
    assert label_of("overlap_ratio") == "overlap ratio"
    assert label_of("tokens") == "tokens"


def without(cfg: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**cfg, **change}


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (without(FIGURES["bars"], kind="pie"), "no kind of figure 'pie'; there are curves"),
        (
            without(FIGURES["bars"], benchmarks=["AIME"]),
            "student: no benchmark 'AIME'; there are easy, hard",
        ),
        (
            without(FIGURES["curves"], metrics=[{"name": "entropy"}]),
            "one: 'r0' did not log 'entropy'; it logged kl_nats, overlap_ratio",
        ),
        (
            without(FIGURES["curves"], series=[{"label": "x", "runs": ["r9"]}]),
            "x: no input 'r9'; inputs are student",
        ),
        (
            without(FIGURES["curves"], series=[{"label": "x", "runs": []}]),
            "series: there is no training run of x; name what is measured",
        ),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, inputs: dict[str, Path], cfg: dict[str, Any], message: str
) -> None:
    assert message in refused_figure(cfg, inputs, tmp_path / "out")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["average"], "no column 'average'; did you mean 'avg'?"),
        (["nll"], "no column 'nll'; there are avg, change"),
        (
            ["probe"],
            "column 'probe' names no value; write probe:VALUE",
        ),
        (["outlook:auroc"], "column 'outlook:auroc' names a value; write outlook"),
        (["last"], "column 'last' names no metric; write last:METRIC"),
        (["avg:AIME"], "student: no benchmark 'AIME'"),
    ],
)
def test_columns_that_do_not_exist(
    tmp_path: Path, inputs: dict[str, Path], columns: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        table(tmp_path, inputs, columns)
    assert message in str(caught.value)
    assert list((tmp_path / "table").iterdir()) == []


def test_evaluations_that_do_not_compare(tmp_path: Path, inputs: dict[str, Path]) -> None:
    other = {"easy": [2, 1, 3, 2], "hard": [0, 1, 0]}
    fewer = {
        "problems": evaluation(tmp_path / "a", other),
        "samples": evaluation(tmp_path / "b", {"easy": [1] * 4, "hard": [1] * 4}, samples=2),
        "benchmark": evaluation(tmp_path / "c", {"easy": [2, 1, 3, 2]}),
    }
    for name, path in fewer.items():
        rows = [{"label": "a", "evaluations": ["student"]}, {"label": "b", "evaluations": [name]}]
        with pytest.raises(UserError, match=rf"b: '{name}' has other problems or samples of"):
            run_table({"columns": ["avg"], "rows": rows}, {**inputs, name: path}, tmp_path)


def test_sides_with_different_numbers_of_seeds(tmp_path: Path, inputs: dict[str, Path]) -> None:
    row = {
        "label": "a",
        "evaluations": ["s0", "s1"],
        "base": ["student", "teacher", "s0"],
    }
    with pytest.raises(UserError, match="a, base: 3 seeds where others have 2"):
        run_table({"columns": ["change"], "rows": [row]}, inputs, tmp_path)


def test_an_incomplete_evaluation_is_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", {"easy": [2, 1]})
    whole = tables.read(folder / "scores.parquet", SCORES)
    tables.write(folder / "scores.parquet", whole.slice(0, 7), SCORES)
    with pytest.raises(UserError, match=r"samples .0, 1, 2. of problem 'easy-1', not 0 to 3"):
        read_answers(folder)
    tables.write(folder / "scores.parquet", [], SCORES)
    with pytest.raises(UserError, match="no rows"):
        read_answers(folder)


def test_a_step_logged_twice_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    rows = [{"step": 1, "name": "loss", "value": value} for value in (1.0, 2.0)]
    tables.write(folder / "metrics.parquet", rows, METRICS)
    with pytest.raises(UserError, match="'loss' is logged twice"):
        read_metrics(folder)


def test_a_metric_that_is_never_a_number_leaves_its_panel_empty(tmp_path: Path) -> None:
    path = run(tmp_path / "r", loss={0: 1.0, 1: 0.5}, advantage={0: np.nan, 1: np.nan})
    cfg = {
        "kind": "curves",
        "title": None,
        "metrics": [{"name": "advantage"}, {"name": "loss"}],
        "series": [{"label": "a", "runs": ["r"]}],
    }
    assert run_figure(cfg, {"r": path}, tmp_path) == {"a": {"advantage": None, "loss": 0.5}}
    rows = [{"label": "a", "run": ["r"]}]
    columns = ["last:advantage", "last:loss"]
    numbers = run_table({"columns": columns, "rows": rows}, {"r": path}, tmp_path)
    assert numbers == {"a": {"last_advantage": None, "last_loss": 0.5}}


def test_a_figure_and_its_pictures_name_the_files_that_were_read(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    run_figure(FIGURES["curves"], inputs, tmp_path)
    sources = json.loads((tmp_path / "figure.json").read_text())["sources"]
    expected = [
        f"{name}/metrics.parquet="
        + hashlib.sha256((inputs[name] / "metrics.parquet").read_bytes()).hexdigest()[:12]
        for name in ("r0", "r1")
    ]
    assert sources == expected
    for picture in ("figure.svg", "figure.png"):
        assert " ".join(expected).encode() in (tmp_path / picture).read_bytes()


def test_a_run_that_logged_nothing_leaves_its_place_empty(tmp_path: Path) -> None:
    """As one that was adopted; beside it stands one that logged what is shown."""
    given = {"a": run(tmp_path / "a"), "b": run(tmp_path / "b", loss={0: 1.0, 1: 0.5})}
    series = [{"label": name, "runs": [name]} for name in given]
    cfg = {"kind": "curves", "title": None, "metrics": [{"name": "loss"}], "series": series}
    assert run_figure(cfg, given, tmp_path) == {"a": {"loss": None}, "b": {"loss": 0.5}}
    rows = [{"label": name, "run": [name]} for name in given]
    numbers = run_table({"columns": ["last:loss"], "rows": rows}, given, tmp_path)
    assert numbers == {"a": {"last_loss": None}, "b": {"last_loss": 0.5}}
    assert "| a | – |" in (tmp_path / "table.md").read_text()
    with pytest.raises(UserError, match="a: 'a' did not log 'entropy'; it logged nothing"):
        run_table({"columns": ["last:entropy"], "rows": rows}, given, tmp_path)


def test_a_metric_that_never_had_a_value_is_a_curve_without_points(tmp_path: Path) -> None:
    """As the log-ratio of repeated tokens where nothing was ever repeated."""
    never, once = "log_ratio_repeated_nats", "kl_nats"
    given = {
        "a0": run(tmp_path / "a0", loss={0: 1.0}),
        "a1": run(tmp_path / "a1", loss={0: 3.0}, kl_nats={0: 0.5}),
        "b0": run(tmp_path / "b0", loss={0: 2.0}),
    }
    series = [{"label": "a", "runs": ["a0", "a1"]}, {"label": "b", "runs": ["b0"]}]
    metrics = [{"name": name} for name in ("loss", never, once)]
    cfg = {"kind": "curves", "title": None, "metrics": metrics, "series": series}
    run_figure(cfg, given, tmp_path)
    panels = json.loads((tmp_path / "figure.json").read_text())["panels"]
    points = {panel["metric"]: [line["y"] for line in panel["lines"]] for panel in panels}
    assert points == {"loss": [[2.0], [2.0]], never: [[], []], once: [[0.5], []]}
    caption = (tmp_path / "caption.md").read_text()
    assert f"Without a value: {never}, a; {never}, b; {once}, b." in caption

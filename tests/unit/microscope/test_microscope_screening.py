"""Demonstrations and screening: what is kept, within how many trials, and pass rates by bin."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import microscopy
from microscopy import SETTINGS
from probing import Inputs

from opd.core import tables
from opd.core.files import read_json
from opd.microscope import demonstrations, schemas, screening
from opd.microscope.demonstrations import rounds
from opd.microscope.screening import available, bin_of


def test_rounds_double_and_end_at_the_trials() -> None:
    assert [len(one) for one in rounds(60)] == [4, 8, 16, 32]
    assert [*rounds(60)][-1].stop == 60
    assert [(one.start, one.stop) for one in rounds(10)] == [(0, 4), (4, 10)]


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1.0, "easy"), (0.8, "easy"), (0.79, "medium"), (0.25, "medium"), (0.249, "hard"),
        (1 / 32, "hard"), (0.0, "extremely hard"),
    ],
)  # fmt: skip
def test_bins(rate: float, expected: str) -> None:
    assert bin_of(rate) == expected


def test_a_kept_question_has_a_correct_one_from_every_source() -> None:
    own = {
        "a": {True: ["x"], False: []},
        "b": {True: ["x"], False: []},
        "c": {True: [], False: ["x"]},
    }
    other = {"a": {True: ["x"], False: []}, "c": {True: ["x"], False: []}}
    assert available({"own": own, "other": other}) == {"a"}
    assert available({"own": own}) == {"a", "b"}


def test_values_on_fixture_data() -> None:
    """Four questions of eight samples; one extremely hard, one without a demonstration."""
    rates = {
        "baseline": {"a": 8, "b": 4, "c": 1, "d": 0, "e": 6},
        "self_1c": {"a": 8, "b": 8, "c": 6},
    }
    bins = {id: bin_of(n / 8) for id, n in rates["baseline"].items()}
    assert bins == {"a": "easy", "b": "medium", "c": "hard", "d": "extremely hard", "e": "medium"}
    found = screening.summarise(rates, bins, {"a", "b", "c", "e"}, 8)
    value = {name: one.value for name, one in found.items()}
    assert value["accuracy_baseline_ratio"] == pytest.approx((8 + 4 + 1 + 6) / 32)
    # A question that could not be asked with the context does not count there.
    assert value["accuracy_self_1c_ratio"] == pytest.approx(22 / 24)
    assert value["change_self_1c"] == pytest.approx((0 + 4 + 5) / 24)
    assert value["accuracy_baseline_medium_ratio"] == pytest.approx(10 / 16)
    assert value["accuracy_self_1c_hard_ratio"] == pytest.approx(6 / 8)
    counts = {name: value[f"questions_{name}"] for name in screening.BINS}
    assert counts == {"easy": 1, "medium": 2, "hard": 1} and value["questions"] == 4


def test_contexts_are_compared_over_questions_that_were_asked_in_both() -> None:
    """A wrong response changes nothing where there is one; an easy question has none."""
    passes = {
        "baseline": {"a": 8, "b": 4, "c": 2},
        "self_1c": {"a": 8, "b": 6, "c": 4},
        "self_1c1w": {"b": 6, "c": 4},
        "other": {"a": 7, "c": 2},
    }
    bins = {"a": "easy", "b": "medium", "c": "medium"}
    found = screening.summarise(passes, bins, {"a", "b", "c"}, 8)
    value = {name: one.value for name, one in found.items()}
    change = value["accuracy_self_1c1w_ratio"] - value["accuracy_self_1c_ratio"]
    assert change == pytest.approx(10 / 16 - 18 / 24)
    same = found["change_self_1c1w_from_self_1c"]
    assert same.value == 0 and same.n == 2
    assert same.draws is not None and not same.draws.any()
    assert value["change_other_from_self_1c"] == pytest.approx((-1 - 2) / 16)
    assert value["change_other_from_self_1c1w"] == pytest.approx(-2 / 8)


@pytest.fixture(scope="module")
def inputs(pointed: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    # The second has no right answer.
    prompts = microscopy.questions(tmp_path_factory.mktemp("screening") / "prompts", "1x34")
    return {"model": pointed["student"], "prompts": prompts}


def demonstrated(inputs: Inputs, root: Path, **more: Any) -> Path:
    cfg = {**SETTINGS, "temperature": 0.7, "correct": 2, "wrong": 1, "trials": 20, **more}
    out = root / "demonstrations"
    out.mkdir(parents=True)
    demonstrations.run(cfg, inputs, out, root / "cache")
    return out


def test_demonstrations_are_verified_and_what_lacks_is_said(inputs: Inputs, tmp_path: Path) -> None:
    out = demonstrated(inputs, tmp_path)
    rows = tables.read(out / "demonstrations.parquet", schemas.DEMONSTRATIONS).to_pylist()
    answers = {"q1": "1", "q2": "x", "q3": "3", "q4": "4"}
    for row in rows:
        assert row["text"].endswith(f"#{answers[row['prompt_id']]}") == row["correct"]
    trials = {
        row["prompt_id"]: row
        for row in tables.read(out / "trials.parquet", schemas.TRIALS).to_pylist()
    }
    assert trials["q2"]["trials"] == 20 and trials["q2"]["correct"] == 0
    assert trials["q2"]["reason"] == "0 of 2 correct responses after 20 trials"
    for id in ("q1", "q3", "q4"):
        assert trials[id]["trials"] <= 20 and trials[id]["reason"] is None
        assert (trials[id]["correct"], trials[id]["wrong"]) == (2, 1)
    # Another seed of the same question is another response: places are in order of trials.
    first = [row["trial"] for row in rows if row["prompt_id"] == "q1" and row["correct"]]
    assert first == sorted(first)
    found = demonstrations.read(out)
    assert len(found["q1"][True]) == 2 and len(found["q1"][False]) == 1


def test_never_more_trials_than_allowed(inputs: Inputs, tmp_path: Path) -> None:
    out = demonstrated(inputs, tmp_path, correct=60, wrong=60, trials=6)
    rows = tables.read(out / "trials.parquet", schemas.TRIALS).to_pylist()
    assert {row["trials"] for row in rows} == {6}
    assert all(row["correct"] + row["wrong"] <= 6 for row in rows)


def test_summaries_go_by_another_model(inputs: Inputs, tmp_path: Path) -> None:
    """The hook: each demonstration is put to the model, what it says takes its place."""
    made = demonstrated(inputs, tmp_path)
    out = tmp_path / "summaries"
    out.mkdir()
    # This model answers any question so, whatever else it reads.
    cfg = {**SETTINGS, "template": "{question}?{response}"}
    numbers = demonstrations.run_summaries(
        cfg, {**inputs, "demonstrations": made}, out, tmp_path / "cache"
    )
    rows = tables.read(out / "demonstrations.parquet", schemas.DEMONSTRATIONS).to_pylist()
    before = tables.read(made / "demonstrations.parquet", schemas.DEMONSTRATIONS).to_pylist()
    assert numbers["summaries"] + numbers["left out"] == len(before) and len(rows) > 0
    for kind in (True, False):
        for id in ("q1", "q3", "q4"):
            places = [r["place"] for r in rows if (r["prompt_id"], r["correct"]) == (id, kind)]
            assert places == list(range(len(places)))


def test_screening_of_the_models(inputs: Inputs, tmp_path: Path) -> None:
    made = demonstrated(inputs, tmp_path)
    out = tmp_path / "screening"
    out.mkdir()
    cfg = {
        **SETTINGS,
        "samples": 32,
        "max_prompt_tokens": 400,
        "sources": [{"name": "own", "source": "own"}],
        "contexts": [
            {"name": "self_1c", "source": "own", "correct": 1, "wrong": 0},
            {"name": "self_1c1w", "source": "own", "correct": 1, "wrong": 1},
            # More than there are: nobody can be asked so.
            {"name": "self_3c", "source": "own", "correct": 3, "wrong": 0},
        ],
    }
    given = {"student": inputs["model"], "prompts": inputs["prompts"], "demos:own": made}
    screening.run(cfg, given, out, tmp_path / "cache")
    rows = tables.read(out / "screening.parquet", schemas.SCREENING).to_pylist()
    base = {row["prompt_id"]: row for row in rows if row["context"] == "baseline"}
    assert base["q2"]["passes"] == 0 and base["q2"]["bin"] == "extremely hard"
    # 0.4 x 0.9 + 0.3 x 0.5 + 0.3 x 0.1, of 32
    assert all(8 <= base[id]["passes"] <= 26 for id in ("q1", "q3", "q4"))
    assert screening.kept_questions(out) == {"q1", "q3", "q4"}
    asked = {row["prompt_id"] for row in rows if row["context"] == "self_1c"}
    assert asked == {"q1", "q3", "q4"}
    values = read_json(out / "probe.json")["values"]
    assert values["with_own"]["value"] == 3 and values["with_every_source"]["value"] == 3
    assert values["questions"]["value"] == 3
    assert values["accuracy_self_3c_ratio"]["value"] is None

"""Artifacts are found where they lie, also in a folder that was copied or renamed."""

import json
from pathlib import Path

from results import Results, sample

from opd.core.files import content, digest
from opd.stages import on_disk
from opd.stages.artifact import sources_first
from opd.stages.records import write_json


def test_sources_come_first_and_once():
    graph = {"d": "bc", "b": "a", "c": "ab", "a": ""}
    assert "".join(sources_first("d", lambda node: graph[node])) == "abcd"
    assert "".join(sources_first("bd", lambda node: graph[node])) == "abcd"


def test_recorded_paths_are_found_in_a_renamed_copy(tmp_path: Path):
    results = sample(tmp_path)
    moved = tmp_path / "sent" / "theirs"
    moved.parent.mkdir()
    results.root.rename(moved)
    one = on_disk.Made(moved, "tables/headline")
    ((name, _, place),) = one.inputs
    folder = "evaluations/held-out/small-from-large/s0"
    assert (name, place) == ("e", moved / folder / "digest.json")
    behind = [x.folder for x in on_disk.behind([one])]
    assert behind[-2:] == [folder, "tables/headline"]
    assert set(behind) == {
        *("prompts/rl", "models/small/s0", "models/small-from-large/s0", folder, "tables/headline")
    }


def test_a_model_of_other_results_is_no_model_of_one_s_own(tmp_path: Path, monkeypatch):
    """By the same name: both have trained a ``small``."""
    monkeypatch.chdir(tmp_path)
    mine, theirs = Results(tmp_path, "mine"), Results(tmp_path, "theirs")
    for results, weights in ((mine, "a"), (theirs, "b")):
        results.add("sft", "models/small/s0", {"model.safetensors": weights})
    payload = "results/theirs/models/small/s0/payload"
    used = {"path": payload, "identity": "", "outputs": digest(content(tmp_path / payload))}
    mine.add("fetch", "models/other", {"model.safetensors": "b"})
    record = mine.root / "models/other/manifest.json"
    write_json(record, {**json.loads(record.read_text()), "inputs": {"data": used}}, "x")
    ((name, _, place),) = on_disk.Made(mine.root, "models/other").inputs
    assert (name, place) == ("data", tmp_path / payload)
    # Also not where they were left behind, as in a copy.
    theirs.root.rename(tmp_path / "elsewhere")
    ((_, _, place),) = on_disk.Made(mine.root, "models/other").inputs
    assert place is None


def test_a_model_may_be_called_results():
    assert on_disk.below("results/mini/models/results/s0/digest.json") == (
        "models/results/s0/digest.json"
    )
    assert on_disk.below("/home/results/project/results/mini/models/m/s0") == "models/m/s0"
    assert on_disk.below("data/rows.jsonl") == "data/rows.jsonl"

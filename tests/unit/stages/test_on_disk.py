"""Artifacts are found where they lie, also in a folder that was copied or renamed."""

from pathlib import Path

from results import sample

from opd.stages import on_disk
from opd.stages.artifact import sources_first


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

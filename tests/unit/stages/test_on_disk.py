"""Artifacts are found where they lie, also in a folder that was copied or renamed."""

from pathlib import Path

import pytest
from results import sample

from opd.core.errors import UserError
from opd.stages import on_disk
from opd.stages.artifact import sources_first


def test_sources_come_first_and_once():
    graph = {"d": "bc", "b": "a", "c": "ab", "a": ""}
    assert "".join(sources_first("d", lambda node: graph[node])) == "abcd"
    assert "".join(sources_first("bd", lambda node: graph[node])) == "abcd"


def test_an_artifact_is_found_by_its_folder_a_file_a_copy_and_the_end_of_its_name(tmp_path: Path):
    results = sample(tmp_path)
    root = results.root
    expected = {
        "tables/headline": "tables/headline",
        "tables/headline.csv": "tables/headline",
        "figures/a_paper/fig06.svg": "figures/a_paper/fig06",
        "models/small/s0/payload/w": "models/small/s0",
        "models/small/s0/digest.json": "models/small/s0",
        "small/s0": "models/small/s0",
        "E11.success/s0": "probes/E11.success/s0",
        # A model goes before what was made from it.
        "small-from-large/s0": "models/small-from-large/s0",
    }
    for given, folder in expected.items():
        assert on_disk.locate(root / given).folder == folder, given
        assert on_disk.locate(root / given).root == root
    with pytest.raises(UserError, match="no artifact is there"):
        on_disk.locate(root / "models/none/s0")
    with pytest.raises(UserError, match=r"it may be .*fig06"):
        results.add("figure", "figures/b_paper/fig06", {"figure.svg": "x"})
        on_disk.locate(root / "fig06")


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

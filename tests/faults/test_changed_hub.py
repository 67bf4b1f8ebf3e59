"""A hub that is not to be relied on: other files at the same revision, and damage on the way."""

import json

import pytest
from stages import Run, mended, only_error

pytestmark = pytest.mark.faults

FILES = {
    "models/hub": "models/a/model/model.safetensors",
    "datasets/hub": "datasets/a/data/test.jsonl",
    "prompts/hub": "datasets/a/data/test.jsonl",
}


@pytest.mark.parametrize("name", FILES)
def test_an_object_that_changes_under_its_revision(run: Run, name: str, tried) -> None:
    digests, files = run.digests(), run.files()
    path = run.hub / FILES[name]
    before = path.read_bytes()
    # Another test's copy looks at the same hub.
    run.hub = run.folder / "hub"
    changed = run.hub / FILES[name]
    changed.parent.mkdir(parents=True)
    for file in path.parent.iterdir():
        (changed.parent / file.name).write_bytes(file.read_bytes())
    changed.write_bytes(before.replace(b"1", b"7"))
    lost = max((run.results / name / "payload").iterdir(), key=lambda p: p.stat().st_size)
    lost.unlink()
    (run.results / name / "digest.json").unlink()
    ended = run.make(name)
    assert ended.status == 2
    said = only_error(ended)
    assert f"the hub has another {lost.name} at 0123456789abcdef" in said
    assert "to accept" in said or "if the new one is right, remove" in said
    assert not (run.results / name / "digest.json").exists()
    changed.write_bytes(before)
    mended(run, name, digests, files)
    tried("a hub object that changes under its revision", name)


def test_a_download_that_is_damaged_on_the_way(run: Run, tried) -> None:
    """The hub lists one content and hands out another."""
    digests, files, name = run.digests(), run.files(), "models/hub"
    for file, data in {
        "model.safetensors": b"other",
        "config.json": json.dumps({}).encode(),
    }.items():
        run.forget(name)
        ended = run.make(name, damaged={file: data.decode()})
        assert ended.status == 2
        assert f"{file} is not the file that the hub lists at 0123456789abcdef" in only_error(ended)
        mended(run, name, digests, files)
        tried("a download that is damaged", file)

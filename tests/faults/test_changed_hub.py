"""A hub that is not to be relied on: other files at the same revision, and damage on the way."""

import json
import shutil

import pytest
from stages import Run, mended, only_error

pytestmark = pytest.mark.faults

MODEL, DATA = "models/a/model/model.safetensors", "datasets/a/data/test.jsonl"


@pytest.mark.parametrize(
    ("name", "file", "theirs"),
    [
        ("models/hub", "model.safetensors", MODEL),
        ("datasets/hub", "test.parquet", DATA),
        ("prompts/hub", "prompts.parquet", DATA),
    ],
)
def test_an_object_that_changes_under_its_revision(
    run: Run, name: str, file: str, theirs: str, tried
) -> None:
    digests, files = run.digests(), run.files()
    # Other tests look at the same hub.
    run.hub = shutil.copytree(run.hub, run.folder / "hub")
    changed = run.hub / theirs
    before = changed.read_bytes()
    changed.write_bytes(before.replace(b"1", b"7"))
    (run.results / name / "payload" / file).unlink()
    (run.results / name / "digest.json").unlink()
    # What has been read of it once is taken from there.
    shutil.rmtree(run.store / ".cache" / "streams", ignore_errors=True)
    ended = run.make(name)
    assert ended.status == 2
    said = only_error(ended)
    assert f"the hub has another {file} at 0123456789abcdef" in said
    assert "if the new one is right, remove" in said
    assert not (run.results / name / "digest.json").exists()
    changed.write_bytes(before)
    mended(run, name, digests, files)
    tried("a hub object that changes under its revision", run.artifacts[name].stage)


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
        tried("a file that is damaged on its way from the hub", "fetch")

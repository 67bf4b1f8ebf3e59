"""Inputs are held to their digests, and read again only where they may have changed."""

import json
import os
import time
from pathlib import Path

import pytest

from opd.core.errors import UserError
from opd.core.files import content
from opd.stages import keep, verify
from opd.stages.records import Digest

pytestmark = pytest.mark.unit


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """digest.json of an artifact with two files, made a while ago."""
    entry, folder = tmp_path / "store" / "key", tmp_path / "results" / "a"
    (entry / "part").mkdir(parents=True)
    folder.mkdir(parents=True)
    (entry / "weights").write_bytes(bytes(1000))
    (entry / "part" / "text").write_text("one")
    (folder / "payload").symlink_to(entry)
    record = folder / "digest.json"
    record.write_text(json.dumps({"identity": "key", "settings": "", "outputs": content(entry)}))
    time.sleep(verify.TICK_NS / 1e9 * 2)
    return record


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their digest."""
    found: list[str] = []
    real = verify.plain_digest

    def plain_digest(path: Path) -> str:
        found.append(path.name)
        return real(path)

    monkeypatch.setattr(verify, "plain_digest", plain_digest)
    return found


def test_files_are_read_once_and_again_when_they_were_written_to(
    record: Path, read: list[str]
) -> None:
    payload, outputs, identity = verify.artifact(record)
    assert (payload, identity) == (record.parent / "payload", "key")
    assert outputs == content(payload) and sorted(read) == ["text", "weights"]
    verify.artifact(record)
    assert len(read) == 2
    path = payload / "weights"
    before = path.stat()
    path.write_bytes(bytes(999) + b"1")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a tool may that copies
    with pytest.raises(
        UserError, match=r"payload: modified .* weights was changed; remove .*digest\.json"
    ):
        verify.artifact(record)
    path.write_bytes(bytes(1000))
    time.sleep(verify.TICK_NS / 1e9 * 2)
    verify.artifact(record)
    verify.artifact(record)
    assert read.count("text") == 1 and read.count("weights") == 3


def test_what_was_written_this_moment_is_not_remembered(record: Path, read: list[str]) -> None:
    """It may be written to once more without a change of its times."""
    path = record.parent / "payload" / "weights"
    path.write_bytes(bytes(1000))
    verify.artifact(record)
    verify.artifact(record)
    assert read.count("weights") == 2 or path.stat().st_ctime_ns < time.time_ns() - 1e8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: (p / "weights").unlink(), "weights is gone"),
        (lambda p: (p / "more").write_text(""), "more was added"),
        (lambda p: (p / "part" / "text").write_text("onf"), "part/text was changed"),
        (lambda p: os.truncate(p / "weights", 0), "weights was changed"),
    ],
)
def test_what_is_wrong_is_told(record: Path, change, said: str) -> None:
    verify.artifact(record)
    change(record.parent / "payload")
    with pytest.raises(
        UserError, match=f"modified after it was made: {said}; remove .* run snakemake"
    ):
        verify.artifact(record)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": "key"}', '{"outputs": 1}'])
def test_a_damaged_record(record: Path, text: str) -> None:
    record.write_text(text)
    with pytest.raises(
        UserError, match=r"digest\.json: damaged.*; remove .*digest\.json and run snakemake"
    ):
        verify.artifact(record)


def test_a_record_of_another_run(record: Path) -> None:
    made = json.loads(record.read_text())
    record.write_text(json.dumps(made | {"identity": "kez"}))
    with pytest.raises(UserError, match=r"digest\.json and payload are not of one run"):
        verify.artifact(record)


def test_a_copy_that_holds_the_files_themselves(record: Path, read: list[str]) -> None:
    entry = Path(os.path.realpath(record.parent / "payload"))
    (record.parent / "payload").unlink()
    entry.rename(record.parent / "payload")
    verify.artifact(record)
    verify.artifact(record)
    assert len(read) == 4  # it has no place to remember them in


@pytest.mark.parametrize("text", ["", "[]", '{"weights": 1}', '{"weights": [[1, 2, 3, 4], "0"]}'])
def test_a_damaged_memory_is_no_memory(record: Path, read: list[str], text: str) -> None:
    verify.artifact(record)
    memory = verify.memory(record.parents[2] / "store", "key")
    memory.write_text(text)
    verify.artifact(record)
    assert read.count("weights") == 2
    verify.artifact(record)
    assert read.count("weights") == 2


def test_a_memory_that_was_changed_is_not_believed(record: Path, read: list[str]) -> None:
    """One digit of a digest in it: the file is read, and the memory written anew."""
    verify.artifact(record)
    memory = verify.memory(record.parents[2] / "store", "key")
    before = memory.read_text()
    sha256 = json.loads(before)["weights"][1]
    memory.write_text(before.replace(sha256, "0" * 64))
    verify.artifact(record)
    assert read.count("weights") == 2 and memory.read_text() == before


@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "in place"])
def test_what_is_no_plain_file_in_a_plain_folder_is_not_taken(record: Path, kind: str) -> None:
    """A link to a folder would bring a chat template into a checkpoint, and no file with it."""
    payload, elsewhere = record.parent / "payload", record.parent / "elsewhere"
    verify.artifact(record)
    elsewhere.mkdir()
    path = payload / "additional_chat_templates"
    if kind == "in place":
        path = payload / "part" / "text"
        path.rename(elsewhere / "text")
        path.symlink_to(elsewhere / "text")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere if kind == "folder" else record)
    reason = "is no plain file, or cannot be read" if kind == "in place" else "was added"
    name = path.relative_to(payload)
    with pytest.raises(UserError, match=f"modified after it was made: {name} {reason}; remove"):
        verify.artifact(record)
    assert not keep.complete(payload, record, Digest)


def test_a_store_that_cannot_be_written(record: Path, read: list[str]) -> None:
    (record.parents[2] / "store" / ".cache").write_text("in the way")
    verify.artifact(record)
    verify.artifact(record)
    assert len(read) == 4


def test_plain_inputs_are_read_again_only_where_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store, read = tmp_path / "model", tmp_path / "store", []
    model.mkdir()
    for name in ("weights", "config"):
        (model / name).write_text(name)
    real = verify.file_digest
    monkeypatch.setattr(verify, "file_digest", lambda path: read.append(path.name) or real(path))
    time.sleep(verify.TICK_NS / 1e9 * 2)
    assert verify.plain(model, store) == content(model) and sorted(read) == ["config", "weights"]
    assert verify.plain(model, store) == content(model) and len(read) == 2
    # In place, at the time of before: the folder's own time stays, too.
    times = (model / "weights").stat()
    (model / "weights").write_text("others ")
    os.utime(model / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify.plain(model, store) == content(model) and read[2:] == ["weights"]
    assert verify.plain(model / "config", store) == content(model / "config")

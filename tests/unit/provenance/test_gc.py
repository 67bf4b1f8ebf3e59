"""What gc lists, what it removes, and what it leaves alone."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import pytest

from opd.cli.main import main
from opd.core.errors import UserError
from opd.provenance import gc
from opd.stages import lock, records
from opd.stages.records import Digest, Manifest

pytestmark = pytest.mark.unit


def entry(results: Path, key: str, artifact: str | None = None) -> None:
    """An entry of the store, and the artifact that links to it."""
    store = results / ".store"
    (store / key).mkdir(parents=True)
    (store / key / "weights").write_bytes(bytes(10_000))
    made = {"stage": "sft", "identity": key, "started": "2026-01-02T03:04:05Z"}
    records.write(store / f"{key}.json", Manifest(**made, cfg={}, inputs={}, outputs={}))
    (store / ".cache" / "verified").mkdir(parents=True, exist_ok=True)
    (store / ".cache" / "verified" / f"{key}.json").write_text("{}")
    if artifact:
        folder = results / artifact
        folder.mkdir(parents=True)
        records.write(folder / "digest.json", Digest(identity=key, settings="", outputs={}))
        (folder / "payload").symlink_to(os.path.relpath(store / key, folder))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two artifacts with kept steps, of which one was edited since; one stage killed, one running
    on what is not linked yet; a cache."""
    entry(tmp_path, "used", "mini/models/a/s0")
    entry(tmp_path, "other", "paper/models/b")
    entry(tmp_path, "old")
    entry(tmp_path, "busy")
    store = tmp_path / ".store"
    for key in ("used", "old"):
        (store / f"{key}.steps" / "1").mkdir(parents=True)
        (store / f"{key}.steps" / "1" / "weights").write_text("1")
    for key in ("killed", "busy"):
        (store / ".scratch" / key / "checkpoint-1").mkdir(parents=True)
    (store / ".old.json.0123.partial").write_text("{")
    (store / ".cache" / "responses").mkdir()
    (store / ".cache" / "responses" / "a.jsonl").write_text("[]\n")
    return tmp_path


def names(results: Path) -> set[str]:
    return {p.name for p in (results / ".store").iterdir()}


def test_what_nothing_links_to(results: Path) -> None:
    found = gc.find(results)
    assert {kind: set(entries) for kind, entries in found.items()} == {
        "unused": {"old", "busy"},
        "stopped": {"killed", "busy", "old"},
        "cache": {"responses", "verified"},
    }
    assert [p.name for p in found["unused"]["old"]] == ["old", "old.json", "old.steps"]


def test_listing_removes_nothing(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(results.rglob("*"))
    main(["gc", str(results)])
    said = capsys.readouterr().out
    assert sorted(results.rglob("*")) == before
    assert "unused: 2, " in said and "old  sft, 2026-01-02T03:04:05Z" in said
    assert "stopped: 3, " in said and "cache: 2, " in said


def test_only_what_is_named_goes_and_only_what_is_free(results: Path) -> None:
    kept = names(results)
    with lock.alone(results / ".store" / ".scratch" / "busy"):
        said = list(gc.lines(results, ["unused"]))
        assert "  removed 1, left 1 that are being used" in said
        assert names(results) == kept - {"old", "old.json", "old.steps"}
        scratch = {p.name for p in (results / ".store" / ".scratch").iterdir()}
        assert scratch == {"killed", "busy"}
        list(gc.lines(results, ["stopped"]))
        scratch = {p.name for p in (results / ".store" / ".scratch").iterdir()}
        assert scratch == {"busy"} and ".old.json.0123.partial" not in names(results)
        list(gc.lines(results, ["cache"]))
        assert (results / ".store" / ".cache" / "responses" / "a.jsonl").is_file()
    list(gc.lines(results, ["unused", "cache"]))
    assert "busy" not in names(results) and "used.steps" in names(results)
    assert not list((results / ".store" / ".cache").iterdir())
    # What a killed run may go on from was not asked for.
    assert (results / ".store" / ".scratch" / "busy" / "checkpoint-1").is_dir()
    assert (results / "mini/models/a/s0/payload/weights").is_file()


def test_what_is_linked_while_it_takes_the_locks_stays(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = lock.take

    def linked(scratch: Path):
        folder = results / "mini" / "late"
        folder.mkdir(exist_ok=True)
        if not (folder / "payload").is_symlink():
            (folder / "payload").symlink_to(results / ".store" / "old")
        return take(scratch)

    monkeypatch.setattr(lock, "take", linked)
    assert "  removed 1, left 1 that are being used" in list(gc.lines(results, ["unused"]))
    assert "old" in names(results) and "busy" not in names(results)


def test_an_artifact_whose_digest_is_damaged_is_told_by_its_link(results: Path) -> None:
    (results / "mini/models/a/s0/digest.json").write_text("{")
    assert "used" not in gc.find(results)["unused"]


def test_sizes_count_a_file_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(50_000))
    os.link(tmp_path / "a", tmp_path / "b")
    one = gc.size([tmp_path / "a"])
    assert 50_000 <= one <= 60_000
    assert gc.size([tmp_path / "a", tmp_path / "b"]) == one


def test_what_a_running_stage_removes_meanwhile_has_no_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "weights").write_bytes(bytes(50_000))
    lstat = Path.lstat

    def late(path: Path) -> os.stat_result:
        with suppress(FileNotFoundError):
            (tmp_path / "checkpoint-1").rename(tmp_path / "gone")
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", late)
    assert gc.size([tmp_path / "checkpoint-1"]) == 0


def test_a_folder_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no store in it; name the folder that has \.store"
    ):
        gc.find(tmp_path)
    (tmp_path / ".store").mkdir()
    with pytest.raises(UserError, match=r"there is no store in it; it is in .*: name that"):
        gc.find(tmp_path / "mini")


def test_locks_that_are_held_are_left_as_they_are(results: Path) -> None:
    path = results / ".store" / ".scratch" / "killed" / "owner"
    with path.open("w") as file:
        file.write("process 1 on there")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        list(gc.lines(results, ["stopped"]))
    assert path.read_text() == "process 1 on there"

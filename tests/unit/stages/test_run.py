"""Identity, code digests, the store: what makes a stage run, and what does not."""

import errno
import json
import os
import resource
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from opd.core.errors import UserError
from opd.provenance import gc
from opd.stages import registry
from opd.stages import run as runner

pytestmark = pytest.mark.unit


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage of the test's own, and the list of the times it was really computed."""
    calls: list[dict] = []

    class Module:
        @staticmethod
        def run(cfg, inputs, out):
            calls.append({"cfg": cfg, "inputs": inputs})
            text = "".join(p.read_text() for d in inputs.values() for p in sorted(d.iterdir()))
            if cfg.get("fail"):
                (out / "half").write_text("x")
                raise UserError("no good", "here", "stop")
            (out / "result.txt").write_text(text + str(cfg["value"]))
            return {"length": len(text)}

    monkeypatch.setitem(sys.modules, "opd.fake_stage", Module)
    monkeypatch.setitem(registry.STAGES, "fake", registry.Stage("opd.fake_stage:run", "x", "a"))

    def call(
        name: str,
        value: int,
        inputs: dict[str, Path] | None = None,
        store: Path = tmp_path / "store",
        **more,
    ) -> bool:
        inputs = inputs or {}
        cfg = {"value": value, "inputs": list(inputs), **more}
        return runner.run_stage(
            "fake",
            cfg,
            list(inputs.values()),
            tmp_path / name / "digest.json",
            {"result.txt": tmp_path / f"{name}.txt"},
            store,
        )

    return call, calls


def test_stage_is_computed_once_and_then_linked(stage, tmp_path):
    call, calls = stage
    assert call("a", 1) is True
    assert call("a", 2) is True
    assert call("a", 1) is False  # settings edited and edited back: no third computation
    assert len(calls) == 2
    assert (tmp_path / "a" / "payload" / "result.txt").read_text() == "1"
    assert (tmp_path / "a.txt").read_text() == "1"


def test_edited_code_is_not_stored_as_what_was_planned(stage, tmp_path, monkeypatch):
    """Else what an edit made for a moment is found in the store for ever after."""
    call, calls = stage
    monkeypatch.setattr(runner, "modules", lambda _: {"opd.fake_stage": "1"})
    monkeypatch.setattr(runner, "code_digest", lambda _: "edited")
    with pytest.raises(UserError, match=r"not that of its settings.* run the same snakemake"):
        call("a", 1, code="planned")
    assert not calls and not (tmp_path / "a" / "digest.json").exists()
    assert not list((tmp_path / "store").glob("*.json"))
    monkeypatch.setattr(runner, "code_digest", lambda _: "planned")
    assert call("a", 1, code="planned")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["modules"] == {"opd.fake_stage": "1"}
    monkeypatch.setattr(runner, "code_digest", lambda _: "edited")
    assert call("b", 1, code="planned") is False  # as the planned code has made it


@pytest.mark.parametrize("linked", ["", "results", "results/mini", "results/mini/models"])
def test_a_level_of_the_results_may_be_a_link_to_another_disk(stage, tmp_path, linked):
    """Snakemake writes below the link, and gc needs to see what is there."""
    call, _ = stage
    folder = tmp_path / "results" / "mini" / "models"
    if linked:
        disk = tmp_path / "disk" / "a" / "b"
        disk.mkdir(parents=True)
        (tmp_path / linked).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / linked).symlink_to(disk, target_is_directory=True)
    else:
        folder.mkdir(parents=True)
    store = tmp_path / "results" / ".store"
    assert call("results/mini/models/m/s0", 1, store=store)
    digest = folder / "m" / "s0" / "digest.json"
    assert digest.with_name("payload").joinpath("result.txt").read_text() == "1"
    # As long as no level between leads away, what is copied with its store stays whole.
    assert os.readlink(digest.with_name("payload")).startswith("../../../../.store/") == (
        linked in ("", "results")
    )
    assert call("results/mini/models/n/s0", 2, {"x": digest}, store=store)
    assert gc.find(tmp_path / "results")["unused"] == {}


def test_digest_json_holds_no_time_and_is_the_same_for_the_same_result(stage, tmp_path):
    call, _ = stage
    call("a", 1)
    first = (tmp_path / "a" / "digest.json").read_bytes()
    call("b", 1)
    assert (tmp_path / "b" / "digest.json").read_bytes() == first
    assert set(json.loads(first)) == {"format", "identity", "settings", "outputs"}


def test_a_manifest_says_what_the_process_took(stage, tmp_path):
    call, _ = stage
    before = time.process_time()
    call("a", 1)
    made = json.loads((tmp_path / "a" / "manifest.json").read_text())
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    most = time.process_time() + children.ru_utime + children.ru_stime
    assert before - 0.01 <= made["processor_seconds"] <= most + 0.01
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert made["peak_memory_mib"] >= 0.9 * peak - 1


def test_identity_follows_content_of_inputs_not_their_place(stage, tmp_path):
    call, calls = stage
    call("a", 1)
    call("b", 1)
    call("c", 5, {"x": tmp_path / "a" / "digest.json"})
    assert call("d", 5, {"x": tmp_path / "b" / "digest.json"}) is False
    call("a", 2)
    assert call("c", 5, {"x": tmp_path / "a" / "digest.json"}) is True
    assert (tmp_path / "c" / "payload" / "result.txt").read_text() == "25"
    assert len(calls) == 4


def test_failed_stage_leaves_nothing(stage, tmp_path):
    call, _ = stage
    with pytest.raises(UserError):
        call("a", 1, fail=True)
    assert not (tmp_path / "a" / "digest.json").exists()
    assert not (tmp_path / "a" / "payload").exists()
    assert [p for p in (tmp_path / "store").rglob("*") if not p.is_dir()] == []
    assert list((tmp_path / "store" / ".scratch").iterdir()) == []


def test_how_a_stage_is_run_is_no_part_of_what_it_makes(stage, tmp_path):
    call, calls = stage
    call("a", 1, execution={"checkpoint_every": 5})
    before = (tmp_path / "a" / "digest.json").read_bytes()
    assert call("a", 1, execution={"checkpoint_every": 50}) is False
    assert (tmp_path / "a" / "digest.json").read_bytes() == before
    assert len(calls) == 1


def test_two_at_once_make_it_once(stage, tmp_path, monkeypatch, capsys):
    """The second waits, says for whom, and finds what the first has made."""
    call, calls = stage
    fake, started, go = sys.modules["opd.fake_stage"], threading.Event(), threading.Event()
    run = fake.run

    def slow(cfg, inputs, out):
        started.set()
        assert go.wait(30)
        return run(cfg, inputs, out)

    monkeypatch.setattr(fake, "run", staticmethod(slow))
    made = {}
    threads = [
        threading.Thread(target=lambda n=name: made.update({n: call(n, 1)})) for name in "ab"
    ]
    threads[0].start()
    assert started.wait(30)
    threads[1].start()
    while "waiting for process" not in capsys.readouterr().err:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join()
    assert made == {"a": True, "b": False} and len(calls) == 1
    assert (tmp_path / "b" / "payload" / "result.txt").read_text() == "1"


def test_damaged_store_entry_is_made_again(stage, tmp_path):
    call, calls = stage
    call("a", 1)
    (tmp_path / "a" / "payload" / "result.txt").write_text("9")
    assert call("a", 1) is True
    assert (tmp_path / "a" / "payload" / "result.txt").read_text() == "1"
    assert len(calls) == 2


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that ends at step 9 or at ``ends``: makes it, and a kept step of it; every time it was
    computed, with the steps that it was asked for."""
    asked: list[list[int]] = []
    luck = {"value": "", "ends": 9}

    class Module:
        @staticmethod
        def run(cfg, inputs, out, scratch):
            asked.append(cfg["execution"]["keep_steps"])
            for step in asked[-1]:
                if step <= luck["ends"]:
                    folder = scratch / "kept" / str(step)
                    folder.mkdir(parents=True)
                    (folder / "weights").write_text(f"{step}{luck['value']}")
            (out / "weights").write_text(f"9{luck['value']}")
            return {}

    monkeypatch.setitem(sys.modules, "opd.fake_run", Module)
    fake = registry.Stage("opd.fake_run:run", "train", "models/{model}", resumes=True)
    monkeypatch.setitem(registry.STAGES, "train", fake)
    output, store = tmp_path / "m" / "digest.json", tmp_path / "store"

    def train(*steps: int) -> bool:
        cfg = {"inputs": [], "execution": {"keep_steps": list(steps)} if steps else {}}
        return runner.run_stage("train", cfg, [], output, {}, store)

    def keep(step: int) -> str:
        kept = tmp_path / f"m@{step}" / "digest.json"
        cfg = {"inputs": ["model"], "step": step}
        runner.run_stage("keep", cfg, [output], kept, {}, store)
        return (kept.parent / "payload" / "weights").read_text()

    return train, keep, asked, luck


def test_a_run_is_complete_with_the_steps_that_are_asked_for(training, tmp_path):
    train, keep, asked, _ = training
    assert train() is True
    before = (tmp_path / "m" / "digest.json").read_bytes()
    made = (tmp_path / "m" / "payload" / "weights").stat()
    assert train(2) is True and train(2) is False and train() is False
    # One more step: those that are there stay, also of a run that others have asked for.
    assert train(4) is True and train(2) is False and train(4, 2) is False
    assert asked == [[], [2], [2, 4]]
    assert (tmp_path / "m" / "digest.json").read_bytes() == before
    # What came out the same was left where it was.
    assert (tmp_path / "m" / "payload" / "weights").stat() == made
    assert (keep(2), keep(4)) == ("2", "4")
    (store,) = (tmp_path / "store").glob("*.steps")
    ours, theirs = tmp_path / "m@2" / "payload" / "weights", store / "2" / "weights"
    assert ours.samefile(theirs)
    assert json.loads((tmp_path / "m@2" / "digest.json").read_text()).keys() == {
        *("format", "identity", "settings", "outputs")
    }


def test_a_step_on_another_device_is_copied(training, tmp_path, monkeypatch):
    from opd.core import files

    def other_device(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    train, keep, _, _ = training
    train(2)
    monkeypatch.setattr(files.os, "link", other_device)
    assert keep(2) == "2"
    (store,) = (tmp_path / "store").glob("*.steps")
    assert not (tmp_path / "m@2/payload/weights").samefile(store / "2" / "weights")


def test_a_damaged_step_is_made_again_and_not_handed_out(training, tmp_path):
    train, keep, asked, _ = training
    train(2, 4)
    (store,) = (tmp_path / "store").glob("*.steps")
    (store / "2" / "weights").write_text("?")
    with pytest.raises(
        UserError, match=r"step 2 was not kept, or is damaged; .* remove .*digest\.json"
    ):
        keep(2)
    with pytest.raises(UserError, match="step 3 was not kept"):
        keep(3)
    assert train(4) is False and train(2, 4) is True and keep(2) == "2"
    (store / "4.json").unlink()
    assert train(4) is True and keep(4) == "4"
    assert len(asked) == 3


def test_a_run_that_ends_differently_replaces_the_one_before_with_its_steps(training, tmp_path):
    train, keep, _, luck = training
    train(2)
    keep(2)
    luck["value"] = "'"  # sums in another order
    assert train(2) is False
    assert train(2, 4) is True
    assert (tmp_path / "m" / "payload" / "weights").read_text() == "9'"
    assert (keep(2), keep(4)) == ("2'", "4'")


def test_a_step_that_a_run_did_not_reach(training):
    train, keep, asked, luck = training
    luck["ends"] = 3
    assert train(2, 5) is True and train(2, 5) is False
    assert keep(2) == "2"
    with pytest.raises(UserError, match="the run ended before step 5; name an earlier step"):
        keep(5)
    assert len(asked) == 1


def test_a_damaged_record_of_a_step_counts_as_none(training, tmp_path):
    train, keep, asked, _ = training
    train(2)
    (store,) = (tmp_path / "store").glob("*.steps")
    (store / "2.json").write_text('{"outputs": ')
    with pytest.raises(UserError, match="step 2 was not kept, or is damaged"):
        keep(2)
    assert train(2) is True and keep(2) == "2" and len(asked) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"stage": '])
def test_a_damaged_record_in_the_store_is_made_again(stage, tmp_path, text):
    call, calls = stage
    call("a", 1)
    (record,) = (tmp_path / "store").glob("*.json")
    record.write_text(text)
    assert call("a", 1) is True and call("a", 1) is False
    assert len(calls) == 2


def test_an_input_that_was_changed_is_refused_and_what_is_advised_helps(stage, tmp_path):
    call, calls = stage
    call("a", 1)
    call("c", 5, {"x": tmp_path / "a" / "digest.json"})
    before = (tmp_path / "c" / "digest.json").read_bytes()
    (tmp_path / "a" / "payload" / "result.txt").write_text("7")
    with pytest.raises(
        UserError, match=r"result\.txt was changed; remove .*a/digest\.json and run"
    ):
        call("c", 5, {"x": tmp_path / "a" / "digest.json"})
    (tmp_path / "a" / "digest.json").unlink()
    assert call("a", 1) is True
    call("c", 5, {"x": tmp_path / "a" / "digest.json"})
    assert (tmp_path / "c" / "digest.json").read_bytes() == before and len(calls) == 3


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(stage, tmp_path, umask):
    call, _ = stage
    before = os.umask(umask)
    try:
        call("a", 1)
    finally:
        os.umask(before)
    found = [p for p in (tmp_path / "store", tmp_path / "a") for p in (p, *p.rglob("*"))]
    modes = {stat.S_IMODE(p.lstat().st_mode) for p in found if p.is_file() and not p.is_symlink()}
    assert modes == {0o666 & ~umask}
    assert {stat.S_IMODE(p.stat().st_mode) for p in found if p.is_dir()} == {0o777 & ~umask}


def test_what_killed_attempts_left_is_cleared_by_the_next(stage, tmp_path):
    """Half-written names beside the artifact, a work folder, whatever the identity was."""
    call, _ = stage
    call("a", 1)
    (key,) = (p.name for p in (tmp_path / "store").iterdir() if p.is_dir() and p.name[0] != ".")
    clean = sorted(tmp_path.rglob("*"))
    for name in (
        "a/.digest.json.0123.partial",
        "a/.manifest.json.4567.partial",
        ".a.txt.89.partial",
    ):
        (tmp_path / name).write_text("{")
    (tmp_path / "a" / ".payload.0123.partial").symlink_to("nowhere")
    work = tmp_path / "store" / ".scratch" / key / "work"
    work.mkdir(parents=True)
    (work / "result.txt").write_text("half")
    (tmp_path / "store" / f"{key}.json").unlink()
    assert call("a", 1) is True
    assert sorted(tmp_path.rglob("*")) == clean
    assert (tmp_path / "a" / "payload" / "result.txt").read_text() == "1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stage that takes what a hub has at a revision; ``has`` is that."""
    has = {"text": "first"}

    class Module:
        @staticmethod
        def run(cfg, inputs, out, *_):
            (out / "file").write_text(has["text"])
            return {}

    monkeypatch.setitem(sys.modules, "opd.fake_fetch", Module)
    for stage in ("fetch", "dataset"):
        fake = registry.STAGES[stage]._replace(run="opd.fake_fetch:run")
        monkeypatch.setitem(registry.STAGES, stage, fake)

    def take(stage, lose=True, **cfg):
        output = tmp_path / stage / "digest.json"
        if lose and output.exists():
            (output.parent / "payload" / "file").unlink()
        runner.run_stage(stage, cfg, [], output, {}, tmp_path / "store")
        return (output.parent / "payload" / "file").read_text()

    return has, take


@pytest.mark.parametrize("stage", ["fetch", "dataset"])
def test_a_hub_object_that_changes_under_its_revision_is_refused(hub, tmp_path, stage):
    has, take = hub
    cfg = {"hub": "a/b", "revision": "0" * 40}
    take(stage, **cfg)
    has["text"] = "second"
    with pytest.raises(UserError, match=r"hub: a/b: the hub has another file at 0000") as refused:
        take(stage, **cfg)
    assert not (tmp_path / stage / "digest.json").exists()
    has["text"] = "first"
    assert take(stage, **cfg) == "first"
    # What is advised: the user takes the new one for right.
    has["text"] = "second"
    (record,) = (tmp_path / "store").glob("*.json")
    assert f"remove {record} and start again" in str(refused.value)
    record.unlink()
    assert take(stage, **cfg) == "second"


def test_tables_of_other_versions_and_files_of_a_folder_may_differ(hub, monkeypatch):
    has, take = hub
    take("dataset", hub="a/b", revision="0" * 40)
    take("fetch", path="folder")
    has["text"] = "second"
    assert take("fetch", path="folder") == "second"
    monkeypatch.setattr(runner, "versions", lambda: {"datasets": "other"})
    assert take("dataset", hub="a/b", revision="0" * 40) == "second"


def test_the_payload_of_other_results_is_held_to_their_record(stage, tmp_path):
    """A path of a config may name an artifact."""
    call, _ = stage
    call("theirs", 1)
    assert call("a", 2, {"x": tmp_path / "theirs" / "payload"})
    (tmp_path / "theirs" / "payload" / "result.txt").write_text("edited")
    with pytest.raises(UserError, match=r"modified after it was made: result\.txt was changed"):
        call("b", 2, {"x": tmp_path / "theirs" / "payload"})


def test_lost_payload_of_an_input_is_named(stage, tmp_path):
    call, _ = stage
    call("a", 1)
    (tmp_path / "a" / "payload").unlink()
    with pytest.raises(UserError, match="payload is gone"):
        call("c", 5, {"x": tmp_path / "a" / "digest.json"})


def test_derived_seeds_differ_by_stage_and_by_seed_and_fit_31_bits():
    seeds = {registry.derive_seed(s, v) for s in range(50) for v in ("sft", "grpo", "distill")}
    assert len(seeds) == 150
    assert all(0 <= s < 2**31 for s in seeds)


@pytest.mark.parametrize("name", ["pipe", "digest.json"])
def test_a_pipe_is_no_input(tmp_path: Path, stage, name: str) -> None:
    """Reading one would wait for ever."""
    call, calls = stage
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: neither a file nor a folder; "):
        call("made", 1, {"data": tmp_path / name})
    assert not calls and not (tmp_path / "made").exists()


def test_a_missing_setting_is_named(tmp_path: Path, stage) -> None:
    where = tmp_path / "made" / "digest.json"
    with pytest.raises(UserError, match="the stage's settings: 'value' is missing; "):
        runner.run_stage("fake", {}, [], where, {}, tmp_path / "store")
    assert not where.exists()

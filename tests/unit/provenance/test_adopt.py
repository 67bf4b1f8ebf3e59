"""What is adopted, what is refused, and what a stage makes of it."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import content, read_json
from opd.data import schemas
from opd.data.schemas import PROMPTS
from opd.losses.schemas import METRICS
from opd.models import init
from opd.models.schemas import GENERATIONS
from opd.plan import state
from opd.provenance import adopt, gc
from opd.stages import fresh, identity, lock, records, run
from opd.stages.artifact import Artifact

SHAPE = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32, "seed": 0}
ROLLOUT = {
    "prompt_id": "p",
    "sample": 0,
    "attempt": 0,
    "prompt": "1+1=",
    "response": "2#2",
    "token_ids": [1, 2],
    "finish": "stop",
    "rejected": None,
}
CFG = {"inputs": ["student", "prompts"], "code": "c", "lr": 0.1}
TEACHER = Artifact("grpo", "models/teacher/s0", CFG, ("models/base/s0", "prompts/rl"))
ROLLOUTS = Artifact(
    "generate", "generations/r/s0", {**CFG, "inputs": ["model", "prompts"]}, TEACHER.inputs
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    init.run(SHAPE, {}, folder)
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Prompts that have been made; the student has not."""
    folder = tmp_path / "results" / "mini" / "prompts" / "rl"
    (folder / "payload").mkdir(parents=True)
    row = schemas.prompt_row("p", "1+1=", "2", "by hand", 0)
    tables.write(folder / "payload" / "prompts.parquet", [row], PROMPTS)
    record = {"identity": "i", "settings": "s", "outputs": content(folder / "payload")}
    records.write_json(folder / "digest.json", record)
    return tmp_path / "results" / "mini"


def _adopt(source: Path, artifact: Artifact, results: Path) -> dict:
    folder = adopt.adopt(source, artifact, results, results.parent / ".store")
    return read_json(folder / "manifest.json")


def test_a_checkpoint_with_what_is_known_of_it(theirs: Path, results: Path):
    made = _adopt(theirs, TEACHER, results)
    assert made["adopted"] == str(theirs) and made["seconds"] == 0 and made["versions"] == {}
    assert made["inputs"].keys() == {"prompts"}  # the student has not been made
    assert made["outputs"].keys() == {p.name for p in theirs.iterdir()} | {"metrics.parquet"}
    folder = results / TEACHER.folder
    record = read_json(folder / "digest.json")
    assert record["adopted"] is True
    assert record["settings"] == identity.settings_digest("grpo", CFG)
    entry = (folder / "payload").resolve()
    assert entry.name == record["identity"] == made["identity"]
    assert tables.read(entry / "metrics.parquet", METRICS).num_rows == 0
    assert state.states(
        {TEACHER.folder: TEACHER}, [TEACHER.folder], results, results.parent / ".store"
    ) == {TEACHER.folder: "there"}


def _stage(results: Path, cfg: dict) -> bool:
    return run.run_stage(
        "grpo",
        cfg,
        [results / "prompts/rl/digest.json"] * 2,
        results / TEACHER.folder / "digest.json",
        {},
        results.parent / ".store",
    )


def test_its_stage_keeps_it_whatever_the_code_and_the_inputs(theirs: Path, results: Path):
    first = _adopt(theirs, TEACHER, results)
    record = results / TEACHER.folder / "digest.json"
    record.unlink()  # as Snakemake does before a job
    assert _stage(results, CFG | {"code": "edited", "execution": {"keep_steps": [1]}}) is False
    after = read_json(record)
    assert (after["identity"], after["outputs"]) == (first["identity"], first["outputs"])
    assert after["settings"] == identity.settings_digest("grpo", CFG | {"code": "edited"})
    assert read_json(record.with_name("manifest.json"))["adopted"] == str(theirs)


def test_it_needs_no_inputs_and_an_edit_of_code_is_none_of_it(theirs: Path, results: Path):
    first = _adopt(theirs, TEACHER, results)
    edited = Artifact("grpo", TEACHER.folder, CFG | {"code": "d"}, ())
    recipe = Artifact("grpo", TEACHER.folder, CFG | {"lr": 0.2}, ())
    for one, stands in ((TEACHER, True), (edited, True), (recipe, False)):
        plan = {one.folder: one}
        assert (fresh.adopted(plan, results) == [one.folder]) is stands
        assert (fresh.other_settings(plan, results) == []) is stands
    store, digest = results.parent / ".store", results / TEACHER.folder / "digest.json"
    assert run.run_stage("grpo", CFG, [], digest, {}, store) is False
    assert read_json(digest.with_name("manifest.json"))["inputs"] == first["inputs"]
    fresh.write_plan(results / "plan.json", {edited.folder: edited})
    fresh.check(results / "plan.json", [digest])
    fresh.write_plan(results / "plan.json", {recipe.folder: recipe})
    with pytest.raises(UserError, match="made with other settings"):
        fresh.check(results / "plan.json", [digest])


def test_an_edited_recipe_is_run_and_a_damaged_file_is_not_taken(
    theirs: Path, results: Path, monkeypatch
):
    monkeypatch.setattr(run, "code_digest", lambda _: CFG["code"])
    monkeypatch.setattr(run, "modules", lambda _: {})
    _adopt(theirs, TEACHER, results)
    payload = results / TEACHER.folder / "payload" / "config.json"
    kept = payload.read_bytes()
    payload.write_bytes(kept + b" ")
    with pytest.raises(UserError, match="adopted here is damaged"):
        _stage(results, CFG)
    assert (results / TEACHER.folder / "manifest.json").is_file()
    payload.write_bytes(kept)

    class Trained(Exception):
        pass

    def compute(*_):
        raise Trained

    monkeypatch.setattr(run, "_compute", compute)
    with pytest.raises(Trained):
        _stage(results, CFG | {"lr": 0.2})


def test_what_was_made_is_not_replaced_and_what_was_adopted_is(theirs: Path, results: Path):
    _adopt(theirs, TEACHER, results)
    _adopt(theirs, TEACHER, results)
    path = results / TEACHER.folder / "manifest.json"
    made = read_json(path)
    del made["adopted"]
    records.write_json(path, made)
    with pytest.raises(UserError, match="made already; remove this folder"):
        _adopt(theirs, TEACHER, results)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _index(value):
    return lambda f: (f / "model.safetensors.index.json").write_text(json.dumps(value))


BREAKS = {
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
    "pickled": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickled"),
    "cut": (lambda f: _cut(f / "model.safetensors"), "no complete"),
    "longer": (
        lambda f: (f / "model.safetensors").open("ab").write(b"x"),
        "no complete",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "no complete"),
    "other": (
        lambda f: (f / "model.safetensors").write_bytes(b"{" * 99),
        "no complete",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "no model_type"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
    "shard": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "model-2.safetensors"}})
        ),
        "model-2.safetensors is missing",
    ),
    "shards, a list": (_index({"weight_map": [1]}), "index.json: it has no weight_map"),
    "index, a list": (_index([]), "index.json: it has no weight_map"),
    "deep": (
        lambda f: (f / "model.safetensors").write_bytes(
            (10**5).to_bytes(8, "little") + b"[" * 10**5
        ),
        "no complete",
    ),
    "header of 2^62": (
        lambda f: (f / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        "no complete",
    ),
    "deep config": (
        lambda f: (f / "config.json").write_text('{"a": ' * 10**5),
        "not readable as JSON",
    ),
    "tokenizer, a number": (
        lambda f: (f / "tokenizer_config.json").write_text("5"),
        "no tokenizer",
    ),
    "shard elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../copy/model.safetensors"}})
        ),
        r"\.index\.json: it names \.\./copy/model\.safetensors, a file outside of its folder",
    ),
    "link": (
        lambda f: (f / "more.json").symlink_to("/etc/hostname"),
        r"copy/more\.json: it is a link that leads out of its folder",
    ),
    "linked folder": (lambda f: (f / "x").symlink_to("/etc"), "copy/x: it is a link that leads"),
    "linked metrics": (
        lambda f: (f / "metrics.parquet").symlink_to("/etc/hostname"),
        r"copy/metrics\.parquet: it is a link",
    ),
    "metrics": (lambda f: (f / "metrics.parquet").write_bytes(b"PAR1"), "not a readable parquet"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_checkpoint_that_is_none_is_refused(theirs: Path, results: Path, tmp_path, kind: str):
    change, words = BREAKS[kind]
    folder = tmp_path / "copy"
    shutil.copytree(theirs, folder)
    change(folder)
    with pytest.raises(UserError, match=words):
        _adopt(folder, TEACHER, results)
    assert not (results / TEACHER.folder).exists()
    assert [*(results.parent / ".store").rglob("*")] == [results.parent / ".store" / ".scratch"]


def test_what_a_killed_adoption_left_is_cleared_by_the_next_and_seen_by_gc(
    theirs: Path, results: Path, monkeypatch: pytest.MonkeyPatch
):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(adopt, "content", killed)
        patch.setattr(adopt, "remove", lambda _: None)
        with pytest.raises(Killed):
            _adopt(theirs, TEACHER, results)
    store = results.parent / ".store"
    (left,) = (store / ".scratch").iterdir()
    assert (left / "work" / "model.safetensors").is_file()
    assert set(gc.find(results.parent)["stopped"]) == {left.name}
    _adopt(theirs, TEACHER, results)
    assert not left.exists()


def test_what_is_not_linked_yet_is_left_alone_by_gc(
    theirs: Path, results: Path, monkeypatch: pytest.MonkeyPatch
):
    def cleared(*given):
        assert [*gc.lines(results.parent, ["unused"])]
        records.write(*given)

    monkeypatch.setattr(adopt, "write", cleared)
    _adopt(theirs, TEACHER, results)
    assert (results / TEACHER.folder / "payload" / "model.safetensors").is_file()
    assert [*(results.parent / ".store" / ".scratch").iterdir()] == []


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_what_was_adopted_has_the_modes_of_umask(theirs: Path, results: Path, umask: int):
    before = os.umask(umask)
    try:
        _adopt(theirs, TEACHER, results)
    finally:
        os.umask(before)
    folder = results / TEACHER.folder
    paths = [*folder.iterdir(), *(folder / "payload").resolve().rglob("*")]
    paths += [folder, (folder / "payload").resolve(), *(results.parent / ".store").glob("*.json")]
    assert len(paths) > 8
    for path in (path for path in paths if not path.is_symlink()):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "folder"])
def test_rollouts_in_each_form(results: Path, tmp_path: Path, form: str):
    source = tmp_path / "theirs" / "generations.parquet"
    source.parent.mkdir()
    tables.write(source, [ROLLOUT], GENERATIONS)
    if form == "folder":
        source = source.parent
    elif form == "jsonl":
        source = source.with_suffix(".jsonl")
        source.write_text(json.dumps(ROLLOUT) + "\n\n")
    made = _adopt(source, ROLLOUTS, results)
    assert made["numbers"] == {"prompts": 1, "generations": 1}
    read = tables.read(results / ROLLOUTS.folder / "payload" / "generations.parquet", GENERATIONS)
    assert read.to_pylist() == [{**ROLLOUT, "turns": None}]
    # What stands before a prompt is the prompt set's, where the rollouts do not say it.
    turns = [{"role": "system", "content": "s"}]
    row = schemas.prompt_row("p", "1+1=", "2", "by hand", 0, turns=turns)
    tables.write(results / "prompts" / "rl" / "payload" / "prompts.parquet", [row], PROMPTS)
    payloads = {"prompts": results / "prompts" / "rl" / "payload", "model": tmp_path / "none"}
    adopt._rollouts(source, {}, payloads, tmp_path)
    read = tables.read(tmp_path / "generations.parquet", GENERATIONS)
    assert read.to_pylist() == [{**ROLLOUT, "turns": turns}]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{**ROLLOUT, "prompt_id": "q"}], "'q' is none of the prompts"),
        ([{**ROLLOUT, "response": None}], "'response' is empty"),
        ([ROLLOUT, {**ROLLOUT, "response": "8"}], "sample 0 of the prompt .* is there 2 times"),
        ([], "no rollouts"),
    ],
)
def test_rollouts_that_are_none_are_refused(results: Path, tmp_path: Path, rows, words: str):
    source = tmp_path / "theirs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=words):
        _adopt(source, ROLLOUTS, results)
    source.write_text("{")
    with pytest.raises(UserError, match=r"theirs\.jsonl:1: not JSON"):
        _adopt(source, ROLLOUTS, results)
    assert not (results / ROLLOUTS.folder).exists()


def test_nothing_is_adopted_into_the_place_of_a_run(theirs: Path, results: Path):
    """That would take its place as soon as it ends."""
    folder, scratch = results / TEACHER.folder, results.parent / ".store" / ".scratch" / "run"
    folder.mkdir(parents=True)
    (folder / "running.json").write_text(json.dumps({"scratch": str(scratch)}))
    with lock.alone(scratch), pytest.raises(UserError, match="it is being made just now; wait"):
        _adopt(theirs, TEACHER, results)
    _adopt(theirs, TEACHER, results)  # what a killed run has left hinders nobody


def test_rollouts_behind_a_link_are_not_taken(results: Path, tmp_path: Path):
    """Of a folder: what it holds is a link that leads out."""
    tables.write(tmp_path / "elsewhere.parquet", [ROLLOUT], GENERATIONS)
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "generations.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(UserError, match=r"generations\.parquet: it is a link that leads out"):
        _adopt(source, ROLLOUTS, results)
    assert not (results / ROLLOUTS.folder).exists()


def test_a_recipe_is_named_by_its_name_its_seed_or_its_folder():
    known = {
        f: Artifact(stage, f, {}, ())
        for f, stage in {
            "models/teacher/s0": "grpo",
            "models/teacher/s1": "grpo",
            "models/base/s0": "sft",
            "generations/rollouts/s0": "generate",
            "evaluations/held-out/base/s0": "evaluate",
        }.items()
    }
    for name, folder in {
        "base": "models/base/s0",
        "teacher/s1": "models/teacher/s1",
        "models/teacher/s0": "models/teacher/s0",
        "rollouts": "generations/rollouts/s0",
    }.items():
        assert adopt.recipe(name, known, "mini").folder == folder
    with pytest.raises(UserError, match="may be models/teacher/s0, models/teacher/s1"):
        adopt.recipe("teacher", known, "mini")
    with pytest.raises(UserError, match="did you mean 'teacher/s0'"):
        adopt.recipe("teachr/s0", known, "mini")

"""What lies in a results folder against a plan: what is refused where it is shown."""

import os
from pathlib import Path

import pytest
import yaml

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import content, digest
from opd.evaluation.reader import Reader
from opd.losses.schemas import METRICS
from opd.stages import fresh
from opd.stages.artifact import Artifact
from opd.stages.identity import adopted_identity, settings_digest
from opd.stages.records import Digest, Manifest, Used, write

PLANNED = {
    "models/a": Artifact("sft", "models/a", {"k": 1, "execution": {"x": 1}}, ()),
    "evaluations/e/a": Artifact("evaluate", "evaluations/e/a", {"n": 1}, ("models/a",)),
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A model and its evaluation as planned."""
    for folder, one in PLANNED.items():
        where = tmp_path / folder
        (where / "payload").mkdir(parents=True)
        tables.write(
            where / "payload" / "metrics.parquet",
            [{"step": 1, "name": "m", "value": 1.0}],
            METRICS,
        )
        record = _digest(one, outputs(where))
        write(where / "digest.json", record)
        inputs = {name: _used(tmp_path / name) for name in one.inputs}
        made = {"stage": one.stage, "identity": "", "cfg": one.cfg, "outputs": record.outputs}
        write(where / "manifest.json", Manifest(**made, inputs=inputs))
    fresh.write_plan(tmp_path / "plan.json", PLANNED)
    return tmp_path


def _digest(planned: Artifact, outputs: dict[str, str]) -> Digest:
    settings = settings_digest(planned.stage, planned.cfg)
    return Digest(identity="", settings=settings, outputs=outputs)


def _used(folder: Path) -> Used:
    path = str(folder / "digest.json")
    return Used(path=path, identity="", outputs=digest(outputs(folder)))


def outputs(folder: Path) -> dict[str, str]:
    return content(folder / "payload")


def check(results: Path) -> None:
    fresh.check(results / "plan.json", [results / "evaluations/e/a/digest.json"])


def test_what_is_as_planned_passes(results: Path) -> None:
    check(results)
    assert fresh.other_settings(PLANNED, results) == []


def test_other_settings_behind_what_is_shown_are_named_with_the_command(results: Path) -> None:
    edited = {**PLANNED, "models/a": Artifact("sft", "models/a", {"k": 2}, ())}
    fresh.write_plan(results / "plan.json", edited)
    with pytest.raises(UserError, match=r"models/a: stale.*--forcerun \S+/models/a/digest.json"):
        check(results)
    assert fresh.other_settings(edited, results) == ["models/a"]


@pytest.mark.parametrize("text", ["", "[]", '{"settings": '])
def test_a_damaged_record_is_made_again_and_not_shown(results: Path, text: str) -> None:
    fresh.write_plan(results / "plan.json", PLANNED)
    (results / "models/a/digest.json").write_text(text)
    assert fresh.other_settings(PLANNED, results) == ["models/a"]
    with pytest.raises(UserError, match=r"stale.*--forcerun .*/models/a/digest.json"):
        check(results)


def test_how_a_stage_runs_makes_nothing_stale(results: Path) -> None:
    same = Artifact("sft", "models/a", {"k": 1, "execution": {"x": 2}}, ())
    fresh.write_plan(results / "plan.json", {**PLANNED, "models/a": same})
    check(results)


def test_what_was_made_from_an_earlier_version_is_named(results: Path) -> None:
    record = results / "models/a/digest.json"
    planned = PLANNED["models/a"]
    write(record, _digest(planned, {"metrics.parquet": "0"}))
    words = r"evaluations/e/a: stale: \S*models/a, which it was made from, was made anew"
    with pytest.raises(UserError, match=words):
        check(results)


def test_nothing_is_asked_of_what_lies_behind_something_adopted(results: Path) -> None:
    """It needs no inputs, so what the plan names as such may be there from another time."""
    planned = PLANNED["evaluations/e/a"]
    folder = results / planned.folder
    outputs_there = outputs(folder)
    adopted = _digest(planned, outputs_there).model_copy(
        update={
            "adopted": True,
            "identity": adopted_identity(planned.stage, planned.cfg, outputs_there),
        }
    )
    edited = {**PLANNED, "models/a": Artifact("sft", "models/a", {"k": 2}, ())}
    fresh.write_plan(results / "plan.json", edited)
    with pytest.raises(UserError, match="models/a: stale"):
        check(results)
    write(folder / "digest.json", adopted)
    check(results)


def test_a_plan_is_written_again_only_where_it_differs(results: Path) -> None:
    path = results / "plan.json"
    before = path.stat().st_mtime_ns
    fresh.write_plan(path, PLANNED)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text", [b"", b'{"models', b"\xff", b"[1]", b'{"models/a": 1}', b"[" * 10**5]
)
def test_damaged_records_of_a_run_are_written_anew(results: Path, text: bytes) -> None:
    for write_record, name in (
        (lambda path: fresh.write_plan(path, PLANNED), "plan.json"),
        (lambda path: fresh.write_config(path, {"name": "mini"}), "config.yaml"),
    ):
        path = results / name
        write_record(path)
        sound = path.read_bytes()
        path.write_bytes(text)
        if name == "plan.json":
            assert fresh.read_plan(path)[1]
            stopped = fresh.edited_since("a b", "c b", path, PLANNED)
            assert set(stopped.values()) == {"the plan of its run was replaced"}
            with pytest.raises(UserError, match=r"plan\.json: is no|models/a"):
                check(results)
        else:
            assert not fresh.as_written(path)
        write_record(path)
        assert path.read_bytes() == sound


def test_a_file_changed_after_it_was_made_is_refused(results: Path) -> None:
    payload = results / "models/a/payload"
    Reader({"a": payload}).metric(["a"], "m", "here")
    row = {"step": 1, "name": "m", "value": 2.0}
    tables.write(payload / "metrics.parquet", [row], METRICS)
    with pytest.raises(UserError, match="modified after it was made"):
        Reader({"a": payload}).metric(["a"], "m", "here")


def parsed(artifacts: dict[str, Artifact], rules: Path) -> str:
    return fresh.parsed(artifacts, [rules])


def test_a_job_finds_what_was_edited_since_it_was_submitted(results: Path) -> None:
    rules = results / "rules.smk"
    rules.write_text("rule a:")
    told, plan = parsed(PLANNED, rules), results / "plan.json"
    assert fresh.edited_since(told, parsed(PLANNED, rules), plan, PLANNED) == {}

    def found(now: dict[str, Artifact]) -> dict[str, str]:
        return fresh.edited_since(told, parsed(now, rules), plan, now)

    # How a stage runs and not what it makes.
    same = Artifact("sft", "models/a", {"k": 1, "execution": {"x": 2}}, ())
    assert found({**PLANNED, "models/a": same}) == {}
    other = Artifact("sft", "models/a", {"k": 2}, ())
    assert found({**PLANNED, "models/a": other}) == {"models/a": "was edited"}
    moved = Artifact("evaluate", "evaluations/e/a", {"n": 1}, ("models/b",))
    now = {"models/b": PLANNED["models/a"], "evaluations/e/a": moved}
    assert found(now) == {
        "models/a": "was taken out of the config",
        "models/b": "was edited",
        "evaluations/e/a": "was edited",
    }


def test_every_job_stops_where_rules_were_edited_or_its_plan_is_gone(results: Path) -> None:
    rules = results / "rules.smk"
    rules.write_text("rule a:")
    told, plan = parsed(PLANNED, rules), results / "plan.json"
    rules.write_text("rule b:")
    found = fresh.edited_since(told, parsed(PLANNED, rules), plan, PLANNED)
    assert found == dict.fromkeys(PLANNED, "the rules were edited")
    rules.write_text("rule a:")
    edited = {**PLANNED, "models/a": Artifact("sft", "models/a", {"k": 2}, ())}
    fresh.write_plan(plan, edited)  # by a run that was started since
    found = fresh.edited_since(told, parsed(edited, rules), plan, edited)
    assert found == dict.fromkeys(edited, "the plan of its run was replaced")


def test_the_config_of_a_run_shows_whether_it_was_changed(tmp_path: Path) -> None:
    config = {"name": "x", "seeds": [0, 1], "title": "← ten"}
    path = tmp_path / "results" / "config.yaml"
    fresh.write_config(path, config)
    assert yaml.safe_load(path.read_text()) == config and fresh.as_written(path)
    text = path.read_bytes()
    for at in range(0, len(text), 7):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        assert not fresh.as_written(path)


def test_data_that_changed_is_found_whatever_its_times_and_what_is_broken_ends_nothing(
    tmp_path: Path,
) -> None:
    """A folder that holds what no input may hold is for the job to name that reads it: others of
    the same plan do not need it."""
    data, results, store = tmp_path / "mine", tmp_path / "results" / "t", tmp_path / ".store"
    data.mkdir()
    (data / "weights").write_text("a")
    plan = {"models/m": Artifact("fetch", "models/m", {"inputs": ["files"]}, (str(data),))}
    used = Used(path=str(data), identity="", outputs=digest(content(data)))
    given = {"stage": "fetch", "identity": "", "cfg": {}, "outputs": {}}
    (results / "models" / "m").mkdir(parents=True)
    write(results / "models/m/manifest.json", Manifest(**given, inputs={"files": used}))

    assert fresh.other_data(plan, results, store) == []
    (data / "link").symlink_to("/nowhere")
    assert fresh.other_data(plan, results, store) == ["models/m"]
    (data / "link").unlink()
    assert fresh.other_data(plan, results, store) == []
    (data / "weights").write_text("b")
    os.utime(data / "weights", (0, 0))
    assert fresh.other_data(plan, results, store) == ["models/m"]

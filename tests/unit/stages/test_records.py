"""Records are read and written in one place, and any change to them shows."""

import hashlib
import json
from pathlib import Path

import pytest

from opd.core.errors import UserError
from opd.stages import fresh, identity, records, registry
from opd.stages.artifact import Artifact
from opd.stages.records import Contents, Digest, Manifest, State

USED = {"path": "results/mini/models/a/s0/digest.json", "identity": "2", "outputs": "3"}
VALUE = {
    **{"stage": "opd", "identity": "1", "cfg": {"k": 4}, "inputs": {"a": USED}, "outputs": {}},
    **{"numbers": {}, "versions": {}, "host": "x", "device": "cpu"},
    **{"started": "2026-01-02T03:04:05Z", "seconds": 1},
}


def test_a_seal_is_of_all_but_itself():
    made = records.sealed({"b": [1, 2.5, None], "a": {"x": "é"}})
    assert records.sealed(made) == made
    rest = {"a": {"x": "é"}, "b": [1, 2.5, None]}
    text = json.dumps(rest, indent=1, sort_keys=True) + "\n"
    assert made["seal"] == hashlib.sha256(text.encode()).hexdigest()
    assert records.sealed(made | {"b": [1, 2.5, 0]})["seal"] != made["seal"]


def test_every_bit_of_a_record_counts():
    """Also where the JSON stays the same value, as 1e-05 and 1E-05."""
    used = {"path": "x", "identity": "", "outputs": "0"}
    value = {"stage": "opd", "identity": "1", "cfg": {"lr": 1e-05, "on": True}, "outputs": {}}
    value |= {"host": "é", "inputs": {"x": used}, "numbers": {"a": [None, -2]}, "versions": {}}
    text = records.json_text(records.sealed(value)).encode()
    assert records.parse(text, Manifest)[1] == ""
    for at in range(len(text)):
        for bit in range(8):
            changed = bytearray(text)
            changed[at] ^= 1 << bit
            assert records.parse(bytes(changed), Manifest)[1], (at, bit)


def test_a_record_without_a_seal_has_just_the_keys_that_it_should():
    text = records.json_text({"outputs": {"a": "0"}}).encode()
    assert records.parse(text, Contents) == (Contents(outputs={"a": "0"}), "")
    assert records.parse(text, Digest)[1].startswith("cannot be used: identity: ")
    more = records.json_text({"outputs": {"a": "0"}, "x": 1}).encode()
    assert records.parse(more, Contents)[1] == "does not have the keys of a record"
    for damaged in (text.replace(b"outputs", b"outputt"), text.replace(b'"0"', b"0"), b"[]\n"):
        record, reason = records.parse(damaged, Contents)
        assert record is None and reason


def test_a_manifest_from_before_there_were_seals_is_read_if_it_has_their_keys():
    before = {"verb" if name == "stage" else name: value for name, value in VALUE.items()}
    made, reason = records.parse(records.json_text(before).encode(), Manifest)
    assert made and made.stage == "opd" and made.format == 1
    assert reason == "" and made.inputs["a"].made and made.seconds == 1.0
    for other in (VALUE | {"modules": {}}, VALUE | {"x": 1}):
        made, reason = records.parse(records.json_text(other).encode(), Manifest)
        assert made and reason == "does not have the keys of a record"


def test_a_sealed_manifest_of_a_later_version_is_read():
    text = records.json_text(records.sealed(VALUE | {"later": 1})).encode()
    assert records.parse(text, Manifest)[1] == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": {"a": 1}}, "cannot be used: outputs.a: "),
        ({"inputs": {"a": {"path": "x"}}}, "cannot be used: inputs.a."),
        ({"stage": None}, "cannot be used: stage: "),
        ({"seconds": "1"}, "cannot be used: seconds: "),
    ],
)
def test_what_is_wrong_with_a_damaged_file_is_named(tmp_path: Path, change, words: str):
    path = tmp_path / "manifest.json"
    assert records.load(path, Manifest) == (None, (State.MISSING, "manifest.json", "is gone"))
    path.write_text(records.json_text(records.sealed(VALUE | change)))
    made, damage = records.load(path, Manifest)
    assert made is None and damage and damage.state == State.MODIFIED
    assert damage.reason.startswith(words)
    with pytest.raises(UserError, match=words):
        records.read(path, Manifest)


def test_what_is_written_is_read_as_it_was(tmp_path: Path):
    made = Manifest(**VALUE | {"cfg": {"a": None, "b": [0.1, None]}})
    records.write(tmp_path / "manifest.json", made)
    assert records.load(tmp_path / "manifest.json", Manifest) == (made, None)
    record = Digest(identity="1", settings="2", outputs={"w": "3"}, format=records.FORMAT)
    records.write(tmp_path / "digest.json", record)
    assert records.load(tmp_path / "digest.json", Digest) == (record, None)
    assert {p.name for p in tmp_path.iterdir()} == {"digest.json", "manifest.json"}


def test_what_is_wrong_with_a_plan_is_named_by_entry(tmp_path: Path):
    path = tmp_path / "plan.json"
    assert fresh.read_plan(path) == (None, "")
    artifacts = {name: Artifact("sft", name, {"k": 1}, ()) for name in ("models/a", "models/b")}
    fresh.write_plan(path, artifacts)
    assert fresh.read_plan(path) == (fresh.described(artifacts), "")
    plan = json.loads(path.read_text())
    plan["models/a"]["cfg"]["k"] = 2
    plan["models/c"] = plan["models/b"]
    path.write_text(records.json_text(plan))
    entries, reason = fresh.read_plan(path)
    assert entries and entries["models/a"] is None is entries["models/c"] and entries["models/b"]
    assert reason == (
        "models/a: was changed after it was sealed; models/c: is not the entry of this folder"
    )
    path.write_text("[]")
    assert fresh.read_plan(path) == (None, "is no JSON object")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' * 900 + "1" + "}" * 900])
def test_a_record_or_plan_that_is_nested_too_deeply_is_none(tmp_path: Path, text: str):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert fresh.read_plan(path) == (None, "is no JSON (nested too deeply)")
    for kind in (Manifest, Digest):
        assert records.parse(text.encode(), kind) == (None, "is no JSON (nested too deeply)")


def test_what_was_adopted_is_never_taken_for_what_was_made():
    cfg = {"steps": 2, "code": "1", "inputs": []}
    outputs = {"model.safetensors": "0"}
    adopted = identity.adopted_identity("opd", cfg, outputs)
    assert adopted != identity.identity("opd", cfg, {})
    assert adopted == identity.adopted_identity("opd", cfg | {"code": "2"}, outputs)
    assert adopted == identity.adopted_identity("opd", cfg | {"execution": {"x": 1}}, outputs)
    for stage, other, files in (
        ("sft", cfg, outputs),
        ("opd", cfg | {"steps": 3}, outputs),
        ("opd", cfg, {"model.safetensors": "1"}),
    ):
        assert identity.adopted_identity(stage, other, files) != adopted


def test_modules_are_those_that_the_code_digest_covers():
    found = registry.modules("distill")
    assert {"opd.training.distill", "opd.losses.fused", "opd.core.errors"} <= found.keys()
    assert "opd.evaluation.evaluate" not in found and "opd.stages.run" not in found
    assert len({*found.values()}) > len(found) / 2

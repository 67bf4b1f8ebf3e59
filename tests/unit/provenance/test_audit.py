"""Hashing, locating and comparing, on folders made by hand; whole runs are in tests/workflow."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from results import Results, sample

from opd.core.errors import UserError
from opd.core.files import content
from opd.core.hashing import CHUNK, hashed
from opd.provenance import audit as audit_module
from opd.provenance import diff, why
from opd.provenance.audit import audit
from opd.provenance.diff import changes
from opd.stages import code, identity, manifest, on_disk, records
from opd.stages.records import Contents, Digest, Manifest


def test_files_are_hashed_once_and_by_sha256(tmp_path: Path):
    texts = {"a": b"", "b": b"x" * (CHUNK + 1), "c": b"y" * CHUNK}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    os.link(tmp_path / "b", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("c")
    (tmp_path / "nowhere").symlink_to("gone")
    found = hashed(tmp_path / n for n in (*texts, "hard", "soft", "nowhere"))
    same = {"hard": "b", "soft": "c"}
    expected = {n: hashlib.sha256(texts[same.get(n, n)]).hexdigest() for n in (*texts, *same)}
    assert {path.name: one for path, one in found.of.items()} == expected
    assert (found.files, found.bytes) == (3, 2 * CHUNK + 1)


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert hashed([tmp_path / "a"]).of == {tmp_path / "a": ""}


def test_a_seal_is_of_all_but_itself():
    made = records.sealed({"b": [1, 2.5, None], "a": {"x": "é"}})
    assert records.sealed(made) == made
    rest = {"a": {"x": "é"}, "b": [1, 2.5, None]}
    text = json.dumps(rest, indent=1, sort_keys=True) + "\n"
    assert made["seal"] == hashlib.sha256(text.encode()).hexdigest()
    assert records.sealed(made | {"b": [1, 2.5, 0]})["seal"] != made["seal"]


def test_what_was_adopted_is_never_taken_for_what_was_made():
    cfg = {"steps": 2, "code": "1", "inputs": []}
    outputs = {"model.safetensors": "0"}
    adopted = identity.adopted_identity("opd", cfg, outputs)
    assert adopted != identity.identity("opd", cfg, {})
    assert adopted == identity.adopted_identity("opd", cfg | {"code": "2"}, outputs)
    assert adopted == identity.adopted_identity("opd", cfg | {"execution": {"x": 1}}, outputs)
    for verb, other, files in (
        ("sft", cfg, outputs),
        ("opd", cfg | {"steps": 3}, outputs),
        ("opd", cfg, {"model.safetensors": "1"}),
    ):
        assert identity.adopted_identity(verb, other, files) != adopted


def test_modules_are_those_that_the_code_digest_covers():
    found = code.modules("opd")
    assert {"opd.training.distill", "opd.losses.fused", "opd.core.errors"} <= found.keys()
    assert "opd.evaluation.evaluate" not in found and "opd.stages.run" not in found
    assert len({*found.values()}) > len(found) / 2


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": {"k": 4, "l": 1}}, {"a": {"k": 8, "l": 1}}, [("a.k", 4, 8)]),
        ({"a": 1}, {"b": 1}, [("a", 1, "–"), ("b", "–", 1)]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [("a.1", 2, 3)]),
        ({"a": [1]}, {"a": [1, 3]}, [("a", [1], [1, 3])]),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": {}}, {"a": None}, [("a", {}, None)]),
    ],
)
def test_changes_by_key(one, other, expected):
    assert [*changes(one, other)] == expected


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


def test_records_from_before_there_were_seals_are_read(tmp_path: Path):
    """Those of this hand-made folder have none: only what is in a digest of its own is held."""
    results = sample(tmp_path)
    payload = results.root / "models/small/s0/payload/w"
    payload.write_text("1")
    found = audit(results.root)
    wrong = {
        (one.place, f.where) for one in found.audited for f in one.findings if "payload" in f.where
    }
    assert wrong == {("models/small/s0", "payload/w")}
    text = "\n".join(audit_module.lines(found, "here", 1.0))
    assert "payload/w: was changed" in text


def test_nothing_to_audit_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="no artifact is there"):
        audit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no artifact is there"):
        audit(tmp_path / "empty")


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        ("models/small-rl/s2", "models.small-rl, seed 2"),
        ("models/small@40/s0", "models.small, keep_steps: 40, seed 0"),
        ("models/qwen", "models.qwen"),
        ("prompts/rl", "prompts.rl"),
        ("figures/loss_form", "figures.loss_form"),
        ("claims", "papers, arms, probes, and config/claims/ of each paper"),
        ("elsewhere/x", "not one of a config's"),
    ],
)
def test_the_keys_of_the_config_that_say_what_a_folder_holds(folder: str, key: str):
    assert why.config_key(folder) == key


def test_the_key_of_a_papers_figure_and_of_an_evaluation():
    assert "config/figures/a_paper.yaml: fig06" in why.config_key("figures/a_paper/fig06")
    said = why.config_key("evaluations/held-out/small/s1")
    assert said == "evaluations.held-out, its protocol and benchmarks, models.small, seed 1"


def _two(tmp_path: Path) -> tuple[Results, Results]:
    """b differs from a in one setting of the training run, and in what follows from it."""
    both = []
    for name in "ab":
        results = sample(tmp_path / name)
        other = name == "b"
        results.run(
            "opd",
            "models/small-from-large/s0",
            {"student": "models/small/s0", "prompts": "prompts/rl"},
            cfg={"loss": {"k": 8 if other else 4}, "lr": 0.1},
            numbers={"last": {"kl": 0.5 if other else 0.25}},
        )
        if other:
            metrics = results.root / "models/small-from-large/s0/payload/metrics.parquet"
            metrics.write_text("other")
            results.add(
                "opd",
                "models/small-from-large/s0",
                {"metrics.parquet": "other"},
                {"student": "models/small/s0", "prompts": "prompts/rl"},
                cfg={"loss": {"k": 8}, "lr": 0.1},
                numbers={"last": {"kl": 0.5}},
            )
        text = f"row,avg,digests\nsmall,{0.5 if other else 0.25},x\nlarge,1,y\n"
        results.add(
            "table",
            "tables/headline",
            {"table.csv": text},
            {"r": "models/small-from-large/s0"},
        )
        (results.root / "tables/headline/payload/table.md").unlink()
        record = json.loads((results.root / "tables/headline/digest.json").read_text())
        record["outputs"].pop("table.md")
        (results.root / "tables/headline/digest.json").write_text(json.dumps(record))
        both.append(results)
    return both[0], both[1]


def test_the_first_stage_and_key_come_first_and_numbers_follow(tmp_path: Path):
    a, b = _two(tmp_path)
    found = diff.compare(a.root, b.root)
    assert [pair[0].folder for pair in found.first] == ["models/small-from-large/s0"]
    assert [pair[0].folder for pair in found.behind] == ["tables/headline"]
    assert [*diff.reasons(*found.first[0])] == ["loss.k: 4 | 8"]
    assert [*diff.numbers(*found.first[0])] == ["last.kl: 0.25 | 0.5 (+0.25)"]
    assert [*diff.numbers(*found.behind[0])] == ["small.avg: 0.25 | 0.5 (+0.25)"]
    assert found.any and not diff.compare(a.root, a.root).any
    # By themselves: matched by the names of their inputs.
    two = diff.compare(a.root / "tables/headline", b.root / "tables/headline")
    assert [pair[0].folder for pair in two.first] == ["models/small-from-large/s0"]
    text = [*diff.lines(a.root, b.root, found)]
    assert text[1:3] == ["  models/small-from-large/s0", "    loss.k: 4 | 8"]


def test_what_one_side_lacks_is_said(tmp_path: Path):
    a, b = _two(tmp_path)
    a.add("prompts", "prompts/other", {"prompts.parquet": "x"})
    found = diff.compare(a.root, b.root)
    assert found.alone == [("prompts/other", str(a.root))]
    with pytest.raises(UserError, match="only results/NAME compare"):
        diff.compare(a.root, b.root / "tables/headline")


def test_files_that_differ_for_no_reason_are_said_not_to_repeat(tmp_path: Path):
    for name in "ab":
        results = Results(tmp_path / name)
        results.add("opd", "models/x/s0", {"w": name}, identity="same")
    found = diff.compare(*(tmp_path / n / "results" / "mini" for n in "ab"))
    (said,) = diff.reasons(*found.first[0])
    assert "does not repeat" in said


def test_every_bit_of_a_record_counts():
    """Also where the JSON stays the same value, as 1e-05 and 1E-05."""
    used = {"path": "x", "identity": "", "outputs": "0"}
    value = {"verb": "opd", "identity": "1", "cfg": {"lr": 1e-05, "on": True}, "outputs": {}}
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


def test_kept_steps_are_looked_at_with_their_run(tmp_path: Path):
    cfg = {"inputs": []}
    store, folder = tmp_path / "results" / ".store", tmp_path / "results/mini/models/m/s0"
    entry = store / identity.identity("opd", cfg, {})
    steps = store / f"{entry.name}.steps"
    for path in (entry, steps / "2", steps / "9", folder):
        path.mkdir(parents=True)
    for path in (entry, steps / "2"):  # the run ended before step 9
        (path / "weights").write_text(path.name)
    made = {"verb": "opd", "identity": entry.name, "cfg": cfg, "inputs": {}, "versions": {}}
    made |= {"outputs": content(entry), "numbers": {}, "seconds": 1.0}
    records.write(store / f"{entry.name}.json", Manifest(**made))
    for step in "29":
        records.write(steps / f"{step}.json", Contents(outputs=content(steps / step)))
    manifest.publish(Manifest(**made), entry, folder / "digest.json")

    def found() -> list[tuple[str, str]]:
        (one,) = audit(tmp_path / "results").audited
        return [(finding.state, finding.where) for finding in one.findings]

    assert found() == []
    (steps / "2" / "weights").write_text("3")
    assert found() == [("modified", "kept step 2/weights")]
    (steps / "2" / "weights").write_text("2")
    record = (steps / "2.json").read_text()
    (steps / "2.json").write_text(record.replace("outputs", "outputt"))
    assert found() == [("modified", "kept step 2.json")]
    (steps / "2.json").unlink()
    assert found() == [("missing", "kept step 2.json")]
    (steps / "2.json").write_text(record)
    (steps / "9" / "weights").write_text("late")
    assert found() == [("modified", "kept step 9/weights")]


def _of_format(number: int) -> Digest:
    return Digest(identity="", settings="", outputs={}, format=number)


def test_what_another_format_made_is_called_older_and_not_modified(tmp_path: Path):
    output = tmp_path / "results" / "mini" / "prompts" / "rl" / "digest.json"
    made = {"verb": "prompts", "cfg": {"code": "0", "inputs": []}, "inputs": {}, "outputs": {}}
    made |= {"numbers": {}, "versions": {}} | dict.fromkeys(("host", "device"), "x")
    made |= {"started": "2026-01-02T03:04:05Z", "seconds": 1.0}
    made["identity"] = identity.identity_of("prompts", made["cfg"], {})
    entry = tmp_path / "results" / ".store" / made["identity"]
    entry.mkdir(parents=True)
    records.write(entry.with_name(f"{entry.name}.json"), Manifest(**made))
    output.parent.mkdir(parents=True)
    manifest.publish(Manifest(**made), entry, output)
    (code,) = audit(output).audited[0].findings
    assert (code.state, code.where) == ("stale", "code")

    record = json.loads(output.read_text())
    assert record.pop("format") == records.FORMAT
    output.write_text(records.json_text(record))
    (older,) = audit(output).audited[0].findings
    assert (older.state, older.where) == ("stale", "digest.json")
    assert older.reason.startswith("made with an older format")
    assert any("made with an older format" in line for line in why.lines(output))
    assert _of_format(records.FORMAT).older == ""
    assert _of_format(records.FORMAT + 1).older == "made with a newer format"

"""What is wrong and where two differ, on folders made by hand; whole runs are in tests/workflow."""

import json
import os
import shutil
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from reported import Page
from results import SVG, Results, sample
from scripts import without_script

from opd.cli.main import main
from opd.core.errors import UserError
from opd.core.files import content
from opd.provenance import audit as audit_module
from opd.provenance import diff, why
from opd.provenance.audit import audit
from opd.provenance.diff import changes
from opd.stages import fresh, identity, records, run
from opd.stages.records import Contents, Digest, Manifest, Used


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


@pytest.mark.parametrize("text", ["[1]", '{"claims": 5}', '{"claims": [{"id": 1}]}', "[" * 10**5])
def test_what_is_no_claims_file_is_one_line_of_a_comparison(tmp_path: Path, text: str):
    ours, theirs = (sample(tmp_path / name).root for name in ("ours", "theirs"))
    made = theirs / "claims"
    (made / "payload/claims.json").write_text(text)
    for name in ("digest.json", "manifest.json"):
        record = json.loads((made / name).read_text())
        (made / name).write_text(json.dumps({**record, "outputs": content(made / "payload")}))
    differences = diff.compare(ours, theirs)
    with pytest.raises(UserError, match=r"claims.*not (what such a stage writes|readable as JSON)"):
        diff.lines(ours, theirs, differences)


def test_nothing_to_audit_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="no artifact is called"):
        audit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no artifact is called"):
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
            "distill",
            "models/small-from-large/s0",
            {"student": "models/small/s0", "prompts": "prompts/rl"},
            cfg={"loss": {"k": 8 if other else 4}, "lr": 0.1},
            numbers={"last": {"kl": 0.5 if other else 0.25}},
        )
        if other:
            metrics = results.root / "models/small-from-large/s0/payload/metrics.parquet"
            metrics.write_text("other")
            results.add(
                "distill",
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


def test_rows_of_words_are_compared_by_their_place(tmp_path: Path) -> None:
    """A table of responses has no column of rows, and rows that are called alike."""
    both = []
    for name, after in (("a", "4"), ("b", "5")):
        results = Results(tmp_path / name / "results" / "mini")
        text = f",question,after\ns ← t,1+1=,2\ns ← t,2+2=,{after}\n"
        results.add("table", "tables/t", {"table.csv": text}, {})
        both.append(results.root)
    ((pair,), _) = diff.compare(*both)[:2]
    assert [*diff.numbers(*pair)] == ["2: s ← t.after: 4 | 5 (+1)"]


def test_rows_and_claims_that_are_called_alike_are_all_compared(tmp_path: Path) -> None:
    """Two rows of a table may have the same label, and claims of two papers the same id."""
    both = []
    for name, value in (("a", 1), ("b", 2)):
        results = Results(tmp_path / name / "results" / "mini")
        text = f"row,avg\nsmall,{value}\nlarge,3\nsmall,4\n"
        results.add("table", "tables/t", {"table.csv": text}, {})
        claims = [
            {"paper": paper, "id": "E1", "verdict": "reproduced", "checks": [{"value": number}]}
            for paper, number in (("one", value), ("two", 5))
        ]
        results.add("claims", "claims", {"claims.json": json.dumps({"claims": claims})}, {})
        both.append(results.root)
    (claims_pair, table_pair) = diff.compare(*both).first
    assert [*diff.numbers(*table_pair)] == ["1: small.avg: 1 | 2 (+1)"]
    assert [*diff.numbers(*claims_pair)] == ["one/E1.check 0: 1 | 2 (+1)"]


def test_a_page_has_both_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _two(tmp_path)
    for results, colour in ((a, "<rect/>"), (b, "<circle/>")):
        source = {"r": "models/small-from-large/s0"}
        results.figure("curves", "Figures", source, title="T")
        text = SVG.replace("<text", f"{colour}<text")
        results.add("figure", "figures/curves", {"figure.svg": text}, source)
    a.add("prompts", "prompts/<script>alert(1)<|script>", {"prompts.parquet": "x"})
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["diff", str(a.root), str(b.root), "--html", str(page)])
    assert ended.value.code == 1
    assert "loss.k: 4 | 8" in capsys.readouterr().out
    html = without_script(page.read_text())
    assert "<script" not in html and "alert(1)" in html
    text = Page(html).text
    assert "last.kl 0.25 0.5 +0.25" in text and "small.avg 0.25 0.5 +0.25" in text
    assert "loss.k: 4 | 8" in text and f"only in {a.root}" in text
    images = [b64decode(uri.partition(",")[2]).decode() for uri in Page(html).values("src")]
    assert [name in image for name in ("<rect/>", "<circle/>") for image in images] == [
        *(True, False),
        *(False, True),
    ]
    main(["diff", str(a.root), str(a.root), "--html", str(page)])
    assert "They hold the same files" in page.read_text()


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
        results.add("distill", "models/x/s0", {"w": name}, identity="same")
    found = diff.compare(*(tmp_path / n / "results" / "mini" for n in "ab"))
    (said,) = diff.reasons(*found.first[0])
    assert "does not repeat" in said


def _published(results: Path, stage: str, folder: str, inputs: dict[str, Path]) -> Path:
    """A complete artifact, made from others by their digest.json; its own."""
    cfg, output = {"inputs": [*inputs], "k": 4}, results / "mini" / folder / "digest.json"
    used = {name: run.resolve_input(path)[1] for name, path in inputs.items()}
    contents = {name: source.outputs for name, source in used.items()}
    entry = results / ".store" / identity.identity(stage, cfg, contents)
    entry.mkdir(parents=True)
    (entry / "weights").write_bytes(bytes(range(40)))
    made = {"stage": stage, "identity": entry.name, "cfg": cfg, "outputs": content(entry)}
    made |= {"inputs": used}
    output.parent.mkdir(parents=True)
    records.write(entry.with_name(f"{entry.name}.json"), Manifest(**made))
    run.publish(Manifest(**made), entry, output)
    return output


def test_a_flipped_bit_is_found_in_every_file_and_of_its_artifact_alone(tmp_path: Path):
    source = _published(tmp_path / "results", "init", "models/a/s0", {})
    _published(tmp_path / "results", "distill", "models/b/s0", {"student": source})

    def wrong() -> dict[str, str]:
        return {x.place: x.state for x in audit(tmp_path / "results").audited if x.findings}

    assert wrong() == {}
    entry = (source.parent / "payload").resolve()
    record = entry.with_name(f"{entry.name}.json")
    for path in (source, source.with_name("manifest.json"), record, entry / "weights"):
        before = path.read_bytes()
        for at in range(0, len(before), 11):
            flipped = bytes([before[at] ^ (1 << at % 8)])
            path.write_bytes(before[:at] + flipped + before[at + 1 :])
            assert wrong() == {"models/a/s0": "modified"}, (path, at)
        path.write_bytes(before)
    # What follows from another source is stale, and what is gone missing.
    shutil.rmtree(source.parent)
    assert wrong() == {"models/b/s0": "missing"}
    (entry / "weights").write_bytes(b"other")
    made = records.read(record, Manifest)
    other = made.model_copy(update={"outputs": content(entry)})
    records.write(record, other)
    source.parent.mkdir()
    run.publish(other, entry, source)
    assert wrong() == {"models/b/s0": "stale"}


def test_nothing_outside_of_a_received_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its manifests and links lead to a file of 1 GB, a pipe, another artifact, and folders."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.mkfifo(elsewhere / "pipe")
    with (elsewhere / "large").open("wb") as file:
        file.truncate(10**9)
    (elsewhere / "data.jsonl").write_text("{}")
    (elsewhere / "folder").mkdir()
    (elsewhere / "folder" / "in").symlink_to("/usr")
    theirs = tmp_path / "theirs" / "results"
    other = _published(tmp_path / "other" / "results", "init", "models/a/s0", {})
    made = _published(theirs, "sft", "models/b/s0", {"data": elsewhere / "data.jsonl"})
    manifest = records.read(made.with_name("manifest.json"), Manifest)
    outside = {
        name: Used(path=str(elsewhere / name), identity="", outputs="")
        for name in ("large", "pipe", "folder", "../elsewhere/large")
    }
    outside["artifact"] = Used(path=str(other), identity="", outputs="")
    broken = manifest.model_copy(update={"inputs": manifest.inputs | outside})
    records.write(made.with_name("manifest.json"), broken)
    root = theirs / "mini"
    (root / "probes").symlink_to(other.parents[2])
    (root / "logs").symlink_to(elsewhere)
    (root / "plan.json").symlink_to(elsewhere / "large")
    (root / "config.yaml").symlink_to(elsewhere / "large")
    (root / "round").symlink_to(root)
    (root / "models" / "c" / "s0").mkdir(parents=True)
    (root / "models" / "c" / "s0" / "payload").symlink_to(elsewhere)
    os.mkfifo(root / "models" / "c" / "s0" / "digest.json")
    # As an entry of a store, with a kept step.
    entry = elsewhere / ("0" * 64)
    (elsewhere / f"{entry.name}.steps" / "2").mkdir(parents=True)
    (elsewhere / f"{entry.name}.steps" / "2" / "weights").write_text("x")
    entry.mkdir()
    (root / "models" / "d" / "s0").mkdir(parents=True)
    (root / "models" / "d" / "s0" / "payload").symlink_to(entry)
    (theirs / "more").symlink_to(tmp_path / "other" / "results" / "mini")
    opened: list[str] = []
    own = Path.open

    def spied(path: Path, *how: Any, **more: Any) -> Any:
        opened.append(os.path.relpath(os.path.realpath(path), tmp_path))
        return own(path, *how, **more)

    monkeypatch.setattr(Path, "open", spied)
    for place in (theirs, root, made.parent):
        report = audit(place)
        assert opened and not [p for p in opened if p.startswith(("elsewhere", "other"))]
        found = {x.place.removeprefix("mini/"): x for x in report.audited}
        assert found["models/b/s0"].state == "modified"
        assert str(elsewhere / "large") in found["models/b/s0"].absent
    assert "models/a/s0" not in "".join(found)
    found = {x.place: [f.text for f in x.findings] for x in audit(root).audited}
    assert found["probes"] == ["orphaned: probes is a link out of this folder"]
    assert not [place for place in found if place.startswith("round")]
    assert "missing: payload its link leads nowhere, or out of this folder" in "".join(
        found["models/c/s0"]
    )
    assert found["plan.json"] == ["modified: plan.json is no plain file"]
    assert found["config.yaml"] == ["modified: config.yaml is not what the run wrote"]


def test_no_link_in_a_payload_is_read_by_diff_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Of the files that they show: a table, claims, a figure; and one that leads nowhere."""
    a, b = _two(tmp_path)
    source = {"r": "models/small-from-large/s0"}
    for results, value in ((a, "1"), (b, "2")):
        results.add("table", "tables/t", {"table.csv": f"row,avg\nx,{value}\n"}, source)
        results.add("claims", "claims", {"claims.json": '{"claims": []}', "o": value}, source)
        results.add("figure", "figures/f", {"figure.svg": SVG, "o": value}, source)
    elsewhere = {
        "tables/t/payload/table.csv": "row,avg\nsecret,7\n",
        "claims/payload/claims.json": '{"claims": [{"id": "secret", "verdict": "", "checks": []}]}',
        "figures/f/payload/figure.svg": SVG.replace("a curve", "secret"),
    }
    for number, (place, text) in enumerate(elsewhere.items()):
        (tmp_path / str(number)).write_text(text)
        (b.root / place).unlink()
        (b.root / place).symlink_to(tmp_path / str(number))
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit):
        main(["diff", str(a.root), str(b.root), "--html", str(page)])
    html = page.read_text()
    images = [b64decode(uri.partition(",")[2]).decode() for uri in Page(html).values("src")]
    assert len(images) == 1
    assert "secret" not in "".join([capsys.readouterr().out, html, *images])
    (tmp_path / "2").unlink()
    main(["why", str(b.root / "figures/f")])
    assert "figure.svg" in capsys.readouterr().out


def test_links_and_data_of_ones_own_results_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Models on another disk, and prompts that are data of the user's."""
    monkeypatch.chdir(tmp_path)
    results, data, disk = Path("results"), tmp_path / "data" / "x.jsonl", tmp_path / "disk"
    for folder in (data.parent, disk, results / "mini"):
        folder.mkdir(parents=True)
    data.write_text("{}")
    (results / "mini" / "models").symlink_to(disk)
    _published(results, "sft", "models/b/s0", {"data": data})

    def found() -> list[str]:
        (only,) = audit(results).audited
        assert only.place == "models/b/s0" and only.absent == ()
        return [f"{finding.where}: {finding.reason}" for finding in only.findings]

    assert found() == []
    (disk / "b" / "s0" / "payload" / "weights").write_text("other")
    data.write_text("{} ")
    assert found() == [
        "payload/weights: was changed",
        f"input data: data: {data} has changed since",
    ]
    # Nobody knows of another place whether it is one's own.
    monkeypatch.chdir(disk)
    fresh.write_plan(tmp_path / results / "mini" / "plan.json", {})
    (only,) = audit(tmp_path / results / "mini").audited
    assert only.findings[0].text == "orphaned: models is a link out of this folder"


def test_a_link_in_a_payload_is_found(tmp_path: Path):
    made = _published(tmp_path / "results", "init", "models/a/s0", {})
    (made.parent / "payload" / "additional_chat_templates").symlink_to(tmp_path)
    (finding,) = audit(made).audited[0].findings
    assert finding.text == "modified: payload/additional_chat_templates was added"


def test_kept_steps_are_looked_at_with_their_run(tmp_path: Path):
    cfg = {"inputs": []}
    store, folder = tmp_path / "results" / ".store", tmp_path / "results/mini/models/m/s0"
    entry = store / identity.identity("distill", cfg, {})
    steps = store / f"{entry.name}.steps"
    for path in (entry, steps / "2", steps / "9", folder):
        path.mkdir(parents=True)
    for path in (entry, steps / "2"):  # the run ended before step 9
        (path / "weights").write_text(path.name)
    made = {"stage": "distill", "identity": entry.name, "cfg": cfg, "inputs": {}, "versions": {}}
    made |= {"outputs": content(entry), "numbers": {}, "seconds": 1.0}
    records.write(store / f"{entry.name}.json", Manifest(**made))
    for step in "29":
        records.write(steps / f"{step}.json", Contents(outputs=content(steps / step)))
    run.publish(Manifest(**made), entry, folder / "digest.json")

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


def test_weights_are_removed_as_planned_of_kept_steps_alone(tmp_path: Path):
    results = Results(tmp_path)
    for stage, folder in (("keep", "models/m@2/s0"), ("distill", "models/m/s0")):
        results.add(stage, folder, {"model.safetensors": "w", "config.json": "{}"})
        payload = results.root / folder / "payload"
        (payload / "model.safetensors").unlink()
        mark = f"{sha256(b'w').hexdigest()}\n"
        (payload / "model.safetensors.removed").write_text(mark)
    kept, run_itself = sorted(audit(results.root).audited, key=lambda x: x.stage, reverse=True)
    assert kept.removed == ("model.safetensors",) and run_itself.removed == ()
    wrong = [[x.text for x in one.findings if "payload" in x.where] for one in (kept, run_itself)]
    assert wrong == [[], ["missing: payload/model.safetensors is gone, and is no kept step"]]
    text = "\n".join(audit_module.lines(audit(results.root), "here", 1.0))
    assert "removed as planned: the weights of 1 kept steps (the first: models/m@2/s0)" in text
    lines = why.lines(*why.read(results.root / "models/m@2/s0"))
    assert any(line.split()[1:] == ["removed", "model.safetensors"] for line in lines)


def _of_format(number: int) -> Digest:
    return Digest(identity="", settings="", outputs={}, format=number)


def test_what_another_format_made_is_called_older_and_not_modified(tmp_path: Path):
    output = tmp_path / "results" / "mini" / "prompts" / "rl" / "digest.json"
    made = {"stage": "prompts", "cfg": {"code": "0", "inputs": []}, "inputs": {}, "outputs": {}}
    made |= {"numbers": {}, "versions": {}} | dict.fromkeys(("host", "device"), "x")
    made |= {"started": "2026-01-02T03:04:05Z", "seconds": 1.0}
    made["identity"] = identity.identity("prompts", made["cfg"], {})
    entry = tmp_path / "results" / ".store" / made["identity"]
    entry.mkdir(parents=True)
    records.write(entry.with_name(f"{entry.name}.json"), Manifest(**made))
    output.parent.mkdir(parents=True)
    run.publish(Manifest(**made), entry, output)
    (code,) = audit(output).audited[0].findings
    assert (code.state, code.where) == ("stale", "code")

    def write(path: Path, **changes: int | None) -> None:
        record = {
            key: value for key, value in json.loads(path.read_text()).items() if key != "seal"
        }
        record = {k: v for k, v in (record | changes).items() if v is not None}
        sealed = path.name == "manifest.json"
        path.write_text(records.json_text(records.sealed(record) if sealed else record))

    # A number that was taken out of, or changed in, digest.json alone is no other version's work.
    for number in (None, records.FORMAT + 1):
        write(output, format=number)
        (changed,) = [x for x in audit(output).audited[0].findings if x.where == "digest.json"]
        assert changed.state == "modified" and "format" in changed.reason
    for path in (output, output.with_name("manifest.json")):
        write(path, format=None)
    (older,) = audit(output).audited[0].findings
    assert (older.state, older.where) == ("stale", "digest.json")
    assert older.reason.startswith("made with an older format")
    assert any("made with an older format" in line for line in why.lines(*why.read(output)))
    assert _of_format(records.FORMAT).older == ""
    assert _of_format(records.FORMAT + 1).older == "made with a newer format"

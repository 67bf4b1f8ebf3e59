"""What is said of a finished run, of copies of it, and of whatever is changed in them."""

import csv
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT, Project

from opd.core.files import content, read_json
from opd.plan import state as planned
from opd.provenance import audit, diff
from opd.provenance.audit import Audit
from opd.stages import on_disk, records, registry, run
from opd.stages.on_disk import Made
from opd.stages.records import Manifest, State

pytestmark = pytest.mark.workflow
MODIFIED, MISSING, STALE, ORPHANED, COMPLETE = State


def _audit(project: Project, **more) -> Audit:
    return audit.audit(project.result(""), **more)


def _wrong(found: Audit) -> dict[str, str]:
    return {one.place: one.state for one in found.audited if one.findings}


@pytest.fixture(autouse=True)
def _papers(request: pytest.FixtureRequest) -> None:
    """Papers' files lie in config/ of the folder that one works in, where they are not beside the
    config."""
    for name in {"copy", "project"} & {*request.fixturenames}:
        folder = request.getfixturevalue(name).folder
        (folder / "config").symlink_to(ROOT / "config")


def _opd(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opd", *arguments],
        cwd=project.folder, env=project.environment, capture_output=True, text=True,
    )  # fmt: skip


def _flip(path: Path, seed: str) -> bytes:
    """Flip one bit of a file in place; its bytes before."""
    before = path.read_bytes()
    chosen = random.Random(seed)
    at, bit = chosen.randrange(len(before)), chosen.randrange(8)
    after = bytearray(before)
    after[at] ^= 1 << bit
    # In place: a hard link elsewhere changes, too.
    with path.open("r+b") as file:
        file.write(after)
    return before


def test_an_untouched_run_is_complete_and_nothing_is_written(finished: Project):
    before = {p: p.lstat().st_mtime_ns for p in finished.folder.rglob("*")}
    done = _opd(finished, "audit", "results", "--strict", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    # Every stage but those that need a hub, and a kept step, which has a test of its own.
    stages = {one["stage"] for one in found["artifacts"]}
    assert stages == set(registry.STAGES) - {"fetch", "dataset", "keep"}
    assert found["counts"] == {COMPLETE: len(finished.digests()) + 1}
    assert found["unused"] == {}
    assert _wrong(_audit(finished, plan=planned.described([finished.config]))) == {}
    assert {p: p.lstat().st_mtime_ns for p in finished.folder.rglob("*")} == before


def _kinds(project: Project) -> Iterator[Made]:
    """One artifact of every stage."""
    seen = set()
    for folder in on_disk.folders(project.result("")):
        one = Made(project.result(""), folder)
        if one.stage not in seen:
            seen.add(one.stage)
            yield one


def _files_of(one: Made) -> list[Path]:
    """Every file that makes up an artifact: its two records, its payload, the record of its store
    entry, and copies."""
    entry = (one.path / "payload").resolve()
    copies = [*one.copies.values()]
    records = [one.path / "digest.json", one.path / "manifest.json"]
    files = sorted(p for p in entry.rglob("*") if p.is_file())
    return [*records, entry.with_name(f"{entry.name}.json"), *files, *copies]


def test_a_flipped_bit_is_found_in_every_file_of_every_kind_of_artifact(copy: Project):
    """In turns: in each one file of every artifact that has as many."""
    entries = {
        folder: (copy.result(folder) / "payload").resolve()
        for folder in on_disk.folders(copy.result(""))
    }
    files = {made.folder: _files_of(made) for made in _kinds(copy)}
    flipped = 0
    for turn in range(max(map(len, files.values()))):
        damaged = {folder: paths[turn] for folder, paths in files.items() if turn < len(paths)}
        before = {path: _flip(path, f"{folder}/{path.name}") for folder, path in damaged.items()}
        audited = {artifact.place: artifact for artifact in audit.audit(copy.result("")).audited}
        wrong = {place for place, artifact in audited.items() if artifact.findings}
        # One that has the same files in the store is the same.
        same = {f for f in entries if entries[f] in {entries[folder] for folder in damaged}}
        assert {*damaged} <= wrong <= same
        for folder, path in damaged.items():
            assert audited[folder].state == MODIFIED, path
            (finding, *_) = audited[folder].findings
            assert path.name in finding.where or finding.where in str(path), path
        for path, content_before in before.items():
            path.write_bytes(content_before)
        flipped += len(damaged)
    assert flipped > 195
    assert _wrong(_audit(copy)) == {}


def test_a_flipped_bit_of_the_plan_is_found(copy: Project):
    path = copy.result("plan.json")
    for seed in range(10):
        before = _flip(path, str(seed))
        assert _wrong(_audit(copy))["plan.json"] == MODIFIED
        path.write_bytes(before)


@pytest.fixture
def moved(copy: Project, tmp_path: Path) -> Path:
    """The results folder alone under another name, its links followed: no store."""
    shutil.copytree(copy.result(""), tmp_path / "sent" / "theirs")
    shutil.rmtree(copy.folder)
    return tmp_path / "sent" / "theirs"


def test_a_copy_with_its_links_followed_is_complete(moved: Path):
    found = audit.audit(moved)
    assert _wrong(found) == {} and len(found.audited) > 30
    assert not (moved / "models/init/s0/payload").is_symlink()
    _flip(moved / "models/init/s0/payload/model.safetensors", "")
    assert _wrong(audit.audit(moved)) == {"models/init/s0": MODIFIED}


def test_a_copy_whose_store_lies_elsewhere(copy: Project, tmp_path: Path):
    (copy.folder / "results" / ".store").rename(tmp_path / "store")
    found = _audit(copy)
    assert {one.state for one in found.audited} == {MISSING}
    assert all(
        [(f.state, f.where) for f in one.findings] == [(MISSING, "payload")]
        for one in found.audited
    )
    assert _wrong(_audit(copy, store=tmp_path / "store")) == {}


def _findings(found: Audit) -> list[tuple[str, str, str]]:
    return [(one.place, f.state, f.where) for one in found.audited for f in one.findings]


def test_what_is_missing_added_and_of_no_plan(copy: Project):
    payload = copy.result("evaluations/held-out/base/s0/payload")
    (payload / "summary.json").rename(payload / "other.json")
    copy.result("tables/accuracy.md").unlink()
    copy.result("models/cold/s0/payload").unlink()
    copy.result("tables/note.txt").write_text("by hand")
    shutil.copytree(copy.result("prompts/rl"), copy.result("prompts/mine"), symlinks=True)
    shutil.rmtree(copy.result("figures/overlap"))
    assert sorted(_findings(_audit(copy))) == [
        ("evaluations/held-out/base/s0", MISSING, "payload/summary.json"),
        ("evaluations/held-out/base/s0", MODIFIED, "payload/other.json"),
        ("figures/overlap", MISSING, "figures/overlap"),
        ("figures/overlap.png", ORPHANED, "figures/overlap.png"),
        ("figures/overlap.svg", ORPHANED, "figures/overlap.svg"),
        ("models/cold/s0", MISSING, "payload"),
        ("prompts/mine", ORPHANED, "config"),
        ("report", MISSING, "input figure:overlap"),
        ("tables/accuracy", MISSING, "tables/accuracy.md"),
        ("tables/note.txt", ORPHANED, "tables/note.txt"),
    ]
    assert audit.fails(_audit(copy), ["missing", "orphaned"])
    (payload / "other.json").rename(payload / "summary.json")
    assert not audit.fails(_audit(copy), ["missing", "orphaned"])


def test_a_link_to_another_entry_is_found(copy: Project):
    link = copy.result("models/base/s0/payload")
    other = os.readlink(copy.result("models/cold/s0/payload"))
    link.unlink()
    link.symlink_to(other)
    found = _findings(_audit(copy))
    assert ("models/base/s0", MODIFIED, "payload") in found
    assert {place for place, *_ in found} == {"models/base/s0"}


def _seal(path: Path, change) -> None:
    made = read_json(path)
    change(made)
    records.write_json(path, records.sealed(made) if path.name == "manifest.json" else made)


def test_a_forger_who_leaves_the_identity_is_found_by_it(copy: Project):
    """Settings that look better, sealed anew."""
    path = copy.result("models/forward/s0/manifest.json")
    _seal(path, lambda made: made["cfg"].update(steps=2000))
    assert ("models/forward/s0", MODIFIED, "manifest.json") in _findings(_audit(copy))


def test_a_forger_who_mends_the_records_of_one_artifact_is_found_behind_it(copy: Project):
    """A payload edited, with its digests, and the store's record left out of it (a sent copy)."""
    folder = copy.result("evaluations/held-out/forward/s0")
    entry = (folder / "payload").resolve()
    (folder / "payload").unlink()
    shutil.copytree(entry, folder / "payload")
    summary = folder / "payload" / "summary.json"
    summary.write_text(summary.read_text().replace("0", "9", 1))
    outputs = content(folder / "payload")
    for name in ("manifest.json", "digest.json"):
        _seal(folder / name, lambda made: made.update(outputs=outputs))
    found = _findings(_audit(copy))
    shown = {"tables/accuracy", "probes/seen/s0", "report"}
    assert found and {place for place, *_ in found} == shown
    assert {state for _, state, _ in found} == {STALE}


def test_stale_settings_data_inputs_and_code_are_named(copy: Project, tmp_path: Path, monkeypatch):
    copy.edit(lambda c: c["models"]["forward"]["distill"].update(loss={"k": 8}))
    plan = planned.described([copy.config])
    found = _audit(copy, plan=plan)
    assert _findings(found) == [("models/forward/s0", STALE, "config: loss.k")]
    (finding,) = next(one.findings for one in found.audited if one.findings)
    assert finding.reason == "4 then, 8 now"
    done = _opd(copy, "audit", "results/tiny", "--configfile", str(copy.config))
    assert done.returncode == 1 and "config: loss.k: 4 then, 8 now" in done.stdout
    assert _opd(copy, "audit", "results/tiny", "--configfile", str(copy.config), "--allow",
                "stale").returncode == 0  # fmt: skip

    # An input made anew.
    other = copy.result("evaluations/held-out/base/s0")
    shutil.rmtree(other)
    shutil.copytree(copy.result("evaluations/held-out/cold/s0"), other, symlinks=True)
    found = _findings(_audit(copy))
    assert ("evaluations/held-out/base/s0", STALE, "config: input model") in found
    behind = {place for place, state, where in found if where.startswith("input ")}
    shown = {"tables/accuracy", "tables/measured", "tables/from-scores"}
    shown |= {"figures/rethinking_opd/fig05", "probes/seen/s0"}
    assert behind == {*shown, "claims", "report"}
    assert {state for _, state, _ in found} == {STALE}

    # Code, by the modules that were recorded.
    def without(made):
        made["modules"]["opd.losses.fused"] = "0"
        made["cfg"]["code"] = "0"

    folder = copy.result("models/backward/s0")
    _seal(folder / "manifest.json", without)
    made = records.read(folder / "manifest.json", Manifest)
    (code,) = audit._code(made)
    assert (code.state, code.reason) == (STALE, "changed since: opd.losses.fused")


def test_drift_is_shown_and_fails_only_if_asked_for(copy: Project, monkeypatch):
    now = {**run.versions(), "torch": "99.0"}
    monkeypatch.setattr(run, "versions", lambda: now)
    found = _audit(copy)
    assert not audit.fails(found) and audit.fails(found, strict=True)
    drifted = [one for one in found.audited if one.place == "models/base/s0"]
    assert drifted[0].drift["torch"][1] == "99.0"


def test_the_store_is_looked_through_with_all_results(copy: Project):
    shutil.rmtree(copy.result("report"))
    copy.result("report.html").unlink()
    found = audit.audit(copy.folder / "results")
    assert _findings(found) == [("report", MISSING, "report")]
    (unused,) = found.unused
    entry = copy.folder / "results" / ".store" / unused
    _flip(entry / "report.html", "")
    assert (f".store/{unused}", MODIFIED, "files/report.html") in _findings(
        audit.audit(copy.folder / "results")
    )


def test_one_artifact_is_looked_at_with_all_behind_it(copy: Project):
    found = audit.audit(copy.result("models/forward/s0"))
    places = [one.place for one in found.audited]
    assert places[-1] == "models/forward/s0" and "models/init/s0" in places
    assert not [p for p in places if p.startswith(("tables", "evaluations"))]
    _flip(copy.result("sft_data/mixed/payload/pairs.parquet"), "")
    assert _wrong(audit.audit(copy.result("models/forward/s0"))) == {"sft_data/mixed": MODIFIED}
    assert _wrong(audit.audit(copy.result("prompts/rl"))) == {}


# why, diff


@pytest.mark.parametrize(
    "folder",
    ["evaluations/held-out/forward/s0", "models/init/s0", "tables/accuracy", "sft_data/mixed"],
)
def test_the_command_that_why_gives_makes_the_same_again(copy: Project, folder: str):
    done = _opd(copy, "why", f"results/tiny/{folder}")
    assert done.returncode == 0, done.stderr
    again, compare = (line.strip() for line in done.stdout.splitlines()[-2:])
    assert again.startswith("opd ") and compare.startswith("opd diff ")
    made = _opd(copy, *shlex.split(again)[1:])
    assert made.returncode == 0 and "made: " in made.stdout, made.stderr
    same = (copy.folder / "again" / folder / "digest.json").read_bytes()
    assert same == (copy.result(folder) / "digest.json").read_bytes()
    compared = _opd(copy, *shlex.split(compare)[1:])
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.endswith(f"again/{folder} hold the same files: 1 artifact\n")


def test_why_tells_settings_origin_and_place(finished: Project):
    said = _opd(finished, "why", "results/tiny/forward/s0").stdout
    made = read_json(finished.result("models/forward/s0/manifest.json"))
    assert made["identity"] in said and made["started"] in said and made["host"] in said
    assert "models.forward, seed 0" in said and "loss.k " in said
    for source in ("models/init/s0  (init)", "sft_data/mixed  (corpus)", "prompts/rl  (prompts)"):
        assert source in said
    table = _opd(finished, "why", "results/tiny/tables/accuracy.csv").stdout
    assert table.startswith("results/tiny/tables/accuracy\n")
    lost = _opd(finished, "why", "results/tiny/tables/none")
    assert lost.returncode == 2 and "no artifact is called 'results/tiny" in lost.stderr


def test_diff_names_the_first_stage_and_key_and_the_cells(finished: Project, copy: Project):
    root = str(finished.result(""))
    assert _opd(copy, "diff", root, "results/tiny").returncode == 0
    copy.edit(lambda c: c["models"]["backward"]["distill"].update(lr=0.1))
    copy.run()
    done = _opd(copy, "diff", root, "results/tiny")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index("  models/backward/s0")
    assert lines[at - 1].startswith("where they part ways")
    assert lines[at + 1] == "    lr: 0.001 | 0.1"
    found = diff.compare(finished.result(""), copy.result(""))
    assert [a.folder for a, _ in found.first] == ["models/backward/s0"]
    assert {a.folder for a, _ in found.behind} >= {"tables/accuracy", "figures/overlap"}
    cells = [*diff.numbers(*next(p for p in found.behind if p[0].folder == "tables/accuracy"))]
    assert cells and all(line.startswith("backward.") for line in cells)
    assert any(line.startswith("backward.course_overlap_ratio_last: ") for line in cells)
    two = diff.compare(finished.result("models/forward/s0"), copy.result("models/backward/s0"))
    assert two.any and _opd(copy, "diff", root, "results").returncode in (1, 2)


# adopt


def _elsewhere(finished: Project, tmp_path: Path) -> Path:
    """A checkpoint as somebody else may have it: without what training logs."""
    folder = tmp_path / "theirs"
    shutil.copytree(finished.result("models/cold/s0/payload"), folder)
    (folder / "metrics.parquet").unlink()
    (folder / "training_args.bin").write_bytes(b"pickled")
    return folder


def test_an_adopted_checkpoint_is_taken_and_not_trained(
    finished: Project, project: Project, tmp_path: Path
):
    theirs = _elsewhere(finished, tmp_path)
    done = _opd(project, "adopt", str(theirs), "--as", "teacher", "--configfile",
                str(project.config))  # fmt: skip
    assert done.returncode == 0, done.stderr
    teacher = "models/teacher/s0"
    assert not (project.result(teacher) / "payload" / "training_args.bin").exists()
    target = "results/tiny/models/forward/s0/digest.json"
    needed = project.would_make(target)
    assert teacher not in needed and "models/base/s0" in needed and "models/forward/s0" in needed
    project.run(target)
    used = read_json(project.result("models/forward/s0/manifest.json"))["inputs"]["teacher"]
    adopted = read_json(project.result(teacher) / "digest.json")
    assert used["identity"] == adopted["identity"] and adopted["adopted"] is True
    weights = (project.result(teacher) / "payload" / "model.safetensors").read_bytes()
    assert weights == (theirs / "model.safetensors").read_bytes()
    # Its inputs have been made since, for others: its stage has not been run.
    log = project.result(f"logs/{teacher}.log")
    assert not log.exists()
    project.run(target, "--forcerun", f"results/tiny/{teacher}/digest.json")
    assert read_json(project.result(teacher) / "digest.json") == adopted
    assert "found in the store" in log.read_text()
    assert "Nothing to be done" in project.run("-n", target)

    found = audit.audit(project.result("models/forward/s0"))
    assert _wrong(found) == {}
    assert [one.place for one in found.audited if one.adopted] == [teacher]
    said = _opd(project, "why", "results/tiny/forward/s0").stdout
    assert f"{teacher}  (grpo, adopted)" in said
    assert "nothing here made it" in _opd(project, "why", f"results/tiny/{teacher}").stdout
    _flip(project.result(teacher) / "payload" / "model.safetensors", "")
    assert _wrong(audit.audit(project.result(teacher))) == {teacher: MODIFIED}
    broken = project.run(target, "--forcerun", f"results/tiny/{teacher}/digest.json", ok=False)
    assert "what was adopted here is damaged" in project.result(f"logs/{teacher}.log").read_text()
    assert "Traceback" not in broken

    # Another recipe than the one it stands for is made.
    project.edit(lambda c: c["models"]["teacher"]["grpo"].update(lr=1e-3))
    assert teacher in project.would_make(target)


def test_a_run_of_verl_is_in_table_figure_and_report(
    finished: Project, copy: Project, tmp_path: Path
):
    step = tmp_path / "global_step_2"
    (step / "actor").mkdir(parents=True)
    _elsewhere(finished, tmp_path).rename(step / "actor" / "huggingface")
    log = tmp_path / "verl.jsonl"
    lines = [{"step": n, "data": {"val-topk/overlap_ratio": n / 4}} for n in (1, 2)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(copy.result("models/forward"))
    done = _opd(copy, "adopt", str(step), "--as", "forward", "--metrics", str(log),
                "--configfile", str(copy.config))  # fmt: skip
    assert done.returncode == 0, done.stderr
    copy.run()
    with copy.result("tables/accuracy.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["row"] == "forward")
    courses = "course_overlap_ratio_first", "course_overlap_ratio_last"
    assert [float(row[name]) for name in courses] == [0.25, 0.5]
    assert 0 <= float(row["avg"]) <= 1
    (panel,) = read_json(copy.result("figures/overlap/payload/figure.json"))["panels"]
    (line,) = (line for line in panel["lines"] if line["label"] == "forward")
    assert (line["x"], line["y"]) == ([1, 2], [0.25, 0.5])
    adopted = "Adopted, and not made here: models/forward/s0."
    assert adopted in copy.result("report.html").read_text()
    assert _wrong(_audit(copy)) == {}


def test_adopted_rollouts_are_filtered(finished: Project, copy: Project, tmp_path: Path):
    rollouts = finished.result("generations/rollouts/s0/payload/generations.parquet")
    shutil.rmtree(copy.result("generations/rollouts"))
    done = _opd(copy, "adopt", str(rollouts), "--as", "rollouts", "--configfile",
                str(copy.config))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sft_data/traces/s0" in copy.would_make()
    copy.run()
    # Snakemake looks again at what it made from other inputs: it is taken as it was adopted.
    assert "found in the store" in copy.result("logs/generations/rollouts/s0.log").read_text()
    page = copy.result("report.html").read_text()
    assert "adopted" in page[page.index('id="run:generations/rollouts/s0"') :][:600]
    assert _wrong(_audit(copy)) == {}

"""What runs again after which edit: the promises that the design makes about the DAG."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from project import ROOT, TINY, Project

from opd.core.files import read_json

pytestmark = pytest.mark.workflow

EVALUATION = "evaluations/held-out/forward/s0"


def test_everything_asked_for_is_there(finished: Project):
    for path in ("tables/accuracy.csv", "tables/outlook.md", "figures/overlap.png", "report.html"):
        assert finished.result(path).stat().st_size > 0
    figures = {p.stem for p in finished.result("figures/rethinking_opd").glob("*.svg")}
    assert figures == {"fig05", "fig11b", "fig14"}
    judged = json.loads(finished.result("claims.json").read_text())["claims"]
    verdicts = {one["experiment"]: one["verdict"] for one in judged}
    assert verdicts["E04"] == "not run" and verdicts["E10"] != "not run"
    for artifact in finished.digests():
        folder = finished.result(artifact)
        assert (folder / "manifest.json").is_file()
        assert (folder / "payload").is_dir()
    logs = {p.stem for p in finished.result("logs/models").rglob("*.log")}
    assert logs == {"s0"}


def test_snakemakes_own_report_has_what_each_result_says(finished: Project, tmp_path: Path):
    finished.run("--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as file:
        page = file.read("report/report.html").decode()
        names = {Path(name).name for name in file.namelist()}
    paper = yaml.safe_load((ROOT / "config" / "figures" / "rethinking_opd.yaml").read_text())
    titles = ["Overlap", "Reverse", "Accuracy", "Outlook", "Measured"]
    titles += [paper[figure]["title"] for figure in ("fig05", "fig11b", "fig14")]
    for title in titles:
        assert f"<strong>{title}.</strong>" in page
    assert "What the paper claims, and whether it holds here" in page
    assert "The report of this scale, in one file" in page
    assert {"report.html", "claims.html", "overlap.png", "fig05.png", "accuracy.csv"} <= names


def test_snakemakes_own_report_has_tables_that_no_config_names(copy: Project, tmp_path: Path):
    """A config without a paper shows what was said of a pair before training."""
    copy.edit(lambda c: c.pop("papers"))
    table = f"results/{copy.name}/tables/outlook-outlook.csv"
    copy.run(table)
    copy.run(table, "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as file:
        page = file.read("report/report.html").decode()
    assert "<strong>Before training: outlook.</strong>" in page


def test_finished_run_has_nothing_to_do(finished: Project):
    assert "Nothing to be done" in finished.run("-n")


def test_jobs_that_wait_are_looked_at_when_another_ends_and_not_in_between(copy: Project):
    """Looking takes processor time, and without this it is done ever more often."""
    output = copy.run("--cores", "1", "--forcerun", "figure", "--verbose")
    ended = output.count("Finished jobid")
    assert ended >= 4 and output.count("Ready jobs") <= ended + 1


def test_edit_of_k_lists_that_run_and_what_shows_it_and_editing_back_trains_nothing(copy: Project):
    before = copy.digests()

    def set_k(k: int):
        copy.edit(lambda c: c["models"]["forward"]["distill"].update(loss={"k": k}))

    set_k(8)
    shown = {"tables/accuracy", "tables/measured", "probes/seen/s0", "figures/overlap", "report"}
    edited = {"models/forward/s0", EVALUATION, *shown}
    assert copy.would_make() - {"all"} == edited
    copy.run()
    changed = {f for f, text in copy.digests().items() if text != before[f]}
    assert "models/forward/s0" in changed and changed <= edited
    set_k(4)
    copy.run()
    assert copy.digests() == before
    assert "found in the store" in copy.result("logs/models/forward/s0.log").read_text()


def test_evaluation_edit_trains_nothing(copy: Project):
    copy.edit(lambda c: c["protocols"]["two-samples"].update(temperature=0.5))
    made = copy.would_make()
    assert not [m for m in made if m.startswith(("models", "prompts", "sft_data", "generations"))]
    assert EVALUATION in made


def test_new_threshold_of_a_deduplication_reruns_its_filter_alone(copy: Project):
    copy.edit(lambda c: c["prompts"]["other-new"]["dedup"].update(threshold=0.5))
    made = copy.would_make()
    assert "prompts/other-new" in made
    assert not [m for m in made if m.startswith(("embeddings", "neighbours", "contamination"))]


def _with_code(copy: Project, tmp_path: Path) -> Project:
    """The finished run with code of its own, and up to date: a paper's files lie elsewhere then."""
    code = tmp_path / "code"
    for part in ("src", "workflow", "config", "envs"):
        shutil.copytree(ROOT / part, code / part)
    shutil.copy(ROOT / "Snakefile", code)
    moved = Project(copy.folder, code)
    made = {name for name in moved.would_make() if not name.startswith("figures/rethinking_opd/")}
    assert made <= {"claims", "report", "all"}
    moved.run()
    return moved


def test_comment_reruns_nothing_and_a_loss_edit_reruns_training_only(copy: Project, tmp_path):
    project = _with_code(copy, tmp_path)
    losses = project.code / "src" / "opd" / "losses" / "fused.py"
    text = losses.read_text()
    losses.write_text(text.replace("import torch\n", "import torch  # tensors\n\n# why not\n", 1))
    assert "Nothing to be done" in project.run("-n")
    losses.write_text(text + "\n\nUNUSED = 1\n")
    made = {m for m in project.would_make() if m.startswith(("models", "prompts", "sft_data"))}
    distilled = ("forward", "forward-other", "backward", "offline")
    assert made == {f"models/{name}/s0" for name in distilled}


def test_upstream_rerun_with_the_same_result_stops_there(copy: Project):
    (copy.result("models/base/s0/digest.json")).unlink()
    for entry in (copy.folder / "results" / ".store").iterdir():
        if entry.name.startswith(_identity(copy, "models/base/s0")):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    copy.run(f"results/{copy.name}/models/base/s0/digest.json")
    assert "Nothing to be done" in copy.run("-n")


def _identity(project: Project, artifact: str) -> str:
    return read_json(project.result(artifact) / "manifest.json")["identity"]


def test_other_config_has_no_name_of_minis(project: Project):
    output = project.run("-n")
    mini = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    tiny = yaml.safe_load(project.config.read_text())
    own = {name for section in tiny.values() if isinstance(section, dict) for name in section}
    foreign = {n for s in ("models", "tables", "figures") for n in mini[s]} - own
    assert "results/mini" not in output
    assert foreign and not [n for n in foreign if f"/{n}/" in output or f"/{n}." in output]


def test_default_is_mini(tmp_path: Path):
    project = Project(tmp_path)
    command = [c for c in project.command("-n") if c not in ("--configfile", str(project.config))]
    done = subprocess.run(command, env=project.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "results/mini/" in done.stdout + done.stderr


def test_a_key_that_stands_twice_is_refused(tmp_path: Path):
    """Snakemake itself takes the last of the two."""
    project = Project(tmp_path)
    written = project.config.read_text()
    project.config.write_text(f"{written}\nstall_minutes: 1\nstall_minutes: 2\n")
    at = len(written.splitlines()) + 2
    line = f"line {at + 1}: the key 'stall_minutes' stands there twice"
    assert f"tiny.yaml: not readable as YAML ({line})" in project.run("-n", ok=False)


def test_an_edit_is_seen_without_snakemakes_records(copy: Project):
    shutil.rmtree(copy.folder / ".snakemake")
    copy.edit(lambda c: c["models"]["forward"]["distill"].update(loss={"k": 8}))
    said = copy.run("-n")
    line = "not as the config says: results/tiny/models/forward/s0 (loss.k: "
    assert line in said and "→ 8)" in said
    assert {"models/forward/s0", EVALUATION, "tables/accuracy", "report"} <= copy.would_make()
    assert "models/teacher/s0" not in copy.would_make()


def test_data_that_changed_at_an_older_time_is_read_again(copy: Project):
    """As where ``cp -p`` puts an earlier file in its place: Snakemake goes by times."""
    labelled = copy.folder / "labelled.jsonl"
    shutil.copy(TINY.with_name("labelled.jsonl"), labelled)
    path = {"file": str(labelled)}
    copy.edit(lambda c: c["prompts"]["labelled"].update(path=path))
    copy.run()
    first, *rows = labelled.read_text().splitlines(keepends=True)
    labelled.write_text("".join(rows))
    os.utime(labelled, (1e9, 1e9))
    assert {"prompts/labelled", "prompts/labelled-short"} <= copy.would_make()
    assert "data that has changed since: results/tiny/prompts/labelled;" in copy.run("-n")
    labelled.write_text(first + "".join(rows))
    os.utime(labelled, (1e9, 1e9))
    assert not copy.would_make()


def test_old_results_are_not_shown_under_an_edited_config(copy: Project):
    copy.edit(lambda c: c["models"]["forward"]["distill"].update(loss={"k": 8}))
    table = copy.result("tables/accuracy.csv")
    table.unlink()
    # Told to go by times alone, Snakemake takes the old run for the edited one.
    asked = (str(table.relative_to(copy.folder)), "--rerun-triggers", "mtime")
    copy.run(*asked, ok=False)
    failed = copy.result("logs/tables/accuracy.log").read_text()
    assert "stale: made with other settings" in failed
    assert not table.exists()
    mend = re.search(r"--forcerun (results/tiny/models/forward/s0/digest.json)", failed)
    assert mend
    copy.run(*asked, "--forcerun", mend[1])
    assert table.stat().st_size > 0
    assert "not as the config says" not in copy.run("-n")

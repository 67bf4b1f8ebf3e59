"""A step of a training run that is kept, and asked for, after everything else has been made."""

import csv
import re

import pytest
from project import Project

from opd.provenance.audit import audit

pytestmark = pytest.mark.workflow

RUN, STEP = "models/forward/s0", "models/forward@1/s0"
EVALUATION = "evaluations/held-out/forward@1/s0"
TWO = {"samples": 2, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 12}


def _keep_one(config):
    config["models"]["forward"]["distill"]["keep_steps"] = [1]


def _row(model: str):
    def change(config):
        config["tables"]["accuracy"]["rows"].append({"label": model, "model": model})

    return change


def _computed(project: Project, before: dict[str, float]) -> set[str]:
    """Artifacts whose logs are newer than ``before`` and do not say that they were found."""
    logs = project.result("logs")
    return {
        artifact
        for artifact, time in _logged(project).items()
        if time > before.get(artifact, 0) and "made: " in (logs / f"{artifact}.log").read_text()
    }


def _logged(project: Project) -> dict[str, float]:
    root = project.result("logs")
    paths = root.rglob("*.log")
    return {str(p.relative_to(root).with_suffix("")): p.stat().st_mtime for p in paths}


def test_a_step_kept_later_trains_that_run_again_and_nothing_after_it(copy: Project):
    before = copy.digests()
    copy.edit(_keep_one)
    target = f"results/{copy.name}/{EVALUATION}/digest.json"
    assert copy.would_make(target) == {RUN, STEP, EVALUATION}
    copy.run(target)
    after = copy.digests()
    assert {f: after[f] for f in before} == before
    assert after.keys() - before.keys() == {STEP, EVALUATION}
    # Nothing that depends on the run's last step: its digest has the same bytes.
    assert "Nothing to be done" in copy.run("-n")
    payload = copy.result(STEP) / "payload"
    final = copy.result(RUN) / "payload"
    files = {path.name for path in final.iterdir()} - {"metrics.parquet"}
    assert {path.name for path in payload.iterdir()} == files
    name = "model.safetensors"
    assert (payload / name).read_bytes() != (final / name).read_bytes()

    copy.edit(_row("forward@1"))
    assert copy.would_make() - {"all"} == {"tables/accuracy", "report"}
    copy.run()
    assert "forward@1" in copy.result("tables/accuracy.md").read_text()


def _weights(project: Project, step: int = 1) -> list[bool]:
    """Whether the weights of a kept step are there: in its artifact, and in its run's folder."""
    run = (project.result(RUN) / "payload").resolve()
    folders = project.result(STEP) / "payload", run.with_name(f"{run.name}.steps") / str(step)
    return [(folder / "model.safetensors").exists() for folder in folders]


def _findings(project: Project) -> list[tuple[str, str]]:
    audited = audit(project.result("")).audited
    return [(artifact.place, finding.text) for artifact in audited for finding in artifact.findings]


def test_in_one_call_what_depends_on_the_run_is_found_in_the_store(copy: Project):
    before, logged = copy.digests(), _logged(copy)
    copy.edit(_keep_one)
    # Step 0 is the student, step 2 the model: both have been evaluated.
    for model in ("forward@0", "forward@1", "forward@2"):
        copy.edit(_row(model))
    copy.run()
    assert _computed(copy, logged) == {RUN, STEP, EVALUATION, "tables/accuracy", "report"}
    after = copy.digests()
    assert {f for f in before if after[f] != before[f]} == {"tables/accuracy"}
    with copy.result("tables/accuracy.csv").open() as file:
        averages = {row[0]: row[1] for row in csv.reader(file)}
    assert averages["forward@2"] == averages["forward"]

    # Its weights go as soon as they may, and nothing is made for that.
    assert _weights(copy) == [True, True]
    copy.edit(lambda c: c["models"]["forward"]["distill"].update(keep="until_evaluated"))
    logged = _logged(copy)
    copy.run()
    ran = {name for name, time in _logged(copy).items() if time > logged.get(name, 0)}
    assert ran == {"released/forward@1/s0"} and _weights(copy) == [False, False]
    assert copy.digests() == after and "Nothing to be done" in copy.run("-n")
    assert _findings(copy) == []
    assert {x.place: x.removed for x in audit(copy.result("")).audited if x.removed} == {
        STEP: ("model.safetensors",)
    }

    # What reads them then trains that run again, to the same bytes, and they go once more.
    copy.edit(lambda c: c["evaluations"].update(again={**c["evaluations"]["held-out"]}))
    copy.edit(lambda c: c["evaluations"]["again"].update(protocol="three-samples"))
    copy.edit(lambda c: c["protocols"].update({"three-samples": {**TWO, "samples": 3}}))
    row = {"label": "forward@1", "model": "forward@1"}
    shown = {"title": "Again", "evaluation": "again", "columns": ["avg"], "rows": [row]}
    copy.edit(lambda c: c["tables"].update(again=shown))
    output = copy.run()
    assert f"{RUN} is trained again: the weights of {STEP} are gone" in output
    new = {"evaluations/again/forward@1/s0", "tables/again"}
    assert _computed(copy, logged) == {RUN, STEP, "report"} | new
    again = copy.digests()
    assert {f: again[f] for f in after} == after and again.keys() - after.keys() == new
    assert _weights(copy) == [False, False] and _findings(copy) == []

    # Without the mark of that, it is somebody else's doing.
    (copy.result(STEP) / "payload" / "model.safetensors.removed").unlink()
    assert _findings(copy) == [(STEP, "missing: payload/model.safetensors is gone")]

    # What is kept is no longer asked for: the run is linked, not trained.
    logged = _logged(copy)
    copy.edit(lambda c: c["models"]["forward"]["distill"].pop("keep_steps"))
    copy.edit(lambda c: c["tables"]["accuracy"]["rows"].pop(-2))
    copy.edit(lambda c: c["tables"].pop("again"))
    copy.run()
    assert _computed(copy, logged) == {"tables/accuracy", "report"}


def test_a_step_that_is_not_kept_is_one_line(copy: Project):
    copy.edit(_keep_one)
    copy.edit(_row("backward@1"))
    output = copy.run("-n", ok=False)
    lines = [line for line in output.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in output
    assert re.search(
        r"tables\.accuracy\.rows\.3\.model: 'backward@1': step 1 of backward is not kept, "
        r"only 0, 2 are; add it to keep_steps of models\.backward\.distill",
        lines[0],
    )

"""What a job does that has waited in a queue: it parses config and code again, and stops where that
is no longer what the run that submitted it has planned."""

import subprocess

import pytest
from project import Project

pytestmark = pytest.mark.workflow


def start_job(project: Project, told: str, rule: str, **wildcards: str) -> tuple[int, str]:
    """What Snakemake starts for one job, on a cluster or elsewhere; ``told`` is what the run has
    exported."""
    which = ",".join(f"{key}={value}" for key, value in wildcards.items())
    done = subprocess.run(
        project.command(
            *("--force", "--nolock", "--ignore-incomplete", "--no-hooks", "--mode", "subprocess"),
            *("--target-files-omit-workdir-adjustment", "--allowed-rules", rule),
            *("--target-jobs", f"{rule}:{which}"),
        ),
        env={**project.environment, "OPD_PLAN": told},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_job_makes_what_was_planned_or_stops_with_one_line(project: Project, tmp_path):
    # What the run exports is seen in the shell of a stage.
    site = tmp_path / "site.yaml"
    site.write_text(f'setup: echo "$OPD_PLAN" > {tmp_path}/told')
    target = "results/tiny/prompts/rl/digest.json"
    done = subprocess.run(
        project.command(target),
        env={**project.environment, "OPD_SITE": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().strip()
    (made,) = project.digests().values()

    code, output = start_job(project, told, "prompts", prompts="rl")
    assert code == 0, output
    assert project.digests()["prompts/rl"] == made

    # Something else was edited: this job makes what it was submitted for.
    project.edit(lambda c: c["prompts"]["easy"]["world"].update(n=5))
    code, output = start_job(project, told, "prompts", prompts="rl")
    assert code == 0, output
    before = project.result("prompts/rl/digest.json").stat().st_mtime_ns

    remedy = "while this job waited; run the same command again"
    project.edit(lambda c: c["prompts"]["rl"]["world"].update(n=17))
    edited = f"error: results/tiny/prompts/rl: was edited {remedy}"
    project_says = {edited: {"prompts": "rl"}}
    project.edit(lambda c: c["prompts"].update(other2=c["prompts"].pop("easy")))
    project.edit(lambda c: c["benchmarks"]["easy"].update(prompts="other2"))
    project.edit(lambda c: c.pop("contamination"))
    gone = f"error: results/tiny/prompts/easy: was taken out of the config {remedy}"
    project_says[gone] = {"prompts": "easy"}
    for line, wildcards in project_says.items():
        code, output = start_job(project, told, "prompts", **wildcards)
        assert code != 0
        assert output.splitlines()[-1] == line
        assert "Traceback" not in output
        # Shown where the run was started, which shows the log of a job that fails.
        log = project.result(f"logs/prompts/{wildcards['prompts']}.log")
        assert log.read_text() == f"{line}\n"
    assert project.result("prompts/rl/digest.json").stat().st_mtime_ns == before
    assert not project.result("prompts/easy").exists()

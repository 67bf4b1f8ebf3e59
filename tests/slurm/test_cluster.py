"""`--profile slurm` on a real Slurm: where jobs go, and what becomes of them in faults."""

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from clone import CONFIG, FAST, ROOT, WORKFLOW, Clone
from cluster import KILL_WAIT_SECONDS, Cluster, run

from opd.core import marked
from opd.core.files import read_json
from opd.doctor import slurm
from opd.rehearsal import command as rehearsals

pytestmark = pytest.mark.slurm

TRAINED = "models/forward/s0"
TARGET = f"results/small/{TRAINED}/digest.json"
PROMPTS = "results/small/prompts/easy/digest.json"
STEPS = 60
# Longer than any look of Snakemake at its jobs, so that one falls into it.
CONTROLLER_AWAY_SECONDS = 20
# What every Python of a clone runs first: a step of a training lasts as long as a file is there.
ENDLESS = """
import sys
import time
from pathlib import Path

if {{"distill", "opd.training.launch"}} & {{*sys.orig_argv}}:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def wait(*_):
        while Path("{path}").exists():
            time.sleep(0.1)

    register_optimizer_step_pre_hook(wait)
"""


def edit(clone: Clone, old: str, new: str) -> None:
    config = clone.folder / CONFIG
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


def planned(*arguments: str) -> str:
    """A dry run of the very command in this repository, as in a fresh clone."""
    command = [str(WORKFLOW), "-m", "snakemake", "--cores", "all", "--profile", "slurm", "-n"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPD_")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OPD_SITE": ""}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_command_is_the_paper_and_with_one_configfile_the_miniature():
    paper = planned("--set-resources", "distill:runtime=77")
    assert re.search(r"^distill +27$", paper, re.MULTILINE)
    trained = re.findall(
        r"^rule distill:$.*?^    resources: (.*?)$", paper, re.MULTILINE | re.DOTALL
    )
    assert len(trained) == 27
    assert all(" gpu=8," in line and " runtime=77," in line for line in trained)
    mini = planned("--configfile", "config/mini.yaml")
    assert "results/mini/claims.json" in mini
    assert "results/paper/" not in mini and " gpu=" not in mini


def test_every_stage_is_a_job_in_its_partition_with_the_gpus_it_asked_for(finished: Clone):
    jobs = {job.number: job for job in finished.jobs()}
    rules = {number: job.made.split("_")[1] for number, job in jobs.items()}
    expected = {
        "prompts": 2,
        "corpus": 1,
        "init": 1,
        "sft": 1,
        "distill": 1,
        "evaluate": 1,
        "table": 1,
    }
    assert Counter(rules.values()) == expected
    assert {job.state for job in jobs.values()} == {"COMPLETED"}
    # One stage a job, on two GPUs as well, and none outside a job.
    assert sorted(stage.job for stage in finished.stages()) == sorted(jobs)
    one = {"0", "1"}
    gpus = {"sft": one, "evaluate": one, "distill": {"0,1"}}
    for stage in finished.stages():
        given = gpus.get(rules[stage.job], {"none"})
        assert stage.gpus in given, (stage, rules[stage.job])
        assert jobs[stage.job].partition == ("cpu" if given == {"none"} else "gpu")
        assert int(jobs[stage.job].memory.removesuffix("M")) >= 500
    assert "| forward |" in (finished.results / "tables" / "accuracy.md").read_text()


def test_a_stage_on_two_gpus_runs_once_in_two_processes(finished: Clone, folder: Path):
    """The class follows from the config: nothing names it."""
    clone = finished.copy(folder)
    edit(clone, "training: {", "training: {processes: 2, ")
    clone.run("results/small/models/teacher/s0/digest.json")
    (job,) = clone.jobs("sft")
    assert [(stage.job, stage.gpus) for stage in clone.stages()] == [(job.number, "0,1")]
    manifest = read_json(clone.results / "models/teacher/s0/manifest.json")
    assert manifest["cfg"]["processes"] == 2
    assert clone.log("models/teacher/s0").count("made: ") == 1


def test_a_requeued_training_goes_on_and_ends_in_the_same_bytes(finished: Clone, folder: Path):
    clone = finished.copy(folder, without=TRAINED)
    running = clone.start(TARGET)
    clone.cluster.until(lambda: clone.step() > 3, "a training under way")
    (job,) = clone.jobs("distill")
    run("scontrol", "requeue", job.number)
    clone.ended(running)
    assert [one.number for one in clone.jobs("distill")] == [job.number]
    assert [stage.job for stage in clone.stages()] == [job.number] * 2
    went_on = re.search(r"going on from step (\d+)", clone.log(TRAINED))
    assert went_on and 0 < int(went_on[1]) < STEPS
    assert clone.digest(TRAINED) == finished.digest(TRAINED)


def test_a_job_whose_config_was_edited_while_it_waited_stops(finished: Clone, folder: Path):
    """On a node that is drained, then resumed; what was not edited is made."""
    clone, cluster = finished.copy(folder, without=TRAINED), finished.cluster
    edit(clone, "prompts:\n  rl:", "prompts:\n  more: {world: {split: easy, n: 5}}\n  rl:")
    node = f"nodename={cluster.host}"
    run("scontrol", "update", node, "state=drain", "reason=test")
    try:
        running = clone.start(TARGET, "results/small/prompts/more/digest.json")
        cluster.until(lambda: len(clone.jobs()) == 2, "two jobs in the queue")
        cluster.until(
            lambda: all("DRAINED" in job.reason for job in clone.jobs()), "jobs that wait"
        )
        assert {job.state for job in clone.jobs()} == {"PENDING"}
        edit(clone, "loss: {k: 4}", "loss: {k: 2}")
    finally:
        run("scontrol", "update", node, "state=resume")
    printed = clone.ended(running, ok=False)
    line = (
        f"error: results/small/{TRAINED}: was edited while this job waited;"
        " run the same command again"
    )
    tries = clone.jobs("distill")
    assert len(tries) == 2
    assert printed.count(line) == 4  # of each attempt its own log, and Slurm's
    assert "Traceback" not in printed
    assert not (clone.results / TRAINED / "digest.json").exists()
    (made,) = clone.jobs("prompts")
    assert [stage.job for stage in clone.stages()] == [made.number]
    assert (clone.results / "prompts/more/digest.json").is_file()


def test_a_job_that_fails_shows_its_log_and_tries_once_more_with_more(
    finished: Clone, folder: Path
):
    """The second attempt of what must fail again does so before its first step."""
    clone = finished.copy(folder)
    edit(clone, "lr: 1.0e-3\n      max_prompt_tokens", "lr: 1.0e+30\n      max_prompt_tokens")
    printed = clone.run(TARGET, ok=False)
    said = [line for line in printed.splitlines() if line.startswith("error: lr: ")]
    assert len(said) == 2 and "lower the learning rate" in said[0]
    assert said[1].startswith(said[0]) and "to try the same once more, remove" in said[1]
    first, second = clone.jobs("distill")
    assert (first.state, second.state) == ("FAILED", "FAILED")
    assert (first.minutes, second.minutes) == ("10:00", "20:00")
    assert (first.memory, second.memory) == ("6000M", "12000M")
    assert "it/s" not in clone.log(TRAINED)


def test_jobs_survive_a_controller_that_is_started_again(finished: Clone, folder: Path):
    clone, cluster = finished.copy(folder, without=TRAINED), finished.cluster
    running = clone.start(TARGET)
    cluster.until(lambda: clone.step() > 3, "a training under way")
    cluster.stop("slurmctld")
    time.sleep(CONTROLLER_AWAY_SECONDS)
    cluster.controller()
    clone.ended(running)
    (job,) = clone.jobs("distill")
    assert job.state == "COMPLETED" and len(clone.stages()) == 1
    assert clone.digest(TRAINED) == finished.digest(TRAINED)


def test_an_orphan_and_its_replacement_never_both_win(finished: Clone, folder: Path):
    """Snakemake is killed and started again while its job lives on."""
    clone, cluster = finished.copy(folder, without=TRAINED), finished.cluster
    clone.site(distill={"class": "gpu1"})  # one GPU for each of the two
    head = clone.start(TARGET)
    cluster.until(lambda: clone.step() > 3, "a training under way")
    orphan = clone.owner()
    os.kill(orphan, signal.SIGSTOP)  # for as long as the replacement takes to come
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()
    clone.run("--unlock")
    again = clone.start(TARGET)
    waits = f"waiting for process {orphan} "
    cluster.until(lambda: waits in clone.log(TRAINED), "a replacement that waits")
    assert clone.owner() == orphan
    assert not (clone.results / TRAINED / "digest.json").exists()
    os.kill(orphan, signal.SIGCONT)
    clone.ended(again)
    cluster.until(
        lambda: [job.state for job in clone.jobs("distill")] == ["COMPLETED"] * 2, "both ended"
    )
    assert len(clone.stages()) == 2
    assert clone.log(TRAINED).count("found in the store: ") == 1
    assert list(clone.store().values()).count("distill") == 1
    assert clone.digest(TRAINED) == finished.digest(TRAINED)
    assert not list((clone.folder / "results" / ".store" / ".scratch").glob("*"))


def test_two_users_work_side_by_side_each_in_a_clone(cluster: Cluster, folder: Path):
    """By the very command, with the plugin's own pace."""
    folder.mkdir()
    root, nobody = Clone(folder / "a", cluster), Clone(folder / "b", cluster, user="nobody")
    who = pwd.getpwnam("nobody")
    for path in (nobody.folder, *nobody.folder.rglob("*")):
        os.chown(path, who.pw_uid, who.pw_gid)
    more = ("results/small/prompts/easy/digest.json", "--slurm-init-seconds-before-status-checks")
    running = [(clone, clone.start(*more, "5", clamp=False)) for clone in (root, nobody)]
    for clone, one in running:
        clone.ended(one)
        (job,) = clone.jobs()
        assert (job.state, job.user) == ("COMPLETED", clone.user)
        assert [(stage.job, stage.user) for stage in clone.stages()] == [(job.number, clone.user)]
        made = clone.results / "prompts/easy/digest.json"
        assert made.owner() == clone.user
    assert root.digests() == nobody.digests()
    shutil.rmtree(folder)


def test_snakemake_as_a_job_itself(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Where it may not run on the login node: what it makes is a job of its own all the same."""
    clone = Clone(folder, cluster)
    monkeypatch.setenv("PYTHONPATH", str(folder / "src"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    options = [f"--output={clone.printed}", "--mem=1000", "--parsable", "--wrap"]
    head = run("sbatch", *options, f"exec {shlex.join(clone.command(PROMPTS))}").strip()

    def state() -> str:
        return next(job.state for job in cluster.jobs() if job.number == head)

    cluster.until(lambda: state() == "RUNNING", "a Snakemake in a job")
    monkeypatch.setenv("SLURM_JOB_ID", head)
    found = {finding.subject: finding for finding in slurm.examine("slurm", {})}
    assert re.match(rf"inside job {head}, which has \d+:\d\d left;", found["Snakemake runs"].what)
    cluster.until(lambda: state() != "RUNNING", "its end")
    assert state() == "COMPLETED", clone.printed.read_text()
    (job,) = clone.jobs("prompts")
    assert job.number != head and [stage.job for stage in clone.stages()] == [job.number]
    assert (folder / PROMPTS).is_file()


def test_what_doctor_says_of_this_cluster(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without an accounting database; a second attempt beyond what its node has."""
    Clone(folder, cluster)
    monkeypatch.chdir(folder)
    grows = {"mem_mb": lambda wildcards, attempt: 40000 * attempt}
    found = {finding.subject: finding for finding in slurm.examine("slurm", {"distill": grows})}
    assert "where that is not allowed, as a job" in found["Snakemake runs"].what
    assert found["Slurm accounting"].state == "ok"
    assert "sacct would not do" in found["Slurm accounting"].what
    assert found["partitions"].state == "ok"
    assert found["attempts"].what == (
        "attempt 2 has no place: 80000 MB of memory asked for, at most 64000 there (distill)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("most", [None, 60000])
def test_an_attempt_that_no_node_has_room_for_is_refused(
    cluster: Cluster, folder: Path, most: int | None
):
    """As doctor says; with max_mem_mb it is made."""
    clone = Clone(folder, cluster)
    clone.site(prompts={"mem_mb": 40000, **({"max_mem_mb": most} if most else {})})
    running = clone.start(PROMPTS)
    job = cluster.until(lambda: clone.jobs("prompts"), "a job")[0]
    run("scancel", job.number)
    printed = clone.ended(running, ok=bool(most))
    second = clone.jobs("prompts")[1]
    expected = ("60000M", "COMPLETED") if most else ("80000M", "FAILED")
    assert (second.memory, second.state) == expected
    assert ("Requested node configuration is not available" in printed) == (not most)


def let_one_step_last(clone: Clone, steps: int) -> tuple[subprocess.Popen[bytes], Path]:
    """A training that has taken more than so many steps, of which the one under way lasts until a
    file is removed, and whose job has one to two minutes left."""
    endless = clone.folder / "endless"
    (clone.folder / "src" / "sitecustomize.py").write_text(ENDLESS.format(path=endless))
    running = clone.start(TARGET)
    clone.cluster.until(lambda: clone.step() > steps, "a training under way")
    endless.touch()
    (job,) = clone.jobs("distill")
    ran = run("squeue", "-h", "-j", job.number, "-o", "%M")
    limit = int(ran.split(":")[-2]) + 2
    run("scontrol", "update", f"jobid={job.number}", f"timelimit={limit}")
    return running, endless


@pytest.mark.slow
def test_a_time_limit_is_followed_by_an_attempt_with_a_longer_one(finished: Clone, folder: Path):
    """In a step that does not end: the next attempt goes on from the last checkpoint."""
    clone, cluster = finished.copy(folder, without=TRAINED), finished.cluster
    running, endless = let_one_step_last(clone, 20)
    cluster.until(lambda: clone.jobs("distill")[0].state == "TIMEOUT", "the limit", every=1)
    endless.unlink()
    clone.ended(running)
    first, second = clone.jobs("distill")
    assert (first.state, second.state, second.minutes) == ("TIMEOUT", "COMPLETED", "20:00")
    assert "going on from step 20\n" in clone.log(TRAINED)
    assert clone.digest(TRAINED) == finished.digest(TRAINED)


@pytest.mark.slow
def test_a_training_ends_a_slow_step_before_its_limit_and_goes_on_from_there(
    finished: Clone, folder: Path
):
    """Slurm's early signal comes to every process of the stage, in a step that takes longer than
    Slurm would wait at the limit. Two processes, which leave together, between steps only."""
    cluster = finished.cluster
    whole = finished.copy(folder.with_name("undisturbed"))
    edit(whole, "training: {", "training: {processes: 2, ")
    whole.run(TARGET)
    clone = whole.copy(folder, without=TRAINED)
    running, endless = let_one_step_last(clone, 3)
    told = "told to stop: as soon as the step under way has ended"
    cluster.until(lambda: told in clone.log(TRAINED), "the early signal")
    step = clone.step()
    time.sleep(KILL_WAIT_SECONDS + 2)
    assert clone.jobs("distill")[0].state == "RUNNING" and clone.step() == step
    endless.unlink()
    clone.ended(running)
    first, second = clone.jobs("distill")
    assert (first.state, second.state, second.minutes) == ("FAILED", "COMPLETED", "20:00")
    went_on = re.search(r"going on from step (\d+)", clone.log(TRAINED))
    # The first process may have been a step's end ahead. No checkpoint by step is before 20.
    assert went_on and step <= int(went_on[1]) <= step + 1 < 20
    assert clone.digest(TRAINED) == whole.digest(TRAINED)


@pytest.mark.slow
def test_a_rehearsal_runs_as_jobs_of_the_site(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A probe and what it needs; what asks the hub stays on this machine."""
    Clone(folder, cluster)
    config = ROOT / "tests" / "workflow" / "rehearsed.yaml"
    shutil.copy(config, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv(marked.VARIABLE, raising=False)  # set by a rehearsal, and put back here
    snakemake = SimpleNamespace(
        run=lambda command, **named: subprocess.run([command[0], FAST, *command[3:]], **named)
    )
    monkeypatch.setattr(rehearsals, "subprocess", snakemake)
    target = "results/large-rehearsal/probes/pair/s0/digest.json"
    arguments = ["--profile", "slurm", target]
    assert rehearsals.rehearse([Path(config.name)], [], None, 1, arguments) == 0
    rehearsal = folder / "rehearsals" / "large"
    assert (rehearsal / target).is_file()
    jobs = [job for job in cluster.jobs() if job.folder == str(rehearsal)]
    places = {job.made.split("_")[1]: (job.partition, job.state) for job in jobs}
    assert places == {
        "fit": ("cpu", "COMPLETED"),
        "generate": ("gpu", "COMPLETED"),
        "pair": ("gpu", "COMPLETED"),
    }

"""What a user sees who interrupts a run or feeds it something bad, and what is lost by it."""

import shutil
import subprocess
import time

import pytest
from project import Project

pytestmark = pytest.mark.workflow


def test_interrupted_run_continues_and_ends_the_same(finished: Project, project: Project):
    """Interrupted twice, early and while a model is trained."""
    for reached in ("sft_data/mixed", "models/teacher/s0"):
        running = project.start()
        deadline = time.time() + 300
        while not (project.result(reached) / "digest.json").exists():
            assert running.poll() is None and time.time() < deadline
            time.sleep(0.1)
        time.sleep(1)  # into the next stage
        # Ctrl-C reaches the whole foreground process group.
        subprocess.run(["kill", "-INT", "--", f"-{running.pid}"], check=True)
        assert running.wait(timeout=120) != 0
        kept = project.digests()
        assert kept.keys() < finished.digests().keys()
        store = project.folder / "results" / ".store"
        unfinished = {p.name for p in store.iterdir() if p.name.startswith(".")}
        assert unfinished <= {".scratch", ".cache"}
    project.run()
    assert project.digests() == finished.digests()
    for table in ("accuracy.csv", "accuracy.md"):
        path = f"tables/{table}"
        assert project.result(path).read_bytes() == finished.result(path).read_bytes()


def test_killed_run_goes_on_from_its_checkpoint(copy: Project):
    """SIGKILL leaves no time to tidy up: the next run trusts nothing unfinished, goes on with what
    is whole, and makes what it would have made."""
    before = copy.digests()

    def longer(config):
        config["models"]["forward"]["distill"]["steps"] = 40

    copy.edit(longer)
    copy.edit(lambda c: c.update(training={"checkpoint_every": 5}))
    running = copy.start()
    store = copy.folder / "results" / ".store"
    deadline = time.time() + 120
    while True:
        journals = list(store.glob(".scratch/*/metrics.jsonl"))
        if journals and len(journals[0].read_text().splitlines()) > 12:
            break
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.01)
    subprocess.run(["kill", "-KILL", "--", f"-{running.pid}"], check=True)
    running.wait()
    copy.run("--unlock")
    copy.run()
    assert "going on from step" in copy.result("logs/models/forward/s0.log").read_text()
    assert not list(store.glob(".scratch/*"))
    resumed = copy.digests()
    assert resumed.keys() == before.keys()
    assert resumed["models/forward/s0"] != before["models/forward/s0"]
    # Back and forth: found in the store, then made again without a disturbance.
    made = copy.result("models/forward/s0/payload").resolve()
    copy.edit(lambda c: c["models"]["forward"]["distill"].update(steps=2))
    copy.run()
    assert copy.digests() == before
    shutil.rmtree(made)
    copy.edit(longer)
    copy.run()
    assert copy.digests() == resumed


def test_bad_input_gets_one_line_and_leaves_nothing_half_written(copy: Project):
    before = copy.digests()

    def break_four_stages(config):
        config["models"]["forward"]["distill"]["max_prompt_tokens"] = 2
        config["models"]["backward"]["distill"]["lr"] = 1e30
        config["prompts"]["other-new"]["dedup"]["threshold"] = -1.0
        config["sft_data"]["traces"]["filter"]["rules"] = ["boxed"]

    copy.edit(break_four_stages)
    shown = copy.run("--keep-going", ok=False)
    expected = {
        "models/forward/s0": "prompts.parquet: row 0",
        "models/backward/s0": "learning rate",
        "prompts/other-new": "threshold",
        "sft_data/traces/s0": "boxed",
    }
    for artifact, words in expected.items():
        log = copy.result(f"logs/{artifact}.log").read_text()
        lines = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, log
        assert words in lines[0] and "Traceback" not in log
        place = f"error: {artifact}: {lines[0].removeprefix('error: ')}"
        assert place in shown, shown
        assert not (copy.result(artifact) / "digest.json").exists()
        assert not (copy.result(artifact) / "payload").exists()
    kept = {f: text for f, text in copy.digests().items() if f not in expected}
    assert kept == {f: before[f] for f in kept}
    assert "models/teacher/s0" in kept

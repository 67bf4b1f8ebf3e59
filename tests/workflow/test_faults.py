"""What a user sees who interrupts a run or feeds it something bad, and what is lost by it."""

import subprocess
import time

import pytest
from project import Project

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize("reached", ["pairs/mixed", "models/teacher/s0"])
def test_interrupted_run_continues_and_ends_the_same(finished: Project, project: Project, reached):
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
    assert not [p.name for p in store.iterdir() if p.name.startswith(".")]
    project.run()
    assert project.digests() == finished.digests()
    for table in ("accuracy.csv", "accuracy.md"):
        path = f"tables/{table}"
        assert project.result(path).read_bytes() == finished.result(path).read_bytes()


def test_killed_run_continues(copy: Project):
    """SIGKILL leaves no time to tidy up: the next run still trusts nothing unfinished."""
    before = copy.digests()
    copy.edit(lambda c: c["models"]["forward"]["opd"].update(steps=3))
    running = copy.start()
    log = copy.result("logs/models/forward/s0.log")
    old = log.stat().st_mtime
    deadline = time.time() + 120
    while log.stat().st_mtime == old:
        assert running.poll() is None and time.time() < deadline
        time.sleep(0.05)
    subprocess.run(["kill", "-KILL", "--", f"-{running.pid}"], check=True)
    running.wait()
    copy.run("--unlock")
    copy.run()
    assert copy.digests().keys() == before.keys()
    assert copy.digests()["models/forward/s0"] != before["models/forward/s0"]
    copy.edit(lambda c: c["models"]["forward"]["opd"].update(steps=2))
    copy.run()
    assert copy.digests() == before


def test_bad_input_gets_one_line_and_leaves_nothing_half_written(copy: Project):
    before = copy.digests()

    def break_four_stages(config):
        config["models"]["forward"]["opd"]["max_prompt_tokens"] = 2
        config["models"]["backward"]["opd"]["lr"] = 1e30
        config["prompts"]["other-new"]["dedup"]["threshold"] = -1.0
        config["pairs"]["traces"]["filter"]["rules"] = ["boxed"]

    copy.edit(break_four_stages)
    shown = copy.run("--keep-going", "--show-failed-logs", ok=False)
    expected = {
        "models/forward/s0": "prompts.parquet: row 0",
        "models/backward/s0": "learning rate",
        "prompts/other-new": "threshold",
        "pairs/traces/s0": "boxed",
    }
    for artifact, words in expected.items():
        log = copy.result(f"logs/{artifact}.log").read_text()
        lines = [line for line in log.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, log
        assert words in lines[0] and "Traceback" not in log
        assert lines[0] in shown
        assert not (copy.result(artifact) / "digest.json").exists()
        assert not (copy.result(artifact) / "payload").exists()
    kept = {f: text for f, text in copy.digests().items() if f not in expected}
    assert kept == {f: before[f] for f in kept}
    assert "models/teacher/s0" in kept

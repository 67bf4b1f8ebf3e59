"""The live view: of a run that is under way, and of one that is done."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opd.cli.main import main
from opd.core import tables
from opd.core.errors import UserError
from opd.losses.schemas import METRICS
from opd.provenance.watch import watch
from opd.stages import lock


def line(step: int) -> dict[str, float]:
    return {"step": step, "of": 4, "loss": 1 / step, "kl_nats": 0.5, "other": 1.0}


def test_a_run_that_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "payload").mkdir()
    rows = [
        {"step": s, "name": n, "position": p, "value": v}
        for s in (1, 2)
        for n, p, v in (("loss", None, s / 3), ("kl_nats", None, 0.25), ("kl_nats", 0, 9.0))
    ]
    # What is measured before the first step is no step.
    rows.insert(0, {"step": 0, "name": "nll_nats", "position": None, "value": 4.0})
    tables.write(tmp_path / "payload" / "metrics.parquet", rows, METRICS)
    (tmp_path / "digest.json").write_text("{}")
    main(["watch", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "       step       loss    kl_nats",
        "        1/2     0.3333       0.25",
        "        2/2     0.6667       0.25",
    ]


@pytest.mark.parametrize("columns", ["8", "14", "24"])
def test_a_terminal_that_is_narrow_has_the_steps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    rows = [{"step": s, "name": "loss", "position": None, "value": 0.5} for s in (1, 2)]
    tables.write(tmp_path / "metrics.parquet", rows, METRICS)
    (tmp_path / "digest.json").write_text("{}")
    monkeypatch.setenv("COLUMNS", columns)
    heading, *steps = (line.split() for line in watch(tmp_path))
    assert heading == (["step", "loss"] if columns == "24" else ["step"])
    assert [step[0] for step in steps] == ["1/2", "2/2"]


def test_a_run_under_way_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    """Every step is shown once, also where the journal was cut back to a checkpoint."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    journal, running = scratch / "metrics.jsonl", tmp_path / "running.json"
    running.write_text(json.dumps({"scratch": str(scratch)}))
    held = (scratch / "owner").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(watch(tmp_path, 0.001)))
    reader.start()
    for steps in ([1], [1, 2], [1, 2, 3], [1, 2], [1, 2, 3], [1, 2, 3, 4]):
        temporary = scratch / "new"
        temporary.write_text("".join(json.dumps(line(s)) + "\n" for s in steps))
        temporary.replace(journal)
        time.sleep(0.05)
    held.close()  # as a kill does it, which leaves running.json where it is
    reader.join(10)
    assert not reader.is_alive() and running.is_file()
    assert seen.pop() == "it was killed: start it again, it goes on from its last checkpoint"
    assert [row.split()[0] for row in seen] == ["step", "1/4", "2/4", "3/4", "4/4"]
    assert seen[0].split() == ["step", "loss", "kl_nats"]


def test_a_run_without_news_tells_when_it_was_last_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SAY_SECONDS", 0.02)
    (tmp_path / "running.json").write_text(json.dumps({"scratch": str(tmp_path / "scratch")}))
    with lock.alone(tmp_path / "scratch"):
        path = tmp_path / "scratch" / lock.OWNER
        os.utime(path, (time.time() - 90,) * 2)
        news = watch(tmp_path, 0.001)
        said = f"process {os.getpid()} on {platform.node()}, last heard 9"
        assert [next(news).startswith(said) for _ in range(2)] == [True, True]
        (tmp_path / "running.json").unlink()
    assert not [line for line in news if not line.startswith(said)]


def test_a_run_that_stopped_tells_why(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "results" / "mini" / "models" / "m" / "s0"
    folder.mkdir(parents=True)
    log = tmp_path / "results/mini/logs/models/m/s0.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 4\ninterrupted: what was finished is kept, start again\n")
    (tmp_path / "results/mini/plan.json").write_text('{"models/m/s0": {}}')
    monkeypatch.chdir(tmp_path)
    main(["watch", "m"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("it stopped: interrupted: what was finished is kept, start again (all")
    assert line.endswith(f"results/mini/{log.relative_to(tmp_path / 'results/mini')})")


def test_where_there_is_nothing_to_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no run is under way or done here; name the model of"):
        list(watch(tmp_path))
    (tmp_path / "digest.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["watch", str(tmp_path)])
    assert "it is no training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("running", "line", "reason"),
    [
        ("[1]", "", "running.json: it does not say where the run works"),
        ('{"scratch": 5}', "", "running.json: it does not say where the run works"),
        ("[" * 10**5, "", "running.json: not readable as JSON"),
        (None, '{"step": 1}', "line 1: not the metrics of a step"),
        (None, '{"step": 1, "of": "x"}', "line 1: not the metrics of a step"),
        (None, "[" * 10**5, "line 1: not the metrics of a step"),
    ],
)
def test_what_a_run_says_of_itself_may_be_damaged(
    tmp_path: Path, running: str | None, line: str, reason: str
) -> None:
    text = json.dumps({"scratch": str(tmp_path)}) if running is None else running
    (tmp_path / "running.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=reason):
        [*watch(tmp_path, 0.001)]


def test_nothing_outside_of_a_received_folder_is_watched(tmp_path: Path) -> None:
    """Its running.json and its links lead to the metrics of another run."""
    other = tmp_path / "other"
    other.mkdir()
    row = {"step": 1, "name": "loss", "position": None, "value": 1.0}
    tables.write(other / "metrics.parquet", [row], METRICS)
    (other / "metrics.jsonl").write_text('{"step": 1, "of": 2, "loss": 1.0}\n')
    folder = tmp_path / "theirs" / "results" / "mini" / "models" / "m" / "s0"
    folder.mkdir(parents=True)
    (folder / "running.json").write_text(json.dumps({"scratch": str(other)}))
    with pytest.raises(UserError, match=r"running\.json: it does not say where the run works"):
        [*watch(folder, 0.001)]
    scratch = tmp_path / "theirs" / "results" / ".store" / ".scratch" / "k"
    scratch.mkdir(parents=True)
    (scratch / "metrics.jsonl").symlink_to(other / "metrics.jsonl")
    (folder / "running.json").write_text(json.dumps({"scratch": str(scratch)}))
    assert [*watch(folder, 0.001)] == [
        "it was killed: start it again, it goes on from its last checkpoint"
    ]
    (folder / "digest.json").write_text("{}")
    for target in (other, other / "metrics.parquet"):
        if target == other:
            (folder / "payload").symlink_to(other)
        else:
            (folder / "payload").unlink()
            (folder / "payload").mkdir()
            (folder / "payload" / "metrics.parquet").symlink_to(target)
        with pytest.raises(UserError, match="it is no training run"):
            [*watch(folder, 0.001)]


def test_a_pipe_that_is_closed_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "payload").mkdir()
    rows = [{"step": s, "name": "loss", "position": None, "value": 1.0} for s in range(20000)]
    tables.write(tmp_path / "payload" / "metrics.parquet", rows, METRICS)
    (tmp_path / "digest.json").write_text("{}")
    done = subprocess.run(
        f"{sys.executable} -m opd watch {tmp_path} | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["step", "loss"] and done.stderr == ""

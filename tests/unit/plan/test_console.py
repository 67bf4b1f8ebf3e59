"""What a run says when it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opd.core import marked
from opd.plan import console
from opd.stages.artifact import Artifact

pytestmark = pytest.mark.unit
BEGAN = 1_000.0


def put(path: Path, text: str, at: float = BEGAN + 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (at, at))
    return path


def made(root: Path, folder: str, at: float = BEGAN + 1, **files: Any) -> None:
    put(root / folder / "digest.json", "{}", at)
    for name, value in files.items():
        put(root / folder / "payload" / f"{name}.json", json.dumps(value), at)


def test_failed_jobs_are_told_by_the_error_lines_of_their_logs(tmp_path: Path) -> None:
    put(tmp_path / "logs/models/a/s0.log", "step 1\nerror: x.jsonl: row 3: bad; mend it\n")
    put(tmp_path / "logs/models/killed/s0.log", "step 1\nKilled\n\n")
    put(tmp_path / "logs/models/bar/s0.log", "sft: 10%|█  | 1/10\rsft: 60%|███ | 6/10 [00:07]")
    put(tmp_path / "logs/models/silent/s0.log", "")
    put(tmp_path / "logs/models/taken-down/s0.log", "step 4\ntold to stop: what was finished\n")
    put(tmp_path / "logs/models/before/s0.log", "error: of another run\n", BEGAN - 1)
    put(tmp_path / "logs/models/made/s0.log", "error: of the attempt before\n")
    made(tmp_path, "models/made/s0")
    put(tmp_path / "logs/models/hostile/s0.log", "error: \x1b[2Jgone\n")
    names = ("a", "killed", "bar", "silent", "taken-down", "before", "made", "hostile", "not-begun")
    failures = console.failures([f"models/{name}/s0" for name in names], tmp_path, BEGAN)
    assert [*failures] == [
        f"models/{name}/s0" for name in ("a", "killed", "bar", "silent", "hostile")
    ]
    lines = [*failures.values()]
    assert [line.split(" (all of it: ")[0] for line in lines] == [
        "error: models/a/s0: x.jsonl: row 3: bad; mend it",
        "error: models/killed/s0: Killed",
        "error: models/bar/s0: it ended without a word, at sft: 60%|███ | 6/10 [00:07]",
        "error: models/silent/s0: its log is empty",
        "error: models/hostile/s0: ⟨U+001B⟩[2Jgone",
    ]
    assert lines[0].endswith(f"(all of it: {tmp_path}/logs/models/a/s0.log)")


def test_what_jobs_are_at_is_the_last_line_of_their_logs(tmp_path: Path) -> None:
    bar = "large: 10%|█  | 1/10 [00:03<00:27]\rlarge: 20%|██ | 2/10 [00:06<00:24, 3.00s/it]"
    put(tmp_path / "logs/models/bar/s0.log", f"begins\n{bar}")
    put(tmp_path / "logs/models/long/s0.log", "x" * 10_000 + "\n\x1b[2Jlast\n\n")
    put(tmp_path / "logs/models/failed/s0.log", "error: of this run\n")
    put(tmp_path / "logs/models/silent/s0.log", "step 1\n", BEGAN - 1)
    put(tmp_path / "logs/models/empty/s0.log", "")
    put(tmp_path / "logs/models/made/s0.log", "made\n")
    made(tmp_path, "models/made/s0")
    names = ("bar", "long", "failed", "silent", "empty", "made", "not-begun")
    lines = console.under_way([f"models/{name}/s0" for name in names], tmp_path, BEGAN)
    assert lines == {
        "models/bar/s0": "large: 20%|██ | 2/10 [00:06<00:24, 3.00s/it]",
        "models/long/s0": "⟨U+001B⟩[2Jlast",
    }


def test_a_job_is_told_of_once_a_minute_and_at_once_if_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    look = console.teller(["a", "b"], tmp_path, told.append)

    def at(seconds: float) -> list[str]:
        monkeypatch.setattr(console.time, "time", lambda: BEGAN + seconds)
        for log in tmp_path.glob("logs/*.log"):
            os.utime(log, (BEGAN + seconds, BEGAN + seconds))
        told.clear()
        look()
        return [*told]

    put(tmp_path / "logs/a.log", "1/9")
    assert at(0) == at(55) == []
    put(tmp_path / "logs/b.log", "waiting for process 7 on here, last heard 2 s ago")
    assert at(58) == ["b: waiting for process 7 on here, last heard 2 s ago"]
    assert at(61) == ["a: 1/9"]
    put(tmp_path / "logs/a.log", "5/9")
    assert at(117) == [] and [line[:2] for line in at(122)] == ["a:", "b:"]


INTERRUPTED = """
import logging, os, signal
from opd.plan import console
signal.signal(signal.SIGINT, signal.default_int_handler)
console.end_at_interrupt()
try:
    os.kill(os.getpid(), signal.SIGINT)
except SystemExit:
    os.kill(os.getpid(), signal.SIGINT)  # no second one
    logging.getLogger("snakemake").error("of a job that was ended")
    print("ends")
"""


def test_ctrl_c_is_one_line_and_a_second_is_none() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    line = "interrupted: what was finished is kept, the same command goes on\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", line)


def test_notes_of_prompt_sets_that_were_just_made(tmp_path: Path) -> None:
    made(tmp_path, "prompts/new", report={"notes": ["3 of 4 rows ask again", "an\x1b[31mother"]})
    made(tmp_path, "prompts/plain", report={})
    made(tmp_path, "prompts/old", BEGAN - 1, report={"notes": ["said before"]})
    made(tmp_path, "models/new/s0", report={"notes": ["no prompt set"]})
    artifacts = {
        folder: Artifact(stage, folder, {}, ())
        for stage, folder in (
            ("prompts", "prompts/new"),
            ("prompts", "prompts/plain"),
            ("prompts", "prompts/old"),
            ("prompts", "prompts/absent"),
            ("sft", "models/new/s0"),
        )
    }
    assert console.notes_of_data(artifacts, tmp_path, BEGAN) == [
        "note: prompts/new: 3 of 4 rows ask again",
        "note: prompts/new: an⟨U+001B⟩[31mother",
    ]


def test_verdicts_and_pages_that_were_just_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"reproduced": 2, "inconclusive": 1}
    verdicts = {
        "comparable": False,
        "seeds": [0],
        "papers": {
            "rethinking_opd": {
                "title": "A paper",
                "counts": counts,
                "without_interval": {"reproduced": 1},
            }
        },
    }
    assert console.findings(tmp_path, BEGAN) == []
    made(tmp_path, "claims")
    put(tmp_path / "claims.json", json.dumps(verdicts))
    made(tmp_path, "report")
    lines = console.findings(tmp_path, BEGAN)
    first = "A paper: 2 ✓ reproduced (1 of them on one run, without an interval)"
    assert lines[0].startswith(first)
    assert lines[1:] == [f"to be read: {tmp_path}/{page}.html" for page in ("claims", "report")]
    assert console.findings(tmp_path, BEGAN + 2) == []
    monkeypatch.setenv(marked.VARIABLE, "1")
    assert console.findings(tmp_path, BEGAN)[0] == marked.MARK


def test_without_claims_what_came_out_and_where_models_are_is_said(tmp_path: Path) -> None:
    change = {"change": 0.25, "change_low": 0.125, "change_high": 0.5, "avg": 0.75}
    nothing = {"change": None, "change_low": None, "change_high": None, "avg": 0.5}
    table = {"cfg": {"columns": []}, "numbers": {"mine": change, "teacher": nothing}}
    words = {"cfg": {"words": "responses"}, "numbers": {"problems": 5}}
    for folder, manifest in {
        "tables/pair": table,
        "tables/responses": words,
        "models/first/s0": {"stage": "init"},
        "models/run/s0": {"stage": "distill"},
    }.items():
        put(tmp_path / folder / "manifest.json", json.dumps(manifest))
    payload = tmp_path / "models/run/s0/payload"
    assert console.trained(tmp_path, BEGAN) == [
        "mine: 50.0 % right before, 75.0 % after (+25.0 points, +12.5 to +50.0): better than"
        " before",
        f"trained: {payload}, which transformers loads",
    ]
    assert console.trained(tmp_path, BEGAN + 2) == []
    made(tmp_path, "claims")
    assert console.trained(tmp_path, BEGAN) == []


def test_long_lists_are_counted() -> None:
    lines = [str(n) for n in range(11)]
    assert console.shortened(lines) == [*lines[:8], "and 3 more"]
    assert console.shortened(lines[:8]) == lines[:8]

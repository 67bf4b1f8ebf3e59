"""The stage ``generate``: its table, attempts, and what a kill or bad input leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd.core import tables
from opd.core.errors import UserError
from opd.data import world
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.models import filters, generate, init, journal
from opd.models.sampling import Request, Sampler
from opd.models.schemas import GENERATIONS, LOGPROBS

pytest.importorskip("torch")

from probing import logits, rendered

SHAPE = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64, "seed": 0}
CFG: dict[str, Any] = {"max_new_tokens": 24, "max_prompt_tokens": 64, "seed": 3, "samples": 2}
WORLD = {
    "seed": 3, "rl_times": 0.4, "other_times": 0.1, "exact_duplicates": 0, "near_duplicates": 0,
}  # fmt: skip
Inputs = dict[str, Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("inputs")
    made = {name: root / name for name in ("model", "prompts")}
    for folder in made.values():
        folder.mkdir()
    init.run(SHAPE, {}, made["model"])
    tables.write(made["prompts"] / "prompts.parquet", world.make_prompts(WORLD, "rl", 40), PROMPTS)
    return made


def run(cfg: dict[str, Any], inputs: Inputs, out: Path) -> tuple[list[dict[str, Any]], Any]:
    """Rows and numbers of the stage."""
    scratch = out.with_name(f"{out.name}-scratch")
    for folder in (out, scratch):
        folder.mkdir(exist_ok=True)
    numbers = generate.run(cfg, inputs, out, scratch)
    return tables.read(out / "generations.parquet", GENERATIONS).to_pylist(), numbers


def test_the_table_is_complete_and_in_order(inputs: Inputs, tmp_path: Path) -> None:
    rows, numbers = run({**CFG, "top_k": None}, inputs, tmp_path / "a")
    prompts = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS).to_pylist()
    assert [(r["prompt_id"], r["sample"], r["attempt"], r["prompt"]) for r in rows] == [
        (p["id"], sample, 0, p["prompt"]) for p in prompts for sample in (0, 1)
    ]
    assert all(row["rejected"] is None for row in rows)
    lengths = [len(row["token_ids"]) for row in rows]
    assert numbers == {
        "prompts": 40,
        "generations": 80,
        "truncation_rate": sum(row["finish"] == "length" for row in rows) / 80,
        "mean_tokens": sum(lengths) / 80,
    }
    assert 0 < numbers["truncation_rate"] < 1
    sampler = Sampler(inputs["model"], CFG)
    (tokens,) = sampler.tokenize([prompts[7]], ["7"])
    (alone,) = sampler.sample([Request(prompts[7]["id"], tokens, 1)])
    assert (rows[15]["response"], rows[15]["token_ids"]) == (alone.text, alone.token_ids)


def reason(row: dict[str, Any]) -> str | None:
    if row["finish"] == "length":
        return "finished"
    return None if row["response"].strip() else "nonempty"


def test_what_a_rule_rejects_is_sampled_again(inputs: Inputs, tmp_path: Path) -> None:
    plain, _ = run(CFG, inputs, tmp_path / "plain")
    cfg = {**CFG, "rules": ["finished", "nonempty"], "attempts": 3}
    rows, numbers = run(cfg, inputs, tmp_path / "again")
    assert [r | {"rejected": None} for r in rows if r["attempt"] == 0] == plain
    assert all(row["rejected"] == reason(row) for row in rows)
    tried: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        tried.setdefault((row["prompt_id"], row["sample"]), []).append(row)
    assert list(tried) == [(row["prompt_id"], row["sample"]) for row in plain]
    for attempts in tried.values():
        assert [row["attempt"] for row in attempts] == list(range(len(attempts)))
        assert len({row["response"] for row in attempts}) == len(attempts)
        assert all(row["rejected"] for row in attempts[:-1])
        assert len(attempts) == 3 or attempts[-1]["rejected"] is None
    accepted = sum(row["rejected"] is None for row in rows)
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    counts = [attempt["responses"] for attempt in report["attempts"]]
    assert counts[0] == 80 > counts[1] > counts[2] > 80 - accepted > 0
    for n, attempt in enumerate(report["attempts"]):
        mine = [row["rejected"] for row in rows if row["attempt"] == n]
        assert attempt == {
            "responses": len(mine),
            "accepted": mine.count(None),
            "accept_rate": mine.count(None) / len(mine),
            "rejected": {rule: mine.count(rule) for rule in ("finished", "nonempty")},
        }
    assert (report["responses"], report["accept_rate"]) == (80, accepted / 80)
    assert report.items() <= numbers.items()

    pairs = tmp_path / "pairs"
    pairs.mkdir()
    given = {"generations": tmp_path / "again", "prompts": inputs["prompts"]}
    filtered = filters.run({"rules": []}, given, pairs)
    rejected = filtered["rejected"]
    assert rejected["finished"] + rejected.get("nonempty", 0) == len(rows) - accepted
    kept = tables.read(pairs / "pairs.parquet", SFT_PAIRS).to_pylist()
    assert [(pair["id"], pair["response"]) for pair in kept] == [
        (f"{r['prompt_id']}-{r['sample']}", r["response"]) for r in rows if r["rejected"] is None
    ]


def test_attempts_end_when_all_are_accepted(inputs: Inputs, tmp_path: Path) -> None:
    rows, numbers = run({**CFG, "rules": ["nonempty"], "attempts": 3}, inputs, tmp_path / "a")
    assert len(rows) == 80 and numbers["accept_rate"] == 1
    assert numbers["attempts"] == [
        {"responses": 80, "accepted": 80, "accept_rate": 1.0, "rejected": {"nonempty": 0}}
    ]


def test_log_probabilities_of_tokens_are_recorded_where_they_are_asked_for(
    inputs: Inputs, tmp_path: Path
) -> None:
    """At the temperature of the sampling, by the logits of one sequence at a time; the responses
    are those without, attempts that a rule rejected among them."""
    cfg = {**CFG, "temperature": 0.7, "rules": ["finished"], "attempts": 2}
    plain, numbers = run(cfg, inputs, tmp_path / "plain")
    rows, same = run({**cfg, "logprobs": True}, inputs, tmp_path / "recorded")
    assert (rows, numbers) == (plain, same) and len(rows) > 80
    assert not (tmp_path / "plain" / "logprobs.parquet").exists()
    recorded = tables.read(tmp_path / "recorded" / "logprobs.parquet", LOGPROBS).to_pylist()
    keys = ("prompt_id", "sample", "attempt")
    assert [[row[k] for k in keys] for row in recorded] == [[row[k] for k in keys] for row in rows]
    for row, own in list(zip(rows, recorded, strict=True))[::7]:
        ids = row["token_ids"]
        tokens = [*rendered(inputs["model"], row["prompt"]), *ids]
        at = logits(inputs["model"], tokens)[-len(ids) - 1 : -1] / 0.7
        expected = at[range(len(ids)), ids] - np.log(np.exp(at).sum(-1))
        assert own["logprobs"] == pytest.approx(expected, abs=1e-5)


# Forty shards a round at first, and three rounds.
SLOW = {**CFG, "batch_size": 2, "rules": ["finished"], "attempts": 3}


def started(cfg: dict[str, Any], inputs: Inputs, folder: Path) -> "subprocess.Popen[str]":
    """The stage in a process of its own, through the command line."""
    cfg = {**cfg, "inputs": ["model", "prompts"]}
    paths = [str(inputs[name]) for name in cfg["inputs"]]
    command = [sys.executable, "-m", "opd", "stage", "generate", "--cfg", json.dumps(cfg)]
    where = ["--output", str(folder / "made" / "digest.json"), "--store", str(folder / "store")]
    return subprocess.Popen(
        [*command, "--input", *paths, *where], stderr=subprocess.PIPE, text=True
    )


def journaled(folder: Path) -> bytes:
    """All journals of the run below ``folder``, the older ones first."""
    paths = folder.glob("store/.cache/responses/*/*.jsonl")
    return b"".join(p.read_bytes() for p in sorted(paths, key=lambda p: p.stat().st_ctime_ns))


def wait_for(process: "subprocess.Popen[str]", folder: Path, lines: int) -> None:
    deadline = time.time() + 120
    while journaled(folder).count(b"\n") < lines:
        assert process.poll() is None and time.time() < deadline, process.communicate()[1]
        time.sleep(0.002)


def payload(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "made" / "payload").iterdir()}


def test_sigkill_and_sigterm_lose_at_most_a_shard(inputs: Inputs, tmp_path: Path) -> None:
    """Killed twice at random, told to stop once, then left alone: the bytes of a run undisturbed,
    and no shard that was journaled is sampled again."""
    whole = started(SLOW, inputs, tmp_path / "whole")
    folder = tmp_path / "killed"
    before = b""
    kills = sorted(random.sample(range(3, 75), 3))
    for at, number in zip(kills, (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), strict=True):
        process = started(SLOW, inputs, folder)
        wait_for(process, folder, at)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == (143 if number == signal.SIGTERM else -9), errors
        after = journaled(folder)
        assert after.startswith(before[: before.rfind(b"\n") + 1])
        assert after.count(b"\n") >= at
        if number == signal.SIGTERM:
            assert "Traceback" not in errors and after.endswith(b"\n")
        before = after
        assert not (folder / "made" / "digest.json").exists()
    last = started(SLOW, inputs, folder)
    for process in (whole, last):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert "tokens/s" in errors and "response/s" in errors
    assert payload(folder) == payload(tmp_path / "whole")
    assert not list(folder.glob("store/.scratch/*"))


def test_a_shard_is_in_the_journal_once(inputs: Inputs, tmp_path: Path) -> None:
    """Over a kill, too: the indices of all lines are the places of the list, each once."""
    folder = tmp_path / "a"
    cfg = {**CFG, "batch_size": 2}
    for at in (5, 15):
        process = started(cfg, inputs, folder)
        wait_for(process, folder, at)
        process.kill()
        process.communicate()
    (path,) = folder.glob("store/.cache/responses/*/*.jsonl")
    found, end = journal.read(path)
    lines = [json.loads(line.split(b" ")[1]) for line in path.read_bytes()[:end].splitlines()]
    indices = [i for line in lines for i, _ in line]
    assert all(len(line) == 2 for line in lines)
    assert len(set(indices)) == len(indices) == len(found) >= 30


def test_bad_input_is_one_line(inputs: Inputs, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    tables.write(empty / "prompts.parquet", [], PROMPTS)
    with pytest.raises(UserError, match=r"empty/prompts\.parquet: there are no prompts"):
        run(CFG, {**inputs, "prompts": empty}, tmp_path / "a")
    twice = tmp_path / "twice"
    twice.mkdir()
    rows = world.make_prompts(WORLD, "rl", 2)
    tables.write(twice / "prompts.parquet", [*rows, rows[0]], PROMPTS)
    with pytest.raises(UserError, match=f"request '{rows[0]['id']}': sample 0 is asked for twice"):
        run({**CFG, "samples": 1}, {**inputs, "prompts": twice}, tmp_path / "a")
    with pytest.raises(UserError, match="unknown rule 'boxes'"):
        run({**CFG, "rules": ["boxes"]}, inputs, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())
    for cfg, given, line in [
        ({"backend": "sglang"}, {}, "error: backend: unknown backend 'sglang'; use transformers"),
        ({}, {"model": tmp_path / "none"}, f"error: {tmp_path}/none: no such input; run the stage"),
        ({"max_prompt_tokens": 3}, {}, "more than 3; raise max_prompt_tokens"),
    ]:
        process = started({**CFG, **cfg}, {**inputs, **given}, tmp_path / "b")
        _, errors = process.communicate()
        assert process.returncode == 2 and line in errors and "Traceback" not in errors
        left = [p for p in (tmp_path / "b").rglob("*") if p.is_file() and p.name != "owner"]
        assert not left


def test_a_full_disk_keeps_what_is_finished(inputs: Inputs, tmp_path: Path) -> None:
    """A limit of the files' size stands for it; the run goes on once there is room."""
    cfg = {**CFG, "batch_size": 2, "inputs": ["model", "prompts"]}
    where = ["--output", str(tmp_path / "made" / "digest.json"), "--store", str(tmp_path / "store")]
    command = [sys.executable, "-m", "opd", "stage", "generate", "--cfg", json.dumps(cfg)]
    command += ["--input", *map(str, inputs.values()), *where]

    def limited(blocks: int) -> str:
        shell = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", *command]
        environment = {**os.environ, "OPD_WARM": ""}
        done = subprocess.run(shell, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    assert "no room" in limited(0)
    assert ": no room (File too large), what was finished is kept; free space" in limited(2)
    kept = journaled(tmp_path)
    assert 1500 < len(kept) <= 2048 and kept.endswith(b"\n")
    assert subprocess.run(command, capture_output=True).returncode == 0
    rows, _ = run(cfg, inputs, tmp_path / "whole")
    made = tables.read(tmp_path / "made" / "payload" / "generations.parquet", GENERATIONS)
    assert made.to_pylist() == rows

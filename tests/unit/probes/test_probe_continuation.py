"""The stage ``continuation``: what is continued, what is compared, and what a kill leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probing import Inputs, logits, make, rendered, rows_of, with_swapped_tokens, write_rollouts
from transformers import GenerationConfig

from opd.core import tables
from opd.core.errors import UserError
from opd.grading import graders
from opd.models import generate
from opd.models.schemas import GENERATIONS
from opd.probes import continuation
from opd.probes.schemas import CONTINUATIONS
from opd.stats.draws import read_draws

EOS, MOST = 1, 24
CFG: dict[str, Any] = {
    "prefixes": [2, 5, 9], "grader": "world", "max_new_tokens": MOST, "max_prompt_tokens": 32,
    "temperature": 0, "seed": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Greedy rollouts of the student, some of them too short."""
    root = tmp_path_factory.mktemp("continuation")
    made = make(root, 12)
    made["generations"] = root / "generations"
    made["generations"].mkdir()
    given = {"model": made["student"], "prompts": made["prompts"]}
    cfg = {"max_new_tokens": MOST, "max_prompt_tokens": 32, "temperature": 1.0, "seed": 4}
    generate.run(cfg, given, made["generations"], root / "cache")
    return made


def run(cfg: dict[str, Any], inputs: Inputs, out: Path) -> tuple[dict[str, Any], list[Any], Any]:
    """Values, continuations and draws by name."""
    out.mkdir()
    continuation.run(cfg, inputs, out, out.with_name(f"{out.name}-cache"))
    values = json.loads((out / "probe.json").read_text())["values"]
    rows = tables.read(out / "continuations.parquet", CONTINUATIONS).to_pylist()
    return values, rows, read_draws(out / "draws.parquet")


def rollouts_of(inputs: Inputs, longer: int) -> list[Any]:
    path = inputs["generations"] / "generations.parquet"
    rows = tables.read(path, GENERATIONS).to_pylist()
    return [row for row in rows if len(row["token_ids"]) > longer]


def test_a_teacher_continues_the_students_first_tokens(inputs: Inputs, tmp_path: Path) -> None:
    """Greedy, one token at a time by hand: from the prompt and the prefix until the turn ends or
    prefix and continuation are as long as a response may be."""
    values, rows, _ = run(CFG, inputs, tmp_path / "a")
    kept = rollouts_of(inputs, 9)
    assert 3 < len(kept) < 12 and values["n"]["value"] == len(kept)
    assert [(row["prefix"], row["id"]) for row in rows] == [
        (prefix, one["prompt_id"]) for prefix in (2, 5, 9) for one in kept
    ]
    tokenizer = world_tokens(inputs["teacher"])
    for row in rows[:: len(kept) - 1]:
        (rollout,) = [one for one in kept if one["prompt_id"] == row["id"]]
        prompt = rendered(inputs["student"], rollout["prompt"])
        response = list(rollout["token_ids"][: row["prefix"]])
        while len(response) < MOST and response[-1] != EOS:
            response.append(int(logits(inputs["teacher"], [*prompt, *response])[-1].argmax()))
        assert row["tokens"] == len(response)
        assert row["finish"] == ("stop" if response[-1] == EOS else "length")
        assert row["response"] == tokenizer(response)


def world_tokens(model: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)


def test_values_are_what_the_table_counts(inputs: Inputs, tmp_path: Path) -> None:
    """Teacher less student on the same rollouts, graded anew; several continuations of each count
    as parts of one."""
    cfg = {**CFG, "temperature": 1.0, "samples": 3, "grader": "world"}
    answers = {row["id"]: row["answer"] for row in rows_of(inputs["prompts"])}
    # An untrained model is never right: what is right here is what the rollouts begin with.
    kept = rollouts_of(inputs, 9)
    hash_id = rendered(inputs["student"], "#")[1]
    rollouts = []
    for i, row in enumerate(kept):
        digit = rendered(inputs["student"], answers[row["prompt_id"]])[1]
        ids = [hash_id, digit, *[hash_id, digit] * 4, *row["token_ids"][:4]]
        rollouts.append({**row, "token_ids": ids, "response": "#" if i % 3 else f"#{digit - 5}"})
    own = {**inputs, "generations": write_rollouts(tmp_path / "g", rollouts)}
    values, rows, drawn = run(cfg, own, tmp_path / "a")
    student = np.mean(
        [graders.GRADERS["world"](r["response"], answers[r["prompt_id"]])[1] for r in rollouts]
    )
    for prefix in (2, 5, 9):
        mine = [row for row in rows if row["prefix"] == prefix]
        assert len(mine) == 3 * len(kept)
        right = [graders.GRADERS["world"](row["response"], answers[row["id"]])[1] for row in mine]
        assert [row["correct"] for row in mine] == right
        assert values[f"teacher_{prefix}"]["value"] == pytest.approx(np.mean(right))
        assert values[f"student_{prefix}"]["value"] == pytest.approx(student)
        advantage = values[f"advantage_{prefix}"]
        assert advantage["value"] == pytest.approx(np.mean(right) - student)
        assert advantage["low"] <= advantage["value"] <= advantage["high"]
        # Paired over prompts, within a prefix and across them.
        for name in ("teacher", "student"):
            assert len(drawn[f"{name}_{prefix}"]) == 1000
        assert drawn[f"advantage_{prefix}"] == pytest.approx(
            drawn[f"teacher_{prefix}"] - drawn[f"student_{prefix}"]
        )
        assert np.array_equal(drawn[f"student_{prefix}"], drawn["student_2"])
    assert any(row["correct"] for row in rows) and not all(row["correct"] for row in rows)


def test_a_teacher_that_is_the_student_has_no_advantage(inputs: Inputs, tmp_path: Path) -> None:
    """Greedy rollouts, greedily continued, are themselves."""
    greedy = {"max_new_tokens": MOST, "max_prompt_tokens": 32, "temperature": 0, "seed": 1}
    own = {**inputs, "teacher": inputs["student"], "generations": tmp_path / "greedy"}
    own["generations"].mkdir()
    generate.run(
        greedy, {"model": inputs["student"], "prompts": inputs["prompts"]},
        own["generations"], tmp_path / "cache",
    )  # fmt: skip
    kept = rollouts_of(own, 3)
    for baseline in ("rollout", "resampled"):
        cfg = {**CFG, "prefixes": [1, 3], "baseline": baseline}
        values, rows, drawn = run(cfg, own, tmp_path / baseline)
        by = ["teacher", "student"] if baseline == "resampled" else ["teacher"]
        assert [row["by"] for row in rows] == 2 * [name for name in by for _ in kept]
        assert [row["response"] for row in rows] == [one["response"] for one in kept] * 2 * len(by)
        for prefix in (1, 3):
            assert values[f"advantage_{prefix}"]["value"] == 0
            assert not drawn[f"advantage_{prefix}"].any()


def test_a_student_is_sampled_anew_where_the_seeds_agree(inputs: Inputs, tmp_path: Path) -> None:
    """Not its own rollout once more."""
    cfg = {**CFG, "temperature": 1.0, "prefixes": [2], "longer_than": 9, "baseline": "resampled"}
    _, rows, _ = run(cfg, inputs, tmp_path / "a")
    kept = rollouts_of(inputs, 9)
    mine = [row["response"] for row in rows if row["by"] == "student"]
    assert len(mine) == len(kept)
    assert sum(one == row["response"] for one, row in zip(mine, kept, strict=True)) < len(kept) / 2
    assert all(a[:2] == row["response"][:2] for a, row in zip(mine, kept, strict=True))


def test_a_token_that_ends_the_teachers_turn_only_ends_its_continuation(
    inputs: Inputs, tmp_path: Path
) -> None:
    """The student went on after it; for the teacher the response is over."""
    import shutil

    teacher = tmp_path / "teacher"
    shutil.copytree(inputs["teacher"], teacher)
    kept = rollouts_of(inputs, 9)
    end = kept[0]["token_ids"][1]
    assert end not in kept[0]["token_ids"][:1]
    GenerationConfig(eos_token_id=[EOS, end]).save_pretrained(teacher)
    _, rows, _ = run(CFG, {**inputs, "teacher": teacher}, tmp_path / "a")
    mine = [row for row in rows if row["id"] == kept[0]["prompt_id"]]
    assert [(row["tokens"], row["finish"]) for row in mine] == [(2, "stop")] * 3


def started(inputs: Inputs, folder: Path) -> "subprocess.Popen[str]":
    """The stage in a process of its own, in many small shards."""
    cfg = {**CFG, "prefixes": [1, 2, 3], "samples": 4, "temperature": 1.0, "batch_size": 1}
    names = ["generations", "teacher", "student", "prompts"]
    command = [sys.executable, "-m", "opd", "stage", "continuation"]
    command += ["--cfg", json.dumps({**cfg, "inputs": names})]
    command += ["--input", *[str(inputs[name]) for name in names]]
    command += ["--output", str(folder / "made" / "digest.json"), "--store", str(folder / "store")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def journaled(folder: Path) -> dict[str, bytes]:
    paths = folder.glob("store/.cache/responses/*/*.jsonl")
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in paths}


def test_a_killed_run_goes_on(inputs: Inputs, tmp_path: Path) -> None:
    """In the second of three prefixes: what was sampled stays as it is, and the result is that of
    a run that nobody disturbed."""
    whole, folder = started(inputs, tmp_path / "whole"), tmp_path / "killed"
    process = started(inputs, folder)
    deadline = time.time() + 120
    while not (len(found := journaled(folder)) == 2 and min(map(len, found.values())) > 100):
        assert process.poll() is None and time.time() < deadline, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    before = journaled(folder)
    assert not (folder / "made" / "digest.json").exists()
    last = started(inputs, folder)
    for process in (whole, last):
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    after = journaled(folder)
    assert len(after) == 3
    assert all(after[name].startswith(was[: was.rfind(b"\n") + 1]) for name, was in before.items())
    payloads = [
        {p.name: p.read_bytes() for p in (one / "made" / "payload").iterdir()}
        for one in (tmp_path / "whole", folder)
    ]
    assert payloads[0] == payloads[1] and "continuations.parquet" in payloads[0]


def test_what_does_not_fit_is_one_line(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"generations\.parquet: no rollout has more than 24 tokens; low"
    ):
        run({**CFG, "longer_than": MOST}, inputs, tmp_path / "a")
    with pytest.raises(
        UserError, match="max_new_tokens: a prefix of 24 tokens leaves none to go on"
    ):
        run({**CFG, "prefixes": [2, MOST], "longer_than": 9}, inputs, tmp_path / "b")
    with pytest.raises(
        UserError, match="baseline: unknown baseline 'old'; use rollout or resampled"
    ):
        run({**CFG, "baseline": "old"}, inputs, tmp_path / "c")
    other = with_swapped_tokens(inputs["teacher"], tmp_path / "other", "4", "7")
    with pytest.raises(UserError, match="token 9 is '4' for the student and '7' for the teacher"):
        run(CFG, {**inputs, "teacher": other}, tmp_path / "d")
    assert not any(list((tmp_path / name).iterdir()) for name in "abcd")

"""The prefix test: what is cut, who goes on, what is counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from probing import Inputs, logits, make, rendered, rows_of, write_rollouts

from opd.core import tables
from opd.core.errors import UserError
from opd.models import generate
from opd.models.schemas import GENERATIONS
from opd.probes import prefix
from opd.probes.schemas import CONTINUATIONS

EOS, MOST = 1, 12
CFG: dict[str, Any] = {
    "grader": "world", "max_new_tokens": MOST, "max_prompt_tokens": 32, "temperature": 0, "seed": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("prefix")
    made = make(root, 12)
    made["generations"] = root / "generations"
    made["generations"].mkdir()
    given = {"model": made["student"], "prompts": made["prompts"]}
    generate.run({**CFG, "temperature": 1.0}, given, made["generations"], root / "cache")
    return made


def run(cfg: dict[str, Any], inputs: Inputs, out: Path) -> tuple[dict[str, Any], list[Any]]:
    out.mkdir()
    prefix.run(cfg, inputs, out, out.with_name(f"{out.name}-cache"))
    values = json.loads((out / "probe.json").read_text())["values"]
    return values, tables.read(out / "continuations.parquet", CONTINUATIONS).to_pylist()


def test_the_papers_counts_have_the_papers_numbers() -> None:
    """123 of 198 right alone, 91 after a prefix; 40 turn wrong and 8 right (App. A.22)."""
    alone = np.array([True] * 123 + [False] * 75)
    after = np.array([True] * 83 + [False] * 40 + [True] * 8 + [False] * 67)
    graded = {
        arm: [(None if i < lacking else "1", bool(one)) for i, one in enumerate(right)]
        for arm, right, lacking in (("alone", alone, 3), ("prefix", after, 42))
    }
    found = prefix.summarise([f"q{i}" for i in range(198)], graded)
    values = {name: one.value for name, one in found.items()}
    assert values["accuracy_alone"] == pytest.approx(0.6212, abs=5e-5)
    assert values["accuracy_prefix"] == pytest.approx(0.4596, abs=5e-5)
    assert values["lost"] == pytest.approx(0.1616, abs=5e-5)
    assert values["format_alone"] == pytest.approx(0.9848, abs=5e-5)
    assert values["format_prefix"] == pytest.approx(0.7879, abs=5e-5)
    assert (values["right_right"], values["right_wrong"]) == (83, 40)
    assert (values["wrong_right"], values["wrong_wrong"], values["net"]) == (8, 67, 32)
    assert values["mcnemar_p"] == pytest.approx(3.3e-6, rel=0.02)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_a_fair_coin(b: int, c: int) -> None:
    from math import comb

    n, fewer = b + c, min(b, c)
    tail = sum(comb(n, i) for i in range(fewer + 1)) / 2**n
    assert prefix.mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))
    assert prefix.mcnemar(b, c) == prefix.mcnemar(c, b)


@given(st.integers(1, 500), st.text(), st.integers(0, 5))
def test_something_is_kept_and_never_all(tokens: int, id: str, sample: int) -> None:
    kept = prefix.cut_at(tokens, id, sample, 3)
    assert (1 <= kept < tokens) if tokens > 1 else kept == 0
    assert kept <= max(1, 0.9 * tokens)
    assert kept == prefix.cut_at(tokens, id, sample, 3)


def test_cuts_are_even_over_the_range() -> None:
    shares = [prefix.cut_at(10_000, f"q{i}", 0, 1, (0.2, 0.6)) / 10_000 for i in range(2_000)]
    assert min(shares) >= 0.2 and max(shares) <= 0.6
    assert np.mean(shares) == pytest.approx(0.4, abs=0.01)
    assert np.quantile(shares, 0.25) == pytest.approx(0.3, abs=0.02)


def test_the_teacher_is_asked_twice(inputs: Inputs, tmp_path: Path) -> None:
    """Greedy, one token at a time by hand: from the prompt, and from prompt and prefix."""
    values, rows = run(CFG, inputs, tmp_path / "a")
    path = inputs["generations"] / "generations.parquet"
    rollouts = tables.read(path, GENERATIONS).to_pylist()
    assert [row["id"] for row in rows] == 2 * [row["prompt_id"] for row in rollouts]
    assert [row["prefix"] for row in rows[:12]] == [0] * 12
    for row, rollout in zip(rows, rollouts * 2, strict=True):
        before = rollout["token_ids"][: row["prefix"]]
        if row["prefix"]:
            length = len(rollout["token_ids"])
            assert row["prefix"] == prefix.cut_at(length, rollout["prompt_id"], 0, 4)
        response = list(before)
        prompt = rendered(inputs["student"], rollout["prompt"])
        while len(response) < len(before) + MOST and response[-1:] != [EOS]:
            response.append(int(logits(inputs["teacher"], [*prompt, *response])[-1].argmax()))
        assert row["tokens"] == len(response)
        assert row["finish"] == ("stop" if response[-1] == EOS else "length")
    assert values["n"]["value"] == 12
    # Untrained models are never right.
    assert values["wrong_wrong"]["value"] == 12 and values["mcnemar_p"]["value"] == 1.0


def test_what_the_prefix_holds_decides(inputs: Inputs, tmp_path: Path) -> None:
    """A student that has written the answer, or a wrong one, before the cut."""
    answers = {row["id"]: row["answer"] for row in rows_of(inputs["prompts"])}
    path = inputs["generations"] / "generations.parquet"
    rollouts = tables.read(path, GENERATIONS).to_pylist()
    marks = rendered(inputs["student"], "#")[1]
    for i, row in enumerate(rollouts):
        digit = str((int(answers[row["prompt_id"]]) + i % 2) % 10)
        pair = [marks, rendered(inputs["student"], digit)[1]]
        row["token_ids"] = pair * 10
    own = {**inputs, "generations": write_rollouts(tmp_path / "g", rollouts)}
    values, rows = run({**CFG, "max_new_tokens": 1, "shares": [0.5, 0.5]}, own, tmp_path / "a")
    assert all(row["prefix"] == 10 for row in rows[12:])
    assert values["format_prefix"]["value"] == 1.0
    assert values["accuracy_prefix"]["value"] == 0.5
    assert values["wrong_right"]["value"] == 6 and values["right_wrong"]["value"] == 0
    assert values["lost"]["value"] == -0.5 and values["prefix_tokens"]["value"] == 10


def test_bad_settings_and_rollouts(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shares: got \[0.9, 0.1\]; give \[least, most\]"):
        run({**CFG, "shares": [0.9, 0.1]}, inputs, tmp_path / "a")
    path = inputs["generations"] / "generations.parquet"
    rollouts = tables.read(path, GENERATIONS).to_pylist()
    twice = [*rollouts, {**rollouts[1], "sample": 1}]
    own = {**inputs, "generations": write_rollouts(tmp_path / "t", twice)}
    with pytest.raises(
        UserError, match=f"'{rollouts[1]['prompt_id']}' has 2 rollouts; take some with s"
    ):
        run(CFG, own, tmp_path / "c")
    rollouts[3]["prompt_id"] = "other"
    own = {**inputs, "generations": write_rollouts(tmp_path / "g", rollouts)}
    with pytest.raises(UserError, match="there is no prompt 'other'"):
        run(CFG, own, tmp_path / "b")

"""The shape of the signal: by position, by right and wrong, by what the teacher is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probing import Inputs, logits, make, rendered, rows_of, write_rollouts

from opd.core import tables
from opd.losses.schemas import METRICS
from opd.models.schemas import GENERATIONS
from opd.probes import signal

CFG: dict[str, Any] = {
    "grader": "world", "metrics_k": 4, "position_bin": 2, "temperature": 1.0,
    "max_prompt_tokens": 32, "seed": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Rollouts of 3 to 7 tokens, every other one right."""
    root = tmp_path_factory.mktemp("signal")
    made = make(root, 6)
    rng = np.random.default_rng(0)
    rows = []
    for i, row in enumerate(rows_of(made["prompts"])):
        text = f"#{row['answer']}" if i % 2 == 0 else "no"
        ids = rng.integers(5, 20, 3 + i % 5).tolist()
        rows.append({"prompt_id": row["id"], "prompt": row["prompt"], "token_ids": ids,
                     "response": text})  # fmt: skip
    made["generations"] = write_rollouts(root / "generations", rows)
    return made


def run(cfg: dict[str, Any], inputs: Inputs, out: Path) -> tuple[dict[str, Any], list[Any]]:
    out.mkdir()
    signal.run(cfg, inputs, out)
    values = json.loads((out / "probe.json").read_text())["values"]
    return values, tables.read(out / "metrics.parquet", METRICS).to_pylist()


def by_hand(inputs: Inputs, told: str) -> list[Any]:
    """log q - log p of every token of every rollout, one sequence at a time in float64."""
    prompts = {row["id"]: row for row in rows_of(inputs["prompts"])}
    path = inputs["generations"] / "generations.parquet"
    found = []
    for row in tables.read(path, GENERATIONS).to_pylist():
        asked = prompts[row["prompt_id"]]
        ratios = 0.0
        for who, text, sign in (
            ("teacher", told.format(**asked), 1), ("student", asked["prompt"], -1)
        ):  # fmt: skip
            prompt = rendered(inputs["student"], text)
            z = logits(inputs[who], [*prompt, *row["token_ids"]])[len(prompt) - 1 : -1]
            logp = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))
            logp -= z.max(-1, keepdims=True)
            ratios = ratios + sign * logp[np.arange(len(row["token_ids"])), row["token_ids"]]
        found.append(ratios)
    return found


@pytest.mark.parametrize("told", ["{prompt}", "({answer}) {question}"])
def test_log_ratios_by_hand(inputs: Inputs, tmp_path: Path, told: str) -> None:
    cfg = CFG if told == "{prompt}" else {**CFG, "information": [{"message": told}]}
    values, rows = run(cfg, inputs, tmp_path / "a")
    ratios = by_hand(inputs, told)
    for kind, mine in (("all", ratios), ("correct", ratios[::2]), ("incorrect", ratios[1::2])):
        whole = np.concatenate(mine)
        early = np.concatenate([one[: -(-len(one) // 2)] for one in mine])
        late = np.concatenate([one[-(-len(one) // 2) :] for one in mine])
        for part, expected in (("", whole), ("early_", early), ("late_", late)):
            for name, form in (("log_ratio", np.asarray), ("size", np.abs)):
                found = values[f"{name}_{part}{kind}_nats"]
                assert found["value"] == pytest.approx(form(expected).mean(), abs=1e-4)
                assert found["low"] <= found["value"] <= found["high"]
        at = {
            row["position"]: row["value"] for row in rows if row["name"] == f"log_ratio_{kind}_nats"
        }
        assert set(at) == {None, *range(0, max(map(len, mine)), 2)}
        assert at[None] == pytest.approx(whole.mean(), abs=1e-4)
        assert at[2] == pytest.approx(np.concatenate([one[2:4] for one in mine]).mean(), abs=1e-4)
    assert values["n_correct"]["value"] == values["n_incorrect"]["value"] == 3


def test_a_kind_that_does_not_occur_has_no_value() -> None:
    found = signal.summarise(["a", "b"], [np.ones(3), np.ones(2)], np.array([True, True]))
    assert found["log_ratio_correct_nats"].value == 1
    assert found["log_ratio_incorrect_nats"].value is None
    rows = signal.by_position([np.ones(3), np.ones(2)], np.array([True, True]), 2, 3)
    assert not [row for row in rows if "incorrect" in row["name"]]

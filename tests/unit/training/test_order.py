"""The order of prompts: every epoch holds each of them once, and training takes them so."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import GRPO, OPD, WORLD, Inputs, run

from opd.data import world
from opd.training import distill, grpo
from opd.training.order import shuffled


@given(n=st.integers(1, 50), wanted=st.integers(0, 170), seed=st.integers(0, 2**63))
def test_no_prompt_comes_again_before_all_have_come(n: int, wanted: int, seed: int) -> None:
    order = shuffled(n, wanted, seed)
    assert len(order) == wanted
    for start in range(0, wanted, n):
        epoch = order[start : start + n]
        assert len({*epoch}) == len(epoch) and {*epoch} <= {*range(n)}
    # A longer run begins as a shorter one does.
    assert shuffled(n, wanted + 3, seed)[:wanted] == order


def test_orders_differ_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    first, second = shuffled(20, 40, 1)[:20], shuffled(20, 40, 1)[20:]
    assert first != second != [*range(20)] != first and shuffled(20, 20, 2) != first
    # Every prompt may come first.
    assert {shuffled(5, 1, seed)[0] for seed in range(100)} == {*range(5)}


@pytest.mark.parametrize(
    ("module", "cfg", "each"), [(grpo, GRPO, "group_size"), (distill, OPD, "rollouts_per_prompt")]
)
def test_a_run_takes_its_prompts_in_that_order(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    cfg: dict[str, Any],
    each: str,
) -> None:
    """Ten prompts, four a step: the third step ends one epoch and begins the next."""
    asked: list[str] = []
    generate = module.Trainer._generate_and_score_completions

    def spied(self: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
        asked.extend(row["prompt"][0]["content"] for row in rows)
        made: dict[str, Any] = generate(self, rows)
        return made

    monkeypatch.setattr(module.Trainer, "_generate_and_score_completions", spied)
    stage = module.__name__.rpartition(".")[2]
    told = {"information": [{"message": "say {question}"}]} if module is distill else {}
    run(stage, {**cfg, **told, "shuffle": True}, inputs, tmp_path / "a")
    questions = [row["prompt"] for row in world.make_prompts(WORLD, "rl", 10)]
    taken = [questions[i] for i in shuffled(10, 12, cfg["seed"])]
    assert asked == [question for question in taken for _ in range(cfg[each])]
    asked.clear()
    run(stage, cfg, inputs, tmp_path / "b")
    in_order = [*questions[:8], *questions[:4]]
    assert asked == [question for question in in_order for _ in range(cfg[each])]

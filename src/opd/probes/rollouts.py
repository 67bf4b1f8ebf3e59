"""The rollouts that a probe measures: their rows, token ids, and which are correct."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS
from opd.grading.graders import grade_all
from opd.models import pairing
from opd.models.checkpoints import load_tokenizer
from opd.models.schemas import GENERATIONS
from opd.stats.intervals import Array

Row = dict[str, Any]


class Rollout(NamedTuple):
    """Token ids of a prompt as the student saw it, of the same as the teacher sees it, and of the
    student's response."""

    prompt: Sequence[int]
    teacher_prompt: Sequence[int]
    response: Sequence[int]


def read_rollouts(payload: Path) -> list[Row]:
    """Rows of GENERATIONS that no rule rejected, in their order. Raises ``UserError`` for none."""
    path = payload / "generations.parquet"
    rows: list[Row] = tables.read(path, GENERATIONS).to_pylist()
    kept = [row for row in rows if row["rejected"] is None and row["token_ids"]]
    if not kept:
        raise UserError("there is no rollout in it", str(path), "loosen the rules that reject them")
    return kept


def prompts_of(rollouts: Sequence[Row]) -> int:
    """Number of prompts that rollouts answer."""
    return len({row["prompt_id"] for row in rollouts})


def answers(payload: Path) -> dict[str, str]:
    """Answer of each prompt by its id."""
    table = tables.read(payload / "prompts.parquet", PROMPTS)
    return dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))


def right(rollouts: Sequence[Row], answers: Mapping[str, str], grader: str) -> Array:
    """Which rollouts are correct, bool [N]. Raises ``UserError`` for one of an unknown prompt."""
    for row in rollouts:
        if row["prompt_id"] not in answers:
            raise UserError(
                f"there is no prompt '{row['prompt_id']}'",
                "prompts",
                "give the prompt set that the rollouts answer",
            )
    graded, _ = grade_all(
        [(row["response"], answers[row["prompt_id"]]) for row in rollouts], grader
    )
    return np.array([correct for _, correct in graded], dtype=bool)


def tokens(cfg: Mapping[str, Any], rollouts: Sequence[Row], student: Path) -> list[Rollout]:
    """Token ids of rollouts (rows of GENERATIONS), prompts in the student's chat template: for the
    teacher with its own options for it, where it has some. Raises ``UserError`` where these make
    only one of the two think, but for cfg ``thinking_may_differ``."""
    tokenizer = load_tokenizer(student)
    pairing.require_same_thinking(cfg, tokenizer, tokenizer)
    chats = {row["prompt_id"]: [{"role": "user", "content": row["prompt"]}] for row in rollouts}

    def rendered(kwargs: Mapping[str, Any]) -> dict[str, list[int]]:
        ids = tokenizer.apply_chat_template(
            list(chats.values()), add_generation_prompt=True, return_dict=True, **kwargs
        )["input_ids"]
        return dict(zip(chats, ids, strict=True))

    ours = rendered(cfg.get("chat_template_kwargs") or {})
    theirs = rendered(pairing.teacher_kwargs(cfg))
    return [
        Rollout(ours[row["prompt_id"]], theirs[row["prompt_id"]], row["token_ids"])
        for row in rollouts
    ]

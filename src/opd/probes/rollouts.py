"""The rollouts that a probe measures: their rows and token ids, which are correct, and how models
go on from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations
from opd.grading.graders import Graded, grade_all
from opd.models import pairing
from opd.models.chat import require_options
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import prompts_of
from opd.models.sampling import Request, Sampler
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
    accepted = [row for row in rows if row["rejected"] is None and row["token_ids"]]
    if not accepted:
        raise UserError("there is no rollout in it", str(path), "loosen the rules that reject them")
    return accepted


def counted(rollouts: Sequence[Row]) -> dict[str, int]:
    """How many rollouts there are, and how many prompts they answer."""
    return {"rollouts": len(rollouts), "prompts": len({row["prompt_id"] for row in rollouts})}


def right(rollouts: Sequence[Row], prompts: Sequence[Row], grader: str) -> Array:
    """Which rollouts are correct, bool [N]. Raises ``UserError`` for one of an unknown prompt."""
    answered = zip(rollouts, prompts_of(rollouts, prompts), strict=True)
    graded, _ = grade_all([(row["response"], prompt["answer"]) for row, prompt in answered], grader)
    return np.array([correct for _, correct in graded], dtype=bool)


def tokens(cfg: Mapping[str, Any], rollouts: Sequence[Row], student: Path) -> list[Rollout]:
    """Token ids of rollouts (rows of GENERATIONS), prompts in the student's chat template: for the
    teacher with its own options for it, where it has some. Raises ``UserError`` where these make
    only one of the two think, but for cfg ``thinking_may_differ``."""
    tokenizer = load_tokenizer(student)
    pairing.require_same_thinking(cfg, tokenizer)
    chats = {row["prompt_id"]: conversations.chat(row) for row in rollouts}

    def encoded(options: Mapping[str, Any]) -> dict[str, list[int]]:
        require_options(tokenizer, options)
        ids = conversations.encode(tokenizer, chats.values(), options)
        return dict(zip(chats, ids, strict=True))

    of_student = encoded(cfg.get("chat_template_kwargs") or {})
    of_teacher = encoded(pairing.teacher_kwargs(cfg))
    return [
        Rollout(of_student[row["prompt_id"]], of_teacher[row["prompt_id"]], row["token_ids"])
        for row in rollouts
    ]


def continued(
    sampler: Sampler,
    asked: Sequence[tuple[Row, Request]],
    prompts: Sequence[Row],
    grader: str,
) -> tuple[list[Row], list[Graded]]:
    """Rows of CONTINUATIONS, and how each response is graded.

    asked: of every request the part of its row that is known before. The sampler lets go of its
    engine, as the next one needs the memory.
    """
    responses = sampler.sample([request for _, request in asked])
    sampler.stop()
    answers = {prompt["id"]: prompt["answer"] for prompt in prompts}
    answered = zip(responses, asked, strict=True)
    graded, _ = grade_all([(made.text, answers[row["id"]]) for made, (row, _) in answered], grader)
    rows = [
        {
            **row,
            "response": response.text,
            "tokens": len(response.token_ids),
            "finish": response.finish,
            "correct": correct,
        }
        for (row, _), response, (_, correct) in zip(asked, responses, graded, strict=True)
    ]
    return rows, graded

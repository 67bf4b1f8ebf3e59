"""Prompt sets as the stages read them that put prompts to models or grade the responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS

Row = dict[str, Any]


def read_prompts(payload: Path, n: int | None = None) -> list[Row]:
    """The first n rows of a prompt set, all if n is None. Raises ``UserError`` for none."""
    path = payload / "prompts.parquet"
    rows: list[Row] = tables.read(path, PROMPTS).to_pylist()[:n]
    if not rows:
        raise UserError("there are no prompts", str(path), "give a prompt set that is not empty")
    return rows


def prompts_of(rows: Sequence[Row], prompts: Sequence[Row]) -> list[Row]:
    """The prompt that each row of responses answers. Raises ``UserError`` for a row whose prompt is
    not there."""
    by_id = {prompt["id"]: prompt for prompt in prompts}
    for i, row in enumerate(rows):
        if row["prompt_id"] not in by_id:
            raise UserError(
                f"there is no prompt '{row['prompt_id']}', which row {i} answers",
                "prompts",
                "give the prompt set that was answered, or one derived from it",
            )
    return [by_id[row["prompt_id"]] for row in rows]

"""What student and teachers are asked in distillation: the rows of a run's rollouts."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from opd.core.errors import UserError
from opd.data import privileged
from opd.models.checkpoints import read_config, require_room
from opd.models.pairing import teacher_kwargs
from opd.training import common, order, terms
from opd.training.sources import Sources
from opd.training.teachers import ROWS


def teacher_prompts(
    cfg: dict[str, Any], rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> list[list[int]] | None:
    """Token ids of what the teacher is asked, rollouts_per_prompt of each row with its contexts in
    turn; None where that is what the student is asked.

    Raises ``UserError`` as ``opd.data.privileged.token_ids`` does, and where the rollouts of a
    prompt are no multiple of its contexts, since all contexts are to be used equally often.
    """
    contexts, kwargs = cfg.get("information"), teacher_kwargs(cfg)
    if not contexts and kwargs == (cfg.get("chat_template_kwargs") or {}):
        return None
    contexts = contexts or [privileged.CONTEXTS["none"]]
    each, remainder = divmod(cfg["rollouts_per_prompt"], len(contexts))
    if remainder:
        raise UserError(
            f"{len(contexts)} contexts for {cfg['rollouts_per_prompt']} rollouts of a prompt",
            "information",
            "make rollouts_per_prompt a multiple of them",
        )
    limit = cfg.get("max_teacher_prompt_tokens", cfg["max_prompt_tokens"])
    by_context = privileged.token_ids(contexts, rows, tokenizer, kwargs, limit)
    return [ids[row] for row in range(len(rows)) for _ in range(each) for ids in by_context]


def prompt_rows(
    cfg: dict[str, Any], inputs: Mapping[str, Path], tokenizer: Any, readers: Sequence[Path]
) -> tuple[list[common.Chat], list[dict[str, Any]]]:
    """``common.load_prompts`` of all prompt sets, one after the other: the input ``prompts``, or
    ``prompts:NAME`` of several, whose rows then have the name in a column ``prompts``."""
    if "prompts" in inputs:
        return common.load_prompts(cfg, inputs["prompts"], tokenizer, readers)
    chats: list[common.Chat] = []
    rows: list[dict[str, Any]] = []
    for name in (name for name in inputs if name.startswith("prompts:")):
        # A step is filled from all sets together, so from each of them with one prompt at least.
        of_any_size = {**cfg, "prompts_per_step": 1}
        own_chats, own = common.load_prompts(of_any_size, inputs[name], tokenizer, readers)
        chats += own_chats
        rows += [{**row, "prompts": name.removeprefix("prompts:")} for row in own]
    return chats, rows


def teacher_columns(
    cfg: dict[str, Any],
    inputs: Mapping[str, Path],
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    routed: Sequence[Sequence[bool]],
    taken: Sequence[int],
) -> dict[str, list[list[int]]]:
    """``teacher_prompts`` of the rows ``taken``, by the name of each reading that is asked anything
    else than the student; nothing for a row that it does not read, which need not have what it is
    told. ``routed``: the terms of each row."""
    sum_of = terms.terms_of(cfg)
    readings, columns = terms.readings(sum_of), dict[str, list[list[int]]]()
    for reading in dict.fromkeys(reading for reading in readings if reading):
        own = [i for i, other in enumerate(readings) if other == reading]
        reads = {row for row in taken if any(routed[row][i] for i in own)}
        read = [rows[row] for row in taken if row in reads]
        ids = teacher_prompts({**cfg, **sum_of[own[0]]}, read, tokenizer) if read else None
        if ids is None:
            continue
        longest = max(map(len, ids)) + cfg["max_new_tokens"]
        if model := terms.models([sum_of[own[0]]]):
            require_room(read_config(inputs[model[0]]), longest, "max_new_tokens")
        left, each = iter(ids), cfg["rollouts_per_prompt"]
        columns[reading.prompt] = [
            next(left) if row in reads else [] for row in taken for _ in range(each)
        ]
    return columns


def load(
    cfg: dict[str, Any], inputs: Mapping[str, Path], tokenizer: Any, sources: Sources
) -> Dataset:
    """The prompts as they are rolled out, each as often as it is, with what each teacher is asked
    where that differs: those of an epoch, in order and without a last partial batch; or, with
    ``shuffle``, those of the whole run (``opd.training.order.shuffled``), as with several sources
    of rollouts, of which each has its source and response. Of a sum of terms also the answers, and
    the terms that each belongs to. Raises ``UserError`` as ``terms.routed`` and
    ``Sources.answered`` do, and for a row without an answer where responses are graded."""
    sum_of = terms.terms_of(cfg)
    readers = [inputs["student"], *(inputs[name] for name in terms.models(sum_of))]
    chats, rows = prompt_rows(cfg, inputs, tokenizer, readers)
    answered, wanted = sources.answered(rows), cfg["steps"] * cfg["prompts_per_step"]
    if len(answered) < cfg["prompts_per_step"]:
        reason = f"{len(answered)} prompts cannot fill a step of {cfg['prompts_per_step']}"
        raise UserError(reason, "prompts", "lower prompts_per_step or make larger prompt sets")
    taken = answered[: len(answered) - len(answered) % cfg["prompts_per_step"]]
    if cfg.get("shuffle"):
        taken = [answered[i] for i in order.shuffled(len(answered), wanted, cfg["seed"])]
    elif sources.settings:
        taken = [taken[i % len(taken)] for i in range(wanted)]
    rolled_out = [i for i in taken for _ in range(cfg["rollouts_per_prompt"])]
    routed = terms.routed(sum_of, rows)
    terms.require_answers(sum_of, rows)
    columns: dict[str, list[Any]] = {
        "prompt": [chats[i] for i in rolled_out],
        **teacher_columns(cfg, inputs, tokenizer, rows, routed, taken),
        **sources.columns([rows[i] for i in rolled_out]),
    }
    if "terms" in cfg:
        if lost := sum(not any(row) for row in routed):
            note = f"{lost} of {len(rows)} prompts belong to no term: nothing is learnt from them"
            print(f"note: {note}", file=sys.stderr)
        columns[ROWS] = [routed[i] for i in rolled_out]
        columns["answer"] = [rows[i]["answer"] for i in rolled_out]
    return Dataset.from_dict(columns)

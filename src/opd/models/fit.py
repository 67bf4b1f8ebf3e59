"""Which prompts of a set are short enough for the models that read them."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations, privileged
from opd.data.schemas import PROMPTS
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import read_prompts

# Prompts that are encoded at a time.
CHUNK = 1024


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``fit``: prompts.parquet (those that fit, in their order) and report.json.

    cfg: max_prompt_tokens; chat_templates, the options of the chat template of each model; optional
    information, the contexts of a teacher (``opd.data.privileged.contexts``), and
    max_teacher_prompt_tokens, max_prompt_tokens if not given. Inputs: prompts, and for each model
    ``model:NAME``. A prompt fits where no model's chat template makes more than max_prompt_tokens
    of it, nor of what a teacher is told of it in any context more than max_teacher_prompt_tokens.
    The report has by model how many are too long, the longest, the same of what a teacher is told,
    and how many hold each of its special tokens, where any does: these become control ids. Raises
    ``UserError`` where nothing fits, and as ``opd.data.privileged.token_ids`` does.
    """
    rows, limit = read_prompts(inputs["prompts"]), cfg["max_prompt_tokens"]
    contexts: list[dict[str, str]] = cfg.get("information", [])
    limits = {"": limit}
    if contexts:
        limits["teacher_"] = cfg.get("max_teacher_prompt_tokens", limit)
    too_long: set[int] = set()
    models: dict[str, dict[str, Any]] = {}
    for name, options in cfg["chat_templates"].items():
        tokenizer = load_tokenizer(inputs[f"model:{name}"])
        lengths = dict(zip(limits, _lengths(tokenizer, rows, options, contexts), strict=False))
        models[name] = {}
        for who, most in limits.items():
            longer = {row for row, length in enumerate(lengths[who]) if length > most}
            too_long |= longer
            counts = {"too_long": len(longer), "longest_tokens": max(lengths[who])}
            models[name] |= {f"{who}{key}": count for key, count in counts.items()}
        if held := _held(rows, [*tokenizer.added_tokens_encoder]):
            models[name]["control_tokens"] = held
    fitting = [row for i, row in enumerate(rows) if i not in too_long]
    if not fitting:
        longest = ", ".join(
            f"{name}: longest {' and '.join(str(m[f'{who}longest_tokens']) for who in limits)}"
            for name, m in models.items()
        )
        for_teacher = f", and {limits['teacher_']} for a teacher" if contexts else ""
        raise UserError(
            f"none of {len(rows)} prompts has at most {limit} tokens{for_teacher} ({longest})",
            "fit.max_prompt_tokens",
            "raise it",
        )
    tables.write(out / "prompts.parquet", fitting, PROMPTS)
    report = {"prompts": len(rows), "kept": len(fitting), "max_prompt_tokens": limit}
    if contexts:
        report["max_teacher_prompt_tokens"] = limits["teacher_"]
    report["models"] = models
    tables.write_json(out / "report.json", report)
    return report


def _lengths(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    contexts: Sequence[Mapping[str, str]],
) -> tuple[list[int], list[int]]:
    """Tokens of each prompt in a chat template, and of the longest that a teacher is told of it in
    one of the contexts (0 without any)."""
    of_prompts: list[int] = []
    of_teacher: list[int] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        chats = map(conversations.chat, chunk)
        of_prompts += map(len, conversations.encode(tokenizer, chats, options))
        by_context = privileged.token_ids(contexts, chunk, tokenizer, options, sys.maxsize)
        of_teacher += [
            max((len(ids[row]) for ids in by_context), default=0) for row in range(len(chunk))
        ]
    return of_prompts, of_teacher


def _held(rows: Sequence[Mapping[str, Any]], special: Sequence[str]) -> dict[str, int]:
    """How many prompts hold each of some tokens as text, of those that any does."""
    texts = (conversations.text(row, "prompt") for row in rows)
    return dict(Counter(token for text in texts for token in special if token in text))

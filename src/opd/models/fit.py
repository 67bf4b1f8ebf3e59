"""Which prompts of a set are short enough for the models that read them."""

from collections import Counter
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations
from opd.data.schemas import PROMPTS
from opd.models.checkpoints import load_tokenizer
from opd.models.prompts import read_prompts

# Prompts that are encoded at a time.
CHUNK = 1024


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``fit``: prompts.parquet (those that fit, in their order) and report.json.

    cfg: max_prompt_tokens; chat_templates, the options of the chat template of each model. Inputs:
    prompts, and for each model ``model:NAME``. A prompt fits where no model's chat template makes
    more than max_prompt_tokens of it. The report has by model how many are too long, the longest,
    and how many hold each of its special tokens, where any does: these become control ids. Raises
    ``UserError`` where nothing fits, and as ``opd.data.conversations.render`` does.
    """
    rows, limit = read_prompts(inputs["prompts"]), cfg["max_prompt_tokens"]
    too_long: set[int] = set()
    models: dict[str, dict[str, Any]] = {}
    for name, options in cfg["chat_templates"].items():
        tokenizer = load_tokenizer(inputs[f"model:{name}"])
        special = [*tokenizer.added_tokens_encoder]
        lengths: list[int] = []
        held: Counter[str] = Counter()
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            chats = map(conversations.chat, chunk)
            lengths += map(len, conversations.encode(tokenizer, chats, options))
            texts = [conversations.text(row, "prompt") for row in chunk]
            held.update(token for text in texts for token in special if token in text)
        longer = {row for row, length in enumerate(lengths) if length > limit}
        too_long |= longer
        models[name] = {"too_long": len(longer), "longest_tokens": max(lengths)}
        if held:
            models[name]["control_tokens"] = dict(held)
    fitting = [row for i, row in enumerate(rows) if i not in too_long]
    if not fitting:
        longest = ", ".join(f"{name}: longest {m['longest_tokens']}" for name, m in models.items())
        raise UserError(
            f"none of {len(rows)} prompts has at most {limit} tokens ({longest})",
            "fit.max_prompt_tokens",
            "raise it",
        )
    tables.write(out / "prompts.parquet", fitting, PROMPTS)
    counts = {"prompts": len(rows), "kept": len(fitting)}
    report = {**counts, "max_prompt_tokens": limit, "models": models}
    tables.write_json(out / "report.json", report)
    return report

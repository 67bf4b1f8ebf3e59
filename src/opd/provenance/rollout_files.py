"""Rollouts as TRL, verl and the authors of Rethinking OPD write them, as rows of GENERATIONS.

Read from TRL 1.16.0 (tables of ``log_completions``), verl at 1dda039 (``rollout_data_dir`` and
``validation_data_dir``) and thunlp/OPD at 0a44395 (scripts/infer/vllm_rollout.py,
scripts/val/eval/gen_vllm.py). All of them write texts without special tokens, no tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opd.core.errors import UserError
from opd.data import conversations
from opd.data.conversations import Turn
from opd.data.loaders import json_lines

# Columns of prompt and response. ``instruction`` goes first: beside it ``input`` is empty.
FORMS = (
    ("instruction", "output"),  # vllm_rollout.py, of each process
    ("input", "output"),  # verl
    ("prompt", "completion"),  # TRL
    ("prompt", "response"),  # gen_vllm.py
)
MESSAGES = "messages"  # vllm_rollout.py, all together
Prompt = str | tuple[tuple[str, str], ...]  # a text, or (role, content) of messages


def lines_or_table(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of rollouts, be it lines of JSON or parquet. Raises ``UserError``."""
    if not file.is_file():
        raise UserError("no such file", str(file), "give a file of rollouts")
    if file.suffix in (".jsonl", ".json"):
        return [*json_lines(file)]
    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = f"not a readable parquet file ({error})"
        raise UserError(reason, str(file), "copy it again") from error
    return rows


def of_another(rows: Sequence[Mapping[str, Any]], where: str) -> bool:
    """Whether rows are in a form of ``FORMS``, and not rows of GENERATIONS. Raises ``UserError``
    where they are neither."""
    if not rows or "prompt_id" in rows[0]:
        return False
    if _columns(rows[0]) is None:
        reason = f"no rollouts have these columns: {', '.join(map(str, rows[0]))}"
        raise UserError(reason, where, "give a file of a kind that docs/audit.md lists")
    return True


def generations(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Mapping[str, Any]],
    model: Path,
    cfg: Mapping[str, Any],
    where: str,
) -> list[dict[str, Any]]:
    """Rows of GENERATIONS, by prompt (in the order of ``prompts``, rows of PROMPTS) and sample.

    A response is told by its prompt: the messages or the text that were asked, or that text in the
    chat template of the ``model`` with special tokens left out. Its tokens are those that the
    model's tokenizer makes of its text. It counts as cut off (``length``) where they fill
    max_new_tokens of ``cfg``, the settings of the stage ``generate``; else the token that ends a
    turn follows. Raises ``UserError`` for a row of another form and for a prompt that is none of
    ``prompts``.
    """
    try:
        from opd.models.chat import turn_end
        from opd.models.checkpoints import load_tokenizer, stop_ids
    except ModuleNotFoundError as error:
        reason = f"its texts are for a tokenizer, and {error.name} is not installed"
        raise UserError(reason, where, "adopt it where the stages run that sample") from None
    options = cfg.get("chat_template_kwargs") or {}
    tokenizer = load_tokenizer(model, options)
    ends = stop_ids(model, tokenizer)
    turn = turn_end(tokenizer, options)
    end = turn if turn is not None and turn in ends else min(ends)
    chats = [conversations.chat(prompt) for prompt in prompts]
    asked = conversations.encode(tokenizer, chats, options)
    rendered = tokenizer.batch_decode(asked, skip_special_tokens=True)
    places: dict[Prompt, int] = {}
    for i, (chat, text) in enumerate(zip(chats, rendered, strict=True)):
        for key in (_messages(chat), str(prompts[i]["prompt"]).strip(), text.strip()):
            places.setdefault(key, i)
    responses: dict[int, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        prompt, response = _logged(row, f"{where}: row {number}")
        if prompt not in places:
            shown = prompt if isinstance(prompt, str) else prompt[-1][1]
            remedy = "give rollouts of the prompts that the recipe names, asked as it asks them"
            reason = f"'{' '.join(shown.split())[:60]}' is none of the prompts"
            raise UserError(reason, f"{where}: row {number}", remedy)
        responses.setdefault(places[prompt], []).append(response)
    return [
        _row(prompts[i], sample, response, tokenizer, cfg["max_new_tokens"], end)
        for i in sorted(responses)
        for sample, response in enumerate(responses[i])
    ]


def _row(
    prompt: Mapping[str, Any], sample: int, response: str, tokenizer: Any, limit: int, end: int
) -> dict[str, Any]:
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    cut = len(ids) >= limit
    return {
        "prompt_id": prompt["id"],
        "sample": sample,
        "attempt": 0,
        "prompt": prompt["prompt"],
        "turns": prompt["turns"],
        "response": response,
        "token_ids": ids if cut else [*ids, end],
        "finish": "length" if cut else "stop",
        "rejected": None,
    }


def _columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    if MESSAGES in row:
        return MESSAGES, MESSAGES
    return next((form for form in FORMS if all(name in row for name in form)), None)


def _logged(row: Mapping[str, Any], where: str) -> tuple[Prompt, str]:
    """The prompt and the response of a row as it was logged."""
    columns = _columns(row)
    asked, answered = (row[name] for name in columns) if columns else (None, None)
    if columns == (MESSAGES, MESSAGES) and isinstance(asked, list):
        asked, answered = asked[:-1], asked[-1:]
    if isinstance(answered, list) and len(answered) == 1 and isinstance(answered[0], dict):
        answered = answered[0].get("content")
    if isinstance(asked, str):
        asked = asked.strip()
    elif isinstance(asked, list) and asked and all(isinstance(turn, dict) for turn in asked):
        asked = _messages(asked)
    else:
        asked = None
    if asked is None or not isinstance(answered, str):
        remedy = "give rollouts of one response to a prompt, as docs/audit.md lists them"
        raise UserError("it is no prompt with its response", where, remedy)
    return asked, answered


def _messages(chat: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
    return tuple((str(turn.get("role")), str(turn.get("content"))) for turn in chat)

"""Conversations: what stands before a prompt (``turns``: a system prompt, what user and assistant
said before), and the one way in which all of it is put into a chat template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from opd.core.errors import UserError

Turn = dict[str, str]


def joined(*parts: Iterable[Turn]) -> list[Turn]:
    """Messages one after the other, all system prompts as one at the beginning: chat templates take
    one, and only there."""
    messages = [message for part in parts for message in part]
    system = [message["content"] for message in messages if message["role"] == "system"]
    first = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return [*first, *(message for message in messages if message["role"] != "system")]


def chat(
    row: Mapping[str, Any], message: str | None = None, system: str | None = None
) -> list[Turn]:
    """The conversation of a row with ``prompt`` and ``turns``, which ends with the prompt, or with
    ``message`` in its place; ``system`` goes below the row's own system prompt."""
    own = [{"role": "system", "content": system}] if system else []
    content = row["prompt"] if message is None else message
    return joined(row.get("turns") or (), own, [{"role": "user", "content": content}])


def text(row: Mapping[str, Any], column: Literal["question", "prompt"]) -> str:
    """The text by which rows are the same: a question with the turns before it, or a prompt with
    these and the system prompt."""
    counted = ("user", "assistant") if column == "question" else ("system", "user", "assistant")
    turns = [turn["content"] for turn in row.get("turns") or () if turn["role"] in counted]
    return "\n\n".join([*turns, row[column]])


def render(tokenizer: Any, messages: Sequence[Turn], **options: Any) -> str:
    """Messages in a tokenizer's chat template, as text. Raises ``UserError`` where the template
    refuses them, and where it leaves out what stands before the last one (but for the assistant's
    part, whose thinking most templates take off)."""
    import jinja2  # not for those who only read a config

    where = str(getattr(tokenizer, "name_or_path", "chat_template"))
    remedy = "use a model whose template takes such conversations, or prompts without them"
    try:
        rendered = str(tokenizer.apply_chat_template([*messages], tokenize=False, **options))
    except jinja2.TemplateError as error:
        raise UserError(
            f"the chat template refuses a conversation ({error})", where, remedy
        ) from error
    for message in messages[:-1]:
        if message["role"] != "assistant" and message["content"].strip() not in rendered:
            raise UserError(
                f"the chat template leaves a {message['role']} message out", where, remedy
            )
    return rendered


def encode(
    tokenizer: Any, chats: Iterable[Sequence[Turn]], options: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of conversations in a tokenizer's chat template with its ``options``, ready for the
    response; raises as ``render`` does."""
    texts = [render(tokenizer, chat, add_generation_prompt=True, **options) for chat in chats]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids

"""Chat templates: which options they read, which token ends a turn in them, whether they ask for
thinking, and whether they say the same thing every day."""

import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from opd.core.errors import UserError

# What a chat template is given without being asked for it.
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now",
          "raise_exception", "continue_final_message"}  # fmt: skip
_USER = {"role": "user", "content": "?"}
_REPLY = {"role": "assistant", "content": "opd-reply"}
_CHATS = (
    [_USER],
    [{"role": "system", "content": "!"}, _USER],
    [_USER, _REPLY, _USER],
)
# Values that an option is tried with beside its own, to see whether any changes a prompt.
_TRIED = (True, False, None, "other", 7)


def require_options(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], where: str = "chat_template"
) -> None:
    """Raise ``UserError`` for an option that changes no prompt whichever value it has (as one that
    the chat template never reads), and where the prompts hold the date of the day."""
    read = ", ".join(variables(tokenizer)) or "none"
    for name in options:
        others = {key: value for key, value in options.items() if key != name}
        tried = [others, *({**others, name: value} for value in (options[name], *_TRIED))]
        if len({_prompts(tokenizer, values) for values in tried}) == 1:
            raise UserError(
                f"'{name}' changes no prompt, whatever its value",
                where,
                f"leave it out, or name what the chat template reads ({read})",
            )
    today, another = (
        _prompts(tokenizer, {**options, "strftime_now": lambda _, day=day: day})
        for day in ("one day", "another day")
    )
    if today != another:
        raise UserError(
            "the chat template writes the date of the day into prompts, so that the same run makes "
            "something else tomorrow",
            where,
            f"set the date with a variable that it reads ({read}), or use a template without it",
        )


def variables(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the chat template reads and is not given anyway, sorted."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    # A tag of transformers, which says what of a conversation is trained on.
    text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.get_chat_template())
    undeclared = meta.find_undeclared_variables(environment.parse(text))
    return sorted(undeclared - _GIVEN - {*environment.globals, *tokenizer.special_tokens_map})


def _prompts(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """What a few conversations are rendered to, ready for a response; the reason of one that is
    refused."""
    texts = []
    for chat in _CHATS:
        try:
            texts.append(_rendered(tokenizer, chat, options))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            texts.append(repr(error))
    return "\0".join(texts)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: list[dict[str, str]],
    options: Mapping[str, Any],
    add_generation_prompt: bool = True,
) -> str:
    text = tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=add_generation_prompt, **options
    )
    return str(text)


def turn_end(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> int | None:
    """The special token that ends a reply in the chat template; None where there is none."""
    try:
        text = _rendered(tokenizer, [_USER, _REPLY], options, add_generation_prompt=False)
    except jinja2.TemplateError:
        return None
    after = text.rpartition(_REPLY["content"])[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    special.discard(tokenizer.unk_token_id)  # what the tokenizer does not know is no token
    return ids[0] if ids and ids[0] in special else None


def thinking(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Whether the chat template asks for thinking: ``on``, ``off`` or ``left to the model``."""
    opening = _rendered(tokenizer, [_USER], options).rpartition(_USER["content"])[2]
    if "</think>" in opening:
        return "off"
    return "on" if "<think>" in opening else "left to the model"

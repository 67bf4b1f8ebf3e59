"""Privileged information: what a teacher is told of a prompt beyond what its student is asked.

A context is a few texts with fields of a prompt's row in them. Source: The Many Faces of OPD, its
code (restatement, section 5); all of its information stands in the user's message but for
``hidden``, which stands in the think block. What stands before a prompt in its conversation stands
before it here, too. Nothing here is ever put before a student.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from opd.core.errors import UserError
from opd.data import conversations

# prompt: what the student is asked; question: the same without a template.
FIELDS = ("prompt", "question", "answer", "solution")
EMPTY_THINK = "<think>\n\n</think>\n\n"
PLAIN = "{prompt}"

# What a LaTeX command takes is no field: \boxed{answer} stays as it is.
_FIELD = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})+|\{([A-Za-z_]\w*)\}")

CONTEXTS: dict[str, dict[str, str]] = {
    "none": {"message": PLAIN},
    "answer": {
        "message": "{prompt}\n\nThe correct final answer to this problem is: {answer}\n"
        "Now solve the problem yourself step by step and arrive at the same answer:"
    },
    "full": {
        "message": "{question}\n\nHere is a reference solution to this problem:\n{solution}\n"
        "After understanding the reference solution and the rationale behind each step, now "
        "articulate your own step-by-step reasoning that derives the same final answer to the "
        "problem above:\nPlease reason step by step, and put your final answer within \\boxed{}."
    },
    "hidden": {"message": PLAIN, "think": "The answer to this problem is {answer}."},
    "concise": {
        "message": "Solve the following math problem concisely and correctly. Be direct -- avoid "
        "unnecessary elaboration, redundant steps, or restating the problem. Focus only on the key "
        "reasoning steps needed to reach the answer.\n\n{prompt}"
    },
    "safety": {
        "message": "Follow these rules when responding:\n"
        "1. Do not assist with harmful or illegal actions.\n"
        "2. Politely refuse unsafe requests.\n"
        "3. Provide safe alternatives when possible.\n"
        "4. Remain helpful and neutral for legitimate requests.\n\n{prompt}"
    },
}


def fields(text: str) -> list[str]:
    """Names in braces that count as fields of a text."""
    return [name for name in _FIELD.findall(text) if name]


def contexts(information: Any) -> list[dict[str, str]]:
    """The ``information`` of a recipe (a name of CONTEXTS, {message, system, think}, or a list of
    these) as contexts with a message each; empty where a teacher is told nothing more.

    Raises ``UserError`` for an unknown name or field, and for a message that leaves the question
    out.
    """
    checked = []
    for entry in information if isinstance(information, list) else [information or "none"]:
        if isinstance(entry, str) and entry not in CONTEXTS:
            known = f"use one of {', '.join(CONTEXTS)}"
            raise UserError(f"unknown kind '{entry}'", "information", known)
        context = CONTEXTS[entry] if isinstance(entry, str) else {"message": PLAIN, **entry}
        for part, text in context.items():
            if unknown := [field for field in fields(text) if field not in FIELDS]:
                raise UserError(
                    f"unknown field {{{unknown[0]}}}",
                    f"information.{part}",
                    f"there are {', '.join(f'{{{known}}}' for known in FIELDS)}",
                )
        if not {"prompt", "question"} & set(fields(context["message"])):
            raise UserError("the question is not in it", "information.message", "add {prompt}")
        checked.append(dict(context))
    return [] if checked == [CONTEXTS["none"]] else checked


def filled(text: str, row: Mapping[str, Any]) -> str:
    """A text with the fields of a row of PROMPTS filled in, in one pass: braces in what a field
    holds are text. Raises ``UserError`` where the row has nothing in a field."""

    def value(match: re.Match[str]) -> str:
        field = match[1]
        if field is None:
            return match[0]
        content = row[field]
        if content is None or not content.strip():
            raise UserError(
                f"there is no {field} to tell the teacher",
                f"information: prompt {row['id']}",
                "give the prompt set one (column, layout), or leave such rows out",
            )
        return str(content)

    return _FIELD.sub(value, text)


def token_ids(
    contexts: Sequence[Mapping[str, str]],
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    limit: int,
) -> list[list[list[int]]]:
    """Token ids, by context and row of PROMPTS, of what the teacher is asked, ready for the
    response: the row's turns, below its system prompt the context's, and the context's message.

    ``think`` takes the place of the empty think block, or becomes a block where the chat template
    puts none. Raises ``UserError`` for a row without the information, as
    ``opd.data.conversations.render`` does, for a think block where the response may begin with one
    of its own, and for more than ``limit`` tokens.
    """

    def asked(context: Mapping[str, str], row: Mapping[str, Any]) -> str:
        system = filled(context["system"], row) if "system" in context else None
        chat = conversations.chat(row, filled(context["message"], row), system)
        text = conversations.render(tokenizer, chat, add_generation_prompt=True, **template_kwargs)
        if "think" not in context:
            return text
        if not text.endswith(EMPTY_THINK) and "<think>" in str(tokenizer.chat_template):
            raise UserError(
                "the chat template leaves a think block to the response",
                "information.think",
                "use chat_template: {enable_thinking: false}",
            )
        thought = filled(context["think"], row)
        return f"{text.removesuffix(EMPTY_THINK)}<think>\n{thought}\n</think>\n\n"

    by_context = []
    for context in contexts:
        texts = [asked(context, row) for row in rows]
        by_context.append(tokenizer(texts, add_special_tokens=False)["input_ids"])
        for prompt, row in zip(by_context[-1], rows, strict=True):
            if len(prompt) > limit:
                raise UserError(
                    f"the teacher's prompt has {len(prompt)} tokens, at most {limit} are allowed",
                    f"information: prompt {row['id']}",
                    "raise max_teacher_prompt_tokens, tell it less, or leave such rows out (fit)",
                )
    return by_context

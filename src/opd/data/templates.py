"""Prompt templates: putting a question into one, and taking it out again.

A template is literal text with ``{question}`` in it; other braces stand for themselves. The
templates of the papers have names.
"""

from typing import Literal

from opd.core.errors import UserError

PLACE = "{question}"

# Rethinking OPD: the original DAPO template; the one of JustRL, DeepMath and its evaluations; and
# what its released "processed" DAPO file holds, the same with a literal double brace. The Many
# Faces of OPD: what its students are asked (its code).
TEMPLATES = {
    "dapo": "Solve the following math problem step by step. The last line of your response should "
    "be of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem."
    '\n\n{question}\n\nRemember to put your answer on its own line after "Answer:".',
    "boxed": "{question} Please reason step by step, and put your final answer within \\boxed{}.",
    "boxed_double_brace": "{question} Please reason step by step, and put your final answer within "
    "\\boxed{{}}.",
    "boxed_paragraph": "{question}\n\nPlease reason step by step, and put your final answer within "
    "\\boxed{}.",
}

Match = Literal["exact", "loose"]


def named(template: str) -> str:
    """The text of a template that is given by its name, else the given text itself."""
    return TEMPLATES.get(template, template)


def apply(template: str, question: str) -> str:
    """Put a question into a template (its name or its text).

    Raises ``UserError`` for a text without ``{question}``.
    """
    text = named(template)
    if PLACE not in text:
        remedy = f"add {PLACE} to it, or use {', '.join(TEMPLATES)}"
        raise UserError(f"the template has no {PLACE}: {text!r}", "template", remedy)
    return text.replace(PLACE, question)


def unwrap(text: str, affix: str) -> tuple[str, Match | None]:
    """Take one template off a text: returns the text within, and how the template fitted.

    ``exact``: to the byte, and no white space is taken off what is within. ``loose``: up to white
    space around text, prefix and suffix. None: it does not fit, and the text is returned unchanged.
    Prefix and suffix come off together or not at all. An affix without ``{question}`` is text that
    may stand at the end or at the start.
    """
    affix = named(affix)
    if PLACE not in affix:
        how: Match | None = None
        for template in (PLACE + affix, affix + PLACE):
            text, fit = unwrap(text, template)
            how = how or fit
        return text, how
    prefix, suffix = affix.split(PLACE, 1)
    inner = _between(text, prefix, suffix)
    if inner is not None:
        return inner, "exact"
    inner = _between(text.strip(), prefix.strip(), suffix.strip())
    return (text, None) if inner is None else (inner, "loose")


def _between(text: str, prefix: str, suffix: str) -> str | None:
    fits = len(text) >= len(prefix) + len(suffix)
    if fits and text.startswith(prefix) and text.endswith(suffix):
        return text[len(prefix) : len(text) - len(suffix)]
    return None

"""What students and teachers are asked: questions, and questions with demonstrations (the paper,
Figs. 12 to 15). Blank lines between blocks are as the figures lay them out. What the paper does not
give is marked "ours".
"""

import re
from collections.abc import Mapping, Sequence

from opd.core.errors import LeftOut, UserError

# Texts of demonstrations: prompt -> correct or not -> in their order.
Texts = Mapping[str, Mapping[bool, Sequence[str]]]

SYSTEM = "You are a helpful assistant."
# What a form of the paper looks like as the loaders of its set make it, and as it is asked.
FORMS = {
    "mmlu": (
        r"(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)",
        "Answer the following multiple choice question. The last line of your response should be "
        "of the following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. "
        "Think step by step before answering.\n\n{}\n\nA) {}\nB) {}\nC) {}\nD) {}",
    ),
    "boolq": (  # ours
        r"(.*)\nQuestion: (.*)",
        "{}\n\n{}\n\nThe last line of your response should be of the following format: 'Answer: "
        "True' or 'Answer: False' (without quotes). Think step by step before answering.",
    ),
}
# Ours.
SUMMARISE = (
    "Here is a question and a response to it.\n\nQuestion:\n{question}\n\nResponse:\n"
    '"""\n{response}\n"""\n\nSummarise the response in a few sentences: its key steps and its '
    "final answer. Write nothing else."
)

_QUOTED = '"""\n{}\n"""'
_ONE = "This is a correct response to the question:"
_SEVERAL = "These are correct responses to the question:"  # ours
_MIXED = (
    "Below are example responses to the question. Some are CORRECT and some are WRONG -- the wrong "
    "responses contain mistakes and should NOT be imitated."
)
_NOW = "Now answer with a response of your own, including the thinking process:"


def asked(form: str | None, question: str, prompt: str) -> str:
    """The user message of a prompt: as its prompt set asks it, or in one of ``FORMS``, for which
    the bare question has to look as the loaders of these sets make it.

    Raises ``UserError`` for an unknown form and for a question that does not look like that.
    """
    if form is None:
        return prompt
    if form not in FORMS:
        raise UserError(f"unknown form '{form}'", "form", f"use one of {', '.join(FORMS)}")
    pattern, message = FORMS[form]
    parts = re.fullmatch(pattern, question.strip(), re.DOTALL)
    if parts is None:
        raise LeftOut(f"no question of {form}", f"question '{question[:40]}'", "leave form out")
    return message.format(*parts.groups())


def with_demonstrations(asked: str, correct: Sequence[str], wrong: Sequence[str] = ()) -> str:
    """A user message followed by demonstrations (Figs. 13 to 15); as it is without any."""
    if not correct and not wrong:
        return asked
    if wrong:
        blocks = [_MIXED]
        blocks += ["Correct:\n" + _QUOTED.format(text) for text in correct]
        blocks += ["WRONG (do NOT imitate):\n" + _QUOTED.format(text) for text in wrong]
    else:
        head = _ONE if len(correct) == 1 else _SEVERAL
        first, *rest = [_QUOTED.format(text) for text in correct]
        blocks = [f"{head}\n{first}", *rest]
    return "\n\n".join([asked, *blocks, _NOW])


def summary_request(template: str, question: str, response: str) -> str:
    """What a summariser is asked. Raises ``UserError`` for a template without {response}."""
    if "{response}" not in template:
        raise UserError("it has no {response}", "template", "add it")
    return template.replace("{question}", question).replace("{response}", response)


def teacher_asked(prompt_id: str, asked: str, texts: Texts, correct: int, wrong: int) -> str:
    """The user message of a teacher that sees this many demonstrations of each kind. Raises
    ``UserError`` where there are too few."""
    kinds = texts.get(prompt_id, {})
    for kind, word, wanted in ((True, "correct", correct), (False, "wrong", wrong)):
        have = len(kinds.get(kind, ()))
        if have < wanted:
            raise LeftOut(
                f"{have} of {wanted} {word} demonstrations",
                f"prompt '{prompt_id}'",
                "allow more trials, or leave the question out",
            )
    return with_demonstrations(asked, kinds.get(True, ())[:correct], kinds.get(False, ())[:wrong])

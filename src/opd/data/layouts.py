"""Where the rows of a dataset keep what a prompt needs: layouts.yaml has all that are known.

A column may be dotted (``reward_model.ground_truth``). A list of messages counts as the text of the
user's last one, and what stands before that as the prompt's turns. A question may be a form of
several columns (``{passage} {question}``), in which a list of choices becomes lines that start with
A, B, C, ...
"""

import hashlib
import math
import re
import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.schema import load_yaml
from opd.data.conversations import Turn

Row = Mapping[str, Any]
ROLES = {"human": "user", "gpt": "assistant"}
DUE = ("user", "assistant")
LETTERS = string.ascii_uppercase
FIELD = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Layout:
    """The columns of one dataset. Of several columns the first that is there and not null counts.

    ``take`` says what of the answer column is the answer: its text, its last ``\\boxed{}``, the
    letter that its number stands for, the one item of its list, or (``choice``) the letter that it
    gets among the columns ``wrong`` in ``{choices}``, whose order the texts decide. ``where``
    (column to text) and ``one_box`` (exactly one ``\\boxed`` in the answer column) choose rows.
    ``once``: the dataset repeats whole rows, and each is read once. ``solution``: the column with
    a worked solution, for a teacher that is shown it. ``fallback`` (column to column): what is read
    where the first is empty.
    """

    question: tuple[str, ...]
    answer: str | None
    prompt: tuple[str, ...] = ()
    difficulty: tuple[str, ...] = ()
    row_id: str | None = None
    take: Literal["text", "boxed", "letter", "item", "choice"] = "text"
    where: Mapping[str, str] = field(default_factory=dict)
    one_box: bool = False
    once: bool = False
    wrong: tuple[str, ...] = ()
    configs: tuple[str | None, ...] = (None,)
    file: str | None = None
    solution: str | None = None
    fallback: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def needed(self) -> tuple[str, ...]:
        """The top-level columns without which a row cannot be read."""
        columns = (self.question[-1], self.answer, self.row_id, *self.where, *self.wrong)
        made = "choices" if self.wrong else None
        return tuple(column for column in _top(*columns, self.solution) if column != made)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The top-level columns that are read where they are there."""
        more = _top(*self.question, *self.prompt, *self.difficulty, *self.fallback.values())
        return tuple(dict.fromkeys([*self.needed, *(() if self.wrong else more)]))


def _top(*columns: str | None) -> tuple[str, ...]:
    parts = (part for column in columns if column for part in FIELD.findall(column) or [column])
    return tuple(part.partition(".")[0] for part in parts)


def _layout(entry: Row) -> Layout:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return Layout(**fields)


_TABLE = package_file(__file__, "layouts.yaml").read_text(encoding="utf-8")
# By the name on the hub; and for files of any other dataset.
LAYOUTS = {name: _layout(entry) for name, entry in load_yaml(_TABLE).items()}


def choose(source: Mapping[str, Any], columns: Iterable[str] = ()) -> Layout:
    """The layout of a source: the one that it names (``layout``), that of its hub name, or what
    its columns suggest; with the columns that it names itself written over it."""
    known = source.get("layout") or source.get("hub")
    fallback = "verl" if {"prompt", "reward_model"} <= set(columns) else "table"
    named = {key: source[key] for key in ("answer", "row_id", "solution") if source.get(key)}
    named |= {key: (source[key],) for key in ("question", "difficulty") if source.get(key)}
    return replace(LAYOUTS.get(str(known), LAYOUTS[fallback]), **named)


def check(layout: Layout, columns: Collection[str], where: str) -> None:
    """Raises ``UserError`` naming a column that a layout needs and a file lacks."""
    for column in layout.needed:
        if column not in columns:
            raise UserError(
                f"column '{column}' is missing (it has {', '.join(sorted(columns))})",
                where,
                "name the columns with question and answer, or the layout",
            )


def record(layout: Layout, row: Row, where: str) -> dict[str, Any] | None:
    """id (None if no column is named), question, prompt, answer, difficulty, solution and turns of
    a row, texts as they stand there; None for a row that the layout leaves out.

    Missing texts are empty, a missing solution is None, as are turns where the prompt is the first
    message. Raises ``UserError`` for a missing column, messages that are no conversation of a user,
    and values that are no text and no number.
    """
    check(layout, row, where)
    if any(_at(row, column, where) != value for column, value in layout.where.items()):
        return None
    instead = {to: row.get(of) for to, of in layout.fallback.items() if not row.get(to)}
    row = {**row, **instead}
    value = _at(row, layout.answer, where)
    if layout.take == "choice":
        row, value = _among_choices(layout, row, where)
    if layout.take == "item" and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if layout.take == "letter" and isinstance(value, int):
        if not 0 <= value < len(LETTERS):
            raise UserError(f"no choice has the number {value}", where, "mend the answer")
        value = LETTERS[value]
    answer = text(value, "answer", where)
    if layout.one_box and answer.count("\\boxed") != 1:
        return None
    if layout.take == "boxed":
        from opd.grading.graders import last_boxed

        answer = last_boxed(answer) or ""
    content, turns = _first(row, layout.question, where)
    question = text(content, "question", where)
    content, own = _first(row, layout.prompt, where)
    return {
        "id": text(_at(row, layout.row_id, where), "id", where) if layout.row_id else None,
        "question": question,
        "prompt": text(content, "prompt", where) or question,
        "answer": answer,
        "difficulty": _number(_first(row, layout.difficulty, where)[0], where),
        "solution": text(_at(row, layout.solution, where), "solution", where).strip() or None,
        "turns": own or turns or None,
    }


def _among_choices(layout: Layout, row: Row, where: str) -> tuple[Row, str]:
    """A row with its answer among the wrong ones as ``choices``, and the answer's letter."""
    columns = (layout.answer, *layout.wrong)
    choices = [text(_at(row, column, where), "choice", where) for column in columns]
    question = _at(row, layout.needed[0], where)
    order = sorted(
        range(len(choices)),
        key=lambda i: hashlib.sha256(f"{question}\0{choices[i]}".encode()).digest(),
    )
    return {**row, "choices": [choices[i] for i in order]}, LETTERS[order.index(0)]


def text(value: Any, name: str, where: str) -> str:
    """A text or a number as text (2.0 is ``2``); nothing is the empty text."""
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the {name} has half of a surrogate pair at character {error.start}",
                where,
                "mend the file's encoding",
            ) from error
        return value
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    kind = value if isinstance(value, float) else f"a {type(value).__name__}"
    raise UserError(f"the {name} is {kind}, not text", where, "write it as text or as a number")


def _at(row: Row, column: str | None, where: str) -> Any:
    """The value of a dotted column; None without a column, below a null, and where a struct lacks
    the field."""
    if not column:
        return None
    value: Any = row
    for part in column.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise UserError(
                f"'{column}' is a {type(value).__name__} at '{part}'", where, "mend the row"
            )
        value = value.get(part)
    return value


def last_asked(value: Any, column: str, where: str) -> tuple[Any, list[Turn]]:
    """What a user asks last in a list of messages, and what stands before that; any other value as
    it is, after nothing. What stands after it is an answer, which is not asked. Raises
    ``UserError`` for messages in which user and assistant do not take turns."""
    if not (
        isinstance(value, list)
        and value
        and all(isinstance(m, Mapping) and ({"role", "from"} & set(m)) for m in value)
    ):
        return value, []
    roles = [str(message.get("role", message.get("from"))) for message in value]
    roles = [ROLES.get(role, role) for role in roles]
    taken = roles[1:] if roles[0] == "system" else roles
    if not taken or any(role != DUE[i % 2] for i, role in enumerate(taken)):
        raise UserError(
            f"'{column}' holds {', '.join(roles)}",
            where,
            "expected user and assistant in turn, a system message at most before them",
        )
    turns = [
        {
            "role": role,
            "content": text(message.get("content", message.get("value")), f"{role} message", where),
        }
        for role, message in zip(roles, value, strict=True)
    ]
    *before, last = turns[:-1] if roles[-1] == "assistant" else turns
    return last["content"], before


def _first(row: Row, columns: Iterable[str], where: str) -> tuple[Any, list[Turn]]:
    """The value of the first column, or form of columns, that is there and not empty, and the
    turns before it."""
    for column in columns:
        fields = FIELD.findall(column)
        value, turns = (
            _filled(column, row, fields, where)
            if fields
            else last_asked(_at(row, column, where), column, where)
        )
        if value is not None and value != "":
            return value, turns
    return None, []


def _filled(form: str, row: Row, fields: list[str], where: str) -> tuple[str | None, list[Turn]]:
    """A form with its columns filled in, and the turns before them; None where one is empty."""
    parts, before = {}, []
    for column in fields:
        value, turns = last_asked(_at(row, column, where), column, where)
        if isinstance(value, list):
            choices = (text(choice, column, where) for choice in value)
            value = "\n".join(f"{a}. {c}" for a, c in zip(LETTERS, choices, strict=False))
        parts[column] = text(value, column, where)
        before += turns
        if not parts[column].strip():
            return None, []
    return FIELD.sub(lambda match: parts[match[1]], form), before


def _number(value: Any, where: str) -> float | None:
    """3, "3", 4.5 and "Level 3" are numbers; "Level ?" and NaN stand for unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"(?:Level )?(-?\d+(?:\.\d+)?|\?|)", str(value).strip())
    if match is None:
        raise UserError(f"difficulty {value!r} is no number", where, "mend the column")
    return float(match[1]) if match[1] not in ("", "?") else None

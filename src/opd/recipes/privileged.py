"""The ``information`` of a recipe: what a teacher is told beyond the prompt (see
``opd.data.privileged``)."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from opd.core.errors import UserError
from opd.core.schema import Strict
from opd.data import privileged


class Context(Strict):
    """What a teacher is told, with {prompt} (what the student is asked), {question}, {answer} and
    {solution}."""

    message: str | None = Field(default=None, description="in place of the prompt")
    system: str | None = None
    think: str | None = Field(default=None, description="in the teacher's think block")


Entry = Literal[*privileged.CONTEXTS] | Context  # type: ignore[valid-type]


def contexts(information: Any) -> list[dict[str, str]]:
    """The contexts of a recipe's ``information``: see ``opd.data.privileged.contexts``."""
    entries = information if isinstance(information, list) else [information or "none"]
    return privileged.contexts(
        [
            entry.model_dump(exclude_none=True) if isinstance(entry, Context) else entry
            for entry in entries
        ]
    )


def _checked(information: Any) -> Any:
    try:
        contexts(information)
    except UserError as error:
        raise ValueError(str(error)) from None
    return information


Information = Annotated[Entry, AfterValidator(_checked)]
Contexts = Annotated[Entry | list[Entry], AfterValidator(_checked)]

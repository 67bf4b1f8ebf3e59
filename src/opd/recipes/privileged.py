"""What a recipe may say of privileged information (``opd.data.privileged``)."""

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


Told = Literal[*privileged.CONTEXTS] | Context  # type: ignore[valid-type]


def contexts(given: Any) -> list[dict[str, str]]:
    """What a recipe gives, as ``opd.data.privileged.contexts`` has it."""
    listed = given if isinstance(given, list) else [given or "none"]
    return privileged.contexts(
        [one.model_dump(exclude_none=True) if isinstance(one, Context) else one for one in listed]
    )


def _held(given: Any) -> Any:
    try:
        contexts(given)
    except UserError as bad:
        raise ValueError(str(bad)) from None
    return given


Information = Annotated[Told, AfterValidator(_held)]
Contexts = Annotated[Told | list[Told], AfterValidator(_held)]

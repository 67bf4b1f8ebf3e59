"""Recipes of where the rollouts of a distillation come from, and of what is kept of a teacher."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from opd.core.schema import OneOf, Strict
from opd.recipes.base import Count, GenerationsRef, ModelRef, Positive

Part = Annotated[float, Field(gt=0, le=1)]


class Importance(Strict):
    """Weights of tokens that another model has sampled: what the student gives a token over what
    that model gave it (``opd.losses.importance``)."""

    clip: Positive = Field(description="the most that a token counts")


class Scores(Strict):
    """What a teacher makes of the responses of a generation, kept so that training does without it
    (see ``opd.models.score``)."""

    generations: GenerationsRef
    teacher: ModelRef
    named_student: ModelRef | None = Field(
        default=None, description="what the teacher makes of this model's top k is kept, too"
    )
    k: Count = Field(default=64, description="likeliest tokens that are kept of each position")


class RolloutSource(OneOf):
    """Where a share of a step's rollouts comes from (docs/training.md)."""

    KINDS: ClassVar[tuple[str, ...]] = ("own", "generations")

    own: Part | None = Field(
        default=None, description="share of a step's rollouts that the student samples itself"
    )
    generations: GenerationsRef | None = Field(
        default=None, description="responses of this generation, to the prompts of the run"
    )
    share: Part | None = Field(
        default=None, description="of a step's rollouts, with generations; all if not given"
    )
    importance: Importance | None = Field(
        default=None,
        description="with generations that have logprobs: weights of their tokens; none if not "
        "given",
    )

    @property
    def part(self) -> float:
        """The share of a step's rollouts."""
        return self.own or self.share or 1.0

    @model_validator(mode="after")
    def _says_its_share_once(self) -> "RolloutSource":
        for key in ("share", "importance") if self.own else ():
            if getattr(self, key) is not None:
                raise ValueError(f"{key} goes with generations, and not with own")
        return self

"""Recipes of what distillation minimises: losses, what a teacher is told, and terms of a sum."""

import inspect
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from opd.core.schema import OneOf, Strict, checked
from opd.data import privileged
from opd.losses import spec
from opd.losses.spec import LossSpec
from opd.recipes.base import Count, Grader, ModelRef, NonNegative, Plain, Positive, ScoresRef
from opd.training.terms import BY_STATES

Inner = Annotated[float, Field(gt=0, lt=1)]


class Context(Strict):
    """What a teacher is told, with {prompt} (what the student is asked), {question}, {answer} and
    {solution} (see ``opd.data.privileged``)."""

    message: str | None = Field(default=None, description="in place of the prompt")
    system: str | None = None
    think: str | None = Field(default=None, description="in the teacher's think block")


def contexts(information: Any) -> list[dict[str, str]]:
    """The contexts of a recipe's ``information``: see ``opd.data.privileged.contexts``."""
    entries = information if isinstance(information, list) else [information]
    return privileged.contexts(
        [
            entry.model_dump(exclude_none=True) if isinstance(entry, Context) else entry or "none"
            for entry in entries
        ]
    )


Entry = Literal[*privileged.CONTEXTS] | Context  # type: ignore[valid-type]
Information = Annotated[Entry, checked(contexts)]
Contexts = Annotated[Entry | list[Entry], checked(contexts)]


def _described() -> dict[str, str]:
    """Setting of a loss -> what the list in the docstring of ``LossSpec`` says of it."""
    entries = (inspect.getdoc(LossSpec) or "").split("\n- ")[1:]
    parted = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: text for names, _, text in parted for name in names.split(", ")}


# Every setting of a loss; what is not given is the preset's.
_SETTINGS: dict[str, Any] = {
    name: (kind | None, Field(default=None, description=_described().get(name)))
    for name, kind in get_type_hints(LossSpec, include_extras=True).items()
}


class Loss(create_model("_LossSettings", __base__=Strict, **_SETTINGS)):  # type: ignore[misc]
    """A preset of ``opd.losses.spec``, with other settings written over it."""

    preset: Literal[*spec.PRESETS] = "rethinking_code"  # type: ignore[valid-type]


def _check_loss(loss: Loss) -> None:
    spec.loss_spec(loss.model_dump(exclude_none=True))


CheckedLoss = Annotated[Loss, checked(_check_loss)]


class Quantile(OneOf):
    """Tokens by the quantile of a value among the tokens of a step that the term is over."""

    above_quantile: Inner | None = Field(default=None, description="0.8: the highest 20 %")
    below_quantile: Inner | None = Field(default=None, description="0.2: the lowest 20 %")
    outside_quantiles: Annotated[list[Inner], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[0.1, 0.9]: the lowest and the highest 10 %"
    )

    @model_validator(mode="after")
    def _in_order(self) -> "Quantile":
        if self.outside_quantiles and self.outside_quantiles[0] >= self.outside_quantiles[1]:
            raise ValueError("outside_quantiles: the first must be below the second")
        return self


class Graded(Strict):
    """Responses by what a grader says of them."""

    grader: Grader
    keep: Literal["right", "wrong"] = "right"


class TokenWeights(Strict):
    """What the tokens of a term count (see ``opd.losses.weights``): those count that all keys have;
    weights are multiplied, and scaled to sum to the tokens that count."""

    prefix: Count | None = Field(default=None, description="the first tokens of a response alone")
    linear: Annotated[list[NonNegative], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="weights of a response's first and last token"
    )
    entropy: Quantile | None = Field(default=None, description="of the student, in nats")
    teacher_entropy: Quantile | None = None
    divergence: Quantile | None = Field(default=None, description="KL(student || teacher), in nats")
    overlap: Quantile | None = Field(default=None, description="of both top metrics_k sets")
    advantage: Quantile | None = Field(
        default=None, description="log q - log p of the sampled token, in nats"
    )
    correct: Graded | None = None
    drift: NonNegative | None = Field(
        default=None, description="gamma of IW-OPD: less, the more has differed before a token"
    )
    clip_nats: Positive | None = Field(
        default=None, description="clips the log-ratio of the sampled token; for the loss sampled"
    )

    @model_validator(mode="after")
    def _weighs_something(self) -> "TokenWeights":
        if self.linear and not any(self.linear):
            raise ValueError("linear: the weights sum to nothing")
        return self


class Linear(Strict):
    """A weight that goes linearly from the first step to another."""

    start: float
    end: float
    steps: Count | None = Field(default=None, description="until it is there; all if not given")


class Reward(Strict):
    """1 for a response that is right, as an advantage within the responses to a prompt."""

    grader: Grader


# Beside a ``teacher``.
SERVER = Field(
    default=None,
    description="the teacher is asked of a server of vLLM (training.servers), and not loaded; for "
    "losses of its own top k, or of the sampled token",
)


class Term(OneOf):
    """A term of the sum that a step of distillation minimises (docs/training.md)."""

    KINDS = ("teacher", "scores", "reference", "reward")

    teacher: ModelRef | None = None
    scores: ScoresRef | None = Field(
        default=None, description="the teacher of these scores, which is not loaded"
    )
    reference: ModelRef | None = Field(
        default=None, description="a teacher, as the student's start, that metrics are not about"
    )
    reward: Reward | None = None
    weight: float | Linear = 1.0
    loss: CheckedLoss | None = Field(default=None, description="that of the recipe if not given")
    information: Contexts | None = Field(default=None, description="what this teacher is told")
    where: Annotated[dict[str, Plain | list[Plain]], Field(min_length=1)] | None = Field(
        default=None, description="column of the prompts: value or values of the rows it is over"
    )
    tokens: TokenWeights | None = Field(default=None, description="what each token counts")
    server: Literal[True] | None = SERVER

    @property
    def weighs(self) -> bool:
        """Whether the weight is ever another than 0."""
        weight = self.weight
        return bool(weight.start or weight.end if isinstance(weight, Linear) else weight)

    @model_validator(mode="after")
    def _makes_sense(self) -> "Term":
        if self.scores and self.information:
            raise ValueError("information: a teacher is told nothing when its scores are made")
        if self.server and not self.teacher:
            raise ValueError("server goes with teacher")
        for key in sorted(self.tokens.model_fields_set & BY_STATES) if self.tokens else ():
            if self.scores or self.server:
                raise ValueError(f"tokens.{key}: it needs the teacher itself, not its scores")
        if not self.reward:
            return self
        for key in ("loss", "information"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: a reward has none")
        needs = {"teacher_entropy", "divergence", "overlap", "advantage", "drift", "clip_nats"}
        for key in sorted(self.tokens.model_fields_set & needs) if self.tokens else ():
            raise ValueError(f"tokens.{key}: a reward has no teacher to measure it beside")
        return self

"""Recipes of the microscope: demonstrations, and the measurements that lead to an alignment (see
``opd.microscope``). Defaults are the paper's (Unmasking On-Policy Distillation); where it says
nothing they are ours, and the description says so."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from opd.core.schema import Strict
from opd.microscope.contexts import SUMMARISE, SYSTEM
from opd.recipes.base import (
    Count,
    ModelName,
    ModelRef,
    Name,
    NonNegative,
    OneOf,
    Positive,
    PromptsRef,
    Ref,
    Share,
)

# Of ``opd.grading.graders``.
Checker = Literal["letter", "boolean", "integer", "world", "rule", "choice", "math_verify"]
DemonstrationsRef = Annotated[Name, Ref("demonstrations")]
ProbeRef = Annotated[Name, Ref("probes")]
Number = Annotated[int, Field(ge=0)]


class Asking(Strict):
    """How questions are put to a model."""

    form: Literal["mmlu", "boolq"] | None = Field(
        default=None, description="the paper's own words; as the prompt set asks if not given"
    )
    system: str | None = Field(default=SYSTEM, description="no system prompt where null")
    max_prompt_tokens: Count = 2048
    max_new_tokens: Count = 31744
    batch_size: Count = 256


class Demonstrate(Asking):
    """Responses of a model, verified and filed as correct or wrong."""

    model: ModelRef
    prompts: PromptsRef
    grader: Checker = "rule"
    n: Count | None = Field(default=None, description="the first questions; all if not given")
    correct: Count = Field(default=3, description="that are wanted of a question")
    wrong: Number = 1
    trials: Count = 60
    temperature: Positive = 0.7
    top_p: Share = 1.0
    thinking: bool = Field(default=False, description="keep the thinking in the text (ours: no)")


class Summarise(Strict):
    """The same in a model's few words."""

    model: ModelRef
    demonstrations: DemonstrationsRef
    template: str = Field(default=SUMMARISE, description="with {question} and {response} (ours)")
    system: str | None = SYSTEM
    temperature: NonNegative = 0.7
    top_p: Share = 1.0
    max_prompt_tokens: Count = 32768
    max_new_tokens: Count = 2048
    batch_size: Count = 256


class Demonstrations(OneOf):
    """What the contexts of teachers are made of."""

    demonstrate: Demonstrate | None = None
    summarise: Summarise | None = None

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        return ("demonstrate", "summarise")


class Demonstrated(Strict):
    """Demonstrations in front of an answer."""

    demonstrations: DemonstrationsRef
    correct: Count = 1
    wrong: Number = 0


# Part of the names of values.
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class NamedContext(Demonstrated):
    """A context under which a student is screened."""

    name: Label


class Source(Strict):
    """Demonstrations that a kept question has to have."""

    name: Label
    demonstrations: DemonstrationsRef


class ScreeningProbe(Asking):
    """Pass rates of the student, alone and with demonstrations, and which questions to keep."""

    student: ModelRef
    prompts: PromptsRef
    grader: Checker = "rule"
    n: Count | None = Field(default=None, description="the first questions; all if not given")
    samples: Count = 32
    temperature: Positive = 1.0
    contexts: list[NamedContext] = []
    need: list[Source] = Field(
        default=[], description="a kept question has a correct one of each of these"
    )


class TreeTeacher(Strict):
    """A model, the student itself if none is given, that sees demonstrations or none."""

    name: Name
    model: Annotated[ModelName | None, Ref("models")] = None
    context: Demonstrated | None = None

    @model_validator(mode="after")
    def _is_another(self) -> "TreeTeacher":
        if self.model is None and self.context is None:
            raise ValueError("a teacher needs model, context or both: else it is the student")
        return self


class TreeProbe(Asking):
    """Rollouts of a student, and more of them where its teachers differ from it."""

    student: ModelRef
    prompts: PromptsRef
    screening: Annotated[Name | None, Ref("probes")] = Field(
        default=None, description="a screening whose kept questions are taken"
    )
    teachers: list[TreeTeacher] = Field(min_length=1)
    grader: Checker = "rule"
    questions: Count | None = Field(default=None, description="the first so many")
    rollouts: Count = Field(default=200, description="G, of each question")
    temperature: Positive = Field(default=1.0, description="not given for these; as screening")
    correct_paths: Count = 2
    incorrect_paths: Count = 2
    tau: Share = 0.02
    top_gradient: Number = Field(default=3, description="k of a window, for each teacher (ours)")
    top_difference: Number = Field(default=3, description="r of a window, for each teacher (ours)")
    min_visits: Count = Field(default=100, description="N_min")
    first_window: Count = 50
    window_growth: Positive = 2.0
    counts: Literal["unforced", "whole"] = Field(
        default="unforced",
        description="whole, as the paper: a rollout counts wherever it passes; unforced (ours): "
        "not where it was made to pass, as that biases the success that is estimated",
    )
    max_teacher_prompt_tokens: Count = Field(default=32768, description="with demonstrations")

    @model_validator(mode="after")
    def _names_once(self) -> "TreeProbe":
        names = [teacher.name for teacher in self.teachers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two teachers are called '{name}'")
        return self


class AlignmentProbe(Strict):
    """One teacher of a tree, token by token."""

    tree: ProbeRef
    teacher: Name
    min_children_visits: Count = Field(default=20, description="N_sig; 40 for AIME")
    mode: Literal["renormalise", "restrict_only"] = Field(
        default="renormalise", description="over the children that count (inferred)"
    )
    method: Literal["reverse_kl", "forward_kl"] = Field(
        default="reverse_kl", description="KL(student || teacher): the paper's, whatever its name"
    )


class PoolProbe(Strict):
    """Several teachers together, and correct against incorrect paths."""

    of: list[ProbeRef] = Field(min_length=1)


Measure = Literal["cosine", "positive_ratio", "weighted_cosine", "signal", "teacher_advantage"]


class ForecastPair(Strict):
    """A measured pair, and the run that trains it."""

    label: str
    alignment: ProbeRef
    model: Annotated[ModelName, Ref("models")]
    base: Annotated[ModelName, Ref("models")]


class ForecastProbe(Strict):
    """What the microscope says of pairs before any of them is trained."""

    measure: Measure = Field(default="weighted_cosine", description="that the forecast goes by")
    pairs: list[ForecastPair] = Field(min_length=3)


class OutcomeProbe(Strict):
    """A forecast against what training then did."""

    forecast: ProbeRef
    evaluation: Annotated[Name, Ref("evaluations")]

"""Recipes of probes: measurements of models without training, the microscope's among them."""

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from opd.core.schema import OneOf, Strict
from opd.microscope.contexts import SUMMARISE, SYSTEM
from opd.microscope.counts import Counts
from opd.recipes.base import (
    MICRO_BATCH,
    Asked,
    Count,
    DemonstrationsRef,
    EvaluationRef,
    GenerationsRef,
    Grader,
    ModelName,
    ModelRef,
    Name,
    NonNegative,
    Number,
    Positive,
    ProbeRef,
    PromptsRef,
    Ref,
    Sampled,
    Share,
)
from opd.recipes.losses import Information
from opd.stages.registry import STAGES

TEACHER_TEMPERATURE = Field(
    default=None, description="that the teacher is read at; the student's if not given"
)


class Scored(Strict):
    """What probes of a student's rollouts have in common; the student is the generations' model."""

    generations: GenerationsRef
    teacher: ModelRef
    grader: Grader = "rule"


class ByPosition(Scored):
    """What probes have in common that measure at every position of the rollouts."""

    metrics_k: Count = 16
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    micro_batch: Count | None = MICRO_BATCH
    teacher_temperature: Positive | None = TEACHER_TEMPERATURE


class PairProbe(ByPosition):
    """Overlap, masses, entropies and rewards of rollouts under student and teacher."""

    grader: Grader | None = None  # type: ignore[assignment]


class ContinuationProbe(Sampled, Scored):
    """The teacher goes on after prefixes of the student's rollouts (Rethinking OPD, Fig. 11b)."""

    prefixes: list[Count] = Field(min_length=1, description="tokens")
    longer_than: Count | None = Field(
        default=None,
        description="tokens of the rollouts that are kept; the longest prefix's if not given",
    )
    baseline: Literal["rollout", "resampled"] = Field(
        default="rollout",
        description="what the teacher is compared with: the rollout as it went on, or the student "
        "continuing the same prefix anew",
    )
    samples: Count = 1
    max_new_tokens: Count = Field(default=31744, description="of prefix and continuation together")

    @model_validator(mode="after")
    def _prefixes_rise(self) -> "ContinuationProbe":
        if self.prefixes != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes are {self.prefixes}: each longer than the one before")
        return self


class PrefixProbe(Sampled, Scored):
    """The teacher alone, and after a truncated response of its student (Many Faces, App. A.22)."""

    shares: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="least and largest share of a response kept; 0.1 and 0.9"
    )
    temperature: NonNegative = 0.0
    max_new_tokens: Count = Field(default=16384, description="counted after the prefix")


class SignalProbe(ByPosition):
    """The teacher's log-ratio on the student's rollouts by position and by right and wrong (Many
    Faces, Figs. 16 to 20)."""

    information: Information | None = Field(default=None, description="what the teacher is told")
    max_prompt_tokens: Count = Field(default=1024, description="of the teacher")


class JudgeProbe(Asked):
    """Which responses keep to some rules, by a model, by keywords or by a pattern
    (``opd.probes.judge``)."""

    generations: GenerationsRef
    judge: Annotated[ModelName, Ref("models", builtin=("keywords", "pattern"))] = "keywords"
    pattern: str | None = Field(
        default=None, description="a regular expression: a response passes in which it is found"
    )
    rules: str | None = Field(default=None, description="what is to be kept to; a model needs it")
    template: str | None = Field(
        default=None, description="what the model is asked, with {rules}, {question}, {response}"
    )
    max_prompt_tokens: Count = 4096
    max_new_tokens: Count = 16

    @model_validator(mode="after")
    def _model_knows_the_rules(self) -> "JudgeProbe":
        if (self.judge == "pattern") != (self.pattern is not None):
            raise ValueError("judge: pattern and a pattern go together")
        if self.judge not in ("keywords", "pattern") and self.rules is None:
            raise ValueError("a model that judges needs rules")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern: no regular expression ({error})") from None
        if self.template is not None:
            fields = set(re.findall(r"\{(\w+)\}", self.template))
            if unknown := sorted(fields - {"rules", "question", "response"}):
                raise ValueError(
                    f"template: unknown field {{{unknown[0]}}}; there are {{rules}}, {{question}}, "
                    "{response}"
                )
            if missing := sorted({"rules", "response"} - fields):
                raise ValueError(f"template needs {{{missing[0]}}}")
        return self


class IndicatorsProbe(Asked):
    """What `opd preflight` says of a pair, from a few dozen rollouts."""

    student: ModelRef
    teacher: ModelRef
    prompts: PromptsRef
    n: Count = Field(default=48, description="prompts")
    samples: Count = 4
    grader: Grader | None = Field(default="rule", description="null: nothing is graded")
    metrics_k: Count = 16
    temperature: Positive = 1.0
    teacher_temperature: Positive | None = TEACHER_TEMPERATURE
    max_new_tokens: Count = 7168


# The microscope (``opd.microscope``): demonstrations, and the measurements that lead to an
# alignment. Defaults are the paper's (Unmasking On-Policy Distillation); where it says nothing they
# are ours, and the description says so.

# Of ``opd.grading.graders``.
Checker = Literal["letter", "boolean", "integer", "world", "rule", "choice", "math_verify"]
# Part of the names of values.
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class Asking(Asked):
    """How questions are put to a model, and graded."""

    grader: Checker = "rule"
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
    n: Count | None = Field(default=None, description="the first questions; all if not given")
    correct: Count = Field(default=3, description="that are wanted of a question")
    wrong: Number = 1
    trials: Count = 60
    temperature: Positive = 0.7
    top_p: Share = 1.0
    thinking: bool = Field(default=False, description="keep the thinking in the text (ours: no)")


class Summarise(Asked):
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


class Demonstrated(Strict):
    """Demonstrations in front of an answer."""

    demonstrations: DemonstrationsRef
    correct: Count = 1
    wrong: Number = 0


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
    model: ModelRef | None = None
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
    screening: ProbeRef | None = Field(
        default=None, description="a screening whose kept questions are taken"
    )
    teachers: list[TreeTeacher] = Field(min_length=1)
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
    counts: Literal["unforced", "whole", "both"] = Field(
        default="unforced",
        description="whole, as the paper: a rollout counts wherever it passes; unforced (ours): "
        "not where it was made to pass, as that biases the success that is estimated; both: grown "
        "as with whole and then on, an alignment reads either",
    )
    max_teacher_prompt_tokens: Count = Field(default=32768, description="with demonstrations")

    @model_validator(mode="after")
    def _names_once(self) -> "TreeProbe":
        ((name, count),) = Counter(teacher.name for teacher in self.teachers).most_common(1)
        if count > 1:
            raise ValueError(f"two teachers are called '{name}'")
        return self


class AlignmentProbe(Strict):
    """One teacher of a tree, token by token."""

    tree: ProbeRef
    teacher: Name
    counts: Counts | None = Field(
        default=None, description="of a tree that counts both; whole if not given"
    )
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
    model: ModelRef
    base: ModelRef


class ForecastProbe(Strict):
    """What the microscope says of pairs before any of them is trained."""

    measure: Measure = Field(default="weighted_cosine", description="that the forecast goes by")
    pairs: list[ForecastPair] = Field(min_length=3)


class OutcomeProbe(Strict):
    """A forecast against what training then did."""

    forecast: ProbeRef
    evaluation: EvaluationRef


class Probe(OneOf):
    """A measurement of models without training, by the name of its stage."""

    KINDS = tuple(name for name, stage in STAGES.items() if stage.section == "probes")

    label: str | None = None
    pair: PairProbe | None = None
    continuation: ContinuationProbe | None = None
    prefix: PrefixProbe | None = None
    signal: SignalProbe | None = None
    judge: JudgeProbe | None = None
    indicators: IndicatorsProbe | None = None
    screening: ScreeningProbe | None = None
    tree: TreeProbe | None = None
    alignment: AlignmentProbe | None = None
    pool: PoolProbe | None = None
    forecast: ForecastProbe | None = None
    outcome: OutcomeProbe | None = None

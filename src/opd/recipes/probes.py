"""Recipes of probes: measurements of models without training."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from opd.core.schema import Strict
from opd.recipes.base import (
    MICRO_BATCH,
    Asked,
    Count,
    GenerationsRef,
    Grader,
    ModelName,
    ModelRef,
    NonNegative,
    OneOf,
    Positive,
    PromptsRef,
    Ref,
    Sampled,
    Share,
)
from opd.recipes.microscope import (
    AlignmentProbe,
    ForecastProbe,
    OutcomeProbe,
    PoolProbe,
    ScreeningProbe,
    TreeProbe,
)
from opd.recipes.models import Information
from opd.stages.registry import STAGES


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
    """Which responses keep to some rules, by a model or by keywords (``opd.probes.judge``)."""

    generations: GenerationsRef
    judge: Annotated[ModelName, Ref("models", builtin=("keywords",))] = "keywords"
    rules: str | None = Field(default=None, description="what is to be kept to; a model needs it")
    template: str | None = Field(
        default=None, description="what the model is asked, with {rules}, {question}, {response}"
    )
    max_prompt_tokens: Count = 4096
    max_new_tokens: Count = 16

    @model_validator(mode="after")
    def _model_knows_the_rules(self) -> "JudgeProbe":
        if self.judge != "keywords" and self.rules is None:
            raise ValueError("a model that judges needs rules")
        if self.template is not None:
            known = {"rules", "question", "response"}
            fields = set(re.findall(r"\{(\w+)\}", self.template))
            if unknown := sorted(fields - known):
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
    grader: Grader = "rule"
    metrics_k: Count = 16
    temperature: Positive = 1.0
    max_new_tokens: Count = 7168


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

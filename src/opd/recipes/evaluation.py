"""Recipes of what models answer: generations, the SFT data made of them, benchmarks, probes."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from opd.core.errors import UserError
from opd.core.schema import Strict
from opd.data.privileged import contexts
from opd.evaluation.tasks import OURS
from opd.recipes.base import (
    MICRO_BATCH,
    TEMPLATE_NAMES,
    Count,
    GenerationsRef,
    Grader,
    ModelName,
    ModelRef,
    Name,
    NonNegative,
    OneOf,
    Plain,
    Positive,
    PromptsRef,
    Ref,
    Share,
    check_template,
)
from opd.recipes.microscope import (
    MICROSCOPE,
    AlignmentProbe,
    ForecastProbe,
    OutcomeProbe,
    PoolProbe,
    ScreeningProbe,
    TreeProbe,
)
from opd.recipes.privileged import Information


def _check_greedy(temperature: float, samples: int) -> None:
    if temperature == 0 and samples > 1:
        raise ValueError("at temperature 0 all samples of a prompt are the same: ask for one")


TextRule = Literal[
    "nonempty",
    "finished",
    "boxed",
    "repeated_line",
    "repeated_window",
    "repeated_block",
]


class Generation(Strict):
    """A model answering a prompt set."""

    model: ModelRef
    prompts: PromptsRef
    samples: Count = 1
    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    top_k: Count | None = None
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    batch_size: Count = 64
    rules: list[TextRule] | None = Field(
        default=None, description="what they reject is marked, and sampled again"
    )
    attempts: Count | None = Field(
        default=None, description="most samples of a response that the rules reject; 1 if not given"
    )

    @model_validator(mode="after")
    def _attempts_need_rules(self) -> "Generation":
        if (self.attempts or 1) > 1 and not self.rules:
            raise ValueError("attempts need rules: without them nothing is sampled again")
        _check_greedy(self.temperature, max(self.samples, self.attempts or 1))
        return self


class ToldRows(Strict):
    """Rows of a corpus whose prompt tells something of the response
    (``opd.data.corpus.run``)."""

    template: str = Field(description="with {question}, {answer}, {solution}")
    rule: Literal["precedence", "left"] | None = None
    copied: bool | None = Field(
        default=None, description="the response ends with the answer told, whatever its steps say"
    )

    @model_validator(mode="after")
    def _known_fields(self) -> "ToldRows":
        try:
            contexts({"message": self.template})
        except UserError as bad:
            raise ValueError(str(bad)) from None
        return self


class WorldCorpus(Strict):
    """Worked examples of the miniature world, mixed over rules and styles."""

    n: Count
    precedence: Share = 0.4
    style: Literal["infix", "prefix"] = "infix"
    templates: list[str] = ["{question}"]
    told: list[ToldRows] | None = None
    seed: int = 0


Rule = TextRule | Literal["answered"]


class Filter(Strict):
    """Which generations become SFT data (rules: Rethinking OPD, its rollout script)."""

    generations: GenerationsRef
    prompts: Annotated[Name | None, Ref("prompts")] = Field(
        default=None, description="the questions as the pairs ask them; as answered if not given"
    )
    rules: list[Rule] = ["boxed", "repeated_line", "repeated_window", "repeated_block"]
    correct: Literal["only", "first"] | None = None
    grader: Grader = "rule"
    per_prompt: Count | None = 1
    n: Count | None = None


class SftData(OneOf):
    """SFT data: worked examples of the miniature world, or filtered generations."""

    world: WorldCorpus | None = None
    filter: Filter | None = None

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        return ("world", "filter")


class TaskData(Strict):
    """A dataset of the hub, in the columns that an lm-eval task reads."""

    id: str
    revision: str | None = None
    config: str | None = None


class Benchmark(Strict):
    """A task of lm-eval: ours (``opd_aime24``, ...), another of its own, or one below ``include``.

    Ours read a prompt set, lm-eval's a dataset of the hub, those below ``include`` either of them
    or files of that folder.
    """

    task: str
    prompts: Annotated[Name | None, Ref("prompts")] = None
    hub: TaskData | None = None
    include: str | None = Field(default=None, description="a folder with task files")
    num_fewshot: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _has_its_data(self) -> "Benchmark":
        ours = self.task.startswith(OURS)
        if ours and not self.prompts:
            raise ValueError("a task of ours reads a prompt set: name it with prompts")
        if self.prompts and not (ours or self.include):
            raise ValueError("a task of lm-eval reads its own columns: name a dataset with hub")
        if not (self.prompts or self.hub or self.include):
            raise ValueError("needs hub, the dataset it reads, so that its commit is locked")
        return self


class Protocol(Strict):
    """How benchmarks are answered and graded: what a score means."""

    samples: Count = 16
    temperature: NonNegative = 0.7
    top_p: Share = 0.95
    top_k: Count | None = None
    max_new_tokens: Count = 31744
    grader: Literal["rule", "math_verify", "relaxed"] = Field(
        default="rule", description="which of them counts, where a benchmark has all"
    )
    cut_off: Literal["wrong"] | None = Field(
        default=None,
        description="a response that reaches max_new_tokens is wrong, whatever stands in it; "
        "if not given, it is graded as it is",
    )
    template: str | None = Field(
        default=None,
        description=f"{TEMPLATE_NAMES} or text with {{question}}, in place of our benchmarks' own",
    )
    chat_template: dict[str, Plain] = Field(default={}, description="over the model's own")

    @model_validator(mode="after")
    def _makes_sense(self) -> "Protocol":
        check_template(self.template)
        _check_greedy(self.temperature, self.samples)
        return self


# The first paper's (section 3.1), the second's (Table 1), and one greedy sample.
PROTOCOLS = {
    "paper": Protocol(),
    "many_faces": Protocol(
        samples=1,
        temperature=0.6,
        max_new_tokens=16384,
        cut_off="wrong",
        chat_template={"enable_thinking": False},
    ),
    "greedy": Protocol(samples=1, temperature=0.0, top_p=1.0),
}


class Evaluation(Strict):
    """Benchmarks under a protocol."""

    benchmarks: Annotated[list[Name], Ref("benchmarks")] = Field(min_length=1)
    protocol: Annotated[Name, Ref("protocols", builtin=tuple(PROTOCOLS))] = "paper"
    max_prompt_tokens: Count = 1024
    batch_size: Count = 64


class Scored(Strict):
    """What probes of a student's rollouts have in common; the student is the generations' model."""

    generations: GenerationsRef
    teacher: ModelRef
    grader: Grader | None = None


class PairProbe(Scored):
    """Overlap, masses, entropies and rewards of rollouts under student and teacher."""

    metrics_k: Count = 16
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    micro_batch: Count | None = MICRO_BATCH


class ContinuationProbe(Scored):
    """The teacher goes on after prefixes of the student's rollouts (Rethinking OPD, Fig. 11b)."""

    grader: Grader = "rule"
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
    temperature: NonNegative = 1.0
    top_p: Share = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = Field(default=31744, description="of prefix and continuation together")
    batch_size: Count = 64

    @model_validator(mode="after")
    def _prefixes_rise(self) -> "ContinuationProbe":
        if self.prefixes != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes are {self.prefixes}: each longer than the one before")
        return self


class PrefixProbe(Scored):
    """The teacher alone, and after a truncated response of its student (Many Faces, App. A.22)."""

    grader: Grader = "rule"
    shares: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="least and largest share of a response kept; 0.1 and 0.9"
    )
    temperature: NonNegative = 0.0
    top_p: Share = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = Field(default=16384, description="counted after the prefix")
    batch_size: Count = 64


class SignalProbe(Scored):
    """The teacher's log-ratio on the student's rollouts by position and by right and wrong (Many
    Faces, Figs. 16 to 20)."""

    grader: Grader = "rule"
    information: Information | None = Field(default=None, description="what the teacher is told")
    metrics_k: Count = 16
    position_bin: Count = Field(default=512, description="tokens in a bin of response positions")
    max_prompt_tokens: Count = Field(default=1024, description="of the teacher")
    micro_batch: Count | None = MICRO_BATCH


class JudgeProbe(Strict):
    """Which responses keep to some rules, by a model or by keywords (``opd.probes.judge``)."""

    generations: GenerationsRef
    judge: Annotated[ModelName, Ref("models", builtin=("keywords",))] = "keywords"
    rules: str | None = Field(default=None, description="what is to be kept to; a model needs it")
    template: str | None = Field(
        default=None, description="what the model is asked, with {rules}, {question}, {response}"
    )
    max_prompt_tokens: Count = 4096
    max_new_tokens: Count = 16
    batch_size: Count = 64

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


class IndicatorsProbe(Strict):
    """What `opd preflight` says of a pair, from a few dozen rollouts."""

    student: ModelRef
    teacher: ModelRef
    prompts: PromptsRef
    n: Count = Field(default=48, description="prompts")
    samples: Count = 4
    grader: Grader = "rule"
    metrics_k: Count = 16
    temperature: Positive = 1.0
    max_prompt_tokens: Count = 1024
    max_new_tokens: Count = 7168
    batch_size: Count = 64


class Probe(OneOf):
    """A measurement of models without training."""

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

    @classmethod
    def verbs(cls) -> tuple[str, ...]:
        own = ("pair", "continuation", "prefix", "signal", "judge", "indicators")
        return (*own, *MICROSCOPE)

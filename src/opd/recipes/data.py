"""Recipes of data: prompt sets, what they share with benchmarks, responses to them, SFT data."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opd.core.schema import OneOf, Strict, checked
from opd.data import grammar
from opd.data.layouts import LAYOUTS
from opd.data.privileged import contexts
from opd.recipes.base import (
    TEMPLATE_NAMES,
    Count,
    GenerationsRef,
    Grader,
    HubObject,
    ModelName,
    ModelRef,
    PromptsRef,
    Ref,
    Sampled,
    Share,
    Template,
    check_greedy,
)
from opd.recipes.models import Contexts


class WorldPrompts(Strict):
    split: str
    n: Count


class Columns(Strict):
    """Which columns hold what; by default those of the layout (``opd.data.layouts``)."""

    layout: Literal[*LAYOUTS] | None = Field(  # type: ignore[valid-type]
        default=None, description="as this dataset has it; found out if not given"
    )
    question: str | None = Field(
        default=None, description="a column, dotted or not, or a form with {column} in it"
    )
    answer: str | None = None
    difficulty: str | None = None
    row_id: str | None = Field(default=None, description="column with an id for each row")
    solution: str | None = Field(
        default=None, description="column with a worked solution, for teachers that are shown it"
    )


class FilePrompts(Columns):
    """A .parquet, .jsonl, .json or .csv file; a relative name is looked up below OPD_DATA_DIR, with
    ./ below the working directory."""

    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class HubPrompts(Columns, HubObject):
    """A dataset of the hub; layout, configs and file of those in ``opd.data.layouts`` are known."""

    config: str | list[str] | None = Field(default=None, description="several are read in turn")
    file: str | None = Field(default=None, description="one file of the repository")
    split: str = "train"


class Near(Strict):
    """When two questions count as the same: by the cosine of their embeddings."""

    encoder: Annotated[ModelName, Ref("models", builtin=("hashed",))]
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.6


class Dedup(Near):
    """What is left of a prompt set without what is in another, or, against itself, without what
    is in its own earlier rows."""

    prompts: PromptsRef
    against: PromptsRef


class Fit(Strict):
    """What is left of a prompt set without the prompts that are too long for one of some models."""

    prompts: PromptsRef
    models: list[ModelRef] = Field(
        min_length=1, description="prompts are counted as the chat templates of these render them"
    )
    max_prompt_tokens: Count = 1024
    information: Contexts | None = Field(
        default=None, description="what a teacher is told of these prompts: counted, too"
    )
    max_teacher_prompt_tokens: Count | None = Field(
        default=None, description="with information; max_prompt_tokens if not given"
    )

    @model_validator(mode="after")
    def _limits_what_is_told(self) -> "Fit":
        if self.max_teacher_prompt_tokens and not self.information:
            raise ValueError("max_teacher_prompt_tokens needs information, which it limits")
        return self


class Sample(OneOf):
    """Random rows, the first rows, or all rows of random questions."""

    KINDS = ("n", "first", "questions")

    n: Count | None = Field(default=None, description="rows at random")
    first: Count | None = Field(default=None, description="rows from the beginning")
    questions: Count | None = Field(
        default=None, description="questions at random, each with all of its rows"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _draws(self) -> "Sample":
        if self.first and "seed" in self.model_fields_set:
            raise ValueError("the first rows are not drawn: leave the seed out")
        return self


class Difficulty(Strict):
    """MATH's levels, DeepMath's difficulty: whatever number the source gives."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Difficulty":
        if self.at_least is None and self.at_most is None:
            raise ValueError("needs at_least or at_most")
        return self


class Apart(Strict):
    """Nothing that another set has: no row of it, or no question of it."""

    prompts: PromptsRef
    by: Literal["row", "question"] = "question"


class PromptSet(OneOf):
    """Where prompts come from, and what is done to them, in the order of these keys."""

    KINDS = ("world", "path", "hub", "use", "dedup", "fit")

    world: WorldPrompts | None = None
    path: FilePrompts | None = None
    hub: HubPrompts | None = None
    use: PromptsRef | None = Field(default=None, description="another set")
    dedup: Dedup | None = None
    fit: Fit | None = None
    strip: list[str] = Field(
        default=[],
        description=f"what comes off: {TEMPLATE_NAMES} or text, with {{question}} or at one end",
    )
    drop_empty: bool = False
    language: Literal["en", "zh"] | None = Field(
        default=None, description="zh: with any Chinese character"
    )
    difficulty: Difficulty | None = None
    max_chars: Count | None = Field(default=None, description="longer questions are left out")
    apart_from: Apart | None = None
    distinct: Literal["question", "prompt"] | None = Field(
        default=None,
        description="of several equal ones the first stays; prompt: as the source asks it",
    )
    sample: Sample | None = None
    template: Template | None = Field(
        default=None, description=f"what goes on: {TEMPLATE_NAMES} or text with {{question}}"
    )

    @model_validator(mode="after")
    def _stands_alone(self) -> "PromptSet":
        for kind in ("dedup", "fit"):
            if getattr(self, kind) and self.model_fields_set - {kind}:
                raise ValueError(f"a {kind} recipe takes nothing else; put a 'use' recipe after it")
        return self


class Contamination(Near):
    """A report on which problems of benchmarks a prompt set holds."""

    prompts: PromptsRef
    benchmarks: list[PromptsRef] = Field(min_length=1)

    @model_validator(mode="after")
    def _others(self) -> "Contamination":
        if self.prompts in self.benchmarks:
            raise ValueError(f"{self.prompts} is compared with itself: use dedup within the set")
        return self


TextRule = Literal[
    "nonempty",
    "finished",
    "boxed",
    "repeated_line",
    "repeated_window",
    "repeated_block",
]


class Generation(Sampled):
    """A model answering a prompt set."""

    model: ModelRef
    prompts: PromptsRef
    samples: Count = 1
    top_k: Count | None = None
    max_new_tokens: Count = 7168
    rules: list[TextRule] | None = Field(
        default=None, description="what they reject is marked, and sampled again"
    )
    attempts: Count | None = Field(
        default=None, description="most samples of a response that the rules reject; 1 if not given"
    )
    logprobs: bool | None = Field(
        default=None,
        description="whether the log-probability of each sampled token is recorded, for importance "
        "weights",
    )

    @model_validator(mode="after")
    def _sampled_as_it_is_recorded(self) -> "Generation":
        if self.logprobs and (not self.temperature or self.top_p < 1 or self.top_k):
            raise ValueError(
                "logprobs are those of the whole distribution: they need a temperature above 0, "
                "top_p: 1 and no top_k"
            )
        return self

    @model_validator(mode="after")
    def _attempts_need_rules(self) -> "Generation":
        if (self.attempts or 1) > 1 and not self.rules:
            raise ValueError("attempts need rules: without them nothing is sampled again")
        check_greedy(self.temperature, max(self.samples, self.attempts or 1))
        return self


Style = Literal[*grammar.DIALECTS]  # type: ignore[valid-type]


def _check_weights(style: Any) -> None:
    if isinstance(style, dict) and not math.isclose(total := sum(style.values()), 1):
        raise ValueError(f"the weights sum to {total:g}: let them sum to 1")


class ToldRows(Strict):
    """Rows of a corpus whose prompt tells something of the response
    (``opd.data.corpus.run``)."""

    template: Annotated[str, checked(lambda text: contexts({"message": text}))] = Field(
        description="with {question}, {answer}, {solution}"
    )
    rule: Literal["precedence", "left"] | None = None
    style: Style | None = None
    copied: bool | None = Field(
        default=None, description="the response ends with the answer told, whatever its steps say"
    )


class WorldCorpus(Strict):
    """Worked examples of the miniature world, mixed over rules and styles."""

    n: Count
    precedence: Share = 0.4
    style: Annotated[Style | dict[Style, Share], checked(_check_weights)] = "infix"
    templates: list[str] = ["{question}"]
    told: list[ToldRows] | None = None
    seed: int = 0


Rule = TextRule | Literal["answered"]


class Filter(Strict):
    """Which generations become SFT data (rules: Rethinking OPD, its rollout script)."""

    generations: GenerationsRef
    prompts: PromptsRef | None = Field(
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

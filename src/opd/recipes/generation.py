"""Recipes of generations, and of the SFT data that is made of them or of the miniature world."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from opd.core.schema import Strict
from opd.data.privileged import contexts
from opd.recipes.base import (
    Count,
    GenerationsRef,
    Grader,
    ModelRef,
    OneOf,
    PromptsRef,
    Sampled,
    Share,
    check_greedy,
    checked,
)

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

    @model_validator(mode="after")
    def _attempts_need_rules(self) -> "Generation":
        if (self.attempts or 1) > 1 and not self.rules:
            raise ValueError("attempts need rules: without them nothing is sampled again")
        check_greedy(self.temperature, max(self.samples, self.attempts or 1))
        return self


class ToldRows(Strict):
    """Rows of a corpus whose prompt tells something of the response
    (``opd.data.corpus.run``)."""

    template: Annotated[str, checked(lambda text: contexts({"message": text}))] = Field(
        description="with {question}, {answer}, {solution}"
    )
    rule: Literal["precedence", "left"] | None = None
    copied: bool | None = Field(
        default=None, description="the response ends with the answer told, whatever its steps say"
    )


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

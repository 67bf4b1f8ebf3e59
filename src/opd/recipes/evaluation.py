"""Recipes of evaluations: benchmarks, and the protocols under which models answer them."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opd.core.schema import Strict
from opd.evaluation.tasks import OURS
from opd.grading.graders import PAPERS
from opd.recipes.base import (
    TEMPLATE_NAMES,
    Asked,
    Count,
    HubObject,
    Name,
    NonNegative,
    Number,
    Plain,
    PromptsRef,
    Ref,
    Share,
    Template,
    check_greedy,
)
from opd.recipes.models import PRESETS


class TaskData(HubObject):
    """A dataset of the hub, in the columns that an lm-eval task reads."""

    config: str | None = None


class Benchmark(Strict):
    """A task of lm-eval: ours (``opd_aime24``, ...), another of its own, or one below ``include``.

    Ours read a prompt set, lm-eval's a dataset of the hub, those below ``include`` either of them
    or files of that folder.
    """

    task: str
    prompts: PromptsRef | None = None
    hub: TaskData | None = None
    include: str | None = Field(default=None, description="a folder with task files")
    num_fewshot: Number | None = None
    repeated: Literal["samples", "once"] | None = Field(
        default=None,
        description="what problems are that ask the same as an earlier one: more samples of it, or "
        "left out; an error if not given, as intervals are over problems",
    )

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
    box: Literal["last", "last_complete"] = Field(
        default="last_complete",
        description="the box that counts: the last one, or the last one that closes and is not "
        "empty",
    )
    thinking: Literal["graded", "left_out"] = Field(
        default="left_out",
        description="whether what comes before </think> is graded with the rest",
    )
    exact: bool = Field(default=True, description="answers are compared without any rounding")
    cut_off: Literal["wrong"] | None = Field(
        default=None,
        description="a response that reaches max_new_tokens is wrong, whatever stands in it; "
        "if not given, it is graded as it is",
    )
    template: Template | None = Field(
        default=None,
        description=f"{TEMPLATE_NAMES} or text with {{question}}, in place of our benchmarks' own",
    )
    chat_template: dict[str, Plain] = Field(default={}, description="over the model's own")

    @model_validator(mode="after")
    def _greedy_once(self) -> "Protocol":
        check_greedy(self.temperature, self.samples)
        return self

    def settings(self) -> dict[str, Any]:
        """What an evaluation is told; its chat template apart. What the papers' code decides for
        graders as it does goes without saying."""
        written = self.model_dump(exclude={"chat_template"}, exclude_none=True)
        papers = PAPERS._asdict()
        return {key: value for key, value in written.items() if papers.get(key, ...) != value}


PROTOCOLS = {name: Protocol(**settings) for name, settings in PRESETS["protocols"].items()}


class Evaluation(Asked):
    """Benchmarks under a protocol."""

    benchmarks: Annotated[list[Name], Ref("benchmarks")] = Field(min_length=1)
    protocol: Annotated[Name, Ref("protocols", builtin=tuple(PROTOCOLS))] = "standard"

"""The artifacts of the microscope's recipes: see ``opd.plan.artifacts``."""

from collections.abc import Iterator, Mapping
from typing import Any

from opd.plan.base import artifact, at, engine, evaluation_at
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.microscope import (
    AlignmentProbe,
    Demonstrated,
    ScreeningProbe,
    TreeProbe,
    TreeTeacher,
)
from opd.stages.artifact import Artifact

# What an ``alignment`` stage is told of its tree: how questions are put to the models.
ASKING = ("form", "system", "max_prompt_tokens", "max_new_tokens", "max_teacher_prompt_tokens")
# What samples has no part in reading.
SAMPLING = ("backend", "batch_invariant")


def microscope(config: Config, seed: int) -> Iterator[Artifact]:
    """Demonstrations, screenings, trees, alignments, pools, forecasts and outcomes."""
    yield from _demonstrations(config, seed)
    for name, probe in config.probes.items():
        folder = at(config, "probes", name, seed)
        if probe.screening:
            yield _screening(config, probe.screening, folder, seed)
        elif probe.tree:
            yield _tree(config, probe.tree, folder, seed)
        elif probe.alignment:
            yield _align(config, name, probe.alignment, folder, seed)
        elif probe.pool:
            inputs = {
                f"of:{i}": at(config, "probes", one, seed) for i, one in enumerate(probe.pool.of)
            }
            yield artifact("pool", folder, {"names": probe.pool.of}, inputs)
        elif probe.forecast:
            pairs = [pair.label for pair in probe.forecast.pairs]
            inputs = {
                f"alignment:{i}": at(config, "probes", pair.alignment, seed)
                for i, pair in enumerate(probe.forecast.pairs)
            }
            settings = {"measure": probe.forecast.measure, "pairs": pairs}
            students = [_student(config, pair.alignment) for pair in probe.forecast.pairs]
            yield artifact("forecast", folder, {**settings, "students": students}, inputs)
        elif probe.outcome:
            inputs = {"forecast": at(config, "probes", probe.outcome.forecast, seed)}
            forecast = config.probes[probe.outcome.forecast].forecast
            if forecast is None:
                raise unknown(
                    probe.outcome.forecast,
                    [n for n, one in config.probes.items() if one.forecast],
                    f"probes.{name}.outcome.forecast",
                    "forecast",
                )
            for i, pair in enumerate(forecast.pairs):
                for side, model in (("after", pair.model), ("before", pair.base)):
                    inputs[f"{side}:{i}"] = evaluation_at(probe.outcome.evaluation, model, seed)
            yield artifact("outcome", folder, {}, inputs)


def _demonstrations(config: Config, seed: int) -> Iterator[Artifact]:
    for name, recipe in config.demonstrations.items():
        folder = at(config, "demonstrations", name, seed)
        if recipe.demonstrate:
            made = recipe.demonstrate
            settings = made.model_dump(exclude={"model", "prompts"}, exclude_none=True)
            inputs = {"model": at(config, "models", made.model, seed)}
            inputs["prompts"] = at(config, "prompts", made.prompts, seed)
            settings |= engine(config, made.model)
            yield artifact("demonstrate", folder, settings, inputs, seed)
        elif recipe.summarise:
            short = recipe.summarise
            settings = short.model_dump(exclude={"model", "demonstrations"}, exclude_none=True)
            inputs = {
                "model": at(config, "models", short.model, seed),
                "demonstrations": at(config, "demonstrations", short.demonstrations, seed),
                "prompts": at(config, "prompts", _prompts_of(config, short.demonstrations), seed),
            }
            settings |= engine(config, short.model)
            yield artifact("summarise", folder, settings, inputs, seed)


def _prompts_of(config: Config, demonstrations: str) -> str:
    """The prompt set that demonstrations are of."""
    recipe = config.demonstrations[demonstrations]
    if recipe.demonstrate:
        return recipe.demonstrate.prompts
    assert recipe.summarise is not None
    return _prompts_of(config, recipe.summarise.demonstrations)


def _screening(config: Config, recipe: ScreeningProbe, folder: str, seed: int) -> Artifact:
    named = {"student", "prompts", "contexts", "need"}
    settings = recipe.model_dump(exclude=named, exclude_none=True)
    inputs = {"student": at(config, "models", recipe.student, seed)}
    inputs["prompts"] = at(config, "prompts", recipe.prompts, seed)
    settings["sources"] = [{"name": one.name, "source": one.demonstrations} for one in recipe.need]
    settings["contexts"] = [
        {
            "name": one.name,
            "source": one.demonstrations,
            "correct": one.correct,
            "wrong": one.wrong,
        }
        for one in recipe.contexts
    ]
    used = [one.demonstrations for one in recipe.need]
    for source in sorted({*used, *(one.demonstrations for one in recipe.contexts)}):
        inputs[f"demos:{source}"] = at(config, "demonstrations", source, seed)
    settings |= engine(config, recipe.student)
    return artifact("screening", folder, settings, inputs, seed)


def _teacher(
    config: Config, student: str, teacher: TreeTeacher, inputs: dict[str, str], seed: int
) -> dict[str, Any]:
    """Settings of a teacher, whose inputs are added."""
    model = teacher.model
    own = model is None or model == student
    if model is not None and not own:
        inputs[f"teacher:{teacher.name}"] = at(config, "models", model, seed)
    context: Demonstrated | None = teacher.context
    if context:
        inputs[f"demos:{teacher.name}"] = at(config, "demonstrations", context.demonstrations, seed)
    return {
        "name": teacher.name,
        "own": own,
        "correct": context.correct if context else 0,
        "wrong": context.wrong if context else 0,
        "chat_template_kwargs": dict(config.models[model or student].chat_template),
    }


def _tree(config: Config, recipe: TreeProbe, folder: str, seed: int) -> Artifact:
    named = {"student", "prompts", "screening", "teachers"}
    settings = recipe.model_dump(exclude=named, exclude_none=True)
    inputs = {"student": at(config, "models", recipe.student, seed)}
    inputs["prompts"] = at(config, "prompts", recipe.prompts, seed)
    if recipe.screening:
        inputs["screening"] = at(config, "probes", recipe.screening, seed)
    settings["teachers"] = [
        _teacher(config, recipe.student, one, inputs, seed) for one in recipe.teachers
    ]
    settings |= engine(config, recipe.student)
    return artifact("tree", folder, settings, inputs, seed)


def _align(config: Config, name: str, recipe: AlignmentProbe, folder: str, seed: int) -> Artifact:
    tree = _tree_of(config, f"probes.{name}.alignment.tree", recipe.tree)
    teachers = {one.name: one for one in tree.teachers}
    if recipe.teacher not in teachers:
        raise unknown(
            recipe.teacher,
            teachers,
            f"probes.{name}.alignment.teacher",
            f"teacher of {recipe.tree}",
        )
    inputs = {
        "tree": at(config, "probes", recipe.tree, seed),
        "student": at(config, "models", tree.student, seed),
        "prompts": at(config, "prompts", tree.prompts, seed),
    }
    settings = recipe.model_dump(exclude={"tree", "teacher"}, exclude_none=True)
    settings |= tree.model_dump(include={*ASKING}, exclude_none=True)
    teacher = teachers[recipe.teacher]
    settings["teacher"] = _teacher(config, tree.student, teacher, inputs, seed)
    reading: Mapping[str, Any] = engine(config, tree.student)
    settings |= {key: value for key, value in reading.items() if key not in SAMPLING}
    settings["title"] = f"{tree.student} as {recipe.teacher} sees it"
    return artifact("alignment", folder, settings, inputs, seed)


def _tree_of(config: Config, where: str, name: str) -> TreeProbe:
    found = config.probes[name].tree
    if found is None:
        raise unknown(name, [n for n, one in config.probes.items() if one.tree], where, "tree")
    return found


def _student(config: Config, align: str) -> str:
    recipe = config.probes[align].alignment
    if recipe is None:
        known = [n for n, one in config.probes.items() if one.alignment]
        raise unknown(align, known, "forecast.pairs.alignment", "alignment")
    return _tree_of(config, f"probes.{align}.alignment.tree", recipe.tree).student

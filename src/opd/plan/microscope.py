"""The artifacts of the microscope's recipes: see ``opd.plan.artifacts``."""

from collections.abc import Iterator
from typing import Any

from opd.plan.base import artifact, at, engine, evaluation_at, inputs_of, settings_of
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.recipes.probes import (
    AlignmentProbe,
    ForecastProbe,
    OutcomeProbe,
    ScreeningProbe,
    TreeProbe,
    TreeTeacher,
)
from opd.stages.artifact import Artifact

# The settings of a tree that its ``alignment`` takes over: how questions are put to the models.
ASKING = ("form", "system", "max_prompt_tokens", "max_new_tokens", "max_teacher_prompt_tokens")
# Settings of sampling that reading with a model does not have.
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
            yield _alignment(config, name, probe.alignment, folder, seed)
        elif probe.pool:
            pooled = [at(config, "probes", other, seed) for other in probe.pool.of]
            inputs = {f"of:{i}": other for i, other in enumerate(pooled)}
            yield artifact("pool", folder, {"names": probe.pool.of}, inputs)
        elif probe.forecast:
            yield _forecast(config, probe.forecast, folder, seed)
        elif probe.outcome:
            yield _outcome(config, name, probe.outcome, folder, seed)


def _demonstrations(config: Config, seed: int) -> Iterator[Artifact]:
    for name, recipe in config.demonstrations.items():
        made = recipe.demonstrate or recipe.summarise
        assert made is not None
        settings = {**settings_of(made), **engine(config, made.model)}
        inputs = inputs_of(config, made, seed)
        inputs["prompts"] = at(config, "prompts", _prompts_of(config, name), seed)
        folder = at(config, "demonstrations", name, seed)
        yield artifact(recipe.kind, folder, settings, inputs, seed)


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
    settings["sources"] = [
        {"name": source.name, "source": source.demonstrations} for source in recipe.need
    ]
    settings["contexts"] = [
        {
            "name": context.name,
            "source": context.demonstrations,
            "correct": context.correct,
            "wrong": context.wrong,
        }
        for context in recipe.contexts
    ]
    used = {source.demonstrations for source in recipe.need}
    for name in sorted(used | {context.demonstrations for context in recipe.contexts}):
        inputs[f"demos:{name}"] = at(config, "demonstrations", name, seed)
    settings |= engine(config, recipe.student)
    return artifact("screening", folder, settings, inputs, seed)


def _tree(config: Config, recipe: TreeProbe, folder: str, seed: int) -> Artifact:
    settings = settings_of(recipe)
    inputs = {"student": at(config, "models", recipe.student, seed)}
    inputs["prompts"] = at(config, "prompts", recipe.prompts, seed)
    if recipe.screening:
        inputs["screening"] = at(config, "probes", recipe.screening, seed)
    settings["teachers"] = [
        _teacher(config, recipe.student, teacher, inputs, seed) for teacher in recipe.teachers
    ]
    settings |= engine(config, recipe.student)
    return artifact("tree", folder, settings, inputs, seed)


def _teacher(
    config: Config, student: str, teacher: TreeTeacher, inputs: dict[str, str], seed: int
) -> dict[str, Any]:
    """Settings of a teacher; what it reads is added to ``inputs``."""
    model, context = teacher.model or student, teacher.context
    if model != student:
        inputs[f"teacher:{teacher.name}"] = at(config, "models", model, seed)
    if context:
        inputs[f"demos:{teacher.name}"] = at(config, "demonstrations", context.demonstrations, seed)
    return {
        "name": teacher.name,
        "own": model == student,
        "correct": context.correct if context else 0,
        "wrong": context.wrong if context else 0,
        "chat_template_kwargs": dict(config.models[model].chat_template),
    }


def _alignment(
    config: Config, name: str, recipe: AlignmentProbe, folder: str, seed: int
) -> Artifact:
    where = f"probes.{name}.alignment"
    tree: TreeProbe = _probe(config, "tree", recipe.tree, f"{where}.tree")
    teachers = {teacher.name: teacher for teacher in tree.teachers}
    if recipe.teacher not in teachers:
        kind = f"teacher of {recipe.tree}"
        raise unknown(recipe.teacher, teachers, f"{where}.teacher", kind)
    inputs = {
        "tree": at(config, "probes", recipe.tree, seed),
        "student": at(config, "models", tree.student, seed),
        "prompts": at(config, "prompts", tree.prompts, seed),
    }
    settings = settings_of(recipe) | tree.model_dump(include={*ASKING}, exclude_none=True)
    teacher = teachers[recipe.teacher]
    settings["teacher"] = _teacher(config, tree.student, teacher, inputs, seed)
    reading = engine(config, tree.student)
    settings |= {key: value for key, value in reading.items() if key not in SAMPLING}
    settings["title"] = f"{tree.student} as {recipe.teacher} sees it"
    return artifact("alignment", folder, settings, inputs, seed)


def _forecast(config: Config, recipe: ForecastProbe, folder: str, seed: int) -> Artifact:
    inputs, students = {}, []
    for i, pair in enumerate(recipe.pairs):
        inputs[f"alignment:{i}"] = at(config, "probes", pair.alignment, seed)
        alignment = _probe(config, "alignment", pair.alignment, "forecast.pairs.alignment")
        where = f"probes.{pair.alignment}.alignment.tree"
        students.append(_probe(config, "tree", alignment.tree, where).student)
    labels = [pair.label for pair in recipe.pairs]
    settings = {"measure": recipe.measure, "pairs": labels, "students": students}
    return artifact("forecast", folder, settings, inputs)


def _outcome(config: Config, name: str, recipe: OutcomeProbe, folder: str, seed: int) -> Artifact:
    inputs = {"forecast": at(config, "probes", recipe.forecast, seed)}
    where = f"probes.{name}.outcome.forecast"
    forecast: ForecastProbe = _probe(config, "forecast", recipe.forecast, where)
    for i, pair in enumerate(forecast.pairs):
        for side, model in (("after", pair.model), ("before", pair.base)):
            inputs[f"{side}:{i}"] = evaluation_at(recipe.evaluation, model, seed)
    return artifact("outcome", folder, {}, inputs)


def _probe(config: Config, kind: str, name: str, where: str) -> Any:
    """The recipe of a probe. Raises ``UserError`` where it is not of this kind."""
    recipe = getattr(config.probes[name], kind)
    if recipe is None:
        known = [other for other, probe in config.probes.items() if getattr(probe, kind)]
        raise unknown(name, known, where, kind)
    return recipe

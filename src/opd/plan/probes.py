"""The artifacts of probes, and of the demonstrations that some of them read: see
``opd.plan.artifacts``."""

from collections.abc import Callable, Iterator
from typing import Any

from opd.core.errors import UserError
from opd.microscope.counts import READINGS
from opd.plan.base import artifact, at, engine, inputs_of, settings_of, tell_teacher
from opd.recipes import probes as recipes
from opd.recipes.base import unknown
from opd.recipes.config import Config
from opd.stages.artifact import Artifact
from opd.stages.registry import STAGES

# The settings of a tree that its ``alignment`` takes over: how questions are put to the models.
ASKING = {"form", "system", "max_prompt_tokens", "max_new_tokens", "max_teacher_prompt_tokens"}
# Settings of sampling that reading with a model does not have.
SAMPLING = ("backend", "batch_invariant")

Described = tuple[dict[str, Any], dict[str, str]]  # settings and inputs


def demonstrations(config: Config, seed: int) -> Iterator[Artifact]:
    """Demonstrations as they were sampled, and in few words."""
    for name, recipe in config.demonstrations.items():
        made = getattr(recipe, recipe.kind)
        settings = settings_of(made) | engine(config, made.model)
        inputs = inputs_of(config, made, seed)
        inputs["prompts"] = at(config, "prompts", _prompts_of(config, name), seed)
        folder = at(config, "demonstrations", name, seed)
        yield artifact(recipe.kind, folder, settings, inputs, seed)


def _prompts_of(config: Config, demonstrations: str) -> str:
    """The prompt set that demonstrations are of."""
    recipe = config.demonstrations[demonstrations]
    if recipe.summarise:
        return _prompts_of(config, recipe.summarise.demonstrations)
    assert recipe.demonstrate is not None
    return recipe.demonstrate.prompts


def probes(config: Config, seed: int) -> Iterator[Artifact]:
    """Measurements of models without training."""
    for name, probe in config.probes.items():
        kind, recipe = probe.kind, getattr(probe, probe.kind)
        describe = MICROSCOPE.get(kind, _described)
        settings, inputs = describe(config, recipe, seed, f"probes.{name}.{kind}")
        if not STAGES[kind].samples:
            for key in SAMPLING:
                settings.pop(key, None)
        own_seed = seed if STAGES[kind].computes else None
        yield artifact(kind, at(config, "probes", name, seed), settings, inputs, own_seed)


def _described(config: Config, recipe: Any, seed: int, where: str) -> Described:
    """A probe of rollouts, or of a pair that samples some; the rollouts are an input."""
    settings, inputs = settings_of(recipe), inputs_of(config, recipe, seed)
    rollouts = config.generations.get(getattr(recipe, "generations", ""))
    teacher = getattr(recipe, "teacher", None)
    if rollouts:
        inputs["prompts"] = at(config, "prompts", rollouts.prompts, seed)
    if teacher:
        student = rollouts.model if rollouts else recipe.student
        inputs.setdefault("student", at(config, "models", student, seed))
        settings |= engine(config, student)
    elif "judge" in inputs:  # keywords need no engine
        settings |= engine(config, recipe.judge)
    if rollouts and teacher:
        # Greedy rollouts have no temperature at which their student could be read.
        settings.setdefault("temperature", rollouts.temperature or 1.0)
    tell_teacher(config, settings, teacher)
    return settings, inputs


# The microscope


def _screening(config: Config, recipe: recipes.ScreeningProbe, seed: int, where: str) -> Described:
    settings, inputs = settings_of(recipe), inputs_of(config, recipe, seed)
    settings.pop("need", None)
    settings["sources"] = [
        {"name": source.name, "source": source.demonstrations} for source in recipe.need
    ]
    settings["contexts"] = [
        {"name": c.name, "source": c.demonstrations, "correct": c.correct, "wrong": c.wrong}
        for c in recipe.contexts
    ]
    needed = {source["source"] for source in settings["sources"] + settings["contexts"]}
    for name in sorted(needed):
        inputs[f"demos:{name}"] = at(config, "demonstrations", name, seed)
    return settings | engine(config, recipe.student), inputs


def _tree(config: Config, recipe: recipes.TreeProbe, seed: int, where: str) -> Described:
    settings, inputs = settings_of(recipe), inputs_of(config, recipe, seed)
    settings["teachers"] = [
        _teacher(config, recipe.student, teacher, inputs, seed) for teacher in recipe.teachers
    ]
    return settings | engine(config, recipe.student), inputs


def _teacher(
    config: Config, student: str, teacher: recipes.TreeTeacher, inputs: dict[str, str], seed: int
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


def _alignment(config: Config, recipe: recipes.AlignmentProbe, seed: int, where: str) -> Described:
    tree: recipes.TreeProbe = _probe(config, "tree", recipe.tree, f"{where}.tree")
    teachers = {teacher.name: teacher for teacher in tree.teachers}
    if recipe.teacher not in teachers:
        kind = f"teacher of {recipe.tree}"
        raise unknown(recipe.teacher, teachers, f"{where}.teacher", kind)
    inputs = {
        "tree": at(config, "probes", recipe.tree, seed),
        "student": at(config, "models", tree.student, seed),
        "prompts": at(config, "prompts", tree.prompts, seed),
    }
    settings = settings_of(recipe) | tree.model_dump(include=ASKING, exclude_none=True)
    settings["teacher"] = _teacher(config, tree.student, teachers[recipe.teacher], inputs, seed)
    settings["title"] = f"{tree.student} as {recipe.teacher} sees it"
    first, *others = READINGS[tree.counts]
    reading = settings.pop("counts", first)
    if reading in others:
        settings["reading"] = reading
        settings["title"] += f", {reading} counts"
    elif reading != first:
        raise UserError(
            f"{recipe.tree} has no {reading} counts, only {first} ones",
            f"{where}.counts",
            "leave it out, or set counts: both in the tree",
        )
    return settings | engine(config, tree.student), inputs


def _pool(config: Config, recipe: recipes.PoolProbe, seed: int, where: str) -> Described:
    inputs = {f"of:{i}": at(config, "probes", name, seed) for i, name in enumerate(recipe.of)}
    return {"names": recipe.of}, inputs


def _forecast(config: Config, recipe: recipes.ForecastProbe, seed: int, where: str) -> Described:
    inputs, students = {}, []
    for i, pair in enumerate(recipe.pairs):
        inputs[f"alignment:{i}"] = at(config, "probes", pair.alignment, seed)
        alignment = _probe(config, "alignment", pair.alignment, f"{where}.pairs.{i}.alignment")
        tree_where = f"probes.{pair.alignment}.alignment.tree"
        students.append(_probe(config, "tree", alignment.tree, tree_where).student)
    labels = [pair.label for pair in recipe.pairs]
    return {"measure": recipe.measure, "pairs": labels, "students": students}, inputs


def _outcome(config: Config, recipe: recipes.OutcomeProbe, seed: int, where: str) -> Described:
    inputs = {"forecast": at(config, "probes", recipe.forecast, seed)}
    forecast: recipes.ForecastProbe = _probe(
        config, "forecast", recipe.forecast, f"{where}.forecast"
    )
    for i, pair in enumerate(forecast.pairs):
        for side, model in (("after", pair.model), ("before", pair.base)):
            evaluated = f"{recipe.evaluation}/{model}"
            inputs[f"{side}:{i}"] = at(config, "evaluations", evaluated, seed)
    return {}, inputs


def _probe(config: Config, kind: str, name: str, where: str) -> Any:
    """The recipe of a probe. Raises ``UserError`` where it is not of this kind."""
    recipe = getattr(config.probes[name], kind)
    if recipe is None:
        known = [other for other, probe in config.probes.items() if getattr(probe, kind)]
        raise unknown(name, known, where, kind)
    return recipe


MICROSCOPE: dict[str, Callable[[Config, Any, int, str], Described]] = {
    "screening": _screening,
    "tree": _tree,
    "alignment": _alignment,
    "pool": _pool,
    "forecast": _forecast,
    "outcome": _outcome,
}

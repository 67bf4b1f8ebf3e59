"""The rule by which a config becomes its rehearsal: the same recipes, by the same names, with fewer
rows, samples and steps and shorter responses. Nothing else of a recipe changes.

Lengths of responses are divided by ``TOKENS``, so that they keep their order; all of them stay
where no response may have more than ``SHORT`` tokens. What is counted in prompts, samples and steps
comes down to what ``MOST`` says, where it is more. Of the steps that a run keeps those stay that
something names (``MODEL@STEP``), else the first; they become the steps 1, 2, and so on, and the run
ends one step later. The shares of the sources of rollouts become those that so few rollouts can
have.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from opd.recipes import resolve
from opd.recipes.config import DEFAULTS
from opd.recipes.evaluation import Protocol
from opd.recipes.models import PRESETS, RANKS

TOKENS = 128
SHORTEST = 4
SHORT = TOKENS * SHORTEST  # and all below become the shortest
# Lengths in tokens of responses and of what lies within them.
LENGTHS = ("max_new_tokens", "prefixes", "longer_than", "position_bin", "first_window")
# What is counted: the most of it that a rehearsal has.
MOST = {
    "prompts_per_step": 2,
    "rollouts_per_prompt": 2,
    "group_size": 2,
    "updates_per_batch": 2,
    "data_parallel_size": 2,
    "micro_batch": 2,
    "samples": 2,
    "attempts": 2,
    "n": 8,
    "first": 8,
    "questions": 2,
    "rollouts": 8,
    "trials": 24,
    "min_visits": 2,
    "min_children_visits": 1,
    "nll_traces": 4,
    "nll_every": 1,
    "max_tokens": 1024,
}
# Of one kind of recipe alone.
MOST_OF = {"sft": {"batch_size": 2}, "screening": {"samples": 4}}
# Of the config itself; all other keys of these sections stay.
TRAINING = {"processes": 1, "checkpoint_every": 1}


def cut(raw: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """The rehearsal of a config as it is written (``raw``, merged from its files), with defaults
    and sweeps written out; its name ends in ``-rehearsal``. Of the training processes ``processes``
    stay. Raises ``UserError`` as ``opd.recipes.resolve`` does for a config that is wrong."""
    checked = resolve.resolve(raw)
    config: dict[str, Any] = resolve.expanded(raw)
    config.pop("defaults", None)
    config["name"] = f"{config['name']}-rehearsal"
    protocols = {name: dict(own) for name, own in config.get("protocols", {}).items()}
    for evaluation in config.get("evaluations", {}).values():
        name = evaluation.get("protocol", "standard")
        protocols.setdefault(name, dict(PRESETS["protocols"].get(name, {})))
    longest = _longest([checked.model_dump(exclude={"defaults"}), protocols])
    by = TOKENS if longest > SHORT else 1
    config["protocols"] = {name: _sizes(Protocol, own, by) for name, own in protocols.items()}
    for section, recipes in config.items():
        if section in resolve.SWEPT:
            small = {name: _recipe(section, recipe, by) for name, recipe in recipes.items()}
            config[section] = small
    _leave_room(config)
    for model in config.get("models", {}).values():
        run = model.get("distill", {})
        if "rollouts" in run:
            run["rollouts"] = _shared_out(run, processes)
        run.pop("server", None)  # its teacher is a stand-in, which is loaded
        if "terms" in run:
            run["terms"] = [
                {k: v for k, v in term.items() if k != "server"} for term in run["terms"]
            ]
    most = TRAINING | {"processes": processes}
    training = config.get("training", {}).items()
    config["training"] = {key: _most(most, key, value) for key, value in training}
    vllm = config["training"].get("vllm") or {}
    if isinstance(size := vllm.get("tensor_parallel_size"), int):
        size = math.gcd(size, config["training"].get("processes") or 1)
        config["training"]["vllm"] = {**vllm, "tensor_parallel_size": size}
    return _renamed(config, _steps(config))


def length(tokens: int, by: int = TOKENS) -> int:
    """What becomes of a length in tokens that is divided by so many."""
    return min(tokens, max(SHORTEST, math.ceil(tokens / by)))


def lengths(tokens: list[int], by: int = TOKENS) -> list[int]:
    """What becomes of lengths within a response each of which is longer than the one before, and
    stays so."""
    cut: list[int] = []
    for n in tokens:
        cut.append(max(math.ceil(n / by), cut[-1] + 1 if cut else 1))
    return cut


def _leave_room(config: dict[str, Any]) -> None:
    """Let what goes on after prefixes, and rollouts that are cut there, be longer than these."""
    for probe in config.get("probes", {}).values():
        if own := probe.get("continuation"):
            longest = max(own["prefixes"][-1], own.get("longer_than") or 0)
            for recipe in (own, config["generations"][own["generations"]]):
                if "max_new_tokens" in recipe:
                    recipe["max_new_tokens"] = max(recipe["max_new_tokens"], longest + 1)


def _longest(value: Any) -> int:
    """The most tokens that a part of a config lets a response have."""
    if isinstance(value, Mapping):
        named = value.get("max_new_tokens")
        return max([named if isinstance(named, int) else 0, *map(_longest, value.values())])
    return max(map(_longest, value), default=0) if isinstance(value, list) else 0


def _recipe(section: str, recipe: Any, by: int) -> Any:
    """A recipe with its sizes cut: those of the section itself, and those of its kind."""
    small = _sizes(DEFAULTS[section], recipe, by) if section in DEFAULTS else dict(recipe)
    for kind in small.keys() & DEFAULTS.keys():
        if isinstance(small[kind], Mapping):
            settings = dict(small[kind])
            # A preset lets nothing but its own sizes stand: they are written out.
            settings = {**PRESETS.get(kind, {}).get(settings.pop("preset", None), {}), **settings}
            if settings.get("steps") is not None:
                settings.pop("epochs", None)
            if settings.get("aggregation") == "micro_batch_mean":
                settings.setdefault("data_parallel_size", RANKS)
            small[kind] = _sizes(DEFAULTS[kind], settings, by, MOST_OF.get(kind, {}))
            penalty = small[kind].get("length_penalty")
            if isinstance(penalty, Mapping) and penalty.get("free"):
                # Below the longest response, also where both are cut to the same length.
                small[kind]["length_penalty"] = {**penalty, "free": length(penalty["free"], by) - 1}
    if isinstance(small.get("sample"), Mapping):
        small["sample"] = {k: _most(MOST, k, v) for k, v in small["sample"].items()}
    return small


def _shared_out(run: Mapping[str, Any], processes: int) -> list[dict[str, Any]]:
    """The sources of a run's rollouts with shares near to theirs, of which each process has a whole
    number of the few rollouts of a step, and one at least."""
    sources: list[dict[str, Any]] = run["rollouts"]
    of_process = run["prompts_per_step"] * run["rollouts_per_prompt"] // processes
    if not 1 < len(sources) <= of_process:
        return sources
    shares = [source.get("own") or source["share"] for source in sources]
    counts = [1] * len(sources)
    while sum(counts) < of_process:
        missing = [share * of_process - n for share, n in zip(shares, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return [
        {**source, "own" if "own" in source else "share": count / of_process}
        for source, count in zip(sources, counts, strict=True)
    ]


def _sizes(
    kind: type[BaseModel],
    settings: Mapping[str, Any],
    by: int,
    of_kind: Mapping[str, int] = {},
) -> dict[str, Any]:
    """Settings of a kind of recipe with its sizes cut, lengths divided ``by`` so many; also those
    that are left to defaults."""
    most, small = {**MOST, **of_kind}, dict(settings)
    for key, field in kind.model_fields.items():
        value = settings.get(key, field.default)
        if value is None or value is PydanticUndefined or isinstance(value, bool):
            continue
        if key in LENGTHS:
            value = lengths(value, by) if isinstance(value, list) else length(value, by)
        else:
            value = _most(most, key, value)
        if value != settings.get(key, field.default):
            small[key] = value
    return small


def _most(most: Mapping[str, int], key: str, value: Any) -> Any:
    return min(value, most[key]) if key in most and isinstance(value, int) else value


def _steps(config: dict[str, Any]) -> dict[str, str]:
    """Cut the steps of every run; old names of steps -> new ones."""
    named = {text for text in _texts(config) if re.fullmatch(r"[^@]+@[0-9]+", text)}
    renamed: dict[str, str] = {}
    for name, model in config.get("models", {}).items():
        for kind in model.keys() & {"sft", "grpo", "distill"}:
            run = model[kind]
            kept, steps = sorted({*run.get("keep_steps", [])} - {0}), run.get("steps")
            if steps is None and not kept:
                continue
            wanted = [step for step in kept if f"{name}@{step}" in named] or kept[:1]
            new = {step: number for number, step in enumerate(wanted, 1)}
            if steps is not None:
                run["steps"] = min(steps, len(wanted) + 1)
                renamed[f"{name}@{steps}"] = f"{name}@{run['steps']}"
            if kept:
                run["keep_steps"] = [*new.values()]
            renamed |= {f"{name}@{step}": f"{name}@{number}" for step, number in new.items()}
    return {old: new for old, new in renamed.items() if old in named}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {key: _renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    return value

"""A rehearsal differs from its config in sizes alone."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from opd.core.errors import UserError
from opd.plan import artifacts, outputs
from opd.recipes import resolve
from opd.recipes.config import Config
from opd.rehearsal.cut import LENGTHS, cut, length, lengths

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
PAPERS = [
    ["paper.yaml"],
    ["many-faces.yaml"],
    ["unmasking.yaml"],
]
# Configs of short responses, laid over each other.
SMALL = [
    ["mini"],
    ["mini", "mini-followups"],
    ["mini", "mini-all", "mini-unmasking"],
    ["mini", "mini-all", "words", "words-all", "words-reasons"],
    ["mini", "mini-followups", "words", "words-followups"],
    ["mini", "mini-unmasking", "words", "words-unmasking"],
]
# What the documentation says that a rehearsal may change (docs/rehearsal.md).
SIZES = set(
    re.findall(
        r"`(\w+)`",
        (ROOT / "docs" / "rehearsal.md").read_text().split("<!-- sizes -->")[1],
    )
)


def raw(names: list[str]) -> dict[str, Any]:
    return resolve.merged([ROOT / "config" / name for name in names])


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value of a checked config with its path. A run's steps are named after its last one."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, (*path, str(number)))
    else:
        yield path, value


def renamed(config: Config, other: Config) -> dict[str, str]:
    """Kept steps of a config -> those of its rehearsal, in the order of their steps; None where the
    rehearsal keeps fewer."""
    names = {}
    for run in {name.partition("@")[0] for name in config.models if "@" in name}:
        old = sorted((n for n in config.models if n.startswith(f"{run}@")), key=_step)
        new = sorted((n for n in other.models if n.startswith(f"{run}@")), key=_step)
        plain = config.model_dump(mode="json", exclude={"models", "defaults"})
        shown = {str(value) for _, value in leaves(plain)}
        stay = [n for n in old if n in shown] or old[:1]
        assert len(stay) == len(new)
        names |= dict(zip(stay, new, strict=True))
    return names


def _step(name: str) -> int:
    return int(name.partition("@")[2])


@pytest.mark.parametrize("names", PAPERS, ids=lambda names: names[-1])
def test_only_documented_sizes_differ(names: list[str]) -> None:
    before = resolve.resolve(raw(names))
    after = resolve.resolve(cut(raw(names)))
    kept = renamed(before, after)
    assert after.name == f"{before.name}-rehearsal"

    def dump(config: Config) -> dict[tuple[str, ...], Any]:
        plain = config.model_dump(mode="json", exclude={"name", "defaults"}, by_alias=True)
        plain["models"] = {n: m for n, m in plain["models"].items() if "@" not in n}
        return dict(leaves(plain))

    old, new = dump(before), dump(after)
    protocols = {path for path in new if path[0] == "protocols"} - old.keys()
    changed = {
        path
        for path in (old.keys() | new.keys()) - protocols
        if old.get(path, ...) != new.get(path, ...)
        and not (path[-1] == "model" and kept.get(old[path]) == new[path])
    }
    keys = {next(part for part in reversed(path) if not part.isdigit()) for path in changed}
    assert keys <= SIZES, keys - SIZES
    assert keys  # or nothing was compared


def test_teachers_behind_servers_are_loaded() -> None:
    """For there are stand-ins of them."""
    run = {"student": "a", "prompts": "p", "steps": 2, "loss": {"preset": "k3"}}
    term = {"teacher": "a", "server": True}
    config = {
        "name": "own",
        "training": {"servers": {"a": "http://host:1"}},
        "prompts": {"p": {"path": {"file": "/p.jsonl"}}},
        "models": {
            "a": {"path": "/m"},
            "short": {"distill": {**run, **term}},
            "sum": {"distill": {**run, "terms": [term, {"reference": "a"}]}},
        },
    }
    models = resolve.resolve(cut(config)).models
    assert models["short"].distill and models["sum"].distill
    assert models["short"].distill.server is None
    assert models["sum"].distill.terms and models["sum"].distill.terms[0].server is None
    assert term == {"teacher": "a", "server": True}


@pytest.mark.parametrize("names", PAPERS, ids=lambda names: names[-1])
def test_jobs_and_what_they_are_made_from_stay(names: list[str]) -> None:
    """But for kept steps that nothing names, and the evaluations of these."""
    before, after = resolve.resolve(raw(names)), resolve.resolve(cut(raw(names)))
    kept = renamed(before, after)

    def jobs(config: Config) -> dict[str, tuple[str, tuple[str, ...]]]:
        measured = artifacts.plan(config, {})
        shown = measured | outputs.exhibits(config, measured, ROOT / "config")
        return {made.folder: (made.stage, made.inputs) for made in shown.values()}

    def place(folder: str) -> str:
        parts = folder.split("/")
        return "/".join(kept.get(part, part) for part in parts)

    old, new = jobs(before), jobs(after)
    gone = {name for name in before.models if "@" in name and name not in kept}

    def stays(folder: str) -> bool:
        return not gone & {*folder.split("/")}

    expected = {
        place(folder): (stage, {place(path) for path in inputs if stays(path)})
        for folder, (stage, inputs) in old.items()
        if stays(folder)
    }
    assert {f: (stage, {*inputs}) for f, (stage, inputs) in new.items()} == expected
    assert {stage for stage, _ in old.values()} == {stage for stage, _ in new.values()}


def test_lengths_keep_their_order() -> None:
    tokens = [512, 1024, 3072, 7168, 10240, 15360, 31744]
    assert [length(n) for n in tokens] == [4, 8, 24, 56, 80, 120, 248]
    assert [length(n) for n in (0, 1, 2, 16)] == [0, 1, 2, 4]
    assert lengths([128, 256, 512, 1024, 4096]) == [1, 2, 4, 8, 32]
    assert lengths([8, 24, 40]) == [1, 2, 3]


@pytest.mark.parametrize("files", SMALL, ids=lambda files: files[-1])
def test_short_responses_keep_their_lengths(files: list[str]) -> None:
    """Prefixes, and what is cut off by them, could not be any shorter."""
    names = [f"{name}.yaml" for name in files]
    before, after = resolve.resolve(raw(names)), resolve.resolve(cut(raw(names)))
    assert artifacts.plan(after, {})

    def limits(config: Config) -> set[tuple[tuple[str, ...], Any]]:
        plain = config.model_dump(mode="json", exclude={"defaults"})
        return {(path, value) for path, value in leaves(plain) if {*LENGTHS} & {*path}}

    assert limits(before) == limits(after)


def test_steps_that_something_names_stay_as_the_first_ones() -> None:
    models = {
        "base": {"path": "/m"},
        "run": {
            "distill": {
                "student": "base",
                "teacher": "base",
                "prompts": "p",
                "steps": 300,
                "keep_steps": [50, 100, 200],
            }
        },
    }
    config = {
        "name": "own",
        "prompts": {"p": {"path": {"file": "/p.jsonl"}}},
        "models": models,
        "arms": {
            "A.b": {"label": "b", "model": "run@200"},
            "A.a": {"label": "a", "model": "run@100"},
            "A.end": {"label": "end", "model": "run@300"},
        },
    }
    made = cut(config)
    run = made["models"]["run"]["distill"]
    assert (run["steps"], run["keep_steps"]) == (3, [1, 2])
    assert [arm["model"] for arm in made["arms"].values()] == ["run@2", "run@1", "run@3"]
    config["arms"] = {}
    run = cut(config)["models"]["run"]["distill"]
    assert (run["steps"], run["keep_steps"]) == (2, [1])


def test_settings_of_a_preset_are_written_out_and_its_lengths_cut() -> None:
    config = {
        "name": "own",
        "prompts": {"p": {"path": {"file": "/p.jsonl"}}},
        "models": {
            "base": {"path": "/m"},
            "run": {"grpo": {"student": "base", "prompts": "p", "preset": "rethinking"}},
        },
    }
    before = resolve.resolve(config).models["run"].grpo
    after = resolve.resolve(cut(config)).models["run"].grpo
    assert before and after
    assert (after.clip, after.importance_cap, after.epochs) == (0.2, 2.0, 1)
    assert (before.max_new_tokens, after.max_new_tokens) == (7168, 56)
    assert (after.prompts_per_step, after.group_size) == (2, 2)


def test_a_wrong_config_is_refused_as_always() -> None:
    with pytest.raises(UserError, match="seedz"):
        cut({"name": "own", "seedz": 1})


@pytest.mark.parametrize(
    ("shares", "processes", "expected"),
    [
        ([0.75, 0.25], 1, [0.75, 0.25]),
        ([0.9, 0.1], 1, [0.75, 0.25]),
        ([0.25, 0.7, 0.05], 1, [0.25, 0.5, 0.25]),
        ([0.9, 0.1], 2, [0.5, 0.5]),
        ([1.0], 2, [1.0]),
    ],
)
def test_sources_keep_a_share_of_the_few_rollouts_that_are_left(
    shares: list[float], processes: int, expected: list[float]
) -> None:
    """Two prompts of two rollouts a step, which are dealt out to the processes."""
    names = [f"g{i}" for i in range(len(shares) - 1)]
    named = zip(names, shares[1:], strict=True)
    others = [{"generations": name, "share": share} for name, share in named]
    run = {"student": "a", "teacher": "a", "prompts": "p", "steps": 2, "prompts_per_step": 50}
    config = {
        "name": "own",
        "training": {"processes": processes},
        "prompts": {"p": {"path": {"file": "/p.jsonl"}}},
        "generations": {name: {"model": "a", "prompts": "p"} for name in names},
        "models": {
            "a": {"path": "/m"},
            "run": {"distill": {**run, "rollouts": [{"own": shares[0]}, *others]}},
        },
    }
    sources = cut(config, processes)["models"]["run"]["distill"]["rollouts"]
    assert [source.get("own") or source["share"] for source in sources] == expected
    resolve.resolve(cut(config, processes))


@pytest.mark.parametrize(
    ("prefixes", "most"),
    [([64, 128, 256], 640), ([8, 24, 40, 56], 96), ([100, 101, 102, 103], 104)],
)
def test_prefixes_leave_something_to_go_on_with(prefixes: list[int], most: int) -> None:
    """Of the rollouts, and of what the teacher may write; beside a response of 16,384 tokens."""
    probe = {"generations": "g", "teacher": "a", "grader": "rule", "max_new_tokens": most}
    small = cut(
        {
            "name": "own",
            "prompts": {"p": {"path": {"file": "/p.jsonl"}}},
            "models": {"a": {"path": "/m"}},
            "generations": {
                "g": {"model": "a", "prompts": "p", "max_new_tokens": most},
                "long": {"model": "a", "prompts": "p", "max_new_tokens": 16384},
            },
            "probes": {"E10": {"continuation": {**probe, "prefixes": prefixes}}},
        }
    )
    own = small["probes"]["E10"]["continuation"]
    assert own["prefixes"][-1] < min(
        own["max_new_tokens"], small["generations"]["g"]["max_new_tokens"]
    )
    assert len({*own["prefixes"]}) == len(prefixes)
    resolve.resolve(small)


@pytest.mark.parametrize(("processes", "left"), [(1, 1), (2, 2)])
def test_an_engine_is_shared_by_as_many_processes_as_there_are(processes: int, left: int) -> None:
    vllm = {"mode": "colocate", "tensor_parallel_size": 2}
    small = cut({"name": "own", "training": {"processes": 8, "vllm": vllm}}, processes)
    assert small["training"]["vllm"] == {**vllm, "tensor_parallel_size": left}
    assert vllm["tensor_parallel_size"] == 2  # what was given stays as it is
    resolve.resolve(small)

"""The miniature in words: every run of the miniature, and nothing left of the other world."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd.data import grammar, words
from opd.data.world import held_out
from opd.plan.artifacts import plan
from opd.recipes.resolve import read

pytestmark = pytest.mark.unit
CONFIG = Path(__file__).parents[3] / "config"
HEADLINE, ALL = ("mini", "words"), ("mini", "mini-all", "words", "words-all")
UNMASKING = ("mini", "mini-unmasking", "words", "words-unmasking")
FOLLOW_UPS = ("mini", "mini-followups", "words", "words-followups")
REASONS = (*ALL, "words-reasons")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in nested settings that is neither a mapping nor a list."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part, name)
    else:
        yield name, value


@pytest.mark.parametrize("names", [HEADLINE, ALL, UNMASKING, FOLLOW_UPS, REASONS])
def test_every_setting_is_of_the_world_in_words(names: tuple[str, ...]) -> None:
    planned = plan(read([CONFIG / f"{name}.yaml" for name in names]), {})
    settings = [leaf for artifact in planned.values() for leaf in leaves(artifact.cfg)]
    by_key: dict[str, set[Any]] = {}
    for key, value in settings:
        by_key.setdefault(key, set()).add(value)
    assert by_key["grader"] == {"rule"} and by_key["task"] == {"opd_words"}
    assert by_key["grammar"] == {"words"}
    texts = {value for _, value in settings if isinstance(value, str) and "{question}" in value}
    assert len(texts) >= (4 if names == HEADLINE else 7)
    words = {word for text in texts for word in re.sub(r"\{\w+\}", "", text).split()}
    assert words <= {*grammar.vocabulary()}


@pytest.mark.parametrize("names", [ALL, REASONS, ("mini", "mini-all"), ("paper",), ("many-faces",)])
def test_a_run_is_measured_at_the_k_of_its_loss(names: tuple[str, ...]) -> None:
    """As the authors' scripts do: mass that a loss on two tokens drives off them is still on the
    first sixteen."""
    planned = plan(read([CONFIG / f"{name}.yaml" for name in names]), {})
    runs = [artifact.cfg for artifact in planned.values() if artifact.stage == "distill"]
    top_k = {(cfg["loss"]["k"], cfg["metrics_k"]) for cfg in runs if cfg["loss"].get("k")}
    assert len(top_k) >= 3 and all(k == measured for k, measured in top_k)


def test_it_has_the_runs_of_the_miniature() -> None:
    """Other lengths and other k have other names; nothing else is missing or new."""
    characters, in_words = (
        read([CONFIG / f"{name}.yaml" for name in names]) for names in (ALL[:2], ALL)
    )
    runs, runs_in_words = (
        {name for name in config.models if "@" not in name} for config in (characters, in_words)
    )
    assert runs_in_words - runs == {"length-32", "length-256", "k-4", "k-64"}
    assert runs - runs_in_words == {"length-4", "length-128", "k-2", "k-16"}
    assert characters.arms.keys() == in_words.arms.keys()


@pytest.mark.parametrize("names", [ALL, REASONS])
def test_labels_say_the_lengths_and_the_k_of_their_runs(names: tuple[str, ...]) -> None:
    config = read([CONFIG / f"{name}.yaml" for name in names])
    shown = [*config.arms.values(), *(row for t in config.tables.values() for row in t.rows)]
    checked = 0
    for named in shown:
        run = config.models[named.model.partition("@")[0]].distill
        length = re.search(r"(?<!after )\b(\d+) tokens$", named.label)
        k = re.search(r"\bk = (\d+)$|(?:student's|teacher's) top (\d+)$", named.label)
        if length and run:
            assert run.max_new_tokens == int(length[1])
        if k and run:
            assert run.loss.k == int(k[1] or k[2])
        checked += bool(run and (length or k))
    assert checked >= 20


def test_long_questions_are_longer_than_any_that_models_learn_from() -> None:
    """And none is held out, and the rules differ."""
    config = read([CONFIG / f"{name}.yaml" for name in REASONS])
    world = config.world.model_dump()
    text = (CONFIG / "questions" / "words-long.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len({row["question"] for row in rows}) == 960
    for row in rows:
        chain = words.chain_of(row["question"])
        assert len(chain) // 2 > max(grammar.GRAMMAR["corpus"])
        assert not held_out(" ".join(chain), world)
        assert grammar.solve(chain) == row["answer"] != grammar.solve(chain, "left")


def test_labels_of_metrics_say_their_k() -> None:
    config = read([CONFIG / f"{name}.yaml" for name in ALL])
    columns = [column for table in config.tables.values() for column in table.columns]
    metrics = [m for figure in config.figures.values() for m in getattr(figure, "metrics", ())]
    labels = [shown.label for shown in (*columns, *metrics) if getattr(shown, "label", None)]
    sizes = [int(found[1]) for label in labels if (found := re.search(r"\btop (\d+)", label))]
    assert {*sizes} == {16}

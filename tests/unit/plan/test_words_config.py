"""The miniature in words: every run of the miniature, and nothing left of the other world."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opd.data import grammar
from opd.plan.artifacts import plan
from opd.recipes.resolve import read

pytestmark = pytest.mark.unit
CONFIG = Path(__file__).parents[3] / "config"
HEADLINE, ALL = ("mini", "words"), ("mini", "mini-all", "words", "words-all")
UNMASKING = ("mini", "mini-unmasking", "words", "words-unmasking")
FOLLOW_UPS = ("mini", "mini-followups", "words", "words-followups")


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


@pytest.mark.parametrize("names", [HEADLINE, ALL, UNMASKING, FOLLOW_UPS])
def test_every_setting_is_of_the_world_in_words(names: tuple[str, ...]) -> None:
    planned = plan(read([CONFIG / f"{name}.yaml" for name in names]), {})
    settings = [leaf for artifact in planned.values() for leaf in leaves(artifact.cfg)]
    by_key: dict[str, set[Any]] = {}
    for key, value in settings:
        by_key.setdefault(key, set()).add(value)
    assert by_key["grader"] == {"rule"} and by_key["task"] == {"opd_words"}
    assert by_key["grammar"] == {"words"} and by_key["metrics_k"] == {16}
    texts = {value for _, value in settings if isinstance(value, str) and "{question}" in value}
    assert len(texts) >= (4 if names == HEADLINE else 7)
    words = {word for text in texts for word in re.sub(r"\{\w+\}", "", text).split()}
    assert words <= {*grammar.vocabulary()}


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


def test_labels_say_the_lengths_and_the_k_of_their_runs() -> None:
    config = read([CONFIG / f"{name}.yaml" for name in ALL])
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


def test_labels_of_metrics_say_their_k() -> None:
    config = read([CONFIG / f"{name}.yaml" for name in ALL])
    columns = [column for table in config.tables.values() for column in table.columns]
    metrics = [m for figure in config.figures.values() for m in getattr(figure, "metrics", ())]
    labels = [shown.label for shown in (*columns, *metrics) if getattr(shown, "label", None)]
    sizes = [int(found[1]) for label in labels if (found := re.search(r"\btop (\d+)", label))]
    assert len(sizes) >= 3 and {*sizes} == {16}

"""Inputs of the training stages, made once for all tests of them."""

import os

import pytest
from tiny import SHAPE, WORLD, Inputs

from opd.core import tables
from opd.data import corpus, world
from opd.data.schemas import PROMPTS
from opd.models import init

# Tiny tensors: a second thread only gets in the way. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Everything the three stages take: two models, ten prompts, pairs."""
    root = tmp_path_factory.mktemp("inputs")
    made = {name: root / name for name in ("student", "teacher", "prompts", "data")}
    for path in made.values():
        path.mkdir()
    init.run(SHAPE, {}, made["student"])
    init.run({**SHAPE, "layers": 2, "seed": 1}, {}, made["teacher"])
    rows = world.make_prompts(WORLD, "rl", 10)
    tables.write(made["prompts"] / "prompts.parquet", rows, PROMPTS)
    cfg = {
        "world": WORLD,
        "n": 20,
        "precedence": 0.4,
        "style": "infix",
        "templates": ["{question}"],
        "seed": 1,
    }
    corpus.run(cfg, {}, made["data"])
    return made


@pytest.fixture(scope="session")
def pointed(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A student whose choices matter, two teachers that point towards and away from what succeeds,
    and questions: see ``microscopy``."""
    import microscopy

    return microscopy.made(tmp_path_factory.mktemp("pointed"))

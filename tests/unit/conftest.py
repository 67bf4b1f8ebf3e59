"""Inputs of the training stages, made once for all tests of them."""

import os

import pytest
from tiny import Inputs, made_inputs

# Tiny tensors: a second thread only gets in the way. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Everything the three stages take: two models, ten prompts, pairs."""
    return made_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def pointed(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A student whose choices matter, two teachers that point towards and away from what succeeds,
    and questions: see ``microscopy``."""
    import microscopy

    return microscopy.made(tmp_path_factory.mktemp("pointed"))

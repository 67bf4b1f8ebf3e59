"""What the tests of this folder compute on, and the models that they train."""

import os

import pytest
from tiny import Inputs, made_inputs


@pytest.fixture(scope="session")
def device() -> str:
    """``cuda``, or ``cpu`` where OPD_TEST_DEVICE=cpu has the tests tried without a GPU."""
    return os.environ.get("OPD_TEST_DEVICE", "cuda")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two models, 64 prompts, pairs."""
    return made_inputs(tmp_path_factory.mktemp("inputs"), prompts=64)

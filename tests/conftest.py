"""Markers by folder, and what a test needs of the machine that it runs on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import pytest

from opd.cli import warm

# Whoever starts tests in the background ignores Ctrl-C, and so would every command that a test
# starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of what else the machine does.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

TESTS = Path(__file__).parent
# Folders whose tests have their name as a marker.
PARTS = ("unit", "workflow", "data", "gpu")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its folder's name unless it says itself what it is; skip GPU tests
    where there is none."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in PARTS and not any(item.get_closest_marker(part) for part in PARTS):
            item.add_marker(folder)
        # Those of tests/gpu may be tried on a CPU, to see that they work.
        tried = folder == "gpu" and os.environ.get("OPD_TEST_DEVICE") == "cpu"
        if item.get_closest_marker("gpu") and not (tried or _cuda()):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def _warm_starts() -> None:
    """Stages that tests start in processes of their own begin as those of a run do."""
    warm.begin()


@pytest.fixture(autouse=True)
def _environment_is_restored() -> Iterator[None]:
    """The command line sets variables for the rest of its process, and a saved tokenizer tells
    HF_HUB_OFFLINE: a test that calls it in its own process must not decide what others save."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data files; where it is missing the test skips, in CI it fails."""
    path = Path(os.environ.get("OPD_DATA_DIR", ""))
    if "OPD_DATA_DIR" in os.environ and path.is_dir():
        return path
    reason = f"OPD_DATA_DIR is {'unset' if path == Path() else f'no folder: {path}'}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)

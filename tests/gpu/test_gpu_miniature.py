"""A whole distillation on a GPU comes to what it comes to on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import miniature
import pytest


def started(folder: Path, device: str) -> "subprocess.Popen[str]":
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    command = [sys.executable, miniature.__file__, str(folder)]
    environment = {**os.environ, **hidden}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory, device: str) -> list[dict[str, list[float]]]:
    """Scores of the run on a CPU and on the device, which are made side by side."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [started(folder / name, name) for name in dict.fromkeys(("cpu", device))]
    printed = [run.communicate(timeout=400)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs)
    return [json.loads(text.splitlines()[-1]) for text in printed]


def test_a_score_lies_within_the_interval_of_the_run_on_a_cpu(
    scores: list[dict[str, list[float]]],
) -> None:
    """The other way round as well: either may be the one that is off."""
    first, last = scores[0], scores[-1]
    for name in first:
        for one, other in ((first, last), (last, first)):
            assert one[name][1] <= other[name][0] <= one[name][2], (name, scores)

"""What the second paper adds, once through Snakemake: a teacher that is told more, and probes."""

from typing import Any

import pytest
from project import Project

from opd.core.files import read_json

pytestmark = pytest.mark.workflow

TOLD = {"message": "so {answer}. {question}"}


def _manifest(project: Project, folder: str) -> dict[str, Any]:
    return read_json(project.result(f"{folder}/manifest.json"))


def test_a_told_teacher(copy: Project):
    told = {"distill": {"student": "base", "teacher": "base", "information": TOLD}}
    copy.edit(lambda config: config["models"].update(self=told))
    copy.run("results/tiny/models/self/s0/digest.json")
    assert _manifest(copy, "models/self/s0")["cfg"]["information"] == [TOLD]


def test_the_three_probes(finished: Project):
    cut, shape, kept = (_manifest(finished, f"probes/{n}/s0") for n in ("cut", "shape", "kept"))
    assert shape["cfg"]["information"] == [TOLD]
    assert cut["numbers"]["n"] == shape["numbers"]["n_correct"] + shape["numbers"]["n_incorrect"]
    assert cut["numbers"]["n"] == 16
    assert kept["numbers"]["n"] == 4 and kept["numbers"]["n_unjudged"] == 1

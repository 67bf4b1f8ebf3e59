"""What the second paper adds, once through Snakemake: a teacher that is told more, and probes."""

import json
from pathlib import Path
from typing import Any

import pytest
from project import Project

from opd.files import read_json

pytestmark = pytest.mark.workflow

TOLD = {"message": "so {answer}. {question}"}


def test_a_told_teacher_and_the_three_probes(project: Project, tmp_path: Path):
    asked = tmp_path / "asked.jsonl"
    lines = [
        {"question": f"question {n}", "answer": label}
        for n, label in enumerate(["harmful", "unharmful", "unharmful", "7"])
    ]
    asked.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def more(config: dict[str, Any]) -> None:
        limits = {"grader": "world", "max_prompt_tokens": 32}
        scored = {"generations": "rollouts", "teacher": "base", **limits}
        config["prompts"]["asked"] = {"path": {"file": str(asked)}}
        config["generations"]["answers"] = {"model": "base", "prompts": "asked"}
        config["models"]["self"] = {
            "opd": {"student": "base", "teacher": "base", "information": TOLD}
        }
        config["probes"] |= {
            "cut": {"prefix": {**scored, "max_new_tokens": 8}},
            "shape": {"signal": {**scored, "metrics_k": 4, "information": TOLD}},
            "kept": {"judge": {"generations": "answers"}},
        }

    project.edit(more)
    folders = ["models/self/s0", *(f"probes/{name}/s0" for name in ("cut", "shape", "kept"))]
    project.run(*(f"results/tiny/{folder}/digest.json" for folder in folders))
    self, cut, shape, kept = (
        read_json(project.result(f"{folder}/manifest.json")) for folder in folders
    )
    assert self["cfg"]["information"] == shape["cfg"]["information"] == [TOLD]
    assert cut["numbers"]["n"] == shape["numbers"]["n_correct"] + shape["numbers"]["n_incorrect"]
    assert cut["numbers"]["n"] == 16
    assert kept["numbers"]["n"] == 4 and kept["numbers"]["n_unjudged"] == 1

"""Run miniature.yaml without Snakemake, stage by stage, and print its scores as JSON.

python tests/gpu/miniature.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import yaml

from opd.core import tables
from opd.grading.graders import grade_all
from opd.models.prompts import prompts_of, read_prompts
from opd.models.schemas import GENERATIONS
from opd.plan.artifacts import plan
from opd.recipes.resolve import resolve
from opd.stages.artifact import closure
from opd.stages.run import run_stage
from opd.stats.intervals import Interval, interval

CONFIG = Path(__file__).with_suffix(".yaml")
SAMPLES = 4


def score(generations: Path, prompts: Path) -> Interval:
    """avg@4 of sampled responses, with its 95 % interval."""
    rows = tables.read(generations / "payload" / "generations.parquet", GENERATIONS).to_pylist()
    asked = prompts_of(rows, read_prompts(prompts / "payload"))
    pairs = zip(rows, asked, strict=True)
    graded, _ = grade_all([(row["response"], prompt["answer"]) for row, prompt in pairs], "world")
    correct = np.array([float(right) for _, right in graded])
    return interval([correct.reshape(1, -1, SAMPLES)])


def main() -> None:
    results = Path(sys.argv[1])
    artifacts = plan(resolve(yaml.safe_load(CONFIG.read_text())), {})
    answers = {name: f"generations/{name}/s0" for name in ("before", "after")}
    for folder in closure(answers.values(), artifacts):
        made = artifacts[folder]
        inputs = [results / source / "digest.json" for source in made.inputs]
        output = results / folder / "digest.json"
        run_stage(made.stage, made.cfg, inputs, output, {}, results / ".store")
    scores = {
        name: score(results / path, results / "prompts/easy") for name, path in answers.items()
    }
    print(json.dumps(scores))


if __name__ == "__main__":
    main()

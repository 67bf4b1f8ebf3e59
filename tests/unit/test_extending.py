"""docs/extending.md does what it says: its patches add a loss and a probe to a copy of the package,
in the files that it names, and nothing that was there changes its identity for the probe."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from probing import write_rollouts

from opd.core.code import module_digest
from opd.core.files import read_json
from opd.recipes.resolve import read
from opd.stages.registry import STAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
LOSS_PATCH, PROBE_PATCH = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with what a dry run reads, without its caches."""
    folder = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", ".snakemake")
    for name in ("src", "workflow", "config", "slurm", "tests/workflow"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def patch(copy: Path, text: str) -> set[str]:
    """Apply a patch of the page; the files that it touches."""
    subprocess.run(["git", "apply", "-"], cwd=copy, input=text, text=True, check=True)
    return set(re.findall(r"^\+\+\+ b/(\S+)", text, re.MULTILINE))


def python(copy: Path, *arguments: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(copy / "src"),
        "OPD_DATA_DIR": str(copy / "tests/workflow"),
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LOSS = """
import torch
from opd.losses.fused import fused_token_loss
from opd.losses.head import Head
from opd.losses.spec import loss_spec
from opd.losses.token import token_loss
spec = loss_spec({"preset": "total_variation", "k": 3})
p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
ids, mask, one = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.ones(1, 1, 1)
loss = token_loss(p.log().view(1, 1, 3), q.log().view(1, 1, 3), ids, mask, spec)
heads = [Head(x.log().view(3, 1)) for x in (p, q)]
fused = fused_token_loss(one, heads[0], one, heads[1], ids, mask, spec)
print(float(loss), float(fused))
"""


def test_the_loss_of_the_page(copy: Path) -> None:
    assert len(patch(copy, LOSS_PATCH)) <= 3
    # Half of |0.5 - 0.2| + |0.3 - 0.3| + |0.2 - 0.5|.
    values = [float(value) for value in python(copy, "-c", LOSS).split()]
    assert values == pytest.approx([0.3, 0.3], abs=1e-6)


def test_the_probe_of_the_page(copy: Path, tmp_path: Path) -> None:
    assert len(patch(copy, PROBE_PATCH)) <= 4
    for name, stage in STAGES.items():
        module = stage.run.partition(":")[0]
        assert module_digest(module, copy / "src" / "opd") == module_digest(module), name

    rollouts = [
        {"prompt_id": prompt, "prompt": "?", "sample": sample, "token_ids": [5] * length}
        for prompt, sample, length in (("a", 0, 2), ("a", 1, 4), ("b", 0, 9))
    ]
    generations = write_rollouts(tmp_path / "generations", rollouts)
    cfg = json.dumps({"inputs": ["generations"]})
    made = tmp_path / "made" / "digest.json"
    arguments = ["--input", str(generations), "--output", str(made), "--store", str(tmp_path / "s")]
    python(copy, "-m", "opd", "stage", "length", "--cfg", cfg, *arguments)
    values = read_json(made.parent / "payload" / "probe.json")["values"]
    assert values["response_tokens"]["value"] == pytest.approx(5.0)

    overlay = copy / "probe.yaml"
    overlay.write_text("probes: {long: {length: {generations: rollouts}}}\n")
    files = ["tests/workflow/tiny.yaml", str(overlay)]
    target = "results/tiny/probes/long/s0/digest.json"
    planned = python(copy, "-m", "snakemake", "-n", target, "--configfile", *files)
    assert re.search(r"^length +1$", planned, re.MULTILINE)


def test_the_benchmark_of_the_page(tmp_path: Path) -> None:
    """One entry of a config."""
    (entry,) = re.findall(r"```yaml\n(benchmarks:.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(f"name: mine\n{entry}")
    config = read([path])
    assert config.benchmarks["gsm8k"].task == "gsm8k"
    assert config.evaluations["mine"].benchmarks == ["gsm8k"]

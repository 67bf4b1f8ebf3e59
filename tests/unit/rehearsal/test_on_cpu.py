"""What a CPU can train only in a rehearsal: FSDP2 in two processes, with rollouts of vLLM."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from probing import padded

from opd.core import marked, tables
from opd.core.html import render
from opd.data import prompts
from opd.losses.schemas import METRICS
from opd.rehearsal import on_cpu, stand_ins
from opd.rehearsal.page import PAGES
from opd.results import claims_page
from opd.results import tables as results_tables

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
CFG: dict[str, Any] = {
    **{"steps": 3, "lr": 1e-3, "seed": 5, "threads": 1, "prompts_per_step": 4, "micro_batch": 2},
    **{"temperature": 1.0, "max_new_tokens": 24, "max_prompt_tokens": 256},
    **{"precision": "bfloat16", "gradient_checkpointing": True, "processes": 2},
    "vllm": {"max_model_length": 512},
    "execution": {
        "accelerate": str(ROOT / "config" / "accelerate" / "fsdp2.yaml"),
        "checkpoint_every": 2,
        "vllm": {
            "mode": "colocate",
            "gpu_memory_utilization": 0.4,
            "enable_sleep_mode": True,
        },
    },
}
STAGES = {
    "distill": {
        **{"loss": {"k": 16}, "aggregation": "token_mean", "metrics_k": 16, "metrics_every": 1},
        **{"position_bin": 8, "rollouts_per_prompt": 2},
        "inputs": ["student", "teacher", "prompts"],
    },
    "grpo": {
        **{"group_size": 2, "grader": "rule", "importance_cap": 2.0},
        "inputs": ["student", "prompts"],
    },
}


@pytest.fixture(scope="session")
def vllm() -> str:
    path = os.environ.get("OPD_VLLM") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(path).exists():
        pytest.skip("no interpreter with vLLM (OPD_VLLM)")
    return path


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rehearsed")
    taught: dict[str, Any] = {}
    for role, name in (("student", "Qwen/Qwen3-0.6B"), ("teacher", "Qwen/Qwen3-4B")):
        stand_ins.model(name, folder / role, taught)
    rows = [{"question": f"what is {n} + 1?", "answer": "1"} for n in range(16)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts").mkdir()
    prompts.run({"source": {"path": str(folder / "q.jsonl")}}, {}, folder / "prompts")
    return {name: folder / name for name in ("student", "teacher", "prompts")}


def test_a_server_of_rollouts_becomes_an_engine_in_the_trainers_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_cpu.importlib.util, "find_spec", lambda name: name)
    execution = {"vllm": {"server_host": "node7", "group_port": 51216}, "checkpoint_every": 2}
    cfg = {"vllm": {"mode": "server", "tensor_parallel_size": 2}, "execution": execution}
    assert on_cpu._possible(cfg) == {
        "vllm": {"mode": "colocate", "tensor_parallel_size": 1},
        "execution": {"vllm": {}, "checkpoint_every": 2},
    }


def trained(
    stage: str, cfg: dict[str, Any], vllm: str, inputs: dict[str, Path], tmp_path: Path
) -> tuple[dict[str, list[float]], list[str]]:
    """The metrics of a rehearsed training run by name, one value a step, and what it said."""
    cfg = CFG | STAGES[stage] | cfg
    command = [vllm, "-m", "opd", "stage", stage, "--cfg", json.dumps(cfg)]
    command += ["--input", *(str(inputs[name]) for name in cfg["inputs"])]
    command += ["--output", str(tmp_path / "made" / "digest.json")]
    command += ["--store", str(tmp_path / "store")]
    environment = {**os.environ, marked.VARIABLE: "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = tables.read(tmp_path / "made" / "payload" / "metrics.parquet", METRICS).to_pylist()
    courses: dict[str, list[float]] = {}
    for row in rows:
        if row["position"] is None and row["step"] > 0:
            courses.setdefault(row["name"], []).append(row["value"])
    return courses, done.stderr.splitlines()


LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("stage", "more"),
    [("distill", {}), ("grpo", {}), ("distill", {"adapter": {"lora": LORA}, "lr": 1e-2})],
    ids=["distill", "grpo", "adapter"],
)
def test_sharded_training_samples_through_vllm_from_its_own_weights(
    stage: str, more: dict[str, Any], vllm: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """After each step vLLM has the weights of the trainer, or the stage fails (``_compare``); also
    of a student whose head is wider than its teacher's, and so is trained without some rows, and
    of one with an adapter, whose weights are merged for it."""
    if stage == "distill":
        inputs = {**inputs, "student": padded(inputs["student"], tmp_path / "wide", 512)}
    courses, lines = trained(stage, more, vllm, inputs, tmp_path)
    said = {line for line in lines if line.startswith(on_cpu.SAID)}
    assert len(said) == 3 and any("shards" in line for line in said), said
    assert len(courses["loss"]) == 3


def test_rollouts_of_vllm_end_as_the_config_says(
    vllm: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """With ``both`` at what ends a response of either model: of this teacher any token does, so
    that each rollout is its first token, and none is cut off."""
    from transformers import AutoTokenizer, GenerationConfig

    teacher = tmp_path / "teacher"
    shutil.copytree(inputs["teacher"], teacher)
    every = [*range(len(AutoTokenizer.from_pretrained(teacher)))]
    GenerationConfig(eos_token_id=every).save_pretrained(teacher)
    cfg = {"steps": 1, "processes": 1, "end_tokens": "both"}
    courses, lines = trained("distill", cfg, vllm, {**inputs, "teacher": teacher}, tmp_path)
    assert f"{on_cpu.SAID}vLLM keeps weights as they are loaded" in "\n".join(lines)
    assert courses["response_tokens"] == [1.0] and courses["truncation_ratio"] == [0.0]


def trainer_with(served: Any) -> Any:
    """A trainer that samples, whose engine serves these weights."""
    weights = torch.nn.ModuleDict({"norm": torch.nn.Linear(2, 2, bias=False)})
    model = SimpleNamespace(get_parameter=lambda name: served)
    driver = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    executor = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=driver))

    class Trainer:
        vllm_generation = SimpleNamespace(llm=SimpleNamespace(llm_engine=executor))
        accelerator = SimpleNamespace(unwrap_model=lambda model: model)

        def _generate_single_turn(self) -> str:
            return "sampled"

    on_cpu._compare(Trainer)
    trainer: Any = Trainer()
    trainer.model = weights
    return trainer


def test_an_engine_with_other_weights_is_seen() -> None:
    trainer = trainer_with(None)
    own = trainer.model["norm"].weight.detach().bfloat16()
    trainer = trainer_with(own)
    trainer.model["norm"].weight.data = own.float()
    assert trainer._generate_single_turn() == "sampled"
    trainer = trainer_with(own + 1)
    trainer.model["norm"].weight.data = own.float()
    with pytest.raises(AssertionError, match=r"norm\.weight"):
        trainer._generate_single_turn()


VERDICTS = {
    **{"scale": "mini", "seeds": [0], "comparable": False, "claims": [], "papers": {}},
    **{"counts": {}, "without_interval": {}, "ours": {"counts": {}, "without_interval": {}}},
}
TABLE: dict[str, Any] = {
    **{"cfg": {"title": "A"}, "lines": ["| a |"], "shape": [], "no_gap": False, "kinds": []},
    "seeds": [1],
}
PARTS: dict[str, Callable[[], str]] = {
    "a page of its own": lambda: render(
        PAGES, "rehearsal.html.j2", kinds=[], failures=[], notes=[]
    ),
    "claims.html": lambda: claims_page.page(VERDICTS),
    "claims.md": lambda: claims_page.markdown(VERDICTS),
    "table.md": lambda: render(results_tables.PAGES, "table.md.j2", **TABLE),
}


@pytest.mark.parametrize("part", PARTS)
def test_documents_of_a_rehearsal_say_so_once_and_others_do_not(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, times in (("", 0), ("1", 1)):
        monkeypatch.setenv(marked.VARIABLE, value)
        text = PARTS[part]()
        assert text.count(marked.MARK) == times
        assert text.count('class="rehearsal"') == (times if "<h1>" in text else 0)
        assert "function" not in text

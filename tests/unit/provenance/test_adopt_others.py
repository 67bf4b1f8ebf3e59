"""Runs of TRL, and files as verl and the authors of Rethinking OPD write them, in the places of
recipes: what a table, a figure and the probes then have.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Inputs, course
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.core import tables
from opd.core.errors import UserError
from opd.core.files import content, read_json
from opd.data import conversations
from opd.losses.schemas import METRICS
from opd.models.prompts import read_prompts
from opd.models.schemas import GENERATIONS
from opd.probes.rollouts import read_rollouts
from opd.provenance import adopt
from opd.results.figures import run_figure
from opd.results.tables import run_table
from opd.stages import records
from opd.stages.artifact import Artifact

CFG = {"inputs": ["student", "prompts"], "code": "c"}
SAMPLED = {"inputs": ["model", "prompts"], "code": "c", "max_new_tokens": 6}
MODELS = {
    name: Artifact(stage, f"models/{name}/s0", CFG, ("models/base/s0", "prompts/rl"))
    for name, stage in {"one": "distill", "two": "grpo", "one@1": "keep"}.items()
}
ROLLOUTS = Artifact("generate", "generations/r/s0", SAMPLED, ("models/base/s0", "prompts/rl"))


@pytest.fixture(scope="module")
def trl_runs(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two runs of TRL, of two steps each, as its own scripts leave them."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    root = tmp_path_factory.mktemp("trl")
    prompts = [row["prompt"] for row in read_prompts(inputs["prompts"])][:4]
    examples = Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts]})
    tokenizer = AutoTokenizer.from_pretrained(inputs["student"])
    arguments: dict[str, Any] = {
        "max_steps": 2, "logging_steps": 1, "save_steps": 1, "report_to": "none", "seed": 0,
        "use_cpu": True, "bf16": False, "max_completion_length": 6, "disable_tqdm": True,
        "per_device_train_batch_size": 2, "log_completions": True,
    }  # fmt: skip

    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(inputs[name], dtype=torch.float32)

    def shorter(completions: list[Any], **_: Any) -> list[float]:
        return [-float(len(completion[0]["content"])) for completion in completions]

    trainers = {
        "one": DistillationTrainer(
            model("student"), model("teacher"), processing_class=tokenizer, train_dataset=examples,
            args=DistillationConfig(str(root / "one"), **arguments),
        ),
        "two": GRPOTrainer(
            model("student"), shorter, processing_class=tokenizer, train_dataset=examples,
            args=GRPOConfig(str(root / "two"), num_generations=2, **arguments),
        ),
    }  # fmt: skip
    for trainer in trainers.values():
        trainer.train()
        trainer.save_model()
    return {name: root / name for name in trainers}


@pytest.fixture
def results(inputs: Inputs, tmp_path: Path) -> Path:
    """A results folder in which prompts and student have been made."""
    root = tmp_path / "results" / "mini"
    for name, place in {"prompts": "prompts/rl", "student": "models/base/s0"}.items():
        shutil.copytree(inputs[name], root / place / "payload")
        record(root / place)
    return root


def record(folder: Path) -> None:
    """Say of what lies in an artifact's folder that it was made so."""
    made = {"identity": "i", "settings": "s", "outputs": content(folder / "payload")}
    records.write_json(folder / "digest.json", made)


def put(source: Path, artifact: Artifact, results: Path, metrics: Path | None = None) -> Path:
    """Adopt, and return the payload."""
    adopt.adopt(source, artifact, results, results.parent / ".store", metrics)
    return results / artifact.folder / "payload"


def logged(folder: Path, name: str) -> list[float]:
    history = read_json(folder / "checkpoint-2" / "trainer_state.json")["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_runs_of_trl_are_shown_in_a_table_and_a_figure(
    trl_runs: dict[str, Path], results: Path, tmp_path: Path
) -> None:
    given = {name: put(trl_runs[name], MODELS[name], results) for name in ("one", "two")}
    for name, payload in given.items():
        assert content(payload)["model.safetensors"] == content(trl_runs[name])["model.safetensors"]
        assert not list(payload.glob("checkpoint-*"))
        made = read_json(payload.parent / "manifest.json")
        state = trl_runs[name] / "checkpoint-2" / "trainer_state.json"
        assert made["numbers"]["metrics_from"] == str(state)
    rows = [{"label": name, "run": [name]} for name in given]
    columns = ["course:loss", "last:response_tokens", "last:reward", "last:overlap_ratio"]
    numbers = run_table({"columns": columns, "rows": rows}, given, tmp_path)
    for name, folder in trl_runs.items():
        first, last = logged(folder, "loss")
        assert numbers[name]["course_loss_first"] == pytest.approx(first)
        assert numbers[name]["course_loss_last"] == pytest.approx(last)
        lengths = logged(folder, "completions/mean_length")
        assert numbers[name]["last_response_tokens"] == pytest.approx(lengths[-1])
        assert numbers[name]["last_overlap_ratio"] is None
    assert numbers["one"]["last_reward"] is None
    assert numbers["two"]["last_reward"] == pytest.approx(logged(trl_runs["two"], "reward")[-1])
    series = [{"label": name, "runs": [name]} for name in given]
    metrics = [{"name": "entropy_student_nats"}, {"name": "trl/num_tokens"}]
    run_figure(
        {"kind": "curves", "title": None, "metrics": metrics, "series": series}, given, tmp_path
    )
    shown, tokens = json.loads((tmp_path / "figure.json").read_text())["panels"]
    for line, folder in zip(shown["lines"], trl_runs.values(), strict=True):
        assert line["x"] == [1, 2]
        assert line["y"] == pytest.approx(logged(folder, "entropy"))
    assert tokens["lines"][0]["y"] == logged(trl_runs["one"], "num_tokens")


def test_a_checkpoint_of_trl_is_a_step_of_a_run(trl_runs: dict[str, Path], results: Path) -> None:
    payload = put(trl_runs["one"] / "checkpoint-1", MODELS["one@1"], results)
    assert not {"optimizer.pt", "rng_state.pth", "training_args.bin"} & content(payload).keys()
    payload = put(trl_runs["one"] / "checkpoint-1", MODELS["one"], results)
    assert course(payload, "loss") == pytest.approx(logged(trl_runs["one"], "loss")[:1])


@pytest.mark.parametrize("name", ["one", "two"])
def test_rollouts_of_trl_are_of_the_recipes_prompts(
    trl_runs: dict[str, Path], results: Path, name: str
) -> None:
    """Texts (DistillationTrainer) and messages (GRPOTrainer)."""
    folder = trl_runs[name] / "completions"
    with pytest.raises(UserError, match=r"holds 2 files of rollouts; name one, such as .*00002"):
        put(folder, ROLLOUTS, results)
    payload = put(folder / "completions_00002.parquet", ROLLOUTS, results)
    rows = tables.read(payload / "generations.parquet", GENERATIONS).to_pylist()
    prompts = {row["id"]: row["prompt"] for row in read_prompts(results / "prompts/rl/payload")}
    tokenizer = AutoTokenizer.from_pretrained(results / "models/base/s0/payload")
    assert len(rows) == 2 and len(read_rollouts(payload)) == 2
    for row in rows:
        assert row["prompt"] == prompts[row["prompt_id"]]
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["response"]
        ended = row["token_ids"][-1] == tokenizer.eos_token_id
        assert ended is (row["finish"] == "stop") is (len(row["response"]) < 6)
    assert read_json(payload.parent / "manifest.json")["numbers"]["tokens_of_texts"] is True


def _dump(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rollouts_in_the_forms_of_verl_and_the_authors(results: Path, tmp_path: Path) -> None:
    """The same two responses to the first prompt and one to the second, in any order."""
    base = results / "models/base/s0/payload"
    # Role names that are no special tokens, so that they stand in what verl decodes.
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant: "
    (base / "chat_template.jinja").write_text(template)
    record(base.parent)
    first, second, *_ = (row["prompt"] for row in read_prompts(results / "prompts/rl/payload"))
    texts = [(second, "12"), (first, "#7"), (first, "123456")]
    forms = {
        "7.jsonl": [
            {"input": f"user: {prompt} assistant: ", "output": response, "gts": "7",
             "score": 0.0, "step": 7, "acc": False}
            for prompt, response in texts
        ],
        "worker_0.jsonl": [
            {"global_index": 0, "rollout_index": i, "instruction": prompt, "input": "", "output": r}
            for i, (prompt, r) in enumerate(texts)
        ],
        "DAPO.jsonl": [
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": r}]}
            for p, r in texts
        ],
        "aime24_t0.7_p0.95_n2-MNT6.jsonl": [
            {"example_id": 0, "prompt": p, "answer": "7", "seed": 0, "response": r}
            for p, r in texts
        ],
    }  # fmt: skip
    found = []
    for name, rows in forms.items():
        # The only file of its folder, which may be named for it.
        payload = put(_dump(tmp_path / name[:3] / name, rows).parent, ROLLOUTS, results)
        found.append(tables.read(payload / "generations.parquet", GENERATIONS).to_pylist())
    assert found == [found[0]] * 4
    told = [(row["prompt"], row["sample"], row["response"], row["finish"]) for row in found[0]]
    assert told == [
        (first, 0, "#7", "stop"), (first, 1, "123456", "length"), (second, 0, "12", "stop")
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    (asked,) = conversations.encode(tokenizer, [[{"role": "user", "content": first}]], {})
    assert tokenizer.decode(asked, skip_special_tokens=True) == f"user: {first} assistant: "
    assert [len(row["token_ids"]) for row in found[0]] == [3, 6, 3]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input": "2+2=?", "output": "4"}, r"row 1: '2\+2=\?' is none of the prompts"),
        ({"input": "1", "output": None}, "row 1: it is no prompt with its response"),
        ({"messages": []}, "row 1: it is no prompt with its response"),
        ({"prompt": "1", "completion": [{"content": "a"}] * 2}, "it is no prompt with"),
        ({"prompt": [1], "completion": "a"}, "it is no prompt with"),
        (
            {"question": "1", "text": "a"},
            "no rollouts have these columns: question, text",
        ),
    ],
)
def test_rollouts_of_another_form_are_refused_in_a_line(
    results: Path, tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        put(_dump(tmp_path / "7.jsonl", [row]), ROLLOUTS, results)
    assert not (results / ROLLOUTS.folder).exists()


@pytest.mark.parametrize("missing", ["prompts/rl", "models/base/s0"])
def test_texts_need_prompts_and_a_tokenizer(results: Path, tmp_path: Path, missing: str) -> None:
    shutil.rmtree(results / missing)
    file = _dump(tmp_path / "7.jsonl", [{"input": "1", "output": "1"}])
    with pytest.raises(UserError, match=f"is not there; make or adopt .*{missing} first"):
        put(file, ROLLOUTS, results)


def verl_step(folder: Path, model: Path, weights: bool) -> Path:
    """A step as verl's FSDPCheckpointManager saves it: with ``hf_model`` among the contents, or
    without."""
    actor = folder / "global_step_20" / "actor"
    left_out = None if weights else shutil.ignore_patterns("*.safetensors")
    shutil.copytree(model, actor / "huggingface", ignore=left_out)
    for rank in range(2):
        for kind in ("model", "optim", "extra_state"):
            torch.save({"w": torch.ones(1)}, actor / f"{kind}_world_size_2_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    (actor.parent / "data.pt").write_bytes(b"")
    (folder / "latest_checkpointed_iteration.txt").write_text("20")
    return actor.parent


def test_a_step_of_verl_with_what_its_logger_wrote(
    inputs: Inputs, results: Path, tmp_path: Path
) -> None:
    step = verl_step(tmp_path / "verl", inputs["student"], weights=True)
    metrics = [{"step": 20, "data": {"actor/grad_norm": 0.5, "actor/entropy": 1.25}}]
    log = _dump(tmp_path / "project" / "run.jsonl", metrics)
    expected = content(inputs["student"])
    for place in (step, step / "actor", step / "actor" / "huggingface"):
        found = content(put(place, MODELS["one"], results, log))
        assert found.pop("metrics.parquet") and found == expected
    payload = put(step, MODELS["one"], results, log)
    assert course(payload, "grad_norm") == [0.5] and course(payload, "verl/actor/entropy") == [1.25]
    without = put(step, MODELS["one"], results)
    assert tables.read(without / "metrics.parquet", METRICS).num_rows == 0
    with pytest.raises(UserError, match=r"--metrics: models/one@1/s0 is made by no training"):
        put(step, MODELS["one@1"], results, log)


def test_what_is_no_model_yet_is_refused_with_what_makes_one(
    trl_runs: dict[str, Path], inputs: Inputs, results: Path, tmp_path: Path
) -> None:
    step = verl_step(tmp_path / "verl", inputs["student"], weights=False)
    for place in (step, step / "actor"):
        with pytest.raises(UserError, match=r"pickled shards of FSDP.*merger merge.*/actor --targ"):
            put(place, MODELS["one"], results)
    with pytest.raises(UserError, match=r"checkpoints of a run.*such as .*/global_step_20$"):
        put(tmp_path / "verl", MODELS["one"], results)
    left_out = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(trl_runs["one"], tmp_path / "trl", ignore=left_out)
    with pytest.raises(UserError, match=r"checkpoints of a run.*such as .*/checkpoint-2$"):
        put(tmp_path / "trl", MODELS["one"], results)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter, without the model"):
        put(tmp_path / "lora", MODELS["one"], results)
    assert not (results / MODELS["one"].folder).exists()

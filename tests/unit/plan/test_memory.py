"""Memory of a job, term by term: hand-worked numbers, what autograd keeps, and torch's tracker."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opd.losses import head
from opd.models import checkpoints
from opd.plan import calibrate, cost, local, memory, show
from opd.plan.cost import Facts
from opd.plan.shape import Shape, from_config
from opd.stages.artifact import Artifact
from opd.training import adapter

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]
SHAPES = calibrate.read(ROOT / "config" / "calibration.yaml")["shapes"]
# 3 layers: embeddings 10 x 4, a layer 2 * 4 * (4 + 2) + 3 * 4 * 8 + 2 * 4 = 152, a last norm of 4.
SMALL = Shape(layers=3, hidden=4, intermediate=8, query=4, key=2, vocabulary=10, tied=True)
N = 40 + 3 * 152 + 4
ONE = {"teacher": SMALL}
RUN: dict[str, Any] = {
    "prompts_per_step": 4,
    "rollouts_per_prompt": 2,
    "micro_batch": 2,
    "max_prompt_tokens": 6,
    "max_new_tokens": 10,
    "precision": "bfloat16",
    "gradient_checkpointing": True,
    "vllm": {"mode": "colocate"},
    "execution": {"vllm": {"gpu_memory_utilization": 0.5, "enable_sleep_mode": True}},
}


def without_context(terms: memory.Terms) -> dict[str, float]:
    return {name: size for name, size in terms.items() if name not in ("context", "vLLM", "states")}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1777088000),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7615616512),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14770033664),
        ("Qwen/Qwen3-1.7B", 1720574976),
        ("Qwen/Qwen3-4B", 4022468096),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134515008),
    ],
)
def test_shapes_have_the_parameters_that_their_authors_state(name, parameters, tmp_path):
    """By the formula, which needs no torch, and as transformers builds the model, of any kind."""
    assert from_config(SHAPES[name]).parameters == parameters
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name]))
    assert checkpoints.parameters(tmp_path) == parameters


def test_a_config_that_lacks_a_size_has_no_shape():
    whole = SHAPES["Qwen/Qwen3-0.6B"]
    for key in ("num_attention_heads", "vocab_size", "model_type"):
        assert from_config({k: v for k, v in whole.items() if k != key}) is None


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(("narrow", "stream"), [(True, 4), (True, 2), (False, 4)])
def test_a_layer_keeps_what_autograd_saves(kind, narrow, stream):
    """One layer of transformers, with a mask as TRL's batches have one: all storages that are saved
    and are no weights."""
    excerpt = {
        "model_type": kind,
        "hidden_size": 96,
        "intermediate_size": 224,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 11,
    }
    dtype = torch.bfloat16 if stream == 2 else torch.float32
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**excerpt), dtype=dtype).model
    layer, tokens = model.layers[0], 600
    hidden = torch.randn(1, tokens, 96, dtype=dtype, requires_grad=True)
    place = model.rotary_emb(hidden, torch.arange(tokens)[None])
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tokens in tensor.shape[:-1] or tokens * 8 in tensor.shape:  # no weights
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=narrow)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, attention_mask=mask, position_embeddings=place)
    of_mask = tokens * tokens * (2 if narrow else 4)
    kept = sum(storage.nbytes() for storage in saved.values()) - of_mask
    shape = from_config(excerpt)
    assert shape.saved(narrow, stream) == pytest.approx(kept / tokens, rel=0.03)


def test_terms_of_a_step_on_one_gpu():
    """8 sequences of 16 tokens, two at a time: 32 tokens, 20 responses' positions."""
    steps = memory.phases("distill", RUN, SMALL, ONE, memory=100e9)
    always = {"weights": 4 * N, "moments": 8 * N, "teacher": 2 * N}
    mask = 2 * 16 * 16 * (1 + 2)
    assert without_context(steps["rollouts"]) == always
    assert steps["rollouts"]["vLLM"] == 50e9 and steps["update"]["vLLM"] == memory.ASLEEP
    begun = {**always, "gradients": 4 * N}
    assert without_context(steps["update"]) == {**begun, "update": 4 * N}
    held = {
        "checkpoints": 3 * 32 * 4 * 4,
        "mask": mask,
        "responses": 2 * 2 * 20 * (4 + 4),
    }
    # All 20 positions are one chunk of 20 x 10 logits.
    chunk, rows = 4 * 20 * 10, 4 * 10 * 4
    assert without_context(steps["forward"]) == {
        **begun,
        **held,
        "copies": 2 * 3 * 152,
        "head": rows / 2 + 8 * chunk,
    }
    assert without_context(steps["loss"]) == {
        **begun,
        **held,
        "copies": 0,
        "head": rows + rows / 2 + 3 * chunk + 4 * 20 * 4,
    }
    # 26 x 4 + 4 x 2 x 8 + (2 x 2 + 2 x 2) x 4 bytes a token.
    assert SMALL.saved(True, 4) == 104 + 64 + 32
    layer = 32 * 200 + 3 * 2 * 32 * 8
    assert without_context(steps["layer"]) == {
        **begun,
        **held,
        "copies": 0,
        "layer": layer,
        "head": rows,
    }


def test_fsdp_shards_states_and_gathers_a_few_layers():
    cfg = {**RUN, "processes": 4, "micro_batch": 1, "execution": {"accelerate": "a/fsdp2.yaml"}}
    del cfg["vllm"]
    steps = memory.phases("distill", cfg, SMALL, ONE, memory=0)
    assert {name: steps["layer"][name] for name in ("weights", "moments", "gradients")} == {
        "weights": N,
        "moments": 2 * N,
        "gradients": N,
    }
    assert steps["layer"]["copies"] == 2 * (40 + 2 * 152)
    assert steps["layer"]["checkpoints"] == 3 * 16 * 4 * 2  # bfloat16 from layer to layer
    # Without vLLM the two rollouts of each process have their keys and values at once.
    assert steps["rollouts"]["cache"] == 2 * 16 * 2 * 3 * 2 * 4
    ddp = memory.phases("distill", {**cfg, "execution": {}}, SMALL, ONE, memory=0)
    assert ddp["layer"]["weights"] == 4 * N


def test_a_step_has_the_cache_of_the_students_own_rollouts():
    """Keys and values of 3 layers, 2 wide, in float32, of 8 rollouts of 16 tokens."""
    cfg = {key: value for key, value in RUN.items() if key != "vllm"}
    for own, share in ((1.0, []), (0.5, [{"generations": "g", "share": 0.5}])):
        sources = [{"own": own}, *share]
        steps = memory.phases("distill", {**cfg, "rollouts": sources}, SMALL, ONE, math.inf)
        assert steps["rollouts"]["cache"] == own * 8 * 16 * 3 * 2 * 2 * 4
    offline = {**cfg, "rollouts": [{"generations": "g", "share": 1.0}]}
    steps = memory.phases("distill", offline, SMALL, ONE, math.inf)
    assert steps["rollouts"]["cache"] == 0


def test_a_teacher_with_scores_takes_no_memory():
    live, scored = (
        memory.phases("distill", {**RUN, **more}, SMALL, teachers, math.inf)
        for more, teachers in (({}, ONE), ({"scores": "scores"}, {}))
    )
    assert "teacher" in live and "teacher" not in scored
    assert all("teacher" not in terms for terms in scored.values())
    both = live["forward"]["responses"] - scored["forward"]["responses"]
    assert both == 2 * 2 * (2 * 10) * SMALL.hidden


def test_vllm_takes_what_it_needs_where_memory_is_not_known():
    """A share of what is not known has no bound: weights of two bytes, the keys and values of one
    sequence of 16 tokens, and the engine."""
    phases = memory.phases("distill", RUN, SMALL, {"teacher": SMALL}, math.inf)
    least = 2 * N + 16 * SMALL.cached(2) + memory.ENGINE
    assert phases["rollouts"]["vLLM"] == least
    assert (
        memory.phases("distill", RUN, SMALL, {"teacher": SMALL}, 4 * least)["rollouts"]["vLLM"]
        == 2 * least
    )


def test_the_mask_is_that_of_the_attention():
    """Two sequences of 16 tokens: squares of 16 each, of the whole row, or none."""
    for more, squares in (
        ({}, 512),
        ({"packing": True}, 1024),
        ({"attention": "flash_attention_2"}, 0),
    ):
        steps = memory.phases("distill", {**RUN, **more}, SMALL, ONE, memory=0)
        assert steps["layer"]["mask"] == 3 * squares
    # Keys and values are not repeated: 2 x 2 x 4 bytes a token less, 2 x 2 x 2 of their own more.
    assert SMALL.saved(True, 4, masked=False) == SMALL.saved(True, 4) - 16 + 8


def test_a_teacher_that_moves_is_float32_and_the_student_itself_is_none():
    moving = memory.phases("distill", {**RUN, "teacher_update": "ema"}, SMALL, ONE, 1e9)
    assert moving["layer"]["teacher"] == 4 * N
    live = memory.phases("distill", {**RUN, "teacher_update": "live"}, SMALL, {}, 1e9)
    assert "teacher" not in live["layer"] and live["teacher"]["layer"] > 0
    both = moving["layer"]["responses"]
    assert live["layer"]["responses"] == both
    assert "teacher" not in memory.phases("grpo", {**RUN, "group_size": 2}, SMALL, {}, 1e9)["layer"]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "mlp.down_proj"]])
def test_an_adapter_has_the_parameters_that_peft_gives_it(kind, targets):
    excerpt = {
        **{"model_type": kind, "hidden_size": 48, "intermediate_size": 80, "head_dim": 8},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3},
        "vocab_size": 11,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**excerpt))
    lora = {"r": 3, "alpha": 6, "dropout": 0.0, "target_modules": targets}
    student = adapter.adapted(model, {"adapter": {"lora": lora}, "seed": 0})
    count = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    assert from_config(excerpt).adapter(3, targets) == count


def test_of_an_adapter_alone_there_are_gradients_and_moments():
    """Of rank 2: 2 x 3 x (q 4 + 4, k and v 4 + 2, o 4 + 4, three of the MLP 4 + 8) parameters; the
    head has no gradient. With FSDP a quarter of all that is on each of four."""
    size = 2 * 3 * (8 + 6 + 6 + 8 + 12 + 12 + 12)
    lora = {"adapter": {"lora": {"r": 2, "alpha": 4, "target_modules": "all-linear"}}}
    full = memory.phases("distill", RUN, SMALL, ONE, 1e9)
    steps = memory.phases("distill", {**RUN, **lora}, SMALL, ONE, 1e9)
    always = {"weights": 4 * N, "moments": 8 * size, "teacher": 2 * N}
    assert without_context(steps["update"]) == {**always, "gradients": 4 * size, "update": 4 * size}
    rows = 4 * 10 * 4
    assert full["loss"]["head"] - steps["loss"]["head"] == rows
    assert steps["layer"]["head"] == 0 and "embeddings" not in steps
    fsdp = {**RUN, **lora, "processes": 4, "micro_batch": 1}
    fsdp["execution"] = {"accelerate": "fsdp2.yaml"}
    parts = memory.phases("distill", fsdp, SMALL, ONE, 1e9)["update"]
    assert (parts["weights"], parts["moments"], parts["gradients"]) == (N, 2 * size, size)


def test_the_start_of_a_student_with_an_adapter_is_no_second_model():
    """As its only teacher, and as the reference beside another one, which then takes turns; with
    the states of a step, where these are kept. Without adapter it is a copy."""
    cfg = {**RUN, "max_prompt_tokens": 1024, "max_new_tokens": 64}
    lora = {"adapter": {"lora": {"r": 2, "alpha": 4, "target_modules": "all-linear"}}}
    shape = SHAPES["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"]
    n, head = from_config(shape).parameters, shape["vocab_size"] * shape["hidden_size"]

    def teacher(changed: dict[str, Any], inputs: dict[str, str]) -> float:
        facts = planned({**cfg, **changed})
        run = Artifact(
            "distill", "run/s0", {**cfg, **changed, "inputs": [*inputs]}, (*inputs.values(),)
        )
        fetched = {"t": facts.artifacts["m"]}
        facts = facts._replace(artifacts={**facts.artifacts, **fetched, "run/s0": run})
        return memory.of(facts, "run/s0", 1, 1e15).terms.get("teacher", 0)

    own = {"student": "m", "teacher": "m"}
    assert teacher({}, own) == 2 * n and teacher(lora, own) == 0
    assert teacher({"teacher_update": "live"}, own) == 0
    sum_of = {"terms": [{"teacher": "teacher:0"}, {"reference": "student"}]}
    two = {"student": "m", "teacher:0": "t"}
    assert teacher(sum_of, two) == 2 * 2 * head
    assert teacher({**sum_of, **lora}, two) == 2 * head


def test_teachers_of_a_sum_take_turns():
    """Of several only the heads stay, and the states of 8 x 10 positions for each thing that a
    model is told; a single one stays, with states only where token weights look at a step."""
    large = SMALL._replace(layers=6, hidden=8)
    told, weighed = {"information": [{"message": "{prompt}!"}]}, {"tokens": {"drift": 1.0}}
    parts = [{"teacher": "teacher:0"}, {"teacher": "teacher:1"}, {"teacher": "teacher:1", **told}]
    two = {"teacher:0": SMALL, "teacher:1": large}
    steps = memory.phases("distill", {**RUN, "terms": [*parts, {"reward": {}}]}, SMALL, two, 1e9)
    heads = 2 * 10 * (4 + 8)
    assert steps["rollouts"]["teacher"] == steps["loss"]["teacher"] == heads
    assert steps["teacher"]["teacher"] == heads + 2 * large.parameters
    assert steps["loss"]["states"] == 2 * 8 * 10 * (4 + 8 + 8) and "states" not in steps["rollouts"]
    for part, kept in ((parts[0], 0), ({**parts[0], **weighed}, 2 * 8 * 10 * 4)):
        one = memory.phases("distill", {**RUN, "terms": [part]}, SMALL, {"teacher:0": SMALL}, 1e9)
        assert one["loss"]["teacher"] == one["teacher"]["teacher"] == 2 * N
        assert one["loss"]["states"] == kept


def test_the_chunk_is_that_of_the_loss():
    assert memory.CHUNK_ELEMENTS == head.CHUNK_ELEMENTS


@pytest.mark.parametrize("has_adapter", [False, True])
def test_torch_tracks_within_15_percent_what_is_reckoned(has_adapter, monkeypatch):
    """The trainer's own loss, backward pass and optimiser on fake tensors, as in
    tests/bench/bench_memory.py, where all layers are there: here are two."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "bench"), *sys.path])
    import bench_memory

    small = {**SHAPES["Qwen/Qwen3-0.6B"], "num_hidden_layers": 2}
    cfg = {**bench_memory.BASE, "max_prompt_tokens": 128, "max_new_tokens": 2048}
    cfg |= bench_memory.LORA if has_adapter else {}
    tracked = bench_memory.measure(small, small, cfg, "cpu")
    reckoned = bench_memory.reckoned(small, small, cfg)
    for phase, size in tracked.items():
        assert reckoned[phase] == pytest.approx(size, rel=0.15), phase


# What fits


def planned(cfg: dict[str, Any]) -> Facts:
    name = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    artifacts = {
        "m": Artifact("fetch", "m", {"hub": name, "inputs": []}, ()),
        "run/s0": Artifact(
            "distill", "run/s0", {**cfg, "inputs": ["student", "teacher"]}, ("m", "m")
        ),
        "other": Artifact("sft", "other", {"inputs": ["student"]}, ("nowhere",)),
    }
    return Facts(artifacts, {"shapes": SHAPES})


def test_what_does_not_fit_is_told_with_settings_with_which_it_does():
    cfg = {**RUN, "max_prompt_tokens": 1024, "max_new_tokens": 7168}
    facts = planned(cfg)
    assert memory.of(facts, "run/s0", 1, 80 * 2**30).instead == []
    tight = memory.of(facts, "run/s0", 1, 24 * 2**30)
    # 16 bytes of 1.777e9 parameters are more than that alone.
    assert tight.bytes > 16 * 1.777e9 and tight.instead[-1].startswith("processes: 4")
    known = cfg | {"micro_batch": 1, "processes": 4}
    known["execution"] = {
        "accelerate": "config/accelerate/fsdp2.yaml",
        "vllm": {"gpu_memory_utilization": 0.3, "enable_sleep_mode": True},
    }
    assert memory.of(planned(known), "run/s0", 4, 24 * 2**30).bytes < 24 * 2**30
    # Where there are fewer GPUs than a run has processes, each of them has more to hold.
    assert memory.of(planned(known), "run/s0", 1, 24 * 2**30).bytes > 24 * 2**30
    assert memory.of(facts, "m", 1, 1e9) is None and memory.of(facts, "other", 1, 1e9) is None
    assert memory.of(facts, "run/s0", 1, 2**30).instead == []


def test_the_command_names_what_would_not_fit(capsys):
    config = ROOT / "config" / "paper.yaml"
    lines = show.lines([config], ["models/r1-1.5b-from-justrl/s0"], gpus=1, gibibytes=24)
    (refused,) = (line for line in lines if line.startswith("would not fit"))
    assert refused.startswith("would not fit: models/r1-1.5b-from-justrl: ")
    assert "with micro_batch: 1, processes: 4 and accelerate" in refused
    lines = show.lines([config], ["models/r1-1.5b-from-justrl/s0"])
    assert not [line for line in lines if line.startswith("would not fit")]


@pytest.mark.parametrize(
    ("overlays", "device", "gpus"),
    [([], "RTX 4090", 1), (["one-gpu-80.yaml"], "H100", 1), (["one-gpu-80.yaml"], "H100", 4)],
)
def test_the_configs_for_one_card_fit_it(overlays, device, gpus):
    files = [ROOT / "config" / name for name in ("one-gpu.yaml", *overlays)]
    settings = ["training={processes: 4, accelerate: fsdp2.yaml}"] if gpus == 4 else []
    lines = show.lines(files, [], gpus=gpus, device=device, settings=settings)
    (needed,) = (line for line in lines if line.startswith("memory: up to"))
    size = {"RTX 4090": 24, "H100": 80}[device] * 2**30 / 1e9
    assert size / 2 < float(needed.split()[3]) < size
    assert not [line for line in lines if line.startswith(("would not fit", "not counted"))]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (["paper"], []),
        (["paper"], ["use_released=false"]),
        (["many-faces"], []),
        (["many-faces", "many-faces-science"], []),
        (["unmasking"], []),
    ],
)
def test_shipped_configs_fit_the_gpu_that_they_are_planned_for(files, settings):
    lines = show.lines([ROOT / "config" / f"{name}.yaml" for name in files], [], settings=settings)
    assert not [line for line in lines if line.startswith("would not fit")]


# What lies here


def test_sizes_of_local_files_are_read(tmp_path):
    header = json.dumps({"__metadata__": {}, "a": {"shape": [3, 5]}, "b": {"shape": []}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert local.parameters(f"{tmp_path}") == 16
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "rows.csv").write_text('a,b\n1,"x\ny"\n2,z\n3,z\n')
    (tmp_path / "broken.csv").write_text("a,b\n1\n")
    names = ("rows.jsonl", "rows.csv", "broken.csv", "none.parquet")
    counts = [local.rows(f"{tmp_path / name}") for name in names]
    assert counts[:2] == [2, 3] and all(map(math.isnan, counts[2:]))

    (tmp_path / "config.json").write_text(json.dumps(SHAPES["Qwen/Qwen3-0.6B"]))
    local.config.cache_clear()
    artifacts = {
        "m": Artifact("fetch", "m", {"path": "mine", "inputs": ["files"]}, (f"{tmp_path}",)),
        "p": Artifact(
            "prompts",
            "p",
            {"source": {"path": "rows.csv"}, "inputs": ["path"]},
            (f"{tmp_path / 'rows.csv'}",),
        ),
    }
    facts = Facts(artifacts, {})
    assert cost.parameters(facts, "m") == from_config(SHAPES["Qwen/Qwen3-0.6B"]).parameters
    assert cost.rows(facts, "p") == 3

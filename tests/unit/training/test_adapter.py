"""Students of which an adapter is trained: what a step changes, what is kept, sent and refused."""

import copy
import gc
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from probing import padded
from safetensors.torch import load_file
from tiny import GRPO, OPD, SFT, Inputs, course, files, run, with_lora

from opd.core import security
from opd.core.errors import UserError
from opd.losses.fused import fused_token_loss
from opd.losses.spec import loss_spec
from opd.models.checkpoints import load_model
from opd.models.pairing import head_of
from opd.training import adapter

SUM = {key: value for key, value in OPD.items() if key != "loss"}
# Rewards differ by the length of responses: few of them are right.
PRICED = {**GRPO, "length_penalty": {"weight": 1.0, "free": 0}}
STAGES = {"sft": SFT, "grpo": PRICED, "distill": OPD}
IDS = torch.arange(5, 25).reshape(2, 10)


def student(inputs: Inputs, **changed: Any) -> PeftModel:
    cfg = with_lora({"seed": 5}, **changed)
    model: PeftModel = adapter.adapted(load_model(inputs["student"]), cfg)
    return model


def taught(inputs: Inputs) -> PeftModel:
    """A student whose adapter has been trained, as far as B is not 0."""
    model = student(inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_()
    return model


def adapted_matrices(model: PeftModel) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}


def loss(model: Any, inputs: Inputs) -> torch.Tensor:
    """The whole reverse KL to the teacher, of every token after the first."""
    teacher = load_model(inputs["teacher"])
    hidden, hidden_teacher = (
        m.base_model(IDS).last_hidden_state[:, :-1] for m in (adapter.beneath(model), teacher)
    )
    spec, mask = loss_spec({"preset": "full"}), torch.ones(2, 9)
    heads = head_of(model), head_of(teacher)
    return fused_token_loss(
        hidden, heads[0], hidden_teacher, heads[1], IDS[:, 1:], mask, spec
    ).sum()


# A step


def test_a_first_step_is_scale_squared_of_the_full_one(inputs: Inputs) -> None:
    """With W' = W + s B A, B = 0 and A square and orthonormal, dL/dA = s B^T G = 0 and dL/dB =
    s G A^T, so a step of plain SGD moves W' by - lr s^2 G A^T A = s^2 (- lr G)."""
    rate, scale = 0.1, 3.0
    full = load_model(inputs["student"])
    model = student(inputs, r=16, alpha=16 * scale)
    layers = adapted_matrices(model)
    assert len(layers) == 7
    torch.manual_seed(0)
    for layer in layers.values():
        layer.lora_A["default"].weight.data = torch.linalg.qr(torch.randn(16, 16))[0]
    for trained in (full, model):
        optimiser = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=rate)
        loss(trained, inputs).backward()
        optimiser.step()
    start = load_file(inputs["student"] / "model.safetensors")
    whole = dict(full.named_parameters())
    for name, weight in adapter.merged(model, dict(model.named_parameters())):
        if f"base_model.model.{name.removesuffix('.weight')}" not in layers:
            assert torch.equal(weight, start[name]), name
            continue
        change = whole[name].detach() - start[name]
        assert change.norm() > 1e-3
        torch.testing.assert_close(weight - start[name], scale**2 * change, rtol=1e-3, atol=1e-6)


def test_a_new_adapter_is_the_student_itself(inputs: Inputs) -> None:
    plain = load_model(inputs["student"])
    assert torch.equal(student(inputs)(IDS).logits, plain(IDS).logits)
    assert not torch.equal(taught(inputs)(IDS).logits, plain(IDS).logits)


NARROW = {"precision": "bfloat16", "gradient_checkpointing": True}


PACKED = {**NARROW, "packing": True}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, more) for name in STAGES for more in ({}, NARROW)),
        *((name, PACKED) for name in ("sft", "distill")),
    ],
)
def test_a_run_begins_with_the_loss_of_the_student_itself(
    inputs: Inputs, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    """The same first rollouts and loss to the bit; what is learnt from them is another thing."""
    cfg = {**STAGES[name], "batch_size": 2, **more}
    run(name, with_lora(cfg), inputs, tmp_path / "lora")
    run(name, cfg, inputs, tmp_path / "full")
    ours, theirs = (course(tmp_path / at, "loss") for at in ("lora", "full"))
    assert ours[0] == theirs[0] != 0
    ours, theirs = (course(tmp_path / at, "grad_norm") for at in ("lora", "full"))
    assert 0 < ours[0] != theirs[0]


@pytest.mark.parametrize("name", STAGES)
def test_only_the_adapter_has_gradients_and_changes(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: dict[str, bool] = {}
    left: dict[str, torch.Tensor] = {}

    def look(_: Any, args: Any, state: Any, control: Any, model: Any, **__: Any) -> None:
        for path, weight in model.named_parameters():
            seen[path] = seen.get(path, False) or weight.grad is not None
            left[path] = weight.detach().clone()

    monkeypatch.setattr("opd.training.resume.Steps.on_pre_optimizer_step", look)
    run(name, with_lora({**STAGES[name], "lr": 1e-2}), inputs, tmp_path / "a")
    assert sum(seen.values()) == 2 * 7
    assert all(has_gradient == (".lora_" in path) for path, has_gradient in seen.items())
    start = load_file(inputs["student"] / "model.safetensors")
    for path, weight in left.items():
        if ".lora_" not in path:
            plain = path.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, start[plain]), path
    assert any(weight.any() for path, weight in left.items() if ".lora_B." in path)


# What is left of a run


@pytest.mark.parametrize("name", STAGES)
def test_what_is_saved_is_the_student_with_its_adapter(
    inputs: Inputs, tmp_path: Path, name: str
) -> None:
    """The weights are as of any model, and compute what the student of the run and the adapter
    beside them do; a step that is kept, too."""
    cfg = {**STAGES[name], "lr": 1e-2, "execution": {"keep_steps": [2]}}
    run(name, with_lora(cfg), inputs, tmp_path / "a")
    run(name, cfg, inputs, tmp_path / "full")
    for at in ("a", "a-scratch/kept/2"):
        shapes, plain = (
            {n: w.shape for n, w in load_file(tmp_path / folder / "model.safetensors").items()}
            for folder in (at, at.replace("a", "full", 1))
        )
        assert shapes == plain
        model = PeftModel.from_pretrained(
            load_model(inputs["student"]), tmp_path / at / "adapter"
        ).eval()
        logits = load_model(tmp_path / at).double()(IDS).logits
        torch.testing.assert_close(model.double()(IDS).logits, logits, rtol=0, atol=1e-6)
        assert (logits - load_model(inputs["student"])(IDS).logits).abs().max() > 1e-4
    # Whatever reads a model finds what it finds of any other.
    added = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert files(tmp_path / "a").keys() == files(tmp_path / "full").keys() | added
    security.refuse_code(tmp_path / "a")
    # Bytes that depend neither on where the student lies nor on the order of a set.
    config = (tmp_path / "a/adapter/adapter_config.json").read_text()
    targets = json.loads(config)["target_modules"]
    assert str(tmp_path.parent) not in config and targets == sorted(targets)


def test_merged_weights_compute_what_the_adapter_does(inputs: Inputs) -> None:
    """As PEFT's own merge, to 1e-6, also where rollouts are computed in bfloat16; no weight of the
    student is changed for it."""
    model, plain = taught(inputs), load_model(inputs["student"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        whole = dict(adapter.merged(model, model.state_dict()))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert whole.keys() == plain.state_dict().keys()
    plain.load_state_dict(whole)
    # In float64: how float32 rounds sums in another order differs from machine to machine.
    wide, wide_plain = copy.deepcopy(model).double(), copy.deepcopy(plain).double()
    logits = wide(IDS).logits
    scale = logits.abs().max().item()
    torch.testing.assert_close(wide_plain(IDS).logits, logits, rtol=0, atol=1e-6 * scale)
    theirs = model.merge_and_unload().state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-6, atol=1e-6)


def test_a_checkpoint_holds_the_adapter_and_its_optimiser_alone(
    inputs: Inputs, tmp_path: Path
) -> None:
    """Also of a student whose vocabulary was cut to that of its teacher."""
    wide = {**inputs, "student": padded(inputs["student"], tmp_path / "wide", 80)}
    cfg = with_lora({**OPD, "execution": {"checkpoint_every": 3}})
    run("distill", cfg, wide, tmp_path / "a")
    folder = tmp_path / "a-scratch" / "checkpoint-3"
    weights = load_file(folder / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 and not [*folder.glob("model*")]
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    shapes = sorted(tuple(state["exp_avg"].shape) for state in moments.values())
    assert shapes == sorted(tuple(weight.shape) for weight in weights.values())


# The student's own start


TOLD = {"information": [{"message": "say {question}"}]}
TEACHER = {"teacher": "teacher:0", "loss": {"preset": "full"}, "weight": 1.0}
REFERENCE = {"reference": "student", "loss": {"preset": "k3"}, "weight": 0.1}
ITSELF = {"teacher": "student", "loss": {"preset": "full"}, "weight": 1.0, **TOLD}


@pytest.mark.parametrize(
    ("sum_of", "models"),
    [
        ([TEACHER, REFERENCE], 2),
        ([ITSELF], 1),
        ([{**ITSELF, "tokens": {"drift": 0.5}}], 1),
    ],
    ids=["a reference", "the only teacher", "weights of states"],
)
def test_the_student_without_its_adapter_is_its_start(
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sum_of: list[dict[str, Any]],
    models: int,
) -> None:
    """What a copy of the student in memory gives at each step, with one model fewer."""
    from opd.training import resume

    in_memory: list[int] = []

    def count(*_: Any, **__: Any) -> None:
        gc.collect()
        kinds = [type(thing) for thing in gc.get_objects()]
        in_memory.append(sum(kind.__name__ == "Qwen3ForCausalLM" for kind in kinds))

    monkeypatch.setattr(resume.Steps, "on_pre_optimizer_step", count)
    cfg = with_lora({**SUM, "lr": 1e-2, "micro_batch": 4, "max_prompt_tokens": 32})
    given = {**inputs, "teacher:0": inputs["teacher"], "teacher:1": tmp_path / "copy"}
    run("distill", {**cfg, "terms": sum_of}, given, tmp_path / "itself")
    assert in_memory == [models] * 3
    shutil.copytree(inputs["student"], tmp_path / "copy")
    of_copy = [{k: "teacher:1" if v == "student" else v for k, v in t.items()} for t in sum_of]
    run("distill", {**cfg, "terms": of_copy}, given, tmp_path / "copied")
    assert in_memory[3:] == [models + 1] * 3
    for i, term in enumerate(sum_of):
        ours, theirs = (course(tmp_path / at, f"term_{i}_loss") for at in ("itself", "copied"))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-9)
        if term is REFERENCE:  # nothing is learnt yet
            assert ours[0] == 0 < min(ours[1:])


def test_a_teacher_that_moves_follows_the_merged_weights(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opd.training import distill

    seen: dict[str, torch.Tensor] = {}
    follow = distill.Trainer.move_teacher

    def spy(self: Any) -> None:
        follow(self)
        seen.update({k: v.clone() for k, v in self.teacher_model.named_parameters()})

    monkeypatch.setattr(distill.Trainer, "move_teacher", spy)
    more = {"teacher_update": "ema", "ema_decay": 0.75, "steps": 1, "lr": 1e-2, **TOLD}
    own = {**inputs, "teacher": inputs["student"]}
    run("distill", with_lora({**OPD, **more}), own, tmp_path / "a")
    before, after = (load_file(at / "model.safetensors") for at in (own["student"], tmp_path / "a"))
    for name, average in seen.items():
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * after[name])
    assert any(not torch.equal(before[name], after[name]) for name in after)


# Rollouts


@pytest.mark.parametrize("name", ["grpo", "distill"])
def test_rollouts_are_sampled_without_dropout(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import trl

    base = {"grpo": trl.GRPOTrainer, "distill": trl.DistillationTrainer}[name]
    sample, training = base._generate_single_turn, []

    def spy(self: Any, *given: Any, **named: Any) -> Any:
        drops = [m for m in self.model.modules() if isinstance(m, torch.nn.Dropout)]
        training.append((len(drops) >= 7, any(module.training for module in drops)))
        return sample(self, *given, **named)

    monkeypatch.setattr(base, "_generate_single_turn", spy)
    run(name, with_lora(STAGES[name], dropout=0.5), inputs, tmp_path / "a")
    run(name, with_lora(STAGES[name]), inputs, tmp_path / "b")
    assert training[:3] == [(True, False)] * 3
    # It is there when something is learnt.
    assert course(tmp_path / "a", "grad_norm")[0] != course(tmp_path / "b", "grad_norm")[0]


def test_the_engine_is_sent_merged_weights(inputs: Inputs) -> None:
    """Those of the student by the names that vLLM knows; what is frozen stays to the bit, which
    TRL's own way does not leave so. Of a student without adapter nothing is changed."""
    generation_module = pytest.importorskip("trl.generation.vllm_generation")
    model, plain = taught(inputs), load_model(inputs["student"])
    generation = object.__new__(generation_module.VLLMGeneration)
    generation.mode, generation.enable_sleep_mode = "colocate", False
    generation.accelerator = None
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: torch.no_grad())
    sent: dict[str, torch.Tensor] = {}
    engine = SimpleNamespace(
        load_weights=lambda pairs: sent.update((n, w.clone()) for n, w in pairs)
    )
    driver = SimpleNamespace(model_runner=SimpleNamespace(model=engine))
    executor = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=driver))
    generation.llm = SimpleNamespace(llm_engine=executor, reset_prefix_cache=lambda: None)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def sync(trained: Any) -> dict[str, torch.Tensor]:
        sent.clear()
        generation.model = trained
        adapter.serve_merged(generation)
        generation.sync_weights()
        return dict(sent)

    assert sync(plain).keys() == dict(plain.named_parameters()).keys()
    whole = dict(adapter.merged(model, dict(model.named_parameters())))
    ours = sync(model)
    assert ours.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(weight, whole[name]) for name, weight in ours.items())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    del generation._iter_named_params
    generation.sync_weights()
    for name, weight in sent.items():
        torch.testing.assert_close(weight, ours[name], rtol=1e-5, atol=1e-5)


# What is refused before anything is trained


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "lm_head"], "'lm_head' is the embeddings or the head, .*; leave it out"),
        (["embed_tokens"], r"'model.embed_tokens' is the embeddings or the head"),
        (["q_prj"], r"the student has no module 'q_prj'; did you mean 'q_proj'"),
        (["proj"], r"the student has no module 'proj'; did you mean"),
        (["norm"], r"'model.norm' is no linear layer; .*down_proj"),
    ],
)
@pytest.mark.parametrize("name", STAGES)
def test_modules_that_cannot_have_an_adapter(
    inputs: Inputs, tmp_path: Path, name: str, targets: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=rf"adapter\.lora\.target_modules: {message}"):
        run(name, with_lora(STAGES[name], target_modules=targets), inputs, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_a_head_of_its_own_has_no_adapter_either(inputs: Inputs) -> None:
    model = load_model(inputs["student"])
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(UserError, match="'lm_head' is the embeddings or the head"):
        adapter.adapted(model, with_lora({"seed": 5}, target_modules=["lm_head"]))
    assert len(adapted_matrices(adapter.adapted(model, with_lora({"seed": 5})))) == 7


def test_named_matrices_alone_have_an_adapter(inputs: Inputs) -> None:
    model = student(inputs, target_modules=["q_proj", "v_proj"])
    ends = sorted(name.rpartition(".")[2] for name in adapted_matrices(model))
    assert ends == ["q_proj", "v_proj"]

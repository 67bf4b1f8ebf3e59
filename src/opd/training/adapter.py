"""Students of which an adapter is trained and nothing else: LoRA (Hu et al. 2021, 2106.09685),
through PEFT.

A matrix W [out, in] of the student stays as it is, and W + alpha / r x B A is computed with: B
[out, r], which begins as 0, and A [r, in] are trained. What a run makes are these sums, a model
like any other, with the adapter in a folder beside them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from opd.core import tables
from opd.core.errors import UserError
from opd.core.text import suggestion

WHERE = "adapter.lora.target_modules"


def adapted(model: PreTrainedModel, cfg: Mapping[str, Any]) -> Any:
    """What is trained of a model: all of it, or the adapter that the settings name, whose first
    weights follow from the seed. Raises ``UserError`` for modules that cannot have one."""
    if "adapter" not in cfg:
        return model
    lora = cfg["adapter"]["lora"]
    targets = lora["target_modules"]
    if isinstance(targets, list):
        _require_layers(model, targets)
    set_seed(cfg["seed"])
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=targets,
    )
    student = get_peft_model(model, config)
    # The path of a folder on this machine. PEFT would also compare its vocabulary with that of the
    # student, and keep embeddings that were cut to those of the teacher in every checkpoint.
    student.peft_config["default"].base_model_name_or_path = ""
    return student


def _require_layers(model: PreTrainedModel, targets: list[str]) -> None:
    """Raise ``UserError`` unless each of these names, as PEFT reads them, is that of linear layers,
    and of neither the embeddings nor the head: losses read the head's own weights."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    modules = dict(model.named_modules())
    linear = {
        name.rpartition(".")[2]
        for name, module in modules.items()
        if isinstance(module, torch.nn.Linear | Conv1D) and module not in ends
    }
    for target in targets:
        named = [n for n in modules if n == target or n.endswith(f".{target}")]
        if not named:
            what = f"the student has no module '{target}'"
            raise UserError(what, WHERE, suggestion(target, sorted(linear)))
        for name in named:
            if modules[name] in ends:
                what = f"'{name}' is the embeddings or the head, which have no adapter"
                raise UserError(what, WHERE, "leave it out")
            if not isinstance(modules[name], torch.nn.Linear | Conv1D):
                what = f"'{name}' is no linear layer"
                raise UserError(what, WHERE, suggestion(target, sorted(linear)))


def beneath(student: Any) -> Any:
    """The model that is trained, or that has the adapter."""
    return student.get_base_model() if isinstance(student, PeftModel) else student


@torch.no_grad()
def merged(student: Any, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of what is trained (its parameters, or its state, by name) as those of one model: the
    adapter's product is added to each matrix that has one, names are those of the model without
    adapter, and what is sharded comes whole. No weight is changed in place: one that a product is
    added to and taken off again is another one."""
    has_adapter = isinstance(student, PeftModel)
    for name, weight in weights.items():
        if has_adapter and student.prefix in name:
            continue
        weight = _whole(weight)
        layer_name, is_adapted, _ = name.partition(".base_layer.weight")
        if is_adapted:
            layer = student.get_submodule(layer_name)
            a, b = (_whole(weights[f"{layer_name}.lora_{part}.default.weight"]) for part in "AB")
            with torch.autocast(weight.device.type, enabled=False):
                product = layer.scaling["default"] * (b @ a)
            weight = weight + (product.T if layer.fan_in_fan_out else product)
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight


def _whole(weight: Any) -> Tensor:
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return whole


def serve_merged(generation: Any) -> None:
    """Have TRL's ``VLLMGeneration`` send the engine the merged weights, one after the other. Its
    own way adds the adapter to the weights in place and takes it off again."""
    student = generation.model
    if isinstance(student, PeftModel):
        generation._iter_named_params = lambda: merged(student, dict(student.named_parameters()))


def save(student: PeftModel, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter, whose weights are in the ``state`` of the student, as PEFT reads it."""
    folder.mkdir(parents=True)
    weights = get_peft_model_state_dict(student, dict(state))
    save_file(weights, folder / "adapter_model.safetensors")
    # PEFT would write what is a set in any order.
    config = student.peft_config["default"].to_dict().items()
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in config}
    tables.write_json(folder / "adapter_config.json", ordered)

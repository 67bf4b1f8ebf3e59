"""Bytes of a training step at the real sizes of models, beside what ``opd plan`` reckons: torch's
tracker of live tensors, on fake ones; on a GPU what is allocated.

See README.md beside this file.
"""

import argparse
import contextlib
import sys
import types
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from common import table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from trl.models.utils import _ForwardRedirection

from opd.losses import fused, head
from opd.plan import memory
from opd.plan.shape import from_config
from opd.training import adapter, objective
from opd.training.distill import Trainer
from opd.training.teachers import Teachers

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[2] / "config" / "calibration.yaml"
BASE = {
    "prompts_per_step": 1,
    "rollouts_per_prompt": 1,
    "max_prompt_tokens": 1024,
    "max_new_tokens": 7168,
    "micro_batch": 1,
    "precision": "bfloat16",
    "gradient_checkpointing": True,
    "loss": {"preset": "rethinking_code", "k": 16},
}
R1, R1_7B = (f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}" for size in ("1.5B", "7B"))
SMALL = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", {"max_new_tokens": 3072})
LORA = {"adapter": {"lora": {"r": 32, "alpha": 64, "dropout": 0.0, "target_modules": "all-linear"}}}
SHARDED = {"processes": 8, "execution": {"accelerate": "fsdp2.yaml"}, "micro_batch": 4}
# Student, teacher, what differs from BASE.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    SMALL,
    (*SMALL[:2], {**SMALL[2], "micro_batch": 4}),
    (*SMALL[:2], {**SMALL[2], "gradient_checkpointing": False}),
    (*SMALL[:2], {**SMALL[2], "precision": "float32"}),
    (*SMALL[:2], {**SMALL[2], "loss": {"preset": "full"}}),
    (*SMALL[:2], {**SMALL[2], **LORA}),
    (R1, R1, {}),
    (R1, R1, {"max_new_tokens": 15360, **SHARDED}),
    (R1, R1_7B, SHARDED),
    ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-4B", SHARDED),
    (R1_7B, R1_7B, SHARDED),
]


class Allocated:
    """The most bytes that CUDA's allocator has handed out since ``take``."""

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: Any) -> None: ...

    def track_external(self, *_: Any) -> None: ...

    def take(self) -> float:
        peak = float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return peak


class AllCount(TorchDispatchMode):
    """What fake tensors cannot know: every position counts, and no two logits are equal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops = torch.ops.aten
        if func is ops.index.Tensor and args[1][-1].dtype is torch.bool:
            values, (*before, mask) = args
            return values.flatten(len(before), len(before) + mask.ndim - 1).clone()
        if func is ops._local_scalar_dense.default:
            return args[0].dtype is not torch.bool
        return func(*args, **(kwargs or {}))


class Peak(MemTracker):
    """The most bytes since ``take``; without torch's statistics of each module, which are slow."""

    def take(self) -> float:
        peak = float(self.get_tracker_snapshot("peak")[CPU]["Total"])
        self._peak_mem.clear()
        self._peak_mem_snap.clear()
        self._update_peak_stats(None)
        return peak

    def _update_peak_stats(self, _: Any) -> None:
        for device, now in self._curr_mem_snap.items():
            if now["Total"] > self._peak_mem.get(device, 0):
                self._peak_mem[device] = now["Total"]
                self._peak_mem_snap[device] = deepcopy(now)

    def _pre_fw_hook(self, *_: Any) -> None: ...
    def _post_fw_hook(self, *_: Any) -> None: ...
    def _pre_bw_hook(self, *_: Any) -> None: ...
    def _post_bw_hook(self, *_: Any) -> None: ...


@contextlib.contextmanager
def products_as_on_a_gpu() -> Iterator[None]:
    """On a GPU products of bfloat16 come out in float32; a CPU copies the factors to float32."""
    own = head.matmul, fused.matmul, fused.add_matmul
    head.matmul = fused.matmul = lambda a, b: a.new_empty(len(a), b.shape[1], dtype=torch.float32)
    fused.add_matmul = lambda total, a, b: None
    try:
        yield
    finally:
        head.matmul, fused.matmul, fused.add_matmul = own


def shard(model: Any, mesh: Any) -> None:
    """As accelerate does with config/accelerate/fsdp2.yaml and ``opd.training.common``."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def trainer(cfg: dict[str, Any], student: Any, teacher: Any, device: str) -> Trainer:
    """The project's trainer, with no more of it than its loss takes."""
    made = Trainer.__new__(Trainer)
    narrow = cfg["precision"] == "bfloat16"
    accelerator = types.SimpleNamespace(
        is_main_process=False,
        autocast=lambda: torch.autocast(device, torch.bfloat16, enabled=narrow),
        unwrap_model=lambda model: model,
    )
    sum_of = objective.made({"temperature": 1.0, "loss": cfg["loss"]})
    readings = [term.reading for term in sum_of]
    made.__dict__.update(
        accelerator=accelerator,
        sum_of=sum_of,
        teachers=Teachers({"teacher": teacher}, readings, made._of_model, accelerator),
        model=student,
        update="frozen",
        temperature=1.0,
        bins=-(-cfg["max_new_tokens"] // 512),
        tallies={},
        model_kwarg_keys={"logits_to_keep"},
        eos_token_ids=[1],
        cfg={"metrics_every": 1, "metrics_k": 16, "position_bin": 512, "aggregation": "token_mean"},
        state=types.SimpleNamespace(global_step=0),
        args=types.SimpleNamespace(gradient_accumulation_steps=2, max_steps=1, report_to=[]),
        _is_vlm=False,
        _forward_redirection=_ForwardRedirection(),
    )
    return made


def modes(device: str) -> contextlib.ExitStack:
    """What a step is taken under: fake tensors, or those of a GPU."""
    stack = contextlib.ExitStack()
    if device == "cuda":
        stack.enter_context(torch.device(device))
    else:
        stack.enter_context(products_as_on_a_gpu())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(AllCount())
        # PEFT moves its layers to where the others are, which fake ones cannot be.
        stack.enter_context(patch.object(torch.nn.Module, "to", lambda module, *_, **__: module))
    return stack


def measure(
    student: dict[str, Any], teacher: dict[str, Any], cfg: dict[str, Any], device: str
) -> dict[str, float]:
    """Peaks of the phases of the second step, in its second micro-batch: forward, backward, update.
    ``student`` and ``teacher`` are excerpts of config.json; ``device`` is cuda, or cpu for fake
    tensors."""
    narrow, micro = cfg["precision"] == "bfloat16", cfg["micro_batch"]
    processes = cfg.get("processes", 1)
    if processes > 1:
        if not torch.distributed.is_initialized():
            group = {"rank": 0, "world_size": processes, "store": FakeStore()}
            torch.distributed.init_process_group("fake", **group)
        mesh = init_device_mesh("cpu", (processes,))

    def build(excerpt: dict[str, Any], dtype: torch.dtype) -> Any:
        config = AutoConfig.for_model(**excerpt)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)

    peak: Any = Allocated() if device == "cuda" else Peak()
    peaks = {}
    with modes(device):
        model = adapter.adapted(build(student, torch.float32), {"seed": 0, **cfg}).train()
        frozen = build(teacher, torch.bfloat16 if narrow else torch.float32).eval()
        if cfg["gradient_checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if processes > 1:
            shard(model, mesh)
        made = trainer(cfg, model, frozen, device)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=True)
        inputs = {
            f"{part}_{kind}": torch.ones(micro, cfg[f"max_{length}_tokens"], dtype=torch.long)
            for part, length in (("prompt", "prompt"), ("completion", "new"))
            for kind in ("ids", "mask")
        }
        peak.track_external(model, frozen, optimizer)
        count = torch.tensor(1.0)
        with peak:
            for _ in range(2):
                optimizer.zero_grad()
                for _ in range(2):
                    peak.take()
                    loss, *_ = made._forward_redirection(
                        model, model, made._compute_loss, model, inputs, count
                    )
                    peaks["forward"] = peak.take()
                    loss.backward()
                    peaks["backward"] = peak.take()
                optimizer.step()
                peaks["update"] = peak.take()
    return peaks


# Phases of ``opd.plan.memory`` within each that is measured.
PHASES = {
    "forward": ("teacher", "forward"),
    "backward": ("loss", "layer", "embeddings"),
    "update": ("update",),
}


def reckoned(
    student: dict[str, Any], teacher: dict[str, Any], cfg: dict[str, Any]
) -> dict[str, float]:
    """The same by ``opd.plan.memory``, without what it assumes of CUDA."""
    steps = {**cfg, "prompts_per_step": cfg["micro_batch"] * cfg.get("processes", 1)}
    shapes = from_config(student), from_config(teacher)
    phases = memory.phases("distill", steps, shapes[0], {"teacher": shapes[1]}, memory=80e9)
    return {
        name: max(memory.total(phases[p]) for p in parts if p in phases) - memory.CONTEXT
        for name, parts in PHASES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", type=int, help="all if not given")
    parser.add_argument("--cuda", action="store_true", help="allocate it; cases of one GPU alone")
    args = parser.parse_args()
    device = "cuda" if args.cuda else "cpu"
    chosen = args.cases or range(len(CASES))
    shapes, rows = yaml.safe_load(SHIPPED.read_text())["shapes"], []
    for student, teacher, more in (CASES[i] for i in chosen):
        cfg = {**BASE, **more}
        tracked = measure(shapes[student], shapes[teacher], cfg, device)
        expected = reckoned(shapes[student], shapes[teacher], cfg)
        pair = f"{student.split('/')[1]} ← {teacher.split('/')[1]}"
        cells = [f"{tracked[n] / 1e9:.1f} / {expected[n] / 1e9:.1f}" for n in PHASES]
        most = [max(values.values()) for values in (tracked, expected)]
        rows.append([pair, str(more), *cells, f"{most[1] / most[0]:.2f}"])
        print(*rows[-1], sep=" | ", file=sys.stderr)
    print(table(("student ← teacher", "settings", *PHASES, "reckoned / tracked"), rows))


if __name__ == "__main__":
    main()

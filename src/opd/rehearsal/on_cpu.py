"""What a rehearsal does otherwise, as a CPU cannot do it: the one place that replaces anything.

Stages of a rehearsal alone import this. What is replaced is said in the job's log, in lines that
begin with ``rehearsal:``.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from opd.stages.registry import STAGES

SAID = "rehearsal: "  # how a log says what was replaced
CACHE_BYTES = 1 << 27  # of vLLM's keys and values


def prepare(stage: str) -> None:
    """Have a stage of this process run as a CPU can."""
    module_name, _, function = STAGES[stage].run.partition(":")
    module = importlib.import_module(module_name)
    run: Callable[..., Any] = getattr(module, function)

    def rehearsed(cfg: Mapping[str, Any], *given: Any) -> Any:
        possible = _possible(cfg)
        if STAGES[stage].resumes:
            from opd.training import launch

            launch.WORKER = "opd.rehearsal.worker"
            if not launch.needed(possible):
                train_here(possible)
        return run(possible, *given)

    setattr(module, function, rehearsed)


def _possible(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stage without what this machine cannot do."""
    possible = dict(cfg)
    execution = dict(cfg.get("execution", {}))
    if importlib.util.find_spec("vllm") is None:
        if cfg.get("backend") == "vllm":
            possible["backend"] = "transformers"
            _say("transformers samples in place of vLLM, which is not installed here")
        if "vllm" in cfg:
            possible.pop("vllm")
            execution.pop("vllm", None)
            _say("the trainer samples rollouts in place of vLLM, which is not installed here")
    elif execution.get("vllm", {}).get("enable_sleep_mode"):
        execution["vllm"] = {**execution["vllm"], "enable_sleep_mode": False}
        _say("vLLM does not sleep between rollouts, which a CPU cannot")
    if possible.get("attention", "sdpa") not in ("eager", "sdpa"):
        possible.pop("attention")
        _say(f"attention is sdpa in place of {cfg['attention']}, which a CPU cannot train with")
    if possible.get("vllm", {}).get("mode") == "server":
        # How many devices a server has is its own affair.
        possible["vllm"] = {**possible["vllm"], "mode": "colocate", "tensor_parallel_size": 1}
        execution["vllm"] = {
            key: value
            for key, value in execution.get("vllm", {}).items()
            if not key.startswith(("server_", "group_"))
        }
        _say("vLLM samples in the trainer's process: a server takes weights through NCCL alone")
    if "accelerate" in execution and cfg.get("processes", 1) == 1:
        execution.pop("accelerate")
        _say("one process trains, without sharding")
    return possible | ({"execution": execution} if "execution" in cfg else {})


def train_here(cfg: Mapping[str, Any]) -> None:
    """Have this process train with these settings as a CPU can."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _shard()
    if "vllm" in cfg:
        _colocate()


def _shard() -> None:
    """accelerate shards on several GPUs only; torch does on CPUs, too, through gloo."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    original = PartialState.__init__

    def init(self: Any, *given: Any, **named: Any) -> None:
        original(self, *given, **named)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init
    _say("accelerate is told that processes on the CPU are GPUs, so that it shards through gloo")


def _colocate() -> None:
    """vLLM's build for CPUs packs weights as it loads them, and so cannot take new ones."""
    import torch
    import trl.generation.vllm_generation as generation
    import vllm.model_executor.layers.utils as layers

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain
    engine = generation.LLM

    def small(**named: Any) -> Any:
        return engine(**named, enforce_eager=True, kv_cache_memory_bytes=CACHE_BYTES)

    generation.LLM = small
    _say("vLLM keeps weights as they are loaded, runs without graphs and with a small cache")
    from opd.training import distill, grpo

    for trainer in (distill.Trainer, grpo.Trainer):
        _compare(trainer)


def _compare(trainer: Any) -> None:
    """Have a trainer look, whenever it has sampled, whether vLLM sampled from its weights."""
    from opd.training import adapter

    sample = trainer._generate_single_turn

    def compared(self: Any, *given: Any, **named: Any) -> Any:
        sampled = sample(self, *given, **named)
        worker = self.vllm_generation.llm.llm_engine.model_executor.driver_worker
        served = worker.model_runner.model
        student = self.accelerator.unwrap_model(self.model)
        for name, weights in adapter.merged(student, dict(student.named_parameters())):
            if name.endswith(WHOLE):
                theirs = served.get_parameter(name)[: len(weights)]
                if not (theirs.float() == weights.to(theirs.dtype).float()).all():
                    raise AssertionError(f"vLLM has other weights than the trainer: {name}")
        return sampled

    trainer._generate_single_turn = compared


# What vLLM keeps as transformers does; the others it has joined.
WHOLE = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "norm.weight")


def _say(text: str) -> None:
    print(f"{SAID}{text}", file=sys.stderr, flush=True)

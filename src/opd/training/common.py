"""What the three training stages share: settings, checks of their input, loading and saving."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import PeftModel
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    set_seed,
)

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations, privileged
from opd.losses.schemas import METRICS
from opd.models.chat import require_options
from opd.models.checkpoints import read_config, require_room
from opd.models.live_rows import live_rows
from opd.models.prompts import read_prompts
from opd.training import adapter, batches, trackers
from opd.training.record import Record
from opd.training.resume import Keep, resumable

Chat = list[conversations.Turn]


def prepare(cfg: Mapping[str, Any]) -> None:
    """Set the thread count and every random state from the stage's settings, and silence the
    libraries' own bars: a stage has one, for its steps."""
    if torch.cuda.device_count() > 1 and cfg.get("processes", 1) == 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process",
            "CUDA_VISIBLE_DEVICES",
            "name one of them, or train on several with training.processes",
        )
    if tracked := cfg.get("execution", {}).get("report_to"):
        trackers.require(tracked["tracker"])
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(cfg.get("threads", 1))
    set_seed(cfg["seed"])


def arguments(cfg: Mapping[str, Any], stage: str, scratch: Path) -> dict[str, Any]:
    """The arguments that all of TRL's trainers take. Checkpoints go to ``scratch``."""
    execution = cfg.get("execution", {})
    micro, times = batches.dealt(batches.sequences(stage, cfg), cfg)
    schedule, warmup = cfg.get("schedule", "constant"), cfg.get("warmup", 0.0)
    return {
        "output_dir": str(scratch),
        "max_steps": cfg["steps"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": times,
        "learning_rate": cfg["lr"],
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        "warmup_steps": round(warmup * cfg["steps"]),
        "weight_decay": cfg.get("weight_decay", 0.01),
        "adam_beta2": cfg.get("adam_beta2", 0.999),
        "max_grad_norm": cfg.get("max_grad_norm", 1.0),
        "optim": "adamw_torch",
        "seed": cfg["seed"],
        "bf16": cfg.get("precision") == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": cfg.get("gradient_checkpointing", False),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": execution.get("checkpoint_every", cfg["steps"]),
        # The one before stays until the new one is complete.
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
    }


def rollout_arguments(cfg: Mapping[str, Any], stage: str, scratch: Path) -> dict[str, Any]:
    """The arguments of TRL's trainers that sample: ``arguments``, and how they sample.

    With ``vllm`` they sample through vLLM: ``vllm`` and execution.vllm, as {mode: colocate,
    gpu_memory_utilization: 0.3, ...} or {mode: server, server_host: ..., server_port: ...}, have
    TRL's names without their ``vllm_``.
    """
    vllm = {**cfg.get("vllm", {}), **cfg.get("execution", {}).get("vllm", {})}
    return {
        **arguments(cfg, stage, scratch),
        "use_vllm": "vllm" in cfg,
        **{f"vllm_{key}": value for key, value in vllm.items()},
        "max_completion_length": cfg["max_new_tokens"],
        "temperature": cfg["temperature"],
        "top_p": cfg.get("top_p", 1.0),
        "shuffle_dataset": False,
        "chat_template_kwargs": cfg.get("chat_template_kwargs") or {},
    }


class OnPolicy:
    """What TRL's trainers that sample are mixed with: rollouts are sampled without dropout, and in
    the type that is computed in, also where a model with an adapter is sampled from past the
    forward that accelerate has put autocast into."""

    model: Any
    accelerator: Any
    eos_token_ids: Any

    def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast(), live_rows(model, self.eos_token_ids):
            sampled = super()._generate_single_turn(*given, **named)  # type: ignore[misc]
        self.model.train()
        return sampled


def as_asked(
    chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, cfg: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of conversations, ready for the response. Raises ``UserError`` for an option that
    the chat template does not read, and as ``opd.data.conversations.encode`` does."""
    options = cfg.get("chat_template_kwargs") or {}
    require_options(tokenizer, options)
    return conversations.encode(tokenizer, chats, options)


def load_prompts(
    cfg: Mapping[str, Any],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    readers: Sequence[Path],
    message: str = privileged.PLAIN,
) -> tuple[list[Chat], list[dict[str, Any]]]:
    """The prompts of prompts.parquet, each put into ``message`` (see ``opd.data.privileged``), as
    conversations with the turns before them, and their rows.

    Raises ``UserError`` for an empty table, a row without a field of the message, a prompt of more
    than max_prompt_tokens tokens (chat template included), as ``as_asked`` does, for too few to
    fill a step, and where the longest prompt and response are more than one of the models
    ``readers`` can read.
    """
    file, rows = folder / "prompts.parquet", read_prompts(folder)
    chats = [conversations.chat(row, privileged.filled(message, row)) for row in rows]
    ids = as_asked(chats, tokenizer, cfg)
    limit = cfg["max_prompt_tokens"]
    for i, (row, tokens) in enumerate(zip(rows, ids, strict=True)):
        if len(tokens) > limit:
            raise UserError(
                f"the prompt has {len(tokens)} tokens, max_prompt_tokens is {limit}",
                f"{file}: row {i} ({row['id']})",
                "raise max_prompt_tokens, or train on a set without such rows (prompts: fit)",
            )
    for model in readers:
        longest = max(map(len, ids)) + cfg["max_new_tokens"]
        require_room(read_config(model), longest, "max_new_tokens")
    if len(rows) < cfg["prompts_per_step"]:
        raise UserError(
            f"{len(rows)} prompts cannot fill a step of {cfg['prompts_per_step']}",
            str(file),
            "lower prompts_per_step or make a larger prompt set",
        )
    return chats, rows


def _add_up_in_float32(trainer: Trainer) -> None:
    """Have gradients of a sharded model computed in bfloat16 added up in float32, over processes
    and over micro-batches, as those of a whole copy are. accelerate would round them before."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and trainer.args.bf16:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            # Inputs are token ids, and the number of tokens, which is not to be rounded.
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        # Else gradients of a step's micro-batches are kept whole on every device until the last.
        trainer.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True


def train(
    trainer: Trainer,
    record: Record,
    cfg: Mapping[str, Any],
    source: Path,
    out: Path,
    scratch: Path,
    finish: Callable[[], None] = lambda: None,
    updates: int = 1,
) -> dict[str, Any]:
    """Train as ``resumable`` does, call ``finish`` (in every process), and save model, tokenizer
    (as it is in ``source``) and metrics.parquet to ``out``. Model and tokenizer after each of
    execution.keep_steps, a step being ``updates`` updates, go to kept/STEP in ``scratch``. A model
    of which an adapter was trained is saved merged, with the adapter in the folder ``adapter``.

    Returns the first and last value of every metric. Raises ``UserError`` for a step to keep that
    the run does not have.
    """
    steps = trainer.args.max_steps // updates
    execution = cfg.get("execution", {})
    keep = execution.get("keep_steps", [])
    if max(keep, default=0) > steps:
        raise UserError(
            f"step {max(keep)} is beyond the run's {steps} steps", "keep_steps", "lower it"
        )
    folders = {step * updates: scratch / "kept" / str(step) for step in keep}
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(record)
    # Trainer changes it on the way, but a trained model is to generate as its student does.
    generation = copy.deepcopy(trainer.model.generation_config)

    def save(folder: Path) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not trainer.accelerator.is_main_process:
            return
        if isinstance(model, PeftModel):
            adapter.save(model, state, folder / "adapter")
            # One after the other, so that a GPU never holds two copies.
            state = {name: weight.cpu() for name, weight in adapter.merged(model, state)}
            model = model.get_base_model()
        # Gathered from shards, weights that are tied no longer share memory: once is enough.
        for name in getattr(model, "all_tied_weights_keys", None) or {}:
            state.pop(name, None)
        trained, model.generation_config = model.generation_config, generation
        model.save_pretrained(folder, state_dict=state)
        model.generation_config = trained
        # A tokenizer is saved with whether it came from local files alone; left to itself that
        # depends on the environment, and the same stage writes other bytes.
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        tokenizer.save_pretrained(folder)

    if getattr(trainer, "use_vllm", False):
        adapter.serve_merged(trainer.vllm_generation)
    if tracked := execution.get("report_to"):
        place = Path(tracked["folder"])
        record.track = partial(trackers.begin, tracked["tracker"], place, scratch.name)
    trainer.add_callback(Keep(folders, save))
    _add_up_in_float32(trainer)
    minutes = execution.get("checkpoint_minutes", math.inf)
    try:
        resumable(trainer, record, scratch, folders, minutes)
        finish()
    finally:
        record.close()
    save(out)
    if trainer.accelerator.is_main_process:
        tables.write(out / "metrics.parquet", record.rows, METRICS)
    courses = record.courses()
    numbers: dict[str, Any] = {
        "first": {name: course[0] for name, course in courses.items()},
        "last": {name: course[-1] for name, course in courses.items()},
    }
    return numbers | ({"collapse": record.seen} if record.seen else {})

"""What the three training stages share: settings, checks of their input, records, saving."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from opd import tables
from opd.errors import Bad

Chat = list[dict[str, str]]


def prepare(cfg: Mapping[str, Any]) -> None:
    """Set the thread count and every random state from the stage's settings.

    Silences the libraries' own bars: a stage has one, for its steps.
    """
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(cfg.get("threads", 1))
    set_seed(cfg["seed"])


def load_model(path: Path) -> PreTrainedModel:
    """A causal language model in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.chat_template is None:
        raise Bad("the tokenizer has no chat template", str(path), "use a model that has one")
    return tokenizer


def arguments(cfg: Mapping[str, Any], sequences: int, scratch: str) -> dict[str, Any]:
    """Settings common to TRL's trainers.

    ``sequences`` is the number of sequences in one optimiser step; ``micro_batch`` of them go
    through the model at a time. Nothing is reported, saved or written but to ``scratch``.
    """
    micro = cfg.get("micro_batch") or sequences
    if sequences % micro:
        raise Bad(
            f"{micro} does not divide the {sequences} sequences of a step",
            "micro_batch",
            "use a divisor",
        )
    schedule, warmup = cfg.get("schedule", "constant"), cfg.get("warmup", 0.0)
    return {
        "output_dir": scratch,
        "max_steps": cfg["steps"],
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": sequences // micro,
        "learning_rate": cfg["lr"],
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        "warmup_steps": round(warmup * cfg["steps"]),
        "weight_decay": cfg.get("weight_decay", 0.01),
        "max_grad_norm": cfg.get("max_grad_norm", 1.0),
        "optim": "adamw_torch",
        "seed": cfg["seed"],
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": cfg.get("gradient_checkpointing", False),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def chats(
    path: Path, tokenizer: PreTrainedTokenizerBase, limit: int, template_kwargs: Mapping[str, Any]
) -> tuple[list[Chat], list[dict[str, Any]]]:
    """The prompts of prompts.parquet in ``path`` as conversations, with their rows.

    Raises ``Bad`` for an empty table and for a prompt of more than ``limit`` tokens (chat template
    included), naming its row.
    """
    file = path / "prompts.parquet"
    rows = tables.read(file, tables.PROMPTS).to_pylist()
    if not rows:
        raise Bad("there is no prompt in it", str(file), "loosen the filters that made it")
    conversations = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    ids = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True, **template_kwargs
    )["input_ids"]
    for i, tokens in enumerate(ids):
        if len(tokens) > limit:
            raise Bad(
                f"the prompt has {len(tokens)} tokens, max_prompt_tokens is {limit}",
                f"{file}: row {i} ({rows[i]['id']})",
                "raise max_prompt_tokens or drop the row",
            )
    return conversations, rows


def require_prompts(found: int, needed: int, path: Path) -> None:
    """Raise ``Bad`` where a prompt set cannot fill one step."""
    if found < needed:
        raise Bad(
            f"{found} prompts cannot fill a step of {needed}",
            str(path / "prompts.parquet"),
            "lower prompts_per_step or make a larger prompt set",
        )


def require_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    """Raise ``Bad`` naming the lowest token id on which two tokenizers differ."""
    ours = {i: token for token, i in student.get_vocab().items()}
    theirs = {i: token for token, i in teacher.get_vocab().items()}
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            raise Bad(
                f"student and teacher have different tokenizers: token {i} is {ours.get(i)!r} for "
                f"the student and {theirs.get(i)!r} for the teacher",
                "teacher",
                "use a teacher that shares the student's tokenizer",
            )


class Record(TrainerCallback):
    """Keeps what a trainer logs as rows of METRICS, draws the bar and stops at a loss that is no
    number.

    ``names`` maps the trainer's names of what is kept to ours.
    """

    def __init__(self, title: str, names: Mapping[str, str]) -> None:
        self.title, self.names = title, {"loss": "loss", "grad_norm": "grad_norm", **names}
        self.rows: list[dict[str, Any]] = []
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = tqdm(total=args.max_steps, desc=self.title, file=sys.stderr, mininterval=1.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        step = int(state.global_step)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs[name]):
                raise Bad(
                    f"{name} is {logs[name]} at step {step}",
                    "lr",
                    f"lower the learning rate (it is {args.learning_rate})",
                )
        self.rows += [
            {"step": step, "name": ours, "value": float(logs[theirs])}
            for theirs, ours in self.names.items()
            if logs.get(theirs) is not None
        ]
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update(step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


def train(trainer: Trainer, record: Record, source: Path, out: Path) -> dict[str, Any]:
    """Train, then save model, tokenizer (as it is in ``source``) and metrics.parquet to ``out``.

    Returns first and last values of everything recorded.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(record)
    try:
        trainer.train()
    finally:
        if record.bar is not None:
            record.bar.close()
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    tables.write(out / "metrics.parquet", record.rows, tables.METRICS)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for row in record.rows:
        first.setdefault(row["name"], row["value"])
        last[row["name"]] = row["value"]
    return {"first": first, "last": last}

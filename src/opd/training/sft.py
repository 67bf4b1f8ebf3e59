"""Supervised fine-tuning on prompt and response pairs (TRL's SFTTrainer, loss on responses)."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from opd import tables
from opd.errors import Bad
from opd.training import common, launch
from opd.training.resume import Record


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``sft``: inputs student and data (pairs).

    cfg: steps, batch_size, lr, schedule, warmup (share of the steps), max_tokens, seed, threads,
    chat_template_kwargs; optional micro_batch. Pairs are shuffled by the seed every epoch. Raises
    ``Bad`` for an empty table, for a pair longer than max_tokens and for a loss that is no number.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    common.prepare(cfg)
    file = inputs["data"] / "pairs.parquet"
    pairs = tables.read(file, tables.PAIRS).to_pylist()
    if not pairs:
        raise Bad("there is no pair in it", str(file), "loosen the filters that made it")
    tokenizer = common.load_tokenizer(inputs["student"])
    template_kwargs = cfg.get("chat_template_kwargs") or {}
    examples = []
    prompts = [[{"role": "user", "content": pair["prompt"]}] for pair in pairs]
    wholes = [
        [*prompt, {"role": "assistant", "content": pair["response"]}]
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]
    prompt_ids = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_dict=True, **template_kwargs
    )["input_ids"]
    whole_ids = tokenizer.apply_chat_template(wholes, return_dict=True, **template_kwargs)[
        "input_ids"
    ]
    for i, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        where = f"{file}: row {i} ({pairs[i]['id']})"
        if whole[: len(prompt)] != prompt:
            raise Bad(
                "the chat template renders the prompt differently once it is answered",
                where,
                "use a chat template (or chat_template_kwargs) that keeps the prompt",
            )
        if len(whole) > cfg["max_tokens"]:
            raise Bad(
                f"prompt and response have {len(whole)} tokens, max_tokens is {cfg['max_tokens']}",
                where,
                "raise max_tokens or filter the pairs",
            )
        answered = len(whole) - len(prompt)
        examples.append({"input_ids": whole, "completion_mask": [0] * len(prompt) + [1] * answered})
    arguments = common.arguments(cfg, cfg["batch_size"], scratch)
    trainer = SFTTrainer(
        model=common.load_model(inputs["student"]),
        args=SFTConfig(
            **arguments,
            max_length=None,
            completion_only_loss=True,
            loss_type="nll",
            dataloader_drop_last=True,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    record = Record("sft", {})
    return common.train(trainer, record, inputs["student"], out, scratch)

"""Supervised fine-tuning on prompt and response pairs (TRL's SFTTrainer, loss on responses)."""

import importlib.util
import math
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations
from opd.data.privileged import EMPTY_THINK
from opd.data.schemas import SFT_PAIRS
from opd.models.chat import turn_end
from opd.models.checkpoints import (
    load_model,
    load_tokenizer,
    read_config,
    require_room,
    stop_ids,
)
from opd.training import adapter, common, launch
from opd.training.padding import require_boundaries
from opd.training.record import Record

NLL_TRACES = 256
IGNORED = -100
Pair = tuple[list[int], list[int]]  # token ids of prompt and response
Row = dict[str, list[int]]  # input_ids and labels


def as_rendered(
    pairs: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    cfg: dict[str, Any],
    file: Path,
) -> list[Pair]:
    """Pairs as the chat template renders them: the response is all that it adds to the prompt.

    Raises ``UserError`` where the rendered prompt is not the beginning of prompt and response.
    """
    chats = [conversations.chat(pair) for pair in pairs]
    prompts = common.as_asked(chats, tokenizer, cfg)
    answered = [
        [*chat, {"role": "assistant", "content": pair["response"]}]
        for chat, pair in zip(chats, pairs, strict=True)
    ]
    kwargs = cfg.get("chat_template_kwargs") or {}
    sequences = tokenizer.apply_chat_template(answered, return_dict=True, **kwargs)["input_ids"]
    encoded_pairs = []
    for i, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        if sequence[: len(prompt)] != prompt:
            raise UserError(
                "the chat template renders the prompt differently once it is answered",
                f"{file}: row {i} ({pairs[i]['id']})",
                "use a chat template (or chat_template_kwargs) that keeps the prompt, or set "
                "empty_think",
            )
        encoded_pairs.append((prompt, sequence[len(prompt) :]))
    return encoded_pairs


def with_empty_think(
    pairs: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    cfg: dict[str, Any],
    file: Path,
) -> list[Pair]:
    """Pairs with the empty think block where empty_think wants it: at the beginning of the response
    (``response``: LLaMA-Factory's enable_thinking: True), at the end of the prompt (``prompt``: its
    False) or nowhere (``none``); see Rethinking OPD, Section C.1 and its yaml file.

    The response is its own text and what the chat template ends a turn with, encoded apart from the
    prompt as LLaMA-Factory does; one with a think tag of its own gets no block. Raises
    ``UserError`` where the chat template has put a think tag into the prompt already (but for
    ``prompt``, where an empty block may be there), and for ``prompt`` and a response that thinks.
    """
    place = cfg["empty_think"]
    kwargs = cfg.get("chat_template_kwargs") or {}

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    # What the template puts after a message is what follows a character that it does not know.
    mark = "\N{SNOWMAN}"
    chat = [{"role": "user", "content": mark}]
    opening = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False, **kwargs
    ).rpartition(mark)[2]
    answered = [*chat, {"role": "assistant", "content": mark}]
    closing = tokenizer.apply_chat_template(answered, tokenize=False, **kwargs).rpartition(mark)[2]
    has_block = opening.endswith(EMPTY_THINK)
    if "<think>" in opening and not (has_block and place == "prompt"):
        raise UserError(
            "the chat template puts a think tag into the prompt",
            f"empty_think: {place}",
            "use empty_think: prompt, or leave enable_thinking: false out of chat_template"
            if has_block
            else "leave empty_think out",
        )
    prompts = common.as_asked([conversations.chat(pair) for pair in pairs], tokenizer, cfg)
    block, encoded_pairs = encoded(EMPTY_THINK), []
    for i, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        response = encoded(pair["response"] + closing)
        thinks = "<think>" in pair["response"] or "</think>" in pair["response"]
        if thinks and place == "prompt":
            raise UserError(
                "the response has a think tag of its own",
                f"{file}: row {i} ({pair['id']})",
                "use empty_think: response, or drop the row",
            )
        if place == "prompt" and not has_block:
            prompt = prompt + block
        if place == "response" and not thinks:
            response = block + response
        encoded_pairs.append((prompt, response))
    return encoded_pairs


def within_limit(pair: Pair, limit: int, overlong: str) -> Pair | None:
    """What is trained on of a pair where ``limit`` tokens are allowed: its first tokens (``cut``;
    the same as LLaMA-Factory's cutoff_len where the prompt is the shorter half), or nothing
    (``drop``, and a prompt that leaves its response no room)."""
    prompt, response = pair
    room = limit - len(prompt)
    if len(response) <= room:
        return pair
    return (prompt, response[:room]) if overlong == "cut" and room > 0 else None


def held_out(n: int, share: float, seed: int) -> list[int]:
    """Which of n rows are not trained on, ascending: round(share n) of them, drawn by the seed."""
    return sorted(random.Random(f"{seed}/held out").sample(range(n), round(share * n)))


def labelled(pair: Pair) -> Row:
    """A pair as one sequence, with labels on the response alone."""
    prompt, response = pair
    return {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}


@torch.no_grad()
def nll_nats(trainer: SFTTrainer, rows: list[Row]) -> float:
    """Mean negative log-likelihood of the labelled tokens of rows under the model as it is, in nats
    per token. To be called in every process."""
    accelerator, model = trainer.accelerator, trainer.model_wrapped
    collate = DataCollatorForLanguageModeling(trainer.model.config.get_text_config().pad_token_id)
    size = trainer.args.per_device_train_batch_size
    training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(rows), size * accelerator.num_processes):
        start += size * accelerator.process_index
        own_rows = rows[start : start + size]
        # A process with nothing left still takes part in what sharded weights exchange.
        batch = {k: v.to(accelerator.device) for k, v in collate(own_rows or rows[:1]).items()}
        with trainer.compute_loss_context_manager():
            output = model(**batch, use_cache=False, fused_lm_head=True)
        if own_rows:
            nll, tokens = -output.log_probs.double().sum(), output.label_mask.double().sum()
            sums += torch.stack([nll, tokens])
    model.train(training)
    total_nll, total_tokens = accelerator.reduce(sums, "sum").tolist()
    return float(total_nll / total_tokens)


class Measure(TrainerCallback):
    """Adds NLL and perplexity of rows to a record: before the first step, every ``every`` steps (0
    for never), and when called."""

    def __init__(self, trainer: SFTTrainer, record: Record, rows: list[Row], every: int) -> None:
        self.trainer, self.record, self.rows, self.every = trainer, record, rows, every

    def __call__(self) -> None:
        rows = self.record.rows
        # A run that had no step left to take has no state of its own, but the record of its steps.
        step = max([int(self.trainer.state.global_step), *(row["step"] for row in rows)])
        if any(row["step"] == step and row["name"] == "nll_nats" for row in rows):
            return
        nll = nll_nats(self.trainer, self.rows)
        self.record.add(step, [("nll_nats", None, nll), ("perplexity", None, math.exp(nll))])

    # Not after a step: a checkpoint of that step may have been written before the measurement.
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0 or (self.every and state.global_step % self.every == 0):
            self()


def load(
    cfg: dict[str, Any], file: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Row], dict[str, int]]:
    """The pairs of a file as rows to train on, and how many pairs were given, dropped and cut.

    Raises ``UserError`` for an empty table, for a pair that is too long where none may be, and
    where no row is left.
    """
    pairs = tables.read(file, SFT_PAIRS).to_pylist()
    if not pairs:
        raise UserError("there is no pair in it", str(file), "loosen the filters that made it")
    encode = as_rendered if cfg.get("empty_think") is None else with_empty_think
    limit, overlong = cfg["max_tokens"], cfg.get("overlong", "error")
    rows, counts = [], {"given": len(pairs), "dropped": 0, "cut": 0}
    for i, pair in enumerate(encode(pairs, tokenizer, cfg, file)):
        remains = within_limit(pair, limit, overlong)
        if remains != pair and overlong == "error":
            raise UserError(
                f"prompt and response have {sum(map(len, pair))} tokens, max_tokens is {limit}",
                f"{file}: row {i} ({pairs[i]['id']})",
                "raise max_tokens, filter the pairs, or set overlong: drop or cut",
            )
        if remains is None:
            counts["dropped"] += 1
        else:
            rows.append(labelled(remains))
            counts["cut"] += remains != pair
    if not rows:
        raise UserError("every pair is longer than max_tokens", str(file), "raise max_tokens")
    return rows, counts


def split(
    cfg: dict[str, Any], rows: list[Row], counts: dict[str, int]
) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those to measure, whose numbers are added to ``counts``: at most
    nll_traces of the rows held out or, where none are, of those trained on.

    Raises ``UserError`` for a held-out share that leaves nothing on one side.
    """
    apart = held_out(len(rows), cfg["held_out"], cfg["seed"]) if "held_out" in cfg else []
    trained = [rows[i] for i in sorted({*range(len(rows))} - {*apart})]
    if "held_out" in cfg and not (apart and trained):
        raise UserError(
            f"a share of {cfg['held_out']} of {len(rows)} pairs leaves "
            + ("none to train on" if apart else "none held out"),
            "held_out",
            "change the share or make more pairs",
        )
    measurable = [rows[i] for i in apart] or trained
    traces = min(cfg.get("nll_traces", NLL_TRACES), len(measurable))
    drawn = random.Random(f"{cfg['seed']}/nll").sample(range(len(measurable)), traces)
    counts |= {"trained": len(trained), "held_out": len(apart), "measured": traces}
    return trained, [measurable[i] for i in sorted(drawn)]


def load_student(
    cfg: dict[str, Any], folder: Path, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model to train, which generates until what ends a turn in its chat template, too: a base
    model may end its responses with another token, and would go on after the end that it learns."""
    model = load_model(folder, attention=cfg.get("attention"))
    turn = turn_end(tokenizer, cfg.get("chat_template_kwargs") or {})
    ends = stop_ids(folder, tokenizer)
    if turn is not None and turn not in ends:
        model.generation_config.eos_token_id = sorted({*ends, turn})
    return model


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``sft``: inputs student and data (pairs).

    cfg: the settings of ``opd.recipes.models.Sft``; seed, threads, chat_template_kwargs.

    Pairs are shuffled by the seed every epoch. ``steps`` are of batch_size pairs each, what remains
    of an epoch is left out; ``epochs`` take every pair, the last step of each may be smaller. With
    packing, pairs are put into sequences of up to max_tokens (best fit, in their order by
    thousands) and batch_size counts those.

    The model is saved with the tokenizer of the student, and as one whose responses end as the
    student's do or with the end of a turn that it was trained on (``load_student``).

    Mean NLL (nats per response token, end of turn included) and perplexity, its exponential, are
    measured before and after training on the pairs that ``split`` draws for it (The Many Faces of
    OPD, Appendix A.23).

    Returns also how many pairs were given, dropped, cut, trained on, held out and measured. Raises
    ``UserError`` as ``load`` and ``split`` do, for pairs that cannot fill a step, and for a loss
    that is no number.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    common.prepare(cfg)
    if cfg.get("liger") and not torch.cuda.is_available():
        raise UserError("Liger's kernels need a GPU, none is visible", "liger", "leave it out")
    if cfg.get("liger") and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("liger-kernel is not installed", "liger", "install it, or leave it out")
    file, packing = inputs["data"] / "pairs.parquet", cfg.get("packing", False)
    tokenizer = load_tokenizer(inputs["student"])
    rows, counts = load(cfg, file, tokenizer)
    trained, measured = split(cfg, rows, counts)
    longest = max(len(row["input_ids"]) for row in [*trained, *measured])
    require_room(read_config(inputs["student"]), longest, "max_tokens")
    examples = Dataset.from_list(trained)
    if packing:
        examples = pack_dataset(examples, cfg["max_tokens"], "bfd")
        counts["packed"] = len(examples)
    if "epochs" in cfg:
        cfg = {**cfg, "steps": cfg["epochs"] * math.ceil(len(examples) / cfg["batch_size"])}
    elif len(examples) < cfg["batch_size"]:
        raise UserError(
            f"{len(examples)} {'packed sequences' if packing else 'pairs'} cannot fill a "
            f"step of {cfg['batch_size']}",
            str(file),
            "lower batch_size, or train for epochs instead of steps",
        )
    trainer = SFTTrainer(
        model=adapter.adapted(load_student(cfg, inputs["student"], tokenizer), cfg),
        args=SFTConfig(
            **common.arguments(cfg, "sft", scratch),
            max_length=cfg["max_tokens"] if packing else None,
            packing=packing,
            # The examples are encoded, labelled and packed.
            dataset_kwargs={"skip_prepare_dataset": True},
            loss_type="nll",
            dataloader_drop_last="epochs" not in cfg,
            use_liger_kernel=cfg.get("liger", False),
        ),
        train_dataset=examples,
        processing_class=tokenizer,
    )
    if packing:
        with trainer.accelerator.autocast():
            require_boundaries(trainer.model)
    record = Record("sft", {})
    measure = Measure(trainer, record, measured, cfg.get("nll_every", 0))
    trainer.add_callback(measure)
    numbers = common.train(trainer, record, cfg, inputs["student"], out, scratch, finish=measure)
    return {**numbers, "pairs": counts}

"""On-policy distillation: TRL's DistillationTrainer with our losses and measurements."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DistillationConfig, DistillationTrainer

from opd import metrics
from opd.errors import Bad
from opd.losses import LossSpec, token_loss
from opd.metrics import Mean
from opd.training import common

NAMES = (
    "overlap_ratio",
    "overlap_token_advantage",
    "overlap_token_advantage_code",
    "entropy_gap_nats",
    "entropy_gap_of_means_nats",
    "overlap_mass_student",
    "overlap_mass_teacher",
    "entropy_student_nats",
    "entropy_teacher_nats",
    "kl_nats",
    "response_tokens",
    "truncation_ratio",
)


class Trainer(DistillationTrainer):
    """TRL's rollouts and optimiser; the loss from ``opd.losses``, averaged over the tokens of a
    step; measurements from ``opd.metrics`` on the same logits."""

    def __init__(self, spec: LossSpec, metrics_k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec, self.metrics_k = spec, metrics_k
        self.means: dict[str, Mean] = {}
        self.teacher_model.eval()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if "teacher_prompt" in inputs[0]:
            encoded = self.processing_class.apply_chat_template(
                [one["teacher_prompt"] for one in inputs],
                add_generation_prompt=True,
                return_dict=True,
                padding=True,
                return_tensors="pt",
                **self.chat_template_kwargs,
            ).to(batch["prompt_ids"].device)
            batch["teacher_prompt_ids"] = encoded["input_ids"]
            batch["teacher_prompt_mask"] = encoded["attention_mask"]
        return batch

    def _logits(self, model: Any, inputs: dict[str, Tensor], prompt: str = "prompt") -> Tensor:
        """Logits [B, T, V] that predict the T response tokens after a prompt."""
        length = inputs["completion_ids"].shape[1]
        ids = torch.cat([inputs[f"{prompt}_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs[f"{prompt}_mask"], inputs["completion_mask"]], 1)
        logits = model(
            input_ids=ids, attention_mask=mask, logits_to_keep=length + 1, use_cache=False
        ).logits[:, :-1]
        return logits / self.temperature

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Tensor], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        student = self._logits(unwrapped_student, inputs)
        with torch.no_grad():
            prompt = "teacher_prompt" if "teacher_prompt_ids" in inputs else "prompt"
            teacher = self._logits(self.teacher_model, inputs, prompt)
        loss = token_loss(student, teacher, ids, mask, self.spec).sum()
        last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
        measured = metrics.state_metrics(student.detach(), teacher, mask, self.metrics_k)
        measured |= metrics.response_metrics(
            mask, last, torch.tensor(self.eos_token_ids, device=last.device)
        )
        for name, mean in measured.items():
            self.means[name] = self.means.get(name, Mean(0.0, 0.0)) + mean
        entropy = torch.tensor(measured["entropy_student_nats"].total, device=loss.device)
        return loss / num_items_in_batch, entropy, mask.sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.means:
            logs |= {name: mean.value for name, mean in self.means.items()}
            logs["entropy_gap_of_means_nats"] = metrics.entropy_gap_of_means_nats(
                self.means["entropy_student_nats"], self.means["entropy_teacher_nats"]
            )
            self.means = {}
        super().log(logs, start_time)


def _teacher_prompts(
    cfg: dict[str, Any], rows: list[dict[str, Any]], tokenizer: Any
) -> list[common.Chat]:
    """What the teacher is asked, by row. Raises ``Bad`` for one of more than max_prompt_tokens."""
    template, limit = cfg["teacher_template"], cfg["max_prompt_tokens"]
    chats = [
        [{"role": "user", "content": template.replace("{question}", row["question"])}]
        for row in rows
    ]
    ids = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        return_dict=True,
        **(cfg.get("chat_template_kwargs") or {}),
    )["input_ids"]
    for tokens, row in zip(ids, rows, strict=True):
        if len(tokens) > limit:
            raise Bad(
                f"the teacher's prompt has {len(tokens)} tokens, max_prompt_tokens is {limit}",
                f"teacher_template: prompt {row['id']}",
                "raise max_prompt_tokens or shorten the template",
            )
    return chats


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``opd``: inputs student, teacher and prompts.

    cfg: steps, prompts_per_step, rollouts_per_prompt, lr, schedule, warmup, temperature,
    max_new_tokens, max_prompt_tokens, loss {support, k}, metrics_k, max_grad_norm, seed, threads,
    chat_template_kwargs; optional micro_batch, and teacher_template: the teacher then sees the
    student's response after this prompt, not after the student's. One optimiser update per step on
    that step's rollouts; prompts in order, a last partial batch dropped, epochs repeated as steps
    ask for (Rethinking OPD, Table 2 and section 3.3). Raises ``Bad`` where the tokenizers differ, a
    prompt is too long, or the loss is no number.
    """
    common.prepare(cfg)
    spec = LossSpec(**cfg["loss"])
    tokenizer = common.load_tokenizer(inputs["student"])
    common.require_same_tokenizer(tokenizer, common.load_tokenizer(inputs["teacher"]))
    template_kwargs = cfg.get("chat_template_kwargs") or {}
    conversations, rows = common.chats(
        inputs["prompts"], tokenizer, cfg["max_prompt_tokens"], template_kwargs
    )
    common.require_prompts(len(rows), cfg["prompts_per_step"], inputs["prompts"])
    used = len(rows) - len(rows) % cfg["prompts_per_step"]
    examples: dict[str, list[common.Chat]] = {"prompt": conversations}
    if cfg.get("teacher_template"):
        examples["teacher_prompt"] = _teacher_prompts(cfg, rows, tokenizer)
    repeated = {
        name: [chat for chat in chats[:used] for _ in range(cfg["rollouts_per_prompt"])]
        for name, chats in examples.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        sequences = cfg["prompts_per_step"] * cfg["rollouts_per_prompt"]
        trainer = Trainer(
            spec,
            cfg["metrics_k"],
            model=common.load_model(inputs["student"]),
            teacher_model=common.load_model(inputs["teacher"]),
            args=DistillationConfig(
                **common.arguments(cfg, sequences, scratch),
                max_completion_length=cfg["max_new_tokens"],
                temperature=cfg["temperature"],
                shuffle_dataset=False,
                chat_template_kwargs=template_kwargs,
            ),
            train_dataset=Dataset.from_dict(repeated),
            processing_class=tokenizer,
        )
        record = common.Record("opd", {name: name for name in NAMES})
        return common.train(trainer, record, inputs["student"], out)

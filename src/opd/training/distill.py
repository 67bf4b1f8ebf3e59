"""On-policy distillation: TRL's DistillationTrainer with our losses and measurements."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DistillationConfig, DistillationTrainer

from opd import metrics
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

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [B, T, V] that predict the T response tokens."""
        length = inputs["completion_ids"].shape[1]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
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
            teacher = self._logits(self.teacher_model, inputs)
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


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``opd``: inputs student, teacher and prompts.

    cfg: steps, prompts_per_step, rollouts_per_prompt, lr, schedule, warmup, temperature,
    max_new_tokens, max_prompt_tokens, loss {support, k}, metrics_k, max_grad_norm, seed, threads,
    chat_template_kwargs; optional micro_batch. One optimiser update per step on that step's
    rollouts; prompts in order, a last partial batch dropped, epochs repeated as steps ask for
    (Rethinking OPD, Table 2 and section 3.3). Raises ``Bad`` where the tokenizers differ, a prompt
    is too long, or the loss is no number.
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
    repeated = [c for c in conversations[:used] for _ in range(cfg["rollouts_per_prompt"])]
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
            train_dataset=Dataset.from_dict({"prompt": repeated}),
            processing_class=tokenizer,
        )
        record = common.Record("opd", {name: name for name in NAMES})
        return common.train(trainer, record, inputs["student"], out)

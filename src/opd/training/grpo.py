"""Reinforcement learning with verifiable rewards (TRL's GRPOTrainer)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from opd.data import privileged
from opd.grading.graders import GRADERS
from opd.models.checkpoints import load_model, load_tokenizer
from opd.training import adapter, common, launch, order
from opd.training.padding import trimmed
from opd.training.positions import count_positions
from opd.training.record import Record
from opd.training.resume import step_of

# How the losses of tokens become that of an update -> TRL's name of it.
LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo"}

# TRL's names of what is recorded -> ours.
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "rewards/correct/mean": "correct",
    "rewards/brevity/mean": "brevity",
    "frac_reward_zero_std": "groups_without_variance",
    "completions/mean_length": "response_tokens",
    "completions/max_length": "response_tokens_max",
    "completions/clipped_ratio": "truncation_ratio",
    "entropy": "entropy_student_nats",
    "clip_ratio/region_mean": "clip_ratio",
    "clip_ratio/low_mean": "clip_ratio_low",
    "clip_ratio/high_mean": "clip_ratio_high",
    "sampling/importance_sampling_ratio/mean": "importance_weight",
    "sampling/importance_sampling_ratio/max": "importance_weight_max",
    "sampling/sampling_logp_difference/mean": "sampler_difference_nats",
}


def length_penalty(tokens: int, limit: int, weight: float = 1.0, free: int = 0) -> float:
    """What is taken off the reward of a response of ``tokens`` tokens (end of turn included):
    nothing up to ``free``, ``weight`` from ``limit`` on, in proportion between.

    With free = limit - cache and weight 1 this is DAPO's soft overlong punishment (its Eq. 13),
    with free 0 a price of weight / limit for each token.
    """
    return weight * min(1.0, max(0.0, (tokens - free) / (limit - free)))


def importance_weights(cap: float | None) -> dict[str, Any]:
    """TRL's settings for token-level importance weights min(p / q, cap): p is the sampled token's
    probability under the trained model, q the one that vLLM reported. Without a cap no weights.

    TRL applies them only where vLLM samples: transformers samples from the trained model itself, so
    that all weights would be 1.
    """
    if cap is None:
        return {"vllm_importance_sampling_correction": False}
    return {
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": cap,
    }


class Trainer(common.OnPolicy, GRPOTrainer):
    """Keeps the rollouts that further updates need in its checkpoints, and padding out of its
    micro-batches."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, trimmed(inputs))
        return loss

    def _rollouts(self, folder: Path) -> Path:
        return folder / f"rollouts-{self.accelerator.process_index}.pt"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.steps_per_generation > self.args.gradient_accumulation_steps:
            folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            torch.save(self._buffered_inputs, self._rollouts(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        rollouts = self._rollouts(Path(resume_from_checkpoint))
        if rollouts.is_file():
            self._buffered_inputs = torch.load(
                rollouts, weights_only=True, map_location=self.accelerator.device
            )
            step = step_of(Path(resume_from_checkpoint))
            self._step = step * self.args.gradient_accumulation_steps


def rewards(cfg: dict[str, Any]) -> list[Callable[..., list[float]]]:
    """TRL's reward functions: 1 for what the grader finds right, and the length penalty, if any."""
    grade = GRADERS[cfg["grader"]]

    # TRL records a reward under the name of its function.
    def correct(completions: list[common.Chat], answer: list[str], **_: Any) -> list[float]:
        return [
            float(grade(completion[0]["content"], truth)[1])
            for completion, truth in zip(completions, answer, strict=True)
        ]

    def brevity(completion_ids: list[list[int]], **_: Any) -> list[float]:
        limit = cfg["max_new_tokens"]
        return [-length_penalty(len(ids), limit, **cfg["length_penalty"]) for ids in completion_ids]

    return [correct, brevity] if cfg.get("length_penalty") else [correct]


def load(cfg: dict[str, Any], inputs: Mapping[str, Path], tokenizer: Any) -> Dataset:
    """The prompts, in order, with their answers."""
    context = (cfg.get("information") or [privileged.CONTEXTS["none"]])[0]
    readers, message = [inputs["student"]], context["message"]
    chats, rows = common.load_prompts(cfg, inputs["prompts"], tokenizer, readers, message)
    return Dataset.from_dict({"prompt": chats, "answer": [row["answer"] for row in rows]})


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``grpo``: inputs student and prompts.

    cfg: the settings of ``opd.recipes.models.Grpo``; seed, threads, chat_template_kwargs. With
    information, one context of a message (``opd.data.privileged``), the model is asked this, and
    not the prompt.

    A completion is rewarded with 1 where the grader finds the right answer, else 0, less its
    length penalty; advantages are (r - mean) / (std + 1e-4) of the group, std with n - 1; no KL
    term (Rethinking OPD, Table 1). Losses are averaged over all tokens of an update
    (``token_mean``), or over the tokens of a rollout and then over rollouts (``sequence_mean``: The
    Many Faces of OPD, its code, slime/backends/megatron_utils/cp_utils.py:67-73 at 33234e5). With
    several updates a batch, each takes another part of the rollouts, in random order, and the token
    mean is by the mean number of tokens of a part. A step is one batch of rollouts; what is
    recorded counts updates. Prompts are taken in order, a last partial batch is dropped; or, with
    ``shuffle``, as ``opd.training.order.shuffled`` says.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    common.prepare(cfg)
    reward_functions = rewards(cfg)
    tokenizer = load_tokenizer(inputs["student"])
    examples = load(cfg, inputs, tokenizer)
    batches = cfg.get("steps") or cfg["epochs"] * (len(examples) // cfg["prompts_per_step"])
    if cfg.get("shuffle"):
        taken = order.shuffled(len(examples), batches * cfg["prompts_per_step"], cfg["seed"])
        examples = examples.select(taken)
    updates = cfg.get("updates_per_batch", 1)
    arguments = common.rollout_arguments({**cfg, "steps": batches * updates}, "grpo", scratch)
    student = load_model(inputs["student"], attention=cfg.get("attention"))
    count_positions(student.base_model)
    trainer = Trainer(
        model=adapter.adapted(student, cfg),
        reward_funcs=reward_functions,
        args=GRPOConfig(
            **arguments,
            **importance_weights(cfg.get("importance_cap")),
            num_generations=cfg["group_size"],
            steps_per_generation=updates * arguments["gradient_accumulation_steps"],
            epsilon=cfg.get("clip", 0.2),
            epsilon_high=cfg.get("clip_high"),
            beta=0.0,
            loss_type=LOSS_TYPES[cfg.get("aggregation", "token_mean")],
            scale_rewards="group",
        ),
        train_dataset=examples,
        processing_class=tokenizer,
    )
    record = Record("grpo", LOGGED)
    return common.train(trainer, record, cfg, inputs["student"], out, scratch, updates=updates)

"""Reinforcement learning with verifiable rewards (TRL's GRPOTrainer)."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from opd.training import common, launch
from opd.training.resume import Record


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``grpo``: inputs student and prompts.

    cfg: steps, prompts_per_step, group_size, lr, schedule, warmup, temperature, max_new_tokens,
    max_prompt_tokens, grader, clip, seed, threads, chat_template_kwargs; optional micro_batch. A
    completion is rewarded with 1 where the grader finds the right answer, else 0; advantages are
    (r - mean) / std of the group, losses averaged over the tokens of a step, no KL term
    (Rethinking OPD, Table 1). Prompts are taken in order, a last partial batch is dropped.
    """
    if launch.needed(cfg):
        return launch.launch(__name__, cfg, inputs, out, scratch)
    from opd.grading import GRADERS

    common.prepare(cfg)
    tokenizer = common.load_tokenizer(inputs["student"])
    template_kwargs = cfg.get("chat_template_kwargs") or {}
    conversations, rows = common.chats(
        inputs["prompts"], tokenizer, cfg["max_prompt_tokens"], template_kwargs
    )
    common.require_prompts(len(rows), cfg["prompts_per_step"], inputs["prompts"])
    grade = GRADERS[cfg["grader"]]

    def reward(completions: list[common.Chat], answer: list[str], **_: Any) -> list[float]:
        return [
            float(grade(completion[0]["content"], truth)[1])
            for completion, truth in zip(completions, answer, strict=True)
        ]

    sequences = cfg["prompts_per_step"] * cfg["group_size"]
    trainer = GRPOTrainer(
        model=common.load_model(inputs["student"]),
        reward_funcs=reward,
        args=GRPOConfig(
            **common.arguments(cfg, sequences, scratch),
            **common.vllm(cfg),
            num_generations=cfg["group_size"],
            max_completion_length=cfg["max_new_tokens"],
            temperature=cfg["temperature"],
            epsilon=cfg.get("clip", 0.2),
            beta=0.0,
            loss_type="dapo",
            scale_rewards="group",
            shuffle_dataset=False,
            chat_template_kwargs=template_kwargs,
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": conversations, "answer": [row["answer"] for row in rows]}
        ),
        processing_class=tokenizer,
    )
    record = Record(
        "grpo",
        {
            "reward": "reward",
            "completions/mean_length": "response_tokens",
            "completions/clipped_ratio": "truncation_ratio",
            "entropy": "entropy_student_nats",
        },
    )
    return common.train(trainer, record, inputs["student"], out, scratch)

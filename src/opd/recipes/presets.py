"""Published settings of SFT, GRPO and OPD runs, by the names that recipes give them.

A preset holds what its source states; what it does not state keeps the recipe's default. Batch
sizes are those of one optimiser step over all devices: the sources train on eight GPUs.
"""

from typing import Any

# The cold start of Rethinking OPD, of which three descriptions differ, and the SFT student of The
# Many Faces of OPD. All but perhaps the last were trained with LLaMA-Factory, which cuts what is
# longer than max_tokens and puts an empty think block before responses that hold none: into the
# response (enable_thinking: True) or into the prompt (False). It trains without weight decay unless
# told otherwise.
SFT: dict[str, dict[str, Any]] = {
    # Its Section 5.1, Appendix C.1 and Table 3: 8 pairs on each of 8 GPUs.
    "rethinking_paper": {
        "epochs": 1,
        "batch_size": 64,
        "lr": 1e-5,
        "schedule": "cosine",
        "warmup": 0.05,
        "max_tokens": 14336,
        "overlong": "cut",
        "weight_decay": 0.0,
    },
    # Its released qwen3_base_full_sft.yaml.
    "rethinking_yaml": {
        "epochs": 2,
        "batch_size": 64,
        "lr": 1e-5,
        "schedule": "cosine",
        "warmup": 0.05,
        "max_tokens": 14336,
        "overlong": "cut",
        "weight_decay": 0.0,
        "held_out": 0.05,
        "empty_think": "response",
    },
    # The model card of Qwen3-1.7B-SFT: 16 pairs on each of 8 GPUs.
    "rethinking_card": {
        "epochs": 2,
        "batch_size": 128,
        "lr": 1e-5,
        "schedule": "cosine",
        "warmup": 0.1,
        "max_tokens": 20480,
        "overlong": "cut",
        "weight_decay": 0.0,
        "held_out": 0.01,
        "empty_think": "prompt",
    },
    # App. A.23; the batch size is that of its code.
    "many_faces": {"epochs": 2, "batch_size": 128, "lr": 1e-5, "schedule": "cosine"},
}

GRPO: dict[str, dict[str, Any]] = {
    # Rethinking OPD, Table 1 (the teacher Qwen3-4B-Base-GRPO); clip and cap from its code.
    "rethinking": {
        "epochs": 1,
        "prompts_per_step": 64,
        "group_size": 8,
        "lr": 1e-6,
        "schedule": "constant",
        "temperature": 1.0,
        "max_prompt_tokens": 1024,
        "max_new_tokens": 7168,
        "clip": 0.2,
        "importance_cap": 2.0,
    },
    # G-OPD's teacher Qwen3-4B-Non-Thinking-RL-Math.
    "g_opd": {
        "epochs": 3,
        "prompts_per_step": 128,
        "group_size": 8,
        "lr": 1e-6,
        "max_prompt_tokens": 2048,
        "max_new_tokens": 16384,
        "importance_cap": 5.0,
    },
    # The Many Faces of OPD, Table 1; its clip is not stated there.
    "many_faces": {
        "prompts_per_step": 32,
        "group_size": 8,
        "lr": 2e-6,
        "schedule": "cosine",
        "warmup": 0.1,
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 8192,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
    },
    # The same by its code: 128 rollouts a batch, 16 of them an update.
    "many_faces_code": {
        "prompts_per_step": 16,
        "group_size": 8,
        "updates_per_batch": 8,
        "lr": 1e-6,
        "schedule": "constant",
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 8192,
        "clip": 0.2,
        "clip_high": 0.28,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
    },
}

DISTILL: dict[str, dict[str, Any]] = {
    # The Many Faces of OPD, Table 1, the loss left open; how positions are averaged from its code.
    "many_faces": {
        "prompts_per_step": 64,
        "rollouts_per_prompt": 1,
        "lr": 2e-6,
        "schedule": "cosine",
        "warmup": 0.1,
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 4096,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "aggregation": "sequence_mean",
    },
}

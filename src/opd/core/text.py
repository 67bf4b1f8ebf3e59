"""Words and numbers of messages and pages."""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

# What earlier versions, TRL (transformers' names included) and verl call a key -> our keys for it,
# of which a recipe has one at most.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "pairs": ("sft_data",),
    "opd": ("distill",),
    "learning_rate": ("lr",),
    "lr_scheduler_type": ("schedule",),
    "warmup_ratio": ("warmup",),
    "lr_warmup_steps_ratio": ("warmup",),
    "grad_clip": ("max_grad_norm",),
    "max_steps": ("steps",),
    "total_training_steps": ("steps",),
    "num_train_epochs": ("epochs", "steps"),
    "total_epochs": ("epochs", "steps"),
    "batch_size": ("prompts_per_step",),
    "train_batch_size": ("prompts_per_step", "batch_size"),
    "per_device_train_batch_size": ("micro_batch",),
    "ppo_micro_batch_size_per_gpu": ("micro_batch",),
    "gradient_accumulation_steps": ("micro_batch",),
    "ppo_max_token_len_per_gpu": ("max_token_len_per_gpu",),
    "num_iterations": ("updates_per_batch",),
    "num_generations": ("rollouts_per_prompt", "group_size", "samples"),
    "max_completion_length": ("max_new_tokens",),
    "max_response_length": ("max_new_tokens",),
    "max_prompt_length": ("max_prompt_tokens",),
    "max_length": ("max_tokens", "max_new_tokens"),
    "epsilon": ("clip",),
    "clip_ratio": ("clip",),
    "epsilon_high": ("clip_high",),
    "clip_ratio_high": ("clip_high",),
    "model_name_or_path": ("student", "model"),
    "ref_model": ("teacher",),
    "teacher_model_name_or_path": ("teacher",),
    "dataset_name": ("prompts", "data"),
    "train_files": ("prompts", "data"),
    "loss_agg_mode": ("aggregation",),
    "bf16": ("precision", "dtype"),
    "save_steps": ("checkpoint_every",),
    "save_freq": ("checkpoint_every",),
    "chat_template_kwargs": ("chat_template",),
    "seed": ("seeds",),
}


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels of rows; those that several rows have with the row's place, from 1, before them."""
    counts = Counter(labels)
    return [
        f"{place}: {label}" if counts[label] > 1 else label for place, label in enumerate(labels, 1)
    ]


def suggestion(name: str, known: Iterable[str], elsewhere: str = "") -> str:
    """The name that was probably meant, or all that there are. ``elsewhere`` goes before a name
    that is only a little like it."""
    names = list(known)
    if ours := [other for other in OTHER_NAMES.get(name, ()) if other in names]:
        return f"it is called '{ours[0]}' here"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8 if elsewhere else 0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return elsewhere or f"there are {', '.join(names) or 'none'}"


def number(value: float) -> str:
    """Three significant digits, without exponents at usual sizes, with a true minus sign, which
    zero never has."""
    value += 0.0
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("-", "−")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def size(count: float) -> str:
    """Bytes in decimal units: 512 B, 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"

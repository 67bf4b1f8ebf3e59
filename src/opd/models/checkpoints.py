"""Loading models and tokenizers, and what a checkpoint says of itself; alone, so that an edit of a
loss trains no other stage again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opd.core.errors import UserError
from opd.models import chat


@contextmanager
def reading(path: Path, part: str) -> Iterator[None]:
    """Raises ``UserError`` where a part of a checkpoint cannot be read."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"no usable {part} ({error})", str(path), "make or fetch it again"
        ) from error


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model; what is trained is held in float32, whatever it computes in."""
    with reading(path, "weights"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model


def load_tokenizer(path: Path, options: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it; with chat template
    ``options``, which are held to what the template reads (``chat.require_options``)."""
    with reading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", str(path), "use a model that has one")
    if options is not None:
        chat.require_options(tokenizer, options, f"chat_template of {path}")
    return tokenizer


def stop_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """Ids that end a response: those of the generation config, and the tokenizer's eos."""
    try:
        ids = GenerationConfig.from_pretrained(model_dir).eos_token_id
    except OSError:
        ids = None
    stops = {*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id} - {None}
    if not stops:
        raise UserError(
            "no end-of-turn token is known", str(model_dir), "set the tokenizer's eos_token"
        )
    return stops


def read_config(path: Path) -> Any:
    """The settings of a checkpoint."""
    with reading(path, "settings"):
        return AutoConfig.from_pretrained(path)


def positions(config: Any) -> int | None:
    """How many tokens a model with these settings can read; None where they name no limit."""
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    stretched = rope.get("original_max_position_embeddings", 0) * rope.get("factor", 1)
    return most and int(max(most, stretched))


def require_room(config: Any, tokens: int, where: str) -> None:
    """Raise ``UserError`` where a prompt and its response have more ``tokens`` than a model with
    these settings can read."""
    most = positions(config)
    if most is not None and tokens > most:
        raise UserError(
            f"prompt and response have up to {tokens:,} tokens, but the model "
            f"{config.name_or_path} has only {most:,} positions",
            where,
            "ask for shorter responses, leave the longest prompts out, or take another model",
        )

"""Loading models and tokenizers; alone, so that an edit of a loss trains no other stage again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opd.core.errors import UserError


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


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it."""
    with reading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", str(path), "use a model that has one")
    return tokenizer

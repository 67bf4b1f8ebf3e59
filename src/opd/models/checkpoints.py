"""Loading models and tokenizers; alone, so that an edit of a loss trains no other stage again."""

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


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model; what is trained is held in float32, whatever it computes in."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"no usable weights ({error})", str(path), "make or fetch them again"
        ) from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError) as error:
        raise UserError(
            f"no usable tokenizer ({error})", str(path), "make or fetch it again"
        ) from error
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", str(path), "use a model that has one")
    return tokenizer

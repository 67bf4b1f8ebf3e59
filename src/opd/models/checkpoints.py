"""Loading models and tokenizers; alone, so that an edit of a loss trains no other stage again."""

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from opd.core.errors import UserError
from opd.core.files import parse_json

# What a chat template may take for one short question: far more than any does.
TEMPLATE_CPU_SECONDS = 5
TEMPLATE_BYTES = 512 << 20
TEMPLATE_CHARS = 1_000_000
# Settings that say how many parts a model has. More would be built one by one, for hours.
_PARTS = re.compile(r"n(um)?_.*(layer|expert|head|block)s?")
MOST_PARTS = 10_000


@contextmanager
def reading(path: Path, part: str) -> Iterator[None]:
    """Raises ``UserError`` where a part of a checkpoint cannot be read. Libraries raise errors of
    any kind on files that they do not expect; want of memory is no fault of a file."""
    try:
        _refuse_excess(path / "config.json")
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        raise UserError(
            f"no usable {part} ({_reason(error)})", str(path), "make or fetch it again"
        ) from error


def _refuse_excess(file: Path) -> None:
    settings = parse_json(file.read_text()) if file.is_file() else {}
    for part in (settings, *settings.values()):
        for name, value in part.items() if isinstance(part, dict) else ():
            if _PARTS.fullmatch(name) and isinstance(value, int) and value > MOST_PARTS:
                raise ValueError(f"{name} is {value}")


def _reason(error: BaseException) -> str:
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return shorten(f"{kind}{error}", 300, placeholder=" ...")


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model; what is trained is held in float32, whatever it computes in. Raises
    ``UserError`` unless all its weights are there and are numbers."""
    with reading(path, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{missing[0]} is not among them")
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.sum(dtype=torch.float32)):
                raise ValueError(f"{name} is not finite")
    loaded: PreTrainedModel = model
    return loaded


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it. Raises
    ``UserError`` where it has no chat template, or one that cannot be used."""
    with reading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", str(path), "use a model that has one")
    if reason := _template_trouble(tokenizer):
        remedy = "mend it, or use a model whose template can be used"
        raise UserError(f"no usable chat template ({reason})", str(path), remedy)
    return tokenizer


def _template_trouble(tokenizer: PreTrainedTokenizerBase) -> str:
    """What is wrong with a chat template, if anything: it is a program, and is tried out on one
    short question in a fork with limits of time and memory."""
    answer, child = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            reason = _tried(tokenizer)
        except MemoryError:
            reason = f"it takes more than {TEMPLATE_BYTES >> 20} MiB for a short question"
        except BaseException as error:
            reason = _reason(error)
        os.write(child, reason.encode(errors="replace"))
        os._exit(0)
    os.close(child)
    with open(answer, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        return f"it takes more than {TEMPLATE_CPU_SECONDS} s for a short question (status {code})"
    return reason


def _tried(tokenizer: PreTrainedTokenizerBase) -> str:
    in_use = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    for kind, most in (
        (resource.RLIMIT_CPU, TEMPLATE_CPU_SECONDS),
        (resource.RLIMIT_AS, in_use + TEMPLATE_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(
            kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )
    chat = [{"role": "user", "content": "1 + 1 = ?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    too_long = f"it makes {len(text):,} characters of a short question"
    return too_long if len(text) > TEMPLATE_CHARS else ""

"""Loading models and tokenizers, and what a checkpoint says of itself; alone, so that an edit of a
loss trains no other stage again."""

import os
import re
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from opd.core.errors import UserError
from opd.core.files import parse_json
from opd.models import chat

# What a chat template may take for one short question: far more than any does.
TEMPLATE_CPU_SECONDS = 5
TEMPLATE_BYTES = 512 << 20
TEMPLATE_CHARS = 1_000_000
# What tokenizers differ in: words, spaces, lines, digits, mathematics, accents.
SAMPLE = "Reason  step by step.\n\n\tIts d\u00e9j\u00e0-vu is \\boxed{12345} + 3.5x_1^2, isn't it?"
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


def load_model(
    path: Path, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> PreTrainedModel:
    """A causal language model; what is trained is held in float32, whatever it computes in.
    ``attention`` is how attention is computed, by transformers' names. Raises ``UserError`` unless
    all its weights are there and are numbers, and where attention cannot be computed so."""
    chosen = {"attn_implementation": attention} if attention else {}
    if attention:
        _require_attention(path, attention)
    with reading(path, "weights"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **chosen
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{missing[0]} is not among them")
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.sum(dtype=torch.float32)):
                raise ValueError(f"{name} is not finite")
    loaded: PreTrainedModel = model
    return loaded


def _require_attention(path: Path, attention: str) -> None:
    config = read_config(path)
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{attention} cannot be used for {path} ({_reason(error)})",
            "training.attention",
            "install what it needs, or take sdpa, flex_attention or eager",
        ) from error


def read_tokenizer(path: Path, **named: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint as its tokenizer.json has it; ``named`` is for transformers.

    transformers puts what is usual for the class that tokenizer_config.json names in the place of
    what tokenizer.json says, and knows by their names on the hub of which models not to: the
    tokenizer of R1-Distill-Llama, of the class of Llama's, would lose spaces and lines. Raises
    ``ValueError`` where it cannot be read as it is.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **named)
    file = path / "tokenizer.json"
    if not file.is_file():
        return tokenizer
    as_stored = Tokenizer.from_file(str(file))
    # Of the last call before it was saved; transformers sets both anew with each.
    as_stored.no_padding()
    as_stored.no_truncation()
    ids = as_stored.encode(SAMPLE, add_special_tokens=False).ids
    if tokenizer.encode(SAMPLE, add_special_tokens=False) != ids:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **named)
        if tokenizer.encode(SAMPLE, add_special_tokens=False) != ids:
            raise ValueError("transformers reads it otherwise than its tokenizer.json says")
    return tokenizer


def load_tokenizer(path: Path, options: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, padding on the left as generation needs it; with chat template
    ``options``, which are held to what the template reads (``chat.require_options``). Raises
    ``UserError`` where it has no chat template, or one that cannot be used."""
    with reading(path, "tokenizer"):
        tokenizer = read_tokenizer(path, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError("the tokenizer has no chat template", str(path), "use a model that has one")
    if reason := _template_trouble(tokenizer):
        remedy = "mend it, or use a model whose template can be used"
        raise UserError(f"no usable chat template ({reason})", str(path), remedy)
    if options is not None:
        chat.require_options(tokenizer, options, f"chat_template of {path}")
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


def stop_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """Ids that end a response: those of the generation config, if there is one, and the tokenizer's
    eos."""
    ids: list[Any] = []
    if (model_dir / "generation_config.json").is_file():
        with reading(model_dir, "generation_config.json"):
            named = GenerationConfig.from_pretrained(model_dir).eos_token_id
            ids = named if isinstance(named, list) else [named]
            if not all(isinstance(id, int | None) for id in ids):
                raise ValueError(f"eos_token_id is {named}")
    stops = {*ids, tokenizer.eos_token_id} - {None}
    if not stops:
        raise UserError(
            "no end-of-turn token is known", str(model_dir), "set the tokenizer's eos_token"
        )
    return stops


def read_config(path: Path) -> Any:
    """The settings of a checkpoint."""
    with reading(path, "settings"):
        return AutoConfig.from_pretrained(path)


def parameters(path: Path) -> int:
    """How many parameters a checkpoint has by its settings, tied ones once; no weights are read."""
    config = read_config(path)
    with reading(path, "settings"), torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


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

"""A student and its teacher: what they have to share (tokenizer, vocabulary, thinking mode), and
loading the two.

Apart from the training stages, whose libraries take seconds to load.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from opd.core.errors import LeftOut, UserError
from opd.losses.head import Head
from opd.models.checkpoints import load_model, load_tokenizer, reading


class ModelPair(NamedTuple):
    """A student and a teacher on ``device``, ready to read token ids below ``vocabulary``, which
    both have; ``heads`` are their output layers."""

    student: Any
    teacher: Any
    heads: tuple[Head, Head]
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    device: str

    def require_known(self, tokens: Iterable[int], where: str) -> None:
        """Raise ``UserError`` for a token that not both models have."""
        largest = max(tokens)
        if largest >= self.vocabulary:
            raise UserError(
                f"token {largest} is beyond the {self.vocabulary} that both models have",
                where,
                "sample with a model whose padding is never likely",
            )


def load_pair(cfg: Mapping[str, Any], student: Path, teacher: Path | None) -> ModelPair:
    """Load a student and its teacher; one that is the student itself (None) is loaded once.

    cfg: dtype, threads. Raises ``LeftOut`` where the teacher cannot be loaded, and where tokenizers
    or vocabularies do not fit together.
    """
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(cfg.get("threads", 1))
    dtype = getattr(torch, cfg.get("dtype", "float32"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(student)
    if teacher is not None:  # before any weights are read
        require_same_tokenizer(tokenizer, _of_teacher(load_tokenizer, teacher))
    model = teacher_model = load_model(student, dtype)
    if teacher is not None:
        teacher_model = _of_teacher(lambda path: load_model(path, dtype), teacher)
        trim_vocabularies(model, teacher_model, tokenizer)
    for loaded in (model, teacher_model):
        loaded.to(device).eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    heads = head_of(model), head_of(teacher_model)
    return ModelPair(model, teacher_model, heads, tokenizer, vocabulary, device)


def _of_teacher(load: Callable[[Path], Any], teacher: Path) -> Any:
    try:
        return load(teacher)
    except UserError as error:
        # The same words on every machine: they may become part of what a stage makes.
        raise LeftOut(
            "the teacher's weights or tokenizer cannot be used",
            str(teacher),
            "see that its weights are whole and its tokenizer has a chat template",
        ) from error


def vocabulary_rows(path: Path) -> int:
    """Rows of a checkpoint's embedding, as its settings say."""
    with reading(path, "settings"):
        config = AutoConfig.from_pretrained(path)
    return int(config.get_text_config().vocab_size)


def require_same_tokenizer(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    """Raise ``UserError`` naming the lowest token id on which two tokenizers differ."""
    student_tokens = {i: token for token, i in student.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher.get_vocab().items()}
    for i in sorted(student_tokens.keys() | teacher_tokens.keys()):
        if student_tokens.get(i) != teacher_tokens.get(i):
            raise LeftOut(
                f"student and teacher have different tokenizers: token {i} is "
                f"{student_tokens.get(i)!r} for the student and {teacher_tokens.get(i)!r} for the "
                "teacher",
                "teacher",
                "use a teacher that shares the student's tokenizer",
            )


def shared_vocabulary(student: int, teacher: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids both models have, of the rows of their embeddings.

    Models of one tokenizer may be padded differently (151,936 and 152,064 rows for the 1.5B and 7B
    R1-Distill models); the rows beyond the shorter belong to no token. Raises ``UserError`` where
    one would.
    """
    shared, needed = min(student, teacher), max(tokenizer.get_vocab().values()) + 1
    if shared < needed:
        raise LeftOut(
            f"{student} embeddings of the student and {teacher} of the teacher do not hold the "
            f"tokenizer's {needed} ids",
            "student" if student == shared else "teacher",
            "use weights that belong to this tokenizer",
        )
    return shared


def trim_vocabularies(
    student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Cut the wider of two embeddings and heads to the ids that both have; raises as
    ``shared_vocabulary`` does."""
    sizes = [m.get_input_embeddings().weight.shape[0] for m in (student, teacher)]
    shared = shared_vocabulary(sizes[0], sizes[1], tokenizer)
    for model, size in zip((student, teacher), sizes, strict=True):
        if size > shared:
            model.resize_token_embeddings(shared, mean_resizing=False)


def head_of(model: PreTrainedModel) -> Head:
    """A model's output layer with what its family does to logits (as TRL's trainer reads it)."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    scales = [getattr(config, name, None) for name in names]
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        scales.append(scaling if config.model_type == "hyperclovax" else 1 / scaling)
    scale = next((float(scale) for scale in scales if scale is not None), 1.0)
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def teacher_kwargs(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """Chat template options of the teacher: the student's, unless it has its own."""
    own = cfg.get("teacher_chat_template_kwargs")
    return (cfg.get("chat_template_kwargs") or {}) if own is None else own


def thinking(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> str:
    """Whether the chat template asks for thinking: ``on``, ``off`` or ``left to the model``."""
    chat = [{"role": "user", "content": "?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **kwargs)
    opening = text.rpartition("?")[2]
    if "</think>" in opening:
        return "off"
    return "on" if "<think>" in opening else "left to the model"


def require_same_thinking(
    cfg: Mapping[str, Any], student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    """Raise ``UserError`` where one model is asked to think and the other is not: the teacher would
    judge every first token by the other mode's habits, and the student comes to write think tags
    (Many Faces, A15). ``thinking_may_differ`` lets them all the same."""
    for_student = thinking(student, cfg.get("chat_template_kwargs") or {})
    for_teacher = thinking(teacher, teacher_kwargs(cfg))
    if for_student != for_teacher and not cfg.get("thinking_may_differ"):
        raise UserError(
            f"thinking is {for_student} for the student and {for_teacher} for the teacher",
            "chat_template",
            "give both models the same chat_template options (as enable_thinking: false); to train "
            "such a pair all the same, set thinking_may_differ: true",
        )

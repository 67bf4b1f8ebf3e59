"""A student and its teacher: what they have to share (``compare``), and loading the two.

Apart from the training stages, whose libraries take seconds to load.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.core.errors import LeftOut, UserError
from opd.data.conversations import Turn, render
from opd.losses.head import Head
from opd.models import chat
from opd.models.checkpoints import load_model, load_tokenizer, positions, read_config, stop_ids

ASKED = ([{"role": "user", "content": "?"}],)


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
        beyond = never_compared(tokenizer, _of_teacher(load_tokenizer, teacher))
    model = teacher_model = load_model(student, dtype)
    if teacher is not None:
        teacher_model = _of_teacher(lambda path: load_model(path, dtype), teacher)
        trim_vocabularies(model, teacher_model, tokenizer, beyond)
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


def never_compared(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that the teacher's tokenizer has beyond all ids of the student's:
    no student can produce them, and no loss or probe looks at them.

    Raises ``UserError`` naming the lowest token id on which two tokenizers differ otherwise.
    """
    student_tokens = {i: token for token, i in student.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher.get_vocab().items()}
    added = {*teacher.get_added_vocab().values()}
    beyond = sorted(i for i in teacher_tokens.keys() & added if i > max(student_tokens))
    for i in sorted((student_tokens.keys() | teacher_tokens.keys()) - {*beyond}):
        if student_tokens.get(i) != teacher_tokens.get(i):
            raise LeftOut(
                f"student and teacher have different tokenizers: token {i} is "
                f"{student_tokens.get(i)!r} for the student and {teacher_tokens.get(i)!r} for the "
                "teacher",
                "teacher",
                "use a teacher that knows every token of the student's",
            )
    return beyond


def shared_vocabulary(
    student: int, teacher: int, tokenizer: PreTrainedTokenizerBase, beyond: Sequence[int] = ()
) -> int:
    """How many ids both models have, of the rows of their embeddings, without those ``beyond``
    (``never_compared``).

    Models of one tokenizer may be padded differently (151,936 and 152,064 rows for the 1.5B and 7B
    R1-Distill models); the rows beyond the shorter belong to no token. Raises ``UserError`` where
    one would.
    """
    shared = min(student, teacher, *beyond)
    needed = max(tokenizer.get_vocab().values()) + 1
    if shared < needed:
        raise LeftOut(
            f"{student} embeddings of the student and {teacher} of the teacher do not hold the "
            f"tokenizer's {needed} ids",
            "student" if student == shared else "teacher",
            "use weights that belong to this tokenizer",
        )
    return shared


def trim_vocabularies(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beyond: Sequence[int],
) -> None:
    """Cut two embeddings and heads to the ids that both have (``shared_vocabulary``)."""
    sizes = [m.get_input_embeddings().weight.shape[0] for m in (student, teacher)]
    shared = shared_vocabulary(sizes[0], sizes[1], tokenizer, beyond)
    for model, size in zip((student, teacher), sizes, strict=True):
        if size > shared:
            model.resize_token_embeddings(shared, mean_resizing=False)


def save_trimmed(source: Path, rows: int, out: Path) -> None:
    """Write a model of as many ``rows`` of embedding and head to ``out``, with its tokenizer and in
    the type of its weights: for an engine that loads models from folders."""
    model = load_model(source, read_config(source).dtype or torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(out)
    load_tokenizer(source).save_pretrained(out)


def compare(
    cfg: Mapping[str, Any], student: Path, teacher: Path, chats: Sequence[Sequence[Turn]] = ASKED
) -> dict[str, Any]:
    """All that can be told of a student and its teacher without their weights, as plain values.

    tokens (of the student's tokenizer), prompt_tokens (of the longest of the ``chats``, as the
    student's template renders them), never_compared (ids; notes says it in words),
    embedding_rows, vocabulary (ids of both), positions and thinking of each (by its own chat
    template), thinking_read (what the student's template asks of the teacher), templates (how many
    of the ``chats`` the two render differently, and where the first of them does), ends and
    end_ids (the tokens that end a response of each; turn: what ends one in the student's template).

    cfg: chat_template_kwargs, teacher_chat_template_kwargs. Raises ``UserError`` for an option that
    the chat template does not read, and where tokenizers or vocabularies do not fit together.
    """
    folders = {"student": student, "teacher": teacher}
    options = {"student": cfg.get("chat_template_kwargs") or {}, "teacher": teacher_kwargs(cfg)}
    own = {who: load_tokenizer(folder) for who, folder in folders.items()}
    for read in options.values():
        chat.require_options(own["student"], read, f"chat_template of {student}")
    beyond = never_compared(own["student"], own["teacher"])
    configs = {who: read_config(folder) for who, folder in folders.items()}
    rows = {who: int(config.get_text_config().vocab_size) for who, config in configs.items()}
    vocabulary = shared_vocabulary(rows["student"], rows["teacher"], own["student"], beyond)
    texts = {
        who: [render(tokenizer, c, add_generation_prompt=True, **options[who]) for c in chats]
        for who, tokenizer in own.items()
    }
    encoded = [own[who](texts[who], add_special_tokens=False)["input_ids"] for who in own]
    differing = [row for row, (a, b) in enumerate(zip(*encoded, strict=True)) if a != b]
    first = [
        _around_difference(texts["student"][row], texts["teacher"][row]) for row in differing[:1]
    ]
    ids = {who: sorted(stop_ids(folders[who], own[who])) for who in own}
    turn = chat.turn_end(own["student"], options["student"])
    ids["turn"] = [] if turn is None else [turn]
    named = own["teacher"].convert_ids_to_tokens
    note = f"special tokens of the teacher alone, never compared: ids {', '.join(map(str, beyond))}"
    return {
        "tokens": len(own["student"]),
        "prompt_tokens": max(map(len, encoded[0])),
        "never_compared": beyond,
        "notes": [note] if beyond else [],
        "embedding_rows": rows,
        "vocabulary": vocabulary,
        "positions": {who: positions(config) for who, config in configs.items()},
        "thinking": {who: chat.thinking(own[who], options[who]) for who in own},
        "thinking_read": chat.thinking(own["student"], options["teacher"]),
        "templates": {"differing": len(differing), "first": first[0] if first else None},
        "end_ids": ids,
        "ends": {who: [str(named(i)) for i in of] for who, of in ids.items()},
    }


def _around_difference(student: str, teacher: str, context: int = 30) -> dict[str, str]:
    """What two texts hold from just before where they first differ."""
    characters = enumerate(zip(student, teacher, strict=False))
    at = next((i for i, (a, b) in characters if a != b), min(len(student), len(teacher)))
    part = slice(max(0, at - context), at + context)
    return {"student": student[part], "teacher": teacher[part]}


def require_k(k: int, vocabulary: int, where: str) -> None:
    """Raise ``UserError`` for top k sets of more tokens than two models have: they would be all
    tokens, and all that is said of them (overlap 1, mass 1) would be of nothing."""
    if k > vocabulary:
        raise UserError(
            f"k is {k}, but student and teacher have only {vocabulary} tokens",
            where,
            f"use at most {vocabulary}",
        )


def objections(cfg: Mapping[str, Any], compared: Mapping[str, Any]) -> list[UserError]:
    """What training refuses of a pair (``compare``) until its config decides it.

    One side that is asked to think and one that is not: the teacher would judge every first token
    by the other mode's habits, and the student comes to write think tags (Many Faces, A15);
    ``thinking_may_differ`` lets them. Responses that end with different tokens, or turns of the
    chat template that end with one that ends no response: the student is then led to a token after
    which it goes on; ``end_tokens`` says what ends a response.
    """
    refused = objections_to_thinking(cfg, compared)
    ids, names = compared["end_ids"], compared["ends"]
    lost = not {*ids["turn"]} <= {*ids["student"], *ids["teacher"]}
    if (ids["student"] != ids["teacher"] or lost) and not _end_tokens(cfg):
        turn = f", and the chat template ends a turn with {names['turn'][0]}" if lost else ""
        refused.append(
            LeftOut(
                f"responses end with {' or '.join(names['student'])} for the student and with "
                f"{' or '.join(names['teacher'])} for the teacher{turn}",
                "end_tokens",
                "say which of them end a response in training: student (its own), both (the "
                "teacher's, too) or all (what ends a turn in the chat template, too)",
            )
        )
    return refused


def objections_to_thinking(cfg: Mapping[str, Any], compared: Mapping[str, Any]) -> list[UserError]:
    """Those of ``objections`` that probes of a pair have, too."""
    return _of_thinking(cfg, compared["thinking"]["student"], compared["thinking_read"])


def _end_tokens(cfg: Mapping[str, Any]) -> str | None:
    # What the student does anyway is no part of what a run makes: it is said under execution.
    chosen: str | None = cfg.get("end_tokens") or cfg.get("execution", {}).get("end_tokens")
    return chosen


def end_ids(cfg: Mapping[str, Any], compared: Mapping[str, Any]) -> list[int]:
    """Ids that end a response in training, by ``end_tokens``: the student's own if not given."""
    sides = {"both": ("student", "teacher"), "all": ("student", "teacher", "turn")}
    chosen = sides.get(_end_tokens(cfg) or "student", ("student",))
    return sorted({i for side in chosen for i in compared["end_ids"][side]})


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


def require_same_thinking(cfg: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` where the student's chat template, with the options of each, asks one
    model to think and the other not (see ``objections``)."""
    asked = chat.thinking(tokenizer, cfg.get("chat_template_kwargs") or {})
    for error in _of_thinking(cfg, asked, chat.thinking(tokenizer, teacher_kwargs(cfg))):
        raise error


def _of_thinking(cfg: Mapping[str, Any], asked: str, read: str) -> list[UserError]:
    if asked == read or cfg.get("thinking_may_differ"):
        return []
    return [
        LeftOut(
            f"thinking is {asked} for the student and {read} for the teacher",
            "chat_template",
            "give both models the same chat_template options (as enable_thinking: false); to train "
            "such a pair all the same, set thinking_may_differ: true",
        )
    ]

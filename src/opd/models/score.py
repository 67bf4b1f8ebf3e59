"""A teacher reads the responses of a generation once, so that students can be trained on them
without it: its likeliest tokens at each position, and the log-probability of the response's own.

Legend: T tokens of a response, k tokens that are kept of each position.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from opd.core import tables
from opd.core.errors import UserError
from opd.core.tables import INTEGER, TEXT, schema
from opd.data import conversations
from opd.losses.head import CHUNK_ELEMENTS, Head, head_logits
from opd.losses.token import top_ids
from opd.models import pairing
from opd.models.chat import require_options
from opd.models.checkpoints import load_model, load_tokenizer, read_config, require_room
from opd.models.schemas import GENERATIONS
from opd.models.states import by_response

# Of the responses of a generation that no rule rejected, in their order: the prompt as the teacher
# has read it; of each token in turn the k likeliest (k T of them), likeliest first, with their
# log-probabilities in nats; the log-probability of the response's own token; what the k leave of
# the probability of 1; and, where a student is named, the k tokens that it finds likeliest, with
# their log-probabilities under the teacher.
SCORES = schema(
    prompt_id=TEXT,
    sample=INTEGER,
    attempt=INTEGER,
    prompt_ids=pa.list_(pa.int32()),
    ids=pa.list_(pa.int32()),
    log_probs=pa.list_(pa.float16()),
    sampled=pa.list_(pa.float32()),
    tail=pa.list_(pa.float32()),
    student_ids=pa.list_(pa.int32()),
    student_log_probs=pa.list_(pa.float32()),
)
# Responses that are read at a time, that are written together, so that a killed job has lost no
# more, and that are one row group: what training reads for one of them.
READ_AT_ONCE, PART, GROUP = 8, 256, 4


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``score``: scores.parquet (SCORES) and report.json, which has k and the vocabulary.

    cfg: k; threads, dtype, chat_template_kwargs (of the model that sampled),
    teacher_chat_template_kwargs. Inputs: generations, student (the model that sampled them, whose
    chat template the prompts are in), teacher, and perhaps named_student, which is asked as the
    model that sampled. Log-probabilities are those over the tokens that all have, at temperature 1.
    Raises ``UserError`` where tokenizers differ or have fewer tokens than k, for a response with a
    token that the teacher does not have, and where one is longer than a reader can read. Responses
    that were read when a job was killed are not read again.
    """
    readers = [inputs[name] for name in ("teacher", "named_student") if name in inputs]
    pairs = [pairing.compare(cfg, inputs["student"], reader) for reader in readers]
    vocabulary = min(pair["vocabulary"] for pair in pairs)
    pairing.require_k(cfg["k"], vocabulary, "k")
    path = inputs["generations"] / "generations.parquet"
    rows = [row for row in tables.read(path, GENERATIONS).to_pylist() if is_scored(row)]
    if not rows:
        raise UserError("there is no response in it", str(path), "loosen the rules that reject")
    largest = max(max(row["token_ids"]) for row in rows)
    if largest >= vocabulary:
        reason = f"token {largest} is beyond the {vocabulary} that student and teacher share"
        raise UserError(reason, str(path), "sample with a model whose padding is never likely")
    options = pairing.teacher_kwargs(cfg), cfg.get("chat_template_kwargs", {})
    prompts = [_prompts(own, rows, inputs["student"]) for own in options[: len(readers)]]
    for reader, asked in zip(readers, prompts, strict=True):
        lengths = [len(asked[row["prompt_id"]]) + len(row["token_ids"]) for row in rows]
        require_room(read_config(reader), max(lengths), "generations")
    starts = range(0, len(rows), PART)
    parts = [scratch / f"scores-{start}.parquet" for start in starts]
    left = [(start, part) for start, part in zip(starts, parts, strict=True) if not _sound(part)]
    if left:
        models = [_load(cfg, reader, vocabulary) for reader in readers]
        for start, part in tqdm(left, unit="part", desc="scoring"):
            own = rows[start : start + PART]
            scored = pa.Table.from_pylist(_scored(models, own, prompts, cfg["k"]), SCORES)
            with tables.writing(part) as temporary:
                pq.write_table(scored, temporary, write_page_checksum=True)
    with (
        tables.writing(out / "scores.parquet") as temporary,
        pq.ParquetWriter(temporary, SCORES, compression="zstd") as writer,
    ):
        for part in parts:
            writer.write_table(tables.read(part, SCORES), row_group_size=GROUP)
    tables.write_json(out / "report.json", {"k": cfg["k"], "vocabulary": vocabulary})
    tokens = sum(len(row["token_ids"]) for row in rows)
    return {"responses": len(rows), "tokens": tokens, "vocabulary": vocabulary}


def _sound(part: Path) -> bool:
    """Whether a part is there as it was written."""
    try:
        pq.read_table(part, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def is_scored(row: Mapping[str, Any]) -> bool:
    """Whether a row of GENERATIONS is a response to learn from: no rule rejected it."""
    return row["rejected"] is None and bool(row["token_ids"])


def _prompts(
    options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], student: Path
) -> dict[str, list[int]]:
    """What is read before the responses, by the ids of prompts: token ids."""
    tokenizer = load_tokenizer(student)
    require_options(tokenizer, options)
    chats = {row["prompt_id"]: conversations.chat(row) for row in rows}
    ids = conversations.encode(tokenizer, chats.values(), options)
    return dict(zip(chats, ids, strict=True))


def _load(cfg: Mapping[str, Any], folder: Path, vocabulary: int) -> Any:
    torch.set_num_threads(cfg.get("threads", 1))
    model = load_model(folder, getattr(torch, cfg.get("dtype", "float32")))
    if model.get_input_embeddings().weight.shape[0] > vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _scored(
    models: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Mapping[str, Sequence[int]]],
    k: int,
) -> list[dict[str, Any]]:
    """Rows of SCORES for rows of GENERATIONS, by a teacher and perhaps for a named student, each
    with its prompts."""
    keys = ("prompt_id", "sample", "attempt")
    scored = [
        {**{key: row[key] for key in keys}, "prompt_ids": prompts[0][row["prompt_id"]]}
        for row in rows
    ]
    preferred: dict[int, Tensor] = {}
    if len(models) > 1:
        own_head = pairing.head_of(models[1])
        states = _read(models[1], rows, prompts[1])
        preferred = {i: top_k(hidden, own_head, k) for i, hidden in states}
    head = pairing.head_of(models[0])
    for i, hidden in _read(models[0], rows, prompts[0]):
        ids = torch.tensor(rows[i]["token_ids"], device=hidden.device)
        own = scores_of(hidden, head, ids, k, preferred.get(i, ids.new_zeros(len(ids), 0)))
        scored[i] |= {name: values.flatten().cpu().numpy() for name, values in own.items()}
    return scored


def _read(
    model: Any, rows: Sequence[Mapping[str, Any]], prompts: Mapping[str, Sequence[int]]
) -> Iterator[tuple[int, Tensor]]:
    asked = [(prompts[row["prompt_id"]], row["token_ids"]) for row in rows]
    return by_response(model, asked, str(model.device), READ_AT_ONCE)


@torch.no_grad()
def top_k(hidden: Tensor, head: Head, k: int) -> Tensor:
    """The k likeliest tokens of states [T, H], [T, k]; ties go to the lower id."""
    places = _chunks(hidden, head)
    return torch.cat([top_ids(head_logits(hidden[part], head), k) for part in places])


def _chunks(hidden: Tensor, head: Head) -> list[slice]:
    """Slices of states [T, H], so that the logits of all positions are never held at once."""
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


@torch.no_grad()
def scores_of(
    hidden: Tensor, head: Head, ids: Tensor, k: int, student_ids: Tensor
) -> dict[str, Tensor]:
    """The columns of SCORES that a teacher's states [T, H] give of the tokens ``ids`` [T] that they
    predict, and of those that a named student prefers, [T, k] or [T, 0]: ids, log_probs,
    student_ids and student_log_probs like these, sampled and tail [T]."""
    columns = []
    for part in _chunks(hidden, head):
        logq = head_logits(hidden[part], head).log_softmax(-1)
        top = top_ids(logq, k)
        log_probs = logq.gather(-1, top)
        columns.append(
            {
                "ids": top.int(),
                "log_probs": log_probs.half(),
                "sampled": logq.gather(-1, ids[part].unsqueeze(-1)).squeeze(-1),
                "tail": (-torch.expm1(log_probs.logsumexp(-1))).clamp(min=0),
                "student_ids": student_ids[part].int(),
                "student_log_probs": logq.gather(-1, student_ids[part]),
            }
        )
    return {name: torch.cat([own[name] for own in columns]) for name in columns[0]}

"""A teacher reads the responses of a generation once, so that students can be trained on them
without it: its likeliest tokens at each position, and the log-probability of the response's own.

Legend: T tokens of a response, k tokens that are kept of each position.
"""

from collections.abc import Mapping, Sequence
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
# log-probabilities in nats; the log-probability of the response's own token; and what the k leave
# of the probability of 1.
SCORES = schema(
    prompt_id=TEXT,
    sample=INTEGER,
    attempt=INTEGER,
    prompt_ids=pa.list_(pa.int32()),
    ids=pa.list_(pa.int32()),
    log_probs=pa.list_(pa.float16()),
    sampled=pa.list_(pa.float32()),
    tail=pa.list_(pa.float32()),
)
# Responses that are read at a time, that are written together, so that a killed job has lost no
# more, and that are one row group: what training reads for one of them.
READ_AT_ONCE, PART, GROUP = 8, 256, 4


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path, scratch: Path) -> dict[str, Any]:
    """Stage ``score``: scores.parquet (SCORES) and report.json, which has k and the vocabulary.

    cfg: k; threads, dtype, chat_template_kwargs (of the model that sampled),
    teacher_chat_template_kwargs. Inputs: generations, student (the model that sampled them, whose
    chat template the prompts are in), teacher. Log-probabilities are those over the tokens that
    both have, at temperature 1. Raises ``UserError`` where tokenizers differ or have fewer tokens
    than k, for a response with a token that the teacher does not have, and where one is longer than
    the teacher can read. Responses that were read when a job was killed are not read again.
    """
    pair = pairing.compare(cfg, inputs["student"], inputs["teacher"])
    vocabulary = pair["vocabulary"]
    pairing.require_k(cfg["k"], vocabulary, "k")
    path = inputs["generations"] / "generations.parquet"
    rows = [row for row in tables.read(path, GENERATIONS).to_pylist() if is_scored(row)]
    if not rows:
        raise UserError("there is no response in it", str(path), "loosen the rules that reject")
    largest = max(max(row["token_ids"]) for row in rows)
    if largest >= vocabulary:
        reason = f"token {largest} is beyond the {vocabulary} that student and teacher share"
        raise UserError(reason, str(path), "sample with a model whose padding is never likely")
    prompts = _prompts(cfg, rows, inputs["student"])
    lengths = [len(prompts[row["prompt_id"]]) + len(row["token_ids"]) for row in rows]
    require_room(read_config(inputs["teacher"]), max(lengths), "generations")
    starts = range(0, len(rows), PART)
    parts = [scratch / f"scores-{start}.parquet" for start in starts]
    left = [(start, part) for start, part in zip(starts, parts, strict=True) if not _sound(part)]
    if left:
        model, device = _load(cfg, inputs["teacher"], vocabulary)
        for start, part in tqdm(left, unit="part", desc="scoring"):
            own = rows[start : start + PART]
            scored = pa.Table.from_pylist(_scored(model, device, own, prompts, cfg["k"]), SCORES)
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
    cfg: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], student: Path
) -> dict[str, list[int]]:
    """What the teacher reads before the responses, by the ids of prompts: token ids."""
    tokenizer, options = load_tokenizer(student), pairing.teacher_kwargs(cfg)
    require_options(tokenizer, options)
    chats = {row["prompt_id"]: conversations.chat(row) for row in rows}
    ids = conversations.encode(tokenizer, chats.values(), options)
    return dict(zip(chats, ids, strict=True))


def _load(cfg: Mapping[str, Any], teacher: Path, vocabulary: int) -> tuple[Any, str]:
    torch.set_num_threads(cfg.get("threads", 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(teacher, getattr(torch, cfg.get("dtype", "float32")))
    if model.get_input_embeddings().weight.shape[0] > vocabulary:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model.to(device).eval(), device


def _scored(
    model: Any,
    device: str,
    rows: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, Sequence[int]],
    k: int,
) -> list[dict[str, Any]]:
    """Rows of SCORES for rows of GENERATIONS."""
    asked = [(prompts[row["prompt_id"]], row["token_ids"]) for row in rows]
    keys = ("prompt_id", "sample", "attempt")
    scored = [
        {**{key: row[key] for key in keys}, "prompt_ids": prompt}
        for row, (prompt, _) in zip(rows, asked, strict=True)
    ]
    head = pairing.head_of(model)
    for i, hidden in by_response(model, asked, device, READ_AT_ONCE):
        own = scores_of(hidden, head, torch.tensor(asked[i][1], device=device), k)
        scored[i] |= {name: values.flatten().cpu().numpy() for name, values in own.items()}
    return scored


@torch.no_grad()
def scores_of(hidden: Tensor, head: Head, ids: Tensor, k: int) -> dict[str, Tensor]:
    """The columns of SCORES that a teacher's states [T, H] give of the tokens ``ids`` [T] that they
    predict: ids and log_probs [T, k], sampled and tail [T]. The logits of all positions are never
    held at once; ties go to the lower id."""
    size = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    parts = []
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        logq = head_logits(hidden[part], head).log_softmax(-1)
        top = top_ids(logq, k)
        log_probs = logq.gather(-1, top)
        parts.append(
            {
                "ids": top.int(),
                "log_probs": log_probs.half(),
                "sampled": logq.gather(-1, ids[part].unsqueeze(-1)).squeeze(-1),
                "tail": (-torch.expm1(log_probs.logsumexp(-1))).clamp(min=0),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

"""Student and teacher on the tokens of a path: one forward pass each, over the whole vocabulary.

Legend: L tokens of a path, H hidden, V vocabulary. What is held of the vocabulary is a few rows at
a time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.losses.head import CHUNK_ELEMENTS, head_logits
from opd.microscope.targeting import Candidates
from opd.models.pairing import ModelPair
from opd.stats.intervals import Array


class Compared(NamedTuple):
    """Of every position of a path [L]: divergences of student P and teacher Q over the vocabulary
    (KL(P || Q), Jensen-Shannon, L2 distance, cosine of the two vectors of probabilities); the
    log-probabilities of the tokens asked for [M]; tokens that either finds likely; and the
    teacher's likeliest tokens with both log-probabilities [L, K]."""

    kl: Array
    js: Array
    l2: Array
    similarity: Array
    log_p: Array
    log_q: Array
    candidates: Candidates
    top: Array
    top_log_p: Array
    top_log_q: Array


def compare(
    pair: ModelPair,
    prompt: Sequence[int],
    teacher_prompt: Sequence[int],
    path: Sequence[int],
    tokens: tuple[Array, Array] | None = None,
    tau: float = 1.0,
    top: int = 0,
) -> Compared:
    """Both models on a path, each after its own prompt (token ids).

    tokens: (depth, token) [M] whose log-probabilities are wanted; tau: candidates are those that
    either model gives more than this; top: how many of the teacher's likeliest tokens. Raises
    ``UserError`` for a token that not both have.
    """
    pair.require_known(path, "path")
    ours = _hidden(pair.student, prompt, path, pair.device)
    same = pair.teacher is pair.student and list(prompt) == list(teacher_prompt)
    theirs = ours if same else _hidden(pair.teacher, teacher_prompt, path, pair.device)
    asked = (np.zeros(0, np.int64),) * 2 if tokens is None else tokens
    rows = max(1, CHUNK_ELEMENTS // pair.vocabulary)
    parts = [
        _rows(pair, (ours[i : i + rows], theirs[i : i + rows]), i, asked, tau, top)
        for i in range(0, len(path), rows)
    ]
    compared = parts[0] if len(parts) == 1 else _joined(parts)
    # They come by position, and are wanted in the order in which they were asked for.
    back = np.argsort(np.argsort(asked[0], kind="stable"))
    return compared._replace(log_p=compared.log_p[back], log_q=compared.log_q[back])


@torch.no_grad()
def _hidden(model: Any, prompt: Sequence[int], path: Sequence[int], device: str) -> Tensor:
    """Last hidden states that predict the path's tokens [L, H]."""
    # What comes after the last token is not asked.
    ids = torch.tensor([[*prompt, *path][:-1]], device=device)
    states: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, len(prompt) - 1 :]


@torch.no_grad()
def _rows(
    pair: ModelPair,
    hidden: tuple[Tensor, Tensor],
    start: int,
    asked: tuple[Array, Array],
    tau: float,
    top: int,
) -> Compared:
    """``compare`` at the positions from ``start`` on that the hidden states are of."""
    log_p, log_q = (
        head_logits(states, head, 1.0).double().log_softmax(-1)
        for states, head in zip(hidden, pair.heads, strict=True)
    )
    depth, token = asked
    p, q = log_p.exp(), log_q.exp()
    mean = ((p + q) / 2).log()
    kl = (p * (log_p - log_q)).sum(-1).clamp(min=0)
    js = ((p * (log_p - mean)).nansum(-1) + (q * (log_q - mean)).nansum(-1)).clamp(min=0) / 2
    similarity = (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))
    inside = np.flatnonzero((depth >= start) & (depth < start + len(hidden[0])))
    inside = inside[np.argsort(depth[inside], kind="stable")]
    at = torch.as_tensor(depth[inside] - start, device=pair.device)
    which = torch.as_tensor(token[inside], device=pair.device)
    where, likely = torch.nonzero((p > tau) | (q > tau), as_tuple=True)
    candidates = (where + start, likely, p[where, likely], q[where, likely], kl[where])
    best, tokens = log_q.topk(min(top, log_q.shape[-1]), dim=-1)
    return Compared(
        kl.cpu().numpy(),
        js.cpu().numpy(),
        (p - q).norm(dim=-1).cpu().numpy(),
        similarity.cpu().numpy(),
        log_p[at, which].cpu().numpy(),
        log_q[at, which].cpu().numpy(),
        Candidates(*(column.cpu().numpy() for column in candidates)),
        tokens.cpu().numpy(),
        log_p.gather(-1, tokens).cpu().numpy(),
        best.cpu().numpy(),
    )


def _joined(parts: Sequence[Compared]) -> Compared:
    columns: list[Any] = []
    for name, values in zip(Compared._fields, zip(*parts, strict=True), strict=True):
        if name == "candidates":
            columns.append(Candidates(*map(np.concatenate, zip(*values, strict=True))))
        else:
            columns.append(np.concatenate(values))
    return Compared(*columns)

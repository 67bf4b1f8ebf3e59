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
from opd.models.checkpoints import require_room
from opd.models.pairing import ModelPair
from opd.stats.intervals import Array


class Compared(NamedTuple):
    """Of every position of a path [L]: divergences of student P and teacher Q over the vocabulary
    (KL(P || Q), Jensen-Shannon, L2 distance, cosine of the two vectors of probabilities); the
    log-probabilities of the tokens asked for [M]; tokens that either finds likely; and the
    teacher's likeliest tokens with both log-probabilities [L, K]."""

    kl_nats: Array
    js_nats: Array
    l2: Array
    similarity: Array
    log_p: Array
    log_q: Array
    candidates: Candidates
    top: Array
    top_log_p: Array
    top_log_q: Array


@torch.no_grad()
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
    of_student = _hidden(pair.student, prompt, path, pair.device)
    same = pair.teacher is pair.student and list(prompt) == list(teacher_prompt)
    of_teacher = of_student if same else _hidden(pair.teacher, teacher_prompt, path, pair.device)
    depth, token = (np.zeros(0, np.int64),) * 2 if tokens is None else tokens
    log_ps = np.zeros((2, len(depth)))
    divergences, candidates, likeliest = [], [], []
    rows = max(1, CHUNK_ELEMENTS // pair.vocabulary)
    for start in range(0, len(path), rows):
        log_p, log_q = (
            head_logits(states[start : start + rows], head, 1.0).double().log_softmax(-1)
            for states, head in zip((of_student, of_teacher), pair.heads, strict=True)
        )
        inside = np.flatnonzero((depth >= start) & (depth < start + rows))
        at, which = torch.tensor(
            np.stack([depth[inside] - start, token[inside]]), device=pair.device
        )
        log_ps[:, inside] = torch.stack([log_p[at, which], log_q[at, which]]).cpu().numpy()
        p, q = log_p.exp(), log_q.exp()
        mean = ((p + q) / 2).log()
        kl = (p * (log_p - log_q)).sum(-1).clamp(min=0)
        js = ((p * (log_p - mean)).nansum(-1) + (q * (log_q - mean)).nansum(-1)).clamp(min=0) / 2
        similarity = (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))
        divergences.append((kl, js, (p - q).norm(dim=-1), similarity))
        where, ids = torch.nonzero((p > tau) | (q > tau), as_tuple=True)
        candidates.append((where + start, ids, p[where, ids], q[where, ids], kl[where]))
        best, top_ids = log_q.topk(min(top, log_q.shape[-1]), dim=-1)
        likeliest.append((top_ids, log_p.gather(-1, top_ids), best))
    likely = Candidates(*_joined(candidates))
    return Compared._make([*_joined(divergences), *log_ps, likely, *_joined(likeliest)])


def _hidden(model: Any, prompt: Sequence[int], path: Sequence[int], device: str) -> Tensor:
    """Last hidden states that predict the path's tokens [L, H]."""
    require_room(model.config, len(prompt) + len(path), "max_new_tokens")
    # What comes after the last token is not asked.
    ids = torch.tensor([[*prompt, *path][:-1]], device=device)
    states: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states[0, len(prompt) - 1 :]


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Array]:
    """The columns of all chunks, one after the other."""
    return [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]

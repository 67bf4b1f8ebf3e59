"""Student and teacher on the tokens of a path: one forward pass each, over the whole vocabulary.

Legend: L tokens of a path, H hidden, V vocabulary. What is held of the vocabulary is a few rows at
a time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor

from opd.core.errors import UserError
from opd.losses.head import CHUNK_ELEMENTS, Head, head_logits
from opd.microscope.targeting import Candidates
from opd.models import pairing
from opd.models.checkpoints import load_model, load_tokenizer

Array = np.ndarray


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


class Pair:
    """A student and a teacher with one tokenizer; a teacher that is the student is loaded once.

    cfg: dtype, threads. Raises ``UserError`` where tokenizers or vocabularies do not fit together.
    """

    def __init__(self, cfg: Mapping[str, Any], student: Path, teacher: Path | None) -> None:
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(cfg.get("threads", 1))
        dtype = getattr(torch, cfg.get("dtype", "float32"))
        tokenizer = load_tokenizer(student)
        if teacher is not None:
            pairing.require_same_tokenizer(tokenizer, load_tokenizer(teacher))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.student = load_model(student, dtype)
        self.teacher = self.student if teacher is None else load_model(teacher, dtype)
        if teacher is not None:
            pairing.trim_vocabularies(self.student, self.teacher, tokenizer)
        for model in (self.student, self.teacher):
            model.to(self.device).eval()
        self.vocabulary = self.student.get_input_embeddings().weight.shape[0]
        self.heads: tuple[Head, Head] = pairing.head_of(self.student), pairing.head_of(self.teacher)

    def compare(
        self,
        prompt: Sequence[int],
        teacher_prompt: Sequence[int],
        path: Sequence[int],
        tokens: tuple[Array, Array] | None = None,
        tau: float = 1.0,
        top: int = 0,
    ) -> Compared:
        """Both models on a path, each after its own prompt (token ids).

        tokens: (depth, token) [M] whose log-probabilities are wanted; tau: candidates are those
        that either model gives more than this; top: how many of the teacher's likeliest tokens.
        Raises ``UserError`` for a token that not both have.
        """
        beyond = [t for t in path if t >= self.vocabulary]
        if beyond:
            raise UserError(
                f"token {beyond[0]} is beyond the {self.vocabulary} that both models have",
                "path",
                "sample with a model whose padding is never likely",
            )
        ours = self._hidden(self.student, prompt, path)
        same = self.teacher is self.student and list(prompt) == list(teacher_prompt)
        theirs = ours if same else self._hidden(self.teacher, teacher_prompt, path)
        depth, token = (np.zeros(0, np.int64),) * 2 if tokens is None else tokens
        rows = max(1, CHUNK_ELEMENTS // self.vocabulary)
        parts = [
            self._rows(
                (ours[start : start + rows], theirs[start : start + rows]),
                start,
                (depth, token),
                tau,
                top,
            )
            for start in range(0, len(path), rows)
        ]
        found = parts[0] if len(parts) == 1 else _joined(parts)
        # Asked for in any order, found by position.
        order = np.argsort(depth, kind="stable")
        back = np.empty(len(order), dtype=np.int64)
        back[order] = np.arange(len(order))
        return found._replace(log_p=found.log_p[back], log_q=found.log_q[back])

    @torch.no_grad()
    def _hidden(self, model: Any, prompt: Sequence[int], path: Sequence[int]) -> Tensor:
        """Last hidden states that predict the path's tokens [L, H]."""
        # What comes after the last token is not asked.
        ids = torch.tensor([[*prompt, *path][:-1]], device=self.device)
        states: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return states[0, len(prompt) - 1 :]

    @torch.no_grad()
    def _rows(
        self,
        hidden: tuple[Tensor, Tensor],
        start: int,
        asked: tuple[Array, Array],
        tau: float,
        top: int,
    ) -> Compared:
        log_p, log_q = (
            head_logits(h, head, 1.0).double().log_softmax(-1)
            for h, head in zip(hidden, self.heads, strict=True)
        )
        depth, token = asked
        p, q = log_p.exp(), log_q.exp()
        mean = ((p + q) / 2).log()
        kl = (p * (log_p - log_q)).sum(-1).clamp(min=0)
        js = ((p * (log_p - mean)).nansum(-1) + (q * (log_q - mean)).nansum(-1)).clamp(min=0) / 2
        similarity = (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))
        inside = np.flatnonzero((depth >= start) & (depth < start + len(hidden[0])))
        inside = inside[np.argsort(depth[inside], kind="stable")]
        at = torch.as_tensor(depth[inside] - start, device=self.device)
        which = torch.as_tensor(token[inside], device=self.device)
        where, likely = torch.nonzero((p > tau) | (q > tau), as_tuple=True)
        candidates = Candidates(
            (where + start).cpu().numpy(),
            likely.cpu().numpy(),
            p[where, likely].cpu().numpy(),
            q[where, likely].cpu().numpy(),
            kl[where].cpu().numpy(),
        )
        best, tokens = log_q.topk(min(top, log_q.shape[-1]), dim=-1)
        return Compared(
            kl.cpu().numpy(),
            js.cpu().numpy(),
            (p - q).norm(dim=-1).cpu().numpy(),
            similarity.cpu().numpy(),
            log_p[at, which].cpu().numpy(),
            log_q[at, which].cpu().numpy(),
            candidates,
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

"""Sampling with transformers, in shards; see ``opd.models.vllm_engine`` for the other engine.

A shard is a batch of similar prompt lengths. Which requests it holds is a function of the whole
list of requests, never of what is done already, so that a run that goes on computes every shard as
an undisturbed one does.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from opd.models import journal
from opd.models.checkpoints import load_model
from opd.models.live_rows import live_rows

Finish = Literal["stop", "length"]


class Job(NamedTuple):
    """What an engine is asked for: more tokens after these."""

    tokens: list[int]
    seed: int
    position: int  # of the first new token in the response


def cut(tokens: Sequence[int], stops: set[int]) -> tuple[list[int], Finish]:
    """Response tokens up to and with the first that ends it, and the kind of finish."""
    for i, token in enumerate(tokens):
        if token in stops:
            return list(tokens[: i + 1]), "stop"
    return list(tokens), "length"


def shards(jobs: Mapping[int, Job], batch_size: int) -> Iterator[list[int]]:
    """Indices of the jobs in batches, shortest first: little padding, fixed order."""
    order = sorted(jobs, key=lambda i: (len(jobs[i].tokens), i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def choose(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float, top_k: int
) -> Tensor:
    """Pick one token per row by inverting the cumulative distribution: int64 [B].

    logits [B, V], uniforms [B] in [0, 1). Order of operations as in vLLM and transformers:
    temperature, top-k, top-p (the smallest set of likeliest tokens with at least that mass).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if not top_k and top_p >= 1:
        cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
        return _invert(cumulative, uniforms, cumulative[:, -1:]).squeeze(-1)
    # Sorting a large vocabulary costs more than a small model's forward pass, and the likeliest few
    # hundred nearly always hold top_p of the mass.
    vocabulary = logits.shape[-1]
    logsumexp = logits.logsumexp(dim=-1, keepdim=True)
    size = min(top_k or 256, vocabulary)
    while True:
        values, tokens = logits.topk(size, dim=-1)
        cumulative = (values - logsumexp).exp().double().cumsum(dim=-1)
        if top_k:
            cumulative = cumulative / cumulative[:, -1:]
        if top_k or size == vocabulary or bool((cumulative[:, -1] >= top_p).all()):
            break
        size = min(8 * size, vocabulary)
    # The token that reaches top_p is still in.
    last = (cumulative[:, :-1] < top_p).sum(dim=-1, keepdim=True)
    place = _invert(cumulative, uniforms, cumulative.gather(-1, last))
    return tokens.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _invert(cumulative: Tensor, uniforms: Tensor, total: Tensor) -> Tensor:
    """First place where the cumulative mass [B, V] exceeds uniform [B] x total [B, 1]: [B, 1]."""
    mass = uniforms.double().unsqueeze(-1) * total
    place = torch.searchsorted(cumulative.contiguous(), mass, right=True)
    return place.clamp(max=cumulative.shape[-1] - 1)


class Transformers:
    """``model.generate`` in left-padded batches; the model stays loaded between calls."""

    def __init__(self, model_dir: Path, settings: Mapping[str, Any], stops: set[int], pad: int):
        torch.set_num_threads(settings["threads"])
        self.settings, self.stops, self.pad = settings, stops, pad
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = load_model(model_dir, getattr(torch, settings["dtype"]))
        self.model.to(self.device).eval()
        # In place of the checkpoint's own, which may hold penalties that nobody asked for here.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=settings["max_new_tokens"],
            eos_token_id=sorted(stops),
            pad_token_id=pad,
        )

    def run(
        self, jobs: Mapping[int, Job], done: Mapping[int, list[int]], base: Path
    ) -> Generator[journal.Finished, None, None]:
        """New tokens of the jobs that are not done, shard by shard as they are journaled."""
        with journal.writing(base.with_name(f"{base.name}-0.jsonl")) as append:
            for shard in shards(jobs, self.settings["batch_size"]):
                if all(i in done for i in shard):
                    continue
                finished = dict(zip(shard, self.batch([jobs[i] for i in shard]), strict=True))
                append(finished)
                yield finished

    def batch(self, jobs: Sequence[Job]) -> list[list[int]]:
        """New tokens of each job, all in one batch."""
        width = max(len(job.tokens) for job in jobs)
        new = self.settings["max_new_tokens"]
        # One number per position of the response: a response that is continued from its own
        # beginning goes on as it did.
        numbers = [
            np.random.default_rng(job.seed).random(job.position + new)[job.position :]
            for job in jobs
        ]
        uniforms = torch.from_numpy(np.stack(numbers)).to(self.device)
        warp = {key: self.settings[key] for key in ("temperature", "top_p", "top_k")}

        class Choose(LogitsProcessor):
            """Leaves only the chosen token: ``generate`` needs no random state of its own."""

            def __call__(self, input_ids: Any, scores: Any) -> Any:
                step = input_ids.shape[1] - width
                chosen = choose(scores, uniforms[:, step], **warp)
                return torch.full_like(scores, -torch.inf).scatter_(1, chosen.unsqueeze(1), 0.0)

        padding = [width - len(job.tokens) for job in jobs]
        ids = [[self.pad] * n + job.tokens for n, job in zip(padding, jobs, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        with torch.inference_mode(), live_rows(self.model, self.stops):
            sequences = self.model.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                logits_processor=LogitsProcessorList([Choose()]),
            )
        return [cut(tokens, self.stops)[0] for tokens in sequences[:, width:].tolist()]

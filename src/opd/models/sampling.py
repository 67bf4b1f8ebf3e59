"""Sampling responses: one interface, with transformers or vLLM behind it.

The randomness of a response comes from its request only (seed, prompt id, sample, attempt), never
from what else is in its batch or was sampled before it. Finished responses are journaled, and a
sampler that is asked for the same list of requests again goes on from there.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from opd.core.code import module_digest
from opd.core.errors import LeftOut, UserError
from opd.core.files import content, digest
from opd.data import conversations
from opd.data.conversations import Turn
from opd.models import journal
from opd.models.checkpoints import load_tokenizer, read_config, require_room, stop_ids
from opd.models.transformers_engine import Finish, Job, Transformers, cut
from opd.models.vllm_engine import Pool


@dataclass(frozen=True)
class Request:
    """One response to ask for: ``sample`` and ``attempt`` make it another one of the same prompt.

    ``prompt`` are the token ids of the prompt, ready for a response; ``prefix`` are the ids that
    the response begins with. A prefix that ends with an end-of-turn token is a whole response.
    """

    id: str
    prompt: Sequence[int]
    sample: int = 0
    prefix: Sequence[int] = ()
    attempt: int = 0


@dataclass(frozen=True)
class Response:
    """``token_ids`` begin with the request's prefix and end with the end-of-turn token where it was
    produced (finish ``stop``); ``text`` is all of them without special tokens."""

    token_ids: list[int]
    text: str
    finish: Finish


def settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a stage's settings that is about sampling, with defaults.

    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 leave the distribution whole;
    ``max_new_tokens`` are counted after a prefix. ``batch_size`` is that of a shard with
    transformers, and the most that are in flight at a time with vLLM on a CPU; on a GPU vLLM has as
    many in flight as its memory holds. ``batch_invariant``: vLLM's
    responses do not depend on what else is in flight (on a GPU, slower).
    """
    sampling = {
        "temperature": cfg.get("temperature", 1.0),
        "top_p": cfg.get("top_p", 1.0),
        "top_k": cfg.get("top_k") or 0,
        "max_new_tokens": cfg["max_new_tokens"],
        "max_prompt_tokens": cfg["max_prompt_tokens"],
        "seed": cfg["seed"],
        "batch_size": cfg.get("batch_size", 64),
        "backend": cfg.get("backend", "transformers"),
        "dtype": cfg.get("dtype", "float32"),
        "batch_invariant": cfg.get("batch_invariant", False),
        "chat_template_kwargs": cfg.get("chat_template_kwargs") or {},
        "threads": cfg.get("threads", 1),
    }
    backend = sampling["backend"]
    if backend not in ("transformers", "vllm"):
        raise UserError(f"unknown backend '{backend}'", "backend", "use transformers or vllm")
    return sampling


class Sampler:
    """Samples responses of one model; its engine starts when there is something to sample.

    cfg: see ``settings``. Journals are kept below ``cache``, in a folder that belongs to this
    model, these settings and this code. It stays when a stage is done: another grader, rule or
    benchmark samples nothing again. Without ``cache`` nothing outlives the sampler. Raises
    ``UserError`` for a model without a tokenizer or a chat template.
    """

    def __init__(self, model_dir: Path, cfg: Mapping[str, Any], cache: Path | None = None) -> None:
        self.model_dir, self.settings = Path(model_dir), settings(cfg)
        if not self.model_dir.is_dir():
            raise UserError("no such folder", str(model_dir), "run the stage that makes the model")
        self.tokenizer = load_tokenizer(self.model_dir, self.settings["chat_template_kwargs"])
        self.stops = stop_ids(self.model_dir, self.tokenizer)
        self._engine: Transformers | Pool | None = None
        if cache is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="opd-sampling-")
            self._journals = Path(self._temporary.name)
        else:
            identity = [content(self.model_dir), self.settings, module_digest(__name__)]
            self._journals = cache / "responses" / digest(identity)
            self._journals.mkdir(parents=True, exist_ok=True)

    def tokenize(self, rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[list[int]]:
        """Token ids of the conversation of each row (``opd.data.conversations.chat``) inside the
        chat template, ready for a response; raises as ``render`` and ``encode`` do."""
        return self.encode([self.render(conversations.chat(row)) for row in rows], ids)

    def render(self, chat: Sequence[Turn], add_generation_prompt: bool = True) -> str:
        """Messages inside the chat template; without a generation prompt the last one is left
        open. Raises as ``opd.data.conversations.render`` does."""
        return conversations.render(
            self.tokenizer,
            chat,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self.settings["chat_template_kwargs"],
        )

    def encode(self, texts: Sequence[str], ids: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that hold the chat template already. Raises ``LeftOut`` for one of
        more than ``max_prompt_tokens`` tokens."""
        if not texts:
            return []
        tokens: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        limit = self.settings["max_prompt_tokens"]
        for row, (id, prompt) in enumerate(zip(ids, tokens, strict=True)):
            if len(prompt) > limit:
                raise LeftOut(
                    f"the prompt has {len(prompt)} tokens, more than {limit}",
                    f"prompt '{id}' (row {row})",
                    "raise max_prompt_tokens or leave this prompt out",
                )
        return tokens

    def sample(self, requests: Sequence[Request]) -> list[Response]:
        """A response to each request, in their order. Raises ``UserError`` for requests that are
        the same, for a prefix that goes on after an end-of-turn token, and where the longest prompt
        and response have more tokens than the model can read."""
        (responses,) = self.sample_lists([requests])
        return responses

    def sample_lists(self, lists: Sequence[Sequence[Request]]) -> list[list[Response]]:
        """``sample`` of several lists of requests, each with a journal of its own.

        With vLLM all of them are in one queue, so that none waits for the longest responses of
        another. transformers takes one after the other: a shard there holds requests of one list.
        """
        jobs = [self._jobs(requests) for requests in lists]
        names = [f"responses-{_name_of(requests)}" for requests in lists]
        done = [self._journaled(name) for name in names]
        left = [n for n in range(len(lists)) if jobs[n].keys() - done[n].keys()]
        if self.settings["backend"] == "vllm" and len(left) > 1:
            self._finish_together(left, lists, jobs, done, names)
        else:
            for n in left:
                self._finish(jobs[n], done[n], self._journals / names[n])
        return [
            [self._response(request, finished.get(i, [])) for i, request in enumerate(requests)]
            for requests, finished in zip(lists, done, strict=True)
        ]

    def _finish_together(
        self,
        left: Sequence[int],
        lists: Sequence[Sequence[Request]],
        jobs: Sequence[Mapping[int, Job]],
        done: Sequence[journal.Finished],
        names: Sequence[str],
    ) -> None:
        """Sample what is not ``done`` of the lists that are ``left``, as one list with a journal of
        its own; in the end each list gets its part, and is found by itself."""
        places = [(n, i) for n in left for i in range(len(lists[n]))]
        name = f"responses-{_name_of([lists[n][i] for n, i in places])}"
        finished = self._journaled(name)
        finished |= {k: done[n][i] for k, (n, i) in enumerate(places) if i in done[n]}
        together = {k: jobs[n][i] for k, (n, i) in enumerate(places) if i in jobs[n]}
        if together.keys() - finished.keys():
            self._finish(together, finished, self._journals / name)
        for n in left:
            own = {i: finished[k] for k, (m, i) in enumerate(places) if m == n and k in finished}
            done[n].update(own)
            with journal.writing(self._journals / f"{names[n]}-0.jsonl") as append:
                append(own)
        for path in self._journals.glob(f"{name}-*.jsonl"):
            path.unlink()

    def _journaled(self, name: str) -> journal.Finished:
        done: journal.Finished = {}
        for path in self._journals.glob(f"{name}-*.jsonl"):
            done |= journal.read(path)[0]
        return done

    def stop(self) -> None:
        """Let go of the engine; the next request starts one."""
        self._engine = None

    def _jobs(self, requests: Sequence[Request]) -> dict[int, Job]:
        """What there is to sample for requests, by their places; raises as ``sample`` does."""
        self._check(requests)
        jobs = {
            i: Job(
                [*request.prompt, *request.prefix],
                request_seed(self.settings["seed"], request.id, request.sample, request.attempt),
                len(request.prefix),
            )
            for i, request in enumerate(requests)
            if not (request.prefix and request.prefix[-1] in self.stops)
        }
        longest = max((len(job.tokens) for job in jobs.values()), default=0)
        most = longest + self.settings["max_new_tokens"]
        require_room(read_config(self.model_dir), most, "max_new_tokens")
        return jobs

    def _check(self, requests: Sequence[Request]) -> None:
        seen = set()
        for request in requests:
            where = f"request '{request.id}'"
            identity = (request.id, request.sample, request.attempt, tuple(request.prefix))
            if identity in seen:
                raise UserError(
                    f"sample {request.sample} is asked for twice, which gives the same twice",
                    where,
                    "give each its own sample or id",
                )
            seen.add(identity)
            end = len(cut(request.prefix, self.stops)[0])
            if end < len(request.prefix):
                raise UserError(
                    f"the prefix goes on after the end-of-turn token at {end - 1}",
                    where,
                    "end the prefix there or before",
                )

    def _finish(self, jobs: Mapping[int, Job], done: journal.Finished, base: Path) -> None:
        """Sample what is not ``done``, and add it there as it comes."""
        if self._engine is None and self.settings["backend"] == "vllm":
            self._engine = Pool(self.model_dir, self.settings, self.stops)
        elif self._engine is None:
            pad = self.tokenizer.pad_token_id
            pad = min(self.stops) if pad is None else pad
            self._engine = Transformers(self.model_dir, self.settings, self.stops, pad)
        produced = 0
        bar = tqdm(total=len(jobs), initial=len(done), unit="response", desc="sampling")
        with bar, closing(self._engine.run(jobs, done, base)) as batches:
            for finished in batches:
                done |= finished
                produced += sum(map(len, finished.values()))
                elapsed = max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"{produced / elapsed:.0f} tokens/s", refresh=False)
                bar.update(len(done) - bar.n)

    def _response(self, request: Request, new: Sequence[int]) -> Response:
        tokens, finish = cut([*request.prefix, *new], self.stops)
        text = self.tokenizer.decode(
            tokens[:-1] if finish == "stop" else tokens,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return Response(tokens, text, finish)


def _name_of(requests: Sequence[Request]) -> str:
    """The name that journals of this list of requests have."""
    sha256 = hashlib.sha256()
    for request in requests:
        identity = [request.id, request.sample, request.attempt]
        tokens = [list(request.prompt), list(request.prefix)]
        sha256.update(json.dumps([identity, tokens]).encode())
    return sha256.hexdigest()[:16]


def request_seed(seed: int, id: str, sample: int, attempt: int = 0) -> int:
    """The 63-bit seed of one request."""
    again = f"\0{attempt}" if attempt else ""
    digest = hashlib.sha256(f"{seed}\0{id}\0{sample}{again}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

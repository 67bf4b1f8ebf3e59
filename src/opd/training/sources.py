"""Rollouts that are not the student's own: responses of a generation, read again by the student's
tokenizer after the prompt as its chat template has it. ``opd.training.shares`` says how many of a
step's rollouts are of each source.

Legend: B sequences of a micro-batch, T response positions, n sources.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from opd.core import tables
from opd.core.errors import UserError
from opd.data import conversations
from opd.losses.importance import importance_weights, sampled_logprobs
from opd.losses.terms import States
from opd.models.schemas import GENERATIONS, LOGPROBS
from opd.training import shares
from opd.training.record import Value

# Of an example and of a batch: the source of its rollout, and its response there (the place among
# those that no rule rejected). Of a batch alone: whether the student has sampled it.
SOURCE, RESPONSE, OWN = "rollout_source", "rollout_response", "rollout_own"
# Of a batch, by TRL's name: the log-probability of each token under the model that sampled it,
# [B, T]; and the most that a token counts, [B], 0 for a sequence without importance weights.
LOGPS, CLIP = "sampling_per_token_logps", "importance_clip"
# Responses of a generation that are read again to see whether their tokens are the student's.
READ_AGAIN = 256
# A prompt: its id, and the text by which it is the same.
Key = tuple[str, str]


class Generation(NamedTuple):
    """The responses of a generation that no rule rejected: the tokens of all of them one after the
    other (int32), where each begins, and the last ends; the log-probabilities of the tokens
    (float32), where they are recorded; places of the responses to each prompt that was asked."""

    tokens: np.ndarray
    begins: np.ndarray
    logprobs: np.ndarray | None
    by_prompt: Mapping[Key, list[int]]

    def response(self, place: int) -> slice:
        """Where a response stands among the tokens."""
        return slice(self.begins[place], self.begins[place + 1])


def key_of(row: Mapping[str, Any], id: str = "id") -> Key:
    """What tells a prompt from others, of a row of PROMPTS; of GENERATIONS by ``prompt_id``."""
    return row[id], conversations.text(row, "prompt")


def read(
    folder: Path,
    tokenizer: Any,
    vocabulary: int,
    ends: Iterable[int],
    max_new_tokens: int,
    weighted: bool,
) -> Generation:
    """The responses of the generation in ``folder``, with their log-probabilities if ``weighted``.

    Raises ``UserError`` where there is none; for a token that is none of the student's
    ``vocabulary``, or a response that the student's tokenizer reads as another text; for one that
    ends with a token that is not among the student's ``ends``, or is longer than
    ``max_new_tokens``; and where log-probabilities are asked for and were not recorded.
    """
    path = folder / "generations.parquet"
    table = tables.read(path, GENERATIONS)
    filled = pc.greater(pc.list_value_length(table["token_ids"]), 0)
    kept = pc.and_(pc.is_null(table["rejected"]), filled)
    by_prompt: dict[Key, list[int]] = {}
    places = iter(range(len(table)))
    asked = table.select(["prompt_id", "prompt", "turns"]).to_pylist()
    for row, accepted in zip(asked, kept.to_pylist(), strict=True):
        of_prompt = by_prompt.setdefault(key_of(row, "prompt_id"), [])
        if accepted:
            of_prompt.append(next(places))
    responses = table.filter(kept)
    if not len(responses):
        remedy = "loosen the rules that reject them"
        raise UserError("there is no response in it", str(path), remedy)
    tokens, begins = _flat(responses["token_ids"])
    _require_tokens(responses, tokens, tokenizer, vocabulary, path)
    last = tokens[begins[1:] - 1]
    _require_ends(responses["finish"].to_pylist(), last, ends, tokenizer, path)
    longest = int(np.diff(begins).max())
    if longest > max_new_tokens:
        reason = f"a response has {longest} tokens, max_new_tokens is {max_new_tokens}"
        raise UserError(reason, str(path), "raise max_new_tokens, or sample shorter responses")
    logprobs = None
    if weighted:
        recorded = tables.read(folder / "logprobs.parquet", LOGPROBS)
        of_tokens = [np.zeros(0), np.zeros(0)]
        if len(recorded) == len(table):
            of_tokens = [*_flat(recorded.filter(kept)["logprobs"])]
        logprobs = of_tokens[0]
        if not np.array_equal(begins, of_tokens[1]):
            reason = "it has not a log-probability of each token of the responses"
            raise UserError(reason, str(folder / "logprobs.parquet"), "make the generation again")
    return Generation(tokens, begins, logprobs, by_prompt)


def _flat(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column of lists in one row, and where each list begins and the last ends."""
    joined = lists.combine_chunks()
    return joined.flatten().to_numpy(), joined.offsets.to_numpy() - joined.offsets[0].as_py()


def _require_tokens(
    rows: Any, tokens: np.ndarray, tokenizer: Any, vocabulary: int, path: Path
) -> None:
    """Raise ``UserError`` unless tokens mean the same to the student as to who sampled them."""
    remedy = "take a generation of a model with the student's tokenizer"
    if (largest := int(tokens.max())) >= vocabulary:
        reason = f"token {largest} is beyond the {vocabulary} that the student learns"
        raise UserError(reason, str(path), remedy)
    looked_at = rows.take(np.linspace(0, len(rows) - 1, min(len(rows), READ_AGAIN)).astype(int))
    for row in looked_at.to_pylist():
        ids = row["token_ids"][: -1 if row["finish"] == "stop" else None]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text != row["response"]:
            raise UserError(
                f"the student's tokenizer reads another text from the tokens of a response to "
                f"'{row['prompt_id']}' ({text[:30]!r} for {row['response'][:30]!r})",
                str(path),
                remedy,
            )


def _require_ends(
    finishes: Sequence[str], last: np.ndarray, ends: Iterable[int], tokenizer: Any, path: Path
) -> None:
    """Raise ``UserError`` where a response ended with a token at which the student goes on."""
    ended = np.array([finish == "stop" for finish in finishes])
    for token in sorted({*last[ended].tolist()} - {*ends}):
        raise UserError(
            f"responses end with {tokenizer.convert_ids_to_tokens(token)}, at which the student "
            "does not stop",
            str(path),
            "say end_tokens: both or all, or sample it with a model that ends as the student does",
        )


class Sources:
    """The sources of a run's rollouts (``cfg.rollouts``), none of which are named where the student
    samples all of them. ``vocabulary`` and ``ends`` are the student's; raises as ``read`` does."""

    def __init__(
        self,
        cfg: Mapping[str, Any],
        inputs: Mapping[str, Path],
        tokenizer: Any,
        vocabulary: int,
        ends: Iterable[int],
    ) -> None:
        self.cfg, self.settings = cfg, cfg.get("rollouts", [])
        self.generations: list[Generation | None] = []
        for i, source in enumerate(self.settings):
            generation = None
            if "generations" in source:
                weighted, limit = "importance" in source, cfg["max_new_tokens"]
                folder = inputs[source["generations"]]
                try:
                    generation = read(folder, tokenizer, vocabulary, ends, limit, weighted)
                except UserError as error:
                    raise UserError(
                        error.what, f"rollouts.{i}: {error.where}", error.remedy
                    ) from None
            self.generations.append(generation)
        self.clips = [source.get("importance", {}).get("clip", 0.0) for source in self.settings]

    def answered(self, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """The rows of a run's prompts to which every generation has a response; how many others
        there are is printed. Raises ``UserError`` for a prompt that a generation was not asked."""
        kept = [*range(len(rows))]
        for i, generation in enumerate(self.generations):
            if generation is None:
                continue
            for row in rows:
                if key_of(row) not in generation.by_prompt:
                    raise UserError(
                        f"the generation was not asked the prompt '{row['id']}' of the run",
                        f"rollouts.{i}.generations",
                        "name a generation of the run's own prompts",
                    )
            kept = [place for place in kept if generation.by_prompt[key_of(rows[place])]]
        if lost := len(rows) - len(kept):
            note = f"{lost} of {len(rows)} prompts have no response that no rule rejected: left out"
            print(f"note: {note}", file=sys.stderr)
        return kept

    def columns(self, asked: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
        """Source and response of each rollout of a run, of the prompts ``asked`` (rows). The
        responses of a source to a prompt are taken in turn."""
        if not self.settings:
            return {}
        drawn = shares.order(shares.of_step(self.cfg), self.cfg["steps"], self.cfg["seed"])
        used: Counter[tuple[int, Key]] = Counter()
        responses = []
        for source, row in zip(drawn, asked, strict=True):
            generation, response = self.generations[source], -1
            if generation is not None:
                key = key_of(row)
                of_prompt = generation.by_prompt[key]
                response = of_prompt[used[source, key] % len(of_prompt)]
                used[source, key] += 1
            responses.append(response)
        return {SOURCE: drawn, RESPONSE: responses}

    def _response(self, example: Mapping[str, Any]) -> tuple[Generation, slice] | None:
        """Where the response of an example stands; None where the student samples it."""
        generation = self.generations[example[SOURCE]] if self.settings else None
        return generation and (generation, generation.response(example[RESPONSE]))

    def filled(
        self,
        examples: Sequence[Mapping[str, Any]],
        prompts: Sequence[list[int]],
        sample: Callable[[list[list[int]]], list[list[int]]],
    ) -> list[list[int]]:
        """Responses (token ids) of examples, whose prompts have these token ids; ``sample`` gives
        those to the prompts that the student answers itself, and is not called for none."""
        given = [self._response(example) for example in examples]
        own = [prompt for prompt, response in zip(prompts, given, strict=True) if response is None]
        sampled = iter(sample(own) if own else [])
        return [
            next(sampled) if response is None else response[0].tokens[response[1]].tolist()
            for response in given
        ]

    def of_batch(self, examples: Sequence[Mapping[str, Any]], mask: Tensor) -> dict[str, Tensor]:
        """What a batch has of the sources of its examples, whose responses fill ``mask`` [B, T]."""
        if not self.settings:
            return {}
        drawn, device = [example[SOURCE] for example in examples], mask.device
        sampled = [self.generations[source] is None for source in drawn]
        batch = {
            SOURCE: torch.tensor(drawn, device=device),
            RESPONSE: torch.tensor([example[RESPONSE] for example in examples], device=device),
            OWN: torch.tensor(sampled, device=device),
        }
        if any(self.clips):
            logprobs = torch.zeros(mask.shape)
            for row, example in enumerate(examples):
                response = self._response(example)
                if response and response[0].logprobs is not None:
                    own = torch.from_numpy(response[0].logprobs[response[1]].copy())
                    logprobs[row, : len(own)] = own
            batch[LOGPS] = logprobs.to(device)
            batch[CLIP] = torch.tensor([self.clips[source] for source in drawn], device=device)
        return batch


def own(batch: Mapping[str, Tensor]) -> Tensor:
    """Which sequences of a batch the student has sampled itself, [B]."""
    all_of_them = torch.ones_like(batch["completion_ids"][:, 0], dtype=torch.bool)
    return batch.get(OWN, all_of_them)


@torch.no_grad()
def weights(batch: Mapping[str, Tensor], student: States, temperature: float) -> Tensor:
    """The importance weight of each token, [B, T]; 1 in sequences that have none."""
    mask = batch["completion_mask"] != 0
    ones = torch.ones(mask.shape, device=mask.device)
    if CLIP not in batch:
        return ones
    weighted = mask & (batch[CLIP] > 0).unsqueeze(1)
    logprobs = sampled_logprobs(
        student.hidden[weighted], student.head, batch["completion_ids"][weighted], temperature
    )
    clip = batch[CLIP].unsqueeze(1).expand(mask.shape)[weighted]
    return ones.masked_scatter(weighted, importance_weights(logprobs, batch[LOGPS][weighted], clip))


def tally(sources: int, batch: Mapping[str, Tensor], weights: Tensor) -> Tensor:
    """Sums over a micro-batch, [n, 3], which processes and micro-batches add up: the rollouts of
    each source, their tokens, and the importance weights of these [B, T]."""
    mask = (batch["completion_mask"] != 0).double()
    sums = torch.stack([torch.ones_like(mask[:, 0]), mask.sum(1), (mask * weights).sum(1)], 1)
    none = torch.zeros(sources, 3, dtype=torch.float64, device=mask.device)
    return none.index_add_(0, batch[SOURCE], sums)


def means(tally: Tensor, clips: Sequence[float]) -> list[Value]:
    """What is measured of each source (``shares.MEASURED``), from the sums of a step."""
    values: list[Value] = []
    rollouts, tokens, _ = tally.sum(0).tolist()
    for i, (clip, row) in enumerate(zip(clips, tally.tolist(), strict=True)):
        values.append((f"source_{i}_share", None, row[0] / rollouts))
        values.append((f"source_{i}_token_share", None, row[1] / tokens))
        if clip and row[1]:
            values.append((f"source_{i}_importance", None, row[2] / row[1]))
    return values

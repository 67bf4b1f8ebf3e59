"""The models beside the student that terms of a loss read its responses with.

Legend: B sequences of a micro-batch, T response positions, H width of hidden states; b and t where
only some of the sequences are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from opd.losses.head import Head
from opd.losses.scores import Scores
from opd.losses.terms import States
from opd.models.checkpoints import load_model
from opd.models.pairing import head_of, trim_vocabularies
from opd.training import terms
from opd.training.padding import trimmed
from opd.training.terms import Reading

# Of a batch: which terms each sequence belongs to, [B, n]; absent where there is no choice.
ROWS = "term_rows"
Batch = dict[str, Any]


class Teachers:
    """Models that are not trained, by name.

    A single one stays on the device and reads a micro-batch when it is due. Several take turns:
    each is on the device once a step (``read_ahead``), and what it made of the step's rollouts is
    kept, on the device like all heads. ``forward`` (model, batch, prompt) gives hidden states
    [B, T, H]; ``readings`` are those of the terms, in their order. One of the models may be the
    student, which is on the device anyway. Of others, by the names of their ``tables``, there are
    scores in place of states (``opd.training.scored``; ``opd.training.servers``, which are asked
    about all of a step at once: ``ask_ahead``).
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        readings: list[Reading | None],
        forward: Callable[[Any, Batch, str], Tensor],
        accelerator: Any,
        tables: Mapping[str, Callable[[Batch, str], Scores]] = {},
    ) -> None:
        self.models, self.by_term, self.forward = models, readings, forward
        self.accelerator, self.tables = accelerator, tables
        self.readings = [*dict.fromkeys(reading for reading in readings if reading)]
        self.heads: dict[str, Head] = {}
        for name, model in models.items() if len(models) > 1 else ():
            head, device = head_of(model.eval()), accelerator.device
            bias = None if head.bias is None else head.bias.detach().to(device)
            self.heads[name] = head._replace(weight=head.weight.detach().to(device), bias=bias)

    def states(self, batch: Batch, reading: Reading) -> Any:
        """What a model makes of a micro-batch: its ``States``, kept or read now, or its
        ``Scores``."""
        if reading.model in self.tables:
            if reading.served:  # asked about the longest of the step, too
                tokens = batch["completion_ids"].shape[1]
                return Scores(*(batch[name][:, :tokens] for name in _kept_as(reading)))
            return self.tables[reading.model](batch, reading.asked(batch))
        hidden = batch.get(f"{reading.prompt}_states")
        if hidden is None:
            hidden = self._read(batch, reading)
        if ROWS in batch:
            hidden = spread(hidden, self._rows(batch, reading), batch["completion_ids"].shape[1])
        return States(hidden, self._head(reading))

    def read_ahead(self, batches: Iterable[Batch]) -> None:
        """Keep the states of every model in the micro-batches of a step, model by model."""
        for name, model in self.models.items():
            with on_device(model, self.accelerator.device):
                for batch in batches:
                    for reading in self.readings:
                        if reading.model == name:
                            batch[f"{reading.prompt}_states"] = self._read(batch, reading)

    def ask_ahead(self, batch: Batch) -> Batch:
        """What servers make of the responses of a step, as ``states`` finds it in a micro-batch."""
        kept: Batch = {}
        for reading in self.readings:
            if reading.served:
                mask = batch["completion_mask"]
                if ROWS in batch:
                    mask = mask * self._rows(batch, reading).unsqueeze(1)
                own = {**batch, "completion_mask": mask}
                scores = self.tables[reading.model](own, reading.asked(batch))
                kept |= zip(_kept_as(reading), scores, strict=True)
        return kept

    def _rows(self, batch: Batch, reading: Reading) -> Tensor:
        """Which sequences a model reads, [B]: those of its terms."""
        rows: Tensor = batch[ROWS][:, [own == reading for own in self.by_term]].any(1)
        return rows

    @torch.no_grad()
    def _read(self, batch: Batch, reading: Reading) -> Tensor:
        """Last hidden states [b, t, H] of those sequences that the model reads."""
        prompt = reading.asked(batch)
        if ROWS in batch:
            rows = self._rows(batch, reading)
            if not rows.any():
                width = self._head(reading).weight.shape[1]
                return torch.zeros(0, 0, width, device=rows.device)
            parts = (f"{part}_{end}" for part in (prompt, "completion") for end in ("ids", "mask"))
            batch = trimmed({name: batch[name][rows] for name in parts})
        return self.forward(self.models[reading.model], batch, prompt)

    def _head(self, reading: Reading) -> Head:
        if reading.model in self.heads:
            return self.heads[reading.model]
        return head_of(self.accelerator.unwrap_model(self.models[reading.model]))


def _kept_as(reading: Reading) -> list[str]:
    """The names in a batch of the scores that a server has given for a reading."""
    return [f"{reading.prompt}_scores_{name}" for name in Scores._fields]


def load_models(
    cfg: Mapping[str, Any],
    inputs: Mapping[str, Path],
    pairs: Mapping[str, Mapping[str, Any]],
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """The models of the terms beside the student, by name: those of ``pairs``
    (``pairing.compare``), with the vocabularies of all, and of the student, cut to what they share.
    What the student itself is (a live teacher), or was before its adapter, is not among them, nor
    those of which there are scores."""
    # A teacher that is never updated may be held in what it is computed in.
    frozen = cfg.get("teacher_update", "frozen") == "frozen"
    narrow = frozen and cfg.get("precision") == "bfloat16"
    dtype = torch.bfloat16 if narrow else torch.float32
    itself = terms.student_serves(cfg)
    models = {
        name: load_model(inputs[name], dtype, cfg.get("attention"))
        for name in terms.models(terms.terms_of(cfg))
        if not (itself and inputs[name].samefile(inputs["student"]))
    }
    # The student has the smallest vocabulary before it meets the others.
    vocabulary = min(int(pair["vocabulary"]) for pair in pairs.values())
    if student.get_input_embeddings().weight.shape[0] > vocabulary:
        student.resize_token_embeddings(vocabulary, mean_resizing=False)
    for name in models:
        trim_vocabularies(student, models[name], tokenizer, pairs[name]["never_compared"])
    return models


@contextmanager
def on_device(model: Any, device: torch.device) -> Iterator[None]:
    """A model that is not trained, for a while with its weights on ``device``; then they are where
    they were, without being copied back."""
    tensors = (*model.parameters(), *model.buffers())
    home = [(tensor, tensor.data) for tensor in tensors if tensor.device != device]
    try:
        for tensor, data in home:
            tensor.data = data.to(device)
        yield
    finally:
        for tensor, data in home:
            tensor.data = data


def spread(hidden: Tensor, rows: Tensor, tokens: int) -> Tensor:
    """States [b, t, H] of the sequences that are in ``rows`` [B], as [B, ``tokens``, H]; 0
    elsewhere. t is less where only others are so long."""
    if rows.all():
        return hidden
    states = hidden.new_zeros(len(rows), tokens, hidden.shape[-1])
    states[rows, : hidden.shape[1]] = hidden
    return states

"""The models beside the student that terms of a loss read its responses with.

Legend: B sequences of a micro-batch, T response positions, H width of hidden states; b and t where
only some of the sequences are read.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from opd.losses.head import Head
from opd.losses.terms import States
from opd.models.pairing import head_of
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
    [B, T, H]; ``readings`` are those of the terms, in their order.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        readings: list[Reading | None],
        forward: Callable[[Any, Batch, str], Tensor],
        accelerator: Any,
    ) -> None:
        self.models, self.by_term, self.forward = models, readings, forward
        self.accelerator = accelerator
        self.readings = [*dict.fromkeys(reading for reading in readings if reading)]
        self.heads: dict[str, Head] = {}
        for name, model in models.items() if len(models) > 1 else ():
            head, device = head_of(model.eval()), accelerator.device
            bias = None if head.bias is None else head.bias.detach().to(device)
            self.heads[name] = head._replace(weight=head.weight.detach().to(device), bias=bias)

    def states(self, batch: Batch, reading: Reading) -> States:
        """What a model makes of a micro-batch: as it was kept, or read now."""
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


@contextmanager
def on_device(model: Any, device: torch.device) -> Iterator[None]:
    """A model that is not trained, for a while with its weights on ``device``; then they are where
    they were, without being copied back."""
    home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
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

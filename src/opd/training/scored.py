"""What was kept of a teacher (stage ``score``), as training reads it: a few responses at a time.

Legend: B sequences of a micro-batch, T response positions, k tokens that are kept of each.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from opd.core.errors import UserError
from opd.core.files import read_json
from opd.losses.scores import Scores
from opd.training.sources import RESPONSE

# Row groups that are kept after they were read: neighbours of a step are often of one prompt.
KEPT_GROUPS = 8
PROMPT = "prompt_ids"
READ = ("ids", "log_probs", "sampled", "tail", "student_ids", "student_log_probs")
Row = dict[str, Any]


def reader(folder: Path, vocabulary: int) -> Callable[[Mapping[str, Tensor], str], Scores]:
    """A function of a batch, and of the name of what the teacher is asked there, that gives the
    scores of the batch's responses, whose places in their generation are its RESPONSE.

    Raises ``UserError`` for scores of another ``vocabulary`` than the one that is trained, and when
    it is called for a response or a prompt that is not the one that the teacher has read.
    """
    path, report = folder / "scores.parquet", read_json(folder / "report.json")
    if report["vocabulary"] != vocabulary:
        raise UserError(
            f"the scores are over {report['vocabulary']} tokens, the student learns {vocabulary}",
            str(path),
            "score a generation of a model with as many tokens as the student",
        )
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    place_of = [(i, row) for i, rows in enumerate(groups) for row in range(rows)]

    @lru_cache(KEPT_GROUPS)
    def group(i: int) -> list[dict[str, Tensor]]:
        columns = file.read_row_group(i, [PROMPT, *READ])
        return [
            {name: _tensor(columns[name][row].values.to_numpy()) for name in (PROMPT, *READ)}
            for row in range(len(columns))
        ]

    def read(batch: Mapping[str, Tensor], prompt: str) -> Scores:
        mask, places = batch["completion_mask"] != 0, batch[RESPONSE].tolist()
        rows = []
        for i, place in enumerate(places):
            number, row = place_of[place]
            rows.append(group(number)[row])
            asked = batch[f"{prompt}_ids"][i][batch[f"{prompt}_mask"][i] != 0]
            # Of a row that no term of this teacher is over, nothing may be asked.
            if len(asked) and asked.tolist() != rows[i][PROMPT].tolist():
                reason, remedy = "another prompt", "use the chat template that it was sampled with"
            elif len(rows[i]["sampled"]) != mask[i].sum():
                reason, remedy = "another response", "score the generation that the run draws from"
            else:
                continue
            reason = f"the teacher has read {reason} than the student"
            raise UserError(reason, f"{path}: row {place}", remedy)
        return filled(rows, mask, report["k"])

    return read


def _tensor(values: np.ndarray) -> Tensor:
    """Numbers of a row; in float32, as autocast to bfloat16 refuses to join float16."""
    return torch.tensor(values.astype(np.float32) if values.dtype.kind == "f" else values)


def filled(rows: list[dict[str, Tensor]], mask: Tensor, k: int) -> Scores:
    """Scores of responses, rows of SCORES, at the positions of a mask (bool, [B, T]); 0 elsewhere.
    The rounded log-probabilities of a position are all moved by what gives them back the mass that
    they had, so that what they leave of 1 is not a sum of rounding errors."""
    columns = (torch.cat([row[name] for row in rows]) for name in READ)
    ids, log_probs, sampled, tail, *named = columns
    ids, log_probs = ids.view(-1, k), log_probs.view(-1, k)
    named = [values.view(len(sampled), k if len(values) else 0) for values in named]
    log_probs += (torch.log1p(-tail) - log_probs.logsumexp(-1)).unsqueeze(-1)
    places = mask.cpu().nonzero(as_tuple=True)

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(*mask.shape, *values.shape[1:])
        whole[places] = values
        return whole.to(mask.device)

    return Scores(*map(spread, (ids, log_probs, sampled, *named)))

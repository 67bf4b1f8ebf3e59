"""What a step of distillation measures of its rollouts, as sums that micro-batches and processes
add up: of the states that the student visits by itself, of its own responses, and apart from them
of the states in responses of other sources.

Legend: B sequences of a micro-batch, T response positions, M metrics, n terms.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from opd.losses import metrics, scores
from opd.losses.metrics import Sums
from opd.losses.scores import Scores
from opd.losses.terms import States
from opd.training import objective, sources
from opd.training.objective import Term
from opd.training.record import Value
from opd.training.teachers import Batch

# Kinds of states -> what their metrics are called: the plain names are those of the student's own.
PREFIXES = {"state": "", "offline": "offline_"}


@torch.no_grad()
def add(
    tallies: dict[str, Tensor],
    sum_of: Sequence[Term],
    batch: Batch,
    student: States,
    teachers: Sequence[Any],
    ends: Sequence[int],
    cfg: Mapping[str, Any],
    bins: int,
) -> None:
    """Add the sums of a micro-batch to ``tallies``: [2, M, bins] of ``metrics.STATE`` for each kind
    of PREFIXES that the run has (``offline`` where it names sources), and ``response``, [2, M, 1]
    of ``metrics.RESPONSE``. ``ends`` are the tokens that end a response."""
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    repeated, own = metrics.repeats(ids, mask), sources.own(batch)
    for kind, rows in {"state": own, **({"offline": ~own} if sources.OWN in batch else {})}.items():
        # Also where nothing counts here: all processes add up the same tallies.
        none = torch.zeros(2, len(metrics.STATE), bins, dtype=torch.float64, device=ids.device)
        tally = tallies.setdefault(kind, none)
        _add_states(tally, sum_of, batch, student, teachers, repeated, rows, cfg)
    last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
    eos = torch.tensor(ends, device=ids.device)
    sums = metrics.response_metrics(mask[own], last[own], eos, repeated[own])
    responses = metrics.binned(sums, torch.zeros_like(last[own]), 1, 1)
    tallies["response"] = tallies.get("response", 0) + responses


def _add_states(
    tally: Tensor,
    sum_of: Sequence[Term],
    batch: Batch,
    student: States,
    teachers: Sequence[Any],
    repeated: Tensor,
    rows: Tensor,
    cfg: Mapping[str, Any],
) -> None:
    """Add the measurements of the states in the sequences ``rows`` [B] to a tally [2, M, bins],
    from hidden states [B, T, H] in chunks of positions. A state is measured beside the teacher of
    the first term that it belongs to."""
    ids, over = batch["completion_ids"], objective.over(batch)
    left = (batch["completion_mask"] != 0) & rows.unsqueeze(1)
    for i, (term, teacher) in enumerate(zip(sum_of, teachers, strict=True)):
        if "teacher" not in term.settings:
            continue
        counted = left & (over[:, i] != 0)
        left = left & ~counted
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[counted]
        sampled = ids[counted], repeated[counted]
        parts = _in_parts(student, teacher, term, counted, *sampled, cfg["metrics_k"])
        for part, sums in parts:
            tally += metrics.binned(sums, positions[part], cfg["position_bin"], tally.shape[2])


def _in_parts(
    student: States,
    teacher: States | Scores,
    term: Term,
    counted: Tensor,
    ids: Tensor,
    repeated: Tensor,
    k: int,
) -> Iterator[tuple[slice, dict[str, Sums]]]:
    """The measurements of the states that are ``counted`` ([B, T], N of them), whose sampled tokens
    are ``ids`` [N], part by part."""
    hidden = student.hidden[counted]
    if isinstance(teacher, Scores):
        own, kept = States(hidden, student.head), Scores(*(values[counted] for values in teacher))
        return scores.in_parts(own, kept, term.temperatures[0], ids, repeated, k)
    states, heads = (hidden, teacher.hidden[counted]), (student.head, teacher.head)
    return metrics.in_parts(states, heads, term.temperatures, ids, repeated, k)


def means(tallies: Mapping[str, Tensor], width: int) -> list[Value]:
    """The means of the tallies of a whole step, by bins of ``width`` positions and over all; what
    was counted nowhere is left out."""
    values: list[Value] = []
    for kind, prefix in PREFIXES.items():
        if kind in tallies:
            of_kind = metrics.means(metrics.STATE, tallies[kind], width)
            values += [(f"{prefix}{name}", position, value) for name, position, value in of_kind]
    if "response" in tallies:
        values += metrics.means(metrics.RESPONSE, tallies["response"], width)
    return values


def gaps(values: Sequence[Value]) -> list[Value]:
    """The gap between the two mean entropies of each kind of states, from the ``means`` of a
    step."""
    over_all = {name: value for name, position, value in values if position is None}
    found: list[Value] = []
    for prefix in PREFIXES.values():
        student, teacher = f"{prefix}entropy_student_nats", f"{prefix}entropy_teacher_nats"
        if student in over_all and teacher in over_all:
            gap = metrics.entropy_gap_of_means_nats(over_all[student], over_all[teacher])
            found.append((f"{prefix}entropy_gap_of_means_nats", None, gap))
    return found

"""The sum of terms that a step of distillation minimises: what is made of its settings, and what of
it has to be known of all rollouts of a step before the first micro-batch.

Legend: B sequences of a micro-batch, T response positions, n terms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opd.grading.graders import GRADERS
from opd.losses.scores import scores_loss
from opd.losses.spec import loss_spec
from opd.losses.terms import States, TokenLoss, group_advantages, reward_loss, teacher_loss
from opd.losses.weights import state_scores, token_weights
from opd.training import sources, terms
from opd.training.record import Value
from opd.training.teachers import ROWS, Batch, Teachers

# Of a batch, beside ROWS: the advantage of each sequence in each term, [B, n], and what each token
# counts in each term, [B, n, T].
ADVANTAGES, COUNTS = "term_advantages", "term_counts"


class Term(NamedTuple):
    """A term: its settings (``opd.training.terms``), which model reads what for it, its loss with
    the size of its top-k sets, and what the logits of student and teacher are divided by."""

    settings: terms.Term
    reading: terms.Reading | None
    loss: TokenLoss
    k: int
    temperatures: tuple[float, float]


def made(cfg: Mapping[str, Any]) -> list[Term]:
    """The terms of a run. Raises ``UserError`` for a loss that contradicts itself."""
    settings, temperature = terms.terms_of(cfg), cfg["temperature"]
    sum_of = []
    for term, reading in zip(settings, terms.readings(settings), strict=True):
        if reading is None:
            loss, k, temperatures = reward_loss(temperature), 0, (temperature, temperature)
        else:
            # One temperature for both, unless the loss names another for the teacher: a student
            # that equals its teacher would else be taught to be sharper or flatter than it is.
            spec = loss_spec({"teacher_temperature": temperature, **term["loss"]})
            loss_of = scores_loss if terms.scored_by(term) else teacher_loss
            loss, k = loss_of(spec, temperature), spec.k or 0
            temperatures = (temperature, spec.teacher_temperature)
        sum_of.append(Term(term, reading, loss, k, temperatures))
    return sum_of


def over(batch: Batch) -> Tensor:
    """Which tokens each term is over, [B, n, T]: those of the sequences that belong to it."""
    mask: Tensor = batch["completion_mask"].unsqueeze(1)
    return mask * batch[ROWS].unsqueeze(2) if ROWS in batch else mask


def token_losses(
    sum_of: Sequence[Term], batch: Batch, student: States, teachers: Sequence[Any]
) -> list[Tensor]:
    """The loss of each term, [B, T], over all of its tokens. ``teachers``: the states or the scores
    that each term reads."""
    ids, masks = batch["completion_ids"], over(batch)
    advantages = batch.get(ADVANTAGES, torch.zeros(len(ids), 1, device=ids.device))
    return [
        term.loss(student, teachers[i], ids, masks[:, i], advantages[:, i])
        for i, term in enumerate(sum_of)
    ]


def summed(batch: Batch, losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The loss of each token, [B, T]: the sum over terms of weight x what it counts x its loss."""
    counts = batch.get(COUNTS, over(batch))
    parts = [weight * (counts[:, i] * losses[i]) for i, weight in enumerate(weights)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def grade(
    sum_of: Sequence[Term],
    examples: Sequence[Mapping[str, Any]],
    batch: Batch,
    texts: Sequence[str],
    accelerator: Any,
    group: int,
) -> None:
    """Add to this process's part of a step, whose responses are ``texts``, what is right by each
    grader that a term asks, and the advantages within the ``group`` responses to a prompt."""
    start = len(texts) * accelerator.process_index
    batch[ADVANTAGES] = torch.zeros(batch[ROWS].shape, device=batch[ROWS].device)
    for grader in terms.graders([term.settings for term in sum_of]):
        answered = zip(texts, examples, strict=True)
        right = [float(GRADERS[grader](text, example["answer"])[1]) for text, example in answered]
        correct = torch.tensor(right, device=batch[ROWS].device)
        batch[f"correct_{grader}"] = correct
        advantages = group_advantages(accelerator.gather(correct), group)
        for i, term in enumerate(sum_of):
            if term.settings.get("reward", {}).get("grader") == grader:
                batch[ADVANTAGES][:, i] = advantages[start : start + len(texts)]


@torch.no_grad()
def count(
    sum_of: Sequence[Term],
    batches: Sequence[Batch],
    teachers: Teachers,
    student: Callable[[Batch], States],
    accelerator: Any,
    k: int,
) -> None:
    """Add COUNTS to the micro-batches of a step. ``student`` gives its states; ``k`` is the size
    of the top-k sets whose overlap counts."""
    scores = [_scores(sum_of, batch, teachers, student, k) for batch in batches]
    counts = [
        step_weights(
            accelerator,
            term.settings.get("tokens", {}),
            [part[i] for part in scores],
            [over(batch)[:, i] != 0 for batch in batches],
        )
        for i, term in enumerate(sum_of)
    ]
    for batch, own in zip(batches, zip(*counts, strict=True), strict=True):
        batch[COUNTS] = torch.stack(own, 1)


def _scores(
    sum_of: Sequence[Term],
    batch: Batch,
    teachers: Teachers,
    student: Callable[[Batch], States],
    k: int,
) -> list[dict[str, Tensor]]:
    """What the token weights of each term go by, [B, T] each: see ``token_weights``."""
    ids, mask, masks = batch["completion_ids"], batch["completion_mask"], over(batch)
    needed = [term.settings.get("tokens", {}) for term in sum_of]
    by_states = [not terms.BY_STATES.isdisjoint(tokens) for tokens in needed]
    own = student(batch) if any(by_states) else None
    scores = []
    for i, (term, tokens) in enumerate(zip(sum_of, needed, strict=True)):
        score = {
            "position": torch.arange(ids.shape[1], device=ids.device).expand_as(ids),
            "length": mask.sum(1, keepdim=True).expand_as(ids),
        }
        if "correct" in tokens:
            correct = batch[f"correct_{tokens['correct']['grader']}"]
            score["correct"] = correct.unsqueeze(1).expand_as(ids)
        if own is not None and by_states[i]:
            # The entropy of a student, which is all that a reward has, is that of any teacher.
            other = teachers.states(batch, term.reading) if term.reading else own
            score |= state_scores(own, other, term.temperatures, ids, masks[:, i], k)
        scores.append(score)
    return scores


def step_weights(
    accelerator: Any,
    tokens: Mapping[str, Any],
    scores: Sequence[Mapping[str, Tensor]],
    masks: Sequence[Tensor],
) -> list[Tensor]:
    """What each token counts in a term (``token_weights``), [B, T] of each micro-batch of this
    process, from scores [B, T] and the tokens that the term is over (masks [B, T], bool)."""
    if not tokens:
        return [mask.float() for mask in masks]
    names = [*scores[0]]
    chosen = [[part[n][m] for n in names] for part, m in zip(scores, masks, strict=True)]
    own = torch.cat([torch.stack(part, 1).float() for part in chosen])
    lengths = accelerator.gather(torch.tensor([len(own)], device=own.device)).tolist()
    gathered = accelerator.gather(accelerator.pad_across_processes(own))
    parts = gathered.split(max(1, *lengths)) if len(lengths) > 1 else [own]
    step = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=False)])
    weights = token_weights(tokens, dict(zip(names, step.T, strict=True)))
    start = sum(lengths[: accelerator.process_index])
    by_part = weights[start : start + len(own)].split([int(mask.sum()) for mask in masks])
    return [
        torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, part)
        for mask, part in zip(masks, by_part, strict=True)
    ]


@torch.no_grad()
def tally(sum_of: Sequence[Term], batch: Batch, losses: Sequence[Tensor]) -> Tensor:
    """Sums over a micro-batch, [n, 7], which processes and micro-batches add up: tokens of the
    step; tokens that count; what they count times their loss; the sizes of losses, of tokens that
    count and of all of the term's; of the term's responses that the student has sampled those that
    are right, and all."""
    counts, rows, sampled = batch[COUNTS], [], sources.own(batch)
    for i, (term, loss) in enumerate(zip(sum_of, losses, strict=True)):
        counted, size = counts[:, i] != 0, loss.abs().double()
        own, grader = batch[ROWS][:, i] & sampled, term.settings.get("reward", {}).get("grader")
        right = batch[f"correct_{grader}"] * own if grader else own
        values = (
            batch["completion_mask"].sum(),
            counted.sum(),
            (counts[:, i] * loss).double().sum(),
            (size * counted).sum(),
            size.sum(),
            right.sum(),
            own.sum(),
        )
        rows.append(torch.stack([value.double() for value in values]))
    return torch.stack(rows)


def means(sum_of: Sequence[Term], tally: Tensor, weights: Sequence[float]) -> list[Value]:
    """What is measured of each term (``terms.MEASURED``), from the sums of a step (``tally``)."""
    values: list[Value] = []
    for i, (term, row) in enumerate(zip(sum_of, tally.tolist(), strict=True)):
        tokens, counted, loss, size_counted, size, right, responses = row
        measured = {
            "loss": loss / max(1.0, tokens),
            "weight": weights[i],
            "token_share": counted / max(1.0, tokens),
            "loss_share": size_counted / size if size else None,
            "reward": right / responses if "reward" in term.settings and responses else None,
        }
        values += [(f"term_{i}_{n}", None, v) for n, v in measured.items() if v is not None]
    return values

"""A student and a teacher on the student's own rollouts: overlap, mass, entropies, rewards.

Rethinking OPD, Eqs. 6 to 10 at the start of a run, and section 6.2 (Fig. 14): how well the mean
reward of a rollout tells correct ones from others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from opd.core import tables
from opd.losses import metrics
from opd.losses.schemas import METRICS
from opd.models import checkpoints, pairing
from opd.models.prompts import read_prompts
from opd.models.states import hidden_states, padded
from opd.probes.rollouts import Rollout, Row, counted, read_rollouts, right, tokens
from opd.probes.schemas import ROLLOUTS
from opd.stats import draws
from opd.stats.intervals import Array

NAMES = (*metrics.STATE, *metrics.RESPONSE)


class Measurements(NamedTuple):
    """Totals and counts of every metric: ``rollouts`` [2, M, N] of NAMES by rollout, ``positions``
    [2, M, bins] of ``metrics.STATE`` by bins of positions. rewards [N]: the mean reward of each
    rollout, (1/T) sum of log q - log p of its tokens, in nats (section 6.2). ratios: N arrays of
    these, a number for each token."""

    rollouts: Array
    positions: Array
    rewards: Array
    ratios: list[Array]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``pair``: probe.json, draws.parquet, metrics.parquet (at step 0, over all positions and
    by bins of them) and rollouts.parquet.

    cfg: metrics_k, position_bin (tokens), temperature (the student's), seed; optional
    teacher_temperature, grader, micro_batch (rollouts), dtype, threads, chat_template_kwargs (as
    the rollouts were sampled), teacher_chat_template_kwargs. Inputs: generations, student, teacher,
    prompts. Rollouts that a rule rejected are left out. Both models read the same token ids, those
    that were sampled. Raises ``UserError`` where the tokenizers differ, and where there is no
    rollout.
    """
    rollouts = read_rollouts(inputs["generations"])
    measured = measure(cfg, tokens(cfg, rollouts, inputs["student"]), inputs)
    grader = cfg.get("grader")
    correct = right(rollouts, read_prompts(inputs["prompts"]), grader) if grader else None
    values, rows = summarise(cfg, rollouts, measured, correct)
    tables.write(out / "metrics.parquet", rows, METRICS)
    rewards = [
        {
            "id": row["prompt_id"],
            "sample": row["sample"],
            "tokens": len(row["token_ids"]),
            "reward_nats": float(measured.rewards[i]),
            "correct": None if correct is None else bool(correct[i]),
        }
        for i, row in enumerate(rollouts)
    ]
    tables.write(out / "rollouts.parquet", rewards, ROLLOUTS)
    return draws.write(out, values, counted(rollouts)) | {"rollouts": len(rollouts)}


@torch.no_grad()
def measure(
    cfg: Mapping[str, Any], rollouts: Sequence[Rollout], inputs: Mapping[str, Path]
) -> Measurements:
    """Read every rollout once with each model of ``inputs`` (student, teacher).

    cfg: see ``run``. Raises ``UserError`` where tokenizers or vocabularies do not fit together.
    """
    from tqdm import tqdm

    for who, prompts in (
        ("student", [rollout.prompt for rollout in rollouts]),
        ("teacher", [rollout.teacher_prompt for rollout in rollouts]),
    ):
        read = (len(p) + len(r.response) for p, r in zip(prompts, rollouts, strict=True))
        checkpoints.require_room(checkpoints.read_config(inputs[who]), max(read), "generations")
    pair = pairing.load_pair(cfg, inputs["student"], inputs["teacher"])
    where = str(inputs.get("generations", inputs["student"]))
    pairing.require_k(cfg["metrics_k"], pair.vocabulary, "metrics_k")
    pair.require_known((token for rollout in rollouts for token in rollout.response), where)
    device = pair.device
    stops = torch.tensor(sorted(checkpoints.stop_ids(inputs["student"], pair.tokenizer)))
    lengths = [len(rollout.response) for rollout in rollouts]
    longest = max(lengths)
    bins = -(-longest // cfg["position_bin"])
    by_rollout = torch.zeros(2, len(NAMES), len(rollouts), dtype=torch.float64, device=device)
    by_position = torch.zeros(2, len(metrics.STATE), bins, dtype=torch.float64, device=device)
    rewards = torch.zeros(len(rollouts), dtype=torch.float64, device=device)
    ratios = torch.zeros(len(rollouts), longest, dtype=torch.float64, device=device)
    # Alike in length: little padding.
    order = sorted(range(len(rollouts)), key=lambda i: (lengths[i], i))
    size = cfg.get("micro_batch") or 8
    temperatures = cfg["temperature"], cfg.get("teacher_temperature", cfg["temperature"])
    for start in tqdm(range(0, len(order), size), unit="batch", desc="scoring"):
        places = order[start : start + size]
        batch = [rollouts[i] for i in places]
        numbers = torch.tensor(places, device=device)
        ids, mask = padded([rollout.response for rollout in batch], device)
        repeated = metrics.repeats(ids, mask)
        hidden = (
            hidden_states(pair.student, [(r.prompt, r.response) for r in batch], device),
            hidden_states(pair.teacher, [(r.teacher_prompt, r.response) for r in batch], device),
        )
        filled = mask != 0
        row = numbers.unsqueeze(1).expand_as(ids)[filled]
        position = torch.arange(ids.shape[1], device=device).expand_as(ids)[filled]
        for part, states in metrics.in_parts(
            hidden, pair.heads, temperatures, ids[filled], repeated[filled], cfg["metrics_k"]
        ):
            by_rollout[:, : len(metrics.STATE)] += metrics.binned(
                states, row[part], 1, len(rollouts)
            )
            by_position += metrics.binned(states, position[part], cfg["position_bin"], bins)
            # Each token is one of these two.
            ratio = states["log_ratio_repeated_nats"].total + states["log_ratio_other_nats"].total
            rewards.index_add_(0, row[part], ratio.double())
            ratios[row[part], position[part]] = ratio.double()
        last = ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
        responses = metrics.response_metrics(mask, last, stops.to(device), repeated)
        by_rollout[:, len(metrics.STATE) :] += metrics.binned(responses, numbers, 1, len(rollouts))
    return Measurements(
        by_rollout.cpu().numpy(),
        by_position.cpu().numpy(),
        rewards.cpu().numpy() / np.array(lengths),
        [row[:length] for row, length in zip(ratios.cpu().numpy(), lengths, strict=True)],
    )


def summarise(
    cfg: Mapping[str, Any], rollouts: Sequence[Row], measured: Measurements, correct: Array | None
) -> tuple[dict[str, draws.Value], list[Row]]:
    """Values of the probe by name, and rows of METRICS at step 0.

    Every metric of ``opd.losses.metrics``; the entropy gap as the mean over states
    (entropy_gap_nats, the paper's), as the difference of the two means (entropy_gap_of_means_nats,
    what can be had from the code's log) and as that difference within each rollout
    (entropy_gap_of_rollouts_nats); and with ``correct`` [N] the AUROC of the mean rewards and the
    mean of either kind's.
    """
    weights = draws.multiplicities([row["prompt_id"] for row in rollouts])
    totals, counts = measured.rollouts
    values = {
        name: draws.mean(totals[m], counts[m], weights)
        for m, name in enumerate(NAMES)
        if counts[m].any()
    }
    student, teacher = (NAMES.index(f"entropy_{who}_nats") for who in ("student", "teacher"))
    gap = draws.difference(values["entropy_teacher_nats"], values["entropy_student_nats"])
    assert gap.value is not None and gap.draws is not None
    values["entropy_gap_of_means_nats"] = gap._replace(value=abs(gap.value), draws=abs(gap.draws))
    within = abs(totals[teacher] / counts[teacher] - totals[student] / counts[student])
    values["entropy_gap_of_rollouts_nats"] = draws.mean(within, np.ones(len(rollouts)), weights)
    values["reward_nats"] = draws.mean(measured.rewards, np.ones(len(rollouts)), weights)
    if correct is not None:
        values["auroc"] = draws.auroc(measured.rewards, correct, weights)
        for kind, which in (("correct", correct), ("incorrect", ~correct)):
            values[f"n_{kind}"] = draws.total(which, weights)
            values[f"reward_{kind}_nats"] = draws.mean(measured.rewards * which, which, weights)
    rows = metrics.means(metrics.STATE, torch.from_numpy(measured.positions), cfg["position_bin"])
    at = {(name, position): value for name, position, value in rows}
    rows += [
        (
            "entropy_gap_of_means_nats",
            position,
            metrics.entropy_gap_of_means_nats(value, at["entropy_teacher_nats", position]),
        )
        for (name, position), value in at.items()
        if name == "entropy_student_nats"
    ]
    # Of whole rollouts: there are no positions of these.
    rows += [
        (name, None, value.value)
        for name in (*metrics.RESPONSE, "entropy_gap_of_rollouts_nats")
        if (value := values.get(name)) is not None and value.value is not None
    ]
    return values, [
        {"step": 0, "name": name, "position": position, "value": value}
        for name, position, value in rows
    ]

"""SFT pairs from sampled responses: those that no rule rejects."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import SFT_PAIRS
from opd.grading.graders import Graded, grade_all
from opd.models.prompts import prompts_of, read_prompts
from opd.models.response_rules import first_that_rejects
from opd.models.schemas import GENERATIONS

Row = dict[str, Any]


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``filter``: pairs.parquet (in the order of the generations) and report.json.

    cfg: rules (of ``opd.models.response_rules``; a response counts for the rule that it was
    rejected for when it was sampled, or else for the first that rejects it here), correct (null,
    ``only``: wrong ones are dropped, ``first``: right ones are taken first), grader, per_prompt (at
    most so many of a prompt), n (at most so many in all). Inputs: generations, and prompts: the
    same questions with their answers, in the words that the pairs are to have. Raises ``UserError``
    if nothing is left.
    """
    rows = tables.read(inputs["generations"] / "generations.parquet", GENERATIONS).to_pylist()
    prompts = prompts_of(rows, read_prompts(inputs["prompts"]))
    rules, correct = list(cfg["rules"]), cfg.get("correct")
    is_graded = bool(correct) or "answered" in rules
    graded: list[Graded] = [(None, False)] * len(rows)
    if is_graded:
        answered = zip(rows, prompts, strict=True)
        graded, _ = grade_all([(r["response"], p["answer"]) for r, p in answered], cfg["grader"])
    kept, rejected = _kept(cfg, rows, graded)
    report = {
        "generations": len(rows),
        "rejected": dict(rejected),
        "kept": len(kept),
        "prompts_kept": len({rows[i]["prompt_id"] for i in kept}),
    }
    if is_graded:
        report["kept_correct"] = sum(graded[i][1] for i in kept)
    if not kept:
        reasons = ", ".join(f"{rule}: {count}" for rule, count in rejected.items() if count)
        raise UserError(
            f"none of {len(rows)} responses is left ({reasons})",
            "filter.rules",
            "relax the rules, sample more, or let responses be longer",
        )
    pairs = [
        {
            "id": f"{rows[i]['prompt_id']}-{rows[i]['sample']}",
            "prompt": prompts[i]["prompt"],
            "response": rows[i]["response"],
            "turns": prompts[i]["turns"],
        }
        for i in kept
    ]
    tables.write(out / "pairs.parquet", pairs, SFT_PAIRS)
    tables.write_json(out / "report.json", report)
    return report


def _kept(
    cfg: dict[str, Any], rows: Sequence[Row], graded: Sequence[Graded]
) -> tuple[list[int], Counter[str]]:
    """Places of the responses that are kept, and how many were dropped by reason."""
    reasons = [
        row["rejected"]
        or first_that_rejects(cfg["rules"], row["response"], row["finish"], extracted)
        for row, (extracted, _) in zip(rows, graded, strict=True)
    ]
    rejected = Counter(dict.fromkeys(cfg["rules"], 0))
    rejected.update(reason for reason in reasons if reason)
    kept = [i for i, reason in enumerate(reasons) if not reason]
    if cfg.get("correct") == "only":
        right = [i for i in kept if graded[i][1]]
        kept, rejected["wrong"] = right, len(kept) - len(right)
    if cfg.get("correct") == "first":
        kept.sort(key=lambda i: (not graded[i][1], i))
    by_prompt: dict[str, list[int]] = {}
    for i in kept:
        by_prompt.setdefault(rows[i]["prompt_id"], []).append(i)
    within = {i for places in by_prompt.values() for i in places[: cfg.get("per_prompt")]}
    under = [i for i in kept if i in within]
    rejected["over per_prompt"] = len(kept) - len(under)
    chosen = under[: cfg.get("n")]
    rejected["over n"] = len(under) - len(chosen)
    return sorted(chosen), rejected

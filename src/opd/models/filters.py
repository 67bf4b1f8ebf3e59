"""SFT pairs from sampled responses: those that no rule rejects."""

from collections import Counter
from pathlib import Path
from typing import Any

from opd.core import tables
from opd.core.errors import UserError
from opd.data.schemas import PROMPTS, SFT_PAIRS
from opd.grading.graders import grade_all
from opd.models.response_rules import first_that_rejects
from opd.models.schemas import GENERATIONS


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``filter``: pairs.parquet (in the order of the generations) and report.json.

    cfg: rules (of ``opd.models.response_rules``; a response counts for the rule that it was
    rejected for when it was sampled, or else for the first that rejects it here), correct (null,
    ``only``: wrong ones are dropped, ``first``: right ones are taken first), grader, per_prompt (at
    most so many of a prompt), n (at most so many in all). Inputs: generations, and prompts: the
    same questions with their answers, in the words that the pairs are to have. Raises ``UserError``
    if nothing is left.
    """
    generations = tables.read(inputs["generations"] / "generations.parquet", GENERATIONS)
    prompts = tables.read(inputs["prompts"] / "prompts.parquet", PROMPTS)
    asked = {row["id"]: row for row in prompts.to_pylist()}
    rows = generations.to_pylist()
    for i, row in enumerate(rows):
        if row["prompt_id"] not in asked:
            raise UserError(
                f"prompt '{row['prompt_id']}' is not among the prompts",
                f"generations.parquet: row {i}",
                "give the prompt set that was answered, or one derived from it",
            )
    rules, correct = list(cfg["rules"]), cfg.get("correct")
    if correct not in (None, "only", "first"):
        raise UserError(f"'{correct}' is not allowed", "filter.correct", "use null, only or first")
    graded: list[tuple[str | None, bool]] = [(None, False)] * len(rows)
    if correct or "answered" in rules:
        pairs = [(row["response"], asked[row["prompt_id"]]["answer"]) for row in rows]
        graded, _ = grade_all(pairs, cfg["grader"])

    rejected = Counter(dict.fromkeys(rules, 0))
    kept = []
    for i, row in enumerate(rows):
        reason = row["rejected"] or first_that_rejects(
            rules, row["response"], row["finish"], graded[i][0]
        )
        if reason is None:
            kept.append(i)
        else:
            rejected[reason] += 1
    if correct == "only":
        kept_before = len(kept)
        kept = [i for i in kept if graded[i][1]]
        rejected["wrong"] = kept_before - len(kept)
    if correct == "first":
        kept.sort(key=lambda i: (not graded[i][1], i))
    kept, rejected["over per_prompt"] = _at_most(kept, rows, cfg.get("per_prompt"))
    n = cfg.get("n") or len(kept)
    rejected["over n"] = max(0, len(kept) - n)
    kept = sorted(kept[:n])

    report = {
        "generations": len(rows),
        "rejected": dict(rejected),
        "kept": len(kept),
        "prompts_kept": len({rows[i]["prompt_id"] for i in kept}),
    }
    if correct or "answered" in rules:
        report["kept_correct"] = sum(graded[i][1] for i in kept)
    if not kept:
        reasons = ", ".join(f"{rule}: {count}" for rule, count in rejected.items() if count)
        raise UserError(
            f"none of {len(rows)} responses is left ({reasons})",
            "filter.rules",
            "relax the rules, sample more, or let responses be longer",
        )
    tables.write(
        out / "pairs.parquet",
        [
            {
                "id": f"{rows[i]['prompt_id']}-{rows[i]['sample']}",
                "prompt": asked[rows[i]["prompt_id"]]["prompt"],
                "response": rows[i]["response"],
            }
            for i in kept
        ],
        SFT_PAIRS,
    )
    tables.write_json(out / "report.json", report)
    return report


def _at_most(
    kept: list[int], rows: list[dict[str, Any]], per_prompt: int | None
) -> tuple[list[int], int]:
    taken: Counter[str] = Counter()
    under = []
    for i in kept:
        taken[rows[i]["prompt_id"]] += 1
        if per_prompt is None or taken[rows[i]["prompt_id"]] <= per_prompt:
            under.append(i)
    return under, len(kept) - len(under)

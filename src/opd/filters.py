"""Filters of sampled responses, and the SFT pairs that pass them.

The four rejection rules of a released rollout script (Rethinking OPD, spec section 2.4, from the
authors' code): no box, repeated lines, repeated windows, back-to-back repeated blocks.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opd import tables
from opd.errors import Bad
from opd.grading import grade_all

RESPONSE_RULES: dict[str, Callable[[str], bool]] = {}
OTHER_RULES = ("finished", "answered")


def no_box(response: str) -> bool:
    """Whether to reject: ``\\boxed`` does not occur."""
    return "\\boxed" not in response


def repeated_line(response: str) -> bool:
    """Whether to reject: a line of 20 or more characters, stripped, occurs 5 times or more."""
    lines = [line.strip() for line in response.split("\n")]
    counts = Counter(line for line in lines if len(line) >= 20)
    return any(count >= 5 for count in counts.values())


def repeated_window(response: str) -> bool:
    """Whether to reject: of the 100-character windows that start at every tenth character, three
    or more are equal."""
    counts = Counter(response[i : i + 100] for i in range(0, len(response) - 99, 10))
    return any(count >= 3 for count in counts.values())


def repeated_block(response: str) -> bool:
    """Whether to reject: a response of more than 5,000 characters in which a block of 50
    characters occurs three times or more back to back."""
    if len(response) <= 5000:
        return False
    # Three equal blocks in a row: every character of 100 equals the one 50 further on.
    equal = 0
    for here, there in zip(response, response[50:], strict=False):
        equal = equal + 1 if here == there else 0
        if equal == 100:
            return True
    return False


def empty(response: str) -> bool:
    """Whether to reject: nothing but white space."""
    return not response.strip()


RESPONSE_RULES |= {
    "boxed": no_box,
    "repeated_line": repeated_line,
    "repeated_window": repeated_window,
    "repeated_block": repeated_block,
    "nonempty": empty,
}


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``filter``: pairs.parquet (in the order of the generations) and report.json.

    cfg: rules (names of ``RESPONSE_RULES``, ``finished``: ended by itself, ``answered``: the grader
    extracts an answer; a response counts for the first rule that rejects it), correct (null,
    ``only``: wrong ones are dropped, ``first``: right ones are taken first), grader, per_prompt (at
    most so many of a prompt), n (at most so many in all). Inputs: generations, and prompts: the
    same questions with their answers, in the words that the pairs are to have.
    Raises ``Bad`` if nothing is left.
    """
    generations = tables.read(inputs["generations"] / "generations.parquet", tables.GENERATIONS)
    prompts = tables.read(inputs["prompts"] / "prompts.parquet", tables.PROMPTS)
    asked = {row["id"]: row for row in prompts.to_pylist()}
    rows = generations.to_pylist()
    for i, row in enumerate(rows):
        if row["prompt_id"] not in asked:
            raise Bad(
                f"prompt '{row['prompt_id']}' is not among the prompts",
                f"generations.parquet: row {i}",
                "give the prompt set that was answered, or one derived from it",
            )
    rules, correct = list(cfg["rules"]), cfg.get("correct")
    if correct not in (None, "only", "first"):
        raise Bad(f"'{correct}' is not allowed", "filter.correct", "use null, only or first")
    graded: list[tuple[str | None, bool]] = [(None, False)] * len(rows)
    if correct or "answered" in rules:
        pairs = [(row["response"], asked[row["prompt_id"]]["answer"]) for row in rows]
        graded, _ = grade_all(pairs, cfg["grader"])

    rejected = dict.fromkeys(rules, 0)
    kept = []
    for i, row in enumerate(rows):
        reason = next((rule for rule in rules if rejects(rule, row, graded[i][0])), None)
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
        "rejected": rejected,
        "kept": len(kept),
        "prompts_kept": len({rows[i]["prompt_id"] for i in kept}),
    }
    if correct or "answered" in rules:
        report["kept_correct"] = sum(graded[i][1] for i in kept)
    if not kept:
        reasons = ", ".join(f"{rule}: {count}" for rule, count in rejected.items() if count)
        raise Bad(
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
        tables.PAIRS,
    )
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    return report


def rejects(rule: str, row: dict[str, Any], extracted: str | None) -> bool:
    """Whether one rule rejects a generation (a row of the schema GENERATIONS)."""
    if rule == "finished":
        return bool(row["finish"] != "stop")
    if rule == "answered":
        return extracted is None
    if rule in RESPONSE_RULES:
        return RESPONSE_RULES[rule](row["response"])
    known = ", ".join([*RESPONSE_RULES, *OTHER_RULES])
    raise Bad(f"unknown rule '{rule}'", "filter.rules", f"use {known}")


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

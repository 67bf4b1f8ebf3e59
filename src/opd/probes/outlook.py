"""What the indicators of a pair mean, in plain words: an outlook by a few rules, and a report.

The paper (Rethinking OPD) gives no thresholds and no forecast. The rules and their limits are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Outlook = Literal["likely to help", "unlikely to help", "likely to harm", "unclear"]
Found = Mapping[str, Mapping[str, Any]]  # name -> value, low, high, n

# The deepest prefix is shorter than all but DEEPEST % of the rollouts; the others are to it as
# the paper's 1K, 4K and 8K to its 16K tokens.
DEEPEST = 25
DEPTHS = (1 / 16, 1 / 4, 1 / 2, 1)

# Our limits. Mass of either model on the tokens that are in both top k sets, in the paper's two
# DeepSeek pairs 0.97 to 0.99: below FOREIGN the models hardly speak the same language, from
# FAMILIAR on they do. An advantage below USABLE is none. Below LITTLE_NATS per token the teacher
# asks for what the student does already.
FOREIGN, FAMILIAR = 0.8, 0.9
USABLE = 0.05
LITTLE_NATS = 0.01
CUT_OFF = 0.3


def outlook(values: Found) -> tuple[Outlook, str]:
    """What to expect of a run, and why: the first rule that fits.

    1. likely to harm: the teacher's share right, or the advantage of its continuations at the
       least depth, is below the student's (interval below zero). It will be imitated all the same.
    2. unlikely to help: KL below LITTLE_NATS, or either model with less than FOREIGN of its mass on
       shared tokens.
    3. unlikely to help: an advantage that is below USABLE (interval).
    4. likely to help: the advantage is above zero (interval), both masses are at least FAMILIAR,
       and where there are right and wrong rollouts the reward tells them apart (AUROC above one
       half, interval).
    5. unclear.

    values: ``draws.summary`` of what ``preflight.run`` measured.
    """
    shallow = _shallow(values)
    mass = min(values[f"overlap_mass_{who}"]["value"] for who in ("student", "teacher"))
    worse = [
        name
        for name, one in (
            ("it solves fewer of these prompts than the student", values.get("share_difference")),
            ("it does worse than the student from the student's own first tokens", shallow),
        )
        if one is not None and one["high"] < 0
    ]
    if worse:
        return (
            "likely to harm",
            f"The student will come to be like the teacher, which is worse: {worse[0]}.",
        )
    if values["kl_nats"]["value"] < LITTLE_NATS:
        return (
            "unlikely to help",
            f"The teacher asks for what the student does already "
            f"(KL {values['kl_nats']['value']:.4f} nats a token).",
        )
    if mass < FOREIGN:
        return (
            "unlikely to help",
            f"The two share few tokens (mass {mass:.2f}): the teacher judges texts that are "
            "foreign to it, and what it prefers the student never samples.",
        )
    if shallow is None:
        return (
            "unclear",
            "Whether the teacher knows anything new is not measured: that takes a grader, and "
            "rollouts of different lengths.",
        )
    if shallow["high"] < USABLE:
        return (
            "unlikely to help",
            "From the student's own first tokens the teacher does no better than the student: it "
            "has nothing new to teach on these prompts.",
        )
    auroc = values.get("auroc")
    if shallow["low"] > 0 and auroc and auroc["value"] is not None and auroc["low"] <= 0.5:
        return (
            "unclear",
            "The teacher does better than the student from its first tokens, but its reward does "
            "not tell right rollouts from wrong ones.",
        )
    if shallow["low"] > 0 and mass >= FAMILIAR:
        return (
            "likely to help",
            "The teacher does better than the student from the student's own first tokens, and the "
            "two share the tokens that it can say so with.",
        )
    if shallow["low"] > 0:
        return (
            "unclear",
            f"The teacher knows something new, but the two share only part of their tokens (mass "
            f"{mass:.2f}).",
        )
    return "unclear", "Whether the teacher does better than the student cannot be told from so few."


def advice(whole: Mapping[str, Any]) -> list[str]:
    """What the paper would try next, for a report's indicators."""
    values = whole["values"]
    shallow, fall = _shallow(values), values.get("advantage_fall")
    mass = min(values[f"overlap_mass_{who}"]["value"] for who in ("student", "teacher"))
    thinking = whole["thinking"]
    found = []
    if thinking["student"] != thinking["teacher"]:
        found.append(
            f"Give both the same thinking mode (it is {thinking['student']} for the student, "
            f"{thinking['teacher']} for the teacher); training refuses such a pair."
        )
    if whole["templates"]["differing"]:
        found.append(
            "Ask in the teacher's own format: a template like the one it was trained with brought "
            "the recovered part of its lead from about 80 % to about 85 % (section 5.2)."
        )
    if mass < FAMILIAR:
        found.append(
            "Cold start: fine-tune the student on responses of the teacher first. It starts at a "
            "higher overlap and trains smoothly then (section 5.1)."
        )
    if (shallow and shallow["high"] < USABLE) or values["kl_nats"]["value"] < LITTLE_NATS:
        found.append(
            "Take a teacher with new knowledge, not merely a larger one of the same pipeline: "
            "after one that was trained further with RL a student had recovered 16.9 % of the gap, "
            "not "
            "5.3 %, and 58.6 %, not 15.6 % (section 3.2)."
        )
    if fall and fall["low"] is not None and fall["low"] > 0:
        found.append(
            "Keep responses short: the teacher's advantage fades with depth. Of 0.5K to 15K tokens "
            "3K and 7K were best, and 10K and more collapsed late (section 6.1)."
        )
    if values["truncation_ratio"]["value"] > CUT_OFF:
        found.append(
            f"Allow longer responses here: {_percent(values['truncation_ratio'])} of the "
            "student's were cut off, and cannot be right."
        )
    if shallow and shallow["low"] <= 0 and shallow["high"] >= USABLE:
        found.append("Measure more prompts (--n) or samples (--samples): the intervals are wide.")
    return found


# Indicator, how it is called, what the paper says of its successful and of its failing pair.
# R1-Distill-1.5B with JustRL-1.5B as a teacher, and with R1-Distill-7B: 1.5, 3.2, 4.1, 6.1, 6.2.
_PAPER: tuple[tuple[str, str, str, str], ...] = (
    ("overlap_ratio", "overlap of top k", "0.72", "0.747"),
    ("overlap_mass_student", "student's mass on it", "0.97-0.99", "0.97-0.99"),
    ("overlap_mass_teacher", "teacher's mass on it", "0.97-0.99", "0.97-0.99"),
    ("entropy_student_nats", "student's entropy, nats", "", ""),
    ("entropy_teacher_nats", "teacher's entropy, nats", "", ""),
    ("entropy_gap_nats", "entropy gap, nats", "narrows", "stays"),
    ("kl_nats", "KL to the teacher, nats", "", ""),
    ("share_student", "student's share right", "", ""),
    ("share_teacher", "teacher's share right", "", ""),
    ("share_difference", "  difference", "", ""),
)
_REWARD = ("auroc", "AUROC of the reward", "0.73", "0.75")


def report(measured: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The measured indicators with outlook, reason and advice, and the same as Markdown."""
    found, why = outlook(measured["values"])
    whole = {**measured, "outlook": found, "because": why}
    whole["next"] = advice(whole)
    return whole, _markdown(whole)


def _shallow(values: Found) -> Mapping[str, Any] | None:
    """The advantage at the least depth that was measured."""
    names = (f"advantage_depth{i + 1}" for i in range(len(DEPTHS)))
    return next((values[name] for name in names if name in values), None)


def _markdown(whole: Mapping[str, Any]) -> str:
    values = whole["values"]
    lines = [
        "# Preflight",
        "",
        f"- student: {whole['student']}",
        f"- teacher: {whole['teacher']}",
        f"- {whole['prompts']} prompts, {whole['rollouts']} rollouts of the student "
        f"({values['response_tokens']['value']:.0f} tokens on average, "
        f"{_percent(values['truncation_ratio'])} cut off). Nothing was trained.",
        "",
        f"## Outlook: {whole['outlook']}",
        "",
        *_wrapped(whole["because"]),
        "",
        "## Indicators",
        "",
        *_table(_indicator_rows(whole)),
        "",
        *_wrapped(
            "The paper's columns are R1-Distill-1.5B with JustRL-1.5B as its teacher (more than "
            "80 % of the gap recovered) and with R1-Distill-7B (5 %): Rethinking OPD, sections "
            "3.2, 4.1, 6.1 and 6.2. What it does not give is left empty."
        ),
        "",
        "## Checks",
        "",
        *_checks(whole),
        "",
        "## Reading",
        "",
        *_reading(whole),
    ]
    if whole["next"]:
        lines += ["", "## What the paper would try next", ""]
        lines += [line for one in whole["next"] for line in _wrapped(one, "- ")]
    lines += [
        "",
        *_wrapped(
            "The paper gives no thresholds and forecasts nothing. The outlook follows rules of our "
            "own: likely to harm, the teacher is below the student; unlikely to help, shared mass "
            f"below {FOREIGN}, KL below {LITTLE_NATS} nats, or an advantage below {USABLE}; likely "
            f"to help, an advantage above zero, shared mass of {FAMILIAR} or more and an AUROC "
            "above 0.5. Shares, advantages and AUROC count by the bounds of their 95 % intervals "
            "over prompts, the advantage at the least depth. A larger teacher of the student's own "
            "pipeline may pass and still teach little: in the paper such a pair looked as good as "
            "others at its start."
        ),
    ]
    return "\n".join(lines) + "\n"


def _indicator_rows(whole: Mapping[str, Any]) -> list[list[str]]:
    values = whole["values"]
    rows = [["indicator", "this pair", "95 % interval", "paper: success", "paper: failure"]]
    published = ("+0.37 (1K)", "+0.27 (4K)", "+0.15 (8K)", "+0.02 (16K)")
    advantages = [
        (one["name"], f"advantage, prefix of {one['prefix']:,}", published[one["depth"] - 1], "")
        for one in whole["depths"]
    ]
    for name, title, success, failure in (*_PAPER, *advantages, _REWARD):
        one = values.get(name)
        if one is None or one["value"] is None:
            continue
        signed = name.startswith("advantage") or name == "share_difference"
        form = "{:+.3f}" if signed else "{:.3f}"
        bounds = f"{form} to {form}".format(one["low"], one["high"])
        rows.append([title, form.format(one["value"]), bounds, success, failure])
    return rows


def _checks(whole: Mapping[str, Any]) -> list[str]:
    rows, templates, thinking = whole["embedding_rows"], whole["templates"], whole["thinking"]
    lines = [f"- tokenizer: the same, {whole['tokens']:,} tokens"]
    padded = rows["student"] != rows["teacher"]
    lines.append(
        f"- heads: {rows['student']:,} rows of the student, {rows['teacher']:,} of the teacher"
        + (" (padding, which training cuts)" if padded else "")
    )
    if templates["differing"]:
        lines += _wrapped(
            f"chat templates: {templates['differing']} of {whole['prompts']} prompts differ from "
            "what the teacher's own template makes of them; in training it reads the student's",
            "- ",
        )
        if templates["first"]:
            lines += [f"    {who}: {text!r}" for who, text in templates["first"].items()]
    else:
        lines.append("- chat templates: both render these prompts alike")
    lines.append(
        f"- thinking: {thinking['student']} for both"
        if thinking["student"] == thinking["teacher"]
        else f"- thinking: {thinking['student']} for the student, {thinking['teacher']} for the "
        "teacher: they differ"
    )
    return lines


def _reading(whole: Mapping[str, Any]) -> list[str]:
    values = whole["values"]
    lines = _wrapped(
        f"overlap {values['overlap_ratio']['value']:.2f}: so many of the k likeliest tokens are in "
        "both sets. The paper's successful pair began at 0.72 and rose to 0.91; a failing one "
        "began higher, at 0.747, and stayed: overlap alone is not enough.",
        "- ",
    )
    mass = [values[f"overlap_mass_{who}"]["value"] for who in ("student", "teacher")]
    lines += _wrapped(
        f"mass {mass[0]:.2f} and {mass[1]:.2f}: what student and teacher give to these shared "
        "tokens. In the paper 0.97 to 0.99, whether a run succeeded or not.",
        "- ",
    )
    ours, theirs = (values[f"entropy_{who}_nats"]["value"] for who in ("student", "teacher"))
    surer = "teacher" if theirs < ours else "student"
    lines += _wrapped(
        f"entropy: the {surer} is the surer of the two ({ours:.2f} nats of the student, "
        f"{theirs:.2f} of the teacher). Successful runs narrow the gap.",
        "- ",
    )
    if whole["depths"]:
        depth = whole["depths"][0]
        lines += _wrapped(
            "advantage: share right when the teacher goes on from the student's first tokens, less "
            f"the student's own, on the {depth['rollouts']} rollouts that are long enough. It is "
            "what new knowledge that the student's own states can take up looks like. With depth "
            "it falls: in the paper from +0.37 to +0.02.",
            "- ",
        )
    if "auroc" in values:
        auroc = values["auroc"]
        if auroc["value"] is None:
            text = (
                "AUROC: not defined, all rollouts are right"
                if values["n_incorrect"]["value"] == 0
                else "AUROC: not defined, no rollout is right"
            )
        else:
            text = (
                f"AUROC {auroc['value']:.2f}: how often the teacher's mean reward is higher for a "
                "right rollout than for a wrong one. The paper's successful teacher had 0.73, its "
                "failing one 0.75: it says that the teacher knows right from wrong, not that it "
                "can teach it"
            )
            if auroc["high"] < 0.5:
                text += ". Here the teacher prefers wrong rollouts: look at it before training"
        lines += _wrapped(text + ".", "- ")
    return lines


def _percent(value: Mapping[str, Any]) -> str:
    return f"{100 * value['value']:.0f} %"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that is aligned as it stands."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]


def _wrapped(text: str, bullet: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(
        text, 96, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_on_hyphens=False
    )

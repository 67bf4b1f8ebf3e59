"""What the indicators of a pair mean, in plain words: an outlook by a few rules, and a report.

The paper (Rethinking OPD) gives no thresholds and no forecast. The rules and their limits are ours.
"""

from collections.abc import Mapping
from typing import Any, Literal

from opd.core.code import package_file
from opd.core.markdown import render

Outlook = Literal["likely to help", "unlikely to help", "likely to harm", "unclear"]
Indicators = Mapping[str, Mapping[str, Any]]  # name -> value, low, high, n

# Our limits. Mass of either model on the tokens that are in both top k sets, in the paper's two
# DeepSeek pairs 0.97 to 0.99: below FOREIGN the models hardly speak the same language, from
# FAMILIAR on they do. An advantage below USABLE is none. Below LITTLE_NATS per token the teacher
# asks for what the student does already.
FOREIGN, FAMILIAR = 0.8, 0.9
USABLE = 0.05
LITTLE_NATS = 0.01
CUT_OFF = 0.3


def outlook(values: Indicators) -> tuple[Outlook, str]:
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
    shallow, mass = _shallow(values), _shared_mass(values)
    kl = values["kl_nats"]["value"]
    worse = {
        "it solves fewer of these prompts than the student": values.get("share_difference"),
        "it does worse than the student from the student's own first tokens": shallow,
    }
    for reason, difference in worse.items():
        if difference is not None and difference["high"] < 0:
            because = f"The student will come to be like the teacher, which is worse: {reason}."
            return "likely to harm", because
    if kl < LITTLE_NATS:
        return (
            "unlikely to help",
            f"The teacher asks for what the student does already (KL {kl:.4f} nats a token).",
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
    if shallow["low"] <= 0:
        return (
            "unclear",
            "Whether the teacher does better than the student cannot be told from so few.",
        )
    auroc = values.get("auroc")
    if auroc and auroc["value"] is not None and auroc["low"] <= 0.5:
        return (
            "unclear",
            "The teacher does better than the student from its first tokens, but its reward does "
            "not tell right rollouts from wrong ones.",
        )
    if mass < FAMILIAR:
        return (
            "unclear",
            f"The teacher knows something new, but the two share only part of their tokens (mass "
            f"{mass:.2f}).",
        )
    return (
        "likely to help",
        "The teacher does better than the student from the student's own first tokens, and the "
        "two share the tokens that it can say so with.",
    )


def advice(report: Mapping[str, Any]) -> list[str]:
    """What the paper would try next, for a report's indicators."""
    values = report["values"]
    shallow, fall = _shallow(values), values.get("advantage_fall")
    mass = _shared_mass(values)
    thinking = report["thinking"]
    advised = []
    if thinking["student"] != thinking["teacher"]:
        advised.append(
            f"Give both the same thinking mode (it is {thinking['student']} for the student, "
            f"{thinking['teacher']} for the teacher); training refuses such a pair."
        )
    if report["templates"]["differing"]:
        advised.append(
            "Ask in the teacher's own format: a template like the one it was trained with brought "
            "the recovered part of its lead from about 80 % to about 85 % (section 5.2)."
        )
    if mass < FAMILIAR:
        advised.append(
            "Cold start: fine-tune the student on responses of the teacher first. It starts at a "
            "higher overlap and trains smoothly then (section 5.1)."
        )
    if (shallow and shallow["high"] < USABLE) or values["kl_nats"]["value"] < LITTLE_NATS:
        advised.append(
            "Take a teacher with new knowledge, not merely a larger one of the same pipeline: "
            "after one that was trained further with RL a student had recovered 16.9 % of the gap, "
            "not 5.3 %, and 58.6 %, not 15.6 % (section 3.2)."
        )
    if fall and fall["low"] is not None and fall["low"] > 0:
        advised.append(
            "Keep responses short: the teacher's advantage fades with depth. Of 0.5K to 15K tokens "
            "3K and 7K were best, and 10K and more collapsed late (section 6.1)."
        )
    if values["truncation_ratio"]["value"] > CUT_OFF:
        advised.append(
            f"Allow longer responses here: {_percent(values['truncation_ratio'])} of the "
            "student's were cut off, and cannot be right."
        )
    if shallow and shallow["low"] <= 0 and shallow["high"] >= USABLE:
        advised.append("Measure more prompts (--n) or samples (--samples): the intervals are wide.")
    return advised


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


# The paper's advantages at the four depths.
_ADVANTAGES = ("+0.37 (1K)", "+0.27 (4K)", "+0.15 (8K)", "+0.02 (16K)")


def reported(measured: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The measured indicators with outlook, reason and advice, and the same as Markdown."""
    expected, because = outlook(measured["values"])
    report = {**measured, "outlook": expected, "because": because, "next": advice(measured)}
    limits = {"FOREIGN": FOREIGN, "FAMILIAR": FAMILIAR, "USABLE": USABLE}
    text = render(
        package_file(__file__, "preflight.md.jinja"),
        **report,
        **limits,
        LITTLE_NATS=LITTLE_NATS,
        indicators=_indicator_rows(report),
        percent=_percent,
        repr=repr,
    )
    return report, text


def _shallow(values: Indicators) -> Mapping[str, Any] | None:
    """The advantage at the least depth that was measured."""
    names = (f"advantage_depth{i + 1}" for i in range(len(_ADVANTAGES)))
    return next((values[name] for name in names if name in values), None)


def _shared_mass(values: Indicators) -> float:
    return float(min(values[f"overlap_mass_{who}"]["value"] for who in ("student", "teacher")))


def _indicator_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["indicator", "this pair", "95 % interval", "paper: success", "paper: failure"]]
    advantages = [
        (row["name"], f"advantage, prefix of {row['prefix']:,}", _ADVANTAGES[row["depth"] - 1], "")
        for row in report["depths"]
    ]
    for name, title, success, failure in (*_PAPER, *advantages, _REWARD):
        value = report["values"].get(name)
        if value is None or value["value"] is None:
            continue
        signed = name.startswith("advantage") or name == "share_difference"
        form = "{:+.3f}" if signed else "{:.3f}"
        bounds = f"{form} to {form}".format(value["low"], value["high"])
        rows.append([title, form.format(value["value"]), bounds, success, failure])
    return rows


def _percent(value: Mapping[str, Any]) -> str:
    return f"{100 * value['value']:.0f} %"

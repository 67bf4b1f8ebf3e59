"""What the indicators of a pair mean, in plain words: an outlook by a few rules, and a report.

The paper (Rethinking OPD) gives no thresholds and no forecast. The rules and their limits are ours.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.core.code import package_file
from opd.core.markdown import render
from opd.losses.spec import BIASED

Indicators = Mapping[str, Mapping[str, Any]]  # name -> value, low, high, n

# Our limits. Mass of either model on the tokens that are in both top k sets, in the paper's two
# DeepSeek pairs 0.97 to 0.99: below FOREIGN the models hardly speak the same language, from
# FAMILIAR on they do. An advantage below USABLE is none. Below LITTLE_NATS per token the teacher
# asks for what the student does already. From UNTRAINED of the entropy of equal chances on, a model
# has learnt next to nothing.
LIMITS = {
    **{"FOREIGN": 0.8, "FAMILIAR": 0.9, "USABLE": 0.05, "LITTLE_NATS": 0.01},
    **{"CUT_OFF": 0.3, "FEW_ANSWERS": 0.5, "UNTRAINED": 0.9},
}


def outlook(values: Indicators, tokens: int) -> tuple[str, str]:
    """What to expect of a run, and why: the first rule of ``outlook.jinja`` that fits.

    1. likely to harm: the teacher's share right, or the advantage of its continuations at the
       least depth, is below the student's (interval below zero). It will be imitated all the same.
    2. unlikely to help: the teacher's entropy is above UNTRAINED of that of equal chances of all
       ``tokens``; KL below LITTLE_NATS; or either model with less than FOREIGN of its mass on
       shared tokens.
    3. unlikely to help: an advantage that is below USABLE (interval).
    4. likely to help: the advantage is above zero (interval), both masses are at least FAMILIAR,
       and where there are right and wrong rollouts the reward tells them apart (AUROC above one
       half, interval).
    5. unclear.

    values: ``draws.summary`` of what ``preflight.run`` measured; tokens: of the vocabulary.
    """
    template = package_file(__file__, "outlook.jinja")
    expected, _, because = _rendered(template, values=values, tokens=tokens).partition(": ")
    return " ".join(expected.split()), " ".join(because.split())


def advice(report: Mapping[str, Any]) -> list[str]:
    """What to try next, for a report's indicators: what the paper would, or another teacher."""
    text = _rendered(package_file(__file__, "advice.jinja"), **report)
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _rendered(template: Path, *, values: Indicators, tokens: int, **report: Any) -> str:
    """The text that a template makes of the indicators and of what else a report says."""
    low, high = _advantage(values)
    return render(
        template,
        **{**report, **LIMITS},
        values=values,
        most_entropy=math.log(tokens),
        untrained=_untrained(values, tokens),
        kl=values["kl_nats"]["value"],
        mass=min(values[f"overlap_mass_{who}"]["value"] for who in ("student", "teacher")),
        measured=not math.isnan(low),
        low=low,
        high=high,
        share_high=_bounds(values, "share_difference")[1],
        auroc_low=_bounds(values, "auroc")[0],
        fall_low=_bounds(values, "advantage_fall")[0],
        percent=_percent,
    )


def _untrained(values: Indicators, tokens: int) -> dict[str, bool]:
    """Whether student and teacher are hardly surer than one that gives all tokens equal chances."""
    most = LIMITS["UNTRAINED"] * math.log(tokens)
    return {who: values[f"entropy_{who}_nats"]["value"] > most for who in ("student", "teacher")}


# Indicator, how it is called, what the paper says of its successful and of its failing pair.
# R1-Distill-1.5B with JustRL-1.5B as a teacher, and with R1-Distill-7B: 1.5, 3.2, 4.1, 6.1, 6.2.
_PAPER: tuple[tuple[str, str, str, str], ...] = (
    ("overlap_ratio", "overlap of top k", "0.72", "0.747"),
    ("overlap_mass_student", "student's mass on it", "0.97-0.99", "0.97-0.99"),
    ("overlap_mass_teacher", "teacher's mass on it", "0.97-0.99", "0.97-0.99"),
    ("entropy_student_nats", "student's entropy, nats", "", ""),
    ("entropy_teacher_nats", "teacher's entropy, nats", "", ""),
    ("entropy_gap_nats", "their gap at a token, nats", "narrows", "stays"),
    ("kl_nats", "KL to the teacher, nats", "", ""),
    ("share_student", "student's right responses, share", "", ""),
    ("share_teacher", "teacher's right responses, share", "", ""),
    ("share_difference", "  difference", "", ""),
)
_REWARD = ("auroc", "AUROC of the reward", "0.73", "0.75")
# The paper's advantages at the four depths.
_ADVANTAGES = ("+0.37 (1K tokens)", "+0.27 (4K)", "+0.15 (8K)", "+0.02 (16K)")


def reported(measured: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The measured indicators with outlook, reason and advice, and the same as Markdown."""
    expected, because = outlook(measured["values"], measured["tokens"])
    report = {**measured, "outlook": expected, "because": because, "next": advice(measured)}
    text = render(
        package_file(__file__, "preflight.md.jinja"),
        **report,
        **LIMITS,
        indicators=indicator_rows(report),
        untrained=_untrained(measured["values"], measured["tokens"]),
        not_zero=_not_zero(measured["own_teacher"]),
        BIASED=BIASED,
        percent=_percent,
        repr=repr,
    )
    return report, text


def _not_zero(own_teacher: Mapping[str, tuple[float, float]]) -> list[str]:
    """What ``preflight.own_teacher`` has found that should be 0: beyond what bfloat16 rounds."""
    return [
        f"{name} {loss:.3f} nats"
        for name, (loss, gradient) in own_teacher.items()
        if loss > 1e-3 or (gradient > 1e-3 and name not in BIASED)
    ]


def _bounds(values: Indicators, name: str) -> tuple[float, float]:
    """The interval of an indicator; NaN, which is neither above nor below a limit, without one."""
    value = values.get(name, {})
    low, high = value.get("low"), value.get("high")
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def _advantage(values: Indicators) -> tuple[float, float]:
    """The interval of the advantage at the least depth that was measured."""
    names = [f"advantage_depth{i + 1}" for i in range(len(_ADVANTAGES))]
    return _bounds(values, next((name for name in names if name in values), names[0]))


def indicator_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The indicators of a report with their intervals, beside what the paper says of its two pairs;
    the first row says what the columns are."""
    rows = [
        [
            "indicator (nats: a token)",
            "this pair",
            "95 % interval",
            "paper: success",
            "paper: failure",
        ]
    ]
    advantages = [
        (
            row["name"],
            f"advantage after {row['prefix']:,} tokens",
            _ADVANTAGES[row["depth"] - 1],
            "",
        )
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

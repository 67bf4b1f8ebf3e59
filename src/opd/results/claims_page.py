"""Claims and their verdicts, to be read: as Markdown, as a page that needs no other file, and as a
part of the report."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from opd.core.code import package_file
from opd.core.html import render

PAGES = package_file(__file__, "pages/claims")
Claim = Mapping[str, Any]
# A sign beside each verdict, for readers who see no colour.
MARKS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "inconclusive": "≈",
    "not comparable": "◇",
    "not run": "○",
}
MEANINGS = {
    "reproduced": "the whole 95 % interval of what was measured lies in the band of the claim",
    "not reproduced": "none of the interval lies in that band",
    "inconclusive": "the interval straddles an end of the band",
    "not comparable": "the claim only says how high a number of the paper is, and models and data "
    "of this scale are not those of the paper",
    "not run": "a run or a probe that the claim is about is not in the config of this scale",
}
UNJUDGED = ("not run", "not comparable")
FEW = 4  # published numbers that are named in the line of a claim


def mark(verdict: str) -> str:
    """A verdict with its sign: ✓ reproduced."""
    return f"{MARKS[verdict]} {verdict}"


def marks(verdicts: Mapping[str, Any]) -> dict[str, str]:
    """Verdicts that a claim of this scale may have, with their signs."""
    return {v: m for v, m in MARKS.items() if v != "not comparable" or not verdicts["comparable"]}


def verdict_of(claim: Claim) -> str:
    """A claim's verdict, marked where a number without an interval decided it."""
    bare = not claim["interval"] and claim["verdict"] not in UNJUDGED
    return mark(claim["verdict"]) + (" (no interval)" if bare else "")


def headline(verdicts: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """How many claims have which verdict, and how many of these without an interval."""
    on = " on one run," if len(verdicts["seeds"]) == 1 else ""
    parts = []
    for verdict in marks(verdicts):
        bare = 0 if verdict in UNJUDGED else verdicts["without_interval"].get(verdict, 0)
        aside = f" ({bare} of them{on} without an interval)" if bare else ""
        parts.append(f"{verdicts['counts'].get(verdict, 0)} {name(verdict)}{aside}")
    return ", ".join(parts)


def ours(verdicts: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """The same of the claims that are this project's own, to go behind that; empty without any."""
    own = verdicts.get("ours", {"counts": {}})
    count = sum(own["counts"].values())
    return f"; {count} of our own: {headline({**verdicts, **own}, name)}" if count else ""


def about(row: Mapping[str, Any]) -> str:
    """What a published row is about, in words: metric, benchmark and setting."""
    return ", ".join(row[key] for key in ("metric", "benchmark", "setting") if row[key] != "-")


def published_briefly(claim: Claim) -> str:
    """The first published values of a claim, each with what tells it from the others."""
    rows = [*{row["target"]: row for row in claim["published"]}.values()]

    def groups(keys: Sequence[str]) -> int:
        return len({tuple(row[key] for key in keys) for row in rows})

    telling: list[str] = []
    for key in ("benchmark", "teacher", "student", "metric", "setting"):
        if groups([*telling, key]) > groups(telling):
            telling.append(key)
    shown = []
    for row in rows[:FEW]:
        words = [row[key] for key in telling or ["metric"] if row[key] not in ("-", "train")]
        shown.append(f"{(', '.join(words) or about(row)).replace('_', ' ')}: {row['value']}")
    more = len(rows) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def lacking(experiment: str, claims: Sequence[Claim]) -> str:
    """What these claims of an experiment were not run for: the names of all that was not measured,
    each once."""
    reasons = "; ".join(claim["reason"] or "" for claim in claims).split("; ")
    absent = [reason.removeprefix("not measured: ") for reason in reasons if reason]
    names = [name.removesuffix(f" ({experiment})") for name in ", ".join(absent).split(", ")]
    return ", ".join(dict.fromkeys(names))


def unbroken(text: str) -> str:
    """A text with its numbers held to their units."""
    return re.sub(r"(\d) (?=%|points?\b|nats|tokens)", "\\1\u00a0", text)


def values(verdicts: Mapping[str, Any], figures: Collection[str] = ()) -> dict[str, Any]:
    """What the templates need to show a claims.json. ``figures``: those of the page (PAPER/NAME),
    which are linked."""

    def experiment_title(paper: str, experiment: str) -> str:
        titles = verdicts["papers"].get(paper, {}).get("experiments", {})
        return str(titles.get(experiment, ""))

    functions = (headline, ours, mark, verdict_of, lacking, about, published_briefly, unbroken)
    preface = render(PAGES, "preface.md.j2", verdicts=verdicts) if verdicts["claims"] else ""
    return {
        "verdicts": verdicts,
        "preface": [part.replace("\n", " ").strip() for part in preface.split("\n\n")],
        "marks": marks(verdicts),
        "meanings": MEANINGS,
        "figures": figures,
        "experiment_title": experiment_title,
        **{function.__name__: function for function in functions},
    }


def markdown(verdicts: Mapping[str, Any]) -> str:
    """The verdicts as Markdown: counts, then paper by paper and experiment by experiment."""
    return render(PAGES, "claims.md.j2", **values(verdicts)).rstrip() + "\n"


def page(verdicts: Mapping[str, Any]) -> str:
    """claims.html: one file that needs no other."""
    return render(PAGES, "claims.html.j2", **values(verdicts))

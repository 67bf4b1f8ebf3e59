"""Claims and their verdicts, to be read: as Markdown, as a page that needs no other file, and as a
part of another page."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from markupsafe import Markup

from opd.page import render

# A sign beside each verdict, for readers who see no colour.
MARKS = {"reproduced": "✓", "not reproduced": "✗", "inconclusive": "≈", "not run": "○"}

_KINDS = {verdict: verdict.replace(" ", "-") for verdict in MARKS}

# For claims_html, below an element of the class "claims"; no network, no script.
STYLE = """
.claims { --reproduced: light-dark(#12663c, #6fcf97);
  --not-reproduced: light-dark(#a8261b, #ff8f80); --inconclusive: light-dark(#7a5200, #e6b450);
  --not-run: light-dark(#5c5c5c, #a8a8a8); overflow-wrap: anywhere; }
.claims fieldset { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; border: 1px solid #8886;
  border-radius: .4rem; margin: 1rem 0; }
.claims article { border: 1px solid #8886; border-left: .4rem solid; border-radius: .4rem;
  margin: .8rem 0; padding: .7rem 1rem; }
.claims h4 { margin: 0; font-size: 1rem; }
.claims p, .claims ul { margin: .35rem 0; }
.claims ul { list-style: none; padding: 0; }
.claims li { padding-left: 1.4rem; text-indent: -1.4rem; }
.claims li .verdict { display: inline-block; width: 1.4rem; text-indent: 0; }
.claims .verdict { font-weight: 700; white-space: nowrap; }
.claims .meta, .claims small { color: light-dark(#5c5c5c, #a8a8a8); font-size: .9rem; }
.claims .scroll { overflow-x: auto; }
.claims table { border-collapse: collapse; font-size: .9rem; }
.claims :is(th, td) { border-bottom: 1px solid #8886; padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; min-width: 6rem; overflow-wrap: normal; }
.claims details { margin: .5rem 0; }
.claims summary { cursor: pointer; }
.claims article.not-reproduced { border-left-style: double; }
.claims article.inconclusive { border-left-style: dashed; }
.claims article.not-run { border-left-style: dotted; }
@media print { .claims fieldset { display: none; } }
""" + "".join(
    f".claims article.{kind} {{ border-left-color: var(--{kind}); }}\n"
    f".claims .{kind} > .verdict, .claims .{kind} > h4 .verdict {{ color: var(--{kind}); }}\n"
    f".claims:has(#claims-{kind}:checked) :is(article:not(.{kind}), "
    f"section:not(:has(article.{kind}))) {{ display: none; }}\n"
    for kind in _KINDS.values()
)
_PAGE = """\
{% extends "base" %}
{% block style %}{{ style }}{% endblock %}
{% block body %}
{% for line in preface %}
<p>{{ line }}</p>
{% endfor %}
{{ claims }}
{% endblock %}
"""


def mark(verdict: str) -> str:
    """A verdict with its sign: ✓ reproduced."""
    return f"{MARKS[verdict]} {verdict}"


def preface(found: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before the verdicts, a paragraph each."""
    seeds = found["seeds"]
    many = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    lines = [
        f"Scale {found['scale']}, {many}. A claim is reproduced where the whole 95 % interval of "
        "what was measured lies in the band that the claim allows, not reproduced where none of it "
        "does, inconclusive where it straddles, and has the worst verdict of its checks."
    ]
    if len(seeds) == 1:
        lines.append(
            "With one seed intervals are about problems only, and what is measured in training has "
            "none: its verdict is that of this one run."
        )
    if not found["comparable"]:
        lines.append(
            "Models and data of this scale are not the paper's: its numbers stand beside ours, but "
            "only directions and the claims' own margins are judged."
        )
    return lines


def _experiments(found: Mapping[str, Any]) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
    for name, group in groupby(found["claims"], lambda claim: claim["experiment"]):
        yield name, list(group)


def _meta(claim: Mapping[str, Any]) -> str:
    figure = [claim["figure"]] if claim["figure"] else []
    return ", ".join([f"section {claim['section']}", *figure, claim["id"]])


def _reason(claim: Mapping[str, Any]) -> str:
    """Why, where the checks do not say it themselves: what is missing stands there."""
    return "" if claim["verdict"] == "not run" else claim["reason"]


def _said(said: Mapping[str, Any]) -> list[str]:
    """Cells of a published row: what, its value, ours, the difference, where it is from."""
    what = ", ".join(said[key] for key in ("metric", "benchmark", "setting") if said[key] != "-")
    ours = said["ours"]["text"] if said["ours"] else "–"
    apart = said["difference"]["text"] if said["difference"] else said.get("note") or "–"
    source = f"{said['confidence']}: {said['source']}"
    return [f"{said['target']}: {what}", said["value"], ours, apart, source]


HEADER = ("published", "value", "here", "difference", "source")


def markdown(found: Mapping[str, Any]) -> str:
    """The verdicts as Markdown: counts, then experiment by experiment."""
    counts = ", ".join(f"{found['counts'][v]} {mark(v)}" for v in MARKS)
    lines = [f"# Claims, scale {found['scale']}", "", counts, ""]
    lines += [line for text in preface(found) for line in (text, "")]
    for name, claims in _experiments(found):
        lines += [f"## {name}", ""]
        for claim in claims:
            lines += [f"**{mark(claim['verdict'])}** {claim['statement']} ({_meta(claim)})", ""]
            if _reason(claim):
                lines += [f"{_reason(claim)}.", ""]
            listed = [f"- {mark(one['verdict'])}: {one['text']}" for one in claim["checks"]]
            listed += [
                f"- published {' | '.join(_said(one)[:-1])} ({one['confidence']})"
                for one in claim["published"]
            ]
            lines += [*listed, ""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{_unbroken(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="text"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _unbroken(text: str) -> str:
    """Escaped, with numbers held to their units."""
    return re.sub(r"(\d) (?=%|points?\b|nats|tokens)", "\\1\u00a0", escape(text))


def _claim(claim: Mapping[str, Any]) -> str:
    kind = _KINDS[claim["verdict"]]
    checks = "".join(
        f'<li class="{_KINDS[one["verdict"]]}"><span class="verdict" title="{one["verdict"]}">'
        f"{MARKS[one['verdict']]}</span>{_unbroken(one['text'])}</li>\n"
        for one in claim["checks"]
    )
    reason = f'<p class="meta">{escape(_reason(claim))}</p>\n' if _reason(claim) else ""
    published = ""
    if claim["published"]:
        rows = _table(HEADER, map(_said, claim["published"]))
        published = f"<details><summary>what the paper says</summary>{rows}</details>\n"
    return (
        f'<article class="{kind}" id="claim-{escape(claim["id"])}"><h4>'
        f'<span class="verdict">{mark(claim["verdict"])}</span> {escape(claim["statement"])}</h4>\n'
        f'<p class="meta">{escape(_meta(claim))}</p>\n<ul>{checks}</ul>\n'
        f"{reason}{published}</article>\n"
    )


def _filter(counts: Mapping[str, int]) -> str:
    """Radio buttons that the stylesheet reads: no script is needed."""
    options = [("claims-all", f"all {sum(counts.values())}", " checked")]
    options += [(f"claims-{_KINDS[v]}", f"{mark(v)} {counts[v]}", "") for v in MARKS]
    buttons = "".join(
        f'<label><input type="radio" name="claims-shown" id="{name}"{on}> {text}</label>\n'
        for name, text, on in options
    )
    return f"<fieldset><legend>show</legend>\n{buttons}</fieldset>\n"


def claims_html(found: Mapping[str, Any]) -> str:
    """The claims of claims.json as HTML to be put into a page that has ``STYLE``: a filter, then
    experiment by experiment, then every published row."""
    sections = "".join(
        f"<section><h3>{escape(name)}</h3>\n{''.join(map(_claim, claims))}</section>\n"
        for name, claims in _experiments(found)
    )
    rows = [
        [
            row["id"],
            f"{row['experiment']}, {row['figure']}",
            ", ".join(row[key] for key in ("metric", "benchmark", "setting") if row[key] != "-"),
            row["value"],
            ", ".join([*row["claims"], *row["figures"]]) or row["context"] or "–",
            row["status"],
        ]
        for row in found["targets"]
    ]
    header = ("row", "where", "what", "value", "claims, figures or reason", "status")
    published = (
        f"<details><summary>all {len(rows)} published rows and what became of each</summary>\n"
        f"{_table(header, rows)}</details>\n"
    )
    return f'<div class="claims">\n{_filter(found["counts"])}{sections}{published}</div>\n'


def page(found: Mapping[str, Any]) -> str:
    """claims.html: one file that needs no other."""
    return render(
        _PAGE,
        f"Claims, scale {found['scale']}",
        style=Markup(STYLE),
        preface=preface(found),
        claims=Markup(claims_html(found)),
    )

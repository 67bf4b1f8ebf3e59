"""Claims and their verdicts, to be read: as Markdown, as a page that needs no other file, and as a
part of another page."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from opd.core.html import render, table

# A sign beside each verdict, for readers who see no colour.
MARKS = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "inconclusive": "≈",
    "not comparable": "◇",
    "not run": "○",
}
BARE = "no interval"
FEW = 4  # published numbers that are named in the line of a claim

KINDS = {verdict: verdict.replace(" ", "-") for verdict in MARKS}

# What _CLAIMS and _ROWS need of a page's style: a filter by radio buttons that needs no script.
STYLE = """
:root { --reproduced: light-dark(#12663c, #6fcf97); --not-reproduced: light-dark(#a8261b, #ff8f80);
  --inconclusive: light-dark(#7a5200, #e6b450); --not-run: var(--faint);
  --not-comparable: var(--faint); }
fieldset { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; border: 1px solid var(--line);
  border-radius: .4rem; margin: 1rem 0; min-width: 0; }
.claim { border: 1px solid var(--line); border-left-width: .4rem; border-radius: .4rem;
  margin: .8rem 0; padding: .7rem 1rem; min-width: 0; }
.paper > h3 { margin-top: 2rem; font-size: 1.15rem; }
.group h4 { margin: 1.2rem 0 .4rem; font-size: 1.05rem; }
.claim h5 { margin: 0; font-size: 1rem; }
.claim p, .claim ul { margin: .35rem 0; }
.claim ul { padding-left: 1.2rem; }
.claim.not-reproduced { border-left-style: double; }
.claim.inconclusive { border-left-style: dashed; }
.claim:is(.not-run, .not-comparable) { border-left-style: dotted; }
.claim li > p { margin: .1rem 0 .4rem; }
.verdict { font-weight: 700; white-space: nowrap; }
.meta { color: var(--faint); font-size: .9rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
.short { max-width: 40rem; }
.short tbody th { min-width: 0; }
.short thead th { font-size: .8rem; padding-right: .5rem; }
@media print {
  fieldset { display: none; }
  .claim { break-inside: avoid; }
}
""" + "".join(
    f".claim.{kind} {{ border-left-color: var(--{kind}); }}\n"
    f".claim.{kind} .verdict, .claim li.{kind}::marker {{ color: var(--{kind}); }}\n"
    f"body:has(#claims-{kind}:checked) :is(.claim:not(.{kind}), .group:not(:has(.claim.{kind})))\n"
    "  { display: none; }\n"
    for kind in KINDS.values()
)

_CLAIMS = """\
<p>{{ claims | length }} claims: {{ headline }}.</p>
{% for line in preface %}
<p>{{ line }}</p>
{% endfor %}
<fieldset><legend>Show</legend>
<label><input type="radio" name="claims-shown" id="claims-all" checked>
all {{ claims | length }}</label>
{% for verdict, mark in marks.items() %}
<label><input type="radio" name="claims-shown" id="claims-{{ kinds[verdict] }}">
{{ mark }} {{ verdict }} {{ counts.get(verdict, 0) }}</label>
{% endfor %}
</fieldset>
{% for paper, experiments in papers.items() %}
<section class="paper"><h3>{{ about[paper].title }}</h3>
{% if about | length > 1 %}
<p>{{ of_paper(paper) }}.</p>
{% endif %}
<div class="short">{{ by_experiment(paper, experiments) }}
<p class="meta">{% for verdict, mark in marks.items() %}{{ mark }} {{ verdict }}
{%- if not loop.last %} · {% endif %}{% endfor %}</p></div>
{% for experiment, of in experiments.items() %}
<div class="group" id="{{ anchor(group(paper, experiment)) }}"><h4>{{ experiment }}</h4>
{% for claim in of if claim.verdict != "not run" %}
<article class="claim {{ kinds[claim.verdict] }}" id="{{ anchor(of_claim(claim)) }}">
<h5>{{ claim.statement }}</h5>
<p><span class="verdict">{{ verdict_of(claim) }}</span>
{%- if claim.reason %}: {{ claim.reason }}{% endif %}</p>
{% if claim.note %}
<p>{{ claim.note }}</p>
{% endif %}
<ul>
{% for check in claim.checks if check.verdict != "not run" %}
<li class="{{ kinds.get(check.verdict, "") }}">{{ unbroken(check.text) }} \
({{ marks.get(check.verdict, "") }} {{ check.verdict }})</li>
{% endfor %}
</ul>
{% if claim.published %}
<details{% if comparable %} open{% endif %}>
<summary>Published: {{ said(claim) }}
{%- if not comparable %} (not comparable at this scale){% endif %}</summary>
{{ published(claim) }}</details>
{% endif %}
<p class="meta">{{ claim.id }}{% if claim.section %} · section {{ claim.section }}{% endif %}
{%- if claim.figure %} · {{ figure(claim.paper ~ "/" ~ claim.figure) }}{% endif %}
{%- if claim.seeds is not none %} · seeds: {{ claim.seeds }}{% endif %}</p>
</article>
{% endfor %}
{% for claims, reason in folded(experiment, of) %}
<details class="claim not-run" id="{{ anchor('not-run:' ~ paper ~ '/' ~ experiment) }}">
<summary><span class="verdict">{{ marks["not run"] }} not run</span>:
{{ claims | length }} claim{{ "s" if claims | length > 1 }}. {{ reason }}</summary>
<ul>
{% for claim in claims %}
<li id="{{ anchor(of_claim(claim)) }}">{{ claim.statement }}
<p class="meta">{{ claim.id }}{% if claim.section %} · section {{ claim.section }}{% endif %}
{%- if claim.figure %} · {{ figure(claim.paper ~ "/" ~ claim.figure) }}{% endif %}
{%- if claim.published %} · published: {{ said(claim) }}{% endif %}</p></li>
{% endfor %}
</ul></details>
{% endfor %}
</div>
{% endfor %}
</section>
{% endfor %}
"""

_PAGE = """\
{% extends "base" %}
{% block style %}{{ style }}{% endblock %}
{% block body %}
<h2>Verdicts</h2>
{{ claims }}
<h2>Published values</h2>
{{ published }}
{% endblock %}
"""


def mark(verdict: str) -> str:
    """A verdict with its sign: ✓ reproduced."""
    return f"{MARKS[verdict]} {verdict}"


def marks(found: Mapping[str, Any]) -> dict[str, str]:
    """Verdicts that a claim of this scale may have, with their signs."""
    return {v: m for v, m in MARKS.items() if v != "not comparable" or not found["comparable"]}


def verdict_of(claim: Mapping[str, Any]) -> str:
    """A claim's verdict, marked where a number without an interval decided it."""
    bare = not claim["interval"] and claim["verdict"] not in ("not run", "not comparable")
    return mark(claim["verdict"]) + (f" ({BARE})" if bare else "")


def headline(found: Mapping[str, Any], name: Callable[[str], str] = str) -> str:
    """How many claims have which verdict, and how many of these without an interval."""
    on = " on one run," if len(found["seeds"]) == 1 else ""
    parts = []
    for verdict in marks(found):
        many, bare = (found[key].get(verdict, 0) for key in ("counts", "without_interval"))
        counted = bare if verdict not in ("not run", "not comparable") else 0
        aside = f" ({counted} of them{on} without an interval)" if counted else ""
        parts.append(f"{many} {name(verdict)}{aside}")
    return ", ".join(parts)


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
            "With one seed, intervals of scores are about problems, and those of training metrics "
            "about the steps of this one run: neither says how other runs would differ. A metric's "
            "first value, its extremes and its jumps have no interval: the number alone decides, "
            f"and the verdict is marked ({BARE})."
        )
    if not found["comparable"]:
        lines.append(
            "Models and data of this scale are not the paper's: its numbers stand beside ours, but "
            "only directions and the claims' own margins are judged. Claims about how high a "
            "number is are not comparable here."
        )
    return lines


def _papers(found: Mapping[str, Any]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Claims by paper and experiment."""
    papers: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for claim in found["claims"]:
        papers.setdefault(claim["paper"], {}).setdefault(claim["experiment"], []).append(claim)
    return papers


def _meta(claim: Mapping[str, Any]) -> str:
    figure = [claim["figure"]] if claim["figure"] else []
    return ", ".join([f"section {claim['section']}", *figure, claim["id"]])


def what(row: Mapping[str, Any]) -> str:
    """What a published row is about, in words: metric, benchmark and setting."""
    return ", ".join(row[key] for key in ("metric", "benchmark", "setting") if row[key] != "-")


def _said(row: Mapping[str, Any]) -> list[str]:
    """Cells of a published row: what, its value, ours, the difference, how sure the value is."""
    ours = row["ours"]["text"] if row["ours"] else "–"
    apart = f"{row['difference']['text']}, {row['status']}" if row["difference"] else row["status"]
    apart += f": {row['note']}" if row.get("note") else ""
    return [f"{row['target']}: {what(row)}", row["value"], ours, apart, row["confidence"]]


def said(claim: Mapping[str, Any]) -> str:
    """The first published values of a claim, each with what tells it from the others."""
    rows = list({row["target"]: row for row in claim["published"]}.values())
    telling: list[str] = []
    for key in ("benchmark", "teacher", "student", "metric", "setting"):
        if _groups(rows, [*telling, key]) > _groups(rows, telling):
            telling.append(key)
    telling = telling or ["metric"]
    shown = []
    for row in rows[:FEW]:
        about = ", ".join(row[key] for key in telling if row[key] not in ("-", "train"))
        shown.append(f"{(about or what(row)).replace('_', ' ')}: {row['value']}")
    more = len(rows) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _groups(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({tuple(row[key] for key in keys) for row in rows})


def folded(
    experiment: str, claims: Sequence[Mapping[str, Any]]
) -> list[tuple[list[Mapping[str, Any]], str]]:
    """The claims of an experiment that were not run, and why: nothing, or all of them as one."""
    absent = [claim for claim in claims if claim["verdict"] == "not run"]
    if not absent:
        return []
    parts = [part for claim in absent for part in (claim["reason"] or "").split("; ")]
    lacking = [part.removeprefix("not measured: ").split(", ") for part in parts if part]
    names = dict.fromkeys(name.removesuffix(f" ({experiment})") for one in lacking for name in one)
    return [(absent, f"Not measured here: {', '.join(names)}." if names else "")]


def unbroken(text: str) -> str:
    """A text with its numbers held to their units."""
    return re.sub(r"(\d) (?=%|points?\b|nats|tokens)", "\\1\u00a0", text)


def of_claim(claim: Mapping[str, Any]) -> str:
    """What a claim goes by on a page: ids are a paper's own."""
    return f"claim:{claim['paper']}/{claim['id']}"


def _of_paper(found: Mapping[str, Any], paper: str) -> str:
    """The counts of one of several papers."""
    counts = found["papers"][paper]
    return f"{sum(counts['counts'].values())} claims: {headline({**found, **counts})}"


def anchor(name: str) -> str:
    """The id of a claim, figure, table or run on a page, and the target of links to it."""
    return quote(name, safe=":/")


def markdown(found: Mapping[str, Any]) -> str:
    """The verdicts as Markdown: counts, then paper by paper and experiment by experiment."""
    lines = [f"# Claims, scale {found['scale']}", "", headline(found, mark), ""]
    lines += [line for text in preface(found) for line in (text, "")]
    for paper, experiments in _papers(found).items():
        lines += [f"## {found['papers'][paper]['title']}", ""]
        if len(found["papers"]) > 1:
            lines += [f"{_of_paper(found, paper)}.", ""]
        for experiment, claims in experiments.items():
            lines += [f"### {experiment}", ""]
            run = [claim for claim in claims if claim["verdict"] != "not run"]
            lines += [line for claim in run for line in _lines(claim)]
            for absent, reason in folded(experiment, claims):
                lines += [f"**{mark('not run')}** {reason}", ""]
                lines += [f"- {claim['statement']} ({_meta(claim)})" for claim in absent]
                lines.append("")
    return "\n".join(lines)


def _lines(claim: Mapping[str, Any]) -> list[str]:
    """A claim that was run as lines of Markdown."""
    lines = [f"**{verdict_of(claim)}** {claim['statement']} ({_meta(claim)})", ""]
    for text in (claim["reason"], claim["note"]):
        lines += [f"{text.removesuffix('.')}.", ""] if text else []
    lines += [f"- {mark(one['verdict'])}: {one['text']}" for one in claim["checks"]]
    for one in claim["published"]:
        *said, confidence = _said(one)
        lines.append(f"- published {' | '.join(said)} ({confidence})")
    return [*lines, ""]


def _published(claim: Mapping[str, Any]) -> Markup:
    """What was published of a claim beside what was found here."""
    header = ("", "published", "here", "difference", "confidence", "source")
    rows = [[*map(unbroken, _said(row)), row["source"]] for row in claim["published"]]
    return table(header, rows, name=f"published values of {claim['id']}", text=True)


def _group(paper: str, experiment: str) -> str:
    return f"experiment:{paper}/{experiment}"


def _by_experiment(
    marks: Mapping[str, str], paper: str, experiments: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Markup:
    """How many claims of each experiment have which verdict, with links."""
    rows = []
    for experiment, of in experiments.items():
        counts = Counter(claim["verdict"] for claim in of)
        link = Markup('<a href="#{}">{}</a>').format(anchor(_group(paper, experiment)), experiment)
        rows.append([link, *(counts[verdict] or "" for verdict in marks)])
    return table(["", *marks.values()], rows, name="verdicts by experiment")


def called(figure: str) -> str:
    """A figure's own name: fig06 of PAPER/fig06."""
    return figure.rpartition("/")[2]


def claims_html(found: Mapping[str, Any], figure: Callable[[str], str] = called) -> Markup:
    """The claims of claims.json as a part of a page that has ``STYLE``: counts, a filter, then
    paper by paper and experiment by experiment. ``figure`` makes a link of a figure's name
    (PAPER/NAME), where the page has that figure."""
    part = render(
        _CLAIMS,
        "Claims",
        claims=found["claims"],
        counts=found["counts"],
        headline=headline(found) if found["claims"] else "",
        verdict_of=verdict_of,
        said=said,
        folded=folded,
        comparable=found["comparable"],
        papers=_papers(found),
        about=found["papers"],
        of_paper=partial(_of_paper, found),
        of_claim=of_claim,
        by_experiment=partial(_by_experiment, marks(found)),
        group=_group,
        preface=preface(found) if found["claims"] else [],
        marks=marks(found),
        kinds=KINDS,
        anchor=anchor,
        figure=figure,
        published=_published,
        unbroken=unbroken,
    )
    return Markup(part)


def targets_html(found: Mapping[str, Any], figure: Callable[[str], str] = called) -> Markup:
    """Published rows of claims.json, and what became of each: a folded table for each paper."""
    header = (
        "target",
        "experiment",
        "of",
        "what",
        "value",
        "confidence",
        "here",
        "status",
        "claims",
    )
    rows: dict[str, list[list[object]]] = {}
    for row in found["targets"]:
        claims = zip(row["claims"], row["verdicts"], strict=True)
        links = [
            Markup('<a href="#{}">{}</a> {}').format(
                anchor(of_claim({"paper": row["paper"], "id": id})), id, verdict
            )
            for id, verdict in claims
        ]
        aside = row["context"] or row["note"]
        rows.setdefault(row["paper"], []).append(
            [
                *(row[key] for key in ("id", "experiment", "figure")),
                *(what(row), row["value"], row["confidence"]),
                unbroken("; ".join(row["ours"])) or "–",
                row["status"] + (f": {aside}" if aside else ""),
                Markup(", ").join([*links, *map(figure, row["figures"])]),
            ]
        )
    folded = Markup(
        "<details><summary>{}: all {}, and what became of each</summary>\n{}</details>\n"
    )
    parts = []
    for paper, of in rows.items():
        title = found["papers"][paper]["title"]
        shown = table(header, of, name=f"all published values of {title}", text=True)
        parts.append(folded.format(title, len(of), shown))
    return Markup("").join(parts)


def page(found: Mapping[str, Any]) -> str:
    """claims.html: one file that needs no other."""
    return render(
        _PAGE,
        f"Claims, scale {found['scale']}",
        style=Markup(STYLE),
        claims=claims_html(found),
        published=targets_html(found),
    )

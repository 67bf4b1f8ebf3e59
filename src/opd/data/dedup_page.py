"""A page on which a person judges a similarity threshold: one HTML file that needs no other."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from opd.core.html import render

# A question longer than this is cut on the page.
CHARACTERS = 2000

_PAGE = """\
{% extends "base" %}
{% block style %}
svg { width: 100%; max-width: 45rem; height: auto; }
svg text { font-size: 11px; fill: currentColor; }
article { border: 1px solid var(--line); border-radius: .4rem; margin: .8rem 0; padding: .6rem; }
article header { font-weight: 600; }
article div { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
article p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
small { display: block; color: var(--faint); font-weight: 400; overflow-wrap: anywhere; }
@media (max-width: 40rem) { article div { grid-template-columns: 1fr; } }
{% endblock %}
{% block body %}
{% for head, content in sections %}
<section><h2>{{ head }}</h2>
{{ content }}</section>
{% endfor %}
{% endblock %}
"""


class Pair(NamedTuple):
    """Two questions side by side, each with its name, below what is said of them."""

    head: str
    left_name: str
    left: str
    right_name: str
    right: str


def page(title: str, sections: Iterable[tuple[str, Markup]]) -> str:
    """The page: a title, and sections of a heading and its HTML."""
    return render(_PAGE, title, sections=sections)


def paragraph(text: str) -> Markup:
    return Markup("<p>{}</p>\n").format(text)


_PAIR = Markup(
    "<article><header>{}</header><div><p><small>{}</small>{}</p><p><small>{}</small>{}</p>"
    "</div></article>\n"
)


def pairs(shown: Iterable[Pair]) -> Markup:
    """Questions side by side, or one above the other on a narrow screen."""
    found = [
        _PAIR.format(pair.head, pair.left_name, _cut(pair.left), pair.right_name, _cut(pair.right))
        for pair in shown
    ]
    return Markup().join(found) or paragraph("None.")


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} … (cut)"


def bins(cosines: NDArray[np.float64]) -> dict[str, list[float]]:
    """Histogram of cosines in steps of 0.02: the lower edges that occur, and the counts."""
    places = np.floor(np.clip(cosines, -1, 1) * 50 + 1e-9).astype(int)
    found, counts = np.unique(places, return_counts=True)
    return {"from": [round(p / 50, 2) for p in found.tolist()], "count": counts.tolist()}


def histogram(counted: dict[str, list[float]], threshold: float) -> Markup:
    """The histogram of ``bins`` as SVG, with a line at the threshold."""
    if not counted["from"]:
        return paragraph("Nothing was compared.")
    low, width, height = min(*counted["from"], threshold), 640, 200
    most, span = max(counted["count"]), 1.02 - low

    def x(cosine: float) -> float:
        return round(10 + (cosine - low) / span * (width - 20), 1)

    bars = "".join(
        f'<rect x="{x(start)}" width="{(width - 20) * 0.018 / span:.1f}" '
        f'y="{height - count / most * (height - 20):.1f}" '
        f'height="{count / most * (height - 20):.1f}" fill="var(--bar)">'
        f"<title>{start:.2f} to {start + 0.02:.2f}: {count}</title></rect>"
        for start, count in zip(counted["from"], counted["count"], strict=True)
    )
    ticks = "".join(
        f'<text x="{x(n / 10)}" y="{height + 15}" text-anchor="middle">{n / 10}</text>'
        for n in range(-10, 11)
        if low <= n / 10
    )
    return Markup(
        f'<svg viewBox="0 0 {width} {height + 20}" role="img" aria-label="histogram of cosines">'
        f'{bars}<line x1="{x(threshold)}" x2="{x(threshold)}" y1="0" y2="{height}" '
        f'stroke="var(--cut)" stroke-width="2"/>{ticks}'
        f'<text x="10" y="11">{most}</text></svg>\n'
    )

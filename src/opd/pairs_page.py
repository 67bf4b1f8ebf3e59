"""A page on which a person judges a similarity threshold: one HTML file that needs no other."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A question longer than this is cut on the page.
CHARACTERS = 2000

STYLE = """
:root { color-scheme: light dark; --line: #8886; --faint: #888; --bar: #4878a8; --cut: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 45rem; height: auto; }
svg text { font-size: 11px; fill: currentColor; }
article { border: 1px solid var(--line); border-radius: .4rem; margin: .8rem 0; padding: .6rem; }
article header { font-weight: 600; }
article div { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
article p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
small { display: block; color: var(--faint); font-weight: 400; overflow-wrap: anywhere; }
@media (max-width: 40rem) { article div { grid-template-columns: 1fr; } }
"""


class Pair(NamedTuple):
    """Two questions side by side, each with its name, below what is said of them."""

    head: str
    left_name: str
    left: str
    right_name: str
    right: str


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """The page: a title, and sections of a heading and its HTML."""
    body = "".join(
        f"<section><h2>{escape(head)}</h2>\n{html}</section>\n" for head, html in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows below a header; the first column is a name, the others are numbers."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n"
        for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>\n"


def pairs(shown: Iterable[Pair]) -> str:
    """Questions side by side, or one above the other on a narrow screen."""
    return "".join(
        f"<article><header>{escape(pair.head)}</header><div>"
        f"<p><small>{escape(pair.left_name)}</small>{escape(_cut(pair.left))}</p>"
        f"<p><small>{escape(pair.right_name)}</small>{escape(_cut(pair.right))}</p>"
        "</div></article>\n"
        for pair in shown
    ) or paragraph("None.")


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} … (cut)"


def bins(cosines: NDArray[np.float64]) -> dict[str, list[float]]:
    """Histogram of cosines in steps of 0.02: the lower edges that occur, and the counts."""
    places = np.floor(np.clip(cosines, -1, 1) * 50 + 1e-9).astype(int)
    found, counts = np.unique(places, return_counts=True)
    return {"from": [round(p / 50, 2) for p in found.tolist()], "count": counts.tolist()}


def histogram(counted: dict[str, list[float]], threshold: float) -> str:
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
    return (
        f'<svg viewBox="0 0 {width} {height + 20}" role="img" aria-label="histogram of cosines">'
        f'{bars}<line x1="{x(threshold)}" x2="{x(threshold)}" y1="0" y2="{height}" '
        f'stroke="var(--cut)" stroke-width="2"/>{ticks}'
        f'<text x="10" y="11">{most}</text></svg>\n'
    )

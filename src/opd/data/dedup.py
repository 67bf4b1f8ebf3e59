"""Deduplication of a prompt set against another one, or within itself.

Rethinking OPD, appendix C.3: questions without their affixes are compared as strings; of the
rest, those whose nearest neighbour among the other set's questions has a cosine of at least 0.6
(all-mpnet-base-v2, flat inner-product index) are removed too. Outer white space does not count;
case and LaTeX do.

Within one set the first of a pair stays: a prompt is removed where any earlier row, itself removed
or not, has the same text or a cosine at or above the threshold. So no two prompts that are kept
are that near, and what is kept depends on the order of the rows.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from opd.core import tables
from opd.core.code import package_file
from opd.core.errors import UserError
from opd.core.html import render
from opd.data.neighbours import Doubles, Places
from opd.data.schemas import NEIGHBOURS, PROMPTS, REMOVED

# Templates of every page on which a person judges a threshold: pairs, and a histogram.
PAGES = package_file(__file__, "pages/pairs")
THRESHOLDS = tuple(n / 100 for n in range(40, 91, 5))
# Pairs shown on either side of the threshold.
SHOWN = 20


def run(cfg: dict[str, Any], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Stage ``dedup``: prompts.parquet (kept, in the old order), removed.parquet, report.json,
    dedup.html.

    cfg: threshold (a cosine; at or above it, both in float64, a prompt is removed). Inputs:
    prompts, against (not within one set), neighbours. Raises ``UserError`` where nothing is left.
    """
    ours, *against = (
        tables.read(inputs[name] / "prompts.parquet", PROMPTS)
        for name in ("prompts", "against")
        if name in inputs
    )
    theirs = against[0] if against else ours
    found = read_neighbours(inputs["neighbours"], ours, theirs)
    threshold = cfg["threshold"]
    exact = found.exact >= 0
    semantic = ~exact & (found.cosine >= threshold)
    if (exact | semantic).all():
        where, remedy = "dedup.threshold", "raise it, or compare sets"
        raise UserError(f"all {len(ours)} prompts are duplicates", where, remedy)

    mine, other = (t.select(["id", "question"]).to_pylist() for t in (ours, theirs))
    match = np.where(exact, found.exact, found.neighbour)
    removed = [
        {
            **mine[i],
            "neighbour": other[match[i]]["id"],
            "neighbour_question": other[match[i]]["question"],
            "score": 1.0 if exact[i] else float(found.cosine[i]),
            "stage": "exact" if exact[i] else "semantic",
        }
        for i in np.flatnonzero(exact | semantic)
    ]
    compared = np.flatnonzero(~exact & (found.neighbour >= 0))
    report = {
        "prompts": len(ours),
        "against": len(theirs),
        "exact": int(exact.sum()),
        "semantic": int(semantic.sum()),
        "kept": len(ours) - len(removed),
        "threshold": threshold,
        **similarities(found.cosine[compared]),
    }

    order = compared[np.argsort(found.cosine[compared], kind="stable")]
    cut = int(np.searchsorted(found.cosine[order], threshold))

    def pairs(rows: Places) -> list[Any]:
        """A line about each pair, and both of its questions with their names."""
        return [
            (
                f"{found.cosine[i]:.4f}",
                (f"{mine[i]['id']} (row {i})", mine[i]["question"]),
                (f"{other[j]['id']} (row {j})", other[j]["question"]),
            )
            for i, j in zip(rows, found.neighbour[rows], strict=True)
        ]

    html = render(
        (package_file(__file__, "pages/dedup"), PAGES),
        "dedup.html.j2",
        sources=_sources(ours),
        against=_sources(theirs) if against else "earlier rows of the same",
        report=report,
        above=pairs(order[cut : cut + SHOWN]),
        below=pairs(order[max(0, cut - SHOWN) : cut][::-1]),
    )
    tables.write(out / "prompts.parquet", ours.filter(pa.array(~exact & ~semantic)), PROMPTS)
    tables.write(out / "removed.parquet", removed, REMOVED)
    (out / "dedup.html").write_text(html)
    tables.write_json(out / "report.json", report)
    return report


class Neighbours(NamedTuple):
    """All [N]: rows of the other set, or -1, and the neighbour's cosine, or -inf."""

    exact: Places
    neighbour: Places
    cosine: Doubles


def read_neighbours(folder: Path, ours: pa.Table, theirs: pa.Table) -> Neighbours:
    """What the stage ``neighbours`` found for two prompt tables. Raises ``UserError`` where it
    found it for others."""
    path = folder / "neighbours.parquet"
    rows = tables.read(path, NEIGHBOURS)
    exact, neighbour = (rows[name].fill_null(-1).to_numpy() for name in ("exact", "neighbour"))
    hashes, their_hashes = (table["text_hash"].to_pylist() for table in (ours, theirs))
    if (
        rows["text_hash"].to_pylist() != hashes
        or neighbour.max() >= len(theirs)
        or rows["neighbour_hash"].drop_null().to_pylist()
        != [their_hashes[row] for row in neighbour if row >= 0]
    ):
        raise UserError("it belongs to other prompts", str(path), "run the stage neighbours again")
    return Neighbours(exact, neighbour, rows["cosine"].fill_null(-np.inf).to_numpy())


def similarities(cosines: Doubles) -> dict[str, Any]:
    """How many cosines [N] reach each threshold, their median, largest, and histogram in steps of
    0.02: the lower edges that occur, and the counts."""
    steps = np.floor(np.clip(cosines, -1, 1) * 50 + 1e-9).astype(int)
    edges, counts = np.unique(steps, return_counts=True)
    return {
        "compared": len(cosines),
        "at": {f"{t:.2f}": int((cosines >= t).sum()) for t in THRESHOLDS},
        "median_cosine": float(np.median(cosines)) if len(cosines) else None,
        "largest_cosine": float(cosines.max()) if len(cosines) else None,
        "histogram": {
            "from": [round(edge / 50, 2) for edge in edges.tolist()],
            "count": counts.tolist(),
        },
    }


def _sources(prompts: pa.Table) -> str:
    return ", ".join(prompts["source"].unique().to_pylist())

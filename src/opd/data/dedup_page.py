"""What the pages on which a person judges a similarity threshold show: pairs, and a histogram."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opd.core.code import package_file

PAGES = package_file(__file__, "pages/pairs")
WIDTH, HEIGHT = 640, 200


class Pair(NamedTuple):
    """Two questions side by side, each with its name, below a line about both."""

    head: str
    left_name: str
    left: str
    right_name: str
    right: str


def bins(cosines: NDArray[np.float64]) -> dict[str, list[float]]:
    """Histogram of cosines in steps of 0.02: the lower edges that occur, and the counts."""
    steps = np.floor(np.clip(cosines, -1, 1) * 50 + 1e-9).astype(int)
    edges, counts = np.unique(steps, return_counts=True)
    return {"from": [round(edge / 50, 2) for edge in edges.tolist()], "count": counts.tolist()}


def histogram(counted: dict[str, list[float]], threshold: float) -> dict[str, Any] | None:
    """The histogram of ``bins`` as a drawing of ``WIDTH`` by ``HEIGHT``: ``bars`` (their places,
    sizes, edges and counts), the ``width`` of each, the place of the ``line`` at the threshold,
    and those of ``ticks`` by their numbers. None where nothing was counted."""
    if not counted["from"]:
        return None
    low, most = min(*counted["from"], threshold), max(counted["count"])
    scale = (WIDTH - 20) / (1.02 - low)

    def x(cosine: float) -> float:
        return round(10 + (cosine - low) * scale, 1)

    return {
        "size": (WIDTH, HEIGHT),
        "most": most,
        "width": 0.018 * scale,
        "bars": [
            {"x": x(edge), "height": count / most * (HEIGHT - 20), "edge": edge, "count": count}
            for edge, count in zip(counted["from"], counted["count"], strict=True)
        ],
        "line": x(threshold),
        "ticks": {n / 10: x(n / 10) for n in range(-10, 11) if low <= n / 10},
    }

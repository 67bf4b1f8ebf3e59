"""Drawing figures from their numbers: what ``opd.results.figures`` puts into figure.json, and no
more.

The same numbers give the same bytes. All is legible at the width of a page, without colour too.
"""

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opd.core.text import number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]

# Okabe and Ito's palette without its yellow; line styles and markers carry the same distinction
# for readers who see no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)))
LEVELS = ((0, (4, 4)), (0, (1, 3)), (0, (8, 3, 1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
GREY = "0.35"
MAP = "viridis"  # its lightness rises evenly, so it reads in grey as well
WIDTH = 7.0  # inches, the text width of a page
PUBLISHED = "published"
STYLE: dict[Any, Any] = {
    **{"axes.grid": True, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.titlesize": 9, "axes.axisbelow": True, "figure.titlesize": 10},
    **{"font.family": "DejaVu Sans", "font.size": 8, "grid.alpha": 0.3, "grid.linewidth": 0.5},
    **{"hatch.linewidth": 0.6, "legend.frameon": False},
    **{"lines.linewidth": 1.4, "lines.markersize": 4},
    **{"svg.hashsalt": "opd", "text.parse_math": False},
}
# A published value: an open diamond on a thin dotted line.
DIAMOND: dict[str, Any] = {
    **{"color": GREY, "marker": "D", "markersize": 4.5, "markerfacecolor": "white"},
    **{"markeredgewidth": 1, "linestyle": "none", "zorder": 5},
}
DOTTED: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 2))}
ENDS = ("value", "low", "high")


# Pages


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _legend(labels: Sequence[str]) -> tuple[list[str], int, int]:
    """Wrapped labels, in how many columns they fit across the page, and how many lines high."""
    if not labels:
        return [], 1, 0
    columns = max(1, min(len(labels), 4, int(WIDTH * 16 / (max(map(len, labels)) + 6))))
    wrapped = [_wrap(label, 90) for label in labels]
    high = max(label.count("\n") + 1 for label in wrapped)
    return wrapped, columns, high * math.ceil(len(labels) / columns)


@contextmanager
def _page(
    out: Path, data: Data, height: float, legend: Sequence[str]
) -> Iterator[tuple["Figure", dict[str, "Artist"]]]:
    """A page with room for panels ``height`` inches high in all, a title above and a legend below.

    Yields the figure and a dict to be filled with one artist per label of the legend; writes
    figure.png and figure.svg when the block ends.
    """
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        heading = _wrap(data["title"] or "", 80)
        labels, columns, lines = _legend(legend)
        room = 0.2 * (heading.count("\n") + 1 if heading else 0) + 0.19 * lines + 0.25
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        page = Figure(figsize=(WIDTH, height + room), layout=layout)
        if heading:
            page.suptitle(heading, fontweight="bold")
        artists: dict[str, Artist] = {}
        yield page, artists
        if legend:
            keys = {text: artists[label] for label, text in zip(legend, labels, strict=True)}
            place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
            page.legend(list(keys.values()), list(keys), handlelength=3.2, **place)
        source = {"Source": " ".join(data.get("sources", [])) or None}
        page.savefig(out / "figure.png", dpi=160, metadata={"Software": None, **source})
        page.savefig(out / "figure.svg", metadata={"Date": None, "Creator": None, **source})


def _layout(panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels: up to three across, four as a square."""
    columns = 2 if panels == 4 else min(panels, 3)
    return math.ceil(panels / columns), columns


def _grid(
    page: Any, panels: Sequence[Data], rows: int, columns: int, **shared: Any
) -> Iterator[tuple[int, Any, Data]]:
    """(place, axes, panel) of every panel; the places that are left over stay empty."""
    axes = page.subplots(rows, columns, squeeze=False, **shared).flat
    yield from zip(range(len(panels)), axes, panels, strict=False)
    for empty in list(axes)[len(panels) :]:
        empty.set_visible(False)


def _scale(panel: Data) -> int:
    return 100 if panel["percent"] else 1


# Published values


def _published_in_legend(panels: Sequence[Data]) -> list[str]:
    return [PUBLISHED] if any(panel.get("marks") for panel in panels) else []


def _published(artists: dict[str, "Artist"]) -> None:
    from matplotlib.lines import Line2D

    artists[PUBLISHED] = Line2D([0, 1], [0, 0], **{**DIAMOND, **DOTTED})


def _mark_curve(axes: "Axes", mark: Data, scale: float, colour: str) -> None:
    """A published value at its step, or over all steps where it belongs to none."""
    low, high = scale * mark["low"], scale * mark["high"]
    x, middle = mark["x"], (low + high) / 2
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform()} if x is None else {}
    if high > low and x is None:
        axes.axhspan(low, high, color="0.5", alpha=0.2, linewidth=0)
    elif high > low:
        axes.vlines(x, low, high, color=colour, linewidth=2.5, alpha=0.5)
    axes.axhline(middle, zorder=1.5, **DOTTED)
    axes.plot(0.5 if x is None else x, middle, **place, **{**DIAMOND, "color": colour})
    if mark["bound"] and x is not None:
        side, shift = ("right", -3) if mark["last"] else ("left", 3)
        offset: dict[str, Any] = {"xytext": (shift, 5), "textcoords": "offset points"}
        axes.annotate(mark["text"], (x, middle), ha=side, color=GREY, **offset)


def _mark_bar(axes: "Axes", mark: Data, place: float, scale: float) -> None:
    low, high = scale * mark["low"], scale * mark["high"]
    if high > low:
        axes.hlines(place, low, high, color=GREY, linewidth=2.5, alpha=0.6, zorder=4)
    axes.vlines((low + high) / 2, place - 0.75, place + 0.75, **DOTTED)
    axes.plot((low + high) / 2, place, **DIAMOND)


# Curves


def _curve(axes: "Axes", at: int, line: Data, scale: float) -> "Artist":
    """A line over steps with its band, in the style of series number ``at``."""
    colour = COLOURS[at % len(COLOURS)]
    x, y = np.array(line["x"]), scale * np.array(line["y"], dtype=float)
    style: dict[str, Any] = {"linestyle": LINES[at % len(LINES)], "color": colour}
    # Shifted from series to series, so that markers on lines that coincide stay apart.
    every = (at * (len(x) // 40) % max(1, len(x)), max(1, len(x) // 8))
    (drawn,) = axes.plot(x, y, marker=MARKERS[at % len(MARKERS)], markevery=every, **style)
    if line["low"] is not None:
        low, high = (scale * np.array(line[end], dtype=float) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    return drawn


def _level(axes: "Axes", at: int, level: Data, scale: float) -> "Artist":
    """A value that does not change over steps, as a teacher's; its interval would hide others."""
    style: dict[str, Any] = {"linestyle": LEVELS[at % len(LEVELS)], "linewidth": 1.1}
    return axes.axhline(scale * level["value"], color=GREY, zorder=1.6, **style)


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def draw_curves(data: Data, out: Path) -> None:
    """One panel per metric, or metrics downwards and groups of series across.

    A label has one style wherever it stands, so that one legend serves all panels.
    """
    panels, groups = data["panels"], data["groups"]
    several = len(groups) > 1
    order = list(dict.fromkeys(line["label"] for panel in panels for line in panel["lines"]))
    levels = list(dict.fromkeys(one["label"] for panel in panels for one in panel["levels"]))
    rows, columns = (len(panels) // len(groups), len(groups)) if several else _layout(len(panels))
    height = (2.5 if columns < 3 else 2.1) * rows
    legend = [*order, *levels, *_published_in_legend(panels)]
    with _page(out, data, height, legend) as (page, artists):
        shared = "row" if several else False
        for at, axes, panel in _grid(page, panels, rows, columns, sharey=shared):
            scale, styles = _scale(panel), {}
            for line in panel["lines"]:
                styles[line["series"]] = order.index(line["label"])
                artists[line["label"]] = _curve(axes, styles[line["series"]], line, scale)
            for level in panel["levels"]:
                where = levels.index(level["label"])
                artists[level["label"]] = _level(axes, where, level, scale)
            for mark in panel["marks"]:
                _mark_curve(axes, mark, scale, COLOURS[styles[mark["series"]] % len(COLOURS)])
                _published(artists)
            if panel["log"]:
                _logarithmic(axes)
            if several:
                axes.set_title(_wrap(panel["group"], 84 // columns) if at < columns else "")
                axes.set_ylabel(_wrap(panel["label"], 32) if at % columns == 0 else "")
            else:
                axes.set_title(_wrap(panel["label"], 84 // columns))
            if at + columns >= len(panels):
                axes.set_xlabel(data["xlabel"])
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(x=0.02)


# Bars


def _heights(bars: Sequence[Data]) -> tuple[list[str], np.ndarray]:
    labels = [_wrap(bar["label"], 34) for bar in bars]
    return labels, np.array([max(1.6, label.count("\n") + 1.3) for label in labels])


def _bars(
    axes: "Axes",
    panel: Data,
    styles: Mapping[str, tuple[str, str]],
    limits: tuple[float, float],
    inches: float,
) -> None:
    """Horizontal bars with their intervals and numbers."""
    scale = _scale(panel)
    labels, heights = _heights(panel["bars"])
    places = heights / 2 - np.cumsum(heights)  # downwards, as tall as their labels
    offset: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    for place, bar in zip(places, panel["bars"], strict=True):
        if bar["value"] is None:
            axes.annotate("–", (0, place), **offset)
            continue
        colour, hatch = styles.get(bar["group"], ("0.6" if styles else COLOURS[0], ""))
        value, low, high = (scale * bar[end] for end in ENDS)
        axes.barh(place, value, height=1, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        spread = [[max(0, value - low)], [max(0, high - value)]]
        axes.errorbar(value, place, xerr=spread, color="black", capsize=2.5, linewidth=1)
        own = (bar["series"], bar["metric"])
        marks = [mark for mark in panel["marks"] if (mark["series"], mark["metric"]) == own]
        for mark in marks:
            _mark_bar(axes, mark, place, scale)
        right = max([0, value, high, *(scale * mark["high"] for mark in marks)])
        text = f"{value:.1f}".replace("-", "−") if panel["percent"] else number(value)
        axes.annotate(text, (right, place), **offset)
    if limits[0] < 0:
        axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(*limits)
    if panel["percent"]:
        axes.set_xticks([t for t in axes.get_xticks() if -100 <= t <= 100])
        axes.set_xlim(*limits)
    axes.set_yticks(places, labels)
    axes.set_ylim(-heights.sum(), 0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_title(_wrap(panel["label"], int(12.5 * inches)))
    axes.set_xlabel(_wrap(panel["axis"], int(14 * inches)))


def _limits(panels: Sequence[Data], columns: int) -> tuple[float, float]:
    """What an axis shows that these panels share, with room for the longest number."""
    bars = [bar for panel in panels for bar in panel["bars"] if bar["value"] is not None]
    marks = [mark for panel in panels for mark in panel["marks"]]
    seen = [0.0, *(bar[end] for bar in bars for end in ENDS)]
    seen += [mark[end] for mark in marks for end in ("low", "high")]
    low, high = (_scale(panels[0]) * end for end in (min(seen), max(seen)))
    # No figure pretends that 2 % is a lot.
    span = max(high - low, 10 if panels[0]["percent"] else 1e-9)
    room = span * (0.1 + 0.08 * columns)
    return (low - room / 2 if low < 0 else 0.0), low + span + room


def _alike(panels: Sequence[Data]) -> bool:
    return len({tuple(bar["label"] for bar in panel["bars"]) for panel in panels}) == 1


def _bar_panels(page: Any, panels: Sequence[Data], styles: Any, rows: int, columns: int) -> None:
    names = [line for p in panels for label in _heights(p["bars"])[0] for line in label.split("\n")]
    # What the names of the bars leave for each panel.
    inches = (WIDTH - 0.2 - 0.065 * max(map(len, names))) / columns - 0.2
    for _, axes, panel in _grid(page, panels, rows, columns, sharey=_alike(panels)):
        same = [other for other in panels if other["axis"] == panel["axis"]]
        _bars(axes, panel, styles, _limits(same, columns), inches)


def _bar_layout(panels: Sequence[Data]) -> tuple[int, int, float]:
    """Rows, columns and inches; panels whose bars have other names stand below each other."""
    rows, columns = _layout(len(panels)) if _alike(panels) else (len(panels), 1)
    tallest = max(_heights(panel["bars"])[1].sum() for panel in panels)
    return rows, columns, rows * (0.8 + 0.17 * tallest)


def draw_bars(data: Data, out: Path) -> None:
    """One panel per quantity, one bar per series, coloured by group."""
    from matplotlib.patches import Patch

    panels = data["panels"]
    groups = dict.fromkeys(bar["group"] for panel in panels for bar in panel["bars"])
    styles = {
        name: (COLOURS[i % len(COLOURS)], HATCHES[i % len(HATCHES)])
        for i, name in enumerate(filter(None, groups))
    }
    rows, columns, height = _bar_layout(panels)
    legend = [*styles, *_published_in_legend(panels)]
    with _page(out, data, height, legend) as (page, artists):
        _bar_panels(page, panels, styles, rows, columns)
        for group, (colour, hatch) in styles.items():
            artists[group] = Patch(facecolor=colour, hatch=hatch, edgecolor="white")
        _published(artists)


# Heat maps


def _edges(steps: np.ndarray) -> np.ndarray:
    """Borders of cells around steps, half way between neighbours."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    inner = (steps[:-1] + steps[1:]) / 2
    return np.array([2 * steps[0] - inner[0], *inner, 2 * steps[-1] - inner[-1]])


def draw_heatmap(data: Data, out: Path) -> None:
    """A metric over steps (across) and response positions (upwards), one panel per series."""
    panels = data["panels"]
    cells = [np.array(panel["values"], dtype=float) for panel in panels]
    low, high = (float(f([f(values) for values in cells])) for f in (np.nanmin, np.nanmax))
    rows, columns = _layout(len(panels))
    with _page(out, data, (2.9 if columns == 1 else 2.5) * rows, []) as (page, _):
        for at, axes, panel in _grid(page, panels, rows, columns, sharey="row"):
            steps, positions = np.array(panel["steps"], dtype=float), np.array(panel["positions"])
            borders = np.array([*positions, positions[-1] + panel["width"]])
            colours: dict[str, Any] = {"cmap": MAP, "vmin": low, "vmax": high, "rasterized": True}
            image = axes.pcolormesh(_edges(steps), borders, cells[at], **colours)
            # What no response reached: hatched, as any shade would be one of the scale in grey.
            axes.patch.set(facecolor="white", edgecolor="0.6", hatch="////", linewidth=0)
            axes.grid(visible=False)
            if len(panels) > 1:
                axes.set_title(_wrap(panel["label"], 84 // columns))
            if at % columns == 0:
                axes.set_ylabel("response position (tokens)")
            if at + columns >= len(panels):
                axes.set_xlabel(data["xlabel"])
            axes.xaxis.get_major_locator().set_params(integer=True)
        bar = page.colorbar(image, ax=page.axes, pad=0.02)
        bar.set_label(_wrap(data["label"], 40))


# One quantity against another


def draw_scatter(data: Data, out: Path) -> None:
    """A point per series with both intervals and its name beside it."""
    sides = {side: _scale(data[side]) for side in ("x", "y")}
    with _page(out, data, 3.8, []) as (page, _):
        axes = page.subplots()
        for at, point in enumerate(data["points"]):
            value, low, high = (
                np.array([scale * point[side][end] for side, scale in sides.items()])
                for end in ENDS
            )
            spread = np.maximum([value - low, high - value], 0)
            style: dict[str, Any] = {"markersize": 5.5, "linewidth": 1, "capsize": 2}
            style["color"], style["marker"] = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
            axes.errorbar(value[0], value[1], xerr=spread[:, :1], yerr=spread[:, 1:], **style)
        axes.set_xlabel(_wrap(data["x"]["label"], 80))
        axes.set_ylabel(_wrap(data["y"]["label"], 50))
        axes.margins(0.12)
        page.draw_without_rendering()
        _name_points(axes, data["points"], sides)


# Where the name of a point may stand: how far off, and to which side.
_PLACES = [
    (reach, x, y)
    for reach in (6, 14, 24, 36, 50)
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
]


def _name_points(axes: "Axes", points: Sequence[Data], sides: Mapping[str, float]) -> None:
    """Put each point's name where it covers no other name and no point, or covers least."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    values = [(sides["x"] * p["x"]["value"], sides["y"] * p["y"]["value"]) for p in points]
    frame = axes.get_window_extent()
    renderer = FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(values)]
    for value, point in zip(values, points, strict=True):
        least, best, box = math.inf, None, taken[0]
        for reach, x, y in _PLACES:
            thin = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
            style: dict[str, Any] = {"arrowprops": thin if reach > 14 else None, "fontsize": 7.5}
            style["ha"] = {1: "left", -1: "right", 0: "center"}[x]
            style["va"] = {1: "bottom", -1: "top", 0: "center"}[y]
            place: dict[str, Any] = {"xytext": (reach * x, reach * y)}
            text = _wrap(point["label"], 26)
            name: Any = axes.annotate(text, value, textcoords="offset points", **place, **style)
            name.set_in_layout(False)
            # Without the line that leads to the point.
            name.update_positions(renderer)
            extent = Text.get_window_extent(name, renderer)
            outside = extent.width * extent.height - _common(extent, frame)
            covered = sum(_common(extent, other) for other in taken) + 10 * outside
            if covered < least - 1e-6:
                name, best = best, name
                least, box = covered, extent
            if name:
                name.remove()
        taken.append(box)


def _common(one: Any, other: Any) -> float:
    """Area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)


# Distributions


def draw_distribution(data: Data, out: Path) -> None:
    """Histograms of right and of wrong rollouts, one panel per series, and bars below."""
    panels, below = data["panels"], data["bars"]
    rows, columns = _layout(len(panels))
    first = 2.3 * rows
    lower, across, second = _bar_layout(below) if below else (0, 1, 0.0)
    legend = ["right", "wrong", *_published_in_legend(below)]
    with _page(out, data, first + second, legend) as (page, artists):
        heights = [first, second]
        parts: Any = page.subfigures(2, 1, height_ratios=heights) if below else [page]
        for at, axes, panel in _grid(parts[0], panels, rows, columns, sharex=True, sharey=True):
            for i, kind in enumerate(("right", "wrong")):
                style: dict[str, Any] = {"color": COLOURS[i], "alpha": 1 if i else 0.45}
                artists[kind] = axes.stairs(
                    panel[kind], panel["edges"], fill=i == 0, linewidth=1.4, **style
                )
            counts = f"{panel['n_right']:,} right, {panel['n_wrong']:,} wrong"
            axes.set_title(f"{_wrap(panel['label'], 84 // columns)}\n{counts}")
            axes.set_xlabel(_wrap(data["label"], 84 // columns))
            if at % columns == 0:
                axes.set_ylabel("share of rollouts")
            axes.margins(x=0.02)
        if below:
            _bar_panels(parts[1], below, {}, lower, across)
            _published(artists)


KINDS: dict[str, Callable[[Data, Path], None]] = {
    "curves": draw_curves,
    "bars": draw_bars,
    "heatmap": draw_heatmap,
    "scatter": draw_scatter,
    "distribution": draw_distribution,
}


def draw(data: Data, out: Path) -> None:
    """Write figure.png (160 dpi) and figure.svg below ``out`` from the numbers of a figure."""
    KINDS[data["kind"]](data, out)

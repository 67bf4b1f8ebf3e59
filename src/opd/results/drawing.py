"""Drawing figures from their numbers: what ``opd.results.figures`` puts into figure.json, and no
more.

The same numbers give the same bytes. All is legible at the width of a page, without colour too.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle, pairwise, product, zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle, StepPatch
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from opd.core import marked, tables
from opd.core.code import package_file
from opd.core.text import number

Data = Mapping[str, Any]
Style = dict[str, Any]

STYLE = package_file(__file__, "pages/figures/paper.mplstyle")
# Okabe and Ito's palette without its yellow; line styles, markers and hatches carry the same
# distinction for readers who see no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
GREY = "0.35"
SERIES: list[Style] = [
    {"color": colour, "linestyle": line, "marker": marker}
    for colour, line, marker in zip(COLOURS, LINES, MARKERS, strict=True)
]
LEVELS: list[Style] = [
    {"color": GREY, "linestyle": line, "linewidth": 1.1}
    for line in ((0, (4, 4)), (0, (1, 3)), (0, (8, 3, 1, 3)))
]
MAP = "viridis"  # its lightness rises evenly, so it reads in grey as well
WIDTH = 7.0  # inches, the text width of a page
NARROW = 3.4  # inches, the screen of a phone
# A published value: an open diamond on a thin dotted line.
DIAMOND: Style = {"color": GREY, "marker": "D", "markersize": 4.5, "markerfacecolor": "white"}
DIAMOND |= {"markeredgewidth": 1, "linestyle": "none", "zorder": 5}
DOTTED: Style = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 2))}
ENDS = ("value", "low", "high")
# Values that a reader may point at: how many of a line, how many of a map in either direction, and
# how far off one may point (px).
SPOTS = 50
CELLS = 30
REACH = 4


# Pages


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _width() -> float:
    """Inches of the page that is drawn: ``WIDTH`` or ``NARROW``."""
    return matplotlib.rcParams["figure.figsize"][0]


def _fit(text: str, width: int) -> str:
    """A text in lines of ``width`` characters on a page of ``WIDTH``, and fewer on a narrow one."""
    return _wrap(text, int(width * _width() / WIDTH))


def _page(data: Data, height: float, legend: Mapping[str, Artist]) -> Figure:
    """A page with a title, room for panels of ``height`` inches in all, and a legend below."""
    if any(row["drawn"] for row in data["published"]):
        legend = {**legend, "published": Line2D([], [], **{**DIAMOND, **DOTTED})}
    heading = _fit(data["title"] or "", 80)
    labels = [_fit(label, 90) for label in legend]
    longest = max(map(len, legend), default=0)
    columns = max(1, min(len(legend), 4, int(_width() * 16 / (longest + 6))))
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    lines *= math.ceil(len(labels) / columns)
    room = 0.2 * len(heading.splitlines()) + 0.19 * lines + 0.25
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    page = Figure(figsize=(_width(), height + room), layout=layout)
    if heading:
        page.suptitle(heading, fontweight="bold")
    if legend:
        place: Style = {"loc": "outside lower center", "ncols": columns, "handlelength": 3.2}
        page.legend([*legend.values()], labels, **place)
    return page


def _columns(panels: int) -> int:
    """How many of so many panels stand side by side: up to three, four as a square."""
    if _width() < WIDTH:
        return 1
    return 2 if panels == 4 else min(panels, 3)


def _grid(
    page: Any, panels: Sequence[Data], columns: int, labels: tuple[str, str], **shared: Any
) -> Iterator[tuple[Any, Data]]:
    """The axes of every panel, with ``labels`` below the lowest and beside the leftmost."""
    rows = math.ceil(len(panels) / columns)
    places = page.subplots(rows, columns, squeeze=False, **shared).flat
    for at, (axes, panel) in enumerate(zip_longest(places, panels)):
        if panel is None:
            axes.set_visible(False)
            continue
        axes.set_xlabel(labels[0] if at + columns >= len(panels) else "")
        axes.set_ylabel(labels[1] if at % columns == 0 else "")
        yield axes, panel


def _scale(panel: Data) -> int:
    return 100 if panel["percent"] else 1


# Curves


def _curve(axes: Axes, line: Data, scale: float, at: int) -> None:
    """A line over steps with its band, in the style of series number ``at``."""
    style = SERIES[at % len(SERIES)]
    x, y = np.array(line["x"]), scale * np.array(line["y"], dtype=float)
    # Shifted from series to series, so that markers on lines that coincide stay apart.
    every = (at * (len(x) // 40) % max(1, len(x)), max(1, len(x) // 8))
    axes.plot(x, y, markevery=every, label=line["label"], **style)
    if line["low"] is not None:
        low, high = (scale * np.array(line[end], dtype=float) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _mark_curve(axes: Axes, mark: Data, line: Data, scale: float, colour: str) -> None:
    """A published value at its step, or over all steps where it belongs to none."""
    low, high = scale * mark["low"], scale * mark["high"]
    x, middle = mark["x"], (low + high) / 2
    place: Style = {"transform": axes.get_yaxis_transform()} if x is None else {}
    if high > low and x is None:
        axes.axhspan(low, high, color="0.5", alpha=0.2, linewidth=0)
    elif high > low:
        axes.vlines(x, low, high, color=colour, linewidth=2.5, alpha=0.5)
    axes.axhline(middle, zorder=1.5, **DOTTED)
    axes.plot(0.5 if x is None else x, middle, **place, **{**DIAMOND, "color": colour})
    if mark["bound"] and x is not None:
        late = x > (line["x"][0] + line["x"][-1]) / 2
        beside: Style = {"xytext": (-3 if late else 3, 5), "ha": "right" if late else "left"}
        axes.annotate(mark["text"], (x, middle), color=GREY, textcoords="offset points", **beside)


def draw_curves(data: Data) -> Figure:
    """One panel per metric, or metrics downwards and groups of series across.

    A label has one style wherever it stands, so that one legend serves all panels.
    """
    panels, groups = data["panels"], data["groups"]
    several = len(groups) > 1 and _width() == WIDTH
    columns = len(groups) if several else _columns(len(panels))
    labels = dict.fromkeys(line["label"] for panel in panels for line in panel["lines"])
    names = dict.fromkeys(level["label"] for panel in panels for level in panel["levels"])
    styles = dict(zip(labels, cycle(SERIES), strict=False))
    levels = dict(zip(names, cycle(LEVELS), strict=False))
    legend = {label: Line2D([], [], **style) for label, style in {**styles, **levels}.items()}
    height = (2.5 if columns < 3 else 2.1) * math.ceil(len(panels) / columns)
    page = _page(data, height, legend)
    shared = "row" if several else False
    for axes, panel in _grid(page, panels, columns, (data["xlabel"], ""), sharey=shared):
        scale = _scale(panel)
        for line in panel["lines"]:
            _curve(axes, line, scale, [*labels].index(line["label"]))
        # Values that do not change over steps, as a teacher's; their intervals would hide others.
        for level in panel["levels"]:
            axes.axhline(scale * level["value"], zorder=1.6, **levels[level["label"]])
        for line in panel["lines"]:
            for mark in line["marks"]:
                _mark_curve(axes, mark, line, scale, styles[line["label"]]["color"])
        if panel["log"]:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        place = axes.get_subplotspec()
        if not several or place.is_first_row():
            parts = (panel["group"], "" if several else panel["label"])
            title = [_fit(part, 84 // columns) for part in parts if part]
            axes.set_title("\n".join(title))
        if several and place.is_first_col():
            axes.set_ylabel(_wrap(panel["label"], 32))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.02)
    return page


# Bars


def _names(panel: Data) -> tuple[list[str], np.ndarray]:
    """What stands beside the bars of a panel, and how high it is."""
    labels = [_fit(bar["label"], 34) for bar in panel["bars"]]
    return labels, np.array([max(1.6, label.count("\n") + 1.3) for label in labels])


def _bars(
    axes: Axes, panel: Data, styles: Data, limits: tuple[float, float], inches: float
) -> None:
    """Horizontal bars with their intervals, numbers and published values."""
    scale, bars = _scale(panel), panel["bars"]
    labels, heights = _names(panel)
    places = heights / 2 - np.cumsum(heights)  # downwards, as high as their labels
    plain = ("0.6" if styles else COLOURS[0], "")
    colours, hatches = zip(*(styles.get(bar["group"], plain) for bar in bars), strict=True)
    value, low, high = scale * np.array([[bar[end] for bar in bars] for end in ENDS], dtype=float)
    look: Style = {"color": colours, "hatch": hatches, "edgecolor": "white", "linewidth": 0}
    axes.barh(places, value, height=1, label=[_said(bar, panel) for bar in bars], **look)
    spread = np.maximum([value - low, high - value], 0)
    axes.errorbar(value, places, xerr=spread, fmt="none", ecolor="black", capsize=2.5, linewidth=1)
    for place, bar in zip(places, bars, strict=True):
        for mark in bar["marks"]:
            _mark_bar(axes, mark, place, scale)
        text = _written(bar["value"], panel)
        beside: Style = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (scale * max(_ends([bar])), place), **beside)
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


def _written(value: float | None, panel: Data) -> str:
    """A value as it stands beside its bar."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}".replace("-", "−") if panel["percent"] else number(value)


def _said(bar: Data, panel: Data) -> str:
    """What a bar shows, with its interval."""
    value, low, high = (_written(bar[end], panel) for end in ENDS)
    return f"{bar['label']}: {value} [{low}, {high}]"


def _mark_bar(axes: Axes, mark: Data, place: float, scale: float) -> None:
    low, high = scale * mark["low"], scale * mark["high"]
    if high > low:
        axes.hlines(place, low, high, color=GREY, linewidth=2.5, alpha=0.6, zorder=4)
    axes.vlines((low + high) / 2, place - 0.75, place + 0.75, **DOTTED)
    axes.plot((low + high) / 2, place, **DIAMOND)


def _ends(bars: Iterable[Data]) -> list[float]:
    """How far bars, their intervals and their published values reach, from 0."""
    parts = [part for bar in bars for part in (bar, *bar["marks"])]
    return [0.0, *(part[end] for part in parts for end in ENDS if part.get(end) is not None)]


def _limits(panels: Sequence[Data], columns: int) -> tuple[float, float]:
    """What an axis shows that these panels share, with room for the longest number."""
    ends = _ends([bar for panel in panels for bar in panel["bars"]])
    low, high = (_scale(panels[0]) * end for end in (min(ends), max(ends)))
    # No figure pretends that 2 % is a lot.
    span = max(high - low, 10 if panels[0]["percent"] else 1e-9)
    room = span * (0.1 + 0.08 * columns)
    return (low - room / 2 if low < 0 else 0.0), low + span + room


def _alike(panels: Sequence[Data]) -> bool:
    return len({tuple(bar["label"] for bar in panel["bars"]) for panel in panels}) == 1


def _bar_layout(panels: Sequence[Data]) -> tuple[int, float]:
    """Columns and inches; panels whose bars have other names stand below each other."""
    columns = _columns(len(panels)) if _alike(panels) else 1
    highest = max(_names(panel)[1].sum() for panel in panels)
    return columns, math.ceil(len(panels) / columns) * (0.8 + 0.17 * highest)


def _bar_panels(page: Any, panels: Sequence[Data], styles: Any, columns: int) -> None:
    lines = [line for panel in panels for name in _names(panel)[0] for line in name.split("\n")]
    # What the names of the bars leave for each panel.
    inches = (_width() - 0.2 - 0.065 * max(map(len, lines))) / columns - 0.2
    for axes, panel in _grid(page, panels, columns, ("", ""), sharey=_alike(panels)):
        same = [other for other in panels if other["axis"] == panel["axis"]]
        _bars(axes, panel, styles, _limits(same, columns), inches)


def draw_bars(data: Data) -> Figure:
    """One panel per quantity, one bar per series, coloured by group."""
    panels = data["panels"]
    groups = dict.fromkeys(bar["group"] for panel in panels for bar in panel["bars"])
    looks = cycle(zip(COLOURS, HATCHES, strict=True))
    styles = dict(zip(filter(None, groups), looks, strict=False))
    legend = {
        group: Patch(facecolor=colour, hatch=hatch, edgecolor="white")
        for group, (colour, hatch) in styles.items()
    }
    columns, height = _bar_layout(panels)
    page = _page(data, height, legend)
    _bar_panels(page, panels, styles, columns)
    return page


def draw_heatmap(data: Data) -> Figure:
    """A metric over steps (across) and response positions (upwards), one panel per series."""
    panels = data["panels"]
    values = [np.array(panel["values"], dtype=float) for panel in panels]
    every = np.concatenate([cells.ravel() for cells in values])
    colours: Style = {"cmap": MAP, "vmin": np.nanmin(every), "vmax": np.nanmax(every)}
    columns = _columns(len(panels))
    page = _page(data, (2.9 if columns == 1 else 2.5) * math.ceil(len(panels) / columns), {})
    around = (data["xlabel"], "response position (tokens)")
    grid = _grid(page, panels, columns, around, sharey="row")
    for cells, (axes, panel) in zip(values, grid, strict=True):
        steps = np.array(panel["steps"], dtype=float)
        # Cells reach half way to the next step on either side.
        gaps = np.diff(steps) if len(steps) > 1 else np.ones(1)
        borders = [steps[0] - gaps[0] / 2, *(steps[:-1] + gaps / 2), steps[-1] + gaps[-1] / 2]
        positions = [*panel["positions"], panel["positions"][-1] + panel["width"]]
        image = axes.pcolormesh(borders, positions, cells, rasterized=True, **colours)
        _name_cells(axes, panel, borders, positions)
        # What no response reached: hatched, as any shade would be one of the scale in grey.
        axes.patch.set(facecolor="white", edgecolor="0.6", hatch="////", linewidth=0)
        axes.grid(visible=False)
        if len(panels) > 1:
            # The colour bar takes a part of a narrow page.
            axes.set_title(_fit(panel["label"], 70 if columns == 1 else 84 // columns))
        axes.xaxis.get_major_locator().set_params(integer=True)
    page.colorbar(image, ax=page.axes, pad=0.02).set_label(_wrap(data["label"], 40))
    return page


def _name_cells(axes: Axes, panel: Data, across: Sequence[float], upwards: Sequence[float]) -> None:
    """Say what the cells between these borders show. Of many every so manyth speaks for those that
    follow it, too."""
    steps, positions = panel["steps"], panel["positions"]
    columns, rows = (range(0, len(of), 1 + len(of) // CELLS) for of in (steps, positions))
    for row, column in product(rows, columns):
        value = panel["values"][row][column]
        if value is not None:
            last = positions[row] + panel["width"] - 1
            text = f"{panel['label']}: {number(value)} at step {steps[column]:g}"
            corner = (across[column], upwards[row])
            right = across[min(column + columns.step, len(steps))]
            high = upwards[min(row + rows.step, len(positions))]
            _name_area(axes, f"{text}, tokens {positions[row]}–{last}", corner, (right, high))


def _name_area(
    axes: Axes, text: str, corner: tuple[float, float], opposite: tuple[float, float]
) -> None:
    """Say what an area shows (``_spots``) by a bar that is not drawn."""
    size = np.subtract(opposite, corner)
    axes.add_artist(Rectangle(corner, *size, label=text, visible=False))


def draw_scatter(data: Data) -> Figure:
    """A point per series with both intervals and its name beside it."""
    scales = [_scale(data[side]) for side in ("x", "y")]
    page = _page(data, 3.8, {})
    axes = page.subplots()
    places = []
    for point, style in zip(data["points"], cycle(SERIES), strict=False):
        ends = [[point[side][end] for side in ("x", "y")] for end in ENDS]
        value, low, high = np.multiply(ends, scales)
        spread = np.maximum([value - low, high - value], 0)
        look = {"markersize": 5.5, "linewidth": 1, "capsize": 2, **style}
        drawn = axes.errorbar(value[0], value[1], xerr=spread[:, :1], yerr=spread[:, 1:], **look)
        drawn.lines[0].set_label(point["label"])
        places.append(tuple(value))
    axes.set_xlabel(_fit(data["x"]["label"], 80))
    axes.set_ylabel(_wrap(data["y"]["label"], 50))
    axes.margins(0.12)
    page.draw_without_rendering()
    _name_points(axes, [point["label"] for point in data["points"]], places)
    return page


# Where the name of a point may stand: how far off, and to which side.
_PLACES = [
    (reach, x, y)
    for reach in (6, 14, 24, 36, 50)
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
]


def _name_points(axes: Axes, labels: Sequence[str], points: Sequence[Any]) -> None:
    """Put each point's name where it covers no other name and no point, or covers least."""
    frame = axes.get_window_extent()
    renderer = FigureCanvasAgg(axes.get_figure(root=True)).get_renderer()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(points)]
    line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6}
    look: Style = {"xytext": (0, 0), "textcoords": "offset points", "arrowprops": line}
    for label, point in zip(labels, points, strict=True):
        name = axes.annotate(_wrap(label, 26), point, fontsize=7.5, **look)
        name.set_in_layout(False)
        costs = []
        for place in _PLACES:
            extent = _put(name, place, renderer)
            outside = extent.width * extent.height - _common(extent, frame)
            costs.append(sum(_common(extent, box) for box in taken) + 10 * outside)
        taken.append(_put(name, _PLACES[np.argmin(np.round(costs, 6))], renderer))


def _put(name: Any, place: tuple[int, int, int], renderer: Any) -> Bbox:
    """Put a name there; what it covers, without the line that leads to the point."""
    reach, x, y = place
    name.xyann = (reach * x, reach * y)
    name.set(ha=("center", "left", "right")[x], va=("center", "bottom", "top")[y])
    name.arrow_patch.set_visible(reach > 14)
    name.update_positions(renderer)
    return Text.get_window_extent(name, renderer)


def _common(first: Bbox, second: Bbox) -> float:
    """The area that two boxes share."""
    both = Bbox.intersection(first, second)
    return both.width * both.height if both else 0.0


def draw_distribution(data: Data) -> Figure:
    """Histograms of right and of wrong rollouts, one panel per series, and bars below."""
    panels, below = data["panels"], data["bars"]
    columns = _columns(len(panels))
    above = 2.3 * math.ceil(len(panels) / columns)
    looks: dict[str, Style] = {
        "right": {"facecolor": COLOURS[0], "alpha": 0.45, "fill": True, "linewidth": 1.4},
        "wrong": {"edgecolor": COLOURS[1], "fill": False, "linewidth": 1.4},
    }
    legend = {kind: StepPatch([1], [0, 1], **look) for kind, look in looks.items()}
    across, height = _bar_layout(below) if below else (1, 0.0)
    page = _page(data, above + height, legend)
    parts: Any = page.subfigures(2, 1, height_ratios=[above, height]) if below else [page]
    around = ("", "share of rollouts")
    for axes, panel in _grid(parts[0], panels, columns, around, sharex=True, sharey=True):
        for kind, look in looks.items():
            axes.stairs(panel[kind], panel["edges"], **look)
        bins = zip(pairwise(panel["edges"]), panel["right"], panel["wrong"], strict=True)
        for (left, right), *shares in bins:
            if any(shares):
                of_right, of_wrong = map(number, shares)
                said = f"{of_right} of the right ones, {of_wrong} of the wrong ones"
                text = f"{number(left)} to {number(right)}: {said}"
                _name_area(axes, text, (left, 0), (right, max(shares)))
        counts = f"{panel['n_right']:,} right, {panel['n_wrong']:,} wrong"
        axes.set_title(f"{_fit(panel['label'], 84 // columns)}\n{counts}")
        axes.set_xlabel(_fit(data["label"], 84 // columns))
        axes.margins(x=0.02)
    if below:
        _bar_panels(parts[1], below, {}, across)
    return page


def _spots(page: Figure) -> list[dict[str, Any]]:
    """Where the values of a drawn page are, in shares of its width and height from its top left
    corner, and what they are: points of lines, at most ``SPOTS`` of each, and bars, also those
    that are not drawn."""
    corner, size = page.bbox.min, page.bbox.size
    spots = []
    for axes in page.get_axes():
        named: list[tuple[str, Bbox]] = []
        for line in axes.lines:
            points = np.asarray(line.get_xydata())
            points = points[:: 1 + len(points) // SPOTS]
            for (x, y), place in zip(points, axes.transData.transform(points), strict=True):
                text = f"{line.get_label()}: {number(y)} at {x:g}"
                named.append((text, Bbox([place, place])))
        named += [(str(bar.get_label()), bar.get_window_extent()) for bar in axes.patches]
        for text, box in named:
            # Names of matplotlib's own begin with "_"; a value that is missing has no place.
            if text and text[0] != "_" and np.isfinite(box.extents).all():
                reach = (max(0, REACH - side / 2) for side in box.size)
                left, low, right, high = map(float, box.padded(*reach).extents)
                place = {"x": (left - corner[0]) / size[0], "width": (right - left) / size[0]}
                place |= {"y": 1 - (high - corner[1]) / size[1], "height": (high - low) / size[1]}
                spots.append({"text": text, **{k: round(v, 4) for k, v in place.items()}})
    return spots


def draw(page_of: Callable[[Data], Figure], data: Data, out: Path) -> None:
    """Write figure.png (160 dpi), figure.svg, narrow.svg (the same for a phone) and spots.json
    (``_spots`` of figure.svg) below ``out`` from the numbers of a figure."""
    source = {"Source": " ".join(data["sources"]) or None}
    for name, width in {"figure": WIDTH, "narrow": NARROW}.items():
        with matplotlib.rc_context({"figure.figsize": (width, width)}, fname=STYLE):
            page = page_of(data)
            if marked.mark():
                page.text(0.5, 0.5, "rehearsal", size=40, alpha=0.2, rotation=20, ha="center")
            if width == WIDTH:
                page.savefig(out / "figure.png", dpi=160, metadata={"Software": None, **source})
            page.savefig(out / f"{name}.svg", metadata={"Date": None, "Creator": None, **source})
            if width == WIDTH:
                tables.write_json(out / "spots.json", _spots(page))

"""Draw a report's charts as SVG that stands inside a page: by matplotlib, which nothing else here knows of.

Decides what a chart shows and how; leaves the words around it to `page`. Colours are names of the page's style sheet, so
that one drawing serves light and dark.

* The same rows give the same bytes: no date, no random names.
* Several drawings stand in one page: each has ids of its own, and none brings a style sheet or a script along.
* A name is text: never markup, never a formula.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from evenfleet_collector import figures
from evenfleet_collector.optimize import front
from evenfleet_collector.optimize.worth import VariantReport

# Colours that stand for those of the page; the drawing holds nothing else of them.
_INK, _SOFT, _LINE, _POINT, _FRONT = "#010101", "#010102", "#010103", "#010104", "#010105"
_NAMES: Final = {_INK: "--text", _SOFT: "--soft", _LINE: "--line-strong", _POINT: "--point", _FRONT: "--accent"}
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "evenfleet",
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and set in the page's font
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}
_NO_METADATA: Final = {"Creator": None, "Date": None, "Format": None, "Type": None}
_SVG: Final = "{http://www.w3.org/2000/svg}"
_XLINK: Final = "{http://www.w3.org/1999/xlink}"
_LONGEST_NAME: Final = 24
# Beyond this ratio between the largest and the smallest, equal steps are equal factors.
_LOGARITHMIC_FROM: Final = 25.0

_Point = tuple[float, float]
_Array = npt.NDArray[np.float64]

# Where a name may stand beside its point, in points; the nearer ones are tried first.
_PLACES: Final = tuple(
    (dx * far, dy * far)
    for far in (1.0, 2.2, 3.6, 5.2, 7.0, 9.0)
    for dx, dy in (
        (6, 0),
        (5, 4),
        (5, -4),
        (-6, 0),
        (-5, 4),
        (-5, -4),
        (0, 6),
        (0, -6),
        (3, 6),
        (3, -6),
        (-3, 6),
        (-3, -6),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing and its words.

    Attributes:
        name: A word for ids, of letters and hyphens.
        title: What stands above it.
        says: The same in words, for who does not see it.
        svg: Markup that is safe to put into a page as it is.
    """

    name: str
    title: str
    says: str
    svg: str


def charts(rows: Sequence[VariantReport], reference: str) -> tuple[Chart, ...]:
    """Return the charts that the rows have something to show in.

    Args:
        rows: The variants; fronts are drawn among those of one format.
        reference: The name of the reference variant, in whose format the first charts are.
    """
    return tuple(_all(rows, reference))


def _all(rows: Sequence[VariantReport], reference: str) -> Iterator[Chart]:
    formats = sorted(
        {row.format for row in rows}, key=lambda each: all(r.format != each or r.name != reference for r in rows)
    )
    for each in formats:
        of_it = [row for row in rows if row.format == each]
        timed = [row for row in of_it if row.timing is not None]
        yield _tradeoff(of_it, "size", each)
        if timed:
            yield _tradeoff(timed, "latency", each)
    timed = [row for row in rows if row.timing is not None]
    if timed:
        yield _spread(timed)
    gained = [row for row in rows if row.gain is not None]
    if gained:
        yield _gains(gained)


def _tradeoff(rows: Sequence[VariantReport], metric: front.Metric, format_name: str) -> Chart:
    on_front = front.front(rows, metric)
    cost, worded = _COSTS[metric]
    what = {"size": "size of the artifact", "latency": "p50 latency"}[metric]
    with mpl.rc_context(_SETTINGS):
        figure = _figure(3.5)
        axes = figure.add_subplot()
        names = {row.name for row in on_front}
        xs, ys = [cost(row) for row in rows], [row.accuracy_ratio * 100 for row in rows]
        line = [(cost(row), row.accuracy_ratio * 100) for row in on_front]
        axes.step(*zip(*line, strict=True), where="post", color=_FRONT, linewidth=1.2, zorder=1)
        axes.scatter(xs, ys, s=26, c=[_FRONT if row.name in names else _POINT for row in rows], zorder=3)
        _scale(axes, xs, worded)
        axes.margins(y=0.18)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
        axes.set_xlabel(what)
        axes.set_ylabel("accuracy, %")
        axes.grid(axis="y", color=_LINE, linewidth=0.5, alpha=0.6)
        axes.set_axisbelow(True)
        _label(figure, axes, [(row.name, x, y) for row, x, y in zip(rows, xs, ys, strict=True)], line)
        name = f"{metric}-{format_name.replace('_', '-')}"
        points = "; ".join(f"{row.name} {worded(cost(row))}, {row.accuracy_ratio * 100:.2f} %" for row in rows)
        best = ", ".join(row.name for row in on_front)
        return Chart(
            name=name,
            title=f"Accuracy against {what} ({format_name})",
            says=f"On the front, from the cheapest to the most accurate: {best}. All: {points}.",
            svg=_svg(figure, name),
        )


def _spread(rows: Sequence[VariantReport]) -> Chart:
    with mpl.rc_context(_SETTINGS):
        figure = _figure(0.9 + 0.26 * len(rows))
        axes = figure.add_subplot()
        ends = []
        for place, row in enumerate(rows):
            assert row.timing is not None
            timing = row.timing
            ends += [timing.p50_low_ms, timing.p95_high_ms]
            axes.plot([timing.p50_ms, timing.p95_ms], [place, place], color=_LINE, linewidth=1.0, zorder=1)
            axes.plot([timing.p50_low_ms, timing.p50_high_ms], [place, place], color=_FRONT, linewidth=3.5, zorder=2)
            axes.plot([timing.p95_low_ms, timing.p95_high_ms], [place, place], color=_POINT, linewidth=3.5, zorder=2)
        p50s = [row.timing.p50_ms for row in rows if row.timing is not None]
        p95s = [row.timing.p95_ms for row in rows if row.timing is not None]
        places = range(len(rows))
        axes.scatter(p50s, places, s=26, c=_FRONT, zorder=3, label="p50")
        axes.scatter(p95s, places, s=26, c=_POINT, marker="D", zorder=3, label="p95")
        _scale(axes, ends, figures.latency)
        _rows(axes, rows)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderpad=0.0)
        said = "; ".join(
            f"{row.name} p50 {figures.latency(row.timing.p50_ms)} ({figures.latency(row.timing.p50_low_ms)} to "
            f"{figures.latency(row.timing.p50_high_ms)}), p95 {figures.latency(row.timing.p95_ms)}"
            for row in rows
            if row.timing is not None
        )
        return Chart(
            name="spread",
            title="Latency, and how far the rounds lie apart",
            says=f"{said}.",
            svg=_svg(figure, "spread"),
        )


def _gains(rows: Sequence[VariantReport]) -> Chart:
    with mpl.rc_context(_SETTINGS):
        figure = _figure(0.9 + 0.26 * len(rows))
        axes = figure.add_subplot()
        axes.axvline(0.0, color=_SOFT, linewidth=0.8)
        said = []
        for place, row in enumerate(rows):
            assert row.gain is not None
            gain = row.gain
            colour = _POINT if gain.brought == "nothing shown" else _FRONT
            axes.plot(
                [gain.low_ratio * 100, gain.high_ratio * 100], [place, place], color=colour, linewidth=2.0, zorder=2
            )
            axes.scatter([gain.delta_ratio * 100], [place], s=26, c=colour, zorder=3)
            said.append(
                f"{row.name}: {gain.technique} {figures.points(gain.delta_ratio)}, from {figures.points(gain.low_ratio)} "
                f"to {figures.points(gain.high_ratio)}"
            )
        _rows(axes, rows)
        axes.margins(x=0.1)
        axes.set_xlabel("change in accuracy against the matched control, points")
        return Chart(
            name="gains",
            title="What each trained technique itself brought",
            says=f"{'; '.join(said)}.",
            svg=_svg(figure, "gains"),
        )


def _size_of(row: VariantReport) -> float:
    return float(row.size_bytes)


def _latency_of(row: VariantReport) -> float:
    assert row.timing is not None
    return row.timing.p50_ms


_COSTS: Final[dict[front.Metric, tuple[Callable[[VariantReport], float], Callable[[float], str]]]] = {
    "size": (_size_of, figures.size),
    "latency": (_latency_of, figures.latency),
}


def _figure(height_inches: float) -> Figure:
    figure = Figure(figsize=(4.9, height_inches), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)  # measures text
    return figure


def _scale(axes: Any, values: Sequence[float], worded: Callable[[float], str]) -> None:
    """Start at nothing, so that half as long is half as much; by factors where the values lie too far apart."""
    axes.set_facecolor("none")
    least, most = min(values), max(values)
    if least > 0.0 and most / least > _LOGARITHMIC_FROM:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.8, most * 2.5)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.0, (most or 1.0) * 1.18)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x, worded)))


def _tick(value: float, worded: Callable[[float], str]) -> str:
    if value <= 0.0:
        return "0"
    number, _, unit = worded(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def _rows(axes: Any, rows: Sequence[VariantReport]) -> None:
    """Name the rows on the left, the first at the top."""
    axes.set_facecolor("none")
    axes.set_yticks(range(len(rows)), labels=[_short(row.name) for row in rows])
    for text in axes.get_yticklabels():
        _plain(text)
        text.set_color(_INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)


def _label(figure: Figure, axes: Any, points: Sequence[tuple[str, float, float]], line: Sequence[_Point]) -> None:
    """Put each name beside its point, off other names, points and the front; a line leads to one that stands far off.

    Those on the front are named first and in any case; of the others one without room stays without a name.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where they are, whatever the names reach
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]  # matplotlib types most, not this
    inside = np.array([axes.bbox.x0, axes.bbox.y0, figure.bbox.x1, figure.bbox.y1])
    corners = [axes.transData.transform(corner) for corner in _corners(line)]
    taken = [_extents(np.minimum(*ends), np.maximum(*ends), 1.0) for ends in itertools.pairwise(corners)]
    dots = {(x, y): axes.transData.transform((x, y)) for _, x, y in points}
    for name, x, y in sorted(points, key=lambda point: (point[1:] not in line, -point[2], point[1], point[0])):
        measured = axes.text(x, y, _short(name), fontsize=8.0, parse_math=False)
        size = measured.get_window_extent(renderer).size
        measured.remove()
        # A name that touches another's point would be taken for its name.
        around = [_extents(dot, dot, 4.0 if point == (x, y) else 9.0) for point, dot in dots.items()]
        in_the_way = np.array([*taken, *around])
        best_place, best_box, fewest = _PLACES[0], inside, math.inf
        for place in _PLACES:
            box = _box(dots[x, y], place, size, figure.dpi)
            apart = (box[2:] < in_the_way[:, :2]) | (in_the_way[:, 2:] < box[:2])
            outside = (box[:2] < inside[:2]).any() or (inside[2:] < box[2:]).any()
            clashes = float(np.count_nonzero(~apart.any(axis=1)) + 5 * bool(outside))
            if clashes < fewest:
                best_place, best_box, fewest = place, box, clashes
            if not clashes:
                break
        if fewest and (x, y) not in line:
            continue
        taken.append(best_box)
        dx, dy = best_place
        text = axes.annotate(
            _short(name),
            (x, y),
            xytext=best_place,
            textcoords="offset points",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            va="center" if dy == 0 else "bottom" if dy > 0 else "top",
            fontsize=8.0,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": _LINE, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3}
            if max(abs(dx), abs(dy)) > 10
            else None,
        )
        _plain(text)


def _box(dot: _Array, place: _Point, size: _Array, dpi: float) -> _Array:
    """Return what a name of `size` covers at `place`, which is in points; the rest is in pixels."""
    middle = dot + np.asarray(place) * dpi / 72.0 + np.sign(place) * size / 2.0
    return _extents(middle - size / 2.0, middle + size / 2.0, 0.0)


def _extents(low: _Array, high: _Array, wider: float) -> _Array:
    """Return left, bottom, right and top."""
    return np.concatenate([low - wider, high + wider])


def _corners(line: Sequence[_Point]) -> Iterator[_Point]:
    """Yield where a stepped line begins, turns and ends."""
    yield from line[:1]
    for (_, before), (x, y) in itertools.pairwise(line):
        yield from ((x, before), (x, y))


def _plain(text: Text) -> None:
    text.set_parse_math(False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _svg(figure: Figure, name: str) -> str:
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata=_NO_METADATA)
    root = ET.fromstring(written.getvalue())  # noqa: S314 - matplotlib wrote it just now
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style" or not child.tag.startswith(_SVG):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key.replace(_XLINK, ""): _own(key, value, name) for key, value in element.attrib.items()}
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-says")
    root.set("id", f"{name}-chart")
    return ET.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    """Return an attribute with the drawing's own ids, and with the page's colours."""
    if key == "id":
        return f"{name}-{value}"
    if key == f"{_XLINK}href":
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    return re.sub("|".join(_NAMES), lambda found: f"var({_NAMES[found.group()]})", value)

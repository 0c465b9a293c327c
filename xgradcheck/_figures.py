"""The pictures of a wrong leaf, as SVG that takes its colours from the page around it."""

import io
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from xgradcheck._differences import rms
from xgradcheck._evidence import Evidence, Steps, some_of
from xgradcheck._layout import Positions, Vector

# Colours that stand for those of the page: text, lines, what is right, what is wrong, a mark.
INK, LINE, RIGHT, WRONG, MARK = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
PAGE = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    RIGHT: "var(--good)",
    WRONG: "var(--bad)",
    MARK: "var(--mark)",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xgradcheck",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 8.0,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}
WIDE, TALL = 3.7, 2.7
"""Inches of one picture."""
BOX = (0.19, 0.18, 0.77, 0.78)
"""Where the axes lie in a picture."""
RINGED = 8
"""Wrong cells that get a ring each."""
CELLS, DOTS, BINS = 160, 1500, 40
"""Cells of a heat map along each side, points of a scatter and bars of a histogram, at most."""


def figures(evidence: Evidence, shape: tuple[int, ...]) -> dict[str, str]:
    """The pictures by what they show, as SVG."""
    drawn: dict[str, Callable[[Axes], None]] = {
        "where it is off": lambda axes: _heat(axes, evidence, shape),
        "backward beside truth": lambda axes: _scatter(axes, evidence),
        "error in units of its bar": lambda axes: _histogram(axes, evidence),
    }
    if (steps := evidence.steps) is not None:
        drawn["differences, by step"] = lambda axes: _steps(axes, steps)
        drawn["Taylor remainder"] = lambda axes: _remainder(axes, steps)
    if evidence.places.size < 2:
        for one in ("where it is off", "backward beside truth", "error in units of its bar"):
            del drawn[one]
    return {title: _svg(draw) for title, draw in drawn.items()}


def _svg(draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(), np.errstate(all="ignore"):
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDE, TALL))
        axes = figure.add_axes(BOX)
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _powers(axis)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in PAGE.items():
        text = text.replace(colour, name)
    # Attributes take no variables, styles do; and the page sets the size.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    # Names of several pictures on one page must not meet.
    salt = f"f{zlib.crc32(text.encode()):08x}"
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", text)
    return re.sub(r"\s*\n\s*", "\n", text)


def _powers(axis: Any) -> None:
    """Powers of ten as 1e-5: formulas take long to set, and other fonts."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(numticks=6))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:.0e}"))


def _heat(axes: Axes, evidence: Evidence, shape: tuple[int, ...]) -> None:
    """The error over the leaf's shape, the worst of each cell."""
    error = np.abs(evidence.analytic - evidence.truth)
    # What is not finite is drawn as what is off by most.
    finite = np.isfinite(error)
    most = float(np.max(np.where(finite, error, np.abs(evidence.truth)), initial=0.0))
    error = np.where(finite, error, 10 * (most or 1.0))
    root = rms(evidence.truth) or float(np.max(error, initial=0.0)) or 1.0
    rows, columns, names = _grid(evidence.size, shape)
    down, across = min(rows, CELLS), min(columns, CELLS)
    cells = np.full((down, across), np.nan)
    worst = np.full(down * across, -1.0)

    def cell(places: Positions) -> Positions:
        row, column = np.divmod(places, columns)
        return np.asarray(row * down // rows * across + column * across // columns)

    off = np.nan_to_num(error / root, posinf=1e300)
    if (wrong := evidence.wrong) is not None:
        # Where a search has told of a place, and only some of its elements were looked at.
        known = off[wrong[evidence.places]]
        np.maximum.at(worst, cell(np.flatnonzero(wrong)), np.median(known) if known.size else 0.0)
        right = wrong[evidence.places] | (off <= 0)
        off = np.where(right, off, 0.0)
    np.maximum.at(worst, cell(evidence.places), off)
    cells.ravel()[worst >= 0] = worst[worst >= 0]
    seen = cells[cells > 0]
    highest = float(seen.max(initial=1e-12))
    least = min(max(float(seen.min(initial=highest)), highest * 1e-6), highest / 10)
    norm = LogNorm(least, highest)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#8884", under="#8882")
    shown = axes.imshow(
        np.where(cells == 0, least / 10, cells),
        norm=norm,
        cmap=colours,
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        aspect="auto" if rows * 4 < columns or columns * 4 < rows else "equal",
        interpolation="nearest",
    )
    lone = np.flatnonzero(worst > 0)
    if lone.size <= RINGED < worst.size:
        # A single cell of many is hard to see.
        y, x = (lone // across + 0.5) * rows / down, (lone % across + 0.5) * columns / across
        axes.scatter(x - 0.5, y - 0.5, s=60, facecolors="none", edgecolors=WRONG, linewidths=1.2)
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
        if count == 1:
            axis.set_ticks([])
    axes.set_xlabel(names[1])
    axes.set_ylabel(names[0])
    axes.set_position((0.14, 0.18, 0.6, 0.78))
    bar = axes.figure.colorbar(shown, cax=axes.figure.add_axes((0.78, 0.18, 0.03, 0.78)))
    bar.set_label("error / rms of the truth")
    bar.outline.set_visible(False)
    _powers(bar.ax.yaxis)


def _grid(size: int, shape: tuple[int, ...]) -> tuple[int, int, tuple[str, str]]:
    """Rows and columns of a leaf as a picture has them, and what they are."""
    if len(shape) == 2 and math.prod(shape) == size:
        return (*shape, ("row", "column"))
    if len(shape) > 2 and math.prod(shape) == size:
        rows = math.prod(shape[:-1])
        leading = ", ".join(map(str, range(len(shape) - 1)))
        return rows, shape[-1], (f"axes {leading}, flattened", f"axis {len(shape) - 1}")
    if size <= CELLS:
        return 1, size, ("", "element")
    columns = math.ceil(math.sqrt(size))
    return math.ceil(size / columns), columns, (f"element / {columns}", f"element mod {columns}")


def _scatter(axes: Axes, evidence: Evidence) -> None:
    """Sizes of both on log axes; another sign is another colour."""
    some = some_of(np.abs(evidence.analytic - evidence.truth), DOTS)
    analytic, truth = evidence.analytic[some], evidence.truth[some]
    analytic = np.where(np.isfinite(analytic), analytic, 0.0)  # along the edge, as zeros
    known = np.abs(np.concatenate([analytic, truth]))
    known = known[(known > 0) & np.isfinite(known)]
    high = float(known.max(initial=1.0))
    # Zeros have no place on a log axis: they lie along its edge.
    low = max(float(np.percentile(known, 1)) if known.size else 0.1, high * 1e-12) / 3
    x, y = (np.clip(np.abs(values), low, high * 2) for values in (truth, analytic))
    off = np.abs(analytic - truth) > 1e-4 * np.maximum(np.abs(analytic), np.abs(truth))
    if (wrong := evidence.wrong) is not None:
        off = wrong[evidence.places[some]]
    same = (analytic * truth >= 0) | ~off
    axes.plot([low, high * 2], [low, high * 2], color=LINE, linewidth=1)
    for mask, colour, marker, name in (
        (same & ~off, RIGHT, "o", "right"),
        (same & off, WRONG, "o", "wrong"),
        (~same, WRONG, "x", "wrong sign"),
    ):
        if not mask.any():
            continue
        style: dict[str, Any] = {"color": colour}
        if marker == "o":
            style = {"facecolors": "none", "edgecolors": colour}
        axes.scatter(x[mask], y[mask], s=14, marker=marker, linewidths=0.9, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="|truth|", ylabel="|backward|")
    axes.legend(loc="upper left", handletextpad=0.2)


def _histogram(axes: Axes, evidence: Evidence) -> None:
    """How many bars the elements are off by: right ones by one at most."""
    bars = np.maximum(evidence.error_bar, np.finfo(float).tiny)
    ratio = np.abs(evidence.analytic - evidence.truth) / bars
    ratio = np.clip(ratio[np.isfinite(ratio)], 1e-3, 1e30)
    low, high = 1e-3, max(10.0, float(ratio.max(initial=1.0)) * 1.5)
    edges = np.geomspace(low, high, BINS)
    counts, _ = np.histogram(ratio, edges)
    colours = [WRONG if edge >= 1 else RIGHT for edge in edges[:-1]]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours)
    axes.axvline(1.0, color=INK, linewidth=1, linestyle=":")
    axes.set(xscale="log", xlabel="error / error bar of the truth", ylabel="elements")
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))


def _steps(axes: Axes, steps: Steps) -> None:
    """The error of a central difference against its step, as a V; and that of the gradient."""
    with np.errstate(all="ignore"):
        slopes = (steps.above - steps.below) / (2 * steps.steps)
        error = np.abs(slopes - steps.truth)
    size = abs(steps.truth) or abs(steps.analytic) or 1.0
    known = np.isfinite(error)
    least = float(np.finfo(float).eps) * size
    shown = np.maximum(error, least) / size
    axes.plot(steps.steps[known], shown[known], "o-", color=MARK, markersize=3.5, linewidth=1.2,
              label="central difference")  # fmt: skip
    if known.any():
        best = int(np.nanargmin(np.where(known, shown, np.nan)))
        axes.plot(steps.steps[best], shown[best], "o", color=RIGHT, markersize=7,
                  label=f"best: h = {steps.steps[best]:.0e}")  # fmt: skip
    if steps.error_bar > 0:
        axes.axhline(steps.error_bar / size, color=RIGHT, linewidth=1, linestyle="--",
                     label="error bar of the truth")  # fmt: skip
    off = abs(steps.analytic - steps.truth) / size
    if np.isfinite(off) and off > 0:
        axes.axhline(off, color=WRONG, linewidth=1.2, label="backward")
    axes.set(xscale="log", yscale="log", xlabel="step h", ylabel="relative error")
    axes.set_ylim(top=1e5 * max(1.0, off if np.isfinite(off) else 1.0))
    axes.legend(loc="upper center", ncols=2, columnspacing=1.0, handlelength=1.4)


def _remainder(axes: Axes, steps: Steps) -> None:
    """What is left of a symmetric difference once a gradient has been taken off: it falls like h^3
    for the truth, and like h for another number.
    """
    symmetric = steps.above - steps.below
    for value, colour, name in (
        (steps.analytic, WRONG, "backward"),
        (steps.truth, RIGHT, "truth"),
    ):
        rest = np.abs(symmetric - 2 * steps.steps * value)
        known = np.isfinite(rest) & (rest > 0)
        if not known.any():
            continue
        label = f"{name}: {_order(steps.steps[known], rest[known])}"
        axes.plot(steps.steps[known], rest[known], "o-", color=colour, markersize=3.5,
                  linewidth=1.2, label=label)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="step h", ylabel="|f(x+h) - f(x-h) - 2h g|")
    axes.legend(loc="upper left", handlelength=1.4)


def _order(steps: Vector, rest: Vector) -> str:
    """Like which power of the step a remainder falls, at wide ones, where noise is least."""
    if steps.size < 3:
        return "too small to tell"
    h, size = np.log(steps[-3:]), np.log(rest[-3:])
    order = float(np.median(np.diff(size) / np.diff(h)))
    return f"like h^{order:.1f}" if np.isfinite(order) else "too small to tell"

"""Figures of the book. Each function draws on `ax` (a new figure if None) and returns it.

Colours are Okabe and Ito's, told apart by readers with any colour vision; line styles and markers differ as well.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "x")
RC = {
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def styled(function: Callable) -> Callable:
    """Run a plotting function under the book's style, and leave matplotlib's settings as they were."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        # loads the notebook's backend, which switches figures on: inside rc_context this would be undone at its end
        plt.draw_if_interactive()
        with plt.rc_context(RC):
            return function(*args, **kwargs)

    return wrapper


def array(values: object) -> np.ndarray:
    """Return a tensor, with or without gradient, or anything else as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


@styled
def panels(num_rows: int = 1, num_columns: int = 1, *, width: float = 5.8, height: float = 3.1, **options):
    """Return the axes of a new figure: one Axes, or an array of them."""
    _, axes = plt.subplots(num_rows, num_columns, figsize=(width, height), layout="constrained", **options)
    return axes


def finish(
    ax: Axes,
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    log: str = "",
    xticks: Sequence | None = None,
    legend: bool = False,
) -> Axes:
    """Set labels, logarithmic axes ("x", "y", "xy"), ticks and the legend."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=11)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    if xticks is not None:
        ax.set_xticks(xticks, [f"{tick:,g}" for tick in xticks])
        ax.minorticks_off()
    if legend:
        ax.legend(fontsize=9.5)
    return ax


@styled
def lines(
    x: object,
    series: Mapping[str, object],
    *,
    ax: Axes | None = None,
    band: Mapping[str, tuple[object, object]] | None = None,
    level: Mapping[str, float] | None = None,
    markers: bool = False,
    **labels,
) -> Axes:
    """Draw curves over a common x.

    Args:
        x: shape ``(N,)``.
        series: label -> values, shape ``(N,)``; or label -> (own x, values).
        band: label -> (low, high), drawn around the curve of that label; the caption must say what it is.
        level: label -> height of a horizontal line.
        markers: mark the points.
        labels: `xlabel`, `ylabel`, `title`, `log` as for `finish`. A logarithmic axis with at most eight marked
            points is labelled at these.
    """
    ax = panels() if ax is None else ax
    for i, (label, values) in enumerate(series.items()):
        at, values = values if isinstance(values, tuple) else (x, values)
        style = {"marker": MARKERS[i % 7], "markersize": 4} if markers else {}
        ax.plot(array(at), array(values), color=COLORS[i % 7], linestyle=STYLES[i % 7], label=label, **style)
        if band and label in band:
            low, high = band[label]
            ax.fill_between(array(at), array(low), array(high), color=COLORS[i % 7], alpha=0.2, linewidth=0)
    for i, (label, height) in enumerate((level or {}).items()):
        ax.axhline(height, color="0.25", linestyle=(0, (1, 1 + i)), linewidth=1.2, label=label)
    if "x" in labels.get("log", "") and markers and len(x) <= 8:
        labels["xticks"] = x
    elif "x" not in labels.get("log", "") and np.issubdtype(np.asarray(array(x)).dtype, np.integer):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(ax, legend=len(series) + len(level or {}) > 1, **labels)


@styled
def scatter(
    groups: Mapping[str, object], *, ax: Axes | None = None, size: float = 8, sizes: object = None, **labels
) -> Axes:
    """Draw points of the plane: label -> shape ``(N, 2)``; `sizes` (N,) scales the points of the last group."""
    ax = panels(width=4.6, height=4.2) if ax is None else ax
    for i, (label, points) in enumerate(groups.items()):
        area = array(sizes) if sizes is not None and i == len(groups) - 1 else size
        style = {"color": COLORS[i % 7], "marker": MARKERS[i % 7], "linewidths": 0}
        ax.scatter(*array(points).T, s=area, alpha=0.6, label=label, **style)
    ax.set_aspect("equal", adjustable="datalim")
    return finish(ax, legend=len(groups) > 1, **labels)


@styled
def heatmap(
    values: object,
    *,
    ax: Axes | None = None,
    extent: Sequence | None = None,
    colorbar: str = "",
    cmap: str = "viridis",
    **labels,
) -> Axes:
    """Draw a matrix; row 0 at the bottom when an `extent` (left, right, bottom, top) is given, else at the top."""
    ax = panels(width=4.6, height=3.8) if ax is None else ax
    origin = "upper" if extent is None else "lower"
    image = ax.imshow(array(values), extent=extent, origin=origin, cmap=cmap, aspect="equal")
    ax.grid(False)
    if extent is None:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label=colorbar, shrink=0.85)
    return finish(ax, **labels)


@styled
def images(
    x: object, *, num_columns: int = 10, ax: Axes | None = None, title: str = "", side: int | None = None
) -> Axes:
    """Draw images as one mosaic, row by row: `x` of shape ``(N, D)`` with D a square, values in [0, 1], 1 is dark."""
    x = array(x)
    side = round(x.shape[1] ** 0.5) if side is None else side
    num_rows = -(-len(x) // num_columns)
    mosaic = np.full((num_rows * (side + 1) + 1, num_columns * (side + 1) + 1), 0.35)
    for i, image in enumerate(x):
        top, left = 1 + (i // num_columns) * (side + 1), 1 + (i % num_columns) * (side + 1)
        mosaic[top : top + side, left : left + side] = image.reshape(side, side)
    ax = panels(width=6.4, height=0.3 + 6.4 * num_rows / num_columns) if ax is None else ax
    ax.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=11)
    return ax


@styled
def labelled_points(points: object, labels: object, *, ax: Axes | None = None, **names) -> Axes:
    """Draw each point (N, 2) as its label (N,), a short text: readable without telling ten colours apart."""
    ax = panels(width=5.4, height=4.8) if ax is None else ax
    points, labels = array(points), array(labels)
    for point, label in zip(points, labels, strict=True):
        ax.text(*point, str(label), color=COLORS[int(label) % 7], fontsize=7, ha="center", va="center")
    margin = 0.05 * (points.max(0) - points.min(0))
    ax.set_xlim(points[:, 0].min() - margin[0], points[:, 0].max() + margin[0])
    ax.set_ylim(points[:, 1].min() - margin[1], points[:, 1].max() + margin[1])
    return finish(ax, **names)


@styled
def contours(
    horizontal: object, vertical: object, densities: Mapping[str, object], *, ax: Axes | None = None, **labels
) -> Axes:
    """Draw contours of densities over the plane: label -> shape ``(H, V)``, at 1, 10 and 50 % of each maximum."""
    ax = panels(width=4.4, height=4.0) if ax is None else ax
    handles = []
    for i, (label, values) in enumerate(densities.items()):
        values, style = array(values), {"colors": COLORS[i % 7], "linestyles": STYLES[i % 7], "linewidths": 1.4}
        ax.contour(
            array(horizontal), array(vertical), values.T, levels=values.max() * np.array([0.01, 0.1, 0.5]), **style
        )
        handles += ax.plot([], [], color=COLORS[i % 7], linestyle=STYLES[i % 7], label=label)
    return finish(ax, legend=len(handles) > 1, **labels)

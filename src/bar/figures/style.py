"""The style that all figures share, and the panels that several of them use."""

import functools
import math
import textwrap
from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bar.errors import BarError

WIDTH = 4.8  # inches; with letters of 11 points a phone shows them at about 10 pixels
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7"]  # Okabe and Ito's, told apart by the colour-blind
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v"]
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES),
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draw in the book's style, and close the figure, since a notebook would show it twice."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made when first drawn, in the style of that moment
        plt.close(figure)
        return figure

    return wrapper


def check_lines(count: int, what: str = "lines") -> None:
    """Refuse to draw nothing, or more than there are colours and kinds of lines to tell apart."""
    if not 0 < count <= len(COLOURS):
        raise BarError(f"from 1 to {len(COLOURS)} {what} can be told apart in a figure, not {count}")


def subplots(rows: int = 1, columns: int = 1, height: float = 3.0, **options) -> tuple[Figure, Axes]:
    """Panels in a column (or a grid) of the book's width; `height` is that of one panel, in inches."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height * rows), **options)


def panels_of_records(rows: pd.DataFrame, height: float, **options) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each record (and batch size), one below the other; the first of a record names it."""
    if rows.empty:
        raise BarError("there is no measured time to draw")
    groups = list(rows.groupby([column for column in ("record", "batch") if column in rows], sort=False))
    titles = []
    for i, ((record, *batch), _) in enumerate(groups):
        first = i == 0 or groups[i - 1][0][0] != record
        titles.append("\n".join([textwrap.fill(record, 50)] * first + [f"batch of {size}" for size in batch]))
    figure, axes = subplots(len(groups), height=height, squeeze=False, **options)
    lines = sum(title.count("\n") for title in titles)
    figure.set_figheight(figure.get_figheight() + 0.18 * lines + 0.9)  # the legend, too, takes nothing from the panels
    for ax, title in zip(axes[:, 0], titles, strict=True):
        ax.set_title(title)
    return figure, [(ax, group) for ax, (_, group) in zip(axes[:, 0], groups, strict=True)]


def factor_axis(ax: Axes, values: pd.Series) -> None:
    """A logarithmic axis of factors with a tick at powers of two, or of four where there would be many."""
    low, high = max(1.0, values.min()), max(2.0, values.max())
    ax.set_xscale("log", base=2)
    low = 2.0 ** math.floor(math.log2(low))  # so that the axis begins at a tick
    ax.set_xlim(low / 1.15, high * 1.15)
    ticks = [2**k for k in range(0, 20, 1 if high <= 32 else 2) if low <= 2**k <= high * 1.15]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()

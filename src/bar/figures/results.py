"""Figures of results, our own and those of the paper (section 5; notebooks 06 and 07)."""

import math
import textwrap
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bar import methods as methods_
from bar.errors import BarError
from bar.figures.style import COLOURS, LINES, factor_axis, styled, subplots

_PAPERS = (  # in the order of its legends
    "bar", "bar-flops", "random", "vector-quantization", "magnitude", "interpolative", "l0", "information-bottleneck",
    "morphnet",
)  # fmt: skip
_TITLES = {name: method.title for name, method in methods_.METHODS.items()} | {"bar-flops": "BAR (F-trained)"}
METHODS = {name: _TITLES[name] for name in _PAPERS}  # the methods of `bar.paper.table` ("pruning_results")
DRAWN = METHODS | {name: _TITLES[name] for name in methods_.STRUCTURED}  # and those that are only recorded


def _look(method: str) -> dict:
    """The look of a method, the same in every figure; no two look alike, not even in greyscale."""
    i, ours = list(DRAWN).index(method), method.startswith("bar")
    return {
        "label": DRAWN[method],
        "color": COLOURS[i % len(COLOURS)],
        "ls": LINES[(i + 2 * (i >= len(COLOURS))) % len(LINES)],
        "marker": "os^Dv<>PX*dph"[i % 13],
        "ms": 6 if ours else 5,
        "lw": 2.6 if ours else 1.2,
        "mfc": None if i < len(COLOURS) else "white",
        "zorder": 3 if ours else 2,
    }


def _check_methods(rows: pd.DataFrame) -> None:
    """Refuse methods that have no look, and would not be drawn."""
    unknown = sorted(set(rows.method) - set(DRAWN))
    if unknown:
        raise BarError(f"cannot draw the method {unknown[0]!r}: known are {', '.join(DRAWN)}")


@styled
def paper_results(results: pd.DataFrame, unpruned: float | None = None) -> Figure:
    """Accuracy over the factors of volume and FLOPs, a line a method (figures 6 and 8 of the paper).

    Parameters
    ----------
    results : DataFrame
        Rows of `bar.paper.table` ("pruning_results") of one data set: method, v_factor, f_factor, accuracy.
    unpruned : float, optional
        Accuracy of the unpruned network, in [0, 1].

    Returns
    -------
    Figure
        Panel (a) over V_F / V, panel (b) over the factor of FLOPs, both logarithmic. BAR's lines are thick.

    Raises
    ------
    BarError
        If there is a method of another name.

    Examples
    --------
    >>> from bar import paper
    >>> table = paper.table("pruning_results").query("dataset == 'Mio-TCD'")
    >>> len(paper_results(table).axes[0].lines)
    8
    """
    _check_methods(results)
    figure, panels = subplots(2, height=3.0, sharey=True)
    for ax, column in zip(panels, ("v_factor", "f_factor"), strict=True):
        _by_method(ax, results, column, unpruned)
        factor_axis(ax, results[column])
    panels[0].set_xlabel("(a) volume factor, $V_F / V$")
    panels[1].set_xlabel("(b) FLOP factor")
    _legend_of_methods(figure, panels)
    return figure


@styled
def results_by_method(sources: Mapping[str, pd.DataFrame], unpruned: Mapping[str, float]) -> Figure:
    """Accuracy over the factors of volume and FLOPs, a line a method: recorded runs beside the paper's (fig. 6 and 8).

    Parameters
    ----------
    sources : mapping of str to DataFrame
        A text that says where the rows are from -> one row a point: method (as in `DRAWN`), v_factor, f_factor and
        accuracy in [0, 1]. With a column spread, a whisker of that half length, where it is a number.
    unpruned : mapping of str to float
        The same texts, where it is known -> accuracy of the unpruned network, in [0, 1].

    Returns
    -------
    Figure
        A panel for each source over V_F / V, one below the other, then one for each over the factor of FLOPs. Panels
        of the same factor have the same horizontal axis; no two sources share a panel.

    Raises
    ------
    BarError
        If there is nothing to draw, or a method of another name.

    Examples
    --------
    >>> row = {"method": "bar", "v_factor": 4.0, "f_factor": 16.0, "accuracy": 0.9, "spread": 0.01}
    >>> figure = results_by_method({"here": pd.DataFrame([row]), "the paper": pd.DataFrame([row])}, {"here": 0.92})
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['(a) here', '(b) the paper', '(c) here', '(d) the paper']
    """
    everything = pd.concat(sources.values()) if sources else pd.DataFrame()
    if everything.empty:
        raise BarError("there is no result to draw")
    _check_methods(everything)
    figure, panels = subplots(2 * len(sources), height=2.45)
    names = {"v_factor": "volume factor, $V_F / V$", "f_factor": "FLOP factor"}
    places = [(column, source) for column in names for source in sources]
    lines = 0
    for i, (ax, (column, source)) in enumerate(zip(panels, places, strict=True)):
        _by_method(ax, sources[source], column, unpruned.get(source))
        factor_axis(ax, everything[column])
        title = textwrap.fill(f"({chr(ord('a') + i)}) {source}", 50)
        lines += 1 + title.count("\n")
        ax.set(title=title, xlabel=names[column])
    figure.set_figheight(figure.get_figheight() + 0.18 * lines + 0.7)  # titles and legend take nothing from the panels
    _legend_of_methods(figure, panels)
    return figure


def _by_method(ax: Axes, rows: pd.DataFrame, column: str, unpruned: float | None) -> None:
    """A line for each method over a column of factors, and one for the unpruned network."""
    for method in DRAWN:
        mine = rows[rows.method == method].sort_values(column)
        if mine.empty:
            continue
        look = _look(method)
        ax.plot(mine[column], 100 * mine.accuracy, **look)
        if "spread" in mine:
            error = {"ecolor": look["color"], "elinewidth": 0.8, "zorder": look["zorder"]}
            ax.errorbar(mine[column], 100 * mine.accuracy, yerr=100 * mine.spread, fmt="none", **error)
    if unpruned is not None:
        ax.axhline(100 * unpruned, color="grey", lw=1, ls="-", label="unpruned")
    ax.set_ylabel("test accuracy (%)")


def _legend_of_methods(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels: each method once, in the order of `DRAWN`."""
    handles = {label: line for ax in panels for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = [label for label in (*DRAWN.values(), "unpruned") if label in handles]
    figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=3)


@styled
def neurons_by_method(rows: pd.DataFrame, factor: float) -> Figure:
    """What each method leaves of each residual block, at one budget (fig. 7).

    Parameters
    ----------
    rows : DataFrame
        A row a block of a method: method (as in `DRAWN`), block, full and left (numbers per image, means over the
        seeds).
    factor : float
        V_F / B.

    Returns
    -------
    Figure
        A panel for each method, two side by side, on the same axes. Solid bars are what is left; dotted ones, behind
        them, what dividing every block by the same factor would leave.

    Raises
    ------
    BarError
        If there are no rows, or a method of another name.

    Examples
    --------
    >>> row = {"method": "bar", "block": "group1.0", "full": 4096, "left": 900.0}
    >>> same, left = neurons_by_method(pd.DataFrame([row]), factor=4).axes[0].containers
    >>> int(same[0].get_width()), int(left[0].get_width())
    (1024, 900)
    """
    if rows.empty:
        raise BarError("there is no recorded run to draw")
    _check_methods(rows)
    methods, blocks = [m for m in DRAWN if m in set(rows.method)], list(dict.fromkeys(rows.block))
    lines = math.ceil(len(methods) / 2)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = subplots(lines, 2, height=0.21 * len(blocks) + 0.5, **options)
    figure.set_figheight(figure.get_figheight() + 0.9)
    for ax in axes.flat[len(methods) :]:
        ax.set_axis_off()
    for ax, method in zip(axes.flat, methods, strict=False):
        mine = rows[rows.method == method].set_index("block").reindex(blocks)
        places = range(len(blocks))
        ax.barh(places, mine.full / factor, height=0.85, fc="#eeeeee", ec="#777777", hatch="....", lw=0.6,
                label=f"full network / {factor:g}")  # fmt: skip
        ax.barh(places, mine.left, height=0.5, fc=COLOURS[0], ec=COLOURS[0], lw=0.6, label="left")
        for place, left in zip(places, mine.left, strict=True):
            if left < 0.5:
                box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}
                ax.annotate("gone", (0, place), (5, 0), textcoords="offset points", va="center", fontsize=8, bbox=box)
        ax.set(title=DRAWN[method], ylim=(len(blocks) - 0.5, -0.5))
        ax.set_yticks(places, blocks, fontsize=8)
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_locator(plt.MaxNLocator(3))
        ax.xaxis.set_major_formatter("{x:,.0f}")
    for i, ax in enumerate(axes.flat[: len(methods)]):
        if i + 2 >= len(methods):  # the lowest of its column
            ax.set_xlabel("neurons (per image)", fontsize=10)
            ax.tick_params(labelbottom=True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@styled
def accuracy_changes(ours: pd.DataFrame, paper: pd.DataFrame) -> Figure:
    """What pruning did to the accuracy: recorded runs in one panel, the paper's in another.

    Parameters
    ----------
    ours : DataFrame
        A row a group of runs: label, factor (V_F / V), change and (half the width of its interval, or NaN) interval,
        both in percentage points, of test accuracy against the unpruned network. May be empty.
    paper : DataFrame
        The paper's numbers, with the same columns but interval.

    Returns
    -------
    Figure
        Panel (a), our runs, a line a label, with 95 % intervals; panel (b), the paper's, on the same axes.

    Examples
    --------
    >>> row = pd.DataFrame({"label": ["BAR"], "factor": [2.0], "change": [1.8], "interval": [0.2]})
    >>> [ax.get_title(loc="left") for ax in accuracy_changes(row, row).axes]
    ['(a) runs of this repository', '(b) the paper']
    """
    figure, panels = subplots(2, height=2.7, sharex=True, sharey=True)
    lines = 0
    for ax, rows, title in zip(panels, (ours, paper), ("(a) runs of this repository", "(b) the paper"), strict=True):
        for label, group in rows.groupby("label", sort=False):
            group = group.sort_values("factor")
            ax.errorbar(
                group.factor,
                group.change,
                yerr=group.interval if "interval" in group else None,
                label=label,
                color=COLOURS[lines % len(COLOURS)],
                ls=LINES[lines % len(LINES)],
                marker="os^Dv<>Px*"[lines % 10],
                capsize=3,
            )
            lines += 1
        ax.axhline(0, color="grey", lw=1, ls="-")
        ax.set(title=title, ylabel="change of accuracy\n(percentage points)")
    factor_axis(panels[1], pd.concat([ours.factor, paper.factor]))
    panels[1].set_xlabel("volume factor, $V_F / V$")
    texts = [text for ax in panels for text in ax.get_legend_handles_labels()[1]]
    figure.set_figheight(figure.get_figheight() + 0.19 * sum(2 + text.count("\n") for text in texts))
    figure.legend(loc="outside lower left")
    return figure

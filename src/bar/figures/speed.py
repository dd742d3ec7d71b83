"""Figures of measured speed, from the records of ``bench/latency.py`` (notebook 11)."""

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bar.figures.style import COLOURS, LINES, factor_axis, panels_of_records, styled

TIMED = {  # what `bench/latency.py` calls its networks, and how they look
    "dense": {"label": "dense, same FLOPs", "color": COLOURS[3], "ls": LINES[3], "marker": "D"},
    "mixed": {"label": "mixed", "color": COLOURS[0], "ls": LINES[0], "marker": "o"},
    "regular": {"label": "regular", "color": COLOURS[1], "ls": LINES[1], "marker": "s"},
    "torch-pruning": {"label": "Torch-Pruning", "color": COLOURS[2], "ls": LINES[2], "marker": "^", "mfc": "white"},
    "gated": {"label": "gated (masked)", "color": COLOURS[4], "ls": LINES[4], "marker": "v", "mfc": "white"},
}


@styled
def speedups(rows: pd.DataFrame) -> Figure:
    """Speedup over the unpruned network, and its limit, the FLOP factor.

    Parameters
    ----------
    rows : DataFrame
        Records of ``bench/latency.py``: record (a text that names where they are from), batch, network, factor (of the
        volume), flop_factor, speedup.

    Returns
    -------
    Figure
        A panel for each record and batch size, both axes logarithmic: a line for each network of `TIMED`, a grey one
        for the FLOP factor of "mixed".

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> row = {"record": "mine", "batch": 1, "network": "mixed", "factor": 4.0, "flop_factor": 9.0, "speedup": 5.0}
    >>> speedups(pd.DataFrame([row])).axes[0].get_legend_handles_labels()[1]
    ['limit: FLOP factor of mixed', 'mixed']
    """
    figure, panels = panels_of_records(rows, height=2.3, sharex=True)
    for ax, group in panels:
        limit = group[group.network == "mixed"].sort_values("factor")
        ax.plot(limit.factor, limit.flop_factor, color="grey", ls="-", lw=1, label="limit: FLOP factor of mixed")
        _by_factor(ax, group, "speedup", TIMED)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel("times as fast\nas unpruned")
    factor_axis(panels[-1][0], rows.factor)
    panels[-1][0].set_xlabel("volume factor, $V_F / V$")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@styled
def throughput_over_dense(rows: pd.DataFrame, target: float = 0.9) -> Figure:
    """Throughput relative to that of a plain network of the same FLOPs, the practical limit of surgery.

    Parameters
    ----------
    rows : DataFrame
        Records of ``bench/latency.py``: record, batch, network, factor, and throughput_over_dense, with quartiles in
        throughput_over_dense_low and throughput_over_dense_high.
    target : float
        Where a line is drawn.

    Returns
    -------
    Figure
        A panel for each record and batch size: lines for mixed, regular and Torch-Pruning, with quartiles.

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> row = {"record": "mine", "batch": 1, "network": "mixed", "factor": 4.0, "throughput_over_dense": 0.8}
    >>> quartiles = {"throughput_over_dense_low": 0.7, "throughput_over_dense_high": 0.9}
    >>> throughput_over_dense(pd.DataFrame([row | quartiles])).axes[0].get_title(loc="left")
    'mine\\nbatch of 1'
    """
    figure, panels = panels_of_records(rows, height=1.9, sharex=True, sharey=True)
    shown = ["mixed", "regular", "torch-pruning"]
    for ax, group in panels:
        ax.axhline(100, color=COLOURS[3], ls="-", lw=1.2, label="dense, same FLOPs")
        ax.axhline(100 * target, color="grey", ls=LINES[1], lw=1.2, label=f"target: {100 * target:g} % of dense")
        _by_factor(ax, group, "throughput_over_dense", shown, scale=100)
        ax.set_ylabel("throughput\n(% of dense)")
    low = 100 * rows[rows.network.isin(shown)].throughput_over_dense_low.min()
    panels[0][0].set_ylim(bottom=min(60, 10 * math.floor(low / 10)))
    factor_axis(panels[-1][0], rows.factor)
    panels[-1][0].set_xlabel("volume factor, $V_F / V$")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _by_factor(ax: Axes, rows: pd.DataFrame, column: str, networks: Iterable[str], scale: float = 1.0) -> None:
    """A line a network over the volume factor, with quartiles where there are columns for them."""
    for name in networks:
        mine = rows[rows.network == name].sort_values("factor")
        if mine.empty:
            continue
        value, spread = scale * mine[column], None
        if f"{column}_low" in mine:
            spread = [value - scale * mine[f"{column}_low"], scale * mine[f"{column}_high"] - value]
        ax.errorbar(mine.factor, value, yerr=spread, ms=6, capsize=3, **TIMED[name])


@styled
def where_time_went(rows: pd.DataFrame) -> Figure:
    """What part of the FLOP reduction became time, and where the rest of the time goes.

    Parameters
    ----------
    rows : DataFrame
        Records of ``bench/latency.py``: record, batch, network, factor, ms_if_flops_were_time (the unpruned network's
        time divided by the FLOP factor), ms_slower_convolutions and ms_more_of_the_rest (what convolutions and all
        other operations take beyond their share of it).

    Returns
    -------
    Figure
        A panel for each record and batch size, a bar for each network and factor: its time is 100 %. What takes less
        than its share is left of 0, and the rest of the bar is longer by as much.

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> row = {"record": "mine", "batch": 1, "network": "mixed", "factor": 4.0, "ms_if_flops_were_time": 3.0}
    >>> rest = {"ms_slower_convolutions": 1.0, "ms_more_of_the_rest": 1.0}
    >>> kept, slower, other = where_time_went(pd.DataFrame([row | rest])).axes[0].containers
    >>> round(kept[0].get_width())
    60
    """
    parts = {
        "ms_if_flops_were_time": ("as if FLOPs were time", {"fc": COLOURS[0], "ec": COLOURS[0]}),
        "ms_slower_convolutions": ("convolutions slower per FLOP", {"fc": "#f0a875", "ec": "black", "hatch": "////"}),
        "ms_more_of_the_rest": ("other operations", {"fc": "#e3e3e3", "ec": "#555555", "hatch": "...."}),
    }
    count = rows.groupby(["record", "batch"]).size().max() if len(rows) else 0
    figure, panels = panels_of_records(rows, height=0.24 * count + 0.4, sharex=True)
    reach = []
    for ax, group in panels:
        group = group.sort_values("factor", kind="stable")
        shares = 100 * group[list(parts)].div(group[list(parts)].sum(axis=1), axis=0)
        for column, (label, look) in parts.items():
            before = shares.loc[:, :column].iloc[:, :-1]  # what is on the same side of 0
            left = before.clip(lower=0).sum(axis=1).where(shares[column] > 0, before.clip(upper=0).sum(axis=1))
            ax.barh(range(len(group)), shares[column], left=left, height=0.75, lw=0.6, label=label, **look)
        reach.append((shares.clip(upper=0).sum(axis=1).min(), shares.clip(lower=0).sum(axis=1).max()))
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(len(group)), [f"{n}, {f:g}x" for n, f in zip(group.network, group.factor, strict=True)])
        ax.set_ylim(len(group) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
    lowest, highest = zip(*reach, strict=True)
    panels[-1][0].set(xlim=(min(lowest), max(highest)), xlabel="part of the network's own time (%)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure

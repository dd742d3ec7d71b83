"""Figures of training runs over their epochs (notebooks 04 and 12)."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bar.errors import BarError, nearest
from bar.figures.style import COLOURS, LINES, panels_of_records, styled, subplots

LETTERS = {"volume": "V", "flops": "F"}


@styled
def training_run(
    metrics: pd.DataFrame, full: float, limit: float, metric: str = "volume", unpruned: float | None = None
) -> Figure:
    """A run over its epochs: size and budget, the barrier, the accuracy (eq. 4, 5 and 7 at work).

    Parameters
    ----------
    metrics : DataFrame
        From `bar.runs.metrics`: a row an epoch and one of the cut, with phase, size, budget, barrier, accuracy.
    full, limit : float
        V_F and B, in the unit of the metric.
    metric : str
        What is budgeted: "volume" (letter V) or "flops" (letter F).
    unpruned : float, optional
        Validation accuracy of the unpruned network, in [0, 1].

    Returns
    -------
    Figure
        Three panels over the epochs of all phases together; vertical lines are the cut and the start of the cool-down.

    Raises
    ------
    BarError
        If the metric is another one.

    Examples
    --------
    >>> row = {"phase": ["prune", "cut", "finetune"], "size": [8, 4, 4], "budget": [5, 5, 5], "barrier": [1, 0, 0]}
    >>> figure = training_run(pd.DataFrame({**row, "accuracy": [0.5, 0.6, 0.7]}), full=10, limit=5)
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['part of $V_F$', 'barrier $f$', 'validation accuracy']
    """
    if metric not in LETTERS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), LETTERS)}")
    letter = LETTERS[metric]
    epochs = (metrics.phase != "cut").cumsum()  # the cut belongs to the epoch before it
    pruning = metrics.phase.isin(["prune", "cut"])
    prune = metrics.phase == "prune"
    figure, (sizes, barrier_, accuracies) = subplots(3, height=2.0, sharex=True)
    sizes.plot(epochs[prune], metrics.budget[prune] / full, label="$b$", color=COLOURS[1], ls=LINES[1])
    sizes.plot(epochs, metrics["size"] / full, label=f"${letter}$", color=COLOURS[0], ls=LINES[0])
    sizes.axhline(limit / full, label="$B$", color=COLOURS[3], ls=LINES[3], lw=1.4)
    sizes.set(ylabel=f"part of ${letter}_F$", ylim=(0, 1.05))
    sizes.legend(loc="upper right")
    barrier_.plot(epochs[prune], metrics.barrier[prune], color=COLOURS[0], ls=LINES[0])
    barrier_.set_yscale("symlog", linthresh=0.1)
    barrier_.set(ylabel="barrier $f$", ylim=(0, None))
    accuracies.plot(epochs[pruning], metrics.accuracy[pruning], color=COLOURS[0], label="if cut now")
    accuracies.plot(epochs[~prune], metrics.accuracy[~prune], color=COLOURS[2], ls=LINES[2], label="after the cut")
    if unpruned is not None:
        accuracies.axhline(unpruned, color=COLOURS[3], ls=LINES[3], lw=1.4, label="unpruned")
    accuracies.set(ylabel="validation accuracy", xlabel="epoch")
    accuracies.legend(loc="best")
    starts = {"finetune": "tune", "cooldown": "cool"}
    for i, (phase, label) in enumerate({"prune": "prune", **starts}.items()):
        if not (metrics.phase == phase).any():
            continue
        start = epochs[metrics.phase == phase].iloc[0] - 1
        for ax in (sizes, barrier_, accuracies) if i else ():
            ax.axvline(start, color="grey", lw=0.8, ls="-")
        sizes.annotate(
            label, (start, 1), (2, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=10
        )
    return figure


@styled
def following(rows: pd.DataFrame, unit: str = "epoch") -> Figure:
    """How V follows the moving margin b while a network is pruned (eq. 4 and 7 at work).

    Parameters
    ----------
    rows : DataFrame
        A row for each moment of each run: name (of what was varied), factor (V_F / B), seed, time (in units of `unit`),
        and as parts of V_F: size, size_min, size_max (V, and its bounds since the moment before) and budget
        (b). With a column note, its text in the first row of a panel stands above it. With a column variant, lines are
        those of its (at most two) values, which the legend names, instead of seeds.
    unit : str
        What time counts: "epoch" or "step".

    Returns
    -------
    Figure
        For each name a row of panels, one for each factor (two in a row), on logarithmic axes that are the same for a
        factor. A line for each seed, with a band from size_min to size_max.

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> row = {"name": "mine", "factor": 4.0, "seed": 0, "size_min": 0.2, "size_max": 0.6, "budget": 0.7}
    >>> rows = pd.DataFrame([row | {"time": i, "size": 0.6 / i} for i in (1, 2, 3)])
    >>> following(rows).axes[0].get_title(loc="left")
    'mine\\n4x'
    """
    if rows.empty:
        raise BarError("there is no recorded run to draw")
    columns = min(2, rows.factor.nunique())
    variants = list(rows.variant.unique()) if "variant" in rows else []
    drawable = rows[rows.size_min > 0]  # a network of which no signal is left has no place on a logarithmic axis
    lines = _lines_of_panels(rows, columns)
    figure, axes = subplots(len(lines), columns, height=1.65, squeeze=False)
    figure.set_figheight(figure.get_figheight() + 0.7)  # the legend takes nothing from the panels
    for i, line in enumerate(lines):
        for ax in axes[i, len(line) :]:
            ax.set_axis_off()
        for j, (ax, (name, panel)) in enumerate(zip(axes[i], line, strict=False)):
            factor = panel.factor.iloc[0]
            _draw_runs(ax, panel, variants)
            ax.axhline(1 / factor, color=COLOURS[3], ls=LINES[3], lw=1.2, label="$B$")
            note = f": {panel.note.iloc[0]}" if "note" in panel else ""
            # Only the first panel has the name, since a long one may reach over the next panel.
            ax.set_title(("" if j else name) + f"\n{factor:g}x{note}", fontsize=10)
            _axis_of_parts(ax, factor, lowest=drawable[drawable.factor == factor].size_min.min())
            if j == 0:
                ax.set_ylabel("part of $V_F$")
            nothing_below = i == len(lines) - 1 or j >= len(lines[i + 1])
            if nothing_below:
                ax.set_xlabel(f"{unit} of the pruning")
    drawn = dict(pair for ax in axes.flat for pair in zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    columns = 2 if len(drawn) > 3 else 3
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, columnspacing=1)
    return figure


def _lines_of_panels(rows: pd.DataFrame, columns: int) -> list[list[tuple[str, pd.DataFrame]]]:
    """Lines of at most so many panels, each a name and its rows of one factor; a name begins a new line."""
    lines = []
    for name, group in rows.groupby("name", sort=False):
        panels = [(name, panel) for _, panel in group.groupby("factor")]
        lines += [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return lines


def _draw_runs(ax: Axes, panel: pd.DataFrame, variants: list[str]) -> None:
    """V and its bounds for each seed, or each of the variants, and b, which is the same for all of them."""
    label = "$V$, a line for each seed" if panel.seed.nunique() > 1 else "$V$"
    for i, (name, run) in enumerate(panel.groupby("variant" if variants else "seed", sort=not variants)):
        number = 2 * variants.index(name) if variants else 0
        look = {"color": COLOURS[number], "ls": LINES[number]}
        ax.fill_between(run.time, run.size_min, run.size_max, color=look["color"], alpha=0.15, lw=0)
        ax.plot(run.time, run["size"], lw=0.9, label=f"$V$, {name}" if variants else None if i else label, **look)
        if i == 0:
            ax.plot(run.time, run.budget, color=COLOURS[1], ls=LINES[1], lw=1.4, label="$b$", zorder=3)


def _axis_of_parts(ax: Axes, factor: float, lowest: float) -> None:
    """A logarithmic y axis of parts of V_F, with ticks at B and at powers of 1/4."""
    bottom = min(lowest, 1 / factor) / 1.3
    ax.set_yscale("log", base=2)
    ax.set_ylim(bottom, 1.3)
    ticks = sorted({1 / factor, *(4.0**-k for k in range(10) if 4.0**-k >= bottom)})
    ax.set_yticks(ticks, [f"1/{1 / tick:g}" if tick < 1 else "1" for tick in ticks])
    ax.minorticks_off()


TRAININGS = {  # what `bench/training.py` calls its trainings, and how they look
    "unpruned": {"color": COLOURS[3], "ls": LINES[3]},
    "cut while training": {"color": COLOURS[0], "ls": LINES[0]},
    "cut at the end": {"color": COLOURS[1], "ls": LINES[1]},
}


@styled
def seconds_per_epoch(rows: pd.DataFrame) -> Figure:
    """What an epoch takes, over three trainings of equal length: BAR, cutting on the way or not, and the full network.

    Parameters
    ----------
    rows : DataFrame
        Records of ``bench/training.py``, without those of the cut: record (a text that names where they are from),
        training (as in `TRAININGS`), time (epochs from the start), phase, seconds.

    Returns
    -------
    Figure
        A panel for each record, from 0 seconds up; vertical lines are the end of the pruning and the start of the
        cool-down.

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> rows = pd.DataFrame([{"record": "mine", "training": "unpruned", "time": 1, "phase": "train", "seconds": 2.0}])
    >>> seconds_per_epoch(rows).axes[0].get_legend_handles_labels()[1]
    ['unpruned']
    """
    figure, panels = panels_of_records(rows, height=2.3)
    for ax, group in panels:
        for name, look in TRAININGS.items():
            mine = group[group.training == name].sort_values("time")
            if len(mine):
                ax.plot(mine.time, mine.seconds, label=name, **look)
        for phase, label in {"finetune": "tune", "cooldown": "cool"}.items():
            start = group[group.phase == phase].time.min() - 0.5
            if not math.isnan(start):
                ax.axvline(start, color="grey", lw=0.8, ls="-")
                ax.annotate(
                    label, (start, 0), (2, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                    fontsize=10,
                )  # fmt: skip
        ax.set_ylim(0, 1.05 * group.seconds.max())
        ax.set_ylabel("seconds per epoch")
        ax.set_xlabel("epoch")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1)
    return figure

"""Figures of the methods that set individual weights to zero (notebooks 08 and 09)."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bar.errors import BarError
from bar.figures.style import COLOURS, LINES, MARKERS, check_lines, styled, subplots
from bar.methods.learning_compression import LearningCompression
from bar.methods.reparametrization import soft_mask
from bar.methods.unstructured_magnitude import MagnitudePruning


def quadratic(weights: Tensor, optimum: Tensor, curvature: Tensor) -> Tensor:
    """The loss 1/2 (w - w*)^T H (w - w*).

    Parameters
    ----------
    weights : Tensor, shape (..., n)
    optimum : Tensor, shape (n,)
        w*.
    curvature : Tensor, shape (n, n)
        H, symmetric, positive definite.

    Returns
    -------
    Tensor, shape (...)
        At least 0.

    Examples
    --------
    >>> quadratic(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), torch.eye(2)).tolist()
    [0.0, 0.5]
    """
    apart = weights - optimum
    return (apart @ curvature * apart).sum(-1) / 2


def compress_quadratic(optimum: Tensor, curvature: Tensor, steps: int = 40, **options) -> pd.DataFrame:
    """Learning-Compression of a network that is one linear layer with a quadratic loss.

    The L step is exact: its minimum solves a system of linear equations.

    Parameters
    ----------
    optimum : Tensor, shape (n,)
        w*, where it starts.
    curvature : Tensor, shape (n, n)
        H, symmetric, positive definite.
    steps : int
        How many L and C steps.
    **options
        Of `LearningCompression`: factor, and the others as needed.

    Returns
    -------
    DataFrame
        A row for the start and one for each step: mu (of the L step), w and theta (lists of n numbers).

    Raises
    ------
    BarError
        If an option is out of range, or does not fit the form and the norm.

    Examples
    --------
    >>> path = compress_quadratic(torch.tensor([1.0, 0.5]), torch.eye(2), steps=3, factor=2, mu=0.1)
    >>> path.theta.tolist()[0]
    [1.0, 0.0]
    """
    n = len(optimum)
    network = nn.Linear(n, 1, bias=False, dtype=optimum.dtype)
    network.weight.data.copy_(optimum)
    pruner = LearningCompression(network, **options)
    rows = [{"mu": pruner.mu, "w": optimum.tolist(), "theta": pruner.theta[0][0].tolist()}]
    for step in range(steps):
        (gradient,) = torch.autograd.grad(pruner(step), network.weight)
        target = (network.weight.detach() - gradient / pruner.mu).squeeze(0)  # of the quadratic term
        system = curvature + pruner.mu * torch.eye(n, dtype=optimum.dtype)
        network.weight.data.copy_(torch.linalg.solve(system, curvature @ optimum + pruner.mu * target))
        mu = pruner.end_epoch()["mu"]
        rows.append({"mu": mu, "w": network.weight.detach()[0].tolist(), "theta": pruner.theta[0][0].tolist()})
    return pd.DataFrame(rows)


@styled
def two_weights(path: pd.DataFrame, optimum: Tensor, curvature: Tensor) -> Figure:
    """Learning-Compression of two weights, of which one stays, over the contours of the loss.

    Parameters
    ----------
    path : DataFrame
        From `compress_quadratic`, with factor 2.
    optimum : Tensor, shape (2,)
        w*, as for `compress_quadratic`.
    curvature : Tensor, shape (2, 2)
        H, likewise.

    Returns
    -------
    Figure
        Contours of the loss; the two axes, on which one weight is 0; the paths of w and theta; where magnitude pruning
        ends, as it is and fine-tuned.

    Examples
    --------
    >>> optimum, curvature = torch.tensor([1.0, 0.8]), torch.tensor([[1.0, 0.5], [0.5, 4.0]])
    >>> figure = two_weights(compress_quadratic(optimum, curvature, factor=2, mu=0.5), optimum, curvature)
    >>> figure.axes[0].get_xlabel()
    'weight $w_1$'
    """
    network = nn.Linear(2, 1, bias=False, dtype=optimum.dtype)
    network.weight.data.copy_(optimum)
    pruned = MagnitudePruning(network, 2).cut().weight.detach()[0]
    stays = int(pruned.abs().argmax())
    tuned = torch.zeros_like(pruned)  # the minimum on its axis
    tuned[stays] = (curvature @ optimum)[stays] / curvature[stays, stays]
    figure, ax = subplots(height=4.4)
    w, theta = (torch.tensor(path[name].tolist(), dtype=optimum.dtype) for name in ("w", "theta"))
    points = torch.stack([*w, *theta, pruned, tuned, torch.zeros(2, dtype=optimum.dtype)])
    low, high = points.min(0).values, points.max(0).values
    margin = 0.15 * (high - low).max()
    grids = [torch.linspace(a - margin, b + margin, 121, dtype=optimum.dtype) for a, b in zip(low, high, strict=True)]
    x, y = torch.meshgrid(*grids, indexing="xy")
    loss = quadratic(torch.stack([x, y], -1), optimum, curvature)
    levels = (torch.linspace(0.1, 1, 8) ** 2 * loss.max()).tolist()
    ax.contour(x, y, loss, levels=levels, colors="#999999", linewidths=0.8)
    ax.axhline(0, color="black", ls="-", lw=2.5, alpha=0.35, label="one weight is 0")
    ax.axvline(0, color="black", ls="-", lw=2.5, alpha=0.35)
    ax.plot(*w.T, color=COLOURS[0], ls=LINES[0], marker=MARKERS[0], ms=4, label="$w$, after each L step")
    ax.plot(
        *theta.T, color=COLOURS[1], ls="", marker=MARKERS[1], ms=9, mfc="none", label=r"$\theta$, after each C step"
    )
    ax.plot(*optimum, color="black", ls="", marker="*", ms=13, label="trained network")
    ax.plot(*pruned, color=COLOURS[2], ls="", marker="X", ms=10, zorder=4, label="magnitude pruning")
    ax.plot(*tuned, color=COLOURS[4], ls="", marker="P", ms=10, zorder=4, label="the same, fine-tuned")
    ax.set(xlabel="weight $w_1$", ylabel="weight $w_2$", aspect="equal")
    ax.grid(False)
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@styled
def loss_against_weights(rows: pd.DataFrame, unpruned: pd.Series) -> Figure:
    """Training loss and validation error against the share of weights that are kept, the view of the LC paper.

    Parameters
    ----------
    rows : DataFrame
        A row for each pruned network: method (five at most, drawn in the order of their first rows), kept (share of the
        weights, in (0, 1]), loss (mean cross-entropy on training images, above 0) and error (share of validation
        images, in [0, 1]).
    unpruned : Series
        loss and error of the unpruned network.

    Returns
    -------
    Figure
        Panel (a), training loss, panel (b), validation error in percent, both logarithmic in the share, (a) also in the
        loss. A line for each method, with a mark for each network.

    Raises
    ------
    BarError
        If there are no rows, more than five methods, or a share or a loss that is not above 0.

    Examples
    --------
    >>> rows = pd.DataFrame({"method": "LC", "kept": [0.1, 0.5], "loss": [0.2, 0.1], "error": [0.05, 0.01]})
    >>> figure = loss_against_weights(rows, pd.Series({"loss": 0.1, "error": 0.01}))
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['training loss (cross-entropy)', 'validation error (%)']
    """
    methods = list(rows.method.unique())
    check_lines(len(methods), "methods")
    if not ((rows.kept > 0).all() and (rows.loss > 0).all()):
        raise BarError(
            "the share of weights that are kept and the loss must be above 0 to be drawn on logarithmic axes"
        )
    figure, (upper, lower) = subplots(2, height=3.0, sharex=True)
    figure.set_figheight(figure.get_figheight() + 0.6)  # the legend takes nothing from the panels
    for i, method in enumerate(methods):
        of_method = rows[rows.method == method].sort_values("kept")
        look = {"color": COLOURS[i], "ls": LINES[i], "marker": MARKERS[i], "ms": 6, "mfc": "white", "label": method}
        upper.plot(100 * of_method.kept, of_method.loss, **look)
        lower.plot(100 * of_method.kept, 100 * of_method.error, **look)
    for ax, level in ((upper, unpruned.loss), (lower, 100 * unpruned.error)):
        ax.axhline(level, color="grey", lw=1, ls="-", label="unpruned", zorder=1)
    upper.set(title="(a)", yscale="log", xscale="log", ylabel="training loss (cross-entropy)")
    lower.set(title="(b)", xlabel="weights kept (%)", ylabel="validation error (%)", ylim=(0, None))
    lower.xaxis.set_major_formatter("{x:g}")
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@styled
def kept_per_layer(rows: pd.DataFrame) -> Figure:
    """How many of its weights each layer keeps.

    Parameters
    ----------
    rows : DataFrame
        A row for each layer of each pruned network: method (five at most), layer (name, in order), kept (share of its
        weights, in [0, 1]).

    Returns
    -------
    Figure
        One panel: a line of marks for each method over the layers, on an axis that is logarithmic above the smallest
        share that is not 0, and has a place for 0.

    Raises
    ------
    BarError
        If there are no rows, or more than five methods.

    Examples
    --------
    >>> rows = pd.DataFrame({"method": "LC", "layer": ["conv", "fc"], "kept": [0.5, 0.02]})
    >>> kept_per_layer(rows).axes[0].get_ylabel()
    'weights kept (%)'
    """
    methods, layers = list(rows.method.unique()), list(rows.layer.unique())
    check_lines(len(methods), "methods")
    figure, ax = subplots(height=3.6)
    for i, method in enumerate(methods):
        kept = rows[rows.method == method].set_index("layer").kept.reindex(layers)
        look = {"color": COLOURS[i], "ls": LINES[i], "marker": MARKERS[i], "ms": 7, "mfc": "white"}
        ax.plot(range(len(layers)), 100 * kept, label=method, clip_on=False, **look)
    some = rows.kept[rows.kept > 0]
    ax.set_yscale("symlog", linthresh=100 * some.min() if len(some) else 1.0)
    ax.set(ylabel="weights kept (%)", ylim=(0, 100), xlim=(-0.3, len(layers) - 0.7))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks(range(len(layers)), layers, rotation=30, ha="right", rotation_mode="anchor")
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@styled
def reparametrization(ts: Sequence[float] = (50.0, 100.0, 200.0), reach: float = 0.04) -> Figure:
    """The mask h_t of a weight, and the apparent weight w h_t(w) (Dupont, Sahbi & Michel 2021).

    Parameters
    ----------
    ts : sequence of float
        Steepnesses, one line each, five at most.
    reach : float
        The weights are drawn from minus this to this, > 0.

    Returns
    -------
    Figure
        Panel (a), h_t over w; panel (b), the apparent weight over w, with a thin line where they are equal.

    Raises
    ------
    BarError
        If there is no steepness or more than five, or `reach` is not above 0.

    Examples
    --------
    >>> [ax.get_ylabel() for ax in reparametrization().axes]
    ['mask $h_t(w)$', 'apparent weight $w h_t(w)$']
    """
    check_lines(len(ts))
    if not 0 < reach < math.inf:
        raise BarError(f"weights are drawn up to a number above 0, not {reach}")
    figure, (upper, lower) = subplots(2, height=2.6, sharex=True)
    w = torch.linspace(-reach, reach, 401, dtype=torch.float64)
    lower.plot(w, w, color="grey", ls="-", lw=0.8)
    for i, t in enumerate(ts):
        look = {"color": COLOURS[i], "ls": LINES[i]}
        upper.plot(w, soft_mask(w, t), label=f"$t$ = {t:g}", **look)
        lower.plot(w, w * soft_mask(w, t), **look)
    upper.set(title="(a)", ylabel="mask $h_t(w)$", ylim=(0, 1.02))
    lower.set(title="(b)", ylabel="apparent weight $w h_t(w)$", xlabel="weight $w$")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def accuracy_against_rate(rows: pd.DataFrame, unpruned: float) -> Figure:
    """Accuracy of pruned networks against the fraction of weights that are removed.

    Parameters
    ----------
    rows : DataFrame
        A row for each pruned network: method (five at most, drawn in the order of their first rows), rate (fraction of
        the weights that are removed, in (0, 1)), accuracy (in [0, 1]). Several rows of a method and a rate, of several
        seeds, are drawn as their mean, with a bar from the lowest to the highest.
    unpruned : float
        Accuracy of the unpruned network, in [0, 1].

    Returns
    -------
    Figure
        One panel. Rates are spaced by the logarithm of what is left, since the last ones would overlap otherwise.

    Raises
    ------
    BarError
        If there are no rows, more than five methods, or a rate that is not between 0 and 1.

    Examples
    --------
    >>> rows = pd.DataFrame({"method": "MP", "rate": [0.9, 0.99], "accuracy": [0.8, 0.1]})
    >>> [label.get_text() for label in accuracy_against_rate(rows, 0.98).axes[0].get_xticklabels()]
    ['90', '99']
    """
    methods = list(rows.method.unique())
    check_lines(len(methods), "methods")
    if not rows.rate.between(0, 1, inclusive="neither").all():
        raise BarError("pruning rates must be between 0 and 1, as 0.95")
    figure, ax = subplots(height=3.8)
    ax.axhline(100 * unpruned, color="grey", lw=1, ls="-", label="unpruned", zorder=1)
    for i, method in enumerate(methods):
        of_rate = 100 * rows[rows.method == method].groupby("rate").accuracy.agg(["mean", "min", "max"])
        mean = of_rate["mean"]
        ax.errorbar(
            1 - of_rate.index, mean, yerr=[mean - of_rate["min"], of_rate["max"] - mean],
            color=COLOURS[i], ls=LINES[i], marker=MARKERS[i], ms=6, mfc="white", capsize=3, label=method,
        )  # fmt: skip
    rates = sorted(rows.rate.unique())
    ax.set(xscale="log", xlabel="weights removed (%)", ylabel="validation accuracy (%)", ylim=(0, 102))
    ax.set_xticks([1 - rate for rate in rates], [f"{100 * rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.invert_xaxis()
    figure.legend(loc="outside lower center", ncols=2, columnspacing=1)
    return figure

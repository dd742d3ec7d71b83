"""Every figure of the book, one function each.

All share one style: white and opaque (the page may be dark), line styles beside colours (the page may be printed in
grey), one column of large letters (the page may be on a phone). A function computes what it draws with the library, and
returns the figure, which is not left open in pyplot.
"""

import functools
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import fx

from bar import methods as methods_
from bar import schedule as schedules_
from bar.barrier import barrier, log_barrier
from bar.errors import BarError
from bar.hard_concrete import BETA, GAMMA, ZETA, HardConcrete, threshold
from bar.network import Network
from bar.surgery import GatedNetwork

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


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, and close the figure, or a notebook would show it twice."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made when first drawn, in the style of that moment
        plt.close(figure)
        return figure

    return wrapper


def _axes(rows: int = 1, columns: int = 1, height: float = 3.0, **options) -> tuple[Figure, Axes]:
    """Panels in a column (or a grid) of the book's width; `height` is that of one panel, in inches."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height * rows), **options)


@_styled
def distributions(
    log_alphas: Sequence[float] = (-2.0, 0.0, 2.0), beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA
) -> Figure:
    """Density and quantile function of the binary concrete and the hard concrete distribution (supp. fig. 1).

    Parameters
    ----------
    log_alphas : sequence of float
        One line each, five at most.
    beta, gamma, zeta : float
        As in `bar.HardConcrete`.

    Returns
    -------
    Figure
        Two rows, densities and quantile functions; two columns, binary and hard concrete. The point masses are stems,
        beside 0 and 1 so that they do not hide each other.

    Examples
    --------
    >>> distributions([0.0]).axes[0].get_title(loc="left")
    'Binary concrete'
    """
    figure, axes = _axes(2, 2, height=2.4, sharex="row", sharey="row")
    z = torch.linspace(0, 1, 401, dtype=torch.float64)
    for i, log_alpha in enumerate(log_alphas):
        log_alpha = torch.tensor(float(log_alpha), dtype=torch.float64)
        # Without a stretch worth the name there are no point masses: that is the binary concrete.
        binary, hard = HardConcrete(log_alpha, beta, -1e-12, 1 + 1e-12), HardConcrete(log_alpha, beta, gamma, zeta)
        look = {"color": COLOURS[i], "ls": LINES[i]}
        for (top, bottom), gate in zip(axes.T, (binary, hard), strict=True):
            top.plot(z[1:-1], gate.density(z[1:-1]), **look)
            bottom.plot(z, gate.icdf(z), **look, label=f"$\\log\\alpha$ = {log_alpha:g}" if gate is hard else None)
        for x, mass in ((-0.03 - 0.05 * i, hard.prob_zero), (1.03 + 0.05 * i, hard.prob_one)):
            axes[0, 1].plot([x, x], [0, mass], **look, lw=1.5, marker=MARKERS[i], ms=5, markevery=[1])
    for column, name in zip(axes.T, ("Binary concrete", "Hard concrete"), strict=True):
        column[0].set(title=name, xlabel="$z$", ylim=(0, 2.6))
        column[1].set(xlabel=r"probability $\epsilon$")
    axes[0, 0].set_ylabel("density; mass (stems)")
    axes[1, 0].set_ylabel(r"$z$ at quantile $\epsilon$")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_styled
def estimates(beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA) -> Figure:
    """What log alpha means: P(z > 0), the true mean, and the two test-time values with the points where they die.

    Parameters
    ----------
    beta, gamma, zeta : float
        As in `bar.HardConcrete`.

    Returns
    -------
    Figure
        One panel; the curves over log alpha.

    Examples
    --------
    >>> len(estimates().axes[0].lines)
    6
    """
    figure, ax = _axes(height=3.8)
    deaths = [threshold(rule, beta, gamma, zeta) for rule in ("median", "l0")]
    log_alpha = torch.linspace(min(deaths) - 3, 5, 401, dtype=torch.float64)
    gate = HardConcrete(log_alpha, beta, gamma, zeta)
    ax.plot(log_alpha, gate.median, label="median (the paper's words)")
    ax.plot(log_alpha, gate.l0_estimate, label="L0 reference code")
    ax.plot(log_alpha, gate.mean, label="true mean")
    ax.plot(log_alpha, gate.prob_active, label="$P(z>0)$")
    for i, (death, place) in enumerate(zip(deaths, ((0.97, 0.13), (0.03, 0.5)), strict=True)):
        ax.plot(death, 0, color=COLOURS[i], marker=MARKERS[i], ms=8, clip_on=False, zorder=3)
        ax.annotate(
            f"dead up to\n{death:.3f}",
            (death, 0),
            place,
            textcoords="axes fraction",
            ha=("right", "left")[i],
            va="center",
            color=COLOURS[i],
            arrowprops={"arrowstyle": "->", "color": COLOURS[i], "shrinkB": 6},
        )
    ax.set(xlabel=r"$\log\alpha$", ylabel="gate value, or probability", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@_styled
def barriers(ts: Sequence[float] = (1, 2, 5), bs: Sequence[float] = (1.5, 2, 3)) -> Figure:
    """The log barrier and the barrier that replaces it (fig. 1).

    Parameters
    ----------
    ts : sequence of float
        Hardnesses of the log barrier, which has b = 1; one line each.
    bs : sequence of float
        Upper margins of f(V, a, b), which has a = 1; above 1, one line each.

    Returns
    -------
    Figure
        Panel (a), -(1/t) log(b - V); panel (b), f. Thin vertical lines are the asymptotes V = b.

    Examples
    --------
    >>> [ax.get_title(loc="left") for ax in barriers().axes]
    ['(a) log barrier, $b = 1$', '(b) our barrier, $a = 1$']
    """
    figure, (left, right) = _axes(2, height=2.9)
    for t in ts:
        V = torch.linspace(0, 1, 1001, dtype=torch.float64)
        left.plot(V[:-1], log_barrier(V[:-1], 1.0, t), label=f"$t$ = {t:g}")
    left.axvline(1, color="grey", lw=0.8, ls="-")
    left.set(title="(a) log barrier, $b = 1$", xlabel="volume $V$, in units of $b$", ylabel="$-(1/t)\\,\\log(b-V)$")
    left.set(xlim=(0, 1.05), ylim=(-0.2, 3))
    for i, b in enumerate(bs):
        V = torch.linspace(0, b, 1001, dtype=torch.float64)
        right.plot(V[:-1], barrier(V[:-1], 1.0, b), label=f"$b$ = {b:g}")
        right.axvline(b, color=COLOURS[i], lw=0.8, ls="-")
    right.set(title="(b) our barrier, $a = 1$", xlabel="volume $V$, in units of $a$", ylabel="$f(V, a, b)$")
    right.set(xlim=(0, 1.05 * max(bs)), ylim=(-0.2, 8))
    for ax in (left, right):
        ax.legend(loc="upper left")
    return figure


@_styled
def schedules(hardness: float = 10.0, pruning_factor: float = 4.0, schedule: str = "sigmoid") -> Figure:
    """The transition (fig. 2) at several hardnesses, and what the three schedules do to b.

    Parameters
    ----------
    hardness : float
        d of supp. eq. 1, >= 0; drawn between a fifth and five times of it.
    pruning_factor : float
        V_F / B, > 1.
    schedule : str
        The one drawn with a thick line.

    Returns
    -------
    Figure
        Panel (a), T over the part of training that is over; panel (b), b / V_F, with the lower margin a.

    Examples
    --------
    >>> len(schedules().axes)
    2
    """
    figure, (upper, lower) = _axes(2, height=2.9)
    i = torch.linspace(0, 1, 401, dtype=torch.float64)
    for d in dict.fromkeys((hardness, hardness / 5, hardness * 5)):  # once if it is 0
        upper.plot(i, schedules_.transition(i, d), label=f"$d$ = {d:g}", lw=3 if d == hardness else 1.5)
    upper.set(title="(a) sigmoidal transition", ylabel="$T(i)$")
    for name, T in schedules_.SCHEDULES.items():
        T = functools.partial(T, hardness=hardness) if name == "sigmoid" else T
        a, b = schedules_.margins(i, pruning_factor, 1.0, T)
        lower.plot(i, b / pruning_factor, label=name, lw=3 if name == schedule else 1.5)
    lower.axhline(a / pruning_factor, color="grey", lw=1, ls=":", label="$a$")
    lower.set(title=f"(b) upper margin, $V_F/B$ = {pruning_factor:g}", ylabel="$b$ / $V_F$", ylim=(0, 1.05))
    for ax in (upper, lower):
        ax.set_xlabel("part of training that is over, $i$")
        ax.legend(loc="best")
    return figure


@dataclass(frozen=True)
class Block:
    """A residual block, as the graph of a network shows it: something that is added to a signal (section 4).

    Attributes
    ----------
    name : str
        What the names of its convolutions have in common, as in ``group1.0``.
    layer : int
        Number of the ResNet layer that it belongs to, from 0: a chunk in which one residual signal goes on unbroken.
    signal, delta, add : torch.fx.Node
        The residual signal before the block, what the block adds to it, and the sum.
    convs, shortcut : tuple of torch.fx.Node
        The convolutions (depthwise ones too) behind `delta`, and, of a pooling block, those behind `signal`.
    start : torch.fx.Node
        What first wrote the layer's signal: a stem, or the 1x1 convolution of a pooling block.
    """

    name: str
    layer: int
    signal: fx.Node
    delta: fx.Node
    add: fx.Node
    convs: tuple[fx.Node, ...]
    shortcut: tuple[fx.Node, ...]
    start: fx.Node

    def parts(self, live: dict[fx.Node, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Which channels of the sum are "passed" on, "refined" or "new" (figure 4), each bool, shape (channels,)."""
        signal, delta, total = live[self.signal], live[self.delta], live[self.add]
        return {"passed": signal & ~delta & total, "refined": signal & delta & total, "new": ~signal & delta & total}

    def gone(self, live: dict[fx.Node, torch.Tensor]) -> bool:
        """Whether no convolution of the block has a live feature (the shortcut of a pooling block aside)."""
        return not any(live[conv].any() for conv in self.convs)


def residual_blocks(network: Network) -> list[Block]:
    """The residual blocks of a network, from its graph alone: one for each sum of two signals.

    Of the two summands, the one that has crossed fewer convolutions is the residual signal, the other what the block
    adds to it.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`, or ``gated.network``.

    Returns
    -------
    list of Block
        In order of execution; empty for a plain chain.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> network = bar.gate(build("wrn-10-1"), (3, 16, 16)).network
    >>> for block in residual_blocks(network):
    ...     print(block.name, [conv.target for conv in block.convs], [conv.target for conv in block.shortcut])
    group1.0 ['group1.0.conv1', 'group1.0.conv2'] []
    group2.0 ['group2.0.conv1', 'group2.0.conv2'] ['group2.0.shortcut']
    group3.0 ['group3.0.conv1', 'group3.0.conv2'] ['group3.0.shortcut']
    """
    depth: dict[fx.Node, int] = {}  # convolutions on the shortest way from the input
    behind: dict[fx.Node, set[fx.Node]] = {}  # convolutions that a node depends on
    origin: dict[fx.Node, fx.Node] = {}  # what wrote the signal that a node has
    blocks: list[Block] = []
    for node, kind in network.kinds.items():
        sources = network.sources(node)
        is_conv = kind in ("conv", "depthwise")
        depth[node] = min((depth[n] for n in sources), default=0) + is_conv
        behind[node] = set().union(*(behind[n] for n in sources), {node} if is_conv else set())
        origin[node] = origin[sources[0]] if kind in ("norm", "channelwise") else node
        if kind != "add":
            continue
        signal, delta = sorted(sources, key=depth.__getitem__)
        convs, shortcut = (
            tuple(n for n in network.kinds if n in behind[one] - behind[other])
            for one, other in ((delta, signal), (signal, delta))
        )
        last = next((block for block in reversed(blocks) if block.add is origin[signal]), None)
        layer = last.layer if last else len({block.layer for block in blocks})
        start = last.start if last else origin[signal]
        name = os.path.commonpath([n.target.replace(".", "/") for n in convs] or [node.name]).replace("/", ".")
        if not name or name in {block.name for block in blocks}:
            name = f"{name} ({node.name})".strip()
        blocks.append(Block(name, layer, signal, delta, node, convs, shortcut, start))
    return blocks


def block_of_convolutions(network: Network) -> dict[str, str]:
    """The residual block that each convolution is in; itself, if it is outside all blocks.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`, or ``gated.network``.

    Returns
    -------
    dict of str to str
        Name of a convolution -> name of a block, in order of execution.

    Examples
    --------
    >>> from bar.models import build
    >>> from bar.network import trace
    >>> homes = block_of_convolutions(trace(build("wrn-10-1"), (3, 16, 16)))
    >>> homes["conv1"], homes["group2.0.shortcut"]
    ('conv1', 'group2.0')
    """
    homes = {conv: block.name for block in residual_blocks(network) for conv in block.convs + block.shortcut}
    convs = [node for node, kind in network.kinds.items() if kind in ("conv", "depthwise")]
    return {node.target: homes.get(node, node.target) for node in convs}


def neurons(network: Network, live: dict[fx.Node, torch.Tensor]) -> dict[str, int]:
    """Numbers that are put out per image, block by block: the volume of the network, cut at its blocks.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`, or ``gated.network``.
    live : dict of torch.fx.Node to bool Tensor of shape (channels,)
        From ``gated.live()``.

    Returns
    -------
    dict of str to int
        Name of a block, or of a convolution outside all blocks -> live features times area, summed over its
        convolutions.
    """
    homes, total = block_of_convolutions(network), {}
    for node, kind in network.kinds.items():
        if kind in ("conv", "depthwise"):
            name = homes[node.target]
            total[name] = total.get(name, 0) + int(live[node].sum()) * network.area(node)
    return total


def _blocks_of(network: Network) -> list[Block]:
    blocks = residual_blocks(network)
    if not blocks:
        raise BarError("the network adds no two signals: it has no residual blocks to draw")
    return blocks


def _short(name: str, block: str) -> str:
    return name.removeprefix(block).removeprefix(".")


@_styled
def block_kinds(network: Network) -> Figure:
    """A typical block and a pooling block of this network, and what may be pruned in them (fig. 3).

    Parameters
    ----------
    network : Network
        With residual blocks; the first of each kind is drawn.

    Returns
    -------
    Figure
        A panel for each kind that the network has. Each arrow is a convolution; thick and striped is the one that must
        keep a feature.

    Raises
    ------
    BarError
        If the network has no residual blocks.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> figure = block_kinds(bar.gate(build("wrn-10-1"), (3, 16, 16)).network)
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['(a) typical block: group1.0', '(b) pooling block: group2.0']
    """
    blocks = _blocks_of(network)
    spine = network.spine()
    kinds = {"typical block": [b for b in blocks if not b.shortcut], "pooling block": [b for b in blocks if b.shortcut]}
    drawn = [(name, found[0]) for name, found in kinds.items() if found]
    figure, axes = _axes(len(drawn), height=2.2, squeeze=False)

    def chain(ax: Axes, convs: Sequence[fx.Node], block: Block, y: float) -> None:
        """The convolutions, one box after the other, on a line from the signal to the sum."""
        ax.annotate("", (8.62, y), (0.6, y), arrowprops={"arrowstyle": "-", "lw": 1.5, "shrinkA": 0, "shrinkB": 0})
        for i, conv in enumerate(convs):
            module = network.submodule(conv)
            height, width = module.kernel_size
            floored = conv.target in spine
            ax.text(
                0.6 + 8.0 * (i + 0.5) / len(convs),
                y,
                f"{_short(conv.target, block.name)}\n{height}$\\times${width}"
                + (f", stride {module.stride[0]}" if max(module.stride) > 1 else ""),
                ha="center",
                va="center",
                fontsize=10,
                bbox={
                    "boxstyle": "round,pad=0.35",
                    "fc": "#fde3d0" if floored else "white",
                    "ec": COLOURS[1] if floored else COLOURS[0],
                    "lw": 2.5 if floored else 1.2,
                    "ls": "-" if floored else "--",
                },
            )

    for letter, ax, (kind, block) in zip("ab", axes[:, 0], drawn, strict=False):
        ax.set(title=f"({letter}) {kind}: {block.name}", xlim=(-0.2, 10.2), ylim=(-0.75, 2.3))
        ax.axis("off")
        chain(ax, block.convs, block, 1.5)
        chain(ax, block.shortcut, block, 0.0)
        if not block.shortcut:
            ax.text(4.6, 0.12, "identity: nothing to prune", ha="center", va="bottom", fontsize=10)
        ax.plot([0.6, 0.6], [0, 1.5], color="black", lw=1.5, ls="-")
        for start, end in (((0, 0), (0.6, 0)), ((8.6, 1.5), (8.6, 0.22)), ((8.82, 0), (9.9, 0))):
            arrow = "-" if end == (0.6, 0) else "->"
            ax.annotate("", end, start, arrowprops={"arrowstyle": arrow, "lw": 1.5, "shrinkA": 0, "shrinkB": 0})
        ax.text(8.6, 0, "+", ha="center", va="center", bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "lw": 1.5})
        ax.text(0, -0.12, f"{network.features(block.start if not block.shortcut else block.shortcut[0].args[0])}",
                ha="center", va="top", fontsize=10)  # fmt: skip
        ax.text(9.6, -0.12, f"{network.features(block.add)}", ha="center", va="top", fontsize=10)
    return figure


PARTS = {  # what becomes of a channel at a sum -> how it is drawn
    "passed": {"fc": "white", "ec": "#555555", "hatch": ""},
    "refined": {"fc": "#8fbfe0", "ec": COLOURS[0], "hatch": "////"},
    "new": {"fc": COLOURS[1], "ec": COLOURS[1], "hatch": ""},
}


@_styled
def connectivity(gated: GatedNetwork) -> Figure:
    """What each block of a pruned network does to the residual signal: figure 4's cases, as they really occur.

    Parameters
    ----------
    gated : GatedNetwork
        With residual blocks; its gates decide what is live.

    Returns
    -------
    Figure
        Panel (1), a diagram of the block that does most different things; panel (2), for all blocks, how many channels
        of the signal pass through, are refined, or are new.

    Raises
    ------
    BarError
        If the network has no residual blocks.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> passed, refined, new = connectivity(gated).axes[1].containers  # nothing is pruned, so all is refined
    >>> [int(bar.get_width()) for bar in refined]
    [16, 32, 64]
    """
    blocks, live = _blocks_of(gated.network), gated.live()
    counts = [{part: int(which.sum()) for part, which in block.parts(live).items()} for block in blocks]
    height = 0.3 * len(blocks) + 0.9
    figure, (upper, lower) = _axes(2, height=(2.9 + height) / 2, height_ratios=[2.9, height])

    best = max(range(len(blocks)), key=lambda i: (sum(n > 0 for n in counts[i].values()), sum(counts[i].values())))
    _diagram(upper, counts[best])
    upper.set_title(f"(1) {blocks[best].name}, one row for each kind of channel")

    left = [0] * len(blocks)
    for part, look in PARTS.items():
        widths = [count[part] for count in counts]
        lower.barh(range(len(blocks)), widths, left=left, height=0.62, label=part, lw=1, **look)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, block in enumerate(blocks):
        note = f" {left[i]}" + (" (block gone)" if block.gone(live) else "")
        lower.text(left[i], i, note, va="center", fontsize=10)
    lower.set_yticks(range(len(blocks)), [block.name for block in blocks])
    lower.set(title="(2) all blocks", xlabel="channels of the signal after the block", ylim=(len(blocks) - 0.4, -0.6))
    lower.set_xlim(0, max(1.3 * max(left), 1))
    lower.grid(visible=False, axis="y")
    figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _diagram(ax: Axes, counts: dict[str, int]) -> None:
    """A block as in figure 4: the signal comes from the left, what the block computes from above, the sum leaves."""
    ax.set(xlim=(-0.6, 10.6), ylim=(-0.2, 4.9))
    ax.axis("off")
    rows = {part: y for part, y in zip(PARTS, (0.5, 1.6, 2.7), strict=True) if counts[part]}
    arrow = {"arrowstyle": "->", "lw": 1.5, "shrinkA": 0, "shrinkB": 0}
    box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": "black", "lw": 1.5}
    ax.text(4.0, 4.2, "B", ha="center", va="center", bbox=box)
    ax.text(1.0, 4.2, "signal", ha="center", va="center")
    ax.text(9.0, 4.2, "result", ha="center", va="center")

    def dots(x: float, y: float, part: str) -> None:
        for dx in (-0.25, 0.25) if counts[part] > 1 else (0,):
            look = PARTS[part]
            ax.plot(x + dx, y, ls="", marker="o", ms=10, mfc=look["fc"], mec=look["ec"], mew=1.5)

    reads = [y for part, y in rows.items() if part != "new"]
    if reads:
        ax.plot([1.9, 1.9], [min(reads), 4.2], color="black", lw=1.5, ls="-")
        ax.annotate("", (3.55, 4.2), (1.9, 4.2), arrowprops=arrow)
    writes = [y for part, y in rows.items() if part != "passed"]
    if writes:
        ax.plot([6.5, 6.5], [min(writes), 4.2], color="black", lw=1.5, ls="-")
        ax.plot([4.45, 6.5], [4.2, 4.2], color="black", lw=1.5, ls="-")
    for part, y in rows.items():
        dots(9.0, y, part)
        ax.text(9.55, y, f"$\\times${counts[part]}", va="center")
        if part != "new":
            dots(1.0, y, "passed" if part == "passed" else part)
            ax.plot([1.5, 6.9], [y, y], color="black", lw=1.5, ls="-")
        if part != "passed":
            ax.plot([6.5, 6.9], [y, y], color="black", lw=1.5, ls="-")
        ax.annotate("", (8.5, y), (6.85, y), arrowprops=arrow)
        if part == "refined":
            ax.text(6.5, y, "+", ha="center", va="center", bbox=box | {"boxstyle": "circle,pad=0.1"})
        ax.text(7.75, y + 0.08, part, ha="center", va="bottom", fontsize=10)


@_styled
def chunk(gated: GatedNetwork, layer: int | None = None, rows: int = 24) -> Figure:
    """A ResNet layer of a pruned network, channel by channel (fig. 5), and what either connectivity computes of it.

    Parameters
    ----------
    gated : GatedNetwork
        With residual blocks; its gates decide what is live.
    layer : int, optional
        Which one, from 0; by default the one whose blocks have the most live features.
    rows : int
        How many channels to draw at most, evenly chosen from all, which are ordered by who writes them first.

    Returns
    -------
    Figure
        Three panels: the gated network, the pruned one with regular blocks, the pruned one with mixed connectivity. A
        square is a feature map that a block (a column) computes, a line the channel of the signal that it is added to.

    Raises
    ------
    BarError
        If the network has no residual blocks, or no such layer.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> [ax.get_title(loc="left") for ax in chunk(gated, layer=0).axes]
    ['(a) gated', '(b) regular', '(c) mixed']
    """
    blocks, live = _blocks_of(gated.network), gated.live()
    layers = {block.layer: [b for b in blocks if b.layer == block.layer] for block in blocks}
    if layer is None:
        layer = max(layers, key=lambda i: sum(int(live[block.delta].sum()) for block in layers[i]))
    if layer not in layers:
        raise BarError(f"the network has no ResNet layer {layer!r}: they are numbered from 0 to {max(layers)}")
    first = layers[layer][0]
    written = torch.stack([live[first.signal], *(live[block.delta] for block in layers[layer])])
    # By birth, as surgery orders them; those that nobody writes come last.
    order = sorted(range(written.shape[1]), key=lambda c: (~written[:, c]).tolist())
    count = min(rows, len(order))
    chosen = [order[i * len(order) // count] for i in range(count)]
    mixed = written[:, chosen]
    regular = (written.any(0) & written.any(1, keepdim=True))[:, chosen]  # whoever is there computes all

    figure, axes = _axes(1, 3, height=0.125 * count + 1.7, sharey=True)
    names = ["1×1" if first.shortcut else _short(first.start.target, ""), *(b.name for b in layers[layer])]
    panels = (("(a) gated", None), ("(b) regular", regular), ("(c) mixed", mixed))
    for ax, (title, computed) in zip(axes, panels, strict=True):
        for y in range(count):
            born = mixed[:, y].nonzero().flatten()
            if len(born):
                ax.plot([int(born[0]), len(written) - 0.4], [y, y], color="#888888", lw=0.8, ls="-", zorder=1)
        zero = ~mixed if computed is None else computed & ~mixed
        for which, look in (
            (mixed, {"marker": "s", "ms": 5.5, "mfc": COLOURS[0], "mec": COLOURS[0]}),
            (zero, {"marker": "o", "ms": 3, "mfc": "white", "mec": "#666666"} if computed is None else
             {"marker": "X", "ms": 6, "mfc": "white", "mec": COLOURS[1]}),
        ):  # fmt: skip
            x, y = which.nonzero(as_tuple=True)
            ax.plot(x, y, ls="", zorder=2, **look)
        ax.set(title=title, xlim=(-0.6, len(written) - 0.4), ylim=(count - 0.4, -0.6))
        ax.set_xticks(range(len(written)), names, rotation=90)
        ax.grid(visible=False)
    some = f"\n({count} of {len(order)})" if count < len(order) else ""
    axes[0].set_yticks([])
    axes[0].set_ylabel(f"channels of the residual signal{some}")
    handles = [axes[0].lines[-2], axes[0].lines[-1], axes[1].lines[-1]]
    figure.legend(handles, ["computed", "zero", "computed, though zero"], loc="outside lower center", ncols=3,
                  handletextpad=0.2, columnspacing=1)  # fmt: skip
    return figure


@_styled
def neurons_per_block(gated: GatedNetwork) -> Figure:
    """Neurons of the full and of the pruned network, block by block (fig. 7).

    Parameters
    ----------
    gated : GatedNetwork
        Any; its gates decide what is live.

    Returns
    -------
    Figure
        One panel, a pair of bars for each block (for each convolution outside of blocks); the number at the end is the
        pruned network's.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> full, pruned = neurons_per_block(gated).axes[0].containers
    >>> sum(int(bar.get_width()) for bar in pruned) == gated.size()
    True
    """
    network = gated.network
    full, pruned = neurons(network, network.live({})), neurons(network, gated.live())
    figure, ax = _axes(height=0.42 * len(full) + 1.2)
    for shift, label, numbers, look in (
        (-0.2, "full", full, {"fc": "#e3e3e3", "ec": "#777777", "hatch": "...."}),
        (0.2, "pruned", pruned, {"fc": COLOURS[0], "ec": COLOURS[0]}),
    ):
        ax.barh([i + shift for i in range(len(full))], list(numbers.values()), height=0.36, lw=0.8, label=label, **look)
    for i, number in enumerate(pruned.values()):
        ax.text(number, i + 0.22, f" {number:,}" if number else " eliminated", va="center", fontsize=10)
    ax.set_yticks(range(len(full)), list(full))
    ax.set(xlabel="neurons (numbers per image)", ylim=(len(full) - 0.4, -0.6), xlim=(0, 1.15 * max(full.values())))
    ax.xaxis.set_major_locator(plt.MaxNLocator(4))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@_styled
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

    Examples
    --------
    >>> row = {"phase": ["prune", "cut", "finetune"], "size": [8, 4, 4], "budget": [5, 5, 5], "barrier": [1, 0, 0]}
    >>> figure = training_run(pd.DataFrame({**row, "accuracy": [0.5, 0.6, 0.7]}), full=10, limit=5)
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['part of $V_F$', 'barrier $f$', 'validation accuracy']
    """
    letter = {"volume": "V", "flops": "F"}[metric]
    epochs = (metrics.phase != "cut").cumsum()  # the cut belongs to the epoch before it
    pruning = metrics.phase.isin(["prune", "cut"])
    prune = metrics.phase == "prune"
    figure, (sizes, barrier_, accuracies) = _axes(3, height=2.0, sharex=True)
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


@_styled
def following(rows: pd.DataFrame, unit: str = "epoch") -> Figure:
    """How V follows the moving margin b while a network is pruned (eq. 4 and 7 at work).

    Parameters
    ----------
    rows : DataFrame
        A row for each moment of each run: name (of what was varied), factor (V_F / B), seed, time (in units of `unit`),
        and as parts of V_F, above 0: size, size_min, size_max (V, and its bounds since the moment before) and budget
        (b). With a column note, its text in the first row of a panel stands above it.
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
    label = "$V$, a line for each seed" if rows.seed.nunique() > 1 else "$V$"
    lines: list[list[tuple[str, pd.DataFrame]]] = []  # of panels
    for name, group in rows.groupby("name", sort=False):
        panels = [panel for _, panel in group.groupby("factor")]
        lines += [[(name, panel) for panel in panels[i : i + columns]] for i in range(0, len(panels), columns)]
    figure, axes = _axes(len(lines), columns, height=1.65, squeeze=False)
    figure.set_figheight(figure.get_figheight() + 0.7)  # the legend takes nothing from the panels
    for i, line in enumerate(lines):
        for ax in axes[i, len(line) :]:
            ax.set_axis_off()
        for ax, (name, panel) in zip(axes[i], line, strict=False):
            factor = panel.factor.iloc[0]
            for j, (_, run) in enumerate(panel.groupby("seed")):
                look = {"color": COLOURS[0], "ls": LINES[0]}
                ax.fill_between(run.time, run.size_min, run.size_max, color=COLOURS[0], alpha=0.15, lw=0)
                ax.plot(run.time, run["size"], lw=0.9, **look, label=None if j else label)
                if not j:
                    ax.plot(run.time, run.budget, color=COLOURS[1], ls=LINES[1], lw=1.4, label="$b$", zorder=3)
            ax.axhline(1 / factor, color=COLOURS[3], ls=LINES[3], lw=1.2, label="$B$")
            first = (name + "\n") if panel is line[0][1] else "\n"  # a long name may reach over the next panel
            ax.set_title(first + f"{factor:g}x" + (f": {panel.note.iloc[0]}" if "note" in panel else ""), fontsize=10)
            low = min(rows[rows.factor == factor].size_min.min(), 1 / factor)
            ax.set_yscale("log", base=2)
            ax.set_ylim(low / 1.3, 1.3)
            ticks = sorted({1 / factor, *(4.0**-k for k in range(10) if 4.0**-k >= low / 1.3)})
            ax.set_yticks(ticks, [f"1/{1 / tick:g}" if tick < 1 else "1" for tick in ticks])
            ax.minorticks_off()
            if ax is axes[i, 0]:
                ax.set_ylabel("part of $V_F$")
            if i == len(lines) - 1 or (ax is not axes[i, 0] and len(lines[i + 1]) < columns):
                ax.set_xlabel(f"{unit} of the pruning")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1)
    return figure


TRAININGS = {  # what `bench/training.py` calls its trainings, and how they look
    "unpruned": {"color": COLOURS[3], "ls": LINES[3]},
    "cut while training": {"color": COLOURS[0], "ls": LINES[0]},
    "cut at the end": {"color": COLOURS[1], "ls": LINES[1]},
}


@_styled
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
    figure, panels = _panels(rows, height=2.3)
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


_PAPERS = (  # in the order of its legends
    "bar", "bar-flops", "random", "vector-quantization", "magnitude", "interpolative", "l0", "information-bottleneck",
    "morphnet",
)  # fmt: skip
_TITLES = {name: method.title for name, method in methods_.METHODS.items()} | {"bar-flops": "BAR (F-trained)"}
METHODS = {name: _TITLES[name] for name in _PAPERS}  # as `bar.paper.table` ("pruning_results") calls them
DRAWN = METHODS | {name: _TITLES[name] for name in methods_.STRUCTURED}  # and those that are only recorded


def _look(method: str) -> dict:
    """A method looks the same in every figure; no two look alike, in grey neither."""
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


@_styled
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

    Examples
    --------
    >>> from bar import paper
    >>> table = paper.table("pruning_results").query("dataset == 'Mio-TCD'")
    >>> len(paper_results(table).axes[0].lines)
    8
    """
    figure, panels = _axes(2, height=3.0, sharey=True)
    for ax, column in zip(panels, ("v_factor", "f_factor"), strict=True):
        _by_method(ax, results, column, unpruned)
        _factors(ax, results[column])
    panels[0].set_xlabel("(a) volume factor, $V_F / V$")
    panels[1].set_xlabel("(b) FLOP factor")
    _legend_of_methods(figure, panels)
    return figure


@_styled
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
    unknown = sorted(set(everything.method) - set(DRAWN))
    if unknown:
        raise BarError(f"cannot draw the method {unknown[0]!r}: known are {', '.join(DRAWN)}")
    figure, panels = _axes(2 * len(sources), height=2.45)
    names = {"v_factor": "volume factor, $V_F / V$", "f_factor": "FLOP factor"}
    places = [(column, source) for column in names for source in sources]
    lines = 0
    for i, (ax, (column, source)) in enumerate(zip(panels, places, strict=True)):
        _by_method(ax, sources[source], column, unpruned.get(source))
        _factors(ax, everything[column])
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


@_styled
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
        them, what dividing every block by the factor would leave.

    Raises
    ------
    BarError
        If there are no rows.

    Examples
    --------
    >>> row = {"method": "bar", "block": "group1.0", "full": 4096, "left": 900.0}
    >>> same, left = neurons_by_method(pd.DataFrame([row]), factor=4).axes[0].containers
    >>> int(same[0].get_width()), int(left[0].get_width())
    (1024, 900)
    """
    if rows.empty:
        raise BarError("there is no recorded run to draw")
    methods, blocks = [m for m in DRAWN if m in set(rows.method)], list(dict.fromkeys(rows.block))
    lines = math.ceil(len(methods) / 2)
    options = {"sharex": True, "sharey": True, "squeeze": False}
    figure, axes = _axes(lines, 2, height=0.21 * len(blocks) + 0.5, **options)
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


@_styled
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
    figure, panels = _axes(2, height=2.7, sharex=True, sharey=True)
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
    _factors(panels[1], pd.concat([ours.factor, paper.factor]))
    panels[1].set_xlabel("volume factor, $V_F / V$")
    texts = [text for ax in panels for text in ax.get_legend_handles_labels()[1]]
    figure.set_figheight(figure.get_figheight() + 0.19 * sum(2 + text.count("\n") for text in texts))
    figure.legend(loc="outside lower left")
    return figure


TIMED = {  # what `bench/latency.py` calls its networks, and how they look
    "dense": {"label": "dense, same FLOPs", "color": COLOURS[3], "ls": LINES[3], "marker": "D"},
    "mixed": {"label": "mixed", "color": COLOURS[0], "ls": LINES[0], "marker": "o"},
    "regular": {"label": "regular", "color": COLOURS[1], "ls": LINES[1], "marker": "s"},
    "torch-pruning": {"label": "Torch-Pruning", "color": COLOURS[2], "ls": LINES[2], "marker": "^", "mfc": "white"},
    "gated": {"label": "gated (masked)", "color": COLOURS[4], "ls": LINES[4], "marker": "v", "mfc": "white"},
}


def _panels(rows: pd.DataFrame, height: float, **options) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each record (and batch size), one below the other; the first of a record names it."""
    if rows.empty:
        raise BarError("there is no measured time to draw")
    groups = list(rows.groupby([column for column in ("record", "batch") if column in rows], sort=False))
    titles = []
    for i, ((record, *batch), _) in enumerate(groups):
        first = i == 0 or groups[i - 1][0][0] != record
        titles.append("\n".join([textwrap.fill(record, 50)] * first + [f"batch of {size}" for size in batch]))
    figure, axes = _axes(len(groups), height=height, squeeze=False, **options)
    lines = sum(title.count("\n") for title in titles)
    figure.set_figheight(figure.get_figheight() + 0.18 * lines + 0.9)  # the legend, too, takes nothing from the panels
    for ax, title in zip(axes[:, 0], titles, strict=True):
        ax.set_title(title)
    return figure, [(ax, group) for ax, (_, group) in zip(axes[:, 0], groups, strict=True)]


@_styled
def speedups(rows: pd.DataFrame) -> Figure:
    """How many times as fast as the unpruned network, and the limit: how many times fewer FLOPs.

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
    figure, panels = _panels(rows, height=2.3, sharex=True)
    for ax, group in panels:
        limit = group[group.network == "mixed"].sort_values("factor")
        ax.plot(limit.factor, limit.flop_factor, color="grey", ls="-", lw=1, label="limit: FLOP factor of mixed")
        _by_factor(ax, group, "speedup", TIMED)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel("times as fast\nas unpruned")
    _factors(panels[-1][0], rows.factor)
    panels[-1][0].set_xlabel("volume factor, $V_F / V$")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, columnspacing=1)
    return figure


@_styled
def throughput_over_dense(rows: pd.DataFrame, target: float = 0.9) -> Figure:
    """Throughput as a part of that of a plain network of the same FLOPs, the practical limit of surgery.

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
    figure, panels = _panels(rows, height=1.9, sharex=True, sharey=True)
    shown = ["mixed", "regular", "torch-pruning"]
    for ax, group in panels:
        ax.axhline(100, color=COLOURS[3], ls="-", lw=1.2, label="dense, same FLOPs")
        ax.axhline(100 * target, color="grey", ls=LINES[1], lw=1.2, label=f"target: {100 * target:g} % of dense")
        _by_factor(ax, group, "throughput_over_dense", shown, scale=100)
        ax.set_ylabel("throughput\n(% of dense)")
    low = 100 * rows[rows.network.isin(shown)].throughput_over_dense_low.min()
    panels[0][0].set_ylim(bottom=min(60, 10 * math.floor(low / 10)))
    _factors(panels[-1][0], rows.factor)
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


@_styled
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
        A panel for each record and batch size, a bar for each network and factor: its time is 100 %.

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
    figure, panels = _panels(rows, height=0.24 * count + 0.4, sharex=True)
    for ax, group in panels:
        group = group.sort_values("factor", kind="stable")
        total, left = group[list(parts)].sum(axis=1), 0.0
        for column, (label, look) in parts.items():
            width = (100 * group[column] / total).to_numpy()
            ax.barh(range(len(group)), width, left=left, height=0.75, lw=0.6, label=label, **look)
            left = left + width
        ax.set_yticks(range(len(group)), [f"{n}, {f:g}x" for n, f in zip(group.network, group.factor, strict=True)])
        ax.set(xlim=(0, 100), ylim=(len(group) - 0.4, -0.6))
        ax.grid(visible=False, axis="y")
    panels[-1][0].set_xlabel("part of the network's own time (%)")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def _factors(ax: Axes, values: pd.Series) -> None:
    """A logarithmic axis of factors with a tick at powers of two, or of four where there would be many."""
    low, high = max(1.0, values.min()), max(2.0, values.max())
    ax.set_xscale("log", base=2)
    low = 2.0 ** math.floor(math.log2(low))  # so that a tick is there
    ax.set_xlim(low / 1.15, high * 1.15)
    ticks = [2**k for k in range(0, 20, 1 if high <= 32 else 2) if low <= 2**k <= high * 1.15]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()


@_styled
def draw(gated: GatedNetwork) -> Figure:
    """Any network before and after pruning: the width of every convolution and of every sum, as in figures 5 and 7.

    Parameters
    ----------
    gated : GatedNetwork
        Its gates decide what is live.

    Returns
    -------
    Figure
        One row for each convolution, and one, beginning with a plus, for each sum (a residual signal after a block).
        Dotted bars are the full widths, solid ones what pruning leaves; a layer without a live feature is "gone".

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> [label.get_text() for label in draw(gated).axes[0].get_yticklabels()][:4]
    ['conv1', 'group1.0.conv1', 'group1.0.conv2', '+ group1.0']
    """
    network, live = gated.network, gated.live()
    sums = {block.add: f"+ {block.name}" for block in residual_blocks(network)}
    rows = [n for n, kind in network.kinds.items() if kind in ("conv", "depthwise") or n in sums]
    full = [network.features(n) for n in rows]
    kept = [int(live[n].sum()) for n in rows]
    figure, ax = _axes(height=0.24 * len(rows) + 1.3)
    ax.barh(range(len(rows)), full, height=0.7, fc="#f2f2f2", ec="#999999", hatch="....", lw=0.6, label="full")
    for label, colour, hatch, chosen in (
        ("pruned: convolution", COLOURS[0], None, [n not in sums for n in rows]),
        ("pruned: residual signal", "#f0a875", "////", [n in sums for n in rows]),
    ):
        places = [i for i, yes in enumerate(chosen) if yes]
        if places:
            ax.barh(
                places, [kept[i] for i in places], height=0.7, fc=colour, ec="black", hatch=hatch, lw=0.6, label=label
            )
    for i, (many, some) in enumerate(zip(full, kept, strict=True)):
        ax.text(many, i, f" {some} of {many}" if some else " gone", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [sums.get(n, n.target) for n in rows], fontsize=8)
    ax.set(xlabel="features", ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.25 * max(full)))
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=1)
    return figure

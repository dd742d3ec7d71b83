"""Figures of networks, before and after pruning: blocks, channels, widths (section 4; notebook 05)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, fx

from bar.errors import BarError
from bar.figures.style import COLOURS, styled, subplots
from bar.network import Network
from bar.network.blocks import Block, neurons, residual_blocks
from bar.surgery import GatedNetwork


def _blocks_of(network: Network) -> list[Block]:
    blocks = residual_blocks(network)
    if not blocks:
        raise BarError("the network adds no two signals: it has no residual blocks to draw")
    return blocks


def _check(gated: GatedNetwork) -> GatedNetwork:
    if not isinstance(gated, GatedNetwork):
        raise BarError(f"only a gated network can be drawn, which bar.gate makes, not a {type(gated).__name__}")
    return gated


def _short(name: str, block: str) -> str:
    return name.removeprefix(block).removeprefix(".")


@styled
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
    figure, axes = subplots(len(drawn), height=2.2, squeeze=False)

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


@styled
def connectivity(gated: GatedNetwork) -> Figure:
    """What each block of a pruned network does to the residual signal: figure 4's cases, as they really occur.

    Parameters
    ----------
    gated : GatedNetwork
        With residual blocks; its gates decide what is live.

    Returns
    -------
    Figure
        Panel (1), a diagram of the block with the most kinds of channels; panel (2), for all blocks, how many channels
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
    blocks, live = _blocks_of(_check(gated).network), gated.live()
    counts = [{part: int(which.sum()) for part, which in block.parts(live).items()} for block in blocks]
    height = 0.3 * len(blocks) + 0.9
    figure, (upper, lower) = subplots(2, height=(2.9 + height) / 2, height_ratios=[2.9, height])

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


COMPUTED = {"marker": "s", "ms": 5.5, "mfc": COLOURS[0], "mec": COLOURS[0]}  # a feature map that a block computes
WASTED = {"marker": "X", "ms": 6, "mfc": "white", "mec": COLOURS[1]}  # one that is computed, though it is zero


@styled
def chunk(gated: GatedNetwork, layer: int | None = None, rows: int = 24) -> Figure:
    """A ResNet layer of a pruned network, channel by channel (fig. 5), and what either connectivity computes of it.

    Parameters
    ----------
    gated : GatedNetwork
        With residual blocks; its gates decide what is live.
    layer : int, optional
        Which one, from 0; by default the one whose blocks have the most live features.
    rows : int
        How many channels to draw at most, >= 1: evenly chosen from all, in the order of the blocks that write them
        first.

    Returns
    -------
    Figure
        Three panels: the gated network, the pruned one with regular blocks, the pruned one with mixed connectivity. A
        square is a feature map that a block (a column) computes, a line the channel of the signal that it is added to.

    Raises
    ------
    BarError
        If the network has no residual blocks, or no such layer, or no channel is to be drawn.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> [ax.get_title(loc="left") for ax in chunk(gated, layer=0).axes]
    ['(a) gated', '(b) regular', '(c) mixed']
    """
    blocks, live = _blocks_of(_check(gated).network), gated.live()
    layers = {block.layer: [b for b in blocks if b.layer == block.layer] for block in blocks}
    if layer is None:
        layer = max(layers, key=lambda i: sum(int(live[block.delta].sum()) for block in layers[i]))
    if layer not in layers:
        raise BarError(f"the network has no ResNet layer {layer!r}: they are numbered from 0 to {max(layers)}")
    if not rows >= 1:
        raise BarError(f"a chunk has at least one channel, not {rows}")
    first = layers[layer][0]
    written = torch.stack([live[first.signal], *(live[block.delta] for block in layers[layer])])
    channels = written.shape[1]
    chosen = _evenly_by_writer(written, rows)
    count = len(chosen)
    mixed = written[:, chosen]
    regular = (written.any(0) & written.any(1, keepdim=True))[:, chosen]  # every block that is left computes them all

    figure, axes = subplots(1, 3, height=0.125 * count + 1.7, sharey=True)
    names = ["1×1" if first.shortcut else _short(first.start.target, ""), *(b.name for b in layers[layer])]
    panels = (
        ("(a) gated", ~mixed, {"marker": "o", "ms": 3, "mfc": "white", "mec": "#666666"}),
        ("(b) regular", regular & ~mixed, WASTED),
        ("(c) mixed", mixed & ~mixed, WASTED),  # nothing
    )
    for ax, (title, zero, look_of_zero) in zip(axes, panels, strict=True):
        _draw_signals(ax, mixed)
        for which, look in ((mixed, COMPUTED), (zero, look_of_zero)):
            x, y = which.nonzero(as_tuple=True)
            ax.plot(x, y, ls="", zorder=2, **look)
        ax.set(title=title, xlim=(-0.6, len(written) - 0.4), ylim=(count - 0.4, -0.6))
        ax.set_xticks(range(len(written)), names, rotation=90)
        ax.grid(visible=False)
    some = f"\n({count} of {channels})" if count < channels else ""
    axes[0].set_yticks([])
    axes[0].set_ylabel(f"channels of the residual signal{some}")
    handles = [axes[0].lines[-2], axes[0].lines[-1], axes[1].lines[-1]]
    figure.legend(handles, ["computed", "zero", "computed, though zero"], loc="outside lower center", ncols=3,
                  handletextpad=0.2, columnspacing=1)  # fmt: skip
    return figure


def _evenly_by_writer(written: Tensor, most: int) -> list[int]:
    """At most `most` channels, evenly chosen from all in the order in which surgery puts them: by their first writer.

    `written` is bool, shape (blocks, channels): which block writes what. Channels that no block writes come last.
    """
    order = sorted(range(written.shape[1]), key=lambda c: (~written[:, c]).tolist())
    count = min(most, len(order))
    return [order[i * len(order) // count] for i in range(count)]


def _draw_signals(ax: Axes, written: Tensor) -> None:
    """A line for each channel of the signal, from the block that first writes it to the last block."""
    blocks, channels = written.shape
    for y in range(channels):
        born = written[:, y].nonzero().flatten()
        if len(born):
            ax.plot([int(born[0]), blocks - 0.4], [y, y], color="#888888", lw=0.8, ls="-", zorder=1)


@styled
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
    network = _check(gated).network
    full, pruned = neurons(network, network.live({})), neurons(network, gated.live())
    figure, ax = subplots(height=0.42 * len(full) + 1.2)
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


@styled
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

    Raises
    ------
    BarError
        If it is no gated network.

    Examples
    --------
    >>> import bar
    >>> from bar.models import build
    >>> gated = bar.gate(build("wrn-10-1"), (3, 16, 16))
    >>> [label.get_text() for label in draw(gated).axes[0].get_yticklabels()][:4]
    ['conv1', 'group1.0.conv1', 'group1.0.conv2', '+ group1.0']
    """
    network, live = _check(gated).network, gated.live()
    sums = {block.add: f"+ {block.name}" for block in residual_blocks(network)}
    rows = [n for n, kind in network.kinds.items() if kind in ("conv", "depthwise") or n in sums]
    full = [network.features(n) for n in rows]
    kept = [int(live[n].sum()) for n in rows]
    figure, ax = subplots(height=0.24 * len(rows) + 1.3)
    ax.barh(range(len(rows)), full, height=0.7, fc="#f2f2f2", ec="#999999", hatch="....", lw=0.6, label="full")
    convolutions = {i: kept[i] for i, n in enumerate(rows) if n not in sums}
    signals = {i: kept[i] for i, n in enumerate(rows) if n in sums}
    _bars(ax, convolutions, fc=COLOURS[0], label="pruned: convolution")
    _bars(ax, signals, fc="#f0a875", hatch="////", label="pruned: residual signal")
    for i, (many, some) in enumerate(zip(full, kept, strict=True)):
        ax.text(many, i, f" {some} of {many}" if some else " gone", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [sums.get(n, n.target) for n in rows], fontsize=8)
    ax.set(xlabel="features", ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.25 * max(full)))
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def _bars(ax: Axes, widths: dict[int, int], **look) -> None:
    """A bar of each width at its row; without a width nothing is drawn, and nothing is in the legend."""
    if widths:
        ax.barh(list(widths), list(widths.values()), height=0.7, ec="black", lw=0.6, **look)

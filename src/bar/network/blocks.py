"""Residual blocks, found in the graph of any network (section 4): for tables and figures."""

import os
from dataclasses import dataclass

from torch import Tensor, fx

from bar.network.channels import Network


@dataclass(frozen=True)
class Block:
    """A residual block, as the graph of a network shows it: something that is added to a signal (section 4).

    Attributes
    ----------
    name : str
        What the names of its convolutions have in common, as in ``group1.0``.
    layer : int
        Number of the ResNet layer that it belongs to, from 0: the blocks along one unbroken residual signal.
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

    def parts(self, live: dict[fx.Node, Tensor]) -> dict[str, Tensor]:
        """Which channels of the sum are "passed" on, "refined" or "new" (figure 4), each bool, shape (channels,)."""
        signal, delta, total = live[self.signal], live[self.delta], live[self.add]
        return {"passed": signal & ~delta & total, "refined": signal & delta & total, "new": ~signal & delta & total}

    def gone(self, live: dict[fx.Node, Tensor]) -> bool:
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
    depth, behind, origin = _paths_from_input(network)
    blocks: list[Block] = []
    for add in (node for node, kind in network.kinds.items() if kind == "add"):
        signal, delta = sorted(network.sources(add), key=depth.__getitem__)
        convs = _in_order(network, behind[delta] - behind[signal])
        shortcut = _in_order(network, behind[signal] - behind[delta])
        before = next((block for block in reversed(blocks) if block.add is origin[signal]), None)
        layer = before.layer if before else len({block.layer for block in blocks})
        start = before.start if before else origin[signal]
        name = _common_prefix([conv.target for conv in convs] or [add.name])
        if not name or name in {block.name for block in blocks}:
            name = f"{name} ({add.name})".strip()
        blocks.append(Block(name, layer, signal, delta, add, convs, shortcut, start))
    return blocks


def _paths_from_input(
    network: Network,
) -> tuple[dict[fx.Node, int], dict[fx.Node, set[fx.Node]], dict[fx.Node, fx.Node]]:
    """For every node: convolutions on the shortest path to it, all that it depends on, and what wrote its signal."""
    depth: dict[fx.Node, int] = {}
    behind: dict[fx.Node, set[fx.Node]] = {}
    origin: dict[fx.Node, fx.Node] = {}
    for node, kind in network.kinds.items():
        sources = network.sources(node)
        is_conv = kind in ("conv", "depthwise")
        depth[node] = min((depth[n] for n in sources), default=0) + is_conv
        behind[node] = set().union(*(behind[n] for n in sources), {node} if is_conv else set())
        origin[node] = origin[sources[0]] if kind in ("norm", "channelwise") else node
    return depth, behind, origin


def _in_order(network: Network, nodes: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Nodes in order of execution."""
    return tuple(node for node in network.kinds if node in nodes)


def _common_prefix(names: list[str]) -> str:
    """The dotted name that all these names begin with."""
    return os.path.commonpath([name.replace(".", "/") for name in names]).replace("/", ".")


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


def neurons(network: Network, live: dict[fx.Node, Tensor]) -> dict[str, int]:
    """Values that convolutions output per image, block by block: the volume of the network, divided by blocks.

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

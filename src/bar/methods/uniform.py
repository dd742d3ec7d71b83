"""Uniform widths: what random, magnitude, VQ and ID have in common (section 5, supp. 3.2).

All convolutions keep the same share of their features; a method only chooses which. Where several convolutions are
summed into one residual signal, they keep the same channels of it: only then do the FLOPs fall by the factors of
supp. 6 (4.0, 16.0, 64.0, 255.8 on WRN-28-12), and a mixed block is a regular one.

A method is a function ``choose(gated, widths, generator)`` that returns, for each gated convolution, which features
stay. `narrow_` asks it and cuts the rest. To halve again, after more training, call `narrow_` on the same gated network
with twice the factor: what was cut stays out, and what stays was there before.
"""

import bisect
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, fx, nn

from bar import cost
from bar.errors import BarError, nearest
from bar.network import Network, backwards
from bar.surgery import GatedNetwork

Choose = Callable[[GatedNetwork, dict[str, int], torch.Generator], dict[str, Tensor]]


@torch.no_grad()
def open_(gated: GatedNetwork) -> GatedNetwork:
    """Open all gates for good, but for features that have been cut: z = 1 in training, too, and nothing to train.

    Call it before the initial training of the full network. `narrow_` leaves gates in this state.

    Parameters
    ----------
    gated : GatedNetwork
        Changed in place. Its log alpha become infinite and ask for no gradient any more.

    Returns
    -------
    GatedNetwork
        The same.

    Examples
    --------
    >>> from bar import gate
    >>> gated = open_(gate(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)), (3, 6, 6)))
    >>> gated.gates["0"].distribution().rsample((2,))
    tensor([[1., 1.],
            [1., 1.]])
    """
    for gate in gated.gates.values():
        gate.log_alpha.requires_grad_(False).fill_(torch.inf)
    return gated


@torch.no_grad()
def narrow_(
    gated: GatedNetwork, choose: Choose, factor: float, generator: torch.Generator, metric: str = "volume"
) -> GatedNetwork:
    """Cut features until the network is at least `factor` times smaller than with all of them.

    Nothing is computed any more for what has been cut, so training is cheaper from here on; `bar.prune` gives the plain
    network. Its size is that of `widths`, or less: features that have lost all their inputs or readers go, too (only in
    networks with grouped convolutions).

    Parameters
    ----------
    gated : GatedNetwork
        Changed in place; VQ and ID change its weights. Batch norm's running statistics then want to be measured anew.
    choose : callable
        The `choose` of `bar.methods.random`, `magnitude`, `vector_quantization` or `interpolative`.
    factor : float
        Size of the *full* network over the budget, >= 1: 2, then 4, 8, 16, to halve again and again.
    generator : torch.Generator
        On the CPU; where the method draws from.
    metric : str
        What is divided: "volume" or "flops".

    Returns
    -------
    GatedNetwork
        The same, with open gates that ask for no gradient (see `open_`).

    Raises
    ------
    BarError
        As `widths`; the network is as it was, then.

    Notes
    -----
    Source: supp. 3.2, step 3.

    Examples
    --------
    >>> from bar import gate, prune
    >>> from bar.methods import magnitude
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> gated = gate(net, (3, 6, 6))
    >>> narrow_(gated, magnitude.choose, 2, torch.Generator()).gates
    {'0': Gate(8, alive=4, rule='median'), '2': Gate(4, alive=2, rule='median')}
    >>> sum(parameter.numel() for parameter in prune(gated).parameters())  # 3 -> 4 -> 2 -> 2 features
    204
    """
    before = {name: tensor.clone() for name, tensor in gated.body.state_dict().items()}
    alive = choose(gated, widths(gated, factor, metric), generator)
    budget, asked = gated.full(metric) / factor, factor
    # Where a concatenation is summed with something, the cost depends on which channels of the two coincide.
    while (size := gated.size_of(alive, metric)) > budget:
        gated.body.load_state_dict(before)
        asked *= size / budget
        alive = choose(gated, widths(gated, asked, metric), generator)
    return open_(gated.keep_(alive).cut_())


@torch.no_grad()
def widths(gated: GatedNetwork, factor: float, metric: str = "volume") -> dict[str, int]:
    """How many features each convolution keeps: all widths times one number, rounded down, but at least 1.

    The number is the largest one that fits; for volume it is 1/factor, or a little more where rounding leaves room.
    What is left of the budget is handed out: convolutions get one more feature each, those first that rounding took
    most from (of equals, the first to run), each if it fits. So widths are uniform up to one feature.

    Parameters
    ----------
    gated : GatedNetwork
        What has been cut stays out; it is not changed.
    factor : float
        Size of the full network over the budget, >= 1.
    metric : str
        "volume" or "flops".

    Returns
    -------
    dict of str to int
        For each gated convolution, at least 1; the same for all that are summed into one signal.

    Raises
    ------
    BarError
        If the factor is below 1 or there is no such metric; if one feature a convolution is still too much.

    Notes
    -----
    Source: supp. 3.2, "prune 50% of the network's volume"; that widths are uniform is what the FLOP factors of
    supp. 6 say.

    Examples
    --------
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> widths(gate(net, (3, 6, 6)), 2)  # of 9 * 16 + 4 * 4 = 160 numbers, 4 * 16 + 4 * 2 = 72; at most 80 fit
    {'0': 4, '2': 3}
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise BarError(f"the pruning factor must be a number of at least 1, got {factor}")
    if metric not in cost.METRICS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), cost.METRICS)}")
    uncut = {name: ~gate.cut.cpu() for name, gate in gated.gates.items()}
    joined, budget = signals(gated), gated.full(metric) / factor
    full = [len(uncut[names[0]]) for names in joined]
    there = [min(int(uncut[name].sum()) for name in names) for names in joined]

    def per_conv(counts: list[int]) -> dict[str, int]:
        found = {name: count for names, count in zip(joined, counts, strict=True) for name in names}
        return {name: found[name] for name in gated.gates}

    def size(counts: list[int]) -> int:  # of the first features; which ones does not matter, but see `narrow_`
        return gated.size_of({n: uncut[n] & (uncut[n].cumsum(0) <= k) for n, k in per_conv(counts).items()}, metric)

    def times(multiplier: Fraction) -> list[int]:
        return [min(max(1, math.floor(n * multiplier)), most) for n, most in zip(full, there, strict=True)]

    if (least := size(times(Fraction(0)))) > budget:
        raise BarError(
            f"one feature in each convolution is a {metric} of {least:,}, above the budget of {budget:,.0f}: choose a "
            f"pruning factor of at most {gated.full(metric) / least:.4g}"
        )
    # Widths change at these multipliers only; they are fractions, so that 3 * (1 / 3) does not round down to 0.
    steps = [Fraction(0), *sorted({Fraction(k, n) for n in set(full) for k in range(1, n + 1)})]
    fits = bisect.bisect_right(steps, budget, key=lambda multiplier: size(times(multiplier))) - 1
    counts, beyond = times(steps[fits]), steps[min(fits + 1, len(steps) - 1)]
    for i in sorted(range(len(full)), key=lambda i: counts[i] - full[i] * beyond):
        more = [count + (i == j and count < there[j]) for j, count in enumerate(counts)]
        counts = more if size(more) <= budget else counts
    return per_conv(counts)


def signals(gated: GatedNetwork) -> list[list[str]]:
    """The gated convolutions, together with those that they are summed with, channel by channel.

    Parameters
    ----------
    gated : GatedNetwork

    Returns
    -------
    list of list of str
        Names of convolutions, each once, in order of execution of the first.

    Examples
    --------
    >>> from bar import gate, models
    >>> for names in signals(gate(models.build("wrn-10-1", input_size=(3, 8, 8)), (3, 8, 8)))[:3]:
    ...     print(names)
    ['conv1', 'group1.0.conv2']
    ['group1.0.conv1']
    ['group2.0.shortcut', 'group2.0.conv2']
    """
    space = gated.network.spaces()
    found: dict[fx.Node, list[str]] = {}
    for name in gated.gates:
        found.setdefault(space[gated.network.convs[name]], []).append(name)
    return list(found.values())


@torch.no_grad()
def filters(gated: GatedNetwork, name: str, alive: dict[str, Tensor] | None = None) -> Tensor:
    """The weights of a convolution's features, those of inputs that are not there set to 0.

    Parameters
    ----------
    gated : GatedNetwork
    name : str
        Of a convolution.
    alive : dict of str to bool Tensor of shape (features,), optional
        Which features of the other convolutions there are; by default, all that have not been cut.

    Returns
    -------
    Tensor
        Shape (features, input channels, taps), float64, on the CPU. A feature of a grouped convolution has zeros for
        the other groups' inputs.
    """
    network, node = gated.network, gated.network.convs[name]
    conv = network.submodule(node)
    weight = conv.weight.double().cpu().flatten(2)
    weight = weight.view(conv.groups, -1, *weight.shape[1:])  # group, feature, its inputs, taps
    dense = weight.new_zeros(*weight.shape[:2], conv.groups, *weight.shape[2:])
    group = torch.arange(conv.groups)
    dense[group, :, group] = weight
    dense = dense.reshape(conv.out_channels, conv.in_channels, -1)
    there = {n: ~gate.cut for n, gate in gated.gates.items()} if alive is None else alive
    return dense * network.live(there)[network.sources(node)[0]][:, None]


@torch.no_grad()
def highest(gated: GatedNetwork, widths: dict[str, int], scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the features with the highest scores; scores of features that are summed into one channel are summed.

    Parameters
    ----------
    gated : GatedNetwork
    widths : dict of str to int
        How many to keep of each gated convolution.
    scores : dict of str to Tensor of shape (features,)
        For each gated convolution, any real numbers. Of equal ones the first stay.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        On the CPU.
    """
    alive = {}
    for names in signals(gated):
        score = sum(scores[name].cpu() for name in names)
        for name in names:
            mine = score.masked_fill(gated.gates[name].cut.cpu(), -torch.inf)
            alive[name] = torch.zeros(len(mine), dtype=torch.bool)
            alive[name][mine.argsort(descending=True, stable=True)[: widths[name]]] = True
    return {name: alive[name] for name in gated.gates}


Decompose = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


@torch.no_grad()
def merge_(gated: GatedNetwork, widths: dict[str, int], decompose: Decompose) -> dict[str, Tensor]:
    """Keep features that can stand for all, and let the next layers read them instead of the others.

    Features are compared by what they put in front of the activation: filter and bias, with the batch norm behind the
    convolution folded in. If each is *equal* to one that is kept, the network's function stays the same; if each is a
    linear combination of them, it does so only where there is no nonlinearity before the next layer. Everywhere else
    this is an approximation, which training has to repair; the next batch norms' running statistics are then those of
    other signals, too.

    The next layers change where they are linear layers or ordinary convolutions that read the features through nothing
    but activations, pooling, flatten and concatenation, and through one batch norm directly behind the convolution
    (with weights and running statistics). Anywhere else, features to keep are chosen the same way, but weights stay as
    they are: where convolutions are summed (a merge that suits one would not suit the others), in front of sums, of
    depthwise and grouped convolutions and of batch norms that sit in the readers only, and in grouped convolutions.

    Parameters
    ----------
    gated : GatedNetwork
        Its weights change in place.
    widths : dict of str to int
        How many features to keep of each gated convolution.
    decompose : callable
        ``decompose(rows, width)`` -> ``(kept, mixing, averaging)``, for an array with a row for each feature: the
        `width` rows to keep; mixing of shape (features, width), so that ``mixing @ rows[kept]`` is about ``rows``;
        averaging of shape (width, features), if ``averaging @ rows`` is to replace ``rows[kept]``, else None.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        For each gated convolution, which features stay.
    """
    network, joined = gated.network, signals(gated)
    alive = {name: ~gate.cut.cpu() for name, gate in gated.gates.items()}
    readers = _readers(network)
    for names in joined:  # a signal's first writer comes before all that read it, so they are compared by what stays
        first, here = names[0], torch.stack([alive[name] for name in names]).all(0).nonzero().flatten()
        rows = torch.cat([_preactivations(gated, name, alive)[here] for name in names], 1)
        kept, mixing, averaging = decompose(rows.numpy(), widths[first])
        kept = here[torch.as_tensor(kept)]
        for reader, start, each in readers[first]:
            columns = network.submodule(reader).weight[:, start : start + len(alive[first]) * each]
            parts = columns.double().cpu().reshape(len(columns), len(alive[first]), -1)
            parts[:, kept] = torch.einsum("oit,ij->ojt", parts[:, here], torch.as_tensor(mixing))
            columns.copy_(parts.view_as(columns))
        if readers[first] and averaging is not None:
            _average(gated, first, alive, here, kept, torch.as_tensor(averaging))
        for name in names:
            alive[name] = torch.zeros_like(alive[name])
            alive[name][kept] = True
    return alive


def _norm(network: Network, node: fx.Node) -> nn.BatchNorm2d | None:
    """The batch norm directly behind a convolution."""
    return network.submodule(next(iter(node.users))) if network.normed(node) else None


def _preactivations(gated: GatedNetwork, name: str, alive: dict[str, Tensor]) -> Tensor:
    """What each feature computes of its inputs: its weights, then its constant; shape (features, numbers)."""
    node = gated.network.convs[name]
    weight, bias = filters(gated, name, alive).flatten(1), gated.network.submodule(node).bias
    constant = weight.new_zeros(len(weight)) if bias is None else bias.double().cpu()
    norm = _norm(gated.network, node)
    if norm is not None and norm.running_mean is not None:
        mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
        scale = (var + norm.eps).rsqrt() * (norm.weight.double().cpu() if norm.affine else 1)
        weight = weight * scale[:, None]
        constant = (constant - mean) * scale + (norm.bias.double().cpu() if norm.affine else 0)
    return torch.cat([weight, constant[:, None]], 1)


def _average(
    gated: GatedNetwork, name: str, alive: dict[str, Tensor], here: Tensor, kept: Tensor, averaging: Tensor
) -> None:
    """Let the features kept compute averages of what those here do (see `_preactivations`)."""
    node = gated.network.convs[name]
    conv, norm = gated.network.submodule(node), _norm(gated.network, node)
    average = averaging @ _preactivations(gated, name, alive)[here]
    weight, constant = average[:, :-1], average[:, -1]
    if norm is not None:
        # A batch norm hides the length of a filter: keep that, and let the norm's scale make up for it. The shift is
        # the mean of what the norm puts out, hence an average, too; the running mean follows.
        ratio = filters(gated, name, alive)[kept].flatten(1).norm(dim=1) / weight.norm(dim=1)
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1)
        shift = averaging @ norm.bias[here].double().cpu()
        bias = 0 if conv.bias is None else conv.bias[kept].double().cpu()
        norm.weight[kept] = ((norm.running_var[kept].double().cpu() + norm.eps).sqrt() / ratio).to(norm.weight)
        norm.running_mean[kept] = (bias - ratio * (constant - shift)).to(norm.running_mean)
        norm.bias[kept] = shift.to(norm.bias)
        weight = weight * ratio[:, None]
    elif conv.bias is not None:
        conv.bias[kept] = constant.to(conv.bias)
    conv.weight[kept] = weight.view(len(kept), *conv.weight.shape[1:]).to(conv.weight)


def _readers(network: Network) -> dict[str, list[tuple[fx.Node, int, int]]]:
    """The layers that read each convolution's features, if all of them can be changed to read others instead.

    For each the place of the first feature among its inputs, and how many inputs each feature has there.
    """

    def rule(node: fx.Node, asked: list) -> tuple[list | None, list]:
        kind = network.kinds[node]
        here = None if any(part is None for part in asked) else [entry for part in asked for entry in part]
        sources = network.sources(node)
        parts = [None] * len(sources)
        if kind == "linear" or (kind == "conv" and network.groups(node) == 1):
            parts = [[(node, 0, 1)]]
        elif here is not None and kind in ("channelwise", "flatten"):
            times = network.features(node) // network.features(sources[0])
            parts = [[(reader, start, each * times) for reader, start, each in here]]
        elif here is not None and kind == "cat":
            widths = [0, *(network.features(n) for n in sources)]
            starts = itertools.accumulate(widths[:-1])
            parts = [[(reader, start + first * each, each) for reader, start, each in here] for first in starts]
        return here, parts

    read, found = backwards(network, rule), {}
    for name, node in network.convs.items():
        norm = _norm(network, node)
        fixed = network.submodule(node).groups > 1 or (
            norm is not None and not (norm.affine and norm.track_running_stats)
        )
        found[name] = [] if fixed else read[node if norm is None else next(iter(node.users))] or []
    return found

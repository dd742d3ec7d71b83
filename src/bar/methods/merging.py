"""Let some features represent all: what vector quantization and interpolative decomposition have in common."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from bar.methods.uniform import by_feature, filters, signals
from bar.network import Network, backwards
from bar.surgery import GatedNetwork

Decompose = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


@torch.no_grad()
def merge_(gated: GatedNetwork, widths: dict[str, int], decompose: Decompose) -> dict[str, Tensor]:
    """Keep features that can represent all, and let the next layers read them instead of the others.

    Features are compared by how their pre-activation is computed: filter and bias, with the batch norm behind the
    convolution folded in. If each is *equal* to one that is kept, the network's function stays the same; if each is a
    linear combination of them, it does so only where there is no nonlinearity before the next layer. Everywhere else
    this is an approximation, which training has to repair; the running statistics of the next batch norms then no
    longer fit.

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
            columns = by_feature(network.submodule(reader))[:, start : start + len(alive[first]) * each]
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
    """What each feature computes from its inputs: its weights, then its constant; shape (features, weights + 1)."""
    node = gated.network.convs[name]
    weight, bias = filters(gated, name, alive).flatten(1), gated.network.submodule(node).bias
    constant = weight.new_zeros(len(weight)) if bias is None else bias.double().cpu()
    norm = _norm(gated.network, node)
    if norm is not None and getattr(norm, "running_mean", None) is not None:
        mean, var = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
        scale = (var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double().cpu())
        weight = weight * scale[:, None]
        constant = (constant - mean) * scale + (0 if norm.bias is None else norm.bias.double().cpu())
    return torch.cat([weight, constant[:, None]], 1)


def _average(
    gated: GatedNetwork, name: str, alive: dict[str, Tensor], here: Tensor, kept: Tensor, averaging: Tensor
) -> None:
    """Let the features kept compute averages of what those here do (see `_preactivations`)."""
    node = gated.network.convs[name]
    conv, norm = gated.network.submodule(node), _norm(gated.network, node)
    rows = _preactivations(gated, name, alive)[here]
    average = averaging @ rows
    weight, constant = average[:, :-1], average[:, -1]
    if norm is not None:
        # A batch norm hides the length of a filter: its scale makes up for any. Length and variance are those of the
        # filter that has the largest share in the average. Those of the one that is kept may have decayed to nothing,
        # and the scale, which would have to make up for that, would be millions. The shift is the mean of what the norm
        # outputs, hence an average, too; the running mean follows.
        largest = here[((averaging > 0) * rows[:, :-1].norm(dim=1)).argmax(1)]
        ratio = filters(gated, name, alive)[largest].flatten(1).norm(dim=1) / weight.norm(dim=1)
        ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, 1)
        shift = averaging @ norm.bias[here].double().cpu()
        bias = 0 if conv.bias is None else conv.bias[kept].double().cpu()
        norm.running_var[kept] = norm.running_var[largest]
        norm.weight[kept] = ((norm.running_var[kept].double().cpu() + norm.eps).sqrt() / ratio).to(norm.weight)
        norm.running_mean[kept] = (bias - ratio * (constant - shift)).to(norm.running_mean)
        norm.bias[kept] = shift.to(norm.bias)
        weight = weight * ratio[:, None]
    elif conv.bias is not None:
        conv.bias[kept] = constant.to(conv.bias)
    by_feature(conv)[kept] = weight.view(len(kept), *by_feature(conv).shape[1:]).to(conv.weight)


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
        whole = norm is None or None not in (norm.bias, getattr(norm, "running_mean", None))
        fixed = network.submodule(node).groups > 1 or not whole
        found[name] = [] if fixed else read[node if norm is None else next(iter(node.users))] or []
    return found

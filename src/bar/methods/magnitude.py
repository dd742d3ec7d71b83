"""Weight magnitude (WM): of each convolution the filters with the largest weights are kept (section 5)."""

import torch
from torch import Tensor

from bar.methods import uniform
from bar.methods.iterative import IterativePruning
from bar.surgery import GatedNetwork


def choose(gated: GatedNetwork, widths: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Rank the features of a convolution by the absolute sum of the weights in their filters.

    Weights on inputs that have been cut do not count. Where several convolutions are summed into one channel, the
    weights of all of them do.

    Parameters
    ----------
    gated : GatedNetwork
        It is not changed.
    widths : dict of str to int
        How many features stay of each gated convolution; see `bar.methods.uniform.widths`.
    generator : torch.Generator
        Not used: nothing is drawn.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        For each gated convolution, which features stay.

    Notes
    -----
    Source: Lemaire et al. 2019, section 5, "Weight Magnitude", after Han et al. 2015, who threshold single weights.

    Examples
    --------
    >>> from torch import nn
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> nn.init.constant_(net[0].weight, 1.0)[2].data.zero_().sum()
    tensor(0.)
    >>> choose(gate(net, (3, 6, 6)), {"0": 3}, torch.Generator())["0"]
    tensor([ True,  True, False,  True])
    """
    sums = {name: uniform.filters(gated, name).abs().sum((1, 2)) for name in gated.gates}
    return uniform.highest(gated, widths, sums)


class Magnitude(IterativePruning):
    """The pruner; `bar.methods.iterative.IterativePruning` has the parameters."""

    name = "magnitude"
    title = "WM"
    summary = "The filters with the largest weights are kept, the same share of every layer."
    choose = staticmethod(choose)

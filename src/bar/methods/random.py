"""Random: the features to keep are drawn at random (section 5).

A baseline: whatever it achieves is due to the widths and the fine-tuning, not to the choice of features.
"""

import torch
from torch import Tensor

from bar.methods import uniform
from bar.methods.iterative import IterativePruning
from bar.surgery import GatedNetwork


def choose(gated: GatedNetwork, widths: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw the features to keep, all with the same probability.

    Parameters
    ----------
    gated : GatedNetwork
        Features that have been cut are not drawn; it is not changed.
    widths : dict of str to int
        How many stay of each gated convolution; see `bar.methods.uniform.widths`.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        For each gated convolution, which features stay.

    Notes
    -----
    Source: Lemaire et al. 2019, section 5, "Random".

    Examples
    --------
    >>> from torch import nn
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    >>> choose(gate(net, (3, 6, 6)), {"0": 2}, torch.Generator().manual_seed(0))["0"].sum()
    tensor(2)
    """
    draws = {name: torch.rand(len(gate.log_alpha), generator=generator) for name, gate in gated.gates.items()}
    return uniform.highest(gated, widths, draws)


class Random(IterativePruning):
    """The pruner; `bar.methods.iterative.IterativePruning` has the parameters."""

    name = "random"
    title = "Random"
    summary = "The features to keep are drawn at random, the same share of every layer."
    choose = staticmethod(choose)

"""Interpolative decomposition (ID): features that can replace the others as their linear combinations (section 5)."""

import numpy as np
import torch
from scipy.linalg.interpolative import interp_decomp
from torch import Tensor

from bar.methods import merging
from bar.methods.iterative import IterativePruning
from bar.surgery import GatedNetwork

PRECISION = float(np.finfo(np.float32).eps)  # of weights


def choose(gated: GatedNetwork, widths: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Write the filters of a convolution as linear combinations of some of them, which are kept.

    With the filters as columns of W, this is W = U V, where U are columns of W; then U replaces W, and V is multiplied
    into the next layer. That is exact if W has no higher rank and the next layer reads the features without an
    activation in between; with ReLU it is an approximation. Where the next layer cannot be changed, V is dropped: see
    `bar.methods.merging.merge_`.

    Parameters
    ----------
    gated : GatedNetwork
        Its weights change in place.
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
    Source: Lemaire et al. 2019, section 5, "Interpolative Decomposition", after Denton et al. 2014 and Jaderberg et al.
    2014; scipy computes it by a pivoted QR decomposition.

    Examples
    --------
    >>> from torch import nn
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> net[0].weight.data = torch.tensor([4.0, 1.0]).view(2, 1, 1, 1)
    >>> net[2].weight.data = torch.tensor([[1.0, 8.0]])
    >>> choose(gate(net, (1, 1, 1)), {"0": 1}, torch.Generator())["0"]
    tensor([ True, False])
    >>> net[2].weight.tolist()  # the second feature is a quarter of the first: 1 + 8 / 4
    [[3.0, 8.0]]
    """

    def decompose(rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, None]:
        # Some combine all the others exactly where there are more features than weights, or where features have decayed
        # to nothing, as filters do behind a batch norm that has shut them: what is beyond the precision of a weight is
        # noise, and coefficients that fit noise to noise have no bound.
        rank = min(width, int(np.linalg.matrix_rank(rows, rtol=PRECISION)))
        order, rest = interp_decomp(rows.T, max(rank, 1), rand=False)
        kept, mixing = order[:width], np.zeros((len(rows), width))
        if rank:  # otherwise all are zero
            mixing[order[rank:], :rank] = rest.T
        mixing[kept] = np.eye(width)
        return kept, mixing, None

    return merging.merge_(gated, widths, decompose)


class Interpolative(IterativePruning):
    """The pruner; `bar.methods.iterative.IterativePruning` has the parameters."""

    name = "interpolative"
    title = "ID"
    summary = "Filters are kept of which the others are, approximately, linear combinations."
    choose = staticmethod(choose)

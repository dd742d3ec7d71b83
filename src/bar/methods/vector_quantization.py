"""Vector quantization (VQ): filters become the centres of clusters of filters (sections 2 and 5)."""

import warnings

import numpy as np
import torch
from torch import Tensor

from bar.methods import merging
from bar.methods.iterative import IterativePruning
from bar.surgery import GatedNetwork


def choose(gated: GatedNetwork, widths: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Cluster the features of a convolution by k-means; of each cluster, the one nearest the centre is kept.

    It takes on the centre's weights, and the next layer reads it with the sum of the weights that it had for all of the
    cluster ("using the codebook as the weight matrix and altering the connectivity of the next layer", section 2).
    That is exact for features that are equal, otherwise an approximation. Where the next layer cannot be changed,
    features are only chosen: see `bar.methods.merging.merge_`.

    Parameters
    ----------
    gated : GatedNetwork
        Its weights change in place.
    widths : dict of str to int
        How many features stay of each gated convolution; see `bar.methods.uniform.widths`.
    generator : torch.Generator
        On the CPU; it seeds k-means.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        For each gated convolution, which features stay.

    Notes
    -----
    Source: Lemaire et al. 2019, section 5, "Vector Quantization", after Gong et al. 2014. In the paper's tables VQ
    falls short of its widths (a volume factor of 3.1 instead of 2, supp. 6), as if clusters were empty; here a cluster
    that would be empty is filled with a feature of another one.

    Examples
    --------
    >>> from torch import nn
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), nn.Linear(3, 1, bias=False))
    >>> net[0].weight.data = torch.tensor([1.0, 5.0, 3.0]).view(3, 1, 1, 1)
    >>> net[2].weight.data = torch.tensor([[1.0, 10.0, 100.0]])
    >>> choose(gate(net, (1, 1, 1)), {"0": 1}, torch.Generator())["0"]
    tensor([False, False,  True])
    >>> net[0].weight.flatten().tolist(), net[2].weight.tolist()  # all three read it: 1 + 10 + 100
    ([1.0, 5.0, 3.0], [[1.0, 10.0, 111.0]])
    """

    from sklearn.cluster import KMeans  # takes a second or two to import
    from sklearn.exceptions import ConvergenceWarning

    def decompose(rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seed = int(torch.randint(2**31, (), generator=generator))
        with warnings.catch_warnings():  # if fewer distinct filters than clusters; handled below
            warnings.simplefilter("ignore", ConvergenceWarning)
            means = KMeans(width, n_init=1, random_state=seed).fit(rows)
        clusters, distance = means.labels_.copy(), np.linalg.norm(rows - means.cluster_centers_[means.labels_], axis=1)
        nearest = [np.flatnonzero(clusters == c)[distance[clusters == c].argmin()] for c in np.unique(clusters)]
        # An empty cluster gets the feature that is farthest from its own centre.
        for c in np.setdiff1d(np.arange(width), clusters):
            others = np.setdiff1d(np.arange(len(rows)), nearest)
            nearest.append(others[distance[others].argmax()])
            clusters[nearest[-1]] = c
        kept = np.array(nearest)
        mixing = (clusters[:, None] == clusters[kept]).astype(float)
        return kept, mixing, mixing.T / mixing.sum(0)[:, None]

    return merging.merge_(gated, widths, decompose)


class VectorQuantization(IterativePruning):
    """The pruner; `bar.methods.iterative.IterativePruning` has the parameters."""

    name = "vector-quantization"
    title = "VQ"
    summary = "Filters are clustered, and each cluster is replaced by its centre."
    choose = staticmethod(choose)

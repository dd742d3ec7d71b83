"""Rewrite a network to compute the same in less time, for inference only."""

import torch
from torch import fx, nn

from bar.errors import BarError
from bar.inference.overwriting import overwrite
from bar.inference.plain import plain_graph
from bar.network import check_module
from bar.surgery import GatedNetwork
from bar.surgery.layers import Plain

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions


def fold(network: nn.Module) -> fx.GraphModule:
    """Rewrite a network for inference: the same outputs in eval mode, in less time and memory.

    A batch norm that directly follows a convolution becomes part of it. A signal that nothing reads any more is
    overwritten: a ReLU writes into its input, a sum into one of its summands, and a sum of mixed connectivity only into
    the channels that it refines. A residual signal gets memory for the channels that later blocks add, so that it need
    not be copied there. Weights are in the memory format channels_last, and therefore the outputs of convolutions, too:
    on a CPU this is faster.

    Parameters
    ----------
    network : nn.Module
        From `bar.prune` or `bar.load`, or any CNN of one tensor in and one tensor out that `torch.fx` can trace. It is
        not changed, and no weight is shared with the result.

    Returns
    -------
    torch.fx.GraphModule
        For inference only: in eval mode, and no parameter requires a gradient. To fine-tune, store or `bar.export`,
        keep `network`.

    Raises
    ------
    BarError
        If it is no network, a gated one, or cannot be traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    >>> images = torch.rand(5, 1, 6, 6)
    >>> folded = fold(net)
    >>> [name for name, _ in folded.named_children()]
    ['0', '3', '4']
    >>> torch.allclose(folded(images), net(images), atol=1e-6)
    True
    """
    check_module(network)
    if isinstance(network, GatedNetwork):
        raise BarError("a gated network cannot be folded: remove its gates and dead features first, with bar.prune")
    plain = plain_graph(Plain().copied(network).eval().requires_grad_(False))
    overwrite(plain)
    for tensor in (*plain.parameters(), *plain.buffers()):
        if tensor.ndim in CHANNELS_LAST:
            tensor.data = tensor.contiguous(memory_format=CHANNELS_LAST[tensor.ndim])
    return plain

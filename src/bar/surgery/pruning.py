"""Dead features out: from a gated network to a smaller plain one (section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from bar.errors import BarError, nearest
from bar.surgery.connectivity import same_width
from bar.surgery.layers import Plain
from bar.surgery.rewiring import rewire

if TYPE_CHECKING:
    from bar.surgery.gated import GatedNetwork


@torch.inference_mode(False)  # the result may be fine-tuned
@torch.no_grad()
def prune(gated: GatedNetwork, connectivity: str = "mixed") -> fx.GraphModule:
    """Remove the dead features: a smaller plain network with the output of the gated one in eval mode.

    Surviving gate values are folded into the weights that follow or precede them, so that nothing is sampled any more.
    Blocks without a live feature leave no trace ("automatic depth determination", section 4.1).

    Parameters
    ----------
    gated : GatedNetwork
        Gates decide what stays; it is not changed, and no weight is shared with the result.
    connectivity : str
        "mixed": a sum of signals with different features adds where both have one, and passes on or concatenates the
        rest (figure 4, supp. 2). "regular": all summands compute every feature that any of them has (figure 5a), which
        is what an ordinary residual network needs.

    Returns
    -------
    torch.fx.GraphModule
        Plain modules and plain torch operations, in the mode (train or eval) of the gated network; a layer has the mode
        of the one it comes from, and what was frozen stays frozen; buffers that no forward reads are kept.
        `print(net.code)` shows how they are called. It can be gated, and pruned, again.

    Raises
    ------
    BarError
        If it is no gated network, if a gate has a NaN or no signal can pass from input to output, if the user's model
        has been changed so that it computes something else (see `bar.gate`), or the kind of connectivity is unknown.

    Examples
    --------
    >>> import bar
    >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
    >>> smaller = prune(gated.settle_(budget=64))  # half of 8 features of 4 x 4
    >>> smaller.get_submodule("0")
    Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
    >>> smaller(torch.rand(5, 1, 6, 6)).shape
    torch.Size([5, 2])
    """
    if not hasattr(gated, "settle_"):  # its class cannot be named here, since its module uses this one
        raise BarError(f"only a gated network can be pruned, which bar.gate makes, not a {type(gated).__name__}")
    if connectivity not in ("mixed", "regular"):
        raise BarError(f"unknown connectivity {connectivity!r}: {nearest(connectivity, ['mixed', 'regular'])}")
    gated._follow()
    gated._check()
    network, values, keep = gated.network, gated.values(), gated.live()
    if not network.reached(keep):
        raise BarError("fatal pruning: every path from input to output crosses a convolution without a live feature")
    if connectivity == "regular":
        keep = same_width(network, keep, network.spaces())
    pruned = rewire(network, keep, Plain(), values, gated._gates[0].union)
    modes = {m: m.training for m in pruned.modules() if type(m) is not nn.Module}  # mere containers
    pruned.train(gated.training)
    for module, mode in modes.items():
        module.training = mode
    pruned.training = gated.training
    return pruned.to(next(gated.body.parameters()).device)

"""What is handed to a gated network is taken whole or not at all: weights, and choices of features."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bar.errors import BarError


def check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], strict: bool) -> None:
    """Refuse a state dict of another network, before any of it is loaded.

    Parameters
    ----------
    state : mapping of str to Tensor
        What is to be loaded.
    own : mapping of str to Tensor
        What the network has.
    strict : bool
        Whether every entry must be there, and no other.

    Raises
    ------
    BarError
        With the first entry that is missing, of another shape, or not expected.
    """
    for name, tensor in own.items():
        if name not in state:
            if strict:
                raise BarError(
                    f"the state dict has no {name!r}: it is another network's. That of the network without gates "
                    "loads into `body`"
                )
        elif state[name].shape != tensor.shape:
            theirs, mine = tuple(state[name].shape), tuple(tensor.shape)
            raise BarError(f"{name!r} is {theirs} in the state dict and {mine} here: it is another network's")
    unknown = [name for name in state if name not in own]
    if strict and unknown:
        raise BarError(f"the state dict has {unknown[0]!r}, which is not known here: it is another network's")


def masks_for(gates: Mapping[str, nn.Module], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Choices of features, in the order of the gates; refused if they are others than one for each feature.

    Parameters
    ----------
    gates : mapping of str to gate
        Of a gated network.
    given : mapping of str to bool Tensor of shape (features,)
        For each of them.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)

    Raises
    ------
    BarError
        With the first convolution that is missing or unknown, or whose tensor is of another kind or shape.
    """
    for name in (*gates, *given):
        if name not in given or name not in gates:
            what = "has no choice of its features" if name in gates else "is no convolution with a gate"
            raise BarError(f"{name!r} {what}: there are {', '.join(map(repr, gates))}")
        mask, features = given[name], len(gates[name].cut)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (features,):
            kind = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise BarError(
                f"the features of {name!r} are chosen by a bool tensor of shape ({features},), not by {kind}"
            )
    return {name: given[name] for name in gates}

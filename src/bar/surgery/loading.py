"""Weights are loaded into a gated network whole or not at all."""

from collections.abc import Mapping

from torch import Tensor

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

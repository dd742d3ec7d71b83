"""What methods that prune individual weights share: which there are, how many to keep, and the largest of them."""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.network.views import CONVOLUTIONS


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """What the unstructured methods prune: the weights of convolutions and linear layers, each once.

    Biases and batch norms, which hold few numbers, are not pruned and not counted.

    Parameters
    ----------
    network : nn.Module
        Not gated.

    Returns
    -------
    dict of str to nn.Parameter
        Name, as in the network's state dict, -> weights. What several layers share is listed under its first name.

    Raises
    ------
    BarError
        If there are none, or if they are computed from other parameters (weight norm, say).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> {name: len(weight.flatten()) for name, weight in weights_of(net).items()}
    {'0.weight': 36, '3.weight': 32}
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, module in network.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            if not isinstance(module.weight, nn.Parameter):
                raise BarError(f"{name}.weight is computed from something else: remove the parametrization first")
            found.setdefault(id(module.weight), (f"{name}.weight".removeprefix("."), module.weight))
    if not found:
        raise BarError("the network has no convolution and no linear layer, so there are no weights to prune")
    return dict(found.values())


def largest(values: Tensor, count: int) -> Tensor:
    """Where the largest magnitudes of a vector are; of equal ones, those that come first.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    count : int
        How many, >= 0; all n if there are not more.

    Returns
    -------
    Tensor, bool, shape (n,)
        True min(count, n) times.

    Raises
    ------
    BarError
        If the count is negative or not whole, or if a value is not finite.

    Examples
    --------
    >>> largest(torch.tensor([1.0, -3.0, 2.0, -1.0]), 3).tolist()
    [True, True, True, False]
    """
    if not (isinstance(count, numbers.Integral) and count >= 0):
        raise BarError(f"the number of weights to keep must be a whole number, at least 0, not {count!r}")
    if not values.isfinite().all():
        raise BarError("weights that are not finite cannot be ordered: lower the learning rate")
    size = values.abs()
    if count == 0 or count >= len(size):
        return torch.full_like(size, count > 0, dtype=torch.bool)
    least = size.kthvalue(len(size) - count + 1).values  # faster than sorting
    kept = size > least
    equal = (size == least).nonzero().flatten()
    kept[equal[: count - int(kept.sum())]] = True
    return kept


def is_number(value: object) -> bool:
    """Whether something is a finite real number."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def budget_of(sizes: Sequence[int], factor: float) -> int:
    """How many weights to keep: as many as there are, divided by the factor and rounded down.

    Parameters
    ----------
    sizes : sequence of int
        Number of weights of each layer.
    factor : float
        Pruning factor, >= 1.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    BarError
        If the factor is below 1 or not a number, or if it would leave nothing.

    Examples
    --------
    >>> budget_of([36, 32], 10)
    6
    """
    full = sum(sizes)
    if not (is_number(factor) and factor >= 1):
        raise BarError(f"the pruning factor must be a number, at least 1, not {factor!r}")
    if full < factor:
        raise BarError(f"a pruning factor of {factor:g} leaves none of {full:,} weights: ask for at most {full}")
    return math.floor(full / factor)


def shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Divide a budget among layers in proportion to their sizes, by largest remainders, so that no weight is lost.

    Parameters
    ----------
    sizes : sequence of int
        Number of weights of each layer.
    limit : int
        The budget of all together, at most their sum.

    Returns
    -------
    list of int
        Sums to the limit; of equal remainders the earlier layer's is rounded up.

    Raises
    ------
    BarError
        If a layer would get nothing, which would cut the network in two.

    Examples
    --------
    >>> shares([36, 32], 6)
    [3, 3]
    """
    full = sum(sizes)
    shared = [size * limit // full for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: -(sizes[i] * limit % full))
    for i in order[: limit - sum(shared)]:
        shared[i] += 1
    if 0 in shared:
        i = shared.index(0)
        raise BarError(
            f"a budget of {limit:,} of {full:,} weights, divided in proportion, leaves none to layer number {i + 1} "
            f"with its {sizes[i]:,}: ask for a smaller pruning factor, or for one budget for all layers"
        )
    return shared


def masks(values: Sequence[Tensor], limit: int, per_layer: bool = False) -> list[Tensor]:
    """Which weights magnitude pruning keeps.

    Parameters
    ----------
    values : sequence of Tensor
        The weights of each layer, any shapes.
    limit : int
        How many to keep in all.
    per_layer : bool
        Whether each layer has a budget of its own (`shares`). By default there is one for all layers together, and
        some may keep a larger part than others, or nothing at all.

    Returns
    -------
    list of Tensor, bool
        Of the same shapes, with exactly min(limit, all) True.

    Raises
    ------
    BarError
        As `largest` and `shares`.

    Examples
    --------
    >>> [kept.tolist() for kept in masks([torch.tensor([3.0, 4.0]), torch.tensor([1.0, -2.0])], 2)]
    [[True, True], [False, False]]
    >>> [kept.tolist() for kept in masks([torch.tensor([3.0, 4.0]), torch.tensor([1.0, -2.0])], 2, per_layer=True)]
    [[False, True], [False, True]]
    """
    sizes = [value.numel() for value in values]
    flat = [value.flatten() for value in values]
    if per_layer:
        kept = [largest(value, count) for value, count in zip(flat, shares(sizes, limit), strict=True)]
    else:
        kept = largest(torch.cat(flat), limit).split(sizes)
    return [mask.view(value.shape) for mask, value in zip(kept, values, strict=True)]

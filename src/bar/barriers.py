"""The barrier that makes a volume above the budget infinitely costly (section 3.3, fig. 1)."""

import math

import torch
from torch import Tensor

from bar.errors import BarError


def barrier(volume: Tensor | float, a: Tensor | float, b: Tensor | float) -> Tensor:
    """The barrier f(V, a, b) of eq. 5.

    0 where V <= a (the budget is comfortably respected), (V - a)^2 / ((b - V) (b - a)) between, infinite where V >= b.
    Once continuously differentiable below b.

    Parameters
    ----------
    volume : Tensor or float
        V, the activation volume, in features x area.
    a, b : Tensor or float
        The lower and the upper margin, a < b, in the unit of V. Broadcast against V.

    Returns
    -------
    Tensor
        f >= 0, without unit. In the dtype of V, or a wider one of a or b, as torch promotes tensors; float64 if V is
        no floating point tensor.

    Raises
    ------
    BarError
        If a and b are numbers and not a < b, or not finite. Tensors are not checked, since that would synchronize
        with the device.

    Notes
    -----
    The gradient in V is that of eq. 5 below b, and 0 from b on, where f is constant (infinite); a V that is NaN gives
    NaN. At the first step of training V = V_F = b, so f is infinite: to train with it, cap f, or let b start a little
    higher.

    Examples
    --------
    >>> barrier(torch.tensor([0.5, 1.0, 1.5, 2.0]), a=1.0, b=2.0)
    tensor([0.0000, 0.0000, 0.5000,    inf])
    """
    _check_margins(a, b)
    volume = _as_floating(volume)
    below, above = volume <= a, volume >= b
    # Where the quotient is not used it is taken at V = a instead: a masked infinity would still make a NaN gradient.
    v = torch.where(below | above, a, volume)
    f = (v - a) / (b - a) * ((v - a) / (b - v))
    return f.masked_fill(below, 0).masked_fill(above, math.inf)


def log_barrier(volume: Tensor | float, b: Tensor | float, t: float) -> Tensor:
    """The logarithmic barrier -(1/t) log(b - V) that f replaces (section 3.3, fig. 1a; Boyd and Vandenberghe 2004).

    Parameters
    ----------
    volume : Tensor or float
        V, the activation volume.
    b : Tensor or float
        The budget, in the unit of V. Broadcast against V.
    t : float
        Hardness, > 0: the larger, the closer to a step from 0 to infinity at b.

    Returns
    -------
    Tensor
        The barrier's value, of either sign; infinite where V >= b.

    Raises
    ------
    BarError
        If t is not positive, or b is a number and not finite.

    Examples
    --------
    >>> log_barrier(torch.tensor([0.0, 0.5, 1.0]), b=1.0, t=2.0)
    tensor([-0.0000, 0.3466,    inf])
    """
    if not (math.isfinite(t) and t > 0):
        raise BarError(f"t, the hardness of the log barrier, must be positive, got {t}")
    if not isinstance(b, Tensor) and not math.isfinite(b):
        raise BarError(f"the budget b must be a finite number, got {b}")
    volume = _as_floating(volume)
    above = volume >= b
    gap = torch.where(above, 1.0, b - volume)
    return (-torch.log(gap) / t).masked_fill(above, math.inf)


def _as_floating(volume: Tensor | float) -> Tensor:
    if isinstance(volume, Tensor) and volume.is_floating_point():
        return volume
    return torch.as_tensor(volume, dtype=torch.float64)


def _check_margins(a: Tensor | float, b: Tensor | float) -> None:
    for name, margin in (("a", a), ("b", b)):
        if not isinstance(margin, Tensor) and not math.isfinite(margin):
            raise BarError(f"the margin {name} must be a finite number, got {margin}")
    if not isinstance(a, Tensor) and not isinstance(b, Tensor) and a >= b:
        raise BarError(f"the lower margin a must be below the upper margin b, got a = {a} and b = {b}")

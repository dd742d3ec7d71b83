"""The hard concrete distribution (sections 3.1, 3.2; supp. 7).

A gate multiplies a feature map by z in [0, 1]. While training, z is drawn from a hard concrete distribution: a smooth
variable between two point masses, one at 0 (the feature is off) and one at 1 (it is fully on), whose only learnt
parameter is log alpha. Afterwards z is a constant, and the features whose constant is 0 are pruned.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from bar.errors import BarError, nearest

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # "for all our experiments" (supp. 7.1, after Louizos et al. 2018)

RULES = ("median", "l0")


class HardConcrete(Distribution):
    """A binary concrete variable, stretched to (gamma, zeta) and clamped to [0, 1] (supp. 7.1).

    A binary concrete variable s in (0, 1) has the distribution function
    Sigmoid(beta logit(s) - log alpha) (supp. eq. 3); then z = clamp(s (zeta - gamma) + gamma, 0, 1).

    Parameters
    ----------
    log_alpha : Tensor or float
        The location, any real number: the larger, the likelier z > 0. Its shape is the batch shape.
    beta : float
        The temperature, > 0. Towards 0 the gate becomes a Bernoulli variable.
    gamma, zeta : float
        The interval that s is stretched to, gamma < 0 and zeta > 1: what lies outside [0, 1] becomes the point masses.
    validate_args : bool
        Whether bad values are refused; torch's own default is off once anything has been compiled. False skips the
        checks of tensors, which synchronize with the device.

    Raises
    ------
    BarError
        If beta, gamma or zeta is out of its range, or log alpha has a NaN.

    Notes
    -----
    Source: Lemaire et al. 2019, supplement 7; Louizos et al. 2018. The paper gives P(z=0) = P(z=1) = 0.23 for
    log alpha = 0; with its own beta = 2/3 both are 0.168 (0.23 belongs to beta = 1/2).

    Examples
    --------
    >>> gate = HardConcrete(torch.tensor([-3.0, 0.0, 3.0]))
    >>> gate.prob_active
    tensor([0.1976, 0.8318, 0.9900])
    >>> gate.median
    tensor([0.0000, 0.5000, 1.0000])
    >>> gate.rsample((1000,)).shape
    torch.Size([1000, 3])
    """

    arg_constraints = {"log_alpha": constraints.real}  # noqa: RUF012 (the convention of torch.distributions)
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        log_alpha: Tensor | float,
        beta: float = BETA,
        gamma: float = GAMMA,
        zeta: float = ZETA,
        validate_args: bool = True,
    ) -> None:
        _check_shape(beta, gamma, zeta)
        log_alpha = torch.as_tensor(log_alpha)
        if not log_alpha.is_floating_point():
            log_alpha = log_alpha.to(torch.get_default_dtype())
        if validate_args and log_alpha.isnan().any():
            raise BarError("log_alpha has entries that are not a number (did the training diverge?)")
        self.log_alpha, self.beta, self.gamma, self.zeta = log_alpha, float(beta), float(gamma), float(zeta)
        super().__init__(log_alpha.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "HardConcrete":
        """Repeat the distribution to a larger batch shape, without copying."""
        log_alpha = self.log_alpha.expand(batch_shape)
        return HardConcrete(log_alpha, self.beta, self.gamma, self.zeta, validate_args=False)

    def _stretch(self, logit: Tensor) -> Tensor:
        """The clamped, stretched sigmoid that every kind of gate value goes through."""
        return (torch.sigmoid(logit) * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw gate values, differentiable in log alpha (supp. eq. 4).

        Parameters
        ----------
        sample_shape : tuple of int
            How many to draw; comes before the batch shape.

        Returns
        -------
        Tensor
            Shape sample_shape + batch_shape, values in [0, 1].
        """
        # Half precision has too few numbers in (0, 1) for the tails, hence at least float32.
        dtype = torch.promote_types(self.log_alpha.dtype, torch.float32)
        epsilon = torch.rand(self._extended_shape(sample_shape), dtype=dtype, device=self.log_alpha.device)
        noise = epsilon.logit_(eps=torch.finfo(dtype).eps)  # log eps - log(1 - eps), away from its infinities
        return self._stretch((noise + self.log_alpha) / self.beta).to(self.log_alpha.dtype)

    def icdf(self, value: Tensor | float) -> Tensor:
        """Quantile function, supp. eq. 4.

        Parameters
        ----------
        value : Tensor or float
            Probabilities in [0, 1], broadcast against log alpha.

        Returns
        -------
        Tensor
            Gate values in [0, 1].

        Raises
        ------
        BarError
            If a probability is outside [0, 1], unless the checks are off.
        """
        q = self._as_value(value)
        if self._validate_args and not ((q >= 0) & (q <= 1)).all():
            raise BarError(f"a probability must lie in [0, 1], got {_first(q, ~((q >= 0) & (q <= 1)))}")
        return self._stretch((q.logit() + self.log_alpha) / self.beta)

    def cdf(self, value: Tensor | float) -> Tensor:
        """P(z <= value): supp. eq. 3 on the stretched variable; jumps at 0 and at 1.

        Parameters
        ----------
        value : Tensor or float
            Any real number, broadcast against log alpha.

        Returns
        -------
        Tensor
            Probabilities in [0, 1].
        """
        z = self._as_value(value)
        probability = torch.sigmoid(self._location(z.clamp(0, 1)))
        return torch.where(z < 0, 0, torch.where(z >= 1, 1, probability))

    def density(self, value: Tensor | float) -> Tensor:
        """Density of the continuous part: supp. eq. 2 on the stretched variable; 0 outside (0, 1).

        It integrates to 1 - prob_zero - prob_one. Computed from logarithms, so that it neither overflows nor
        becomes 0/0 for a large ``|log alpha|``.

        Parameters
        ----------
        value : Tensor or float
            Any real number, broadcast against log alpha.

        Returns
        -------
        Tensor
            Non-negative numbers.
        """
        z = self._as_value(value)
        inside = (z > 0) & (z < 1)
        return torch.where(inside, self._log_density(torch.where(inside, z, 0.5)).exp(), 0)

    def log_prob(self, value: Tensor | float) -> Tensor:
        """Log of the density inside (0, 1), log of the point mass at 0 and at 1, -inf elsewhere.

        Parameters
        ----------
        value : Tensor or float
            Any real number, broadcast against log alpha.

        Returns
        -------
        Tensor
            Log-likelihoods with respect to the Lebesgue measure on (0, 1) plus a unit mass at 0 and one at 1.
        """
        z = self._as_value(value)
        inside = (z > 0) & (z < 1)
        result = torch.where(inside, self._log_density(torch.where(inside, z, 0.5)), -math.inf)
        result = torch.where(z == 0, logsigmoid(self._location(torch.zeros_like(z))), result)
        return torch.where(z == 1, logsigmoid(-self._location(torch.ones_like(z))), result)

    @property
    def prob_zero(self) -> Tensor:
        """The point mass P(z = 0), in (0, 1)."""
        return torch.sigmoid(self.beta * math.log(-self.gamma / self.zeta) - self.log_alpha)

    @property
    def prob_one(self) -> Tensor:
        """The point mass P(z = 1), in (0, 1)."""
        return torch.sigmoid(self.log_alpha - self.beta * math.log((1 - self.gamma) / (self.zeta - 1)))

    @property
    def prob_active(self) -> Tensor:
        """P(z > 0), the summand of the sparsity loss (supp. eq. 5), in (0, 1)."""
        return torch.sigmoid(self.log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    @property
    def mean(self) -> Tensor:
        """The true mean E[z], in (0, 1). It is never 0, so it cannot be the E[z] of eq. 4, which is the `median`.

        There is no closed form for every beta. A Gauss-Legendre quadrature gives it, differentiable in log alpha, to
        machine precision for beta <= 1; to 1e-6 for beta <= 2, or <= 10 with the default gamma and zeta.
        """
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """E[z^2] - E[z]^2, by the same quadrature, in [0, 1/4]."""
        return (self._moment(2) - self._moment(1).square()).clamp(min=0)

    @property
    def median(self) -> Tensor:
        """Supp. eq. 4 with epsilon replaced by its mean, 1/2, which is the paper's test-time gate.

        That is the median of z; the paper calls it the mean. It is 0 unless P(z > 0) > 1/2.
        """
        return self._stretch(self.log_alpha / self.beta)

    @property
    def l0_estimate(self) -> Tensor:
        """The test-time gate of the reference code of Louizos et al. 2018, the median without its beta."""
        return self._stretch(self.log_alpha)

    def _as_value(self, value: Tensor | float) -> Tensor:
        value = torch.as_tensor(value, dtype=self.log_alpha.dtype, device=self.log_alpha.device)
        return torch.broadcast_tensors(value, self.log_alpha)[0]

    def _location(self, z: Tensor) -> Tensor:
        """beta logit(s) - log alpha at z in [0, 1]: its sigmoid is P(z' <= z) for z < 1."""
        return self.beta * (torch.log(z - self.gamma) - torch.log(self.zeta - z)) - self.log_alpha

    def _log_density(self, z: Tensor) -> Tensor:
        u = self._location(z)
        # d/dz of beta logit(s) is beta (zeta - gamma) / ((z - gamma) (zeta - z))
        slope = math.log(self.beta * (self.zeta - self.gamma)) - torch.log(z - self.gamma) - torch.log(self.zeta - z)
        return logsigmoid(u) + logsigmoid(-u) + slope

    def _moment(self, order: int) -> Tensor:
        """E[z^order] = integral over (0, 1) of order z^(order-1) P(z' > z).

        Taken over x = logit(s), where the integrand has no singularity close to the ends even if gamma and zeta are
        close to 0 and 1.
        """
        low, high = math.log(-self.gamma / self.zeta), math.log((1 - self.gamma) / (self.zeta - 1))
        nodes, weights = _gauss_legendre()
        x = low + (high - low) * nodes
        s = 1 / (1 + np.exp(-x))
        z = s * (self.zeta - self.gamma) + self.gamma
        dz = weights * (high - low) * (self.zeta - self.gamma) * s * (1 - s)
        x, dz = (self.log_alpha.new_tensor(v) for v in (x, dz * order * z ** (order - 1)))
        return torch.sigmoid(self.log_alpha.unsqueeze(-1) - self.beta * x) @ dz


def threshold(rule: str = "median", beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA) -> float:
    """The log alpha above which the test-time gate is positive, and its feature alive.

    Parameters
    ----------
    rule : str
        "median" (the paper's words) or "l0" (the reference code, which drops beta).
    beta, gamma, zeta : float
        As in `HardConcrete`.

    Returns
    -------
    float
        Where Sigmoid(log alpha / beta) (zeta - gamma) + gamma is 0; for "l0", without the division by beta.

    Raises
    ------
    BarError
        If there is no such rule, or a parameter is out of its range.

    Examples
    --------
    >>> round(threshold("median"), 3), round(threshold("l0"), 3)
    (-1.599, -2.398)
    """
    if rule not in RULES:
        raise BarError(f"no rule {rule!r} for the test-time gate: {nearest(str(rule), RULES)}")
    _check_shape(beta, gamma, zeta)
    return (beta if rule == "median" else 1.0) * math.log(-gamma / zeta)


def _check_shape(beta: float, gamma: float, zeta: float) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise BarError(f"beta, the temperature, must be positive, got {beta}")
    if not (math.isfinite(gamma) and gamma < 0):
        raise BarError(f"gamma, the lower end of the stretch, must be below 0, got {gamma}")
    if not (math.isfinite(zeta) and zeta > 1):
        raise BarError(f"zeta, the upper end of the stretch, must be above 1, got {zeta}")


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return (nodes + 1) / 2, weights / 2  # from (-1, 1) to (0, 1)


def _first(values: Tensor, where: Tensor) -> float:
    return values[where].flatten()[0].item()

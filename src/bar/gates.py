"""The gate that learns a hard concrete variable for each feature of a convolution (sections 3.1, 3.2; supp. 4)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.hard_concrete import HardConcrete, threshold

SHUT = -100.0  # z = 0 in any precision, yet finite, so that weight decay can be applied to it

FLOOR = 0.0  # the lower end of the paper's initialization U(0, 0.01): a gate that must stay open is held there


class Gate(nn.Module):
    """One hard concrete variable per feature of a convolution.

    A gate with another distribution is a class with `value`, `alive`, `score`, `cut`, `sample`, `union`, `keep_`,
    `settle_`, `cut_` and `floor_`: `bar.surgery` uses nothing else of a gate. An example is
    `bar.methods.information_bottleneck.GaussianGate`.

    Parameters
    ----------
    features : int
        Number of features, >= 1.
    rule : str
        The test-time value: "median", the paper's words, or "l0", the reference code of Louizos et al. 2018.

    Attributes
    ----------
    log_alpha : nn.Parameter
        Shape (features,), drawn from U(0, 0.01) (supp. 4): P(z > 0) is then 0.83. Drawn with torch's global
        generator, whose state `bar.gate` restores.
    cut : Tensor
        bool, shape (features,): which features have been cut (`cut_`): z = 0 for them, whatever their log alpha.

    Raises
    ------
    BarError
        If the number of features is not a whole number >= 1, or there is no such rule.

    Examples
    --------
    >>> gate = Gate(3)
    >>> gate
    Gate(3, alive=3, rule='median')
    >>> gate.log_alpha.data = torch.tensor([-3.0, -2.0, 2.0])
    >>> gate.alive
    tensor([False, False,  True])
    >>> gate.rule = "l0"
    >>> gate.alive
    tensor([False,  True,  True])
    """

    def __init__(self, features: int, rule: str = "median") -> None:
        super().__init__()
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise BarError(f"a gate needs at least one feature, a whole number, got {features!r}")
        threshold(rule)  # raises if there is no such rule
        self.rule = rule
        self.log_alpha = nn.Parameter(torch.empty(features))
        self.register_buffer("cut", torch.zeros(features, dtype=torch.bool))
        self.spread_(0, 0.01)

    def spread_(self, low: float, high: float, generator: torch.Generator | None = None) -> "Gate":
        """Draw every log alpha anew from U(low, high), in place. What has been cut stays cut.

        In a short run, gates that start almost equal move in lockstep and die together; a wider interval avoids that.

        Parameters
        ----------
        low, high : float
            The interval, low <= high.
        generator : torch.Generator, optional
            On the gate's device; by default torch's global one.

        Returns
        -------
        Gate
            This gate, changed in place.

        Raises
        ------
        BarError
            If low and high are not finite, or low > high.
        """
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise BarError(f"log alpha is drawn between two numbers, low <= high, got {low} and {high}")
        with torch.no_grad():
            self.log_alpha.uniform_(low, high, generator=generator)
        return self

    def distribution(self) -> HardConcrete:
        """The distribution of the gate's values; batch shape (features,)."""
        return HardConcrete(self.effective, validate_args=False)  # a check would synchronize every step

    @property
    def effective(self) -> Tensor:
        """Log alpha, shape (features,), differentiable; minus infinity for what has been cut."""
        return self.log_alpha.masked_fill(self.cut, -torch.inf)

    @property
    def value(self) -> Tensor:
        """The test-time value of each feature's gate, shape (features,), in [0, 1]; positive iff alive."""
        distribution = self.distribution()
        value = distribution.median if self.rule == "median" else distribution.l0_estimate
        # `alive` decides, however the value is rounded close to the threshold.
        return torch.where(self.alive, value.clamp(min=torch.finfo(value.dtype).tiny), 0)

    @property
    def alive(self) -> Tensor:
        """Which features are alive, those whose test-time value is positive; bool, shape (features,)."""
        return self.score > threshold(self.rule)

    @property
    def score(self) -> Tensor:
        """What features are ranked by, log alpha, shape (features,); minus infinity for what has been cut."""
        return self.effective.detach()

    @staticmethod
    def sample(gates: Iterable["Gate"]) -> Tensor:
        """Draw the values of several gates: shape (total features,), in [0, 1], differentiable (supp. eq. 4)."""
        return HardConcrete(torch.cat([gate.effective for gate in gates]), validate_args=False).rsample()

    @staticmethod
    def union(p: Tensor, q: Tensor) -> Tensor:
        """The presence, in [0, 1], of the sum of two features with presences p and q: 1 - (1 - p)(1 - q)."""
        return p + q - p * q

    @torch.no_grad()
    def keep_(self, alive: Tensor) -> None:
        """Open the gates of some features fully (z = 1) and shut all others (z = 0); what has been cut stays cut.

        Parameters
        ----------
        alive : Tensor
            bool, shape (features,): which features to keep.
        """
        self.log_alpha.copy_(torch.where(alive.to(self.cut.device) & ~self.cut, 10.0, -10.0))

    @torch.no_grad()
    def settle_(self, alive: Tensor) -> None:
        """Make just these features alive. Gates that are open stay so unchanged; others are moved past the threshold.

        Parameters
        ----------
        alive : Tensor
            bool, shape (features,): which features are to be alive.
        """
        opened = torch.where(self.alive, self.log_alpha, FLOOR)
        shut = self.log_alpha.clamp(max=threshold(self.rule) - 1)
        self.log_alpha.copy_(torch.where(alive.to(opened.device), opened, shut))

    @torch.no_grad()
    def cut_(self, features: Tensor) -> None:
        """Cut features: z = 0 from now on, whatever is done to log alpha.

        Parameters
        ----------
        features : Tensor
            bool, shape (features,): which features to cut. Those that were cut before stay cut.
        """
        self.cut |= features.to(self.cut.device)
        self.log_alpha[self.cut] = SHUT

    @torch.no_grad()
    def floor_(self) -> None:
        """Keep the feature with the highest score alive; does not synchronize with the device."""
        top = self.score.argmax(keepdim=True)
        self.log_alpha.scatter_(0, top, self.log_alpha.gather(0, top).clamp(min=FLOOR))

    def extra_repr(self) -> str:
        return f"{self.log_alpha.numel()}, alive={int(self.alive.sum())}, rule={self.rule!r}"

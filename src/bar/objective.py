"""What training minimises: distillation + lambda L_BAR (sections 3.3 to 3.5, eq. 6)."""

import math
import numbers

import torch
import torch.nn.functional as F
from torch import Tensor

from bar import cost
from bar.barriers import barrier
from bar.errors import BarError, nearest
from bar.schedule import SCHEDULES, margins
from bar.surgery import GatedNetwork

# lambda V_F: the same pressure on networks of any size. Section 5.1 has 1e-5 for WRN-28-12, whose V_F is 3,112,960: 31.
# Runs much shorter than its 80 epochs need ten times as much.
PRESSURE = 311.0


def distillation(
    student: Tensor, targets: Tensor, teacher: Tensor | None, alpha: float = 0.9, temperature: float = 4.0
) -> Tensor:
    """The data loss L_D of section 3.5: (1 - alpha) L_CE(P_s, Y_gt) + alpha T^2 L_CE(P_s, P_t).

    The student learns from the true classes and from the teacher's probabilities (Hinton et al. 2015). The
    teacher's term is a cross-entropy, not a KL divergence: the gradients are the same, but its minimum is not 0.

    Parameters
    ----------
    student, teacher : Tensor of shape (N, classes)
        Logits, that is, before the softmax. The teacher's should not require a gradient; with None for the teacher,
        the loss is plain cross-entropy.
    targets : Tensor of shape (N,)
        Indices of the true classes, int64, in [0, classes).
    alpha : float
        Weight of the teacher, in [0, 1].
    temperature : float
        T >= 1. In the teacher's term both softmaxes are of logits / T, and T^2 keeps its gradients at the scale of
        the other term, which has T = 1.

    Returns
    -------
    Tensor
        A scalar, the mean over the batch, >= 0, in nats. Differentiable in the student.

    Raises
    ------
    BarError
        If alpha or the temperature is out of range.

    Examples
    --------
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> distillation(logits, torch.tensor([0]), None)
    tensor(0.1269)
    >>> distillation(logits, torch.tensor([0]), teacher=torch.tensor([[1.0, 1.0]]))
    tensor(10.4394)
    """
    if not (0 <= alpha <= 1 and 1 <= temperature < math.inf):  # also refuses what is not a number
        raise BarError(f"alpha must be from 0 to 1, and the temperature at least 1, not {alpha} and {temperature}")
    truth = F.cross_entropy(student, targets)
    if teacher is None:
        return truth
    soft = F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))
    return (1 - alpha) * truth + alpha * temperature**2 * soft


class Budget:
    """The budget as a term of a loss: ``loss + budget(step)`` in any training loop.

    The term is lambda L_S(Phi) f(V, a, b) of eq. 6: the expected size of the network times a barrier that grows as its
    size V approaches the margin b, while b moves from the full size to the budget B.

    Parameters
    ----------
    gated : GatedNetwork
        From `bar.gate`.
    factor : float
        Pruning factor > 1: the budget B is the size of the full network divided by this.
    steps : int
        Number of training steps.
    metric : str
        What B limits: "volume" or "flops" (section 3.3).
    schedule : str
        How b falls: "sigmoid", "linear" or "exponential" (section 3.4).
    lam : float, optional
        lambda of eq. 6, per unit of L_S. By default 311 / V_F, so that networks of any size, in any metric, feel the
        same pressure; the paper's is 31 / V_F, in runs that are much longer. Made for a loss of about 1, such as a
        cross-entropy.
    cap : float
        Upper bound of f, which eq. 5 leaves infinite for V >= b.
    start : float
        b at the first step, in units of the full size, >= 1. At 1 the barrier is infinite at once, since V = b.
    reach : float
        The fraction of the steps, in (0, 1], after which b has reached its lowest value; 1 in the paper.
    aim : float
        The lowest value of b, as a fraction of B in (0, 1]; 1 in the paper. A little below 1, V ends below B by itself.
    follow : float
        The least a / b, in [0, 1), by which V stays close to b (`bar.schedule.margins`); 0 in the paper, where V runs
        ahead of b.

    Attributes
    ----------
    full : int
        Size of the full network (V_F), in the unit of the metric, for one image.
    limit : float
        The budget (B), likewise.
    V : Tensor
        Current size by eq. 4, a scalar on the network's device, set by each call.
    f : Tensor
        The barrier's value, likewise.
    a : float
        The lower margin, set by each call.
    b : float
        The upper margin, likewise.

    Raises
    ------
    BarError
        If the network has no gates; if the factor is not above 1, or so large that even one feature per layer exceeds
        the budget; if the metric or the schedule is unknown; if the steps, lambda, cap, start, reach, aim or follow are
        out of range.

    Examples
    --------
    >>> import bar
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), torch.nn.Linear(128, 2))
    >>> gated = bar.gate(net, (1, 6, 6))
    >>> budget = Budget(gated, factor=2, steps=101)
    >>> loss = gated(torch.rand(4, 1, 6, 6)).square().mean() + budget(step=50)
    >>> loss.backward()
    >>> print(budget.limit, round(budget.b), int(budget.V))
    64.0 87 128
    >>> smaller = bar.prune(budget.settle())
    >>> bar.count(smaller, (1, 6, 6)).volume
    64
    """

    def __init__(
        self,
        gated: GatedNetwork,
        factor: float,
        steps: int,
        metric: str = "volume",
        schedule: str = "sigmoid",
        lam: float | None = None,
        cap: float = 100.0,
        start: float = 1.0,
        reach: float = 0.9,
        aim: float = 0.99,
        follow: float = 0.9,
    ) -> None:
        if not isinstance(gated, GatedNetwork):
            raise BarError(f"a budget needs a gated network, which bar.gate makes, not a {type(gated).__name__}")
        _check_request(factor, steps, metric, schedule)
        _check_strengths(lam, cap, start, reach, aim, follow)
        self.gated, self.steps, self.metric, self.schedule = gated, steps, metric, schedule
        self.cap, self.start, self.reach, self.aim, self.follow = cap, start, reach, aim, follow
        self.full = gated.full(metric)
        self.limit = self.full / factor
        self.lam = PRESSURE / self.full if lam is None else lam
        smallest = gated.smallest(metric)
        if smallest > self.limit:
            raise BarError(
                f"a pruning factor of {factor:g} leaves a {metric} of {self.limit:,.0f}, but the smallest possible is "
                f"{smallest:,} (one feature a layer): ask for a factor of at most {self.full / smallest:.4g}"
            )

    def __call__(self, step: int) -> Tensor:
        """lambda L_S(Phi) f(V, a, b) of eq. 6, after `bar.GatedNetwork.floor_`, which keeps a path open.

        Parameters
        ----------
        step : int
            Counted from 0, on from epoch to epoch. After the share `reach` of `steps`, b arrives at `aim` times B, and
            stays there (of one step alone, at its start).

        Returns
        -------
        Tensor
            A scalar >= 0, differentiable in log alpha; f is a constant factor.

        Raises
        ------
        BarError
            If the step is below 0, or the gates are not hard concrete.
        """
        if step < 0:
            raise BarError(f"steps are counted from 0, this one is {step}")
        self.gated.floor_()
        time, end = min(step / max(self.reach * self.steps - 1, 1), 1.0), self.aim * self.limit
        self.a, b = margins(time, self.full, end, self.schedule, self.follow)
        remaining = (b - end) / (self.full - end)  # 1 - T of eq. 7
        self.b = b + (self.start - 1) * self.full * remaining
        size = cost.measure(self.metric)
        with torch.no_grad():
            self.V = size(self.gated.network, self.gated.indicators())
            self.f = self._barrier(time).clamp(max=self.cap)
        return self.lam * size(self.gated.network, self.gated.expected()) * self.f

    def _barrier(self, time: float) -> Tensor:
        """f of eq. 5; `time` is the fraction of the run that is done. An ablation may override this."""
        return barrier(self.V, self.a, self.b)

    def settle(self) -> GatedNetwork:
        """Shut or reopen gates so that V <= B and B is used (`bar.GatedNetwork.settle_`); returns the gated network."""
        return self.gated.settle_(self.limit, self.metric)


def _check_request(factor: float, steps: int, metric: str, schedule: str) -> None:
    """Raise a BarError unless these are valid arguments of a `Budget`."""
    if not (isinstance(factor, numbers.Real) and math.isfinite(factor) and factor > 1):
        raise BarError(f"the pruning factor must be a number above 1, not {factor!r}")
    cost.measure(metric)
    if schedule not in SCHEDULES:
        raise BarError(f"unknown schedule {schedule!r}: {nearest(schedule, SCHEDULES)}")
    if not (isinstance(steps, int) and steps >= 1):
        raise BarError(f"the budget needs a whole number of steps, at least 1, not {steps!r}")


def _check_strengths(lam: float | None, cap: float, start: float, reach: float, aim: float, follow: float) -> None:
    """Raise a BarError unless these are valid arguments of a `Budget`."""
    if not (
        cap > 0 and 1 <= start < math.inf and (lam is None or 0 < lam < math.inf)
    ):  # also refuses what is not a number
        raise BarError(f"lambda and cap must be above 0, and start at least 1, not {lam}, {cap} and {start}")
    if not (0 < reach <= 1 and 0 < aim <= 1):
        raise BarError(f"reach and aim must be above 0 and at most 1, not {reach} and {aim}")
    if not 0 <= follow < 1:
        raise BarError(f"follow must be at least 0 and below 1, not {follow}")

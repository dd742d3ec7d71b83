"""Learning-Compression (Carreira-Perpiñán and Idelbayev 2018): which weights are 0 is decided anew after each L step.

Pruning is the problem min L(w) subject to C(w) <= kappa (constraint form) or min L(w) + alpha C(w) (penalty form), C
being an l0, l1 or l2 norm. A copy theta of the weights takes over C, and w = theta is demanded by an augmented
Lagrangian whose mu grows. It is minimised alternately over w (the L step: training with a quadratic term) and over
theta (the C step: one of the functions here). A weight that is 0 in theta goes on learning in w and may come back.
"""

import copy
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.methods.base import Method, Option, Task
from bar.methods.weights import budget_of, is_number, largest, masks, shares, weights_of
from bar.training import check_form


def keep_top(values: Tensor, kappa: int) -> Tensor:
    """C step of l0 in constraint form: the nearest vector with at most kappa numbers that are not 0.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    kappa : int
        At least 0; if n or more, nothing changes.

    Returns
    -------
    Tensor, shape (n,)
        The kappa numbers of largest magnitude as they are (of equal ones the first), 0 elsewhere.

    Raises
    ------
    BarError
        If a value is not finite, or kappa not a whole number >= 0.

    Examples
    --------
    >>> keep_top(torch.tensor([1.0, -3.0, 2.0]), 2).tolist()
    [0.0, -3.0, 2.0]
    """
    return torch.where(largest(values, kappa), values, 0.0)


def project_l1(values: Tensor, kappa: float) -> Tensor:
    """C step of l1 in constraint form: the nearest vector whose magnitudes sum to at most kappa.

    It is the soft threshold that has this sum, found by sorting (Duchi et al. 2008, figure 1).

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    kappa : float
        Radius of the ball, >= 0.

    Returns
    -------
    Tensor, shape (n,)
        Each magnitude reduced by the same amount, 0 where that would be negative.

    Raises
    ------
    BarError
        If a value is not finite, or kappa not a number >= 0.

    Examples
    --------
    >>> project_l1(torch.tensor([1.0, -3.0, 2.0]), 3.0).tolist()
    [0.0, -2.0, 1.0]
    """
    _check(values, kappa=kappa)
    magnitudes = values.abs().double().sort(descending=True).values
    if magnitudes.sum() <= kappa:
        return values.clone()
    excess = magnitudes.cumsum(0) - kappa
    counts = torch.arange(1, len(values) + 1, device=values.device)
    count = max(int((magnitudes * counts > excess).sum()), 1)  # 0 only if kappa is, or vanishes beside the largest
    return nn.functional.softshrink(values, float(excess[count - 1]) / count)


def project_l2(values: Tensor, kappa: float) -> Tensor:
    """C step of l2 in constraint form: the nearest vector whose Euclidean norm is at most kappa.

    The norm itself is bounded, not its square.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    kappa : float
        Radius of the ball, >= 0.

    Returns
    -------
    Tensor, shape (n,)
        Shrunk by one factor: nothing becomes 0 unless kappa is.

    Raises
    ------
    BarError
        If a value is not finite, or kappa not a number >= 0.

    Examples
    --------
    >>> project_l2(torch.tensor([3.0, -4.0]), 1.0).tolist()
    [0.6000000238418579, -0.800000011920929]
    """
    _check(values, kappa=kappa)
    norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return values.clone() if norm <= kappa else values * (kappa / norm)


def hard_threshold(values: Tensor, alpha: float, mu: float) -> Tensor:
    """C step of l0 in penalty form: minimises alpha ||theta||_0 + mu/2 ||values - theta||^2.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    alpha, mu : float
        alpha >= 0, mu > 0.

    Returns
    -------
    Tensor, shape (n,)
        Magnitudes above sqrt(2 alpha / mu) as they are, 0 elsewhere.

    Raises
    ------
    BarError
        If a value is not finite, or alpha or mu out of range.

    Examples
    --------
    >>> hard_threshold(torch.tensor([1.0, -3.0, 2.0]), alpha=2.0, mu=1.0).tolist()
    [0.0, -3.0, 0.0]
    """
    _check(values, alpha=alpha, mu=mu)
    return nn.functional.hardshrink(values, math.sqrt(2 * alpha / mu))


def soft_threshold(values: Tensor, alpha: float, mu: float) -> Tensor:
    """C step of l1 in penalty form: minimises alpha ||theta||_1 + mu/2 ||values - theta||^2.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    alpha, mu : float
        alpha >= 0, mu > 0.

    Returns
    -------
    Tensor, shape (n,)
        Magnitudes smaller by alpha / mu, 0 where that would be negative.

    Raises
    ------
    BarError
        If a value is not finite, or alpha or mu out of range.

    Examples
    --------
    >>> soft_threshold(torch.tensor([1.0, -3.0, 2.0]), alpha=2.0, mu=1.0).tolist()
    [0.0, -1.0, 0.0]
    """
    _check(values, alpha=alpha, mu=mu)
    return nn.functional.softshrink(values, alpha / mu)


def shrink(values: Tensor, alpha: float, mu: float) -> Tensor:
    """C step of l2 in penalty form: minimises alpha ||theta||_2^2 + mu/2 ||values - theta||^2.

    Here the norm is squared, unlike that of `project_l2`.

    Parameters
    ----------
    values : Tensor, shape (n,)
        Finite numbers.
    alpha, mu : float
        alpha >= 0, mu > 0.

    Returns
    -------
    Tensor, shape (n,)
        All times 1 / (1 + 2 alpha / mu): nothing becomes 0.

    Raises
    ------
    BarError
        If a value is not finite, or alpha or mu out of range.

    Examples
    --------
    >>> shrink(torch.tensor([1.0, -3.0, 2.0]), alpha=0.5, mu=1.0).tolist()
    [0.5, -1.5, 1.0]
    """
    _check(values, alpha=alpha, mu=mu)
    return values / (1 + 2 * alpha / mu)


def _check(values: Tensor, kappa: float = 0.0, alpha: float = 0.0, mu: float = 1.0) -> None:
    if not (is_number(kappa) and kappa >= 0):
        raise BarError(f"kappa must be a number, at least 0, not {kappa!r}")
    if not (is_number(alpha) and alpha >= 0 and is_number(mu) and mu > 0):
        raise BarError(f"alpha must be a number, at least 0, and mu one above 0, not {alpha!r} and {mu!r}")
    if not values.isfinite().all():
        raise BarError("weights that are not finite cannot be compressed: lower the learning rate")


def _check_form(form: str, norm: int, strength: float | None) -> None:
    if form not in ("constraint", "penalty") or norm not in (0, 1, 2):
        raise BarError(f"the form must be constraint or penalty, and the norm 0, 1 or 2, not {form!r} and {norm!r}")
    counted = (form, norm) == ("constraint", 0)
    if counted and strength is not None:
        raise BarError("l0 in constraint form keeps as many weights as the factor says: leave out the strength")
    if not counted and not (is_number(strength) and strength >= 0):
        raise BarError(f"l{norm} in {form} form needs a strength, a number that is at least 0, not {strength!r}")


CONSTRAINTS = {0: keep_top, 1: project_l1, 2: project_l2}
PENALTIES = {0: hard_threshold, 1: soft_threshold, 2: shrink}


class LearningCompression(Method):
    """Learning-Compression of a trained network: a term of the loss (L step), a compression between epochs (C step).

    The weights are those of convolutions and linear layers; biases and batch norms are trained, but not compressed. The
    l0 norm in constraint form meets a budget of weights exactly, which is its kappa. In the other forms the size
    depends on the `strength`. If it is too large at the end, `cut` keeps only the largest of theta, as many as the
    budget allows; for the l2 norm, which sets nothing to 0, all pruning is done there.

    Parameters
    ----------
    network : nn.Module
        Trained: the first theta is the compression of its weights. It is changed in place.
    factor : float
        Pruning factor, >= 1; at 1 there is no budget but that of `strength`.
    form : str
        "constraint" or "penalty".
    norm : int
        0, 1 or 2.
    strength : float, optional
        kappa of l1 and l2 in constraint form, alpha in penalty form; not given for l0 in constraint form.
    mu : float
        mu_0 > 0, the weight of the quadratic term in the first L step.
    growth : float
        mu_k = mu_0 growth^k, >= 1; 1.1 in the paper.
    every : int
        How many epochs an L step lasts.
    per_layer : bool
        Whether kappa is divided among the layers by their sizes beforehand. By default it bounds all layers together,
        and the method finds how much each needs. Has no effect in penalty form.

    Attributes
    ----------
    metric : str
        "weights".
    full, limit : int
        How many weights there are, and how many of them may stay.
    theta : list of Tensor
        The compressed weights, layer by layer, in the order of `bar.methods.weights.weights_of`.
    mu : float
        Of the present L step.

    Raises
    ------
    BarError
        If the form or the norm is unknown, a number out of range, or the budget leaves nothing (to a layer).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> pruner = LearningCompression(net, factor=10, mu=0.01)
    >>> loss = net(torch.rand(8, 1, 4, 4)).square().mean() + pruner(step=0)  # ... train an epoch
    >>> pruner.end_epoch()["size"]
    6
    >>> sum(int(weight.count_nonzero()) for weight in weights_of(pruner.cut()).values())
    6
    """

    name = "learning-compression"
    title = "LC"
    summary = "Training and compression alternate, on weights and a compressed copy that a penalty pulls together."
    options = (
        Option("norm", str, "l0", "Which norm of the compressed copy is limited.", ("l0", "l1", "l2")),
        Option("form", str, "constraint", "Whether the norm is bounded or penalized.", ("constraint", "penalty")),
        Option("kappa", float, None, "The bound of l1 and l2 in constraint form; that of l0 is the budget.", least=0),
        Option("alpha", float, None, "The weight of the norm in penalty form.", least=0),
        Option("per_layer", bool, False, "Whether kappa is divided among the layers beforehand."),
        Option("mu", float, 9e-5, "mu_0, the initial weight of the quadratic term; that of LeNet300.", above=0),
        Option("growth", float, 1.1, "The factor by which mu grows after each L step.", least=1, most=1e3),
        Option("every", int, 1, "How many epochs an L step lasts.", least=1, most=10_000),
    )
    presets: ClassVar = {"paper": {}, "quick": {"mu": 0.01, "growth": 1.2}}
    metrics, metric, starts = ("weights",), "weights", ("unpruned",)

    @classmethod
    def check(cls, options: Mapping[str, object]) -> None:
        """Each form and norm has its own strength, kappa or alpha, or none."""
        form, norm = options["form"], options["norm"]
        needed = "alpha" if form == "penalty" else None if norm == "l0" else "kappa"
        for name in ("kappa", "alpha"):
            if options[name] is None and name == needed:
                raise BarError(f"{norm} in {form} form needs {name}, a number that is at least 0: -o {name}=NUMBER")
            if options[name] is not None and name != needed:
                raise BarError(f"{norm} in {form} form has no {name}: leave it out")

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "LearningCompression":
        """See `bar.methods.base.Method`."""
        given = dict(task.options)
        kappa, alpha, norm = given.pop("kappa"), given.pop("alpha"), int(given.pop("norm")[1])
        return cls(network, task.factor, norm=norm, strength=alpha if kappa is None else kappa, **given)

    def __init__(
        self,
        network: nn.Module,
        factor: float,
        form: str = "constraint",
        norm: int = 0,
        strength: float | None = None,
        mu: float = 9e-5,
        growth: float = 1.1,
        every: int = 1,
        per_layer: bool = False,
    ) -> None:
        _check_form(form, norm, strength)
        if not (is_number(mu) and mu > 0 and is_number(growth) and growth >= 1):
            raise BarError(f"mu must be above 0 and its growth at least 1, not {mu!r} and {growth!r}")
        if not (isinstance(every, int) and every >= 1):
            raise BarError(f"an L step lasts a whole number of epochs, at least 1, not {every!r}")
        self.network, self.form, self.norm, self.strength = network, form, norm, strength
        self.mu, self.growth, self.every, self.per_layer = mu, growth, every, per_layer
        weights = self._weights()
        sizes = [weight.numel() for weight in weights]
        self.full, self.limit = sum(sizes), budget_of(sizes, factor)
        if per_layer:
            shares(sizes, self.limit)  # raises now, not at the cut
        self.theta, self._lagrange = self._compress(weights), [torch.zeros_like(weight) for weight in weights]
        self._aim()
        self._epochs, self._kept = 0, None

    def __call__(self, step: int) -> Tensor:
        """The term of the L step, mu/2 ||w - theta - lambda/mu||^2: a scalar, differentiable in the weights."""
        pairs = zip(weights_of(self.network).values(), self._target, strict=True)
        return self.mu / 2 * torch.stack([(weight - target).square().sum() for weight, target in pairs]).sum()

    @torch.no_grad()
    def end_epoch(self) -> dict:
        """At the end of an L step, the C step, the multipliers' step and a larger mu.

        Returns
        -------
        dict
            "size" (numbers of theta that are not 0), "budget", "gap" (||w - theta|| / ||w||), "mu" (of the past epoch).
        """
        self._epochs += 1
        weights, mu = self._weights(), self.mu
        if self._epochs % self.every == 0:
            self.theta = self._c_step()
            for multiplier, weight, theta in zip(self._lagrange, weights, self.theta, strict=True):
                multiplier -= mu * (weight - theta)
            self.mu *= self.growth
            self._aim()
        norm = torch.stack([w.square().sum() for w in weights]).sum()
        apart = torch.stack([(w - t).square().sum() for w, t in zip(weights, self.theta, strict=True)]).sum()
        return {"size": self._size(), "budget": self.limit, "gap": float((apart / norm).sqrt()), "mu": mu}

    def _c_step(self) -> list[Tensor]:
        return self._compress([w - m / self.mu for w, m in zip(self._weights(), self._lagrange, strict=True)])

    def watched(self) -> nn.Module:
        """A copy of the network with theta for weights."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        return other.cut()

    @torch.no_grad()
    def cut(self) -> nn.Module:
        """w = theta, within the budget; the network itself, changed in place. Later calls change nothing."""
        if self._kept is None:
            if self._epochs % self.every:  # the last L step has not been followed by a C step yet
                self.theta = self._c_step()
                self._epochs += -self._epochs % self.every  # nor is it done again by a run that goes on from here
            heaviest = masks(self.theta, self.limit, self.per_layer)
            self._kept = [mask & (theta != 0) for mask, theta in zip(heaviest, self.theta, strict=True)]
            for weight, theta in zip(weights_of(self.network).values(), self.theta, strict=True):
                weight.copy_(theta)
        self.end_finetune_step()
        return self.network

    def cut_record(self) -> dict:
        """How many weights are kept ("size"), of how many that theta had ("size_before_settling"), and the budget."""
        kept = sum(int(mask.sum()) for mask in self._kept)
        return {"size": kept, "size_before_settling": self._size(), "budget": self.limit}

    @torch.no_grad()
    def end_finetune_step(self) -> None:
        """Reset to 0 the pruned weights, which an optimizer's step may have moved."""
        for weight, kept in zip(weights_of(self.network).values(), self._kept, strict=True):
            weight.masked_fill_(~kept, 0.0)

    def state_dict(self) -> dict:
        """theta, the multipliers, mu and the number of epochs so far."""
        return {"theta": self.theta, "lagrange": self._lagrange, "mu": self.mu, "epochs": self._epochs}

    def load_state_dict(self, state: dict) -> None:
        """Restore the `state_dict` of a pruner of the same arguments."""
        check_form(state, self.state_dict())

        def fitting(tensors: list[Tensor]) -> list[Tensor]:
            return [t.to(w.device).view_as(w).clone() for t, w in zip(tensors, self._weights(), strict=True)]

        self.theta, self._lagrange = fitting(state["theta"]), fitting(state["lagrange"])
        self._kept = None  # it follows from theta: `cut` finds the same again
        self.mu, self._epochs = state["mu"], state["epochs"]
        self._aim()

    def _weights(self) -> list[Tensor]:
        return [weight.detach() for weight in weights_of(self.network).values()]

    def _size(self) -> int:
        return sum(int(theta.count_nonzero()) for theta in self.theta)

    def _aim(self) -> None:
        """Set the target of the L step, theta + lambda / mu."""
        self._target = [t + multiplier / self.mu for t, multiplier in zip(self.theta, self._lagrange, strict=True)]

    def _compress(self, values: list[Tensor]) -> list[Tensor]:
        """The C step: the nearest theta."""
        sizes, flat = [value.numel() for value in values], [value.flatten() for value in values]
        vectors = flat if self.per_layer else [torch.cat(flat)]
        if self.form == "penalty":
            theta = [PENALTIES[self.norm](vector, self.strength, self.mu) for vector in vectors]
        else:
            kappas = [self.limit] if self.norm == 0 else [self.strength]
            if self.per_layer and self.norm == 0:
                kappas = shares(sizes, self.limit)
            elif self.per_layer:  # such that all layers together have the norm kappa at most
                kappas = [self.strength * (size / self.full) ** (1 / self.norm) for size in sizes]
            theta = [CONSTRAINTS[self.norm](vector, kappa) for vector, kappa in zip(vectors, kappas, strict=True)]
        return [part.view(value.shape) for part, value in zip(torch.cat(theta).split(sizes), values, strict=True)]

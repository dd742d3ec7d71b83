"""Figures of what training is made of: gates, barriers and schedules (sections 3.1 to 3.4; notebooks 01 to 03)."""

import functools
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from bar import schedule as schedules_
from bar.barriers import barrier, log_barrier
from bar.errors import BarError, nearest
from bar.figures.style import COLOURS, LINES, MARKERS, check_lines, styled, subplots
from bar.hard_concrete import BETA, GAMMA, ZETA, HardConcrete, threshold


@styled
def distributions(
    log_alphas: Sequence[float] = (-2.0, 0.0, 2.0), beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA
) -> Figure:
    """Density and quantile function of the binary concrete and the hard concrete distribution (supp. fig. 1).

    Parameters
    ----------
    log_alphas : sequence of float
        One line each, five at most.
    beta, gamma, zeta : float
        As in `bar.HardConcrete`.

    Returns
    -------
    Figure
        Two rows, densities and quantile functions; two columns, binary and hard concrete. The point masses are stems,
        beside 0 and 1 so that they do not hide each other.

    Raises
    ------
    BarError
        If there is no log alpha or more than five, or beta, gamma or zeta is out of its range.

    Examples
    --------
    >>> distributions([0.0]).axes[0].get_title(loc="left")
    'Binary concrete'
    """
    check_lines(len(log_alphas))
    figure, axes = subplots(2, 2, height=2.4, sharex="row", sharey="row")
    z = torch.linspace(0, 1, 401, dtype=torch.float64)
    for i, log_alpha in enumerate(log_alphas):
        log_alpha = torch.tensor(float(log_alpha), dtype=torch.float64)
        # With (almost) no stretch there are no point masses: that is the binary concrete.
        binary, hard = HardConcrete(log_alpha, beta, -1e-12, 1 + 1e-12), HardConcrete(log_alpha, beta, gamma, zeta)
        look = {"color": COLOURS[i], "ls": LINES[i]}
        for (top, bottom), gate in zip(axes.T, (binary, hard), strict=True):
            top.plot(z[1:-1], gate.density(z[1:-1]), **look)
            bottom.plot(z, gate.icdf(z), **look, label=f"$\\log\\alpha$ = {log_alpha:g}" if gate is hard else None)
        for x, mass in ((-0.03 - 0.05 * i, hard.prob_zero), (1.03 + 0.05 * i, hard.prob_one)):
            axes[0, 1].plot([x, x], [0, mass], **look, lw=1.5, marker=MARKERS[i], ms=5, markevery=[1])
    for column, name in zip(axes.T, ("Binary concrete", "Hard concrete"), strict=True):
        column[0].set(title=name, xlabel="$z$", ylim=(0, 2.6))
        column[1].set(xlabel=r"probability $\epsilon$")
    axes[0, 0].set_ylabel("density; mass (stems)")
    axes[1, 0].set_ylabel(r"$z$ at quantile $\epsilon$")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def estimates(beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA) -> Figure:
    """What log alpha means: P(z > 0), the true mean, and both test-time values, 0 up to a threshold each.

    Parameters
    ----------
    beta, gamma, zeta : float
        As in `bar.HardConcrete`.

    Returns
    -------
    Figure
        One panel; the curves over log alpha.

    Raises
    ------
    BarError
        If beta, gamma or zeta is out of its range.

    Examples
    --------
    >>> len(estimates().axes[0].lines)
    6
    """
    figure, ax = subplots(height=3.8)
    deaths = [threshold(rule, beta, gamma, zeta) for rule in ("median", "l0")]
    log_alpha = torch.linspace(min(deaths) - 3, 5, 401, dtype=torch.float64)
    gate = HardConcrete(log_alpha, beta, gamma, zeta)
    ax.plot(log_alpha, gate.median, label="median (the paper's words)")
    ax.plot(log_alpha, gate.l0_estimate, label="L0 reference code")
    ax.plot(log_alpha, gate.mean, label="true mean")
    ax.plot(log_alpha, gate.prob_active, label="$P(z>0)$")
    for i, (death, place) in enumerate(zip(deaths, ((0.97, 0.13), (0.03, 0.5)), strict=True)):
        ax.plot(death, 0, color=COLOURS[i], marker=MARKERS[i], ms=8, clip_on=False, zorder=3)
        ax.annotate(
            f"dead up to\n{death:.3f}",
            (death, 0),
            place,
            textcoords="axes fraction",
            ha=("right", "left")[i],
            va="center",
            color=COLOURS[i],
            arrowprops={"arrowstyle": "->", "color": COLOURS[i], "shrinkB": 6},
        )
    ax.set(xlabel=r"$\log\alpha$", ylabel="gate value, or probability", ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def barriers(ts: Sequence[float] = (1, 2, 5), bs: Sequence[float] = (1.5, 2, 3)) -> Figure:
    """The log barrier and the barrier that replaces it (fig. 1).

    Parameters
    ----------
    ts : sequence of float
        Hardnesses of the log barrier, which has b = 1; > 0, one line each, five at most.
    bs : sequence of float
        Upper margins of f(V, a, b), which has a = 1; above 1, one line each, five at most.

    Returns
    -------
    Figure
        Panel (a), -(1/t) log(b - V); panel (b), f. Thin vertical lines are the asymptotes V = b.

    Raises
    ------
    BarError
        If there is none or more than five of either, or one is out of its range.

    Examples
    --------
    >>> [ax.get_title(loc="left") for ax in barriers().axes]
    ['(a) log barrier, $b = 1$', '(b) barrier of BAR, $a = 1$']
    """
    for values in (ts, bs):
        check_lines(len(values))
    figure, (left, right) = subplots(2, height=2.9)
    for t in ts:
        V = torch.linspace(0, 1, 1001, dtype=torch.float64)
        left.plot(V[:-1], log_barrier(V[:-1], 1.0, t), label=f"$t$ = {t:g}")
    left.axvline(1, color="grey", lw=0.8, ls="-")
    left.set(title="(a) log barrier, $b = 1$", xlabel="volume $V$, in units of $b$", ylabel="$-(1/t)\\,\\log(b-V)$")
    left.set(xlim=(0, 1.05), ylim=(-0.2, 3))
    for i, b in enumerate(bs):
        V = torch.linspace(0, b, 1001, dtype=torch.float64)
        right.plot(V[:-1], barrier(V[:-1], 1.0, b), label=f"$b$ = {b:g}")
        right.axvline(b, color=COLOURS[i], lw=0.8, ls="-")
    right.set(title="(b) barrier of BAR, $a = 1$", xlabel="volume $V$, in units of $a$", ylabel="$f(V, a, b)$")
    right.set(xlim=(0, 1.05 * max(bs)), ylim=(-0.2, 8))
    for ax in (left, right):
        ax.legend(loc="upper left")
    return figure


@styled
def schedules(hardness: float = 10.0, pruning_factor: float = 4.0, schedule: str = "sigmoid") -> Figure:
    """The transition (fig. 2) at several hardnesses, and what the three schedules do to b.

    Parameters
    ----------
    hardness : float
        d of supp. eq. 1, >= 0; drawn between a fifth and five times of it.
    pruning_factor : float
        V_F / B, > 1.
    schedule : str
        The one drawn with a thick line: "sigmoid", "linear" or "exponential".

    Returns
    -------
    Figure
        Panel (a), T over the fraction of training that is done; panel (b), b / V_F, with the paper's lower margin a,
        which stays (`bar.schedule.margins` has another).

    Raises
    ------
    BarError
        If there is no such schedule, the hardness is negative, or the factor below 1.

    Examples
    --------
    >>> len(schedules().axes)
    2
    """
    if schedule not in schedules_.SCHEDULES:
        raise BarError(f"no schedule {schedule!r}: {nearest(str(schedule), schedules_.SCHEDULES)}")
    figure, (upper, lower) = subplots(2, height=2.9)
    i = torch.linspace(0, 1, 401, dtype=torch.float64)
    for d in dict.fromkeys((hardness, hardness / 5, hardness * 5)):  # once if it is 0
        upper.plot(i, schedules_.transition(i, d), label=f"$d$ = {d:g}", lw=3 if d == hardness else 1.5)
    upper.set(title="(a) sigmoidal transition", ylabel="$T(i)$")
    for name, T in schedules_.SCHEDULES.items():
        T = functools.partial(T, hardness=hardness) if name == "sigmoid" else T
        a, b = schedules_.margins(i, pruning_factor, 1.0, T)
        lower.plot(i, b / pruning_factor, label=name, lw=3 if name == schedule else 1.5)
    lower.axhline(a / pruning_factor, color="grey", lw=1, ls=":", label="$a$")
    lower.set(title=f"(b) upper margin, $V_F/B$ = {pruning_factor:g}", ylabel="$b$ / $V_F$", ylim=(0, 1.05))
    for ax in (upper, lower):
        ax.set_xlabel("part of training that is over, $i$")
        ax.legend(loc="best")
    return figure

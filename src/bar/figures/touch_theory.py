"""Charts to touch about what training is made of: gates, barriers, schedules, masks, two weights, a block."""

import math

import altair
import pandas as pd
import torch

from bar.figures.style import COLOURS
from bar.figures.touch_page import WIDTH, Touch, menu, slider
from bar.figures.weights import compress_quadratic, quadratic

BLUE, RED, GREEN, BLACK = COLOURS[:4]
CLIP = {"clip": True, "strokeWidth": 2.5}


def hard_concrete() -> Touch:
    """Density, distribution and samples of the hard concrete variable, under sliders for its four parameters.

    Examples
    --------
    >>> hard_concrete().name
    'hard-concrete'
    """
    parameters = [
        slider("log_alpha", -5, 5, 0.1, 0.0, "log α"),
        slider("beta", 0.2, 2, 0.01, 0.67, "β"),
        slider("gamma", -0.5, -0.01, 0.01, -0.1, "γ"),
        slider("zeta", 1.01, 1.5, 0.01, 1.1, "ζ"),
    ]
    z = altair.sequence(0.005, 1, 0.005, as_="z")
    places = altair.Chart(z).transform_calculate(s="(datum.z - gamma) / (zeta - gamma)")
    places = places.transform_calculate(
        logit="log(datum.s / (1 - datum.s))", cdf="1 / (1 + exp(-(beta * datum.logit - log_alpha)))"
    ).transform_calculate(density="beta * datum.cdf * (1 - datum.cdf) / (datum.s * (1 - datum.s)) / (zeta - gamma)")
    x = altair.X("z:Q", title="z", scale=altair.Scale(domain=[-0.05, 1.05], nice=False))
    density = places.mark_line(color=BLUE, **CLIP).encode(
        x, altair.Y("density:Q", title="density; mass (stems)", scale=altair.Scale(domain=[0, 3]))
    )
    ends = altair.Chart(altair.Data(values=[{"z": 0}, {"z": 1}])).transform_calculate(
        mass="datum.z == 0 ? 1 / (1 + exp(-(beta * log(-gamma / zeta) - log_alpha)))"
        " : 1 - 1 / (1 + exp(-(beta * log((1 - gamma) / (zeta - 1)) - log_alpha)))"
    )
    stems = (
        ends.mark_rule(color=RED, strokeWidth=4)
        .encode(x, altair.Y("zero:Q").title("density; mass (stems)"), altair.Y2("mass:Q"))
        .transform_calculate(zero="0")
    )
    said = ends.mark_text(align="center", dy=-9, fontSize=12).encode(
        x, altair.Y("mass:Q"), altair.Text("mass:Q", format=".3f")
    )
    cdf = places.mark_line(color=BLUE, **CLIP).encode(
        x, altair.Y("cdf:Q", title="P(Z ≤ z)", scale=altair.Scale(domain=[0, 1]))
    )
    draws = (
        altair.Chart(altair.sequence(0.5, 60, 1, as_="i"))
        .transform_calculate(
            e="(datum.i * 0.6180339887) % 1"  # evenly spread over (0, 1), so that a slider moves the same sixty samples
        )
        .transform_calculate(
            z="clamp((zeta - gamma) / (1 + exp(-(log(datum.e / (1 - datum.e)) + log_alpha) / beta)) + gamma, 0, 1)"
        )
    )
    samples = draws.mark_tick(color=GREEN, thickness=2).encode(x)
    size = {"width": WIDTH, "height": 130}
    chart = altair.vconcat(
        altair.layer(density, stems, said).properties(**size),
        cdf.properties(**size),
        samples.properties(width=WIDTH, height=25, title="sixty samples"),
    )
    return Touch(
        chart.add_params(*parameters),
        "hard-concrete",
        "The hard concrete variable. Move log α from -5 to 5 and watch the two point masses trade places; a smaller β "
        "empties the middle; γ and ζ set how much of it is cut off at either end.",
        "Density, distribution function and sixty samples of the hard concrete variable, with stems for the "
        "masses at 0 "
        "and 1, at log alpha 0, beta 0.67, gamma -0.1 and zeta 1.1: both masses are 0.167.",
    )


def two_barriers() -> Touch:
    """The barrier of BAR beside the log barrier, under sliders for V, a, b and the log barrier's t.

    Examples
    --------
    >>> two_barriers().name
    'barriers'
    """
    parameters = [
        slider("V", 0, 1.2, 0.01, 0.7, "volume V"),
        slider("a", 0, 0.6, 0.01, 0.25, "lower margin a"),
        slider("b", 0.26, 1.2, 0.01, 1.0, "upper margin b"),
        slider("t", 0.5, 20, 0.5, 5, "t of the log barrier"),
    ]

    def values(data, volume):
        f = f"{volume} <= a ? 0 : {volume} < b && a < b ? pow({volume} - a, 2) / ((b - {volume}) * (b - a)) : 99"
        return (
            altair.Chart(data)
            .transform_calculate(v=volume, f=f, log=f"{volume} < b ? -log(b - {volume}) / t : 99")
            .transform_fold(["f", "log"], as_=["which", "value"])
            .transform_calculate(barrier="datum.which == 'f' ? 'f of BAR' : 'log barrier'")
        )

    colour = altair.Color("barrier:N", title=None, scale=altair.Scale(range=[BLUE, RED]))
    dash = altair.StrokeDash("barrier:N", legend=None)
    x = altair.X("v:Q", title="volume, in units of the full network's", scale=altair.Scale(domain=[0, 1.2], nice=False))
    y = altair.Y("value:Q", title="barrier", scale=altair.Scale(domain=[-1, 8], nice=False))
    lines = values(altair.sequence(0, 1.2, 0.005, as_="x"), "datum.x").transform_filter("datum.value < 99")
    lines = lines.mark_line(**CLIP).encode(x, y, colour, dash)
    one = altair.Data(values=[{"one": 1}])
    points = values(one, "V").mark_point(size=90, filled=True, clip=True).encode(x, y, colour)
    here = values(one, "V").transform_calculate(
        text="datum.barrier + ': ' + (datum.value == 99 ? 'infinite' : format(datum.value, '.2f'))",
        row="datum.which == 'f' ? 7.6 : 6.8",
    )
    said = (
        here.mark_text(align="left", fontSize=12)
        .encode(altair.X("left:Q"), altair.Y("row:Q"), altair.Text("text:N"), colour)
        .transform_calculate(left="0.02")
    )
    margins = altair.Chart(altair.Data(values=[{"m": "a"}, {"m": "b"}])).transform_calculate(v="datum.m == 'a' ? a : b")
    walls = margins.mark_rule(color="#666666", strokeDash=[2, 3]).encode(x)
    names = margins.mark_text(dy=-6, dx=8, fontSize=12).encode(x, altair.Text("m:N"), altair.YDatum(-1))
    chart = altair.layer(lines, walls, names, points, said).properties(width=WIDTH, height=230)
    return Touch(
        chart.add_params(*parameters),
        "barriers",
        "The barrier of BAR beside the log barrier. Let b come down to V: both become infinite there. But only f is 0 "
        "below a, and has nothing to say to a network that respects its budget.",
        "Two curves over the volume: the barrier of BAR is zero up to a and rises to infinity at b; the log barrier "
        "rises from the start, slowly, and to infinity at b as well. A point on each marks the volume that the "
        "slider sets.",
    )


def falling_b() -> Touch:
    """The transition T and the upper margin b, under sliders for the time, d and the factor, for three schedules.

    Examples
    --------
    >>> falling_b().name
    'schedule'
    """
    parameters = [
        slider("now", 0, 1, 0.01, 0.5, "part of the training that is over"),
        slider("d", 0.1, 60, 0.1, 10, "hardness d"),
        slider("factor", 1, 32, 1, 4, "pruning factor"),
        menu("schedule", ["sigmoid", "linear", "exponential"], "sigmoid", "schedule"),
    ]
    sigmoid = "0.5 + 0.5 * (exp(d * (i - 0.5)) - 1) / (exp(d * (i - 0.5)) + 1) * (exp(d / 2) + 1) / (exp(d / 2) - 1)"
    formula = f"schedule == 'linear' ? i : schedule == 'exponential' ? (1 - exp(-5 * i)) / (1 - exp(-5)) : {sigmoid}"

    def values(data, time):
        T = formula.replace("(i ", f"({time} ").replace("? i ", f"? {time} ").replace("* i)", f"* {time})")
        return (
            altair.Chart(data).transform_calculate(i=time, T=T).transform_calculate(b="1 - datum.T + datum.T / factor")
        )

    x = altair.X("i:Q", title="part of the training that is over", scale=altair.Scale(domain=[0, 1]))
    panels = []
    for column, title in (("T", "T"), ("b", "b, in units of V_F")):
        y = altair.Y(f"{column}:Q", title=title, scale=altair.Scale(domain=[0, 1]))
        line = values(altair.sequence(0, 1.0001, 0.005, as_="x"), "datum.x").mark_line(color=BLUE, **CLIP).encode(x, y)
        point = values(altair.Data(values=[{}]), "now").mark_point(size=90, filled=True, color=RED).encode(x, y)
        said = (
            values(altair.Data(values=[{}]), "now")
            .mark_text(align="left", dx=9, dy=-9, fontSize=12)
            .encode(x, y, altair.Text(f"{column}:Q", format=".3f"))
        )
        layers = [line, point, said]
        if column == "b":
            budget = altair.Chart(altair.Data(values=[{}])).transform_calculate(b="1 / factor")
            layers.append(budget.mark_rule(color="#666666", strokeDash=[2, 3]).encode(y))
        panels.append(altair.layer(*layers).properties(width=WIDTH, height=130))
    return Touch(
        altair.vconcat(*panels).add_params(*parameters),
        "schedule",
        "The transition T, and the upper margin b, which goes from the full volume to the budget (dotted) along it. "
        "A small d makes the sigmoid a straight line, a large one a step.",
        "Two curves over the training: T rises in an S from 0 to 1, and b falls in an S from 1 to a quarter "
        "of the full "
        "volume. A point on each marks the moment that the slider sets.",
    )


def soft_mask() -> Touch:
    """The mask h_t of a weight and the apparent weight, under sliders for t and n.

    Examples
    --------
    >>> soft_mask().name
    'mask'
    """
    parameters = [slider("t", 20, 400, 5, 100, "steepness t"), menu("n", [2, 4, 6, 8], 4, "exponent n")]
    c2 = 1 / math.e
    c1 = 1 / (1 - c2)
    weights = (
        altair.Chart(altair.sequence(-0.04, 0.04005, 0.0002, as_="w"))
        .transform_calculate(h=f"{c1} * (exp(-1 / (pow(t * datum.w, n) + 1)) - {c2})")
        .transform_calculate(apparent="datum.w * datum.h")
    )
    x = altair.X("w:Q", title="weight w", scale=altair.Scale(domain=[-0.04, 0.04], nice=False))
    mask = weights.mark_line(color=BLUE, **CLIP).encode(x, altair.Y("h:Q", title="mask h"))
    apparent = weights.mark_line(color=RED, **CLIP).encode(x, altair.Y("apparent:Q", title="apparent weight"))
    same = weights.mark_line(color="#666666", strokeWidth=1).encode(x, altair.Y("w:Q"))
    size = {"width": WIDTH, "height": 120}
    chart = altair.vconcat(mask.properties(**size), altair.layer(same, apparent).properties(**size))
    return Touch(
        chart.add_params(*parameters),
        "mask",
        "The mask of a weight, and the weight that the network computes with. The dip is some 1/t wide on "
        "either side; a "
        "larger n makes its rim steeper.",
        "Two curves over the weight. The mask is 1 far from 0 and dips to 0 around it; the apparent weight "
        "is flat at 0 "
        "inside the dip and equal to the weight outside.",
    )


def two_weights_by_steps(optimum: torch.Tensor, curvature: torch.Tensor, steps: int = 40) -> Touch:
    """Learning-Compression of two weights of which one may stay, step by step, for four strengths at the start.

    Parameters
    ----------
    optimum : Tensor, shape (2,)
        The trained weights.
    curvature : Tensor, shape (2, 2)
        Of the quadratic loss, symmetric and positive definite.
    steps : int
        How many steps can be looked at.

    Examples
    --------
    >>> two_weights_by_steps(torch.tensor([1.0, 0.8]), torch.eye(2), steps=2).play
    'step'
    """
    rows = []
    for mu in (0.5, 1.0, 2.0, 4.0):
        path = compress_quadratic(optimum, curvature, steps, factor=2, mu=mu)
        for step, row in enumerate(path.itertuples()):
            for what, place in (("w, which learns", row.w), ("θ, compressed", row.theta)):
                weights = torch.tensor(place, dtype=optimum.dtype)
                loss = float(quadratic(weights, optimum, curvature))
                rows.append({"mu": mu, "at": step, "what": what, "x": place[0], "y": place[1], "loss": loss})
    points = altair.Chart(pd.DataFrame(rows).round(4)).transform_filter("datum.mu == mu0 && datum.at <= step")
    x = altair.X("x:Q", title="w₁", scale=altair.Scale(domain=[-0.1, 1.4], nice=False))
    y = altair.Y("y:Q", title="w₂", scale=altair.Scale(domain=[-0.1, 1.5], nice=False))
    colour = altair.Color("what:N", title=None, scale=altair.Scale(range=[BLUE, RED]))
    silent = altair.Color("what:N", legend=None, scale=altair.Scale(range=[BLUE, RED]))
    lines = points.mark_line(clip=True, strokeWidth=1.5).encode(x, y, silent, altair.Order("at:Q"))
    now = points.transform_filter("datum.at == step")
    dots = now.mark_point(size=110, filled=True, clip=True).encode(x, y, colour, altair.Shape("what:N", legend=None))
    said = now.transform_filter("datum.what == 'θ, compressed'").transform_calculate(
        text="'loss at θ: ' + format(datum.loss, '.3f') + ', keeps ' + (datum.x == 0 ? 'w₂' : 'w₁')",
        left="0.5",
        top="1.44",
    )
    words = said.mark_text(align="left", fontSize=12).encode(
        altair.X("left:Q"), altair.Y("top:Q"), altair.Text("text:N")
    )
    grid = [(0.05 * i - 0.1, 0.05 * j - 0.1) for i in range(30) for j in range(32)]
    losses = quadratic(torch.tensor(grid, dtype=optimum.dtype) + 0.025, optimum, curvature)
    cells = [
        {"x": u, "y": v, "u": u + 0.05, "v": v + 0.05, "loss": float(L)} for (u, v), L in zip(grid, losses, strict=True)
    ]
    shade = altair.Color(
        "loss:Q", legend=None, scale=altair.Scale(scheme="greys", domain=[0, 2.5], reverse=True, clamp=True)
    )
    ground = (
        altair.Chart(pd.DataFrame(cells).round(3))
        .mark_rect(opacity=0.45, clip=True)
        .encode(x, y, altair.X2("u:Q"), altair.Y2("v:Q"), shade)
    )
    chart = altair.layer(ground, lines, dots, words).resolve_scale(color="independent")
    parameters = [
        slider("step", 0, steps, 1, 0, "step"),
        menu("mu0", [0.5, 1.0, 2.0, 4.0], 0.5, "μ at the start"),
    ]
    return Touch(
        chart.properties(width=WIDTH, height=250).add_params(*parameters),
        "two-weights",
        "Learning-Compression of two weights, of which one may stay; the darker, the lower the loss. With a small μ at "
        "the start, w moves far enough for θ to change its mind; with a large one it does not.",
        "The plane of two weights, darker where the loss is lower. The path of w leaves the trained network "
        "and ends on "
        "the vertical axis; that of theta begins on the horizontal axis and jumps to the vertical one.",
        play="step",
        still={"step": steps},
    )


def block_with_kills() -> Touch:
    """A residual block: kill channels of the signal and of the branch, and count what has to be computed.

    Examples
    --------
    >>> block_with_kills().name
    'block'
    """
    channels = range(1, 5)
    dead = {"signal2", "signal4", "branch3", "branch4"}
    parameters = [
        altair.param(
            name=f"{part}{i}",
            value=f"{part}{i}" not in dead,
            bind=altair.binding_checkbox(name=f"{part} {i} lives "),
        )
        for part in ("signal", "branch")
        for i in channels
    ]
    rows = [{"channel": i, "part": part} for i in channels for part in ("signal", "branch", "sum")]
    pick = " : ".join(f"datum.channel == {i} ? {{part}}{i}" for i in channels) + " : false"
    cells = (
        altair.Chart(pd.DataFrame(rows))
        .transform_calculate(s=pick.format(part="signal"), r=pick.format(part="branch"))
        .transform_calculate(
            what="datum.part == 'signal' ? (datum.s ? 'live' : datum.r ? 'zero' : 'dead')"
            " : datum.part == 'branch' ? (datum.r ? 'live' : datum.s ? 'zero' : 'dead')"
            " : datum.s && datum.r ? 'refined' : datum.s ? 'passed' : datum.r ? 'new' : 'dead'"
        )
    )
    x = altair.X("part:N", sort=["signal", "branch", "sum"], title=None, axis=altair.Axis(labelAngle=0, orient="top"))
    y = altair.Y("channel:N", title="channel")
    kinds = ["live", "zero", "dead", "passed", "refined", "new"]
    fills = ["#9ecae1", "#f2c6a8", "#ffffff", "#c7e9c0", "#9ecae1", "#dadaeb"]
    colour = altair.Color("what:N", legend=None, scale=altair.Scale(domain=kinds, range=fills))
    boxes = cells.mark_rect(stroke="#333333").encode(x, y, colour)
    words = cells.mark_text(fontSize=12).encode(x, y, altair.Text("what:N"))
    counted = (
        cells.transform_filter("datum.part != 'sum'")
        .transform_calculate(mixed="datum.what == 'live' ? 1 : 0", regular="datum.what != 'dead' ? 1 : 0")
        .transform_fold(["regular", "mixed"], as_=["connectivity", "computed"])
    )
    total = counted.transform_aggregate(maps="sum(computed)", groupby=["connectivity"])
    bx = altair.X("maps:Q", title="feature maps computed", scale=altair.Scale(domain=[0, 8]))
    by = altair.Y("connectivity:N", title=None, sort=["regular", "mixed"])
    bars = total.mark_bar(color=BLUE).encode(bx, by)
    numbers = total.mark_text(align="left", dx=4, fontSize=12).encode(bx, by, altair.Text("maps:Q"))
    chart = altair.vconcat(
        altair.layer(boxes, words).properties(width=WIDTH - 40, height=150),
        altair.layer(bars, numbers).properties(width=WIDTH - 60, height=60),
    )
    return Touch(
        chart.add_params(*parameters),
        "block",
        "A block with four channels: the signal that goes through, what the branch adds, and their sum. Regular "
        "connectivity computes a channel on both sides as soon as it lives on one (the zeros); mixed "
        "computes what lives.",
        "A table of four channels: the first is refined, the second new, the third passed, the fourth dead. Regular "
        "connectivity computes six feature maps, mixed connectivity four.",
    )

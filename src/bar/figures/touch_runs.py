"""Charts to touch about recorded runs: the replay of one, all of them by method, and widths against time."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import altair
import numpy as np
import pandas as pd

from bar.errors import BarError
from bar.figures.style import COLOURS
from bar.figures.touch_page import WIDTH, Touch, menu, slider
from bar.hard_concrete import BETA, GAMMA, ZETA

BLUE, RED, GREEN = COLOURS[:3]
DEAD = "x"


def replay(gates: Mapping[str, tuple[np.ndarray, np.ndarray]], epochs: pd.DataFrame, record: Mapping) -> Touch:
    """The pruning of a recorded run, epoch by epoch: every gate a cell, and V, b and the accuracy beside them.

    Parameters
    ----------
    gates : mapping of str to (ndarray, ndarray)
        Convolution -> log alpha and which features were alive, each of shape (epochs, features): `bar.runs.gates`.
    epochs : DataFrame
        The epochs of the run: `bar.runs.metrics`.
    record : mapping
        Its record: `bar.runs.read`.

    Returns
    -------
    Touch
        With a slider for the epoch, and a button that plays it.

    Raises
    ------
    BarError
        If the record has no gates.

    Examples
    --------
    >>> gates = {"conv": (np.array([[0.0, 2.0], [-3.0, 2.0]]), np.array([[True, True], [False, True]]))}
    >>> columns = {"phase": ["prune"] * 2, "size": [8, 4], "budget": [8.0, 4.0], "accuracy": [0.5, 0.6]}
    >>> record = {"volume_full": 8, "accuracy_unpruned": 0.7, "validation_accuracy": 0.6, "pruning_factor": 2}
    >>> replay(gates, pd.DataFrame(columns), record).play
    'epoch'
    """
    if not gates:
        raise BarError("this run has recorded no gates: replay one that was made by a method with gates, such as bar")
    last = len(next(iter(gates.values()))[0])
    rows = [
        {"layer": name, "i": i, "states": _states(score[:, i], alive[:, i])}
        for name, (score, alive) in gates.items()
        for i in range(score.shape[1])
    ]
    at = (
        altair.Chart(pd.DataFrame(rows))
        .transform_calculate(state="substring(datum.states, epoch - 1, epoch)")
        .transform_calculate(open=f"datum.state == '{DEAD}' ? null : (0.5 + toNumber(datum.state)) / 10")
    )
    at = at.transform_filter("datum.open !== null")
    shade = altair.Color(
        "open:Q", title="P(z > 0) of a gate that lives",
        scale=altair.Scale(domain=[0, 1], range=["#c6dbef", "#08306b"]),
        legend=altair.Legend(gradientLength=150, titleLimit=400),
    )  # fmt: skip
    widest = max(score.shape[1] for score, _ in gates.values())
    strips = (
        at.mark_rect()
        .encode(
            altair.X("i:Q", title="feature", scale=altair.Scale(domain=[0, widest], nice=False)),
            altair.X2("end:Q"),
            altair.Y("layer:N", title=None, sort=list(gates), scale=altair.Scale(domain=list(gates))),
            shade,
        )
        .transform_calculate(end="datum.i + 1")
    )
    pruning = epochs[epochs.phase == "prune"].reset_index(drop=True).head(last)
    table = pd.DataFrame(
        {
            "epoch_": range(1, len(pruning) + 1),
            "V, of a cut at this moment": pruning["size"] / record["volume_full"],
            "b": pruning["budget"] / record["volume_full"],
            "validation accuracy": pruning["accuracy"],
        }
    ).round(4)
    curves = [_curves(table, list(names), title, last) for names, title in _PANELS]
    layers = strips.properties(width=WIDTH - 40, height=14 * len(gates))
    return Touch(
        altair.vconcat(layers, *curves)
        .resolve_scale(color="independent")
        .add_params(slider("epoch", 1, last, 1, 1, "epoch of the pruning")),
        "replay",
        f"A recorded run at factor {record['pruning_factor']:g}, gate by gate: a strip is a convolution, a "
        "cell the gate of "
        "one of its features, darker the more often it is open, white once it is dead. Below, V follows b; at the end "
        f"the network, fine-tuned, has {record['validation_accuracy']:.1%} of the validation images right.",
        "One strip of cells for each convolution. In the first epoch nearly all cells are coloured; epoch by "
        "epoch more of "
        "them turn white. Below, b falls, and V with it; the validation accuracy meanwhile goes from "
        f"{table['validation accuracy'].iloc[0]:.2f} to {table['validation accuracy'].iloc[-1]:.2f}.",
        play="epoch",
        still={"epoch": last},
    )


_PANELS = ((("V, of a cut at this moment", "b"), "part of V_F"), (("validation accuracy",), "accuracy"))


def _states(score: np.ndarray, alive: np.ndarray) -> str:
    """A letter an epoch: the first digit of P(z > 0), or that the feature is dead."""
    shift = BETA * math.log(-GAMMA / ZETA)
    p = 1 / (1 + np.exp(-(score.astype(float) - shift).clip(-50, 50)))
    digits = (10 * p).astype(int).clip(0, 9)
    return "".join(str(digit) if lives else DEAD for digit, lives in zip(digits, alive, strict=True))


def _curves(table: pd.DataFrame, names: list[str], title: str, last: int) -> altair.LayerChart:
    """Lines over the epochs, and a point on each at the epoch that is looked at."""
    rows = altair.Chart(table[["epoch_", *names]]).transform_fold(names, as_=["what", "value"])
    x = altair.X("epoch_:Q", title="epoch", scale=altair.Scale(domain=[1, last], nice=False))
    y = altair.Y("value:Q", title=title, scale=altair.Scale(domain=[0, 1]))
    colour = altair.Color(
        "what:N", title=None, sort=names, scale=altair.Scale(range=[BLUE, RED] if len(names) > 1 else [GREEN])
    )
    line = rows.mark_line(strokeWidth=2.5).encode(x, y, colour, altair.StrokeDash("what:N", sort=names, legend=None))
    now = rows.transform_filter("datum.epoch_ == epoch")
    point = now.mark_point(size=80, filled=True).encode(x, y, colour)
    said = [  # where there is room, b above V
        now.transform_filter(f"{when} {last / 2} && datum.what {what} 'b'")
        .mark_text(dx=dx, dy=dy, align=side, fontSize=12)
        .encode(x, y, altair.Text("value:Q", format=".2f"))
        for when, side, dx, offsets in (
            ("datum.epoch_ <", "left", 8, (-6, 11)),
            ("datum.epoch_ >=", "center", 0, (-25, -11)),
        )
        for what, dy in zip(("==", "!="), offsets, strict=True)
    ]
    return altair.layer(line, point, *said).properties(width=WIDTH - 40, height=90)


def recorded_runs(found: pd.DataFrame, address: str = "") -> Touch:
    """All recorded runs: accuracy against a factor, chosen by data, metric and method.

    Parameters
    ----------
    found : DataFrame
        A run a row, as from `bar.runs.records`: dataset_label, model, method, volume_factor, flops_factor, accuracy and
        accuracy_unpruned (in [0, 1]), seed, folder.
    address : str
        What is put before a record's place to make a link of it; without one, points have no link.

    Returns
    -------
    Touch
        With menus for the data, the factor and the method; hovering tells a point's run.

    Raises
    ------
    BarError
        If there is no run.

    Examples
    --------
    >>> one = {"dataset_label": "digits", "model": "wrn-10-1", "method": "bar", "seed": 0, "folder": "results/one"}
    >>> one |= {"volume_factor": 2.0, "flops_factor": 3.0, "accuracy": 0.9, "accuracy_unpruned": 0.9}
    >>> recorded_runs(pd.DataFrame([one])).name
    'runs'
    """
    if found.empty:
        raise BarError("there is no recorded run to draw: `bar run` makes one")
    rows = pd.DataFrame(
        {
            "data": found.dataset_label.str.partition(" (")[0] + ", " + found.model,
            "method": found.method,
            "volume": found.volume_factor.round(2),
            "FLOPs": found.flops_factor.round(2),
            "accuracy": (100 * found.accuracy).round(2),
            "change": (100 * (found.accuracy - found.accuracy_unpruned)).round(2),
            "seed": found.seed,
            "record": found.folder.map(_place),
        }
    )
    everything, data = "all methods", sorted(rows.data.unique())
    most = rows.data.value_counts().index[0]
    chart = (
        altair.Chart(rows)
        .transform_filter(f"datum.data == data && (method == '{everything}' || datum.method == method)")
        .transform_calculate(
            factor="factor == 'volume' ? datum.volume : datum.FLOPs", link=f"'{address}' + datum.record"
        )
    )
    tooltip = ["method:N", "volume:Q", "FLOPs:Q", "accuracy:Q", "change:Q", "seed:Q", "record:N"]
    points = chart.mark_point(size=70, opacity=0.8).encode(
        altair.X("factor:Q", title="factor", scale=altair.Scale(type="log", nice=False)),
        altair.Y("accuracy:Q", title="test accuracy (%)", scale=altair.Scale(zero=False)),
        altair.Color("method:N", title=None, legend=altair.Legend(columns=2, symbolLimit=20)),
        altair.Shape("method:N", title=None),
        altair.Tooltip(tooltip),
        *([altair.Href("link:N")] if address else []),
    )
    parameters = [
        menu("data", data, most, "data and network"),
        menu("factor", ["volume", "FLOPs"], "volume", "factor of"),
        menu("method", [everything, *sorted(rows.method.unique())], everything, "method"),
    ]
    return Touch(
        points.properties(width=WIDTH, height=260).add_params(*parameters),
        "runs",
        f"All {len(rows)} recorded runs with a pruned network, a point each. Hover over a point to see its "
        "run and where its record is" + (", click to open it." if address else "."),
        f"Test accuracy of every recorded run over its volume factor, for {most}; a symbol and a colour for "
        "each method.",
    )


def _place(folder: str) -> str:
    """Where a run's record is: in the repository, if the folder is in its ``results``."""
    _, results, inside = folder.partition("results/")
    return (results + inside if results else folder) + "/result.json"


def widths_and_time(records: str | Path) -> Touch:
    """What a factor does to the width of each convolution, and to FLOPs and time.

    Parameters
    ----------
    records : path
        A record of ``bench/latency.py`` (JSON), with the widths of each network.

    Returns
    -------
    Touch
        With menus for the factor and the batch.

    Raises
    ------
    BarError
        If it cannot be read, or has no timed network with its widths.

    Examples
    --------
    >>> widths_and_time("nowhere.json")
    Traceback (most recent call last):
    bar.errors.BarError: cannot read nowhere.json: No such file or directory
    """
    try:
        content = json.loads(Path(records).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BarError(f"cannot read {records}: {getattr(error, 'strerror', None) or error}") from error
    rows = content.get("records", []) if isinstance(content, dict) else []
    timed = [row for row in rows if row.get("widths") and row["network"] in _TIMED]
    if not timed:
        raise BarError(f"{records} is no record of bench/latency.py: it holds no timed network with its widths")
    widths = [
        {"network": row["network"], "factor": row["factor"], "layer": layer, "width": width}
        for row in timed
        if row["batch"] == timed[0]["batch"]
        for layer, width in row["widths"].items()
    ]
    times = [
        {"network": row["network"], "factor": row["factor"], "batch": row["batch"],
         "milliseconds": round(row["latency_ms"]["median"], 3), "FLOP factor": round(row["flop_factor"], 2)}
        for row in timed
    ]  # fmt: skip
    factors, batches = (sorted({row[key] for row in times}) for key in ("factor", "batch"))
    colour = altair.Color(
        "network:N", title=None, scale=altair.Scale(domain=list(_TIMED), range=COLOURS[: len(_TIMED)])
    )
    order = list(dict.fromkeys(row["layer"] for row in widths))
    left = altair.Chart(pd.DataFrame(widths)).transform_filter("datum.factor == factor")
    left = left.mark_point(filled=True, size=45).encode(
        altair.X("width:Q", title="features"), altair.Y("layer:N", sort=order, title=None), colour,
        altair.Shape("network:N", title=None, scale=altair.Scale(domain=list(_TIMED))),
    )  # fmt: skip
    there = altair.Chart(pd.DataFrame(times)).transform_filter("datum.factor == factor && datum.batch == batch")
    y = altair.Y("network:N", sort=list(_TIMED), title=None)
    bars = there.mark_bar().encode(altair.X("milliseconds:Q", title="milliseconds a batch"), y, colour)
    said = (
        there.transform_calculate(
            text="format(datum.milliseconds, '.1f') + ' ms; FLOPs / ' + format(datum['FLOP factor'], '.1f')"
        )
        .mark_text(align="left", dx=4, fontSize=12)
        .encode(altair.X("end:Q"), y, altair.Text("text:N"))
    )
    # behind a short bar, in a long one
    said = said.transform_joinaggregate(longest="max(milliseconds)").transform_calculate(
        end="2 * datum.milliseconds < datum.longest ? datum.milliseconds : 0"
    )
    chart = altair.vconcat(
        left.properties(width=WIDTH - 60, height=13 * len(order)),
        altair.layer(bars.encode(opacity=altair.value(0.35)), said).properties(width=WIDTH - 60, height=90),
    )
    setup = content["setup"]
    return Touch(
        chart.add_params(
            menu("factor", factors, factors[len(factors) // 2], "pruning factor"),
            menu("batch", batches, batches[-1], "batch"),
        ),
        "widths",
        f"Recorded widths and times ({Path(records).name}: {setup['model']}, {setup['hardware']}): what a "
        "factor leaves of "
        "each convolution, and what becomes of FLOPs and time.",
        "Points for the width of each convolution of the unpruned, the pruned and the dense network, and "
        "bars for their "
        "times: fewer features and fewer FLOPs, and a time that shrinks less.",
    )


_TIMED = ("unpruned", "mixed", "regular", "dense")

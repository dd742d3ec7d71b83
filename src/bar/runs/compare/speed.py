"""Times of pruned networks, from the records of ``bench/latency.py``: chapter 11."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from bar import methods
from bar.runs.compare.words import short, short_commit


def latencies(folder: str | Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Read the records of ``bench/latency.py``.

    Parameters
    ----------
    folder : path
        Where its ``latency-*.json`` are.

    Returns
    -------
    measured : pandas.DataFrame
        A row for each network, batch and factor, with its origin in ``file`` and ``record``. May be empty.
    setups : dict
        File -> hardware and versions.

    Examples
    --------
    >>> measured, setups = latencies("nowhere")
    >>> len(measured), setups
    (0, {})
    """
    parts, setups = [], {}
    for path in sorted(Path(folder).glob("latency-*.json")):
        content = json.loads(path.read_text())
        setup = setups[path.name] = content["setup"]
        setup["commit"] = short_commit(setup["commit"])
        part = pd.json_normalize([{k: v for k, v in row.items() if k != "widths"} for row in content["records"]])
        what = f"{path.name}: {setup['model']}, {setup['hardware']}, commit {setup['commit']}"
        parts.append(part.assign(file=path.name, record=what))
    columns = ["file", "record", "network", "batch", "factor", "flop_factor", "speedup.median"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), setups


def with_quartiles(row: Mapping, name: str, least: float) -> list[str]:
    """Format a ratio in percent with its quartiles, and say whether its median reaches ``least``.

    Examples
    --------
    >>> row = {"r.median": 0.95, "r.quartile_1": 0.85, "r.quartile_3": 1.0}
    >>> with_quartiles(row, "r", 0.9)
    ['95.0 (85.0 to 100.0)', 'yes, within noise']
    """
    median, low, high = (row[f"{name}.{part}"] for part in ("median", "quartile_1", "quartile_3"))
    answer = ("yes" if median >= least else "no") + ", within noise" * bool(low < least <= high)
    return [f"{100 * median:.1f} ({100 * low:.1f} to {100 * high:.1f})", answer]


def latency_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table of milliseconds for a batch, from the rows of one record: a column a network."""
    rows = rows.assign(ms=[f"{ms:.{2 if ms < 100 else 0}f}" for ms in rows["latency_ms.median"]])
    table = rows.pivot(index=["batch", "factor"], columns="network", values="ms")
    columns = ("unpruned", "gated", "torch-pruning", "regular", "mixed", "dense")
    table = table[[column for column in columns if column in table]]
    of_mixed = rows[rows.network == "mixed"].set_index(["batch", "factor"])
    table["F factor"] = of_mixed.flop_factor.map("{:.1f}".format)
    table["speed-up"] = of_mixed["speedup.median"].map("{:.1f}".format)
    table = table.rename("{:g}".format, level="factor").rename_axis(["batch", "V factor"])
    return table.rename_axis(columns=None)


def throughput_table(rows: pd.DataFrame, target: float) -> pd.DataFrame:
    """Compare the throughput of mixed surgery with regular surgery and the dense network, in the rows of one record."""
    table = []
    for _, row in rows.iterrows():
        over_dense, reached = with_quartiles(row, "throughput_over_dense", target)
        over_regular, faster = with_quartiles(row, "throughput_over_regular", 1.0)
        reached = reached if row.batch == 64 else ""
        alone = row.get("roofline.convolutions_throughput_over_dense.median", float("nan"))
        alone = "" if pd.isna(alone) else f"{100 * alone:.1f}"
        table.append([row.batch, f"{row.factor:g}", over_regular, faster, over_dense, reached, alone])
    columns = ["batch", "V factor", "% of regular", "faster?", "% of dense", f"≥ {100 * target:g} %?", "conv. alone"]
    return pd.DataFrame(table, columns=columns).set_index(["batch", "V factor"])


def throughput_words(name: str, rows: pd.DataFrame, target: float) -> str:
    """Say in how many cases mixed surgery reaches the target and is faster than regular surgery, in Markdown."""
    at_64 = rows[rows.batch == 64]
    dense = 100 * at_64["throughput_over_dense.median"]
    lacking = 100 * target - dense[dense < 100 * target]
    text = f"`{name}`: at a batch of 64, mixed surgery reaches {100 * target:g} % of the dense network's throughput at "
    text += (
        f"**{len(dense) - len(lacking)} of {len(dense)}** factors{_in_noise(at_64, 'throughput_over_dense', target)}"
    )
    text += f"; the others are {lacking.min():.1f} to {lacking.max():.1f} points short" if len(lacking) else ""
    regular = 100 * (rows["throughput_over_regular.median"] - 1)
    text += f". It is faster than regular surgery in **{(regular > 0).sum()} of {len(regular)}** cases"
    text += _in_noise(rows, "throughput_over_regular", 1.0)
    return text + f"; the least change is {regular.min():+.1f} %."


def _in_noise(rows: pd.DataFrame, name: str, least: float) -> str:
    """Say how many of the cases that reach what is asked for are within the noise."""
    count = sum(with_quartiles(row, name, least)[1] == "yes, within noise" for _, row in rows.iterrows())
    return f" ({count} within the noise)" if count else ""


def time_pieces(measured: pd.DataFrame) -> pd.DataFrame:
    """Split the time of mixed surgery and of the dense network into pieces, where records allow it; may be empty.

    Parameters
    ----------
    measured : pandas.DataFrame
        As from `latencies`.

    Returns
    -------
    pandas.DataFrame
        Milliseconds: ``ms_if_flops_were_time``, ``ms_slower_convolutions`` and ``ms_more_of_the_rest`` add up.
    """
    roof = measured.filter(like="roofline.").rename(columns=lambda name: name.removeprefix("roofline."))
    roof = measured[["file", "record", "network", "batch", "factor", "flop_factor", "speedup.median"]].join(roof)
    needed = ["ms_if_flops_were_time", "ms_convolutions", "ms_other", "convolutions_slower_per_flop"]
    wanted = [*needed, "ms_calls_of_convolutions", "ms_calls_of_other", "flops_in_full_vectors"]
    roof = roof.reindex(columns=[*dict.fromkeys([*roof, *wanted])]).dropna(subset=needed)
    share = roof.ms_convolutions / roof.convolutions_slower_per_flop  # their time, if time were proportional to FLOPs
    roof["ms_slower_convolutions"] = roof.ms_convolutions - share
    roof["ms_more_of_the_rest"] = roof.ms_other - (roof.ms_if_flops_were_time - share)
    return roof[roof.network.isin(["mixed", "dense"])]


def _by_network(rows: pd.DataFrame, table: Mapping[str, Iterable]) -> pd.DataFrame:
    index = [rows.batch, rows.factor.map("{:g}".format).rename("V factor"), rows.network]
    return pd.DataFrame(table).set_index(index)


def pieces_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `time_pieces` of one record as percentages of their sums, as text."""
    pieces = rows[["ms_if_flops_were_time", "ms_slower_convolutions", "ms_more_of_the_rest"]]
    pieces = pieces.div(pieces.sum(axis=1), axis=0)
    calls = rows.ms_calls_of_convolutions + rows.ms_calls_of_other
    table = {
        "became time": pieces.ms_if_flops_were_time.map("{:.0%}".format),
        "slower convolutions": pieces.ms_slower_convolutions.map("{:.0%}".format),
        "other operations": pieces.ms_more_of_the_rest.map("{:.0%}".format),
        "calls (in both)": (calls / (rows.ms_convolutions + rows.ms_other)).map("{:.0%}".format).replace("nan%", ""),
        "conv. time per FLOP (unpruned = 1)": rows.convolutions_slower_per_flop.map("{:.2f}".format),
        "vectors filled": rows.flops_in_full_vectors.map("{:.0%}".format).replace("nan%", ""),
    }
    return _by_network(rows, table)


def quartiles_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return latency with its quartiles, throughput and memory of every network of one record, as text."""
    quartiles = (rows[f"latency_ms.{part}"] for part in ("median", "quartile_1", "quartile_3"))
    table = {
        "F factor": rows.flop_factor.map("{:.1f}".format),
        "latency (ms)": ["{:.2f} ({:.2f} to {:.2f})".format(*three) for three in zip(*quartiles, strict=True)],
        "images/s": rows.images_per_second.map("{:,.0f}".format),
        "peak (MB)": (rows.peak_memory_bytes / 1e6).map("{:.2f}".format).replace("nan", ""),
    }
    return _by_network(rows, table)


def setups_table(setups: Mapping[str, Mapping], shown: Mapping[str, str]) -> pd.DataFrame:
    """Return the entries of setups that are ``shown``, under the names given there: a column a record.

    Examples
    --------
    >>> setups_table({"a.json": {"commit": "0123456789"}}, {"commit": "made by"}).to_dict()
    {'a.json': {'made by': '0123456'}}
    """
    setups = {name: {**setup, "commit": short_commit(setup["commit"])} for name, setup in setups.items()}
    return pd.DataFrame(setups).reindex(shown).rename(shown).map(str)


def sizes_table(runs: pd.DataFrame, timed: Iterable[Mapping]) -> pd.DataFrame:
    """Return what the networks of one footing take: volume, FLOPs, parameters, and milliseconds where they were timed.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.
    timed : iterable of mapping
        Records of ``bench/compared.py``; runs are found in them by the names of their folders.

    Returns
    -------
    pandas.DataFrame
        A row a factor and variant, the fastest first, means over the seeds as text. Without the two columns of times if
        nothing was timed.
    """
    runs = runs[~runs.method.isin(methods.UNSTRUCTURED)]  # whose networks are as large as before
    times = {one["run"]: (one["latency_ms"]["median"], one["speedup"]["median"]) for one in timed}
    names = [Path(folder).name for folder in runs.folder]
    blank = (float("nan"), float("nan"))
    runs = runs.assign(ms=[times.get(n, blank)[0] for n in names], speedup=[times.get(n, blank)[1] for n in names])
    columns = ["volume", "flops", "parameters", "ms", "speedup"]
    means = runs.groupby(["pruning_factor", "variant"])[columns].mean().reset_index()
    means = means.sort_values(["pruning_factor", "ms", "flops"], ignore_index=True)
    table = pd.DataFrame(
        {
            "factor": means.pruning_factor.map("{:g}".format),
            "method": [", ".join([short(head), *rest]) for head, *rest in means.variant.str.split(", ")],
            "volume": means.volume.map("{:,.0f}".format),
            "MFLOPs": (means.flops / 1e6).map("{:.2f}".format),
            "parameters": means.parameters.map("{:,.0f}".format),
            "ms": means.ms.map(lambda ms: "" if pd.isna(ms) else f"{ms:.2f}"),
            "times as fast": means.speedup.map(lambda speedup: "" if pd.isna(speedup) else f"{speedup:.1f}"),
        }
    ).set_index(["factor", "method"])
    return table if means.ms.notna().any() else table.iloc[:, :3]

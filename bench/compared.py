"""How fast are the networks that were compared? All that are stored below a folder, turn by turn, in one run.

A record keeps the architecture of its network. Its weights are there only where the run was made; elsewhere, new ones
are timed, since the time does not depend on them. Networks are folded for inference by `bar.fold`.
"""

import json
import os
from pathlib import Path

import click
import pandas as pd
import torch
from latency import race, summary
from rich.console import Console
from rich.table import Table
from torch import nn

import bar
from bar import files, machine, runs, storage


def decayed(network: nn.Module) -> float:
    """The share of the filters that training has let decay to nothing, as Adam does with L2 behind a batch norm.

    Nothing is their norm if it is below a millionth of the largest of their convolution.
    """
    norms = [conv.weight.flatten(1).norm(dim=1) for conv in network.modules() if isinstance(conv, nn.Conv2d)]
    return torch.cat([norm < 1e-6 * norm.max() for norm in norms]).float().mean().item()


def timed(found: pd.DataFrame, batch: int, rounds: int, seconds: float, noted: dict[str, float | None]) -> list[dict]:
    """A record a run: its network's milliseconds, and how many times as fast it is as its seed's unpruned one.

    What share of its filters had decayed is `noted` for each run whose weights are not there any more.
    """
    paths = {Path(path).name: Path(path) for path in found.folder}
    kept = {name: (path / storage.WEIGHTS).exists() for name, path in paths.items()}
    plain = {name: storage.load(path) if kept[name] else storage.untrained(path) for name, path in paths.items()}
    networks = {name: bar.fold(one.eval()) for name, one in plain.items()}
    networks = {name: one.to(memory_format=torch.channels_last) for name, one in networks.items()}
    images = torch.randn(batch, *found.input_size.iloc[0]).contiguous(memory_format=torch.channels_last)
    times = race(networks, images, rounds, seconds)
    full = {run.seed: name for name, run in zip(paths, found.itertuples(), strict=True) if run.method == "unpruned"}
    return [
        {
            "run": name, "method": run.method, "distill": run.distill, "pruning_factor": run.pruning_factor,
            "seed": run.seed, "volume": run.volume, "flops": run.flops, "parameters": run.parameters,
            "decayed": decayed(plain[name]) if kept[name] else noted.get(name),
            "latency_ms": summary(1e3 * t for t in times[name]),
            "speedup": summary(a / b for a, b in zip(times[full[run.seed]], times[name], strict=True)),
        }
        for name, run in zip(paths, found.itertuples(), strict=True)
    ]  # fmt: skip


def show(records: list[dict], caption: str) -> None:
    """Print a table of means over the seeds."""
    table = Table(
        "method", "teacher", "V / by", "seeds", "FLOPs", "parameters", "decayed", "ms", "speed-up", caption=caption
    )
    for (factor, method, distill), part in pd.json_normalize(records).groupby(["pruning_factor", "method", "distill"]):
        sizes = (f"{part[name].mean():,.0f}" for name in ("flops", "parameters"))
        gone = "" if part.decayed.isna().all() else f"{100 * part.decayed.mean():.0f} %"
        ms, speedup = part["latency_ms.median"].mean(), part["speedup.median"].mean()
        taught = "yes" if distill and method != "unpruned" else ""
        table.add_row(method, taught, f"{factor:g}", str(len(part)), *sizes, gone, f"{ms:.2f}", f"{speedup:.1f}")
    Console(width=110).print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(exists=True, path_type=Path), default=Path("results/photographs"))
@click.option("--batch", default=64, show_default=True, help="Images per forward.")
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=11, show_default=True, help="At least.")
@click.option("--seconds", default=0.5, show_default=True, help="For each network, at least.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all of it here, anew.")
def main(folder, batch, threads, rounds, seconds, out) -> None:
    """Time the stored networks of one comparison, by default that on photographs, against their unpruned ones.

    \b
    Example:
      python bench/compared.py --json results/bench/compared-cpu.json
    """
    torch.set_num_threads(threads)
    load = round(os.getloadavg()[0], 2)
    found = runs.records(folder)
    if len(found):
        found = found[[Path(path, storage.ARCHITECTURE).exists() for path in found.folder]]
    if not (len(found) and (found.method == "unpruned").any()):
        raise click.UsageError(
            f"no run below {folder} has kept its network, or no unpruned one: run bench/comparison.py"
        )
    before = json.loads(out.read_text())["records"] if out and out.exists() else []
    setup = {
        "images": found.dataset_label.iloc[0], "model": found.model.iloc[0], "input_size": found.input_size.iloc[0],
        "batch": batch, "hardware": machine.hardware(), **machine.processor(), "threads": threads,
        "torch": torch.__version__, "commit": machine.commit(), "load_at_start": load,
    }  # fmt: skip
    records = timed(found, batch, rounds, seconds, {one["run"]: one["decayed"] for one in before})
    show(records, f"{setup['model']}, batch {batch}, {setup['hardware']}; medians, means over the seeds")
    if out:
        files.write_text(out, json.dumps({"setup": setup, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()

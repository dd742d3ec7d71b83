"""What does it cost to keep away from the kernel that writes past its memory (uxlfoundation/oneDNN 6035)?

On a CPU the weight gradient of a strided 1x1 convolution is not safe in channels_last. Compared here, taking turns in
one process: that layout with strided convolutions as they are ("as it was"), and three ways around them: an average
pool of one pixel before the convolution (what `bar.network.stride_first` does), a slice of every other pixel, and the
contiguous layout. A step of training (forward, backward, Adam) and a forward pass; gated networks and pruned ones.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats
from torch import Tensor, fx, nn

import bar
from bar import files, machine, models

NETWORKS = (("wrn-16-1", 32), ("wrn-16-2", 32), ("wrn-10-1", 16))
BEFORE, OURS, SLICE, CONTIGUOUS = "as it was", "average pool first", "slice first", "contiguous"


def skip(signal: Tensor, stride: tuple[int, int]) -> Tensor:
    return signal[:, :, :: stride[0], :: stride[1]]


def changed(network: fx.GraphModule, way: str) -> None:
    """Take another way around strided 1x1 convolutions than the average pools that there are."""
    for node in network.graph.find_nodes(op="call_function", target=F.avg_pool2d):
        signal, _, stride = node.args
        if way in (BEFORE, CONTIGUOUS):
            for reader in list(node.users):
                called = network.get_submodule(reader.target)
                getattr(called, "options", called).stride = stride
            node.replace_all_uses_with(signal)
            network.graph.erase_node(node)
        elif way == SLICE:
            node.target, node.args = skip, (signal, stride)
    network.recompile()


def network_of(model: str, size: int, factor: float | None, way: str) -> nn.Module:
    """Gated with all gates open, or pruned to a budget at random."""
    torch.manual_seed(0)
    gated = bar.gate(models.build(model), (3, size, size))
    for gate in gated.gates.values():
        gate.spread_(-1, 5)
    if factor is None:
        return gated
    pruned = bar.prune(gated.settle_(gated.full() / factor))
    changed(pruned, way)
    return pruned


def steps_of(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, foreach=True)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network.train()(images), labels).backward()
        optimizer.step()

    @torch.no_grad()
    def forward() -> None:
        network.eval()(images)

    return {"step": train, "forward": forward}


def measured(model: str, size: int, factor: float | None, batch: int, rounds: int) -> list[dict]:
    """Milliseconds of each way, which take a turn in every round, and the ratio to what it was, round by round."""
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    ways = {}
    for way in (BEFORE, OURS, SLICE, CONTIGUOUS):
        layout = torch.contiguous_format if way == CONTIGUOUS else torch.channels_last
        network = network_of(model, size, factor, way).to(memory_format=layout)
        if factor is None:
            changed(network._with_gates[0], way)  # only now, since moving it connects it anew
        ways[way] = steps_of(network, images.contiguous(memory_format=layout), labels)
    rows = []
    for what in ("step", "forward"):
        times = {way: [] for way in ways}
        for i in range(rounds + 3):
            for way, steps in ways.items():
                start = time.perf_counter()
                steps[what]()
                if i >= 3:  # the first ones warm up
                    times[way].append(1000 * (time.perf_counter() - start))
        for way, values in times.items():
            ratios = np.array(values) / np.array(times[BEFORE])
            low, high = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
            rows.append({
                "model": model, "size": size, "network": "gated" if factor is None else f"pruned by {factor:g}",
                "threads": torch.get_num_threads(), "what": what, "way": way, "ms": float(np.median(values)),
                "ratio": float(np.median(ratios)), "low": float(low), "high": float(high),
            })  # fmt: skip
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=60, show_default=True, help="Steps of each that are timed.")
@click.option("--batch", default=32, show_default=True)
@click.option("--factor", default=4.0, show_default=True, help="Of the pruned networks.")
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--json", "json_", type=click.Path(path_type=Path), help="Write what was measured to this file.")
def main(rounds, batch, factor, threads, json_) -> None:
    """Time layouts and ways around strided 1x1 convolutions, on the CPU.

    \b
    Examples:
      python bench/layout.py --json results/bench/layout-cpu.json
      python bench/layout.py --rounds 10 --threads 1

    With ONEDNN_MAX_CPU_ISA=AVX2, or on a processor without AVX-512, pruned networks die on the way as it was.
    """
    load = round(os.getloadavg()[0], 2)
    cases = [(t, m, s, f) for t in threads for m, s in NETWORKS for f in (None, factor)]
    rows = []
    for count, model, size, by in track(cases, "networks", console=Console(stderr=True)):
        torch.set_num_threads(count)
        rows += measured(model, size, by, batch, rounds)
    table = Table(title=f"Milliseconds for a batch of {batch}, and the ratio to what it was (median, 95 % interval)")
    for column in ("network", "threads", "what", BEFORE, OURS, SLICE, CONTIGUOUS):
        table.add_column(column)
    ways = 4
    for group in (rows[i : i + ways] for i in range(0, len(rows), ways)):
        first, *others = group
        cells = [f"{row['ms']:.2f}: {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in others]
        name = f"{first['model']} at {first['size']}, {first['network']}"
        table.add_row(name, str(first["threads"]), first["what"], f"{first['ms']:.2f}", *cells)
    Console(width=150).print(table)
    if json_ is not None:
        setup = {
            "batch": batch, "rounds": rounds, "hardware": machine.hardware(), "torch": torch.__version__,
            "isa": torch.backends.cpu.get_cpu_capability(), "commit": machine.commit(), "load_at_start": load,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }  # fmt: skip
        json_.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(json_, json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

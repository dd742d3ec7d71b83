"""What does the engine of sweeps cost: two workers against one on two cores, seconds a run, and what limits it?

    python bench/sweeps.py --json results/bench/sweeps-cpu.json

The same runs are made four times: one after the other in this process; by Ray with one worker; by Ray with two; and in
this process again, so that a machine that has become busier is noticed. Every run computes with one thread. How much
longer the training itself takes with two says what the cores lose when both are at work; the rest is the engine. Then
10,000 records are read.
"""

import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import click
import torch
from rich.console import Console

import bar
from bar import files, machine, runs
from bar.runs import cluster, sweeps


def timed(configs: list[bar.RunConfig], workers: int | None) -> dict:
    """Make the runs in an empty folder; None for the workers is this process."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        if workers is None:
            ready = begun
            ended = list(sweeps.sweep(configs, folder, device="cpu"))
        else:
            with cluster.joined(None, workers, 0):
                ready = time.perf_counter()
                ended = list(sweeps.sweep(configs, folder, device="cpu", jobs=workers, ray="auto"))
        seconds = time.perf_counter() - ready
        trained = [record["seconds"] for record in runs.finished(folder)]  # the unpruned networks among them
    if failed := [outcome for _, outcome in ended if isinstance(outcome, bar.BarError)]:
        raise failed[0]
    return {"start": ready - begun, "seconds": seconds, "training": sum(trained), "runs": len(trained)}


def reading(records: int) -> float:
    """Write so many records, made of one, and read them; seconds of the reading."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = bar.RunConfig(method="random", limit=64, size=8, epochs=(1, 1, 0))
        bar.run(config, folder / "one", device="cpu")
        held = json.loads((folder / "one" / runs.RESULT).read_text())
        shutil.rmtree(folder / config.unpruned.name)
        for seed in range(records):
            other = folder / str(seed)
            other.mkdir()
            for file in (runs.CONFIG, runs.RESULT):
                text = held if file == runs.RESULT else {k: held[k] for k in dataclasses.asdict(config) if k in held}
                (other / file).write_text(json.dumps(text | {"seed": seed}, indent=1))
        shutil.rmtree(folder / "one")
        begun = time.perf_counter()
        found = runs.records(folder)
        assert len(found) == records
        return time.perf_counter() - begun


def summary(timings: dict[str, dict]) -> dict[str, float]:
    """What the timings say; those of this process are the mean of before and after."""
    alone = statistics.mean(timings[name]["seconds"] for name in ("this process", "this process again"))
    training = statistics.mean(timings[name]["training"] for name in ("this process", "this process again"))
    one, two = timings["one worker"], timings["two workers"]
    return {
        "efficiency": alone / (2 * two["seconds"]),
        "overhead_per_run": (one["seconds"] - alone) / one["runs"],
        "start": statistics.mean([one["start"], two["start"]]),
        "slower_training_with_two": two["training"] / training,
        "idle_share_with_two": 1 - two["training"] / (2 * two["seconds"]),
    }


@click.command()
@click.option("--seeds", default=4, show_default=True, help="Two runs and an unpruned network each.")
@click.option("--epochs", type=int, nargs=3, default=(8, 4, 1), show_default=True)
@click.option("--records", default=10_000, show_default=True, help="How many to read.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write what was measured there.")
def main(seeds: int, epochs: tuple[int, int, int], records: int, path: Path | None) -> None:
    """Measure, print, and record."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[0]
    configs = [
        bar.RunConfig(method=method, seed=seed, pruning_factor=4, epochs=epochs)
        for seed in range(seeds)
        for method in ("bar", "random")
    ]
    ways = {"this process": None, "one worker": 1, "two workers": 2, "this process again": None}
    timings = {name: timed(configs, workers) for name, workers in ways.items()}
    held = {
        "setup": {
            "hardware": machine.hardware(), "cores": os.cpu_count(), "load_at_start": load, "commit": machine.commit(),
            "torch": torch.__version__, "runs": len(configs), "epochs": list(epochs),
        },
        "timings": timings, "summary": summary(timings), "reading": {"records": records, "seconds": reading(records)},
    }  # fmt: skip
    Console().print_json(json.dumps(held))
    if path:
        files.write_text(path, json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()

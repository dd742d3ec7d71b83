"""Does training cost less as it prunes, and what do gates and barrier cost? (section 3.2: both happen at the same time)

In one run, taking turns: a step of the distilled network without gates, with gates and barrier, and its parts; then,
epoch by epoch, three whole trainings of equal length: the unpruned network, BAR that cuts dead features out while it
trains, and BAR that does not. The unpruned network's own training, of which the teacher comes, is not counted.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import bar
from bar import data, files, machine, models, runs
from bar.methods.budget_aware import BudgetAware
from bar.network import stride_first, trace
from bar.objective import distillation
from bar.training import Settings, Training, steps_per_epoch

PEAK = {"H100": 989e12, "H200": 989e12}  # dense bfloat16 FLOP/s of the SXM boards (NVIDIA's data sheets)


def pruner_of(config: bar.RunConfig, images: data.Dataset, settings: Settings) -> BudgetAware:
    """As `bar.run` makes it."""
    torch.manual_seed(config.seed)
    network = models.build(config.model, images.num_classes, images.input_size)
    steps = settings.prune_epochs * steps_per_epoch(images, settings)
    pruner = BudgetAware(network, images.input_size, settings, config.pruning_factor, steps, seed=config.seed)
    pruner.network.to(images.train.device, memory_format=torch.channels_last)
    return pruner


def unpruned(config: bar.RunConfig, images: data.Dataset) -> nn.Module:
    """The network without gates, as `bar.run` trains it."""
    network = models.build(config.model, images.num_classes, images.input_size)
    return stride_first(trace(network, images.input_size).module)


def alternate(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, all of them taking a turn in every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def step_times(
    config: bar.RunConfig, images: data.Dataset, teacher: nn.Module, device: torch.device, rounds: int
) -> dict[str, float]:
    """Seconds of one step, forward and backward, and of its parts."""
    settings = config.settings
    pruner = pruner_of(config, images, settings)
    gated = pruner.network.train()
    plain = unpruned(config, images).to(device, memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(0)
    batch, labels = next(data.batches(images.train, settings.batch_size, mean=images.mean, std=images.std,
                                      generator=generator))  # fmt: skip
    batch = batch.contiguous(memory_format=torch.channels_last)
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def taught() -> torch.Tensor:
        with torch.no_grad():
            return teacher(batch.to(next(teacher.parameters()).dtype)).float()

    def step(network: nn.Module, term: Callable[[], torch.Tensor] | None) -> None:
        target = taught()
        with bfloat16:
            output = network(batch).float()
        loss = distillation(output, labels, target, settings.alpha, settings.temperature)
        loss = loss if term is None else loss + term()
        network.zero_grad()
        loss.backward()

    def undistilled() -> None:
        with bfloat16:
            output = plain(batch).float()
        plain.zero_grad()
        distillation(output, labels, None).backward()

    return alternate(
        {
            "unpruned, no teacher": undistilled,
            "distilled, no gates": lambda: step(plain, None),
            "distilled, gates": lambda: step(gated, None),
            "distilled, gates and barrier": lambda: step(gated, lambda: pruner.budget(0)),
            "teacher's forward": taught,
        },
        rounds,
        device,
    )


def whole_runs(
    config: bar.RunConfig, images: data.Dataset, teacher: nn.Module, device: torch.device
) -> dict[str, list[dict]]:
    """The records of three trainings of equal length, which take turns epoch by epoch."""
    settings = config.settings
    epochs = settings.prune_epochs + settings.finetune_epochs
    uncut = dataclasses.replace(settings, patience=None)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(config.seed)

    full = unpruned(config, images).to(device, memory_format=torch.channels_last)
    phases = [("train", epochs, settings.lr), ("cooldown", settings.cooldown_epochs, settings.cooldown_lr)]
    trainings = {"unpruned": Training(full, images, phases, settings, generator())}
    for name, options in (("cut while training", settings), ("cut at the end", uncut)):
        pruner = pruner_of(config, images, options)
        trainings[name] = Training(
            pruner.network, images, options.phases_of_pruning, options, generator(), teacher=teacher, pruner=pruner
        )
    records: dict[str, list[dict]] = {name: [] for name in trainings}
    running = {name: iter(training) for name, training in trainings.items()}
    states = {name: torch.manual_seed(config.seed).get_state() for name in trainings}
    for _ in track(range(epochs + settings.cooldown_epochs), "epochs", console=Console(stderr=True)):
        for name, training in running.items():
            torch.set_rng_state(states[name])  # each has its own noise, as if it ran alone
            record = next(training)
            records[name].append(record)
            if record["phase"] == "prune" and record["epoch"] == settings.prune_epochs:
                records[name].append(next(training))
            states[name] = torch.get_rng_state()
    return records


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", default="digits", show_default=True)
@click.option("--model", default="wrn-16-2", show_default=True)
@click.option("--factor", default=16.0, show_default=True)
@click.option("--limit", type=int, help="Use only so many training images.")
@click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Instead of the preset's epochs.")
@click.option("--preset", default="quick", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--rounds", default=20, show_default=True, help="Steps that are timed.")
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="For the teacher."
)
@click.option("--json", "json_", type=click.Path(path_type=Path), help="Write what was measured to this file.")
def main(dataset, model, factor, limit, epochs, preset, seed, threads, rounds, device, out, json_) -> None:
    """Time training: steps and whole runs.

    \b
    Examples:
      python bench/training.py
      python bench/training.py --dataset cifar10-jpeg --limit 5000 --model wrn-16-1 --json mine.json
    """
    torch.set_num_threads(threads)
    place = machine.device_of(device)
    try:
        config = bar.RunConfig(dataset=dataset, model=model, pruning_factor=factor, limit=limit, preset=preset,
                               epochs=epochs or None, seed=seed)  # fmt: skip
        images = data.load(dataset, limit=limit).to(place)
        bar.run(config.unpruned, out / config.unpruned.name, device=device)
    except bar.BarError as error:
        raise click.UsageError(str(error)) from error
    folder = runs.place(out / config.unpruned.name, config.unpruned, images.fingerprint)
    teacher = runs.teacher_in(folder, place)
    load = round(os.getloadavg()[0], 2)
    steps = step_times(config, images, teacher, place, rounds)
    records = whole_runs(config, images, teacher, place)
    seconds = {name: sum(record["seconds"] for record in run) for name, run in records.items()}
    cost = bar.count(models.build(model, images.num_classes, images.input_size), images.input_size)
    rate = config.settings.batch_size / steps["distilled, gates and barrier"]
    peak = next((p for name, p in PEAK.items() if place.type == "cuda" and name in torch.cuda.get_device_name()), None)
    result = {
        "setup": {
            "dataset_label": images.label, "training_images": len(images.train), "model": model, "factor": factor,
            "seed": seed, "settings": dataclasses.asdict(config.settings), "device": place.type,
            "hardware": machine.hardware(place), "threads": threads, "commit": machine.commit(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__, "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "load_at_start": load,
        },
        "steps": steps,
        "overhead": steps["distilled, gates and barrier"] / steps["distilled, no gates"] - 1,
        "teacher_share": steps["teacher's forward"] / steps["unpruned, no teacher"],
        "images_per_second": rate,
        # student forward and backward are 3 times the FLOPs of its forward, the teacher's forward once more
        "utilisation": 4 * cost.flops * rate / peak if peak else None,
        "seconds": seconds,
        "ratio": {name: value / seconds["unpruned"] for name, value in seconds.items()},
        "epochs": records,
    }  # fmt: skip
    table = Table(title=f"A step of {model} on {images.label}, batch of {config.settings.batch_size}")
    table.add_column("")
    table.add_column("ms", justify="right")
    for name, value in steps.items():
        table.add_row(name, f"{1000 * value:.1f}")
    Console().print(table)
    click.echo(f"gates and barrier cost {result['overhead']:.1%} of a distilled step")
    table = Table(title=f"{len(records['unpruned'])} epochs, factor {factor:g}")
    for column in ("", "seconds", "of unpruned", "validation accuracy"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in seconds.items():
        last = records[name][-1]["accuracy"]
        table.add_row(name, f"{value:.1f}", f"{result['ratio'][name]:.2f}", f"{last:.2%}")
    Console().print(table)
    if json_ is not None:
        json_.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(json_, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

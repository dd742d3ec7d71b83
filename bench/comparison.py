"""BAR and its rivals on photographs, at equal budgets, with the same seeds: chapter 13's records.

First the trials (`bench/ablation.py --trials`): each method with a weight or threshold of its own is tried with four
values at each factor, on validation images of a seed that is not used again. Then the runs, which look at the test
images once, when they end. What is recorded is not run again, so the whole can be stopped and continued.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from ablation import RATES, TRIALS, trial_of
from rich.console import Console
from rich.progress import track

import bar
from bar.runs.sweeps import sweep

IMAGES = {"dataset": "cifar10-jpeg", "size": 16, "limit": 5000}
SEEDS = tuple(range(10, 15))
# Those that nothing has to be chosen for come first.
UNTRIED = tuple(
    (name, {}) for name in ("bar", "uniform", "magnitude", "random", "vector-quantization", "interpolative")
)
TRIED = ("l0", "information-bottleneck", "morphnet")
# Those that zero single weights, on the network of the poster and of Frankle & Carbin.
UNTRIED_WEIGHTS = (("mp", {}), ("mp-ft", {}))
TRIED_WEIGHTS = ("reparametrization", "learning-compression")


def best_trial(folder: Path, method: str, factor: float) -> dict | None:
    """The options of the trial that kept most on validation images; None if not all have been made."""
    records = [json.loads(path.read_text()) for path in folder.glob(f"*-x{factor:g}-seed*.json")]
    found = {record["variant"]: record["epochs"][-1]["accuracy"] for record in records}
    ways = {trial_of(method, options): options for options in TRIALS.get((method, factor), [])}
    if not ways or not ways.keys() <= found.keys():
        return None
    return ways[max(ways, key=found.__getitem__)]


def jobs_of(
    untried: Sequence[tuple[str, dict]], tried: Sequence[str], factors: Sequence[float], trials: Path, model: str
) -> list[bar.RunConfig]:
    """The runs, those of a seed together, so that every method has as many seeds as any other when time is up."""
    ways = [(method, factor, options) for method, options in untried for factor in factors]
    chosen = [(method, factor, best_trial(trials, method, factor)) for method in tried for factor in factors]
    ways += [way for way in chosen if way[2] is not None]
    return [
        bar.RunConfig(method=method, options=options, pruning_factor=factor, seed=seed, model=model, **IMAGES)
        for seed in SEEDS for method, factor, options in ways
    ]  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--factors", type=float, multiple=True, help="Again for each.  [default: 16, 4; of weights, 10 to 100]")
@click.option("--single-weights", is_flag=True, help="The methods that zero single weights, on conv4.")
@click.option("--seeds", type=int, multiple=True, default=SEEDS, show_default=True)
@click.option(
    "--taught-otherwise",
    multiple=True,
    metavar="METHOD",
    help="Only these, and each with the teacher that it has not in the paper: rivals with one, bar without.",
)
@click.option("--jobs", default=1, show_default=True, help="So many runs at a time.")
@click.option("--minutes", type=float, default=600.0, show_default=True, help="No run begins later than that.")
@click.option("--trials", type=click.Path(path_type=Path), default=Path("results/trials"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/photographs"), show_default=True)
@click.option("--list", "listed", is_flag=True, help="Only say which runs there are.")
def main(factors, single_weights, seeds, taught_otherwise, jobs, minutes, trials, out, listed) -> None:
    """Run BAR and its rivals on photographs, and record it.

    \b
    Examples:
      python bench/ablation.py --dataset cifar10-jpeg --model wrn-16-2 --size 16 --limit 5000 \\
        --trials --factors 16 --factors 4 --seeds 5 --out results/trials
      python bench/comparison.py --minutes 60
      python bench/comparison.py --taught-otherwise bar --taught-otherwise uniform
      bar results --dir results/photographs
    """
    if single_weights:
        untried, tried, factors, model = UNTRIED_WEIGHTS, TRIED_WEIGHTS, factors or RATES, "conv4"
    else:
        untried, tried, factors, model = UNTRIED, TRIED, factors or (16.0, 4.0), "wrn-16-2"
    configs = [job for job in jobs_of(untried, tried, factors, trials, model) if job.seed in seeds]
    if taught_otherwise:
        configs = [
            dataclasses.replace(one, distill=one.method != "bar") for one in configs if one.method in taught_otherwise
        ]
    ends = time.monotonic() + 60 * minutes
    missing = [f"{m} at {f:g}" for m in tried for f in factors if best_trial(trials, m, f) is None]
    if missing:
        click.echo(f"left out, since their trials are not complete: {', '.join(missing)}", err=True)
    if listed:
        click.echo("\n".join(config.name for config in configs))
        return
    runs = sweep(configs, out, device="cpu", jobs=jobs, may=lambda config: time.monotonic() < ends)
    for config, record in track(runs, "runs", total=len(configs), console=Console(stderr=True)):
        said = str(record) if isinstance(record, Exception) else f"{record['accuracy']:.4f}"
        click.echo(f"{config.name}: {said}")


if __name__ == "__main__":
    main()

"""Write the numbers of the page on costs anew: ``python docs/cost_numbers.py`` (``--check`` only compares)."""

import difflib
import json
import re
import sys
from pathlib import Path

from bar import runs
from bar.runs.compare import costs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "book/17_costs.md"
PART = re.compile(r"(<!-- numbers: (\w+) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)
STEP = 0.1  # seconds
NAMES = {"cifar10": "CIFAR-10, WRN-28-12", "cifar100": "CIFAR-100, WRN-28-12"}
UNBROKEN = str.maketrans("-", "\u2011")  # hyphens at which a narrow table does not break
GPUS = (1, 8, 64)
BENCH = ROOT / "results/bench/sweeps-cpu.json"
OVERHEAD = 30.0  # seconds a run, for the last part

found = runs.records(ROOT / "results/digits")
found = found[(found.model == "wrn-10-1") & (found.metric != "weights")]
ratios, trials = costs.relative_steps(found), costs.mean_trials(found)
table = costs.table_of_the_paper()


def seconds(config: runs.RunConfig) -> float:
    """How long a run takes."""
    return costs.steps_of(config, costs.IMAGES[config.dataset], trials) * ratios[config.method] * STEP


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def steps() -> str:
    """Steps of a run of each method, and how long one takes."""
    rows = []
    for method in ("unpruned", *dict.fromkeys(config.method for config in table)):
        made = []
        for dataset in (dataset for dataset in costs.IMAGES if dataset != "cifar100"):
            part = [config for config in table if config.dataset == dataset]
            mine = [config.unpruned for config in part] if method == "unpruned" else part
            each = [costs.steps_of(c, costs.IMAGES[dataset], trials) for c in mine if c.method == method]
            made.append(f"{sum(each) / len(each):,.0f}")
        rows.append([method, *made, f"{ratios[method]:.2f}"])
    words = f"\nMeans over the factors; {trials:.1f} trials a search, those of other budgets are used again.\n"
    return markdown(["method", "steps on CIFAR", "steps on Mio-TCD", "time of a step"], rows) + words


def hours() -> str:
    """Work, and time on so many GPUs, of each data set and of all."""
    rows = []
    for name in (*costs.IMAGES, None):
        part = [config for config in table if name in (None, config.dataset)]
        spans = [f"{costs.makespan(part, seconds, gpus) / 3600:,.0f} h" for gpus in GPUS]
        shown = "all" if name is None else NAMES.get(name, "Mio-TCD, ResNet-50")
        count = len({run for config in part for run in (config, config.unpruned)})
        rows.append([shown.translate(UNBROKEN), f"{count}", *spans])
    return markdown(["", "runs, unpruned ones too", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)], rows)


def answer() -> str:
    """The box below the question."""
    one, *more = (f"{costs.makespan(table, seconds, gpus) / 3600 / 24:,.0f}" for gpus in GPUS)
    return (
        "```{admonition} The answer\n:class: tip answer\n"
        f"If a step of the unpruned network takes {1000 * STEP:.0f} milliseconds: {one} days on one GPU, "
        f"{' and '.join(more)} on eight\nand sixty-four; with another step, in proportion. What a step takes on a GPU "
        "has not been measured here.\n```\n"
    )


def overhead() -> str:
    """What a time that nobody would tolerate comes to."""
    count = len({run for config in table for run in (config, config.unpruned)})
    share = count * OVERHEAD / costs.work(table, seconds)
    spans = [costs.makespan(table, seconds, 64, each) / 3600 for each in (0.0, OVERHEAD)]
    measured = json.loads(BENCH.read_text("utf-8"))
    found, setup, reading = measured["summary"], measured["setup"], measured["reading"]
    alone = [measured["timings"][name] for name in ("this process", "this process again")]
    two = measured["timings"]["two workers"]
    there = 2 * two["seconds"]  # of two workers
    beside = sum(one["seconds"] - one["training"] for one in alone) / 2 / there
    engine = found["overhead_per_run"] * two["runs"] / there
    rest = found["idle_share_with_two"] - beside - engine
    return (
        f"Of {setup['runs']} pruned runs of {sum(setup['epochs'])} epochs ({setup['hardware']}), and the unpruned ones "
        f"that they need, two workers do\n{found['efficiency']:.0%} of what two processes might at best. One worker "
        f"takes {found['overhead_per_run']:.1f} seconds a run more than one process, and Ray starts in\n"
        f"{found['start']:.0f} seconds. {reading['records']:,} records are read in {reading['seconds']:.1f} "
        "seconds.\n\n"
        "What limits two workers? Hardly the cores: all training together takes "
        f"{found['slower_training_with_two']:.2f} times as long as in one process. But for "
        f"{found['idle_share_with_two']:.0%}\nof their time the workers do not train: {beside:.0%} is what one "
        "process, too, does beside training (data, tests, files),\n"
        f"{engine:.0%} what a worker adds to each run. The other {rest:.0%} "
        "was not measured apart; waiting is part of it, at the beginning\n"
        "for an unpruned network, at the end for the other worker's last run.\n\n"
        f"The machine was not idle: the load of the minute before was {setup['load_at_start']:.1f}, on "
        f"{setup['cores']} cores. The same runs in one process took\n{alone[0]['seconds']:.1f} seconds before, and "
        f"{alone[1]['seconds']:.1f} after the others; beyond that, what the other work took away is not known.\n\n"
        f"It matters little here: were it {OVERHEAD:.0f} seconds a run, these {count} runs would take\n"
        f"{share:.2%} longer on one GPU, and {spans[1] - spans[0]:.1f} hours longer on 64.\n"
    )


def main() -> None:
    """Write, or compare."""
    before = PAGE.read_text("utf-8")
    after = PART.sub(lambda part: part[1] + globals()[part[2]]() + part[3], before)
    if "--check" not in sys.argv:
        PAGE.write_text(after, "utf-8")
    elif before != after:
        sys.exit("".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "the page", "records")))


if __name__ == "__main__":
    main()

"""What does each part of the quick settings do? One at a time, it is taken away, or is as in the paper.

Every run is a whole training, watched on validation images alone; no test image is looked at. A run is written to a
file of its own as soon as it ends, and one that is there is not made again, so that the whole can be stopped and
continued, or spread over several processes (by seed, say).
"""

import dataclasses
import json
import re
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track

import bar
from bar import data, files, machine, methods, models, runs, storage
from bar.barriers import log_barrier
from bar.methods.budget_aware import NEAR, BudgetAware
from bar.training import PRESETS, Settings, Training, steps_per_epoch

QUICK = PRESETS["quick"]
UNCUT = "nothing cut on the way"


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings, and what else a training may do differently."""

    settings: Settings = QUICK
    schedule: str = "sigmoid"
    metric: str = "volume"
    log_barrier: bool = False
    distill: bool = True
    trained: bool = False  # begins with the unpruned network's weights
    method: str = "bar"
    options: dict = dataclasses.field(default_factory=dict)  # of another method than bar


def quick(**changes) -> Settings:
    """The preset with some of its settings replaced."""
    return dataclasses.replace(QUICK, **changes)


PARTS = {
    "quick": Variant(),
    # What the preset has that the paper has not, each as in the paper, or as in the preset before.
    "fixed margin": Variant(quick(follow=0.0)),
    "less travel": Variant(quick(gate_travel=30.0)),
    "less pressure": Variant(quick(pressure=31.0)),  # the paper's lambda, on WRN-28-12
    "gates with momentum": Variant(quick(gate_betas=(0.9, 0.999))),
    "gates at a constant rate": Variant(quick(gate_decay=0.0)),
    "b arrives at B, at the end": Variant(quick(reach=1.0, aim=1.0)),
    "slower weights": Variant(quick(lr=1e-3, cooldown_lr=1e-4)),
    "equal starts": Variant(quick(gate_start=(0.0, 0.01))),
    UNCUT: Variant(quick(patience=None)),
    # What the paper has: table 1, and section 3.3 on the barrier.
    "linear schedule": Variant(schedule="linear"),
    "log barrier": Variant(log_barrier=True),
    "no distillation": Variant(distill=False),
    # All of it at once, and no pruning at all: a network of equal widths, trained from scratch.
    "the paper's settings": Variant(
        Settings(prune_epochs=24, finetune_epochs=12, cooldown_epochs=4, unpruned_epochs=36, batch_size=32)
    ),
    "uniform": Variant(method="uniform", distill=False),
    "uniform, with the teacher": Variant(method="uniform"),
}

# What a method with a weight or a threshold of its own is tried with at a factor; validation images decide.
TRIALS: dict[tuple[str, float], list[dict]] = {
    ("l0", 16): [{"lam": lam} for lam in (0.0125, 0.025, 0.05, 0.1)],
    ("l0", 4): [{"lam": lam} for lam in (0.003, 0.006, 0.0125, 0.025)],
    ("information-bottleneck", 16): [{"lam": lam} for lam in (0.0015, 0.003, 0.006, 0.012)],
    ("information-bottleneck", 4): [{"lam": lam} for lam in (0.0003, 0.0006, 0.0012, 0.0024)],
    ("morphnet", 16): [{"pressure": p, "threshold": t} for p in (2.0, 6.0) for t in (0.02, 0.05)],
    ("morphnet", 4): [{"pressure": p, "threshold": t} for p in (2.0, 6.0) for t in (0.02, 0.05)],
}


RATES = (10.0, 20.0, 100 / 3, 100.0)  # factors of the number of weights: 90, 95, 97 and 99 % are zeroed
for rate in RATES:  # on conv4, which has no batch norms
    TRIALS["reparametrization", rate] = [{"lam": lam, "t_lr": 0.1} for lam in (1e3, 3e3, 1e4, 3e4)]
    TRIALS["learning-compression", rate] = [{"mu": mu} for mu in (1e-3, 3e-3, 1e-2, 3e-2)]


def trial_of(method: str, options: dict) -> str:
    """The name of the variant that is a trial."""
    return ", ".join([f"trial of {method}", *(f"{name} {value:g}" for name, value in options.items())])


# A network that is trained already: gates that begin nearly open disturb it less, and so do slower weights.
OPEN = (2.0, 5.0)
SLOWER = {"lr": 1e-3, "cooldown_lr": 1e-4}
TRAINED = {
    "trained start": Variant(trained=True),
    "trained start, open gates": Variant(quick(gate_start=OPEN), trained=True),
    "trained start, slower weights": Variant(quick(**SLOWER), trained=True),
    "trained start, both": Variant(quick(gate_start=OPEN, **SLOWER), trained=True),
    "trained start, no distillation": Variant(trained=True, distill=False),
}

# How much a budget of FLOPs may press, with the paper's settings: lambda times the full size is 31 on its network under
# a budget of volume, and 4,847 times that under one of FLOPs, where lambda is not scaled by V_F / F_F.
FLOPS = {
    f"paper, FLOPs, pressure {31 * share:g}": Variant(Settings(pressure=31 * share), metric="flops")
    for share in (0.1, 1, 10, 4847)
}

# A rival has no teacher, as in the paper.
TRIED = {
    trial_of(method, options): Variant(distill=False, method=method, options=options)
    for (method, _), ways in TRIALS.items() for options in ways
}  # fmt: skip
VARIANTS = PARTS | TRAINED | FLOPS | TRIED


class LogBudget(bar.Budget):
    """With the log barrier that eq. 5 replaces (section 3.3), in units of V_F; t grows from 1 to 100."""

    def _barrier(self, time: float) -> torch.Tensor:
        return log_barrier(self.V / self.full, self.b / self.full, t=100**time)


class Following(BudgetAware):
    """Notes V, counted by reachability, and b of eq. 7 after each step, as parts of V_F."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.steps: list[tuple[float, float]] = []

    def end_step(self) -> None:
        super().end_step()
        budget = self.budget
        self.steps.append((self.network.size(budget.metric) / budget.full, budget.b / budget.full))


class Watching(Following):
    """Cuts nothing on the way, but notes what would have been cut, and whether it has come back by the end."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.dead_for = torch.zeros(len(self.network.log_alpha), dtype=torch.long)
        self.due = torch.zeros(len(self.network.log_alpha), dtype=torch.bool)

    def _live(self) -> torch.Tensor:
        live = self.network.live()
        return torch.cat([live[self.network.network.convs[name]] for name in self.network.gates])

    def end_epoch(self) -> dict:
        record = super().end_epoch()
        self.dead_for = torch.where(self._live(), 0, self.dead_for + 1)
        self.due |= self.dead_for >= max(2, round(QUICK.patience * self.settings.prune_epochs))
        return record

    def cut_record(self) -> dict:
        return super().cut_record() | {
            "due": int(self.due.sum()),
            "due_and_alive": int((self.due & self._live()).sum()),
        }


def train(
    name: str, settings: Settings, factor: float, seed: int, model: str, images, teacher, unpruned
) -> tuple[list, list]:
    """The records of the epochs of one training, and V and b after each step of the pruning."""
    variant, steps = VARIANTS[name], settings.prune_epochs * steps_per_epoch(images, settings)
    torch.manual_seed(seed)
    network = models.build(model, images.num_classes, images.input_size)
    if variant.trained or methods.find(variant.method).starts[0] == "unpruned":
        network.load_state_dict(unpruned, strict=False)  # batch norms without weights store none
    if variant.method == "bar":
        pruner = (Watching if name == UNCUT else Following)(
            network, images.input_size, settings, factor, steps, variant.metric, variant.schedule, seed
        )
        if variant.log_barrier:
            pruner.budget.__class__ = LogBudget
        phases = settings.phases_of_pruning
    else:
        epochs = (settings.prune_epochs, settings.finetune_epochs, settings.cooldown_epochs)
        given = {"preset": "quick", "epochs": epochs}
        pruner = methods.build(
            variant.method, network, images.input_size, settings, factor, steps_per_epoch(images, settings), seed=seed,
            options=variant.options, **given,
        )  # fmt: skip
        phases = methods.phases(variant.method, settings, factor, **given)
    trained = pruner.network.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    teacher = teacher if variant.distill else None
    records = list(Training(trained, images, phases, settings, generator, teacher=teacher, pruner=pruner))
    return records, getattr(pruner, "steps", [])


def near(steps: list[tuple[float, float]]) -> float | None:
    """The share of the steps, from a tenth of them on, with 0.8 <= V / b <= 1."""
    late = [volume / b for volume, b in steps[len(steps) // 10 :]]
    return sum(NEAR <= ratio <= 1 for ratio in late) / len(late) if late else None


def thinned(steps: list[tuple[float, float]], most: int = 200) -> list[tuple[float, float]]:
    """Some of the steps, evenly spread, for a figure."""
    every = max(1, -(-len(steps) // most))
    return [(round(volume, 5), round(b, 5)) for volume, b in steps[every - 1 :: every]]


def slug(name: str) -> str:
    """A variant's name, as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", default="digits", show_default=True)
@click.option("--model", default="wrn-10-1", show_default=True)
@click.option("--size", type=int, help="Side of the images in pixels.")
@click.option("--limit", type=int, help="Use only so many training images.")
@click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Instead of the variant's.")
@click.option("--factors", type=float, multiple=True, default=(4.0, 16.0), show_default=True)
@click.option("--seeds", type=int, multiple=True, default=(5, 6, 7), show_default=True)
@click.option("--variants", multiple=True, default=tuple(PARTS), help="Which; default: quick, and each part away.")
@click.option("--trained", is_flag=True, help="Instead, what a start with trained weights is tried with.")
@click.option("--flops", is_flag=True, help="Instead, the paper's settings under a budget of FLOPs.")
@click.option("--trials", is_flag=True, help="Instead, what methods with a weight of their own are tried with.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/ablation"), show_default=True)
@click.option("--teachers", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def main(
    dataset, model, size, limit, epochs, factors, seeds, variants, trained, flops, trials, threads, out, teachers
) -> None:
    """Train with each variant of the settings, and record it.

    \b
    Examples:
      python bench/ablation.py
      python bench/ablation.py --factors 16 --seeds 5 --variants quick --variants 'fixed margin'
      python bench/ablation.py --dataset cifar10-jpeg --model wrn-16-2 --size 16 --limit 5000 --factors 16
      python bench/ablation.py --dataset cifar10-jpeg --model wrn-16-2 --size 16 --limit 5000 --trained --epochs 12 6 2
      python bench/ablation.py --flops --seeds 5 --epochs 360 40 10 --out results/flops
      python bench/ablation.py --model resnet18-by-8 --size 32 --epochs 96 48 16 --variants quick
    """
    torch.set_num_threads(threads)
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise click.UsageError(f"no variant {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    variants = tuple(TRAINED) if trained else tuple(FLOPS) if flops else variants
    images = data.load(dataset, size=size, limit=limit)
    length = f"-{sum(epochs)}epochs" if epochs else ""
    jobs = [(name, factor, seed) for seed in seeds for name in variants for factor in factors]
    if trials:
        mine = {
            factor: [trial_of(m, o) for (m, f), ways in TRIALS.items() if f"{f:g}" == f"{factor:g}" for o in ways]
            for factor in factors
        }
        jobs = [(name, factor, seed) for seed in seeds for factor in factors for name in mine[factor]]
    for name, factor, seed in track(jobs, "trainings", console=Console(stderr=True)):
        path = out / f"{dataset}-{model}-x{factor:g}-seed{seed}-{slug(name)}{length}.json"
        if path.exists():
            continue
        settings = VARIANTS[name].settings
        if epochs:
            phases = dict(zip(("prune_epochs", "finetune_epochs", "cooldown_epochs"), epochs, strict=True))
            settings = dataclasses.replace(settings, **phases)
        config = bar.RunConfig(dataset=dataset, model=model, size=size, limit=limit, seed=seed, method="unpruned")
        bar.run(config, teachers / config.name, device="cpu")
        folder = runs.place(teachers / config.name, config, images.fingerprint)
        unpruned = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
        teacher, weights = runs.teacher_in(folder, "cpu"), storage.load(folder).state_dict()
        records, steps = train(name, settings, factor, seed, model, images, teacher, weights)
        result = {
            "variant": name, "method": VARIANTS[name].method, "options": VARIANTS[name].options,
            "metric": VARIANTS[name].metric,
            "settings": dataclasses.asdict(settings), "dataset_label": images.label,
            "training_images": len(images.train), "validation_images": len(images.validation), "model": model,
            "pruning_factor": factor, "seed": seed, "volume_full": bar.count(
                models.build(model, images.num_classes, images.input_size), images.input_size).volume,
            "validation_accuracy_unpruned": unpruned[-1]["accuracy"], "near": near(steps), "steps": thinned(steps),
            "epochs": records, "hardware": machine.hardware(), **machine.processor(), "torch": torch.__version__,
            "commit": machine.commit(), "source_tree": machine.source_tree(),
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

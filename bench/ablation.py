"""What makes a short run follow its budget? Each change of the quick settings, one at a time.

Every run is a whole training, watched on validation images alone; no test image is looked at. A run is written to a
file of its own as soon as it ends, and one that is there is not made again, so that the whole can be stopped and
continued, or spread over several processes (by seed, say).
"""

import dataclasses
import json
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track

import bar
from bar import data, files, machine, models, runs
from bar.barriers import log_barrier
from bar.methods.budget_aware import BudgetAware
from bar.training import PRESETS, Settings, Training, steps_per_epoch

QUICK = PRESETS["quick"]
FIRST = dataclasses.replace(
    QUICK, lr=1e-3, cooldown_lr=1e-4, gate_travel=10.0, gate_betas=(0.9, 0.999), gate_decay=0.0,
    pressure=31.0, reach=1.0, aim=1.0, patience=None,
)  # fmt: skip
FASTER = dataclasses.replace(FIRST, lr=5e-3, cooldown_lr=5e-4)
LATER = {"reach": 0.9, "aim": 0.97}
NIMBLE = {"gate_betas": (0.0, 0.9)}
LOG_BARRIER = "quick, log barrier"
UNCUT = "quick, nothing cut on the way"
VARIANTS: dict[str, Settings] = {
    "start": FIRST,
    "faster weights": FASTER,
    "… and b early at 0.97 B": dataclasses.replace(FASTER, **LATER),
    "… and gates without momentum": dataclasses.replace(FASTER, **NIMBLE),
    "… and both": dataclasses.replace(FASTER, **LATER, **NIMBLE),
    UNCUT: dataclasses.replace(QUICK, patience=None),
    "quick": QUICK,
    "quick, equal starts": dataclasses.replace(QUICK, gate_start=(0.0, 0.01)),
    "the paper's settings": dataclasses.replace(
        Settings(), prune_epochs=24, finetune_epochs=12, cooldown_epochs=4, unpruned_epochs=36, batch_size=32
    ),
    LOG_BARRIER: QUICK,
}


class LogBudget(bar.Budget):
    """With the log barrier that eq. 5 replaces (section 3.3), in units of V_F; t grows from 1 to 100."""

    def _barrier(self, time: float) -> torch.Tensor:
        return log_barrier(self.V / self.full, self.b / self.full, t=100**time)


class Watching(BudgetAware):
    """Cuts nothing on the way, but notes what `quick` would have cut, and whether it has come back by the end."""

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


def train(name: str, settings: Settings, factor: float, seed: int, model: str, images, teacher) -> list[dict]:
    """The records of one training."""
    torch.manual_seed(seed)
    network = models.build(model, images.num_classes, images.input_size)
    steps = settings.prune_epochs * steps_per_epoch(images, settings)
    pruner = (Watching if name == UNCUT else BudgetAware)(
        network, images.input_size, settings, factor, steps, seed=seed
    )
    gated = pruner.network.to(memory_format=torch.channels_last)
    if name == LOG_BARRIER:
        pruner.budget.__class__ = LogBudget
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return list(
        Training(gated, images, settings.phases_of_pruning, settings, generator, teacher=teacher, pruner=pruner)
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", default="digits", show_default=True)
@click.option("--model", default="wrn-10-1", show_default=True)
@click.option("--size", type=int, help="Side of the images in pixels.")
@click.option("--limit", type=int, help="Use only so many training images.")
@click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Instead of the variant's.")
@click.option("--factors", type=float, multiple=True, default=(4.0, 16.0), show_default=True)
@click.option("--seeds", type=int, multiple=True, default=(5, 6, 7), show_default=True)
@click.option("--variants", multiple=True, default=tuple(VARIANTS), help="Some of them only.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/ablation"), show_default=True)
@click.option("--teachers", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def main(dataset, model, size, limit, epochs, factors, seeds, variants, threads, out, teachers) -> None:
    """Train with each variant of the settings, and record it.

    \b
    Examples:
      python bench/ablation.py
      python bench/ablation.py --factors 16 --seeds 5 --variants quick --variants start
      python bench/ablation.py --model resnet18-by-8 --size 32 --epochs 96 48 16 --variants quick --out results/lengths
    """
    torch.set_num_threads(threads)
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise click.UsageError(f"no variant {unknown[0]!r}; there are: {', '.join(VARIANTS)}")
    images = data.load(dataset, size=size, limit=limit)
    length = f"-{sum(epochs)}epochs" if epochs else ""
    jobs = [(name, factor, seed) for seed in seeds for name in variants for factor in factors]
    for name, factor, seed in track(jobs, "trainings", console=Console(stderr=True)):
        path = out / f"{dataset}-{model}-x{factor:g}-seed{seed}-{list(VARIANTS).index(name)}{length}.json"
        if path.exists():
            continue
        settings = VARIANTS[name]
        if epochs:
            phases = dict(zip(("prune_epochs", "finetune_epochs", "cooldown_epochs"), epochs, strict=True))
            settings = dataclasses.replace(settings, **phases)
        config = bar.RunConfig(dataset=dataset, model=model, size=size, limit=limit, seed=seed, method="unpruned")
        bar.run(config, teachers / config.name, device="cpu")
        folder = runs.place(teachers / config.name, config, images.fingerprint)
        unpruned = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
        teacher = runs.teacher_in(folder, "cpu")
        records = train(name, settings, factor, seed, model, images, teacher)
        result = {
            "variant": name, "settings": dataclasses.asdict(settings), "dataset_label": images.label,
            "training_images": len(images.train), "validation_images": len(images.validation), "model": model,
            "pruning_factor": factor, "seed": seed, "volume_full": bar.count(
                models.build(model, images.num_classes, images.input_size), images.input_size).volume,
            "validation_accuracy_unpruned": unpruned[-1]["accuracy"], "epochs": records,
            "hardware": machine.hardware(), "torch": torch.__version__, "commit": machine.commit(),
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

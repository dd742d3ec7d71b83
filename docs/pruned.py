"""Make the figure of the README, from a real run: ``python docs/pruned.py`` (about two minutes on two cores).

Writes ../book/pruned.png, which opens the book, too, and pruned.json, the record that the figure is drawn from.
"""

import json
from pathlib import Path

import torch

import bar
from bar import data, figures, machine, models
from bar.methods.budget_aware import BudgetAware
from bar.training import PRESETS, Training, steps_per_epoch

HERE = Path(__file__).parent
MODEL, FACTOR, SEED = "wrn-16-1", 8, 0

images, settings = data.load("digits"), PRESETS["quick"]
torch.manual_seed(SEED)
network = models.build(MODEL, images.num_classes, images.input_size)
steps = settings.prune_epochs * steps_per_epoch(images, settings)
pruner = BudgetAware(network, images.input_size, settings, FACTOR, steps, seed=SEED)
generator = torch.Generator().manual_seed(SEED)
training = Training(pruner.network, images, settings.phases_of_pruning, settings, generator, pruner=pruner)
records = list(training)

figures.neurons_per_block(pruner.network).savefig(HERE.parent / "book" / "pruned.png", dpi=160)
cost = bar.count(training.network, images.input_size)
record = {
    "model": MODEL, "dataset_label": images.label, "pruning_factor": FACTOR, "seed": SEED, "preset": "quick",
    "distill": False,
    "validation_accuracy": records[-1]["accuracy"], "volume": cost.volume, "volume_full": pruner.budget.full,
    "budget": pruner.budget.limit, "features": {name: layer["features"] for name, layer in cost.layers.items()},
    "hardware": machine.hardware(), "torch": torch.__version__, "commit": machine.commit(),
}  # fmt: skip
(HERE / "pruned.json").write_text(json.dumps(record, indent=1) + "\n")

"""Make the figure of the README, from a real run: ``python docs/pruned.py`` (about two minutes on two cores).

Writes pruned.png, and pruned.json, the record that the figure is drawn from.
"""

import json
from pathlib import Path

import torch

import bar
from bar import data, figures, models, runs
from bar.training import PRESETS, Training, steps_per_epoch

HERE = Path(__file__).parent
MODEL, FACTOR, SEED = "wrn-16-1", 8, 0

images, settings = data.load("digits"), PRESETS["quick"]
torch.manual_seed(SEED)
gated = bar.gate(models.build(MODEL, images.num_classes, images.input_size), images.input_size)
for gate in gated.gates.values():
    gate.spread_(*settings.gate_start)
budget = settings.budget(gated, FACTOR, settings.prune_epochs * steps_per_epoch(images, settings))
generator = torch.Generator().manual_seed(SEED)
training = Training(gated, images, settings.phases_of_pruning, settings, generator, budget=budget)
records = list(training)

figures.neurons_per_block(gated).savefig(HERE / "pruned.png", dpi=160)
cost = bar.count(training.network, images.input_size)
record = {
    "model": MODEL, "dataset_label": images.label, "pruning_factor": FACTOR, "seed": SEED, "preset": "quick",
    "distill": False,
    "validation_accuracy": records[-1]["accuracy"], "volume": cost.volume, "volume_full": budget.full,
    "budget": budget.limit, "features": {name: layer["features"] for name, layer in cost.layers.items()},
    "hardware": runs.hardware(), "torch": torch.__version__, "commit": runs.commit(),
}  # fmt: skip
(HERE / "pruned.json").write_text(json.dumps(record, indent=1) + "\n")

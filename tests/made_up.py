"""Records that nobody ran, with numbers that are known."""

import json
from pathlib import Path

from bar import runs, schema

FINGERPRINT = "ab" * 32


def record(root: Path, accuracy: float = 0.9, unpruned: float = 0.95, more: dict | None = None, **fields) -> Path:
    """Write the record of a run below a folder; ``more`` replaces what is in it, or removes it by None."""
    config = runs.RunConfig(**fields)
    folder, factor = root / config.name, config.pruning_factor
    held = {"format": schema.FORMAT} | config.recorded() | {"fingerprint": FINGERPRINT}
    costs = {"volume": 1000, "flops": 10_000, "parameters": 500}
    result = held | {
        "dataset_label": config.dataset, "training_images": config.limit or 1077, "input_size": [3, 16, 16],
        "mean": [0.5], "std": [0.5], "settings": config.recorded_settings(), "accuracy": accuracy,
        "accuracy_unpruned": unpruned, "validation_accuracy": accuracy, "accuracy_cut": None,
        "accuracy_recalibrated": None, "size_before_settling": None, "volume_regular": None, "flops_regular": None,
        **costs, **{f"{name}_full": int(cost * factor) for name, cost in costs.items()},
        "volume_factor": factor, "flops_factor": 2 * factor, "budget": 1000.0, "search": None, "features": {},
        "features_full": {}, "areas": {}, "weights_sha256": "0" * 64, "seconds": 10.0, "hardware": "none",
        "processes": 1, "versions": {}, "commit": None,
    }  # fmt: skip
    for name, value in (more or {}).items():
        for written in (held, result):
            if name in written:
                written[name] = value
                if value is None and name in ("format", "fingerprint"):
                    del written[name]
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(json.dumps(held))
    (folder / runs.RESULT).write_text(json.dumps(result))
    return folder

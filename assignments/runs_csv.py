"""Write the recorded runs that assignment 6 compares: `python assignments/runs_csv.py`."""

from pathlib import Path

import pandas as pd

from bar import files, runs

HERE = Path(__file__).parent
PATH = HERE / "source" / "06_comparison" / "runs.csv"
METHODS = ["bar", "interpolative", "l0", "magnitude", "morphnet", "random", "vector-quantization"]
COLUMNS = ["method", "pruning_factor", "seed", "dataset", "model", "epochs", "start", "distill"]
NUMBERS = ["accuracy", "validation_accuracy", "accuracy_unpruned", "volume", "budget"]


def table() -> pd.DataFrame:
    """The runs of the digits with a volume budget, a line each, in an order that is not that of the seeds."""
    found = runs.records(HERE.parent / "results" / "digits")
    found = found[found.method.isin(METHODS) & (found.metric == "volume") & (found.schedule == "sigmoid")].copy()
    found.loc[(found.method == "bar") & ~found.distill, "method"] = "bar without teacher"
    lengths = ("prune_epochs", "finetune_epochs", "cooldown_epochs")
    found["epochs"] = [sum(settings[length] for length in lengths) for settings in found.settings]
    found["pruning_factor"] = found.pruning_factor.astype(int)
    return found[COLUMNS + NUMBERS].sort_values(["pruning_factor", "accuracy", "method", "seed"]).round(6)


if __name__ == "__main__":
    files.write_text(PATH, table().to_csv(index=False))

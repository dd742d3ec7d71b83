"""Parameters with which each notebook that trains runs in seconds; what they then show means nothing."""

import json
import shutil
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PARAMETERS = {
    "04_training": {"epochs": [2, 1, 1], "limit": 192, "size": 8},
    "05_resnet_surgery": {"epochs": 2, "limit": 192, "size": 8},
    "06_results": {"epochs": [1, 1, 0]},
    "07_baselines": {"epochs": [1, 1, 0], "live_methods": ["bar", "random"]},
    "08_learning_compression": {"epochs": [3, 1, 1], "shares": [0.1, 0.05], "alphas_l0": [3e-4], "alphas_l1": [2e-3]},
    "09_weight_reparametrization": {"epochs": [1, 1, 1]},
    "10_your_own_network": {"epochs": 1, "limit": 96},
    "11_speed": {"seconds": 0.05},
    "12_following_the_budget": {"epochs": [2, 1, 0], "limit": 128},
    "14_any_network": {"steps": 20, "batch": 2},
}


def copies(folder: Path) -> Path:
    """The notebooks with these parameters, in ``folder/notebooks``, the records beside them; returns that folder."""
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (folder / "results").symlink_to(NOTEBOOKS.parent / "results")
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        for name, value in PARAMETERS.get(path.stem, {}).items():
            assert f"\n{name} = " in f"\n{cell.source}", f"{path.name} has no parameter {name}"
            cell.source += f"\n{name} = {json.dumps(value)}"
        nbformat.write(notebook, path)
    return folder / "notebooks"

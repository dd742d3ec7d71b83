"""Other budgets and seeds: what the parameters of an assignment may be, so that answers differ from class to class."""

import random
import re

from nbformat import NotebookNode

# what each parameter may be, as it is written in the notebook
CHOICES = {
    "01_gates": {
        "BETA": ["0.5", "0.6", "0.7", "0.8"],
        "START": ["0.01", "0.5", "1.0", "2.0"],
        "RATE": ["5e-4", "2e-3", "5e-3", "1e-2"],
    },
    "02_barrier": {"FACTOR": ["3", "5", "6", "8"], "FEATURES": ["120", "240", "360"]},
    "03_counting": {"SIZE": ["15", "20", "24", "32"], "WIDTH": ["4", "6", "10", "12"]},
    "04_training": {"FACTOR": ["6", "7", "9"], "SEEDS": ["(3, 4, 5)", "(6, 7, 8)", "(1, 3, 9)"]},
    # with fewer channels, or with seed 1, some blocks pass nothing on or have nothing new
    "05_surgery": {"CHANNELS": ["10", "11", "12"], "SEED": ["2", "3", "4", "5"]},
    "06_comparison": {
        "METHOD_B": ['"interpolative"', '"random"', '"vector-quantization"', '"l0"'],
        "FACTOR": ["8", "16"],
    },
}


def vary(notebook: NotebookNode, name: str, seed: int) -> dict[str, str]:
    """Give a master other parameters, wherever one is assigned; with seed 0 it stays as it is.

    Parameters
    ----------
    notebook : NotebookNode
        The master; it is changed.
    name : str
        The assignment.
    seed : int
        The same seed gives the same parameters.

    Returns
    -------
    dict of str to str
        The parameters that were set.
    """
    if not seed:
        return {}
    draw = random.Random(f"{name} {seed}")
    chosen = {parameter: draw.choice(values) for parameter, values in CHOICES[name].items()}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for parameter, value in chosen.items():
                pattern = rf"^({parameter} = )[^#\n]*?( *#.*)?$"
                cell.source = re.sub(pattern, rf"\g<1>{value}\g<2>", cell.source, flags=re.MULTILINE)
    return chosen

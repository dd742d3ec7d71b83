"""The methods of section 5 and of the two other papers: a file and a class for each, where it is described.

A new one is a file with a class, and its name in `METHODS`. A user's own is a file anywhere: ``path/to/file.py:Name``.
"""

import math
import numbers
from collections.abc import Mapping, Sequence

import pandas as pd
from torch import nn

from bar.errors import BarError, in_one_line, nearest, shown
from bar.methods import own
from bar.methods.base import Method, Option, Task
from bar.methods.budget_aware import BudgetAware
from bar.methods.information_bottleneck import InformationBottleneck
from bar.methods.interpolative import Interpolative
from bar.methods.iterative import IterativePruning
from bar.methods.l0 import L0
from bar.methods.learning_compression import LearningCompression
from bar.methods.magnitude import Magnitude
from bar.methods.morphnet import MorphNet
from bar.methods.random import Random
from bar.methods.reparametrization import Reparametrization
from bar.methods.uniform import Uniform
from bar.methods.unstructured_magnitude import FineTunedMagnitude, MagnitudePruning
from bar.methods.vector_quantization import VectorQuantization
from bar.training import PRESETS, Pruner, Settings

__all__ = ["METHODS", "NAMES", "Method", "Option", "Task", "build", "find", "options", "phases", "table"]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        BudgetAware, Random, Magnitude, VectorQuantization, Interpolative, L0, InformationBottleneck, MorphNet, Uniform,
        LearningCompression, Reparametrization, MagnitudePruning, FineTunedMagnitude,
    )
}  # fmt: skip
NAMES = (*METHODS, "unpruned")
STRUCTURED = tuple(name for name, method in METHODS.items() if "weights" not in method.metrics)
UNSTRUCTURED = tuple(name for name in METHODS if name not in STRUCTURED)  # set individual weights to zero
SEARCHED = tuple(name for name, method in METHODS.items() if method.searched)
ITERATIVE = tuple(name for name, method in METHODS.items() if issubclass(method, IterativePruning))
FROM_TRAINED = tuple(name for name, method in METHODS.items() if method.starts == ("unpruned",))


def find(name: str, source: str | None = None) -> type[Method]:
    """The class of a method.

    Parameters
    ----------
    name : str
        One of `METHODS`, or ``path/to/file.py:Name``; that file is run.
    source : str, optional
        The SHA-256 that such a file must have.

    Returns
    -------
    type
        A subclass of `Method`.

    Raises
    ------
    BarError
        If there is no such method, or the file cannot be used (`bar.methods.own.load`).

    Examples
    --------
    >>> find("l0").title
    'LZR'
    """
    if own.is_own(name):
        return own.load(name, source)[0]
    if name == "unpruned":
        raise BarError("unpruned is no method, but the full network, trained without one")
    if name not in METHODS:
        yours = " (one of your own is FILE.py:CLASS)" if "." in name else ""
        raise BarError(f"unknown method {name!r:.60}{yours}: {nearest(name[:60], NAMES)}")
    return METHODS[name]


def build(
    name: str,
    network: nn.Module,
    input_size: Sequence[int],
    settings: Settings,
    factor: float,
    steps_per_epoch: int,
    metric: str | None = None,
    seed: int = 0,
    *,
    preset: str = "paper",
    epochs: tuple[int, int, int] | None = None,
    lam: float | None = None,
    settle: bool = True,
    source: str | None = None,
    options: Mapping[str, object] | None = None,
    **named,
) -> Pruner:
    """A method, ready for `bar.training.Training`.

    Parameters
    ----------
    name : str
        As `find` takes it.
    network : nn.Module
        Plain; trained already for methods that start from a trained one. It is changed in place.
    input_size : (int, int, int)
        Of one image.
    settings : Settings
        Of the training.
    factor : float
        Pruning factor > 1.
    steps_per_epoch : int
        Training steps per epoch.
    metric : str, optional
        What the budget limits; default: the first of the method's `metrics`.
    seed : int
        Of the method's random draws.
    preset : str
        "paper" or "quick": the defaults of options and epochs that are not given. (Settings are those of `settings`.)
    epochs : (int, int, int), optional
        Of pruning, fine-tuning and cooling down; default: those of the preset.
    lam, settle
        As in `bar.methods.base.Task`.
    source : str, optional
        As `find` takes it.
    options : mapping of str to value, optional
        The method's hyperparameters, by name.
    **named
        More options, except those that have the name of a parameter above.

    Returns
    -------
    Pruner
        An instance of the method's class.

    Raises
    ------
    BarError
        If there is no such method, preset or option, the method has no budget in this metric, the factor is not above
        1, or it cannot prune this network to this budget.

    Examples
    --------
    >>> from bar.training import PRESETS
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> pruner = build("magnitude", net, (3, 6, 6), PRESETS["quick"], factor=2, steps_per_epoch=10)
    >>> pruner.cut().get_submodule("0")
    Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    method = find(name, source)
    _check_request(factor, preset)
    if metric is not None and metric not in method.metrics:
        raise BarError(f"{name} cannot serve a budget in {shown(metric)}, only in {' or '.join(method.metrics)}")
    epochs = epochs or method.epochs_of(preset, settings)
    task = Task(
        input_size, settings, factor, metric or method.metrics[0], epochs, steps_per_epoch, seed,
        method.values(preset, {**(options or {}), **named}), lam, settle,
    )  # fmt: skip
    try:
        return method.prepare(network, task)
    except Exception as error:
        if isinstance(error, BarError) or not own.is_own(name):
            raise
        raise BarError(f"{name} cannot be prepared: {in_one_line(error)}") from error


def phases(
    name: str,
    settings: Settings,
    factor: float,
    preset: str = "paper",
    epochs: tuple[int, int, int] | None = None,
    source: str | None = None,
) -> list[tuple[str, int, float]]:
    """The phases of training that a method asks for (supp. 3).

    Parameters
    ----------
    name, settings, factor, preset, epochs, source
        As in `build`.

    Returns
    -------
    list of (str, int, float)
        Name, number of epochs (maybe 0) and learning rate of each phase, in order. Those before the cut are called
        "prune", those after it "finetune" and "cooldown".

    Raises
    ------
    BarError
        If there is no such method or preset, or the factor is not above 1.

    Examples
    --------
    >>> from bar.training import PRESETS
    >>> phases("magnitude", PRESETS["paper"], factor=4)
    [('prune', 40, 0.001), ('prune', 10, 0.0001), ('finetune', 40, 0.001), ('cooldown', 10, 0.0001)]
    """
    method = find(name, source)
    _check_request(factor, preset)
    return method.phases(settings, factor, epochs or method.epochs_of(preset, settings))


def _check_request(factor: float, preset: str) -> None:
    """Refuse a factor that leaves everything, and a preset that there is not."""
    if not (isinstance(factor, numbers.Real) and 1 < factor < math.inf):
        raise BarError(f"the pruning factor must be a number above 1, not {shown(factor)}")
    if preset not in PRESETS:
        raise BarError(f"unknown preset {shown(preset)}: {nearest(str(preset), PRESETS)}")


def table(methods: Mapping[str, type[Method]] = METHODS) -> pd.DataFrame:
    """The methods, one row each.

    Parameters
    ----------
    methods : mapping of str to type
        The methods by name.

    Returns
    -------
    DataFrame
        Index: name. Columns: title, summary, budget (the metrics that it may limit), start (from which weights), needs
        (batch norms, or nothing), options.

    Examples
    --------
    >>> table().loc["mp", ["title", "budget", "start", "options"]].tolist()
    ['MP', 'weights', 'unpruned', 'per_layer']
    """
    rows = [
        {
            "method": name, "title": method.title, "summary": method.summary, "budget": ", ".join(method.metrics),
            "start": " or ".join(method.starts), "needs": "batch norms" if method.needs_batch_norms else "",
            "options": ", ".join(option.name for option in method.options),
        }
        for name, method in methods.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("method")


def options(name: str) -> pd.DataFrame:
    """The options of a method, one row each.

    Parameters
    ----------
    name : str
        As `find` takes it.

    Returns
    -------
    DataFrame
        Index: option. Columns: may be (the allowed values), paper and quick (the defaults in these presets), help.

    Raises
    ------
    BarError
        If there is no such method, or a file of your own cannot be used.

    Examples
    --------
    >>> options("morphnet")["may be"].to_dict()
    {'pressure': 'a number above 0', 'threshold': 'a number above 0'}
    """
    method = find(name)
    paper, quick = method.defaults("paper"), method.defaults("quick")
    rows = [(o.name, o.words, paper[o.name], quick[o.name], o.help) for o in method.options]
    columns = ["option", "may be", "paper", "quick", "help"]
    return pd.DataFrame(rows, columns=columns, dtype=object).set_index("option")  # pandas would write None as NaN

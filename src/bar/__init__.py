"""Budget-aware structured pruning of CNNs: a companion to BAR (Lemaire, Achkar and Jodoin, CVPR 2019)."""

from bar.barriers import barrier
from bar.cost import Cost, count
from bar.errors import BarError
from bar.gates import Gate
from bar.hard_concrete import HardConcrete
from bar.inference import export, fold
from bar.objective import Budget, distillation
from bar.runs import RunConfig, run
from bar.schedule import transition
from bar.storage import load, save
from bar.surgery import GatedNetwork, gate, prune

__all__ = [
    "BarError",
    "Budget",
    "Cost",
    "Gate",
    "GatedNetwork",
    "HardConcrete",
    "RunConfig",
    "barrier",
    "count",
    "distillation",
    "draw",
    "export",
    "fold",
    "gate",
    "load",
    "prune",
    "run",
    "save",
    "transition",
]


def __getattr__(name: str):
    if name == "draw":  # only when asked for, since it brings matplotlib along
        from bar.figures import draw

        return draw
    raise AttributeError(f"module 'bar' has no attribute {name!r}")

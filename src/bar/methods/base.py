"""What a method is: a class that says what it is called, which hyperparameters it has, and how it trains and prunes.

Everything else follows from the class: the options of ``bar run``, their help, what `bar.RunConfig` refuses, and the
table of methods (`bar.methods.table`).
"""

import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from bar.errors import BarError, nearest, shown
from bar.training import Pruner, Settings

WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}  # what a flag may be given as


@dataclass(frozen=True)
class Option:
    """A hyperparameter of a method.

    Parameters
    ----------
    name : str
        What it is called: ``bar run -o name=value``.
    kind : type
        bool, int, float, or str for one of `choices`.
    default : bool, int, float, str or None
        Unless a preset of the method has another value. None, where the option may be left out.
    help : str
        One sentence.
    choices : tuple of str
        The allowed values, if the kind is str.
    least, above, most : float
        A number is at least `least`, larger than `above`, and at most `most`.

    Examples
    --------
    >>> threshold = Option("threshold", float, 0.01, "The |gamma| above which a feature is alive.", above=0)
    >>> threshold.value("5e-2"), threshold.words
    (0.05, 'a number above 0')
    """

    name: str
    kind: type
    default: bool | int | float | str | None
    help: str
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf

    @property
    def words(self) -> str:
        """The allowed values, in words."""
        if self.kind is str:
            return " or ".join(self.choices)
        if self.kind is bool:
            return "yes or no"
        bounds = [("at least", self.least), ("above", self.above), ("at most", self.most)]
        text = " and ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
        return f"a {'whole ' if self.kind is int else ''}number {text}".strip()

    def value(self, given: object) -> bool | int | float | str | None:
        """Convert what was given to a value of this kind; a text, as from the command line, is parsed.

        Raises
        ------
        BarError
            If it is not a value of this kind, or out of range.
        """
        if self.default is None and (given is None or given == "none"):
            return None
        if self.kind is str:
            if isinstance(given, str) and given in self.choices:
                return given
            raise BarError(f"unknown {self.name} {shown(given)}: {nearest(str(shown(given)), self.choices)}")
        value = self._flag(given) if self.kind is bool else self._number(given)
        if value is None:
            raise BarError(f"{self.name} must be {self.words}, not {shown(given)}")
        return value

    @staticmethod
    def _flag(given: object) -> bool | None:
        if isinstance(given, bool):
            return given
        return WORDS.get(given.lower()) if isinstance(given, str) else None

    def _number(self, given: object) -> int | float | None:
        if isinstance(given, str):
            try:
                given = self.kind(given)
            except ValueError:
                return None
        if isinstance(given, bool) or not isinstance(given, numbers.Integral if self.kind is int else numbers.Real):
            return None
        if not (abs(given) <= sys.float_info.max and self.least <= given <= self.most and given > self.above):
            return None
        return self.kind(given)


@dataclass(frozen=True)
class Task:
    """What a run asks of a method.

    Attributes
    ----------
    input_size : sequence of int
        (channels, height, width) of one image.
    settings : Settings
        Of the training.
    factor : float
        Pruning factor, > 1.
    metric : str
        What the budget limits, one of the method's `metrics`.
    epochs : (int, int, int)
        Of pruning, fine-tuning and cooling down.
    steps_per_epoch : int
        Steps of training in an epoch, >= 1.
    seed : int
        Of the method's random draws.
    options : dict
        Name -> value of all options of the method.
    lam : float, optional
        The sparsity weight, for methods that search for it; default: the first that a search tries.
    settle : bool
        Whether those methods enforce the budget at the cut, by the order of their gates.
    """

    input_size: Sequence[int]
    settings: Settings
    factor: float
    metric: str
    epochs: tuple[int, int, int]
    steps_per_epoch: int
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)
    lam: float | None = None
    settle: bool = True

    @property
    def steps(self) -> int:
        """Steps of the phase that prunes."""
        return self.epochs[0] * self.steps_per_epoch


class Method(Pruner):
    """A way of pruning: what it declares, and what it adds to a `bar.training.Training` (see `Pruner`).

    A subclass declares the attributes below and overrides what it needs of `Pruner`. What it draws and decides must
    follow from its `Task`, and its `state_dict` must hold all that it has decided, so that a run can be resumed.

    Attributes
    ----------
    name : str
        What it is called on the command line and in records.
    title : str
        What figures and tables call it: the paper's own name where the paper has it.
    summary : str
        One sentence for tables.
    options : tuple of Option
        Its hyperparameters.
    presets : dict of str to dict
        "paper" and "quick" -> values of options that differ from their defaults; "epochs" of pruning, fine-tuning and
        cooling down where they are not those that the preset has for all.
    metrics : tuple of str
        What its budget can limit, the usual one first: "volume" and "flops", or "weights".
    starts : tuple of str
        "scratch" (from random weights), "unpruned" (from those of the unpruned network), or both, the usual one first.
    needs_batch_norms : bool
        Whether every convolution that may be pruned has to be read through batch norms.
    searched : bool
        Whether it has a sparsity weight, its option "lam", instead of a budget in the loss; runs search for it
        (`bar.methods.search`) unless it is given.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {"paper": {}, "quick": {}}
    metrics: ClassVar[tuple[str, ...]] = ("volume", "flops")
    starts: ClassVar[tuple[str, ...]] = ("scratch", "unpruned")
    needs_batch_norms: ClassVar[bool] = False
    searched: ClassVar[bool] = False

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "Method":
        """The method, ready to train and prune a network, which it changes in place.

        Parameters
        ----------
        network : nn.Module
            Plain; with the weights that training is to start from.
        task : Task
            What is asked of it.

        Returns
        -------
        Method
            An instance of this class.

        Raises
        ------
        BarError
            If it cannot prune this network to this budget.
        """
        return cls(network, task)

    @classmethod
    def check(cls, options: Mapping[str, object]) -> None:
        """Raise a BarError if values of options do not go together."""

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """The phases of training, by default those of supp. 3: prune, fine-tune, cool down.

        Parameters
        ----------
        settings : Settings
            Of the training; it has the learning rates.
        factor : float
            Pruning factor, > 1.
        epochs : (int, int, int)
            Of pruning, fine-tuning and cooling down, each >= 0.

        Returns
        -------
        list of (str, int, float)
            Name, number of epochs and learning rate of each phase, in order. Those before the cut must be called
            "prune", those after it "finetune" or "cooldown"; without a "prune" phase, the cut is the first step.
        """
        prune, tune, cool = epochs
        return [
            ("prune", prune, settings.lr),
            ("finetune", tune, settings.lr),
            ("cooldown", cool, settings.cooldown_lr),
        ]

    @classmethod
    def defaults(cls, preset: str) -> dict[str, object]:
        """The values of all options in a preset, "paper" or "quick"."""
        return {option.name: cls.presets[preset].get(option.name, option.default) for option in cls.options}

    @classmethod
    def values(cls, preset: str, given: Mapping[str, object]) -> dict[str, object]:
        """The values of all options: those given, and the defaults of a preset for the others.

        Returns
        -------
        dict
            Name of an option -> its value.

        Raises
        ------
        BarError
            If there is no such option, or a value is out of its range; if values do not go together.
        """
        options = {option.name: option for option in cls.options}
        for name in given:
            if name not in options:
                known = nearest(str(shown(name)), options) if options else "it has none"
                raise BarError(f"{cls.name} has no option {shown(name)}: {known}")
        values = cls.defaults(preset) | {name: options[name].value(value) for name, value in given.items()}
        cls.check(values)
        return values

    @classmethod
    def epochs_of(cls, preset: str, settings: Settings) -> tuple[int, int, int]:
        """Epochs of pruning, fine-tuning and cooling down in a preset."""
        usual = (settings.prune_epochs, settings.finetune_epochs, settings.cooldown_epochs)
        return cls.presets[preset].get("epochs", usual)

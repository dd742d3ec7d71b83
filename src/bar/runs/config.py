"""The configuration of a run, and the name that it gives the run."""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bar import methods, models
from bar.cost import METRICS
from bar.data import available
from bar.errors import BarError, is_plain, nearest, shown
from bar.methods import own
from bar.training import PRESETS, Settings

# Numbers beyond these bounds are taken for typing errors, which must not fill the memory or the disk.
MOST_EPOCHS = 10_000
MOST_SIZE_OF_DIGITS = 96
WHOLE_NUMBERS = {  # torch takes no larger seed
    "seed": (0, 2**64 - 1), "size": (4, 4096), "limit": (2, 2**31 - 1), "batch_size": (1, 65536),
}  # fmt: skip
LONGEST_TEXTS = {  # field -> most characters
    "dataset": 4096, "model": 250, "method": 4096, "metric": 100, "preset": 100, "schedule": 100, "start": 100,
    "gates": 100, "weights": 4096,
}  # fmt: skip
RARE = (
    "options",
    "source",
    "batch_size",
    "model_source",
    "weights_file",
    "weights_source",
)  # not in records where they are empty
STARTS = ("scratch", "unpruned")
FIELDS = {"schedule": "sigmoid", "gates": "uniform"}  # options that have fields of their own -> defaults
REFUSALS = {
    "schedule": "{} has no schedule: that is of bar alone",
    "gates": "another start of the gates is for l0 alone, not for {}",
}
PARSERS = {  # which refuse a value that no method knows
    "schedule": next(o for o in methods.METHODS["bar"].options if o.name == "schedule").value,
    "gates": next(o for o in methods.METHODS["l0"].options if o.name == "gates").value,
}
# Prefixes of hyperparameters in records, for methods with long names; the others have the method's own name.
SHORT_NAMES = {"learning-compression": "lc", "information-bottleneck": "ib"}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; two runs with equal configs give equal records on a CPU.

    Parameters
    ----------
    dataset : str
        A name that `bar.data.load` knows, or the path of a folder of images.
    model : str
        A name that `bar.models.build` knows, such as "wrn-10-1" or "resnet18"; one of timm as ``timm:NAME``; or a
        network of your own as ``package.module:function``: that module is imported, from the current directory, too.
    method : str
        "bar", another of `bar.methods.NAMES`, "unpruned" for the full network that all are compared with, or a method
        of your own as ``path/to/file.py:Name``: that file is executed.
    pruning_factor : float
        The budget is the full network's size divided by this; above 1.
    metric : str, optional
        What is budgeted: "volume" or "flops"; "weights" with methods that zero single weights, and only with those.
    preset : str
        "quick" (short, and with settings that suit short runs; minutes on a laptop for the digits) or "paper" (its
        lengths and numbers; what differs from its text stands in ``bar/training/settings.py``).
    seed : int
        Of the weights, the gates, and the order of the images; from 0 to 2^64 - 1.
    size : int, optional
        Side of the images in pixels, from 4 to 4096 (96 for the digits); default: that of the data set, of a
        folder if all its images are squares of one size.
    limit : int, optional
        Use only so many training images; at least one a class.
    epochs : (int, int, int), optional
        Of pruning (>= 1), fine-tuning and cooling down, each at most 10,000; default: those of the preset. With
        iterative pruning, the last two each time.
    schedule : str
        How the margin b of "bar" decreases to the budget: "sigmoid", "linear" or "exponential".
    distill : bool, optional
        Whether the unpruned network teaches the pruned one; default: with "bar" only, as we read the paper, which
        says so of "l0" only.
    start : str
        "scratch" (or "random"), or "unpruned" to start from the weights of the unpruned network (as the paper does on
        Mio-TCD); default: scratch, but unpruned with `weights`. The methods that choose from trained weights always do
        the latter. All else is as with new weights: no other setting kept more at both factors that were tried
        (chapter 10).
    gates : str
        How the gates of "l0" start: "uniform" (the preset's interval; the paper's is U(0, 0.01)), or "normal" for
        N(0, 0.01^2), as in the work that introduced it (supp. 4).
    options : mapping of str to value
        Hyperparameters of the method (`bar.methods.options`), as values or as texts; those that have their default are
        left out, and so are `schedule` and `gates`, which have fields of their own.
    source : str, optional
        The SHA-256 of the file of a method of your own; filled in.
    batch_size : int, optional
        Images in a step of training, from 1 to 65536; default: that of the preset.
    weights : str, optional
        A file of trained weights (`bar.models.load_weights`). The unpruned network, which teaches and is compared with,
        is then the one of these weights as it is, and not trained.
    model_source : str, optional
        The SHA-256 of the source of a network of your own (`bar.models.source_of`); filled in.
    weights_source : str, optional
        The SHA-256 of the file of weights; filled in.

    Raises
    ------
    BarError
        If a field is of the wrong kind, out of range or unknown, or does not fit the method. Whether there is such a
        data set, and such a network in torchvision, `bar.run` finds out, before it trains.

    Examples
    --------
    >>> RunConfig(pruning_factor=8).name
    'digits-wrn-10-1-bar-x8-seed0-quick'
    """

    dataset: str = "digits"
    model: str = "wrn-10-1"
    method: str = "bar"
    pruning_factor: float = 4.0
    metric: str | None = None
    preset: str = "quick"
    seed: int = 0
    size: int | None = None
    limit: int | None = None
    epochs: tuple[int, int, int] | None = None
    schedule: str = "sigmoid"
    distill: bool | None = None
    start: str | None = None
    gates: str = "uniform"
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    source: str | None = None
    batch_size: int | None = None
    weights: str | None = None
    model_source: str | None = None
    weights_source: str | None = None

    def __post_init__(self) -> None:
        _check_texts(self)
        _check_dataset(self)
        _check_kinds(self)
        source = own.load(self.method, self.source)[1] if own.is_own(self.method) else None
        self._set(source=source)
        self._settle_network()
        if self.method == "unpruned":  # options of pruning do not matter; equal runs have equal configs
            self._set(pruning_factor=1.0, metric=None, schedule="sigmoid", distill=True, start="scratch")
            self._set(gates="uniform", options={})
        method = self.kind
        served = method.metrics if method else tuple(METRICS)
        if self.metric is None:
            self._set(metric=served[0])
        if self.distill is None:
            self._set(distill=self.method == "bar")
        if self.metric in (*METRICS, "weights") and self.metric not in served:
            raise BarError(f"{self.method} cannot serve a budget in {self.metric}, only in {' or '.join(served)}")
        for name, known in (("metric", served), ("preset", PRESETS), ("start", STARTS)):
            if (value := getattr(self, name)) not in known:
                raise BarError(f"unknown {name} {value!r}: {nearest(str(value), known)}")
        if method:
            self._settle_start(method)
            self._settle_options(method)
        _check_numbers(self)

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _settle_network(self) -> None:
        """Fill in the hashes of what a network comes from, and where training starts."""
        own_source = models.source_of(self.model, self.model_source) if models.is_own(self.model) else None
        if self.weights:  # no shell puts the home folder there in --weights=~/trained.pt
            self._set(weights=os.path.expanduser(self.weights))
        weights_source = models.digest(self.weights, self.weights_source) if self.weights else None
        self._set(model_source=own_source, weights_source=weights_source)
        if self.start is None:
            able = self.kind.starts if self.kind else STARTS
            self._set(start="unpruned" if self.weights and "unpruned" in able else "scratch")
        elif self.start == "random":
            self._set(start="scratch")

    def _settle_start(self, method: type[methods.Method]) -> None:
        if self.start not in method.starts:
            if self.start == "unpruned":
                raise BarError(f"{self.method} is trained from scratch: it cannot start from the unpruned network")
            self._set(start=method.starts[0])

    def _settle_options(self, method: type[methods.Method]) -> None:
        """Replace options by their parsed values, without defaults; those that have fields are set there."""
        declared = {option.name for option in method.options}
        given = dict(self.options)
        for name, usual in FIELDS.items():
            if (held := getattr(self, name)) == usual:
                continue
            if name not in declared:  # a mistyped value is refused first, in the option's own words
                PARSERS[name](held)
                raise BarError(REFUSALS[name].format(self.method))
            if PARSERS[name](given.setdefault(name, held)) != PARSERS[name](held):
                raise BarError(f"{name} is given twice: {shown(held)}, and {shown(given[name])} as an option")
        values, usual = method.values(self.preset, given), method.defaults(self.preset)
        self._set(**{name: values[name] for name in FIELDS if name in declared})
        kept = {name: values[name] for name in sorted(given) if name not in FIELDS and values[name] != usual[name]}
        self._set(options=kept)

    @property
    def kind(self) -> type[methods.Method] | None:
        """The method's class; None for the unpruned network."""
        return None if self.method == "unpruned" else methods.find(self.method, self.source)

    @property
    def given(self) -> dict[str, object]:
        """The options that are given to the method, including those that have fields of their own."""
        mine = {option.name for option in self.kind.options} if self.kind else set()
        return {name: getattr(self, name) for name in FIELDS if name in mine} | dict(self.options)

    @property
    def values(self) -> dict[str, object]:
        """The values of all options of the method, defaults included."""
        return self.kind.values(self.preset, self.given) if self.kind else {}

    @property
    def phases(self) -> list[tuple[str, int, float]]:
        """Name, epochs and learning rate of each phase of the training."""
        if self.method == "unpruned":
            return [] if self.weights else self.settings.phases_of_unpruned
        return methods.phases(
            self.method, self.settings, self.pruning_factor, self.preset, self.epochs, self.source
        )  # fmt: skip

    def recorded(self) -> dict:
        """Return the fields as config.json holds them: in JSON's own types, without those that most runs do not need.

        Of a file of weights, its name; where it is does not matter, since `weights_source` tells what is in it.
        """
        held = json.loads(json.dumps(dataclasses.asdict(self)))
        held["weights_file"] = held.pop("weights") and Path(self.weights).name
        return {k: v for k, v in held.items() if v or k not in RARE}

    def recorded_settings(self) -> dict:
        """Return the settings that a record shows: those of the training, and the method's own, with its name."""
        values = {name: value for name, value in self.values.items() if name not in FIELDS}
        if self.kind and "epochs" in self.kind.presets[self.preset]:
            values["epochs"] = self.epochs or self.kind.presets[self.preset]["epochs"]
        prefix = SHORT_NAMES.get(self.method, self.method.rpartition(":")[2].replace("-", "_"))
        return dataclasses.asdict(self.settings) | {f"{prefix}_{name}": value for name, value in values.items()}

    @property
    def settings(self) -> Settings:
        """The preset's settings with this run's own batch size and epochs."""
        settings = PRESETS[self.preset]
        if self.batch_size is not None:
            settings = dataclasses.replace(settings, batch_size=self.batch_size)
        if self.epochs is None:
            return settings
        prune, finetune, cooldown = self.epochs
        return dataclasses.replace(
            settings, prune_epochs=prune, finetune_epochs=finetune, cooldown_epochs=cooldown,
            unpruned_epochs=prune if self.preset == "paper" else prune + finetune,
        )  # fmt: skip

    @property
    def unpruned(self) -> "RunConfig":
        """The config of the unpruned network that this run is compared with, and taught by."""
        return RunConfig(
            dataset=self.dataset, model=self.model, method="unpruned", preset=self.preset, seed=self.seed,
            size=self.size, limit=self.limit, epochs=self.epochs, batch_size=self.batch_size,
            weights=self.weights,
            model_source=self.model_source, weights_source=self.weights_source,
        )  # fmt: skip

    @property
    def trials(self) -> str:
        """The name of the folder of a search's trials, which runs with other budgets share."""
        return self.name.replace(f"-x{self.pruning_factor:g}", "-trials", 1)

    @property
    def name(self) -> str:
        """The name of the run's folder, its main choices and a short hash of all others that are not the default."""
        dataset = Path(self.dataset).name or "images"
        factor = "" if self.method == "unpruned" else f"-x{self.pruning_factor:g}"
        shown = ("model", "method", "pruning_factor", "preset", "seed", "weights")
        usual = RunConfig(method=self.method)
        method, model = self.method.rpartition(":")[2], self.model.rpartition(":")[2]
        rest = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != getattr(usual, field.name) and field.name not in shown
        }
        if self.source:  # the file's place does not matter
            rest["source"] = self.source
        if model != self.model:
            rest["model"] = self.model
        if rest.get("dataset") == dataset:
            del rest["dataset"]
        digest = "-" + hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:6] if rest else ""
        return f"{dataset}-{model:.60}-{method}{factor}-seed{self.seed}-{self.preset}{digest}"


def _check_texts(config: RunConfig) -> None:
    for name, longest in LONGEST_TEXTS.items():
        value = getattr(config, name)
        if not (isinstance(value, str) or (value is None and name in ("metric", "start", "weights"))):
            raise BarError(f"{name} must be text, not {shown(value)}")
        if value == "" or not is_plain(value or "x") or len(value or "x") > longest:
            raise BarError(
                f"{name} must be text of 1 to {longest:,} characters, without those that cannot be written, "
                f"not {len(value):,} characters: {value!r:.60}"
            )


def _check_kinds(config: RunConfig) -> None:
    if not (config.distill is None or isinstance(config.distill, bool)):
        raise BarError(f"distill must be True, False or None, not {shown(config.distill)}")
    if not (isinstance(config.options, Mapping) and all(isinstance(name, str) for name in config.options)):
        raise BarError(f"options must be a mapping of names to values, not {shown(config.options)}")
    for name in ("source", "model_source", "weights_source"):
        if not isinstance(value := getattr(config, name), str | None):
            raise BarError(f"{name} must be a SHA-256 in hexadecimal, not {shown(value)}")


def _check_dataset(config: RunConfig) -> None:
    try:
        folder = Path(config.dataset).expanduser()
    except RuntimeError as error:
        raise BarError(f"dataset is {config.dataset!r}, but there is no such user's home here") from error
    if folder.is_absolute() and folder == folder.parent:
        raise BarError(f"dataset is {config.dataset!r}: that is the whole file system, not a folder of images")
    # photos/ and ./photos are photos, and no run of their own; but ./digits is a folder, and digits is none
    if config.dataset and (plain := str(Path(config.dataset))) not in available():
        object.__setattr__(config, "dataset", plain)


def _check_numbers(config: RunConfig) -> None:
    factor = config.pruning_factor
    # compared without a conversion, which an int too large for a float would not survive
    if isinstance(factor, bool) or not (isinstance(factor, int | float) and abs(factor) <= sys.float_info.max):
        raise BarError(f"the pruning factor must be a number above 1, not {shown(factor)}")
    if config.method != "unpruned" and factor <= 1:
        raise BarError(f"the pruning factor must be above 1, not {factor:g}: 4 leaves a quarter")
    if config.epochs is not None:
        object.__setattr__(config, "epochs", _checked_epochs(config.epochs))
    for name, (least, most) in WHOLE_NUMBERS.items():
        value = getattr(config, name)
        if not (_whole(value, least, most) or (name != "seed" and value is None)):
            bound = f"<= {most}" if isinstance(value, int) and value > most else f">= {least}"
            raise BarError(f"{name} must be a whole number {bound}, not {shown(value)}")
    _check_size(config)


def _check_size(config: RunConfig) -> None:
    if config.dataset == "digits" and config.size is not None and config.size > MOST_SIZE_OF_DIGITS:
        raise BarError(
            f"size of the digits, which are scans of 8x8, is at most {MOST_SIZE_OF_DIGITS}, not {config.size}"
        )


def _checked_epochs(given: object) -> tuple[int, int, int]:
    epochs = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(epochs) != 3 or not all(_whole(e, 0, MOST_EPOCHS) for e in epochs) or epochs[0] < 1:
        raise BarError(
            "epochs must be three whole numbers (pruning >= 1, tuning, cool-down), each at most "
            f"{MOST_EPOCHS:,}, not ({', '.join(map(shown, epochs[:4]))}{', …' * (len(epochs) > 4)})"
        )
    return epochs


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def total_epochs(config: RunConfig, trial: bool = False) -> int:
    """Return the epochs of a run without those of runs and trials that it needs first; or those of one ``trial``.

    Examples
    --------
    >>> total_epochs(RunConfig(epochs=(10, 5, 2)))
    17
    """
    return sum(epochs for name, epochs, _ in config.phases if name == "prune" or not trial)

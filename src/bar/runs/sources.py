"""The figures and tables of the three sources, and the runs that show each of them here, on the scale of a laptop.

BAR is listed whole, with its supplement. What is at hand of Learning-Compression is a summary with one figure of
results, and of weight reparametrization a poster whose results are drawn, without numbers: their parts are named after
what they show. The digits, and a part of CIFAR-10 as JPEG files, stand for the papers' own data; which numbers can be
compared with a paper's, the chapters tell.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bar.errors import BarError, nearest
from bar.runs.config import RunConfig


@dataclass(frozen=True)
class Sweep:
    """Every method at every factor with every seed, as one `bar sweep` makes them.

    Parameters
    ----------
    methods, factors, seeds : tuple
        Of the runs.
    options : mapping of str to value
        What else is not as usual: fields of `RunConfig`.

    Examples
    --------
    >>> sweep = Sweep(("bar", "l0"), (4.0,), (0, 1), {"distill": False, "epochs": (2, 1, 0)})
    >>> len(sweep.configs), sweep.command
    (4, 'bar sweep -m bar -m l0 -x 4 -s 0 -s 1 --no-distill --epochs 2 1 0')
    """

    methods: tuple[str, ...]
    factors: tuple[float, ...]
    seeds: tuple[int, ...]
    options: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The runs, in the order of `bar sweep`."""
        return tuple(
            RunConfig(method=method, pruning_factor=factor, seed=seed, **self.options)
            for seed in self.seeds
            for factor in self.factors
            for method in self.methods
        )

    @property
    def command(self) -> str:
        """What is typed to make them."""
        words = ["bar sweep"]
        for option, values in (("-m", self.methods), ("-x", self.factors), ("-s", self.seeds)):
            words += [f"{option} {value}" if isinstance(value, str) else f"{option} {value:g}" for value in values]
        for name, value in self.options.items():
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no-'}{name}")
            else:
                words.append(f"--{name} " + " ".join(map(str, value if isinstance(value, tuple) else (value,))))
        return " ".join(words)


@dataclass(frozen=True)
class Exhibit:
    """A figure or a table of a source.

    Parameters
    ----------
    name : str
        The source, a slash, and what it is called there.
    what : str
        What it shows.
    chapter : str
        The notebook that shows it, without its ending.
    here : tuple of Sweep
        What makes its records on this machine; none if it is an explanation, or beyond this machine.
    gpu : tuple of Sweep
        What makes it on the source's own scale, or near it, with a GPU and perhaps days.
    """

    name: str
    what: str
    chapter: str
    here: tuple[Sweep, ...] = ()
    gpu: tuple[Sweep, ...] = ()

    @property
    def source(self) -> str:
        """``bar``, ``lc`` or ``reparametrization``."""
        return self.name.partition("/")[0]

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """The runs that make its records here, each once, in their order."""
        return tuple(dict.fromkeys(config for sweep in self.here for config in sweep.configs))


RIVALS = (
    "random", "magnitude", "vector-quantization", "interpolative", "l0", "information-bottleneck", "morphnet",
)  # fmt: skip
ITERATIVE, LEARNED = RIVALS[:4], RIVALS[4:]
FACTORS, ENDS = (2.0, 4.0, 8.0, 16.0), (2.0, 16.0)
SEEDS, MORE_SEEDS = (10, 11, 12), (10, 11, 12, 13, 14)

JPEG = {"dataset": "cifar10-jpeg", "model": "wrn-16-2", "size": 16, "limit": 5000}
CIFAR10, CIFAR100 = (
    {"dataset": name, "model": "wrn-28-12", "preset": "paper"} for name in ("cifar10", "cifar100")
)  # fmt: skip
# On Mio-TCD all start from the unpruned network; iterative pruning keeps its 40 + 10 epochs (supp. 3).
MIO = {"dataset": "path/to/MIO-TCD-Classification", "size": 128, "model": "resnet50", "preset": "paper"}
MIO_LEARNED = MIO | {"epochs": (40, 20, 10), "start": "unpruned"}
MIO_ITERATIVE = MIO | {"epochs": (40, 40, 10)}

BAR_HERE = (
    Sweep(("bar",), FACTORS, MORE_SEEDS),
    Sweep(("bar",), (4.0, 16.0), MORE_SEEDS, JPEG),
)
BAR_GPU = tuple(Sweep(("bar",), FACTORS, (0,), options) for options in (CIFAR10, CIFAR100, MIO_LEARNED))
FLOPS_HERE = Sweep(("bar",), FACTORS, SEEDS, {"metric": "flops"})
FLOPS_GPU = Sweep(("bar",), FACTORS, (0,), CIFAR10 | {"metric": "flops"})
RIVALS_HERE = (
    Sweep(RIVALS, FACTORS, SEEDS),
    Sweep(ITERATIVE, (4.0, 16.0), MORE_SEEDS, JPEG),  # the others' weights are tuned first, by bench/comparison.py
)
RIVALS_GPU = (
    *(Sweep(RIVALS, FACTORS, (0,), options) for options in (CIFAR10, CIFAR100)),
    Sweep(ITERATIVE, FACTORS, (0,), MIO_ITERATIVE),
    Sweep(LEARNED, FACTORS, (0,), MIO_LEARNED),
)

ZEROING = ("mp", "mp-ft", "reparametrization")
SHARES = (10.0, 100.0)  # a tenth and a hundredth of the weights stay
RATES = (10.0, 20.0, 33.0, 100.0)  # 90, 95, 97 and 99 % of the weights go


def _zeroing(model: str, **more: object) -> Sweep:
    return Sweep(ZEROING, RATES, (0,), {"dataset": "cifar10", "model": model, "preset": "paper"} | more)


EXHIBITS = (
    Exhibit("bar/figure-1", "The log barrier, and the barrier function f(V, a, b).", "02_barrier"),
    Exhibit("bar/figure-2", "The sigmoidal transition of the budget margin.", "03_schedule"),
    Exhibit("bar/figure-3", "A residual block, and a pooling block that breaks the residual signal.",
            "05_resnet_surgery"),
    Exhibit("bar/figure-4", "The kinds of connectivity that pruning leaves in a residual block.", "05_resnet_surgery"),
    Exhibit("bar/figure-5", "A part of a pruned ResNet, with and without what is dead.", "05_resnet_surgery"),
    Exhibit("bar/figure-6", "Test accuracy of BAR and seven rivals over the factors of volume and of FLOPs.",
            "07_baselines", BAR_HERE + RIVALS_HERE, BAR_GPU + RIVALS_GPU),
    Exhibit("bar/table-1", "BAR without distillation, and with another schedule, at factors 2 and 16.", "07_baselines",
            (Sweep(("bar",), ENDS, MORE_SEEDS), Sweep(("bar",), ENDS, SEEDS, {"distill": False}),
             *(Sweep(("bar",), ENDS, SEEDS, {"schedule": name}) for name in ("linear", "exponential"))),
            (Sweep(("bar",), ENDS, (0,), CIFAR10), Sweep(("bar",), ENDS, (0,), CIFAR10 | {"distill": False}),
             Sweep(("bar",), ENDS, (0,), CIFAR10 | {"schedule": "linear"}))),
    Exhibit("bar/figure-7", "Neurons in each residual block, full and at four factors.", "07_baselines",
            BAR_HERE, BAR_GPU),
    Exhibit("bar/table-2", "Volume that mixed connectivity saves, of what regular blocks would keep.", "06_results",
            BAR_HERE, BAR_GPU),
    Exhibit("bar/figure-8", "BAR with a budget of volume, and with one of FLOPs.", "07_baselines",
            (BAR_HERE[0], FLOPS_HERE), (BAR_GPU[0], FLOPS_GPU)),
    Exhibit("bar/supplement-figure-1", "Densities and quantiles of binary concrete and hard concrete variables.",
            "01_distributions"),
    Exhibit("bar/supplement-5", "Three tables: volume and FLOPs with regular and with mixed blocks.", "06_results",
            BAR_HERE, BAR_GPU),
    Exhibit("bar/supplement-6", "Three tables: the numbers behind figures 6 and 8.", "07_baselines",
            (*BAR_HERE, FLOPS_HERE, *RIVALS_HERE), (*BAR_GPU, FLOPS_GPU, *RIVALS_GPU)),
    Exhibit("lc/figure-4", "Loss and error over the weights that are kept, beside magnitude pruning.",
            "08_learning_compression", (Sweep(("learning-compression", "mp", "mp-ft"), SHARES, SEEDS),),
            (Sweep(("learning-compression", "mp", "mp-ft"), RATES, (0,),
                   {"dataset": "cifar10", "model": "resnet18", "preset": "paper"}),)),
    Exhibit("reparametrization/function", "The function that makes a weight its own mask.",
            "09_weight_reparametrization"),
    Exhibit("reparametrization/conv4", "Accuracy over the pruning rate: Conv4 on CIFAR-10.",
            "09_weight_reparametrization", (Sweep(ZEROING, SHARES, SEEDS, {"model": "conv4"}),), (_zeroing("conv4"),)),
    Exhibit("reparametrization/vgg19", "Accuracy over the pruning rate: VGG19 on CIFAR-10.",
            "09_weight_reparametrization",
            (Sweep(ZEROING, SHARES, SEEDS, {"model": "vgg11_bn-by-8", "size": 32}),), (_zeroing("vgg19_bn"),)),
    Exhibit("reparametrization/resnet18", "Accuracy over the pruning rate: ResNet18 on CIFAR-10.",
            "09_weight_reparametrization", (Sweep(ZEROING, SHARES, SEEDS),), (_zeroing("resnet18"),)),
    Exhibit("reparametrization/conv4-tinyimagenet", "Accuracy over the pruning rate: Conv4 on TinyImageNet.",
            "09_weight_reparametrization", (), (_zeroing("conv4", dataset="path/to/tiny-imagenet-200"),)),
)  # fmt: skip


def find(names: Iterable[str], exhibits: tuple[Exhibit, ...] = EXHIBITS) -> tuple[Exhibit, ...]:
    """The figures and tables that are asked for.

    Parameters
    ----------
    names : iterable of str
        Of exhibits, or of a source for all of it; all if there are none.
    exhibits : tuple of Exhibit
        What there is.

    Raises
    ------
    BarError
        If there is nothing of a name; the message has the nearest.

    Examples
    --------
    >>> [exhibit.name for exhibit in find(["bar/table-1", "lc"])]
    ['bar/table-1', 'lc/figure-4']
    """
    wanted = set(names)
    known = {exhibit.name for exhibit in exhibits} | {exhibit.source for exhibit in exhibits}
    for name in sorted(wanted - known):
        raise BarError(f"no figure or table is called {name!r:.60}: {nearest(name, known)}")
    return tuple(e for e in exhibits if not wanted or {e.name, e.source} & wanted)

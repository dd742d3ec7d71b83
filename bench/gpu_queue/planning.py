"""What is run, in which order, and with which settings."""

import itertools
from dataclasses import dataclass

from bar import RunConfig

DATASET = "cifar10-jpeg"
# Those that search for a sparsity weight take longest and come first, so that no process is left alone with one.
METHODS = (
    "l0", "information-bottleneck", "bar", "uniform", "morphnet", "magnitude", "random", "vector-quantization",
    "interpolative",
)  # fmt: skip
# plain: as `bar run` trains; benchmark: and cuDNN tries its algorithms; compiled: and by torch.compile; graphs: and the
# forward and the backward are launched as a whole each, which shows what launching kernel after kernel costs.
VARIANTS = {"plain": None, "benchmark": None, "compiled": "default", "graphs": "reduce-overhead"}


@dataclass(frozen=True)
class Plan:
    """The sizes of everything.

    Attributes
    ----------
    model, methods, factors, seeds, epochs, batch_size
        Of the comparison. All seeds of the first factors come before the next factors.
    size : int or None
        Side of the images, if it is not their own.
    wide, batches : str, tuple of int
        The network whose throughput is measured, and its batches, those that tell most first.
    compiler : str
        Of torch.compile.
    paper_model, paper_epochs
        Of the runs with the preset "paper"; its epochs, or fewer.
    """

    model: str = "wrn-16-2"
    methods: tuple[str, ...] = METHODS
    factors: tuple[tuple[float, ...], ...] = ((4.0, 16.0), (2.0, 8.0))
    seeds: tuple[int, ...] = (10, 11, 12)
    epochs: tuple[int, int, int] = (8, 4, 1)
    batch_size: int = 256
    size: int | None = None
    wide: str = "wrn-28-12"
    batches: tuple[int, ...] = (512, 256, 1024, 128)
    compiler: str = "inductor"
    paper_model: str = "wrn-16-4"
    paper_epochs: tuple[int, int, int] = (80, 40, 10)

    def comparison(self) -> list[RunConfig]:
        """Part 1: the methods, several seeds, on one network with settings for a short time."""
        return [
            RunConfig(
                dataset=DATASET, model=self.model, method=method, pruning_factor=factor, seed=seed, size=self.size,
                epochs=self.epochs, batch_size=self.batch_size,
            )
            for factors in self.factors
            for seed, method, factor in itertools.product(self.seeds, self.methods, factors)
        ]  # fmt: skip

    def throughput(self) -> list[tuple[str, int, str]]:
        """Part 2: network, batch size and variant of each measurement; compiling takes long and comes last."""
        wide = [(self.wide, batch, variant) for variant in ("benchmark", "plain") for batch in self.batches]
        narrow = [(self.model, self.batch_size, variant) for variant in VARIANTS]
        return [*wide, *narrow[:2], *((self.wide, batch, "compiled") for batch in self.batches), *narrow[2:]]

    def paper(self) -> list[RunConfig]:
        """Part 3: BAR with the paper's settings."""
        usual = RunConfig(preset="paper").settings
        own = self.paper_epochs != (usual.prune_epochs, usual.finetune_epochs, usual.cooldown_epochs)
        return [
            RunConfig(
                dataset=DATASET, model=self.paper_model, pruning_factor=factor, preset="paper", seed=self.seeds[0],
                size=self.size, epochs=self.paper_epochs if own else None,
            )
            for factor in (16.0, 4.0)
        ]  # fmt: skip


FULL = Plan()
MINIATURE = Plan(
    model="wrn-10-1", methods=("l0", "bar", "uniform", "magnitude"), factors=((4.0,), (2.0,)), seeds=(10,),
    epochs=(1, 1, 0), batch_size=12, size=8, wide="wrn-10-1", batches=(8,), compiler="eager", paper_model="wrn-10-1",
    paper_epochs=(1, 1, 0),
)  # fmt: skip

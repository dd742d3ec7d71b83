"""A run: a configuration and a seed, turned into a folder of records and a pruned network."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bar import data, files, machine, methods, models, schema, storage
from bar.cost import METRICS, Cost, count
from bar.errors import BarError, in_one_line
from bar.inference import fold
from bar.methods import own
from bar.network import stride_first, trace, undisturbed
from bar.runs import outcome, resuming
from bar.runs.config import RunConfig
from bar.runs.places import CONFIG, RESULT, alone, make_folder, place, tidy
from bar.runs.reading import read
from bar.runs.searching import search
from bar.surgery import gate, prune
from bar.training import Pruner, Training, check_shares, fabric_on, steps_per_epoch, torchrun_processes

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOST = "a process of this run has died"  # how the message of its end begins
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path | str | None = None,
    *,
    root: Path | str | None = None,
    device: str = "auto",
    processes: int | None = None,
    resume: bool = True,
    report: Callable[[RunConfig, dict], None] = lambda config, record: None,
    tick: Callable[[RunConfig], None] = lambda config: None,
    placed: Callable[[Path], None] = lambda folder: None,
) -> dict:
    """Train and prune as configured, and record the run; a run that is already recorded is not run again.

    A record holds the fingerprint of its data (`bar.data.Dataset.fingerprint`): once images have been added, removed or
    changed, the same config is another run, and needs another folder.

    The unpruned network is run first, in a folder beside this one, unless that has been done: it is the teacher, and
    the accuracy to compare with. (With `weights` in the config it is only measured.) Training uses the training and
    validation images; the test images are used once, at the very end. An interrupted run goes on after the last epoch
    that it finished, and on a CPU ends with the same weights and records as an uninterrupted one.

    Parameters
    ----------
    config : RunConfig
        What to run.
    folder : path, optional
        Where the records go; default ``runs/<config.name>``. A folder of that name which holds a run on other images
        is left alone, and one beside it is taken (`place`). Gets config.json, metrics.jsonl (a line per epoch),
        result.json and the network (see `bar.load`).
    root : path, optional
        Where data sets live; default: the environment variable BAR_DATA, or ~/.cache/bar.
    device : str
        "auto", "cpu", "cuda", …
    processes : int, optional
        Share each batch among so many processes, each on a GPU of its own, or all on the CPU; default: one, or those
        that torchrun has started. Otherwise the program is started again for each of them, so this is for scripts and
        the command line. Gates and weights are the same in all processes, and on a network without batch norm the
        result is that of one process but for rounding; a batch norm sees only its process's share of a batch. If a
        process dies, the others end with an error, and the same call goes on after the last whole epoch.
    resume : bool
        Whether to go on from the checkpoint of an interrupted run; False starts over.
    report, tick : callable
        Called after each epoch with the config and its record (when resuming, first with those of the epochs that are
        over), and after each step with the config.
    placed : callable
        Called once, before anything is trained, with the folder where the records go.

    Returns
    -------
    dict
        The record: what result.json holds.

    Raises
    ------
    BarError
        If the run cannot be carried out; before anything is written, where that can be known before.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = run(RunConfig(pruning_factor=2, limit=64, epochs=(1, 0, 0)), folder + "/run")
    >>> record["volume"] <= record["budget"] == record["volume_full"] / 2
    True
    """
    if not isinstance(config, RunConfig):
        raise BarError(f"a run needs a bar.RunConfig, not a {type(config).__name__}")
    processes = _checked(processes)
    check_shares(config.settings, processes)
    launch = functools.cache(functools.partial(_launch, device, processes))  # once, when it is needed
    images = data.load(config.dataset, size=config.size, root=root, limit=config.limit)
    folder = Path("runs") / config.name if folder is None else Path(folder)
    if folder.name in ("", ".."):  # its parent is asked for
        folder = Path(os.path.abspath(folder))
    folder = place(folder, config, images.fingerprint)
    placed(folder)
    with undisturbed(torch.cuda.is_available()):  # a run seeds torch's global generators, which are the caller's
        return carry_out(Job(config, folder, images, launch, resume, report, tick))


def _checked(processes: int | None) -> int:
    """The number of processes that share the batches."""
    started = torchrun_processes()
    if processes is None:
        return started or 1
    if not (isinstance(processes, int) and processes >= 1):
        raise BarError(f"processes must be a whole number >= 1, not {processes!r}")
    if started not in (None, processes):
        raise BarError(f"torchrun has started {started} processes, but {processes} are asked for: leave that out")
    return processes


def _launch(device: str, processes: int) -> Fabric:
    place = machine.device_of(device)
    here = processes if torchrun_processes() is None else int(os.environ["LOCAL_WORLD_SIZE"])
    if place.type == "cuda" and here > torch.cuda.device_count():
        raise BarError(f"there are {torch.cuda.device_count()} GPUs here, too few for {here} processes")
    fabric = fabric_on(place, processes)
    fabric.launch()
    return fabric


@dataclass(frozen=True)
class Job:
    """A run to carry out; the fields are arguments of `run`, or made from them."""

    config: RunConfig
    folder: Path
    images: data.Dataset
    launch: Callable[[], Fabric]  # devices are taken once they are needed
    resume: bool
    report: Callable[[RunConfig, dict], None]
    tick: Callable[[RunConfig], None]

    @property
    def wanted(self) -> dict:
        """The config and the data's fingerprint, as config.json and the record hold them."""
        return self.config.recorded() | {"fingerprint": self.images.fingerprint}

    @property
    def prunes(self) -> bool:
        """Whether this run prunes; False for that of the unpruned network."""
        return self.config.method != "unpruned"

    def unpruned(self) -> Job:
        """Return the job of the unpruned network, in a folder beside this one."""
        config = self.config.unpruned
        folder = place(self.folder.parent / config.name, config, self.images.fingerprint)
        return replace(self, config=config, folder=folder)

    def prepare(self, network: nn.Module, **more) -> Pruner:
        """Build the method on a network, which it changes."""
        config, settings = self.config, self.config.settings
        return methods.build(
            config.method, network, input_size=self.images.input_size, settings=settings, factor=config.pruning_factor,
            steps_per_epoch=steps_per_epoch(self.images, settings), metric=config.metric, seed=config.seed,
            preset=config.preset, epochs=config.epochs, source=config.source, options=config.given, **more,
        )  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The starting point of a run."""

    network: nn.Module
    full: Cost  # of the unpruned network
    unpruned: Path | None  # the folder of its run
    taught: dict | None  # and its record; both None if this is that run


def carry_out(job: Job) -> dict:
    """Carry out a job, unless its run is recorded already; returns the record."""
    done = read(job.folder, job.wanted)
    if done is not None:
        storage.verify(job.folder, done)
        tidy(job.folder)  # a run may have been killed between its last file and this
        return done
    start = _start_of(job)
    fabric = job.launch()
    make_folder(job.folder)
    with _together(job, fabric), alone(job.folder) if fabric.is_global_zero else contextlib.nullcontext():
        done = _begin(job, fabric)
        if done is not None:
            return done
        Work(job, start, fabric).record()
    return read(job.folder)


@contextlib.contextmanager
def _together(job: Job, fabric: Fabric) -> Iterator[None]:
    """Say in one line that batches are too small, or that another process has died: torch's words are long."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise BarError(
            f"in batches of {job.config.settings.batch_size} images, shared by {fabric.world_size}, a batch norm has "
            "one number of a feature alone, and nothing to compare it with: take larger batches, or larger images"
        ) from error
    except RuntimeError as error:
        if fabric.world_size == 1:
            raise
        raise BarError(
            f"{LOST} ({in_one_line(error):.120}); the whole epochs are kept in {job.folder}: "
            "the same command goes on from there"
        ) from error


def _start_of(job: Job) -> Start:
    """Build the network, check that it can be pruned so far, and run the unpruned one first, if need be."""
    config, images = job.config, job.images
    checked = job.prunes and _can_be_pruned_hollow(job)
    torch.manual_seed(config.seed)
    network = models.build(config.model, images.num_classes, images.input_size, config.model_source)
    if config.weights and (config.start == "unpruned" or not job.prunes):
        models.load_weights(network, config.weights, config.weights_source)
    full = count(network, images.input_size)
    if models.is_own(config.model):
        _check_storable(network, images.input_size, job.prunes)
    first, taught = None, None
    if job.prunes:
        first = job.unpruned()
        if not checked or config.weights:
            job.prepare(copy.deepcopy(network))  # refuses what is impossible, before anything is trained
        taught = carry_out(first)
        if config.start == "unpruned" and not config.weights:
            _take_weights(network, first.folder)
    if not job.prunes or config.metric == "weights":  # the others train a traced network anyway
        network = stride_first(trace(network, images.input_size).module)
    return Start(network, full, first and first.folder, taught)


def _can_be_pruned_hollow(job: Job) -> bool:
    """Refuse what cannot be pruned, or not so far, before memory is allocated for the weights of a large network.

    Returns False where a network without memory cannot be asked: a user's own, and for methods that write weights.
    """
    config, images = job.config, job.images
    if own.is_own(config.method) or models.is_own(config.model):
        return False
    try:
        job.prepare(models.hollow(config.model, images.num_classes, images.input_size))
    except RuntimeError:
        return False
    return True


def _check_storable(network: nn.Module, input_size: Sequence[int], prunes: bool) -> None:
    """Refuse, before it is trained, a network that could not be stored afterwards, whole or pruned."""
    network = copy.deepcopy(network)
    found = [stride_first(trace(network, input_size).module)]
    if prunes:
        with contextlib.suppress(BarError):  # the method itself says why nothing can be pruned
            gated = gate(network, input_size)
            found += [
                prune(gated.keep_({n: torch.arange(len(g.alive)) % 2 == 0 for n, g in gated.gates.items()}).floor_())
            ]
    try:
        for one in found:
            storage.check(one)
    except BarError as error:
        raise BarError(f"the network of this run cannot be stored: {error}") from error


def _take_weights(network: nn.Module, folder: Path) -> None:
    """Give a network the weights of a stored one, which lacks what its forward does not read, such as other heads."""
    unknown = network.load_state_dict(storage.load(folder).state_dict(), strict=False).unexpected_keys
    if unknown:
        raise BarError(f"{folder} holds the weights of another network: this one has no {unknown[0]!r}")


def _begin(job: Job, fabric: Fabric) -> dict | None:
    """Return the record if another process has just made it; otherwise write the config into the folder."""
    done = fabric.broadcast(read(job.folder, job.wanted) if fabric.is_global_zero else None)
    if done is None:
        if fabric.is_global_zero:
            files.write_text(job.folder / CONFIG, json.dumps({"format": schema.FORMAT} | job.wanted, indent=1))
            if not job.resume:
                storage.remove_checkpoints(job.folder)
        fabric.barrier()
    return done


class Work:
    """A run in progress, alone in its folder.

    Parameters
    ----------
    job : Job
        The run to carry out.
    start : Start
        Its starting point.
    fabric : Fabric
        Its devices and processes.
    """

    def __init__(self, job: Job, start: Start, fabric: Fabric) -> None:
        self.job, self.start, self.fabric = job, start, fabric
        self.code = {"commit": machine.commit(), "source_tree": machine.source_tree()}  # files may change meanwhile
        if fabric.device.type == "cuda":  # what an earlier run has taken does not count
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(fabric.device)
        self.images = job.images.to(fabric.device)
        if fabric.world_size > 1 and fabric.is_global_zero:
            self._warn_of_norms()
        taught = start.taught and job.config.distill
        self.teacher = teacher_in(start.unpruned, fabric.device) if taught else None

    def _warn_of_norms(self) -> None:
        images, processes = self.job.config.settings.batch_size, self.fabric.world_size
        if any(isinstance(module, NORMS) for module in self.start.network.modules()):
            log.warning(
                "%s: a batch norm sees the %d images of its own process, not all %d of a batch: the result is not that "
                "of one process", self.job.folder, images // processes, images,
            )  # fmt: skip

    def record(self) -> None:
        """Train, store the network, and write the record last."""
        config, folder, fabric, taught = self.job.config, self.job.folder, self.fabric, self.start.taught
        trained = self._pruned() if self.job.prunes else self._train(self.start.network, config.phases)
        if fabric.is_global_zero:
            storage.save(trained.network, folder)
        fabric.barrier()
        compared = taught["accuracy"] if taught else None
        held = self.job.wanted | outcome.of_run(config, self.images, self.start.full, trained, folder, compared)
        held |= outcome.of_machine(fabric.device, fabric.world_size, self.code)
        _check_budget(config, held)
        if fabric.is_global_zero:
            files.write_text(folder / RESULT, json.dumps(held, indent=1))
            tidy(folder)
        fabric.barrier()

    def _pruned(self) -> outcome.Trained:
        """Prune and train to the end, after a search for the sparsity weight if the method needs one and has none."""
        job, weight, found = self.job, {}, None
        if job.config.kind.searched and job.config.values["lam"] is None:
            trials = job.folder.parent / f"{job.config.trials}-data{self.images.fingerprint[:8]}"
            found = search(job.config, trials, self.start.full, self.fabric, self._try)
            weight = {"lam": found["lambda"]}
        pruner = job.prepare(self.start.network, **weight)
        return replace(self._train(pruner.network, job.config.phases, pruner), search=found)

    def _try(self, lam: float, folder: Path) -> tuple[dict, float]:
        """Train the pruning phases on a copy of the network with a sparsity weight; returns last record, seconds."""
        if not self.job.resume and self.fabric.is_global_zero:
            storage.remove_checkpoints(folder)
        pruner = self.job.prepare(copy.deepcopy(self.start.network), lam=lam, settle=False)
        phases = [phase for phase in self.job.config.phases if phase[0] == "prune"]
        trained = self._train(pruner.network, phases, pruner, folder, {"lambda": lam})
        return trained.epochs[-1], trained.seconds

    def _train(
        self, network: nn.Module, phases: list, pruner: Pruner | None = None, folder: Path | None = None,
        trial: dict | None = None,
    ) -> outcome.Trained:  # fmt: skip
        """Train to the end, in the run's folder or in that of a trial, which reports and checkpoints then name."""
        config = self.job.config
        torch.manual_seed(config.seed)
        training = Training(
            network.to(self.fabric.device, memory_format=torch.channels_last), self.images, phases, config.settings,
            torch.Generator().manual_seed(config.seed), teacher=self.teacher, pruner=pruner, fabric=self.fabric,
            tick=lambda: self.job.tick(config),
        )  # fmt: skip
        epochs, seconds = resuming.train(
            training, folder or self.job.folder, trial or self.job.wanted,
            lambda record: self.job.report(config, record | (trial or {})),
        )  # fmt: skip
        return outcome.Trained(training.network, epochs, seconds, pruner)


def _check_budget(config: RunConfig, held: dict) -> None:
    """Refuse what is larger than it may be, as the network of a user's own method can be."""
    if config.metric not in METRICS:  # the methods that zero single weights keep to their number by construction
        return
    size, budget = held[config.metric], held[f"{config.metric}_full"] / config.pruning_factor
    if size > budget:
        raise BarError(
            f"{config.method} has left a network with a {config.metric} of {size:,}, above the budget of "
            f"{budget:,.0f}, so nothing is recorded: its cut() must return one that fits"
        )


def teacher_in(folder: Path, device: torch.device | str) -> nn.Module:
    """Load an unpruned network for inference only: batch norms folded, in bfloat16 where that is twice as fast."""
    device = torch.device(device)
    native = device.type == "cuda" or getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    teacher = fold(storage.load(folder)).to(device, memory_format=torch.channels_last)
    return teacher.to(torch.bfloat16) if native else teacher

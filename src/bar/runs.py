"""A run: a configuration and a seed, turned into a folder of records and a pruned network; and reading them back."""

import contextlib
import copy
import functools
import io
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pandas as pd
import torch
import torchvision
from lightning_fabric import Fabric
from torch import nn

from bar import data, files, machine, methods, models, schema, storage
from bar.config import RunConfig
from bar.cost import Cost, count
from bar.errors import BarError, shown
from bar.inference import fold
from bar.methods import own
from bar.methods.search import chosen, next_weight
from bar.methods.weights import weights_of
from bar.network import stride_first, trace, undisturbed
from bar.training import Pruner, Training, accuracy, check_shares, fabric_on, steps_per_epoch

CONFIG, METRICS_FILE, RESULT, LOCK = schema.CONFIG, "metrics.jsonl", schema.RESULT, ".lock"
TRIAL = schema.TRIAL  # what one weight of sparsity leads to
# What a run may leave that ends before it has written its config: it waited for the unpruned network, or was killed.
_BEFORE = re.compile(rf"{re.escape(LOCK)}|tensorboard|{re.escape(CONFIG)}\.\d+\.partial")

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path | str | None = None,
    *,
    root: Path | str | None = None,
    device: str = "auto",
    processes: int = 1,
    resume: bool = True,
    report: Callable[[RunConfig, dict], None] = lambda config, record: None,
    tick: Callable[[RunConfig], None] = lambda config: None,
    placed: Callable[[Path], None] = lambda folder: None,
) -> dict:
    """Train and prune as configured, and record it; a run that is already recorded is not run again.

    A record knows its data (`bar.data.Dataset.fingerprint`): once images have been added, removed or changed, the same
    config is another run, and needs another folder.

    The unpruned network is run first, in a folder beside this one, unless that has been done: it is the teacher, and
    the accuracy to compare with. Training looks at the training and validation images; the test images are looked at
    once, at the very end. A run that was interrupted, by whatever, goes on after the last epoch that it finished, and
    on a CPU ends with the same weights and records as if it had not been.

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
    processes : int
        Share each batch among so many processes, each on a GPU of its own, or all on the CPU. The program is started
        again for each of them, so this is for scripts and the command line.
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
        For anything that cannot be served: before anything is written, where it can be known before.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = run(RunConfig(pruning_factor=2, limit=64, epochs=(1, 0, 0)), folder + "/run")
    >>> record["volume"] <= record["budget"] == record["volume_full"] / 2
    True
    """
    if not (isinstance(processes, int) and processes >= 1):
        raise BarError(f"processes must be a whole number >= 1, not {processes!r}")
    check_shares(config.settings, processes)
    launch = functools.cache(functools.partial(_launched, device, processes))  # once, and not before it is needed
    images = data.load(config.dataset, size=config.size, root=root, limit=config.limit)
    folder = place(Path(folder) if folder is not None else Path("runs") / config.name, config, images.fingerprint)
    placed(folder)
    with undisturbed(torch.cuda.is_available()):  # a run seeds torch's global generators, which are the caller's
        return _run(config, folder, images, launch, resume, report, tick)


def place(folder: Path | str, config: RunConfig, fingerprint: str) -> Path:
    """Where a run that was given a folder is: there, or beside it.

    Parameters
    ----------
    folder : path
        What `run` was given, or would take.
    config : RunConfig
        The run's.
    fingerprint : str
        Of its data; records have it, too.

    Returns
    -------
    Path
        The folder; but if it is called ``config.name``, as nobody said otherwise, and holds a run on other images, or
        one from before records knew theirs, then that name and the first digits of the fingerprint.
    """
    folder = Path(folder)
    if folder.name != config.name:
        return folder
    try:
        held = schema.read(folder / CONFIG, schema.CONFIG_FIELDS).get("fingerprint")
    except BarError:  # there is none, or none that can be read, which `read` will say
        return folder
    return folder if held == fingerprint else folder.with_name(f"{folder.name}-data{fingerprint[:8]}")


def _launched(device: str, processes: int) -> Fabric:
    place = machine.device_of(device)
    if place.type == "cuda" and processes > torch.cuda.device_count():
        raise BarError(f"there are {torch.cuda.device_count()} GPUs here, too few for {processes} processes")
    fabric = fabric_on(place, processes)
    fabric.launch()
    return fabric


def _run(
    config: RunConfig, folder: Path, images: data.Dataset, launch: Callable[[], Fabric], resume: bool, report, tick
) -> dict:
    """`run`, on devices that are there already or about to be."""
    wanted = config.recorded() | {"fingerprint": images.fingerprint}
    done = read(folder, wanted)
    if done is not None:
        storage.verify(folder, done)
        _tidy(folder)  # a run may have been killed between its last file and this
        return done

    settings = config.settings
    if config.method != "unpruned":
        make = functools.partial(
            methods.build, config.method, input_size=images.input_size, settings=settings,
            factor=config.pruning_factor, steps_per_epoch=steps_per_epoch(images, settings), metric=config.metric,
            seed=config.seed, preset=config.preset, epochs=config.epochs, source=config.source, options=config.given,
        )  # fmt: skip
        # What cannot be pruned, or not so far, is refused before memory is taken for the weights of a large network.
        # Some methods write weights, which this one does not allow: they, and anybody's own, are asked below.
        if not own.is_own(config.method):
            with contextlib.suppress(RuntimeError):
                make(models.hollow(config.model, images.num_classes, images.input_size))
    torch.manual_seed(config.seed)
    network = models.build(config.model, images.num_classes, images.input_size)
    full = count(network, images.input_size)
    unpruned = place(folder.parent / config.unpruned.name, config.unpruned, images.fingerprint)
    taught, pruner = None, None
    if config.method != "unpruned":
        make(copy.deepcopy(network))  # what cannot be is refused before anything is trained
        taught = _run(config.unpruned, unpruned, images, launch, resume, report, tick)
        if config.start == "unpruned":
            network.load_state_dict(storage.load(unpruned).state_dict())
    if config.method == "unpruned" or config.metric == "weights":  # the others train a traced network anyway
        network = stride_first(trace(network, images.input_size).module)
    fabric = launch()
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) if fabric.is_global_zero else contextlib.nullcontext():
        done = _begun(folder, wanted, resume, fabric)
        if done is not None:
            return done
        revision, device, search = machine.commit(), fabric.device, None
        images = images.to(device)
        teacher = teacher_in(unpruned, device) if taught and config.distill else None

        def train(network: nn.Module, phases: list, pruner: Pruner | None, folder: Path, held: dict, told: dict):
            torch.manual_seed(config.seed)
            training = Training(
                network.to(device, memory_format=torch.channels_last), images, phases, settings,
                torch.Generator().manual_seed(config.seed), teacher=teacher, pruner=pruner, fabric=fabric,
                tick=lambda: tick(config),
            )  # fmt: skip
            return training, *_train(training, folder, held, lambda record: report(config, record | told))

        if config.method == "unpruned":
            training, epochs, seconds = train(network, config.phases, None, folder, wanted, {})
        else:
            weight = {}
            if config.kind.searched:
                trials = folder.parent / f"{config.trials}-data{images.fingerprint[:8]}"
                search = _search(config, trials, _trials(config, network, make, train), full, fabric)
                weight = {"lam": search["lambda"]}
            pruner = make(network, **weight)
            training, epochs, seconds = train(pruner.network, config.phases, pruner, folder, wanted, {})
        network = training.network
        cut = _cut_of(epochs)
        cost = count(network, images.input_size)
        if fabric.is_global_zero:
            storage.save(network, folder)
        fabric.barrier()
        test = accuracy(network, images.test, images)
        result = wanted | {
            "format": schema.FORMAT,
            "dataset_label": images.label,
            "training_images": len(images.train),
            "input_size": list(images.input_size),
            "mean": list(images.mean),
            "std": list(images.std),
            "settings": config.recorded_settings(),
            "accuracy": test,
            "accuracy_unpruned": taught["accuracy"] if taught else test,
            "validation_accuracy": accuracy(network, images.validation, images),
            "accuracy_cut": cut.get("accuracy_cut"),
            "accuracy_recalibrated": cut.get("accuracy"),
            "size_before_settling": cut.get("size_before_settling"),
            "volume_regular": cut.get("volume_regular"),
            "flops_regular": cut.get("flops_regular"),
            "volume": cost.volume,
            "volume_full": full.volume,
            "volume_factor": full.volume / cost.volume,
            "flops": cost.flops,
            "flops_full": full.flops,
            "flops_factor": full.flops / cost.flops,
            **_weights(network, pruner),
            "parameters": cost.parameters,
            "parameters_full": full.parameters,
            "budget": cut.get("budget", full.volume),
            "search": search,
            **_layers(cost, full),
            "weights_sha256": storage.digest(folder / storage.WEIGHTS),
            "architecture_sha256": storage.digest(folder / storage.ARCHITECTURE),
            "seconds": seconds,
            "hardware": machine.hardware(device),
            "processes": fabric.world_size,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
            "commit": revision,
        }
        if fabric.is_global_zero:
            files.write_text(folder / RESULT, json.dumps(result, indent=1))
            _tidy(folder)
        fabric.barrier()
    return read(folder)


def _begun(folder: Path, wanted: dict, resume: bool, fabric: Fabric) -> dict | None:
    """The record, if another process has just made it; else the folder holds the config from now on."""
    done = fabric.broadcast(read(folder, wanted) if fabric.is_global_zero else None)
    if done is None:
        if fabric.is_global_zero:
            files.write_text(folder / CONFIG, json.dumps({"format": schema.FORMAT} | wanted, indent=1))
            if not resume:
                storage.remove_checkpoints(folder)
        fabric.barrier()
    return done


def _trials(config: RunConfig, network: nn.Module, make: Callable, train: Callable) -> Callable:
    """What tries a weight of sparsity: the phases that prune, on a copy of the network."""
    pruning = [phase for phase in config.phases if phase[0] == "prune"]

    def trial(lam: float, folder: Path) -> tuple[dict, float]:
        pruner, mine = make(copy.deepcopy(network), lam=lam, settle=False), {"lambda": lam}
        _, epochs, seconds = train(pruner.network, pruning, pruner, folder, mine, mine)
        return epochs[-1], seconds

    return trial


def _cut_of(epochs: list[dict]) -> dict:
    """The record of the cut, empty where nothing is cut."""
    return next((record for record in epochs if record["phase"] == "cut"), {})


def _layers(cost: Cost, full: Cost) -> dict:
    """What is left of each convolution of the full network, and what there was."""
    return {
        "features": {name: _features(cost, name) for name in full.layers},
        "features_full": {name: layer["features"] for name, layer in full.layers.items()},
        "areas": {name: layer["area"] for name, layer in full.layers.items()},
    }


def _search(config: RunConfig, root: Path, train: Callable, full: Cost, fabric: Fabric) -> dict:
    """The weight of sparsity that meets the budget, by trials that all budgets share; each is kept in its folder."""
    limit = getattr(full, config.metric) / config.pruning_factor
    first = config.values["first"]

    def known() -> list[dict]:
        return [schema.read(path, schema.TRIAL_FIELDS) for path in sorted(root.glob(f"*/{TRIAL}"))]

    made = 0
    while True:
        fabric.barrier()
        sizes = [(trial["lambda"], trial[config.metric]) for trial in known()]
        lam = next_weight(sizes, limit, first, made=made)
        if lam is None:
            choice = chosen(sizes, limit)
            for path in root.glob(f"*/{TRIAL}") if fabric.is_global_zero else ():
                _tidy(path.parent)
            return {
                "lambda": choice.lam, "how": choice.how, "trials_made": made, "trials": known(),
                "seconds": sum(trial["seconds"] for trial in known()),
            }  # fmt: skip
        folder = root / f"{lam:.6g}"
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) if fabric.is_global_zero else contextlib.nullcontext():
            fabric.barrier()
            if not (folder / TRIAL).exists():  # another process may just have made it
                record, seconds = train(lam, folder)
                if fabric.is_global_zero:
                    trial = {"lambda": lam, "volume": record["volume"], "flops": record["flops"], "seconds": seconds}
                    files.write_text(folder / TRIAL, json.dumps(trial, indent=1))
                    _tidy(folder)
            fabric.barrier()
        made += 1


def teacher_in(folder: Path, device: torch.device | str) -> nn.Module:
    """A run's unpruned network, for inference only: batch norms folded, in bfloat16 where that is twice as fast."""
    device = torch.device(device)
    native = device.type == "cuda" or getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    teacher = fold(storage.load(folder)).to(device, memory_format=torch.channels_last)
    return teacher.to(torch.bfloat16) if native else teacher


def _train(training: Training, folder: Path, config: dict, report: Callable[[dict], None]) -> tuple[list[dict], float]:
    """Train to the end, keeping a checkpoint after each epoch; the records, and the seconds that it took."""
    first = training.fabric.is_global_zero  # of several processes, this one writes
    records: list[dict] = []
    seconds = 0.0
    for state in storage.load_checkpoints(folder, config, lambda state: training.load_state_dict(state["training"])):
        records, seconds = state["records"], state["seconds"]
        log.warning("%s: going on after %d epochs", folder, sum(r["phase"] != "cut" for r in records))
        break
    start = time.perf_counter()
    if not first:
        return records + list(training), seconds + time.perf_counter() - start
    files.write_text(folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in records))
    for record in records:
        report(record)
    for record in training:
        files.append_text(folder / METRICS_FILE, json.dumps(record) + "\n")
        records.append(record)
        storage.save_checkpoint({
            "config": config, "training": training.state_dict(), "records": records,
            "seconds": seconds + time.perf_counter() - start,
        }, folder)  # fmt: skip
        report(record)
    return records, seconds + time.perf_counter() - start


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two processes from training in one folder: the second one waits."""
    lock = filelock.FileLock(folder / LOCK)
    with files.writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("%s: another process is at work here; waiting for it", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _tidy(folder: Path) -> None:
    """Remove what a run that is recorded needs no more; where that is forbidden, it does no harm."""
    with contextlib.suppress(OSError):
        storage.remove_checkpoints(folder)
        (folder / LOCK).unlink(missing_ok=True)


def _weights(network: nn.Module, pruner: Pruner | None) -> dict:
    """How many weights are not 0, and how many there were, where single weights are pruned."""
    if not hasattr(pruner, "full"):
        return {}
    return {"weights": sum(int(w.count_nonzero()) for w in weights_of(network).values()), "weights_full": pruner.full}


def _features(cost: Cost, name: str) -> int:
    """What is left of a convolution; a grouped one may have become several, named ``name.0``, ``name.1``, …"""
    mine = re.compile(re.escape(name) + r"(\.\d+)?")
    return sum(layer["features"] for n, layer in cost.layers.items() if mine.fullmatch(n))


def total_epochs(config: RunConfig, trial: bool = False) -> int:
    """How many epochs a run takes by itself, without what it may need first; or, of a search, one trial."""
    return sum(epochs for name, epochs, _ in config.phases if name == "prune" or not trial)


def read(folder: Path | str, wanted: dict | None = None) -> dict | None:
    """The record of a run's folder, or None if it holds no finished run.

    Parameters
    ----------
    folder : path
        A run's folder; it need not exist.
    wanted : dict, optional
        The config that the folder must have been made with.

    Raises
    ------
    BarError
        If the folder holds another config, or a record that cannot be read.
    """
    folder = Path(folder)
    try:
        held = schema.read(folder / CONFIG, schema.CONFIG_FIELDS) if (folder / CONFIG).exists() else None
        if wanted is not None and held is not None:
            held.pop("format", None)
            usual = RunConfig(method=wanted["method"])  # for fields that are younger than the folder
            held = usual.recorded() | held
            differs = [k for k in {**held, **wanted} if held.get(k) != wanted.get(k)]
            if differs:
                if differs == ["fingerprint"]:
                    other = "on other images" if "fingerprint" in held else "from before records knew their images"
                    raise BarError(f"{folder} already holds this run {other}. Choose another folder, or remove it")
                what = ", ".join(
                    f"{ascii(k)[1:-1]:.60} {shown(held.get(k))} instead of {shown(wanted.get(k))}" for k in differs[:9]
                ) + ", …" * (len(differs) > 9)
                raise BarError(f"{folder} already holds another run: {what}. Choose another folder, or remove it")
        elif wanted is not None and folder.exists():
            others = [folder] if not folder.is_dir() else [p for p in folder.iterdir() if not _BEFORE.fullmatch(p.name)]
            if others:
                raise BarError(f"{folder} exists and is not the folder of a run; choose another")
        result = folder / RESULT  # a link to nothing is a record that is lost, not one that was never made
        return schema.read(result, schema.RESULT_FIELDS) if result.exists() or result.is_symlink() else None
    except OSError as error:
        raise BarError(f"cannot read the run in {folder}: {error.strerror or error}") from error


def metrics(folder: Path | str) -> pd.DataFrame:
    """The epochs of a run, a row each; columns as `bar.training.Training` and the method name them."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise BarError(f"{folder} holds no {METRICS_FILE}: is it the folder of a run?")
    try:
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a run that is at work, or was killed, may have begun a line
        if not all(isinstance(json.loads(line), dict) for line in whole.splitlines()):
            raise BarError("not every line holds the fields of an epoch")
        return pd.read_json(io.StringIO(whole), lines=True)
    except (OSError, ValueError, RecursionError) as error:
        raise BarError(f"cannot read {path}: {error}") from error


def records(*roots: Path | str) -> pd.DataFrame:
    """All finished runs below some folders, a row each, with a column ``folder``; empty if there are none.

    A record that cannot be read is left out, with a warning that names it.
    """
    found = []
    for root in roots:
        for path in sorted(Path(root).rglob("*.json")):  # by its whole name, a link to nothing would not be found
            if path.name != RESULT:
                continue
            try:
                found.append({**read(path.parent), "folder": str(path.parent)})
            except BarError as error:
                log.warning("left out: %s", error)
    return pd.DataFrame(found)

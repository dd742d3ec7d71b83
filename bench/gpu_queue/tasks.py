"""The tasks of a plan, the records that they leave, and how long they take."""

import functools
import hashlib
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import bar
from bar import data, files, machine, runs
from bar.runs.reproducing import seconds_of
from bar.runs.running import Job, carry_out
from bar.training import fabric_on, steps_per_epoch
from gpu_queue import throughput
from gpu_queue.images import images_on
from gpu_queue.planning import Plan
from gpu_queue.working import Task, check_time

KINDS = {1: "comparison", 2: "throughput", 3: "paper"}  # part -> folder of its records
TRIALS = 6  # of a search, about
STEP = {"unpruned": 0.01, "uniform": 0.01}  # seconds, guessed until one has been measured
OTHER_STEP = 0.02  # with gates and a teacher, likewise
MEASUREMENT = {"plain": 20.0, "benchmark": 20.0, "compiled": 90.0, "graphs": 60.0}  # seconds, likewise


def run(config: runs.RunConfig, folder: Path, root: Path, device: str, end: float) -> dict:
    """What `bar.run` does, with images that are loaded already; OutOfTime if the time is over before it ends."""
    fabric = fabric_on(device)
    fabric.launch()
    images = images_on(device, config.size, root)
    try:
        return carry_out(Job(config, folder, images, lambda: fabric, True, lambda *_: None, lambda _: check_time(end)))
    finally:
        torch.cuda.empty_cache()  # what this run no longer needs is for the others


@dataclass
class Records:
    """Where records are kept, and what is known from them.

    Parameters
    ----------
    out, work : Path
        Of the records, and of all else: images, networks and checkpoints.
    device : str
        Of all runs.
    at_once : int
        How many runs share the device; their seconds mean little without it.
    commit : str or None
        Of the code, for a copy of it that has no git.
    pack : Path or None
        A tar.gz of all records, made anew whenever there is one more.
    images : Dataset
        Of all runs.
    """

    out: Path
    work: Path
    device: str
    at_once: int
    commit: str | None
    pack: Path | None
    images: data.Dataset
    rates: dict[str, float] = field(default_factory=dict)  # of a method, measured: seconds a step

    @property
    def root(self) -> Path:
        """Where data sets live."""
        return self.work / "data"

    def has(self, part: int, config: runs.RunConfig) -> bool:
        """Whether a run is recorded; a BarError if its folder holds another run."""
        wanted = config.recorded() | {"fingerprint": self.images.fingerprint}
        record = runs.read(self.out / KINDS[part] / config.name, wanted)
        if record is not None and record["hardware"] == machine.hardware(self.device):
            self.rates.setdefault(config.method, seconds_of(record) / self.steps(config))
        return record is not None

    def steps(self, config: runs.RunConfig) -> int:
        """Steps of a run, those of its search included."""
        epochs = runs.total_epochs(config)
        if config.kind and config.kind.searched:
            epochs += TRIALS * runs.total_epochs(config, trial=True)
        return max(1, epochs * steps_per_epoch(self.images, config.settings))

    def seconds(self, config: runs.RunConfig) -> float:
        """About how long a run takes here."""
        guess = STEP.get(config.method, OTHER_STEP)
        return self.steps(config) * self.rates.get(config.method, guess)

    def keep_run(self, part: int, config: runs.RunConfig, place: Path, record: dict, seconds: float) -> str:
        """Copy the record of a run, without its weights; returns a line about it."""
        self.rates[config.method] = seconds / self.steps(config)
        folder = self.out / KINDS[part] / config.name
        if (folder / runs.RESULT).exists():  # others refer to it; each has the accuracy of its own teacher, too
            return f"{config.name}: trained again, since its weights are not in {self.work}; its record stays"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (runs.METRICS_FILE, runs.CONFIG):
            files.write(folder / name, (place / name).read_bytes())
        held = record | {"at_once": self.at_once} | self.told(record)
        files.write_text(folder / runs.RESULT, json.dumps(held, indent=1))  # last: it says that the others are there
        self.write_pack()
        pruned = f" of {record['accuracy_unpruned']:.2%} unpruned, volume / {record['volume_factor']:.2f}"
        return f"{config.name}: {record['accuracy']:.2%}{pruned if config.kind else ''}, {seconds:.0f} s"

    def keep_measurement(self, path: Path, record: dict, seconds: float) -> str:
        """Write what was measured; returns a line about it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held = record | self.told(record) | {"seconds": seconds}
        files.write_text(path, json.dumps(held, indent=1) + "\n")
        self.write_pack()
        share = "" if record["share_of_peak"] is None else f", {record['share_of_peak']:.1%} of the bf16 peak"
        return f"{path.stem}: {record['images_per_second']:,.0f} images a second{share}, {seconds:.0f} s"

    def told(self, record: dict) -> dict:
        """Where git does not know the commit: the one that was told, and the tree of the files that ran."""
        if record["commit"] is not None:
            return {}
        return {"commit": self.commit, "commit_told": True, "source_tree": tree_of(Path(bar.__file__).parent)}

    def write_pack(self) -> None:
        """Pack all records, which are small."""
        if self.pack is None:
            return
        partial = self.pack.with_name(f"{self.pack.name}.partial")
        with files.writing(self.pack):
            self.pack.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(self.pack, partial) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
                for kind in KINDS.values():
                    if (self.out / kind).is_dir():
                        tar.add(self.out / kind, kind)


def tree_of(folder: Path) -> str:
    """The hash that git has for a folder with these files, as `bar.machine.source_tree`, but without git."""
    entries = []
    for path in folder.iterdir():
        if path.name == "__pycache__":
            continue
        if path.is_dir():
            entries.append((f"{path.name}/", f"40000 {path.name}", bytes.fromhex(tree_of(path))))
        else:
            mode = "100755" if path.stat().st_mode & 0o100 else "100644"
            entries.append((path.name, f"{mode} {path.name}", bytes.fromhex(_hashed("blob", path.read_bytes()))))
    return _hashed("tree", b"".join(head.encode() + b"\0" + digest for _, head, digest in sorted(entries)))


def _hashed(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def of_runs(part: int, configs: Sequence[runs.RunConfig], records: Records) -> list[Task]:
    """Tasks for the runs that are not recorded; the unpruned network of each seed once, before those that need it."""
    tasks: dict[str, Task] = {}
    searched: dict[tuple, str] = {}
    for config in configs:
        if records.has(part, config):
            continue
        unpruned = config.unpruned
        needs = [unpruned.name]
        if not (records.has(part, unpruned) and runs.read(_place(records, unpruned))):  # its weights are needed, too
            tasks.setdefault(unpruned.name, _task(part, unpruned, records, ()))
        if config.kind.searched:  # budgets share trials: the second goes on with those of the first
            before = searched.get((config.method, config.seed))
            needs += [before] if before else []
            searched[config.method, config.seed] = config.name
        tasks[config.name] = _task(part, config, records, tuple(needs))
    return list(tasks.values())


def _place(records: Records, config: runs.RunConfig) -> Path:
    return runs.place(records.work / "runs" / config.name, config, records.images.fingerprint)


def _task(part: int, config: runs.RunConfig, records: Records, needs: tuple[str, ...]) -> Task:
    place = _place(records, config)
    return Task(
        part, config.name, run, (config, place, records.root, records.device),
        functools.partial(records.seconds, config), functools.partial(records.keep_run, part, config, place), needs,
    )  # fmt: skip


def of_measurements(plan: Plan, records: Records) -> list[Task]:
    """Tasks for what is not measured yet on this device."""
    tasks, hardware = [], throughput.device_name(torch.device(records.device))
    for model, batch, variant in plan.throughput():
        name = f"{model}-b{batch}-{variant}-{hardware.replace(' ', '-').replace('/', '-').lower()}"
        path = records.out / KINDS[2] / f"{name}.json"
        if path.exists():
            continue
        arguments = (model, batch, variant, plan.compiler, plan.size, records.root, records.device)
        tasks.append(Task(
            2, name, throughput.measure, arguments, functools.partial(MEASUREMENT.get, variant),
            functools.partial(records.keep_measurement, path),
        ))  # fmt: skip
    return tasks


def of_parts(parts: Iterable[int], plan: Plan, records: Records) -> dict[int, list[Task]]:
    """The tasks of each part, in the order in which parts are named."""
    made = {
        1: lambda: of_runs(1, plan.comparison(), records),
        2: lambda: of_measurements(plan, records),
        3: lambda: of_runs(3, plan.paper(), records),
    }
    return {part: made[part]() for part in dict.fromkeys(parts)}

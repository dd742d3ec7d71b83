"""Sweeps: by Ray, on a cluster of two nodes, whatever dies; from files; and what is seen of them."""

import contextlib
import itertools
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_up import record
from PIL import Image

import bar
from bar import runs
from bar.cli import watching
from bar.runs import cluster, commands, plans, reproducing, sweeps

BAR = os.path.join(os.path.dirname(sys.executable), "bar")
TINY = {"limit": 96, "size": 8}
SHORT = TINY | {"epochs": (1, 1, 0)}
CHILDREN, GROUP = 1, 2  # places in /proc/PID/stat, behind the name
LONG = TINY | {"epochs": (20, 3, 0)}  # long enough to be killed in the middle


def held(folder: Path) -> tuple[dict, list[dict]]:
    """All that a run has recorded, times aside."""
    epochs = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
    return tuple(
        [{name: value for name, value in one.items() if name != "seconds"} for one in many]
        for many in ([runs.read(folder)], epochs)
    )


def epochs_of(folder: Path) -> int:
    path = folder / runs.METRICS_FILE
    return path.read_text().count("\n") if path.exists() else 0


def until(reached, seconds: float = 300.0) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def processes() -> dict[int, str]:
    """All that have not ended, and what they call themselves."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if name := path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found[int(path.parent.name)] = name
    return found


def related(pid: int, which: int) -> dict[int, str]:
    """The children of a process, or the members of the group that it leads."""
    found = {}
    for other, name in processes().items():
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[which]) == pid:
                found[other] = name
    return found


class Nodes:
    """A Ray cluster of nodes on 127.0.0.1, each with room for one run."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.nodes = []
        self.cluster = Cluster()
        self.add(include_dashboard=False, _system_config={"worker_niceness": 0})

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, **options) -> None:
        for left in reversed(range(3)):  # on a busy machine Ray may miss its own time limits
            try:
                self.nodes.append(
                    self.cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20, **options)
                )
                return
            except Exception:
                if not left:
                    raise

    def raylet(self, number: int) -> int:
        return self.nodes[number].all_processes["raylet"][0].process.pid

    def at_work(self, number: int, name: str) -> int | None:
        """The process of a node that carries out a run."""
        return next((pid for pid, called in related(self.raylet(number), CHILDREN).items() if name in called), None)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("BAR_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 127.0.0.1
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr("ray._private.services.ray_constants.ENABLE_RAY_CLUSTER", False)  # where it was imported before
        made = Nodes()
        try:
            yield made
        finally:
            ray.shutdown()
            folder = made.cluster.head_node.get_session_dir_path()
            made.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def swept(nodes: Nodes, configs, out, **options) -> dict:
    return dict(sweeps.sweep(configs, out, device="cpu", ray=nodes.address, **options))


# --- the engine -------------------------------------------------------------------------------------------------------


def test_a_worker_dies_and_then_a_node_and_the_records_are_those_of_one_process(nodes, tmp_path, caplog):
    """In the middle of runs; the node has joined meanwhile. An unpruned network that two runs share is trained once.

    A worker that is asked to end (SIGTERM) is as dead as one that is killed.
    """
    configs = [bar.RunConfig(method="bar", pruning_factor=factor, **LONG) for factor in (2, 3)]
    alone = dict(sweeps.sweep(configs, tmp_path / "alone", device="cpu"))
    out, killed = tmp_path / "out", []

    def kill() -> None:
        unpruned = configs[0].unpruned.name
        for how in (signal.SIGKILL, signal.SIGTERM):
            written = epochs_of(out / unpruned)
            until(lambda: nodes.at_work(0, unpruned) not in (None, *killed))
            until(lambda least=written + 2: epochs_of(out / unpruned) >= least)
            killed.append(nodes.at_work(0, unpruned))
            os.kill(killed[-1], how)
        until(lambda: len(nodes.nodes) == 2)
        until(lambda: any(epochs_of(out / config.name) >= 2 and nodes.at_work(1, config.name) for config in configs))
        worker = next(filter(None, (nodes.at_work(1, config.name) for config in configs)))
        os.kill(worker, signal.SIGSTOP)  # it would outlive its node by a moment, in which it may end the run
        killed.append(nodes.nodes[-1])
        nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)

    def may(config) -> bool:
        if config == configs[0]:
            nodes.add()
        return True

    killer = threading.Thread(target=kill)
    killer.start()
    ended = swept(nodes, configs, out, may=may)
    killer.join()
    assert len(killed) == 3
    assert ended.keys() == alone.keys() == set(configs)
    for config in (configs[0].unpruned, *configs):
        assert held(out / config.name) == held(tmp_path / "alone" / config.name)
    deaths = [entry.getMessage() for entry in caplog.records if "its worker died" in entry.getMessage()]
    assert len(deaths) == 3, deaths
    assert [death.startswith(configs[0].unpruned.name) for death in deaths] == [True, True, False]
    assert not list(out.glob(".sweep-*"))


def test_runs_are_asked_for_one_by_one_and_one_that_fails_does_not_stop_the_others(nodes, tmp_path):
    """The shared unpruned network first; the next one when there is room for it; none after a no.

    What is recorded can be read meanwhile.
    """
    good, bad, last = (
        bar.RunConfig(method=name, pruning_factor=factor, **SHORT)
        for name, factor in (("random", 2), ("magnitude", 500), ("mp", 3))
    )
    asked, begun, recorded = [], [], []

    def may(config) -> bool:
        asked.append(config)
        recorded.append(len(runs.records(tmp_path)))
        return config != last

    given = [good, bad, good, last]
    ended = swept(nodes, given, tmp_path, jobs=1, may=may, began=begun.append)
    assert asked == [good.unpruned, good, bad, last]
    assert begun == [good.unpruned, good, bad]
    assert recorded == [0, 1, 2, 2]
    assert ended.keys() == {good, bad}
    assert ended[good] == runs.read(tmp_path / good.name)
    assert "choose a pruning factor of at most" in str(ended[bad])


def test_a_node_that_lacks_the_data_or_the_folder_is_left_out(nodes, tmp_path, monkeypatch, caplog):
    """If no other is left, the run fails with what the node said; on another one the same command makes it."""
    lacking = [bar.RunConfig(dataset="cifar10-jpeg", method="random", seed=seed, **SHORT) for seed in (0, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "marked", lambda out: contextlib.nullcontext(tmp_path / "unseen"))
        ended = swept(nodes, lacking[:1], tmp_path / "out")
    assert f"does not see {tmp_path / 'out'}: it must be a folder of all nodes" in str(ended[lacking[0]])
    fine = bar.RunConfig(method="random", **SHORT)
    ended = swept(nodes, [lacking[0], fine], tmp_path / "out")
    assert "the JPEG mirror of CIFAR-10 is not at" in str(ended[lacking[0]])
    assert ended[fine] == runs.read(tmp_path / "out" / fine.name)
    for name, number in itertools.product("ab", range(32)):
        path = tmp_path / "data/cifar10-jpeg" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * number, 0, 200 if name == "a" else 0)).save(path)
    caplog.clear()
    nodes.add(env_vars={"BAR_DATA": str(tmp_path / "data")})
    ended = swept(nodes, lacking, tmp_path / "out")
    nodes.cluster.remove_node(nodes.nodes.pop())
    assert [ended[config] for config in lacking] == [runs.read(tmp_path / "out" / config.name) for config in lacking]
    assert sum("a node is left out" in entry.getMessage() for entry in caplog.records) == 1


def test_words_that_ray_cannot_serve(bar_command):
    assert "is auto or HOST:PORT" in bar_command("sweep", "--ray", "nowhere")[2]
    for jobs in ("0", "1000"):
        assert "jobs must be at least 1" in bar_command("sweep", "--jobs", jobs, "--dry-run")[2]
    assert "no Ray cluster answers at 127.0.0.1:1:" in bar_command("sweep", "--ray", "127.0.0.1:1")[2]
    with pytest.raises(bar.BarError, match="CUDA_VISIBLE_DEVICES=1"):
        list(sweeps.sweep([], jobs=2, device="cuda:1"))


def test_without_ray_one_line_names_the_extra(bar_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = bar_command("sweep", "--jobs", "2", "-m", "random", "-s", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install '.[cluster]'" in err
    assert not Path("runs").exists()


def test_an_order_that_does_not_depend_on_time():
    """Unpruned networks once and first; of runs that share a search's trials, one after the other."""
    given = [
        bar.RunConfig(method=name, pruning_factor=factor, seed=seed)
        for name, factor, seed in (("l0", 2, 0), ("bar", 2, 0), ("l0", 4, 0), ("l0", 2, 1), ("l0", 8, 0))
    ]
    tasks = {task.config: task for task in cluster.tasks_of(given)}
    assert list(tasks) == [given[0].unpruned, *given[:3], given[3].unpruned, *given[3:]]
    assert [tasks[config].wanted for config in given] == [True] * 5
    assert not tasks[given[0].unpruned].wanted
    assert tasks[given[1]].after == {given[0].unpruned}
    assert tasks[given[2]].after == {given[0].unpruned, given[0]}
    assert tasks[given[3]].after == {given[3].unpruned}
    assert tasks[given[4]].after == {given[0].unpruned, given[2]}


class Ray:
    """Stands for Ray with a GPU of 80 GB: each run ends as is said, one after the other."""

    def __init__(self, *outcomes) -> None:
        import ray

        self.exceptions, self.outcomes, self.asked = ray.exceptions, list(outcomes), []

    cluster_resources = staticmethod(lambda: {"CPU": 8, "GPU": 1})
    nodes = staticmethod(lambda: [{"Alive": True, "NodeID": "one", "Resources": {"CPU": 8, "GPU": 1}}])
    wait = staticmethod(lambda references, timeout: (references[:1], references[1:]))
    cancel = staticmethod(lambda reference, force: None)

    def remote(self, *run, **options):
        return object() if run else lambda work: self

    def options(self, **options):
        self.asked.append(options)
        return self

    def get(self, reference):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, self.exceptions.RayError):
            raise outcome
        return outcome


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Make an engine that works with a `Ray`."""

    def make(ray: Ray, tasks, processes: int = 1, device: str = "auto") -> cluster.Engine:
        monkeypatch.setitem(sys.modules, "ray", ray)
        way = cluster.Way(None, device, processes, 1, tmp_path, tmp_path)
        return cluster.Engine(tasks, tmp_path, way, None, lambda config: True, lambda config: None)

    return make


def test_a_run_whose_worker_dies_again_and_again_fails(engine):
    crash = pytest.importorskip("ray").exceptions.WorkerCrashedError
    ray = Ray(*[crash()] * 3)
    ((_, outcome),) = engine(ray, [cluster.Task(bar.RunConfig(), set())])
    assert "its worker died 3 times within an epoch" in str(outcome)


def test_a_cluster_that_is_lost_is_no_fault_of_the_run(engine):
    lost = pytest.importorskip("ray").exceptions.LocalRayletDiedError
    with pytest.raises(bar.BarError, match=r"the cluster is lost \(LocalRayletDiedError.*; the same command goes on"):
        list(engine(Ray(lost()), [cluster.Task(bar.RunConfig(), set())]))


def test_a_run_that_waits_for_a_node_that_has_gone_fails_with_what_the_one_that_is_left_said(engine):
    pytest.importorskip("ray")
    ray, there, cancelled = Ray(cluster.Unfit("one", "one does not see the folder")), {"one", "two"}, []

    def wait(references, timeout):
        if ray.outcomes:
            return references[:1], references[1:]
        there.discard("two")
        return [], references

    ray.nodes = lambda: [{"Alive": name in there, "NodeID": name, "Resources": {"CPU": 8}} for name in ("one", "two")]
    ray.cluster_resources, ray.wait = lambda: {"CPU": 16}, wait
    ray.cancel = lambda reference, force: cancelled.append(reference)
    ((_, outcome),) = engine(ray, [cluster.Task(bar.RunConfig(), set())])
    assert str(outcome) == "one does not see the folder"
    assert [asked.get("label_selector") for asked in ray.asked] == [None, {"ray.io/node-id": "!in(one)"}]
    assert len(cancelled) == 1


def test_a_run_that_no_node_has_room_for_is_said(engine, caplog):
    pytest.importorskip("ray")
    engine(Ray(), [])
    assert not caplog.text
    engine(Ray(), [], processes=2)
    assert "no node has 2 CPUs and 2 GPUs, as a run needs: waiting for one that has" in caplog.text


def test_runs_share_a_gpu_once_their_memory_is_known(engine, caplog):
    """The first of its kind has one for itself; one that runs out of memory has so again."""
    pytest.importorskip("ray")
    first, *others = (bar.RunConfig(seed=seed) for seed in range(3))
    used = first.recorded() | {"gpu_memory": 20 * 10**9, "gpu_memory_total": 80 * 10**9}
    ray = Ray(used, bar.BarError("CUDA out of memory. Tried to allocate"), used, used)
    ended = dict(engine(ray, [cluster.Task(config, set()) for config in (first, *others)]))
    assert [asked["num_gpus"] for asked in ray.asked] == [1, 1 / 3, 1 / 3, 1]
    assert all(outcome == used for outcome in ended.values())
    assert "it gets one for itself" in caplog.text


def test_as_many_of_a_kind_begin_as_there_are_gpus_before_their_memory_is_known(engine):
    """Those of another kind do not wait for them, and none that does is forgotten."""
    pytest.importorskip("ray")
    configs = [bar.RunConfig(seed=seed) for seed in range(4)] + [bar.RunConfig(method="random")]
    used = configs[0].recorded() | {"gpu_memory": 20 * 10**9, "gpu_memory_total": 80 * 10**9}
    ray, begun, at_first = Ray(*[used] * 5), [], []
    ray.cluster_resources = lambda: {"CPU": 8, "GPU": 2}
    ray.wait = lambda references, timeout: at_first.append(len(begun)) or (references[:1], references[1:])
    made = engine(ray, [cluster.Task(config, set()) for config in configs])
    made.began = begun.append
    assert len(list(made)) == 5
    assert at_first[0] == 3
    assert begun == [configs[place] for place in (0, 1, 4, 2, 3)]
    assert [asked["num_gpus"] for asked in ray.asked] == [1, 1, 1, 1 / 3, 1 / 3]


def test_gpus_that_are_not_there_yet_are_waited_for(engine, caplog, monkeypatch):
    """With --device cuda, as where a cluster grows by what is asked of it; by itself a sweep takes what there is."""
    pytest.importorskip("ray")
    for device, asked in (("cuda", 1), ("auto", None)):
        ray = Ray({})
        ray.cluster_resources = lambda: {"CPU": 8}
        ray.nodes = lambda: [{"Alive": True, "NodeID": "one", "Resources": {"CPU": 8}}]
        caplog.clear()
        assert len(list(engine(ray, [cluster.Task(bar.RunConfig(), set())], device=device))) == 1
        assert ("no node has 1 CPU and 1 GPU" in caplog.text) == (asked == 1)
        assert ray.asked[0].get("num_gpus") == asked
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(bar.BarError, match="there is no GPU on this machine"):
        list(sweeps.sweep([bar.RunConfig()], jobs=2, device="cuda"))


def test_a_run_that_asks_too_much_of_its_images_fails_alone(engine):
    """On the one node that there is: it is not left out for runs with other images."""
    pytest.importorskip("ray")
    wrong, right = bar.RunConfig(limit=11), bar.RunConfig(limit=64)
    ray = Ray(cluster.Unfit("one", "one: limit is too small"), right.recorded())
    ended = dict(engine(ray, [cluster.Task(config, set()) for config in (wrong, right)]))
    assert str(ended[wrong]) == "one: limit is too small"
    assert ended[right] == right.recorded()


# --- one folder, and what is wrong with it ----------------------------------------------------------------------------


WORDS = ("-m", "random", "-x", "2", "-s", "0", "--limit", "96", "--size", "8", "--epochs", "1", "1", "0")


def test_two_sweeps_in_one_folder(tmp_path):
    """Each run is made once: the second sweep waits for it, and finds it recorded. Neither imports Ray."""
    code = "import sys; from bar.cli import main\ntry: main()\nfinally: assert 'ray' not in sys.modules"
    command = [sys.executable, "-c", code, "sweep", *WORDS, "--out", str(tmp_path / "out"), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert json.loads(said[0][0]) == json.loads(said[1][0])


def contents(folder: Path) -> dict[Path, bytes]:
    """All that is recorded."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_costs_a_line_for_each_run_and_nothing_that_is_recorded(bar_command):
    """A limit on the size of files stands for it: records fit, a network does not; then there is room again."""
    assert bar_command("sweep", *WORDS, "--out", "out")[0] == 0
    before = contents(Path("out"))
    command = ["bash", "-c", 'ulimit -f 40; exec "$0" "$@"', BAR, "sweep", *WORDS, "-m", "mp", "--out", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    failed = bar.RunConfig(method="mp", pruning_factor=2, **SHORT).name
    assert (done.returncode, done.stdout) == (1, "")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith(f"{failed}: ")]
    assert said.startswith(f"{failed}: cannot write out/{failed}/")
    assert said.endswith("File too large")
    assert done.stderr.splitlines()[-1] == f"bar: 1 of 2 runs failed: {failed}"
    assert before.items() <= contents(Path("out")).items()
    assert not list(Path("out").rglob("*.partial"))
    assert bar_command("sweep", *WORDS, "-m", "mp", "--out", "out")[0] == 0
    assert runs.read(Path("out", failed))


def test_a_folder_that_may_only_be_read(bar_command):
    """What is recorded there is read; a run that is not, is refused, and no file is touched."""
    assert bar_command("sweep", *WORDS, "--out", "out")[0] == 0
    for path in (Path("out"), *Path("out").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(Path("out"))
    obeys = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []  # which root does not otherwise
    command = [*obeys, BAR, "sweep", *WORDS, "-m", "mp", "--out", "out", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    failed = bar.RunConfig(method="mp", pruning_factor=2, **SHORT).name
    assert done.returncode == 1, done.stderr
    assert [record["method"] for record in json.loads(done.stdout)] == ["random"]
    assert f"{failed}: cannot write out/{failed}: Permission denied" in done.stderr.splitlines()
    assert contents(Path("out")) == before
    for path in (Path("out"), *Path("out").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_file_in_the_place_of_a_folder(tmp_path, bar_command):
    """That run fails, and the last lines say how to repeat it; the others are made."""
    blocked, fine = (bar.RunConfig(method=name, pruning_factor=2, **SHORT) for name in ("magnitude", "random"))
    Path("out").mkdir()
    Path("out", blocked.name).write_text("in the way")
    code, out, err = bar_command("sweep", "-m", "magnitude", *WORDS, "--out", "out")
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert f"{blocked.name}: out/{blocked.name} exists and is not the folder of a run; choose another" in lines
    assert lines[-1] == f"bar: 1 of 2 runs failed: {blocked.name}"
    assert lines[-2] == "  " + commands.line(blocked, Path("out", blocked.name))
    assert runs.read(Path("out", fine.name))
    assert bar_command("sweep", *WORDS, "--out", f"out/{blocked.name}")[2].count("\n") == 1


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_file_says_what_options_do(bar_command):
    """It is kept beside the records that it led to, and makes the same runs again."""
    code, out, err = bar_command("sweep", *WORDS, "--out", "one", "--json")
    assert code == 0, err
    (kept,) = Path("one").glob("sweep-*.yaml")
    assert plans.configs_of(plans.read(kept)) == [bar.RunConfig(method="random", pruning_factor=2, **SHORT)]
    times = {path: path.stat().st_mtime_ns for path in Path("one").rglob("*.*")}
    code, again, err = bar_command("sweep", str(kept), "--out", "one", "--json")
    assert (code, json.loads(again)) == (0, json.loads(out)), err
    assert {path: path.stat().st_mtime_ns for path in Path("one").rglob("*.*")} == times
    code, _, err = bar_command("sweep", str(kept), "--limit", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave out the options that do, such as --limit" in err
    for option, typed in (("-m", "bar"), ("-x", "4"), ("-s", "1")):
        names = {"-m": "--method", "-x": "--pruning-factor", "-s": "--seed"}
        assert f"such as {names[option]}\n" in bar_command("sweep", str(kept), option, typed)[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read the sweep 'sweep.yaml': nothing is in it: it must hold fields and values"),
        ("- {seed: 1}\n- null", "in mapping 2 of 2: nothing is in it"),
        ("{epochs: 3}", "cannot read the sweep 'sweep.yaml': epochs must be three whole numbers"),
        ("[{seed: 1}, {seed: 2, size: x}]", "'sweep.yaml': in mapping 2 of 2: size must be a whole number"),
        ("[{seed: 1}, {sed: 2}]", "in mapping 2 of 2: a run has no 'sed'"),
        ("{zeds: 1, aeds: 2}", "a run has no 'zeds'"),
        ("runs: [{method: bar}]", "mappings stand in the file as a list, without a name above"),
        ("[]", "it has no runs"),
        ("{method: bar, seed: 1, method: l0}", "'method' is there twice"),
        ("[{method: bar}, {options: {rule: l0, rule: median}}]", "'rule' is there twice"),
        ("[1]", "it must hold fields and values"),
        ("{metod: bar}", "a run has no 'metod': did you mean 'method'?"),
        ("{method: [bar, lo]}", "lo"),
        ("{seed: []}", "no empty ones"),
        ("{limit: [1, 2]}", "there may be lists"),
        ("{seed: [0", "it is not YAML"),
        ("{a: &a [1], <<: *a}", "it is not YAML"),
        ("!!python/object/apply:os.system [ls]", "it is not YAML"),
        ("[" * 5000, "cannot read the sweep"),
        ("{method: [bar], pruning_factor: [" + "2," * 400 + "], seed: [" + "0," * 300 + "]}", "at most"),
        ("\0", "cannot read the sweep"),
        ("{source: x}", "a run has no 'source'"),
    ],
    ids=lambda text: text[:20],
)
def test_files_that_are_refused(text, said, bar_command):
    Path("sweep.yaml").write_text(text)
    code, out, err = bar_command("sweep", "sweep.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


def test_files_that_are_no_text(bar_command):
    Path("folder").mkdir()
    assert "cannot read the sweep 'folder': it is a folder" in bar_command("sweep", "folder")[2]
    for encoding in ("utf-16", "latin-1"):
        Path("sweep.yaml").write_text("dataset: größe", encoding)
        assert "it is not in UTF-8: save it in that encoding" in bar_command("sweep", "sweep.yaml")[2]


def test_a_dry_run_lists_and_runs_nothing(bar_command):
    """What takes how long, from records of the same kind, or of the same step."""
    record(Path("out"), more={"seconds": 600.0}, method="unpruned", seed=1)
    record(Path("out"), more={"seconds": 1200.0}, method="bar", pruning_factor=2, seed=1)
    words = ("--dry-run", "--out", "out", "-m", "bar", "-m", "l0", "-x", "2", "-s", "0", "-s", "1")
    code, out, err = bar_command("sweep", *words)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{bar.RunConfig(method='unpruned').name}  new, about 10 min"
    assert lines[1].endswith("seed0-quick  new, about 20 min")
    assert lines[2].endswith("seed0-quick  new")
    assert lines[3].endswith("seed1-quick  recorded")
    unknown = "2 of a kind that is not recorded yet, which takes an unknown time"
    assert lines[-2:] == [
        f"6 runs, 2 recorded; about 30 min for the others, 1 at a time; {unknown}",
        "(times are those of runs recorded in results, runs, out, on the hardware that made them)",
    ]
    few = ("--dry-run", "--out", "out", "-m", "bar", "-x", "2", "-x", "4", "-x", "8", "-s", "0")
    spans = {("--jobs", "2"): "50 min for the others, 2 at a time"}  # 10, then 20 twice: two of three, and the third
    spans["--jobs", "64", "--ray", "auto"] = "30 min for the others, 64 at a time"  # 10, then all three
    spans["--ray", "auto"] = (
        "1 h 10 min for the others, one at a time; the cluster makes as many at once as it has room"
    )
    for how, said in spans.items():
        assert f"4 runs, 0 recorded; about {said}" in bar_command("sweep", *few, *how)[1]
    assert (
        "1 run, 0 recorded"
        in bar_command("sweep", "--dry-run", "--out", "out", "-m", "unpruned", "-s", "0", "-x", "2")[1]
    )
    half = {"epochs": (12, 6, 2)}
    assert reproducing.Stock("out").seconds(bar.RunConfig(pruning_factor=16, **half)) == pytest.approx(600)
    assert json.loads(bar_command("sweep", *words, "--json")[1])[1]["seconds"] == 1200
    assert {path.name for path in Path().iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "cifr10"], "did you mean 'cifar10'?"),
        (["--dataset", "cifr10", "--ray", "auto"], "did you mean 'cifar10'?"),
        (["--dataset", "no/such/folder"], "no data set and no folder is called 'no/such/folder'"),
        (["--dataset", "cifar10-jpeg", "--data", "nowhere"], "is not at nowhere/cifar10-jpeg"),
        (["--model", "resnt18"], "did you mean 'resnet18'?"),
        (["--model", "wrn-10-x", "--ray", "auto"], "there is no network 'wrn-10-x'"),
        (["--ray", "foo"], "is auto or HOST:PORT, not 'foo'"),
        (["--device", "gpu", "--ray", "auto"], "no device 'gpu'"),
        (["--device", "cuda:77"], "no device 'cuda:77' here"),
        (["--jobs", "0", "--ray", "auto"], "at most 1,000,000, on a cluster, not 0"),
    ],
    ids=lambda words: "-".join(words) if isinstance(words, list) else "",
)
def test_a_dry_run_refuses_what_cannot_run(words, said, bar_command):
    code, out, err = bar_command("sweep", "-m", "random", "-x", "2", "-s", "0", "--dry-run", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


def test_a_folder_that_only_the_nodes_of_a_cluster_have_is_listed(bar_command):
    words = ("sweep", "-m", "random", "-x", "2", "-s", "0", "--dry-run", "--ray", "auto", "--dataset")
    for dataset in ("/only/on/nodes", "cifar10-jpeg"):
        assert bar_command(*words, dataset)[0] == 0


def test_the_board(tmp_path):
    """Counts, the part of a run that is done, and the time that is left, from what has ended."""
    done, running, failed, waiting = (bar.RunConfig(pruning_factor=factor) for factor in (2, 4, 8, 16))
    stock = reproducing.Stock(tmp_path)
    board = watching.Board([done, running, failed, waiting], tmp_path, stock, 2)
    assert board.summary() == "0 of 4 done"
    for config in (done, running, failed):
        board.began(config)
    folder = record(tmp_path, more={"seconds": 1200.0}, pruning_factor=2)
    board.ended(done, runs.read(folder))
    board.ended(failed, bar.BarError("so it is"))
    folder = tmp_path / running.name
    folder.mkdir()
    (folder / runs.LOCK).touch()
    epochs = ['{"phase": "prune"}\n'] * 20 + ['{"phase": "cut"}\n', '{"pha']
    (folder / runs.METRICS_FILE).write_text("".join(epochs))
    assert board.at_work() == [running]
    (folder / runs.METRICS_FILE).write_text("".join(epochs[:-1]))
    assert watching.progress(running, tmp_path) == 0.5
    assert board.summary() == "1 of 4 done, 1 failed, about 15 min left"


def test_a_log_tells_of_the_whole_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watching, "EVERY", 0.01)
    board, told = watching.Board([bar.RunConfig()], tmp_path, reproducing.Stock(tmp_path), 1), threading.Event()
    monkeypatch.setattr(board, "summary", lambda: told.set() or "so many done")

    def ending():
        assert told.wait(60)
        return iter(())
        yield

    watching.followed(ending(), board)
    assert "0 running, so many done\n" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "time-is-over"])
def test_ctrl_c_and_the_same_command_goes_on(how, bar_command, monkeypatch):
    """So does one that a batch system has ended."""
    words = ("sweep", "-m", "mp", *WORDS, "--out", "out")
    with monkeypatch.context() as patch:
        run = cluster.run

        def interrupted(config, *given, **options) -> dict:
            if config.method == "random":
                os.kill(os.getpid(), how)
            return run(config, *given, **options)

        patch.setattr(cluster, "run", interrupted)
        code, _, err = bar_command(*words)
    assert code == 130
    assert err.splitlines()[-1].startswith("bar: interrupted; 1 of 2 done")
    assert err.splitlines()[-1].endswith(", in out: the same command goes on from there")
    code, _, err = bar_command(*words)
    assert code == 0
    assert err.splitlines()[-1] == "2 runs are recorded in out"


def test_ctrl_c_on_a_terminal_while_ray_is_at_work(bar_command, caplog):
    """A table is seen meanwhile, and nothing is left of Ray; the same command goes on, without it."""
    pytest.importorskip("ray")
    first = bar.RunConfig(method="unpruned", **TINY, epochs=(60, 3, 0))
    words = ["sweep", "-m", "magnitude", "-m", "random", "-x", "2", "-s", "0", "--limit", "96", "--size", "8"]
    words += ["--epochs", "60", "3", "0", "--device", "cpu", "--out", "out"]
    terminal, screen = pty.openpty()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    sweep = subprocess.Popen(
        [BAR, *words, "--jobs", "2"], stdin=screen, stdout=screen, stderr=screen, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(screen)
    seen = []

    def look() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(terminal, 65536):
                seen.append(part)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        until(lambda: epochs_of(Path("out", first.name)) >= 2)
        of_ray = re.search(r"/tmp/bar-ray-\w+", " ".join(related(sweep.pid, GROUP).values()))[0]
        assert Path(of_ray).is_dir()
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: all of them get it
        assert sweep.wait(timeout=240) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
        looker.join()
        os.close(terminal)
    until(lambda: not any(of_ray in name or f"ray::{first.name}" in name for name in processes().values()))
    assert not Path(of_ray).exists()
    text = b"".join(seen).decode()
    assert "\x1b[2K" in text  # the table is drawn anew
    assert re.search(rf"{first.name}  +\d+%  1 min", text)
    assert "1 running, 0 of 2 done" in text
    assert re.search(r"bar: interrupted; 0 of 2 done, in out: the same command goes on from there$", text.strip())
    assert {path.name for path in Path("out").glob(".*")} == set()
    code, _, err = bar_command(*words)
    assert code == 0
    assert "going on after" in caplog.text
    assert err.splitlines()[-1] == "2 runs are recorded in out"


@pytest.mark.parametrize("method", [*bar.methods.METHODS, "unpruned"])
def test_the_command_of_a_run_makes_that_run(method):
    from bar.cli import running
    from bar.cli.options import named

    fields = {"epochs": (1, 2, 3), "limit": 5, "size": 8, "preset": "paper", "seed": 2**64 - 1, "batch_size": 7}
    for more in ({}, fields | {"pruning_factor": 2.3}, {"distill": True}, {"distill": False}, {"metric": "flops"}):
        try:
            config = bar.RunConfig(method=method, **more)
        except bar.BarError:
            continue
        given = running.run.make_context("run", commands.words(config)).params
        named_fields = {
            name: given[name] for name in set(given) & set(bar.RunConfig.__dataclass_fields__) - {"options"}
        }
        assert bar.RunConfig(options=named(given["options"]), **named_fields) == config


@pytest.mark.long
def test_several_processes_a_run(tmp_path):
    """Ray finds a place for all of them, torchrun starts them there; one of them dies, then the worker above them."""
    pytest.importorskip("ray")
    config = bar.RunConfig(model="conv4", method="random", pruning_factor=2, **TINY, epochs=(40, 3, 0))
    words = ["-m", "random", "-x", "2", "-s", "0", "--limit", "96", "--size", "8", "--epochs", "40", "3", "0"]
    words += ["--model", "conv4", "--processes", "2", "--device", "cpu", "--out", str(tmp_path), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(
        [BAR, "sweep", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )

    def named(*parts: str) -> set[int]:
        return {pid for pid, name in processes().items() if all(part in name for part in parts)}

    def kill(config, *parts: str) -> None:
        written = epochs_of(tmp_path / config.name)
        until(lambda: epochs_of(tmp_path / config.name) >= written + 2)
        os.kill(min(named(*parts)), signal.SIGKILL)

    try:
        kill(config.unpruned, "-u -m bar run", f"{tmp_path}/{config.unpruned.name}")
        kill(config, f"ray::{config.name}")
        out, err = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, err
    assert f"{config.unpruned.name}: its worker died (one of its processes died)" in err
    assert f"{config.name}: its worker died (WorkerCrashedError)" in err
    (one,) = json.loads(out)
    assert one["processes"] == 2
    assert one["volume"] <= one["budget"]
    assert not named(str(tmp_path))


def test_what_is_recorded_of_other_images_is_not_recorded(tmp_path):
    """So that it is trained as was asked for, by several processes, say."""
    config = bar.RunConfig(method="random", limit=60, size=4, epochs=(1, 0, 0), pruning_factor=2)
    assert not sweeps._all_recorded([config], tmp_path, None)
    bar.run(config, tmp_path / config.name, device="cpu")
    assert sweeps._all_recorded([config], tmp_path, None)
    file = tmp_path / config.name / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "ab" * 32}))
    assert not sweeps._all_recorded([config], tmp_path, None)

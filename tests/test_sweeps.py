"""Sweeps: by Ray, on a cluster of two nodes, whatever dies; from files; and what is seen of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made_up import record

import bar
from bar import runs
from bar.cli import watching
from bar.runs import cluster, commands, plans, reproducing, sweeps

BAR = os.path.join(os.path.dirname(sys.executable), "bar")
TINY = {"limit": 96, "size": 8}
SHORT = TINY | {"epochs": (1, 1, 0)}
LONG = TINY | {"epochs": (9, 3, 0)}  # long enough to be killed in the middle


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


def until(reached, seconds: float = 120.0) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def children(pid: int) -> dict[int, str]:
    """The processes of a node: their ids and what they call themselves."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(path.parent.name)] = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
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
        return next((pid for pid, called in children(self.raylet(number)).items() if name in called), None)


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
            made.cluster.shutdown()


def swept(nodes: Nodes, configs, out, **options) -> dict:
    return dict(sweeps.sweep(configs, out, device="cpu", ray=nodes.address, **options))


# --- the engine -------------------------------------------------------------------------------------------------------


def test_a_worker_dies_and_then_a_node_and_the_records_are_those_of_one_process(nodes, tmp_path, caplog):
    """Both are killed in the middle of a run; an unpruned network that two runs share is trained once."""
    configs = [bar.RunConfig(method="bar", pruning_factor=factor, **LONG) for factor in (2, 3)]
    alone = dict(sweeps.sweep(configs, tmp_path / "alone", device="cpu"))
    nodes.add()
    out, told = tmp_path / "out", []

    def kill() -> None:
        unpruned, first = configs[0].unpruned.name, configs[0].name
        until(lambda: epochs_of(out / unpruned) >= 2)
        told.append(next(filter(None, (nodes.at_work(number, unpruned) for number in (0, 1)))))
        os.kill(told[0], signal.SIGKILL)
        until(lambda: any(nodes.at_work(1, config.name) and epochs_of(out / config.name) >= 2 for config in configs))
        told.append(first)
        nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    ended = swept(nodes, configs, out)
    killer.join()
    assert len(told) == 2
    assert ended.keys() == alone.keys() == set(configs)
    for config in (configs[0].unpruned, *configs):
        assert held(out / config.name) == held(tmp_path / "alone" / config.name)
    deaths = [entry.getMessage() for entry in caplog.records if "its worker died" in entry.getMessage()]
    assert len(deaths) == 2, deaths
    assert deaths[0].startswith(configs[0].unpruned.name)
    assert not list(out.glob(".sweep-*"))


def test_runs_are_asked_for_one_by_one_and_one_that_fails_does_not_stop_the_others(nodes, tmp_path):
    """The shared unpruned network first; the next one when there is room for it; none after a no."""
    good, bad, last = (
        bar.RunConfig(method=name, pruning_factor=factor, **SHORT)
        for name, factor in (("random", 2), ("magnitude", 500), ("mp", 3))
    )
    asked, begun = [], []

    def may(config) -> bool:
        asked.append(config)
        return config != last

    given = [good, bad, good, last]
    ended = swept(nodes, given, tmp_path, jobs=1, may=may, began=begun.append)
    assert asked == [good.unpruned, good, bad, last]
    assert begun == [good.unpruned, good, bad]
    assert ended.keys() == {good, bad}
    assert ended[good] == runs.read(tmp_path / good.name)
    assert "choose a pruning factor of at most" in str(ended[bad])


def test_a_node_that_lacks_the_data_or_the_folder_is_left_out(nodes, tmp_path, monkeypatch, caplog):
    """If no other is left, the run fails with what the node said."""
    monkeypatch.setattr(reproducing, "have_data", lambda config: True)
    lacking, fine = bar.RunConfig(dataset="cifar10-jpeg", **SHORT), bar.RunConfig(method="random", **SHORT)
    ended = swept(nodes, [lacking, fine], tmp_path)
    assert "the JPEG mirror of CIFAR-10 is not at" in str(ended[lacking])
    assert isinstance(ended[fine], dict)
    assert any("a node is left out" in entry.getMessage() for entry in caplog.records)


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
    assert "pip install 'bar-pruning[cluster]'" in err
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

    def make(ray: Ray, tasks) -> cluster.Engine:
        monkeypatch.setitem(sys.modules, "ray", ray)
        way = cluster.Way(None, "auto", 1, 1, tmp_path, tmp_path)
        return cluster.Engine(tasks, tmp_path, way, None, lambda config: True, lambda config: None)

    return make


def test_a_run_whose_worker_dies_again_and_again_fails(engine):
    crash = pytest.importorskip("ray").exceptions.WorkerCrashedError
    ray = Ray(*[crash()] * 3)
    ((_, outcome),) = engine(ray, [cluster.Task(bar.RunConfig(), set())])
    assert "its worker died 3 times within an epoch" in str(outcome)


def test_runs_share_a_gpu_once_their_memory_is_known(engine, caplog):
    """The first of its kind has one for itself; one that runs out of memory has so again."""
    pytest.importorskip("ray")
    first, *others = (bar.RunConfig(seed=seed) for seed in range(3))
    used = first.recorded() | {"gpu_memory": 20 * 10**9, "gpu_memory_total": 80 * 10**9}
    ray = Ray(used, bar.BarError("CUDA out of memory. Tried to allocate"), used, used)
    tasks = [cluster.Task(config, {first} - {config}) for config in (first, *others)]
    ended = dict(engine(ray, tasks))
    assert [asked["num_gpus"] for asked in ray.asked] == [1, 1 / 3, 1 / 3, 1]
    assert all(outcome == used for outcome in ended.values())
    assert "it gets one for itself" in caplog.text


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


def test_a_full_disk_costs_a_line_for_each_run_and_nothing_that_is_recorded(tmp_path):
    """A limit on the size of files stands for it: records fit, a network does not; then there is room again."""
    command = ["bash", "-c", 'ulimit -f 40; exec "$0" "$@"', BAR, "sweep", *WORDS, "-m", "mp", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.partial"))


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
    assert "leave out the options that do, such as limit" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it must hold fields and values"),
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
    assert lines[-1] == (
        "6 runs, 2 recorded; about 30 min for the others, 1 at a time; "
        "2 of a kind that is not recorded yet, which takes an unknown time"
    )
    half = {"epochs": (12, 6, 2)}
    assert reproducing.Stock("out").seconds(bar.RunConfig(pruning_factor=16, **half)) == pytest.approx(600)
    assert json.loads(bar_command("sweep", *words, "--json")[1])[1]["seconds"] == 1200
    assert {path.name for path in Path().iterdir()} == {"out"}


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


def test_ctrl_c_and_the_same_command_goes_on(bar_command, monkeypatch):
    words = ("sweep", "-m", "mp", *WORDS, "--out", "out")
    with monkeypatch.context() as patch:
        run = cluster.run

        def interrupted(config, *given, **options) -> dict:
            if config.method == "random":
                raise KeyboardInterrupt
            return run(config, *given, **options)

        patch.setattr(cluster, "run", interrupted)
        code, _, err = bar_command(*words)
    assert code == 130
    assert err.splitlines()[-1].startswith("bar: interrupted; 1 of 2 done")
    assert err.splitlines()[-1].endswith(", in out: the same command goes on from there")
    code, _, err = bar_command(*words)
    assert code == 0
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
    """Ray finds a place for all of them on this machine, and torchrun starts them there."""
    pytest.importorskip("ray")
    words = [
        "sweep",
        "--model",
        "conv4",
        *WORDS,
        "--processes",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--json",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([BAR, *words], capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert one["processes"] == 2
    assert one["volume"] <= one["budget"]

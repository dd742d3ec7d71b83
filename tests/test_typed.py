"""Whatever is typed: a result, or exit code 2 and one line that says what was wrong."""

import dataclasses
import json
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bar
from bar import book, data, methods, models, network, runs, storage
from bar.errors import BarError
from bar.runs import cluster, sweeps

EXAMPLES = 100 if settings.default.max_examples < 100 else 2000  # the latter with --all
HUGE = str(10**12)
LONG = "x" * 5000
NUL = "a\0b"
UNDECODED = "a\udcff"

REFUSED = [
    ("run", "--seed", str(2**64)),
    ("run", "--seed", "9" * 5000),
    ("run", "--size", "1000000"),
    ("run", "--size", "1000"),
    ("run", "--limit", "9" * 30),
    ("run", "--epochs", "999999999", "1", "1"),
    ("run", "--epochs", "1", "1", "9" * 4000),
    ("run", "--pruning-factor", "nan"),
    ("run", "--pruning-factor", "inf"),
    ("run", "--pruning-factor", "1e400"),
    ("run", "--device", "meta"),
    ("run", "--device", "hpu"),
    ("run", "--device", "mkldnn"),
    ("run", "--device", "cpu:5"),
    ("run", "--device", "cuda:9999999999999999999999"),
    ("run", "--device", "x\ny"),
    ("run", "--dataset", "~nosuchuser/x"),
    ("run", "--dataset", LONG),
    ("run", "--dataset", NUL),
    ("run", "--dataset", UNDECODED),
    ("run", "--dataset", "/"),
    ("run", "--model", "wrn-10-100000"),
    ("run", "--model", "wrn-10-999"),
    ("run", "--model", "wrn-100000-1"),
    ("run", "--model", "wrn-10-" + "9" * 50),
    ("run", "--model", "resnet18-by-100000"),
    ("run", "--model", "resnet18-by-²"),
    ("run", "--model", "vgg19"),
    ("run", "--model", LONG),
    ("run", "--model", "resnet152", "-x", "1e300"),
    ("run", "--model", "resnet152", "--method", "vector-quantization", "-x", "1e300"),
    ("run", "--model", "convnext_large", "--size", "32"),
    ("run", "--model", "regnet_y_128gf", "--method", "mp", "-x", "1e12"),
    ("run", "--model", f"{LONG}:x"),
    ("run", "--model", f"a{NUL}:x"),
    ("run", "--model", "a:b:c"),
    ("run", "--model", "timm:x y"),
    ("run", "--weights", ""),
    ("run", "--weights", NUL),
    ("run", "--weights", LONG + ".pt"),
    ("run", "--weights", LONG[:4000] + ".pt"),
    ("run", "--weights", "/dev/zero"),
    ("run", "--processes", "10000"),
    ("run", "--processes", "32"),
    ("run", "--out", ""),
    ("run", "--out", NUL),
    ("run", "--out", LONG),
    ("run", "--out", UNDECODED),
    ("run", "--out", "/dev/null/x"),
    ("run", "--out", "/proc/x"),
    ("run", "--data", NUL, "--dataset", "cifar10-jpeg"),
    ("sweep", "--jobs", "0"),
    ("sweep", "--jobs", HUGE),
    ("sweep", "--ray", "nowhere"),
    ("sweep", "--ray", "127.0.0.1:1"),
    ("sweep", "--ray", f"{LONG}:1"),
    ("sweep", "--ray", f"127.0.0.1:{HUGE}"),
    ("sweep", "--processes", "0"),
    ("sweep", "nothing.yaml"),
    ("sweep", LONG),
    ("sweep", NUL),
    ("sweep", "/dev/zero"),
    ("sweep", "--dataset", "nope"),
    ("sweep", "--device", "meta"),
    ("sweep", "--out", LONG),
    ("results", LONG),
    ("results", NUL),
    ("results", "/"),
    ("results", "nowhere"),
    ("results", "--seed", "9" * 5000),
    ("results", "-x", "x"),
    ("results", "--json", "--csv"),
    ("reproduce", LONG),
    ("reproduce", NUL),
    ("reproduce", "bar/figure-99"),
    ("reproduce", "--minutes", "5"),
    ("reproduce", "--run", "--minutes", "nan"),
    ("reproduce", "--run", "--jobs", HUGE),
    ("reproduce", "--run", "--out", "/dev/null/x"),
    ("count", "--classes", HUGE),
    ("count", "--classes", "9" * 30),
    ("count", "--input-size", "3", "9" * 30, "2"),
    ("count", "--model", LONG),
    ("count", "--model", NUL),
    ("count", "--model", f"{LONG}:x"),
    ("count", "--model", f"a{NUL}:x"),
    ("count", "--model", "wrn-10-100000"),
    ("count", "--model", "conv4", "--input-size", "3", "100000", "100000"),
    ("export", LONG),
    ("export", NUL),
    ("book", "A=" + "-" * 100_000 + "1"),
    ("book", "A={[]:1}"),
    ("book", f"A={UNDECODED}"),
    (UNDECODED,),
]


def memory() -> float:
    """The most that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stored(folder):
    """A network as `bar run` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    storage.save(network.trace(models.build("wrn-10-1", 2, (3, 8, 8)), (3, 8, 8)).module, folder)


def check(arguments, code, out, err):
    assert code in (0, 2), (arguments, err)
    assert "Traceback" not in err
    if code == 2:
        assert err.startswith("bar: "), arguments
        assert err.count("\n") == 1, (arguments, err)


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(arguments)[:40].encode("unicode_escape"))
def test_g1_refused_in_one_line_before_anything_is_allocated(arguments, bar_command, tmp_path):
    before = memory()
    code, out, err = bar_command(*arguments)
    check(arguments, code, out, err)
    assert (code, out) == (2, "")
    assert memory() - before < 300
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "wrn-28-50"),
        ("--model", "vgg19", "--classes", "100000"),
        ("--input-size", "3", "1000000", "1000000"),
        ("--input-size", "1000000", "2", "2"),
    ],
    ids=" ".join,
)
def test_g1_counting_needs_no_memory(arguments, bar_command):
    before = memory()
    code, out, err = bar_command("count", *arguments)
    assert (code, err) == (0, "")
    assert "total" in out
    assert memory() - before < 100


def test_g1_what_is_counted_is_what_is_built():
    for name in ("wrn-16-2", "conv4", "resnet18-by-8", "googlenet", "regnet_y_400mf"):
        built, outlined = models.build(name, 7, (3, 64, 64)), models.outline(name, 7, (3, 64, 64))
        assert bar.count(built, (3, 64, 64)) == bar.count(outlined, (3, 64, 64))
        assert all(parameter.is_meta for parameter in outlined.parameters())


def test_g1_export_for_images_that_no_memory_holds(bar_command, tmp_path):
    stored(tmp_path)
    code, out, err = bar_command("export", str(tmp_path), "--input-size", "3", "1000000", "1000000", "--format", "pt2")
    check((), code, out, err)
    assert "too large to export" in err


def test_g1_a_graph_that_fails_is_not_printed(capsys, tmp_path):
    class Narrow(torch.nn.Module):
        def forward(self, x):
            return torch.narrow(x, 1, 0, 4).flatten(1)

    network = torch.fx.symbolic_trace(Narrow())
    for call in (bar.count, lambda *given: bar.export(*given, tmp_path / "x.pt2")):
        with pytest.raises(bar.BarError, match="exceeds dimension size"):
            call(network, (3, 8, 8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [(("count", "--model"), "cannot take an image of size (5, 8, 8)"), (("export",), "cannot take images of 5x8x8")],
)
def test_g1_images_that_a_stored_network_cannot_take(command, message, bar_command, tmp_path):
    """torch.fx writes the graph that fails to standard error."""
    stored(tmp_path)
    code, out, err = bar_command(*command, str(tmp_path), "--input-size", "5", "8", "8")
    check((), code, out, err)
    assert message in err


def test_a_home_folder_that_no_shell_puts_there(bar_command, monkeypatch, tmp_path):
    """As in --out=~/runs, where shells leave the ~ as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = ["run", "--method", "random", "--limit", "60", "--epochs", "1", "0", "0", "-x", "2", "--device", "cpu"]
    code, _, err = bar_command(*words, "--out=~/mine")
    assert code == 0, err
    assert (tmp_path / "home" / "mine" / "result.json").is_file()


TINY = ["--limit", "60", "--size", "4", "--epochs", "1", "0", "0", "-x", "2", "--device", "cpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", *TINY, "--batch-size", "1"], "in batches of 1 images, shared by 1, a batch norm has one number"),
        (["run", "--schedule", "linear", "-o", "schedule=exponential"], "schedule is given twice: 'linear', and"),
        (["run", "--method", "mp-ft", "-o", "per_layer=yes", "-o", "per_layer=no"], "the option 'per_layer' is given"),
        (["reproduce", "--jobs", "2"], "--jobs is for --run"),
        (["count", "--model", "runs/none"], "there is no folder 'runs/none' with a network in it"),
    ],
)
def test_what_is_contradicted_or_has_no_effect_is_refused(words, message, bar_command):
    code, out, err = bar_command(*words)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_the_current_folder_may_be_that_of_a_run(bar_command, tmp_path, monkeypatch):
    """The unpruned network goes beside it, not into it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):  # again: it is recorded
        code, _, err = bar_command("run", "--method", "random", *TINY, "--out", ".")
        assert code == 0, err
    assert (tmp_path / "here" / "result.json").is_file()
    assert not [path for path in (tmp_path / "here").iterdir() if path.is_dir()]


def test_the_same_file_under_another_name_is_the_same_run(bar_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scale.py").write_text((Path(__file__).parent.parent / "notebooks/scale.py").read_text())
    for name in ("scale.py:Scale", "./scale.py:Scale", f"{tmp_path}/scale.py:Scale"):
        code, _, err = bar_command("run", "--method", name, *TINY)
        assert code == 0, err
    assert len(list(Path("runs").iterdir())) == 2


def test_a_name_with_control_characters_does_not_reach_the_terminal(bar_command, tmp_path):
    code, out, err = bar_command("run", "--method", "random", *TINY, "--out", str(tmp_path / "e\x1b[31mred"))
    assert code == 0, err
    assert "\x1b[31m" not in out


@pytest.mark.parametrize("call", [lambda x: bar.count(x, (3, 8, 8)), bar.fold, bar.run])
def test_what_is_no_network_or_configuration(call):
    with pytest.raises(BarError, match=r"must be an nn.Module, not a dict|needs a bar.RunConfig, not a dict"):
        call({"seed": 3})


def test_g1_a_user_without_a_home(monkeypatch):
    """In a container, the environment may name no home and the system know no such user."""

    def nobody(_):
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("BAR_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert data.root_folder().name == "bar-data"
    assert len(data.load("digits", limit=20).train) == 20
    with pytest.raises(BarError, match="no such user's home"):
        bar.RunConfig(dataset="~/photos")
    monkeypatch.setenv("BAR_DATA", "~/data")
    with pytest.raises(BarError, match="BAR_DATA"):
        data.root_folder()


BAR = [sys.executable, "-c", "from bar.cli import main; main()"]


def shell(command, **options):
    """A command of the shell in which `bar` is the command line."""
    line = f'bar() {{ "$PYTHON" -c "from bar.cli import main; main()" "$@"; }}; {command}'
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env=environment, **options)


@pytest.mark.parametrize("arguments", [("count", "--json"), ("count",)], ids=" ".join)
def test_g1_output_to_a_full_disk(arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*BAR, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    check((), done.returncode, "", done.stderr)
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", ["count --json", "count --layers", "--help"])
def test_g1_output_that_nobody_reads_ends_without_a_word(arguments):
    """As with `bar results | head -1`; 141 is what the shell says of `cat` there."""
    done = shell(f"{{ bar {arguments}; echo $? >&2; }} | true")
    assert done.stderr == "141\n"


@pytest.mark.parametrize("arguments", ["count", "--help"])
def test_g1_a_closed_output_is_said(arguments):
    done = shell(f"bar {arguments} >&-")
    assert (done.returncode, done.stderr) == (
        2, "bar: standard output is closed: if it is not wanted, send it to /dev/null\n"
    )  # fmt: skip


def test_g1_a_closed_error_stream_gets_no_record(tmp_path):
    """What is written to it must not end in a file that was opened in its place."""
    command = "bar run --limit 20 --epochs 1 0 0 -x 2 --out run"
    done = shell(f"{command} 2>&- <&-", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert shell("bar count --model nope >&- 2>&-").returncode == 2


def test_g1_a_disk_that_is_full_is_one_line(bar_command, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(runs, "run", full)
    assert bar_command("run") == (2, "", "bar: No space left on device: runs/x\n")


def test_g1_markup_of_the_terminal_in_a_name(bar_command, tmp_path):
    stored(tmp_path / "[/red]")
    code, out, err = bar_command("count", "--model", "[/red]", "--input-size", "3", "8", "8")
    assert (code, err) == (0, "")
    assert "[/red] at 3x8x8" in out


def test_g2_an_empty_data_set_is_not_the_current_folder(bar_command, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    code, out, err = bar_command("run", "--dataset", "")
    assert (code, out) == (2, "")
    assert err.startswith("bar: dataset must be text of 1 to")


# --- anything at all --------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec=None, categories=None), max_size=12) | st.sampled_from(
    ["", " ", NUL, UNDECODED, LONG, "~nosuchuser/x", "/", "[/red]", "-1", "--", "nan", "é", "x\ny", "."]
)
NUMBER = st.sampled_from(
    [
        "0",
        "1",
        "2",
        "4",
        "64",
        "-1",
        "1e400",
        "nan",
        "inf",
        "1.5",
        "0x10",
        "٣",
        HUGE,
        str(2**64),
        "9" * 5000,
        " 3",
        "1_0",
    ]
) | st.integers(-(10**6), 10**6).map(str)
NAMES = st.sampled_from(
    [*methods.NAMES, "digits", "cifar10", "quick", "paper", "volume", "flops", "sigmoid", "cpu", "meta"]
)
MODELS = st.sampled_from(
    ["wrn-10-1", "wrn-16-2", "resnet18-by-8", "conv4", "resnet18", "wrn-10-100000", "wrn-9-1", "runs"]
)
WORDS = TEXT | NUMBER | NAMES | MODELS
OPTIONS = {  # and how many words may follow: as many as are due, and sometimes another number
    "run": (
        "--method",
        "--pruning-factor",
        "-x",
        "--seed",
        "--out",
        "--processes",
        "--resume",
        "--tensorboard",
        "--json",
    ),
    "sweep": ("-m", "-x", "-s", "--jobs", "--out", "--dry-run", "--json"),
    "results": ("--method", "--dataset", "--model", "-x", "--seed", "--each", "--json", "--csv"),
    "reproduce": ("--run", "--minutes", "--jobs", "--out", "--json"),
    "count": ("--model", "--input-size", "--classes", "--linear", "--layers", "--json"),
    "export": ("--format", "--out", "--input-size", "--json"),
    "book": ("--fresh",),
}
COMMON = (
    "--dataset", "--model", "--metric", "--preset", "--size", "--limit", "--epochs", "--batch-size", "--schedule",
    "--distill", "--no-distill", "--start", "--gates", "--data", "--device", "--help",
)  # fmt: skip


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(list(OPTIONS)))
    line = [command]
    own = [*OPTIONS[command], *(COMMON if command in ("run", "sweep") else ())]
    for option in draw(st.lists(st.sampled_from(own), max_size=4)):
        due = 3 if option in ("--epochs", "--input-size") else 1
        words = draw(st.sampled_from([due] * 4 + [0, 1, 2]))
        kind = draw(st.sampled_from([NUMBER, WORDS]))
        line += [option, *draw(st.lists(kind, min_size=words, max_size=words))]
    return [*line, *draw(st.lists(WORDS, max_size=1))]


def fake(config, folder, **_):
    """What a run gives, without running."""
    sizes = dict.fromkeys(("volume", "flops", "parameters", "weights"), 1)
    sizes |= {f"{name}_full": 2 for name in sizes}
    return sizes | {
        "dataset_label": config.dataset,
        "training_images": 1,
        "accuracy": 0.5,
        "accuracy_unpruned": 0.5,
        "fingerprint": "0",
        "budget": 1,
        "seconds": 1,
    }


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(line=command_lines())
def test_g1_any_command_line(line, bar_command, monkeypatch):
    monkeypatch.setattr(runs, "run", fake)
    monkeypatch.setattr(cluster, "run", fake)
    monkeypatch.setattr(sweeps, "most_jobs", lambda: 1)
    monkeypatch.setattr(book, "build", lambda *_, **__: "index.html")
    before = memory()
    check(line, *bar_command(*line))
    assert memory() - before < 300


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXT, NAMES, MODELS, st.just(10**5000), st.binary(max_size=3),
    st.lists(st.integers() | st.floats() | st.none(), max_size=4), st.tuples(*[st.integers(-1, 10**9)] * 3),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1), st.just(object()), st.sets(st.integers(), max_size=1),
)  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(runs.RunConfig)]


@settings(max_examples=EXAMPLES)
@given(values=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_g1_any_configuration(values):
    """It is one that can be named, hashed and written, or it is refused."""
    try:
        config = bar.RunConfig(**values)
    except BarError:
        return
    hash(config)
    assert config.name.encode()
    assert config.unpruned.settings

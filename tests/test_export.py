"""What is exported computes the same in another process, which has no `bar`; mistakes leave no file."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import example, given
from hypothesis import strategies as st
from networks import NAMES, SIZE, build
from test_surgery import randomise, relative
from torch import nn

import bar
from bar import runs, storage
from bar.inference import exporting, plain

EXPORTED = [("plain", 0), ("branches", 14), ("depthwise", 0), ("grouped", 1), ("wrn-10-1", 1), ("wrn-16-1", 4),
            ("resnet-basic", 2), ("resnet-bottleneck", 0)]  # fmt: skip
FRESH = {
    "pt2": """
import sys
sys.modules["bar"] = None
import numpy, torch
for name in sys.argv[1:]:
    program = torch.export.load(name + ".pt2").module()
    images = numpy.load(name + ".npz")
    numpy.savez(name + ".pt2.npz", **{n: program(torch.from_numpy(images[n])).numpy() for n in images})
""",
    "onnx": """
import sys
sys.modules.update(bar=None, torch=None, onnx=None)
import numpy, onnxruntime
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(name + ".onnx", providers=["CPUExecutionProvider"])
    images = numpy.load(name + ".npz")
    numpy.savez(name + ".onnx.npz", **{n: session.run(["output"], {"images": images[n]})[0] for n in images})
""",
}


def pruned(name: str, seed: int) -> tuple[bar.GatedNetwork, torch.fx.GraphModule]:
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, 0.5)
    return gated, bar.prune(gated)


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
@example(name="wrn-28-1", seed=0)  # has an index_add of several channels
def test_folding_and_gathering_are_exact(name, seed):
    """In float64 to rounding; no batch norm stays that a convolution feeds alone, and no index_add at all."""
    _, network = pruned(name, seed)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    expected = network(images)
    traced = plain.plain_graph(network)
    assert relative(expected, traced(images)) <= 1e-10
    exporting.gather_instead_of_scatter(traced, images)
    assert relative(expected, traced(images)) <= 1e-10

    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        assert node.target is not torch.index_add
        if isinstance(modules.get(node.target), nn.BatchNorm2d):
            (source,) = node.all_input_nodes
            assert not isinstance(modules.get(source.target), nn.Conv2d) or len(source.users) > 1
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(network(images), expected)


def test_the_networks_exported_below_have_each_operation_of_mixed_connectivity():
    used = {node.target for name, seed in EXPORTED for node in pruned(name, seed)[1].graph.nodes}
    assert {torch.index_add, torch.index_select, torch.narrow, torch.cat} <= used


@pytest.fixture(scope="module")
def taken_away(tmp_path_factory):
    """Every network in both formats, run by a process without `bar` (and torch, for ONNX), at three batch sizes."""
    folder = tmp_path_factory.mktemp("exported")
    for name, seed in EXPORTED:
        _, network = pruned(name, seed)
        for format in FRESH:
            assert bar.export(network, SIZE, folder / f"{name}.{format}") <= 1e-4
        images = {str(n): torch.randn(n, *SIZE).numpy() for n in (1, 3, 64)}
        np.savez(folder / f"{name}.npz", **images)
    for script in FRESH.values():
        command = [sys.executable, "-W", "error", "-c", script, *(name for name, _ in EXPORTED)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("format", FRESH)
@pytest.mark.parametrize(("name", "seed"), EXPORTED, ids=[name for name, _ in EXPORTED])
def test_a_fresh_process_without_bar(name, seed, format, taken_away):
    """It agrees with the gated network in float64: surgery, folding and export together."""
    gated, _ = pruned(name, seed)
    images, found = np.load(taken_away / f"{name}.npz"), np.load(taken_away / f"{name}.{format}.npz")
    for n in ("1", "3", "64"):
        assert len(found[n]) == int(n)
        assert relative(gated(torch.from_numpy(images[n]).double()), torch.from_numpy(found[n])) <= 1e-4


def test_what_is_in_the_onnx_file(taken_away):
    model = onnx.load(taken_away / "resnet-basic.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["images"]
    assert [o.name for o in model.graph.output] == ["output"]
    batch, *size = model.graph.input[0].type.tensor_type.shape.dim
    assert (batch.dim_param, [d.dim_value for d in size]) == ("batch", list(SIZE))
    used = {node.op_type for name, _ in EXPORTED for node in onnx.load(taken_away / f"{name}.onnx").graph.node}
    assert {"Gather", "Slice", "Concat"} <= used
    assert not any("Scatter" in operation for operation in used)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}  # post-activation: all folded


def test_nothing_of_this_machine_is_in_the_files(taken_away):
    for file in (*taken_away.glob("*.pt2"), *taken_away.glob("*.onnx")):
        content = file.read_bytes()
        for place in (Path(torch.__file__).parents[1], Path(bar.__file__).parents[2], taken_away):
            assert str(place).encode() not in content
    assert not list(taken_away.glob("*.partial"))


class Shared(nn.Module):
    """One convolution called twice, whose output a batch norm reads once: folding would change the other call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x)) * torch.sigmoid(self.conv(x.flip(2)))).mean((2, 3))


def attentive() -> nn.Module:
    """What MobileNetV3 is made of: squeeze and excitation, which multiplies a signal by a sigmoid of itself."""
    Conv = torchvision.ops.Conv2dNormActivation
    attention = torchvision.ops.SqueezeExcitation(8, 4, scale_activation=nn.Hardsigmoid)
    return nn.Sequential(
        Conv(3, 8, 3, activation_layer=nn.Hardswish), Conv(8, 8, 3, groups=8), attention, Conv(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip


@pytest.mark.parametrize("network", [Shared(), attentive()], ids=["shared", "attentive"])
@pytest.mark.parametrize("format", FRESH)
def test_any_traced_network(network, format, tmp_path):
    """Not only pruned ones: operations that pruning refuses, and training mode, which stays as it is."""
    before = copy.deepcopy(network.train().state_dict())
    assert bar.export(network, SIZE, tmp_path / "network", format) <= 1e-4
    assert all(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class Reshapes(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(3, -1)


class Branching(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


class Sizes(Shared):
    def forward(self, x: torch.Tensor) -> tuple:
        return self.conv(x), x.shape


class Bessel(Shared):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(self.conv(x))


def not_a_number() -> nn.Module:
    network = Shared()
    network.conv.weight.data[0] = torch.nan
    return network


@pytest.mark.parametrize(
    ("network", "size", "name", "message"),
    [
        (Shared, SIZE, "network.onx", "unknown format 'onx' .* did you mean 'onnx'"),
        (Shared, SIZE, "network", "unknown format '' .* Known: onnx, pt2"),
        (Shared, (3, 8), "network.pt2", "cannot take images of 3x8: .* 3 channels"),
        (Shared, (1, 8, 8), "network.pt2", "cannot take images of 1x8x8: .* 3 channels"),
        (not_a_number, SIZE, "network.pt2", "conv.weight has values that are not finite"),
        (lambda: bar.gate(build("plain"), SIZE), SIZE, "network.pt2", "with bar.prune"),
        (Reshapes, SIZE, "network.pt2", "Reshapes to pt2: .* batch .* constant"),
        (Branching, SIZE, "network.pt2", "cannot export Branching to pt2: .*data-dependent"),
        (Sizes, SIZE, "network.pt2", "Sizes must return tensors, or tuples, lists and dicts of them"),
        (Bessel, SIZE, "network.onnx", "Bessel to onnx: .*bessel_j0"),
    ],
)
def test_what_is_refused_leaves_no_file(network, size, name, message, tmp_path):
    with pytest.raises(bar.BarError, match=message):
        bar.export(network(), size, tmp_path / "new" / name)
    assert list(tmp_path.iterdir()) == []


def test_suffix_and_format_disagree(tmp_path):
    with pytest.raises(bar.BarError, match=r"network\.onnx is asked for in the format 'pt2'"):
        bar.export(Shared(), SIZE, tmp_path / "network.onnx", "pt2")


@pytest.mark.parametrize("format", FRESH)
def test_a_difference_is_an_error_and_what_was_there_stays(format, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "fuse_conv_bn_eval", lambda conv, norm: copy.deepcopy(conv))
    path = tmp_path / f"network.{format}"
    path.write_text("mine")
    with pytest.raises(bar.BarError, match=f"the {format} file would differ from the network by"):
        bar.export(build("resnet-basic"), SIZE, path)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "network.pt2").mkdir()
    with pytest.raises(bar.BarError, match=r"cannot write .*network\.pt2"):
        bar.export(build("plain"), SIZE, tmp_path / "network.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["network.pt2"]


def test_packages_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert bar.export(build("plain"), SIZE, tmp_path / "network.onnx") is None
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(bar.BarError, match=r"needs onnxscript: pip install '\.\[onnx\]' in a checkout"):
        bar.export(build("plain"), SIZE, tmp_path / "again.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    bar.run(bar.RunConfig(pruning_factor=2, limit=64, size=8, epochs=(1, 0, 0)), folder)
    return folder


def test_bar_export_of_a_run(run_folder, bar_command):
    code, out, err = bar_command("export", str(run_folder), "--format", "pt2", "--json")
    assert (code, err) == (0, "")
    shown, path = json.loads(out), run_folder / "network.pt2"
    assert shown["difference"] <= 1e-4
    assert (shown["file"], shown["bytes"]) == (str(path), path.stat().st_size)
    assert shown["input_size"] == runs.read(run_folder)["input_size"] == [3, 8, 8]
    code, out, err = bar_command("export", str(run_folder))
    assert (code, err) == (0, "")
    path = run_folder / "network.onnx"
    first, second = out.splitlines()
    assert first == f"{path}: {path.stat().st_size:,} bytes, for images of 3x8x8 in batches of any size"
    assert second.startswith("max relative difference from the network: ")
    assert float(second.split()[-1]) <= 1e-4


def test_bar_export_of_a_stored_network(bar_command, tmp_path):
    storage.save(pruned("wrn-10-1", 0)[1], tmp_path / "stored")
    code, out, err = bar_command("export", "stored")
    assert (code, out, err) == (2, "", "bar: stored does not say its input size: give --input-size\n")
    code, _, err = bar_command("export", "stored", "--input-size", "3", "8", "8", "--out", "new/mine.pt2")
    assert (code, err) == (0, "")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mine.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-folder"], "network.json is missing"),
        (["RUN", "--format", "onx"], "did you mean 'onnx'"),
        (["RUN", "--out", "network.tflite"], "unknown format 'tflite'"),
        (["RUN", "--out", "result.json", "--format", "pt2"], "result.json would not hold what its suffix says"),
        (["RUN", "--input-size", "1", "8", "8"], "cannot take images of 1x8x8"),
        (["RUN", "--input-size", "3", "8"], "--input-size"),
        ([], "Missing argument 'RUN'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, run_folder, bar_command, tmp_path):
    files = sorted(run_folder.iterdir())
    code, out, err = bar_command("export", *(str(run_folder) if a == "RUN" else a for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("bar: ")
    assert err.count("\n") == 1
    assert message in err
    assert (list(tmp_path.iterdir()), sorted(run_folder.iterdir())) == ([], files)


def test_help_has_examples(bar_command):
    code, out, _ = bar_command("export", "--help")
    assert code == 0
    assert "Examples:" in out

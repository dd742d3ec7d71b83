"""Training on a CPU in channels_last never reaches the kernel of uxlfoundation/oneDNN 6035, whatever was pruned.

That kernel, the weight gradient of a strided 1x1 convolution of few inputs, writes past its memory.
"""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import bar
from bar import storage
from bar.network import stride_first

HEAP_CHECK = "libc_malloc_debug.so.0"  # of glibc 2.34 and later


def heap_check() -> dict[str, str]:
    """What makes glibc look whether the memory is intact, where there is a glibc."""
    try:
        ctypes.CDLL(HEAP_CHECK)
    except OSError:
        return {}
    return {"LD_PRELOAD": HEAP_CHECK, "MALLOC_CHECK_": "3"}


def gradients_of(command: list, isa: str = "DEFAULT") -> tuple[str, list[str]]:
    """What a process prints that survives the heap check, and the weight gradients that oneDNN computed for it."""
    environment = {"ONEDNN_MAX_CPU_ISA": isa, "ONEDNN_VERBOSE": "1", **heap_check()}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        capture_output=True, text=True, timeout=300, env=os.environ | environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-500:]
    gradients = [line for line in ended.stdout.splitlines() if "backward_weights" in line]
    assert gradients or not torch.backends.mkldnn.is_available()
    return ended.stdout, gradients


STRIDED = re.compile(r"kh1sh[2-9]\S*ph0_\S*kw1")  # as oneDNN writes a 1x1 convolution


@pytest.mark.parametrize(
    ("isa", "threads"),
    [
        ("DEFAULT", 2),
        ("AVX2", 1),
        pytest.param("DEFAULT", 1, marks=pytest.mark.long),
        pytest.param("AVX2", 2, marks=pytest.mark.long),
    ],
)
def test_gated_cut_and_pruned_networks_train(isa, threads):
    """At every width and stride the process survives, the gradients are right, and the kernel is never called."""
    printed, gradients = gradients_of([Path(__file__).with_name("shortcuts.py"), threads], isa)
    assert not [line for line in gradients if STRIDED.search(line)]
    assert float(printed.split("worst ")[1].split()[0]) <= 1e-5


@pytest.mark.parametrize("method", ["bar", "mp-ft"])
def test_a_run_of_a_narrow_network(method, tmp_path):
    """Its shortcuts have 4, 8 and 16 inputs before anything is pruned; the unpruned network is trained as well."""
    run = "from bar.cli import main; main()"
    options = ["--model", "resnet18-by-16", "--limit", 64, "--size", 32, "--epochs", 1, 1, 0, "--device", "cpu"]
    _, gradients = gradients_of(["-c", run, "run", "--method", method, *options, "--out", tmp_path / "run"])
    assert not [line for line in gradients if STRIDED.search(line)]


@pytest.mark.parametrize("padding", [0, "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1), (1, 3)])
def test_the_same_numbers(stride, padding):
    conv = nn.Conv2d(5, 4, 1, stride=stride, padding=padding)
    images = torch.randn(2, 5, 8, 7)
    expected = conv(images)
    changed = stride_first(fx.symbolic_trace(nn.Sequential(conv)))
    assert conv.stride == (1, 1)
    assert torch.allclose(changed(images), expected, atol=1e-6)
    pools = changed.graph.find_nodes(op="call_function", target=torch.nn.functional.avg_pool2d)
    assert len(pools) == (stride != 1)


def test_a_padded_or_wider_convolution_is_left_alone():
    net = nn.Sequential(nn.Conv2d(5, 4, 1, stride=2, padding=1), nn.Conv2d(4, 4, 3, stride=2))
    assert [conv.stride for conv in stride_first(fx.symbolic_trace(net)).children()] == [(2, 2), (2, 2)]


def test_the_gated_network_leaves_the_users_convolution_alone():
    net = bar.models.build("wrn-10-1", 4)
    bar.gate(net, (3, 16, 16))
    assert net.group2[0].shortcut.stride == (2, 2)


def test_inference_strides_in_the_convolution():
    """Folded or exported, nothing is copied before the convolution; the pruned network itself stays as it is."""
    pruned = bar.prune(bar.gate(bar.models.build("wrn-10-1", 4), (3, 16, 16))).eval()
    assert pruned.get_submodule("group2.0.shortcut").stride == (1, 1)
    folded = bar.fold(pruned)
    assert folded.get_submodule("group2.0.shortcut").stride == (2, 2)
    assert pruned.get_submodule("group2.0.shortcut").stride == (1, 1)
    assert not folded.graph.find_nodes(op="call_function", target=torch.nn.functional.avg_pool2d)
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(folded(images), pruned(images), atol=1e-5)


def test_a_pool_of_the_users_own_stays():
    """One that something else reads, too, or that reads more than a pixel."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
            self.c = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            pooled = nn.functional.avg_pool2d(x, 1, (2, 2))
            return self.a(pooled) + self.b(pooled) + self.c(nn.functional.avg_pool2d(x, 2, (2, 2)))

    net, images = Own().eval(), torch.randn(2, 3, 8, 8)
    folded = bar.fold(net)
    assert len(folded.graph.find_nodes(op="call_function", target=torch.nn.functional.avg_pool2d)) == 2
    assert torch.allclose(folded(images), net(images), atol=1e-5)


def opened(gated):
    return gated.keep_({name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()})


def test_pruned_networks_are_counted_stored_and_gated_again(tmp_path):
    """The pools change neither counts nor names, and come back from the disk."""
    net, size = bar.models.build("wrn-10-1", 4), (3, 16, 16)
    pruned = bar.prune(opened(bar.gate(net.eval(), size)))
    assert bar.count(pruned, size) == bar.count(net, size)
    storage.save(pruned, tmp_path)
    images = torch.randn(2, *size)
    assert torch.equal(bar.load(tmp_path)(images), pruned(images))
    again = opened(bar.gate(pruned, size))
    assert again.full() == bar.count(net, size).volume
    assert torch.allclose(again(images), net(images), atol=1e-5)

"""A dozen public networks, one a construction, as `bench/networks.py` measures them: gated, and exact when pruned."""

import importlib.util
from pathlib import Path

import pytest
import torch

PLACE = Path(__file__).parent.parent / "bench" / "networks.py"
SHORT = {
    "legacy_seresnet18": "squeeze, excitation",
    "resnetblur18": "filters that blur",
    "resnest14d": "radix softmax",
}
LONG = {
    "mobilenetv3_small_050": "hard swish and scales", "ese_vovnet19b_dw": "concatenations", "ecaresnet26t": "attention",
    "convnext_atto": "layer norms", "cspresnet50d": "splits of channels", "mixnet_s": "kernels of several sizes",
    "resnetv2_50d": "norms with an activation", "efficientnet_es": "edge residuals", "dla34": "trees of sums",
}  # fmt: skip
LEFT_WHOLE = {"resnest14d", "ecaresnet26t", "convnext_atto"}


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_public_networks(name):
    timm = pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("networks_bench", PLACE)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    torch.manual_seed(0)
    found = bench.measure(timm.create_model(name), (3, 64, 64))
    assert found["gated"]
    assert found["counted"]
    assert found["lost"] > 0.05
    assert found["error"] <= 1e-10
    assert found["error"] <= 1e-8 * found["moved"]
    assert bool(found["whole"]) == (name in LEFT_WHOLE)

"""Sizes against the paper's and torch's own counter, the wiring of WRN against its definition, errors at the door."""

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bar import models
from bar.errors import BarError


def volume_and_flops(network, input_size):
    """Count by hooks and by torch's counter, independently of bar.cost: sum of C H W over convs, and their FLOPs."""
    sizes = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output[0].numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval().to("meta")(torch.empty(1, *input_size, device="meta"))
    convs = [flops for op, flops in counter.get_flop_counts()["Global"].items() if "convolution" in str(op)]
    return sum(sizes), sum(convs)


def test_the_papers_networks_have_the_papers_sizes():
    assert volume_and_flops(models.build("wrn-28-12"), (3, 32, 32)) == (3_112_960, 15_087_796_224)
    resnet50 = models.build("resnet50", 11, (3, 128, 128))
    assert volume_and_flops(resnet50, (3, 128, 128)) == (3_629_056, 2_669_150_208)


@settings(deadline=None, max_examples=15)
@given(blocks=st.integers(1, 4), width=st.integers(1, 3), classes=st.integers(1, 7), side=st.sampled_from([8, 12, 32]))
def test_wide_resnet_counts_by_hand(blocks, width, classes, side):
    """Volume and parameters follow from the definition, for any depth and width."""
    network = models.WideResNet(6 * blocks + 4, width, classes, in_channels=2)
    volume, weights, inputs = 16 * side**2, 2 * 16 * 9, 16
    for group in range(3):
        outputs, area = 16 * 2**group * width, (side // 2**group) ** 2
        projected = inputs != outputs or group > 0
        volume += (2 * blocks + projected) * outputs * area
        weights += 9 * inputs * outputs + (2 * blocks - 1) * 9 * outputs**2 + projected * inputs * outputs
        weights += 2 * inputs + 2 * (2 * blocks - 1) * outputs  # batch norms
        inputs = outputs
    weights += 2 * inputs + inputs * classes + classes
    assert sum(p.numel() for p in network.parameters()) == weights
    assert network(torch.zeros(2, 2, side, side)).shape == (2, classes)
    assert volume_and_flops(network, (2, side, side))[0] == volume


@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "projected"),
    [(16, 16, 1, False), (16, 16, 2, True), (16, 32, 1, True), (16, 32, 2, True)],
)
def test_block_shortcut(inputs, outputs, stride, projected):
    """The shortcut is the raw signal, or a 1x1 of the activated one; seen alone when the second 3x3 is silenced."""
    torch.manual_seed(0)
    block = models.PreActivationBlock(inputs, outputs, stride).eval()
    nn.init.uniform_(block.bn1.weight)
    nn.init.uniform_(block.bn1.bias)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, inputs, 8, 8)
    expected = x
    if projected:
        scale = block.bn1.weight / (block.bn1.running_var + block.bn1.eps).sqrt()
        activated = (x * scale[:, None, None] + block.bn1.bias[:, None, None]).clamp(min=0)
        expected = torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], activated[..., ::stride, ::stride])
    assert (block.shortcut is not None) == projected
    torch.testing.assert_close(block(x), expected)


def test_block_stride_is_in_the_first_conv():
    block = models.PreActivationBlock(16, 32, 2)
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_he_initialisation():
    torch.manual_seed(0)
    for module in models.WideResNet(10, 4).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-2", "conv4", "resnet18", "vgg11_bn"])
def test_traceable(name, training):
    """torch.fx reads the network and the graph computes the same, at another batch size too."""
    torch.manual_seed(0)
    network = models.build(name, 4).train(training)
    for module in network.modules():  # two forward passes must not differ by a draw or by a moved average
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    traced = torch.fx.symbolic_trace(network)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(traced(x), network(x))


def test_conv4_is_frankle_and_carbins():
    """Its weights number 2,425,024 (their figure 2 rounds to 2.4M) plus the biases."""
    network = models.build("conv4")
    assert sum(p.numel() for p in network.parameters() if p.dim() > 1) == 2_425_024
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [64, 64, 128, 128]
    assert models.Conv4(5, in_channels=1, input_size=7)(torch.zeros(2, 1, 7, 7)).shape == (2, 5)


def test_every_name_can_be_built_without_a_warning():
    """Every listed CNN of torchvision gives one tensor of logits in training mode (GoogLeNet's and Inception's extra
    heads are off). The four families with options of their own stand for the rest, to keep this short."""
    for name, side in (("googlenet", 64), ("inception_v3", 128), ("regnet_y_400mf", 32), ("squeezenet1_1", 64)):
        network = models.build(name, 3, (3, side, side))
        assert network.training
        with torch.no_grad():
            assert network(torch.zeros(2, 3, side, side)).shape == (2, 3)
    listed = torchvision.models.list_models(module=torchvision.models)
    assert {"wrn-28-12", "conv4"} | {n for n in listed if "vit" not in n and "swin" not in n} == set(models.names())


def test_build_is_reproducible():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(models.build("WRN-10-1").fc.weight)
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wrn-27-2",), "27.*6n \\+ 4.*22"),
        (("wrn-4-2",), "4.*6n \\+ 4.*10"),
        (("wrn-28-0",), "width is 0"),
        (("wrn-28",), "did you mean 'wrn-28-12'"),
        (("resnet51",), "did you mean 'resnet50'"),
        (("vit_b_16",), "no network"),
        (("vgg11", 10, (3, 16, 16)), "vgg11 cannot take images of 3 x 16 x 16"),
        (("conv4", 10, (3, 2, 2)), "2 pixels shrink to nothing"),
        (("conv4", 10, (3, 8, 16)), "square"),
        (("resnet18", 10, (1, 32, 32)), "3 channels, not 1"),
        (("resnet18", 0), "num_classes is 0"),
        (("resnet18-by-0",), "divided by a whole number >= 1"),
        (("resnet18-by-x",), "divided by a whole number >= 1"),
        (("resnet18-by-100",), "a width of 64 cannot be divided by 100"),
        (("resnext50_32x4d-by-2",), "because of its layer 'conv2'"),
        (("squeezenet1_1-by-2",), "cannot be narrowed"),
        (("wrn-10-1", 10, (3, 0, 32)), "input size must be .* not \\(3, 0, 32\\)"),
        (("wrn-10-1", 10, (3, 32)), "input_size"),
    ],
)
def test_refused_at_the_door(arguments, message):
    with pytest.raises(BarError, match=message):
        models.build(*arguments)

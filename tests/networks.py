"""Small networks for the tests, with batch norm statistics as a trained network has them."""

import torch
from torch import Tensor, nn

from bar import models


class Plain(nn.Module):
    """A chain with a bias, no batch norm, and a linear layer behind pixels that are not pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 5, 3, padding=1, stride=2)
        self.act = nn.GELU()
        self.fc = nn.Linear(5 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.b(self.act(self.a(x))))
        return self.fc(x.flatten(1))


class Branches(nn.Module):
    """Concatenation, a sum after it, and a batch norm that reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 3, 1)
        self.right = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.other = nn.Conv2d(4, 8, 3, padding=1)
        self.joint = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.left(x), self.norm(self.right(x)).relu()], 1) + self.other(x)
        x = torch.relu(self.last(torch.relu(self.joint(x))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Block(nn.Module):
    """A post-activation residual block with a depthwise convolution and in-place activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm_up = nn.BatchNorm2d(2 * width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.norm_depthwise = nn.BatchNorm2d(2 * width)
        self.down = nn.Conv2d(2 * width, width, 1, bias=False)
        self.norm_down = nn.BatchNorm2d(width)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm_up(self.up(x)))
        out = self.norm_down(self.down(self.act(self.norm_depthwise(self.depthwise(out)))))
        out += x
        return self.act(out)


class Depthwise(nn.Module):
    """Residual blocks around depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, stride=2)
        self.blocks = nn.Sequential(Block(5), Block(5))
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nn.functional.adaptive_max_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Grouped(nn.Module):
    """Grouped convolutions inside a residual block, and much that other people's networks do at their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.up = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, padding=2, dilation=2, groups=3)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.down = nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 4, 3, stride=2)
        self.fc = nn.Linear(4 * 9, 6)
        self.fc_norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem((x - 0.5) / 2))
        x = x + self.down(torch.relu(self.norm(self.grouped(torch.relu(self.up(x))))))
        x = self.last(x)
        x = torch.sigmoid(self.fc_norm(self.fc(x.view(x.size(0), -1))))
        return nn.functional.log_softmax(self.head(x), dim=1)


class MyConv(nn.Conv2d):
    """A user's own name for a layer."""


class Awkward(nn.Module):
    """What people write: normalisation inside, activations in place on signals that are read again, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.stem = MyConv(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.left, self.right = nn.Conv2d(6, 5, 3, stride=2), nn.Conv2d(6, 4, 1)
        self.fc_left, self.fc_right = nn.Linear(5 * 9, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x - self.mean))
        x = x + self.inner(self.act(x))  # the sum reads the activation, too
        y = nn.functional.dropout(self.left(x), 0.5, self.training)
        z = self.right(x)
        z += z
        left = self.fc_left(y.view(-1, 5 * 9))
        right = self.fc_right(z.mean((2, 3)).view(z.shape[0], -1))
        return (left + torch.sigmoid(right)) * self.temperature


def narrow_resnet(block: type, layers: list[int]) -> nn.Module:
    """A torchvision ResNet with an eighth of its width."""
    from torchvision.models.resnet import ResNet

    return models.narrow(ResNet(block, layers, num_classes=4), 8)


def family(name: str) -> nn.Module:
    """A narrow network of one of the families of `models.build`, for images of 32 x 32, as `build` makes them."""
    plain = name in ("conv4", "wrn-16-1", "wrn-10-2")
    divisor = 16 if name.startswith("wide") else 8
    net = models.build(name if plain else f"{name}-by-{divisor}", 4)
    for module in awaken(net).modules():
        if isinstance(module, nn.Conv2d):  # that the images reach the end of deep networks without batch norm
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.uniform_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 1, 2)
    return net


FAMILIES = (
    "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn",
    "vgg16_bn", "vgg19_bn", "mobilenet_v2", "densenet121", "googlenet", "conv4", "wrn-10-2", "wrn-16-1",
)  # fmt: skip


def build(name: str) -> nn.Module:
    """One of the test networks, in float64 and eval mode, with every feature's signal well alive."""
    from torchvision.models.resnet import BasicBlock, Bottleneck

    made = {
        "plain": Plain,
        "branches": Branches,
        "depthwise": Depthwise,
        "grouped": Grouped,
        "awkward": Awkward,
        "wrn-10-1": lambda: models.build("wrn-10-1", 4),
        "wrn-16-1": lambda: models.build("wrn-16-1", 4),
        "wrn-28-1": lambda: models.build("wrn-28-1", 4),
        "resnet-basic": lambda: narrow_resnet(BasicBlock, [2, 2, 1, 1]),
        "resnet-bottleneck": lambda: narrow_resnet(Bottleneck, [2, 1, 1, 1]),
    }
    return awaken(made[name]())


def awaken(net: nn.Module) -> nn.Module:
    """The same network in float64 and eval mode, with statistics and biases as training leaves them, away from 0."""
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return net


NAMES = (
    "plain",
    "branches",
    "depthwise",
    "grouped",
    "awkward",
    "wrn-10-1",
    "wrn-16-1",
    "resnet-basic",
    "resnet-bottleneck",
)
SIZE = (3, 8, 8)

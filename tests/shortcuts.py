"""Train networks with shortcuts of all widths, as surgery leaves them; run by test_shortcuts.py, in its own process.

Prints the largest difference of a gradient from that without oneDNN, relative to the network's largest gradient. What
oneDNN computes it prints itself, where ONEDNN_VERBOSE asks for it.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bar

BATCH = 9  # odd, so that two threads get shares of different sizes
STEPS = 2


class Shortcut(nn.Module):
    """A residual block with a 1x1 shortcut behind a stem of some width."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, 10, 3, stride=stride, padding=1)
        self.shortcut = nn.Conv2d(width, 10, 1, stride=stride, bias=False)
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.stem(x)))  # smooth, or a rounding error may switch a pixel off
        return self.fc(F.silu(self.conv(x) + self.shortcut(x)).mean((2, 3)))


def networks(width: int, stride: int, size: int):
    """Gated as it is; wider, but cut to that width; and pruned to it."""
    yield bar.gate(Shortcut(width, stride), (3, size, size))
    gated = bar.gate(Shortcut(16, stride), (3, size, size))
    gated.keep_({name: torch.arange(len(gate.alive)) < (width if name == "stem" else 10)
                 for name, gate in gated.gates.items()})  # fmt: skip
    pruned = bar.prune(gated)
    assert pruned.get_submodule("shortcut").in_channels == width
    yield gated.cut_()
    yield pruned


def gradients(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    torch.manual_seed(0)  # the same gates
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(0)
    worst = 0.0
    for size in (4, 7, 8, 16, 32):
        for stride in (1, 2):
            for width in range(1, 17):
                images = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
                labels = torch.randint(4, (BATCH,))
                for network in networks(width, stride, size):
                    network.train().to(memory_format=torch.channels_last)
                    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
                    for _ in range(STEPS):
                        with torch.backends.mkldnn.flags(enabled=False):
                            expected = gradients(network, images, labels)
                        found = gradients(network, images, labels)
                        largest = max(b.abs().max() for b in expected)
                        for a, b in zip(found, expected, strict=True):
                            worst = max(worst, float((a - b).abs().max() / largest))
                        optimizer.step()
    print("worst", worst)


if __name__ == "__main__":
    main()

"""A network of one's own, which knows nothing of pruning."""

from torch import nn


def block(inputs, outputs):
    """Return a convolution that halves the map, with its batch norm."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Small(nn.Module):
    """Three convolutions and a linear layer."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(
            block(3, 16), block(16, 32), block(32, 64)
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))

"""Small networks of the kinds that people write: segmentation, super-resolution, signals, attention, several heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def double(inside: int, out: int) -> nn.Sequential:
    """Two convolutions, as in a U-Net."""
    return nn.Sequential(
        nn.Conv2d(inside, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """With transposed convolutions, or with interpolation to the size of the other signal."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down, self.bottom = double(3, 6), double(6, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2) if transposed else None
        self.join, self.out = double(12 if transposed else 14, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.down(x)
        x = self.bottom(F.max_pool2d(left, 2))
        if self.up is None:
            x = F.interpolate(x, size=left.shape[-2:], mode="bilinear", align_corners=False)
        else:
            x = self.up(x)
            dy, dx = left.size()[2] - x.size()[2], left.size()[3] - x.size()[3]
            x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.out(self.join(torch.cat([left, x], dim=-3)))


class EDSR(nn.Module):
    """Super-resolution with scaled residual blocks and a shuffle of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 7, 3, padding=1), nn.ReLU(True), nn.Conv2d(7, 6, 3, padding=1)) for _ in range(2)
        )
        self.mid, self.shuffle, self.last = nn.Conv2d(6, 6, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 3)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.head(x - self.mean)
        for block in self.body:
            y = y + block(y).mul(0.1)
        return self.last(self.shuffle(self.tail(x + self.mid(y)))) + self.mean


class DnCNN(nn.Module):
    """The noise is subtracted from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)


class Autoencoder(nn.Module):
    """With a code in the middle, which is returned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.PReLU(6), nn.Conv2d(6, 8, 3, 2, 1), nn.Hardswish())
        self.coder, self.back = nn.Linear(32, 5), nn.Linear(5, 32)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.coder(self.encoder(x).view(len(x), -1))
        image = torch.sigmoid(self.decoder(self.back(code).view(-1, 8, 2, 2)))
        return {"image": image, "codes": (code,)}


class OptionA(nn.Module):
    """Blocks whose shortcuts pad channels with zeros, as the ResNets for CIFAR have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.b = double(4, 4), double(4, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.a(x)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + F.max_pool2d(self.b(x), 2)
        x = F.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), 8))


class Squeeze(nn.Module):
    """Squeeze and excitation in three spellings, and attention over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = double(3, 8)
        self.reduce, self.expand = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.mid, self.fc = double(8, 6), nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6), nn.Sigmoid())
        self.pixel, self.last, self.out = nn.Conv2d(6, 1, 3, padding=1), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self.mid(x)
        b, c, _, _ = x.size()
        x = x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)
        x = self.pixel(x).sigmoid() * x
        x = self.last(x)
        x = x * torch.sigmoid(x)
        x = x * F.relu6(x + 3) / 6
        return self.out(x.mean(-1).mean(-1))


class Shuffled(nn.Module):
    """Slices, chunks and shuffles of channels, as in ShuffleNet, GhostNet and Res2Net."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = double(3, 8)
        self.part, self.deep = double(4, 4), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.parts = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.last, self.fc = nn.Conv2d(7, 5, 1), nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat((left, self.part(right)), 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        x = self.deep(x) * self.scale
        spx, ys = torch.split(x, 2, 1), []
        for i, conv in enumerate(self.parts):
            ys.append(nn.ReLU()(conv(spx[i] if i == 0 else ys[-1] + spx[i])))
        x = torch.cat([*ys, spx[3]], 1)[:, 1:]
        return self.fc(self.last(x.flip(1)).amax((2, 3)))


class Heads(nn.Module):
    """A list of maps and a class, as detectors return them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = double(3, 6), double(6, 8)
        self.boxes = nn.ModuleList([nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1)])
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        signals = [self.stem(x)]
        signals.append(self.deep(F.avg_pool2d(signals[0], 2)))
        return [box(s) for box, s in zip(self.boxes, signals, strict=True)], self.fc(signals[1].sum((2, 3)))


class ECG(nn.Module):
    """Signals in time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 8, 3), nn.ELU(),
            nn.Conv1d(8, 5, 3, groups=1), nn.Flatten(), nn.BatchNorm1d(60), nn.Linear(60, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Volumes(nn.Module):
    """Images with a depth."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(1, 5, 3, padding=1), nn.BatchNorm3d(5), nn.Conv3d(5, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        return self.fc(torch.flatten(F.adaptive_avg_pool3d(self.b(x), 1), 1, -1))


class ConvNeXt(nn.Module):
    """Layer norms over channels, which are left whole, and convolutions between them, which are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.one, self.two = nn.LayerNorm(6), nn.Conv2d(6, 12, 1), nn.Conv2d(12, 6, 1)
        self.gamma, self.fc = nn.Parameter(torch.full((6, 1, 1), 0.5)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.two(F.gelu(self.one(y))) * self.gamma
        return self.fc(x.mean([-2, -1]))


class GroupNormed(nn.Module):
    """A residual network with group norms in its signal."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.a, self.b, self.c = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(7, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.norm2(x + self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def norm2(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class TwoInputs(nn.Module):
    """An image and numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers = double(3, 6), nn.Linear(5, 6)
        self.mix, self.fc = nn.Conv2d(6, 7, 3), nn.Linear(7, 4)

    def forward(self, image: Tensor, numbers: Tensor, scale: float | None = None) -> Tensor:
        if scale is not None:
            image = image * scale
        x = self.image(image) * self.numbers(numbers)[:, :, None, None]
        return self.fc(self.mix(x).mean((2, 3)))


class NormAct(nn.BatchNorm2d):
    """A batch norm with its own forward and an activation, as in timm."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(x)


class Same(nn.Conv2d):
    """A convolution that pads its input by itself."""

    def forward(self, x: Tensor) -> Tensor:
        rows = max((-(x.shape[2] // -self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - x.shape[2], 0)
        x = F.pad(x, [rows // 2, rows - rows // 2, rows // 2, rows - rows // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class DropPath(nn.Module):
    """Stochastic depth, as everybody writes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x.div(0.8) * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8)


class Own(nn.Module):
    """Layers with a forward of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.norm_b = Same(3, 6, 3, 2, bias=False), NormAct(6), Same(6, 6, 3), NormAct(6)
        self.drop, self.fc = DropPath(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x))
        x = x + self.drop(self.norm_b(self.b(x)))
        return self.fc(x.mean((2, 3)))


class Conditioned(nn.Module):
    """A denoiser, which is told how noisy each image is, and what is on it."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.mlp = nn.Embedding(10, 8), nn.Sequential(nn.Linear(8, 8), nn.SiLU())
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.b = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.shift, self.last = nn.Linear(8, 5), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, images: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(4))
        angles = steps[:, None].float() * rates
        condition = self.mlp(torch.cat([angles.sin(), angles.cos()], 1) + self.classes(labels))
        x = self.stem(images)
        inside = self.a(self.norm(x).relu()) + self.shift(condition)[:, :, None, None]
        return self.last(x + self.b(inside.relu()))


PEOPLE = {
    "unet-transposed": lambda: UNet(True), "unet-interpolated": lambda: UNet(False), "edsr": EDSR, "dncnn": DnCNN,
    "autoencoder": Autoencoder, "option-a": OptionA, "squeeze": Squeeze, "shuffled": Shuffled, "heads": Heads,
    "ecg": ECG, "volumes": Volumes, "convnext": ConvNeXt, "group-normed": GroupNormed, "two-inputs": TwoInputs,
    "own": Own, "conditioned": Conditioned,
}  # fmt: skip
INPUTS = {
    "ecg": [(2, 32)],
    "volumes": [(1, 8, 8, 8)],
    "two-inputs": [(3, 8, 8), (5,)],
    "conditioned": [(3, 8, 8), (), ()],
}
LEFT_WHOLE = {"convnext", "group-normed"}


def person(name: str) -> nn.Module:
    """One of them, in double precision and eval mode, with batch norm statistics of a trained network."""
    net = PEOPLE[name]()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.double().eval()


def inputs_of(name: str, images: int = 3) -> list[Tensor]:
    """A batch for each of its inputs: numbers, or where there is one for each image, whole ones."""
    return [
        torch.randn(images, *size, dtype=torch.float64) if size else torch.randint(0, 10, (images,))
        for size in INPUTS.get(name, [(3, 8, 8)])
    ]

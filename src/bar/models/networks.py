"""The networks of section 5.1, plain: nothing here knows of pruning."""

import re

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bar.errors import BarError, nearest, shown
from bar.models import own
from bar.network import checked_size, undisturbed

# torchvision also lists transformers as classifiers; they are not CNNs
_NOT_CNN = ("vit_", "swin_", "maxvit")
# these two return a second, training-only output unless told not to, and warn unless told how to initialise
_INCEPTION = {"aux_logits": False, "init_weights": True}
# The largest networks that are built. Anything beyond is taken for a typing error, which should be found before it
# fills the memory or takes minutes. The largest CNN of torchvision has 0.6e9 parameters.
MOST_PARAMETERS = 10**9
MOST_LAYERS = 130  # of a WideResNet, whose authors' deepest has 40
MOST_WIDTH = 1000  # of a WideResNet, whose authors' widest has 12
MOST_PIXELS = 2**20  # along one side, and channels


class PreActivationBlock(nn.Module):
    """A basic block of a pre-activation ResNet: BN-ReLU-conv, twice, beside a shortcut.

    Where widths or strides differ, the shortcut is a 1x1 convolution of the *activated* signal ``relu(bn1(x))``,
    the same that the first 3x3 reads; elsewhere it is the identity of the raw signal (He et al. 2016b; Zagoruyko
    & Komodakis 2016).

    Parameters
    ----------
    in_channels, channels : int
        Features read and written.
    stride : int
        Of the first 3x3 and of the shortcut.

    Examples
    --------
    >>> PreActivationBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(activated))))


class WideResNet(nn.Module):
    """Wide ResNet, WRN-``depth``-``width`` (Zagoruyko & Komodakis 2016), the paper's network on CIFAR (section 5.1).

    A 3x3 stem of 16 features, three groups of ``(depth - 4) / 6`` blocks with 16, 32 and 64 times ``width``
    features (the last two halve the map in their first block), BN, ReLU, global average pooling, linear.
    Convolutions have no bias and start from He's initialisation (fan out).

    Parameters
    ----------
    depth : int
        ``6 n + 4`` with n >= 1, at most 130.
    width : int
        The factor k >= 1 on the widths 16, 32, 64, at most 1000.
    num_classes : int
        Outputs.
    in_channels : int
        3 for colour.

    Raises
    ------
    BarError
        If ``depth`` or ``width`` is none of the above.

    Examples
    --------
    >>> network = WideResNet(10, 1)
    >>> network(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3):
        if not 10 <= depth <= MOST_LAYERS or (depth - 4) % 6:
            below = min(max(10, depth - (depth - 4) % 6), MOST_LAYERS)
            raise BarError(
                f"WideResNet depth is {depth}, must be 6n + 4, at most {MOST_LAYERS}: 10, 16, 22, 28, …; "
                f"the nearest is {below}"
            )
        if not 1 <= width <= MOST_WIDTH:
            raise BarError(f"WideResNet width is {width}, must be at least 1 and at most {MOST_WIDTH}")
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        channels = [16, 16 * width, 32 * width, 64 * width]
        for group in (1, 2, 3):
            first = PreActivationBlock(channels[group - 1], channels[group], stride=1 if group == 1 else 2)
            rest = [PreActivationBlock(channels[group], channels[group]) for _ in range((depth - 4) // 6 - 1)]
            setattr(self, f"group{group}", nn.Sequential(first, *rest))
        self.bn = nn.BatchNorm2d(channels[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[3], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        x = self.pool(torch.relu(self.bn(x)))
        return self.fc(torch.flatten(x, 1))


class Conv4(nn.Module):
    """The Conv-4 of Frankle & Carbin (2019): two convs of 64, pool, two of 128, pool, 256-256-``num_classes``.

    A plain chain with a flattened classifier, without batch norm.

    Parameters
    ----------
    num_classes : int
        Outputs.
    in_channels : int
        3 for colour.
    input_size : int
        Side of the square input image, at least 4 (it is halved twice, rounding down).

    Raises
    ------
    BarError
        If ``input_size`` is below 4.

    Examples
    --------
    >>> Conv4(input_size=16)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, input_size: int = 32):
        if input_size < 4:
            raise BarError(f"Conv4 halves its input twice: {input_size} pixels shrink to nothing, it needs at least 4")
        super().__init__()
        widths = [in_channels, 64, 64, 128, 128]
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.ReLU()]
            if i % 2:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(128 * (input_size // 4) ** 2, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def _initialise(network: nn.Module) -> None:
    """He's initialisation: variance 2 / fan out for convs, 2 / fan in for linear layers followed by a ReLU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def names() -> list[str]:
    """Names that `build` understands; ``wrn-28-12`` stands for any depth 6n + 4 and width factor.

    Those of torchvision may be followed by ``-by-8``, say, for a network with an eighth of the widths.

    Returns
    -------
    list of str

    Examples
    --------
    >>> {"wrn-28-12", "conv4", "resnet50", "vgg11_bn"} <= set(names())
    True
    """
    import torchvision  # takes seconds to import

    listed = torchvision.models.list_models(module=torchvision.models)
    return ["wrn-28-12", "conv4", *(name for name in listed if not name.startswith(_NOT_CNN))]


def build(
    name: str, num_classes: int = 10, input_size: tuple[int, int, int] = (3, 32, 32), source: str | None = None
) -> nn.Module:
    """A new, untrained network by name.

    Parameters
    ----------
    name : str
        ``wrn-D-K`` (`WideResNet` of depth D = 6n + 4 and width K), ``conv4``, or a CNN of torchvision by its
        lower-case name: ``resnet18``, ``resnet50``, ``vgg11_bn``, …, or ``resnet18-by-8`` with all widths divided by 8.
        Case does not matter. Or one of your own, ``package.module:function`` (`bar.models.own`), or ``timm:NAME``.
    num_classes : int
        Outputs, at least 1.
    input_size : (int, int, int)
        Channels, height, width of an input image.
    source : str, optional
        What the hash of the source of one of your own must be (`source_of`).

    Returns
    -------
    nn.Module
        On the CPU, in training mode, weights drawn from torch's global generator.

    Raises
    ------
    BarError
        If there is no such network, or it cannot take such images (it shrinks them to nothing, say), or it would have
        more than a billion parameters: before memory is taken for it.

    Examples
    --------
    >>> build("wrn-10-1", num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    if own.is_own(name):
        _check_sizes(num_classes, input_size)
        return own.build(name, num_classes, input_size, source)
    outline(name, num_classes, input_size)  # raises before memory is taken
    return _construct(name.lower(), num_classes, input_size).train()


def check(name: str) -> None:
    """Refuse, with a BarError, the name of a network that `build` does not know, whatever images it is to take.

    Parameters
    ----------
    name : str
        As for `build`; one of your own is let be.

    Examples
    --------
    >>> check("resnt18")
    Traceback (most recent call last):
    bar.errors.BarError: there is no network 'resnt18': did you mean 'resnet18'? Known: ...
    """
    if not own.is_own(name):
        with _Weightless():
            _construct(name.lower(), 10, (3, 32, 32))


def outline(name: str, num_classes: int | None = 10, input_size: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """The same network as that of `build`, but without weights, so that it needs no memory: to count it, say.

    Parameters
    ----------
    name, num_classes, input_size
        As for `build`; ``num_classes`` may be None for 10, or what a function of your own makes that does not take it.

    Returns
    -------
    nn.Module
        On the meta device, in training mode; one of your own with weights, on the CPU. Nothing is drawn from torch's
        global generator.

    Raises
    ------
    BarError
        As `build` does; also if the network would have more than a billion parameters.

    Examples
    --------
    >>> sum(p.numel() for p in outline("wrn-28-12").parameters())
    52517850
    """
    _check_sizes(num_classes, input_size)
    if own.is_own(name):
        with undisturbed():
            return own.build(name, num_classes, input_size)
    num_classes = 10 if num_classes is None else num_classes
    # On the meta device nothing is computed: only the shapes are followed, to fail here and not in mid-training.
    try:
        with _Weightless():
            network = _construct(name.lower(), num_classes, input_size).eval().to("meta")
        parameters = sum(p.numel() for p in network.parameters())
        if parameters > MOST_PARAMETERS:
            raise BarError(
                f"{name} for {num_classes:,} classes would have {parameters:,} parameters, more than the "
                f"{MOST_PARAMETERS:,} that are allowed"
            )
        network(torch.empty(1, *input_size, device="meta"))
    except (RuntimeError, OverflowError) as error:
        size = " x ".join(map(str, input_size))
        raise BarError(
            f"{name} cannot take images of {size} (channels x height x width): {str(error).splitlines()[0]} "
            "Use larger images, or a network that shrinks them less."
        ) from error
    return network.train()


def _check_sizes(num_classes: int | None, input_size: tuple[int, int, int]) -> None:
    if num_classes is not None and not 1 <= num_classes <= MOST_PARAMETERS:
        raise BarError(f"num_classes is {num_classes}, must be at least 1 and at most {MOST_PARAMETERS:,}")
    size = checked_size(input_size)
    if len(size) != 3 or max(size) > MOST_PIXELS:
        raise BarError(
            f"input_size is {size}, must be channels, height, width, each at least 1 and at most {MOST_PIXELS:,}"
        )


def hollow(name: str, num_classes: int = 10, input_size: tuple[int, int, int] = (3, 32, 32)) -> nn.Module:
    """The same network on the CPU with all weights zero, each tensor expanded from one number: for checks only.

    Parameters
    ----------
    name, num_classes, input_size
        As for `build`.

    Returns
    -------
    nn.Module
        In training mode. Its weights can be read, not written.

    Raises
    ------
    BarError
        As `outline` does.

    Examples
    --------
    >>> hollow("wrn-10-1").conv1.weight.untyped_storage().nbytes()
    4
    """
    network = outline(name, num_classes, input_size)
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for key, value in held.items():
                if value is not None:
                    zeros = torch.zeros((), dtype=value.dtype, device="cpu").expand(value.shape)
                    held[key] = nn.Parameter(zeros) if held is module._parameters else zeros
    return network


class _Weightless(TorchFunctionMode):
    """Creates the parameters of layers on the meta device. (`torch.device("meta")` would also put there what some
    networks compute their widths with.)"""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        on_meta = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **((kwargs or {}) | on_meta))


def _construct(name: str, num_classes: int, input_size: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_size
    if match := re.fullmatch(r"wrn-([0-9]{1,9})-([0-9]{1,9})", name):
        return WideResNet(int(match[1]), int(match[2]), num_classes, channels)
    if name == "conv4":
        if height != width:
            raise BarError(f"conv4 takes square images, not {height} x {width}")
        return Conv4(num_classes, channels, height)
    name, _, divisor = name.partition("-by-")
    if name not in names():
        yours = " (one of your own is PACKAGE.MODULE:FUNCTION, or FILE.py:FUNCTION)" if "." in name else ""
        raise BarError(f"there is no network {name!r}{yours}: {nearest(name, names())}")
    if channels != 3:
        raise BarError(f"torchvision's {name} takes images of 3 channels, not {channels}: repeat or drop some")
    import torchvision  # takes seconds to import

    options = _INCEPTION if name in ("googlenet", "inception_v3") else {}
    if not divisor:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if not re.fullmatch("[0-9]{1,9}", divisor) or int(divisor) < 1:
        raise BarError(f"{name}-by-{divisor}: widths are divided by a whole number >= 1, such as {name}-by-8")
    with _Weightless():  # a wide network costs nothing
        wide = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return narrow(wide, int(divisor))


def narrow(network: nn.Module, divisor: int) -> nn.Module:
    """Replace all layers by narrower, newly initialised ones, in place; only input channels (3) and outputs stay.

    Parameters
    ----------
    network : nn.Module
        With plain or depthwise convolutions, batch norm and linear layers, the last of which makes the output.
    divisor : int
        Of all widths, >= 1; a width that it does not divide is rounded down.

    Returns
    -------
    nn.Module
        The network.

    Raises
    ------
    BarError
        If the divisor is not a whole number >= 1, or a layer would have no feature or is of another kind; some layers
        may have been replaced by then.

    Examples
    --------
    >>> import torchvision
    >>> narrow(torchvision.models.resnet18(), 8).layer4[0].conv1
    Conv2d(32, 64, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
    """
    if not (isinstance(divisor, int) and divisor >= 1):
        raise BarError(f"widths are divided by a whole number >= 1, not {shown(divisor)}")
    output = ([module for module in network.modules() if isinstance(module, nn.Linear)] or [None])[-1]
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if output is None or not _can_be_narrowed(layer):
                raise BarError(f"{type(network).__name__} cannot be narrowed, because of its layer {name!r}: {layer}")
            setattr(parent, name, _narrower(layer, divisor, is_output=layer is output))
    _initialise(network)
    return network


def _can_be_narrowed(layer: nn.Module) -> bool:
    """Whether `_narrower` knows the layer, or it has no parameters of its own, and so no width."""
    if isinstance(layer, nn.Conv2d) and layer.groups in (1, layer.in_channels):
        return True
    return isinstance(layer, nn.BatchNorm2d | nn.Linear) or not vars(layer)["_parameters"]


def _narrower(layer: nn.Module, divisor: int, is_output: bool) -> nn.Module:
    """A new layer with its widths divided; the layer itself, if it has no width."""
    if isinstance(layer, nn.Conv2d):
        inputs = layer.in_channels if layer.in_channels == 3 else _divided(layer.in_channels, divisor)
        return nn.Conv2d(
            inputs, _divided(layer.out_channels, divisor), layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, 1 if layer.groups == 1 else inputs, layer.bias is not None, layer.padding_mode,
        )  # fmt: skip
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(_divided(layer.num_features, divisor), layer.eps)
    if isinstance(layer, nn.Linear):
        outputs = layer.out_features if is_output else _divided(layer.out_features, divisor)
        return nn.Linear(_divided(layer.in_features, divisor), outputs)
    return layer


def _divided(width: int, divisor: int) -> int:
    if width < divisor:
        raise BarError(f"a width of {width} cannot be divided by {divisor}")
    return width // divisor

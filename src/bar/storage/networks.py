"""Pruned networks on disk: weights as safetensors, architecture as JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import fx

from bar import files, schema
from bar.errors import BarError
from bar.storage.building import WEIGHTS, InvalidDescription, build, fill
from bar.storage.describing import FORMAT, describe
from bar.storage.reasons import first_line

ARCHITECTURE = "network.json"
_MOST_BYTES = 8 * 2**20  # of a description, and of the header of the weights
_MOST_PARAMETERS = 10**9  # of a network whose sizes nothing but its description tells
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def save(network: fx.GraphModule, folder: Path | str) -> None:
    """Write a pruned network into a folder, each file whole or not at all.

    Parameters
    ----------
    network : torch.fx.GraphModule
        From `bar.prune`, or any traced network of the operations that pruning knows.
    folder : path
        Created if missing.

    Raises
    ------
    BarError
        If the network is not a traced one, has an operation, a module or a name that could not be read back, or a file
        cannot be written.

    Examples
    --------
    >>> import bar, tempfile
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bar.save(bar.prune(bar.gate(net, (1, 6, 6))), folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['network.json', 'network.safetensors']
    """
    folder = Path(folder)
    text, content = _packed(network)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, content)
    files.write(folder / ARCHITECTURE, text)


def check(network: fx.GraphModule) -> None:
    """Refuse a network that `save` could not write, or `load` not read back; nothing is written.

    Parameters
    ----------
    network : torch.fx.GraphModule
        As for `save`.

    Raises
    ------
    BarError
        If the network is not a traced one, or has an operation, a module or a name that could not be read back.

    Examples
    --------
    >>> from torch import nn
    >>> check(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())))
    >>> check(fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AlphaDropout())))
    Traceback (most recent call last):
    bar.errors.BarError: 1: AlphaDropout cannot be saved: ...
    """
    _packed(network)


def _packed(network: fx.GraphModule) -> tuple[bytes, bytes]:
    """The contents of both files, of the architecture and of the weights, once a network could be built from them."""
    if not isinstance(network, fx.GraphModule):
        raise BarError(f"only a traced network can be saved, such as bar.prune returns, not a {type(network).__name__}")
    architecture, tensors = describe(network)
    tensors = {name: t.detach().contiguous().cpu() for name, t in tensors.items()}
    try:
        content = safetensors.torch.save(tensors)
    except (RuntimeError, ValueError) as error:  # two names for the same memory, which would come back as two tensors
        raise BarError(f"the network cannot be saved: {' '.join(str(error).split())}") from error
    architecture = {"format": FORMAT, "weights_sha256": hashlib.sha256(content).hexdigest()} | architecture
    text = json.dumps(architecture, indent=1).encode()
    try:  # check with the function that reads it that it can be read back
        if len(text) > _MOST_BYTES:
            raise BarError(f"its description has more than {_MOST_BYTES:,} bytes")
        build(json.loads(text), {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()})
    except BarError as error:
        raise BarError(f"the network cannot be saved: {error}") from error
    return text, content


def load(folder: Path | str) -> fx.GraphModule:
    """Read the pruned network of a run.

    The files may come from anybody: only layers and operations from a list are built, with options within limits, and
    nothing is allocated before all of it has been compared with the stored tensors.

    Parameters
    ----------
    folder : path
        A run's folder, or any other that `save` wrote to.

    Returns
    -------
    torch.fx.GraphModule
        In eval mode, on the CPU.

    Raises
    ------
    BarError
        If a file is missing or damaged, does not match its hash in the record of the run, or names anything but plain
        layers and operations.

    Examples
    --------
    >>> import bar, tempfile
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bar.save(bar.prune(bar.gate(net, (1, 6, 6))), folder)
    ...     bar.load(folder)(torch.rand(5, 1, 6, 6)).shape
    torch.Size([5, 2])
    """
    folder = Path(folder)
    try:
        for file in (ARCHITECTURE, WEIGHTS):
            if not (folder / file).is_file():
                raise BarError(f"{folder} holds no pruned network: {file} is missing")
        with (folder / WEIGHTS).open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise BarError(f"cannot read the pruned network in {folder}: {error.strerror or error}") from error
    if header_bytes > _MOST_BYTES:
        raise BarError(f"cannot read the pruned network in {folder}: {WEIGHTS} is damaged. {_advice(folder)}")
    architecture = schema.load(folder / ARCHITECTURE, "the pruned network", _MOST_BYTES)
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            header = {n: (_DTYPES.get(s.get_dtype()), tuple(s.get_shape())) for n, s in slices.items()}
            network = build(architecture, header)
            if (folder / schema.RESULT).exists():
                verify(folder, schema.read(folder / schema.RESULT, schema.RESULT_FIELDS))
            verify(folder, architecture, ARCHITECTURE)
            fill(network, {name: file.get_tensor(name) for name in header})
        return network.requires_grad_(True).eval()
    except InvalidDescription as error:
        raise BarError(
            f"{folder / ARCHITECTURE} does not describe a pruned network: {error}. {_advice(folder)}"
        ) from error
    except BarError:
        raise
    except Exception as error:  # what safetensors and torch raise for a file from anywhere cannot be listed
        raise BarError(
            f"cannot read the pruned network in {folder}: {WEIGHTS}: {first_line(error)}. {_advice(folder)}"
        ) from error


def untrained(folder: Path | str) -> fx.GraphModule:
    """Build the network of a run anew, with new weights: for a recorded run, whose own are not kept.

    Parameters
    ----------
    folder : path
        A run's folder, with the description of its network; weights are not read.

    Returns
    -------
    torch.fx.GraphModule
        In training mode, on the CPU; its weights are drawn from torch's global generator, as by its layers.

    Raises
    ------
    BarError
        If the description is missing, damaged or not that of the run's record, describes a network of more than a
        billion parameters, or one with tensors that belong to no layer.

    Examples
    --------
    >>> import bar, tempfile
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(bar.prune(bar.gate(net, (1, 6, 6))), folder)
    ...     Path(folder, WEIGHTS).unlink()
    ...     bar.count(untrained(folder), (1, 6, 6)).parameters
    170
    """
    folder = Path(folder)
    architecture = schema.load(folder / ARCHITECTURE, "the network", _MOST_BYTES)
    if (folder / schema.RESULT).exists():
        verify(folder, schema.read(folder / schema.RESULT, schema.RESULT_FIELDS))
    try:
        network = build(architecture, None)
        if (parameters := sum(p.numel() for p in network.parameters())) > _MOST_PARAMETERS:
            raise BarError(f"it has {parameters:,} parameters, more than the {_MOST_PARAMETERS:,} that are allowed")
    except BarError as error:
        raise BarError(f"{folder / ARCHITECTURE} describes no network that can be built: {error}") from error
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network.train()


def verify(folder: Path, record: Mapping, source: str = schema.RESULT) -> None:
    """Compare the files of a stored network, if they exist, with the hashes in the record of its run.

    Parameters
    ----------
    folder : Path
        Of the run.
    record : mapping
        With "weights_sha256" and "architecture_sha256"; without a hash, its file is not checked.
    source : str
        The file of the record, for the message.

    Raises
    ------
    BarError
        If a file does not match its hash, or cannot be read.
    """
    for file, field in ((WEIGHTS, "weights_sha256"), (ARCHITECTURE, "architecture_sha256")):
        path = folder / file
        if record.get(field) is not None and path.exists() and digest(path) != record[field]:
            raise BarError(
                f"{path} is damaged or was changed: it is not what {source} beside it tells of ({field}). "
                + _advice(folder)
            )


def _advice(folder: Path) -> str:
    return f"Restore it, or remove {folder} and run it again"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raises a BarError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BarError(f"cannot read {path}: {error.strerror or error}") from error

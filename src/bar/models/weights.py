"""Weights that a user brings along: a state dict in a file of safetensors or of torch."""

import functools
import hashlib
import io
import pickle
import warnings
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from bar.errors import BarError, in_one_line

SUFFIXES = (".safetensors", ".pt", ".pth")
BELOW = ("state_dict", "model", "model_state_dict", "net")  # where scripts keep a state dict among other things
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and its like, and torch.compile, put before each name
_MOST_BYTES = 2**34


def digest(path: Path | str, source: str | None = None) -> str:
    """The SHA-256 of a file of weights.

    Parameters
    ----------
    path : path
        Ends in .safetensors, .pt or .pth.
    source : str, optional
        What it must be.

    Returns
    -------
    str
        In hexadecimal.

    Raises
    ------
    BarError
        If there is no such file, it cannot be read, or has changed.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise BarError(f"weights are read from a file that ends in {', '.join(SUFFIXES)}, not from {str(path)!r:.200}")
    try:
        if not file.is_file():  # a pipe would never end
            raise BarError(f"there is no file {str(path)!r:.200} to take the weights from")
        held = file.stat()
        if held.st_size > _MOST_BYTES:
            raise BarError(f"{str(path)!r:.200} has more than {_MOST_BYTES:,} bytes")
        found = _digest(file, held.st_mtime_ns, held.st_size)
    except (OSError, ValueError) as error:
        if isinstance(error, BarError):
            raise
        raise BarError(f"cannot read {str(path)!r:.200}: {getattr(error, 'strerror', None) or error}") from error
    return _same(path, found, source)


@functools.lru_cache(maxsize=8)
def _digest(file: Path, time: int, size: int) -> str:
    """A large file is not read again for each configuration; `load_weights` compares what it reads."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _same(path: Path | str, found: str, source: str | None) -> str:
    if source is not None and source != found:
        raise BarError(f"{path} has changed since this run was configured: its SHA-256 is {found:.8}…")
    return found


def load_weights(network: nn.Module, path: Path | str, source: str | None = None) -> nn.Module:
    """Give a network the weights of a file, all of them.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    path : path
        A state dict, in safetensors, or as `torch.save` writes it; there it may also be below the key "state_dict",
        "model", "model_state_dict" or "net". It may be that of the network wrapped by ``DataParallel``,
        ``DistributedDataParallel`` or ``torch.compile``. Nothing is unpickled but tensors and plain containers.
    source : str, optional
        The SHA-256 that the file must have.

    Returns
    -------
    nn.Module
        The network.

    Raises
    ------
    BarError
        If the file cannot be read, holds no state dict, something else than numbers, or that of another network; the
        network is then unchanged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(nn.Linear(2, 1).state_dict(), folder + "/trained.pt")
    ...     try:
    ...         load_weights(nn.Linear(3, 1), folder + "/trained.pt")
    ...     except BarError as error:
    ...         print(str(error).partition("trained.pt ")[2])
    does not fit the network: 'weight' is (1, 2) there and (1, 3) here
    """
    digest(path)  # says what is wrong with the file itself
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BarError(f"cannot read {path}: {error.strerror or error}") from error
    _same(path, hashlib.sha256(content).hexdigest(), source)
    state = _state(path, content)
    if "n_averaged" not in network.state_dict():
        state.pop("n_averaged", None)  # a count of torch.optim.swa_utils.AveragedModel
    for prefix in WRAPPERS:
        if not any(name.startswith(prefix) for name in network.state_dict()):
            consume_prefix_in_state_dict_if_present(state, prefix)
    _check_fits(path, state, network.state_dict())
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # a layer with a state of its own kind
        raise BarError(f"{path} does not fit the network: {in_one_line(error)}") from error
    return network


def _state(path: Path | str, content: bytes) -> dict[str, Tensor]:
    """The state dict in a file."""
    try:
        if Path(path).suffix.lower() == ".safetensors":
            held = safetensors.torch.load(content)
        else:
            with warnings.catch_warnings(action="ignore"):  # of what is then an error
                held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what they raise for a file from anywhere cannot be listed
        if isinstance(error, pickle.UnpicklingError):
            what = "it holds more than tensors, and no code is run to read it"
        elif isinstance(error, EOFError | LookupError):
            what = "it is empty, cut off, or of another kind"
        else:
            what = in_one_line(error)
        raise BarError(
            f"cannot read weights from {path}: {what}. Write it with torch.save(model.state_dict(), …)"
        ) from error
    for key in BELOW:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    named = isinstance(held, Mapping) and all(isinstance(key, str) for key in held)
    if not (named and held and all(isinstance(value, Tensor) for value in held.values())):
        raise BarError(
            f"{path} holds no state dict: its names and tensors. Write it with torch.save(model.state_dict(), …)"
        )
    return dict(held)


def _check_fits(path: Path | str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse the weights of another network, and such as are no numbers, before any of them is taken."""
    said = _counted("missing", own.keys() - state.keys(), own) + _counted(
        "not known to it", state.keys() - own.keys(), state
    )
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    said += [
        f"{name!r:.100} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} here" for name in other[:1]
    ]
    if said:
        raise BarError(f"{path} does not fit the network: {'; '.join(said)}")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_floating_point() is not own[name].is_floating_point():
            raise BarError(f"{path}: {name!r:.100} is {tensor.dtype} ({tensor.layout}), but {own[name].dtype} here")
        if tensor.is_meta:
            raise BarError(f"{path}: {name!r:.100} has no values: it was saved from the meta device")
        if not tensor.to(own[name].dtype).isfinite().all():
            raise BarError(f"{path}: {name!r:.100} holds values that are infinite, or no numbers")


def _counted(what: str, names: Set[str], order: Iterable[str]) -> list[str]:
    """How many tensors there are of a kind, and the first of them; nothing if there are none."""
    first = next((name for name in order if name in names), None)
    if first is None:
        return []
    return [
        f"{len(names)} tensors are {what}, such as {first!r:.100}" if len(names) > 1 else f"{first!r:.100} is {what}"
    ]

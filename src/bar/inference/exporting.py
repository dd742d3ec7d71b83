"""Export a network to a ``.pt2`` (torch.export) or an ONNX file, which runs without `bar`."""

import copy
import importlib.util
import io
import math
import operator
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from bar import files
from bar.errors import BarError, nearest
from bar.inference.plain import plain_graph, root_cause
from bar.network import quiet_call
from bar.surgery import GatedNetwork

FORMATS = ("onnx", "pt2")
MOST_NUMBERS = 2**24  # of an image: 3 channels of 2,364 x 2,364 pixels
TOLERANCE = 1e-4  # largest relative difference from the network that a file may have
_OPSET = 18  # of 2022, so that most runtimes read it, whatever the default of the installed torch is


def export(network: nn.Module, input_size: Iterable[int], path: Path | str, format: str | None = None) -> float | None:
    """Write a network to one file that needs neither `bar` nor the network's own code.

    The file takes float32 images of shape (N, channels, height, width), N being free, and computes what the network
    does in eval mode. A batch norm that directly follows a convolution is folded into it; any other stays, since it
    cannot be folded exactly (in a pre-activation block, a ReLU or a sum lies between). What is about to be written is
    run first, on random images, and compared with the network; a file that is there already is replaced whole.

    Parameters
    ----------
    network : nn.Module
        From `bar.prune` or `bar.load`, or any CNN of one tensor in and one tensor out that `torch.fx` can trace. It is
        not changed.
    input_size : iterable of int
        (channels, height, width) of one image.
    path : path
        The file to write; its folder is made if missing.
    format : str, optional
        "pt2" for `torch.export.load`, or "onnx" (opset 18; input ``images``, output ``output``) for ONNX Runtime and
        others; default: by the suffix of `path`.

    Returns
    -------
    float or None
        The largest relative difference ``max |a - b| / max |a|`` of the outputs a of the network and b of the file,
        at most 1e-4; None if it was not compared, which needs onnxruntime for ONNX.

    Raises
    ------
    BarError
        If the format is unknown, a package is missing, the network cannot be traced or take such images, a weight is
        not finite, or the outputs differ by more than 1e-4. Nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     difference = export(net, (1, 6, 6), folder + "/network.pt2")
    >>> difference <= 1e-4
    True
    """
    path, size = Path(path), tuple(int(s) for s in input_size)
    format = _check_format(path, format)
    _check_network(network, size)
    reference = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, *size, generator=generator, dtype=torch.float32) for n in (1, 3)]
    expected = _outputs(reference, batches)
    try:
        content, run = (_onnx if format == "onnx" else _pt2)(plain_graph(reference), batches[1])
    except BarError:
        raise
    except Exception as error:  # the exporters raise anything from AssertionError to their own
        raise BarError(f"cannot export {type(network).__name__} to {format}: {root_cause(error)}") from error
    difference = None
    if run is not None:
        difference = max(_difference(a, run(images)) for a, images in zip(expected, batches, strict=True))
        if not difference <= TOLERANCE:  # so that NaN is refused too
            raise BarError(
                f"the {format} file would differ from the network by {difference:.1e} (relative), more than "
                f"{TOLERANCE:g}; nothing was written"
            )
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content)
    return difference


def _check_format(path: Path, format: str | None) -> str:
    suffix = path.suffix.removeprefix(".")
    format = suffix if format is None else format
    if format not in FORMATS:
        raise BarError(f"unknown format {format!r} for {path}: {nearest(format, FORMATS)}")
    if suffix in FORMATS and suffix != format:
        raise BarError(f"{path} is asked for in the format {format!r}: choose another suffix, or format {suffix!r}")
    missing = [p for p in ("onnx", "onnxscript") if format == "onnx" and importlib.util.find_spec(p) is None]
    if missing:
        raise BarError(f"exporting to ONNX needs {' and '.join(missing)}: pip install 'bar-pruning[onnx]'")
    return format


def _check_network(network: nn.Module, size: tuple[int, ...]) -> None:
    """Refuse what cannot be exported, before anything is computed."""
    if len(size) != 3 or min(size) < 1:
        raise BarError(f"input size must be three positive numbers (channels, height, width), not {size}")
    if math.prod(size) > MOST_NUMBERS:
        raise BarError(
            f"images of {'x'.join(map(str, size))} are too large to export for: at most {MOST_NUMBERS:,} numbers"
        )
    if isinstance(network, GatedNetwork):
        raise BarError("a gated network cannot be exported: remove its gates and dead features first, with bar.prune")
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise BarError(f"{name} has values that are not finite; the network is not exported")


def _outputs(network: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """What the network returns for each batch of images."""
    try:
        outputs = [quiet_call(network)(images) for images in batches]
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "x".join(map(str, batches[0].shape[1:]))
        raise BarError(f"the network cannot take images of {shape}: {root_cause(error)}") from error
    if not all(isinstance(out, Tensor) for out in outputs):
        raise BarError(f"{type(network).__name__} must return one tensor")
    return outputs


def _program(plain: fx.GraphModule, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _pt2(plain: fx.GraphModule, images: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """The bytes of the file, and the function that is stored in it."""
    program = _program(plain, images)
    program.example_inputs = None  # they would be kept in the file, pickled
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), program.module()


def _onnx(plain: fx.GraphModule, images: Tensor) -> tuple[bytes, Callable[[Tensor], Tensor] | None]:
    """The bytes of the file, and the function that is stored in it, None if onnxruntime is not installed."""
    gather_instead_of_scatter(plain, images)
    written = torch.onnx.export(
        _program(plain, images), (images,), dynamo=True, verbose=False, opset_version=_OPSET,
        input_names=["images"], output_names=["output"], dynamic_shapes=({0: "batch"},),
    )  # fmt: skip
    content = written.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return content, None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def gather_instead_of_scatter(plain: fx.GraphModule, images: Tensor) -> None:
    """Replace the index_add of mixed connectivity: every channel of the signal gathers what is added to it, or zero.

    In ONNX an index_add becomes a ScatterND between transpositions of the whole signal, with a reduction that not every
    runtime has; this becomes Pad, Gather and Add. (In torch index_add is the faster of the two.)
    """
    ShapeProp(plain).propagate(images)
    for node in list(plain.graph.nodes):
        if node.op != "call_function" or node.target is not torch.index_add or len(node.args) != 4 or node.kwargs:
            continue
        signal, dim, index, refinement = node.args
        channels = getattr(plain, index.target, None) if index.op == "get_attr" else None
        if dim != 1 or channels is None or len(channels.unique()) < len(channels):
            continue
        fetch = torch.full((signal.meta["tensor_meta"].shape[1],), len(channels))  # one past the last: the padding
        fetch[channels] = torch.arange(len(channels))
        plain.register_buffer(f"{node.name}_fetch", fetch)
        with plain.graph.inserting_before(node):
            padded = plain.graph.call_function(F.pad, (refinement, (0, 0, 0, 0, 0, 1)))
            fetched = plain.graph.call_function(
                torch.index_select, (padded, 1, plain.graph.get_attr(f"{node.name}_fetch"))
            )
            node.replace_all_uses_with(plain.graph.call_function(operator.add, (signal, fetched)))
        plain.graph.erase_node(node)
    plain.graph.eliminate_dead_code()
    plain.recompile()


def _difference(a: Tensor, b: Tensor) -> float:
    """``max |a - b| / max |a|``."""
    largest = a.abs().max()
    return float((a - b).abs().max() / (largest if largest > 0 else 1))

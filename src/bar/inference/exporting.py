"""Export a network to a ``.pt2`` (torch.export) or an ONNX file, which runs without `bar`."""

import importlib.util
import inspect
import io
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves

from bar import files
from bar.errors import BarError, nearest, shown
from bar.inference.plain import plain_graph, root_cause
from bar.network import checked_size, quiet_call
from bar.surgery import GatedNetwork
from bar.surgery.layers import Plain

FORMATS = ("onnx", "pt2")
MOST_NUMBERS = 2**24  # of an image: 3 channels of 2,364 x 2,364 pixels
TOLERANCE = 1e-4  # largest relative difference from the network that a file may have
_OPSET = 18  # of 2022, so that most runtimes read it, whatever the default of the installed torch is


def export(
    network: nn.Module,
    input_size: Iterable[int] | None = None,
    path: Path | str | None = None,
    format: str | None = None,
    *,
    example_inputs: Sequence[Tensor] | None = None,
) -> float | None:
    """Write a network to one file that needs neither `bar` nor the network's own code.

    The file takes float32 images of shape (N, channels, height, width), N being free, and computes what the network
    does in eval mode. A batch norm that directly follows a convolution is folded into it; any other stays, since it
    cannot be folded exactly (in a pre-activation block, a ReLU or a sum lies between). What is about to be written is
    run first, on random images, and compared with the network; a file that is there already is replaced whole.

    Parameters
    ----------
    network : nn.Module
        From `bar.prune` or `bar.load`, or any CNN that `torch.fx` or `torch.export` can trace. It is not changed.
    input_size : iterable of int
        (channels, height, width) of one image; (channels, length) and (channels, depth, height, width) for networks of
        other dimensions.
    path : path
        The file to write, which must be given; its folder is made if missing.
    format : str, optional
        "pt2" for `torch.export.load`, or "onnx" (opset 18) for ONNX Runtime and others; default: by the suffix of
        `path`. The ONNX input is called ``images`` and the output ``output``; of several, inputs have the names of the
        network's parameters, and outputs are ``output_0``, ``output_1`` and so on, in the order of the network's
        tuples, lists and dicts.
    example_inputs : sequence of Tensor, optional
        Instead of the size, for a network of several inputs: a batch for each of them. Of inputs that are not of
        floating-point type, the values are used to compare; others are compared on random numbers.

    Returns
    -------
    float or None
        The largest relative difference ``max |a - b| / max |a|`` of the outputs a of the network and b of the file,
        at most 1e-4; None if it was not compared, which needs onnxruntime for ONNX.

    Raises
    ------
    BarError
        If there is no path or the format is unknown, a package is missing, the network has gates, cannot be traced or
        take such images, a weight is not finite, or the outputs differ by more than 1e-4. Nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     difference = export(net, (1, 6, 6), folder + "/network.pt2")
    >>> difference <= 1e-4
    True
    """
    if not isinstance(path, str | os.PathLike):
        raise BarError(f"export needs the path of the file to write, after the input size, not {shown(path)}")
    path = Path(path)
    format = _check_format(path, format)
    batches = _batches(input_size, example_inputs)
    _check_network(network)
    reference = Plain().copied(network).cpu().float().eval().requires_grad_(False)
    expected = _outputs(reference, batches)
    try:
        content, run = (_onnx if format == "onnx" else _pt2)(_traced(reference, len(batches[0])), batches[-1])
    except BarError:
        raise
    except Exception as error:  # the exporters raise anything from AssertionError to their own
        raise BarError(f"cannot export {type(network).__name__} to {format}: {root_cause(error)}") from error
    difference = None
    if run is not None:
        difference = max(_difference(a, run(inputs)) for a, inputs in zip(expected, batches, strict=True))
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
    if suffix in ("json", "jsonl", "safetensors"):  # such as hold records, and networks that `bar.load` reads
        raise BarError(f"{path} would not hold what its suffix says: end it in .{format}")
    missing = [p for p in ("onnx", "onnxscript") if format == "onnx" and importlib.util.find_spec(p) is None]
    if missing:
        raise BarError(f"exporting to ONNX needs {' and '.join(missing)}: pip install '.[onnx]' in a checkout")
    return format


def _batches(input_size: Iterable[int] | None, example_inputs: Sequence[Tensor] | None) -> list[list[Tensor]]:
    """Batches of one image and of three, each a list of all inputs."""
    examples = _examples(input_size, example_inputs)
    generator = torch.Generator().manual_seed(0)

    def batch(example: Tensor, images: int) -> Tensor:
        if example.is_floating_point():
            return torch.randn(images, *example.shape[1:], generator=generator, dtype=torch.float32)
        return example.detach().cpu()[torch.arange(images) % len(example)]

    return [[batch(x, images) for x in examples] for images in (1, 3)]


def _examples(input_size: Iterable[int] | None, example_inputs: Sequence[Tensor] | None) -> list[Tensor]:
    """A batch for each input, perhaps without values."""
    if example_inputs is None:
        size = checked_size(input_size)
        if not 1 < len(size) < 5:
            raise BarError(f"input size must be three positive numbers (channels, height, width), not {size}")
        examples = [torch.empty(1, *size, device="meta")]
    else:
        examples = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
        if not examples or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in examples):
            raise BarError("example_inputs must be batches, each a tensor of shape (images, ...)")
    for x in examples:
        if math.prod(x.shape[1:]) > MOST_NUMBERS:
            size = "x".join(map(str, x.shape[1:]))
            raise BarError(f"images of {size} are too large to export for: at most {MOST_NUMBERS:,} numbers")
    return examples


def _check_network(network: nn.Module) -> None:
    """Refuse what cannot be exported, before anything is computed."""
    if isinstance(network, GatedNetwork):
        raise BarError("a gated network cannot be exported: remove its gates and dead features first, with bar.prune")
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise BarError(f"{name} has values that are not finite; the network is not exported")


def _outputs(network: nn.Module, batches: list[list[Tensor]]) -> list[list[Tensor]]:
    """What the network returns for each batch of images."""
    try:
        outputs = [tree_leaves(quiet_call(network)(*inputs)) for inputs in batches]
    except (RuntimeError, ValueError, TypeError) as error:
        shapes = " and ".join("x".join(map(str, x.shape[1:])) for x in batches[0])
        raise BarError(f"the network cannot take images of {shapes}: {root_cause(error)}") from error
    if not all(isinstance(out, Tensor) for out in outputs[0]):
        raise BarError(f"{type(network).__name__} must return tensors, or tuples, lists and dicts of them")
    return outputs


def _traced(reference: nn.Module, inputs: int) -> nn.Module:
    """The network as a graph, with its batch norms folded; itself, where only `torch.export` may follow it."""
    try:
        defaults = 0 if isinstance(reference, fx.GraphModule) else len(inspect.signature(reference.forward).parameters)
        return reference if defaults > inputs else plain_graph(reference)
    except BarError:
        return reference


def _program(plain: nn.Module, inputs: list[Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(plain, tuple(inputs), dynamic_shapes=_any_number(plain, inputs, batch))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _any_number(plain: nn.Module, inputs: list[Tensor], images: object) -> tuple:
    """That all inputs are for the same number of images, whatever it is; also where forward takes ``*inputs``."""
    each = tuple({0: images} for _ in inputs)
    parameters = inspect.signature(plain.forward).parameters.values()
    return (each,) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else each


def _pt2(plain: nn.Module, inputs: list[Tensor]) -> tuple[bytes, Callable[[list[Tensor]], list[Tensor]]]:
    """The bytes of the file, and the function that is stored in it."""
    program = _program(plain, inputs)
    program.example_inputs = None  # they would be kept in the file, pickled
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), lambda inputs: tree_leaves(program.module()(*inputs))


def _onnx(plain: nn.Module, inputs: list[Tensor]) -> tuple[bytes, Callable[[list[Tensor]], list[Tensor]] | None]:
    """The bytes of the file, and the function that is stored in it, None if onnxruntime is not installed."""
    if isinstance(plain, fx.GraphModule):
        gather_instead_of_scatter(plain, *inputs)
    program = _program(plain, inputs)
    specification = program.graph_signature
    count = len(specification.user_outputs)
    names = ["images"] if len(inputs) == 1 else list(specification.user_inputs)
    with warnings.catch_warnings():  # that inputs share one number of images, which is meant
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        written = torch.onnx.export(
            program, tuple(inputs), dynamo=True, verbose=False, opset_version=_OPSET, input_names=names,
            output_names=["output"] if count == 1 else [f"output_{i}" for i in range(count)],
            dynamic_shapes=_any_number(plain, inputs, "batch"),
        )  # fmt: skip
    content = written.model_proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return content, None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(inputs: list[Tensor]) -> list[Tensor]:
        fed = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(out) for out in session.run(None, fed)]

    return content, run


def gather_instead_of_scatter(plain: fx.GraphModule, *inputs: Tensor) -> None:
    """Replace the index_add of mixed connectivity: every channel of the signal gathers what is added to it, or zero.

    In ONNX an index_add becomes a ScatterND between transpositions of the whole signal, with a reduction that not every
    runtime has; this becomes Pad, Gather and Add. (In torch index_add is the faster of the two.)
    """
    ShapeProp(plain).propagate(*inputs)
    for node in list(plain.graph.nodes):
        if node.op != "call_function" or node.target is not torch.index_add or len(node.args) != 4 or node.kwargs:
            continue
        signal, dim, index, refinement = node.args
        channels = getattr(plain, index.target, None) if index.op == "get_attr" else None
        if dim != 1 or channels is None or len(channels.unique()) < len(channels):
            continue
        shape = signal.meta["tensor_meta"].shape
        fetch = torch.full((shape[1],), len(channels))  # one past the last: the padding
        fetch[channels] = torch.arange(len(channels))
        plain.register_buffer(f"{node.name}_fetch", fetch)
        with plain.graph.inserting_before(node):
            padded = plain.graph.call_function(F.pad, (refinement, (*[0, 0] * (len(shape) - 2), 0, 1)))
            fetched = plain.graph.call_function(
                torch.index_select, (padded, 1, plain.graph.get_attr(f"{node.name}_fetch"))
            )
            total = plain.graph.call_function(operator.add, (signal, fetched))
            total.meta = dict(node.meta)  # the next index_add asks for its shape
            node.replace_all_uses_with(total)
        plain.graph.erase_node(node)
    plain.graph.eliminate_dead_code()
    plain.recompile()


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """``max |a - b| / max |a|``, the largest of all outputs."""
    differences = [0.0]
    for a, b in zip(expected, found, strict=True):
        largest = a.abs().max()
        differences.append(float((a.double() - b).abs().max() / (largest if largest > 0 else 1)))
    return max(differences) if all(d == d for d in differences) else math.nan

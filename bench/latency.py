"""Is the pruned network faster, and where does the rest of the saving go? (mixed connectivity, section 4.2)

In one run, turn by turn: the gated network (masked, nothing taken out), regular surgery, mixed surgery, a plain dense
network of the same depth, uniform widths and the same FLOPs within 1 % (the practical limit), Torch-Pruning's result at
the same kept features, and the unpruned network. All but the gated one are folded for inference by `bar.fold`, so that
they differ in their connections alone; "mixed, as pruned" shows what folding gives. The convolutions of each network
are timed alone, too, on the inputs that they have in it: that is the limit which their widths set. A forward of no
image at all shows what the calls take.

Torch-Pruning is needed here and nowhere else: ``pip install torch-pruning``; without it its rows are left out.
"""

import copy
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import bar
from bar import cost, data, machine, models
from bar.surgery import same_width

LAYER, FEATURE, NOISE = 0.5, 1.0, 1.0  # standard deviations of the synthetic log alpha
DENSE_WITHIN = 0.01  # largest relative difference of the dense network's FLOPs
SAMPLE = 0.02  # seconds that one sample takes at least; forwards that are shorter are repeated within it
LIMIT = "dense"
ALONE = "convolutions of "
VECTOR = 16  # features that convolutions on a CPU with AVX-512 compute at once; what is missing to the next is wasted


def synthetic(gated: bar.GatedNetwork, seed: int) -> None:
    """Random log alpha: an effect of the layer, one of the channel (shared by all that write it), and noise."""
    generator = torch.Generator().manual_seed(seed)
    channel: dict[int, Tensor] = {}
    spaces = gated.network.spaces()
    for name, gate in gated.gates.items():
        space, width = spaces[gated.network.convs[name]], len(gate.log_alpha)
        if space not in channel:
            channel[space] = FEATURE * torch.randn(width, generator=generator)
        layer = LAYER * torch.randn((), generator=generator)
        gate.log_alpha.data.copy_(layer + channel[space] + NOISE * torch.randn(width, generator=generator))


def learnt(gated: bar.GatedNetwork, factor: float, epochs: int, digits: data.Dataset, seed: int) -> None:
    """Log alpha of a short training on the digits, with the loop of the README."""
    torch.manual_seed(seed)
    device = gated.log_alpha.device
    images = (digits.train.images.float() / 255 - 0.5).to(device)
    labels = digits.train.labels.to(device)
    batch = 64
    budget = bar.Budget(gated, factor=factor, steps=epochs * (len(images) // batch))
    gates = [gate.spread_(-1, 5).log_alpha for gate in gated.gates.values()]
    weights = [p for n, p in gated.named_parameters() if not n.endswith("log_alpha")]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": gates, "lr": 10 / budget.steps}], lr=1e-3)
    gated.train()
    for step in range(budget.steps):
        if step % (len(images) // batch) == 0:
            order = torch.randperm(len(images), device=device)
        chosen = order[step % (len(images) // batch) * batch :][:batch]
        loss = nn.functional.cross_entropy(gated(images[chosen]), labels[chosen]) + budget(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gated.eval()


def dense(gated: bar.GatedNetwork, flops: int) -> nn.Module:
    """The same share of every convolution that lives, always its first features, so that no sum is mixed.

    The share is the one that comes nearest to `flops`; as whole features are coarse in small networks, convolutions
    inside blocks may then have a few features more or fewer.
    """
    live, network = gated.live(), gated.network
    space = network.spaces()
    spaces = [space[node] for node in network.convs.values()]
    inner = [n for n, s in zip(network.convs, spaces, strict=True) if spaces.count(s) == 1 and n in gated.gates]

    def features(share: float) -> dict[str, int]:
        return {n: max(1, round(share * len(g.alive))) * bool(live[network.convs[n]].any())
                for n, g in gated.gates.items()}  # fmt: skip

    def alive(widths: dict[str, int]) -> dict[str, Tensor]:
        return {n: torch.arange(len(g.alive)) < widths[n] for n, g in gated.gates.items()}

    def error(widths: dict[str, int]) -> float:
        return abs(gated.size_of(alive(widths), "flops") / flops - 1)

    best = min((features(i / 2000) for i in range(1, 2001)), key=error)
    while error(best) > DENSE_WITHIN / 2:
        changed = [best | {n: best[n] + d} for n in inner for d in (-1, 1) if best[n] and best[n] + d > 0]
        better = min(changed, key=error)
        if error(better) >= error(best):
            break
        best = better
    twin = copy.deepcopy(gated).keep_(alive(best))
    return bar.prune(twin)


def torch_pruned(gated: bar.GatedNetwork, model: nn.Module, images: Tensor) -> nn.Module | None:
    """What Torch-Pruning makes of the same kept features: channels that a sum joins go together or stay together."""
    try:
        import torch_pruning
    except ImportError:
        return None
    network, spaces = gated.network, gated.network.spaces()
    keep = same_width(network, gated.live(), spaces)
    model = copy.deepcopy(model).eval()
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images)
    done = set()
    for name, node in network.convs.items():
        stays = keep[node].clone()
        if spaces[node] in done or name not in gated.gates:
            continue
        if not stays.any():  # it cannot take a layer out; a sum's channels are those of its other summands
            others = [keep[n] for n in network.convs.values() if spaces[n] == spaces[node] and keep[n].any()]
            stays = others[0].clone() if others else stays.index_fill(0, torch.tensor([0]), True)
        done.add(spaces[node])
        dead = (~stays).nonzero().flatten().tolist()
        if dead:
            graph.get_pruning_group(
                model.get_submodule(node.target), torch_pruning.prune_conv_out_channels, idxs=dead
            ).prune()
    return model


def forwards(run: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> float:
    """Seconds of one forward, the mean of some in a row."""
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


@torch.inference_mode()
def race(networks: dict[str, nn.Module], images: Tensor, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each network in each round; in a round all take a turn, each round beginning with another."""
    repeats = {}
    for name, network in networks.items():
        forwards(network, images, 3)
        repeats[name] = max(1, round(SAMPLE / forwards(network, images, 1)))
    times: dict[str, list[float]] = {name: [] for name in networks}
    names, end = list(networks), time.perf_counter() + seconds * len(networks)
    while len(times[names[-1]]) < rounds or time.perf_counter() < end:
        shift = len(times[names[0]]) % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(forwards(networks[name], images, repeats[name]))
    return times


@torch.inference_mode()
def convolutions(network: nn.Module, images: Tensor) -> Callable[[Tensor], None]:
    """The convolutions of a network alone, each on the input that it has for these images."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda conv, args: calls.append((conv, args[0])))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    network(images)
    for hook in hooks:
        hook.remove()

    def run(_: Tensor) -> None:
        for conv, given in calls:
            conv(given)

    return run


def full_vectors(count: cost.Cost) -> float:
    """FLOPs over what they are with features rounded up to 16, the floats that an AVX-512 instruction takes."""
    layers = [layer for layer in count.layers.values() if layer["features"]]
    return count.flops / sum(r["flops"] * -(-r["features"] // VECTOR) * VECTOR / r["features"] for r in layers)


def peak_memory(network: nn.Module, images: Tensor, plain: nn.Module | None) -> int | None:
    """Bytes that a forward takes: measured on a GPU; on a CPU what its operations hold, none of them in place."""
    if not images.is_cuda:
        return None if plain is None else 4 * len(images) * cost.peak_activations(plain, images.shape[1:])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        network(images)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median, quartiles and number."""
    values = list(values)
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartile_1": low, "quartile_3": high, "n": len(values)}


def roofline(
    name: str, counts: dict[str, cost.Cost], batch: int, times: dict[str, list[float]], calls: dict[str, list[float]]
) -> dict:
    """What part of a network's FLOP reduction became time, and where the rest went.

    `times` are those of the networks and of their convolutions alone, `calls` the same for a batch of no image.
    """
    median = {n: statistics.median(t) for n, t in times.items()}
    share = counts[name].flops / counts["unpruned"].flops
    convs, ideal = median[ALONE + name], share * median["unpruned"]
    calls_of_convs, calls_of_all = (statistics.median(calls[n]) for n in (ALONE + name, name))
    pairs = zip(times[ALONE + LIMIT], times[ALONE + name], strict=True)
    return {
        "share_of_flop_reduction": ideal / median[name],
        "ms_if_flops_were_time": 1e3 * ideal,
        "ms_convolutions": 1e3 * convs,
        "ms_other": 1e3 * (median[name] - convs),
        "ms_calls_of_convolutions": 1e3 * calls_of_convs,
        "ms_calls_of_other": 1e3 * (calls_of_all - calls_of_convs),
        "convolutions_slower_per_flop": convs / (share * median[ALONE + "unpruned"]),
        "convolutions_throughput_over_dense": summary(a / b for a, b in pairs),
        "gflops_per_second_of_convolutions": counts[name].flops * batch / convs / 1e9,
        "flops_in_full_vectors": full_vectors(counts[name]),
    }


def measure(model: nn.Module, gated: bar.GatedNetwork, factor: float, options: dict, device: torch.device) -> list:
    """One record for each network and batch size at one factor."""
    size = options["input_size"]
    mixed = bar.prune(gated)
    flops = bar.count(mixed, size).flops
    plain = {
        "unpruned": copy.deepcopy(model).eval(),
        "regular": bar.prune(gated, "regular"),
        "mixed": mixed,
        LIMIT: dense(gated, flops),
        "torch-pruning": torch_pruned(gated, model, torch.zeros(1, *size, device=device)),
    }
    plain = {name: network for name, network in plain.items() if network is not None}
    counts = {name: bar.count(network, size) for name, network in plain.items()}
    counts["gated"], counts["mixed, as pruned"] = counts["unpruned"], counts["mixed"]
    difference = abs(counts[LIMIT].flops / flops - 1)
    assert difference <= DENSE_WITHIN, f"the dense network's FLOPs differ by {difference:.1%} at factor {factor:g}"

    networks = {"gated": copy.deepcopy(gated).eval()}
    networks |= {name: bar.fold(network) for name, network in plain.items()}
    networks["mixed, as pruned"] = copy.deepcopy(mixed).eval()
    networks = {name: n.to(memory_format=torch.channels_last) for name, n in networks.items()}
    example = torch.randn(4, *size, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = networks["gated"](example)
        # Torch-Pruning's network computes something else: it knows no gate values, and cuts as if shut features were 0.
        for name in ("regular", "mixed", "mixed, as pruned"):
            difference = ((networks[name](example) - wanted).abs().max() / wanted.abs().max()).item()
            most = 1e-2 if torch.backends.cudnn.allow_tf32 and device.type == "cuda" else 1e-4
            assert difference <= most, f"{name} differs from the gated network by {difference:.1e} at factor {factor:g}"

    records = []
    for batch in options["batches"]:
        images = torch.randn(batch, *size, device=device).contiguous(memory_format=torch.channels_last)
        folded = {name: network for name, network in networks.items() if name != "gated"}  # its convolutions are hidden
        alone = {ALONE + name: convolutions(network, images) for name, network in folded.items()}
        times = race(networks | alone, images, options["repeats"], options["seconds"])
        none = {ALONE + name: convolutions(network, images[:0]) for name, network in folded.items()}
        calls = race(folded | none, images[:0], options["repeats"], options["seconds"] / 10)

        for name in networks:
            records.append({
                "network": name, "factor": factor, "batch": batch,
                "volume": counts[name].volume, "flops": counts[name].flops, "parameters": counts[name].parameters,
                "flop_factor": counts["unpruned"].flops / counts[name].flops,
                "latency_ms": summary(1e3 * t for t in times[name]),
                "images_per_second": batch / statistics.median(times[name]),
                "peak_memory_bytes": peak_memory(networks[name], images, plain.get(name.split(",")[0])),
                "speedup": summary(a / b for a, b in zip(times["unpruned"], times[name], strict=True)),
                "throughput_over_dense": summary(a / b for a, b in zip(times[LIMIT], times[name], strict=True)),
                "throughput_over_regular": summary(a / b for a, b in zip(times["regular"], times[name], strict=True)),
                "roofline": roofline(name, counts, batch, times, calls) if name in folded else None,
                "widths": {n: layer["features"] for n, layer in counts[name].layers.items()},
            })  # fmt: skip
    return records


def show(records: list[dict], setup: dict) -> None:
    """Print one table for each batch size."""
    console = Console(width=200)
    for batch in dict.fromkeys(r["batch"] for r in records):
        table = Table(
            title=f"{setup['model']}, batch {batch}, {setup['hardware']}",
            caption=f"gates: {setup['pattern']}. Medians. 'reduction kept': speed-up over the unpruned network by FLOP "
            "factor; the rest went into slower convolutions (time per FLOP, unpruned = 1; 'full': the part of their "
            "vectors of 16 features that is used) and other operations; 'calls' is in both. 'convs vs dense': the "
            "convolutions alone, the limit of the widths.",
        )
        for column in ("V / by", "network", "FLOPs / by", "ms", "quartiles", "images/s", "peak MB", "vs regular",
                       "vs dense", "convs vs dense", "reduction kept", "conv ms", "other ms", "calls ms", "time/FLOP",
                       "full"):  # fmt: skip
            table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
        for r in records:
            if r["batch"] != batch:
                continue
            t, roof, memory = r["latency_ms"], r["roofline"], r["peak_memory_bytes"]
            where = () if roof is None else (
                roof["convolutions_throughput_over_dense"]["median"], roof["share_of_flop_reduction"],
                roof["ms_convolutions"], roof["ms_other"], roof["ms_calls_of_convolutions"] + roof["ms_calls_of_other"],
                roof["convolutions_slower_per_flop"], roof["flops_in_full_vectors"],
            )  # fmt: skip
            table.add_row(
                f"{r['factor']:g}", r["network"], f"{r['flop_factor']:.1f}", f"{t['median']:.2f}",
                f"{t['quartile_1']:.2f}-{t['quartile_3']:.2f}", f"{r['images_per_second']:.0f}",
                "" if memory is None else f"{memory / 1e6:.1f}", f"{r['throughput_over_regular']['median']:.2f}",
                f"{r['throughput_over_dense']['median']:.2f}",
                *(f"{value:.2f}" for value in where),
                end_section=r["network"] == "mixed, as pruned",
            )  # fmt: skip
        console.print(table)


def _numbers(kind: type) -> Callable:
    def parse(_context, option: click.Option, text: str) -> list:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list such as {option.default}") from None

    return parse


@click.command(epilog="Needs torch-pruning (pip install torch-pruning) for its rows; without it they are left out.")
@click.option("--model", help="Network.  [default: wrn-16-4 on a CPU, wrn-28-12 on a GPU]")
@click.option("--size", default=32, show_default=True, help="Side of the images.")
@click.option("--factors", default="2,4,8,16", show_default=True, callback=_numbers(float), help="Of the volume.")
@click.option("--batches", default="1,64", show_default=True, callback=_numbers(int), help="Images per forward.")
@click.option("--trained", default=0, metavar="EPOCHS", help="Gates from a training on digits, not random ones.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--threads", default=2, show_default=True, help="Of torch, on the CPU.")
@click.option("--repeats", default=11, show_default=True, help="Rounds at least.")
@click.option("--seconds", default=1.0, show_default=True, help="For each network, batch and factor, at least.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all of it to a file.")
def main(model, size, factors, batches, trained, device, threads, repeats, seconds, seed, out) -> None:
    """Time pruned networks, side by side in one run.

    \b
    Examples:
      python bench/latency.py
      python bench/latency.py --model resnet18 --factors 4 --batches 64 --threads 4
      python bench/latency.py --trained 6 --size 16 --factors 4 --json mine.json
    """
    torch.set_num_threads(threads)
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if device == "cuda" and place.type == "cpu":
        raise click.UsageError("there is no CUDA device here")
    name = model or ("wrn-28-12" if place.type == "cuda" else "wrn-16-4")
    pattern = f"synthetic, not trained: log alpha = {LAYER:g} layer + {FEATURE:g} channel + {NOISE:g} noise, settled"
    if trained:
        pattern = f"of {trained} epochs of training on digits"
    try:
        from torch_pruning import __version__ as torch_pruning_version
    except ImportError:
        torch_pruning_version = None
        click.echo("torch-pruning is not installed; its rows are left out", err=True)
    setup = {
        "model": name, "input_size": [3, size, size], "pattern": pattern, "device": place.type,
        "hardware": machine.hardware(place), "threads": threads, "seed": seed, "commit": machine.commit(),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "torch_pruning": torch_pruning_version,
        "tf32_convolutions": place.type == "cuda" and torch.backends.cudnn.allow_tf32,
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "repeats": repeats, "seconds": seconds,
        "load_at_start": round(os.getloadavg()[0], 2),  # of the machine, in processes, this one not counted
    }  # fmt: skip
    options = {"input_size": (3, size, size), "batches": batches, "repeats": repeats, "seconds": seconds}
    records = []
    digits = data.load("digits", size=size) if trained else None
    try:
        for factor in factors:
            torch.manual_seed(seed)
            network = models.build(name, 10, options["input_size"]).eval()
            gated = bar.gate(network, options["input_size"]).to(place)
            if trained:
                learnt(gated, factor, trained, digits, seed)
            else:
                synthetic(gated, seed)
            gated.settle_(bar.count(network, options["input_size"]).volume / factor)
            records += measure(network, gated, factor, options, place)
    except bar.BarError as error:
        raise click.UsageError(str(error)) from error
    show(records, setup)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"setup": setup, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="torch_pruning")
    main()

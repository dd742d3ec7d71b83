"""Methods that choose features from weights: widths fit the budget, choices nest, equal features merge exactly."""

import copy
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMES, SIZE, awaken, build
from torch import nn

import bar
from bar import models
from bar.methods import interpolative, magnitude, random, uniform, vector_quantization
from bar.methods.base import Task
from bar.training import PRESETS

METHODS = {"random": random, "magnitude": magnitude, "vq": vector_quantization, "id": interpolative}
IMAGES = torch.randn(4, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max().detach() / a.abs().max().detach())


def uncut(gated: bar.GatedNetwork) -> dict[str, torch.Tensor]:
    return {name: ~gate.cut for name, gate in gated.gates.items()}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=6)
@given(
    name=st.sampled_from([name for name in NAMES if name not in ("wrn-16-1", "resnet-basic")]),  # they take long
    metric=st.sampled_from(["volume", "flops"]), factor=st.floats(1, 3), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_halving_again_and_again(method, name, metric, factor, seed):
    """Sizes stay within the budgets, what is kept was there before, and pruning takes out what has been cut."""
    torch.manual_seed(seed)
    gated, generator = uniform.open_(bar.gate(build(name), SIZE)), draw(seed)
    for step in (1, 2, 3):
        try:
            widths = uniform.widths(gated, factor**step, metric)
        except bar.BarError:
            least = {n: torch.arange(len(g.alive)) == int(uncut(gated)[n].nonzero()[0]) for n, g in gated.gates.items()}
            assert gated.size_of(least, metric) > gated.full(metric) / factor**step
            return
        before = uncut(gated)
        chosen = METHODS[method].choose(copy.deepcopy(gated), widths, draw(seed))
        assert {n: int(c.sum()) for n, c in chosen.items()} == widths
        assert all((before[n] | ~c).all() for n, c in chosen.items())

        uniform.narrow_(gated, METHODS[method].choose, factor**step, generator, metric)
        assert all((before[n] | ~after).all() for n, after in uncut(gated).items())
        pruned = bar.prune(gated)
        assert getattr(bar.count(pruned, SIZE), metric) == gated.size(metric) <= gated.full(metric) / factor**step
        assert relative(gated(IMAGES), pruned(IMAGES)) <= 1e-10


@pytest.mark.parametrize("name", [n for n in NAMES if n != "awkward"])  # that one drops features out in training
def test_training_is_that_of_the_pruned_network(name):
    """Gates that stay let all through in training, too; nothing else is computed; gradients reach the weights only."""
    gated = bar.gate(build(name), SIZE)
    uniform.narrow_(gated, magnitude.choose, 2, draw(0)).train()
    pruned = bar.prune(gated)
    out = gated(IMAGES)
    assert relative(pruned(IMAGES), out) <= 1e-10
    out.square().sum().backward()
    assert all(gate.log_alpha.grad is None for gate in gated.gates.values())
    assert all(p.grad.isfinite().all() for p in gated.body.parameters() if p.grad is not None)
    torch.testing.assert_close(gated.expected(), {n: u.double() for n, u in uncut(gated).items()} | {
        n: torch.ones(gated.network.features(node)).double()
        for n, node in gated.network.convs.items() if n not in gated.gates
    }, rtol=0, atol=0)  # fmt: skip


def test_factors_of_the_paper():
    """WRN-28-12 at 32 x 32: uniform widths give the volume exactly, and the FLOP factors of supp. 6."""
    with torch.device("meta"):
        net = models.WideResNet(28, 12)
    net = net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.zero_()
    gated, full = bar.gate(net, (3, 32, 32)), bar.count(net, (3, 32, 32))
    for factor, flops in [(2, 4.0), (4, 16.0), (8, 64.0), (16, 255.8)]:
        uniform.narrow_(gated, random.choose, factor, draw(0))
        cost = bar.count(bar.prune(gated), (3, 32, 32))
        assert full.volume / cost.volume == factor
        assert round(full.flops / cost.flops, 1) == flops


@pytest.mark.parametrize(("name", "metric"), [("wrn-10-1", "volume"), ("wrn-10-1", "flops"), ("resnet18", "volume")])
@settings(max_examples=8)
@given(factor=st.floats(1, 16))
def test_the_budget_is_used(name, metric, factor):
    """At least 95 % of it, with widths that are uniform up to one feature."""
    gated, full = _wide(name)
    widths = uniform.widths(gated, factor, metric)
    size = gated.size_of({name: torch.arange(n) < widths[name] for name, n in full.items()}, metric)
    assert 0.95 <= size * factor / gated.full(metric) <= 1
    above = min((width + 1) / full[name] for name, width in widths.items())
    assert max((width - 1) / full[name] for name, width in widths.items()) < above
    if factor in (1, 2, 4, 8, 16) and metric == "volume" and name == "wrn-10-1":
        assert all(width * factor == full[name] for name, width in widths.items())


@functools.cache
def _wide(name: str) -> tuple[bar.GatedNetwork, dict[str, int]]:
    gated = bar.gate(models.build(name), (3, 32, 32))
    return gated, {name: len(gate.alive) for name, gate in gated.gates.items()}


def test_what_sums_meet_in():
    """The FLOPs of a sum with a concatenation depend on which features of the two are kept, but never exceed.

    A choice that is taken back leaves no trace in the weights.
    """
    net, choices = build("branches"), []

    def choose(gated, widths, generator):
        choices.append(random.choose(gated, widths, generator))
        net.fc.bias.data += 1
        return choices[-1]

    before = net.fc.bias.detach().clone()
    for seed in range(5):
        net.fc.bias.data.copy_(before)
        gated = bar.gate(net, SIZE)
        assert uniform.narrow_(gated, choose, 2, draw(seed), "flops").size("flops") * 2 <= gated.full("flops")
        torch.testing.assert_close(net.fc.bias.detach(), before + 1)
    assert len(choices) > 5


@pytest.mark.parametrize(
    ("factor", "metric", "message"),
    [
        (0.5, "volume", "the pruning factor must be a number of at least 1, got 0.5"),
        (float("nan"), "volume", "the pruning factor must be a number of at least 1, got nan"),
        (2, "flop", "unknown metric 'flop': did you mean 'flops'"),
        (1000, "volume", r"one feature in each convolution is a volume of 80, above the budget of 0: .* at most 5.8"),
    ],
)
def test_errors_change_nothing(factor, metric, message):
    gated = bar.gate(build("plain"), SIZE)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(bar.BarError, match=message):
        uniform.narrow_(gated, vector_quantization.choose, factor, draw(0), metric)
    torch.testing.assert_close(gated.state_dict(), before, rtol=0, atol=0)


def test_random_is_seeded_and_fair():
    gated = bar.gate(build("plain"), SIZE)
    widths = {"a": 2, "b": 4}
    draws = [random.choose(gated, widths, draw(seed)) for seed in range(300)]
    again = random.choose(gated, widths, draw(7))
    assert all(torch.equal(again[name], draws[7][name]) for name in widths)
    for name, width in widths.items():
        often = torch.stack([alive[name] for alive in draws]).double().mean(0)
        torch.testing.assert_close(often, torch.full_like(often, width / len(often)), rtol=0, atol=0.1)


def test_magnitude_is_the_absolute_sum_of_what_is_left():
    gated = bar.gate(build("wrn-10-1"), SIZE)
    uniform.narrow_(gated, magnitude.choose, 2, draw(0))
    left = uncut(gated)
    modules = dict(gated.body.named_modules())
    modules["group1.0.conv1"].weight.data[:, ~left["conv1"]] = 100  # what is multiplied with nothing

    def expected(writers: list[str], reads: str | None) -> set[int]:
        score = {}
        for i in left[writers[0]].nonzero().flatten().tolist():
            weights = [modules[w].weight[i].detach().numpy() for w in writers]
            weights = [w if reads is None else w[left[reads].numpy()] for w in weights]
            score[i] = sum(float(abs(w).sum()) for w in weights)
        return set(sorted(score, key=score.get)[len(score) // 2 :])

    chosen = magnitude.choose(gated, uniform.widths(gated, 4), draw(0))
    assert set(chosen["group1.0.conv1"].nonzero().flatten().tolist()) == expected(["group1.0.conv1"], "conv1")
    # The stem reads the images, the convolution that it is summed with the features of the one before.
    modules["conv1"].weight.data.zero_()
    chosen = magnitude.choose(gated, uniform.widths(gated, 4), draw(0))
    for name in ("conv1", "group1.0.conv2"):
        assert set(chosen[name].nonzero().flatten().tolist()) == expected(["group1.0.conv2"], "group1.0.conv1")


class Joined(nn.Module):
    """Features that are read twice, through a concatenation of flattened maps and by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.c = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 6, 3, stride=4)
        self.fc = nn.Linear(4 * 64 + 6 * 64 + 6 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.a(x)))
        y = torch.tanh(self.b(x))
        z = torch.relu(self.c(torch.cat([y, x], 1)))
        return self.fc(torch.cat([torch.cat([y, x], 1).flatten(1), z.flatten(1)], 1))


def twin_(net: nn.Module, conv: str, norm: str | None) -> None:
    """Let the second half of a convolution's features compute what the first half does, as batch norm may hide it."""
    modules = dict(net.named_modules())
    conv, norm = modules[conv], modules.get(norm)
    first = (len(conv.weight) + 1) // 2
    for i in range(first, len(conv.weight)):
        j = i - first
        scale = float(torch.empty(()).uniform_(0.5, 2)) * (-1) ** i if norm is not None else 1
        conv.weight.data[i] = scale * conv.weight.data[j]
        if conv.bias is not None and norm is None:
            conv.bias.data[i] = conv.bias.data[j]
        if norm is not None:
            bias = torch.zeros(len(conv.weight)) if conv.bias is None else conv.bias.data
            norm.running_mean[i] = scale * (norm.running_mean[j] - bias[j]) + bias[i]
            norm.running_var[i] = scale**2 * (norm.running_var[j] + norm.eps) - norm.eps
            norm.weight.data[i] = norm.weight.data[j] * (-1) ** i
            norm.bias.data[i] = norm.bias.data[j]


TWINS = {
    "plain": {"a": None, "b": None},
    "joined": {"a": "norm", "b": None, "c": None},
    "wrn-10-1": {f"group{g}.0.conv1": f"group{g}.0.bn2" for g in (1, 2, 3)},
    "resnet-bottleneck": {f"layer{g}.0.conv{c}": f"layer{g}.0.bn{c}" for g in (1, 2, 3, 4) for c in (1, 2)},
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("rounds", [1, 2])
def test_vector_quantization_merges_twins(name, rounds):
    """The function stays, before and after an earlier cut, whatever scales batch norm hides."""
    torch.manual_seed(rounds)
    net = awaken(Joined()) if name == "joined" else build(name)
    gated = bar.gate(net, SIZE)
    if rounds == 2:
        gated.keep_(random.choose(gated, uniform.widths(gated, 1.5), draw(0))).cut_()
    for conv, norm in TWINS[name].items():
        twin_(net, conv, norm)
    uniform.open_(gated)
    expected, here = gated(IMAGES), uncut(gated)
    widths = {n: int(u.sum()) for n, u in here.items()}
    for conv in TWINS[name]:
        half = (len(here[conv]) + 1) // 2
        widths[conv] = int((here[conv][:half] | nn.functional.pad(here[conv][half:], (0, len(here[conv]) % 2))).sum())
    gated.keep_(vector_quantization.choose(gated, widths, draw(1))).cut_()
    assert {n: int(u.sum()) for n, u in uncut(gated).items()} == widths
    assert sum(widths.values()) < sum(int(u.sum()) for u in here.values())
    assert relative(expected, gated(IMAGES)) <= 1e-10
    assert relative(expected, bar.prune(gated)(IMAGES)) <= 1e-10


def test_vector_quantization_of_equal_filters():
    """With fewer different filters than clusters all widths are kept, and the function is, too."""
    net = build("plain")
    net.a.weight.data[:], net.a.bias.data[:] = net.a.weight.data[:1].clone(), 1
    expected, gated = net(IMAGES), bar.gate(net, SIZE)
    alive = vector_quantization.choose(gated, {"a": 4, "b": 5}, draw(0))
    assert int(alive["a"].sum()) == 4
    assert relative(expected, gated.keep_(alive)(IMAGES)) <= 1e-10


def test_batch_norm_follows_the_centres():
    """Kept filters are the means of two clusters, and as long as the longest of it; running means fit."""
    torch.manual_seed(0)
    net = awaken(Joined())
    net.norm.momentum = None
    net.norm.reset_running_stats()
    net.train()(IMAGES)

    def folded() -> torch.Tensor:
        scale = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
        shift = net.norm.bias + (net.a.bias - net.norm.running_mean) * scale
        return torch.cat([net.a.weight.flatten(1) * scale[:, None], shift[:, None]], 1).detach()

    length, rows = net.a.weight.detach().flatten(1).norm(dim=1), folded()
    gated = bar.gate(net.eval(), SIZE)
    kept = vector_quantization.choose(gated, {"a": 2, "b": 4, "c": 6}, draw(0))["a"]
    torch.testing.assert_close(net.norm.running_mean[kept], net.a(IMAGES).mean((0, 2, 3))[kept])
    clusters = [torch.tensor(mask) for mask in itertools.product([True, False], repeat=6) if 0 < sum(mask) < 6]
    means = {mask: torch.stack([rows[mask].mean(0), rows[~mask].mean(0)]) for mask in clusters}
    mask, pair = min(means.items(), key=lambda found: float((found[1] - folded()[kept]).abs().max()))
    torch.testing.assert_close(folded()[kept], pair)
    shares = rows[:, :-1].norm(dim=1)
    longest = [int((part * shares).argmax()) for part in (mask, ~mask)]
    torch.testing.assert_close(net.a.weight.detach().flatten(1).norm(dim=1)[kept], length[longest])


def test_filters_that_have_decayed_make_no_scales_of_millions():
    """The one that is kept may be next to nothing, where the others of its cluster are not."""
    torch.manual_seed(0)
    net = awaken(Joined())
    net.a.weight.data[:5] *= torch.tensor([1e-9, 1e-8, 1e-7, 1e-6, 1e-3])[:, None, None, None]
    net.norm.running_var[:5] *= torch.tensor([1e-18, 1e-16, 1e-14, 1e-12, 1e-6])
    before = net.norm.weight.detach().abs().max()
    gated = bar.gate(net, SIZE)
    kept = vector_quantization.choose(gated, {"a": 2, "b": 4, "c": 6}, draw(0))["a"]
    assert kept[:5].any()
    assert net.norm.weight[kept].abs().max() <= before


@pytest.mark.parametrize("width", [4, 5])
@given(seed=st.integers(0, 10**6))
def test_interpolation_of_dependent_features(width, seed):
    """Without activations the function stays; a 1x1 convolution of 3 channels has rank 4 at most, with its shift."""
    torch.manual_seed(seed)
    net = awaken(nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.AvgPool2d(2), nn.Conv2d(8, 6, 3, padding=1), nn.Flatten(),
        nn.Linear(6 * 16, 4),
    ))  # fmt: skip
    mix = torch.randn(3, 3, dtype=torch.float64)
    net[3].weight.data[3:] = torch.einsum("ij,jabc->iabc", mix, net[3].weight.data[:3])
    net[3].bias.data[3:] = mix @ net[3].bias.data[:3]
    expected, gated = net(IMAGES), bar.gate(net, SIZE)
    alive = interpolative.choose(gated, {"0": width, "3": 3}, draw(0))
    assert {name: int(a.sum()) for name, a in alive.items()} == {"0": width, "3": 3}
    assert relative(expected, gated.keep_(alive)(IMAGES)) <= 1e-10


@given(seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 1e-45, 1e-30, 1e-12]), living=st.sampled_from([0, 3]))
def test_interpolation_of_features_that_have_decayed(seed, size, living):
    """What is left of them is noise. Fitted to noise, the coefficients would be anything, here up to 1e30."""
    torch.manual_seed(seed)
    net = awaken(nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 6, 1, bias=False), nn.Flatten(),
                               nn.Linear(6 * 36, 4)))  # fmt: skip
    net[0].weight.data[living:] *= size
    expected, gated = net(IMAGES), bar.gate(net, SIZE)
    largest = net[1].weight.abs().max().item()
    alive = interpolative.choose(gated, {"0": 8, "1": 6}, draw(0))
    assert alive["0"][:living].all()
    assert int(alive["0"].sum()) == 8
    assert net[1].weight.abs().max().item() <= 16 * largest
    assert relative(expected, gated.keep_(alive)(IMAGES)) <= 1e-6


def test_interpolation_is_the_best_of_its_kept_features():
    """Of the readers' weights, what remains is the least-squares fit of the features that go."""
    torch.manual_seed(0)
    net = build("plain")
    rows = torch.cat([net.a.weight.flatten(1), net.a.bias[:, None]], 1).detach()
    reader = net.b.weight.detach().clone()
    kept = interpolative.choose(bar.gate(net, SIZE), {"a": 4, "b": 5}, draw(0))["a"]
    fit = torch.linalg.lstsq(rows[kept].T, rows.T).solution  # rows = fit.T @ rows[kept]
    torch.testing.assert_close(net.b.weight[:, kept].detach(), torch.einsum("oikl,ji->ojkl", reader, fit))
    assert torch.equal(net.a.weight.flatten(1)[kept], rows[kept, :-1])


@pytest.mark.parametrize("method", ["vq", "id"])
@pytest.mark.parametrize("name", ["depthwise", "grouped", "grouped-affine", "branches"])
def test_weights_stay_where_a_merge_would_be_wrong(method, name):
    """Sums, depthwise and grouped convolutions, and batch norms of their readers: features are chosen only."""
    stay = {
        "depthwise": ("stem", "blocks"),
        "grouped": ("stem", "up", "grouped", "norm", "down"),
        "grouped-affine": ("stem", "up", "grouped", "norm", "down"),
        "branches": ("left.bias", "norm", "other.bias", "joint"),  # the stem's three readers do change
    }[name]
    net = build(name.removesuffix("-affine"))
    if name == "grouped-affine":
        net.norm = awaken(nn.BatchNorm2d(6))
    gated = bar.gate(net, SIZE)
    before = copy.deepcopy(gated.body.state_dict())
    METHODS[method].choose(gated, uniform.widths(gated, 1.5), draw(0))
    after = gated.body.state_dict()
    assert [n for n in before if n.startswith(stay) and not torch.equal(after[n], before[n])] == []
    assert not torch.equal(after["fc.weight"], before["fc.weight"]) or name == "depthwise"  # where it would be right


def upwards(width: int = 5) -> nn.Sequential:
    """A transposed convolution, whose weights have its inputs first, between two others."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.ConvTranspose2d(width, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1),
        nn.Flatten(), nn.Linear(128, 2),
    ).double()  # fmt: skip


def test_magnitude_of_transposed_convolutions():
    net = upwards(4)
    net[2].weight.data[:] = 1
    net[2].weight.data[:, 1] = 0
    net[2].weight.data[3] *= 0.1
    kept = magnitude.choose(bar.gate(net, (3, 6, 6)), {"0": 4, "2": 3, "4": 2}, draw(0))["2"]
    assert kept.tolist() == [True, False, True, True]


@pytest.mark.parametrize("width", [4, 5])
@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("method", ["vq", "id"])
def test_twins_of_transposed_convolutions_merge(method, layer, width):
    """Twins in it, and twins that it reads."""
    net = upwards(width)
    weight, bias = uniform.by_feature(net[int(layer)]).data, net[int(layer)].bias.data
    weight[3], bias[3] = weight[1], bias[1]
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    expected, gated = net(images), bar.gate(net, (3, 6, 6))
    widths = {"0": width, "2": 4, "4": 2}
    alive = METHODS[method].choose(gated, widths | {layer: widths[layer] - 1}, draw(0))
    assert relative(expected, gated.keep_(alive)(images)) <= 1e-6


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_uniform_scales_all_kinds_of_convolutions(kind):
    """For a quarter of the inputs, weights are twice as large."""
    dims = int(kind.__name__[-2])
    size, pool = (8, *[4] * dims), getattr(nn, f"AdaptiveAvgPool{dims}d")(1)
    net = nn.Sequential(kind(8, 16, 1), kind(16, 16, 1), pool, nn.Flatten(), nn.Linear(16, 4))
    before = uniform.by_feature(net[1]).detach().clone()
    task = Task(size, PRESETS["quick"], 4, "volume", (24, 12, 4), 10)
    small = uniform.Uniform(net, task).cut()
    torch.testing.assert_close(uniform.by_feature(small.get_submodule("1")), 2 * before[:4, :4])


def test_without_an_epoch_in_between_the_budget_is_met_at_once():
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(32, 2))
    pruner = random.Random(net, (3, 6, 6), factor=16, cycle=0)
    assert bar.count(pruner.cut(), (3, 6, 6)).volume <= pruner.limit

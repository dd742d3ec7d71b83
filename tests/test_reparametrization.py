"""Reparametrization: h against exact arithmetic, the budget loss, the cut, and which weights lie on a path."""

import copy
import dataclasses
import decimal
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMES, SIZE, build
from torch import nn

import bar
from bar import models
from bar.errors import BarError
from bar.methods.reparametrization import (
    C1,
    C2,
    ApparentWeights,
    Reparametrization,
    disconnected,
    on_paths,
    soft_mask,
)
from bar.methods.weights import weights_of
from bar.training import PRESETS, Training

single = st.floats(width=32, allow_nan=False, allow_infinity=False)
steepness = st.floats(2**-10, 2**20, width=32)


def exact(x: float, t: float) -> decimal.Decimal:
    """h in 300 digits, from its definition alone."""
    with decimal.localcontext() as context:
        context.prec, context.Emax, context.Emin = 300, decimal.MAX_EMAX, decimal.MIN_EMIN
        one, e = decimal.Decimal(1), decimal.Decimal(1).exp()
        c2 = one / e
        u = (decimal.Decimal(t) * decimal.Decimal(x)) ** 4
        return ((-one / (u + 1)).exp() - c2) / (one - c2)


def plain(weights: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """h as the source writes it, which autograd can differentiate where nothing overflows."""
    return C1 * (torch.exp(-1 / ((t * weights) ** 4 + 1)) - C2)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )


def test_the_constants_put_h_between_0_and_1():
    assert C1 * (math.exp(-1 / (0 + 1)) - C2) == 0
    assert abs(C1 * (1 - C2) - 1) < 1e-15
    assert soft_mask(torch.tensor([0.0, math.inf, 3e38])).tolist() == [0, 1, 1]


@settings(max_examples=300)
@given(st.one_of(single, st.floats(-0.25, 0.25, width=32)), steepness)
def test_h_is_exact_in_both_precisions(x, t):
    """Where h is no smaller than the smallest normal number; below, it may be rounded to 0."""
    true = exact(x, t)
    for dtype, part in ((torch.float32, 3e-6), (torch.float64, 5e-15)):
        value = soft_mask(torch.tensor(x, dtype=dtype), torch.tensor(t, dtype=dtype)).item()
        tiny = decimal.Decimal(torch.finfo(dtype).tiny)
        assert abs(decimal.Decimal(value) - true) <= decimal.Decimal(part) * true + 2 * tiny


@given(st.lists(single, min_size=2, max_size=20), steepness)
def test_h_is_even_and_rises_from_0_to_1(x, t):
    x = torch.tensor(sorted(x, key=abs))
    h = soft_mask(x, t)
    assert ((h >= 0) & (h <= 1)).all()
    assert (h.diff() >= -1e-6).all()
    assert torch.equal(h, soft_mask(-x, t))
    assert torch.equal(h, soft_mask(x, -t))


@settings(max_examples=200)
@given(single, st.one_of(steepness, st.just(0.0), st.floats(2**-100, 2**100, width=32)))
def test_gradients_are_finite_everywhere(x, t):
    x, t = (torch.tensor([value], requires_grad=True) for value in (x, t))
    h = soft_mask(x, t)
    (h + x * h).sum().backward()
    assert x.grad.isfinite().all()
    assert t.grad.isfinite().all()


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8), st.floats(0.5, 5))
def test_gradients_are_those_of_the_formula(x, t):
    found, true = [], []
    for h, gradients in ((soft_mask, found), (plain, true)):
        w = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        s = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        gradients += torch.autograd.grad((h(w, s) * torch.arange(1, len(x) + 1)).sum(), (w, s))
    torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12)


def test_a_weight_just_above_zero_still_feels_the_budget():
    """dh/dx = 4 (e^0 / (e - 1)) t^4 x^3 near 0: it vanishes, but only where it should."""
    x = torch.tensor([1e-5, 1e-3, -1e-3], dtype=torch.float64, requires_grad=True)
    soft_mask(x, 100.0).sum().backward()
    expected = 4 / (math.e - 1) * 100.0**4 * x.detach() ** 3
    torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=0)


def test_the_network_computes_with_apparent_weights():
    network = small().eval()
    images = torch.rand(2, 3, 8, 8)
    twin = copy.deepcopy(network)
    for layer in (twin[0], twin[5]):
        layer.weight.data *= plain(layer.weight.data, torch.tensor(30.0))
    torch.testing.assert_close(ApparentWeights(network, 30.0)(images), twin(images))


def test_the_budget_loss_is_that_of_the_source():
    """((C - C_target) / C_initial)^2, with gradients for the weights and for t, and C_initial from the first step."""
    method = Reparametrization(small().double(), factor=10, lam=3.0, t=20.0)
    weights = [w.detach().clone().requires_grad_() for w in weights_of(method.network.plain).values()]
    t = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    first = sum(plain(w.detach(), t.detach()).sum() for w in weights)
    with torch.no_grad():
        for learnt, copied in zip(weights_of(method.network.plain).values(), weights, strict=True):
            learnt *= 0.7
            copied *= 0.7
    loss = 3.0 * ((sum(plain(w, t).sum() for w in weights) - 72) / first) ** 2
    true = torch.autograd.grad(loss, [*weights, t])
    found = method(step=5)
    learnt = [*weights_of(method.network.plain).values(), method.network.t]
    assert (method.full, method.limit) == (3 * 8 * 9 + 128 * 4, 72)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(list(torch.autograd.grad(found, learnt)), list(true), rtol=1e-9, atol=1e-15)


def test_there_is_one_t_and_it_is_not_among_the_weights():
    method = Reparametrization(small(), factor=10, t_lr=0.5)
    (group,) = method.groups()
    assert [p.shape for p in group["params"]] == [()]
    assert sum(p is method.network.t for p in method.network.parameters()) == 1
    assert method.rate(0) == 0.5
    assert method.network.t.item() == 100


@given(st.floats(1.01, 300), st.integers(0, 3))
@settings(max_examples=30)
def test_the_cut_keeps_exactly_the_largest_apparent_weights(factor, seed):
    network = small()
    torch.manual_seed(seed)
    for weight in weights_of(network).values():
        nn.init.normal_(weight, std=0.02)
    before = torch.cat([w.detach().flatten() for w in weights_of(network).values()])
    method = Reparametrization(network, factor, t=60.0)
    watched, biases = method.watched(), network[5].bias.clone()
    assert torch.equal(torch.cat([w.detach().flatten() for w in weights_of(network).values()]), before)
    assert method.cut() is network
    after = torch.cat([w.detach().flatten() for w in weights_of(network).values()])
    apparent = before * plain(before.double(), torch.tensor(60.0)).float()
    largest = before.abs().argsort(descending=True)[: math.floor(728 / factor)]
    assert method.cut_record() == {"size": len(largest), "budget": len(largest)}
    torch.testing.assert_close(after[largest], apparent[largest], rtol=1e-5, atol=0)
    assert after.count_nonzero() == len(largest)
    assert torch.equal(network[5].bias, biases)
    assert all(
        torch.equal(a, b) for a, b in zip(watched.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_a_network_that_has_decided_is_cut_without_a_change():
    """Where the masks are 0 and 1 already, what was trained is what comes out."""
    network = small().double().eval()
    for weight in weights_of(network).values():
        weight.data = torch.where(torch.rand_like(weight) < 0.25, weight.sign() * 3, 1e-7 * weight)
    kept = sum(int((w.abs() > 1).sum()) for w in weights_of(network).values())
    method = Reparametrization(network, factor=728 / (kept + 0.5))
    images = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    trained = method.network(images).detach()
    record = method.end_epoch()
    assert record.pop("cost") == pytest.approx(kept, rel=1e-6)
    parts = {"open": kept / 728, "shut": 1 - kept / 728, "undecided": 0.0}
    assert record == {"size": kept, "budget": kept, "t": 100.0} | parts
    torch.testing.assert_close(method.cut()(images), trained, rtol=1e-7, atol=1e-9)


def digits_training(pruner=None, epochs=(3, 1), **options):
    """A tiny training with a cut and a phase after it."""
    digits = bar.data.load("digits", size=8, limit=96)
    quick = dataclasses.replace(PRESETS["quick"], batch_size=32)
    torch.manual_seed(0)
    network = models.narrow(models.build("conv4", 10, digits.input_size), 8)
    pruner = Reparametrization(network, **({"factor": 10, "lam": 300.0, "t_lr": 5.0} | options))
    phases = [("prune", epochs[0], 5e-3), ("finetune", epochs[1], 5e-3)]
    return Training(pruner.network, digits, phases, quick, torch.Generator().manual_seed(1), pruner=pruner)


def test_training_moves_weights_and_t_to_the_budget():
    """Through the one shared loop; after the cut, zeros stay zero while the others learn."""
    training = digits_training(epochs=(20, 1))
    start, limit, records = training.pruner.initial, training.pruner.limit, []
    for record in training:
        records.append(record)
        if record["phase"] == "cut":
            cut = {name: weight.detach().clone() for name, weight in weights_of(training.network).items()}
    assert [record["phase"] for record in records[-2:]] == ["cut", "finetune"]
    assert abs(records[-3]["cost"] - limit) < 0.1 * (start - limit)
    assert records[-3]["t"] < 95
    assert records[-2]["size"] == sum(int(weight.count_nonzero()) for weight in cut.values()) == limit
    tuned = weights_of(training.network)
    assert any(not torch.equal(cut[name], weight) for name, weight in tuned.items())
    assert all(torch.equal(cut[name] != 0, weight != 0) for name, weight in tuned.items())


def test_goes_on_after_any_epoch_as_if_it_had_not_stopped():
    whole = digits_training(epochs=(2, 2))
    states = [copy.deepcopy(whole.state_dict()) for _ in whole]
    for state in states[:-1]:
        again = digits_training(epochs=(2, 2))
        again.load_state_dict(state)
        list(again)
        for a, b in zip(whole.network.state_dict().values(), again.network.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("size", "classes"), [(32, 10), (64, 200)], ids=["CIFAR-10", "TinyImageNet"])
@pytest.mark.parametrize("name", ["conv4", "vgg19-by-16", "resnet18-by-4"])
def test_serves_the_networks_of_the_source(name, size, classes):
    """A training step and the cut, with narrower layers: VGG19 has 140 million weights."""
    torch.manual_seed(0)
    network = models.build(name, classes, (3, size, size))
    if name == "conv4":
        models.narrow(network, 4)
    method = Reparametrization(network, factor=20, lam=100.0)
    images = torch.rand(2, 3, size, size)
    optimizer = torch.optim.Adam(method.network.parameters(), lr=1e-3)
    before = method(0).item()
    loss = nn.functional.cross_entropy(method.network(images), torch.tensor([0, classes - 1])) + method(0)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in method.network.parameters())
    assert all(p.grad.any() for p in weights_of(network).values())
    optimizer.step()
    assert method(1) < before
    smaller = method.cut().eval()
    assert method.cut_record()["size"] == method.limit == sum(w.numel() for w in weights_of(network).values()) // 20
    assert smaller(images).shape == (2, classes)
    assert bar.count(smaller, (3, size, size)).volume > 0


def paths_by_scaling(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same question, asked of the network itself: with positive weights only, does a weight change the output?"""
    weights = weights_of(network)
    useful = {}
    with torch.no_grad():
        before = network(images)
        for name, weight in weights.items():
            flat = weight.view(-1)
            changed = []
            for i in range(len(flat)):
                old = flat[i].item()
                flat[i] = 2 * old
                changed.append(not torch.equal(network(images), before))
                flat[i] = old
            useful[name] = torch.tensor(changed).view(weight.shape)
    return useful


class Forked(nn.Module):
    """A residual sum, strides on maps smaller than the kernel, and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.pool = nn.AvgPool2d(2)
        self.inner = nn.Conv2d(3, 3, 3, padding=1, stride=2, bias=False)
        self.shortcut = nn.Conv2d(3, 3, 1, stride=2, bias=False)
        self.last = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.fc = nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.shortcut(x) + self.inner(x))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_paths_are_those_that_change_the_output(seed, part):
    """By brute force: positive weights, each doubled in turn."""
    torch.manual_seed(seed)
    network = Forked().double().eval()
    for weight in weights_of(network).values():
        weight.data = torch.where(torch.rand_like(weight) < part, torch.rand_like(weight) + 0.5, 0.0)
    expected = paths_by_scaling(network, torch.ones(1, 1, 4, 4, dtype=torch.float64))
    state = copy.deepcopy(network.state_dict())
    found = on_paths(network, (1, 4, 4))
    assert list(found) == list(expected)
    for name, used in expected.items():
        assert torch.equal(found[name], used), name
    assert disconnected(network, (1, 4, 4)) == [
        n.removesuffix(".weight") for n, used in expected.items() if not used.any()
    ]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), network.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_network_is_connected(name):
    network = build(name)
    assert disconnected(network, SIZE) == []


def test_a_path_past_a_batch_norm_and_a_maximum():
    """Signs and shifts do not matter, any pixel may be the largest, and a constant is no path."""
    network = nn.Sequential(
        nn.Conv2d(1, 1, 2, padding=1), nn.BatchNorm2d(1), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1)
    )
    network[0].weight.data.fill_(-1.0)
    network[1].running_mean.fill_(5.0)
    assert on_paths(network, (1, 1, 1))["0.weight"].all()
    network[0].weight.data.zero_()
    network[0].bias.data.fill_(1.0)
    assert disconnected(network, (1, 1, 1)) == ["0", "5"]


def test_more_paths_than_a_number_can_count():
    """About 100 ways through each of 200 layers; zeros, which times infinity would be no number."""
    network = nn.Sequential(nn.Conv2d(3, 16, 1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(200)))
    for weight in weights_of(network).values():
        weight.data[0, 0] = 0.0
    assert all(torch.equal(used, weights_of(network)[name] != 0) for name, used in on_paths(network, (3, 4, 4)).items())


def test_weights_that_meet_only_padding_are_on_no_path():
    """A 3x3 kernel on a map of one pixel, as in the last blocks of a ResNet-18 at 32x32."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 2))
    used = on_paths(network, (2, 1, 1))["0.weight"]
    assert used[:, :, 1, 1].all()
    assert used.sum() == 6


@pytest.mark.parametrize("factor", [1, 0.5, 0, -3, math.nan, math.inf, "4", None, 729])
def test_factors_that_cannot_be_served(factor):
    with pytest.raises(BarError, match="pruning factor"):
        Reparametrization(small(), factor)


@pytest.mark.parametrize("bad", [{"lam": 0}, {"lam": math.nan}, {"lam": math.inf}, {"t": 0.0}, {"t": -1}, {"t_lr": -1}])
def test_settings_that_make_no_sense(bad):
    with pytest.raises(BarError, match="must be above 0"):
        Reparametrization(small(), 4, **bad)


def test_a_network_without_weights_to_prune():
    with pytest.raises(BarError, match="no weights to prune"):
        Reparametrization(nn.Sequential(nn.ReLU()), 4)

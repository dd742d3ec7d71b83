"""L0, the information bottleneck and MorphNet: their losses, their surgery, and the search for the weight of a loss."""

import copy
import io
import math

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NAMES, SIZE, awaken, build, family
from torch import nn

import bar
from bar.methods import morphnet, search
from bar.methods.information_bottleneck import GaussianGate, InformationBottleneck
from bar.methods.l0 import L0, normal_
from bar.methods.morphnet import MorphNet
from bar.network import trace
from bar.training import PRESETS, Training

NORMED = ("wrn-10-1", "wrn-16-1", "resnet-basic", "resnet-bottleneck")  # a batch norm on every way


def gaussian(name: str, seed: int, share: float) -> bar.GatedNetwork:
    """A network with Gaussian gates of either sign, also above 1; some convolutions have all dead, others none."""
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE, gate_factory=GaussianGate)
    for gate in gated.gates.values():
        here = (0.0, share, share, 1.0)[int(torch.randint(4, ()))]
        gate.mu.data.uniform_(-2, 2)
        gate.log_variance.data.copy_(torch.where(torch.rand(len(gate.mu)) < here, 3.0, -12.0))
    return gated.floor_()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / a.abs().max())


def layers() -> nn.Module:
    """Two convolutions with batch norm: 6 maps of 64 numbers, 5 maps of 16."""
    return awaken(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 5, 3, padding=1, stride=2), nn.BatchNorm2d(5), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
        )
    )  # fmt: skip


patterns = given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), share=st.floats(0, 1))


# Gates of another law


@patterns
def test_pruned_equals_gated_with_gaussian_gates(name, seed, share):
    gated = gaussian(name, seed, share)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    for connectivity in ("mixed", "regular"):
        pruned = bar.prune(gated, connectivity)
        assert relative(gated(images), pruned(images)) <= 1e-10
        assert not any(isinstance(m, GaussianGate) for m in pruned.modules())
    assert bar.count(bar.prune(gated), SIZE).volume == gated.size()


@patterns
def test_cutting_gaussian_gates_while_training(name, seed, share):
    """In eval mode nothing changes; while training no gradient is NaN, and no later step revives what was cut."""
    gated = gaussian(name, seed, share)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    before, size = gated(images), gated.size()
    gated.cut_()
    assert gated.uncut() == size
    assert relative(before, gated(images)) <= 1e-10
    optimizer = torch.optim.Adam(gated.parameters(), lr=0.01)
    for gate in gated.gates.values():  # as if Adam's momentum came from before the cut
        optimizer.state[gate.mu] = {
            "step": torch.tensor(5.0), "exp_avg": torch.ones_like(gate.mu), "exp_avg_sq": torch.ones_like(gate.mu)
        }  # fmt: skip
    term = InformationBottleneck(gated, 10**9, 0.01)
    cut = {name: gate.score == -torch.inf for name, gate in gated.gates.items()}
    (gated.train()(images).square().mean() + term(0)).backward()
    assert not any(p.grad.isnan().any() for p in gated.parameters() if p.grad is not None)
    optimizer.step()
    torch.manual_seed(seed)
    for gate_name, gate in gated.gates.items():
        assert not gate.alive[cut[gate_name]].any()
        assert not gate.value[cut[gate_name]].any()
        assert not GaussianGate.sample([gate])[cut[gate_name]].any()
        assert not gate.information()[cut[gate_name]].any()
    assert not gated(images).isnan().any()
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    assert all(torch.equal(~gate.alive, cut[n]) for n, gate in gated.gates.items())


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_open_gaussian_gates_change_nothing(name, seed):
    torch.manual_seed(seed)
    net = build(name)
    gated = bar.gate(net, SIZE, gate_factory=GaussianGate)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(gated(images), net(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [None, GaussianGate])
def test_a_channel_that_another_convolution_writes_stays(make):
    """Shutting some of the stem, whose channels a block writes as well, is the same as filters and shifts of zeros."""
    torch.manual_seed(0)
    net, images = build("wrn-10-1"), torch.randn(4, *SIZE, dtype=torch.float64)
    gated = bar.gate(copy.deepcopy(net), SIZE, gate_factory=make)
    keep = {n: torch.ones_like(g.alive) for n, g in gated.gates.items()}
    keep["conv1"][::3] = False
    net.conv1.weight.data[::3] = 0
    for tensor in net.group1[0].bn1.parameters():  # it reads the stem alone; its shift must not revive anything
        tensor.data[::3] = 0
    gated.keep_(keep)
    assert relative(net(images), gated(images)) <= 1e-10
    assert relative(net(images), bar.prune(gated)(images)) <= 1e-10


@settings(max_examples=15)
@given(
    name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), share=st.floats(0, 1), factor=st.floats(1.5, 16),
)  # fmt: skip
def test_settling_gaussian_gates(name, seed, share, factor):
    """The budget holds, gates that were right already keep their values, and the order is that of the scores."""
    gated = gaussian(name, seed, share)
    limit = gated.full() / factor
    if limit < gated.smallest():
        return
    before = {n: (g.score, g.alive, g.mu.detach().clone()) for n, g in gated.gates.items()}
    gated.settle_(limit)
    assert bar.count(bar.prune(gated), SIZE).volume <= limit
    for n, gate in gated.gates.items():
        score, alive, mu = before[n]
        assert torch.equal(gate.mu.detach(), mu)
        same = gate.alive == alive
        assert torch.equal(gate.score[same], score[same])
    if gated.size() < 0.95 * limit:  # then no dead feature fits by itself
        for gate in gated.gates.values():
            for i in (~gate.alive).nonzero().flatten().tolist():
                old = gate.log_variance[i].item()
                gate.log_variance.data[i] = -50
                assert not gated.size() <= limit or gated.size() < 0.95 * limit
                gate.log_variance.data[i] = old


@pytest.mark.parametrize("name", NAMES)
def test_gaussian_gates_keep_a_path_open(name):
    gated = bar.gate(build(name), SIZE, gate_factory=GaussianGate)
    for gate in gated.gates.values():
        gate.log_variance.data.fill_(20.0)
        gate.mu.data.uniform_(-1e-3, 1e-3)
    with pytest.raises(bar.BarError, match="fatal pruning"):
        bar.prune(gated)
    assert gated.floor_().size() == gated.smallest()
    bar.prune(gated)


def test_noise_of_gaussian_gates():
    gate = GaussianGate(3).double()
    gate.mu.data = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gate.log_variance.data = torch.tensor([0.25, 1e-4, 4.0], dtype=torch.float64).log()
    torch.manual_seed(0)
    z = torch.stack([GaussianGate.sample([gate, gate]) for _ in range(20000)]).detach()
    assert z.shape == (20000, 6)
    torch.testing.assert_close(z.mean(0), gate.mu.detach().repeat(2), rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 0.01, 2.0] * 2, dtype=torch.float64), rtol=0.03, atol=0)
    assert abs(np.corrcoef(z[:, 0], z[:, 3])[0, 1]) < 0.03


def test_a_start_can_be_drawn_again():
    gate = GaussianGate(1000)
    assert abs(gate.mu.mean() - 1) < 0.002 and abs(gate.log_variance.mean() + 9) < 0.002  # noqa: PT018
    assert 0.009 < gate.mu.std() < 0.011
    gate.start_(torch.Generator().manual_seed(1))
    first = gate.mu.detach().clone()
    assert torch.equal(first, gate.start_(torch.Generator().manual_seed(1)).mu)
    gated = normal_(bar.gate(build("wrn-16-1"), SIZE), generator=torch.Generator().manual_seed(1))
    assert abs(gated.log_alpha.mean()) < 0.002
    assert 0.009 < gated.log_alpha.std() < 0.011


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_presence_of_gaussian_sums(z):
    """0 if and only if both are; of two it has the size of one; the order does not matter but for a sign."""
    p, q, r = torch.tensor(z, dtype=torch.float64)
    either = GaussianGate.union
    assert either(p, q).abs() == either(q, p).abs() == max(p.abs(), q.abs())
    assert either(either(p, q), r).abs() == either(p, either(q, r)).abs()


def test_a_gate_without_features_and_gates_of_the_wrong_law():
    with pytest.raises(bar.BarError, match="at least one feature"):
        GaussianGate(0)
    gated = bar.gate(layers(), SIZE, gate_factory=GaussianGate)
    with pytest.raises(bar.BarError, match="needs hard concrete gates"):
        bar.Budget(gated, factor=2, steps=10)(0)
    with pytest.raises(bar.BarError, match="needs Gaussian gates"):
        InformationBottleneck(bar.gate(layers(), SIZE), 200, 0.1)
    gated.gates["0"].mu.data[1] = float("nan")
    with pytest.raises(bar.BarError, match="did the training diverge"):
        bar.prune(gated)


# The losses


@given(seed=st.integers(0, 10**6), lam=st.floats(1e-6, 1))
def test_loss_of_l0(seed, lam):
    """Supp. eq. 5, each feature alike, whatever its area; and its derivative, p (1 - p)."""
    gated = bar.gate(layers(), SIZE)
    torch.manual_seed(seed)
    for gate in gated.gates.values():
        gate.log_alpha.data.uniform_(-4, 4)
    term = L0(gated, 10**9, lam)(0)
    term.backward()
    log_alpha = gated.log_alpha.detach().numpy()
    p = scipy.special.expit(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    assert term.item() == pytest.approx(lam * p.sum(), rel=1e-10)
    gradient = np.concatenate([gate.log_alpha.grad.numpy() for gate in gated.gates.values()])
    np.testing.assert_allclose(gradient, lam * p * (1 - p), rtol=1e-9)


@given(seed=st.integers(0, 10**6), lam=st.floats(1e-6, 1))
def test_loss_of_the_information_bottleneck(seed, lam):
    gated = bar.gate(layers(), SIZE, gate_factory=GaussianGate)
    torch.manual_seed(seed)
    for gate in gated.gates.values():
        gate.mu.data.uniform_(-2, 2)
        gate.log_variance.data.uniform_(-9, 3)
    term = InformationBottleneck(gated, 10**9, lam)(0)
    term.backward()
    gates = gated.gates.values()
    mu = np.concatenate([gate.mu.detach().numpy() for gate in gates])
    variance = np.exp(np.concatenate([gate.log_variance.detach().numpy() for gate in gates]))
    assert term.item() == pytest.approx(lam * np.log(np.sqrt((variance + mu**2) / variance)).sum(), rel=1e-9)
    gradients = [np.concatenate([getattr(g, n).grad.numpy() for g in gates]) for n in ("mu", "log_variance")]
    np.testing.assert_allclose(gradients[0], lam * mu / (variance + mu**2), rtol=1e-8)
    np.testing.assert_allclose(gradients[1], -lam * mu**2 / (variance + mu**2) / 2, rtol=1e-8)


@settings(max_examples=10)
@given(mu=st.floats(-2, 2), log_variance=st.floats(-6, 3), h=st.floats(0.3, 3))
def test_the_bound_is_a_divergence(mu, log_variance, h):
    """It is the least KL(N(mu h, sigma^2 h^2), N(0, v)) over v, by numerical integration, for any feature value h."""
    gate = GaussianGate(1).double()
    gate.mu.data.fill_(mu)
    gate.log_variance.data.fill_(log_variance)
    sigma = math.exp(log_variance / 2) * h
    x = mu * h + sigma * np.linspace(-12, 12, 4001)

    def log_density(mean: float, v: float) -> np.ndarray:
        return -((x - mean) ** 2) / (2 * v) - math.log(2 * math.pi * v) / 2

    log_p = log_density(mu * h, sigma**2)

    def divergence(log_v: float) -> float:
        return scipy.integrate.trapezoid(np.exp(log_p) * (log_p - log_density(0, math.exp(log_v))), x)

    best = scipy.optimize.minimize_scalar(divergence, (-10, 6), tol=1e-7)
    assert gate.information().item() == pytest.approx(best.fun, abs=1e-6)


@pytest.mark.parametrize("method", [L0, InformationBottleneck])
def test_the_loss_alone_shuts_all_but_the_spine(method):
    """With the groups and the rate that a training loop is given, and nothing to hold against."""
    make = GaussianGate if method is InformationBottleneck else None
    pruner = method(bar.gate(build("wrn-10-1"), SIZE, gate_factory=make), 10**9, 1.0, lr=0.05)
    (group,) = pruner.groups()
    optimizer = torch.optim.Adam([group])
    assert sum(p.numel() for p in group["params"]) == len(pruner.network.score) * (1 + (make is not None))
    for step in range(400):
        group["lr"] = pruner.rate(step)
        optimizer.zero_grad()
        pruner(step).backward()
        optimizer.step()
        pruner.end_step()
    assert pruner.end_epoch()["size"] == pruner.network.smallest()
    assert bar.count(pruner.watched(), SIZE).volume == bar.count(pruner.cut(), SIZE).volume == pruner.network.smallest()


# Cutting, storing, going on


def pruner_of(method: str, settle: bool = False):
    torch.manual_seed(0)
    net = build("wrn-10-1")
    limit = bar.count(net, SIZE).volume / 3
    if method == "morphnet":
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(-0.02, 0.1)
        return MorphNet(bar.gate(net, SIZE), limit, 0.1)
    if method == "l0":
        pruner = L0(bar.gate(net, SIZE), limit, 0.1, settle=settle)
        for gate in pruner.network.gates.values():
            gate.spread_(-4, 4)
        return pruner
    pruner = InformationBottleneck(bar.gate(net, SIZE, gate_factory=GaussianGate), limit, 0.1, settle=settle)
    for gate in pruner.network.gates.values():
        gate.log_variance.data.uniform_(-6, 2)
    return pruner


@pytest.mark.parametrize("method", ["l0", "information-bottleneck"])
def test_the_own_rule_and_the_fallback(method):
    free = pruner_of(method)
    size = free.network.size()
    assert bar.count(free.cut(), SIZE).volume == size > free.limit
    settled = pruner_of(method, settle=True)
    assert 0.95 * settled.limit <= bar.count(settled.cut(), SIZE).volume <= settled.limit


@pytest.mark.parametrize("method", ["l0", "information-bottleneck", "morphnet"])
@pytest.mark.parametrize("metric", ["volume", "flops"])
def test_records_count_what_is_there(method, metric):
    pruner = pruner_of(method, settle=True)
    pruner.metric = metric
    pruner.limit = getattr(bar.count(build("wrn-10-1"), SIZE), metric) / 3
    own, pruned, record = pruner.end_epoch(), pruner.cut(), pruner.cut_record()
    cost = bar.count(pruned, SIZE)
    assert (record["volume"], record["flops"]) == (cost.volume, cost.flops)
    assert record["size"] == getattr(cost, metric) <= record["budget"] == pruner.limit
    assert record["size_before_settling"] == own["size"] == own[metric] != record["size"]
    assert record["volume_regular"] >= record["volume"]


@pytest.mark.parametrize("method", ["l0", "information-bottleneck", "morphnet"])
def test_watching_changes_nothing(method):
    pruner, untouched = pruner_of(method), pruner_of(method)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    watched = pruner.watched()
    expected = watched(images)
    with torch.no_grad():
        for parameter in watched.parameters():
            parameter.zero_()
    assert torch.equal(pruner.network(images), untouched.network(images))
    for a, b in zip(pruner.network.parameters(), untouched.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(pruner.cut()(images), expected)


@pytest.mark.parametrize("method", ["l0", "information-bottleneck", "morphnet"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_stored_pruner_goes_on(method, cut):
    """Before the cut and after it; what was decided is not decided again, though the weights may be others by then."""
    pruner = pruner_of(method, settle=True)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    expected = pruner.cut() if cut else None
    memory = io.BytesIO()
    torch.save(pruner.state_dict(), memory)
    weights = {k: v.clone() for k, v in pruner.network.state_dict().items()}
    expected = expected or copy.deepcopy(pruner).cut()

    again = pruner_of(method, settle=True)
    for module in again.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_()
    for gate in getattr(again, "gated", again.network).gates.values():
        nn.init.normal_(next(gate.parameters()))
    if cut:
        again.limit /= 2
    else:
        again.network.load_state_dict(weights)
    memory.seek(0)
    again.load_state_dict(torch.load(memory, weights_only=True))
    result = again.cut()
    result.load_state_dict(expected.state_dict())  # of the same shapes
    assert torch.equal(result.eval()(images), expected.eval()(images))
    other = L0(bar.gate(build("wrn-16-1"), SIZE), 10**9, 0.1)
    with pytest.raises(bar.BarError, match="gates of another network"):
        other.load_state_dict(pruner.state_dict())


@pytest.mark.parametrize("method", ["l0", "information-bottleneck", "morphnet"])
def test_in_training(method):
    """The term moves what it should, the cut fits, and a training that was stored goes on as if it had not been."""
    digits, preset = bar.data.load("digits", size=8, limit=64), PRESETS["quick"]

    def training() -> Training:
        torch.manual_seed(0)
        net = bar.models.build("wrn-10-1", 10, digits.input_size)
        limit = bar.count(net, digits.input_size).volume / 3
        gated = bar.gate(
            net, digits.input_size, gate_factory=GaussianGate if method == "information-bottleneck" else None
        )
        if method == "morphnet":
            pruner = MorphNet(gated, limit, 0.01)
        else:
            kind = L0 if method == "l0" else InformationBottleneck
            pruner = kind(gated, limit, 0.1, lr=0.5, betas=preset.gate_betas, settle=True)
        phases = [("prune", 3, 5e-3), ("finetune", 1, 5e-3)]
        return Training(pruner.network, digits, phases, preset, torch.Generator().manual_seed(1), pruner=pruner)

    whole = training()
    records = list(whole)
    assert [record["phase"] for record in records] == ["prune"] * 3 + ["cut", "finetune"]
    assert records[3]["volume"] == bar.count(whole.network, digits.input_size).volume <= records[3]["budget"]
    assert method == "morphnet" or records[2]["volume"] < records[0]["volume"]

    for epochs in (2, 4):  # before the cut, and after it
        first, again = training(), training()
        for _, _record in zip(range(epochs), first, strict=False):
            pass
        memory = io.BytesIO()
        torch.save(first.state_dict(), memory)
        memory.seek(0)
        again.load_state_dict(torch.load(memory, weights_only=True))
        assert [record["loss"] for record in again if "loss" in record] == [
            record["loss"] for record in records[epochs:] if "loss" in record
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0.1), "the smallest possible volume is 80, above the budget 10"),
        ((200, 0.0), "lambda and .* must be numbers above 0"),
        ((200, math.nan), "lambda and .* must be numbers above 0"),
        ((200, 0.1, "flop"), "did you mean 'flops'"),
    ],
)
def test_bad_arguments(arguments, message):
    for make, method in ((None, L0), (GaussianGate, InformationBottleneck), (None, MorphNet)):
        with pytest.raises(bar.BarError, match=message):
            method(bar.gate(layers(), SIZE, gate_factory=make), *arguments)


# MorphNet


def test_widths_of_morphnet_by_hand():
    """Learnt are 4 of 6 and 2 of 5 features. Multiplied by 3/2 they are 6 and 3, by 5/4 they are 5 and 2."""
    net = layers()
    net[1].weight.data = torch.tensor([0.5, -0.9, 0.001, 0.8, 0.002, -0.6], dtype=torch.float64)
    net[4].weight.data = torch.tensor([0.003, 0.7, 0.004, -0.6, 0.0], dtype=torch.float64)
    widths = {
        6 * 64 + 5 * 16: ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4], 2.5),  # never wider than at first
        6 * 64 + 3 * 16: ([0, 1, 2, 3, 4, 5], [1, 2, 3], 1.5),
        6 * 64 + 3 * 16 - 1: ([0, 1, 3, 4, 5], [1, 3], 1.25),
        4 * 64 + 2 * 16: ([0, 1, 3, 5], [1, 3], 1.0),
        3 * 64 + 1 * 16: ([1, 3, 5], [1], 0.75),
        1 * 64 + 1 * 16: ([1], [1], 0.25),
    }
    for limit, (first, second, multiplier) in widths.items():
        pruner = MorphNet(bar.gate(copy.deepcopy(net), SIZE), limit, 0.1)
        record = pruner.end_epoch()
        assert (record["volume"], record["size"], record["multiplier"]) == (
            4 * 64 + 2 * 16,
            4 * 64 + 2 * 16,
            multiplier,
        )
        pruned = pruner.cut()
        assert bar.count(pruned, SIZE).volume <= limit
        for conv, norm, kept in (("0", "1", first), ("3", "4", second)):
            assert torch.equal(pruned.get_submodule(norm).weight, net[int(norm)].weight[kept])
            assert pruned.get_submodule(conv).out_channels == len(kept)
        assert torch.equal(pruned.get_submodule("3").weight, net[3].weight[second][:, first])


@settings(max_examples=15)
@given(
    name=st.sampled_from(NORMED), seed=st.integers(0, 10**6), share=st.floats(0, 1), factor=st.floats(1.1, 30),
    metric=st.sampled_from(["volume", "flops"]),
)  # fmt: skip
def test_morphnet_fits_its_budget_and_nothing_wider_does(name, seed, share, factor, metric):
    torch.manual_seed(seed)
    net = build(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[torch.rand(len(module.weight)) < share] *= 1e-3
    gated = bar.gate(net, SIZE)
    limit = gated.full(metric) / factor
    if limit < gated.smallest(metric):
        with pytest.raises(bar.BarError, match="smallest possible"):
            MorphNet(gated, limit, 0.1, metric)
        return
    pruner = MorphNet(gated, limit, 0.1, metric)
    pruned = pruner.cut()
    assert getattr(bar.count(pruned, SIZE), metric) <= limit
    assert relative(pruner.gated(images := torch.randn(2, *SIZE, dtype=torch.float64)), pruned(images)) <= 1e-10

    gamma = morphnet.scales(gated.network)
    learnt = {n: gamma[n] > 0.01 for n in gated.gates}
    for n in set(gated.network.spine()) & learnt.keys():
        learnt[n][gamma[n].argmax()] = True
    live = gated.network.live(learnt)
    width = {n: int(live[gated.network.convs[n]].sum()) for n in learnt}
    kept = {n: int(g.alive.sum()) for n, g in gated.gates.items()}
    for n, k in kept.items():
        assert width[n] or not k  # what has gone stays away
        alive = gated.gates[n].alive
        assert not 0 < k < len(alive) or gamma[n][alive].min() >= gamma[n][~alive].max()
    # The next multiplier that changes anything is too much.
    following = min(((k + 1) / width[n] for n, k in kept.items() if width[n] and k < len(gamma[n])), default=None)
    if following is not None and all(kept[n] for n in kept if width[n]):
        for n, gate in gated.gates.items():
            more = min(max(math.floor(following * width[n] + 1e-9), kept[n]), len(gamma[n]))
            chosen = torch.zeros_like(gate.alive)
            chosen[gamma[n].argsort(descending=True, stable=True)[:more]] = True
            gate.keep_(chosen)
        assert gated.size(metric) > limit


@pytest.mark.parametrize("name", [*NORMED, "googlenet", "mobilenet_v2", "densenet121"])
def test_a_feature_is_dead_once_no_norm_lets_it_through(name):
    """Where its scale is 0, the output has no gradient in the weights that make it."""
    torch.manual_seed(0)
    net = build(name) if name in NORMED else family(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[torch.rand(len(module.weight)) < 0.4] = 0
    images = torch.randn(4, *(SIZE if name in NORMED else (3, 32, 32)), dtype=torch.float64)
    traced = trace(net, images.shape[1:])
    net(images).square().sum().backward()
    dead, moved = 0, 0
    for conv, gamma in morphnet.scales(traced).items():
        gradients = net.get_submodule(conv).weight.grad.flatten(1).abs().sum(1)
        assert not gradients[gamma == 0].any(), conv
        dead, moved = dead + int((gamma == 0).sum()), moved + int((gradients > 0).sum())
    assert min(dead, moved) > 10


def test_scales_of_a_preactivation_network_by_name():
    net = build("wrn-10-1")
    scales = morphnet.scales(trace(net, SIZE))
    block, following = net.group1[0], net.group2[0]
    assert torch.equal(scales["group1.0.conv1"], block.bn2.weight.abs())
    assert torch.equal(scales["conv1"], torch.maximum(block.bn1.weight.abs(), following.bn1.weight.abs()))
    assert torch.equal(scales["group1.0.conv2"], following.bn1.weight.abs())
    assert torch.equal(scales["group3.0.shortcut"], net.bn.weight.abs())


def test_penalty_of_morphnet_by_hand():
    """|gamma| of each layer times the alive features of the other, and its gradient by autograd of just that."""
    net = layers()
    net[1].weight.data = torch.tensor([0.5, -0.9, 0.001, 0.8, 0.002, -0.6], dtype=torch.float64)
    net[4].weight.data = torch.tensor([0.003, 0.7, 0.004, -0.6, 0.0], dtype=torch.float64)
    for metric in ("volume", "flops"):
        pruner = MorphNet(bar.gate(net, SIZE), 10**9, 0.3, metric)
        found = torch.autograd.grad(term := pruner(0), [net[1].weight, net[4].weight])
        a, b = (net[i].weight.detach().clone().requires_grad_() for i in (1, 4))
        if metric == "volume":
            expected = 0.3 * (64 * a.abs().sum() + 16 * b.abs().sum())
        else:
            first = 2 * 9 * 64 * 3 * a.abs().sum()
            second = 2 * 9 * 16 * (4 * b.abs().sum() + 2 * a.abs().sum())
            expected = 0.3 * (first + second)
        assert term.item() == pytest.approx(expected.item(), rel=1e-12)
        for mine, its in zip(found, torch.autograd.grad(expected, [a, b]), strict=True):
            torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("name", [*NORMED, "googlenet", "mobilenet_v2", "densenet121"])
def test_penalty_of_a_network_whose_scales_are_all_one(name):
    """The volume then is the network's own; the FLOPs are there twice, by inputs and by outputs, but for the images."""
    net = build(name) if name in NORMED else family(name)
    size = SIZE if name in NORMED else (3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    traced = trace(net, size)
    gamma, cost = morphnet.scales(traced), bar.count(net, size)
    assert morphnet.penalty(traced, gamma, "volume", 0.5).item() == pytest.approx(cost.volume)
    once = sum(
        cost.layers[node.target]["flops"]
        for node, kind in traced.kinds.items()
        if kind == "depthwise" or (kind == "conv" and traced.sources(node)[0] in traced.fixed)
    )
    assert morphnet.penalty(traced, gamma, "flops", 0.5).item() == pytest.approx(2 * cost.flops - once)


def test_morphnet_needs_batch_norm():
    with pytest.raises(bar.BarError, match="between 'a' and all that reads it"):
        MorphNet(bar.gate(build("plain"), SIZE), 10**9, 0.1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(bar.BarError, match="batch norm with a learnt scale between '0'"):
        MorphNet(bar.gate(net, SIZE), 10**9, 0.1)
    net = layers()
    pruner = MorphNet(bar.gate(net, SIZE), 10**9, 0.1)
    net[4].weight.data[2] = math.nan
    with pytest.raises(bar.BarError, match="did the training diverge"):
        pruner.cut()


def test_morphnet_and_protected_convolutions():
    """They keep everything, and weigh in the FLOPs of the others only."""
    net = layers()
    net[1].weight.data[:5] = 0
    pruner = MorphNet(bar.gate(net, SIZE, protect=["3"]), 10**9, 1.0, "flops")
    alive = 2 * 9 * 64 * 3 + 2 * 9 * 16 * 5
    assert pruner(0).item() == pytest.approx(alive * net[1].weight.abs().sum().item())
    assert pruner.end_epoch()["size"] == 2 * 9 * 64 * 3 + 2 * 9 * 16 * 5


# The search


def walk(size, limit: float, first: float, known=(), **options) -> list[search.Trial]:
    """Search on a function in place of trainings; the new trials."""
    trials, made = list(known), []
    while (lam := search.next_weight(trials, limit, first, made=len(made), **options)) is not None:
        made.append(search.Trial(lam, size(lam)))
        trials.append(made[-1])
        assert len(made) <= options.get("most", 8)
    return made


@given(
    slope=st.floats(0.2, 2), place=st.floats(-6, 0), factor=st.floats(1.5, 30), first=st.floats(-3, 3),
)  # fmt: skip
def test_search_on_monotone_sizes(slope, place, factor, first):
    """A smooth curve is found, from a start that is up to 1000 times off; and a second budget needs fewer trials."""

    def size(lam: float) -> float:
        return 10000 / (1 + (lam / 10**place) ** slope)

    limit = 10000 / factor
    right = 10 ** (place + math.log10(factor - 1) / slope)
    made = walk(size, limit, right * 10**first, most=20)
    assert search.chosen(made, limit).how == "fits"
    assert 0.95 * limit <= dict(made)[search.chosen(made, limit).lam] <= limit
    again = walk(size, limit, right * 10**first, known=made, most=20)
    assert again == []
    other = limit * 0.8
    fresh = walk(size, other, right * 10**first, most=20)
    warm = walk(size, other, right * 10**first, known=made, most=20)
    assert len(warm) <= len(fresh)
    assert search.chosen([*made, *warm], other).how == "fits"


@given(seed=st.integers(0, 10**6), noise=st.floats(0, 1), factor=st.floats(1.5, 30), most=st.integers(0, 12))
def test_search_on_noisy_sizes(seed, noise, factor, most):
    """It ends, it asks for no lambda twice, and what it chooses is right for the trials there are."""
    random = np.random.default_rng(seed)

    def size(lam: float) -> float:
        return min(10000 / (1 + lam) * math.exp(noise * random.normal()), 10000)

    limit = 10000 / factor
    known = [(lam, size(lam)) for lam in 10 ** random.uniform(-2, 2, random.integers(1, 5))]
    made = walk(size, limit, 1.0, known=known, most=most)
    assert len({trial.lam for trial in made} | {lam for lam, _ in known}) == len(made) + len(known)
    trials = [*known, *made]
    choice = search.chosen(trials, limit)
    sizes = dict(trials)
    fitting = [s for s in sizes.values() if 0.95 * limit <= s <= limit]
    above = [s for s in sizes.values() if s > limit]
    expected = (
        ("fits", max(fitting)) if fitting else ("shut", min(above)) if above else ("reopened", max(sizes.values()))
    )
    assert (choice.how, sizes[choice.lam]) == expected


def test_a_search_that_cannot_end_well():
    """A size that jumps over the budget; one that never comes down; one that is too small whatever lambda."""
    jump = walk(lambda lam: 100 - lam if lam < 0.3 else 10, limit=50, first=0.1, most=50)
    assert len(jump) < 25
    assert search.chosen(jump, 50).how == "shut"
    assert search.chosen(jump, 50).lam == pytest.approx(0.3, rel=0.01)
    high = walk(lambda lam: 100, limit=50, first=0.1)
    assert [lam for lam, _ in high] == pytest.approx([0.1 * 4**i for i in range(8)])
    assert search.chosen(high, 50) == (0.1, "shut")
    low = walk(lambda lam: 1, limit=50, first=0.1)
    assert [lam for lam, _ in low] == pytest.approx([0.1 / 4**i for i in range(8)])
    assert search.chosen(low, 50).how == "reopened"


def test_a_gap_is_divided_where_the_sizes_say():
    """On a power law the first look into the gap is right; a lopsided gap is left by 15 % of it at least."""
    made = walk(lambda lam: 1000 / lam, limit=100, first=4.1)
    assert made[-1].lam == pytest.approx(1000 / 97.5)
    assert len(made) == 3
    for trials, part in (([(1.0, 101), (2.0, 1)], 0.15), ([(1.0, 1e9), (2.0, 94)], 0.85)):
        assert search.next_weight(trials, 100, 1.0) == pytest.approx(2**part)


def test_bad_trials():
    with pytest.raises(bar.BarError, match="nothing to choose from"):
        search.chosen([], 50)
    with pytest.raises(bar.BarError, match="a trial needs lambda > 0"):
        search.next_weight([(0.1, math.nan)], 50, 1.0)
    with pytest.raises(bar.BarError, match="a search needs a budget"):
        search.next_weight([], 50, 0.0)

"""Magnitude pruning: exact counts, the largest stay, zeros stay zero."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import build
from torch import nn

from bar.errors import BarError
from bar.methods.reparametrization import disconnected
from bar.methods.unstructured_magnitude import MagnitudePruning
from bar.methods.weights import budget_of, largest, masks, shares, weights_of

NETWORKS = ["plain", "branches", "wrn-16-1", "resnet-bottleneck"]
values = st.integers(-4, 4).map(float)  # many ties


def kept_in(network) -> dict[str, int]:
    return {name: int(weight.count_nonzero()) for name, weight in weights_of(network).items()}


@given(st.lists(values, max_size=7), st.integers(0, 9))
def test_what_stays_is_the_heaviest_subset(vector, count):
    """Against all subsets of that size."""
    vector = torch.tensor(vector)
    kept = largest(vector, count)
    size = min(count, len(vector))
    assert kept.sum() == size
    best = max(sum(subset) for subset in itertools.combinations(vector.abs().tolist(), size))
    assert vector[kept].abs().sum() == best


def test_of_equal_magnitudes_the_first_stay():
    assert largest(torch.tensor([1.0, -2.0, 2.0, 2.0]), 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize("count", [-1, 2.0, None])
def test_counts_that_are_none_are_refused(count):
    with pytest.raises(BarError, match="whole number, at least 0"):
        largest(torch.ones(3), count)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_cannot_be_ordered_is_refused(bad):
    with pytest.raises(BarError, match="not finite"):
        largest(torch.tensor([1.0, bad]), 1)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_shares_are_proportional_and_lose_nothing(sizes, data):
    limit = data.draw(st.integers(1, sum(sizes)))
    exact = [size * limit / sum(sizes) for size in sizes]
    try:
        shared = shares(sizes, limit)
    except BarError:
        assert min(exact) < 1
        return
    assert sum(shared) == limit
    assert all(math.floor(e) <= s <= math.ceil(e) for e, s in zip(exact, shared, strict=True))


@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_masks_keep_exactly_the_budget(layers, data):
    layers = [torch.tensor(layer) for layer in layers]
    limit = data.draw(st.integers(0, sum(map(len, layers)) + 2))
    together = masks(layers, limit)
    assert sum(int(mask.sum()) for mask in together) == min(limit, sum(map(len, layers)))
    kept = torch.cat([value[mask].abs() for value, mask in zip(layers, together, strict=True)])
    gone = torch.cat([value[~mask].abs() for value, mask in zip(layers, together, strict=True)])
    assert not len(kept) or not len(gone) or kept.min() >= gone.max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 3.7])
def test_a_network_keeps_exactly_its_budget(name, per_layer, factor):
    torch.manual_seed(0)
    network = build(name)
    full = kept_in(network)
    others = {n: p.clone() for n, p in network.state_dict().items() if n not in full}
    pruner = MagnitudePruning(network, factor, per_layer)
    assert (pruner.full, pruner.limit) == (sum(full.values()), math.floor(sum(full.values()) / factor))
    kept = kept_in(pruner.cut())
    assert sum(kept.values()) == pruner.limit
    if per_layer:
        assert all(abs(kept[n] - full[n] * pruner.limit / pruner.full) < 1 for n in full)
    assert all(torch.equal(network.state_dict()[n], value) for n, value in others.items())


def test_counts_convolutions_and_linear_layers_once():
    shared, tied = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    tied.weight = shared.weight
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), shared, tied, nn.Flatten(), nn.Linear(4, 3))
    assert {name: weight.numel() for name, weight in weights_of(network).items()} == {
        "0.weight": 36, "2.weight": 144, "5.weight": 12,
    }  # fmt: skip
    assert list(weights_of(nn.Linear(2, 2))) == ["weight"]


def test_watching_changes_nothing_and_shows_what_a_cut_leaves():
    torch.manual_seed(0)
    network = build("plain")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruner = MagnitudePruning(network, 49)  # 49 / (49 / n) is not n for all n
    watched = pruner.watched()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert not pruner.state_dict()
    assert pruner.end_epoch() == {"size": pruner.full, "budget": pruner.limit}
    cut = pruner.cut()
    assert pruner.cut_record() == {"size": pruner.limit, "budget": pruner.limit}
    assert cut is network
    assert all(torch.equal(cut.state_dict()[name], value) for name, value in watched.state_dict().items())


def test_zeros_stay_zero_while_the_rest_learns():
    torch.manual_seed(0)
    pruner = MagnitudePruning(build("plain"), 3, per_layer=True)
    network = pruner.cut()
    weights = list(weights_of(network).values())
    zeros = [weight == 0 for weight in weights]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(network.parameters(), 0.01, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        pruner.end_finetune_step()
    for weight, zero, old in zip(weights, zeros, before, strict=True):
        assert not weight[zero].any()
        assert not torch.equal(weight[~zero], old[~zero])
    assert pruner.cut() is network  # again: nothing new is cut
    assert all(torch.equal(weight == 0, zero) for weight, zero in zip(weights, zeros, strict=True))


def test_goes_on_from_its_state(tmp_path):
    torch.manual_seed(0)
    pruner = MagnitudePruning(build("plain"), 10)
    pruner.cut()
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    other = MagnitudePruning(build("plain"), 10)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    pairs = zip(weights_of(pruner.network).values(), weights_of(other.cut()).values(), strict=True)
    assert all(torch.equal(mine == 0, its == 0) for mine, its in pairs)
    with pytest.raises(BarError, match="has other fields"):
        MagnitudePruning(build("wrn-16-1"), 10).load_state_dict(pruner.state_dict())


@pytest.mark.parametrize("factor", [0.5, 0, -2, math.nan, math.inf, "4", None])
def test_factors_that_are_none_are_refused(factor):
    with pytest.raises(BarError, match="at least 1, not"):
        budget_of([10], factor)


def test_budgets_that_leave_nothing_are_refused():
    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(36, 10))
    with pytest.raises(BarError, match="leaves none of 369 weights: ask for at most 369"):
        MagnitudePruning(network, 370)
    assert MagnitudePruning(network, 369).limit == 1
    with pytest.raises(BarError, match="leaves none to layer number 1 with its 9"):
        MagnitudePruning(network, 100, per_layer=True)
    with pytest.raises(BarError, match="no convolution and no linear layer"):
        MagnitudePruning(nn.Sequential(nn.BatchNorm2d(3)), 2)
    with pytest.raises(BarError, match="remove the parametrization"):
        MagnitudePruning(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3))), 2)


def test_transposed_convolutions_are_pruned_and_connect():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ConvTranspose2d(2, 2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    net[2].weight.data.abs_().neg_()
    net[2].bias.data.fill_(5.0)
    assert set(weights_of(net)) == {"0.weight", "2.weight", "5.weight"}
    assert disconnected(net, (1, 6, 6)) == []

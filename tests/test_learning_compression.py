"""Learning-Compression: the C steps against brute force and other solvers, and the method against convex problems."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import build
from scipy import optimize
from sklearn.datasets import load_digits
from sklearn.linear_model import Lasso, Ridge
from torch import nn

import bar
from bar.errors import BarError
from bar.methods import learning_compression as lc
from bar.methods.learning_compression import LearningCompression
from bar.methods.unstructured_magnitude import MagnitudePruning
from bar.methods.weights import weights_of
from bar.training import PRESETS, Training

vectors = st.lists(st.floats(-5, 5, width=32), max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))
tied = st.lists(st.integers(-3, 3).map(float), max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))
radii = st.floats(0, 12)


def supports(n):
    """All subsets of n positions, as masks."""
    return [torch.tensor(bits, dtype=torch.float64) for bits in itertools.product((0, 1), repeat=n)]


# --- C steps, constraint form --------------------------------------------------------------------------------------


@given(vectors | tied, st.integers(0, 8))
def test_l0_constraint_against_all_subsets(values, kappa):
    theta = lc.keep_top(values, kappa)
    assert theta.count_nonzero() <= kappa
    best = min(float((values - values * s).square().sum()) for s in supports(len(values)) if s.sum() <= kappa)
    assert float((values - theta).square().sum()) == pytest.approx(best, abs=1e-12)


@given(vectors | tied, radii)
def test_l1_constraint_is_the_projection(values, kappa):
    """theta is the projection of v on a convex set iff <v - theta, x - theta> <= 0 for all its extreme points x."""
    theta = lc.project_l1(values, kappa)
    assert float(theta.abs().sum()) <= kappa + 1e-9
    if len(values):
        furthest = kappa * float((values - theta).abs().max())  # of the corners +-kappa e_i
        assert furthest <= float((values - theta) @ theta) + 1e-7


@given(vectors | tied, radii)
def test_l2_constraint_is_the_projection(values, kappa):
    theta = lc.project_l2(values, kappa)
    assert float(theta.norm()) <= kappa + 1e-9
    assert kappa * float((values - theta).norm()) <= float((values - theta) @ theta) + 1e-7


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", [0.2, 0.7, 1.3])
def test_projections_against_a_general_solver(seed, part):
    values = np.random.default_rng(seed).normal(size=5)
    n, bound = len(values), [(0, None)] * 10
    kappa = part * abs(values).sum()
    split = optimize.minimize(  # theta = p - q with p, q >= 0, which makes the l1 norm linear
        lambda pq: ((values - pq[:n] + pq[n:]) ** 2).sum(), np.zeros(2 * n), bounds=bound, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda pq: kappa - pq.sum()}, options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    theirs = split.x[:n] - split.x[n:]
    assert lc.project_l1(torch.tensor(values), kappa).numpy() == pytest.approx(theirs, abs=1e-5)
    kappa = part * np.linalg.norm(values)
    ball = optimize.minimize(
        lambda theta: ((values - theta) ** 2).sum(), 0.01 * values, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda theta: kappa**2 - (theta**2).sum()}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert lc.project_l2(torch.tensor(values), kappa).numpy() == pytest.approx(ball.x, abs=1e-5)


# --- C steps, penalty form -----------------------------------------------------------------------------------------


@given(vectors | tied, st.floats(0, 10), st.floats(0.1, 10))
def test_l0_penalty_against_all_subsets(values, alpha, mu):
    def cost(theta):
        return alpha * float(theta.count_nonzero()) + mu / 2 * float((values - theta).square().sum())

    best = min(cost(values * support) for support in supports(len(values)))
    assert cost(lc.hard_threshold(values, alpha, mu)) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("mu", [0.2, 1.0, 7.0])
@pytest.mark.parametrize(
    ("step", "norm"), [(lc.soft_threshold, lambda theta: abs(theta)), (lc.shrink, lambda theta: theta**2)]
)
def test_l1_and_l2_penalties_against_a_scalar_solver(step, norm, alpha, mu):
    values = np.random.default_rng(0).normal(scale=2, size=8)
    theirs = [
        optimize.minimize_scalar(
            lambda theta, v=v: alpha * norm(theta) + mu / 2 * (v - theta) ** 2, bounds=(-9, 9), method="bounded",
            options={"xatol": 1e-10},
        ).x
        for v in values
    ]  # fmt: skip
    assert step(torch.tensor(values), alpha, mu).numpy() == pytest.approx(theirs, abs=1e-6)


# --- C steps, edges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [lc.keep_top, lc.project_l1, lc.project_l2])
def test_kappa_at_its_ends(step):
    values = torch.tensor([0.3, -2.0, 2.0, 0.0, -1e-30])
    assert step(values, 0).tolist() == [0] * 5
    assert torch.equal(step(values, 5), values)  # all five, and more than either norm
    assert torch.equal(step(values, 6), values)
    assert step(torch.empty(0), 0).shape == step(torch.empty(0), 3).shape == (0,)
    assert step(torch.zeros(3), 0).tolist() == [0] * 3


def test_a_radius_that_vanishes_beside_the_values():
    assert not lc.project_l1(torch.tensor([1e8, -1e8, 3.0]), 1e-20).any()


@pytest.mark.parametrize("step", [lc.hard_threshold, lc.soft_threshold, lc.shrink])
def test_penalties_at_their_ends(step):
    values = torch.tensor([0.3, -2.0, 2.0, 0.0])
    assert torch.equal(step(values, 0.0, 1.0), values)
    assert float(step(values, 1e12, 1.0).abs().max()) < 1e-6
    assert step(torch.empty(0), 1.0, 1.0).shape == (0,)


def test_ties_are_kept_from_the_front():
    assert lc.keep_top(torch.tensor([1.0, -2.0, 2.0, 2.0]), 2).tolist() == [0, -2, 2, 0]
    assert lc.project_l1(torch.tensor([2.0, -2.0, 1.0]), 2.0).tolist() == [1, -1, 0]
    assert lc.hard_threshold(torch.tensor([2.0, -2.0]), 2.0, 1.0).tolist() == [0, 0]  # |w| > 2, not >=


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad):
    values = torch.tensor([1.0, bad])
    for step in lc.CONSTRAINTS.values():
        with pytest.raises(BarError, match="not finite"):
            step(values, 1)
    for step in lc.PENALTIES.values():
        with pytest.raises(BarError, match="not finite"):
            step(values, 1.0, 1.0)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "1", None])
def test_numbers_out_of_range_are_refused(bad):
    for step in lc.CONSTRAINTS.values():
        with pytest.raises(BarError, match="at least 0"):
            step(torch.ones(3), bad)
    for step in lc.PENALTIES.values():
        with pytest.raises(BarError, match="alpha must be"):
            step(torch.ones(3), bad, 1.0)
        with pytest.raises(BarError, match="mu one above 0"):
            step(torch.ones(3), 1.0, bad)


# --- the method on problems whose solution is known ----------------------------------------------------------------


class LeastSquares:
    """1/(2 n) ||y - X w||^2 with an exact L step, so that what is left to go wrong is the method."""

    def __init__(self, X, y, start=None):
        self.X, self.y = torch.as_tensor(X), torch.as_tensor(y)
        self.gram, self.moment = self.X.T @ self.X / len(y), self.X.T @ self.y / len(y)
        self.network = nn.Linear(self.X.shape[1], 1, bias=False, dtype=torch.float64)
        start = torch.linalg.lstsq(self.X, self.y).solution if start is None else start
        self.network.weight.data.copy_(start)

    def loss(self, w):
        return float((self.y - self.X @ w).square().mean() / 2)

    def solve(self, steps, **options):
        pruner = LearningCompression(self.network, **({"factor": 1} | options))
        for step in range(steps):
            (gradient,) = torch.autograd.grad(pruner(step), self.network.weight)
            # the term is quadratic: its gradient at w says where it draws w to
            target = self.network.weight.detach() - gradient / pruner.mu
            system = self.gram + pruner.mu * torch.eye(len(self.gram))
            self.network.weight.data.copy_(torch.linalg.solve(system, self.moment + pruner.mu * target.squeeze(0)))
            self.gap = pruner.end_epoch()["gap"]
        return pruner.cut().weight.detach().squeeze(0).clone()


def digits_problem():
    X, y = load_digits(return_X_y=True)
    X = X[:300] / 16
    X = X[:, X.std(0) > 0.1]
    return X - X.mean(0), y[:300] - y[:300].mean()


@pytest.mark.parametrize("alpha", [0.02, 0.1])
def test_l1_forms_agree_at_matching_kappa_and_alpha(alpha):
    """With the penalty's solution for kappa, the constraint gives it too; the first is the lasso of another library."""
    X, y = digits_problem()
    lasso = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(X, y).coef_
    assert 0 < np.count_nonzero(lasso) < len(lasso)
    penalty = LeastSquares(X, y).solve(150, form="penalty", norm=1, strength=alpha, mu=0.005, growth=1.05)
    assert penalty.numpy() == pytest.approx(lasso, abs=1e-4)
    kappa = float(penalty.abs().sum())
    constraint = LeastSquares(X, y).solve(150, form="constraint", norm=1, strength=kappa, mu=0.005, growth=1.05)
    assert constraint.numpy() == pytest.approx(penalty.numpy(), abs=1e-4)


def test_l2_forms_agree_at_matching_kappa_and_alpha():
    X, y = digits_problem()
    ridge = Ridge(alpha=0.05 * 2 * len(y), fit_intercept=False, tol=1e-12).fit(X, y).coef_
    penalty = LeastSquares(X, y).solve(150, form="penalty", norm=2, strength=0.05, mu=0.005, growth=1.05)
    assert penalty.numpy() == pytest.approx(ridge, abs=1e-4)
    kappa = float(penalty.norm())
    constraint = LeastSquares(X, y).solve(150, form="constraint", norm=2, strength=kappa, mu=0.005, growth=1.05)
    assert constraint.numpy() == pytest.approx(penalty.numpy(), abs=1e-4)


def test_l0_forms_agree_where_the_best_subset_is_known():
    """With orthonormal columns the loss is 1/2 ||w - c||^2, and the largest of c are the best subset."""
    generator = np.random.default_rng(0)
    n, d, kept = 40, 12, 4
    X = np.linalg.qr(generator.normal(size=(n, d)))[0] * math.sqrt(n)
    c = generator.normal(size=d)
    best = np.where(abs(c) >= np.sort(abs(c))[-kept], c, 0)
    alpha = np.sort(abs(c))[-kept - 1 : -kept + 1].mean() ** 2 / 2  # its threshold, between the 4th and the 5th
    problem = LeastSquares(X, X @ c)
    constraint = problem.solve(60, factor=d / kept, mu=0.01, growth=1.2)
    assert constraint.numpy() == pytest.approx(best, abs=2e-3)
    problem = LeastSquares(X, X @ c)
    penalty = problem.solve(60, form="penalty", norm=0, strength=alpha, mu=0.01, growth=1.2)
    assert penalty.numpy() == pytest.approx(best, abs=2e-3)


def test_l0_constraint_beats_magnitude_pruning_of_equal_size():
    """Regression on correlated inputs, where magnitudes mislead; also against refitting what magnitudes keep."""
    worse, ratios = 0, []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        X = generator.normal(size=(60, 10)) @ generator.normal(size=(10, 10))
        truth = np.where(np.arange(10) < 3, generator.normal(size=10), 0)
        y = X @ truth + 0.3 * generator.normal(size=60)
        problem = LeastSquares(X, y)
        start = problem.network.weight.detach().clone()
        ours = problem.solve(120, factor=10 / 3, mu=0.05, growth=1.1)
        assert ours.count_nonzero() == 3
        problem.network.weight.data.copy_(start)
        one_shot = MagnitudePruning(problem.network, 10 / 3).cut().weight.detach().squeeze(0)
        support = one_shot != 0
        refitted = torch.zeros(10, dtype=torch.float64)
        refitted[support] = torch.linalg.lstsq(problem.X[:, support], problem.y).solution
        assert problem.loss(ours) < problem.loss(one_shot)
        worse += problem.loss(ours) > problem.loss(refitted) * 1.0001
        ratios.append(problem.loss(ours) / problem.loss(refitted))
    assert worse == 0
    assert sum(ratio < 0.9 for ratio in ratios) >= 4


# --- the class -----------------------------------------------------------------------------------------------------


def test_one_round_by_hand():
    network = nn.Linear(3, 1, bias=False)
    network.weight.data.copy_(torch.tensor([[3.0, -1.0, 2.0]]))
    pruner = LearningCompression(network, factor=1.5, mu=0.5, growth=2.0)  # two weights stay
    assert pruner.theta[0].tolist() == [[3, 0, 2]]
    assert pruner(0).item() == pytest.approx(0.25 * 1)
    network.weight.data.copy_(torch.tensor([[4.0, -3.0, 1.0]]))
    assert pruner(1).item() == pytest.approx(0.25 * (1 + 9 + 1))
    record = pruner.end_epoch()
    assert record == {"size": 2, "budget": 2, "gap": pytest.approx(math.sqrt(1 / 26)), "mu": 0.5}
    assert pruner.theta[0].tolist() == [[4, -3, 0]]  # the second has come back, the third is out
    assert pruner.mu == 1.0
    # lambda = -0.5 (w - theta) = (0, 0, -0.5): the target of the third is -0.5 / 1
    assert pruner(2).item() == pytest.approx(0.5 * 1.5**2)
    network.weight.data.copy_(torch.tensor([[4.0, -3.0, 2.9]]))
    assert pruner.end_epoch()["size"] == 2
    assert pruner.theta[0].tolist() == [[4, 0, pytest.approx(3.4)]]  # of w - lambda / mu, 3.4 beats 3


@pytest.mark.parametrize("name", ["plain", "branches", "resnet-bottleneck"])
@pytest.mark.parametrize("per_layer", [False, True])
def test_l0_keeps_exactly_the_budget(name, per_layer):
    torch.manual_seed(0)
    network = build(name)
    pruner = LearningCompression(network, 3.7, mu=0.1, per_layer=per_layer)
    assert pruner.limit == math.floor(pruner.full / 3.7)
    for weight in network.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    assert pruner.end_epoch()["size"] == pruner.limit
    counts = [int(weight.count_nonzero()) for weight in weights_of(pruner.cut()).values()]
    assert sum(counts) == pruner.limit
    sizes = [weight.numel() for weight in weights_of(network).values()]
    even = all(abs(c - s * pruner.limit / pruner.full) < 1 for c, s in zip(counts, sizes, strict=True))
    assert even == per_layer
    assert pruner.cut_record() == {
        "size": pruner.limit, "size_before_settling": pruner.limit, "budget": pruner.limit
    }  # fmt: skip


@pytest.mark.parametrize("norm", [1, 2])
def test_radii_of_layers_add_up_to_one(norm):
    torch.manual_seed(0)
    pruner = LearningCompression(build("plain"), 1, "constraint", norm, strength=1.0, per_layer=True)
    norms = torch.stack([torch.linalg.vector_norm(theta, norm) for theta in pruner.theta])
    assert float(torch.linalg.vector_norm(norms, norm)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("form", "norm", "strength"), [("penalty", 0, 1e-6), ("penalty", 2, 0.01), ("constraint", 1, 9)]
)
def test_what_is_too_large_at_the_end_is_cut_to_the_budget(form, norm, strength):
    torch.manual_seed(0)
    network = build("plain")
    pruner = LearningCompression(network, 8, form, norm, strength, mu=1.0)
    theta = torch.cat([t.flatten() for t in pruner.theta])
    assert theta.count_nonzero() > pruner.limit
    weights = torch.cat([weight.detach().flatten() for weight in weights_of(pruner.cut()).values()])
    assert torch.equal(weights, lc.keep_top(theta, pruner.limit))
    assert pruner.cut_record()["size_before_settling"] == theta.count_nonzero()


def test_a_strong_penalty_may_keep_less_than_the_budget():
    torch.manual_seed(0)
    pruner = LearningCompression(build("plain"), 2, "penalty", 0, strength=0.01, mu=1.0)
    size = pruner.end_epoch()["size"]
    pruner.cut()
    assert 0 < size < pruner.limit
    assert pruner.cut_record()["size"] == size


def test_an_l_step_may_last_several_epochs():
    pruner = LearningCompression(build("plain"), 2, mu=1.0, growth=1.5, every=3)
    assert [pruner.end_epoch()["mu"] for _ in range(8)] == [1, 1, 1, 1.5, 1.5, 1.5, 2.25, 2.25]


DIGITS = bar.data.load("digits", size=8, limit=160)
SETTINGS = dataclasses.replace(PRESETS["quick"], prune_epochs=3, finetune_epochs=2, cooldown_epochs=1)


def training(seed=0, **options):
    torch.manual_seed(seed)
    network = bar.models.build("wrn-10-1", 10, DIGITS.input_size)
    pruner = LearningCompression(network, 10, mu=0.01, **options)
    generator = torch.Generator().manual_seed(seed)
    return Training(network, DIGITS, SETTINGS.phases_of_pruning, SETTINGS, generator, pruner=pruner)


def test_a_last_l_step_that_is_cut_short_counts():
    """The weights that are kept come from the last L step, whether a C step has followed it or not."""
    net = nn.Linear(6, 4, bias=False)
    pruner = LearningCompression(net, 1, mu=0.5, every=5)
    with torch.no_grad():
        net.weight += 1
    expected = net.weight.detach().clone()
    pruner.end_epoch()
    torch.testing.assert_close(pruner.cut().weight, expected)


def test_trains_to_its_budget_and_stays_there():
    run = training()
    limit = run.pruner.limit
    records = list(run)
    assert [r["phase"] for r in records] == ["prune"] * 3 + ["cut"] + ["finetune"] * 2 + ["cooldown"]
    assert all(r["size"] == r["budget"] == limit for r in records)
    weights = weights_of(run.network)
    assert sum(int(weight.count_nonzero()) for weight in weights.values()) == limit
    assert all(torch.equal(weight != 0, kept) for weight, kept in zip(weights.values(), run.pruner._kept, strict=True))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stop", [2, 4, 5])
def test_goes_on_where_it_stopped(stop, every, tmp_path):
    """Bit by bit, before and after the cut, from a file that is loaded without unpickling code."""
    whole = training(every=every)
    records = list(whole)
    broken = training(every=every)
    for _ in zip(range(stop), broken, strict=False):
        pass
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    other = training(seed=1, every=every)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = list(other)
    assert [r["loss"] for r in rest if "loss" in r] == [r["loss"] for r in records[-len(rest) :] if "loss" in r]
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), other.network.parameters(), strict=True))


def test_watching_changes_nothing_and_shows_theta():
    torch.manual_seed(0)
    network = build("plain")
    pruner = LearningCompression(network, 5, mu=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    watched = weights_of(pruner.watched())
    assert all(torch.equal(theta, weight) for theta, weight in zip(pruner.theta, watched.values(), strict=True))
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert pruner._kept is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.5}, "at least 1, not 0.5"),
        ({"form": "penalised"}, "constraint or penalty"),
        ({"norm": 3}, "0, 1 or 2"),
        ({"strength": 3.0}, "leave out the strength"),
        ({"norm": 1}, "l1 in constraint form needs a strength"),
        ({"form": "penalty"}, "l0 in penalty form needs a strength"),
        ({"form": "penalty", "strength": -1.0}, "at least 0, not -1.0"),
        ({"mu": 0.0}, "mu must be above 0"),
        ({"growth": 0.9}, "growth at least 1, not 1e-05 and 0.9"),
        ({"every": 0}, "whole number of epochs"),
        ({"factor": 100, "per_layer": True}, "leaves none to layer"),
        ({"factor": 100, "per_layer": True, "form": "penalty", "strength": 1e-3}, "leaves none to layer"),
    ],
)
def test_bad_requests_are_refused(options, message):
    network = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(36, 10))
    with pytest.raises(BarError, match=message):
        LearningCompression(network, **({"factor": 2, "mu": 1e-5} | options))


def test_weights_that_are_no_numbers_are_refused():
    network = build("plain")
    pruner = LearningCompression(network, 2)
    network.a.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(BarError, match="not finite"):
        pruner.end_epoch()

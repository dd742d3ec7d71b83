"""The hard concrete distribution against scipy: logit(s) is a logistic variable, the rest follows from that."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from bar.errors import BarError
from bar.gates import Gate
from bar.hard_concrete import HardConcrete, threshold

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

log_alphas = st.floats(-12, 12)
betas = st.floats(0.1, 2)
gammas = st.floats(-1, -0.01)
zetas = st.floats(1.01, 2)
inside = st.floats(0.001, 0.999)


def build(log_alpha, *shape):
    return HardConcrete(torch.tensor(log_alpha, dtype=torch.float64), *shape)


def logistic(log_alpha, beta):
    """Supp. eq. 3 says that logit(s) is logistic, centred at log alpha / beta, with scale 1 / beta."""
    return scipy.stats.logistic(loc=log_alpha / beta, scale=1 / beta)


def unstretch(z, gamma, zeta):
    return (z - gamma) / (zeta - gamma)


@given(log_alphas, betas, gammas, zetas, inside)
def test_cdf_and_masses_are_those_of_a_clamped_logistic(log_alpha, beta, gamma, zeta, z):
    gate = build(log_alpha, beta, gamma, zeta)
    oracle = logistic(log_alpha, beta)
    assert gate.cdf(z).item() == pytest.approx(oracle.cdf(logit(unstretch(z, gamma, zeta))), abs=1e-12)
    assert gate.prob_zero.item() == pytest.approx(oracle.cdf(logit(unstretch(0, gamma, zeta))), rel=1e-9)
    assert gate.prob_one.item() == pytest.approx(oracle.sf(logit(unstretch(1, gamma, zeta))), rel=1e-9)
    assert gate.prob_active.item() == pytest.approx(oracle.sf(logit(unstretch(0, gamma, zeta))), rel=1e-9)
    assert gate.cdf(-1e-9).item() == 0
    assert gate.cdf(0.0).item() == pytest.approx(gate.prob_zero.item(), rel=1e-12)
    assert gate.cdf(1.0).item() == 1
    assert gate.cdf(1 - 1e-12).item() + gate.prob_one.item() == pytest.approx(1, abs=1e-9)


@given(log_alphas, betas, gammas, zetas, inside)
def test_density_is_supplementary_equation_2(log_alpha, beta, gamma, zeta, z):
    alpha, s = math.exp(log_alpha), unstretch(z, gamma, zeta)
    numerator = beta * alpha * s ** (-beta - 1) * (1 - s) ** (-beta - 1)
    q = numerator / (alpha * s**-beta + (1 - s) ** -beta) ** 2
    gate = build(log_alpha, beta, gamma, zeta)
    assert gate.density(z).item() == pytest.approx(q / (zeta - gamma), rel=1e-8)
    assert gate.log_prob(z).exp().item() == pytest.approx(gate.density(z).item(), rel=1e-12)


@given(log_alphas, betas, inside)
def test_density_is_the_slope_of_the_cdf(log_alpha, beta, z):
    gate = build(log_alpha, beta)
    point = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gate.cdf(point), point)
    assert slope.item() == pytest.approx(gate.density(z).item(), rel=1e-9, abs=1e-300)


@given(log_alphas, st.floats(0, 1))
def test_icdf_inverts_the_cdf_between_the_masses_and_sits_on_them_elsewhere(log_alpha, q):
    gate = build(log_alpha)
    z = gate.icdf(q).item()
    if q < gate.prob_zero.item() - 1e-9:
        assert z == 0
    elif q > 1 - gate.prob_one.item() + 1e-9:
        assert z == 1
    elif 0 < z < 1:
        assert gate.cdf(z).item() == pytest.approx(q, abs=1e-9)


@given(log_alphas, st.floats(0.1, 1), gammas, zetas)
def test_moments_agree_with_scipy(log_alpha, beta, gamma, zeta):
    gate = build(log_alpha, beta, gamma, zeta)

    def value(x):  # z where logit(s) = x
        return expit(x) * (zeta - gamma) + gamma

    low, high = logit(unstretch(0, gamma, zeta)), logit(unstretch(1, gamma, zeta))
    oracle = logistic(log_alpha, beta)

    def moment(order):
        peak = [log_alpha / beta] if low < log_alpha / beta < high else None
        area, _ = scipy.integrate.quad(
            lambda x: value(x) ** order * oracle.pdf(x), low, high, points=peak, epsabs=1e-11, limit=200
        )
        return area + oracle.sf(high)

    assert gate.mean.item() == pytest.approx(moment(1), abs=1e-8)
    assert gate.variance.item() == pytest.approx(moment(2) - moment(1) ** 2, abs=1e-8)


@pytest.mark.parametrize("beta", [2.0, 5.0, 10.0])
def test_mean_keeps_its_promise_for_a_large_beta(beta):
    for log_alpha in (-30.0, -4.0, 0.3, 4.0, 30.0):
        gate = build(log_alpha, beta)
        area, _ = scipy.integrate.quad(lambda z, g=gate: 1 - g.cdf(z).item(), 0, 1, epsabs=1e-10, limit=500)
        assert gate.mean.item() == pytest.approx(area, abs=1e-6)


def test_mean_and_samples_are_differentiable_in_log_alpha():
    log_alpha = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: HardConcrete(x).mean, log_alpha)
    assert torch.autograd.gradcheck(lambda x: HardConcrete(x).variance, log_alpha)
    assert torch.autograd.gradcheck(lambda x: HardConcrete(x).prob_active, log_alpha)

    def draw(x):
        torch.manual_seed(0)
        return HardConcrete(x).rsample((5,))

    assert torch.autograd.gradcheck(draw, log_alpha)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_samples_follow_the_distribution(log_alpha):
    torch.manual_seed(0)
    gate, n = build(log_alpha), 20_000
    z = gate.rsample((n,)).numpy()
    # Point masses within five standard errors; the continuous part by Kolmogorov and Smirnov.
    for share, mass in (((z == 0).mean(), gate.prob_zero.item()), ((z == 1).mean(), gate.prob_one.item())):
        assert abs(share - mass) < 5 * math.sqrt(mass * (1 - mass) / n)
    p0, between = gate.prob_zero.item(), 1 - gate.prob_zero.item() - gate.prob_one.item()
    test = scipy.stats.kstest(
        z[(z > 0) & (z < 1)], lambda x: np.clip((gate.cdf(torch.as_tensor(x)).numpy() - p0) / between, 0, 1)
    )
    assert test.pvalue > 1e-3
    assert z.mean() == pytest.approx(gate.mean.item(), abs=5 * math.sqrt(gate.variance.item() / n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_samples_and_their_gradients_are_finite_for_any_log_alpha(dtype):
    torch.manual_seed(0)
    log_alpha = torch.tensor([-1e4, -80.0, 0.0, 80.0, 1e4], dtype=dtype, requires_grad=True)
    z = HardConcrete(log_alpha).rsample((2000,))
    z.sum().backward()
    assert z.dtype == dtype
    assert ((z >= 0) & (z <= 1)).all()
    assert log_alpha.grad.isfinite().all()
    assert (z[:, 0] == 0).all()
    assert (z[:, -1] == 1).all()


def test_half_precision_keeps_the_rare_samples():
    torch.manual_seed(0)
    gate = HardConcrete(torch.tensor(-7.0, dtype=torch.bfloat16))
    share = (gate.rsample((50_000,)) > 0).float().mean().item()
    assert share == pytest.approx(build(-7.0).prob_active.item(), rel=0.3)  # 0.0045, five standard errors


def test_the_noise_is_never_infinite(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape, **options))
    assert build(200.0).rsample() == 1
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.ones(shape, **options))
    assert build(-200.0).rsample() == 0


def test_the_density_outside_has_a_gradient_too():
    log_alpha = torch.zeros(5, requires_grad=True)
    HardConcrete(log_alpha).density(torch.tensor([-5.0, 0.0, 0.5, 1.0, 5.0])).sum().backward()
    assert log_alpha.grad.isfinite().all()


@pytest.mark.parametrize("log_alpha", [-200.0, -80.0, 80.0, 200.0])
def test_log_prob_survives_an_extreme_log_alpha_where_the_density_underflows(log_alpha):
    gate = HardConcrete(torch.tensor(log_alpha, requires_grad=True))
    z = torch.tensor([0.0, 0.1, 0.9, 1.0])
    log_prob = gate.log_prob(z)
    # Far out, the density falls like exp(-|log alpha|), and so does the mass at the wrong end.
    assert log_prob.isfinite().all()
    assert log_prob.min().item() == pytest.approx(-abs(log_alpha), abs=5)
    assert gate.density(z).isfinite().all()
    log_prob.sum().backward()
    assert gate.log_alpha.grad.isfinite()


def test_log_prob_is_a_probability_distribution():
    gate = build(0.7)
    area, _ = scipy.integrate.quad(lambda z: gate.log_prob(z).exp().item(), 0, 1, epsabs=1e-10)
    assert area + gate.log_prob(0.0).exp().item() + gate.log_prob(1.0).exp().item() == pytest.approx(1, abs=1e-9)
    assert gate.log_prob(-0.1).item() == gate.log_prob(1.1).item() == -math.inf
    assert gate.density(-0.1).item() == gate.density(1.0).item() == 0


def test_the_masses_at_log_alpha_zero_are_not_the_papers():
    assert round(build(0.0).prob_zero.item(), 3) == round(build(0.0).prob_one.item(), 3) == 0.168
    assert round(build(0.0, 1 / 2).prob_zero.item(), 2) == 0.23  # what supp. 7.1 prints


def test_the_papers_start_is_83_percent_active():
    gate = Gate(1000)
    assert ((gate.log_alpha >= 0) & (gate.log_alpha < 0.01)).all()
    assert gate.distribution().prob_active.mean().item() == pytest.approx(0.83, abs=0.005)


@given(log_alphas, st.floats(0.1, 2))
def test_median_is_the_quantile_of_one_half_and_l0_drops_beta(log_alpha, beta):
    gate = build(log_alpha, beta)
    assert gate.median.item() == pytest.approx(gate.icdf(0.5).item(), abs=1e-15)
    assert gate.l0_estimate.item() == pytest.approx(build(log_alpha, 1.0).median.item(), abs=1e-15)


def test_thresholds():
    assert round(threshold("median"), 3) == -1.599
    assert round(threshold("l0"), 3) == -2.398
    assert build(threshold("median")).prob_active.item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("rule", ["median", "l0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_alive_means_a_positive_value_to_the_last_bit(rule, dtype):
    border = torch.tensor(threshold(rule), dtype=dtype)
    around = border + torch.linspace(-100, 100, 401, dtype=dtype) * torch.finfo(dtype).eps
    gate = Gate(401 + 41, rule=rule).to(dtype)
    gate.log_alpha.data = torch.cat([around, torch.linspace(-6, 6, 41, dtype=dtype)])
    assert (gate.alive == (gate.value > 0)).all()
    assert (gate.alive == (gate.log_alpha > threshold(rule))).all()
    distribution = gate.distribution()
    expected = distribution.median if rule == "median" else distribution.l0_estimate
    assert (gate.value - expected).abs().max() < 100 * torch.finfo(dtype).eps
    assert gate.alive.any()
    assert not gate.alive.all()


def test_a_closed_gate_of_the_median_rule_is_more_often_closed_than_open():
    gate = Gate(41)
    gate.log_alpha.data = torch.linspace(-6, 6, 41)
    assert (gate.alive == (gate.distribution().prob_active > 0.5)).all()


def test_spread_is_reproducible_and_stays_a_parameter():
    first, second = (Gate(100).spread_(-1, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert (first.log_alpha == second.log_alpha).all()
    assert -1 <= first.log_alpha.min() < 0
    assert 4 < first.log_alpha.max() <= 5
    assert isinstance(first.log_alpha, torch.nn.Parameter)
    assert first.log_alpha.requires_grad
    assert list(first.state_dict()) == ["log_alpha", "cut"]


def test_it_is_a_torch_distribution():
    gate = HardConcrete([0.0, 1.0])
    assert gate.batch_shape == (2,)
    wide = gate.expand(torch.Size((3, 2)))
    assert wide.batch_shape == wide.mean.shape == wide.sample().shape == (3, 2)
    assert gate.sample((5,)).shape == (5, 2)
    assert not HardConcrete(torch.zeros(2, requires_grad=True)).sample().requires_grad
    assert torch.distributions.Independent(gate, 1).log_prob(torch.tensor([0.0, 1.0])).shape == ()
    assert gate.cdf(torch.tensor([[0.1], [0.2], [0.3]])).shape == (3, 2)
    assert HardConcrete(0).mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"gamma": 0.0}, "gamma"),
        ({"gamma": -math.inf}, "gamma"),
        ({"zeta": 1.0}, "zeta"),
        ({"log_alpha": math.nan}, "log_alpha"),
    ],
)
def test_bad_parameters_are_refused_by_name(arguments, word):
    with pytest.raises(BarError, match=word):
        HardConcrete(**({"log_alpha": 0.0} | arguments))


def test_bad_input_is_refused_after_something_was_compiled():
    """torch.compile turns the validation of all distributions off, for good."""
    usual = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with pytest.raises(BarError, match=r"1\.5"):
            build(0.0).icdf(1.5)
    finally:
        torch.distributions.Distribution.set_default_validate_args(usual)


def test_other_bad_input_is_refused():
    with pytest.raises(BarError, match="did you mean 'median'"):
        Gate(3, rule="medain")
    with pytest.raises(BarError, match="at least one feature"):
        Gate(0)
    with pytest.raises(BarError, match="low <= high"):
        Gate(3).spread_(2, 1)
    with pytest.raises(BarError, match=r"1\.5"):
        build(0.0).icdf(1.5)

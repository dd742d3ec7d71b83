"""The barrier against equation 5 in exact rational arithmetic, and autograd against its derivative by hand."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bar.barriers import barrier, log_barrier
from bar.errors import BarError

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

whole = st.integers(1, 10**7)


@given(whole, whole, whole)
def test_equation_5_and_its_derivative_in_all_three_regions(volume, a, b):
    assume(a < b)
    V = torch.tensor(float(volume), dtype=torch.float64, requires_grad=True)
    f = barrier(V, a, b)
    f.backward()
    if volume <= a:
        expected, slope = 0, 0
    elif volume >= b:
        expected, slope = math.inf, 0
    else:
        c = Fraction(volume - a, b - a)
        expected = Fraction((volume - a) ** 2, (b - volume) * (b - a))
        slope = c * (2 - c) / (1 - c) ** 2 / (b - a)  # g'(c) dc/dV
    assert f.item() == pytest.approx(float(expected), rel=1e-12)
    assert V.grad.item() == pytest.approx(float(slope), rel=1e-12)


def test_gradcheck_inside_for_all_arguments():
    V, a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([1.2, 1.5, 1.9], 1.0, 2.0))
    assert torch.autograd.gradcheck(barrier, (V, a, b))
    assert torch.autograd.gradcheck(lambda V, b: log_barrier(V, b, 3.0), (V, torch.full_like(V, 2.5).requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_never_become_nan(dtype):
    V = torch.tensor([-1e30, 0, 1, math.nextafter(1, 2), 1.5, 2, 2.1, 1e30, math.inf], dtype=dtype, requires_grad=True)
    a, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (1.0, 2.0))
    f = barrier(V, a, b)
    f[f.isfinite()].sum().backward()
    assert not f.isnan().any()
    assert all(x.grad.isfinite().all() for x in (V, a, b))
    V.grad = None
    barrier(V, 1.0, 2.0).sum().backward()  # the infinite ones included
    assert V.grad.isfinite().all()
    V.grad = None
    log_barrier(V, 2.0, 5.0).sum().backward()
    assert not V.grad.isnan().any()


def test_once_continuously_differentiable_at_a():
    step = torch.tensor([-1e-6, 0, 1e-6], dtype=torch.float64)
    V = (3 + step).requires_grad_()
    f = barrier(V, 3.0, 4.0)
    f.sum().backward()
    assert f[:2].tolist() == [0, 0]
    assert V.grad[:2].tolist() == [0, 0]
    assert f[2].item() == pytest.approx(1e-12, rel=1e-5)
    assert V.grad[2].item() == pytest.approx(2e-6, rel=1e-5)


@given(st.floats(0.01, 0.99), st.floats(1e-3, 1e6))
def test_only_the_place_between_the_margins_matters(c, scale):
    expected = c**2 / (1 - c)
    assert barrier(5 + c, 5, 6).item() == pytest.approx(expected, rel=1e-9)
    assert barrier(c * scale, 0, scale).item() == pytest.approx(expected, rel=1e-9)


def test_broadcasts_and_keeps_the_dtype():
    V = torch.linspace(0, 1, 5)
    f = barrier(V, torch.tensor([[0.1], [0.2]]), torch.tensor([[0.5], [0.9]]))
    assert f.shape == (2, 5)
    assert f.dtype == torch.float32
    assert barrier(3, 1, 4).dtype == torch.float64
    assert barrier(torch.tensor(3_112_959), 3_112_000, 3_112_960).item() == pytest.approx(959**2 / 960)
    for row, (a, b) in zip(f, ((0.1, 0.5), (0.2, 0.9)), strict=True):
        torch.testing.assert_close(row, barrier(V, a, b))


def test_a_volume_that_is_not_a_number_is_not_taken_for_a_respected_budget():
    assert barrier(math.nan, 1, 2).isnan()
    assert log_barrier(math.nan, 1, 2).isnan()


@given(st.floats(-5, 0.99), st.floats(0.1, 100))
def test_log_barrier(volume, t):
    assert log_barrier(volume, 1.0, t).item() == pytest.approx(-math.log(1 - volume) / t, rel=1e-12, abs=1e-14)


def test_log_barrier_is_infinite_from_the_budget_on():
    assert log_barrier(torch.tensor([1.0, 2.0]), 1.0, 1.0).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(("a", "b"), [(2, 1), (1, 1), (math.nan, 1), (0, math.inf), (-math.inf, 0)])
def test_impossible_margins_are_refused(a, b):
    with pytest.raises(BarError, match="margin"):
        barrier(0.5, a, b)


def test_impossible_log_barriers_are_refused():
    with pytest.raises(BarError, match="hardness"):
        log_barrier(0.5, 1, 0)
    with pytest.raises(BarError, match="budget"):
        log_barrier(0.5, math.nan, 1)

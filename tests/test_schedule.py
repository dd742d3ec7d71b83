"""The transitions against the paper's formulas, evaluated with 50 digits by mpmath."""

import functools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bar.errors import BarError
from bar.schedule import SCHEDULES, exponential, linear, margins, transition

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

times = st.floats(0, 1)
volumes = st.floats(1, 1e9)


def supplementary_equation_1(t, d):
    with mpmath.workdps(50):
        t, d = mpmath.mpf(t), mpmath.mpf(d)

        def sigmoid(x):
            return 1 / (1 + mpmath.exp(-x))

        delta = sigmoid(-d / 2)
        return float((sigmoid(d * (t - 0.5)) - delta) / (1 - 2 * delta))


@given(times, st.floats(1e-12, 200))
def test_transition_is_supplementary_equation_1(t, hardness):
    assert transition(t, hardness) == pytest.approx(supplementary_equation_1(t, hardness), abs=1e-14)


@given(times, st.sampled_from([0.0, 5e-324, 1e-300, 1e-50, 1e-20, 1e-8, 1e-5]))
def test_transition_becomes_linear_as_the_hardness_vanishes(t, hardness):
    assert transition(t, hardness) == pytest.approx(t, abs=1e-10)
    assert transition(torch.tensor(t), hardness).item() == pytest.approx(t, abs=1e-6)


def test_transition_becomes_a_step_as_the_hardness_grows():
    assert [transition(t, 1e6) for t in (0.49, 0.5, 0.51)] == pytest.approx([0, 0.5, 1], abs=1e-12)


@given(times)
def test_transition_is_symmetric(t):
    assert transition(t) + transition(1 - t) == pytest.approx(1, abs=1e-15)


@given(times, st.floats(1e-6, 50))
def test_exponential_is_its_formula(t, rate):
    with mpmath.workdps(50):
        expected = float((1 - mpmath.exp(-mpmath.mpf(rate) * t)) / (1 - mpmath.exp(-mpmath.mpf(rate))))
    assert exponential(t, rate) == pytest.approx(expected, rel=1e-12)


@given(times, st.sampled_from([0.0, 5e-324, 1e-50, 1e-17, 1e-12]))
def test_exponential_becomes_linear_as_the_rate_vanishes(t, rate):
    assert exponential(t, rate) == pytest.approx(t, abs=1e-10)
    assert exponential(torch.tensor(t), rate).item() == pytest.approx(t, abs=1e-6)


@given(times, st.floats(1.5, 100))
def test_exponential_at_the_log_of_the_factor_shrinks_b_by_equal_ratios(t, factor):
    _, b = margins(t, factor, 1.0, functools.partial(exponential, rate=math.log(factor)))
    assert b == pytest.approx(factor ** (1 - t), rel=1e-9)


def test_slopes_are_what_the_documentation_says():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    (sigmoid,) = torch.autograd.grad(transition(t).sum(), t)
    (exponential_,) = torch.autograd.grad(exponential(t).sum(), t)
    middle = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    (everywhere,) = torch.autograd.grad(transition(middle).sum(), middle)
    assert everywhere.max().item() == pytest.approx(sigmoid[1].item())
    near = torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64, requires_grad=True)
    (start, end) = torch.autograd.grad(exponential(near).sum(), near)[0].tolist()
    assert start / sigmoid[1].item() == pytest.approx(2, abs=0.05)
    assert round(end, 2) == 0.03
    assert round(torch.autograd.grad(transition(near).sum(), near)[0][1].item(), 2) == 0.07
    assert exponential_.isfinite().all()


@pytest.mark.parametrize("name", SCHEDULES)
@given(full=volumes, share=st.floats(1e-6, 1), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_ends_are_exact(name, full, share, dtype):
    budget = max(full * share, 1e-6)
    assert margins(0, full, budget, name) == (budget - 1e-4 * full, full)
    assert margins(1, full, budget, name) == (budget - 1e-4 * full, budget)
    a, b = margins(torch.tensor([0, 1], dtype=dtype), full, budget, name)
    assert a == budget - 1e-4 * full
    assert b.tolist() == torch.tensor([full, budget], dtype=dtype).tolist()


@given(st.floats(0, 100), st.sampled_from([torch.float32, torch.float64]))
def test_the_ends_of_tensors_are_exact_for_any_shape(number, dtype):
    ends = torch.tensor([0, 1], dtype=dtype)
    assert transition(ends, number).tolist() == [0, 1]
    assert exponential(ends, number).tolist() == [0, 1]


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=times, full=volumes, share=st.floats(0.001, 0.999))
def test_margins_are_equation_7_and_stay_in_order(name, t, full, share):
    budget = full * share
    a, b = margins(t, full, budget, name)
    T = SCHEDULES[name](t)
    assert 0 <= T <= 1
    assert b == pytest.approx(full - T * (full - budget), rel=1e-12)
    assert a < budget * (1 + 1e-12)
    assert budget * (1 - 1e-12) <= b <= full * (1 + 1e-12)
    assert a < b


@pytest.mark.parametrize("name", SCHEDULES)
def test_tensors_give_what_floats_give_and_b_never_rises(name):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    T = SCHEDULES[name](t)
    torch.testing.assert_close(T, torch.tensor([SCHEDULES[name](x) for x in t.tolist()], dtype=t.dtype))
    assert (T.diff() > 0).all()
    assert isinstance(SCHEDULES[name](0.3), float)
    assert (SCHEDULES[name](t.float()) <= 1).all()


def test_where_each_schedule_presses():
    """The sigmoid is behind the linear one in the first half and ahead in the second; the exponential always ahead."""
    for t in (0.1, 0.25, 0.4):
        assert transition(t) < linear(t) < exponential(t)
        assert transition(1 - t) > linear(1 - t)


def test_a_schedule_of_ones_own():
    assert margins(0.5, 100, 20, lambda t: t**2) == (20 - 0.01, 80)


@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, math.nan, torch.tensor([0.5, 1.5]), torch.tensor(math.nan)])
@pytest.mark.parametrize("function", [transition, linear, exponential, lambda t: margins(t, 10, 5)])
def test_times_outside_training_are_refused(function, t):
    with pytest.raises(BarError, match="between 0 and 1"):
        function(t)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_impossible_shapes_are_refused(bad):
    with pytest.raises(BarError, match="hardness"):
        transition(0.5, bad)
    with pytest.raises(BarError, match="rate"):
        exponential(0.5, bad)


@pytest.mark.parametrize(("full", "budget"), [(10, 0), (10, -1), (10, 11), (10, math.nan), (math.inf, 5)])
def test_impossible_budgets_are_refused(full, budget):
    with pytest.raises(BarError, match="budget"):
        margins(0.5, full, budget)


def test_unknown_schedules_name_the_nearest():
    with pytest.raises(BarError, match="did you mean 'sigmoid'"):
        margins(0.5, 10, 5, "sigmod")


@given(t=st.floats(0, 1), factor=st.floats(1.5, 100), follow=st.floats(0, 0.99))
def test_a_lower_margin_that_follows(t, factor, follow):
    """It is the paper's or a fraction of b, whichever is larger; below b, and at the end where the paper has it."""
    full, budget = 1000.0, 1000.0 / factor
    a, b = margins(t, full, budget, follow=follow)
    stays, same = margins(t, full, budget)
    assert b == same
    assert a == max(stays, follow * b) < b
    tensors = margins(torch.tensor(t, dtype=torch.float64), full, budget, follow=follow)
    torch.testing.assert_close(torch.stack([torch.as_tensor(m) for m in tensors]), torch.tensor([a, b]).double())
    assert margins(1.0, full, budget, follow=follow) == margins(1.0, full, budget) or follow * budget > stays


@pytest.mark.parametrize("follow", [-0.1, 1.0, math.nan])
def test_a_lower_margin_that_cannot_follow(follow):
    with pytest.raises(BarError, match=f"not {follow}"):
        margins(0.5, 10, 5, follow=follow)

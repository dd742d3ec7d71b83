"""The figures of notebooks 08 and 09: what is drawn is what was given or computed, and marks can be told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from bar import figures
from bar.errors import BarError

OPTIMUM = torch.tensor([1.0, 0.8], dtype=torch.float64)
CURVATURE = torch.tensor([[1.0, 0.5], [0.5, 4.0]], dtype=torch.float64)
METHODS = ["LC, l0 constraint", "LC, l0 penalty", "LC, l1 penalty", "MP", "MP+FT"]
PRUNED = pd.DataFrame(
    {"method": method, "kept": kept, "loss": (i + 1) * 0.01 / kept, "error": min(0.9, 0.01 * (i + 1) / kept)}
    for i, method in enumerate(METHODS)
    for kept in (0.3, 0.01, 0.1)
)
UNPRUNED = pd.Series({"loss": 0.005, "error": 0.02})
LAYERS = pd.DataFrame(
    {"method": method, "layer": layer, "kept": kept}
    for method, shares in {"LC": (0.4, 0.1, 0.0), "MP": (0.2, 0.02, 0.5)}.items()
    for layer, kept in zip(("features.0", "features.3", "classifier"), shares, strict=True)
)

FIGURES = {
    "two_weights": lambda: figures.two_weights(
        figures.compress_quadratic(OPTIMUM, CURVATURE, factor=2, mu=0.5), OPTIMUM, CURVATURE
    ),
    "loss_against_weights": lambda: figures.loss_against_weights(PRUNED, UNPRUNED),
    "kept_per_layer": lambda: figures.kept_per_layer(LAYERS),
}


def lines(ax) -> dict:
    return {line.get_label(): line for line in ax.lines}


@pytest.mark.parametrize("name", FIGURES)
def test_reads_well_anywhere(name):
    """Opaque and white, no wider than a column, letters of at least 10 points, and not left open in pyplot."""
    figure = FIGURES[name]()
    assert not plt.get_fignums()
    assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
    assert figure.get_facecolor()[3] == 1
    assert figure.get_figwidth() <= figures.WIDTH
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 10
    inches = figure.get_tightbbox()  # of all that is visible: nothing is cut off
    assert min(inches.x0, inches.y0) >= -0.02
    assert inches.x1 <= figure.get_figwidth() + 0.02
    assert inches.y1 <= figure.get_figheight() + 0.02


@pytest.mark.parametrize("name", FIGURES)
def test_marks_can_be_told_apart_in_grey(name):
    """Lines of one panel differ in their marks, or in the pattern of the line."""
    for ax in FIGURES[name]().axes:
        drawn = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert len(
            {(line.get_marker(), str(line._unscaled_dash_pattern), line.get_linestyle()) for line in drawn}
        ) == len(drawn)


def test_the_method_leaves_what_magnitudes_suggest():
    """The larger weight is the wrong one to keep here: the loss on either axis, in closed form."""
    path = figures.compress_quadratic(OPTIMUM, CURVATURE, factor=2, mu=0.5)
    assert path.theta[0] == [1, 0]
    best = float((CURVATURE @ OPTIMUM)[1] / CURVATURE[1, 1])
    assert path.theta.iloc[-1] == pytest.approx([0, best], abs=1e-6)
    assert path.w.iloc[-1] == pytest.approx([0, best], abs=1e-6)
    ends = torch.tensor([[0, best], [float((CURVATURE @ OPTIMUM)[0] / CURVATURE[0, 0]), 0]], dtype=torch.float64)
    ours, theirs = figures.quadratic(ends, OPTIMUM, CURVATURE)
    assert ours < theirs
    # too stiff from the start, it keeps what magnitude pruning keeps
    stiff = figures.compress_quadratic(OPTIMUM, CURVATURE, factor=2, mu=5.0)
    assert all(theta[1] == 0 for theta in stiff.theta)


def test_steps_solve_their_problems():
    """The L step against a general solver, with the multipliers followed by hand."""
    path = figures.compress_quadratic(OPTIMUM, CURVATURE, factor=2, mu=0.5, growth=1.2, steps=3)
    multipliers = torch.zeros(2, dtype=torch.float64)
    for before, after in zip(path[:-1].itertuples(), path[1:].itertuples(), strict=True):
        target = torch.tensor(before.theta, dtype=torch.float64) + multipliers / after.mu
        w = torch.tensor(before.w, dtype=torch.float64).requires_grad_()
        solver = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def lagrangian(w=w, target=target, mu=after.mu, solver=solver):
            solver.zero_grad()
            loss = figures.quadratic(w, OPTIMUM, CURVATURE) + mu / 2 * (w - target).square().sum()
            loss.backward()
            return loss.detach()

        solver.step(lagrangian)
        assert after.w == pytest.approx(w.tolist(), abs=1e-6)
        multipliers -= after.mu * (torch.tensor(after.w) - torch.tensor(after.theta)).double()
    assert path.mu.tolist() == pytest.approx([0.5, 0.5, 0.6, 0.72])


def test_two_weights_draws_the_path_and_where_magnitude_pruning_ends():
    path = figures.compress_quadratic(OPTIMUM, CURVATURE, factor=2, mu=0.5)
    (ax,) = figures.two_weights(path, OPTIMUM, CURVATURE).axes
    drawn = {label: np.asarray(line.get_xydata()).tolist() for label, line in lines(ax).items()}
    assert drawn["$w$, after each L step"] == path.w.tolist()
    assert drawn[r"$\theta$, after each C step"] == path.theta.tolist()
    assert drawn["trained network"] == [[1, 0.8]]
    assert drawn["magnitude pruning"] == [[1, 0]]
    assert drawn["the same, fine-tuned"] == [[pytest.approx(1.4), 0]]  # 1 + 0.5 * 0.8
    assert ax.get_ylabel() == "weight $w_2$"


def test_loss_against_weights_draws_every_number_in_order():
    upper, lower = figures.loss_against_weights(PRUNED, UNPRUNED).axes
    assert list(lines(upper)) == [*METHODS, "unpruned"]
    for method in METHODS:
        rows = PRUNED[PRUNED.method == method].sort_values("kept")
        np.testing.assert_allclose(lines(upper)[method].get_xydata(), np.c_[100 * rows.kept, rows.loss])
        np.testing.assert_allclose(lines(lower)[method].get_xydata(), np.c_[100 * rows.kept, 100 * rows.error])
    assert set(lines(upper)["unpruned"].get_ydata()) == {0.005}
    assert set(lines(lower)["unpruned"].get_ydata()) == {2.0}
    assert (upper.get_yscale(), lower.get_yscale(), lower.get_xscale()) == ("log", "linear", "log")
    assert lower.get_xlabel() == "weights kept (%)"


def test_kept_per_layer_has_a_place_for_nothing():
    (ax,) = figures.kept_per_layer(LAYERS).axes
    assert lines(ax)["LC"].get_ydata().tolist() == pytest.approx([40, 10, 0])
    assert lines(ax)["MP"].get_ydata().tolist() == pytest.approx([20, 2, 50])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["features.0", "features.3", "classifier"]
    assert ax.transData.transform((0, 0))[1] == pytest.approx(ax.get_window_extent().y0)
    figures.kept_per_layer(LAYERS.assign(kept=0.0))


def test_what_cannot_be_drawn_is_refused():
    many = pd.DataFrame({"method": list("abcdef"), "kept": 0.5, "loss": 1.0, "error": 0.1, "layer": "fc"})
    for draw in (lambda rows: figures.loss_against_weights(rows, UNPRUNED), figures.kept_per_layer):
        with pytest.raises(BarError, match="from 1 to 5 methods can be told apart in a figure, not 6"):
            draw(many)
        with pytest.raises(BarError, match="not 0"):
            draw(many[:0])
    with pytest.raises(BarError, match="must be above 0"):
        figures.loss_against_weights(many[:1].assign(kept=0.0), UNPRUNED)

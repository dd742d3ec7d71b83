"""The figures of notebook 09: curves are those of the library, marks are those of the rows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from bar import figures
from bar.errors import BarError
from bar.methods.reparametrization import soft_mask

ROWS = pd.DataFrame(
    {"method": method, "rate": rate, "accuracy": accuracy}
    for method, accuracies in {
        "reparametrization": (0.99, 0.98, 0.97, 0.6, 0.8),
        "MP+FT": (0.95, 0.96, 0.9, 0.3, 0.5),
        "MP": (0.9, 0.3, 0.2, 0.1, 0.1),
    }.items()
    for rate, accuracy in zip((0.9, 0.95, 0.97, 0.99, 0.99), accuracies, strict=True)
)
FIGURES = {
    "reparametrization": figures.reparametrization,
    "accuracy_against_rate": lambda: figures.accuracy_against_rate(ROWS, 0.985),
}


@pytest.mark.parametrize("name", FIGURES)
def test_reads_well_anywhere(name):
    """Opaque and white, no wider than a column, letters of at least 10 points, and not left open in pyplot."""
    figure = FIGURES[name]()
    assert not plt.get_fignums()
    assert (*to_rgb(figure.get_facecolor()), figure.get_facecolor()[3]) == (1, 1, 1, 1)
    assert figure.get_figwidth() <= figures.WIDTH
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 10
    inches = figure.get_tightbbox()  # of all that is visible: nothing is cut off
    assert min(inches.x0, inches.y0) >= -0.02
    assert inches.x1 <= figure.get_figwidth() + 0.02
    assert inches.y1 <= figure.get_figheight() + 0.02
    assert all(ax.get_ylabel() for ax in figure.axes)
    assert figure.axes[-1].get_xlabel()


def test_draws_the_mask_and_the_apparent_weight():
    upper, lower = figures.reparametrization([50, 100], 0.03).axes
    curves = [(line.get_label(), line) for line in upper.lines]
    assert [label for label, _ in curves] == ["$t$ = 50", "$t$ = 100"]
    assert len({str(line._unscaled_dash_pattern) for line in upper.lines}) == 2
    for t, mask, weight in zip((50, 100), upper.lines, lower.lines[1:], strict=True):
        w = torch.as_tensor(mask.get_xdata())
        assert (w.min(), w.max()) == (-0.03, 0.03)
        np.testing.assert_allclose(mask.get_ydata(), soft_mask(w, t))
        np.testing.assert_allclose(weight.get_ydata(), w * soft_mask(w, t))


def test_draws_means_and_extremes_over_the_rate():
    (ax,) = FIGURES["accuracy_against_rate"]().axes
    drawn = dict(zip(ax.get_legend_handles_labels()[1], ax.get_legend_handles_labels()[0], strict=True))
    assert list(drawn) == ["unpruned", "reparametrization", "MP+FT", "MP"]
    assert set(drawn["unpruned"].get_ydata()) == {98.5}
    line, _, (bars,) = drawn["MP+FT"].lines
    np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [0.1, 0.05, 0.03, 0.01])
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [95, 96, 90, 40])
    np.testing.assert_allclose(np.array(bars.get_segments()[-1]), [[0.01, 30], [0.01, 50]])
    assert len({drawn[name].lines[0].get_marker() for name in ("reparametrization", "MP+FT", "MP")}) == 3
    assert [label.get_text() for label in ax.get_xticklabels()] == ["99", "97", "95", "90"][::-1]
    low, high = ax.get_xlim()
    assert low > high  # more is removed to the right


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.iloc[:0], "from 1 to 5 methods"),
        (pd.DataFrame({"method": list("abcdef"), "rate": 0.9, "accuracy": 0.5}), "not 6"),
        (pd.DataFrame({"method": "MP", "rate": [90], "accuracy": 0.5}), "between 0 and 1"),
    ],
)
def test_rows_that_cannot_be_drawn(rows, message):
    with pytest.raises(BarError, match=message):
        figures.accuracy_against_rate(rows, 0.9)

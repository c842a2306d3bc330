"""The picture of accuracy over cost."""

import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Text

from gdrd_jax.evaluation import cost_plot


@pytest.mark.parametrize("count", [1, 40])
def test_names_cover_neither_each_other_nor_points(count, monkeypatch):
    """Forty methods whose costs and figures are close to each other, as in a grid of one schedule."""
    rng, figures = np.random.default_rng(0), []
    monkeypatch.setattr(cost_plot, "saved", lambda figure: figures.append(figure) or b"png")
    drawn = zip(rng.normal(11, 2.5, size=count), rng.normal(80, 4, size=count))
    points = {f"a_method_{i}": (cost, value, (value - 2, value + 2)) for i, (cost, value) in enumerate(drawn)}
    assert cost_plot.draw_cost(points, x="minutes", y="accuracy, %") == b"png"
    (figure,) = figures
    figure.canvas.draw()
    (axes,), names = figure.axes, list(points)
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == names
    assert not [pair for pair in itertools.combinations(range(count), 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    markers = [axes.transData.transform(point[:2]) for point in points.values()]
    assert not [box for box in boxes if any(box.contains(*marker) for marker in markers)]
    frame = axes.get_window_extent()
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    plt.close(figure)

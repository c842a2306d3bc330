"""A picture of what methods reach over what they cost."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from gdrd_jax.evaluation.report import saved

SIZE = 8  # of names, in points
MARKER = 4  # half the side of a point's marker, in points
DISTANCES = (9, 17, 26, 36, 48, 62, 80)  # of a name from its point, in points
DIRECTIONS = np.linspace(0, 2 * np.pi, 16, endpoint=False)


def draw_cost(points: Mapping[str, tuple[float, float, tuple[float, float]]], *, x: str, y: str) -> bytes:
    """PNG of a figure over its cost, on a log scale: name -> (cost, figure, interval)."""
    figure, axes = plt.subplots(figsize=(10, 7), layout="constrained")
    colors = {}
    for name, (cost, value, (low, high)) in points.items():
        drawn = axes.errorbar(cost, value, [[value - low], [high - value]], marker="o", capsize=2, alpha=0.5)
        colors[name] = drawn.lines[0].get_color()
    axes.set(xscale="log", xlabel=x, ylabel=y)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    figure.draw_without_rendering()  # which determines where everything is
    _annotate(axes, {name: (cost, value) for name, (cost, value, _) in points.items()}, colors)
    return saved(figure)


def _annotate(axes: Axes, points: Mapping[str, tuple[float, float]], colors: Mapping[str, Any]) -> None:
    """Writes names beside points, each where it covers no other name or point, with a line to it from farther away."""
    figure = axes.get_figure()
    assert figure is not None
    pixels, frame = figure.dpi / 72, axes.get_window_extent()
    places = {name: axes.transData.transform(at) / pixels for name, at in points.items()}  # in points
    inside = Bbox(frame.get_points() / pixels)
    taken = [Bbox([place - MARKER, place + MARKER]) for place in places.values()]
    for name, place in places.items():
        size = _size(axes, name) / pixels
        offsets = [d * np.array([1.3 * np.cos(a), np.sin(a)]) for d, a in itertools.product(DISTANCES, DIRECTIONS)]
        boxes = [_box(place + offset, size, right=offset[0] >= 0) for offset in offsets]
        free = (i for i, box in enumerate(boxes) if _within(box, inside) and not box.count_overlaps(taken))
        chosen = next(free, 0)
        taken.append(boxes[chosen])
        across, up = map(float, offsets[chosen])
        line = {"arrowstyle": "-", "linewidth": 0.6, "color": colors[name]}
        axes.annotate(
            name, points[name], (across, up), textcoords="offset points", size=SIZE, va="center", color=colors[name],
            ha="left" if across >= 0 else "right", arrowprops=line if chosen >= len(DIRECTIONS) else None,
        )  # fmt: skip


def _size(axes: Axes, name: str) -> np.ndarray:
    """Width and height of a name in pixels."""
    text = axes.text(0, 0, name, size=SIZE)
    box = text.get_window_extent()
    text.remove()
    return np.array([box.width, box.height])


def _box(at: np.ndarray, size: np.ndarray, *, right: bool) -> Bbox:
    """The box of a text that begins, or else ends, at a place, and has it at half its height."""
    low = at - size * (0 if right else 1, 0.5)
    return Bbox([low, low + size])


def _within(box: Bbox, other: Bbox) -> bool:
    return bool(np.all(box.min >= other.min) and np.all(box.max <= other.max))

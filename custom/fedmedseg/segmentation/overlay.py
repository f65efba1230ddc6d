"""A picture of one slice with the truth's and the models' outlines. It stays at the site."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

TRUTH = "truth"
"""What the legend calls it."""
TRUTH_COLOUR = "#2ca02c"
MODEL_COLOURS = ("#d62728", "#1f77b4", "#ff7f0e", "#9467bd")
LONGER_EDGE_INCHES = 6.0


def busiest_slice(label: NDArray[np.integer]) -> int:
    """Index along Z of the slice of (X, Y, Z) with the most labelled voxels, the middle one where none has any."""
    counts = (label > 0).sum(axis=(0, 1))
    return int(counts.argmax()) if counts.any() else label.shape[2] // 2


def overlay_png(
    image: NDArray[np.floating],
    truth: NDArray[np.integer],
    predictions: Mapping[str, NDArray[np.integer]],
    *,
    spacing: tuple[float, float],
    points: Mapping[str, NDArray[np.floating]] | None = None,
) -> bytes:
    """Draw one slice as PNG.

    ``image``, ``truth`` and each of ``predictions`` (model's name -> label map) are (X, Y) on one grid of
    ``spacing`` mm. Every structure gets an outline: the truth's solid, the models' dashed. ``points`` (``TRUTH`` or a
    model's name -> (N, 2) voxels, nan where there is none) are marked: the truth's by a circle, the models' by a cross.
    The file holds no metadata besides the drawing software's name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, height = image.shape[0] * spacing[0], image.shape[1] * spacing[1]
    scale = LONGER_EDGE_INCHES / max(width, height)
    figure = Figure(figsize=(width * scale, height * scale), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect="auto")
    handles = []
    outlines = [(TRUTH, truth, TRUTH_COLOUR, "solid")]
    outlines += [
        (name, labels, MODEL_COLOURS[index % len(MODEL_COLOURS)], "dashed")
        for index, (name, labels) in enumerate(predictions.items())
    ]
    for name, labels, colour, style in outlines:
        for number in np.unique(labels[labels > 0]):
            axes.contour((labels == number).T, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.5)
        if points is not None and name in points:
            mark = "o" if name == TRUTH else "x"
            axes.plot(*points[name].T, mark, color=colour, fillstyle="none", markersize=8, markeredgewidth=1.5)
        handles.append(Line2D([], [], color=colour, linestyle="solid" if style == "solid" else "dashed", label=name))
    # a point beside the slice must not shrink the image
    axes.set_xlim(-0.5, image.shape[0] - 0.5)
    axes.set_ylim(-0.5, image.shape[1] - 0.5)
    axes.legend(handles=handles, loc="upper right", fontsize=8, framealpha=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""What all figures have in common: colours, style, a canvas without a display, SVG and PNG of equal bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SITE_COLOURS = ("#0b6e99", "#d98e32", "#4a8f5c", "#a0527a", "#6b6fb3", "#8a7142", "#3d9a9a", "#b5483a")
"""Told apart in grey print too: lines also differ by marker."""
MARKERS = "osD^vPX*"
INK, PALE = "#1d2733", "#e3e7ec"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fedmedseg",
    # names come from sites: a dollar sign in one is no formula
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a94a0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def canvas(width: float, height: float, lines: int = 1, columns: int = 1) -> tuple[Figure, Axes]:
    """A figure of ``width`` by ``height`` inches with so many panels, and the first of them."""
    # a figure of its own, not pyplot's: no display, no global list of figures, safe in the server's threads
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(lines, columns)
    return figure, figure.axes[0]


def svg_of(figure: Figure, *, transparent: bool = False) -> str:
    """The figure as SVG text: the same bytes for the same drawing. ``transparent``: on the ground of a page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def png_of(figure: Figure) -> bytes:
    """The figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()

"""Figures of a comparison: Dice and HD95 with intervals, every site, labels against Dice, bytes against Dice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedmedseg.comparison.study import Comparison
from fedmedseg.comparison.tables import FIGURES, UNITS, Runs
from fedmedseg.reporting.canvas import MARKERS, SITE_COLOURS, STYLE, canvas, png_of, svg_of
from fedmedseg.reporting.tables import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[Runs]]


def figure_files(comparison: Comparison, groups: Groups) -> dict[str, bytes]:
    """File name -> content, SVG and PNG of every figure for which there are results."""
    import matplotlib

    if not groups:
        return {}
    titles = {level.name: level.title for level in comparison.section.labelled.levels}
    drawers: dict[str, Callable[[], Figure | None]] = {
        **{f"{figure}": lambda figure=figure: draw_means(groups, titles, figure) for figure in FIGURES},  # type: ignore[misc]
        "sites": lambda: draw_sites(groups, titles),
        "labels": lambda: draw_labels(comparison, groups),
        "megabytes": lambda: draw_megabytes(groups, titles),
    }
    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawers.items():
            figure = draw()
            if figure is not None:
                files[f"{name}.svg"], files[f"{name}.png"] = svg_of(figure).encode(), png_of(figure)
    return files


def draw_means(groups: Groups, titles: Mapping[str, str], figure: str) -> Figure:
    """A panel per amount of labels: each method's mean, with its interval."""
    most = max(len(every) for every in groups.values())
    drawn, _ = canvas(max(4.6, 3.6 * len(groups)), 0.34 * most + 1.1, 1, len(groups))
    for axes, (labelled, every) in zip(drawn.axes, groups.items(), strict=True):
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        for place, runs in enumerate(every):
            mean, (low, high) = runs.mean(figure), runs.interval(figure)
            colour = SITE_COLOURS[place % len(SITE_COLOURS)]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot([mean], [place], color=colour, marker="o", markersize=6)
        axes.set_yticks(range(len(every)), [short(runs.label, 32) for runs in every])
        axes.invert_yaxis()
        axes.set_title(titles[labelled], loc="left", fontsize=9.5, fontweight="bold")
        axes.set_xlabel(UNITS[figure])
    return drawn


def draw_sites(groups: Groups, titles: Mapping[str, str]) -> Figure:
    """A panel per amount of labels: Dice of every method at every site."""
    most = max(len(runs.sites) * len(every) for every in groups.values() for runs in every)
    drawn, _ = canvas(max(5.2, 0.22 * most + 2.6), 2.5 * len(groups), len(groups), 1)
    for axes, (labelled, every) in zip(drawn.axes, groups.items(), strict=True):
        sites = sorted({site for runs in every for site in runs.sites})
        width = 0.8 / len(every)
        for place, runs in enumerate(every):
            at = [x + (place - (len(every) - 1) / 2) * width for x in range(len(sites))]
            heights = [runs.of_site("dice", site) if site in runs.sites else 0.0 for site in sites]
            axes.bar(at, heights, width=width * 0.94, color=SITE_COLOURS[place % len(SITE_COLOURS)], label=runs.label)
        axes.set_xticks(range(len(sites)), [short(site) for site in sites])
        axes.set_ylim(0, 1)
        axes.set_ylabel(UNITS["dice"])
        axes.set_title(titles[labelled], loc="left", fontsize=9.5, fontweight="bold")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return drawn


def draw_labels(comparison: Comparison, groups: Groups) -> Figure | None:
    """Mean Dice against the amount of labels; nothing where there is one alone."""
    levels = [level for level in comparison.section.labelled.levels if level.name in groups]
    if len(levels) < 2:
        return None
    drawn, axes = canvas(6.4, 3.0)
    for place, (name, method) in enumerate(comparison.section.methods.items()):
        points = [
            (level.value, runs.mean("dice")) for level in levels for runs in groups[level.name] if runs.method == name
        ]
        if points:
            x, y = zip(*sorted(points), strict=True)
            style = _style(place)
            axes.plot(x, y, linewidth=1.6, label=method.label or name, **style)
    what = "labelled patients a site" if levels[0].kind == "patients" else "share of the labels"
    axes.set(xlabel=what, ylabel=UNITS["dice"])
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return drawn


def draw_megabytes(groups: Groups, titles: Mapping[str, str]) -> Figure | None:
    """Mean Dice against what a site moved, down and up; nothing where nothing was."""
    if not any(runs.cost("down") + runs.cost("up") for every in groups.values() for runs in every):
        return None
    drawn, _ = canvas(max(5.4, 3.6 * len(groups) + 1.6), 3.0, 1, len(groups))
    for axes, (labelled, every) in zip(drawn.axes, groups.items(), strict=True):
        for place, runs in enumerate(every):
            style = _style(place)
            moved = runs.cost("down") + runs.cost("up")
            axes.plot([moved], [runs.mean("dice")], linestyle="none", label=runs.label, **style)
        axes.set(xlabel="MB a site moved", ylabel=UNITS["dice"])
        axes.set_title(titles[labelled], loc="left", fontsize=9.5, fontweight="bold")
    drawn.axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return drawn


def _style(place: int) -> dict[str, Any]:
    """Colour and marker of the method in this place; those beyond the colours have another pair."""
    turn, colour = divmod(place, len(SITE_COLOURS))
    return {"color": SITE_COLOURS[colour], "marker": MARKERS[(place + 3 * turn) % len(MARKERS)]}

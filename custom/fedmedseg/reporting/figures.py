"""The report's figures as SVG text: drawn without a display, the same bytes for the same record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedmedseg.reporting.alarms import round_of
from fedmedseg.reporting.canvas import INK, MARKERS, PALE, SITE_COLOURS, STYLE, canvas, svg_of
from fedmedseg.reporting.costs import costs_of
from fedmedseg.reporting.curves import Points, all_series, draw_curves, series
from fedmedseg.reporting.tables import (
    DiceRow,
    Record,
    dice_table,
    label_of,
    models_in,
    number,
    reply,
    rounds_of,
    short,
    sites_of,
    structures_in,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL_COLOURS = {
    "personal": "#0b6e99",
    "shared": "#5aa9c7",
    "continued": "#8a5a9e",
    "scratch": "#d98e32",
    "cnn": "#6b6fb3",
    "student": "#0b6e99",
    "untrained": "#b8bec6",
}
LAYERS, PAIRS = "attention", "pair_attention"
"""Notes of weights: by layer and site, and by site and site."""


def figures(record: Record) -> dict[str, str]:
    """Name -> SVG of every figure for which the record holds numbers."""
    import matplotlib

    drawers: dict[str, Callable[[Record], Figure | None]] = {
        "dice": draw_dice,
        "hd95": draw_hd95,
        "curves": draw_curves,
        "teacher": draw_teacher,
        "features": draw_features,
        "participation": draw_participation,
        "weights": draw_weights,
        "attention": draw_attention,
        "seconds": draw_seconds,
        "bytes": draw_bytes,
    }
    found = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawers.items():
            figure = draw(record)
            if figure is not None:
                found[name] = svg_of(figure, transparent=True)
    return found


def draw_dice(record: Record) -> Figure | None:
    """Grouped bars: mean Dice per site and model, one panel per structure; lines: a standard deviation each way."""
    return _scores(record, "Dice", lambda row: (row.dice, row.dice_sd), top=1.0)


def draw_hd95(record: Record) -> Figure | None:
    """As ``draw_dice`` for the 95th-percentile Hausdorff distance in mm."""
    return _scores(record, "HD95 (mm)", lambda row: (row.hd95, row.hd95_sd), top=None)


def draw_teacher(record: Record) -> Figure | None:
    """Spread of the teacher's targets over tokens per round and site; a ring marks an alarm."""
    return _watched(record, "teacher_std", "teacher's spread")


def draw_features(record: Record) -> Figure | None:
    """Spread of the sites' features per round; a ring marks an alarm."""
    return _watched(record, "feature_std", "spread of features")


def _watched(record: Record, figure_name: str, label: str) -> Figure | None:
    """A monitor's figure per round and site, with the alarms it raised."""
    found = all_series(record, figure_name)
    if not found:
        return None
    figure = _lines(found, label)
    axes = figure.axes[0]
    # from 0: a small drift must not look like a collapse
    axes.set_ylim(bottom=0)
    alarms = [
        (place, dict(points)[place])
        for site, points in found.items()
        for place, alarm in series(record, "collapse_alarm", site)
        if alarm and place in dict(points)
    ]
    if alarms:
        x, y = zip(*alarms, strict=True)
        axes.scatter(x, y, s=140, facecolors="none", edgecolors="#b3261e", linewidths=1.8, zorder=5, label="alarm")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw_participation(record: Record) -> Figure | None:
    """Matrix of rounds and sites: accepted, not accepted, declined, not asked."""
    rounds, sites = rounds_of(record), sites_of(record)
    if not rounds or not sites:
        return None
    figure, axes = canvas(max(3.2, 0.3 * len(rounds) + 1.8), 0.34 * len(sites) + 0.9)
    axes.grid(False)
    for x, one in enumerate(rounds):
        for y, site in enumerate(sites):
            colour, sign = _standing(reply(one, site))
            axes.add_patch(_box(x, y, colour))
            axes.text(x, y, sign, ha="center", va="center", color="white", fontsize=8, fontweight="bold")
    axes.set(xlim=(-0.6, len(rounds) - 0.4), ylim=(len(sites) - 0.4, -0.6))
    axes.set_yticks(range(len(sites)), [short(site) for site in sites])
    axes.set_xticks(*_round_ticks(rounds), fontsize=7.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def draw_weights(record: Record) -> Figure | None:
    """Each site's share in the aggregate, per round."""
    rounds = [one for one in rounds_of(record) if any(number(a.get("weight")) is not None for a in _answers(one))]
    if not rounds:
        return None
    return _stacks(rounds, sites_of(record), lambda one, site: number(reply(one, site).get("weight")) or 0.0, "weight")


def draw_attention(record: Record) -> Figure | None:
    """Aggregation weights of the last round that noted them: layers (for personal models: sites) down, sites across."""
    layers = attention_of(record)
    if not layers:
        return None
    sites = sorted({site for weights in layers.values() for site in weights})
    grid = [[weights.get(site, float("nan")) for site in sites] for weights in layers.values()]
    figure, axes = canvas(1.1 * len(sites) + 3.6, min(9.0, 0.17 * len(layers) + 1.0))
    axes.grid(False)
    image = axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0)
    axes.set_xticks(range(len(sites)), [short(site) for site in sites])
    step = max(1, -(-len(layers) // 48))
    axes.set_yticks(range(0, len(layers), step), [short(layer) for layer in layers][::step], fontsize=6.5)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="weight", fraction=0.05, pad=0.02)
    return figure


def attention_of(record: Record) -> dict[str, dict[str, float]]:
    """Layer (for personal models: site) -> site -> weight, of the last round that noted any; empty without one."""
    return _noted(record)[1]


def between_sites(record: Record) -> bool:
    """Whether what ``attention_of`` finds is of sites and sites."""
    return _noted(record)[0] == PAIRS


def _noted(record: Record) -> tuple[str, dict[str, dict[str, float]]]:
    for one in reversed(rounds_of(record)):
        for name in (LAYERS, PAIRS):
            table = (one.get("notes") or {}).get(name)
            weights = _weights(table) if isinstance(table, Mapping) else {}
            if weights:
                return name, weights
    return "", {}


def draw_seconds(record: Record) -> Figure | None:
    """Per round: training and moving of the slowest site, and aggregation. Sites work at the same time."""
    rounds, costs = rounds_of(record), costs_of(record)
    if not rounds:
        return None
    figure, axes = canvas(max(5.6, 0.3 * len(rounds) + 3.4), 2.7)
    parts = {
        "training": [cost.training for cost in costs],
        "moving": [cost.moving for cost in costs],
        "aggregating": [cost.aggregating for cost in costs],
    }
    base = [0.0] * len(rounds)
    for (name, values), colour in zip(parts.items(), ("#0b6e99", "#d98e32", "#4a8f5c"), strict=True):
        axes.bar(range(len(rounds)), values, bottom=base, color=colour, label=name, width=0.75)
        base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_ylabel("seconds")
    _round_axis(axes, rounds)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw_bytes(record: Record) -> Figure | None:
    """Per round: bytes from the server to all sites, and from all sites to the server."""
    rounds = rounds_of(record)
    down = [cost.down / 2**20 for cost in costs_of(record)]
    up = [cost.up / 2**20 for cost in costs_of(record)]
    if not any(down) and not any(up):
        return None
    figure, axes = canvas(max(5.6, 0.3 * len(rounds) + 3.4), 2.4)
    places = range(len(rounds))
    axes.bar([place - 0.19 for place in places], down, width=0.38, color="#0b6e99", label="to the sites")
    axes.bar([place + 0.19 for place in places], up, width=0.38, color="#d98e32", label="to the server")
    axes.set_ylabel("MiB")
    _round_axis(axes, rounds)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _scores(
    record: Record, name: str, told: Callable[[DiceRow], tuple[float | None, float | None]], *, top: float | None
) -> Figure | None:
    """``told`` gives a row's mean and its spread."""
    rows = [row for row in dice_table(record) if told(row)[0] is not None]
    if not rows:
        return None
    models, structures = models_in(rows), structures_in(rows)
    sites = [site for site in sites_of(record) if any(row.site == site for row in rows)]
    width = max(3.3, 0.2 * len(sites) * len(models) + 1.0)
    columns = max(1, min(len(structures), int(10.5 / width)))
    lines = -(-len(structures) // columns)
    figure, _ = canvas(max(4.6, width * columns), 2.35 * lines + 0.2, lines, columns)
    panels = list(figure.axes)
    thickness = 0.8 / len(models)
    for panel, structure in zip(panels, structures, strict=False):
        for index, model in enumerate(models):
            score = {row.site: told(row) for row in rows if row.structure == structure and row.model == model}
            places = [place + (index - (len(models) - 1) / 2) * thickness for place in range(len(sites))]
            means = [score.get(site, (None, None)) for site in sites]
            colour = MODEL_COLOURS.get(model, "#6b6fb3")
            heights = [one or 0.0 for one, _ in means]
            panel.bar(places, heights, width=thickness * 0.94, color=colour, label=label_of(model))
            for place, (height, spread) in zip(places, means, strict=True):
                if height is not None and spread is not None:
                    ends = (max(0.0, height - spread), height + spread if top is None else min(top, height + spread))
                    panel.vlines(place, *ends, color=INK, linewidth=1)
        panel.set_xticks(range(len(sites)), [short(site) for site in sites])
        panel.tick_params(axis="x", length=0)
        panel.set_title(short(structure.replace("_", " ")), loc="left", fontsize=9.5, fontweight="bold")
        panel.set_ylabel(name)
        if top is not None:
            panel.set_ylim(0, top)
    for panel in panels[len(structures) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(models))
    return figure


def _lines(found: Mapping[str, Points], name: str) -> Figure:
    figure, axes = canvas(6.4, 2.7)
    for index, (site, points) in enumerate(found.items()):
        colour, marker = SITE_COLOURS[index % len(SITE_COLOURS)], MARKERS[index % len(MARKERS)]
        x, y = zip(*points, strict=True)
        axes.plot(
            x, y, color=colour, marker=marker, markevery=max(1, len(x) // 20), markersize=4.5, linewidth=1.6, label=site
        )
    axes.set(xlabel="round", ylabel=name)
    axes.locator_params(axis="x", integer=True)
    axes.margins(y=0.12)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _stacks(
    rounds: Sequence[Mapping[str, Any]],
    sites: Sequence[str],
    value: Callable[[Mapping[str, Any], str], float],
    name: str,
) -> Figure:
    figure, axes = canvas(max(5.6, 0.3 * len(rounds) + 3.4), 2.4)
    base = [0.0] * len(rounds)
    for index, site in enumerate(sites):
        heights = [value(one, site) for one in rounds]
        colour = SITE_COLOURS[index % len(SITE_COLOURS)]
        axes.bar(range(len(rounds)), heights, bottom=base, color=colour, label=site, width=0.75)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axes.set_ylabel(name)
    _round_axis(axes, rounds)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _weights(table: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Layer -> site -> weight, whatever else a note may hold left out."""
    found = {}
    for layer, weights in table.items():
        if isinstance(weights, Mapping):
            numbers = {str(site): number(value) for site, value in weights.items()}
            found[str(layer)] = {site: value for site, value in numbers.items() if value is not None}
    return {layer: weights for layer, weights in found.items() if weights}


def _box(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((x - 0.36, y - 0.32), 0.72, 0.64, boxstyle="round,pad=0.04", facecolor=colour, linewidth=0)


def _standing(answer: Mapping[str, Any]) -> tuple[str, str]:
    if answer.get("accepted"):
        return "#3f8f5f", "✓"
    if answer.get("declined"):
        return "#98a2ad", "-"
    if answer:
        return "#b3261e", "✕"
    return PALE, ""


def _answers(one: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [answer for answer in (one.get("sites") or {}).values() if isinstance(answer, Mapping)]


def _round_names(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """``1``, ``2``, ... within a stage, the stage's name under its first round, each stage one line lower."""
    names: list[str] = []
    stages: list[str] = []
    for one in rounds:
        stage = str(one.get("stage", "?"))
        text = str(round_of(one))
        if not stages or stage != stages[-1]:
            stages.append(stage)
            text += "\n" * len(stages) + short(stage.replace("_", " "))
        names.append(text)
    return names


def _round_ticks(rounds: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[str]]:
    """Every round, or in long runs some of them and the first of each stage."""
    names, step = _round_names(rounds), max(1, -(-len(rounds) // 24))
    places = [place for place, name in enumerate(names) if place % step == 0 or "\n" in name]
    return places, [names[place] for place in places]


def _round_axis(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xticks(*_round_ticks(rounds), fontsize=7.5)
    axes.tick_params(axis="x", length=0)

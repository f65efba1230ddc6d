"""Learning curves: loss and validation Dice per round, a panel for each stage and figure, a line for each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedmedseg.reporting.alarms import round_of
from fedmedseg.reporting.canvas import MARKERS, SITE_COLOURS, canvas
from fedmedseg.reporting.tables import Record, label_of, number, reply, rounds_of, short, sites_of, stages_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
VALIDATION = "validation_dice/"
Points = list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure of one stage: by site its values, with the rounds counted from 1."""

    stage: str
    metric: str
    sites: Mapping[str, Points]

    @property
    def title(self) -> str:
        """What a panel is called, of ``validation_dice/personal`` in stage ``training``: training, validation Dice."""
        what = self.metric
        if what.startswith(VALIDATION):
            what = f"validation Dice, {label_of(what.removeprefix(VALIDATION))}"
        elif what.startswith(("loss/", "loss_")):
            what = f"loss, {label_of(what[len('loss/') :])}"
        return f"{self.stage.replace('_', ' ')}: {what}"

    @property
    def told(self) -> str:
        """In words, for whoever does not see the figure: where every site's line begins and ends."""
        return f"{self.title}: {ends_of(self.sites)}"


def ends_of(sites: Mapping[str, Points]) -> str:
    """Where every site's line begins and ends, in words."""
    return ", ".join(f"{site} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for site, points in sites.items())


def curves(record: Record) -> list[Curve]:
    """Of every stage of two rounds and more: its loss (or, without one, its models' losses) and validation Dice.

    The first ``MOST_PANELS`` are drawn.
    """
    found = []
    for stage in stages_of(record):
        named = _named(record, stage)
        losses = [name for name in named if name in ("loss", "loss_personal", "loss_scratch")]
        # terms of a loss say little without it; a model's own loss is all there is
        losses = losses or [name for name in named if name.startswith("loss/")]
        for metric in [*losses, *(name for name in named if name.startswith(VALIDATION))]:
            sites = all_series(record, metric, stage=stage)
            if max((len(points) for points in sites.values()), default=0) > 1:
                found.append(Curve(stage=stage, metric=metric, sites=sites))
    return found


def all_series(record: Record, metric: str, *, stage: str | None = None) -> dict[str, Points]:
    """``series`` of every site that has any."""
    found = {site: series(record, metric, site, stage=stage) for site in sites_of(record)}
    return {site: points for site, points in found.items() if points}


def series(record: Record, metric: str, site: str, *, stage: str | None = None) -> Points:
    """(round counted from 1, value) of a site's accepted replies, in ``stage`` or in all, that hold ``metric``."""
    points = []
    for one in rounds_of(record, stage):
        answer = reply(one, site)
        value = number((answer.get("metrics") or {}).get(metric))
        if answer.get("accepted") and value is not None:
            points.append((round_of(one), value))
    return points


def draw_curves(record: Record) -> Figure | None:
    """Every curve in a panel of its own, two in a row."""
    found = curves(record)[:MOST_PANELS]
    if not found:
        return None
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure, _ = canvas(7.4 if columns > 1 else 5.4, 2.3 * lines + 0.35, lines, columns)
    order = {site: index for index, site in enumerate(sites_of(record))}
    panels = list(figure.axes)
    handles: dict[str, Any] = {}
    for panel, curve in zip(panels, found, strict=False):
        handles |= _draw(panel, curve, order)
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    named = sorted(handles, key=order.__getitem__)
    names = [short(site) for site in named]
    figure.legend([handles[site] for site in named], names, loc="outside lower center", ncols=min(5, len(named)))
    return figure


def _draw(panel: Axes, curve: Curve, order: Mapping[str, int]) -> dict[str, Any]:
    """Draw one panel and return its lines by site."""
    lines = {}
    for site, points in curve.sites.items():
        x, y = zip(*points, strict=True)
        (lines[site],) = panel.plot(
            x,
            y,
            color=SITE_COLOURS[order[site] % len(SITE_COLOURS)],
            marker=MARKERS[order[site] % len(MARKERS)],
            markevery=max(1, len(x) // 20),
            markersize=3.8,
            linewidth=1.5,
        )
    panel.set_title(short(curve.title, 44), loc="left", fontsize=9, fontweight="bold")
    panel.set_xlabel("round")
    panel.locator_params(axis="x", integer=True)
    panel.margins(y=0.12)
    if curve.metric.startswith(VALIDATION):
        panel.set_ylim(0, 1)
    return lines


def _named(record: Record, stage: str) -> list[str]:
    """Every figure of a stage's accepted replies, by name, once."""
    names = {
        str(name)
        for one in rounds_of(record, stage)
        for answer in (one.get("sites") or {}).values()
        if answer.get("accepted")
        for name in answer.get("metrics") or {}
    }
    return sorted(names)
